"""A joint model as a folder of its own, and that folder on Hugging Face's hub and back.

The folder holds ``joint.toml`` with relative paths, the models' files and a model card. The hashes
in ``joint.toml`` are checked when it is packed, when it is pulled, and whenever it is loaded.
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

from ebjr.backends.entry import ChatEntry, Entry, JointEntry, ModelEntry, Single, files_of
from ebjr.backends.python import import_path, in_module, is_pickle, source_file
from ebjr.costs import Cost, flops_text, further_columns, ms_text
from ebjr.errors import ModelError, needs, one_line
from ebjr.files import write_beside
from ebjr.joint_file import JointConfig
from ebjr.outcomes import roles_of
from ebjr.tasks import as_task

FILE, CARD, QUEUE = "joint.toml", "README.md", "late.sqlite"
OURS = ["student/*", "teacher/*", "model-*/*", "joint.lists-*.toml"]
"""What another push of the same repository replaces, beside `FILE` and `CARD`."""


@dataclass(frozen=True)
class JointFolder:
    """A joint model in a folder.

    Attributes
    ----------
    path
        Its ``joint.toml``.
    files
        All files, relative to the folder.
    needs
        What it needs that is not in the folder, and what it does with inputs or code: one sentence
        each.
    url
        The commit that it was pushed as, or came from; None of a folder that is only here.
    """

    path: Path
    files: tuple[str, ...]
    needs: tuple[str, ...]
    url: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """All of it for JSON."""
        return {**vars(self), "path": str(self.path)}


def pack_joint(
    joint: str | os.PathLike[str], folder: str | os.PathLike[str], *, repo: str = "OWNER/NAME"
) -> JointFolder:
    """Write a joint model into a new folder that needs no other file.

    Parameters
    ----------
    joint
        The ``joint.toml``. Stages that have files of their own are written into the new one.
    folder
        The folder to make. It appears whole or not at all.
    repo
        Where the card says that it can be pulled from.

    Raises
    ------
    FileExistsError
        `folder` is there already.
    FileNotFoundError
        `joint`, or a model that it names, is missing.
    ModelError
        A model's file has changed since the threshold was calibrated.
    ValueError
        The address of a far model in `joint` has a password in it.

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
    config.check()
    config.student.check()
    config.teacher.check()
    with _new(folder) as place:
        copied = _Copies(place, iter(roles_of(len(config.parts))))
        packed = replace(
            config,
            student=copied.of(config.student),
            teacher=copied.of(config.teacher),
            imports=tuple(_plain(name) for name in config.imports),
        )
        packed.save(place / FILE)
        (place / CARD).write_text(model_card(packed, repo), encoding="utf-8")
        found = _checked(place)
    return replace(found, path=Path(folder) / FILE)


def push_joint(joint: str | os.PathLike[str], repo: str, *, private: bool = False) -> JointFolder:
    """Push a joint model to Hugging Face's hub, as one commit of a model repository.

    The token is that of the hub's own client: ``HF_TOKEN``, or ``hf auth login``. Files of an
    earlier push are replaced; other files of the repository stay.

    Parameters
    ----------
    joint
        The ``joint.toml``.
    repo
        ``"OWNER/NAME"``; it is made where it is not there.
    private
        Make it a private one.

    Raises
    ------
    ValueError
        `repo` is no name of a repository, or is a public one and `private` is true; or as of
        `pack_joint`, as are the other errors.
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
                f"{repo} is there already and is public: make it private in its settings, or name "
                "another"
            )
        done = _ask(
            repo,
            hub.upload_folder,
            repo_id=repo,
            folder_path=packed.path.parent,
            commit_message="Push a joint model",
            delete_patterns=OURS,
        )
    return replace(packed, path=Path(joint), url=done.commit_url)


def pull_joint(
    repo: str, folder: str | os.PathLike[str], *, revision: str | None = None
) -> JointFolder:
    """Pull a joint model from Hugging Face's hub into a new folder, and check it.

    Nothing of it is run. `load_joint` then loads it as any other.

    Parameters
    ----------
    repo
        ``"OWNER/NAME"``.
    folder
        The folder to make. It appears whole or not at all.
    revision
        A branch, a tag or a commit; the main branch if left out.

    Raises
    ------
    FileExistsError
        `folder` is there already.
    ValueError
        `repo` is no name of a repository.
    ModelError
        The hub refused, cannot be reached, or knows no joint model under `repo`; its ``joint.toml``
        cannot be read, or names a file that is another one, or is outside of the folder.
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
            raise ModelError(f"{repo} holds no {FILE}: it is no joint model that `ebjr push` made")
        for name in names:
            if not name.startswith("."):  # the hub's own
                how = {"revision": about.sha, "local_dir": place}
                _ask(repo, hub.hf_hub_download, repo, name, **how)
        shutil.rmtree(place / ".cache", ignore_errors=True)  # of the client
        try:
            found = _checked(place)
        except (ModelError, OSError, ValueError) as error:
            said = str(error).replace(f"{place}{os.sep}", "")  # where it would have been
            raise ModelError(f"{repo} was not taken: {said}") from error
    return replace(found, path=Path(folder) / FILE, url=f"{hub.endpoint}/{repo}/tree/{about.sha}")


