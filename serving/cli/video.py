"""The command `polyhead video`: a clip through a stream, here or on a server, drawn and told frame by frame."""

from __future__ import annotations

import asyncio
import io
import json
import struct
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import ExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, Protocol

import httpx
import typer
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosedOK, WebSocketException

from decoders.labels import LabelSet
from decoders.results import Result
from serving.answers.parse import parse_label_sets, parse_results
from serving.answers.render import PICTURE_KINDS, overlay_png, prediction_json
from serving.cli.video_files import ClipFrame, ClipReader, ClipWriter
from serving.config import Settings, read_settings
from serving.engine import Engine
from serving.errors import StartError
from serving.service import SegmentationService
from serving.streams.stream import DecodedFrame, Frame, FrameAnswer, StreamConfig
from serving.types import PredictOptions, parse_tasks

_AHEAD = 4
"""Frames inside at once, here or on a server."""

_ANSWER_S = 120.0
"""How long a server's next message may take."""

_FRAME_HEADER = struct.Struct("<QQ")
"""Of a frame on the web socket: frame_id and captured_at_us."""

_TOLD = ("image", "results", "errors", "timing", "error")
"""What of an answer is told in a line of JSON."""

console = Console(stderr=True)


def video(
    clip: Annotated[Path, typer.Argument(help="A video file.", exists=True, dir_okay=False)],
    tasks: Annotated[str | None, typer.Option(help="Tasks, separated by commas.", show_default="the bundle's")] = None,
    out: Annotated[
        Path, typer.Option(help="The annotated clip. If several tasks are drawn, one clip for each: NAME_TASK.mp4.")
    ] = Path("annotated.mp4"),
    json_lines: Annotated[
        Path | None, typer.Option("--json", help="Also write the results to this file, a line of JSON for each frame.")
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="Take every so many-th frame; the clip lasts as long.")] = 1,
    max_side: Annotated[
        int | None,
        typer.Option(min=16, help="Longer side of results and annotated clips, pixels.", show_default="as it is"),
    ] = None,
    url: Annotated[str, typer.Option(help="Address of a server.")] = "http://127.0.0.1:8000",
    local: Annotated[bool, typer.Option("--local", help="Run here, without a server.")] = False,
    bundle: Annotated[
        str | None,
        typer.Option(help="With --local: a bundle's name, or the path of its YAML file.", show_default="demo"),
    ] = None,
) -> None:
    """Run tasks on a clip, with what heads remember from frame to frame, and write it with the results drawn in.

    Frames are turned upright, their rate is kept, sound is not. A task whose results are no picture (classes,
    embeddings) is told with --json only. A frame without a result is shown as it is.
    """
    with ExitStack() as stack:
        reader = stack.enter_context(ClipReader(clip))
        asked = parse_tasks(tasks)
        host: _Host = _Here(read_settings(bundle=bundle), asked, max_side) if local else _Server(url, asked, max_side)
        drawn = [task for task in host.tasks if host.kinds[task] in PICTURE_KINDS]
        if not drawn and json_lines is None:
            raise StartError(f"nothing of {', '.join(host.tasks)} can be drawn; ask for it with --json FILE")
        paths = {task: out if len(drawn) == 1 else out.with_stem(f"{out.stem}_{task}") for task in drawn}
        written = [*paths.values(), *([] if json_lines is None else [json_lines])]
        if clip.resolve() in [path.resolve() for path in written]:
            raise StartError(f"{clip} would be overwritten; choose another name with --out or --json")
        rate = reader.frame_rate / every
        writers = {task: stack.enter_context(ClipWriter(path, rate)) for task, path in paths.items()}
        lines = None if json_lines is None else stack.enter_context(_open_for_writing(json_lines))
        outputs = _Outputs(writers, lines, host.label_sets, max_side)
        bar = stack.enter_context(_progress())
        begun_s = time.perf_counter()
        asyncio.run(_annotate(reader, every, host, outputs, bar))
        seconds = time.perf_counter() - begun_s
    if not outputs.num_frames:
        raise StartError(f"{clip} holds no frame that can be decoded")
    print(f"{outputs.num_frames} frames, {outputs.num_frames / seconds:.1f} frames/s")
    print(f"wrote {', '.join(map(str, written))}")
    if reader.num_broken:
        console.print(f"[yellow]{reader.num_broken} packets of {clip} could not be decoded[/]", soft_wrap=True)
    if outputs.failures:
        first = outputs.failures[0]
        console.print(f"[yellow]{len(outputs.failures)} results are missing[/]; the first: {first}", soft_wrap=True)


@dataclass(frozen=True)
class _Answered:
    """A frame and its answer: `told` as in `POST /segment`, or ``{"error": problem}``; `results` by task."""

    frame: ClipFrame
    told: Mapping[str, Any]
    results: Mapping[str, Result]


