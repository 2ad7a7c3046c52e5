"""RemoteModel: a model behind an Open Inference Protocol v2 endpoint, over HTTP."""

import io
from collections.abc import Mapping
from functools import partial
from gzip import compress
from pathlib import Path
from typing import Any

import numpy as np

from ebjr.arrays import Batch, join_rows, row_count, take_rows, to_numpy
from ebjr.certificates import secret_in
from ebjr.data.preprocess import ImageFile
from ebjr.errors import (
    ModelError,
    OtherModel,
    TeacherUnavailable,
    check_at_least,
    check_choice,
    check_seconds,
)
from ebjr.link.http import Server, server_of
from ebjr.model import Answer, ModelFacts
from ebjr.protocol import (
    DATATYPES,
    LENGTH_HEADER,
    InferRequest,
    InferResponse,
    ModelMetadata,
    RequestedOutput,
    TensorMetadata,
    read_metadata,
    read_response,
    write_request,
)

SENDS = ("tensor", "jpeg", "png")
"""How inputs are sent: as the model's input tensor, or each image as a file."""

OWN = "ebjr_joint"  # the platform of models on an EBJR server
SHORT = 12  # digits of a hash in messages
MARKS = {"degraded": np.bool_, "stage": np.int64}  # more that an EBJR server says of each row
MORE = {*MARKS, "label", "label_names", "count"}  # outputs that a newer server may add

TOKEN_VARIABLE = "EBJR_TEACHER_TOKEN"
PASSWORD_VARIABLE = "EBJR_TEACHER_KEY_PASSWORD"
"""The environment variables with a remote model's bearer token and the password of `client_key`:
no file holds them."""


