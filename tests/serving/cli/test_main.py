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
from starlette.testclient import TestClient
from typer.testing import CliRunner

from decoders.results import DepthResult
from serving.answers.render import result_json
from serving.cli import main as cli
from serving.config import Settings
from serving.errors import StartError
from serving.gateways.http_gateway import create_app
from serving.service import SegmentationService

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
    assert "with 1 encoder pass\n" in done.output
    assert answer["results"]["panoptic"]["segments"][0]["label"] in done.output


def test_segment_here_runs_the_asked_tasks_only(
    runner: CliRunner, bundle_file: Path, photo: Path, tmp_path: Path
) -> None:
    arguments = ["segment", str(photo), "--local", "--bundle", str(bundle_file), "--out", str(tmp_path / "out")]
    done = runner.invoke(cli.app, [*arguments, "--tasks", "depth", "--max-side", "45"])
    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"result.json", "depth.png", "depth_overlay.png"}
    assert np.asarray(Image.open(tmp_path / "out" / "depth.png")).shape == (30, 45)


Serve = Callable[[httpx.Request], httpx.Response]


@pytest.fixture
def serve_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[Serve], None]:
    """Lets a function answer whatever the command asks a server."""

    def replace(serve: Serve) -> None:
        class Client(httpx.Client):
            def __init__(self, base_url: str, timeout: float) -> None:
                super().__init__(base_url=base_url, timeout=timeout, transport=httpx.MockTransport(serve))

        monkeypatch.setattr(cli.httpx, "Client", Client)

    return replace