class _Host(Protocol):
    """Whoever runs the tasks.

    Attributes:
        tasks: those asked, or the default ones.
        kinds, label_sets: by task.
    """

    tasks: tuple[str, ...]
    kinds: Mapping[str, str]
    label_sets: Mapping[str, LabelSet]

    def answers(self, frames: AsyncIterator[ClipFrame]) -> AsyncGenerator[_Answered, None]:
        """The frames with their answers, in order."""
        ...


class _Here:
    """A stream in this process."""

    def __init__(self, settings: Settings, tasks: list[str] | None, max_side: int | None) -> None:
        self._settings = settings
        self._engine = Engine.from_bundle(
            settings.bundle, device=settings.device, dtype=settings.torch_dtype, cache_dir=settings.cache_dir
        )
        self._options = PredictOptions(max_side=max_side)
        self.tasks = self._engine.check_tasks(tasks)
        self.kinds: Mapping[str, str] = {task: head.decoder.kind for task, head in self._engine.bundle.heads.items()}
        self.label_sets: Mapping[str, LabelSet] = self._engine.bundle.label_sets

    async def answers(self, frames: AsyncIterator[ClipFrame]) -> AsyncGenerator[_Answered, None]:
        """As in `_Host`."""
        service = SegmentationService(self._engine, self._settings)
        inside: dict[int, ClipFrame] = {}
        config = StreamConfig(self.tasks, self._options, max_in_flight=_AHEAD)
        try:
            async with service.streams.open(config, _Pictures(inside)) as stream:

                async def feed() -> None:
                    try:
                        async for frame in frames:
                            inside[frame.number] = frame
                            await stream.push(Frame(frame.number, b""))
                    finally:
                        await stream.end_input()

                async with _meanwhile(feed()) as feeding:
                    async for answer in stream.answers():
                        yield await asyncio.to_thread(_told_here, inside.pop(answer.frame.frame_id), answer)
                    await feeding
        finally:
            service.drain()


class _Pictures:
    """A stream's decoder for frames that are pictures already."""

    keeps_state = False

    def __init__(self, frames: Mapping[int, ClipFrame]) -> None:
        self._frames = frames

    def decode(self, frame: Frame) -> list[DecodedFrame]:
        """As in `FrameDecoder`."""
        return [(frame, self._frames[frame.frame_id].picture)]

    def flush(self) -> list[DecodedFrame]:
        """As in `FrameDecoder`."""
        return []


def _told_here(frame: ClipFrame, answer: FrameAnswer) -> _Answered:
    if answer.prediction is None:
        assert answer.error is not None
        return _Answered(frame, {"error": answer.error.problem()}, {})
    told = prediction_json(answer.prediction, request_id="", bundle="", masks="rle")
    return _Answered(frame, told, answer.prediction.results)


class _Server:
    """A stream of a server, over its web socket; see `serving.gateways.ws_gateway`."""

    def __init__(self, url: str, tasks: list[str] | None, max_side: int | None) -> None:
        self._url = url.rstrip("/")
        self._max_side = max_side
        try:
            told = httpx.get(f"{self._url}/tasks", timeout=30).raise_for_status().json()
            self.kinds: Mapping[str, str] = {entry["name"]: entry["kind"] for entry in told["tasks"]}
            self.label_sets: Mapping[str, LabelSet] = parse_label_sets(told)
            asked = told["default_tasks"] if tasks is None else tasks
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
            raise self._no_server(error) from None
        self.tasks = tuple(dict.fromkeys(asked))
        unknown = [task for task in self.tasks if task not in self.kinds]
        if unknown or not self.tasks:
            wrong = ", ".join(f"'{task}'" for task in unknown) or "an empty list"
            raise StartError(f"no head for {wrong} at {self._url}; loaded: {', '.join(sorted(self.kinds))}")

    async def answers(self, frames: AsyncIterator[ClipFrame]) -> AsyncGenerator[_Answered, None]:
        """As in `_Host`."""
        address = f"ws{self._url.removeprefix('http')}/video"
        try:
            socket = await connect(address, max_size=None, ping_timeout=_ANSWER_S)
        except (OSError, ValueError, WebSocketException) as error:
            raise self._no_server(error) from None
        inside: dict[int, ClipFrame] = {}
        places = asyncio.Semaphore(_AHEAD)
        config = {"tasks": self.tasks, "max_side": self._max_side, "max_in_flight": _AHEAD}

        async def feed() -> None:
            try:
                async for frame in frames:
                    await places.acquire()
                    inside[frame.number] = frame
                    await socket.send(await asyncio.to_thread(_frame_message, frame))
            finally:
                await socket.send(json.dumps({"end": True}))

        try:
            await socket.send(json.dumps(config))
            await self._receive(socket)  # that it has started
            async with _meanwhile(feed()) as feeding:
                while (told := await self._receive(socket)) is not None:
                    frame = inside.pop(told["frame_id"])
                    places.release()
                    yield await asyncio.to_thread(_told_there, frame, told)
                await feeding
        except (OSError, WebSocketException) as error:
            raise StartError(
                f"the stream to {self._url} broke ({str(error) or f'no answer for {_ANSWER_S:g} s'}); what was "
                "answered before is written"
            ) from None
        finally:
            await socket.close()

    async def _receive(self, socket: ClientConnection) -> dict[str, Any] | None:
        """The next message, None after the last one."""
        try:
            async with asyncio.timeout(_ANSWER_S):
                message = await socket.recv()
        except ConnectionClosedOK:
            return None
        told: dict[str, Any] = json.loads(message)
        if problem := told.get("problem"):
            raise StartError(f"{problem['status']} {problem['title']}: {problem['detail']} ({problem['remedy']})")
        return told

    def _no_server(self, error: Exception) -> StartError:
        remedy = "start one with 'polyhead serve', or add --local"
        return StartError(f"no polyhead server answers at {self._url} ({error}); {remedy}")


