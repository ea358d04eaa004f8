"""`polyhead label` as a user runs it: what it writes is what training reads, and what the head said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import ExifTags, Image, ImageOps
from typer.testing import CliRunner

from decoders.training.data.check import check_data
from decoders.training.data.formats import open_data
from decoders.training.data.samples import PanopticSample
from decoders.training.weights_file import save_head
from encoders.checkpoints import load_encoder
from serving.bundles.loading import new_decoder
from serving.bundles.schema import TaskEntry
from serving.cli import main as cli
from serving.cli.evaluation_answers import answer_pictures
from serving.engine import Engine
from serving.errors import StartError

CLASSES = ("cat", "cup", "sky")
ENTRY = {"decoder": "linear_panoptic", "settings": {"out_indices": [2], "min_patches": 0.5}, "labels": "three.yaml"}


@pytest.fixture(scope="module")
def pieces(bundle_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with one panoptic head of random weights, and the tiny bundle's other heads."""
    folder = tmp_path_factory.mktemp("pieces")
    labels = {"labels": [{"name": name, "thing": name != "sky"} for name in CLASSES]}
    (folder / "three.yaml").write_text(yaml.safe_dump(labels))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        decoder = new_decoder(TaskEntry(**ENTRY), load_encoder(bundle_file.parent / "encoder").spec, folder)
    assert isinstance(decoder, torch.nn.Module)
    save_head(decoder, folder / "pieces.safetensors", {})
    tasks = {"pieces": ENTRY | {"weights": "pieces.safetensors"}}
    (folder / "pieces.yaml").write_text(
        yaml.safe_dump({"extends": str(bundle_file), "name": "pieces", "default_tasks": ["pieces"], "tasks": tasks})
    )
    return folder / "pieces.yaml"


