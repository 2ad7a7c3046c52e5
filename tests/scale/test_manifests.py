"""The manifests in deploy/: well-formed, and what they run exists.

Serve's part is held against Ray's own schema. KServe's and KubeRay's definitions are in no package
of a registry, so that their objects are held against the part of them that we use, written here.
"""

from __future__ import annotations

import inspect
import shlex
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", reason="the extra `scale` is not installed")
jsonschema = pytest.importorskip("jsonschema", reason="the extra `scale` is not installed")

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


AMOUNTS = {"type": "object", "additionalProperties": TEXT}
PROBE = strict(("httpGet",), httpGet=strict(("path", "port"), path=TEXT, port=COUNT))
ENV = strict(
    ("name",),
    name=TEXT,
    value=TEXT,
    valueFrom=strict(secretKeyRef=strict(("name", "key"), name=TEXT, key=TEXT)),
)
CONTAINER = strict(
    ("name", "image", "resources"),
    name=TEXT,
    image=TEXT,
    command=listed(TEXT),
    args=listed(TEXT),
    env=listed(ENV),
    ports=listed(strict(("containerPort",), containerPort=COUNT, name=TEXT, protocol=TEXT)),
    readinessProbe=PROBE,
    livenessProbe=PROBE,
    resources=strict(("requests", "limits"), requests=AMOUNTS, limits=AMOUNTS),
    volumeMounts=listed(
        strict(("name", "mountPath"), name=TEXT, mountPath=TEXT, readOnly={"type": "boolean"})
    ),
)
CLAIM = strict(("claimName",), claimName=TEXT, readOnly={"type": "boolean"})
VOLUMES = listed(strict(("name", "persistentVolumeClaim"), name=TEXT, persistentVolumeClaim=CLAIM))
TEMPLATE = strict(
    ("spec",), spec=strict(("containers",), containers=listed(CONTAINER), volumes=VOLUMES)
)
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
            containers=listed(CONTAINER),
            volumes=VOLUMES,
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


def test_volumes_that_are_mounted_are_there():
    def templates(value: Any) -> list[Any]:
        if isinstance(value, list):
            return [found for entry in value for found in templates(entry)]
        if not isinstance(value, dict):
            return []
        own = [value] if "containers" in value else []
        return own + [found for entry in value.values() for found in templates(entry)]

    found = templates(manifest("inferenceservice.yaml")) + templates(manifest("rayservice.yaml"))
    assert len(found) == 4
    for template in found:
        volumes = {volume["name"] for volume in template["volumes"]}
        for container in template["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


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
