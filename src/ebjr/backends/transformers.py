"""TransformersModel: a Hugging Face classifier with its tokenizer or image processor."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebjr.backends.chunks import run_in_chunks
from ebjr.backends.pytorch import TorchModel
from ebjr.errors import ModelError, needs, one_line
from ebjr.model import ModelFacts

PIPELINES = ("text-classification", "image-classification")


class TransformersModel:
    """A ``transformers`` classifier of texts or images: a batch of them in, logits out.

    Nothing is downloaded here: load the model as its own library does, from a folder or a hub.

    - `source`: A pipeline (``text-classification``, ``image-classification``), or the model of one,
      such as a ``BertForSequenceClassification``. With one label it is a regressor; with the
      ``problem_type`` ``"multi_label_classification"`` it is for the task multilabel.
    - `processor`: The model's tokenizer or image processor; None is the pipeline's. It makes
      tensors of the inputs of this model: student and teacher may have different ones.
    - `processing`: What to tell the processor beside that. Texts are padded, and cut to what the
      model can take, or as a pipeline was told to cut them, unless this says otherwise:
      ``{"max_length": 128}``.
    - `**options`: ``device``, ``dtype``, ``compile``, ``batch_size`` and ``name``, as of a
      `TorchModel`.
    """

    def __init__(
        self,
        source: Any,
        processor: Any = None,
        *,
        processing: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        model, own, told = _taken_apart(source)
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
        cuts = {key: told[key] for key in _CUTS if key in told}
        self.processing = {**_defaults(self.processor, model), **cuts, **(processing or {})}
        self._several = told.get("function_to_apply") == "sigmoid" and model.config.num_labels > 1
        names = [str(label) for _, label in sorted(model.config.id2label.items())]
        unnamed = names == [f"LABEL_{place}" for place in range(len(names))]
        self.labels = None if unnamed else tuple(names)
        self._columns = len(names)

    @property
    def facts(self) -> ModelFacts:
        """All that the model says of itself."""
        inside, texts = self._torch.facts, hasattr(self.processor, "model_max_length")
        several = self._several or inside.multilabel
        inside = replace(inside, input_dtype=np.dtype(object if texts else np.uint8))
        return replace(inside, labels=self.labels, multilabel=several, probabilities=False)

    def __call__(self, batch: Any, /) -> NDArray[Any]:
        """Logits, (n, classes), NumPy, of n texts (a list) or decoded images.

        Images are a list of uint8 (height, width, 3), or one array of them.
        """
        if not len(batch):
            return np.zeros((0, self._columns), np.float32)
        return run_in_chunks(self._answer, batch, self.batch_size, None, np.concatenate)[0]

    def _answer(self, batch: Any) -> list[NDArray[Any]]:
        return [self._torch.answer_tensors(self._process(list(batch)))]

    def _process(self, inputs: list[Any]) -> dict[str, Any]:
        try:
            return dict(self.processor(inputs, return_tensors="pt", **self.processing))
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise ModelError(
                f"the processor of {self.name} failed on {len(inputs)} inputs, the first of type "
                f"{type(inputs[0]).__name__}: {one_line(error)}"
            ) from error

    def __repr__(self) -> str:
        return f"TransformersModel({self.name})"


def _taken_apart(source: Any) -> tuple[Any, Any, dict[str, Any]]:
    """A model, and of a pipeline its processor, and what it was told to do."""
    with needs("transformers", "running a transformers model"):
        from transformers import Pipeline, PreTrainedModel
    if isinstance(source, PreTrainedModel):
        return source, None, {}
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
    told = {**source._preprocess_params, **source._postprocess_params}
    return source.model, source.tokenizer if texts else source.image_processor, told


_CUTS = ("max_length", "truncation", "padding")
_NO_LIMIT = 10**9  # a tokenizer without one says 1e30


def _defaults(processor: Any, model: Any) -> dict[str, Any]:
    """How texts become one tensor; images need nothing."""
    if not hasattr(processor, "model_max_length"):
        return {}
    longest = min(_positions(model), processor.model_max_length)
    if longest >= _NO_LIMIT:
        return {"padding": True}
    return {"padding": True, "truncation": True, "max_length": longest}


def _positions(model: Any) -> int:
    """The most tokens that a model has positions for; RoBERTa's begin after its padding's."""
    longest = getattr(model.config, "max_position_embeddings", None) or 0
    longest = longest if longest > 0 else _NO_LIMIT  # XLNet says -1
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            longest = min(longest, module.num_embeddings - padding - 1)
    return int(longest)
