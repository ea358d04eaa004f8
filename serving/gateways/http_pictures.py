"""What the HTTP routes that take a picture share: how it may come, and that options are given once."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import Request
from starlette.formparsers import MultiPartException, MultiPartParser

from serving.answers.schemas import Problem
from serving.errors import (
    DeadlineExceededError,
    InvalidImageError,
    InvalidOptionError,
    OverloadedError,
    PolyheadError,
    TooLargeError,
    UnavailableError,
    UnsupportedMediaTypeError,
    UnusableImageError,
)
from serving.types import Timing

_ANY_PICTURE_S: tuple[type[PolyheadError], ...] = (
    InvalidImageError,
    TooLargeError,
    UnsupportedMediaTypeError,
    UnusableImageError,
    OverloadedError,
    UnavailableError,
    DeadlineExceededError,
)
"""What a picture may meet, whatever is asked of it."""

_MULTIPART_OVERHEAD = 64 * 1024
"""Bytes that a form may have beyond its picture: boundaries, headers, small fields."""


def picture_body(description: str, *, required: bool = True) -> dict[str, Any]:
    """The body in the API's description (OpenAPI).

    Args:
        description: beyond how it may come.
        required: whether there must be one.
    """
    image = {"type": "string", "format": "binary"}
    form = {"type": "object", "required": ["image"], "properties": {"image": image}}
    return {
        "requestBody": {
            "required": required,
            "description": f"The picture: as the raw body, or as the form field `image`.{description}",
            "content": {"image/*": {"schema": image}, "multipart/form-data": {"schema": form}},
        }
    }


def problem_answers(*kinds: type[PolyheadError]) -> dict[int | str, dict[str, Any]]:
    """The failures in the API's description (OpenAPI): `kinds` and those that every picture may meet."""
    schema = Problem.model_json_schema()
    return {
        kind.status: {"description": kind.title, "content": {"application/problem+json": {"schema": schema}}}
        for kind in (*kinds, *_ANY_PICTURE_S)
    }


def check_repeats(request: Request) -> None:
    """Refuse options that are given more than once.

    Raises:
        InvalidOptionError: names them.
    """
    names = [name for name, _ in request.query_params.multi_items()]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidOptionError(
            f"{', '.join(repeated)} given more than once", remedy="give each once, tasks separated by commas"
        )


async def read_picture(request: Request, max_bytes: int) -> bytes:
    """The picture's bytes from a raw body or a form, never holding more than `max_bytes` of it.

    Raises:
        TooLargeError: there are more.
        UnsupportedMediaTypeError: it is declared as something else than a picture.
        InvalidOptionError: the form has no file `image`, or several.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _read_form(request, max_bytes)
    if kind and not kind.startswith("image/") and kind != "application/octet-stream":
        raise UnsupportedMediaTypeError(
            f"the body is declared as {kind}",
            remedy="declare it as Content-Type: image/jpeg (or image/png, …), or send the form field 'image'",
        )
    body = bytearray()
    async for chunk in _limited(request, max_bytes, max_bytes):
        body += chunk
    return bytes(body)


async def _read_form(request: Request, max_bytes: int) -> bytes:
    limited = _limited(request, max_bytes + _MULTIPART_OVERHEAD, max_bytes)
    try:
        form = await MultiPartParser(request.headers, limited, max_files=8, max_fields=8).parse()
    except MultiPartException as error:
        raise InvalidOptionError(
            f"the form can't be read: {error.message}", remedy="send one file as 'image'"
        ) from None
    images = form.getlist("image")
    if len(images) != 1 or isinstance(images[0], str):
        found = f"{len(images)} fields 'image'" if images else f"no field 'image', only {sorted(form)}"
        if len(images) == 1:
            found = "a field 'image' that is text, not a file"
        raise InvalidOptionError(f"the form has {found}", remedy="send exactly one file as the field 'image'")
    data = await images[0].read()
    if len(data) > max_bytes:
        raise _too_large(max_bytes)
    return data


async def _limited(request: Request, max_total: int, max_bytes: int) -> AsyncGenerator[bytes, None]:
    declared = request.headers.get("content-length", "")
    seen = 0
    refused = declared.isdigit() and int(declared) > max_total
    async for chunk in request.stream():
        seen += len(chunk)
        refused = refused or seen > max_total
        if not refused:
            yield chunk
        elif seen > 4 * max_total:
            break  # read on for a while, so that an honest client gets to see the answer; then give up
    if refused:
        raise _too_large(max_bytes)


def _too_large(max_bytes: int) -> TooLargeError:
    return TooLargeError(
        f"the picture is over {max_bytes:,} bytes", remedy="send a smaller file; results would not get finer"
    )


def server_timing(timing: Timing) -> str:
    """The stages as the header Server-Timing, which browsers show."""
    stages = {name: getattr(timing, f"{name}_ms") for name in ("queue", "decode", "preprocess", "encoder")}
    stages |= timing.heads_ms | {"postprocess": timing.postprocess_ms, "total": timing.total_ms}
    return ", ".join(f"{name};dur={milliseconds:.1f}" for name, milliseconds in stages.items())
