"""The Serve config file and the Kubernetes resources, held to real schemas and to what the server itself does."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from serving import app
from serving.autoscaling import QueueTimePolicy
from serving.config import Settings

DEPLOY = Path(__file__).parents[2] / "deploy"
BASE, GPU = DEPLOY / "kubernetes" / "base", DEPLOY / "kubernetes" / "gpu"
CUSTOM = {"RayService", "PodMonitor"}
"""Kinds of operators, of whose schemas no package is at hand."""

MACHINE = ("_LOC", "_PATH", "_BASE", "_FILE", "_PORT")
"""Ends of what `serving.app` sets by the machine: files and free ports. A container has its own."""


@pytest.fixture(scope="module")
def resources() -> dict[str, dict[str, Any]]:
    """All resources of the base, as they are written, by kind and name."""
    found = [
        document
        for name in yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]
        for document in yaml.safe_load_all((BASE / name).read_text())
    ]
    return {f"{document['kind']}/{document['metadata']['name']}": document for document in found}


@pytest.fixture(scope="module")
def ray_service(resources: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The spec of the RayService."""
    spec: dict[str, Any] = resources["RayService/polyhead"]["spec"]
    return spec


@pytest.fixture
def set_by_the_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """What `polyhead serve` sets for Ray, under the settings of the Serve config file."""
    environment: dict[str, str] = {}
    settings = Settings(**yaml.safe_load((DEPLOY / "serve.yaml").read_text())["applications"][0]["args"])
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    app._set_environment(settings)
    return {name: value for name, value in environment.items() if not name.endswith(MACHINE)}


def gpu_patch(path: str) -> Any:
    """What the GPU overlay puts at a path of the RayService."""
    return next(each["value"] for each in yaml.safe_load((GPU / "rayservice.yaml").read_text()) if each["path"] == path)


