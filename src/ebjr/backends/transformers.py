"""TransformersModel: a Hugging Face classifier with its tokenizer or image processor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ebjr.arrays import row_count
from ebjr.backends.pytorch import TorchModel
from ebjr.errors import ModelError, needs, one_line
from ebjr.model import ModelFacts

if TYPE_CHECKING:
    import torch

PIPELINES = ("text-classification", "image-classification")


class TransformersModel:
    """A ``transformers`` classifier of texts or images: a batch of them in, logits out.

    Nothing is downloaded here: load the model as its own library does, from a folder or a hub.

    Parameters
    ----------
    source
        A pipeline (``text-classification``, ``image-classification``), or the model of one, such
        as a ``BertForSequenceClassification``. With one label it is a regressor; with the
        ``problem_type`` ``"multi_label_classification"`` it is for the task multilabel.
    processor
        The model's tokenizer or image processor; None is the pipeline's. It makes tensors of the
        inputs of this model: student and teacher may have different ones.
    processing
        What to tell the processor beside that. Texts are padded, and cut to what the model can
        take, unless this says otherwise: ``{"max_length": 128}``.
    **options
        ``device``, ``dtype``, ``compile``, ``batch_size`` and ``name``, as of a `TorchModel`.
    """

    def __init__(
        self,
        source: Any,
        processor: Any = None,
        *,
        processing: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        model, own = _taken_apart(source)
        self.processor = own if processor is None else processor
        if not callable(self.processor):
            raise TypeError(
                f"{type(model).__name__} needs its tokenizer or image processor as processor=, but "
                f"got {type(self.processor).__name__}"
            )
        self._torch = TorchModel(model, **options)
        self.module = self._torch.module
        self.name = self._torch.name
        self.batch_size = self._torch.batch_size
        self.processing = {**_defaults(self.processor, model.config), **(processing or {})}
        self.labels = tuple(str(label) for _, label in sorted(model.config.id2label.items()))

    @property
    def facts(self) -> ModelFacts:
        """All that the model says of itself."""
        return replace(self._torch.facts, labels=self.labels, probabilities=False)

    def __call__(self, batch: Any, /) -> NDArray[Any]:
        """Logits, (n, classes), NumPy, of n texts (a list) or decoded images.

        Images are a list of uint8 (height, width, 3), or one array of them.
        """
        rows = row_count(batch)
        if rows == 0:
            return np.zeros((0, len(self.labels)), np.float32)
        step = self.batch_size or rows
        chunks = [list(batch[start : start + step]) for start in range(0, rows, step)]
        return np.concatenate([self._torch.answer_tensors(self._process(part)) for part in chunks])

    def _process(self, inputs: list[Any]) -> dict[str, torch.Tensor]:
        try:
            return dict(self.processor(inputs, return_tensors="pt", **self.processing))
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise ModelError(
                f"the processor of {self.name} failed on {len(inputs)} inputs, the first of type "
                f"{type(inputs[0]).__name__}: {one_line(error)}"
            ) from error

    def __repr__(self) -> str:
        return f"TransformersModel({self.name})"


def _taken_apart(source: Any) -> tuple[Any, Any]:
    """A model, and the processor that a pipeline has for it."""
    with needs("transformers", "running a transformers model"):
        from transformers import Pipeline, PreTrainedModel
    if isinstance(source, PreTrainedModel):
        return source, None
    if not isinstance(source, Pipeline):
        raise TypeError(
            f"source must be a transformers model or pipeline, but is a {type(source).__name__}"
        )
    if source.task not in PIPELINES:
        raise ModelError(
            f"a pipeline must be one of {', '.join(PIPELINES)}, but is for {source.task}; give "
            "its model and processor"
        )
    texts = source.task == "text-classification"
    return source.model, source.tokenizer if texts else source.image_processor


def _defaults(processor: Any, config: Any) -> dict[str, Any]:
    """How texts become one tensor; images need nothing."""
    if not hasattr(processor, "model_max_length"):
        return {}
    longest = getattr(config, "max_position_embeddings", None) or processor.model_max_length
    longest = min(longest, processor.model_max_length)  # a tokenizer may know no limit: 1e30
    return {"padding": True, "truncation": True, "max_length": longest}
