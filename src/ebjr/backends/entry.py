"""The model entries of ``joint.toml``: file or address, hash, preprocessing, cost and options."""

import difflib
import hashlib
import logging
import os
import tomllib
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self
from weakref import WeakValueDictionary

from ebjr.backends import is_address, load_model
from ebjr.backends.onnx import external_files
from ebjr.backends.python import absolute, import_path, in_module, source_file
from ebjr.blend import as_blend
from ebjr.costs import UNITS, Cost
from ebjr.data.preprocess import Preprocess, prepared, unprepared, values_of
from ebjr.errors import ModelError, ProtocolError, TeacherUnavailable, note
from ebjr.files import check_file, read_text, sha256_of
from ebjr.joint import JointModel, router_table
from ebjr.link.far import FarTeacher, Link
from ebjr.model import Model, facts
from ebjr.outcomes import Outcomes
from ebjr.protocol import read_metadata
from ebjr.router import Router
from ebjr.scores import Score
from ebjr.tasks import as_task

log = logging.getLogger("ebjr.backends.entry")


class _Single:
    """What an entry of one model has in common with a `JointEntry`."""

    cost: Cost

    @property
    def dollars(self) -> float | None:
        """The price of a row that the user gave; None if the model knows its own."""
        return self.cost.dollars

    @property
    def parts(self) -> tuple[Any, ...]:
        """The entry itself, as its only model."""
        return (self,)

    @property
    def routers(self) -> list[dict[str, Any]]:
        """No router."""
        return []


@dataclass(frozen=True)
class ModelEntry(_Single):
    """A model file in ``joint.toml``: its path, hash and preprocessing.

    `path`, which may be an import path, is relative in ``joint.toml``. `sha256` is the hash at
    calibration of all its files (`files_of`) and of the name in a module. `preprocess` is None if
    the inputs are arrays already. `options` are for `load_model`. `weights_sha256` is the hash of
    the weights behind an import path (`weights_of`), None if it has none.
    """

    path: str
    sha256: str
    preprocess: Preprocess | None = None
    cost: Cost = field(default_factory=Cost)
    options: Mapping[str, Any] = field(default_factory=dict)
    weights_sha256: str | None = None

    @classmethod
    def of_file(cls, path: str | os.PathLike[str], **about: Any) -> Self:
        """Make the entry of a model file with its hash now."""
        check_file(source_file(path))
        return cls(absolute(path), _hash(path), **about)

    def check(self) -> None:
        """Check that its files exist (FileNotFoundError) and are unchanged (ModelError)."""
        if not source_file(self.path).is_file():
            way = ": run in the folder that holds it, or install it" if in_module(self.path) else ""
            raise FileNotFoundError(f"joint.toml names the missing model file {self.path}{way}")
        found, files = _hash(self.path), files_of(self.path)
        if found != self.sha256:
            beside = " and ".join(file.name for file in files[1:])
            raise ModelError(
                f"{self.path}{beside and f', with its weights in {beside},'} has changed since the "
                f"threshold was calibrated (sha256 {found[:12]}..., expected "
                f"{self.sha256!s:.12}...); record and calibrate again"
            )

    def load(self, *, trust: bool = False, **options: Any) -> Model:
        """Load the model, with its preprocessing, if its file passes `check`.

        Raises
        ------
        ModelError
            The path names Python code and `trust` is False, or the weights have changed.
        """
        if (named := import_path(self.path)) and not trust:
            raise ModelError(
                f"joint.toml names Python code, {self.path}: if you trust it, give --trust "
                "(trust=True) to run it"
            )
        self.check()
        given = {**self.options, **options}
        whose = repr((self.path, self.sha256, trust, sorted(given.items())))
        model: Any = _LOADED.get(whose)
        if model is None:
            try:
                model = load_model(self.path, trust=trust, **given)
            except TypeError as error:
                raise ValueError(f"{self.path}: {error}") from error
        if not named:  # code may make another model at each call
            _LOADED[whose] = model
        elif model.weights() != self.weights_sha256:
            raise ModelError(
                f"the weights of {self.path} have changed since the threshold was calibrated; "
                "record and calibrate again"
            )
        return prepared(model, self.preprocess)

    def as_table(self, folder: Path | None) -> dict[str, Any]:
        """Return the TOML table, with the path relative to `folder` unless that is None."""
        path = _relative(self.path, folder)
        seen = {} if self.weights_sha256 is None else {"weights_sha256": self.weights_sha256}
        return {"path": path, "sha256": self.sha256, **seen, **self.options, **_shared_table(self)}

    @classmethod
    def from_table(cls, table: Mapping[str, Any], folder: Path, where: str) -> Self:
        """Read a TOML table; `where` names it in errors."""
        needed = ("path", "sha256")
        check_table(table, (*needed, "weights_sha256", *_SHARED, *OPTIONS), where, needed)
        return cls(
            path=absolute(table["path"], folder),
            sha256=table["sha256"],
            weights_sha256=table.get("weights_sha256"),
            options=picked(table, OPTIONS),
            **_shared(table, where),
        )


