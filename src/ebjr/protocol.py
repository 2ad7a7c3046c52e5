"""Open Inference Protocol v2: messages to arrays and back. Pure: bytes in, bytes out, no network.

A message is a JSON object; with the binary tensor extension the tensors' bytes follow it, and the
HTTP header `Inference-Header-Content-Length` is the length of the JSON. Both directions are here: a
server reads requests, and an edge device reads answers. An invalid message raises a `ProtocolError`
of one sentence.

Source: the Open Inference Protocol, REST, and Triton's binary tensor data extension.
"""

import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, NamedTuple, Self

import numpy as np

from ebjr.errors import ProtocolError, needs

LENGTH_HEADER = "Inference-Header-Content-Length"
"""The number of bytes of the body that are JSON; the rest are tensors."""

DATATYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    **{f"UINT{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    "BYTES": np.dtype(np.object_),
}
"""The protocol's names of types; BYTES are arrays of `bytes` objects."""

REQUEST = ("inputs", "outputs", "parameters", "id")
"""The fields of an inference request."""

MOST_DIMENSIONS = 32
MOST_ELEMENTS = 2**59
"""The product of a shape's nonzero sizes: NumPy counts bytes in 63 bits, even of an empty array."""

MOST_JSON_BYTES = 2**26
"""The longest JSON of a message: reading it holds the interpreter's lock for 0.4 s."""

MOST_JSON_VALUES = 2**22
"""The most numbers, texts and lists in the JSON of a message: each takes time beside its bytes."""

MOST_TEXTS = 2**18
"""The most elements of a BYTES tensor that follows the JSON: each is read by itself."""

_LITTLE = {name: dtype.newbyteorder("<") for name, dtype in DATATYPES.items()}
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}

Parameters = Mapping[str, bool | int | float | str]


@dataclass(frozen=True)
class RequestedOutput:
    """A requested output; `binary` asks for its bytes after the JSON.

    `classes` asks instead for the names and values of this many best classes: Triton's
    classification extension.
    """

    name: str
    binary: bool = False
    classes: int | None = None


@dataclass(frozen=True, eq=False)
class InferRequest:
    """A request: inputs by name, and the outputs; None asks for all."""

    inputs: Mapping[str, np.ndarray]
    outputs: tuple[RequestedOutput, ...] | None = None
    id: str | None = None  # the client's own name for the request
    parameters: Parameters = field(default_factory=dict)
    binary: bool = False  # send outputs as bytes if `outputs` is None
    extra: Mapping[str, Any] = field(default_factory=dict)  # fields that the protocol lacks

    def wants(self, name: str) -> RequestedOutput | None:
        """Return how to send an output; None if it was not requested."""
        if self.outputs is None:
            return RequestedOutput(name, self.binary)
        return next((output for output in self.outputs if output.name == name), None)

    def check_outputs(self, known: Iterable[str]) -> None:
        """Check that a model has every requested output."""
        names = tuple(known)
        for output in self.outputs or ():
            if output.name not in names:
                raise ProtocolError(
                    f"there is no output {_shown(output.name)}; the model has {', '.join(names)}"
                )


@dataclass(frozen=True, eq=False)
class InferResponse:
    """An answer: outputs by name, the model, and the request's id."""

    outputs: Mapping[str, np.ndarray]
    model_name: str
    model_version: str | None = None
    id: str | None = None
    parameters: Parameters = field(default_factory=dict)


class TensorMetadata(NamedTuple):
    """An input or an output in a message or a model's metadata; a dynamic dimension is -1."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"the tensor {_shown(self.name)}"

    @classmethod
    def of(cls, name: str, dtype: Any, shape: Iterable[int | None]) -> Self:
        """Describe arrays of a NumPy type and a shape in which a dynamic dimension is None."""
        return cls(name, datatype_of(dtype), tuple(-1 if size is None else size for size in shape))

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON of a message."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Tell whether an array's shape fits; the first dimension is the batch."""
        known = zip(self.shape[1:], shape[1:], strict=False)
        return len(shape) == len(self.shape) and all(want in (-1, came) for want, came in known)


