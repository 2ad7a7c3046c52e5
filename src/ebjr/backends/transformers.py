"""TransformersModel: a Hugging Face classifier with its tokenizer or image processor."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebjr.backends.chunks import run_in_chunks
from ebjr.backends.pytorch import TorchModel
from ebjr.errors import ModelError, check_choice, needs, note, one_line
from ebjr.model import ModelFacts

PIPELINES = ("text-classification", "image-classification")


class TransformersModel:
    """A ``transformers`` classifier of texts or images: a batch of them in, logits out.

    It downloads nothing: load the model with ``transformers``, from a folder or a hub.

    - `source`: A pipeline (``text-classification``, ``image-classification``), or a model like
      ``BertForSequenceClassification``. With one label it is a regressor; with the
      ``problem_type`` ``"multi_label_classification"`` it is for the task multilabel.
    - `processor`: The model's tokenizer or image processor; None takes the pipeline's. Student and
      teacher may have different ones.
    - `processing`: More arguments for the processor, like ``{"max_length": 128}``. By default texts
      are padded, and truncated as the pipeline says or to the model's limit, with one note.
    - `windows`: Read a longer text in windows, and return the ``"mean"`` of their logits, or for
      signs that may be anywhere in the text the ``"max"`` for each class. In a pair the longer text
      is split, and each window goes with the other text.
    - `stride`: How many tokens neighboring windows share; None is a quarter of a window.
    - `columns`: The names of a row's texts, by which a table's columns are chosen.
    - `**options`: ``device``, ``dtype``, ``compile``, ``batch_size`` and ``name``, as for a
      `TorchModel`.
    """

    def __init__(
        self,
        source: Any,
        processor: Any = None,
        *,
        processing: Mapping[str, Any] | None = None,
        windows: str | None = None,
        stride: int | None = None,
        columns: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        model, own, told = _taken_apart(source)
        self.processor = own if processor is None else processor
        if not callable(self.processor):
            raise TypeError(
                f"{type(model).__name__} needs its tokenizer or image processor as processor=, not "
                f"{type(self.processor).__name__}"
            )
        self._torch = TorchModel(model, **options)
        self.module = self._torch.module
        self.name = self._torch.name
        self.batch_size = self._torch.batch_size
        cuts = {key: told[key] for key in _CUTS if key in told}
        self.texts = hasattr(self.processor, "model_max_length")
        own_cuts = {**cuts, **(processing or {})}
        self.processing = {**(_defaults(self.processor, model) if self.texts else {}), **own_cuts}
        self.windows = None if windows is None else self._checked_windows(windows, stride)
        # truncation that nobody asked for is noted once
        self._silent = windows is not None or not {"max_length", "truncation"}.isdisjoint(own_cuts)
        self.columns = None if columns is None else tuple(columns)
        if self.columns is not None and not (self.texts and len(self.columns) in (1, 2)):
            raise ValueError(f"columns must name one or two texts, not {columns!r}")
        self._several = told.get("function_to_apply") == "sigmoid" and model.config.num_labels > 1
        names = [str(label) for _, label in sorted(model.config.id2label.items())]
        unnamed = names == [f"LABEL_{place}" for place in range(len(names))]
        self.labels = None if unnamed else tuple(names)
        self._classes = len(names)

    @property
    def facts(self) -> ModelFacts:
        """The torch model's facts, with labels, columns and input."""
        inside, several = self._torch.facts, self._several or self._torch.facts.multilabel
        dtype = np.dtype(object if self.texts else np.uint8)
        shape = None if self.columns is None else (None, len(self.columns))[: len(self.columns)]
        inside = replace(inside, input_dtype=dtype, input_shape=shape, columns=self.columns)
        return replace(inside, labels=self.labels, multilabel=several, probabilities=False)

    def __call__(self, batch: Any, /) -> NDArray[Any]:
        """Return logits (n, classes), NumPy, for n texts, n pairs of texts, or n decoded images.

        Texts are a list, and pairs an array (n, 2). Images are a list of uint8 (height, width, 3),
        or one array of them.
        """
        if not len(batch):
            return np.zeros((0, self._classes), np.float32)
        answer = self._answer if self.windows is None else self._answer_windows
        return run_in_chunks(answer, batch, self.batch_size, None, np.concatenate)[0]

    def _answer(self, batch: Any) -> list[NDArray[Any]]:
        parts = self._parts(batch)
        tensors = self._process(parts)
        if self.texts and not self._silent:
            self._tell_of_cuts(parts, tensors["input_ids"].shape[1])
        return [self._torch.answer_tensors(tensors)]

    def _answer_windows(self, batch: Any) -> list[NDArray[Any]]:
        """Answer texts of any length, in windows."""
        parts = self._parts(batch)
        second = self._cuts_second(parts)
        places, answers = [], []
        for cut, rows in (("only_first", ~second), ("only_second", second)):
            if len(chosen := np.flatnonzero(rows)):
                some = [[part[row] for row in chosen] for part in parts]
                tensors = self._process(some, truncation=cut, return_overflowing_tokens=True)
                places.append(chosen)
                answers.append(self._joined(tensors))
        return [np.concatenate(answers)[np.argsort(np.concatenate(places))]]

    def _joined(self, tensors: dict[str, Any]) -> NDArray[Any]:
        """Run the windows of n texts, a batch at a time, and pool each text's logits."""
        of_text = tensors.pop("overflow_to_sample_mapping").numpy()
        starts = np.flatnonzero(np.diff(of_text, prepend=-1))
        size = self.batch_size or max(len(starts), _WINDOWS_AT_ONCE)
        batches = (
            {name: tensor[first : first + size] for name, tensor in tensors.items()}
            for first in range(0, len(of_text), size)
        )
        logits = np.concatenate([self._torch.answer_tensors(batch) for batch in batches])
        if self.windows == "max":
            return np.maximum.reduceat(logits, starts)
        return np.add.reduceat(logits, starts) / np.bincount(of_text)[:, None]

    def _parts(self, batch: Any) -> list[list[Any]]:
        """Return the processor's arguments: the inputs, or first and second texts of pairs."""
        if isinstance(batch, list) and isinstance(batch[0], list | tuple):
            batch = np.array(batch, object)
        if not self.texts or not isinstance(batch, np.ndarray) or batch.ndim == 1:
            return [list(batch)]
        if batch.ndim > 2 or batch.shape[1] > 2:
            raise ModelError(
                f"{self.name} reads one text or a pair of texts in each row, but was given rows of "
                f"{batch.shape[1]} columns: choose them with --input-columns (input_columns=)"
            )
        return batch.T.tolist()

    def _process(self, parts: list[list[Any]], **more: Any) -> dict[str, Any]:
        try:
            with _TOKENIZING if self.texts else nullcontext():
                found = self.processor(*parts, return_tensors="pt", **{**self.processing, **more})
            return dict(found)
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise ModelError(
                f"the processor of {self.name} failed on {len(parts[0])} inputs, the first of type "
                f"{type(parts[0][0]).__name__}: {one_line(error)}"
            ) from error

    def _lengths(self, *parts: list[str], special: bool = True) -> NDArray[np.int64]:
        """Count the tokens of whole texts, or pairs, (n,)."""
        with _TOKENIZING:
            ids = self.processor(*parts, add_special_tokens=special, verbose=False)["input_ids"]
        return np.array([len(row) for row in ids], np.int64)

    def _tell_of_cuts(self, parts: list[list[str]], width: int) -> None:
        longest = self.processing.get("max_length")
        if width == longest and (self._lengths(*parts) > longest).any():
            self._silent = True
            note(
                f"{self.name} reads {longest} tokens, and longer texts are cut there: "
                "load_model(..., windows='mean') reads whole texts, in windows; "
                "processing={'max_length': ...} cuts without this note"
            )

    def _checked_windows(self, windows: str, stride: int | None) -> str:
        check_choice("windows", windows, ("mean", "max"))
        if not self.texts or not getattr(self.processor, "is_fast", False):
            raise ValueError(
                f"windows need a fast tokenizer, which {type(self.processor).__name__} is not"
            )
        longest = self.processing.get("max_length")
        if longest is None:
            raise ValueError(
                "windows need a length, which neither the model nor the tokenizer has: give it, "
                "like processing={'max_length': 512}"
            )
        room = longest - self.processor.num_special_tokens_to_add(pair=False)
        stride = longest // 4 if stride is None else stride
        if not 0 <= stride < room:
            raise ValueError(f"stride must lie in 0..{room - 1} for these windows, not {stride}")
        self.processing["stride"] = stride
        return windows

    def _cuts_second(self, parts: list[list[str]]) -> NDArray[np.bool_]:
        """Tell for each row whether the second text is the longer, and so is split, (n,)."""
        if len(parts) == 1:
            return np.zeros(len(parts[0]), bool)
        lengths = np.stack([self._lengths(part, special=False) for part in parts])
        longest, stride = self.processing["max_length"], self.processing["stride"]
        room = longest - self.processor.num_special_tokens_to_add(pair=True) - lengths.min(axis=0)
        if len(tight := np.flatnonzero((lengths.max(axis=0) > room) & (room <= stride))):
            raise ModelError(
                f"{self.name} reads {longest} tokens, but the shorter text of a pair has "
                f"{lengths.min(axis=0)[tight[0]]}, which leaves no room for windows of the other "
                f"that share {stride}: shorten it, or lower stride="
            )
        return lengths[1] > lengths[0]

    def __repr__(self) -> str:
        return f"TransformersModel({self.name})"


