"""Open Inference Protocol v2 over gRPC, beside HTTP and on the same services.

The messages of ``open_inference.proto`` are loaded into a pool of their own: protobuf allows each
name once per pool, and another package in the process, such as Triton's client, defines the same.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import Any
from urllib.parse import unquote

import numpy as np

from ebjr.errors import Overloaded, ProtocolError, needs
from ebjr.protocol import (
    DATATYPES,
    InferRequest,
    InferResponse,
    check_texts,
    datatype_of,
    request_of,
    tensor_bytes,
)
from ebjr.serving.admission import Hold
from ebjr.serving.doors import check_loading
from ebjr.serving.lanes import aside
from ebjr.serving.limits import Refused
from ebjr.serving.logs import REQUEST_ID, begin_request, request_line
from ebjr.serving.repository import Repository
from ebjr.serving.service import Plan, Service
from ebjr.serving.tls import Tls

with needs("grpc", "serving over gRPC"):
    import grpc
    from google.protobuf.descriptor_pb2 import FileDescriptorSet
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message import DecodeError
    from google.protobuf.message_factory import GetMessageClass

PIECE = 2**15  # values of a field read or written between two chances for other threads

CODES: Mapping[int, grpc.StatusCode] = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""The gRPC code of each HTTP status of `status_of`."""

CONTENTS: Mapping[str, tuple[str, Any]] = {
    "BOOL": ("bool_contents", np.bool_),
    **dict.fromkeys(("INT8", "INT16", "INT32"), ("int_contents", np.int32)),
    "INT64": ("int64_contents", np.int64),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), ("uint_contents", np.uint32)),
    "UINT64": ("uint64_contents", np.uint64),
    "FP32": ("fp32_contents", np.float32),
    "FP64": ("fp64_contents", np.float64),
    "BYTES": ("bytes_contents", np.object_),
}
"""The field and type of each datatype's values, in a tensor that is not sent as bytes."""

PARAMETERS = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}

ANSWERING_SHARE = 0.9  # of a call's deadline; the rest is for the way back
MOST_CALLS = 4096  # of which a connection has a quarter: a call may wait long for its message
IDLE_SECONDS = 60.0  # after which a connection without calls is closed
GRACE_SECONDS = 30.0


def _messages() -> tuple[Any, Mapping[str, type[Any]]]:
    compiled = files("ebjr.serving").joinpath("open_inference.binpb").read_bytes()
    (file,) = FileDescriptorSet.FromString(compiled).file
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    known = pool.FindFileByName(file.name)
    classes = {name: GetMessageClass(about) for name, about in known.message_types_by_name.items()}
    return known.services_by_name["GRPCInferenceService"], classes


SERVICE, MESSAGES = _messages()


