"""A joint model as a folder: packed, pushed to Hugging Face's hub, and pulled.

The folder holds ``joint.toml`` with relative paths, the models' files and a model card. The hashes
in ``joint.toml`` are checked when it is packed, pulled and loaded.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

from ebjr.backends.entry import CERTIFICATES, Entry, JointEntry, ModelEntry, files_of
from ebjr.backends.python import import_path, in_module, is_pickle, source_file
from ebjr.costs import Cost, flops_text, further_columns, ms_text
from ebjr.errors import ModelError, needs, one_line
from ebjr.files import write_beside
from ebjr.joint_file import JointConfig
from ebjr.outcomes import roles_of
from ebjr.tasks import as_task

FILE, CARD, QUEUE = "joint.toml", "README.md", "late.sqlite"
OURS = ["student/*", "teacher/*", "model-*/*", "joint.lists-*.toml"]
"""Files that the next push to the same repository deletes first."""


@dataclass(frozen=True)
class JointFolder:
    """A joint model in a folder.

    `path` is its ``joint.toml``, and `files` are all files, relative to the folder. `needs` has
    sentences about what is not in the folder, and about code and inputs that leave the machine.
    `url` is the commit of the push or pull; None for a local folder.
    """

    path: Path
    files: tuple[str, ...]
    needs: tuple[str, ...]
    url: str | None = None


def pack_joint(
    joint: str | os.PathLike[str], folder: str | os.PathLike[str], *, repo: str = "OWNER/NAME"
) -> JointFolder:
    """Write the joint model of a ``joint.toml`` into a new, self-contained folder.

    The folder appears whole or not at all. `repo` is the repository that its card names.

    Raises
    ------
    FileExistsError
        `folder` exists.
    FileNotFoundError
        `joint`, or a model that it names, is missing.
    ModelError
        A model's file has changed since the threshold was calibrated.
    ValueError
        The address of a remote model in `joint` contains a password.

    Examples
    --------
    >>> import tempfile
    >>> from ebjr import JointClassifier, Router, load_model, save_joint
    >>> from ebjr.demo import shipped
    >>> place = tempfile.mkdtemp()
    >>> with shipped("student.onnx") as student, shipped("teacher.onnx") as teacher:
    ...     models = load_model(student), load_model(teacher)
    ...     save_joint(f"{place}/joint.toml", JointClassifier(*models, Router("margin", 0.3)))
    ...     pack_joint(f"{place}/joint.toml", f"{place}/packed").files
    ('README.md', 'joint.toml', 'student/student.onnx', 'teacher/teacher.onnx')
    """
    config = JointConfig.read(joint)
    _check(config)
    with _new(folder) as place:
        copied = _Copies(place, iter(roles_of(len(config.parts))))
        own = [Path(name).name if name.endswith(".py") else name for name in config.imports]
        both = {"student": copied.of(config.student), "teacher": copied.of(config.teacher)}
        packed = replace(config, **both, imports=tuple(own))
        packed.save(place / FILE)
        (place / CARD).write_text(model_card(packed, repo), encoding="utf-8")
        found = _checked(place)
    return replace(found, path=Path(folder) / FILE)


def push_joint(joint: str | os.PathLike[str], repo: str, *, private: bool = False) -> JointFolder:
    """Push a joint model to Hugging Face's hub, as one commit to the model repository `repo`.

    The repository, ``"OWNER/NAME"``, is created if it does not exist. Files of an earlier push are
    replaced, others stay. The token is that of the hub's client: ``HF_TOKEN``, or
    ``hf auth login``. Further errors are those of `pack_joint`.

    Raises
    ------
    ValueError
        `repo` is not a valid name, or is a public repository and `private` is true.
    ModelError
        The hub refused, or cannot be reached.
    MissingExtra
        `huggingface_hub` is not installed.
    """
    hub = _client()
    with TemporaryDirectory() as place:
        packed = pack_joint(joint, Path(place) / "joint", repo=repo)
        _ask(repo, hub.create_repo, repo, private=private or None, exist_ok=True)
        if private and not _ask(repo, hub.model_info, repo).private:
            raise ValueError(
                f"{repo} exists and is public: make it private in its settings, or name another"
            )
        what: dict[str, Any] = {"folder_path": packed.path.parent, "delete_patterns": OURS}
        what["commit_message"] = "Push a joint model"
        done = _ask(repo, hub.upload_folder, repo_id=repo, **what)
    return replace(packed, path=Path(joint), url=done.commit_url)


def pull_joint(
    repo: str, folder: str | os.PathLike[str], *, revision: str | None = None
) -> JointFolder:
    """Pull a joint model from Hugging Face's hub into a new folder, and check it; no code runs.

    The folder appears whole or not at all. `revision` is a branch, a tag or a commit; None is the
    main branch.

    Raises
    ------
    FileExistsError
        `folder` exists.
    ValueError
        `repo` is not a valid name of a repository.
    ModelError
        The hub refused, cannot be reached, or has no joint model under `repo`; its ``joint.toml``
        cannot be read, or names a file that has changed or is outside the folder.
    MissingExtra
        `huggingface_hub` is not installed.
    """
    hub = _client()
    with _new(folder) as place:
        about = _ask(repo, hub.model_info, repo, revision=revision)
        names = [each.rfilename for each in about.siblings or ()]
        for name in names:
            _check_inside(name, repo)
        if FILE not in names:
            raise ModelError(f"{repo} holds no {FILE}: it was not pushed by `ebjr push`")
        for name in names:
            if not name.startswith("."):  # skip the hub's own files
                how = {"revision": about.sha, "local_dir": place}
                _ask(repo, hub.hf_hub_download, repo, name, **how)
        shutil.rmtree(place / ".cache", ignore_errors=True)  # left by the client
        try:
            found = _checked(place)
        except (ModelError, OSError, ValueError) as error:
            said = str(error).replace(f"{place}{os.sep}", "")  # the draft folder means nothing
            raise ModelError(f"{repo} was not pulled: {said}") from error
    return replace(found, path=Path(folder) / FILE, url=f"{hub.endpoint}/{repo}/tree/{about.sha}")


# The folder


@contextmanager
def _new(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a draft folder that becomes `folder` if the block succeeds."""
    if (target := Path(folder).resolve()).exists():
        raise FileExistsError(f"{folder} exists: name a new folder")
    with write_beside(target) as draft:
        place = draft.resolve() / target.name
        place.mkdir()
        yield place


