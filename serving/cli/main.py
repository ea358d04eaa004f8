"""The command `polyhead`."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from decoders.labels import LabelSet
from encoders.key_map import CheckpointError
from serving.answers.parse import parse_label_sets, parse_results
from serving.answers.render import PICTURE_KINDS, kind_of, overlay_png, prediction_json, result_png
from serving.bundles.loading import fetch_weights
from serving.cli.bundles import bundles, pull
from serving.cli.distillation import distill
from serving.cli.evaluation import evaluate
from serving.cli.labelling import label
from serving.cli.parity import parity
from serving.cli.training import train
from serving.cli.video import video
from serving.config import Settings, read_settings
from serving.engine import Engine
from serving.errors import BundleError, PolyheadError, StartError
from serving.pictures import decode_picture
from serving.types import PredictOptions, parse_tasks

app = typer.Typer(
    name="polyhead",
    help="One frozen vision encoder, one pass per picture, many heads.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
console = Console(stderr=True)

Tasks = Annotated[str | None, typer.Option(help="Tasks, separated by commas.", show_default="the bundle's")]
BundleName = Annotated[
    str | None, typer.Option(help="A packaged bundle's name, or the path of a bundle's YAML file.", show_default="demo")
]


@app.command()
def serve(
    bundle: BundleName = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    http_port: Annotated[int | None, typer.Option(help="Port of HTTP.", show_default="8000")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="Port of gRPC.", show_default="9000")] = None,
    replicas: Annotated[int | None, typer.Option(help="Copies of the deployment.", show_default="1")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.", show_default="auto")] = None,
) -> None:
    """Serve a bundle over HTTP and gRPC until Ctrl-C.

    Every setting is also an environment variable, POLYHEAD_HTTP_PORT say; an option given here wins.
    """
    settings = read_settings(
        bundle=bundle, host=host, http_port=http_port, grpc_port=grpc_port, replicas=replicas, device=device
    )
    from serving import app as server  # Ray takes a second to import; only this command needs it

    fetch_weights(settings.bundle, settings.cache_dir)
    console.print(f"starting {settings.replicas} replica(s) of bundle '{settings.bundle}' …")
    stop = threading.Event()
    try:
        server.start(settings)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        url = f"http://{settings.host}:{settings.http_port}"
        console.print(
            f"[bold green]ready[/]  {url}  (playground; {url}/docs for the API; gRPC on {settings.grpc_port})",
            soft_wrap=True,
        )
        console.print(f"logs   {server.log_directory()}", soft_wrap=True)
        for whose, address in server.scraped_urls(settings).items():
            console.print(f"scrape {address}  ({whose})", soft_wrap=True)
        print(
            f"try:   curl --data-binary @PHOTO.jpg -H 'Content-Type: image/jpeg' '{url}/segment?tasks=panoptic,depth'"
        )
        sys.stdout.flush()
        stop.wait()
        console.print("stopping … (Ctrl-C again ends at once)")
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
    finally:
        server.stop()


@app.command()
def segment(
    photo: Annotated[Path, typer.Argument(help="A picture file.", exists=True, dir_okay=False)],
    tasks: Tasks = None,
    out: Annotated[Path, typer.Option(help="Folder for the results; made if absent.")] = Path("out"),
    url: Annotated[str, typer.Option(help="Address of a server.")] = "http://127.0.0.1:8000",
    local: Annotated[bool, typer.Option("--local", help="Run here, without a server.")] = False,
    bundle: BundleName = None,
    max_side: Annotated[int | None, typer.Option(help="Results' longer side, pixels.")] = None,
) -> None:
    """Run tasks on a picture; writes result.json and, for each task with a map, an overlay and a PNG of the result."""
    data = photo.read_bytes()
    picture = decode_picture(data)
    if local:
        answer, label_sets = _ask_engine(data, parse_tasks(tasks), max_side, read_settings(bundle=bundle))
    else:
        answer, label_sets = _ask_server(data, tasks, max_side, url)
    out.mkdir(parents=True, exist_ok=True)
    files = {"result.json": json.dumps(answer, indent=1).encode()}
    for task, result in parse_results(answer).items():
        if kind_of(result) in PICTURE_KINDS:
            files[f"{task}.png"] = result_png(result, label_sets.get(task))
            files[f"{task}_overlay.png"] = overlay_png(result, picture, label_sets.get(task))
    for name, content in files.items():
        (out / name).write_bytes(content)
    _print_answer(answer)
    print(f"wrote {', '.join(str(out / name) for name in files)}")


app.add_typer(bundles, name="bundles")
app.command()(pull)
app.command()(parity)
app.command()(video)
app.command("train")(train)
app.command("eval")(evaluate)
app.command()(distill)
app.command()(label)


def main() -> None:
    """Entry point: errors that a person can do something about become one clear line and exit code 1."""
    logging.basicConfig(level=logging.WARNING)
    try:
        app()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (BundleError, StartError, CheckpointError, PolyheadError, OSError) as error:
        remedy = f" ({error.remedy})" if isinstance(error, PolyheadError) else ""
        console.print(f"[bold red]error[/] {escape(f'{error}{remedy}')}", highlight=False, soft_wrap=True)
        raise SystemExit(1) from None


Answer = tuple[dict[str, Any], dict[str, LabelSet]]
"""The JSON answer, and the label sets by task."""


def _ask_engine(data: bytes, tasks: list[str] | None, max_side: int | None, settings: Settings) -> Answer:
    engine = Engine.from_bundle(
        settings.bundle, device=settings.device, dtype=settings.torch_dtype, cache_dir=settings.cache_dir
    )
    prediction = engine.predict(data, tasks, PredictOptions(max_side=max_side))[0]
    answer = prediction_json(prediction, request_id="local", bundle=engine.bundle.name, masks="rle")
    return answer, engine.bundle.label_sets


def _ask_server(data: bytes, tasks: str | None, max_side: int | None, url: str) -> Answer:
    query = {"tasks": tasks, "max_side": None if max_side is None else str(max_side)}
    try:
        with httpx.Client(base_url=url, timeout=120) as client:
            response = client.post(
                "/segment",
                params={name: value for name, value in query.items() if value is not None},
                content=data,
                headers={"Content-Type": "application/octet-stream"},
            )
            if response.headers.get("content-type") == "application/problem+json":
                problem = response.json()
                raise StartError(f"{problem['status']} {problem['title']}: {problem['detail']} ({problem['remedy']})")
            response.raise_for_status()
            return response.json(), parse_label_sets(client.get("/tasks").raise_for_status().json())
    except (httpx.HTTPError, ValueError, KeyError) as error:
        remedy = "start one with 'polyhead serve', or add --local"
        raise StartError(f"no polyhead server answers at {url} ({error}); {remedy}") from None


def _print_answer(answer: dict[str, Any]) -> None:
    timing = answer["timing"]
    for task, result in answer["results"].items():
        match result["kind"]:
            case "panoptic" | "semantic" | "instance":
                items = result.get("segments") or result.get("instances") or []
                table = Table("id", "label", "score", "area %", title=task, title_justify="left")
                for item in items:
                    height, width = item["rle"]["size"]
                    share = f"{100 * item['area'] / (height * width):.1f}"
                    table.add_row(str(item["segment_id"]), item["label"], f"{item['score']:.2f}", share)
                Console().print(table)
            case "classification":
                table = Table("id", "label", "score", title=task, title_justify="left")
                for item in result["classes"]:
                    table.add_row(str(item["label_id"]), item["label"], f"{item['score']:.3f}")
                Console().print(table)
            case "depth":
                print(f"{task}: {result['min']:.2f} to {result['max']:.2f} {result['unit']}")
            case "embedding":
                print(f"{task}: a vector of {result['dim']} numbers")
            case "dense_embedding":
                rows, columns = result["grid"]
                print(f"{task}: {rows} x {columns} vectors of {result['dim']} numbers")
    for task, problem in answer["errors"].items():
        console.print(f"[bold red]{task}[/] {problem['detail']}")
    passes = "1 encoder pass" if timing["encoder_passes"] == 1 else f"{timing['encoder_passes']} encoder passes"
    print(f"{timing['total_ms']:.0f} ms with {passes}")


if __name__ == "__main__":
    main()
