"""The server's settings: one frozen object, read once from the environment and the command line, checked at start."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from serving.errors import StartError
from serving.pictures import MAX_PIXELS

CACHE_DIR = Path.home() / ".cache" / "polyhead"


class Settings(BaseSettings):
    """All settings; each is also an environment variable with the prefix ``POLYHEAD_``, e.g. ``POLYHEAD_HTTP_PORT``.

    An unknown keyword or a value out of range is an error.
    """

    model_config = SettingsConfigDict(env_prefix="POLYHEAD_", frozen=True, extra="forbid")

    bundle: str = Field("demo", description="Name of a packaged bundle, or path of a bundle's YAML file.")
    cache_dir: Path = Field(CACHE_DIR, description="Where downloaded weights are kept.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is a GPU.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Of encoder and heads.")
    torch_threads: int | None = Field(
        None, ge=1, description="CPU threads of one operation; default: the cores, shared by the replicas."
    )

    host: str = Field("127.0.0.1", description="Address that HTTP and gRPC listen on.")
    http_port: int = Field(8000, ge=1, le=65535)
    grpc_port: int = Field(9000, ge=1, le=65535)
    ray_metrics_port: int | None = Field(
        None, ge=1, le=65535, description="Port of Ray's own metrics; default: 8090, or any where that is taken."
    )
    replicas: int = Field(1, ge=1, description="Copies of the deployment; each holds encoder and heads.")

    max_batch_size: int | None = Field(None, ge=1, description="Pictures in one pass; default 16 on a GPU, 4 without.")
    max_wait_ms: float = Field(1.0, ge=0, description="Longest wait of a picture for others while nothing runs.")
    max_pictures_inside: int = Field(64, ge=1, description="Let in and not yet answered; more are shed with 429.")
    decode_threads: int = Field(4, ge=1, description="Threads that decode pictures and render answers.")
    default_timeout_s: float = Field(30.0, gt=0, description="Deadline of a request that sets none.")
    max_upload_bytes: int = Field(32 * 2**20, ge=1, description="Largest picture file.")
    max_pixels: int = Field(MAX_PIXELS, ge=1, description="Largest picture, width times height.")
    feature_cache_bytes: int = Field(
        512 * 2**20, ge=0, description="Memory of the features that POST /features keeps, per replica; 0: none."
    )
    max_streams: int = Field(64, ge=1, description="Video streams of one replica.")
    max_stream_state_bytes: int = Field(2**30, ge=1, description="Memory of all streams' states.")
    stream_idle_s: float = Field(30.0, gt=0, description="A stream on which nothing happens for this long is ended.")
    drain_s: float = Field(2.0, ge=0, description="How long a stopping replica finishes what it has begun.")
    log_format: Literal["text", "json"] = Field("text", description="json: one object a line, with an access log.")

    @property
    def torch_device(self) -> Literal["cpu", "cuda"]:
        """`device` with auto decided."""
        return best_device() if self.device == "auto" else self.device

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch knows it."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


def best_device() -> Literal["cpu", "cuda"]:
    """CUDA where there is a GPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def read_settings(**given: Any) -> Settings:
    """The settings from the environment, and over them what is given and not None.

    Raises:
        StartError: names each wrong value, in one line.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}={e['input']!r}: {e['msg']}" for e in error.errors())
        raise StartError(f"settings: {wrong}") from None
