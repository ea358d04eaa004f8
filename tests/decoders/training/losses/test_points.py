"""Reading maps at points, and where the points lie."""

from __future__ import annotations

import pytest
import torch

from decoders.training.losses.points import num_points, random_points, read_points, undecided_points

CPU = torch.device("cpu")


def test_a_map_is_read_at_the_centres_of_its_cells_and_between_them() -> None:
    maps = torch.tensor([[[0.0, 1.0], [2.0, 3.0]]])
    points = torch.tensor([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.5, 0.5], [0.0, 0.0], [1.0, 1.0]])
    torch.testing.assert_close(read_points(maps, points), torch.tensor([[0.0, 1.0, 2.0, 1.5, 0.0, 3.0]]))


def test_points_of_their_own_are_read_from_each_map() -> None:
    maps, points = torch.rand(3, 5, 7), torch.rand(3, 11, 2)
    each = torch.cat([read_points(maps[i : i + 1], points[i]) for i in range(3)])
    torch.testing.assert_close(read_points(maps, points), each)


def test_a_mask_is_all_or_nothing_at_every_point() -> None:
    mask = torch.rand(2, 4, 4) > 0.5
    points = torch.rand(90, 2)
    columns, rows = (4 * points).long().unbind(dim=1)
    torch.testing.assert_close(read_points(mask, points), mask[:, rows, columns].float())


def test_random_points_lie_on_the_picture_and_all_over_it() -> None:
    points = random_points((4000,), (0.5, 0.25), CPU)
    across, down = points.unbind(dim=1)
    assert across.min() >= 0 and across.max() < 0.25
    assert down.min() >= 0 and down.max() < 0.5
    assert across.mean() == pytest.approx(0.125, abs=0.01)
    assert down.mean() == pytest.approx(0.25, abs=0.02)


def test_three_quarters_of_the_points_seek_the_edge_of_the_mask() -> None:
    across = torch.linspace(-20, 20, 64).expand(2, 64, 64)  # the edge is in the middle
    points = undecided_points(across, 400, (1.0, 1.0))
    assert points.shape == (2, 400, 2)
    distance = (points[..., 0] - 0.5).abs()
    assert (distance[:, :300] < 0.2).all()
    assert (distance[:, 300:] > 0.3).any()


def test_points_carry_no_gradient() -> None:
    logits = torch.randn(2, 8, 8, requires_grad=True)
    assert not undecided_points(logits, 16, (1.0, 1.0)).requires_grad


@pytest.mark.parametrize(("size", "count"), [((256, 256), 12544), ((512, 512), 12544), ((112, 112), 2401), ((1, 1), 1)])
def test_as_many_points_stand_for_a_map_as_mask2former_takes(size: tuple[int, int], count: int) -> None:
    assert num_points(*size) == count
