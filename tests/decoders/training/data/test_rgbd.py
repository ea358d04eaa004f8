"""Pictures with depth: numbered frames, and folders of PNGs or NumPy files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from decoders.training.data.folders import DataError
from decoders.training.data.rgbd import load_rgbd


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Frames 0, 5, 10 and 15; the depth of each is its number in metres, with two pixels unknown."""
    for number in (0, 5, 10, 15):
        depth = np.full((4, 6), 1000 * number + 500, np.uint16)
        depth[0, 0], depth[1, 1] = 0, 65535
        Image.fromarray(depth).save(tmp_path / f"frame-{number:06}.depth.png")
        Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / f"frame-{number:06}.color.jpg")
    return tmp_path


def test_frames_are_read_in_order_from_the_first_to_the_last_asked(frames: Path) -> None:
    names = [sample.name for sample in load_rgbd(frames, "5:10").samples]
    assert names == ["frame-000005.color.jpg", "frame-000010.color.jpg"]
    assert len(load_rgbd(frames).samples) == 4


def test_millimetres_become_metres_and_unmeasured_pixels_nan(frames: Path) -> None:
    (sample,) = load_rgbd(frames, "10:10").samples
    depth_m = sample.read_depth_m()
    assert depth_m.dtype == np.float32
    assert sample.read_image().size == (6, 4)
    unknown = np.isnan(depth_m)
    assert unknown[0, 0] and unknown[1, 1] and unknown.sum() == 2
    np.testing.assert_allclose(depth_m[~unknown], 10.5)


def test_a_range_without_frames_and_a_range_that_is_none_are_named(frames: Path) -> None:
    with pytest.raises(DataError, match=r"no RGB-D frames 20\.\.30 in "):
        load_rgbd(frames, "20:30")
    with pytest.raises(DataError, match="split 'x' is no range of frames"):
        load_rgbd(frames, "x")


def test_a_frame_without_depth_is_told(frames: Path) -> None:
    (frames / "frame-000005.depth.png").unlink()
    dataset = load_rgbd(frames)
    assert len(dataset.samples) == 3
    assert dataset.problems[0].where == "frame-000005.color.jpg"


@pytest.mark.parametrize(("scale", "expected"), [(None, 2.0), (0.5, 1.0)])
def test_numpy_files_are_metres_unless_a_scale_is_given(scale: float | None, expected: float, tmp_path: Path) -> None:
    for folder in ("train", "val"):
        (tmp_path / folder / "rgb").mkdir(parents=True)
        (tmp_path / folder / "depth").mkdir()
        Image.new("RGB", (3, 2)).save(tmp_path / folder / "rgb" / "a.png")
        np.save(tmp_path / folder / "depth" / "a.npy", np.array([[2, np.inf, -1], [2, np.nan, 0]], np.float32))
    (sample,) = load_rgbd(tmp_path, scale=scale).samples
    np.testing.assert_array_equal(sample.read_depth_m(), np.array([[expected, np.nan, np.nan]] * 2, np.float32))


def test_a_scale_holds_for_pngs_as_well(frames: Path) -> None:
    (sample,) = load_rgbd(frames, "10:10", scale=0.01).samples
    assert np.nanmax(sample.read_depth_m()) == pytest.approx(105)