@dataclass
class _Copies:
    """Copies of a joint model's models, each into a folder of its role."""

    folder: Path
    roles: Iterator[str]

    def of(self, entry: Entry) -> Any:
        """Copy an entry's files, and return the entry of the copies."""
        if isinstance(entry, JointEntry):  # its tables move into the outer file
            both = {role: self.of(getattr(entry, role)) for role in ("student", "teacher")}
            return replace(entry, **both, path=None, sha256=None, labels=None)
        role = next(self.roles)
        if not isinstance(entry, ModelEntry):
            if "@" in urlsplit(address := _address(entry)).netloc:
                host = urlsplit(address).hostname
                raise ValueError(f"the address of the {role} at {host} has a password: remove it")
            options = {key: each for key, each in entry.options.items() if key not in CERTIFICATES}
            link = replace(entry.link, queue=str(self.folder / QUEUE))
            return replace(entry, link=link, options=options)  # never publish certificates or keys
        if in_module(entry.path):
            return entry
        first, *_ = every = files_of(entry.path)
        for file in every:
            copy = self.folder / role / file.relative_to(first.parent)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        path, named = f"{self.folder / role / first.name}", import_path(entry.path)
        return replace(entry, path=f"{path}:{named[1]}" if named else path)


def _check(config: JointConfig) -> None:
    config.check()
    config.student.check()
    config.teacher.check()


def _checked(folder: Path) -> JointFolder:
    """Check that a folder is complete, unchanged since calibration and self-contained."""
    config = JointConfig.read(folder / FILE)
    for file in _named(config.student, config.teacher):
        if not file.resolve().is_relative_to(folder):
            raise ModelError(
                f"{FILE} names {os.path.relpath(file, folder)}, which is outside its folder: "
                "`ebjr push` writes a self-contained folder"
            )
    _check(config)
    names = [each.relative_to(folder).as_posix() for each in folder.rglob("*") if each.is_file()]
    return JointFolder(folder / FILE, tuple(sorted(names)), tuple(_needs(config)))