_LOADED: WeakValueDictionary[str, Any] = WeakValueDictionary()
"""Models of files in use, shared by all entries with the same file and options."""


def files_of(path: str | os.PathLike[str]) -> list[Path]:
    """Return a model's file and the files of weights beside it."""
    file = source_file(path)
    return [file, *(external_files(file) if file.suffix.lower() == ".onnx" else ())]


def _hash(path: str | os.PathLike[str]) -> str:
    """Hash all files of a model, with the name in its module for an import path."""
    found, named = sha256_of(*files_of(path)), import_path(path)
    return hashlib.sha256(f"{found}  {named[1]}".encode()).hexdigest() if named else found


@dataclass(frozen=True)
class RemoteEntry(_Single):
    """A remote teacher in ``joint.toml``: its address, metadata and link.

    A remote model has no file to hash. It counts as unchanged if its server gives the `metadata`
    (and an EBJR server the `sha256`) of the time of calibration, and answers as a version in it.
    `cost` includes the link.
    """

    url: str
    metadata: Mapping[str, Any]
    link: Link = field(default_factory=Link)
    preprocess: Preprocess | None = None
    cost: Cost = field(default_factory=Cost)
    options: Mapping[str, Any] = field(default_factory=dict)
    sha256: str | None = None

    def check(self) -> None:
        """Do nothing: only `load` asks the server."""

    def load(self, **options: Any) -> FarTeacher:
        """Return the model, with its preprocessing, behind its link.

        If the server cannot be reached now, the policy decides about rows until it is back.
        `options` are for local models, and have no effect.

        Raises
        ------
        ModelError
            The server has another model than at calibration.
        """
        known: dict[str, Any] = {"metadata": self.metadata, "sha256": self.sha256}
        model: Any = load_model(self.url, **self.options, **known)
        met = _look_for(model)
        return FarTeacher(prepared(model, self.preprocess), self.link, met=met)

    def as_table(self, folder: Path | None) -> dict[str, Any]:
        """Return the TOML table, with paths relative to `folder` unless that is None."""
        table: dict[str, Any] = {"url": self.url, **self.options, **self.link.as_dict()}
        files = picked(table, ("queue", *CERTIFICATES))
        table |= {key: _relative(path, folder) for key, path in files.items()}
        table |= {} if self.sha256 is None else {"sha256": self.sha256}
        return {**table, **_shared_table(self), "metadata": dict(self.metadata)}

    @classmethod
    def from_table(cls, table: Mapping[str, Any], folder: Path, where: str) -> Self:
        """Read a TOML table; `where` names it in errors."""
        needed = ("url", "metadata")
        known = (*needed, "sha256", *_SHARED, *REMOTE_OPTIONS, *LINK_KEYS)
        check_table(table, known, where, needed)
        try:
            read_metadata(table["metadata"])
        except (ProtocolError, AttributeError) as error:
            raise ValueError(f"{where}.metadata is not a model's metadata: {error}") from error
        link, options = Link.from_dict(picked(table, LINK_KEYS)), picked(table, REMOTE_OPTIONS)
        files = picked(table, CERTIFICATES)
        return cls(
            url=table["url"],
            metadata=table["metadata"],
            sha256=table.get("sha256"),
            link=replace(link, queue=str((folder / link.queue).resolve())),
            options=options | {key: str((folder / path).absolute()) for key, path in files.items()},
            **_shared(table, where),
        )


def _look_for(model: Any) -> bool:
    """Check a remote model; False if it cannot be reached now."""
    try:
        model.check()
    except TeacherUnavailable as error:
        log.warning("not reached yet: %s", error)
        return False
    return True