@asynccontextmanager
async def grpc_server(
    repository: Repository,
    *,
    host: str = "127.0.0.1",
    port: int = 8001,
    log_requests: bool = False,
    tls: Tls | None = None,
    started: Callable[[str], None] = lambda url: None,
) -> AsyncIterator[None]:
    """Answer over gRPC while the context is open; open calls are answered before it closes.

    Port 0 takes a free port; `started` is called with the address. A taken port raises OSError.
    """
    server = grpc.aio.server(
        maximum_concurrent_rpcs=MOST_CALLS,
        options=[
            ("grpc.so_reuseport", 0),
            ("grpc.max_concurrent_streams", MOST_CALLS // 4),
            ("grpc.max_allowed_incoming_connections", repository.limits.connections),
            ("grpc.max_connection_idle_ms", round(1000 * IDLE_SECONDS)),
            ("grpc.max_receive_message_length", repository.limits.body_bytes),
            ("grpc.max_send_message_length", -1),
        ],
    )
    server.add_generic_rpc_handlers([_Calls(repository, lines=log_requests)])
    place = f"[{host}]" if ":" in host else host
    try:
        if tls is None:
            own = server.add_insecure_port(f"{place}:{port}")
        else:
            own = server.add_secure_port(f"{place}:{port}", tls.for_grpc())
    except RuntimeError as error:
        raise OSError(f"cannot listen for gRPC at {place}:{port}; the port may be taken") from error
    await server.start()
    started(f"grpc{'' if tls is None else 's'}://{place}:{own}")
    try:
        yield
    finally:
        await server.stop(GRACE_SECONDS)


@dataclass
class _Asking:
    """A call in progress: its context, its service once known, and what it holds."""

    context: Any
    host: Repository | Service
    hold: Hold
    trailing: list[tuple[str, str]]  # metadata after the answer


class _Calls(grpc.GenericRpcHandler):
    """The protocol's calls, by name, with request ids, logging, tracing and errors around each."""

    def __init__(self, repository: Repository, *, lines: bool) -> None:
        self.repository, self._lines = repository, lines
        self._known = {
            f"/{SERVICE.full_name}/{method.name}": grpc.unary_unary_rpc_method_handler(
                self._answering(
                    f"/{SERVICE.full_name}/{method.name}",
                    MESSAGES[method.input_type.name],
                    getattr(self, method.name),
                ),
                response_serializer=MESSAGES[method.output_type.name].SerializeToString,
            )
            for method in SERVICE.methods
        }

    def service(self, handler_call_details: Any) -> Any:
        """Return a call's handler; a refused call gets one that does not read its message."""
        path = handler_call_details.method
        found = self._known.get(path)
        if found is not None and path.endswith("/ModelInfer"):
            metadata = dict(handler_call_details.invocation_metadata or ())
            shown = str(metadata.get("authorization", "")).encode("utf-8", "replace")
            no = self.repository.shared.doors.not_asking({b"authorization": shown})
            if no is not None:
                refusing = self._answering(path, object, self.ModelInfer, no)
                return grpc.stream_unary_rpc_method_handler(refusing)
        return found

    def _answering(
        self,
        path: str,
        kind: type[Any],
        answer: "Callable[[Any, _Asking], Awaitable[Any]]",
        no: Refused | None = None,
    ) -> Callable[[Any, Any], Awaitable[Any]]:
        """Wrap a call: request id, log line, span, and errors as statuses.

        With `no`, the call raises that, whatever its message.
        """
        repository, tracing = self.repository, self.repository.shared.tracing

        async def wrapped(raw: Any, context: Any) -> Any:
            metadata = dict(context.invocation_metadata() or ())
            shown = metadata.get(REQUEST_ID.decode())
            own = begin_request(
                shown.encode("utf-8", "replace") if isinstance(shown, str) else shown
            )
            with ExitStack() as stack:
                figures = stack.enter_context(request_line("gRPC", path)) if self._lines else {}
                if tracing is not None:
                    about = {"rpc.system": "grpc", "rpc.method": path, "ebjr.request_id": own}
                    stack.enter_context(tracing.request(path, metadata, about))
                hold = repository.admission.hold(_client_of(context))
                asking = _Asking(context, repository, hold, [(REQUEST_ID.decode(), own)])
                try:
                    with asking.hold as hold:
                        if no is not None:
                            raise no
                        hold.add(bytes=len(raw))
                        asked = await aside(len(raw), _parsed, kind, raw)
                        found = await answer(asked, asking)
                    context.set_trailing_metadata(tuple(asking.trailing))
                    figures["status"] = "OK"
                    return found
                except Exception as error:
                    status, sentence = asking.host.refuse(error)
                    figures["status"] = CODES[status].name
                    more = [(REQUEST_ID.decode(), own)]
                    if isinstance(error, Overloaded):
                        wait = round(1000 * error.retry_after_seconds)
                        more.append(("grpc-retry-pushback-ms", str(wait)))
            return await context.abort(CODES[status], sentence, tuple(more))

        return wrapped

    async def ServerLive(self, _asked: Any, _asking: Any) -> Any:
        return MESSAGES["ServerLiveResponse"](live=True)

    async def ServerReady(self, _asked: Any, _asking: Any) -> Any:
        return MESSAGES["ServerReadyResponse"](ready=self.repository.not_ready is None)

    async def ModelReady(self, asked: Any, _asking: Any) -> Any:
        service = self.repository.of(asked.name, asked.version)
        return MESSAGES["ModelReadyResponse"](ready=service.not_ready is None)

    async def ServerMetadata(self, _asked: Any, _asking: Any) -> Any:
        return MESSAGES["ServerMetadataResponse"](**self.repository.server_metadata())

    async def ModelMetadata(self, asked: Any, asking: "_Asking") -> Any:
        about = self.repository.model_metadata(asked.name, asked.version)
        for what, sha256 in about.pop("parameters", {}).items():  # the message has no field for it
            asking.trailing.append((f"ebjr-{what}", sha256))
        return MESSAGES["ModelMetadataResponse"](**about)

    async def ModelConfig(self, asked: Any, _asking: Any) -> Any:
        config = self.repository.model_config(asked.name, asked.version)
        return MESSAGES["ModelConfigResponse"](config=config)

    async def ModelStatistics(self, asked: Any, _asking: Any) -> Any:
        found = self.repository.model_statistics(asked.name, asked.version)
        return MESSAGES["ModelStatisticsResponse"](**found)

    async def RepositoryIndex(self, asked: Any, _asking: Any) -> Any:
        _one_repository(asked)
        return MESSAGES["RepositoryIndexResponse"](models=self.repository.index(asked.ready))

    async def RepositoryModelLoad(self, asked: Any, asking: "_Asking") -> Any:
        check_loading(self.repository.shared.doors, _scope_of(asking.context))
        _one_repository(asked)
        await self.repository.load(asked.model_name, _parameters(asked))
        return MESSAGES["RepositoryModelLoadResponse"]()

    async def RepositoryModelUnload(self, asked: Any, asking: "_Asking") -> Any:
        check_loading(self.repository.shared.doors, _scope_of(asking.context))
        _one_repository(asked)
        await self.repository.unload(asked.model_name, _parameters(asked))
        return MESSAGES["RepositoryModelUnloadResponse"]()

    async def ModelInfer(self, asked: Any, asking: "_Asking") -> Any:
        service = self.repository.of(asked.model_name, asked.model_version)
        asking.host, hold, context = service, asking.hold, asking.context
        hold.move(service.admission)
        size = asked.ByteSize()
        hold.add(bytes=size)  # the parsed message is a second copy
        request, left = await aside(size, read_request, asked), context.time_remaining()
        within = None if left is None else ANSWERING_SHARE * left
        raw = bool(asked.raw_input_contents)
        write = partial(write_response, raw=raw)
        return await service.ask(service.question(request, write), hold, within=within)


def _client_of(context: Any) -> tuple[str, str]:
    """Return the address and port of a call's connection; the address is empty if it has none."""
    kind, _, place = unquote(context.peer()).partition(":")
    host, _, port = place.rpartition(":")
    return (host.strip("[]"), port) if kind.startswith("ip") else ("", place)


def _scope_of(context: Any) -> dict[str, Any]:
    """Return a call in the form of an HTTP scope, with its peer and metadata, for the doors."""
    metadata = context.invocation_metadata() or ()
    pairs = ((key, value.encode() if isinstance(value, str) else value) for key, value in metadata)
    return {
        "client": (_client_of(context)[0], 0),
        "headers": [(key.lower().encode(), value) for key, value in pairs],
    }


def _parsed(kind: type[Any], raw: bytes) -> Any:
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        words = f"the message is not a valid {kind.DESCRIPTOR.name}"
        raise ProtocolError(words) from error


def read_request(message: Any) -> InferRequest:
    """Read a ``ModelInferRequest``; ProtocolError if `message` is not a valid one."""
    _check_http(message, "binary_data_output")
    for output in message.outputs:
        _check_http(output, "binary_data")
    parts = list(message.raw_input_contents)
    if not parts:
        parts = [_typed_bytes(tensor) for tensor in message.inputs]
    elif any(tensor.HasField("contents") for tensor in message.inputs):
        raise ProtocolError("a request has either raw_input_contents or contents, not both")
    if len(parts) != len(message.inputs):
        raise ProtocolError(
            f"raw_input_contents must have one element for each of the {len(message.inputs)} "
            f"inputs, not {len(parts)}"
        )
    table: dict[str, Any] = {
        "id": message.id or None,
        "parameters": _parameters(message),
        "inputs": [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": list(tensor.shape),
                "parameters": {"binary_data_size": len(part), **_parameters(tensor)},
            }
            for tensor, part in zip(message.inputs, parts, strict=True)
        ],
    }
    if message.outputs:
        table["outputs"] = [
            {"name": output.name, "parameters": _parameters(output)} for output in message.outputs
        ]
    return request_of(table, memoryview(b"".join(parts)))


