"""The header with which an HTTP caller says how long it will wait."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header

from serving.options import TIMEOUT_S

RequestTimeout = Annotated[
    float | None,
    Header(**TIMEOUT_S.limits, description="Give up after this many seconds."),
]
"""Seconds; None: the server's default."""
