"""The image's recipe and the compose file; there is no container engine here to run them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml

from serving.config import Settings

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = ROOT / "docker-compose.yml"


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    """Services of the compose file, with all anchors and merges resolved."""
    found: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_everything_that_the_image_is_made_of_exists_and_reaches_the_engine() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
        for source in shlex.split(line)[:-1]
    }
    assert copied == let_in
    assert all((ROOT / source).exists() for source in copied)


def test_every_import_package_is_in_the_image() -> None:
    include = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    for pattern in include:
        folder = pattern.removesuffix("*")
        assert f"\nCOPY {folder} {folder}\n" in DOCKERFILE


def test_the_image_belongs_to_nobody_in_particular_and_serves_outwards() -> None:
    (user,) = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)
    assert user == "10001:10001"
    assert DOCKERFILE.rstrip().endswith('ENTRYPOINT ["polyhead", "serve", "--host", "0.0.0.0"]')
    assert "/readyz" in DOCKERFILE


def test_the_image_s_environment_names_settings_that_exist() -> None:
    names = set(re.findall(r"POLYHEAD_([A-Z_]+)", DOCKERFILE))
    assert {name.lower() for name in names} <= Settings.model_fields.keys()


def test_the_compose_file_keeps_to_the_specification() -> None:
    resolved = json.dumps(yaml.safe_load(COMPOSE.read_text()))  # it knows no merge keys
    compose_spec.PyCompose.from_json(resolved).validate()


def test_no_service_can_do_more_than_it_must(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert re.search(r":v?\d+\.\d+\.\d+", service["image"]), f"{name}: {service['image']} is not pinned"


def test_every_service_that_can_tell_says_whether_it_is_healthy(services: dict[str, dict[str, Any]]) -> None:
    told = {name for name, service in services.items() if "healthcheck" in service}
    by_image = {name for name, service in services.items() if service["image"].startswith("polyhead:")}
    assert set(services) - told - by_image == {"collector"}  # its image has nothing to ask with


def test_prometheus_and_grafana_find_what_they_read(services: dict[str, dict[str, Any]]) -> None:
    mounts = [
        volume.split(":") for service in services.values() for volume in service["volumes"] if volume.startswith("./")
    ]
    assert len(mounts) == 4
    for source, _, mode in mounts:
        assert (ROOT / source).exists(), source
        assert mode == "ro"
    targets = {
        target.split(":")[0]
        for job in yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
        for config in job["static_configs"]
        for target in config["targets"]
    }
    for name in ("polyhead-cpu", "polyhead-gpu"):
        assert set(services[name]["networks"]["default"]["aliases"]) == targets


def test_settings_of_the_services_exist(services: dict[str, dict[str, Any]]) -> None:
    names = {name for service in services.values() for name in service.get("environment", {})}
    ours = {name.removeprefix("POLYHEAD_").lower() for name in names if name.startswith("POLYHEAD_")}
    assert ours <= Settings.model_fields.keys()


def test_no_secret_is_in_the_compose_file(services: dict[str, dict[str, Any]]) -> None:
    values = {
        name: value
        for service in services.values()
        for name, value in service.get("environment", {}).items()
        if re.search("PASSWORD|TOKEN|SECRET|KEY", name)
    }
    assert values
    assert all(value.startswith("${") and ":-" not in value for value in values.values())