def templates(ray_service: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The pod templates of head and workers."""
    cluster = ray_service["rayClusterConfig"]
    (workers,) = cluster["workerGroupSpecs"]
    return {"head": cluster["headGroupSpec"]["template"], "worker": workers["template"]}


@pytest.mark.parametrize("text", [(DEPLOY / "serve.yaml").read_text(), gpu_patch("/spec/serveConfigV2")])
def test_ray_serve_takes_the_config_file(text: str) -> None:
    schema = ServeDeploySchema.model_validate(yaml.safe_load(text))
    assert schema.grpc_options.grpc_servicer_functions is not None
    assert set(schema.grpc_options.grpc_servicer_functions) == set(app.SERVICER_FUNCTIONS)
    (application,) = schema.applications
    assert application.name == app.APPLICATION
    (deployment,) = application.deployments
    built = app.build(application.args)
    assert deployment.name == built._bound_deployment.name


@pytest.mark.parametrize("text", [(DEPLOY / "serve.yaml").read_text(), gpu_patch("/spec/serveConfigV2")])
def test_every_replica_has_as_many_threads_as_cpus(text: str, ray_service: dict[str, Any]) -> None:
    threads = yaml.safe_load(text)["applications"][0]["args"]["torch_threads"]
    (container,) = templates(ray_service)["worker"]["spec"]["containers"]
    resources = container["resources"]
    if "device: cuda" in text:
        resources = gpu_patch("/spec/rayClusterConfig/workerGroupSpecs/0/template/spec/containers/0/resources")
    assert str(threads) == resources["limits"]["cpu"]


def test_the_ray_service_carries_the_config_file(ray_service: dict[str, Any]) -> None:
    assert ray_service["serveConfigV2"] == (DEPLOY / "serve.yaml").read_text()


def test_the_gpu_overlay_changes_only_what_a_gpu_changes() -> None:
    base = yaml.safe_load((DEPLOY / "serve.yaml").read_text())
    overlay = yaml.safe_load(gpu_patch("/spec/serveConfigV2"))
    (base_application,), (application,) = base.pop("applications"), overlay.pop("applications")
    assert overlay == base
    assert application.pop("args") == base_application.pop("args") | {
        "device": "cuda",
        "dtype": "bfloat16",
        "torch_threads": 8,
    }
    for each in (application, base_application):
        policy = each["deployments"][0]["autoscaling_config"]["policy"]
        assert policy["policy_function"] == f"{QueueTimePolicy.__module__}:{QueueTimePolicy.__qualname__}"
        QueueTimePolicy(**policy.pop("policy_kwargs"))
    assert application == base_application


def test_ray_s_environment_is_what_the_server_itself_would_set(set_by_the_server: dict[str, str]) -> None:
    written = dict(line.split("=", 1) for line in (BASE / "ray.env").read_text().splitlines())
    assert written == set_by_the_server


def test_head_and_workers_get_ray_s_environment(ray_service: dict[str, Any]) -> None:
    for name, template in templates(ray_service).items():
        (container,) = template["spec"]["containers"]
        assert container["envFrom"] == [{"configMapRef": {"name": "polyhead-ray"}}], name


def test_every_standard_resource_keeps_to_the_api_s_schema(resources: dict[str, dict[str, Any]]) -> None:
    standard = {name: each for name, each in resources.items() if each["kind"] not in CUSTOM}
    assert {each["kind"] for each in standard.values()} >= {"NetworkPolicy", "PodDisruptionBudget", "Namespace"}
    for resource in standard.values():
        kubernetes_validate.validate(resource, "1.32", strict=True)


@pytest.mark.parametrize("name", ["head", "worker"])
def test_the_pods_of_the_ray_service_keep_to_the_api_s_schema(ray_service: dict[str, Any], name: str) -> None:
    template = templates(ray_service)[name]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": template["metadata"] | {"name": name},
        "spec": template["spec"],
    }
    kubernetes_validate.validate(pod, "1.32", strict=True)


@pytest.mark.parametrize("name", ["head", "worker"])
def test_the_pods_are_allowed_under_the_restricted_standard(ray_service: dict[str, Any], name: str) -> None:
    spec = templates(ray_service)[name]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert {"tmp", "home"} <= mounted <= {volume["name"] for volume in spec["volumes"]}


def test_everything_that_selects_pods_finds_them(
    resources: dict[str, dict[str, Any]], ray_service: dict[str, Any]
) -> None:
    labels = {
        kind: template["metadata"]["labels"] | {"ray.io/node-type": kind}  # which KubeRay adds
        for kind, template in templates(ray_service).items()
    }
    ports = {
        kind: {port["name"] for port in template["spec"]["containers"][0]["ports"]}
        for kind, template in templates(ray_service).items()
    }

    def found(selector: dict[str, Any]) -> set[str]:
        return {kind for kind, has in labels.items() if selector["matchLabels"].items() <= has.items()}

    assert found(resources["PodDisruptionBudget/polyhead-workers"]["spec"]["selector"]) == {"worker"}
    assert found(resources["NetworkPolicy/polyhead"]["spec"]["podSelector"]) == {"head", "worker"}
    assert found(resources["PodMonitor/polyhead"]["spec"]["selector"]) == {"head"}
    assert found(resources["PodMonitor/polyhead-nodes"]["spec"]["selector"]) == {"head", "worker"}
    for name in ("polyhead", "polyhead-nodes"):
        spec = resources[f"PodMonitor/{name}"]["spec"]
        for kind in found(spec["selector"]):
            assert {endpoint["port"] for endpoint in spec["podMetricsEndpoints"]} <= ports[kind]


def test_prometheus_knows_the_jobs_by_the_same_names_everywhere(resources: dict[str, dict[str, Any]]) -> None:
    jobs = {
        relabeling["replacement"]
        for name, resource in resources.items()
        if name.startswith("PodMonitor/")
        for endpoint in resource["spec"]["podMetricsEndpoints"]
        for relabeling in endpoint["relabelings"]
        if relabeling["targetLabel"] == "job"
    }
    configured = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    assert jobs == {job["job_name"] for job in configured}


def test_workers_fetch_the_bundle_that_they_serve(ray_service: dict[str, Any]) -> None:
    (fetch,) = templates(ray_service)["worker"]["spec"]["initContainers"]
    bundle = yaml.safe_load(ray_service["serveConfigV2"])["applications"][0]["args"]["bundle"]
    assert fetch["command"] == ["polyhead", "pull", bundle]


@pytest.mark.parametrize(("folder", "tag"), [(BASE, "cpu"), (GPU, "cuda")])
def test_kustomize_puts_the_image_everywhere(folder: Path, tag: str) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is absent, which brings kustomize")
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=True)
    cluster = next(
        each for each in yaml.safe_load_all(done.stdout) if each["kind"] == "RayService"
    )["spec"]["rayClusterConfig"]  # fmt: skip
    templates_there = [cluster["headGroupSpec"]["template"], cluster["workerGroupSpecs"][0]["template"]]
    images = {
        container["image"]
        for template in templates_there
        for container in template["spec"]["containers"] + template["spec"].get("initContainers", [])
    }
    assert images == {f"polyhead:0.1.0-{tag}"}