@dataclass(frozen=True)
class ModelMetadata:
    """A server's metadata of a model."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON of a message."""
        tensors = (self.inputs, self.outputs)
        inputs, outputs = ([tensor.as_dict() for tensor in each] for each in tensors)
        own = {"name": self.name, "versions": list(self.versions), "platform": self.platform}
        return {**own, "inputs": inputs, "outputs": outputs}


def read_request(body: bytes, json_length: str | int | None = None) -> InferRequest:
    """Read an inference request from the decompressed body of a POST.

    `json_length` is the value of the header `LENGTH_HEADER`; None if the whole body is JSON.
    """
    end = _json_end(body, json_length)
    return request_of(read_object(body[:end]), memoryview(body)[end:])


def request_of(message: Mapping[str, Any], rest: memoryview) -> InferRequest:
    """Read an inference request from its JSON object and the bytes after it."""
    inputs = _read_tensors(message, "inputs", rest, whole=True)
    if not inputs:
        raise ProtocolError("a request needs at least one tensor in 'inputs', but has none")
    parameters = dict(read_parameters(message, "the request"))
    binary = _flag(parameters, "binary_data_output", False)
    parameters.pop("binary_data_output", None)
    outputs, id = _read_requested(message, binary), _read_text(message, "id")
    extra = {key: message[key] for key in message.keys() - {*REQUEST}}
    return InferRequest(inputs, outputs, id, parameters, binary, extra)


def write_request(request: InferRequest, *, binary: bool = True) -> tuple[bytes, int | None]:
    """Write the body of a request; return the length of its JSON if bytes follow."""
    message: dict[str, Any] = {} if request.id is None else {"id": request.id}
    parameters = dict(request.parameters)
    if request.binary and request.outputs is None:
        parameters["binary_data_output"] = True
    if parameters:
        message["parameters"] = parameters
    if request.outputs is not None:
        message["outputs"] = [
            {"name": output.name, "parameters": _requested(output)} for output in request.outputs
        ]
    written = [_written(name, array, binary) for name, array in request.inputs.items()]
    inputs = b",".join(piece for piece, _ in written)
    rest = [part for _, raw in written for part in raw]
    front = _encoded(message)[:-1] + (b"," if message else b"")
    body = b'%b"inputs":[%b]}' % (front, inputs)
    return (b"".join([body, *rest]), len(body)) if rest else (body, None)


def _requested(output: RequestedOutput) -> dict[str, Any]:
    own = {} if output.classes is None else {"classification": output.classes}
    return {"binary_data": output.binary, **own}


def read_response(body: bytes, json_length: str | int | None = None) -> InferResponse:
    """Read an answer from the body of a response; the arguments are those of `read_request`."""
    end = _json_end(body, json_length)
    message = read_object(body[:end])
    name = _read_text(message, "model_name")
    if name is None:
        raise ProtocolError("an answer must name its model in 'model_name', but does not")
    return InferResponse(
        outputs=_read_tensors(message, "outputs", memoryview(body)[end:]),
        model_name=name,
        model_version=_read_text(message, "model_version"),
        id=_read_text(message, "id"),
        parameters=read_parameters(message, "the answer"),
    )


