"""What is compared: the tokens that enter the first block and leave every half of a block, 1 + 2 * depth levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from encoders.rope import Rope
from encoders.transformer import Block
from encoders.vit import VisionTransformer


def half(encoder: VisionTransformer, number: int, tokens: Tensor, rope: Rope | None) -> Tensor:
    """Run one half of a block: attention if `number` is even, the MLP if it is odd.

    Args:
        encoder: whose block.
        number: 0 .. 2 * depth - 1.
        tokens: [B, T, C], of level `number`.
        rope: of the pictures' grid.

    Returns:
        [B, T, C], of level `number` + 1.
    """
    block = encoder.blocks[number // 2]
    assert isinstance(block, Block)
    return block.transform(tokens) if number % 2 else block.attend(tokens, rope)


@torch.no_grad()
def all_levels(encoder: VisionTransformer, pixels: Tensor) -> Tensor:
    """[1 + 2 * depth, B, T, C] float32; `pixels` as in `VisionTransformer.forward`."""
    tokens, _, rope = encoder.embed(pixels)
    levels = [tokens.float()]
    for number in range(2 * len(encoder.blocks)):
        tokens = half(encoder, number, tokens, rope)
        levels.append(tokens.float())
    return torch.stack(levels)


@dataclass(frozen=True)
class Targets:
    """The teacher's tokens as a student without absolute positions can know them, and their scales.

    A teacher with learned positions carries them along in its tokens. What a patch's place alone tells, the mean over
    many pictures, is taken off; what is left depends on what the pictures show.

    Attributes:
        teacher: frozen; CLS is its only prefix token.
        place_means: for each (grid_h, grid_w), [1 + 2 * depth, 1 + N, C]: what is taken off; 0 for CLS.
        scale: [1 + 2 * depth, 1, 1, C], standard deviation of every channel over pictures.
        step_scale: [2 * depth, 1, 1, C], the same of what a half block adds.
    """

    teacher: VisionTransformer
    place_means: dict[tuple[int, int], Tensor]
    scale: Tensor
    step_scale: Tensor

    @classmethod
    def measure(cls, teacher: VisionTransformer, samples: Sequence[Sequence[Tensor]]) -> Targets:
        """Take means and scales from pictures.

        Args:
            teacher: frozen.
            samples: for every size of input, batches [B, 3, H, W] uint8 on the teacher's device; scales come from the
                first size.
        """
        place_means: dict[tuple[int, int], Tensor] = {}
        scale = step_scale = torch.empty(0)
        for batches in samples:
            count = sum(len(batch) for batch in batches)
            patch = teacher.spec.patch_size
            first = not place_means
            total = square = step_square = torch.zeros((), device=batches[0].device)
            for batch in batches:
                levels = all_levels(teacher, batch)
                total = total + levels.sum(1)
                if first:
                    square = square + levels.square().sum(1)
                    step_square = step_square + levels.diff(dim=0).square().sum(1)
            mean = total / count
            if first:
                scale = _deviation(square / count, mean)
                step_scale = _deviation(step_square / count, mean.diff(dim=0))
            mean[:, 1:] -= mean[:, 1:].mean(1, keepdim=True)
            mean[:, 0] = 0
            place_means[batches[0].shape[2] // patch, batches[0].shape[3] // patch] = mean
        return cls(teacher, place_means, scale, step_scale)

    def __call__(self, pixels: Tensor) -> Tensor:
        """What the student is to tell of pictures: [1 + 2 * depth, B, 1 + N, C], CLS first.

        Raises:
            KeyError: nothing was measured at this size.
        """
        patch = self.teacher.spec.patch_size
        place_mean = self.place_means[pixels.shape[2] // patch, pixels.shape[3] // patch]
        return all_levels(self.teacher, pixels) - place_mean[:, None]


def _deviation(mean_square: Tensor, mean: Tensor) -> Tensor:
    """[L, 1 + N, C] twice to [L, 1, 1, C]: over pictures at each place, then over places."""
    variance = (mean_square - mean.square()).mean(1)
    return variance.clamp_min(1e-8).sqrt()[:, None, None]
