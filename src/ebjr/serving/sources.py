"""Where a server's models come from: ``joint.toml`` files, or a folder with one for each model."""

import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ebjr.errors import UnknownModel
from ebjr.joint_file import JointConfig
from ebjr.protocol import wrong_name
from ebjr.serving.served import Served, served_of

FILE = "joint.toml"
UNNAMED = "joint"  # the name of a model whose file gives none
VERSION = re.compile("[1-9][0-9]{0,17}")

Load = Callable[[JointConfig], Served]

log = logging.getLogger("ebjr.serving")


@dataclass(frozen=True)
class Found:
    """A model in a source: its file, its name in a folder, and its version.

    `numbered` says that the version is the name of its folder, and not a default.
    """

    file: Path
    called: str | None = None
    version: str = "1"
    numbered: bool = False
    wrong: str | None = None  # why the model cannot be served
    root: Path = Path()  # the repository, or the file's own folder

    def shown(self, text: str) -> str:
        """Return a text for clients, in which paths begin at `root`."""
        return text.replace(f"{self.root}{os.sep}", "")

    @property
    def key(self) -> Any:
        """What identifies the model when the source is read again."""
        return self.file if self.called is None else (self.called, self.version)

    def read(self) -> JointConfig:
        """Read the file; ValueError if `wrong` is set, or its name contradicts its folder's."""
        if self.wrong is not None:
            raise ValueError(self.wrong)
        config = JointConfig.read(self.file)
        if self.called is None or config.name == self.called:
            return config
        if config.name == UNNAMED:
            return replace(config, name=self.called)
        raise ValueError(
            f"{self.file} calls its model {config.name!r}, but its folder is {self.called!r}: use "
            "one name for both, or leave the name out of the file"
        )


class Files:
    """Models of one ``joint.toml`` each; `load` turns a configuration into a served model."""

    def __init__(self, *paths: str | os.PathLike[str], load: Load = served_of) -> None:
        self._found, self.load = (
            [Found(Path(path), root=Path(path).absolute().parent) for path in paths],
            load,
        )
        if twice := [path for path in paths if paths.count(path) > 1]:
            raise ValueError(f"{twice[0]} is given twice: give each joint.toml once")

    @property
    def many(self) -> bool:
        """Whether there may be several models."""
        return len(self._found) > 1

    @property
    def names(self) -> str:
        """The models' names, for people."""
        return ", ".join(found.read().name for found in self._found)

    def find(self) -> Sequence[Found]:
        """Return all models."""
        return self._found

    def find_one(self, name: str) -> Sequence[Found]:
        """Raise UnknownModel: files bring no new models."""
        raise UnknownModel(f"there is no model {name!r:.60} here, and no folder to load it from")


class Folder:
    """A model repository: a folder with one folder for each model, under the model's name.

    A model's folder holds a ``joint.toml``, or version folders, named by a number, with one each.
    Other folders are ignored, and links out of the repository are not followed.
    """

    many = True

    @property
    def names(self) -> str:
        """The models' names, for people."""
        return f"the models in {self._path}"

    def __init__(self, path: str | os.PathLike[str], load: Load = served_of) -> None:
        self._path, self.load = Path(path).resolve(), load
        if not self._path.is_dir():
            raise FileNotFoundError(f"the folder {path} does not exist")
        if not self.find():
            raise FileNotFoundError(
                f"no folder in {path} has a {FILE}: a model repository has one for each model, "
                f"such as {path}/NAME/{FILE}"
            )

    def find(self) -> Sequence[Found]:
        """Return all models in the folder now, by name and version."""
        found: list[Found] = []
        for name in sorted(each.name for each in self._path.iterdir()):
            own = [] if name.startswith(".") else [*self._of(name)]
            if own and (wrong := wrong_name(name)) is not None:
                log.error("the folder %r in %s is not served: %s", name, self._path, wrong)
            else:
                found += own
        return found

    def find_one(self, name: str) -> Sequence[Found]:
        """Return the versions of one model; UnknownModel if there is none."""
        if name and (wrong := wrong_name(name)) is not None:
            raise UnknownModel(wrong)
        found = [] if not name or name.startswith(".") else [*self._of(name)]
        if not found:
            raise UnknownModel(
                f"there is no model {name!r:.60} in the repository: it needs a folder of that name "
                f"with a {FILE}"
            )
        if found[0].wrong is not None:
            raise UnknownModel(found[0].shown(found[0].wrong))
        return found

    def _of(self, name: str) -> Iterator[Found]:
        own = self._path / name
        files = [own / FILE] if (own / FILE).is_file() else []
        versions = sorted(
            (each.parent.name for each in own.glob(f"*/{FILE}") if _is_version(each)), key=int
        )
        wrong: str | None = None
        if files and versions:
            wrong = f"{own} has both a {FILE} and versions: keep one"
            for version in sorted({"1", *versions}, key=int):  # a served version stays served
                yield Found(files[0], name, version, version in versions, wrong, self._path)
            return
        for file in files or [own / version / FILE for version in versions]:
            wrong = None
            if not file.resolve().is_relative_to(self._path):
                wrong = f"{file} leads out of the repository: move the file into it"
            version = file.parent.name if versions else "1"
            yield Found(file, name, version, bool(versions), wrong, self._path)


def source_of(paths: Sequence[Path], load: Load = served_of) -> Files | Folder:
    """Return the source that paths name: ``joint.toml`` files, or a model repository."""
    folders = [path for path in paths if path.is_dir()]
    if not folders:
        return Files(*paths, load=load)
    if len(paths) > 1:
        raise ValueError(f"{folders[0]} is a folder: give one folder of models alone, or files")
    if (folders[0] / FILE).is_file():
        return Files(folders[0] / FILE, load=load)
    return Folder(folders[0], load=load)


def _is_version(file: Path) -> bool:
    return VERSION.fullmatch(file.parent.name) is not None and file.is_file()