def write_response(
    response: InferResponse, request: InferRequest | None = None
) -> tuple[bytes, int | None]:
    """Write the body of an answer; return the length of its JSON if bytes follow.

    `request` chooses the outputs, and which of them are sent as bytes; None sends all as JSON.
    JSON has no infinity and no NaN: infinities become the largest finite numbers of their type,
    and NaN becomes null. Bytes keep them.
    """
    wishes = InferRequest({}) if request is None else request
    wishes.check_outputs(response.outputs)
    pieces, rest = [], []
    for name, array in response.outputs.items():
        if (wish := wishes.wants(name)) is not None:
            piece, raw = _written(name, array, wish.binary)
            pieces.append(piece)
            rest += raw
    parameters = tuple(response.parameters.items())
    front, back = _head(response.model_name, response.model_version, parameters)
    id = b"" if response.id is None else b',"id":%b' % _json("writing").encode(response.id)
    message = b"%b%b%b%b]}" % (front, id, back, b",".join(pieces))
    return (b"".join([message, *rest]), len(message)) if rest else (message, None)


@lru_cache(maxsize=256)  # keeps no text of a client's, which may be large
def _head(name: str, version: str | None, parameters: tuple[Any, ...]) -> tuple[bytes, bytes]:
    """Write an answer's JSON up to its id, and from there to its tensors."""
    about = {"model_name": name} | ({} if version is None else {"model_version": version})
    told = b"," + _encoded({"parameters": dict(parameters)})[1:-1] if parameters else b""
    return _encoded(about)[:-1], told + b',"outputs":['


def read_metadata(message: Mapping[str, Any]) -> ModelMetadata:
    """Read a model's metadata from a message."""
    name = _read_text(message, "name")
    versions = message.get("versions") or []
    if name is None:
        raise ProtocolError("a model's metadata must have a 'name', but has none")
    if not isinstance(versions, list) or not all(isinstance(text, str) for text in versions):
        raise ProtocolError(f"'versions' must be a list of strings, not {_shown(versions)}")
    return ModelMetadata(
        name,
        tuple(versions),
        _read_text(message, "platform") or "",
        _read_tensor_metadata(message, "inputs"),
        _read_tensor_metadata(message, "outputs"),
    )


def _read_tensor_metadata(message: Mapping[str, Any], key: str) -> tuple[TensorMetadata, ...]:
    return tuple(_read_tensor(*named, least=-1) for named in _named_tables(message, key))


def _read_tensor(name: str, table: Mapping[str, Any], least: int = 0) -> TensorMetadata:
    return TensorMetadata(name, _read_type(table, name), _read_shape(table, name, least))


@lru_cache(maxsize=128)
def datatype_of(dtype: Any) -> str:
    """Return the protocol's name of a NumPy type."""
    known = np.dtype(dtype)
    name = _NAMES.get(known.newbyteorder("=") if known.kind in "iuf" else known)
    if name is None:
        raise ProtocolError(f"the protocol has no datatype for arrays of {known}")
    return name


def tensor_bytes(array: np.ndarray) -> bytes:
    """Return a tensor's bytes: row by row, little-endian.

    An element of BYTES is its length in four bytes, then its bytes.
    """
    if array.dtype == object:
        parts = [_as_bytes(element) for element in array.ravel().tolist()]
        return b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def best_classes(values: np.ndarray, count: int, names: Sequence[str] = ()) -> np.ndarray:
    """Return the `count` highest of the classes' values (n, k), best first, as texts (n, count).

    Each is ``value:index:name``, or ``value:index`` for an unnamed class; `count` may exceed k.

    Source: Triton's classification extension.

    >>> best_classes(np.array([[0.5, 2.0, 1.0]]), 2, ["cat", "dog", "owl"]).tolist()
    [[b'2.0:1:dog', b'1.0:2:owl']]
    """
    order = np.argsort(-values, axis=1, kind="stable")[:, :count]
    ends = [f":{k}:{name}" for k, name in enumerate(names)]
    ends += [f":{k}" for k in range(len(names), values.shape[1])]
    pairs = zip(np.take_along_axis(values, order, 1).flat, order.flat, strict=True)
    return np.fromiter((f"{v}{ends[k]}".encode() for v, k in pairs), object).reshape(order.shape)


