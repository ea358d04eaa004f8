"""Long video streams through what happens to a server: reloads of its proxy, and a redeploy with a changed setting.

    python -m loadtests.long_stream --minutes 4

A quarter of the way another application comes and goes, for which HAProxy is started anew each time; half-way the
replica is replaced. One stream goes through `polyhead.client`, which may open it anew; one is a bare call, which goes
on or ends with its status, and is then opened again. When each frame was answered, and what each end said, goes with
the machine and the commit to a JSON file under `loadtests/results`. A frame lost, repeated or out of order makes
the exit code 1.
"""  # fmt: skip

from __future__ import annotations

import io
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import grpc
import numpy as np
import psutil
import typer
from PIL import Image

from loadtests.machine import commit, machine
from loadtests.server import RunningServer, running_server
from polyhead.client import Client
from serving.protos import segmentation_pb2 as pb
from serving.protos.segmentation_pb2_grpc import SegmentationServiceStub

RESULTS = Path(__file__).parent / "results"

RELOAD = """
@serve.deployment(ray_actor_options={"num_cpus": 0})
class Other:
    def __call__(self):
        return "here"

serve.run(Other.bind(), name="other", route_prefix="/other")
serve.delete("other")
"""
REDEPLOY = """
from serving import app
from serving.config import Settings

serve.run(app.application(Settings(bundle={bundle!r}, max_pictures_inside=63)), name=app.APPLICATION, route_prefix="/")
"""

app = typer.Typer(add_completion=False)


