"""The command: what it writes, and that every mistake is answered with one clear line."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from serving import cli
from serving.errors import BundleError

FILES = {"result.json", "panoptic.png", "panoptic_overlay.png", "depth.png", "depth_overlay.png"}


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("POLYHEAD_DEVICE", "cpu")
    monkeypatch.setenv("COLUMNS", "200")
    return CliRunner()


@pytest.fixture
def photo(encode_picture: Callable[..., bytes], tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    path.write_bytes(encode_picture(60, 90))
    return path


def run_main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """(exit code, standard error) of the command as a shell runs it."""
    monkeypatch.setattr(sys, "argv", ["polyhead", *arguments])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    code = ended.value.code
    assert isinstance(code, int)
    return code, capsys.readouterr().err


def test_segment_here_writes_an_answer_and_two_pictures_per_task(
    runner: CliRunner, bundle_file: Path, photo: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "out"
    done = runner.invoke(cli.app, ["segment", str(photo), "--local", "--bundle", str(bundle_file), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert {path.name for path in out.iterdir()} == FILES
    answer = json.loads((out / "result.json").read_text())
    assert answer["image"] == {"height": 60, "width": 90}
    assert answer["results"].keys() == {"panoptic", "depth"}
    assert answer["timing"]["encoder_passes"] == 1
    for name in FILES - {"result.json"}:
        assert Image.open(out / name).size == (90, 60)
    assert "with 1 encoder pass(es)" in done.output
    assert answer["results"]["panoptic"]["segments"][0]["label"] in done.output


def test_segment_here_runs_the_asked_tasks_only(
    runner: CliRunner, bundle_file: Path, photo: Path, tmp_path: Path
) -> None:
    arguments = ["segment", str(photo), "--local", "--bundle", str(bundle_file), "--out", str(tmp_path / "out")]
    done = runner.invoke(cli.app, [*arguments, "--tasks", "depth", "--max-side", "45"])
    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"result.json", "depth.png", "depth_overlay.png"}
    assert np.asarray(Image.open(tmp_path / "out" / "depth.png")).shape == (30, 45)


def test_segment_asks_a_server_once_for_all_tasks_and_once_for_each_picture(
    runner: CliRunner, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    png = io.BytesIO()
    Image.new("RGB", (90, 60)).save(png, "PNG")
    answer = {
        "image": {"height": 60, "width": 90},
        "results": {"depth": {"unit": "m", "min": 1.0, "max": 2.0}},
        "errors": {"panoptic": {"detail": "head 'panoptic' failed"}},
        "timing": {"total_ms": 12.0, "encoder_passes": 1},
    }

    def serve(request: httpx.Request) -> httpx.Response:
        query = dict(request.url.params)
        asked.append(query)
        assert request.content == photo.read_bytes()
        return httpx.Response(200, content=png.getvalue()) if "format" in query else httpx.Response(200, json=answer)

    class Client(httpx.Client):
        def __init__(self, base_url: str, timeout: float) -> None:
            super().__init__(base_url=base_url, timeout=timeout, transport=httpx.MockTransport(serve))

    monkeypatch.setattr(cli.httpx, "Client", Client)
    done = runner.invoke(
        cli.app,
        ["segment", str(photo), "--tasks", "panoptic,depth", "--max-side", "64", "--out", str(tmp_path / "out")],
    )
    assert done.exit_code == 0, done.output
    assert asked == [
        {"max_side": "64", "tasks": "panoptic,depth"},
        {"max_side": "64", "tasks": "depth", "format": "png"},
        {"max_side": "64", "tasks": "depth", "format": "overlay"},
    ]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"result.json", "depth.png", "depth_overlay.png"}
    assert "head 'panoptic' failed" in done.output


def test_an_absent_server_gives_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], photo: Path, tmp_path: Path
) -> None:
    class Client(httpx.Client):
        def __init__(self, base_url: str, timeout: float) -> None:
            def refuse(request: httpx.Request) -> httpx.Response:
                raise httpx.ConnectError("connection refused")

            super().__init__(base_url=base_url, timeout=timeout, transport=httpx.MockTransport(refuse))

    monkeypatch.setattr(cli.httpx, "Client", Client)
    out = tmp_path / "out"
    code, said = run_main(monkeypatch, capsys, "segment", str(photo), "--url", "http://127.0.0.1:9", "--out", str(out))
    assert code == 1
    assert "no server answers at http://127.0.0.1:9 (connection refused)" in " ".join(said.split())
    assert "polyhead serve" in said
    assert "Traceback" not in said
    assert not out.exists()


def test_a_problem_of_the_server_is_shown_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], photo: Path, tmp_path: Path
) -> None:
    problem = {"status": 404, "title": "Unknown task", "detail": "no head for 'x'", "remedy": "ask for some of: depth"}

    class Client(httpx.Client):
        def __init__(self, base_url: str, timeout: float) -> None:
            transport = httpx.MockTransport(lambda request: httpx.Response(404, json=problem))
            super().__init__(base_url=base_url, timeout=timeout, transport=transport)

    monkeypatch.setattr(cli.httpx, "Client", Client)
    code, said = run_main(monkeypatch, capsys, "segment", str(photo), "--tasks", "x", "--out", str(tmp_path / "out"))
    assert code == 1
    assert "404 Unknown task no head for 'x' (ask for some of: depth)" in " ".join(said.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bundle", "no-such-bundle"], "error no bundle 'no-such-bundle'; packaged:"),
        (["--bundle", "BUNDLE", "--tasks", "panoptc"], "error no head for 'panoptc'; loaded: depth, panoptic (ask for"),
    ],
)
def test_an_error_of_ours_is_one_line_and_exit_code_1(
    arguments: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bundle_file: Path,
    photo: Path,
    tmp_path: Path,
) -> None:
    given = [str(bundle_file) if argument == "BUNDLE" else argument for argument in arguments]
    code, said = run_main(monkeypatch, capsys, "segment", str(photo), "--local", "--out", str(tmp_path / "out"), *given)
    assert code == 1
    assert said.startswith(words)
    assert said.count("\n") == 1


def test_a_file_that_is_no_picture_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], bundle_file: Path, tmp_path: Path
) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    code, said = run_main(
        monkeypatch, capsys, "segment", str(text), "--local", "--bundle", str(bundle_file), "--out", str(tmp_path / "o")
    )
    assert code == 1
    assert "are no image that can be read (send a whole JPEG" in said
    assert said.count("\n") == 1


def test_an_absent_photo_is_told(runner: CliRunner, tmp_path: Path) -> None:
    done = runner.invoke(cli.app, ["segment", str(tmp_path / "absent.jpg")])
    assert done.exit_code == 2
    assert "absent.jpg" in done.output
    assert "does not exist" in done.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--http-port", "70000"], r"http_port = 70000: .*less than or equal to 65535"),
        (["--replicas", "0"], r"replicas = 0: .*greater than or equal to 1"),
        (["--device", "tpu"], r"device = 'tpu': .*'auto', 'cpu' or 'cuda'"),
    ],
)
def test_a_bad_setting_is_told_before_anything_starts(runner: CliRunner, arguments: list[str], words: str) -> None:
    done = runner.invoke(cli.app, ["serve", *arguments])
    assert isinstance(done.exception, BundleError)
    with pytest.raises(BundleError, match=f"settings: {words}"):
        raise done.exception


def test_a_bad_setting_in_the_environment_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POLYHEAD_MAX_WAIT_MS", "-3")
    code, said = run_main(monkeypatch, capsys, "pull")
    assert code == 1
    assert said.startswith("error settings: max_wait_ms = '-3': ")
    assert said.count("\n") == 1


def test_pull_says_where_the_encoder_is(runner: CliRunner, bundle_file: Path) -> None:
    done = runner.invoke(cli.app, ["pull", str(bundle_file)])
    assert done.exit_code == 0
    assert str(bundle_file.parent / "encoder") in "".join(done.output.split())


@pytest.mark.parametrize("command", ["serve", "segment", "pull"])
def test_every_command_has_help(runner: CliRunner, command: str) -> None:
    done = runner.invoke(cli.app, [command, "--help"])
    assert done.exit_code == 0
    assert f"polyhead {command}" in done.output
