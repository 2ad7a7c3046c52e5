"""OnnxModel: a model in an ``.onnx`` file, run by ONNX Runtime."""

import ast
import logging
import mmap
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebjr.backends.chunks import as_array, at_least_one, checked_batch_size, run_in_chunks
from ebjr.errors import ModelError, needs, one_line
from ebjr.files import check_file
from ebjr.model import Answer, InputShape, ModelFacts, device_name

_SAME_NAME = "float16 uint8 int8 uint16 int16 uint32 int32 uint64 int64 bool"
DTYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(string)": np.object_,
    **{f"tensor({name})": np.dtype(name) for name in _SAME_NAME.split()},
}

FLOATS = ("tensor(float)", "tensor(double)", "tensor(float16)")


class OnnxModel:
    """A model in an ``.onnx`` file: batch in, raw output out, as NumPy arrays.

    A batch (n, ...) is a NumPy array, a torch tensor or anything with ``__array__``. It is cast to
    the graph's type if that is safe: any number to a float type, a small integer type to a larger
    one, never a float to an integer.

    - `path`: The file. Its graph has one required input, whose first dimension is the batch.
    - `threads`, `providers`: ONNX Runtime's ``intra_op_num_threads``, None for its default, and its
      execution providers, best first, None for the CPU.
    - `batch_size`: The largest batch to run at once; larger ones are run in chunks. None never
      splits. A graph with a fixed batch of k always runs k rows, padded if needed.
    - `output`: The name of the output to return; None is the first, or if that holds labels, the
      only floating-point one.
    - `features`: The name of the output that a teacher continues from: an `Answer` carries both.
    - `continues`: Its input is the features in the student's answer, not the inputs.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        providers: Sequence[Any] | None = None,
        batch_size: int | None = None,
        output: str | None = None,
        features: str | None = None,
        continues: bool = False,
    ) -> None:
        self.path = Path(path)
        self.name = self.path.stem
        self._options: dict[str, Any] = {"threads": threads, "providers": providers}
        self._options |= {"batch_size": batch_size, "output": output}
        self._options |= {"features": features, "continues": continues or None}
        self.features, self.continues = features, continues
        self._session = open_session(self.path, threads, providers)
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())
        self._read_input()
        self._read_outputs(output)
        self.batch_size = checked_batch_size(batch_size, self.fixed_batch, self.name)

    @cached_property
    def facts(self) -> ModelFacts:
        """Name, path, labels, input, options and device."""
        return ModelFacts(
            self.name,
            self.path,
            labels=self.class_names,
            input_name=self.input_name,
            input_shape=self.input_shape,
            input_dtype=self.input_dtype,
            features=self._features,
            continues=self.continues,
            options={name: value for name, value in self._options.items() if value is not None},
            device=device_name(self.providers[0]),
        )

    @cached_property
    def metadata(self) -> dict[str, str]:
        """The file's custom metadata."""
        return dict(self._session.get_modelmeta().custom_metadata_map)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The class names in the file's metadata, as written by ultralytics; None if missing."""
        try:
            names = ast.literal_eval(self.metadata.get("names", "()"))
        except (ValueError, SyntaxError):
            return None
        if isinstance(names, dict):
            names = [names.get(number) for number in range(len(names))]
        named = isinstance(names, list) and all(isinstance(name, str) for name in names)
        return tuple(names) if named else None

    def _read_input(self) -> None:
        inputs = self._session.get_inputs()
        required = [node for node in inputs if not node.type.startswith("optional")]
        if len(required) != 1:
            names = ", ".join(node.name for node in required) or "none"
            raise ModelError(
                f"{self.path} must have one required input, but has {len(required)} ({names}); "
                "export it with the others as constants"
            )
        node = required[0]
        if node.type not in DTYPES:
            raise ModelError(
                f"the input {node.name} of {self.path} must be a tensor that NumPy can hold, "
                f"but is {node.type}; export it with a float32 input"
            )
        self.input_name: str = node.name
        self.input_dtype: np.dtype[Any] = np.dtype(DTYPES[node.type])
        self.input_shape = known_shape(node.shape)
        self.fixed_batch = self.input_shape[0] if self.input_shape else None
        # hot path: with a fixed row shape, one tuple comparison checks a batch
        row = self.input_shape[1:] if self.input_shape else (None,)
        self._row_shape = None if None in row else row

    def _read_outputs(self, output: str | None) -> None:
        nodes = {node.name: node for node in self._session.get_outputs()}
        self.output_names: tuple[str, ...] = tuple(nodes)
        self._features = self._read_features(nodes)
        self.output_name = self._likely_output(nodes) if output is None else output
        if self.output_name not in nodes:
            raise ValueError(
                f"output must be one of {', '.join(nodes)}, the outputs of {self.path}, "
                f"but is {output!r}"
            )
        node = nodes[self.output_name]
        if not node.type.startswith("tensor("):
            raise ModelError(
                f"the output {node.name} of {self.path} must be a tensor, but is {node.type}; "
                f"choose another with output= (--student-output, --teacher-output), of "
                f"{', '.join(nodes)}, or export it with a tensor of probabilities (zipmap=False)"
            )
        self._fetch = [name for name in (self.output_name, self.features) if name]

    def _read_features(self, nodes: dict[str, Any]) -> tuple[Any, ...]:
        """Return the features' shape and type, and remove their output from `nodes`."""
        if self.features is None:
            return ()
        node = nodes.pop(self.features, None)
        if not nodes or node is None or node.type not in DTYPES:
            raise ValueError(
                f"features must be one of {', '.join(self.output_names)}, the outputs of "
                f"{self.path}, and not the only one, but is {self.features!r}"
            )
        return known_shape(node.shape), np.dtype(DTYPES[node.type])

    def _likely_output(self, nodes: Mapping[str, Any]) -> str:
        """Return the first output, or another if that is labels, as in converted estimators."""
        numbers = [name for name, node in nodes.items() if node.type in FLOATS]
        first = next(iter(nodes))
        if first in numbers or not numbers:
            return first
        if len(numbers) == 1:
            return numbers[0]
        if "ebjr.score" in self.metadata:
            raise ModelError(
                f"{self.path} is a joint model written by `ebjr export`: use it with `ebjr "
                "predict` or ebjr.load_joint, and its joint.toml with everything else"
            )
        raise ModelError(
            f"the first output of {self.path}, {first}, is {nodes[first].type}, and raw output may "
            f"be {' or '.join(numbers)}: choose with output= (--student-output, --teacher-output)"
        )

    def __call__(self, batch: Any, /) -> Any:
        """Return the raw output, n rows, for n inputs (n, ...); an `Answer` with `features`."""
        batch = as_array(batch)
        if batch.dtype != self.input_dtype:
            batch = self._cast(batch)
        if batch.ndim == 0 or batch.shape[1:] != self._row_shape:
            self._check_shape(batch.shape)
        size, fixed = self.batch_size, self.fixed_batch
        found = run_in_chunks(self._run, batch, size, fixed, np.concatenate)
        return found[0] if self.features is None else Answer(found[0], features=found[1])

    def answer_all(self, batch: Any, /) -> dict[str, NDArray[Any]]:
        """Return every output for one batch, by name, for a detector.

        The batch is not split or padded: a graph with a fixed batch of k needs k rows.
        """
        batch = self._cast(as_array(batch))
        self._check_shape(batch.shape)
        if len(batch) != (self.fixed_batch or len(batch)):
            raise ModelError(
                f"{self.name} has a fixed batch of {self.fixed_batch}, but was given {len(batch)} "
                f"inputs; give it {self.fixed_batch} at a time"
            )
        names = list(self.output_names)
        return dict(zip(names, self._fetched(batch, names), strict=True))

    def _run(self, batch: NDArray[Any]) -> list[NDArray[Any]]:
        return self._fetched(batch, self._fetch)

    def _fetched(self, batch: NDArray[Any], names: list[str]) -> list[NDArray[Any]]:
        try:
            return self._session.run(names, {self.input_name: batch})
        except Exception as error:
            raise ModelError(
                f"{self.name} failed on a batch of shape {batch.shape}: {runtime_says(error)}"
            ) from error

    def _cast(self, batch: NDArray[Any]) -> NDArray[Any]:
        wanted, given = self.input_dtype, batch.dtype
        if not can_become(given, wanted):
            raise TypeError(
                f"{self.name} expects inputs of type {wanted}, but was given {given}; cast them "
                f"yourself with .astype({str(wanted)!r}) if that is intended"
            )
        return batch.astype(wanted)

    def _check_shape(self, given: tuple[int, ...]) -> None:
        expected = self.input_shape or (None,) * max(1, len(given))
        sides = zip(given[1:], expected[1:], strict=False)
        if len(given) != len(expected) or any(want not in (None, got) for got, want in sides):
            raise ValueError(
                f"{self.name} expects a batch of shape {_shown(self.input_shape)}, but was "
                f"given {tuple(given)}; n is the number of inputs"
                + ("; for gray images preprocess with color=gray" if 1 in expected[1:] else "")
            )

    def __reduce__(self) -> tuple[Any, ...]:
        # a session cannot be pickled: another process opens the file again
        return partial(OnnxModel, self.path, **self._options), ()

    def __repr__(self) -> str:
        return f"OnnxModel({str(self.path)!r})"


