"""The demo of detection: two detectors of one family on labeled COCO images, if you have these.

Images and weights may not be redistributed, so only the recorded answers are shipped.
"""

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ebjr.backends.entry import ModelEntry
from ebjr.data.coco import members, read_coco
from ebjr.data.examples import decode_image
from ebjr.data.preprocess import Preprocess
from ebjr.demo.fetch import DataUnavailable, Progress
from ebjr.demo.flow import Demo

FILES = {
    "labels": "coco669_boxes.json",
    "images": "coco669_images.zip",
    "student": "weights/deimv2_atto_320.onnx",
    "teacher": "weights/deimv2_femto_416.onnx",
}
SIZES = {"student": 320, "teacher": 416}


class Encoded(Sequence[Any]):
    """The images of a zip file, decoded when accessed."""

    def __init__(self, path: Path, files: Sequence[str]) -> None:
        self._archive = zipfile.ZipFile(path)
        inside = members(path, files)
        self._names = [inside[file] for file in files]

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        return decode_image(self._archive.read(self._names[row]))


def find(name: str) -> Path:
    """Find one of `FILES`, in the folder ``detection`` of EBJR_DATA or of ``../shared/data``."""
    folder = Path(os.environ.get("EBJR_DATA") or "../shared/data") / "detection"
    path = folder / FILES[name]
    if not path.is_file():
        raise DataUnavailable(
            f"{path} does not exist: images and detectors may not be redistributed, so only "
            "recorded answers are shipped (set EBJR_DATA to your folder of data)"
        )
    return path


def load(progress: Progress) -> tuple[Encoded, list[Any]]:
    """Return the images and their boxes."""
    labels = read_coco(find("labels"))
    return Encoded(find("images"), labels.files), list(labels.truth)


def models() -> dict[str, ModelEntry]:
    """Return both detectors, each with its own preprocessing."""
    return {
        role: ModelEntry.of_file(
            find(role), preprocess=Preprocess(size=size), options={"layout": "detr", "classes": 80}
        )
        for role, size in SIZES.items()
    }


DEMO = Demo(
    task="detection",
    title="EBJR on COCO images: DEIMv2 atto and femto",
    data="669 labeled COCO images (labels: COCO Consortium, CC BY 4.0)",
    load=load,
    models=models,
    batch_size=8,
    goal={"goal": "match-teacher", "tolerance": 0.01},
    about=lambda: {"labels": read_coco(find("labels")).classes},
    shows=True,
)
"""Both detectors work without NMS, and return distributions of their sides (eq. 13)."""
