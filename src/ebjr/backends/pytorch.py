"""TorchModel: a PyTorch module or an exported program, for inference."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from ebjr.arrays import to_numpy
from ebjr.backends.chunks import as_array, checked_batch_size, run_in_chunks
from ebjr.backends.onnx import quiet
from ebjr.errors import ModelError, needs, one_line
from ebjr.files import check_file
from ebjr.model import Answer, InputShape, ModelFacts, device_name

with needs("torch", "running a PyTorch module"):
    import torch


class TorchModel:
    """A PyTorch module of one input as a model: batch in, raw output out, no gradients.

    - `module`: Put in evaluation mode, and moved to `device` and `dtype` in place, like
      ``module.to``.
    - `device`: Where to run; None leaves the module where it is.
    - `dtype`: The floating type to run in, like ``torch.bfloat16`` or ``"bfloat16"``; None keeps
      the module's. Floating inputs are cast to it, integer ones are not.
    - `batch_size`: The largest batch to run at once; larger ones are run in chunks. None never
      splits. A program with a fixed batch of k always runs k rows, padded if needed.
    - `name`: Its name; None is the module's class name.
    - `features`: The key or index of the features, in the module's output, that a teacher continues
      from: an `Answer` carries both. `continues`: its input is such features.
    - `compile`: Compile the module at its first batch: True, or a backend of ``torch.compile``. The
      batch size stays dynamic, since the number of deferred rows varies.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        batch_size: int | None = None,
        name: str | None = None,
        compile: bool | str = False,
        features: str | int | None = None,
        continues: bool = False,
    ) -> None:
        if not isinstance(module, torch.nn.Module):
            raise TypeError(f"module must be a torch nn.Module, but is a {type(module).__name__}")
        chosen = _floating_dtype(dtype)
        try:
            self.module = module.to(device=device, dtype=chosen)
        except (AssertionError, RuntimeError) as error:  # a missing device raises either
            raise ModelError(f"the module cannot run on {device}: {one_line(error)}") from error
        with suppress(NotImplementedError):  # a program keeps the mode it was exported in
            self.module.eval()
        self._forward = _compiled(self.module, compile)
        first = next(
            (tensor for tensor in module.parameters() if tensor.is_floating_point()),
            next(module.buffers(), None),
        )
        own = (None, None) if first is None else (first.device, first.dtype)
        self.device = own[0] if device is None else torch.device(device)
        self.dtype = chosen or (own[1] if own[1] and own[1].is_floating_point else None)
        self.name = name or type(module).__name__
        self.batch_size = checked_batch_size(batch_size, None, self.name)
        self.path: Path | None = None
        self.input_shape: InputShape | None = None
        self.input_dtype: np.dtype[Any] | None = None
        self.fixed_batch: int | None = None
        self.features, self.continues = features, continues
        given = {"device": device, "dtype": dtype, "batch_size": batch_size, "compile": compile}
        self._options: dict[str, Any] = {**given, "features": features, "continues": continues}

    @cached_property
    def facts(self) -> ModelFacts:
        """Name, path, input, options and device."""
        problem = getattr(getattr(self.module, "config", None), "problem_type", None)
        return ModelFacts(
            self.name,
            self.path,
            multilabel=None if problem is None else problem == "multi_label_classification",
            input_shape=self.input_shape,
            input_dtype=self.input_dtype,
            features=() if self.features is None else None,
            continues=self.continues,
            options={
                key: value if isinstance(value, int) else str(value).removeprefix("torch.")
                for key, value in self._options.items()
                if value is not None and value is not False
            },
            device=device_name(self.device),
        )

    def __call__(self, batch: Any, /) -> Any:
        """Return the raw output, n rows, for n inputs (n, ...).

        NumPy inputs give NumPy (float32 for bfloat16), torch inputs give torch on the module's
        device. From an output with ``logits`` those are taken, from a tuple the first. With
        `features` it is an `Answer`.
        """
        given_numpy = not isinstance(batch, torch.Tensor)
        tensor = _from_numpy(batch) if given_numpy else batch
        dtype = self.dtype if tensor.is_floating_point() else None
        with torch.inference_mode():
            moved, size = tensor.to(device=self.device, dtype=dtype), self.batch_size
            found = run_in_chunks(self._run, moved, size, self.fixed_batch, torch.cat)
            found = [to_numpy(part) if given_numpy else part for part in found]
        return found[0] if self.features is None else Answer(found[0], features=found[1])

    def answer_tensors(self, tensors: Mapping[str, torch.Tensor], /) -> Any:
        """Return the raw output, NumPy, of one batch of several named tensors."""
        moved = {
            name: tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)
            for name, tensor in tensors.items()
        }
        with torch.inference_mode():
            return to_numpy(self._run(**moved)[0])

    def _run(self, *inputs: torch.Tensor, **named: torch.Tensor) -> list[torch.Tensor]:
        try:
            output = self._forward(*inputs, **named)
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            first = next(iter((*inputs, *named.values())))
            raise ModelError(
                f"{self.name} failed on a batch of shape {tuple(first.shape)} and type "
                f"{first.dtype}: {one_line(error)}"
            ) from error
        raw = _raw_output(output, self.name)
        return [raw] if self.features is None else [raw, _part(output, self.features, self.name)]

    def __reduce__(self) -> tuple[Any, ...]:
        if self.path is not None:
            return partial(load_program, self.path, **self._options), ()
        return partial(TorchModel, self.module, **self._options, name=self.name), ()

    def __repr__(self) -> str:
        return f"TorchModel({self.name})"


