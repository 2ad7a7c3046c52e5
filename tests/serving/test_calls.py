"""The table of calls in docs/protocol.md: each with an unmodified client, against a real server.

KServe's client asks for versions that others here cannot have, and for protobuf's names that
Triton's has taken: it is in an environment of its own (`make test` makes it), in one process.
"""

from __future__ import annotations

import base64
import io
import json
import queue
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("grpc", reason="the extra `grpc` is not installed")
pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")
pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")

import tritonclient.grpc
import tritonclient.http
from pages import DOCS
from PIL import Image
from small import running, served
from tiny import write_joint

from ebjr import JointClassifier, Preprocess, Preprocessed, Router
from ebjr.serving.app import Served, build_app
from ebjr.serving.grpc import grpc_server
from ebjr.serving.sources import Folder

KSERVE, READY = Path(sys.prefix) / "kserve" / "bin" / "python", Path(sys.prefix) / ".kserve"
CLIENTS = {
    "tritonclient.http": "`tritonclient.http`",
    "tritonclient.grpc": "`tritonclient.grpc`",
    "kserve.rest": "`kserve`, REST",
    "kserve.grpc": "`kserve`, gRPC",
    "curl": "`curl`",
}
LABELS = ("cat", "dog", "owl")
ROWS = np.array([[0.5, 0.0], [5.0, 0.0]], np.float32)
ANSWER = {
    "prediction": [2, 0],
    "label": ["owl", "cat"],
    "score": [0.5, 5.0],
    "deferred": [True, False],
    "degraded": [False, False],
}
OUTPUTS = ["prediction", "label", "output", "score", "deferred", "degraded", "stage"]
BEST = [["1.5:2:owl", "0.0:1:dog"], ["5.0:0:cat", "0.0:2:owl"]]
V1 = [dict(zip(ANSWER, row, strict=True)) for row in zip(*ANSWER.values(), strict=True)]
NOBODY = "there is no model 'none' here; the models are called 'joint', 'photos'"


def photo(color: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (9, 7), color).save(file, "PNG")
    return file.getvalue()


FILES = [photo("white"), photo("black")]
BASE64 = [base64.b64encode(file).decode() for file in FILES]


def models() -> list[Served]:
    """A pair of numbers, and one of images: is it light?"""

    def light(x):
        return np.stack([x.mean((1, 2, 3)) - 0.5, 0.5 - x.mean((1, 2, 3))], axis=1)

    both = Preprocessed(light, Preprocess(size=4))
    photos = JointClassifier(both, both, Router("max_logit", 0.0))
    return [
        Served(served().joint, labels=LABELS, operating_points={"careful": 3.0}),
        Served(photos, "photos", labels=("light", "dark")),
    ]


def plain(array: Any) -> Any:
    """An array as lists, with texts in place of bytes."""
    if array.dtype != object:
        return array.tolist()
    texts = [text.decode() if isinstance(text, bytes) else text for text in array.flat]
    return np.reshape(texts, array.shape).tolist()


class Triton:
    """A client of Triton's, over HTTP or gRPC, and short words for what is asked of it."""

    def __init__(self, kind: Any, client: Any) -> None:
        self.kind, self.client = kind, client

    def tensor(self, rows: np.ndarray = ROWS, name: str = "x", **how: Any) -> Any:
        datatype = "BYTES" if rows.dtype == object else "FP32"
        found = self.kind.InferInput(name, list(rows.shape), datatype)
        found.set_data_from_numpy(rows, **how)
        return found

    def files(self, files: list[Any], **how: Any) -> Any:
        return self.tensor(np.array(files, object), "image", **how)

    def wanted(self, name: str, **how: Any) -> list[Any]:
        return [self.kind.InferRequestedOutput(name, **how)]

    def infer(self, tensor: Any = None, model: str = "joint", **how: Any) -> dict[str, Any]:
        return self.said(self.client.infer(model, [tensor or self.tensor()], **how))

    def said(self, found: Any) -> dict[str, Any]:
        response = found.get_response()
        outputs = response["outputs"] if isinstance(response, dict) else response.outputs
        names = [one["name"] if isinstance(one, dict) else one.name for one in outputs]
        return {name: plain(found.as_numpy(name)) for name in names}

    def later(self) -> dict[str, Any]:
        if self.kind is tritonclient.http:
            return self.said(self.client.async_infer("joint", [self.tensor()]).get_result())
        found: queue.Queue[Any] = queue.Queue()
        self.client.async_infer(
            "joint", [self.tensor()], lambda result, error: found.put((result, error))
        )
        result, error = found.get(timeout=30)
        assert error is None
        return self.said(result)

    def refusal(self) -> str:
        with pytest.raises(tritonclient.http.InferenceServerException) as caught:
            self.infer(model="none")
        return str(caught.value.message())