def _json_end(body: bytes, json_length: str | int | None) -> int:
    if json_length is None:
        return len(body)
    text = str(json_length)
    if not (text.isascii() and text.isdecimal() and len(text) < 19 and int(text) <= len(body)):
        raise ProtocolError(
            f"{LENGTH_HEADER} must be a number of bytes within the body's {len(body)}, "
            f"not {_shown(text)}"
        )
    return int(text)


@cache
def _json(purpose: str) -> Any:
    """Import msgspec's JSON on the first message, not with this module."""
    with needs("serve", f"{purpose} messages"):
        import msgspec.json
    return msgspec.json


def read_object(raw: bytes) -> dict[str, Any]:
    """Read a message's JSON object."""
    if len(raw) > MOST_JSON_BYTES:
        raise ProtocolError(
            f"the JSON of a message must have at most {MOST_JSON_BYTES:,} bytes, but has "
            f"{len(raw):,}: send its tensors as binary data"
        )
    if (commas := raw.count(b",")) >= MOST_JSON_VALUES:  # also those in texts: an upper bound
        raise ProtocolError(
            f"the JSON of a message must have at most {MOST_JSON_VALUES:,} values, but has "
            f"{commas + 1:,} (commas, and one): send its tensors as binary data"
        )
    try:
        message = _json("reading").decode(raw)
    except (ValueError, RecursionError) as error:
        reason = _reason(raw, error)
        raise ProtocolError(f"the message must be JSON, but is not: {reason}") from error
    if not isinstance(message, dict):
        raise ProtocolError(f"the message must be a JSON object, not {kind_of(message)}")
    return message


