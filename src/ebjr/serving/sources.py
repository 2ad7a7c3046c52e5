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
from ebjr.serving.served import Served, served_of

FILE = "joint.toml"
UNNAMED = "joint"  # what a file calls its model unless it says otherwise
VERSION = re.compile("[1-9][0-9]{0,17}")

Load = Callable[[JointConfig], Served]

log = logging.getLogger("ebjr.serving")


@dataclass(frozen=True)
class Found:
    """A model that a source has: its file, what a folder calls it, and its version.

    `numbered` says that the version is the name of its folder, and not just the only one.
    """

    file: Path
    called: str | None = None
    version: str = "1"
    numbered: bool = False
    wrong: str | None = None  # why it cannot be read

    @property
    def key(self) -> Any:
        """What it is known by when it is looked for again."""
        return self.file if self.called is None else (self.called, self.version)

    def read(self) -> JointConfig:
        """What the file says; ValueError where the folder says otherwise, or as `wrong` has it."""
        if self.wrong is not None:
            raise ValueError(self.wrong)
        config = JointConfig.read(self.file)
        if self.called is None or config.name == self.called:
            return config
        if config.name == UNNAMED:
            return replace(config, name=self.called)
        raise ValueError(
            f"{self.file} calls its model {config.name!r}, and its folder is {self.called!r}: call "
            "both the same, or leave the name out of the file"
        )


class Files:
    """Models of one ``joint.toml`` each; `load` makes what is served of what a file says."""

    def __init__(self, *paths: str | os.PathLike[str], load: Load = served_of) -> None:
        self._found, self.load = [Found(Path(path)) for path in paths], load
        if twice := [path for path in paths if paths.count(path) > 1]:
            raise ValueError(f"{twice[0]} is given twice: a model is served once")

    @property
    def many(self) -> bool:
        """Whether there may be several models."""
        return len(self._found) > 1

    @property
    def names(self) -> str:
        """What the models are called, for people."""
        return ", ".join(found.read().name for found in self._found)

    def find(self) -> Sequence[Found]:
        """All of them."""
        return self._found

    def find_one(self, name: str) -> Sequence[Found]:
        """None but those that are served already: only a folder brings new ones."""
        raise UnknownModel(f"there is no model {name!r:.60} here, and no folder to load it from")


class Folder:
    """A model repository: a folder with one for each model, named as the model is.

    That holds a ``joint.toml``, or a folder for each version, a number, with one in it. Folders
    without any are no models, and what links lead out of the repository to is none of it.
    """

    many = True

    @property
    def names(self) -> str:
        """What the models are called, for people."""
        return f"the models in {self._path}"

    def __init__(self, path: str | os.PathLike[str], load: Load = served_of) -> None:
        self._path, self.load = Path(path).resolve(), load
        if not self._path.is_dir():
            raise FileNotFoundError(f"there is no folder {path}")
        if not self.find():
            raise FileNotFoundError(
                f"no folder in {path} has a {FILE}: a model repository has one for each model, as "
                f"in {path}/NAME/{FILE}"
            )

    def find(self) -> Sequence[Found]:
        """All models that are there now, by name and version."""
        found: list[Found] = []
        for name in sorted(each.name for each in self._path.iterdir()):
            own = [] if name.startswith(".") else [*self._of(name)]
            if own and (wrong := wrong_name(name)) is not None:
                log.error("the folder %r in %s is not served: %s", name, self._path, wrong)
            else:
                found += own
        return found

    def find_one(self, name: str) -> Sequence[Found]:
        """The versions of one model; UnknownModel where there is none."""
        if name and (wrong := wrong_name(name)) is not None:
            raise UnknownModel(wrong)
        found = [] if not name or name.startswith(".") else [*self._of(name)]
        if not found:
            raise UnknownModel(
                f"there is no model {name!r:.60} in the repository: a model's name is that of a "
                f"folder in it, which has a {FILE}"
            )
        if found[0].wrong is not None:
            raise UnknownModel(found[0].wrong)
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
            for version in sorted({"1", *versions}, key=int):  # what serves one of them stays
                yield Found(files[0], name, version, version in versions, wrong)
            return
        for file in files or [own / version / FILE for version in versions]:
            wrong = None
            if not file.resolve().is_relative_to(self._path):
                wrong = f"{file} leads out of the repository: move the file into it"
            version = file.parent.name if versions else "1"
            yield Found(file, name, version, bool(versions), wrong)


def source_of(paths: Sequence[Path], load: Load = served_of) -> Files | Folder:
    """What some paths name: ``joint.toml`` files, or a model repository."""
    folders = [path for path in paths if path.is_dir()]
    if not folders:
        return Files(*paths, load=load)
    if len(paths) > 1:
        raise ValueError(f"{folders[0]} is a folder of models: give it alone, or files of models")
    if (folders[0] / FILE).is_file():
        return Files(folders[0] / FILE, load=load)
    return Folder(folders[0], load=load)


def wrong_name(name: Any) -> str | None:
    """Why no model can be called so, and be asked by that name in any protocol; None if it can."""
    if not isinstance(name, str) or not name:
        return f"a model's name is a word, not {name!r:.60}"
    if name != name.strip() or not name.isprintable() or name in (".", "..") or {*"/\\"} & {*name}:
        return (
            f"no model can be called {name!r:.60}: a name has no slash, no space at its ends, and "
            "nothing that is not printed"
        )
    return None


def _is_version(file: Path) -> bool:
    return VERSION.fullmatch(file.parent.name) is not None and file.is_file()
