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
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from encoders.key_map import CheckpointError
from serving.cli_training import evaluate, train
from serving.config import Settings
from serving.errors import BundleError, PolyheadError

app = typer.Typer(
    name="polyhead",
    help="One frozen vision encoder, one pass per picture, many heads.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
console = Console(stderr=True)

Tasks = Annotated[str | None, typer.Option(help="Tasks, separated by commas [default: the bundle's].")]
BundleName = Annotated[str, typer.Option(help="A packaged bundle's name, or the path of a bundle's YAML file.")]


@app.command()
def serve(
    bundle: BundleName = "demo",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="Port of HTTP.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="Port of gRPC.")] = 9000,
    replicas: Annotated[int, typer.Option(help="Copies of the deployment.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Serve a bundle over HTTP and gRPC until Ctrl-C. Further settings: environment variables POLYHEAD_*."""
    settings = _settings(
        bundle=bundle, host=host, http_port=http_port, grpc_port=grpc_port, replicas=replicas, device=device
    )
    from serving import app as server  # Ray takes a second to import; only this command needs it
    from serving.bundles import fetch_weights

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        fetch_weights(settings.bundle, settings.cache_dir)
        console.print(f"starting {settings.replicas} replica(s) of bundle '{settings.bundle}' …")
        try:
            server.start(settings)
        except server.StartError as error:
            raise BundleError(str(error)) from None
        url = f"http://{settings.host}:{settings.http_port}"
        console.print(
            f"[bold green]ready[/]  {url}  (playground; {url}/docs for the API; gRPC on {settings.grpc_port})"
        )
        console.print(f"logs   {server.log_directory()}", soft_wrap=True)
        print(
            f"try:   curl --data-binary @PHOTO.jpg -H 'Content-Type: image/jpeg' '{url}/segment?tasks=panoptic,depth'"
        )
        sys.stdout.flush()
        stop.wait()
        console.print("stopping …")
    finally:
        server.stop()


@app.command()
def segment(
    photo: Annotated[Path, typer.Argument(help="A picture file.", exists=True, dir_okay=False)],
    tasks: Tasks = None,
    out: Annotated[Path, typer.Option(help="Folder for the results; made if absent.")] = Path("out"),
    url: Annotated[str, typer.Option(help="Address of a server.")] = "http://127.0.0.1:8000",
    local: Annotated[bool, typer.Option("--local", help="Run here, without a server.")] = False,
    bundle: BundleName = "demo",
    max_side: Annotated[int | None, typer.Option(help="Results' longer side, pixels.")] = None,
) -> None:
    """Run tasks on a picture; writes result.json and, for each task, an overlay and a PNG of the raw result."""
    files = _segment_here(photo, tasks, max_side, bundle) if local else _segment_there(photo, tasks, max_side, url)
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (out / name).write_bytes(content)
    _print_answer(json.loads(files["result.json"]), out, sorted(files))


@app.command()
def pull(bundle: Annotated[str, typer.Argument(help="A bundle's name or YAML file.")] = "demo") -> None:
    """Fetch the weights that a bundle needs, so that serving it starts at once."""
    from serving.bundles import fetch_weights

    settings = _settings()
    path = fetch_weights(bundle, settings.cache_dir)
    console.print(f"encoder of '{bundle}': {path}")


app.command("train")(train)
app.command("eval")(evaluate)


def main() -> None:
    """Entry point: our own errors become one clear line and exit code 1."""
    logging.basicConfig(level=logging.WARNING)
    try:
        app()
    except (BundleError, CheckpointError, PolyheadError, FileNotFoundError) as error:
        remedy = f" ({error.remedy})" if isinstance(error, PolyheadError) else ""
        console.print(f"[bold red]error[/] {error}{remedy}", highlight=False, soft_wrap=True)
        raise SystemExit(1) from None


def _settings(**given: Any) -> Settings:
    try:
        return Settings(**given)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))} = {e['input']!r}: {e['msg']}" for e in error.errors())
        raise BundleError(f"settings: {wrong}") from None


def _segment_here(photo: Path, tasks: str | None, max_side: int | None, bundle: str) -> dict[str, bytes]:
    from serving.engine import Engine
    from serving.pictures import decode_picture
    from serving.render import overlay_png, prediction_json, result_png
    from serving.types import PredictOptions

    settings = _settings(bundle=bundle)
    engine = Engine.from_bundle(bundle, device=settings.device, cache_dir=settings.cache_dir)
    data = photo.read_bytes()
    picture = decode_picture(data)
    prediction = engine.predict(data, _split(tasks), PredictOptions(max_side=max_side))[0]
    answer = prediction_json(prediction, request_id="local", bundle=engine.bundle.name, masks="rle")
    files = {"result.json": json.dumps(answer, indent=1).encode()}
    for task, result in prediction.results.items():
        files[f"{task}.png"] = result_png(result)
        files[f"{task}_overlay.png"] = overlay_png(result, picture, engine.bundle.label_sets.get(task))
    return files


def _segment_there(photo: Path, tasks: str | None, max_side: int | None, url: str) -> dict[str, bytes]:
    data = photo.read_bytes()
    options = {} if max_side is None else {"max_side": str(max_side)}

    with httpx.Client(base_url=url, timeout=120) as client:

        def post(**query: str) -> httpx.Response:
            response = client.post(
                "/segment", params=options | query, content=data, headers={"Content-Type": "application/octet-stream"}
            )
            if response.is_error:
                problem = response.json()
                console.print(
                    f"[bold red]{problem['status']} {problem['title']}[/] {problem['detail']} ({problem['remedy']})",
                    highlight=False,
                )
                raise SystemExit(1)
            return response

        try:
            answer = post(**({} if tasks is None else {"tasks": tasks}))
            files = {"result.json": json.dumps(answer.json(), indent=1).encode()}
            for task in answer.json()["results"]:
                files[f"{task}.png"] = post(tasks=task, format="png").content
                files[f"{task}_overlay.png"] = post(tasks=task, format="overlay").content
        except httpx.TransportError as error:
            remedy = "start one with 'polyhead serve', or add --local"
            console.print(f"[bold red]error[/] no server answers at {url} ({error}); {remedy}", soft_wrap=True)
            raise SystemExit(1) from None
    return files


def _print_answer(answer: dict[str, Any], out: Path, files: list[str]) -> None:
    timing = answer["timing"]
    for task, result in answer["results"].items():
        if "segments" in result:
            table = Table(title=task, title_justify="left")
            for column in ("id", "label", "score", "area %"):
                table.add_column(column)
            pixels = answer["image"]["height"] * answer["image"]["width"]
            for item in result["segments"]:
                share = f"{100 * item['area'] / pixels:.1f}"
                table.add_row(str(item["segment_id"]), item["label"], f"{item['score']:.2f}", share)
            Console().print(table)
        else:
            print(f"{task}: {result['min']:.2f} to {result['max']:.2f} {result['unit']}")
    for task, problem in answer["errors"].items():
        console.print(f"[bold red]{task}[/] {problem['detail']}")
    print(f"{timing['total_ms']:.0f} ms with {timing['encoder_passes']} encoder pass(es); in {out}: {', '.join(files)}")


def _split(tasks: str | None) -> list[str] | None:
    return None if tasks is None else [task.strip() for task in tasks.split(",") if task.strip()]


if __name__ == "__main__":
    main()