def can_become(given: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Tell whether inputs of a type may be cast to a graph's type without loss of meaning."""
    to_float = wanted.kind == "f" and given.kind in "fiub"
    to_object = wanted.kind == "O" and given.kind in "US"
    return to_float or to_object or np.can_cast(given, wanted, "safe")


_LOCATION = re.compile(
    rb"j[\x80-\xff]?[\x00-\x7f]\n\x08location\x12([\x80-\xff]?)([\x00-\x7f])", re.DOTALL
)
"""Protobuf's bytes before a tensor's file name: the key "location" and the name's length. Finding
them needs neither the package onnx nor the parsed graph in memory."""


def external_files(path: Path) -> tuple[Path, ...]:
    """Return the files of weights beside an ``.onnx`` file, each once.

    Raises
    ------
    ModelError
        A file of weights is missing or in another folder, where the runtime would not read it.
    """
    if not path.stat().st_size:  # mmap fails on an empty file
        return ()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        names = []
        for found in _LOCATION.finditer(content):
            low, high = found[1] or found[2], found[2] if found[1] else b"\0"
            length = (low[0] & 127) + 128 * high[0]
            names.append(content[found.end() : found.end() + length])
    files = [Path(os.fsdecode(name)) for name in dict.fromkeys(names)]
    for name in files:
        if name.is_absolute() or ".." in name.parts or not (path.parent / name).is_file():
            raise ModelError(
                f"{path} needs the weights in {name}, which is not a file in its folder: put it "
                "there, or save the model again with its weights beside it"
            )
    return tuple(path.parent / name for name in files)


def check_named(path: str | os.PathLike[str]) -> Path:
    """Check that the name of a graph to write ends in ``.onnx``, by which commands know it."""
    if (target := Path(path)).suffix.lower() != ".onnx":
        raise ValueError(
            f"the output must end in .onnx, but is {path}: give a name like "
            f"{target.with_suffix('.onnx').name} (--output)"
        )
    return target


def open_session(
    path: Path, threads: int | None = None, providers: Sequence[Any] | None = None
) -> Any:
    """Open ONNX Runtime's session of a file, with the settings of all our sessions."""
    check_file(path)
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # by default it logs use to send away
    with needs("onnx", f"running {path}"):
        import onnxruntime
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # errors only: its warnings are about graphs, not for users
    # student and teacher take turns: threads that spin after a run slow down the other model
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        settings.intra_op_num_threads = at_least_one("threads", threads)
    chosen = _checked_providers(providers, onnxruntime.get_available_providers())
    try:
        session = onnxruntime.InferenceSession(str(path), settings, providers=chosen)
    except Exception as error:  # its error classes share no other base
        external_files(path)  # a better message if weights are missing
        raise ModelError(
            f"ONNX Runtime cannot load {path}: {runtime_says(error)}; export it again"
        ) from error
    wanted = [each if isinstance(each, str) else each[0] for each in chosen]
    if missing := [name for name in wanted if name not in session.get_providers()]:
        raise ModelError(
            f"ONNX Runtime could not start {missing[0]} for {path}, only "
            f"{', '.join(session.get_providers())}; repair it, or leave it out of providers="
        )
    return session


_SPOKEN = (
    (r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", ""),
    (r"^Load model from .*? failed:", ""),
    # a line of its source, and a function's name
    (r"/\S+\.(?:cc|h):\d+ (?:[\w:<>*&~ ]+\(.*?\)(?: const)? (?=[A-Z]))?", ""),
    (
        r"^.* Opset (\d+) is under development.* till opset (\d+)\.?$",
        r"the opset is \1, but this ONNX Runtime supports up to \2",
    ),
    (
        r"^Unsupported model IR version: (\d+), max supported IR version: (\d+)$",
        r"the IR version is \1, but this ONNX Runtime supports up to \2",
    ),
)


def runtime_says(error: Exception) -> str:
    """Return an ONNX Runtime error in one line, without places in its source."""
    text = " ".join(str(error).split())
    for pattern, instead in _SPOKEN:
        text = re.sub(pattern, instead, text)
    return one_line(type(error)(text))


def _checked_providers(providers: Sequence[Any] | None, available: Sequence[str]) -> list[Any]:
    if providers is None:
        return ["CPUExecutionProvider"]
    if isinstance(providers, str) or not providers:
        raise ValueError(
            f"providers must be a list of names like ['CPUExecutionProvider'], not {providers!r}"
        )
    for provider in providers:
        name = provider if isinstance(provider, str) else provider[0]
        if name not in available:
            raise ValueError(
                f"this ONNX Runtime has the providers {', '.join(available)}, not {name}; install "
                "the build of ONNX Runtime that has it"
            )
    return [tuple(each) if isinstance(each, list) else each for each in providers]


def known_shape(shape: Sequence[Any] | None) -> InputShape | None:
    """Return a shape with None for dynamic dimensions; None for an unknown rank."""
    if not shape:
        return None
    return tuple(size if isinstance(size, int) and size > 0 else None for size in shape)


def _shown(shape: tuple[int | None, ...] | None) -> str:
    if shape is None:
        return "(n, ...)"
    rest = ", ".join("any" if size is None else str(size) for size in shape[1:])
    return f"(n, {rest})" if rest else "(n,)"


@contextmanager
def quiet(name: str | None = None, level: int = logging.ERROR) -> Iterator[None]:
    """Silence a logger, or all, below a level."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
