"""The manifests in deploy/: well-formed, and what they run exists.

Serve's part is held against Ray's own schema, and pods against Kubernetes' own. KServe's and
KubeRay's definitions are in no package that goes with ours: of their objects, the fields that we
use are written here.
"""

from __future__ import annotations

import inspect
import shlex
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", reason="the extra `scale` is not installed")
jsonschema = pytest.importorskip("jsonschema", reason="the extra `scale` is not installed")
kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="it is of the extra `dev`")

DEPLOY = Path(__file__).parents[2] / "deploy"
TEXT, COUNT = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}


def strict(required: tuple[str, ...] = (), **known: Any) -> dict[str, Any]:
    """An object of these properties and no others."""
    return {
        "type": "object",
        "properties": known,
        "required": list(required),
        "additionalProperties": False,
    }


def listed(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


# what Kubernetes itself defines: held against its own schemas below
POD = ("containers", "volumes")
TEMPLATE = strict(("spec",), spec=strict(POD, **{key: {"type": "array"} for key in POD}))
# ray start takes its parameters from Kubernetes as text
START = {"type": "object", "additionalProperties": {"type": "string"}}


def resource(api: str, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return strict(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": api},
        kind={"const": kind},
        metadata=strict(("name",), name={"type": "string", "pattern": "^[a-z0-9-]{1,63}$"}),
        spec=spec,
    )


INFERENCE_SERVICE = resource(
    "serving.kserve.io/v1beta1",
    "InferenceService",
    strict(
        ("predictor",),
        predictor=strict(
            ("containers",),
            minReplicas=COUNT,
            maxReplicas=COUNT,
            scaleMetric={"enum": ["concurrency", "rps", "cpu", "memory"]},
            scaleTarget=COUNT,
            canaryTrafficPercent={"type": "integer", "minimum": 0, "maximum": 100},
            timeout=COUNT,
            containers={"type": "array"},
            volumes={"type": "array"},
        ),
    ),
)
WORKERS = strict(
    ("groupName", "rayStartParams", "template"),
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    rayStartParams=START,
    template=TEMPLATE,
)
RAY_SERVICE = resource(
    "ray.io/v1",
    "RayService",
    strict(
        ("serveConfigV2", "rayClusterConfig"),
        serveConfigV2=TEXT,
        rayClusterConfig=strict(
            ("headGroupSpec",),
            enableInTreeAutoscaling={"type": "boolean"},
            headGroupSpec=strict(
                ("rayStartParams", "template"), rayStartParams=START, template=TEMPLATE
            ),
            workerGroupSpecs=listed(WORKERS),
        ),
    ),
)


def manifest(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


@pytest.mark.parametrize(
    ("name", "schema"),
    [("inferenceservice.yaml", INFERENCE_SERVICE), ("rayservice.yaml", RAY_SERVICE)],
)
def test_a_manifest_is_what_its_kind_takes(name, schema):
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(manifest(name), schema)


def pods() -> list[Any]:
    """What all manifests say of pods."""

    def found(value: Any) -> list[Any]:
        if isinstance(value, list):
            return [pod for entry in value for pod in found(entry)]
        if not isinstance(value, dict):
            return []
        of_pod = [{key: value[key] for key in POD if key in value}] if "containers" in value else []
        return of_pod + [pod for entry in value.values() for pod in found(entry)]

    return found(manifest("inferenceservice.yaml")) + found(manifest("rayservice.yaml"))


def check_pod(spec: Any) -> None:
    """Against Kubernetes' own schema, with no field that it does not know."""
    whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}
    kubernetes_validate.validate(whole, kubernetes_validate.latest_version(), strict=True)


def test_every_pod_is_one_to_kubernetes():
    assert len(pods()) == 4
    for spec in pods():
        check_pod(spec)


def test_a_slip_in_a_pod_is_found():
    (spec, *_) = pods()
    (container,) = spec["containers"]
    for wrong in ({"readyProbe": {}}, {"ports": [{"containerPort": "http"}]}, {"args": "--port"}):
        with pytest.raises(kubernetes_validate.ValidationError):
            check_pod({**spec, "containers": [{**container, **wrong}]})


def test_volumes_that_are_mounted_are_there():
    for spec in pods():
        volumes = {volume["name"] for volume in spec["volumes"]}
        for container in spec["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


def test_every_node_of_ray_has_the_environment_of_the_short_way():
    from ebjr.scale import INGRESS

    of_ray = [c for spec in pods() for c in spec["containers"] if c["name"].startswith("ray-")]
    assert len(of_ray) == 3
    for container in of_ray:
        assert {entry["name"]: entry["value"] for entry in container["env"]} == INGRESS


def serve_configs() -> list[Any]:
    return [
        manifest("serve.yaml"),
        yaml.safe_load(manifest("rayservice.yaml")["spec"]["serveConfigV2"]),
    ]


@pytest.mark.parametrize("config", serve_configs())
def test_serves_part_is_what_ray_takes_and_we_build(config):
    pytest.importorskip("ray", reason="the extra `scale` is not installed")
    from ray.serve.schema import ServeDeploySchema

    import ebjr.scale
    from ebjr.scale import ray_serve

    (application,) = ServeDeploySchema.model_validate(config).applications
    module, _, name = application.import_path.partition(":")
    assert (module, callable(getattr(ebjr.scale, name))) == ("ebjr.scale", True)
    known = inspect.signature(ray_serve.build_app).parameters
    assert set(application.args) <= set(known)
    assert {deployment.name for deployment in application.deployments} == {"Student", "Teacher"}


def test_the_teachers_resource_is_what_its_nodes_have():
    spec = manifest("rayservice.yaml")["spec"]
    config = yaml.safe_load(spec["serveConfigV2"])
    (teacher,) = (d for d in config["applications"][0]["deployments"] if d["name"] == "Teacher")
    (nodes,) = (
        group
        for group in spec["rayClusterConfig"]["workerGroupSpecs"]
        if group["groupName"] == "teachers"
    )
    # KubeRay puts it on a command line: one quoted word of JSON
    (word,) = shlex.split(nodes["rayStartParams"]["resources"])
    assert set(teacher["ray_actor_options"]["resources"]) <= set(yaml.safe_load(word))


def test_the_container_runs_a_command_that_there_is():
    from typer.testing import CliRunner

    from ebjr.cli import app

    (container,) = manifest("inferenceservice.yaml")["spec"]["predictor"]["containers"]
    assert container["command"][:2] == ["ebjr", "serve"]
    told = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).output
    options = [word for word in container["args"] if word.startswith("--")]
    assert options
    assert all(option in told for option in options)
    port = container["args"][container["args"].index("--port") + 1]
    assert str(container["ports"][0]["containerPort"]) == port
