"""The base for kustomize and KServe's runtime: each object is one, and they fit together.

Objects of Kubernetes are held against its own schemas, with no field that these do not know.
KServe's are in no package: of them, the fields that we use are written here.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from shipped import DEPLOY, documents, said_by, tool

jsonschema = pytest.importorskip("jsonschema", reason="the extra `scale` is not installed")
kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="it is of the extra `dev`")
yaml = pytest.importorskip("yaml", reason="the extra `scale` is not installed")

BASE = DEPLOY / "kubernetes"
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
NAME = {"type": "string", "pattern": "^[a-z0-9-]{1,63}$"}
ANY = {"type": "array", "minItems": 1}  # Kubernetes' own, held against its schemas
VERSION = {"type": "string", "pattern": r"^\d+(\.\d+){0,2}$"}
PROTOCOLS = ["v1", "v2", "grpc-v1", "grpc-v2"]


def strict(*required: str, **known: Any) -> dict[str, Any]:
    """An object of these properties and no others."""
    about = {"properties": known, "required": list(required), "additionalProperties": False}
    return {"type": "object", **about}


def resource(api: str, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return strict(
        *("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": api},
        kind={"const": kind},
        metadata=strict("name", name=NAME),
        spec=spec,
    )


RUNTIME = resource(
    "serving.kserve.io/v1alpha1",
    "ServingRuntime",
    strict(
        *("containers", "supportedModelFormats", "protocolVersions"),
        annotations=TEXTS,
        supportedModelFormats={
            **ANY,
            "items": strict(
                "name",
                name={"type": "string"},
                version=VERSION,
                autoSelect={"type": "boolean"},
                priority={"type": "integer", "minimum": 1},
            ),
        },
        protocolVersions={**ANY, "items": {"enum": PROTOCOLS}},
        containers=ANY,
        volumes=ANY,
    ),
)
SERVICE = resource(
    "serving.kserve.io/v1beta1",
    "InferenceService",
    strict(
        "predictor",
        predictor=strict(
            "model",
            minReplicas={"type": "integer", "minimum": 0},
            maxReplicas={"type": "integer", "minimum": 0},
            model=strict(
                *("modelFormat", "storageUri"),
                modelFormat=strict("name", name={"type": "string"}, version=VERSION),
                runtime=NAME,
                protocolVersion={"enum": PROTOCOLS},
                storageUri={"type": "string", "pattern": r"^\w+://.+"},
            ),
        ),
    ),
)
KUSTOMIZATION = strict(
    *("apiVersion", "kind", "resources"),
    apiVersion={"const": "kustomize.config.k8s.io/v1beta1"},
    kind={"const": "Kustomization"},
    labels={"type": "array", "items": strict("pairs", pairs=TEXTS)},
    images={
        "type": "array",
        "items": strict(
            "name",
            **{key: {"type": "string"} for key in ("name", "newName", "newTag")},
        ),
    },
    resources={"type": "array", "items": {"type": "string"}},
)


def objects() -> dict[str, Any]:
    """The base's objects by their kind."""
    (base,) = documents("kubernetes/kustomization.yaml")
    found = [one for name in base["resources"] for one in documents(f"kubernetes/{name}")]
    return {one["kind"]: one for one in found}


def check(one: Any) -> None:
    kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)


def pod_of(kind: str) -> Any:
    if kind == "Deployment":
        return objects()[kind]["spec"]["template"]["spec"]
    spec = documents("servingruntime.yaml")[0]["spec"]
    return {key: spec[key] for key in ("containers", "volumes")}


def test_the_base_has_every_file_of_its_folder():
    (base,) = documents("kubernetes/kustomization.yaml")
    jsonschema.validate(base, KUSTOMIZATION)
    files = {path.name for path in BASE.iterdir()}
    assert files == {*base["resources"], "kustomization.yaml"}
    assert len(base["resources"]) == len(objects())


@pytest.mark.parametrize(
    "kind", ["Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"]
)
def test_each_object_is_one_to_kubernetes(kind):
    check(objects()[kind])


def test_a_slip_in_an_object_is_found():
    deployment = json.loads(json.dumps(objects()["Deployment"]))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    container["readyProbe"] = container.pop("readinessProbe")
    with pytest.raises(kubernetes_validate.ValidationError):
        check(deployment)


def test_kustomize_builds_the_base_of_objects_that_are_all_valid():
    built = list(yaml.safe_load_all(said_by(tool("kubectl"), "kustomize", BASE)))
    assert {one["kind"] for one in built} == set(objects())
    for one in built:
        check(one)
        assert one["metadata"]["labels"]["app.kubernetes.io/name"] == "ebjr"
    text = json.dumps(built)
    assert '"image": "your-registry/ebjr-serve:latest"' in text


