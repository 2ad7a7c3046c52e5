"""Pairs of detectors on labeled COCO images, recorded once.

Images, labels and weights lie in the folder that the environment variable EBJR_DATA names, by
default ``../shared/data``. What the detectors said is kept in ``outcomes/``, which is not
committed: these are other people's images and models.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ebjr import Preprocess
from ebjr.backends.detectors import OnnxDetector
from ebjr.data.coco import CocoLabels, read_coco
from ebjr.evaluation.flops import count_flops
from ebjr.files import write_whole
from ebjr.tasks.detection.boxes import Detections, pack_detections, unpack_detections
from experiments.other_pairs.pairs import data_folder

HERE = Path(__file__).parent
CACHE = HERE / "outcomes"

NANODET = {
    "range": (0.0, 255.0),
    "mean": (103.53, 116.28, 123.675),
    "std": (57.375, 57.12, 58.395),
    "color": "bgr",
}


@dataclass(frozen=True)
class Source:
    """A detector's file in the folder, its layout and its preprocessing."""

    file: str
    layout: str
    preprocess: Preprocess

    def load(self) -> OnnxDetector:
        """The detector."""
        path = data_folder() / "detection" / self.file
        return OnnxDetector(path, self.layout, self.preprocess)

    def flops(self) -> float:
        """FLOPs of one image."""
        size = self.preprocess.height_width or (0, 0)
        return float(count_flops(self.load().model, (1, 3, *size)).flops)


SOURCES = {
    "deimv2_atto_320": Source("weights/deimv2_atto_320.onnx", "detr", Preprocess(size=320)),
    "deimv2_femto_416": Source("weights/deimv2_femto_416.onnx", "detr", Preprocess(size=416)),
    "nanodet_m_320": Source(
        "weights/nanodet_m_320.onnx", "nanodet", Preprocess(size=320, **NANODET)
    ),
    "nanodet_m_416": Source(
        "weights/nanodet_m_416.onnx", "nanodet", Preprocess(size=416, **NANODET)
    ),
    "yolov8n_640": Source(
        "weights-agpl/yolov8n_640_w8.onnx", "yolov8", Preprocess(size=640, resize="letterbox")
    ),
}
"""By name. The weights of yolov8n are AGPL: they stay where they are."""

PAIRS = (
    ("deimv2_atto_320", "deimv2_femto_416"),
    ("nanodet_m_320", "yolov8n_640"),
    ("deimv2_atto_320", "yolov8n_640"),
    ("deimv2_femto_416", "yolov8n_640"),
)
"""Student and teacher."""


def labels() -> CocoLabels:
    """Return the images' labels."""
    return read_coco(data_folder() / "detection" / "coco669_boxes.json")


def images(files: tuple[str, ...]) -> Iterator[np.ndarray]:
    """The decoded images, one after another."""
    with zipfile.ZipFile(data_folder() / "detection" / "coco669_images.zip") as archive:
        names = {Path(name).name: name for name in archive.namelist()}
        for file in files:
            content = io.BytesIO(archive.read(names[file]))
            yield np.asarray(Image.open(content).convert("RGB"))


def detections(name: str) -> list[Detections]:
    """Return a detector's answers on all images, recorded the first time."""
    file = CACHE / f"{name}.npz"
    if not file.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        detector = SOURCES[name].load()
        found = [one for image in images(labels().files) for one in detector([image])]
        with write_whole(file, "wb") as opened:
            np.savez_compressed(opened, **pack_detections(found, half=True))
    with np.load(file, allow_pickle=False) as archive:
        return unpack_detections(archive)