WORKER = """
import ast, asyncio, base64, json, sys
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

URL, GRPC, rows = sys.argv[1], sys.argv[2], np.array(json.loads(sys.argv[3]), np.float32)
files = np.array([base64.b64decode(text) for text in sys.argv[4:]], object)

def tensor(rows=rows, name="x", binary_data=True):
    found = InferInput(name, list(rows.shape), "BYTES" if rows.dtype == object else "FP32")
    found.set_data_from_numpy(rows, binary_data=binary_data)
    return found

def asked(*tensors, model="joint", id=None, outputs=None, **parameters):
    outputs = outputs and [RequestedOutput(name, how) for name, how in outputs.items()]
    return InferRequest(model, list(tensors) or [tensor()], id, request_outputs=outputs,
                        parameters=parameters)

def said(found):
    read = {one.name: one.as_numpy() for one in found.outputs}
    return {name: np.vectorize(lambda text: text.decode() if isinstance(text, bytes) else text,
            otypes=[object])(array).tolist() if array.dtype == object else array.tolist()
            for name, array in read.items()}

async def main():
    v1, v2 = (InferenceRESTClient(RESTConfig(protocol=name)) for name in ("v1", "v2"))
    grpc = InferenceGRPCClient(GRPC)
    names = dict(globals(), v1=v1, v2=v2, grpc=grpc)
    for line in sys.stdin:
        code = compile(json.loads(line), "call", "eval", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        try:
            found = eval(code, names)
            found = await found if asyncio.iscoroutine(found) else found
        except Exception as error:
            found = {"error": f"{error} {getattr(error, 'details', str)()}"}
        print(json.dumps(found), flush=True)

asyncio.run(main())
"""