def _chat() -> Any:
    """Import the module of chat models, which needs HTTP, only if there is one."""
    from ebjr.backends import chat

    return chat


@dataclass(frozen=True)
class ChatEntry(_Single):
    """A language model in ``joint.toml``: the arguments of `ChatModel`, and its link.

    `sha256` is the hash, at calibration, of the prompt, the labels and all else that the answers
    depend on; None computes it.
    """

    options: Mapping[str, Any]
    sha256: str | None = None
    link: Link = field(default_factory=lambda: Link(retries=0))  # the model itself retries
    cost: Cost = field(default_factory=Cost)
    preprocess: Preprocess | None = None  # texts have none

    def __post_init__(self) -> None:
        if self.sha256 is None:
            object.__setattr__(self, "sha256", _chat().chat_identity(self.options))

    def check(self) -> None:
        """Check that the model, prompt and labels are unchanged; else a ModelError."""
        if _chat().chat_identity(self.options) != self.sha256:
            raise ModelError(
                f"the question to {self.options['model']} ({', '.join(_chat().IDENTITY)}) has "
                "changed since the threshold was calibrated; record and calibrate again"
            )

    @property
    def dollars(self) -> float | None:
        """The price of a row that the user gave; None if there is a price per token."""
        return None if "price" in self.options else self.cost.dollars

    def load(self, **options: Any) -> FarTeacher:
        """Return the model behind its link; `options` have no effect."""
        self.check()
        model = _chat().ChatModel(**self.options)
        return FarTeacher(model, self.link, met=_look_for(model))

    def as_table(self, folder: Path | None) -> dict[str, Any]:
        """Return the TOML table, with the queue's path relative to `folder` unless that is None."""
        link = self.link.as_dict() | {"retries": None}
        kept = self.link.when_unavailable == "queue"  # other policies have no file
        link["queue"] = _relative(self.link.queue, folder) if kept else None
        known = {**link, **self.options, "sha256": self.sha256}
        return {name: value for name, value in known.items() if value is not None} | _shared_table(
            self
        )

    @classmethod
    def from_table(cls, table: Mapping[str, Any], folder: Path, where: str) -> Self:
        """Read a TOML table; `where` names it in errors."""
        needed = ("chat", "model", "prompt", "labels", "sha256")
        own = [key for key in LINK_KEYS if key not in ("retries", "retry_seconds")]
        options = _chat().OPTIONS
        check_table(table, (*options, "sha256", "cost", *own), where, needed)
        link = Link.from_dict({**picked(table, own), "retries": 0})
        return cls(
            picked(table, options),
            table["sha256"],
            replace(link, queue=str((folder / link.queue).resolve())),
            **_shared(table, where),
        )