def test_with_tls_the_pod_reads_its_secrets_as_files_and_is_asked_by_https(run):
    built = list(
        yaml.safe_load_all(said_by(tool("kubectl"), "kustomize", DEPLOY / "kubernetes-tls"))
    )
    assert {one["kind"] for one in built} == set(objects())
    for one in built:
        check(one)
    pod = next(one for one in built if one["kind"] == "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert "env" not in container  # which does not change while it runs
    secrets = {one["name"]: one["secret"] for one in pod["volumes"] if "secret" in one}
    mounts = {one["mountPath"]: one for one in container["volumeMounts"] if one["name"] in secrets}
    options = dict(word.partition("=")[::2] for word in container["args"][1:])
    named = [value for value in options.values() if value.startswith("/run/secrets/")]
    assert {value.rpartition("/")[0] for value in named} == set(mounts)
    assert all(one["readOnly"] for one in mounts.values())
    assert all(one["defaultMode"] == 0o440 for one in secrets.values())
    _, said, _ = run("serve", "--help")
    assert all(option in said for option in options)
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["scheme"] == "HTTPS"


def test_the_objects_select_the_pods_and_name_each_other():
    known = objects()
    labels = known["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert known[kind]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert known["Service"]["spec"]["selector"].items() <= labels.items()
    target = known["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    own = known["Deployment"]
    assert target == {
        "apiVersion": own["apiVersion"],
        "kind": own["kind"],
        "name": own["metadata"]["name"],
    }
    assert "replicas" not in own["spec"]  # the autoscaler's
    ports = {port["name"]: port for port in pod_of("Deployment")["containers"][0]["ports"]}
    assert {port["targetPort"] for port in known["Service"]["spec"]["ports"]} <= set(ports)
    annotated = own["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"]
    assert annotated == str(ports["http"]["containerPort"])


def test_a_budget_leaves_a_pod_at_the_least_number_of_them():
    known = objects()
    away = known["PodDisruptionBudget"]["spec"]["maxUnavailable"]
    assert known["HorizontalPodAutoscaler"]["spec"]["minReplicas"] > away


@pytest.mark.parametrize("kind", ["Deployment", "ServingRuntime"])
def test_a_pod_has_no_rights_and_writes_where_it_may(kind):
    pod = pod_of(kind)
    (container,) = pod["containers"]
    rights = {**pod.get("securityContext", {}), **container["securityContext"]}
    assert rights["runAsNonRoot"]
    assert rights["readOnlyRootFilesystem"]
    assert not rights["allowPrivilegeEscalation"]
    assert rights["capabilities"] == {"drop": ["ALL"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    writable = {}
    for mount in container["volumeMounts"]:
        volume = volumes.pop(mount["name"])
        if not mount.get("readOnly"):
            writable[mount["mountPath"]] = "emptyDir" in volume
    assert not volumes
    assert writable.pop("/tmp")
    named = [word for word in container["args"] if "=/" in word]
    folders = {word.partition("=")[2].rpartition("/")[0] for word in named}
    assert folders == set(writable)


@pytest.mark.parametrize("kind", ["Deployment", "ServingRuntime"])
def test_a_pod_runs_the_command_with_options_that_there_are(kind, run):
    (container,) = pod_of(kind)["containers"]
    _, said, _ = run("serve", "--help")
    file, *options = (word.partition("=")[0] for word in container["args"])
    assert file.endswith("/joint.toml")
    assert all(option in said for option in options)
    values = dict(word.split("=") for word in container["args"][1:])
    (port,) = container["ports"]
    assert values["--port"] == str(port["containerPort"])
    assert values["--host"] == "0.0.0.0"
    for probe in ("livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert (
            asked["path"]
            == f"/v2/health/{probe.removesuffix('nessProbe').replace('readi', 'ready')}"
        )
        assert asked["port"] in (port["containerPort"], port.get("name"))


def test_the_runtime_is_what_kserve_takes_and_the_service_finds_it():
    runtime, service = documents("servingruntime.yaml")
    jsonschema.validate(runtime, RUNTIME)
    jsonschema.validate(service, SERVICE)
    whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}}
    check({**whole, "spec": pod_of("ServingRuntime")})
    (container,) = runtime["spec"]["containers"]
    assert container["name"] == "kserve-container"  # the one that KServe looks for
    model = service["spec"]["predictor"]["model"]
    formats = {one["name"] for one in runtime["spec"]["supportedModelFormats"] if one["autoSelect"]}
    assert model["modelFormat"]["name"] in formats
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    assert container["args"][0].startswith("/mnt/models/")  # where KServe puts the folder
    asked = runtime["spec"]["annotations"]
    assert asked["prometheus.kserve.io/port"] == str(container["ports"][0]["containerPort"])


@pytest.mark.parametrize(
    "wrong", [{"supportedModelTypes": []}, {"protocolVersions": ["v3"]}, {"containers": []}]
)
def test_a_slip_in_the_runtime_is_found(wrong):
    runtime, _ = documents("servingruntime.yaml")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**runtime, "spec": {**runtime["spec"], **wrong}}, RUNTIME)