class Kserve:
    """KServe's client in a process of its own, which is sent expressions of Python."""

    def __init__(self, *words: str) -> None:
        command = [str(KSERVE), "-c", WORKER, *words]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL, **pipes)  # it logs

    def __call__(self, code: str) -> Any:
        self.process.stdin.write(json.dumps(code) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"KServe's client ended with {self.process.wait()}"
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


class Curl:
    """curl, and what it prints, as JSON."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder

    def __call__(self, path: str, *words: str, send: Any = None) -> Any:
        more = [] if send is None else ["-d", json.dumps(send)]
        command = ["curl", "-s", f"{self.url}{path}", *words, *more]
        done = subprocess.run(command, capture_output=True, check=True, timeout=60, cwd=self.folder)
        return json.loads(done.stdout) if done.stdout else {}

    def infer(self, tensor: Any = None, *words: str, model: str = "joint", **more: Any) -> Any:
        send = {"inputs": [tensor or self.tensor()], **more}
        return self.said(self(f"/v2/models/{model}/infer", *words, send=send))

    def tensor(self) -> dict[str, Any]:
        return {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": ROWS.tolist()}

    def said(self, found: Any) -> dict[str, Any]:
        return {
            one["name"]: np.reshape(one["data"], one["shape"]).tolist() for one in found["outputs"]
        }


Ask = Callable[[Any], Any]


class Call(NamedTuple):
    """A row of the table: what every client gets, what each cell shows, and how it asks."""

    expected: Any
    of: Mapping[str, tuple[str, Ask | str]]  # of KServe's client the code that asks
    of_folder: bool = False  # whether it is asked of a server of a folder of models


def both(shown: str, ask: Ask) -> dict[str, tuple[str, Ask]]:
    """Triton's clients, which are asked alike."""
    return {"tritonclient.http": (shown, ask), "tritonclient.grpc": (shown, ask)}


def kserve(shown: str, rest: str, grpc: str | None = None) -> dict[str, tuple[str, str]]:
    return {
        "kserve.rest": (shown, rest),
        **({} if grpc is None else {"kserve.grpc": (shown, grpc)}),
    }


def kserve_infer(shown: str, asked: str) -> dict[str, tuple[str, str]]:
    """KServe's clients, which are given the same request."""
    rest = f"said(await v2.infer(URL, {asked}, model_name=({asked}).model_name))"
    return kserve(shown, rest, f"said(await grpc.infer({asked}))")


def curl(shown: str, ask: Ask) -> dict[str, tuple[str, Ask]]:
    return {"curl": (shown, ask)}


def triton_metadata(triton: Triton) -> list[str]:
    found = triton.client.get_model_metadata("joint")
    outputs = found["outputs"] if isinstance(found, dict) else found.outputs
    return [one["name"] if isinstance(one, dict) else one.name for one in outputs]


def triton_name(triton: Triton) -> str:
    found = triton.client.get_server_metadata()
    return found["name"] if isinstance(found, dict) else found.name


def triton_id(triton: Triton) -> str:
    found = triton.client.infer("joint", [triton.tensor()], request_id="7").get_response()
    return found["id"] if isinstance(found, dict) else found.id


def triton_index(triton: Triton) -> list[str]:
    found = triton.client.get_model_repository_index()
    listed = found if isinstance(found, list) else found.models
    return [one["name"] if isinstance(one, dict) else one.name for one in listed]


def triton_config(triton: Triton) -> int:
    found = triton.client.get_model_config("joint")
    return found["max_batch_size"] if isinstance(found, dict) else found.config.max_batch_size


def triton_statistics(triton: Triton) -> list[str]:
    found = triton.client.get_inference_statistics("joint")
    stats = found["model_stats"] if isinstance(found, dict) else found.model_stats
    return [one["name"] if isinstance(one, dict) else one.name for one in stats]


def triton_loading(triton: Triton) -> list[bool]:
    triton.client.unload_model("colors")
    there = False
    with suppress(tritonclient.http.InferenceServerException):  # over gRPC it is not found
        there = triton.client.is_model_ready("colors")
    triton.client.load_model("colors")
    return [there, triton.client.is_model_ready("colors")]


def curl_loading(curl: Curl) -> list[bool]:
    def ready() -> bool:
        return "error" not in curl("/v2/models/colors/ready")

    curl("/v2/repository/models/colors/unload", send={})
    gone = ready()
    curl("/v2/repository/models/colors/load", send={})
    return [gone, ready()]


CALLS: dict[str, Call] = {
    "the server is live": Call(
        True,
        both("`is_server_live`", lambda c: c.client.is_server_live())
        | kserve("`is_server_live`", "await v2.is_server_live(URL)", "await grpc.is_server_live()")
        | curl("`/v2/health/live`", lambda c: c("/v2/health/live")["live"]),
    ),
    "it is ready": Call(
        True,
        both("`is_server_ready`", lambda c: c.client.is_server_ready())
        | kserve(
            "`is_server_ready`", "await v2.is_server_ready(URL)", "await grpc.is_server_ready()"
        )
        | curl("`/v2/health/ready`", lambda c: c("/v2/health/ready")["ready"]),
    ),
    "a model is ready": Call(
        True,
        both("`is_model_ready`", lambda c: c.client.is_model_ready("joint"))
        | kserve(
            "`is_model_ready`",
            "await v2.is_model_ready(URL, 'joint')",
            "await grpc.is_model_ready('joint')",
        )
        | curl("`/v2/models/joint/ready`", lambda c: c("/v2/models/joint/ready", "-f") is not None),
    ),
    "the server's metadata": Call(
        "ebjr",
        both("`get_server_metadata`", triton_name) | curl("`/v2`", lambda c: c("/v2")["name"]),
    ),
    "a model's metadata": Call(
        OUTPUTS,
        both("`get_model_metadata`", triton_metadata)
        | curl(
            "`/v2/models/joint`",
            lambda c: [one["name"] for one in c("/v2/models/joint")["outputs"]],
        ),
    ),
    "all models": Call(
        ["joint", "photos"],
        both("`get_model_repository_index`", triton_index)
        | curl(
            "`/v2/repository/index`",
            lambda c: [one["name"] for one in c("/v2/repository/index", send={})],
        ),
    ),
    "a model's configuration": Call(
        32,
        both("`get_model_config`", triton_config)
        | curl(
            "`/v2/models/joint/config`",
            lambda c: c("/v2/models/joint/config")["max_batch_size"],
        ),
    ),
    "its statistics": Call(
        ["joint"],
        both("`get_inference_statistics`", triton_statistics)
        | curl(
            "`/v2/models/joint/stats`",
            lambda c: [one["name"] for one in c("/v2/models/joint/stats")["model_stats"]],
        ),
    ),
    "unload and load a model": Call(
        [False, True],
        both("`unload_model`, `load_model`", triton_loading)
        | curl("`/v2/repository/models/joint/load`", curl_loading),
        of_folder=True,
    ),
    "ask for the default outputs": Call(
        ANSWER,
        both("`infer`", lambda c: c.infer())
        | kserve_infer("`infer`", "asked()")
        | curl("`/v2/models/joint/infer`", lambda c: c.infer()),
    ),
    "ask without waiting": Call(ANSWER, both("`async_infer`", lambda c: c.later())),
    "JSON in and out": Call(
        {"label": ANSWER["label"]},
        {
            "tritonclient.http": (
                "`binary_data=False`",
                lambda c: c.infer(
                    c.tensor(binary_data=False), outputs=c.wanted("label", binary_data=False)
                ),
            )
        }
        | {
            "kserve.rest": (
                "`binary_data=False`",
                "said(await v2.infer(URL, asked(tensor(binary_data=False), outputs={'label': {}}),"
                " model_name='joint'))",
            )
        }
        | curl("`-d`", lambda c: c.infer(outputs=[{"name": "label"}])),
    ),
    "name the outputs": Call(
        {"deferred": ANSWER["deferred"]},
        both("`outputs=`", lambda c: c.infer(outputs=c.wanted("deferred")))
        | kserve_infer("`request_outputs=`", "asked(outputs={'deferred': {}})")
        | curl('`"outputs"`', lambda c: c.infer(outputs=[{"name": "deferred"}])),
    ),
    "the best classes by name": Call(
        {"output": BEST},
        both("`class_count=`", lambda c: c.infer(outputs=c.wanted("output", class_count=2)))
        | kserve_infer(
            '`{"classification": 2}`', "asked(outputs={'output': {'classification': 2}})"
        )
        | curl(
            '`"classification"`',
            lambda c: c.infer(outputs=[{"name": "output", "parameters": {"classification": 2}}]),
        ),
    ),
    "a version": Call(
        ANSWER,
        both("`model_version=`", lambda c: c.infer(model_version="1"))
        | curl(
            "`/versions/1/infer`",
            lambda c: c.infer(model="joint/versions/1"),
        ),
    ),
    "a request's own id": Call(
        "7",
        both("`request_id=`", triton_id)
        | kserve(
            "`request_id=`",
            "(await v2.infer(URL, asked(id='7'), model_name='joint')).id",
            "(await grpc.infer(asked(id='7'))).id",
        )
        | curl(
            '`"id"`',
            lambda c: c("/v2/models/joint/infer", send={"id": "7", "inputs": [c.tensor()]})["id"],
        ),
    ),
    "a request's own threshold": Call(
        ANSWER | {"deferred": [True, True], "prediction": [2, 2], "label": ["owl", "owl"]},
        both("`parameters=`", lambda c: c.infer(parameters={"threshold": 6.0}))
        | kserve_infer("`parameters=`", "asked(threshold=6)")
        | curl('`"parameters"`', lambda c: c.infer(parameters={"threshold": 6.0})),
    ),
    "a request's own timeout": Call(
        ANSWER,
        both("`timeout=`", lambda c: c.infer(timeout=20_000_000))
        | kserve_infer('`{"timeout": 20000000}`', "asked(timeout=20_000_000)")
        | curl('`"timeout_seconds"`', lambda c: c.infer(parameters={"timeout_seconds": 20})),
    ),
    "a lower priority": Call(
        ANSWER,
        both("`priority=`", lambda c: c.infer(priority=2))
        | kserve_infer('`{"priority": 2}`', "asked(priority=2)")
        | curl('`"priority"`', lambda c: c.infer(parameters={"priority": 2})),
    ),
    "compressed bodies": Call(
        ANSWER,
        {
            "tritonclient.http": (
                "`request_compression_algorithm=`",
                lambda c: c.infer(
                    request_compression_algorithm="gzip", response_compression_algorithm="gzip"
                ),
            ),
            "tritonclient.grpc": (
                "`compression_algorithm=`",
                lambda c: c.infer(compression_algorithm="gzip"),
            ),
        }
        | curl("`--compressed`", lambda c: c.infer(None, "--compressed")),
    ),
    "image files": Call(
        ["light", "dark"],
        both("`BYTES`", lambda c: c.infer(c.files(FILES), "photos")["label"])
        | kserve(
            "`BYTES`",
            "said(await v2.infer(URL, asked(tensor(files, 'image'), model='photos'),"
            " model_name='photos'))['label']",
            "said(await grpc.infer(asked(tensor(files, 'image'), model='photos')))['label']",
        )
        | curl(
            "`-F image=@`",
            lambda c: c.said(
                c("/v2/models/photos/infer", *("-F", "image=@0.png", "-F", "image=@1.png"))
            )["label"],
        ),
    ),
    "images as base64 in JSON": Call(
        ["light", "dark"],
        {
            "tritonclient.http": (
                "`binary_data=False`",
                lambda c: c.infer(c.files(BASE64, binary_data=False), "photos")["label"],
            )
        }
        | {
            "kserve.rest": (
                "`binary_data=False`",
                f"said(await v2.infer(URL, asked(tensor(np.array({BASE64}, object), 'image',"
                " binary_data=False), model='photos'), model_name='photos'))['label']",
            )
        }
        | curl(
            "`-d`",
            lambda c: c.infer(
                {"name": "image", "datatype": "BYTES", "shape": [2], "data": BASE64}, model="photos"
            )["label"],
        ),
    ),
    "a form that names its outputs": Call(
        {"prediction": [0]},
        curl(
            "`-F outputs=`",
            lambda c: c.said(
                c("/v2/models/photos/infer", *("-F", "image=@0.png", "-F", "outputs=prediction"))
            ),
        ),
    ),
    "V1: the models by name": Call(
        ["joint", "photos"], curl("`/v1/models`", lambda c: c("/v1/models")["models"])
    ),
    "V1: a model is ready": Call(
        True,
        kserve("`is_model_ready`", "await v1.is_model_ready(URL, 'joint')")
        | curl("`/v1/models/joint`", lambda c: c("/v1/models/joint")["ready"]),
    ),
    "V1: rows of numbers": Call(
        V1,
        kserve(
            "`infer`",
            f"(await v1.infer(URL, {{'instances': {ROWS.tolist()}}}, 'joint'))['predictions']",
        )
        | curl(
            "`/v1/models/joint:predict`",
            lambda c: c("/v1/models/joint:predict", send={"instances": ROWS.tolist()})[
                "predictions"
            ],
        ),
    ),
    "V1: images as base64": Call(
        ["light", "dark"],
        kserve(
            "`infer`",
            f"[row['label'] for row in (await v1.infer(URL, {{'instances': [{{'b64': text}} for"
            f" text in {BASE64}]}}, 'photos'))['predictions']]",
        )
        | curl(
            '`{"b64": ...}`',
            lambda c: [
                row["label"]
                for row in c(
                    "/v1/models/photos:predict",
                    send={"instances": [{"image": {"b64": text}} for text in BASE64]},
                )["predictions"]
            ],
        ),
    ),
    "an error is a sentence": Call(
        NOBODY,
        both("`InferenceServerException`", lambda c: c.refusal())
        | kserve(
            "`HTTPStatusError`, `RpcError`",
            "await v2.infer(URL, asked(), model_name='none')",
            "await grpc.infer(asked(model='none'))",
        )
        | curl('`"error"`', lambda c: c("/v2/models/none/infer", send={})["error"]),
    ),
}
CELLS = [(call, client) for call, about in CALLS.items() for client in about.of]


@contextmanager
def listening(served: Any) -> Iterator[tuple[str, str]]:
    """Where a real server listens, over HTTP and over gRPC."""
    over_grpc: list[str] = []
    app = build_app(served, beside=[partial(grpc_server, port=0, started=over_grpc.append)])
    with running(app) as (host, port):
        yield f"{host}:{port}", over_grpc[0].removeprefix("grpc://")


@pytest.fixture(scope="module")
def asking(tmp_path_factory):
    """Each client of each server, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("files")
    for number, file in enumerate(FILES):
        (folder / f"{number}.png").write_bytes(file)
    with ExitStack() as stack:

        @cache
        def place(of_folder: bool) -> tuple[str, str]:
            if not of_folder:
                return stack.enter_context(listening(models()))
            pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
            (shop := folder / "models" / "colors").mkdir(parents=True)
            write_joint(shop)
            return stack.enter_context(listening(Folder(shop.parent)))

        @cache
        def client(name: str, of_folder: bool) -> Any:
            http, grpc = place(of_folder)
            if name == "tritonclient.http":
                opened = tritonclient.http.InferenceServerClient(http)
                return Triton(tritonclient.http, stack.enter_context(opened))
            if name == "tritonclient.grpc":
                opened = tritonclient.grpc.InferenceServerClient(grpc)
                return Triton(tritonclient.grpc, stack.enter_context(opened))
            if name == "curl":
                return Curl(f"http://{http}", folder)
            worker = Kserve(f"http://{http}", grpc, json.dumps(ROWS.tolist()), *BASE64)
            stack.callback(worker.close)
            return worker

        yield client


@pytest.mark.parametrize(("call", "client"), CELLS)
def test_every_call_of_the_table_is_answered(asking, call, client):
    about = CALLS[call]
    _, ask = about.of[client]
    if client == "curl" and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    if isinstance(ask, str):
        if not (KSERVE.exists() and READY.exists()):
            pytest.skip("KServe's client is not installed: make test does it")
        found = asking("kserve", about.of_folder)(ask)
        if isinstance(found, dict) and "error" in found and call == "an error is a sentence":
            (found,) = re.findall(re.escape(NOBODY), found["error"])[:1]
    else:
        found = ask(asking(client, about.of_folder))
    assert found == about.expected


def table() -> str:
    """The table as it stands on the page."""
    cells = [
        [call, *(about.of.get(one, ("",))[0] for one in CLIENTS)] for call, about in CALLS.items()
    ]
    rows = [["call", *CLIENTS.values()], ["---"] * (1 + len(CLIENTS)), *cells]
    return "\n".join(
        "|" + "|".join(f" {cell} " if cell else " " for cell in row) + "|" for row in rows
    )


def test_the_table_of_the_page_has_these_calls_and_no_others():
    section = (DOCS / "protocol.md").read_text().partition("## Calls of unmodified clients\n")[2]
    lines = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("|")]
    assert "\n".join(lines) == table()