def load_program(path: str | os.PathLike[str], **options: Any) -> TorchModel:
    """Load a ``.pt2`` file of ``torch.export.save``, with the options of `TorchModel`.

    Raises
    ------
    FileNotFoundError
        `path` is not a file.
    ModelError
        The file is corrupt, holds pickled objects, or has several inputs.
    """
    path = check_file(path)
    try:
        # torch logs the traceback of a corrupt file; our error says the same in one line
        with _no_unpickling(), quiet("torch.export"):
            program = torch.export.load(path)
    except Exception as error:  # zip, JSON, schema and tensor errors share no other base
        raise ModelError(
            f"{path} must be a program saved by torch.export.save, but cannot be loaded: "
            f"{one_line(error)}; export it again"
        ) from error
    example = _example_input(program, path)
    model = TorchModel(program.module(), **{"name": path.stem, **options})
    model.path = path
    model.input_shape = tuple(size if isinstance(size, int) else None for size in example.shape)
    model.input_dtype = to_numpy(torch.empty(0, dtype=example.dtype)).dtype
    model.fixed_batch = model.input_shape[0] if model.input_shape else None
    checked_batch_size(model.batch_size, model.fixed_batch, model.name)
    return model


@contextmanager
def _no_unpickling() -> Iterator[None]:
    # torch.export.load falls back to unpickling, which runs any code in the file
    switch = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(switch)
    os.environ[switch] = "1"
    try:
        yield
    finally:
        os.environ.pop(switch)
        if before is not None:
            os.environ[switch] = before


def _example_input(program: Any, path: Path) -> Any:
    names = program.graph_signature.user_inputs
    if len(names) != 1:
        raise ModelError(
            f"{path} must have one input, but has {len(names)} ({', '.join(map(str, names))}); "
            "export it with the others as constants"
        )
    return next(node for node in program.graph.nodes if node.name == names[0]).meta["val"]


def _compiled(module: torch.nn.Module, how: bool | str) -> Any:
    if how is False:
        return module
    if how is not True and how not in torch.compiler.list_backends(exclude_tags=()):
        known = ", ".join(torch.compiler.list_backends())
        raise ValueError(f"compile must be True or one of {known}, but is {how!r}")
    return torch.compile(module, dynamic=True, backend="inductor" if how is True else how)


def _floating_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is None:
        return None
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise TypeError(
            f"dtype must be a floating type like torch.float32 or 'bfloat16', not {dtype!r}"
        )
    return found


def _from_numpy(batch: Any) -> torch.Tensor:
    array = as_array(batch)
    # torch shares memory only with writable arrays without negative strides
    shared = array.flags.writeable and all(stride >= 0 for stride in array.strides)
    try:
        return torch.from_numpy(array if shared else array.copy())
    except TypeError as error:
        raise TypeError(
            f"a batch must hold numbers of a type that PyTorch has, but holds {array.dtype}; "
            "cast it first"
        ) from error


def _raw_output(output: Any, name: str) -> torch.Tensor:
    if isinstance(output, Mapping) and "logits" in output:
        output = output["logits"]
    output = getattr(output, "logits", output)
    if isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, torch.Tensor):
        came = f"a {type(output).__name__}"
        if isinstance(output, Mapping):
            came = f"a dictionary of {', '.join(map(str, output))}"
        raise ModelError(
            f"{name} must return a tensor, a tuple or an object with logits, but returned {came}; "
            "wrap it in a module that returns its logits"
        )
    return output


def _part(output: Any, key: str | int, name: str) -> Any:
    """Return an item of a module's dictionary or tuple."""
    with suppress(KeyError, IndexError, TypeError):
        if isinstance(output, Mapping | tuple | list):
            return output[key]  # type: ignore[index]
    raise ModelError(f"{name} must return a tuple or dictionary with features at {key!r}")
