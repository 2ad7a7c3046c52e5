"""Folders of images: which files are examples, of which class, and which are left out."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from ebjr.data.examples import Example, ImageData, OnUnreadable, image_suffixes, label_place
from ebjr.labels import some

_SYSTEM = {"$RECYCLE.BIN", "@eaDir", "System Volume Information", "__MACOSX", "__pycache__"}
_SYSTEM |= {"lost+found"}
_UNSEEN = {".ds_store", "desktop.ini", "thumbs.db"}  # systems put these anywhere: not reported
_SPLITS = {"dev", "eval", "test", "testing", "train", "training", "val", "valid", "validation"}


def open_folder(
    root: Path, on_unreadable: OnUnreadable, classes: tuple[str, ...] | None
) -> ImageData:
    """Open a folder of class folders, labeled by their sorted names, or of images alone."""
    walk = _Walk(root)
    found = {folder: sorted(walk.images(folder)) for folder in walk.folders}
    full = [folder for folder in found if found[folder]]
    loose = [file for file in walk.files if walk.takes(file, None, told=not full)]
    if full and loose:
        raise ValueError(
            f"{root} has {len(loose)} images beside its class folders (the first is "
            f"{loose[0].name}); move them into a class folder, or away"
        )
    if not full and not loose:
        others = f", only {some([*walk.left_out])}" if walk.left_out else ""
        raise ValueError(f"{root} has no images, neither itself nor in class folders{others}")
    names = classes
    files: list[tuple[Path, int | None]] = [(file, None) for file in loose]
    if full:
        _check_level(root, {folder: found[folder] for folder in full}, classes or ())
        names = classes or tuple(folder.name for folder in found)
        places = {name: place for place, name in enumerate(names)}
        for folder in full:
            place = label_place(folder.name, places, f"the folder {folder.name} in {root}")
            files += [(file, place) for file in found[folder]]
        if empty := [folder.name for folder in found if not found[folder]]:
            walk.left_out[f"class folders without an image, {some(empty)}"] = len(empty)
    data = image_data(root, files, on_unreadable, names)
    data.left_out = dict(walk.left_out)
    return data


def image_data(
    root: Path,
    files: Sequence[tuple[Path, int | None]],
    on_unreadable: OnUnreadable,
    classes: tuple[str, ...] | None,
) -> ImageData:
    """Make data of image files with their labels, named by their path in `root`."""
    base = root if root.is_dir() else root.parent

    def examples(rows: Sequence[int] | None) -> Iterator[Example]:
        for file, target in files if rows is None else (files[row] for row in rows):
            yield Example(file.relative_to(base).as_posix(), file.read_bytes, target, file)

    has_targets = files[0][1] is not None
    return ImageData(root, classes, has_targets, examples, len(files), on_unreadable)


def is_system(name: str) -> bool:
    """Tell whether a folder of this name is hidden or a system's own."""
    return name.startswith(".") or name in _SYSTEM


class _Walk:
    """The `folders` and `files` in a root; each real folder is entered once."""

    def __init__(self, root: Path) -> None:
        self.root, self.left_out = root, Counter[str]()
        real = root.resolve()
        # a link to a folder above the root would lead to all of it again
        self._class_of: dict[object, str | None] = dict.fromkeys((real, *real.parents))
        entries = sorted(root.iterdir())
        self.files = [entry for entry in entries if not entry.is_dir()]
        self.folders = [
            entry for entry in entries if entry.is_dir() and self._enters(entry, entry.name)
        ]

    def images(self, folder: Path) -> Iterator[Path]:
        """Yield the images of a class folder, at any depth."""
        closed = ["folders that cannot be opened"]
        found = os.walk(folder, onerror=lambda _: self.left_out.update(closed), followlinks=True)
        for place, inner, names in found:
            inner[:] = sorted(n for n in inner if self._enters(Path(place, n), folder.name))
            files = (Path(place, name) for name in sorted(names))  # of two links the first counts
            yield from (file for file in files if self.takes(file, folder.name))

    def takes(self, file: Path, of: str | None, told: bool = True) -> bool:
        """Tell whether a file is an example; count others, by suffix only if `told`."""
        name, suffix, hidden = file.name, file.suffix.lower(), file.name.startswith(".")
        image = suffix in image_suffixes()
        if image and hidden:
            self.left_out["hidden image files"] += 1
        elif not image and told and not hidden and name.lower() not in _UNSEEN:
            self.left_out[f"{suffix} files" if suffix else "files without a suffix"] += 1
        if not image or hidden or not os.access(file, os.F_OK):  # a broken link is unreadable later
            return image and not hidden
        if not file.is_file():
            self.left_out["pipes, sockets and devices"] += 1
            return False
        about = file.stat()
        return self._first((about.st_dev, about.st_ino), file, of, "image files")

    def _enters(self, folder: Path, of: str) -> bool:
        if is_system(folder.name):
            self.left_out["hidden or system folders"] += 1
            return False
        return self._first(folder.resolve(), folder, of, "folders")

    def _first(self, key: object, where: Path, of: str | None, what: str) -> bool:
        """Tell whether `key` is new; a ValueError if it belongs to another class as well."""
        if key not in self._class_of:
            self._class_of[key] = of
            return True
        other = self._class_of[key]
        if other not in (None, of):
            raise ValueError(
                f"the class folders {other} and {of} in {self.root} both hold {where}: an image "
                "has one class, so remove one of the links"
            )
        self.left_out[f"{what} met again through links"] += 1
        return False


def _check_level(root: Path, found: dict[Path, list[Path]], classes: tuple[str, ...]) -> None:
    """Refuse a folder of splits (train, val, ...), which would become the classes."""
    inside = {folder: {image.parent for image in images} for folder, images in found.items()}
    bare = [each for each in found if each.name not in classes and each not in inside[each]]
    inner = {each: {place.relative_to(each).parts[0] for place in inside[each]} for each in bare}
    held = Counter(name for names in inner.values() for name in names)
    above = [each for each in bare if each.name.lower() in _SPLITS]
    if not above and len(found) == 1:
        above = [each for each in bare if len(inside[each]) > 1]
    elif len(above) < 2 and len(bare) == len(found):  # splits by other names
        above = [each for each in bare if sum(held[name] > 1 for name in inner[each]) > 1] or above
    if len(above) > 1 or len(above) == len(found):
        names = [folder.name for folder in above]
        one = max(
            names, key=lambda name: (name.lower().startswith("val"), name.lower()[:2] != "tr")
        )
        raise ValueError(
            f"the class folders in {root} are one level down, in {some(names)}: give one of these, "
            f"like --data {root / one}, or if they are the classes, their names with --classes "
            "(classes=)"
        )
