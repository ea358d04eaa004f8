"""Where a picture lies in the network's input, by which rule, and the way back to its own pixels."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class ImageGeometry:
    """Where one picture lies in the network's input. All sizes are (height, width) in pixels.

    Attributes:
        image_size: the picture as given.
        scaled_size: the picture as the network sees it.
        input_size: the network's input; the picture is at its top left, the rest is padding.
        output_size: the size wanted of results, `image_size` unless the caller asked for less.
        window_starts: (top, left) in the scaled picture of each window that it is cut into; None: it goes in whole.
        pads_with_mean: the padding is the encoder's mean colour (0 after standardising) instead of black.
    """

    image_size: tuple[int, int]
    scaled_size: tuple[int, int]
    input_size: tuple[int, int]
    output_size: tuple[int, int]
    window_starts: tuple[tuple[int, int], ...] | None = None
    pads_with_mean: bool = False

    @property
    def num_views(self) -> int:
        """Network inputs that the picture makes."""
        return 1 if self.window_starts is None else len(self.window_starts)

    def to_input(self, maps: Tensor) -> Tensor:
        """Bring network maps to the input's resolution, bilinearly.

        Args:
            maps: [K, h, w] or [V, K, h, w], covering the whole input.

        Returns:
            The same with `input_size` as the last two dimensions, float32.
        """
        return _bilinear(maps, self.input_size)

    def to_scaled(self, maps: Tensor | Iterable[Tensor]) -> Tensor:
        """Bring maps to the scaled picture: padding is cropped; where windows overlap, their mean counts.

        Args:
            maps: [K, h, w] over the whole input; or one for each window: [V, K, h, w], or made one after the other.

        Returns:
            [K, *scaled_size] float32.
        """
        height, width = self.scaled_size
        if self.window_starts is None:
            assert isinstance(maps, Tensor)
            return self.to_input(maps)[:, :height, :width]
        total, covering = torch.zeros(()), torch.zeros(())
        for number, (window, (top, left)) in enumerate(zip(maps, self.window_starts, strict=True)):
            if number == 0:
                total = torch.zeros((len(window), height, width), device=window.device)
                covering = torch.zeros((height, width), device=window.device)
            place = (slice(top, top + self.input_size[0]), slice(left, left + self.input_size[1]))
            total[(slice(None), *place)] += self.to_input(window)
            covering[place] += 1
        return total.div_(covering)

    def to_output(self, maps: Tensor | Iterable[Tensor]) -> Tensor:
        """Bring maps to the output's pixels: to the input, to the scaled picture, and then to the output.

        Two separate bilinear resizes, as the published evaluation does them.

        Args:
            maps: as in `to_scaled`.

        Returns:
            [K, *output_size] float32.
        """
        return self.scaled_to_output(self.to_scaled(maps))

    def scaled_to_output(self, maps: Tensor) -> Tensor:
        """The second of the two resizes alone: [K, *scaled_size] to [K, *output_size]."""
        return _bilinear(maps, self.output_size)


@dataclass(frozen=True)
class FitGeometry:
    """Scale a picture to fit into a fixed input and pad it with black on the right and at the bottom.

    Attributes:
        height, width: of the network's input, in pixels.
    """

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height} x {self.width}"

    def __post_init__(self) -> None:
        _check_positive(self.height, self.width)

    @property
    def typical_size(self) -> tuple[int, int]:
        """(height, width) of the input."""
        return (self.height, self.width)

    def place(self, image_size: tuple[int, int], max_side: int | None = None) -> ImageGeometry:
        """Where a picture of `image_size` lies; sizes round half to even, as the published code's do.

        Args:
            image_size: (height, width).
            max_side: results are made no larger than this along the longer side.
        """
        height, width = image_size
        factor = min(self.height / height, self.width / width)
        scaled_size = (max(1, round(height * factor)), max(1, round(width * factor)))
        return ImageGeometry(image_size, scaled_size, self.typical_size, _output_size(image_size, max_side))


@dataclass(frozen=True)
class WindowGeometry:
    """Scale a picture's short side to a square window's and cut it into as few windows as cover it.

    Attributes:
        size: side of a window, pixels.
    """

    size: int

    def __str__(self) -> str:
        return f"windows of {self.size}"

    def __post_init__(self) -> None:
        _check_positive(self.size)

    @property
    def typical_size(self) -> tuple[int, int]:
        """(height, width) of a window; a 4:3 picture makes two."""
        return (self.size, self.size)

    def place(self, image_size: tuple[int, int], max_side: int | None = None) -> ImageGeometry:
        """As `FitGeometry.place`; the windows lie along the longer side, evenly, their starts cut to whole pixels."""
        height, width = image_size
        factor = max(self.size / height, self.size / width)
        scaled_size = (max(self.size, round(height * factor)), max(self.size, round(width * factor)))
        longer = max(scaled_size)
        count = math.ceil(longer / self.size)
        step = self.size - (count * self.size - longer) / (count - 1) if count > 1 else 0.0
        starts = [int(number * step) for number in range(count)]
        upright = scaled_size[0] > scaled_size[1]
        return ImageGeometry(
            image_size,
            scaled_size,
            self.typical_size,
            _output_size(image_size, max_side),
            window_starts=tuple((start, 0) if upright else (0, start) for start in starts),
        )


@dataclass(frozen=True)
class ShortestEdgeGeometry:
    """Scale a picture's shorter side to a length and pad it with the mean colour to a multiple (PMT's video rule).

    Attributes:
        shorter: of the scaled picture, pixels, unless the longer side would pass `longest`.
        longest: most that the longer side may have, pixels.
        multiple: of which height and width of the input are multiples.
    """

    shorter: int
    longest: int = 1333
    multiple: int = 32

    def __str__(self) -> str:
        return f"shorter side {self.shorter}"

    def __post_init__(self) -> None:
        _check_positive(self.shorter, self.longest, self.multiple)

    @property
    def typical_size(self) -> tuple[int, int]:
        """(height, width) of the input of a 16:9 picture."""
        return self.place((1080, 1920)).input_size

    def place(self, image_size: tuple[int, int], max_side: int | None = None) -> ImageGeometry:
        """As `FitGeometry.place`; sizes round half up, as detectron2's ResizeShortestEdge does."""
        height, width = image_size
        scale = self.shorter / min(height, width)
        scaled_h, scaled_w = (self.shorter, scale * width) if height < width else (scale * height, self.shorter)
        if max(scaled_h, scaled_w) > self.longest:
            shrink = self.longest / max(scaled_h, scaled_w)
            scaled_h, scaled_w = scaled_h * shrink, scaled_w * shrink
        scaled_size = (max(1, int(scaled_h + 0.5)), max(1, int(scaled_w + 0.5)))
        return ImageGeometry(
            image_size,
            scaled_size,
            (_round_up(scaled_size[0], self.multiple), _round_up(scaled_size[1], self.multiple)),
            _output_size(image_size, max_side),
            pads_with_mean=True,
        )


InputGeometry = FitGeometry | WindowGeometry | ShortestEdgeGeometry
"""The rule that a head's input follows. Heads of equal geometry share an encoder pass: the planner groups by it."""


def _round_up(side: int, multiple: int) -> int:
    return math.ceil(side / multiple) * multiple


def _output_size(image_size: tuple[int, int], max_side: int | None) -> tuple[int, int]:
    if max_side is None or max_side >= max(image_size):
        return image_size
    shrink = max_side / max(image_size)
    return (max(1, round(image_size[0] * shrink)), max(1, round(image_size[1] * shrink)))


def _check_positive(*sizes: int) -> None:
    if min(sizes) < 1:
        raise ValueError(f"sizes of an input geometry must be positive pixels, not {list(sizes)}")


def _bilinear(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(maps.shape[-2:]) == size:
        return maps.float()
    batched = maps if maps.ndim == 4 else maps[None]
    resized = F.interpolate(batched.float(), size=size, mode="bilinear", align_corners=False)
    return resized if maps.ndim == 4 else resized[0]
