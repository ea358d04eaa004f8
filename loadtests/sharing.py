"""What one encoder pass for several tasks saves, and what serving adds: bare torch loop, engine, HTTP (1, 8 clients).

    python -m loadtests.sharing --rounds 5

All arms run in turn within each round, so that a machine that slows down slows all of them; ratios are taken round by
round. The raw figures, the machine and the commit go to a JSON file under `loadtests/results`.
"""  # fmt: skip

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import httpx
import numpy as np
import torch
import typer
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from decoders.base import PostprocessOptions
from encoders.preprocess import to_pixels
from loadtests.machine import commit, machine
from loadtests.server import running_server
from serving.config import Settings
from serving.engine import Engine
from serving.pictures import decode_picture
from serving.planner import taps

Result = TypeVar("Result")
TASKS = ("panoptic", "depth")
RESULTS = Path(__file__).parent / "results"


def main(
    rounds: Annotated[int, typer.Option(help="Rounds; each runs every arm once.")] = 5,
    pictures: Annotated[int, typer.Option(help="Pictures of each arm in a round.")] = 16,
    photo: Annotated[Path | None, typer.Option(help="A photo [default: a drawn one]; scaled to 640 x 480.")] = None,
) -> None:
    """Measure and write the raw figures."""
    data = jpeg(photo)
    engine = Engine.from_bundle("demo", cache_dir=Settings().cache_dir)
    figures: dict[str, list[float]] = {}

    def measure(name: str, run: Callable[[], Result]) -> Result:
        begun = time.perf_counter()
        result = run()
        seconds = (time.perf_counter() - begun) / pictures
        figures.setdefault(name, []).append(seconds)
        print(f"  {name:24s} {1e3 * seconds:8.1f} ms a picture", flush=True)
        return result

    with running_server("demo") as server:
        url = server.url
        clients: dict[str, list[dict[str, float]]] = {}
        live: list[float] = []
        bare_loop(engine, data, TASKS, 2, 1)
        run_clients(url, data, 2, 1)
        for number in range(1, rounds + 1):
            print(f"round {number} of {rounds}", flush=True)
            for task in TASKS:
                measure(f"bare {task}", partial(bare_loop, engine, data, (task,), pictures, 1))
            measure("bare both", partial(bare_loop, engine, data, TASKS, pictures, 1))
            measure("bare both, batch 4", partial(bare_loop, engine, data, TASKS, pictures, 4))
            measure("engine both", lambda: [engine.predict(data, TASKS) for _ in range(pictures)])
            for concurrency in (1, 8):
                name = f"HTTP both, {concurrency} client" + ("s" if concurrency > 1 else "")
                before = read_metrics(url)
                answers = measure(name, partial(run_clients, url, data, pictures, concurrency))
                clients.setdefault(name, []).extend(answers)
                live.append(live_sharing(before, read_metrics(url)))
                print(f"  {'':24s} {live[-1]:8.3f} sharing ratio by /metrics", flush=True)
    summary = summarise(figures, clients, live)
    print(json.dumps(summary, indent=1))
    RESULTS.mkdir(exist_ok=True)
    now = datetime.now(UTC)
    target = RESULTS / f"sharing-{now:%Y%m%d-%H%M}.json"
    raw = {
        "what": "seconds per picture, one figure per round; 640x480 JPEG",
        "when": now.isoformat(timespec="seconds"),
        "machine": machine(),
        "commit": commit(),
        "photo": "drawn" if photo is None else photo.name,
        "rounds": rounds,
        "pictures_per_arm": pictures,
        "summary": summary,
        "seconds_per_picture": figures,
        "live_sharing": live,
        "requests": clients,
    }
    target.write_text(json.dumps(raw, indent=1) + "\n")
    print(f"wrote {target}")


