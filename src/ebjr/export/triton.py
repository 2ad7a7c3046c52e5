"""A model repository for the Triton inference server: the exported file and its configuration."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ebjr.export.file import Exported, export_joint
from ebjr.files import write_beside
from ebjr.joint_file import JointConfig

TYPES = {"FLOAT": "FP32", "DOUBLE": "FP64", "FLOAT16": "FP16"}
"""Triton's names of tensor types, if they differ from ONNX's."""


def export_triton(
    joint: str | os.PathLike[str] | JointConfig,
    folder: str | os.PathLike[str],
    *,
    max_batch_size: int = 64,
    **options: Any,
) -> Exported:
    """Write a joint model into a model repository: ``NAME/config.pbtxt``, ``NAME/1/model.onnx``.

    The model's name is that in `joint`. If the repository, `folder`, has the model already, a new
    version is added, which Triton serves instead of the older ones. The threshold is fixed, since
    Triton gives every input a batch dimension: to move the knob, export again. Triton batches at
    most `max_batch_size` rows. `options` and further errors are those of `export_joint`.

    Raises
    ------
    ValueError
        The name in `joint` cannot be a folder's name.
    """
    config = joint if isinstance(joint, JointConfig) else JointConfig.read(joint)
    if Path(config.name).name != config.name:
        raise ValueError(
            f"a model repository has a folder of the model's name, which {config.name!r} cannot "
            "be; change name in joint.toml"
        )
    with _made(Path(folder) / config.name) as place:
        numbers = [int(entry.name) for entry in place.iterdir() if entry.name.isdecimal()]
        version = str(max(numbers, default=0) + 1)
        with write_beside(place / "config.pbtxt") as draft:
            (draft / version).mkdir()
            exported = export_joint(config, draft / version / "model.onnx", **options)
            graph = ir.load(exported.path).graph
            text = triton_config(config.name, graph, exported.threshold, max_batch_size)
            (draft / "config.pbtxt").write_text(text, encoding="utf-8")
    data = exported.data and place / version / exported.data.name
    return replace(exported, path=place / version / "model.onnx", data=data)


@contextmanager
def _made(folder: Path) -> Iterator[Path]:
    """Create a folder, and remove it again if the body fails."""
    new = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    except BaseException:
        for one in new:
            one.rmdir()
        raise


def triton_config(name: str, graph: ir.Graph, threshold: float, max_batch_size: int = 64) -> str:
    """Return the text of ``config.pbtxt`` for an exported graph."""
    batched = not isinstance(graph.inputs[0].shape[0], int)  # a fixed batch cannot be batched
    inputs = [value for value in graph.inputs if value.name != "threshold"]
    lines = [
        f'name: "{name}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {max_batch_size if batched else 0}",
        *(_tensor("input", value, batched) for value in inputs),
        *(_tensor("output", value, batched) for value in graph.outputs),
        *(["dynamic_batching { }"] if batched else []),
        f'parameters {{ key: "threshold" value {{ string_value: "{threshold!r}" }} }}',
    ]
    return "\n".join(lines) + "\n"


def _tensor(role: str, value: ir.Value, batched: bool) -> str:
    sides = [side if isinstance(side, int) else -1 for side in value.shape]
    sides = sides[1:] if batched else sides
    # Triton wants at least one dimension beside the batch
    shape = f"dims: {sides}" if sides else "dims: [1] reshape { shape: [] }"
    kind = TYPES.get(value.dtype.name, value.dtype.name)
    return f'{role} {{ name: "{value.name}" data_type: TYPE_{kind} {shape} }}'
