"""COCO's json: the images, where they are, and their boxes."""

import json
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import Any

import numpy as np

from ebjr.data.examples import Example, ImageData, OnUnreadable, label_place
from ebjr.data.folders import is_system
from ebjr.files import read_text
from ebjr.tasks.detection.boxes import GroundTruth

Id = int | str
Found = tuple[Path, Callable[[], bytes]]


@dataclass(frozen=True, eq=False)
class CocoLabels:
    """Labeled images, in the order of their ids."""

    files: tuple[str, ...]
    sizes: tuple[tuple[int, int] | None, ...]  # (height, width), if the file has it
    truth: tuple[GroundTruth, ...]  # labels are indices into `classes`
    classes: tuple[str, ...]  # the names, in the order of their ids in the file
    class_ids: tuple[Id, ...]
    images: tuple[Mapping[str, Any], ...]  # each image's whole entry in the file

    def __len__(self) -> int:
        return len(self.files)


def read_coco(path: str | os.PathLike[str]) -> CocoLabels:
    """Read a file in COCO's "instances" format; a ValueError names what is wrong in it."""
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"label file {path} does not exist; check the path") from None
    try:
        return _labels(json.loads(text, object_pairs_hook=_object))
    except KeyError as error:
        raise ValueError(
            f"{path} must be in COCO's instances format, but {error.args[0]} is missing"
        ) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object; a ValueError if it has a key twice, where Python keeps the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        _once((key for key, _ in pairs), "in an object, the key")
    return found


def _labels(content: Mapping[str, Any]) -> CocoLabels:
    if not isinstance(content, Mapping):
        raise ValueError("COCO's instances format is an object with images, not a list")
    given = {key: value for key, value in content.items() if value is not None}
    content = {"categories": (), "annotations": ()} | given
    images, categories = (_by_id(content[what], what) for what in ("images", "categories"))
    _by_id([each for each in content["annotations"] if "id" in each], "annotations")
    names = _once((str(each["name"]) for each in categories.values()), "the category")
    files = _once((normpath(image["file_name"]) for image in images.values()), "the image file")
    sides = [(image.get("height"), image.get("width")) for image in images.values()]
    class_of = {id: number for number, id in enumerate(categories)}
    by_image: dict[Id, list[tuple[list[float], int, bool]]] = {id: [] for id in images}
    for annotation in content["annotations"]:
        name = f"annotation {annotation.get('id', '?')}"
        image = _id(annotation["image_id"], f"the image_id of {name}")
        category = _id(annotation["category_id"], f"the category_id of {name}")
        if image not in by_image:
            raise ValueError(f"{name} belongs to image {image}, which images does not list")
        if category not in class_of:
            known = list(class_of) or ["none"]
            raise ValueError(
                f"{name} has the category {category}, which is not among the categories "
                f"{known[0]}..{known[-1]}"
            )
        crowd = _flag(annotation.get("iscrowd", 0), name)
        by_image[image].append((_box(annotation["bbox"], name), class_of[category], crowd))
    return CocoLabels(
        files=files,
        sizes=tuple((int(h), int(w)) if h and w else None for h, w in sides),
        truth=tuple(
            GroundTruth(*(np.array([row[part] for row in rows]) for part in range(3)))
            for rows in by_image.values()
        ),
        classes=names,
        class_ids=tuple(categories),
        images=tuple(images.values()),
    )


def _by_id(entries: Sequence[Mapping[str, Any]], what: str) -> dict[Id, Mapping[str, Any]]:
    ids = (_id(entry["id"], f"each id of {what}") for entry in entries)
    pairs = zip(_once(ids, f"of {what}, the id"), entries, strict=True)
    return dict(sorted(pairs, key=lambda pair: (isinstance(pair[0], str), pair[0])))


def _id(value: Any, what: str) -> Id:
    """Normalize an id: 7, 7.0 and "7" are the same; other words are ids too."""
    if isinstance(value, str):
        return int(value) if value.strip().isdecimal() else value
    if isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0:
        return int(value)
    raise ValueError(f"{what} must be a whole number or a word, not {value!r}")


def _once(values: Iterable[Any], what: str) -> tuple[Any, ...]:
    for value, count in Counter(found := tuple(values)).items():
        if count > 1:
            raise ValueError(f"{what} {value!r} must occur once, but occurs {count} times")
    return found


def _flag(value: Any, name: str) -> bool:
    """Read a flag: "0", 0, false or "false", or their opposites."""
    said = str(value).strip().lower()
    if said not in ("0", "1", "false", "true", "0.0", "1.0"):
        raise ValueError(f"{name} must have an iscrowd of 0 or 1, but has {value!r}")
    return said in ("1", "true", "1.0")