def _named(*entries: Entry) -> Iterator[Path]:
    """Yield the files that entries name, each before it is read."""
    for entry in entries:
        if isinstance(entry, JointEntry):
            yield from [] if entry.path is None else [Path(entry.path)]
            yield from _named(entry.student, entry.teacher)
        elif not isinstance(entry, ModelEntry):
            yield Path(entry.link.queue)
            yield from (Path(entry.options[key]) for key in CERTIFICATES if key in entry.options)
        elif not in_module(entry.path):
            yield (file := source_file(entry.path))
            yield from files_of(entry.path) if file.is_file() else ()


def _needs(config: JointConfig) -> Iterator[str]:
    """Yield what a joint model needs from outside its folder, and what its user should know."""
    for role, entry in zip(roles_of(len(config.parts)), config.parts, strict=True):
        if not isinstance(entry, ModelEntry):
            yield f"The {role} is remote: inputs are sent to {_address(entry)}."
        elif in_module(entry.path):
            yield f"The {role} is Python code, {entry.path}: install its package, and give --trust."
        elif import_path(entry.path):
            file = source_file(entry.path).name
            yield f"The {role} is Python code, {file}: read it, and give --trust."
        elif is_pickle(entry.path):
            yield f"The {role} is a pickle, which can run any code: give --trust if you trust it."
    for name in config.imports:
        yield f"A score or metric is its author's own: give --import {name}."


def _address(entry: Any) -> str:
    return str(getattr(entry, "url", None) or entry.options["chat"])


# The card


def model_card(config: JointConfig, repo: str) -> str:
    """Return the card that the hub shows, in Markdown: the figures, and how to use the model."""
    images = config.student.parts[0].preprocess is not None
    known = {"detection": "object-detection", "classification": "image-classification"}
    kind = [f"pipeline_tag: {known[config.task]}"] if images and config.task in known else []
    front = ["---", "library_name: ebjr", f"tags: [ebjr, cascade, {config.task}]", *kind, "---"]
    parts = [
        "\n".join(front),
        f"# {config.name}",
        "Two models as one, with a knob: the student answers every input, and the teacher those "
        f"whose `{config.score}` is under {config.threshold:.4g}.",
        _figures(config),
        "" if config.certificate is None else config.certificate.statement,
        "\n".join(f"- {words}" for words in _needs(config)),
        f"```\nebjr pull {repo} -o joint\nebjr serve joint/joint.toml\n```",
        "In Python `ebjr.load_joint('joint/joint.toml')` is the joint model; "
        "`.router.threshold` is the knob.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _figures(config: JointConfig) -> str:
    """Return the figures of all models and the joint one, on held-out examples if there are any."""
    known = config.calibration
    found = known.get("held_out", known.get("chosen_on"))
    if found is None or config.changes:
        return "No figures: the threshold was not calibrated for these models."
    measure, rows = as_task(config.task).metric(found["metric"]), []
    sides = {" + ".join(roles_of(len(config.parts))[:-1]): "student_", "teacher": "teacher_"}
    for name, side in {**sides, f"joint, at {found['threshold']:.4g}": ""}.items():
        cost = Cost(**found.get(f"{side}cost", {}))
        row = {"": name, measure.title: measure.words(found[f"{side}quality"])}
        row |= {"deferred": "" if side else f"{found['deferral_rate']:.1%}"}
        row |= {"MFLOPs": flops_text(cost), "ms": ms_text(cost)}
        rows.append(row | further_columns(Cost(**found.get("cost", {})), cost))
    lines = [[*rows[0]], ["---"] * len(rows[0]), *([*row.values()] for row in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    whose = (
        "held-out examples"
        if "held_out" in known
        else "examples used for calibration, which is optimistic"
    )
    return f"{table}\n\nOn {found['n']:,} {whose}. {known.get('verdict', '')}".rstrip()


# The hub


def _client() -> Any:
    with needs("hub", "pushing and pulling"):
        from huggingface_hub import HfApi
    return HfApi(library_name="ebjr")


def _ask(repo: str, call: Callable[..., Any], *args: Any, **how: Any) -> Any:
    """Call the hub; a ModelError if it refuses or cannot be reached."""
    try:
        return call(*args, **how)
    except ValueError:  # the client refuses an invalid name
        raise
    except Exception as error:  # its client raises errors of several packages
        raise ModelError(f"the hub failed for {repo}: {one_line(error)}") from error


def _check_inside(name: str, repo: str) -> None:
    """Check that a file's name stays in the folder, on every system."""
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts or "\\" in name or ":" in name:
        raise ModelError(f"{repo} names a file {name!r:.80}, which is outside its folder")
