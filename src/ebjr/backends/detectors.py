"""Detectors in ``.onnx`` files: decoded images in, a `Detections` for each out.

A detector's graph returns raw maps whose layout depends on its family. A decoder in
`ebjr.backends.layouts` turns them into boxes in pixels of the model's input. `Preprocess`, which
made that input, maps the boxes back to the image.
"""

import os
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Any, Self

import numpy as np

from ebjr.arrays import join_rows
from ebjr.backends.chunks import run_in_chunks
from ebjr.backends.layouts import LAYOUTS, Decoded, Layout, Outputs, Size, check_values, find_layout
from ebjr.backends.onnx import OnnxModel
from ebjr.data.preprocess import Image, Preprocess, facts_of_images, infer_preprocess
from ebjr.errors import ModelError, check_at_least, check_choice
from ebjr.labels import some
from ebjr.model import ModelFacts
from ebjr.tasks.detection.boxes import Detections
from ebjr.tasks.detection.first import may_be_numbers

CANDIDATES = 3000  # most pairs of box and class of an image in non-maximum suppression


class OnnxDetector:
    """A detector in an ``.onnx`` file: decoded images in, a list of `Detections` out.

    A graph with a fixed batch of one runs one image at a time (`loops`), which makes no batch
    cheaper.

    - `layout`: The layout of its outputs: a name in `ebjr.backends.layouts.LAYOUTS`, a `Layout` of
      your own, or ``"auto"``, the only one that fits the outputs for a gray image.
    - `preprocess`: How images become its input; by default squashed to its size, RGB from 0 to 1.
    - `classes`: The number of classes. None takes the names in the file (ultralytics writes them),
      or 80.
    - `label_ids`: The model's own number (label or column) of each reported class. None reports
      all, numbered from 1 for torchvision and from 0 for others.
    - `class_ids`: The data's own class numbers, if `classes` is the number of the data's classes.
      They become `label_ids` if no layout fits that number.
    - `nms`: The overlap above which the worse of two boxes of a class is dropped; ``"default"`` is
      the layout's, None or ``"none"`` keeps all.
    - `above`, `limit`: A box is reported for every class with a score above `above`, at most
      `limit` an image. The defaults are COCO's.
    - `threads`, `providers`: As for an `OnnxModel`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        layout: str | Layout = "auto",
        preprocess: Preprocess | None = None,
        *,
        classes: int | None = None,
        label_ids: Sequence[int] | None = None,
        class_ids: Sequence[int] | None = None,
        nms: float | str | None = "default",
        above: float = 0.001,
        limit: int = 100,
        threads: int | None = None,
        providers: Sequence[Any] | None = None,
    ) -> None:
        if not isinstance(layout, Layout):
            check_choice("layout", layout, ("auto", *LAYOUTS))
        if not 0 <= above < 1:
            raise ValueError(f"above must lie in 0..1, under 1, not {above}")
        check_at_least(1, limit=limit, classes=classes)
        self.model = OnnxModel(path, threads=threads, providers=providers)
        self.name, self.path = self.model.name, self.model.path
        self.preprocess = preprocess or infer_preprocess(self.model.input_shape or ())
        self.names = self.model.class_names or ()
        count, source = self._count(classes, class_ids or ())
        self.classes = count
        if layout == "auto":
            ids = class_ids if class_ids and may_be_numbers(class_ids) else ()
            layout, self.classes = find_layout(self.model, self.preprocess, count, source, ids)
        self._looked_at = False
        self.layout = LAYOUTS[layout] if isinstance(layout, str) else layout
        self.label_ids = None
        if label_ids is not None or self.classes != count:
            self.label_ids = self._checked_ids(label_ids or class_ids or ())
        nms = None if nms == "none" else nms
        self.nms = self.layout.nms if nms == "default" else nms
        if self.nms is not None and not (isinstance(self.nms, float | int) and 0 <= self.nms <= 1):
            raise ValueError(f"nms must lie in 0..1, be None or 'default', not {nms!r}")
        self.above = above
        self.limit = limit
        self.loops = self.model.fixed_batch == 1

    def _count(self, given: int | None, class_ids: Sequence[int]) -> tuple[int, str]:
        """Return the number of classes, and its source for messages."""
        named = len(self.names)
        if named and (given is None or class_ids):
            return named, "as the file names"
        if named and named != given:
            raise ModelError(
                f"{self.path} names {named} classes ({some(self.names)}), not {given}: leave "
                "classes= out, or choose some of them with label_ids="
            )
        if given is None:
            return 80, "COCO's, since none were given"
        return given, "as the data list" if class_ids else "as given"

    @property
    def facts(self) -> ModelFacts:
        """The model's facts, with the detector's options and labels."""
        inside = facts_of_images(self.model.facts, self.preprocess)
        options: dict[str, Any] = {"layout": self.layout_name or self.layout}
        options |= {key: getattr(self, key) for key in ("classes", "above", "limit")}
        if self.nms != self.layout.nms:
            options["nms"] = "none" if self.nms is None else self.nms
        if self.label_ids is not None:
            options["label_ids"] = list(self.label_ids)
        own = dict(zip(self._own_numbers, self.names, strict=False))
        labels = tuple(own[number] for number in self.numbers) if own else None
        options = {**inside.options, **options}
        return replace(inside, input_shape=(None, None, None, 3), options=options, labels=labels)

    @property
    def layout_name(self) -> str | None:
        """The name of its layout; None for a `Layout` of your own."""
        return next((name for name, known in LAYOUTS.items() if known is self.layout), None)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The model's own number of each reported class."""
        return self.label_ids or tuple(self._own_numbers)

    @property
    def _own_numbers(self) -> range:
        return range(self.layout.first, self.layout.first + self.classes)

    def numbers_of(self, names: Sequence[str]) -> tuple[int, ...] | None:
        """Return the model's own numbers of the named classes; None if its file lacks one."""
        own = dict(zip(self.names, self._own_numbers, strict=False))
        return tuple(own[name] for name in names) if {*names} <= {*own} else None

    def with_label_ids(self, label_ids: Sequence[int], exact: bool = False) -> Self:
        """Return a copy that reports these classes; `exact`: the model has none beyond them."""
        other = copy(self)
        if exact:
            other.classes = max(label_ids) + 1 - self.layout.first
        other.label_ids = other._checked_ids(label_ids)
        return other

    def _checked_ids(self, label_ids: Sequence[int]) -> tuple[int, ...]:
        ids, own = tuple(map(int, label_ids)), self._own_numbers
        if not ids or len({*ids}) < len(ids) or not {*ids} <= {*own}:
            raise ValueError(
                f"label_ids must be distinct numbers from {own[0]} to {own[-1]} for "
                f"{self.classes} classes, not {list(label_ids)}"
            )
        return ids

    def with_preprocess(self, preprocess: Preprocess) -> Self:
        """Return a copy with other preprocessing."""
        other = copy(self)
        other.preprocess = preprocess
        return other

    def __call__(self, images: Sequence[Image], /) -> list[Detections]:
        """Detect on n images, uint8 (height, width, 3): rows of a box and a class, best first."""
        if not len(images):
            return []
        fixed = self.model.fixed_batch
        return list(run_in_chunks(self._run_batch, list(images), fixed, fixed, join_rows)[0])

    def _run_batch(self, images: list[Image]) -> list[list[Detections]]:
        batch = self.preprocess(images)
        sides = batch.shape[2:] if self.preprocess.layout == "nchw" else batch.shape[1:3]
        size = (int(sides[0]), int(sides[1]))
        answers = self._decoded(self.model.answer_all(batch), size)
        if len(answers) != len(batch):
            raise ModelError(
                f"{self.name} was given {len(batch)} images but returned {len(answers)} answers; "
                "give it one image at a time"
            )
        placed = [
            self._reported(decoded, image.shape[:2], size)
            for decoded, image in zip(answers, images, strict=True)
        ]
        return [placed]

    def _decoded(self, outputs: Outputs, size: Size) -> list[Decoded]:
        """Decode the outputs for the reported classes; the first batch's values are checked."""
        answers = self.layout.decode(outputs, size, self.classes)
        if not self._looked_at:
            check_values(answers, size, self.layout)
            self._looked_at = True
        return answers if self.label_ids is None else [self._ours(one) for one in answers]

    def _ours(self, decoded: Decoded) -> Decoded:
        """Keep the classes of `label_ids`; a box with another single class gets label -1."""
        columns = np.array(self.label_ids) - self.layout.first
        places = np.full(decoded.logits.shape[1], -1)
        places[columns] = np.arange(len(columns))
        labels = None if decoded.labels is None else places[decoded.labels]
        return replace(decoded, logits=decoded.logits[:, columns], labels=labels)

    def _reported(self, decoded: Decoded, image_size: Size, size: Size) -> Detections:
        """Return boxes in pixels of the image, a row for each likely class, after suppression."""
        single = decoded.labels is not None
        ours = decoded.labels >= 0 if decoded.labels is not None else True
        rows = np.flatnonzero((decoded.sure > self.above) & ours)
        parts = {name: value[rows] for name, value in vars(decoded).items() if value is not None}
        boxes = self.preprocess.boxes_to_image(parts.pop("boxes"), size, image_size)
        found = Detections(boxes, size=image_size, **parts)
        if not single:
            found = found.expand(self.above, CANDIDATES if self.nms is not None else self.limit)
        if isinstance(self.nms, float | int):
            found = found.nms(self.nms)
        return found.top(self.limit)

    def __repr__(self) -> str:
        loops = ", one image at a time: its graph has a fixed batch of 1" if self.loops else ""
        return f"OnnxDetector({str(self.model.path)!r}{loops})"