# The folder


@contextmanager
def _new(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder that takes its place when the block ends well."""
    if (target := Path(folder).resolve()).exists():
        raise FileExistsError(f"{folder} is there already: name a folder that is not")
    with write_beside(target) as draft:
        place = draft.resolve() / target.name
        place.mkdir()
        yield place


@dataclass
class _Copies:
    """The models of a joint model as they are copied into a folder, each into one of its role."""

    folder: Path
    roles: Iterator[str]

    def of(self, entry: Entry) -> Any:
        """The entry of what is in the folder."""
        if isinstance(entry, JointEntry):  # its tables go into the file itself
            both = {role: self.of(getattr(entry, role)) for role in ("student", "teacher")}
            return replace(entry, **both, path=None, sha256=None, labels=None)
        role = next(self.roles)
        if not isinstance(entry, ModelEntry):
            _check_no_password(_address(entry))
            link = replace(entry.link, queue=str(self.folder / QUEUE))
            return replace(entry, link=link)
        if in_module(entry.path):
            return entry
        first, *_ = every = files_of(entry.path)
        for file in every:
            copy = self.folder / role / file.relative_to(first.parent)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        named = import_path(entry.path)
        path = f"{self.folder / role / first.name}"
        return replace(entry, path=f"{path}:{named[1]}" if named else path)


def _checked(folder: Path) -> JointFolder:
    """What is in a folder: whole, unchanged since it was calibrated, and all inside of it."""
    config = JointConfig.read(folder / FILE)
    for file in _named(config.student, config.teacher):
        if not file.resolve().is_relative_to(folder):
            raise ModelError(
                f"{FILE} names {os.path.relpath(file, folder)}, which is outside of its folder: "
                "`ebjr push` makes a folder that holds all of it"
            )
    config.check()
    config.student.check()
    config.teacher.check()
    files = sorted(each for each in folder.rglob("*") if each.is_file())
    names = tuple(each.relative_to(folder).as_posix() for each in files)
    return JointFolder(folder / FILE, names, tuple(_needs(config)))


def _named(*entries: Entry) -> Iterator[Path]:
    """The files that entries name, each before it is read."""
    for entry in entries:
        if isinstance(entry, JointEntry):
            yield from [] if entry.path is None else [Path(entry.path)]
            yield from _named(entry.student, entry.teacher)
        elif not isinstance(entry, ModelEntry):
            yield Path(entry.link.queue)
        elif not in_module(entry.path):
            yield (file := source_file(entry.path))
            yield from files_of(entry.path) if file.is_file() else ()


def _needs(config: JointConfig) -> Iterator[str]:
    """What a joint model needs that is not in its folder, or does that its user should know."""
    for role, entry in zip(roles_of(len(config.parts)), config.parts, strict=True):
        if not isinstance(entry, ModelEntry):
            yield f"The {role} is elsewhere: inputs are sent to {_address(entry)}."
        elif in_module(entry.path):
            yield f"The {role} is Python code, {entry.path}: install its package, and give --trust."
        elif import_path(entry.path):
            file = source_file(entry.path).name
            yield f"The {role} is Python code, {file}: read it, and give --trust."
        elif is_pickle(entry.path):
            yield f"The {role} is a pickle, which can run any code: give --trust if you trust it."
    for name in config.imports:
        yield f"A score or metric is its author's own: give --import {name}."


def _address(entry: Single) -> str:
    return str(entry.options["chat"]) if isinstance(entry, ChatEntry) else str(vars(entry)["url"])


def _check_no_password(url: str) -> None:
    if "@" in urlsplit(url).netloc:
        host = urlsplit(url).hostname
        raise ValueError(f"the address of the model at {host} has a password in it: take it out")


def _plain(name: str) -> str:
    """The name of a file without its folder, which is of one machine; a module's as it is."""
    return Path(name).name if name.endswith(".py") else name


# The card


def model_card(config: JointConfig, repo: str) -> str:
    """What the hub shows of a joint model, in Markdown: its figures, and how it is used."""
    images = config.student.parts[0].preprocess is not None
    known = {"detection": "object-detection", "classification": "image-classification"}
    kind = [f"pipeline_tag: {known[config.task]}"] if images and config.task in known else []
    front = ["---", "library_name: ebjr", f"tags: [ebjr, cascade, {config.task}]", *kind, "---"]
    rule = f"`{config.score}` is under {config.threshold:.4g}"
    certificate = config.certificate
    parts = [
        f"# {config.name}",
        f"Two models as one, with a knob: the student answers every input, and the teacher where "
        f"{rule}.",
        *_figures(config),
        *([] if certificate is None else [certificate.statement]),
        "\n".join(f"- {words}" for words in _needs(config)),
        f"```\nebjr pull {repo} -o joint\nebjr serve joint/joint.toml\n```",
        "In Python `ebjr.load_joint('joint/joint.toml')` is the joint model; "
        "`.router.threshold` is the knob.",
    ]
    return "\n".join(front) + "\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def _figures(config: JointConfig) -> list[str]:
    """The table of both models and the joint one, and the verdict; of the half that is fairer."""
    known, words = config.calibration, "held-out examples"
    if "held_out" not in known:
        words = "examples that the threshold was chosen on, which flatters"
    found = known.get("held_out", known.get("chosen_on"))
    if found is None or config.changes:
        return ["No figures: the threshold was not calibrated for these models as they are."]
    costs = {name: Cost(**found.get(name, {})) for name in ("student_cost", "teacher_cost", "cost")}
    rows = [
        (
            " + ".join(roles_of(len(config.parts))[:-1]),
            found["student_quality"],
            None,
            costs["student_cost"],
        ),
        ("teacher", found["teacher_quality"], None, costs["teacher_cost"]),
        (
            f"joint, at {found['threshold']:.4g}",
            found["quality"],
            found["deferral_rate"],
            costs["cost"],
        ),
    ]
    measure = as_task(config.task).metric(found["metric"])
    table = [
        {
            f"{found['n']:,} examples": name,
            measure.title: measure.words(quality),
            "deferred": "" if rate is None else f"{rate:.1%}",
            "MFLOPs": flops_text(cost),
            "ms": ms_text(cost),
            **further_columns(costs["cost"], cost),
        }
        for name, quality, rate, cost in rows
    ]
    columns = [name for name in table[0] if name == "deferred" or any(row[name] for row in table)]
    lines = [columns, ["---"] * len(columns), *([row[name] for name in columns] for row in table)]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return [text, " ".join([f"On {found['n']:,} {words}.", known.get("verdict", "")]).strip()]


# The hub


def _client() -> Any:
    with needs("hub", "pushing and pulling"):
        from huggingface_hub import HfApi
    return HfApi(library_name="ebjr")


def _ask(repo: str, call: Callable[..., Any], *args: Any, **how: Any) -> Any:
    """What the hub says; a ModelError if it says no, or nothing."""
    try:
        return call(*args, **how)
    except ValueError:  # of a name that can be none
        raise
    except Exception as error:  # its client raises those of several packages
        raise ModelError(f"the hub did not do it for {repo}: {one_line(error)}") from error


def _check_inside(name: str, repo: str) -> None:
    """Check that the name of a file leads into the folder, on every system."""
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts or "\\" in name or ":" in name:
        raise ModelError(f"{repo} names a file {name!r:.80}, which is outside of its folder")
