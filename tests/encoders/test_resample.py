"""Positions and patch kernels on another grid or patch size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from encoders.key_map import CheckpointError
from encoders.resample import resample_patch_kernel, resample_positions

ReadGolden = Callable[[str], tuple[dict[str, Any], dict[str, Tensor]]]


def test_positions_and_kernels_equal_those_that_pmt_runs(
    read_golden: ReadGolden,
) -> None:
    facts, tensors = read_golden("dinov2_resample")
    source, target = facts["src_grid"], tuple(facts["dst_grid"])
    positions = resample_positions(tensors["pos_embed_src"], (source, source), target, antialias=True)
    kernel = resample_patch_kernel(tensors["proj_weight_src"], facts["dst_patch"])
    torch.testing.assert_close(positions, tensors["pos_embed_dst"], atol=1e-5, rtol=0)
    torch.testing.assert_close(kernel, tensors["proj_weight_dst"], atol=1e-5, rtol=0)


def test_positions_on_their_own_grid_are_returned_unchanged() -> None:
    positions = torch.randn(1, 12, 4)
    assert resample_positions(positions, (3, 4), (3, 4), antialias=True) is positions


def test_an_equal_number_of_positions_on_another_grid_is_resampled() -> None:
    positions = torch.randn(1, 12, 4)
    resampled = resample_positions(positions, (3, 4), (4, 3), antialias=True)
    assert resampled.shape == (1, 12, 4)
    assert not torch.allclose(resampled, positions)


def test_rows_and_columns_keep_their_places() -> None:
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(6.0), indexing="ij")
    positions = torch.stack((rows, columns), dim=-1).view(1, 48, 2)
    grid = resample_positions(positions, (8, 6), (4, 12), antialias=False)[0].view(4, 12, 2)
    assert (grid[1:, :, 0] > grid[:-1, :, 0]).all()
    assert (grid[:, 1:, 1] > grid[:, :-1, 1]).all()
    torch.testing.assert_close(grid[:, :1, 0].expand(4, 12), grid[:, :, 0])


def test_antialiasing_matters_when_the_grid_shrinks() -> None:
    positions = torch.randn(1, 64, 2)
    plain, smooth = (resample_positions(positions, (8, 8), (3, 3), antialias=a) for a in (False, True))
    assert not torch.allclose(plain, smooth)


def test_half_precision_positions_stay_half() -> None:
    positions = torch.randn(1, 16, 2).half()
    assert resample_positions(positions, (4, 4), (3, 5), antialias=True).dtype == torch.float16


def test_a_kernel_of_the_wanted_size_is_returned_unchanged() -> None:
    kernel = torch.randn(2, 3, 14, 14)
    assert resample_patch_kernel(kernel, 14) is kernel
    assert resample_patch_kernel(kernel, None) is kernel


@pytest.mark.parametrize("shape", [(2, 3, 14, 16), (14, 14), (0, 3, 14, 14)])
@pytest.mark.parametrize("patch_size", [16, None])
def test_what_is_no_kernel_of_square_patches_is_refused(shape: tuple[int, ...], patch_size: int | None) -> None:
    with pytest.raises(CheckpointError, match=r"must be \[C, 3, p, p\], not \[") as error:
        resample_patch_kernel(torch.zeros(shape), patch_size)
    assert str(list(shape)) in str(error.value)


def test_half_precision_kernels_stay_half() -> None:
    assert resample_patch_kernel(torch.randn(2, 3, 8, 8).half(), 10).dtype == torch.float16


@pytest.mark.parametrize("patch_size", [16, 20])
def test_an_enlarged_kernel_gives_the_token_that_the_original_gave(patch_size: int) -> None:
    kernel = torch.randn(2, 3, 8, 8)
    patch = torch.randn(1, 3, 8, 8)
    enlarged = F.interpolate(patch, size=patch_size, mode="bicubic", align_corners=False, antialias=True)
    token = (resample_patch_kernel(kernel, patch_size) * enlarged).sum((1, 2, 3))
    torch.testing.assert_close(token, (kernel * patch).sum((1, 2, 3)), atol=1e-3, rtol=1e-3)