@dataclass(frozen=True)
class JointEntry:
    """A joint model as a stage in ``joint.toml``: its two entries and the router between.

    `router` has the TOML keys `score`, `threshold`, `blend` and `skip`. `path` is the
    ``joint.toml`` that the stage was read from, with its `sha256`; None if the stage's tables are
    in the outer file. `cost` is its average cost.
    """

    student: "Entry"
    teacher: "Entry"
    router: Mapping[str, Any]
    task: str = "classification"
    cost: Cost = field(default_factory=Cost)
    path: str | None = None
    sha256: str | None = None
    labels: tuple[str, ...] | None = None  # of its own file
    preprocess: Preprocess | None = None  # always None: its models have their own
    options: Mapping[str, Any] = field(default_factory=dict)  # always empty, likewise

    def __post_init__(self) -> None:
        kind = as_task(self.task)
        if kind.scale is not None or self.task == "specialized":
            raise ValueError(
                f"a joint model of task {self.task} cannot be a stage: give a single model"
            )
        check_table(self.router, ROUTER_KEYS, "the router of a stage", ROUTER_KEYS[:2])
        Router(self.router["score"], self.router["threshold"], self.router.get("skip"))
        as_blend(self.router.get("blend", 0.0))

    @property
    def dollars(self) -> None:
        """None: each of its models has its own price."""

    @property
    def routers(self) -> list[dict[str, Any]]:
        """The routers' TOML tables, the innermost first."""
        return [*self.student.routers, dict(self.router)]

    @property
    def parts(self) -> tuple["Single", ...]:
        """The entries of its models, the first student first."""
        return (*self.student.parts, *self.teacher.parts)

    def check(self) -> None:
        """Check its own file and those of all its models, as `ModelEntry.check` does."""
        self._check_file()
        self.student.check()
        self.teacher.check()

    def _check_file(self) -> None:
        if self.path is not None and sha256_of(Path(self.path)) != self.sha256:
            raise ModelError(
                f"{self.path} has changed since it became a stage of another joint.toml; record "
                "and calibrate again"
            )

    def load(self, **options: Any) -> Any:
        """Load the joint model; each entry checks its own files."""
        self._check_file()
        models = self.student.load(**options), self.teacher.load(**options)
        dollars = self.student.dollars, self.teacher.dollars
        return joined(self.task, *models, dollars=dollars, **self.router)

    def as_table(self, folder: Path | None) -> dict[str, Any]:
        """Return the TOML table."""
        if self.path is not None:
            return {"path": _relative(self.path, folder), "sha256": self.sha256}
        inside = {role: getattr(self, role).as_table(folder) for role in ("student", "teacher")}
        return {**_shared_table(self), "task": self.task, "router": dict(self.router), **inside}

    @classmethod
    def from_table(
        cls, table: Mapping[str, Any], folder: Path, where: str, seen: tuple[Path, ...] = ()
    ) -> Self:
        """Read a TOML table; `seen` are the files that led to it, to find cycles."""
        cost = table.get("cost", {})
        if "path" not in table:
            check_table(table, ("task", "cost", *_PARTS), where, _PARTS)
            return cls._of_parts(table, folder, where, seen, cost=Cost(**cost))
        check_table(table, ("path", "sha256", "cost"), where, ("path", "sha256"))
        file = Path(absolute(table["path"], folder))
        if file in seen:
            raise ValueError(f"{where} leads back to {file}: a joint model cannot be its own stage")
        try:
            own = tomllib.loads(read_text(file))
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{where} is {file}, which is not a TOML file: {error}") from error
        check_table(own, own, str(file), _PARTS)
        about = {"path": str(file), "sha256": table["sha256"], "cost": Cost(**cost)}
        about["labels"] = tuple(own.get("labels", ())) or None
        return cls._of_parts(own, file.parent, str(file), (*seen, file), **about)

    @classmethod
    def _of_parts(
        cls, table: Mapping[str, Any], folder: Path, where: str, seen: Any, **about: Any
    ) -> Self:
        student, teacher = (
            entry_from_table(table[role], folder, f"{where}.{role}", seen)
            for role in ("student", "teacher")
        )
        return cls(student, teacher, table["router"], **picked(table, ("task",)), **about)


FarEntry = RemoteEntry | ChatEntry  # of a remote model, behind a link
Single = ModelEntry | FarEntry
Entry = Single | JointEntry


def joined(
    task: str,
    student: Model,
    teacher: Model,
    score: Any,
    *,
    dollars: tuple[float | None, float | None] = (None, None),
    **how: Any,
) -> Any:
    """Join two models of a task, with the keys of a router's table and other arguments."""
    router = Router(score, how.pop("threshold"), how.pop("skip", None))
    blend = as_blend(how.pop("blend", 0.0))
    found = as_task(task).final(student, teacher, router, blend=blend, **how)
    found.dollars = dollars
    return found


def stored_score(score: Score) -> str:
    """Return a score's text for a file; a ValueError if a reader would take another function."""
    if not score.named:
        raise ValueError(
            f"joint.toml stores a score by name, but {score} has no registered name; register it "
            "with ebjr.register_score"
        )
    return str(score)


