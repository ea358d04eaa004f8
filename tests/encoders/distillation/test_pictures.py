"""Unlabelled pictures: which are found, and what a view of one may be."""

from __future__ import annotations

import random
import wave
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from encoders.distillation.pictures import find_pictures, load_pictures, mixed, random_view


def test_pictures_below_folders_are_found_but_for_those_left_out(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "a/deep/2.PNG", "a/val/3.jpg", "b/notes.txt", "b/clip.mp4"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / "b" / "folder.png").mkdir()
    found = find_pictures([tmp_path / "a", tmp_path / "b"], leave_out=("/val/",))
    assert [path.name for path in found] == ["1.jpg", "2.PNG", "clip.mp4"]


def test_a_picture_in_two_of_the_folders_counts_once(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "1.jpg").touch()
    assert find_pictures([tmp_path, tmp_path / "deep"]) == [tmp_path / "deep" / "1.jpg"]


def test_no_pictures_at_all_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=tmp_path.name):
        find_pictures([tmp_path])


@pytest.mark.parametrize(("size", "expected"), [((400, 300), (80, 60)), ((30, 50), (30, 50))])
def test_a_picture_is_made_small_and_never_large(
    tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    Image.new("L", size).save(tmp_path / "grey.png")
    [[image]] = load_pictures([tmp_path / "grey.png"], 60, 1)
    assert (image.size, image.mode) == (expected, "RGB")


def test_a_picture_is_upright_as_its_exif_orientation_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (60, 40)).save(tmp_path / "phone.jpg", exif=exif)
    [[image]] = load_pictures([tmp_path / "phone.jpg"], 100, 1)
    assert image.size == (40, 60)


def test_of_a_clip_one_frame_in_so_many_is_taken(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "clip.mp4"), "w") as clip:
        stream = clip.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for brightness in range(0, 250, 25):
            frame = av.VideoFrame.from_image(Image.new("RGB", (96, 64), (brightness,) * 3))
            clip.mux(stream.encode(frame))
        clip.mux(stream.encode())
    [frames] = load_pictures([tmp_path / "clip.mp4"], 32, 4)
    assert [frame.size for frame in frames] == [(48, 32)] * 3
    assert [np.array(frame).mean() for frame in frames] == pytest.approx([0, 100, 200], abs=12)


@pytest.mark.parametrize("name", ["text.png", "text.mp4"])
def test_a_file_that_is_no_picture_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("no picture")
    with pytest.raises(OSError, match=name):
        list(load_pictures([tmp_path / name], 32, 1))


def test_a_picture_that_was_cut_off_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole, cut = tmp_path / "whole.jpg", tmp_path / "cut.jpg"
    Image.fromarray(noise).save(whole)
    cut.write_bytes(whole.read_bytes()[:-2000])
    with pytest.raises(OSError, match=r"cut\.jpg can't be read: .*truncated"):
        list(load_pictures([cut], 32, 1))


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    with (tmp_path / "sound.mov").open("wb") as file, wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    with pytest.raises(OSError, match=r"sound\.mov can't be read: it holds no video"):
        list(load_pictures([tmp_path / "sound.mov"], 32, 1))


def test_views_repeat_by_their_seed_and_differ_by_it() -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (50, 70, 3), dtype=np.uint8))
    first, again, other = (random_view(image, 32, random.Random(seed)) for seed in (1, 1, 2))
    assert first.shape == (3, 32, 32)
    assert first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_picture_of_one_pixel_has_views() -> None:
    assert random_view(Image.new("RGB", (1, 1), (9, 9, 9)), 16, random.Random(0)).shape == (3, 16, 16)


def test_mixing_blends_neighbours_about_a_quarter_of_the_time() -> None:
    views = torch.stack([torch.zeros(3, 4, 4), torch.full((3, 4, 4), 200.0)]).to(torch.uint8)
    blends = [mixed(views, random.Random(seed)) for seed in range(40)]
    untouched = sum(torch.equal(blend, views) for blend in blends)
    assert 20 < untouched < 38
    for blend in blends:
        assert (blend[0].int() + blend[1].int() - 200).abs().max() <= 1  # the two parts add up to one
