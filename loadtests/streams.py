"""N video streams on one shared encoder against N processes that each have their own: frames/s, age of frames, memory.

    python -m loadtests.streams --clip CLIP.mp4 --rounds 3

In every round each N runs both arms, one after the other. Shared: one server, N gRPC streams. Apart: N processes, each
with its own encoder and heads in a bare loop, the machine's cores divided among them. In both arms a stream's next
frame goes when the last one is answered, so both carry the same load, and the age of a frame is what a client feels at
it. Raw figures, machine and commit go to a JSON file under `loadtests/results`.
"""  # fmt: skip

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import av
import grpc
import numpy as np
import torch
import typer

from decoders.online import StreamState
from loadtests.machine import commit, machine
from loadtests.server import running_server
from serving.config import Settings
from serving.engine import Engine
from serving.pictures import decode_picture
from serving.protos import segmentation_pb2 as pb
from serving.protos import segmentation_pb2_grpc as pb_grpc
from serving.types import PredictOptions

RESULTS = Path(__file__).parent / "results"
IN_FLIGHT = 1
"""Frames of a stream under way, as in the other arm."""

app = typer.Typer(add_completion=False)


@app.command()
def main(
    clip: Annotated[Path, typer.Option(help="A video; its frames are sent as JPEG, 640 pixels wide.", exists=True)],
    tasks: Annotated[str, typer.Option(help="Heads, separated by commas.")] = "video,depth",
    bundle: Annotated[str, typer.Option(help="A bundle that has them.")] = "demo",
    streams: Annotated[str, typer.Option(help="Numbers of streams, separated by commas.")] = "1,4,8",
    frames: Annotated[int, typer.Option(help="Frames of all streams together, in an arm.")] = 48,
    rounds: Annotated[int, typer.Option(help="Rounds; each runs every arm once.")] = 3,
) -> None:
    """Measure and write the raw figures."""
    pictures = jpegs(clip)
    counts = [int(count) for count in streams.split(",")]
    raw: list[dict[str, Any]] = []
    with running_server(bundle) as server:
        for number in range(rounds):
            for count in counts:
                each = max(2, frames // count)
                shared = asyncio.run(run_shared(server.grpc_address, pictures, tasks.split(","), count, each))
                shared |= {"memory_mb": memory_mb(server.pid)}
                apart = run_apart(bundle, clip, tasks, count, each)
                raw.append({"round": number, "streams": count, "frames_each": each, "shared": shared, "apart": apart})
                print(
                    f"round {number}, {count} stream(s): shared {shared['frames_per_s']:.2f} frames/s, p95 age "
                    f"{shared['age_p95_s']:.2f} s; apart {apart['frames_per_s']:.2f}, {apart['age_p95_s']:.2f} s",
                    flush=True,
                )
    summary = [summarise(count, [entry for entry in raw if entry["streams"] == count]) for count in counts]
    print(json.dumps(summary, indent=1))
    target = RESULTS / f"streams-{datetime.now(UTC):%Y%m%d-%H%M}.json"
    facts = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "bundle": bundle,
        "tasks": tasks,
        "clip": clip.name,
        "in_flight": IN_FLIGHT,
    }
    target.write_text(json.dumps(facts | {"summary": summary, "rounds": raw}, indent=1) + "\n")
    print(f"wrote {target}")


@app.command()
def alone(clip: Path, tasks: str, bundle: str, frames: int, threads: int) -> None:
    """One process of the other arm: load, say so, wait for a line on stdin, run, print the figures."""
    torch.set_num_threads(threads)
    pictures = jpegs(clip)
    engine = Engine.from_bundle(bundle, cache_dir=Settings().cache_dir)
    asked, options = engine.check_tasks(tasks.split(",")), PredictOptions()
    states: dict[str, StreamState] = {}

    def answer(data: bytes) -> None:
        inputs = engine.prepare(decode_picture(data), asked, options, states)
        outputs = [engine.run_pass([item])[0] for item in inputs]
        for output in outputs:
            states.update(output.states)
        engine.finish(inputs, outputs, options)

    answer(pictures[0])
    print("ready", flush=True)
    sys.stdin.readline()
    ages = []
    for number in range(frames):
        begun = time.perf_counter()
        answer(pictures[number % len(pictures)])
        ages.append(time.perf_counter() - begun)
    print(json.dumps({"ages_s": ages, "memory_mb": memory_mb(os.getpid())}), flush=True)