def write_response(response: InferResponse, plan: Plan, *, raw: bool) -> Any:
    """Write the requested outputs as a ``ModelInferResponse``; `raw` sends them as bytes."""
    message = MESSAGES["ModelInferResponse"](
        model_name=response.model_name, model_version=response.model_version, id=response.id
    )
    for key, value in response.parameters.items():
        setattr(message.parameters[key], PARAMETERS[type(value)], value)
    for name, array in response.outputs.items():
        datatype = datatype_of(array.dtype)
        tensor = message.outputs.add(name=name, datatype=datatype, shape=array.shape)
        if raw:
            message.raw_output_contents.append(tensor_bytes(array))
        else:
            flat, field = array.ravel(), getattr(tensor.contents, CONTENTS[datatype][0])
            for start in range(0, len(flat), PIECE):
                field.extend(flat[start : start + PIECE].tolist())
    return message


def _check_http(message: Any, name: str) -> None:
    """Raise a ProtocolError if a message has a parameter that only HTTP needs."""
    if name in message.parameters:
        raise ProtocolError(
            f"gRPC takes no {name!r}: outputs come as inputs do, in raw_input_contents or contents"
        )


def _one_repository(asked: Any) -> None:
    if asked.repository_name:
        raise ProtocolError("the server has one repository: leave repository_name empty")


def _parameters(message: Any) -> dict[str, Any]:
    found = {}
    for key, parameter in message.parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        found[key] = None if choice is None else getattr(parameter, choice)
    return found


def _typed_bytes(tensor: Any) -> bytes:
    if tensor.datatype not in CONTENTS:
        raise ProtocolError(
            f"the tensor {tensor.name!r} of {tensor.datatype or 'no datatype'} cannot be sent as "
            f"contents, which take {', '.join(CONTENTS)}; send raw_input_contents"
        )
    field, kind = CONTENTS[tensor.datatype]
    values = getattr(tensor.contents, field)
    if tensor.datatype == "BYTES":
        check_texts(f"the tensor {tensor.name!r:.60}", len(values))
    pieces = [
        np.fromiter(values[start : start + PIECE], kind)  # piecewise: other threads run between
        for start in range(0, len(values), PIECE)
    ]
    wide = np.concatenate(pieces) if pieces else np.empty(0, kind)
    narrow = wide.astype(DATATYPES[tensor.datatype])
    if kind in (np.int32, np.uint32) and not np.array_equal(narrow, wide):
        raise ProtocolError(f"contents of the tensor {tensor.name!r} exceed {tensor.datatype}")
    return tensor_bytes(narrow)
