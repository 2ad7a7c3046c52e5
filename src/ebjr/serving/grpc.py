"""Open Inference Protocol v2 over gRPC, beside HTTP and on the same services.

The messages of ``open_inference.proto`` are loaded into a pool of their own: protobuf allows each
name once per pool, and another package in the process, such as Triton's client, defines the same.
"""

import asyncio
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
    MOST_DIMENSIONS,
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
from ebjr.serving.limits import Limits, Refused
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
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
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

VALUES = {
    field: 200 if kind is np.object_ else 4 * np.dtype(kind).itemsize
    for field, kind in CONTENTS.values()
}
"""The memory of a value in each field: as protobuf holds it, and in an array."""

PARAMETERS = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}

ANSWERING_SHARE = 0.9  # of a call's deadline; the rest is for the way back
MOST_CALLS = 4096  # of which a connection has a quarter: a call may wait long for its message
MOST_FIELDS = 1024  # of a message; of raw_input_contents there is one for each input
MESSAGE_GROWTH = 15  # more memory per byte of a message: a number of one byte may take 16
ANSWER_COPIES = 3  # until it is sent: the message, its bytes, and gRPC's own
IDLE_SECONDS = 60.0  # after which a connection without calls is closed
GRACE_SECONDS = 30.0
MOST_SIGNED = 2**31 - 2  # that gRPC's options take: one more connection aborts the process


def _messages() -> tuple[Any, Mapping[str, type[Any]]]:
    compiled = files("ebjr.serving").joinpath("open_inference.binpb").read_bytes()
    (file,) = FileDescriptorSet.FromString(compiled).file
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    known = pool.FindFileByName(file.name)
    classes = {name: GetMessageClass(about) for name, about in known.message_types_by_name.items()}
    return known.services_by_name["GRPCInferenceService"], classes


SERVICE, MESSAGES = _messages()
RAW_TAG = 8 * MESSAGES["ModelInferRequest"].RAW_INPUT_CONTENTS_FIELD_NUMBER + 2


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
            (
                "grpc.max_allowed_incoming_connections",
                min(repository.limits.connections, MOST_SIGNED),
            ),
            ("grpc.max_connection_idle_ms", round(1000 * IDLE_SECONDS)),
            # a client with open calls that is silent, and then answers no ping, is gone
            *(
                (f"grpc.{name}_ms", round(1000 * repository.limits.write_seconds))
                for name in ("keepalive_time", "keepalive_timeout", "http2.ping_timeout")
            ),
            ("grpc.http2.max_pings_without_data", 0),  # no limit on these pings
            ("grpc.max_receive_message_length", min(repository.limits.body_bytes, MOST_SIGNED)),
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
            # of a stream, though it has one message: gRPC itself waits for one without end
            f"/{SERVICE.full_name}/{method.name}": grpc.stream_unary_rpc_method_handler(
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

        async def wrapped(_messages: Any, context: Any) -> Any:
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
                        asked = await _read(context, kind, hold, repository.limits)
                        found = await answer(asked, asking)
                    _hold_answer(found, repository.admission.hold(hold.client))
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
        request = await aside(asked.ByteSize(), read_request, asked)
        left = context.time_remaining()
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


async def _read(context: Any, kind: type[Any], hold: Hold, limits: Limits) -> Any:
    """Wait for a call's message, and parse it; `hold` counts its memory."""
    reading = asyncio.ensure_future(context.read())  # never canceled: gRPC writes into its memory
    reading.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    seconds = limits.head_seconds + limits.body_seconds
    if not (await asyncio.wait({reading}, timeout=seconds))[0]:
        raise Refused(408, f"a call's message must arrive within {seconds:g} seconds")
    if (raw := reading.result()) is grpc.aio.EOF:
        raise ProtocolError("the call has no message")
    parsing = MESSAGE_GROWTH * parsed_size(raw)
    hold.add(bytes=len(raw) + parsing)
    asked = await aside(len(raw), _parsed, kind, raw)
    hold.add(bytes=held_bytes(asked) - parsing)
    return asked


def _hold_answer(message: Any, hold: Hold) -> None:
    """Count an answer until the call ends: when its client has taken it, or is gone."""
    call = asyncio.current_task()
    assert call is not None
    call.add_done_callback(lambda _: hold.end())
    hold.add(bytes=ANSWER_COPIES * message.ByteSize())


def parsed_size(raw: bytes) -> int:
    """Return the bytes of a message outside raw_input_contents, which stay as they are."""
    place, left = 0, len(raw)
    for _ in range(MOST_FIELDS):
        tag, place = _varint(raw, place)
        if place >= len(raw) or tag % 8 != 2:  # the end, or no field of a length
            return left
        size, place = _varint(raw, place)
        if tag == RAW_TAG:
            left -= min(size, len(raw) - place)
        place += size
    raise ProtocolError(f"a message may have at most {MOST_FIELDS} fields")


def _varint(raw: bytes, place: int) -> tuple[int, int]:
    """Return a number of protobuf's, and the place after it."""
    found = 0
    for shift in range(0, 70, 7):
        byte = raw[place] if place < len(raw) else 0
        found, place = found | (byte & 127) << shift, place + 1
        if byte < 128:
            break
    return found, place


def held_bytes(message: Any) -> int:
    """Return the memory that a parsed message takes, with the arrays made of its contents."""
    found: int = message.ByteSize()
    for tensor in getattr(message, "inputs", ()):
        found += sum(each * len(getattr(tensor.contents, field)) for field, each in VALUES.items())
    return found


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
    parts: list[Any] = list(message.raw_input_contents)
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
                "shape": list(tensor.shape[: MOST_DIMENSIONS + 1]),
                "parameters": {"binary_data_size": len(part), **_parameters(tensor)},
            }
            for tensor, part in zip(message.inputs, parts, strict=True)
        ],
    }
    if message.outputs:
        table["outputs"] = [
            {"name": output.name, "parameters": _parameters(output)} for output in message.outputs
        ]
    return request_of(table, memoryview(parts[0] if len(parts) == 1 else b"".join(parts)))


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


def _typed_bytes(tensor: Any) -> Any:
    if tensor.datatype not in CONTENTS:
        raise ProtocolError(
            f"the tensor {tensor.name!r} of {tensor.datatype or 'no datatype'} cannot be sent as "
            f"contents, which take {', '.join(CONTENTS)}; send raw_input_contents"
        )
    field, kind = CONTENTS[tensor.datatype]
    values = getattr(tensor.contents, field)
    if tensor.datatype == "BYTES":
        check_texts(f"the tensor {tensor.name!r:.60}", len(values))
    wide = np.empty(len(values), kind)
    for start in range(0, len(values), PIECE):  # piecewise: other threads run between
        piece = values[start : start + PIECE]
        wide[start : start + len(piece)] = np.fromiter(piece, kind, len(piece))
    narrow = wide.astype(DATATYPES[tensor.datatype], copy=False)
    if kind in (np.int32, np.uint32) and not np.array_equal(narrow, wide):
        raise ProtocolError(f"contents of the tensor {tensor.name!r} exceed {tensor.datatype}")
    if kind is np.object_:
        return tensor_bytes(narrow)
    return narrow.astype(narrow.dtype.newbyteorder("<"), copy=False).view(np.uint8).data