async def run_shared(
    address: str, pictures: Sequence[bytes], tasks: Sequence[str], count: int, frames: int
) -> dict[str, Any]:
    """`count` gRPC streams of `frames` frames each, at once."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = pb_grpc.SegmentationServiceStub(channel)
        begun = time.perf_counter()
        ages = await asyncio.gather(*(one_stream(stub, pictures, tasks, frames) for _ in range(count)))
        seconds = time.perf_counter() - begun
    return figures([age for stream in ages for age in stream], seconds)


async def one_stream(
    stub: pb_grpc.SegmentationServiceStub, pictures: Sequence[bytes], tasks: Sequence[str], frames: int
) -> list[float]:
    """Send frames as room comes, and return their ages, seconds."""
    room = asyncio.Semaphore(IN_FLIGHT)
    sent: dict[int, float] = {}

    async def requests() -> AsyncIterator[pb.VideoRequest]:
        yield pb.VideoRequest(config=pb.VideoConfig(tasks=tasks, max_in_flight=IN_FLIGHT))
        for number in range(frames):
            await room.acquire()
            sent[number] = time.perf_counter()
            yield pb.VideoRequest(frame=pb.VideoFrame(frame_id=number, data=pictures[number % len(pictures)]))

    ages = []
    async for response in stub.SegmentVideo(requests()):
        if response.HasField("error") or response.errors:
            raise RuntimeError(f"frame {response.frame_id} failed: {response.error or dict(response.errors)}")
        ages.append(time.perf_counter() - sent.pop(response.frame_id))
        room.release()
    return ages


def run_apart(bundle: str, clip: Path, tasks: str, count: int, frames: int) -> dict[str, Any]:
    """`count` processes with an encoder each, let go at once."""
    threads = max(1, (os.cpu_count() or 1) // count)
    command = [sys.executable, "-m", "loadtests.streams", "alone", str(clip), tasks, bundle, str(frames), str(threads)]
    with ExitStack() as stack:
        workers = [
            stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            for _ in range(count)
        ]
        for worker in workers:
            assert worker.stdout is not None
            if worker.stdout.readline().strip() != "ready":
                raise RuntimeError("a process of the other arm did not start")
        begun = time.perf_counter()
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        told = [json.loads(worker.stdout.readline()) for worker in workers if worker.stdout is not None]
        seconds = time.perf_counter() - begun
    found = figures([age for each in told for age in each["ages_s"]], seconds)
    return found | {"memory_mb": sum(each["memory_mb"] for each in told)}


def figures(ages_s: Sequence[float], seconds: float) -> dict[str, Any]:
    """Throughput and ages of one arm."""
    return {
        "frames_per_s": len(ages_s) / seconds,
        "age_p50_s": float(np.percentile(ages_s, 50)),
        "age_p95_s": float(np.percentile(ages_s, 95)),
        "seconds": seconds,
        "ages_s": [round(age, 4) for age in ages_s],
    }


def summarise(count: int, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds, and the spread of the ratio."""
    ratios = [entry["shared"]["frames_per_s"] / entry["apart"]["frames_per_s"] for entry in entries]
    summary: dict[str, Any] = {"streams": count}
    for arm in ("shared", "apart"):
        for name in ("frames_per_s", "age_p50_s", "age_p95_s", "memory_mb"):
            summary[f"{arm}_{name}"] = round(statistics.median(entry[arm][name] for entry in entries), 3)
    return summary | {"ratio": round(statistics.median(ratios), 3), "ratios": [round(ratio, 3) for ratio in ratios]}


def jpegs(clip: Path) -> list[bytes]:
    """The first 60 frames, 640 pixels wide, as JPEG."""
    import io

    files = []
    with av.open(str(clip)) as container:
        for frame in container.decode(video=0):
            image = frame.to_image()
            buffer = io.BytesIO()
            image.resize((640, round(640 * image.height / image.width))).save(buffer, "JPEG", quality=85)
            files.append(buffer.getvalue())
            if len(files) == 60:
                break
    return files


def memory_mb(pid: int) -> float:
    """Proportional set size of a process and its children, MB."""
    pids, total = [pid], 0
    for each in pids:
        try:
            for task in Path(f"/proc/{each}/task").iterdir():
                pids += [int(child) for child in (task / "children").read_text().split()]
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except OSError:
            continue  # it has ended meanwhile
    return round(total / 1024, 1)


if __name__ == "__main__":
    app()