def _reason(raw: bytes, error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    place = re.search(r"\(byte (\d+)\)", str(error))
    if place and (name := re.match(rb"NaN|Infinity", raw[int(place[1]) :][:8])):
        return f"JSON has no {name[0].decode()}; send such numbers as binary tensors"
    if re.search(rb"\\u[dD][89a-fA-F]", raw):
        return f"it holds text that is not valid Unicode, or else: {error}"
    if not raw.strip():
        return "it is empty"
    said = str(error)
    if said.startswith("Number out of range"):
        return "it has a number out of range"
    return said.removeprefix("JSON is malformed: ").replace(
        "Input data was truncated", "it ends too early"
    )


def _read_text(message: Mapping[str, Any], key: str) -> str | None:
    value = message.get(key)
    if value is not None and not isinstance(value, str):
        raise ProtocolError(f"'{key}' must be a string, not {kind_of(value)}")
    return value


def read_parameters(table: Mapping[str, Any], what: str) -> Parameters:
    """Read the parameters of a message or a tensor, which messages name `what`."""
    if "parameters" not in table:
        return {}
    parameters = table["parameters"]
    if not isinstance(parameters, dict):
        raise ProtocolError(
            f"'parameters' of {what} must be a JSON object, not {kind_of(parameters)}"
        )
    for key, value in parameters.items():
        if not isinstance(value, bool | str) and not is_number(value):
            raise ProtocolError(
                f"the parameter {_shown(key)} of {what} must be a number, a string, "
                f"true or false, not {kind_of(value)}"
            )
    return parameters


def check_keys(table: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    """Check that a part of a request, named `what`, says nothing that would be ignored."""
    if unknown := table.keys() - {*known}:
        raise ProtocolError(f"{what} has no {_shown(min(unknown))}; it has {', '.join(known)}")


def _flag(parameters: Parameters, key: str, otherwise: bool) -> bool:
    flag = parameters.get(key, otherwise)
    if not isinstance(flag, bool):
        raise ProtocolError(f"'{key}' must be true or false, not {_shown(flag)}")
    return flag


def _read_requested(message: Mapping[str, Any], binary: bool) -> tuple[RequestedOutput, ...] | None:
    if "outputs" not in message:
        return None
    found = []
    for name, table in _named_tables(message, "outputs"):
        what = f"the requested output {_shown(name)}"
        check_keys(table, ("name", "parameters"), what)
        parameters = read_parameters(table, what)
        check_keys(parameters, ("binary_data", "classification"), f"'parameters' of {what}")
        binary_data, classes = _flag(parameters, "binary_data", binary), _classes(parameters, name)
        found.append(RequestedOutput(name, binary_data, classes))
    return tuple(found) or None


def _classes(parameters: Parameters, name: str) -> int | None:
    count = parameters.get("classification")
    if count is None or (type(count) is int and count > 0):
        return count
    raise ProtocolError(
        f"'classification' of the output {_shown(name)} must be the number of classes to return, a "
        f"whole number above 0, not {_shown(count)}"
    )


def _read_tensors(
    message: Mapping[str, Any], key: str, rest: memoryview, *, whole: bool = False
) -> dict[str, np.ndarray]:
    """Read a message's tensors, whose data are in the JSON or in the bytes after it.

    With `whole`, a tensor may say nothing that this reader does not know.
    """
    found: dict[str, np.ndarray] = {}
    for name, table in _named_tables(message, key):
        tensor = _read_tensor(name, table)
        parameters = read_parameters(table, str(tensor))
        if whole:
            check_keys(table, (*TensorMetadata._fields, "data", "parameters"), str(tensor))
            check_keys(parameters, ("binary_data_size",), f"'parameters' of {tensor}")
        size = parameters.get("binary_data_size")
        if size is None and "data" not in table:
            raise ProtocolError(
                f"{tensor} needs 'data', or 'binary_data_size' among its parameters, but has "
                "neither"
            )
        if size is not None and "data" in table:
            raise ProtocolError(f"{tensor} must have either 'data' or 'binary_data_size', not both")
        if size is None:
            found[name] = _from_json(tensor, table["data"])
        else:
            end = _checked_size(tensor, size, len(rest))
            found[name], rest = _from_bytes(tensor, rest[:end]), rest[end:]
    if len(rest):
        raise ProtocolError(f"{len(rest)} bytes after the JSON belong to no tensor")
    return found


def _checked_size(tensor: TensorMetadata, size: Any, left: int) -> int:
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= left:
        raise ProtocolError(
            f"'binary_data_size' of {tensor} must be a number of bytes, at most the {left} left in "
            f"the body, not {_shown(size)}"
        )
    return size


def _named_tables(message: Mapping[str, Any], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    tables = message.get(key)
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ProtocolError(f"'{key}' must be a list of JSON objects, not {_listed(tables)}")
    known = set()
    for table in tables:
        name = table.get("name")
        if not isinstance(name, str) or not name:
            raise ProtocolError(f"each of '{key}' needs a 'name', a string, not {_shown(name)}")
        if name in known:
            raise ProtocolError(f"'{key}' must have distinct names, but has two {_shown(name)}")
        known.add(name)
        yield name, table


def _listed(value: Any) -> str:
    """Name the kind of a JSON value, and of the first element of a list that is no object."""
    if not isinstance(value, list):
        return kind_of(value)
    return f"a list with {kind_of(next(each for each in value if not isinstance(each, dict)))}"


def _read_type(table: Mapping[str, Any], name: str) -> str:
    datatype = table.get("datatype")
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise ProtocolError(
            f"the datatype of the tensor {_shown(name)} must be one of {', '.join(DATATYPES)}, "
            f"not {_shown(datatype)}"
        )
    return datatype


def _read_shape(table: Mapping[str, Any], name: str, least: int = 0) -> tuple[int, ...]:
    shape = table.get("shape")
    if (
        not isinstance(shape, list)
        or len(shape) > MOST_DIMENSIONS
        or not all(type(size) is int and least <= size for size in shape)
        or math.prod(max(1, size) for size in shape) > MOST_ELEMENTS
    ):
        raise ProtocolError(
            f"the shape of the tensor {_shown(name)} must be a list of at most {MOST_DIMENSIONS} "
            f"whole numbers that an array can have, {least} or more, not {_shown(shape)}"
        )
    return tuple(shape)


def _from_json(tensor: TensorMetadata, data: Any) -> np.ndarray:
    if not isinstance(data, list):
        raise ProtocolError(f"'data' of {tensor} must be a list, not {kind_of(data)}")
    found = tensor_of(tensor.datatype, data, f"'data' of {tensor}")
    _check_count(tensor, found.size)
    return found.reshape(tensor.shape)


def tensor_of(datatype: str, data: Sequence[Any], what: str) -> np.ndarray:
    """Make an array of numbers or texts in JSON lists, which messages name `what`."""
    dtype = DATATYPES[datatype]
    # as objects: one long text among numbers would make NumPy pad every element to its length
    found = np.array(data, dtype=object)
    values = found.ravel().tolist()
    kinds = set(map(type, values))
    if list in kinds:
        raise ProtocolError(f"{what} must be one list, or lists of equal lengths")
    if not kinds <= _JSON_KINDS.get(dtype.kind, {int}):
        kind = "strings" if dtype.kind == "O" else f"{datatype} numbers"
        raise ProtocolError(f"{what} must hold only {kind}")
    if dtype.kind == "O":
        return np.fromiter((text.encode("utf-8") for text in values), object).reshape(found.shape)
    return _cast(found, datatype, what)


_JSON_KINDS: Mapping[str, set[type]] = {"b": {bool}, "f": {int, float}, "O": {str}}
"""JSON's types for each kind of NumPy type; integers for the others."""


def _cast(found: np.ndarray, datatype: str, what: str) -> np.ndarray:
    """Cast objects to a tensor's type; a ProtocolError if they do not fit."""
    dtype = DATATYPES[datatype]
    try:
        with np.errstate(over="ignore"):
            array = found.astype(dtype)
        fits = dtype.kind != "f" or np.isfinite(array).all()
    except OverflowError:
        fits = False
    if not fits:
        info = np.iinfo(dtype) if dtype.kind in "iu" else np.finfo(dtype)
        raise ProtocolError(f"{what} exceeds {datatype}, {info.min} to {info.max}")
    return array


def _from_bytes(tensor: TensorMetadata, raw: memoryview) -> np.ndarray:
    datatype, shape = tensor.datatype, tensor.shape
    if datatype == "BYTES":
        return _from_length_prefixed(tensor, raw)
    dtype = DATATYPES[datatype]
    if len(raw) % dtype.itemsize:
        raise ProtocolError(
            f"{tensor} has {len(raw)} bytes, which is not a multiple of the {dtype.itemsize} of "
            f"{datatype}"
        )
    _check_count(tensor, len(raw) // dtype.itemsize)
    if datatype == "BOOL":  # any nonzero byte is true, but NumPy's bool in memory must be 0 or 1
        return np.frombuffer(raw, np.uint8).astype(bool).reshape(shape)
    return np.frombuffer(raw, _LITTLE[datatype]).astype(dtype, copy=False).reshape(shape)


def _from_length_prefixed(tensor: TensorMetadata, raw: memoryview) -> np.ndarray:
    check_texts(tensor, math.prod(tensor.shape))
    data, found, start = bytes(raw), list[bytes](), 0
    while start < len(data):
        end = start + 4 + int.from_bytes(data[start : start + 4], "little")
        if start + 4 > len(data) or end > len(data):
            raise ProtocolError(
                f"{tensor} ends within its element {len(found)}: an element is its length in four "
                "bytes, then its bytes"
            )
        found.append(data[start + 4 : end])
        check_texts(tensor, len(found))
        start = end
    _check_count(tensor, len(found))
    return np.fromiter(found, object).reshape(tensor.shape)


def check_texts(tensor: Any, count: int) -> None:
    """Check that a BYTES tensor, as messages name it, has at most `MOST_TEXTS` elements."""
    if count > MOST_TEXTS:
        raise ProtocolError(f"{tensor} may have at most {MOST_TEXTS:,} elements of BYTES")


def _check_count(tensor: TensorMetadata, count: int) -> None:
    if math.prod(tensor.shape) != count:
        raise ProtocolError(
            f"{tensor} of shape {_shown(list(tensor.shape))} needs "
            f"{_shown(math.prod(tensor.shape))} elements, but has {count}"
        )


def _written(name: str, array: np.ndarray, binary: bool) -> tuple[bytes, list[bytes]]:
    """Write a tensor's JSON, and its bytes if `binary`."""
    if binary:
        raw = tensor_bytes(array)
        return _opening(name, array.shape, array.dtype, len(raw)), [raw]
    data = _json("writing").encode(json_values(name, array))
    return b"%b%b}" % (_opening(name, array.shape, array.dtype), data), []


@lru_cache(maxsize=256)
def _opening(name: str, shape: tuple[int, ...], dtype: Any, size: int | None = None) -> bytes:
    """Write a tensor's JSON up to its data, or all of it if the data are `size` bytes elsewhere."""
    table: dict[str, Any] = {"name": name, "shape": shape, "datatype": datatype_of(dtype)}
    if size is not None:
        return _encoded({**table, "parameters": {"binary_data_size": size}})
    return _encoded(table)[:-1] + b',"data":'


def json_values(name: str, array: np.ndarray) -> list[Any]:
    """Return a tensor's values for JSON, row by row, without infinity and NaN."""
    if array.dtype == object:
        try:
            return [_as_bytes(element).decode("utf-8") for element in array.ravel().tolist()]
        except UnicodeDecodeError as error:
            raise ProtocolError(
                f"the tensor {_shown(name)} holds bytes that are not text: ask for it as binary "
                "data"
            ) from error
    flat = array.ravel()
    if array.dtype.kind != "f" or np.isfinite(flat).all():
        return list(flat.tolist())
    limits = np.finfo(array.dtype)
    clipped = np.clip(flat, limits.min, limits.max).tolist()
    return [None if math.isnan(value) else value for value in clipped]


def _encoded(message: Mapping[str, Any]) -> bytes:
    for key, value in message.get("parameters", {}).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"JSON has no {value}, the value of the parameter {_shown(key)}")
    raw: bytes = _json("writing").encode(message)
    return raw


def is_number(value: Any) -> bool:
    """Tell whether a value is a number in float's range, infinity and NaN included; not a bool."""
    return isinstance(value, float) or (is_whole(value) and abs(value) <= sys.float_info.max)


def is_whole(value: Any) -> bool:
    """Tell whether a value is an integer, and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def _as_bytes(element: Any) -> bytes:
    return element.encode("utf-8") if isinstance(element, str) else bytes(element)


def kind_of(value: Any) -> str:
    """Name the kind of a JSON value."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    number = "a number" if is_number(value) else "a number beyond the range of floats"
    return "nothing" if value is None else names.get(type(value), number)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# Names


def wrong_name(name: Any) -> str | None:
    """Return why `name` cannot be a model's name in every protocol; None if it can."""
    if not isinstance(name, str) or not name:
        return f"a model's name must be a string that is not empty, not {name!r:.60}"
    if name != name.strip() or not name.isprintable() or name in (".", "..") or {*"/\\"} & {*name}:
        return (
            f"{name!r:.60} cannot be a model's name: a name has no slash, no space at its ends, "
            "and only printable characters"
        )
    return None


def check_name(name: str) -> None:
    """Raise ValueError if `name` cannot be that of a model on a server."""
    wrong, address = wrong_name(name), {"stats": "/v2/models/stats"}.get(name)
    if name.endswith(":predict"):
        address = f"/v1/models/{name}"
    if wrong is None and address is not None:
        wrong = f"a model cannot be called {name!r}: {address} is another address of the server"
    if wrong is not None:
        raise ValueError(f"{wrong}; give another name (--name)")