def _frame_message(frame: ClipFrame) -> bytes:
    """A frame as the web socket takes it: as JPEG, which loses little and is a tenth of the pixels' bytes."""
    buffer = io.BytesIO()
    frame.picture.save(buffer, "JPEG", quality=95, subsampling=0)
    return _FRAME_HEADER.pack(frame.number, round(1e6 * frame.time_s)) + buffer.getvalue()


def _told_there(frame: ClipFrame, told: Mapping[str, Any]) -> _Answered:
    return _Answered(frame, told, {} if "error" in told else parse_results(told))


class _Outputs:
    """Where answers go.

    Args:
        writers: of annotated clips, by task.
        lines: for JSON.
        label_sets: by task, for colours.
        max_side: of the clips.

    Attributes:
        num_frames: so far.
        failures: results that are missing, in words.
    """

    def __init__(
        self,
        writers: Mapping[str, ClipWriter],
        lines: IO[str] | None,
        label_sets: Mapping[str, LabelSet],
        max_side: int | None,
    ) -> None:
        self._writers = writers
        self._lines = lines
        self._label_sets = label_sets
        self._max_side = max_side
        self.num_frames = 0
        self.failures: list[str] = []

    def write(self, answered: _Answered) -> None:
        """Draw and tell one frame."""
        frame, told = answered.frame, answered.told
        self.num_frames += 1
        problems = {"": told["error"]} if "error" in told else told["errors"]
        for task, problem in problems.items():
            self.failures.append(f"frame {frame.number}{task and f', {task}'}: {problem['detail']}")
        for task, writer in self._writers.items():
            writer.write(self._drawn(task, answered))
        if self._lines is not None:
            place = {"frame": frame.number, "time_s": round(frame.time_s, 6)}
            self._lines.write(json.dumps(place | {key: told[key] for key in _TOLD if key in told}) + "\n")

    def _drawn(self, task: str, answered: _Answered) -> Image.Image:
        picture = answered.frame.picture
        if task in answered.results:
            drawn = overlay_png(answered.results[task], picture, self._label_sets.get(task))
            return Image.open(io.BytesIO(drawn)).convert("RGB")
        if self._max_side is None or max(picture.size) <= self._max_side:
            return picture
        factor = self._max_side / max(picture.size)
        return picture.resize((max(1, round(picture.width * factor)), max(1, round(picture.height * factor))))


async def _annotate(reader: ClipReader, every: int, host: _Host, outputs: _Outputs, bar: Progress) -> None:
    """Every frame of a clip through its host to the outputs; reading, running and writing overlap."""
    total = None if reader.num_frames is None else -(-reader.num_frames // every)
    progress = bar.add_task(reader.path.name, total=total, rate="")
    begun_s = time.perf_counter()
    async with aclosing(host.answers(_in_threads(reader.frames(every)))) as answers:
        async for answered in answers:
            await asyncio.to_thread(outputs.write, answered)
            rate = outputs.num_frames / (time.perf_counter() - begun_s)
            bar.update(progress, advance=1, rate=f"{rate:.1f} frames/s")
    bar.update(progress, total=outputs.num_frames)


async def _in_threads(frames: Iterator[ClipFrame]) -> AsyncIterator[ClipFrame]:
    """The same, decoded beside the event loop."""
    while (frame := await asyncio.to_thread(next, frames, None)) is not None:
        yield frame


@asynccontextmanager
async def _meanwhile(work: Coroutine[Any, Any, None]) -> AsyncIterator[asyncio.Task[None]]:
    """A task that does not outlive the block."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _open_for_writing(path: Path) -> IO[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("w", encoding="utf-8")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
