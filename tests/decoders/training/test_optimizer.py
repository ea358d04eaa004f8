"""Which weights Muon changes, which AdamW, and that both go on where they stopped."""

from __future__ import annotations

import torch
from torch import nn

from decoders.labels import LabelSet
from decoders.panoptic import PanopticDecoder
from decoders.training.optimizer import MUON_FACTOR, HeadOptimizer
from encoders.transformer import Mlp
from encoders.vit import VisionTransformer


class Head(nn.Module):
    """A matrix inside an MLP, and a class layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mlp = nn.Sequential(Mlp(4, 6))
        self.class_head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.class_head(self.mlp(x))


def train(head: nn.Module, optimizer: HeadOptimizer, steps: int) -> None:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        optimizer.zero_grad()
        head(x).square().mean().backward()
        optimizer.step(1e-2)


def test_matrices_inside_blocks_are_muon_s_at_its_own_rate_and_the_others_adam_s() -> None:
    head, reference = Head(), Head()
    train(head, HeadOptimizer(head, 0.0), 1)
    reference(torch.randn(8, 4, generator=torch.Generator().manual_seed(1))).square().mean().backward()
    inner = [reference.mlp[0].fc1.weight, reference.mlp[0].fc2.weight]
    torch.optim.Muon(inner, lr=MUON_FACTOR * 1e-2, weight_decay=0.0, adjust_lr_fn="match_rms_adamw").step()
    torch.optim.AdamW([reference.class_head.weight], lr=1e-2, weight_decay=0.0).step()
    for name in ("mlp.0.fc1.weight", "mlp.0.fc2.weight", "class_head.weight"):
        torch.testing.assert_close(head.get_parameter(name), reference.get_parameter(name))


def test_only_what_lies_inside_blocks_of_a_mask_head_is_given_to_muon(
    tiny_encoder: VisionTransformer, label_set: LabelSet
) -> None:
    head = PanopticDecoder(tiny_encoder.spec, label_set=label_set, out_indices=(1,), num_queries=3, num_blocks=1)
    optimizer = HeadOptimizer(head, 0.05)
    state = optimizer.state_dict()
    assert len(state["muon"]["param_groups"][0]["params"]) == 4 + 2  # a block, and a lateral MLP
    count = sum(len(group["params"]) for group in state["adamw"]["param_groups"])
    assert count + 6 == len(list(head.parameters()))


def test_it_goes_on_as_if_it_had_never_stopped() -> None:
    whole, broken, resumed = Head(), Head(), Head()
    train(whole, HeadOptimizer(whole, 0.05), 4)
    first = HeadOptimizer(broken, 0.05)
    train(broken, first, 2)
    resumed.load_state_dict(broken.state_dict())
    second = HeadOptimizer(resumed, 0.05)
    second.load_state_dict(first.state_dict())
    train(resumed, second, 2)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