@torch.no_grad()
def bare_loop(engine: Engine, data: bytes, tasks: tuple[str, ...], pictures: int, batch_size: int) -> None:
    """The work itself and nothing else: decode, resize, encode, heads, post-process, in one thread."""
    bundle = engine.bundle
    heads = [bundle.heads[task] for task in tasks]
    geometry = heads[0].geometry
    for _ in range(pictures // batch_size):
        images = [decode_picture(data) for _ in range(batch_size)]
        places = [geometry.place((image.height, image.width)) for image in images]
        pixels = torch.cat([to_pixels(i, p) for i, p in zip(images, places, strict=True)]).to(engine.device)
        features = bundle.encoder(pixels, taps(tasks, bundle.heads).out_indices)
        for head in heads:
            raw = head.decoder(features)
            for row, place in enumerate(places):
                head.decoder.postprocess({name: t[row] for name, t in raw.items()}, place, PostprocessOptions())


def run_clients(url: str, data: bytes, pictures: int, concurrency: int) -> list[dict[str, float]]:
    """`post_all` from code that is not asynchronous."""
    return asyncio.run(post_all(url, data, pictures, concurrency))


async def post_all(url: str, data: bytes, pictures: int, concurrency: int) -> list[dict[str, float]]:
    """Post the picture `pictures` times from `concurrency` clients that each wait for their answer."""
    left = iter(range(pictures))
    answers: list[dict[str, float]] = []
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:

        async def one_client() -> None:
            for _ in left:
                begun = time.perf_counter()
                response = await client.post(
                    "/segment",
                    params={"tasks": ",".join(TASKS)},
                    content=data,
                    headers={"Content-Type": "image/jpeg"},
                )
                wall_ms = 1e3 * (time.perf_counter() - begun)
                response.raise_for_status()
                timing = response.json()["timing"]
                work_ms = timing["decode_ms"] + timing["encoder_ms"] + sum(timing["heads_ms"].values())
                answers.append(
                    {
                        "wall_ms": wall_ms,
                        "decode_and_model_ms": work_ms,
                        "queue_ms": timing["queue_ms"],
                        "preprocess_ms": timing["preprocess_ms"],
                        "postprocess_ms": timing["postprocess_ms"],
                        "encoder_passes": timing["encoder_passes"],
                        "batch_size": timing["batch_size"],
                    }
                )

        await asyncio.gather(*(one_client() for _ in range(concurrency)))
    return answers


def read_metrics(url: str) -> dict[str, float]:
    """The sums of all metrics over their labels, once all batches are counted: that is done after their answers."""
    with httpx.Client(base_url=url, timeout=30) as client:
        last: dict[str, float] = {}
        while True:
            sums: dict[str, float] = defaultdict(float)
            for family in text_string_to_metric_families(client.get("/metrics").raise_for_status().text):
                for sample in family.samples:
                    sums[sample.name] += sample.value
            if last and sums["polyhead_encoder_busy_seconds_total"] == last["polyhead_encoder_busy_seconds_total"]:
                return sums
            last = sums
            time.sleep(0.1)


def live_sharing(before: dict[str, float], after: dict[str, float]) -> float:
    """What the tasks would have cost apart over what they cost, between two readings of `/metrics`."""
    busy, saved, heads = (
        after[name] - before[name]
        for name in (
            "polyhead_encoder_busy_seconds_total",
            "polyhead_encoder_saved_seconds_total",
            "polyhead_head_busy_seconds_total",
        )
    )
    return (busy + saved + heads) / (busy + heads)


def summarise(
    figures: dict[str, list[float]], clients: dict[str, list[dict[str, float]]], live: list[float]
) -> dict[str, Any]:
    """Medians, and ratios taken round by round: median (lowest to highest)."""

    def spread(values: list[float]) -> str:
        return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"

    def ratio(numerator: list[float], denominator: list[float]) -> str:
        return spread([a / b for a, b in zip(numerator, denominator, strict=True)])

    apart = [sum(pair) for pair in zip(*(figures[f"bare {task}"] for task in TASKS), strict=True)]
    one, eight = clients["HTTP both, 1 client"], clients["HTTP both, 8 clients"]
    return {
        "ms_per_picture": {name: round(1e3 * statistics.median(values), 1) for name, values in figures.items()},
        "apart / together (bare)": ratio(apart, figures["bare both"]),
        "apart / together (by /metrics, HTTP arms)": spread(live),
        "engine throughput / bare": ratio(figures["bare both"], figures["engine both"]),
        "HTTP throughput at 8 clients / bare, batch 4": ratio(
            figures["bare both, batch 4"], figures["HTTP both, 8 clients"]
        ),
        "p50 at 1 client, ms": round(statistics.median(a["wall_ms"] for a in one), 1),
        "p50 added at 1 client (all but decode and model), ms": round(
            statistics.median(a["wall_ms"] - a["decode_and_model_ms"] for a in one), 1
        ),
        "p95 at 8 clients, ms": round(float(np.percentile([a["wall_ms"] for a in eight], 95)), 1),
        "encoder passes per request": sorted({a["encoder_passes"] for rows in clients.values() for a in rows}),
    }


def jpeg(photo: Path | None = None) -> bytes:
    """A photo as a file of 640 x 480; a drawn one if none is given."""
    if photo is None:
        y, x = np.mgrid[:480, :640]
        image = Image.fromarray(np.stack((x % 256, y % 256, (x * y // 97) % 256), axis=-1).astype(np.uint8))
    else:
        image = Image.open(photo).convert("RGB").resize((640, 480))
    with tempfile.SpooledTemporaryFile() as file:
        image.save(file, "JPEG", quality=90)
        file.seek(0)
        return file.read()


if __name__ == "__main__":
    typer.run(main)