@pytest.fixture
def photos(tmp_path: Path, draw_picture: Callable[..., Image.Image]) -> Path:
    """Two pictures, one of them in a folder of its own and turned by its EXIF orientation, and two broken files."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    draw_picture(48, 64, 1).save(folder / "one.png")
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    draw_picture(40, 64, 2).save(folder / "more" / "two.jpg", exif=turned)  # 64 x 40 as people see it
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    (folder / "cut.png").write_bytes((folder / "one.png").read_bytes()[:60])
    return folder


@pytest.fixture
def label(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Runs the command; gives its exit code and what it or its error said."""
    monkeypatch.setenv("POLYHEAD_DEVICE", "cpu")
    monkeypatch.setenv("POLYHEAD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str | Path) -> tuple[int, str]:
        done = CliRunner().invoke(cli.app, ["label", *map(str, arguments)])
        return done.exit_code, f"{done.output}{done.exception or ''}"

    return run


def test_training_reads_what_the_head_said(
    label: Callable[..., tuple[int, str]], pieces: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "labelled"
    code, told = label(photos, "--out", out, "--bundle", pieces, "--task", "pieces")
    assert code == 0, told
    assert "2 pictures left out" in told and "broken.jpg" in told and "cut.png" in told
    assert f"wrote {out}: 2 pictures" in told
    engine = Engine.from_bundle(str(pieces), device="cpu")
    data = open_data("panoptic", out, None, engine.bundle.label_sets["pieces"])
    assert check_data(data) == []
    assert [sample.name for sample in data.samples] == ["more/two.jpg", "one.png"]
    for sample in data.samples:
        assert isinstance(sample, PanopticSample)
        said = engine.predict(photos / sample.name, ["pieces"])[0].results["pieces"]
        segment_map, labels, crowds = sample.read_segments()
        assert np.array_equal(segment_map, said.segment_map)
        assert labels == {each.segment_id: each.label_id for each in said.segments}
        assert len(labels) > 0 and not crowds
        assert np.array_equal(
            np.asarray(sample.read_image()), np.asarray(ImageOps.exif_transpose(Image.open(photos / sample.name)))
        )


def test_the_index_says_what_annotation_tools_ask_for(
    label: Callable[..., tuple[int, str]], pieces: Path, photos: Path, tmp_path: Path
) -> None:
    label(photos, "--out", tmp_path / "labelled", "--bundle", pieces)  # by its default task
    index = json.loads((tmp_path / "labelled" / "annotations.json").read_text())
    assert [entry["isthing"] for entry in index["categories"]] == [1, 1, 0]
    assert [(entry["height"], entry["width"]) for entry in index["images"]] == [(64, 40), (48, 64)]
    for image, annotation in zip(index["images"], index["annotations"], strict=True):
        assert annotation["image_id"] == image["id"]
        assert (tmp_path / "labelled" / "panoptic" / annotation["file_name"]).is_file()
        for info in annotation["segments_info"]:
            x, y, width, height = info["bbox"]
            assert 0 < info["area"] <= width * height
            assert x + width <= image["width"] and y + height <= image["height"]
            assert 0 < info["score"] <= 1


def test_doubtful_segments_stay_unlabelled(
    label: Callable[..., tuple[int, str]], pieces: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "labelled"
    label(photos, "--out", out, "--bundle", pieces, "--task", "pieces", "--score-threshold", "1")
    index = json.loads((out / "annotations.json").read_text())
    assert [entry["segments_info"] for entry in index["annotations"]] == [[], []]


def test_a_folder_that_holds_data_is_not_written_over(
    label: Callable[..., tuple[int, str]], pieces: Path, photos: Path, tmp_path: Path
) -> None:
    arguments = (photos, "--out", tmp_path / "labelled", "--bundle", pieces, "--task", "pieces")
    assert label(*arguments)[0] == 0
    code, told = label(*arguments)
    assert code == 1
    assert "is not empty; labelled data needs a new folder of its own" in told


def test_a_head_without_segments_is_refused(
    label: Callable[..., tuple[int, str]], pieces: Path, photos: Path, tmp_path: Path
) -> None:
    code, told = label(photos, "--out", tmp_path / "labelled", "--bundle", pieces, "--task", "depth")
    assert code == 1
    assert "task 'depth' gives depth results, not panoptic ones; --task may be: " in told and "pieces" in told
    assert not (tmp_path / "labelled").exists()


def test_a_folder_without_pictures_is_refused(
    label: Callable[..., tuple[int, str]], pieces: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    code, told = label(tmp_path / "empty", "--out", tmp_path / "labelled", "--bundle", pieces, "--task", "pieces")
    assert code == 1
    assert "empty holds no pictures" in told


def test_its_own_files_are_no_pictures_to_label(
    label: Callable[..., tuple[int, str]], pieces: Path, photos: Path
) -> None:
    code, told = label(photos, "--out", photos / "labelled", "--bundle", pieces, "--task", "pieces")
    assert code == 1
    assert "where its files would be pictures too: give another --out" in told
    assert not (photos / "labelled").exists()


def test_pictures_that_are_all_broken_are_no_data(
    label: Callable[..., tuple[int, str]], pieces: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "one.jpg").write_bytes(b"nothing")
    code, told = label(tmp_path / "bad", "--out", tmp_path / "labelled", "--bundle", pieces, "--task", "pieces")
    assert code == 1
    assert "no picture in" in told and "can be labelled" in told and "one.jpg" in told
    assert not (tmp_path / "labelled" / "annotations.json").exists()


def test_pictures_that_a_head_cannot_take_are_left_out_alone(
    label: Callable[..., tuple[int, str]],
    pieces: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answer(engine: Engine, pictures: list[tuple[str, Image.Image]], *others: Any) -> Any:
        if "one.png" in [name for name, _ in pictures]:
            raise StartError("one.png: task 'pieces' failed: too odd")
        return answer_pictures(engine, pictures, *others)

    monkeypatch.setattr("serving.cli.labelling.answer_pictures", answer)
    code, told = label(photos, "--out", tmp_path / "labelled", "--bundle", pieces)
    assert code == 0, told
    assert "\none.png: task 'pieces' failed: too odd" in told
    index = json.loads((tmp_path / "labelled" / "annotations.json").read_text())
    assert [image["file_name"] for image in index["images"]] == ["more/two.jpg"]


def test_labelled_data_is_not_labelled_again(
    label: Callable[..., tuple[int, str]], pieces: Path, photos: Path, tmp_path: Path
) -> None:
    label(photos, "--out", tmp_path / "labelled", "--bundle", pieces)
    code, told = label(tmp_path / "labelled", "--out", tmp_path / "again", "--bundle", pieces)
    assert code == 1
    assert f"the pictures to label are in {tmp_path / 'labelled' / 'images'}" in told


def test_objects_are_read_where_the_photos_have_an_index_of_their_own(
    label: Callable[..., tuple[int, str]], pieces: Path, photos: Path, tmp_path: Path
) -> None:
    (photos / "_annotations.coco.json").write_text("{}")
    label(photos, "--out", tmp_path / "labelled", "--bundle", pieces)
    data = open_data("instance", tmp_path / "labelled")
    assert [sample.name for sample in data.samples] == ["more/two.jpg", "one.png"]
