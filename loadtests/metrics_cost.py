"""What the metrics cost: on the request path, for the reports to the hub, and for a scrape of two replicas.

    python -m loadtests.metrics_cost

1. *Request path*: the processor time of all metric calls that one picture for eight heads makes, over that of one
   such picture through the engine, in one process, in turn.
2. *Reports*: the processor time of a snapshot, of which each replica takes one a second.
3. *Scrape*: `GET /metrics` of a running server with two replicas and eight heads, through HTTP.

The ratio of throughputs with and without metrics would need a quieter machine than most: what it is asked to show is
under one part in a hundred. Raw figures, machine and commit go to a JSON file under `loadtests/results`.
"""  # fmt: skip

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer
import yaml

from loadtests.machine import commit, machine
from loadtests.server import running_server
from loadtests.sharing import jpeg
from serving.config import Settings
from serving.engine import Engine, PassInput, PassOutput, count_pass
from serving.metrics import Metrics
from serving.pictures import decode_picture
from serving.types import Prediction, PredictOptions, Timing

RESULTS = Path(__file__).parent / "results"
HEADS = 8
CALLS = 200
"""Pictures counted for one figure: one alone is too short for the clock of processor time."""


def main(
    rounds: Annotated[int, typer.Option(help="Rounds of the request path.")] = 10,
    scrapes: Annotated[int, typer.Option(help="Scrapes of the server.")] = 100,
) -> None:
    """Measure and write the raw figures."""
    data = jpeg()
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "eight.yaml"
        bundle.write_text(yaml.safe_dump(eight_heads()))
        path = measure_path(Engine.from_bundle(str(bundle), cache_dir=Settings().cache_dir), data, rounds)
        scrape = measure_scrapes(str(bundle), data, scrapes)
    raw = {
        "what": "seconds; cpu: processor time of the process",
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "commit": commit(),
        "load_average": os.getloadavg(),
        "heads": HEADS,
    }
    summary = summarise(path, scrape)
    print(json.dumps(summary, indent=1))
    target = RESULTS / f"metrics-cost-{datetime.now(UTC):%Y%m%d-%H%M}.json"
    target.write_text(json.dumps(raw | {"summary": summary, "path": path, "scrape_s": scrape}, indent=1) + "\n")
    print(f"wrote {target}")


def eight_heads() -> dict[str, Any]:
    """A bundle: the demo's heads, and as many embeddings as make eight heads; all are run."""
    more = [f"embedding{number}" for number in range(2, 2 + HEADS - 4)]
    tasks = ["panoptic", "depth", "embedding", "video", *more]
    return {
        "name": "eight",
        "extends": "demo",
        "default_tasks": tasks,
        "tasks": {task: {"decoder": "embedding"} for task in more},
    }


def measure_path(engine: Engine, data: bytes, rounds: int) -> dict[str, list[float]]:
    """Processor seconds of a picture, of its metric calls and of a snapshot, by round."""
    spec = engine.bundle.encoder.spec
    metrics = Metrics(
        bundle=engine.bundle.name,
        encoder=spec.name,
        revision=spec.revision,
        device=engine.device,
        dtype="float32",
        heads=engine.bundle.heads,
    )
    figures: dict[str, list[float]] = {"picture": [], "metric calls": [], "snapshot": []}
    one_picture(engine, data)
    for _ in range(rounds):
        begun = time.process_time()
        inputs, outputs, prediction = one_picture(engine, data)
        figures["picture"].append(time.process_time() - begun)
        figures["metric calls"].append(cpu_s(partial(count, metrics, inputs, outputs, prediction), CALLS))
        figures["snapshot"].append(cpu_s(metrics.snapshot, 10))
    return figures


def one_picture(engine: Engine, data: bytes) -> tuple[list[PassInput], list[PassOutput], Prediction]:
    """Decode, resize, encode, all heads, post-process, as a service does for a lone request."""
    options, timing = PredictOptions(), Timing()
    image = decode_picture(data)
    inputs = engine.prepare(image, engine.check_tasks(None), options)
    outputs = engine.run_pass(inputs)
    for output in outputs:
        count_pass(timing, output)
    results, errors = engine.finish(inputs, outputs, options)
    size = (image.height, image.width)
    return inputs, outputs, Prediction(size, size, results, errors, timing)


def count(metrics: Metrics, inputs: list[PassInput], outputs: list[PassOutput], prediction: Prediction) -> None:
    """All metric calls of one answered request."""
    metrics.admission_s.observe(0.01)
    metrics.count_batch(inputs, outputs, 0.01)
    metrics.count_prediction(prediction)
    metrics.render_s.observe(0.01)
    metrics.count_request("/segment", 200, 0.5)


def cpu_s(function: Callable[[], object], times: int) -> float:
    """Processor time of one call, seconds."""
    begun = time.process_time()
    for _ in range(times):
        function()
    return (time.process_time() - begun) / times


def measure_scrapes(bundle: str, data: bytes, scrapes: int) -> list[float]:
    """Seconds of each scrape of two replicas that have answered pictures."""
    seconds = []
    with running_server(bundle, "--replicas", "2") as server, httpx.Client(base_url=server.url, timeout=120) as client:
        for _ in range(4):
            client.post("/segment", content=data, headers={"Content-Type": "image/jpeg"}).raise_for_status()
        for _ in range(scrapes):
            begun = time.perf_counter()
            response = client.get("/metrics").raise_for_status()
            seconds.append(time.perf_counter() - begun)
            assert "polyhead_replicas 2.0" in response.text, "a replica did not find the other one"
            time.sleep(0.05)
    return seconds


def summarise(path: dict[str, list[float]], scrape: list[float]) -> dict[str, Any]:
    """Medians (lowest to highest), and ratios taken round by round."""

    def told(values: list[float], digits: int) -> str:
        return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"

    shares = [calls / picture for calls, picture in zip(path["metric calls"], path["picture"], strict=True)]
    return {
        "metric calls of a picture, ms of processor time": told([1e3 * each for each in path["metric calls"]], 3),
        "a picture, ms of processor time": told([1e3 * each for each in path["picture"]], 1),
        "metric calls / picture, percent": told([100 * each for each in shares], 4),
        "a snapshot, ms of processor time (one a second)": told([1e3 * each for each in path["snapshot"]], 2),
        "a scrape over HTTP, ms": told([1e3 * each for each in scrape], 1),
        "a scrape over HTTP, p95, ms": round(1e3 * float(np.percentile(scrape, 95)), 1),
    }


if __name__ == "__main__":
    typer.run(main)