class RemoteModel:
    """A model behind an Open Inference Protocol v2 endpoint: batch in, raw output out.

    Threads share one connection pool. An EBJR server marks the rows that it degraded itself and the
    stage that answered each row; if any are marked, the model returns an `Answer` with both.

    - `url`: ``http(s)://host:port/v2/models/NAME``, or the address of a server with one model.
    - `output`: The name of the output to return. None takes the only one, or ``output``.
    - `send`: ``"tensor"``, or for images ``"jpeg"`` (with `quality`) or ``"png"``, files that are
      far smaller than the tensor. An image that came as such a file is sent as it came. None is
      the lossless ``"png"`` if the model takes files, else ``"tensor"``.
    - `gzip`: Compress requests, and ask for compressed answers.
    - `batch_size`: The most rows of a request; larger batches are split. None never splits.
    - `token`: Sent as ``Authorization: Bearer``; None takes ``EBJR_TEACHER_TOKEN`` from the
      environment.
    - `ca_file`: The certificate authorities that an https server is trusted by; None takes the
      system's.
    - `client_cert`, `client_key`: The client's certificate and key, which may be in one file. The
      key's password is ``EBJR_TEACHER_KEY_PASSWORD`` in the environment.
    - `metadata`: Metadata that the server gave before. The server is then not asked before the
      first call, and a model with other metadata is refused.
    - `sha256`: The hash of the model, as an EBJR server gives it. None accepts any model.
    """

    def __init__(
        self,
        url: str,
        *,
        output: str | None = None,
        send: str | None = None,
        quality: int = 90,
        gzip: bool = False,
        timeout_seconds: float = 3.0,
        batch_size: int | None = None,
        token: str | None = None,
        ca_file: str | None = None,
        client_cert: str | None = None,
        client_key: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        sha256: str | None = None,
    ) -> None:
        _check(send, quality, timeout_seconds)
        check_at_least(1, batch_size=batch_size)
        self.batch_size, self.quality, self.gzip = batch_size, quality, gzip
        server, name, path = _split_url(url)
        token = secret_in(TOKEN_VARIABLE) if token is None else token
        files = {"ca_file": ca_file, "client_cert": client_cert, "client_key": client_key}
        shown = {"ca_file": ca_file, "certfile": client_cert, "keyfile": client_key}
        shown["password"] = secret_in(PASSWORD_VARIABLE)
        self._server = Server(
            server, name, timeout_seconds, gzip=gzip, token=token, certificates=shown
        )
        if path is None:
            path = _only_model(self._server) if metadata is None else f"models/{metadata['name']}"
        self._path = path
        self._server.name = self.name = f"{path.partition('/')[2]} at {self._server.name}"
        self.url = f"{server}/{path}"
        self._met, self._binary = metadata is None, True
        if metadata is None:
            self.metadata, self.sha256 = self._asked_metadata()
        else:
            self.metadata, self.sha256 = read_metadata(metadata), sha256
        self._read_tensors(output, send)
        given: dict[str, Any] = {"output": output, "send": self.send, "quality": quality}
        given |= {"gzip": gzip, "timeout_seconds": timeout_seconds, "batch_size": batch_size}
        given |= {key: path and str(Path(path).absolute()) for key, path in files.items()}
        self.options = {key: value for key, value in given.items() if value is not None}

    def _read_tensors(self, output: str | None, send: str | None) -> None:
        about = self.metadata
        if len(about.inputs) != 1:
            names = ", ".join(tensor.name for tensor in about.inputs) or "none"
            raise ModelError(f"{self.name} must have one input, but has {names}")
        (self._input,) = about.inputs
        self.input_name = self._input.name
        self.input_shape = tuple(None if size < 0 else size for size in self._input.shape)
        self._fixed_batch = self.input_shape[0] if self.input_shape else None
        self.input_dtype = DATATYPES[self._input.datatype]
        self._output = _chosen_output(about, output, self.name)
        self.output_name = self._output.name
        own = about.platform == OWN
        self._marks = [tensor.name for tensor in about.outputs if own and tensor.name in MARKS]
        pixels = TensorMetadata("image", "UINT8", (-1, -1, -1, 3))
        images = own and self._input == pixels  # an EBJR server decodes files for these
        files = self._binary and (images or self._input.datatype == "BYTES")
        self.send = ("png" if files else "tensor") if send is None else send
        if self.send != "tensor" and not files:
            raise ModelError(
                f"{self.name} takes tensors of {self._input.datatype}, not files: use send='tensor'"
            )

    def __call__(self, batch: Batch, /) -> Any:
        """Return the raw output, n rows, NumPy; an `Answer` if the server marked rows.

        A batch is n inputs, (n, ...), or for files n images (height, width, 3) of uint8.

        Raises
        ------
        TeacherUnavailable
            The server cannot be reached, is too slow or busy, or gave an invalid answer.
        ModelError
            The server refused these inputs, or has another model than before.
        """
        rows = row_count(batch)
        step = self._fixed_batch or self.batch_size or rows
        if rows < 1:
            raise ValueError(f"{self.name} was given no inputs and needs at least one")
        answers = [
            self._ask_some(take_rows(batch, slice(start, start + step)))
            for start in range(0, rows, step)
        ]
        output = join_rows([answer.output for answer in answers])
        degraded, stage = (join_rows([getattr(one, name) for one in answers]) for name in MARKS)
        return Answer(output, degraded, stage=stage) if degraded.any() or stage.any() else output

    def check(self) -> None:
        """Check that the model is ready and is the same as before; raise a `ModelError` if not."""
        found, sha256 = self._asked_metadata()
        self._server.exchange("GET", f"{self._path}/ready")
        old, new = (  # a newer server may have more outputs
            {**one.as_dict(), "outputs": [t.as_dict() for t in one.outputs if t.name not in MORE]}
            for one in (self.metadata, found)
        )
        if old != new:
            key = next(key for key in old if old[key] != new[key])
            raise OtherModel(
                f"{self.name} is not the model that was recorded: its {key} was "
                f"{str(old[key])[:100]} and is {str(new[key])[:100]}; record and calibrate again"
            )
        self._check_sha256(sha256)
        self._met = True

    def _check_sha256(self, said: Any) -> None:
        """Check a hash, or its beginning, that an EBJR server gave."""
        if self.sha256 is not None and not (said and self.sha256.startswith(str(said))):
            raise OtherModel(
                f"{self.name} is not the model that was recorded: its hash was "
                f"{self.sha256[:SHORT]} and is {said or 'missing'!s:.{SHORT}}; record and "
                "calibrate again"
            )

    def close(self) -> None:
        """Close the connections."""
        self._server.close()

    @property
    def bytes_moved(self) -> int:
        """Bytes sent and received so far, HTTP headers included."""
        return self._server.bytes_moved

    @property
    def facts(self) -> ModelFacts:
        """Name, address, input, options, metadata and hash."""
        return ModelFacts(
            self.name,
            url=self.url,
            input_name=self.input_name,
            input_shape=self.input_shape,
            input_dtype=self.input_dtype,
            options=self.options,
            metadata=self.metadata.as_dict(),
            sha256=self.sha256,
            sends_files=self.send != "tensor",
            bytes_moved=self.bytes_moved,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # connections cannot be pickled: another process opens its own
        known: dict[str, Any] = {"metadata": self.metadata.as_dict(), "sha256": self.sha256}
        return partial(RemoteModel, self.url, **self.options, **known), ()

    def __repr__(self) -> str:
        return f"RemoteModel({self.url!r})"

    def _ask_some(self, batch: Batch) -> Answer:
        """Send one request, padded to the model's fixed batch size if it has one."""
        rows = row_count(batch)
        missing = (self._fixed_batch or rows) - rows
        with self._server.in_time():  # one deadline for the metadata check and the request
            found = self._ask(join_rows([batch, *[batch[-1:]] * missing]) if missing else batch)
        return Answer(found.output[:rows], found.degraded[:rows], stage=found.stage[:rows])

    def _ask(self, batch: Batch) -> Answer:
        if not self._met:
            self.check()
        rows = row_count(batch)
        names = [self.output_name, *self._marks]
        wanted = tuple(RequestedOutput(name, binary=self._binary) for name in names)
        tensor = self._tensor(batch) if self.send == "tensor" else self._files(batch)
        asked = InferRequest({self.input_name: tensor}, wanted)
        body, length = write_request(asked, binary=self._binary)
        headers = {"Content-Type": "application/json"}
        if length is not None:
            headers = {"Content-Type": "application/octet-stream", LENGTH_HEADER: str(length)}
        if self.gzip:
            body, headers["Content-Encoding"] = compress(body, 6, mtime=0), "gzip"
        said, came = self._server.exchange("POST", f"{self._path}/infer", body, headers)
        with self._server.understanding():
            found = read_response(said, came.get(LENGTH_HEADER))
        marks: dict[str, Any] = {name: np.zeros(rows, kind) for name, kind in MARKS.items()}
        for name in self._marks:
            none, mark = marks[name], found.outputs.get(name, marks[name])
            if (mark.shape, mark.dtype) == (none.shape, none.dtype) and (mark >= 0).all():
                marks[name] = mark
        return Answer(self._checked(found, rows), **marks)

    def _tensor(self, batch: Batch) -> np.ndarray:
        if isinstance(batch, list | tuple):
            shapes = sorted({np.shape(row) for row in batch})
            if len(shapes) > 1:
                raise ValueError(
                    f"{self.name} takes one tensor, but the inputs have different shapes, such as "
                    f"{shapes[0]} and {shapes[1]}: give it preprocessing with a size"
                )
            batch = np.stack([to_numpy(row) for row in batch])
        array = to_numpy(batch)
        if not np.can_cast(array.dtype, self.input_dtype, "same_kind"):
            raise TypeError(
                f"{self.name} expects inputs of type {self.input_dtype}, but was given "
                f"{array.dtype}; cast them yourself if that is intended"
            )
        if not self._input.fits(array.shape):
            shape = ["n", *("any" if size < 0 else size for size in self._input.shape[1:])]
            raise ValueError(
                f"{self.name} expects a batch of shape ({', '.join(map(str, shape))}), but was "
                f"given {array.shape}"
            )
        return array.astype(self.input_dtype, copy=False)

    def _files(self, batch: Batch) -> np.ndarray:
        files = np.empty(row_count(batch), object)
        files[:] = [encoded(image, self.send, self.quality) for image in batch]
        column = self._input.datatype == "BYTES" and len(self._input.shape) == 2
        return files[:, None] if column else files

    def _checked(self, found: InferResponse, rows: int) -> np.ndarray:
        known = self.metadata.versions
        if found.model_version is not None and known and found.model_version not in known:
            raise OtherModel(
                f"{self.name} answered as version {found.model_version!r}, but was version "
                f"{' or '.join(map(repr, known))}; record and calibrate again"
            )
        self._check_sha256(found.parameters.get("model"))
        array = found.outputs.get(self.output_name)
        if array is None:
            said = ", ".join(found.outputs) or "nothing"
            raise TeacherUnavailable(
                f"{self.name} was asked for {self.output_name!r}, but returned {said}"
            )
        if not array.ndim or len(array) != rows:
            raise TeacherUnavailable(
                f"{self.name} was given {rows} inputs and must return {rows} rows, but returned "
                f"{array.dtype} of shape {array.shape}"
            )
        dtype = DATATYPES[self._output.datatype]
        if array.dtype != dtype or not self._output.fits(array.shape):
            raise TeacherUnavailable(
                f"{self.name} declares {self.output_name!r} as {dtype} of shape "
                f"{list(self._output.shape)}, but returned {array.dtype} of {array.shape}"
            )
        return np.array(array)  # an array over a message's bytes is read-only

    def _asked_metadata(self) -> tuple[ModelMetadata, str | None]:
        """Ask the server for the model's metadata, and its hash if it gives one."""
        extensions = self._server.json("GET", "").get("extensions")
        self._binary = isinstance(extensions, list) and "binary_tensor_data" in extensions
        message = self._server.json("GET", self._path)
        with self._server.understanding():
            about, told = read_metadata(message), message.get("parameters")
        own = isinstance(told, dict) and about.platform == OWN
        return about, told["model"] if own and isinstance(told.get("model"), str) else None


def _check(send: str | None, quality: int, seconds: float) -> None:
    if send is not None:
        check_choice("send", send, SENDS)
    if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= 95:
        raise ValueError(f"quality must be a whole number from 1 to 95, not {quality!r}")
    check_seconds(timeout_seconds=seconds)


def encoded(image: Any, send: str, quality: int) -> bytes:
    """Return an image as a file: the one it came from if possible, else a new one."""
    from PIL import Image

    file = image.file if isinstance(image, ImageFile) else None
    if file is not None and (send == "png" or file.startswith(b"\xff\xd8")):
        return bytes(file)  # "png" asks for no loss, which any original file gives
    pixels = to_numpy(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise TypeError(
            f"only decoded images, uint8 of shape (height, width, 3), can be sent as {send}, but "
            f"an input is {pixels.dtype} of shape {pixels.shape}: send 'tensor'"
        )
    buffer = io.BytesIO()
    options = {"quality": quality} if send == "jpeg" else {}
    Image.fromarray(np.asarray(pixels)).save(buffer, send.upper(), **options)
    return buffer.getvalue()


def _split_url(url: str) -> tuple[str, str, str | None]:
    """Return a server's address up to ``/v2``, its name, and the model's path, if given."""
    parts = server_of(url, "a remote model's address")
    path = parts.path.rstrip("/").removesuffix("/infer")
    front, _, model = path.partition("/v2/models/")
    base = f"{parts.scheme}://{parts.netloc}{front.removesuffix('/v2')}/v2"
    return base, parts.netloc, f"models/{model}" if model else None


def _only_model(server: Server) -> str:
    """Return the path of a server's only model; a `ModelError` if there is not exactly one."""
    way_out = "give the address of one, like http://host:port/v2/models/NAME"
    try:
        listed = server.json("POST", "repository/index", b"{}", of=list)
    except ModelError as error:
        raise TeacherUnavailable(f"{error}; if it has models, {way_out}") from error
    names = {str(entry.get("name")) for entry in listed if isinstance(entry, dict)}
    if len(names) != 1:
        raise ModelError(f"{server.name} has {', '.join(sorted(names)) or 'no models'}: {way_out}")
    return f"models/{names.pop()}"


def _chosen_output(about: ModelMetadata, wanted: str | None, name: str) -> TensorMetadata:
    known = {tensor.name: tensor for tensor in about.outputs}
    if about.platform == OWN and "boxes" in known:
        raise ModelError(
            f"{name} is a joint detector, which cannot be used over HTTP yet: give its files"
        )
    chosen = wanted or ("output" if "output" in known or len(known) != 1 else next(iter(known)))
    if chosen not in known:
        choice = f"not {chosen!r}" if wanted else "and no default"
        raise ModelError(
            f"{name} has the outputs {', '.join(known) or 'none'}, {choice}: choose one with "
            "output= (--student-output, --teacher-output)"
        )
    if known[chosen].datatype == "BYTES":
        raise ModelError(f"the output {chosen!r} of {name} must be numbers, but is BYTES")
    return known[chosen]