@pytest.fixture
def server(
    make_service: Callable[..., SegmentationService], serve_with: Callable[[Serve], None]
) -> list[httpx.Request]:
    """The HTTP application in the place of a server; the list grows by each request that it gets."""
    client = TestClient(create_app(make_service()))
    asked: list[httpx.Request] = []

    def serve(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        response = client.request(
            request.method, str(request.url), content=request.content, headers=dict(request.headers)
        )
        return httpx.Response(response.status_code, content=response.content, headers=dict(response.headers))

    serve_with(serve)
    return asked


def test_segment_asks_a_server_once_for_everything_that_it_writes(
    runner: CliRunner, server: list[httpx.Request], photo: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["segment", str(photo), "--tasks", "panoptic,depth", "--max-side", "64", "--out", str(out)]
    done = runner.invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    assert [(request.method, request.url.path, dict(request.url.params)) for request in server] == [
        ("POST", "/segment", {"max_side": "64", "tasks": "panoptic,depth"}),
        ("GET", "/tasks", {}),
    ]
    assert server[0].content == photo.read_bytes()
    assert {path.name for path in out.iterdir()} == FILES
    for name in FILES - {"result.json"}:
        assert Image.open(out / name).size == (64, 43)
    assert "with 1 encoder pass\n" in done.output


def test_segment_leaves_to_the_server_what_nobody_asked_for(
    runner: CliRunner, server: list[httpx.Request], photo: Path, tmp_path: Path
) -> None:
    done = runner.invoke(cli.app, ["segment", str(photo), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert dict(server[0].url.params) == {}
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES


def test_a_server_s_pictures_are_those_that_the_server_itself_would_draw(
    runner: CliRunner,
    make_service: Callable[..., SegmentationService],
    server: list[httpx.Request],
    photo: Path,
    tmp_path: Path,
) -> None:
    done = runner.invoke(cli.app, ["segment", str(photo), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    client = TestClient(create_app(make_service()))
    for task in ("panoptic", "depth"):
        for kind, name in (("png", f"{task}.png"), ("overlay", f"{task}_overlay.png")):
            here = np.asarray(Image.open(tmp_path / "out" / name)).astype(int)
            response = client.post("/segment", params={"tasks": task, "format": kind}, content=photo.read_bytes())
            there = np.asarray(Image.open(io.BytesIO(response.content))).astype(int)
            assert here.shape == there.shape
            if task == "panoptic":
                np.testing.assert_array_equal(here, there)
            else:  # depth came as whole millimetres
                assert np.abs(here - there).max() <= (1 if kind == "png" else 24)  # grey levels; steps of colour


def test_a_head_that_failed_is_told_beside_what_the_others_gave(
    runner: CliRunner, serve_with: Callable[[Serve], None], photo: Path, tmp_path: Path
) -> None:
    depth = result_json(DepthResult(np.ones((60, 90), np.float32)), "rle")
    answer = {
        "image": {"height": 60, "width": 90},
        "results": {"depth": depth},
        "errors": {"panoptic": {"detail": "head 'panoptic' failed"}},
        "timing": {"total_ms": 12.0, "encoder_passes": 2},
    }
    serve_with(lambda request: httpx.Response(200, json=answer if request.method == "POST" else {"tasks": []}))
    out = tmp_path / "out"
    done = runner.invoke(cli.app, ["segment", str(photo), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert {path.name for path in out.iterdir()} == {"result.json", "depth.png", "depth_overlay.png"}
    assert json.loads((out / "result.json").read_text()) == answer
    assert "head 'panoptic' failed" in done.output
    assert "12 ms with 2 encoder passes" in done.output


def refuse(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("connection refused")


@pytest.mark.parametrize(
    ("serve", "words"),
    [
        pytest.param(refuse, "connection refused", id="nobody"),
        pytest.param(lambda request: httpx.Response(200, text="<html>hello</html>"), "", id="another server"),
        pytest.param(lambda request: httpx.Response(502, text="bad gateway"), "502 Bad Gateway", id="a proxy"),
        pytest.param(lambda request: httpx.Response(200, json={"results": {}}), "tasks", id="another JSON"),
    ],
)
def test_an_address_where_no_server_of_ours_answers_gives_one_clear_line(
    serve: Serve,
    words: str,
    serve_with: Callable[[Serve], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    photo: Path,
    tmp_path: Path,
) -> None:
    serve_with(serve)
    out = tmp_path / "out"
    code, said = run_main(monkeypatch, capsys, "segment", str(photo), "--url", "http://127.0.0.1:9", "--out", str(out))
    assert code == 1
    assert said.startswith("error no polyhead server answers at http://127.0.0.1:9 (")
    assert words in said
    assert said.rstrip().endswith("start one with 'polyhead serve', or add --local")
    assert "Traceback" not in said
    assert not out.exists()


def test_a_problem_of_the_server_is_shown_with_its_remedy(
    server: list[httpx.Request],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    photo: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    code, said = run_main(monkeypatch, capsys, "segment", str(photo), "--tasks", "x", "--out", str(out))
    assert code == 1
    assert said == (
        "error 404 Unknown task: no head for 'x'; loaded: depth, panoptic (ask for some of: depth, panoptic)\n"
    )
    assert len(server) == 1
    assert not out.exists()


def test_brackets_in_an_error_are_shown_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, said = run_main(monkeypatch, capsys, "train", "panoptic", "--data", str(tmp_path), "--set", "2nd=[last]")
    assert code == 1
    assert said.startswith("error --set 2nd=[last] is no setting; ")


def test_a_picture_that_cannot_be_read_is_told_before_a_server_is_asked(
    server: list[httpx.Request],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    code, said = run_main(monkeypatch, capsys, "segment", str(text), "--out", str(tmp_path / "out"))
    assert code == 1
    assert said.startswith("error 10 bytes beginning with b'no picture' are no image that can be read (send a whole")
    assert said.count("\n") == 1
    assert server == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bundle", "no-such-bundle"], "error no bundle 'no-such-bundle'; packaged:"),
        (["--bundle", "ODD"], "error ODD is not YAML: "),
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
    odd = tmp_path / "odd.yaml"
    odd.write_text("name: [unclosed\nencoder: 1\n")
    given = [{"BUNDLE": str(bundle_file), "ODD": str(odd)}.get(argument, argument) for argument in arguments]
    code, said = run_main(monkeypatch, capsys, "segment", str(photo), "--local", "--out", str(tmp_path / "out"), *given)
    assert code == 1
    assert said.startswith(words.replace("ODD", str(odd)))
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
        (["--http-port", "70000"], "http_port=70000: Input should be less than or equal to 65535"),
        (["--replicas", "0"], "replicas=0: Input should be greater than or equal to 1"),
        (["--device", "tpu"], "device='tpu': Input should be 'auto', 'cpu' or 'cuda'"),
    ],
)
def test_a_bad_setting_is_one_line_before_anything_starts(
    arguments: list[str],
    words: str,
    no_server: list[Settings],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, said = run_main(monkeypatch, capsys, "serve", *arguments)
    assert (code, said) == (1, f"error settings: {words}\n")
    assert no_server == []


def test_a_bad_setting_in_the_environment_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POLYHEAD_MAX_WAIT_MS", "-3")
    code, said = run_main(monkeypatch, capsys, "pull")
    assert code == 1
    assert said.startswith("error settings: max_wait_ms='-3': ")
    assert said.count("\n") == 1


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """`polyhead serve` fails at its start, and fetches nothing; the settings that it was started with."""
    started: list[Settings] = []

    def start(settings: Settings) -> None:
        started.append(settings)
        raise StartError("can't listen on 127.0.0.1:8123: taken; choose another with --http-port")

    monkeypatch.setattr("serving.app.start", start)
    monkeypatch.setattr("serving.app.stop", lambda: None)
    monkeypatch.setattr(cli, "fetch_weights", lambda *arguments: None)
    return started


def test_serve_takes_its_settings_from_the_environment_and_options_go_before_it(
    no_server: list[Settings], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"HTTP_PORT": "8123", "GRPC_PORT": "9123", "BUNDLE": "demo", "REPLICAS": "3"}.items():
        monkeypatch.setenv(f"POLYHEAD_{name}", value)
    run_main(monkeypatch, capsys, "serve", "--grpc-port", "9124")
    (settings,) = no_server
    assert (settings.http_port, settings.grpc_port, settings.replicas) == (8123, 9124, 3)


def test_a_server_that_does_not_start_is_one_line(
    no_server: list[Settings], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = run_main(monkeypatch, capsys, "serve")
    assert code == 1
    starting, *error = said.splitlines()
    assert starting == "starting 1 replica(s) of bundle 'demo' …"
    assert error == ["error can't listen on 127.0.0.1:8123: taken; choose another with --http-port"]


def test_segment_here_takes_its_bundle_from_the_environment(
    runner: CliRunner, bundle_file: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYHEAD_BUNDLE", str(bundle_file))
    out = tmp_path / "out"
    done = runner.invoke(cli.app, ["segment", str(photo), "--local", "--tasks", "depth", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert json.loads((out / "result.json").read_text())["bundle"] == "tiny"


def test_pull_says_where_the_encoder_is(runner: CliRunner, bundle_file: Path) -> None:
    done = runner.invoke(cli.app, ["pull", str(bundle_file)])
    assert done.exit_code == 0
    assert str(bundle_file.parent / "encoder") in "".join(done.output.split())


@pytest.mark.parametrize("command", ["serve", "segment", "pull", "train", "eval"])
def test_every_command_has_help(runner: CliRunner, command: str) -> None:
    done = runner.invoke(cli.app, [command, "--help"])
    assert done.exit_code == 0
    assert f"polyhead {command}" in done.output