def entry_of(model: Model, cost: Cost | None = None, link: Link | None = None) -> Entry:
    """Make the entry of a loaded model, with its preprocessing.

    `link` is for a remote model; None keeps its own.

    Raises
    ------
    TypeError
        `model` came from neither a file nor an address, is a detector with an unnamed layout, has
        an option that a file cannot store, or is a joint model whose score has no registered name.
    """
    if isinstance(model, FarTeacher):
        link = link or model.link
    if isinstance(model, JointModel):
        both = entry_of(model.student), entry_of(model.teacher)
        try:
            stored_score(model.router.score)
        except ValueError as error:
            raise TypeError(str(error)) from error
        router = router_table(model.router, model.blend)
        return JointEntry(*both, router, model.task, cost or Cost())
    known = facts(model)
    preprocess = None if known.preprocess is None else Preprocess.from_dict(known.preprocess)
    about: dict[str, Any] = {"preprocess": preprocess, "cost": cost or Cost()}
    if "chat" in known.options:
        return ChatEntry(known.options, link=link or Link(retries=0), cost=about["cost"])
    if known.url is not None:
        about |= {"link": link or Link(), "options": known.options, "sha256": known.sha256}
        return RemoteEntry(known.url, known.metadata or {}, **about)
    if known.path is None:
        raise TypeError(
            f"joint.toml needs a model's file, address or import path, but {known.name} has none: "
            "define it in a file, like models.py, and load it with "
            "ebjr.load_model('models.py:name')"
        )
    if lost := [name for name in known.options if name not in OPTIONS]:
        raise TypeError(
            f"joint.toml cannot store {known.name}'s option {lost[0]!r}, and without it the model "
            f"may answer differently; the options that it stores are {', '.join(OPTIONS)}"
        )
    options = known.options
    if import_path(known.path):
        once: Any = unprepared(model)[0]
        again: Any = load_model(known.path, **options)
        about["weights_sha256"] = weights = once.weights()
        if again.weights() != weights:
            raise ModelError(
                f"{known.path} makes other weights at each call, or they changed after it was "
                "loaded: let it load them from a file"
            )
        if weights is None:
            note(
                f"no weights were found in {known.path}, so a change of them cannot be noticed: "
                "load them when its module is imported"
            )
    if not isinstance(options.get("layout", ""), str):
        raise TypeError(
            f"{known.name} has a layout of your own, which joint.toml cannot store: choose a named "
            "layout"
        )
    return ModelEntry.of_file(known.path, options=options, **about)


def entry_from_table(
    table: Mapping[str, Any], folder: Path, where: str, seen: tuple[Path, ...] = ()
) -> Entry:
    """Read an entry of any kind; `seen` are the files of joint models that led to it."""
    check_table(table, table, where)
    if "router" in table or str(table.get("path", "")).endswith(".toml"):
        return JointEntry.from_table(table, folder, where, seen)
    kinds: dict[str, type[Single]] = {"chat": ChatEntry, "url": RemoteEntry}
    kind = next((kind for key, kind in kinds.items() if key in table), ModelEntry)
    return kind.from_table(table, folder, where)


def check_remote(task: str) -> None:
    """Check that a task supports a remote teacher."""
    if not as_task(task).travels:
        raise ValueError("a remote detector cannot be the teacher yet: give its file")


def parse_link(text: str) -> tuple[dict[str, Any], Link]:
    """Parse a flag like ``send=jpeg,retries=1`` to a remote model's options and its link."""
    values = _parsed(text, (*REMOTE_OPTIONS, *LINK_KEYS), "a link")
    return picked(values, REMOTE_OPTIONS), Link.from_dict(picked(values, LINK_KEYS))


def parse_options(text: str) -> dict[str, Any]:
    """Parse a flag with options of `load_model`."""
    values = _parsed(text, OPTIONS, "a list of options")
    if "providers" in values:
        values["providers"] = str(values["providers"]).split("/")
    if "label_ids" in values:
        values["label_ids"] = [int(number) for number in str(values["label_ids"]).split("/")]
    return values


def _parsed(text: str, allowed: Collection[str], what: str) -> dict[str, Any]:
    """Parse a flag by `values_of`; each value is read as TOML if possible, else as text."""
    values: dict[str, Any] = dict(values_of(text, what, "batch_size=8"))
    check_table(values, allowed, what)
    for name, value in values.items():
        with suppress(tomllib.TOMLDecodeError):
            values[name] = tomllib.loads(f"value = {value}")["value"]
    return values


