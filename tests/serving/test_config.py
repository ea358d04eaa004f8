"""The settings: read from the environment, checked at once, never changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from serving.config import Settings, read_settings
from serving.errors import StartError


@pytest.fixture(autouse=True)
def _no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"POLYHEAD_{name.upper()}", raising=False)


def test_defaults_listen_on_this_machine_only() -> None:
    settings = Settings()
    assert (settings.host, settings.http_port, settings.grpc_port) == ("127.0.0.1", 8000, 9000)


def test_a_setting_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYHEAD_HTTP_PORT", "8123")
    monkeypatch.setenv("POLYHEAD_CACHE_DIR", "/somewhere")
    assert Settings().http_port == 8123
    assert Settings().cache_dir == Path("/somewhere")


def test_a_keyword_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYHEAD_HTTP_PORT", "8123")
    assert Settings(http_port=8124).http_port == 8124


def test_an_unknown_keyword_is_an_error() -> None:
    with pytest.raises(ValidationError, match="http_prot"):
        Settings(http_prot=8000)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("http_port", 0),
        ("grpc_port", 65536),
        ("http_port", "eighty"),
        ("replicas", 0),
        ("max_batch_size", 0),
        ("max_wait_ms", -1),
        ("max_pictures_inside", 0),
        ("decode_threads", 0),
        ("default_timeout_s", 0),
        ("max_upload_bytes", 0),
        ("max_pixels", 0),
        ("drain_s", -1),
        ("feature_cache_bytes", -1),
        ("log_format", "yaml"),
        ("device", "tpu"),
        ("dtype", "int8"),
        ("torch_threads", 0),
    ],
)
def test_a_value_out_of_range_is_an_error_that_names_the_setting(name: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=name):
        Settings(**{name: value})


def test_settings_are_never_changed() -> None:
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.http_port = 1


def test_settings_survive_the_trip_to_a_replica_as_plain_values() -> None:
    settings = Settings(http_port=8123, max_batch_size=3, cache_dir=Path("/somewhere"))
    assert Settings(**settings.model_dump(mode="json")) == settings


def test_what_is_given_goes_before_the_environment_and_none_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYHEAD_HTTP_PORT", "8123")
    monkeypatch.setenv("POLYHEAD_GRPC_PORT", "9123")
    settings = read_settings(http_port=8124, grpc_port=None, host=None)
    assert (settings.http_port, settings.grpc_port, settings.host) == (8124, 9123, "127.0.0.1")


def test_wrong_settings_are_told_all_together_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYHEAD_MAX_WAIT_MS", "soon")
    with pytest.raises(StartError) as refused:
        read_settings(http_port=70000, device="tpu", http_prot=1)
    said = str(refused.value)
    assert said.startswith("settings: ")
    for words in ("http_port=70000: ", "device='tpu': ", "http_prot=1: ", "max_wait_ms='soon': "):
        assert words in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)]
)
def test_the_dtype_is_told_as_torch_knows_it(name: Any, dtype: torch.dtype) -> None:
    assert Settings(dtype=name).torch_dtype is dtype