def _taken_apart(source: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Return the model, and a pipeline's processor and parameters."""
    with needs("transformers", "running a transformers model"):
        from transformers import Pipeline, PreTrainedModel
    if isinstance(source, PreTrainedModel):
        return source, None, {}
    if not isinstance(source, Pipeline):
        raise TypeError(
            f"source must be a transformers model or pipeline, not a {type(source).__name__}"
        )
    if source.task not in PIPELINES:
        raise ModelError(
            f"a pipeline must be one of {', '.join(PIPELINES)}, but is for {source.task}; give "
            "its model and processor"
        )
    texts = source.task == "text-classification"
    told = {**source._preprocess_params, **source._postprocess_params}
    return source.model, source.tokenizer if texts else source.image_processor, told


_TOKENIZING = Lock()
"""A fast tokenizer stores truncation and padding in itself, and several threads may share it."""

_WINDOWS_AT_ONCE = 16
_CUTS = ("max_length", "truncation", "padding")
_NO_LIMIT = 10**9  # a tokenizer without one says 1e30


def _defaults(processor: Any, model: Any) -> dict[str, Any]:
    """Return the default arguments of a tokenizer: padding, and truncation if there is a limit."""
    longest = min(_positions(model), processor.model_max_length)
    if longest >= _NO_LIMIT:
        return {"padding": True}
    return {"padding": True, "truncation": True, "max_length": longest}


def _positions(model: Any) -> int:
    """Return the most tokens that a model has positions for; RoBERTa's start after the padding."""
    longest = getattr(model.config, "max_position_embeddings", None) or 0
    longest = longest if longest > 0 else _NO_LIMIT  # XLNet says -1
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            longest = min(longest, module.num_embeddings - padding - 1)
    return int(longest)