def entries_of(
    outcomes: Outcomes,
    path: str | os.PathLike[str],
    given: Mapping[str, str | None],
    link: str | None = None,
) -> dict[str, Entry]:
    """Return both models' entries by role, as recorded in `outcomes` or given.

    `path` is the outcomes' file, `given` has a file or an address by role, or None, and `link` is
    the remote teacher's, as `parse_link` takes it.
    """
    costs = {"student": outcomes.student_cost, "teacher": outcomes.teacher_cost}
    entries: dict[str, Entry] = {}
    for role, source in given.items():
        table, entry = outcomes.models.get(role), None
        if table is None and source is None:
            raise ValueError(f"{path} does not name the file of its {role}: give it with --{role}")
        if table is not None:
            entry = entry_from_table(table, Path(path).resolve().parent, f"{path}: {role}")
        if source is not None:
            found = _entry_at(source, link, {} if entry is None else entry.options)
            if isinstance(entry, JointEntry):
                raise ValueError(f"the {role} is a chain of recorded models: leave --{role} out")
            known = entry is not None and None not in (entry.sha256, found.sha256)
            if entry is not None and known and type(found) is type(entry):
                came, recorded = (
                    f"sha256 {each.sha256:.12}..., weights "
                    f"{getattr(each, 'weights_sha256', None) or 'unseen':.12}"
                    for each in (found, entry)
                )
                if came != recorded:
                    raise ModelError(
                        f"{source} is not the {role} whose answers are in {path} ({came}; "
                        f"recorded: {recorded}); record again"
                    )
                if isinstance(entry, ModelEntry) and isinstance(found, ModelEntry):
                    found = replace(entry, path=found.path)
            entry = replace(found, preprocess=None if entry is None else entry.preprocess)
        elif isinstance(entry, FarEntry) and link is not None:
            options, how = parse_link(link)
            if isinstance(entry, ChatEntry):
                if options:
                    raise ValueError(f"set {', '.join(options)} in the chat model's file")
                how = replace(how, retries=0)
            entry = replace(entry, options={**entry.options, **options}, link=how)
        assert entry is not None
        entries[role] = replace(entry, cost=costs[role])
    if link is not None and not any(isinstance(entry, FarEntry) for entry in entries.values()):
        raise ValueError("--link is for a teacher at an address, not for a file: remove it")
    return entries


def _entry_at(source: str, link: str | None, recorded: Mapping[str, Any]) -> Entry:
    if import_path(source) or source.endswith(".toml"):
        try:
            return entry_of(load_model(source, **recorded))
        except TypeError as error:  # the file takes other options than the recorded model
            raise ValueError(f"{source}: {error}") from error
    if not is_address(source):
        return ModelEntry.of_file(source)
    options, how = parse_link(link or "")
    return entry_of(load_model(source, **options), link=how)


OPTIONS = (
    *("threads", "providers", "device", "dtype", "compile", "batch_size", "output", "output_kind"),
    *("layout", "classes", "nms", "above", "limit", "label_ids", "features", "continues"),
)
"""The options of `load_model` for a file, on the command line and in ``joint.toml``."""
CERTIFICATES = ("ca_file", "client_cert", "client_key")  # paths of files
REMOTE_OPTIONS = (
    *("send", "quality", "gzip", "timeout_seconds", "batch_size", "output", "output_kind"),
    *CERTIFICATES,
)
LINK_KEYS = tuple(f.name for f in fields(Link))
ROUTER_KEYS = ("score", "threshold", "blend", "skip")
_PARTS = ("router", "student", "teacher")
_SHARED = ("cost", "preprocess")


def picked(table: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """Return a table's items under the given keys."""
    return {key: table[key] for key in keys if key in table}


def _relative(path: str, folder: Path | None) -> str:
    return path if folder is None or in_module(path) else os.path.relpath(path, folder)


def _shared_table(entry: Entry) -> dict[str, Any]:
    cost = entry.cost.as_dict()
    how = {} if entry.preprocess is None else {"preprocess": entry.preprocess.as_dict()}
    return {**({"cost": cost} if cost else {}), **how}


def _shared(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    cost, preprocess = table.get("cost", {}), table.get("preprocess")
    check_table(cost, (*UNITS, "joules_are", "rest"), f"{where}.cost")
    return {
        "cost": Cost(**cost),
        "preprocess": None if preprocess is None else Preprocess.from_dict(preprocess),
    }


def check_table(
    table: Any, allowed: Collection[str], where: str, needed: Collection[str] = ()
) -> None:
    """Check that `table` has all needed keys and only allowed ones."""
    if not isinstance(table, Mapping):
        raise ValueError(f"{where} must be a table, not {type(table).__name__}")
    for key in table:
        if key not in allowed:
            close = difflib.get_close_matches(key, allowed, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(allowed)}"
            raise ValueError(f"{where} has an unknown key {key!r}; {hint}")
    missing = [key for key in needed if key not in table]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