@dataclass
class Run:
    """What one stream went through; times are seconds since the run began.

    Attributes:
        answered: (second, frame_id) of every answer, in their order.
        state_lost: frame_ids at which the stream began without state.
        ends: (second, status, words) of each call that ended before its time; of a client that hides them, none.
        errors: of frames, or of the whole stream.
    """

    answered: list[tuple[float, int]] = field(default_factory=list)
    state_lost: list[int] = field(default_factory=list)
    ends: list[tuple[float, str, str]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Figures of the run; `in_order` holds if every frame was answered once, in its turn."""
        times_s = [second for second, _ in self.answered]
        ids = [frame_id for _, frame_id in self.answered]
        return {
            "frames": len(ids),
            "in_order": ids == list(range(len(ids))),
            "longest_gap_s": round(float(np.diff(times_s).max(initial=0)), 2),
            "times_state_lost": len(self.state_lost),
            "ends": self.ends,
            "errors": self.errors,
        }


@app.command()
def main(
    minutes: Annotated[float, typer.Option(help="Length of the run.")] = 4.0,
    rate: Annotated[float, typer.Option(help="Frames/s that each stream sends at most.")] = 2.0,
    tasks: Annotated[str, typer.Option(help="Heads, separated by commas.")] = "video",
    bundle: Annotated[str, typer.Option(help="A bundle that has them.")] = "demo",
) -> None:
    """Run, and write the raw figures."""
    with running_server(bundle) as server:
        begun_s, over = time.monotonic(), threading.Event()
        runs = {"client": Run(), "bare_call": Run()}
        players = [
            threading.Thread(
                target=play, args=(server.grpc_address, tasks.split(","), rate, over, begun_s, run), daemon=True
            )
            for play, run in zip((play_client, play_bare), runs.values(), strict=True)
        ]
        for player in players:
            player.start()
        events = []
        for after, name, program in ((0.25, "reloads", RELOAD), (0.5, "redeploy", REDEPLOY.format(bundle=bundle))):
            time.sleep(max(0.0, begun_s + after * 60 * minutes - time.monotonic()))
            from_s = time.monotonic() - begun_s
            change(server, program)
            events.append({"what": name, "from_s": round(from_s, 1), "to_s": round(time.monotonic() - begun_s, 1)})
            print(events[-1], flush=True)
        time.sleep(max(0.0, begun_s + 60 * minutes - time.monotonic()))
        over.set()
        for player in players:
            player.join(120)
    summaries = {name: run.summary() for name, run in runs.items()}
    facts = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "minutes": minutes,
        "rate": rate,
        "tasks": tasks,
        "bundle": bundle,
        "events": events,
        "summary": summaries,
        "raw": {name: asdict(run) for name, run in runs.items()},
    }
    target = RESULTS / f"long_stream-{datetime.now(UTC):%Y%m%d-%H%M}.json"
    target.write_text(json.dumps(facts) + "\n")
    print(json.dumps(summaries, indent=1))
    print(f"wrote {target}")
    if not all(summary["in_order"] and not summary["errors"] for summary in summaries.values()):
        raise typer.Exit(1)


def play_client(address: str, tasks: list[str], rate: float, over: threading.Event, begun_s: float, run: Run) -> None:
    """A stream through `polyhead.client`."""
    try:
        with Client(address) as client:
            for answer in client.video(paced(rate, over), tasks):
                run.answered.append((round(time.monotonic() - begun_s, 2), answer.frame_id))
                if answer.state_lost:
                    run.state_lost.append(answer.frame_id)
                if answer.error is not None:
                    run.errors.append(f"frame {answer.frame_id}: {answer.error}")
    except Exception as error:  # noqa: BLE001  # how the run ended is what is measured
        run.errors.append(repr(error))


def play_bare(address: str, tasks: list[str], rate: float, over: threading.Event, begun_s: float, run: Run) -> None:
    """Bare calls with one frame under way; when one ends before its time, another goes on with the unanswered frame."""
    pictures = enumerate(paced(rate, over))
    unanswered = next(pictures, None)
    with grpc.insecure_channel(address) as channel:
        while unanswered is not None:
            first, asked = unanswered[0], queue.SimpleQueue[tuple[int, bytes] | None]()
            asked.put(unanswered)
            try:
                for answer in SegmentationServiceStub(channel).SegmentVideo(video_requests(tasks, asked)):
                    if answer.HasField("error"):
                        run.errors.append(f"frame {answer.frame_id}: {answer.error.detail}")
                    if answer.frame_id == first > 0:
                        run.state_lost.append(first)
                    run.answered.append((round(time.monotonic() - begun_s, 2), answer.frame_id))
                    unanswered = next(pictures, None)
                    asked.put(unanswered)
            except grpc.RpcError as error:
                told: Any = error
                run.ends.append((round(time.monotonic() - begun_s, 2), told.code().name, told.details()))
                asked.put(None)
                if over.wait(1.0):
                    return


def video_requests(tasks: list[str], asked: queue.SimpleQueue[tuple[int, bytes] | None]) -> Iterator[pb.VideoRequest]:
    """A call's messages: the config, then frames as they are `asked`; None ends them."""
    yield pb.VideoRequest(config=pb.VideoConfig(tasks=tasks))
    while (frame := asked.get()) is not None:
        yield pb.VideoRequest(frame=pb.VideoFrame(frame_id=frame[0], data=frame[1]))


def paced(rate: float, over: threading.Event) -> Iterator[bytes]:
    """Pictures, all different, no faster than `rate` a second, until the run is over."""
    number = 0
    while not over.wait(1 / rate):
        pixels = np.roll(np.mgrid[0:240, 0:320].sum(axis=0), number, axis=1) % 256
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).convert("RGB").save(buffer, "JPEG")
        yield buffer.getvalue()
        number += 1


def change(server: RunningServer, program: str) -> None:
    """Run a program that is connected to the server's Ray and has `serve` imported."""
    below = psutil.Process(server.pid).children(recursive=True)
    (raylet,) = (process for process in below if process.name() == "raylet")
    (replica,) = (process for process in below if process.cmdline()[:1] and "ServeReplica" in process.cmdline()[0])
    (address,) = (word.partition("=")[2] for word in raylet.cmdline() if word.startswith("--gcs-address="))
    connect = f"import ray\nfrom ray import serve\nray.init(address={address!r}, logging_level='ERROR')\n"
    subprocess.run([sys.executable, "-c", connect + program], env=replica.environ(), check=True, stdout=sys.stderr)


if __name__ == "__main__":
    app()