def _box(box: Any, name: str) -> list[float]:
    values = np.asarray(box, np.float64)
    if values.shape != (4,) or not np.isfinite(values).all() or (values[2:] < 0).any():
        raise ValueError(
            f"{name} must have a box of x, y, width and height, finite and with sides of at "
            f"least 0, but has {box}"
        )
    x, y, width, height = values.tolist()
    return [x, y, x + width, y + height]


def open_coco(
    place: Path,
    images: str | os.PathLike[str] | None,
    on_unreadable: OnUnreadable,
    classes: tuple[str, ...] | None,
) -> ImageData:
    """Open labels with their images, in a folder, in a ``.zip`` or beside the labels."""
    labels = read_coco(place)
    if not len(labels):
        raise ValueError(f"{place} lists no images")
    labeled = any(map(len, labels.truth))  # a test set comes without annotations
    truth = labels.truth if classes is None else _mapped(place, labels, classes)
    find = _image_finder(place, labels.files, None if images is None else Path(images))

    def examples(rows: Sequence[int] | None) -> Iterator[Example]:
        for row in range(len(labels)) if rows is None else rows:
            name = labels.files[row]
            file, read = find(name)
            yield Example(name, read, truth[row], file, labels.sizes[row])

    ids = dict(zip(labels.classes, labels.class_ids, strict=True))
    names = classes or labels.classes
    numbers = tuple(id for id in map(ids.get, names) if isinstance(id, int))
    data = ImageData(place, names or None, labeled, examples, len(labels), on_unreadable)
    data.class_ids = numbers if len(numbers) == len(names) else None
    return data


def _mapped(place: Path, labels: CocoLabels, classes: tuple[str, ...]) -> list[GroundTruth]:
    new = np.zeros(len(labels.classes), np.int64)
    for label in sorted({label for real in labels.truth for label in real.labels.tolist()}):
        name = labels.classes[label]
        new[label] = label_place(name, classes, f"{place} has boxes of {name}, which")
    return [GroundTruth(real.boxes, new[real.labels], real.crowd) for real in labels.truth]


def _image_finder(place: Path, files: Sequence[str], images: Path | None) -> Callable[[str], Found]:
    """Return a function from an image's name to its file and a reader of its bytes."""
    if images is not None and images.suffix.lower() == ".zip" and images.is_file():
        inside = members(images, files)
        if not inside:
            raise ValueError(f"{images} has none of the {len(files)} images that {place} names")
        return lambda file: (images, lambda: _archive(images).read(inside.get(file, file)))
    split = place.stem.removeprefix("instances_")
    beside = [place.parent, place.parent / "images", place.parent.parent / split]
    places = [*beside, place.parent.parent / "images"] if images is None else [images]
    for folder in places:
        if any((folder / file).is_file() for file in files):
            return lambda file: (folder / file, (folder / file).read_bytes)
    looked = ", ".join(str(folder) for folder in places)
    raise ValueError(
        f"none of the {len(files)} images that {place} names is in {looked}; give their folder or "
        ".zip with images= (--images)"
    )


def members(archive: Path, files: Sequence[str]) -> dict[str, str]:
    """Find images in a ``.zip``: by their path, their path below a folder, or a unique name."""
    called: dict[str, list[str]] = {}
    for name in dict.fromkeys(_archive(archive).namelist()):
        path = PurePosixPath(name)
        if not name.endswith("/") and not any(map(is_system, path.parts)):
            called.setdefault(path.name, []).append(name)
    tops = [f"/{PurePosixPath(name).parent}" for alike in called.values() for name in alike]
    top = os.path.commonpath(tops or ["/"])[1:]
    wanted = Counter(PurePosixPath(file).name for file in files)
    found: dict[str, str] = {}
    for file in files:
        path = PurePosixPath(file)
        alike = called.get(path.name, [])
        whole = [name for name in (str(path), str(top / path)) if name in alike]
        below = [name for name in alike if name.endswith(f"/{path}") and path.name != str(path)]
        fitting = whole[:1] or below or (alike if wanted[path.name] == 1 else [])
        if len(fitting) > 1:
            raise ValueError(
                f"the image {file} may be {fitting[0]} or {fitting[1]} in {archive}: give it the "
                "path that the labels name"
            )
        if fitting:
            found[file] = fitting[0]
    _once(found.values(), f"in {archive} the image")
    return found


@lru_cache(maxsize=4)
def _archive(path: Path) -> zipfile.ZipFile:
    """Open a .zip, once in each process."""
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} cannot be read as a .zip: it is something else, or truncated")
    return zipfile.ZipFile(path)
