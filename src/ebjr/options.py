"""The command line's options, declared once, in the groups that `--help` shows.

Related options are the fields of a dataclass, and `spread` makes one option of each field. `spread`
also adds `--import` and refuses a command that would overwrite one of its inputs: the outputs are
the paths in the group "Output".
"""

from __future__ import annotations

import csv
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import partial
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from ebjr.certificates import secret_in
from ebjr.errors import note
from ebjr.files import read_text
from ebjr.plugins import import_own

if TYPE_CHECKING:
    from rich.console import Console

    from ebjr.data.examples import Data
    from ebjr.model import Model
    from ebjr.outcomes import Outcomes
    from ebjr.outputs import Written
    from ebjr.predict import Tell
    from ebjr.tasks.specialized.known_classes import Traffic
    from ebjr.within import Wanted


def option(group: str, help: str, *names: str, **more: Any) -> Any:
    """Declare an option in a group of `--help`; `$NAME` in its text lists the names in `LISTED`.

    A secret (an option with `envvar`) may not be empty, which typer would take for not given.
    """

    def filled(value: Any) -> Any:
        try:
            return secret_in(more["envvar"]) if value is None else value
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    if "envvar" in more:
        more["callback"] = filled
    return typer.Option(*names, help=help, rich_help_panel=group, **more)


def declared(group: str, help: str, *names: str, default: Any = None, **more: Any) -> Any:
    """Declare a command's parameter or a group's field as an option; ``...`` makes it required."""
    return field(default=default, metadata={"option": option(group, help, *names, **more)})


def check_together(flag: str, given: Any, **others: Any) -> None:
    """Refuse options that do nothing without the option `flag`, which was `given` or is None."""
    for name, value in others.items():
        if given is None and value is not None:
            raise ValueError(f"--{name.replace('_', '-')} goes with {flag}: add {flag}")


def parse_number(text: str) -> float:
    """Read a number, for options without bounds; a percentage is refused."""
    try:
        return float(text)
    except ValueError:
        share = re.fullmatch(r"\s*([\d.]+)\s*%\s*", text)
        hint = f"write {float(share[1]) / 100:g}" if share else "it must be like 0.005 or 2e6"
        raise typer.BadParameter(f"{text!r} is not a number: {hint}") from None


# one function per group of `--help`, see `declared`
in_data, in_models, in_task, in_link, in_goal, in_guarantee, in_score = (
    partial(declared, group)
    for group in ("Data", "Models", "Task", "Link", "Goal", "Guarantee", "Score")
)
in_knob, in_run, in_network, in_batches, in_monitor, in_output, in_promise = (
    partial(declared, group)
    for group in ("Knob", "Run", "Network", "Batches", "Monitor", "Output", "Promise")
)

LISTED = {
    "TASKS": ("ebjr.tasks", "task_names"),
    "DEMOS": ("ebjr.demo", "DEMOS"),
    "METHODS": ("ebjr.quantize", "METHODS"),
    "UNITS": ("ebjr.costs", "UNITS"),
}
"""The lists that a help text may name: each one's module, imported when help is shown, and name."""


class Command(TyperCommand):
    """A command whose help shows options by group and never cuts a text."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the arguments and options, with `LISTED` names filled in."""
        found: list[Any] = super().get_params(ctx)
        for each in found:
            each.help = re.sub(r"\$([A-Z]+)", _listed, getattr(each, "help", None) or "")
        return found

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each group."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for each in self.get_params(ctx):
            usual = "Arguments" if each.param_type_name == "argument" else "Options"
            title = getattr(each, "rich_help_panel", None) or usual
            if (record := each.get_help_record(ctx)) is not None:
                groups.setdefault(title, []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


class Commands(TyperGroup):
    """The group of commands, with the first line of each command's help in full."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list."""
        rows = [(name, (each.help or "").splitlines()[0]) for name, each in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _listed(found: re.Match[str]) -> str:
    module, name = LISTED[found[1]]
    listed = getattr(import_module(module), name)
    return ", ".join(listed() if callable(listed) else listed)


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Make a function for Typer: one option per field of each group, and `--import`.

    It checks the outputs, runs the imports, and calls `command`, which gets the imported names if
    it has a parameter `imports`.
    """
    parameters = dict(inspect.signature(command, eval_str=True).parameters)
    wanted = parameters.pop("imports", None)
    groups: dict[str, Any] = {
        name: each.annotation for name, each in parameters.items() if is_dataclass(each.annotation)
    }

    def run(imports: list[str] | None = None, **given: Any) -> None:
        from ebjr.outputs import check_outputs

        outputs = {name: given[name] for name in flags if isinstance(given[name], Path)}
        others = [given[name] for name in given if name not in outputs]
        by_flag = {flags[name]: path for name, path in outputs.items()}
        _WRITTEN.set(check_outputs(by_flag, [*others, imports]))
        for name in imports or ():
            import_own(name)
        built = {
            name: group(**{one.name: given.pop(one.name) for one in fields(group)})
            for name, group in groups.items()
        }
        command(**given, **built, **({} if wanted is None else {"imports": imports or []}))

    options = [*_flat(parameters, groups), _IMPORTS]
    for each in options:
        kind, *about = get_args(each.annotation) or (None,)
        # an option with bounds gets no parser: typer would not check its bounds
        if kind in (float, float | None) and about[0].min is None:
            about[0].parser, about[0].metavar = parse_number, "<float>"
    flags = _output_flags(options)
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {each.name: each.annotation for each in options}
    run.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    return run


_WRITTEN: ContextVar[Written] = ContextVar("written", default={})  # noqa: B039  # only replaced


def _output_flags(options: list[inspect.Parameter]) -> dict[str, str]:
    """Return the flags of the options that are files to write, by name."""
    found = {}
    for each in options:
        about: Any = getattr(each.annotation, "__metadata__", (None,))[0]
        if getattr(about, "rich_help_panel", None) == "Output" and about.file_okay:
            named = isinstance(about.default, str)  # Typer keeps an option's first name here
            found[each.name] = about.default if named else f"--{each.name.replace('_', '-')}"
    return found


def _flat(
    parameters: Mapping[str, inspect.Parameter], groups: Mapping[str, Any]
) -> Iterator[inspect.Parameter]:
    """Yield a command's parameters as Typer reads them, with each group's fields in its place."""
    for name, each in parameters.items():
        if name not in groups:
            yield _parameter(name, each.annotation, each.default)
            continue
        types = get_type_hints(groups[name], include_extras=True)
        for one in fields(groups[name]):
            yield _parameter(one.name, types[one.name], one)


def _parameter(name: str, kind: Any, told: Any) -> inspect.Parameter:
    """Return one parameter, with its default or what `declared` says of it."""
    if isinstance(told, Field):
        if (about := told.metadata.get("option")) is not None:
            kind = Annotated[kind, about]
        told = told.default
    default = inspect.Parameter.empty if told in (..., MISSING) else told
    return inspect.Parameter(name, _KEYWORD, default=default, annotation=kind)


_KEYWORD = inspect.Parameter.KEYWORD_ONLY


# Groups


Imports = Annotated[
    list[str] | None,
    option(
        "Options",
        "Run this first, to add your own scores and metrics: a Python file or a module like "
        "package.module. Repeatable.",
        "--import",
        metavar="<file or module>",
    ),
]
_IMPORTS = _parameter("imports", Imports, None)
Json = Annotated[bool, option("Output", "Print JSON.", "--json")]
Details = Annotated[bool, option("Output", "Print every score, interval and test.", "--details")]
Report = Annotated[Path | None, option("Output", "The HTML report to write.")]
DataPath = Annotated[
    Path,
    option(
        "Data", "An image folder, .npz, .npy, .csv, .jsonl, .parquet or a COCO .json.", "--data"
    ),
]
Images = Annotated[
    Path | None, option("Data", "For a COCO .json: the folder or .zip of its images.")
]
InputColumns = Annotated[
    str | None,
    option(
        "Data",
        "A table's input columns: numbers or texts, as a,b,c, or one column of images.",
        *("--input-columns", "--image-column"),
    ),
]
OutcomesTask = Annotated[
    str | None, option("Task", "The task, if an .npz of raw outputs names none: $TASKS.", "--task")
]
Strict = Annotated[bool, option("Data", "Stop at the first image that cannot be read.", "--strict")]
BatchSize = Annotated[int, option("Run", "Inputs per batch.", min=1)]
Threads = Annotated[int | None, option("Run", "Threads per model.", min=1, max=1024)]
Restart = Annotated[
    bool, option("Run", "Start over instead of resuming an interrupted run.", "--restart")
]
Threshold = Annotated[float | None, option("Knob", "The threshold, instead of the file's.")]
OperatingPointName = Annotated[
    str | None, option("Knob", "A named operating point of the file, instead of its threshold.")
]
Metric = Annotated[
    str | None,
    option(
        "Task",
        "How answers are judged. regression: rmse, mse, mae or r2; detection: ap, ap50 or f1; "
        "multilabel: subset_accuracy or micro_f1.",
        "--metric",
    ),
]
LinkText = Annotated[
    str | None,
    option(
        "Link",
        "How to call a remote teacher, with joint.toml's keys, like 'send=jpeg,"
        "timeout_seconds=2,retries=1,when_unavailable=queue'.",
        "--link",
    ),
]
Preprocessing = Annotated[
    str | None,
    option(
        "Models",
        "How the model's images are prepared, like 'size=160,resize=crop,mean=0.5/0.5/0.5', or a "
        ".toml file.",
    ),
]
Layout = Annotated[
    str, option("Models", "detection: the layout of its outputs, like detr or yolov8, or auto.")
]
Trust = Annotated[
    bool,
    option(
        "Models",
        "Load pickles (.joblib, .pkl) and run the Python code that joint.toml names. Either can do "
        "anything on this machine.",
        "--trust",
    ),
]
Several = list[str] | None  # a repeatable option
FlopsGiven = Annotated[
    float | None, option("Models", "FLOPs per example, instead of counting them.")
]


@dataclass(frozen=True)
class DataOptions:
    """Which data are read, and how."""

    data: DataPath
    classes: Path | None = in_data("A file of class names, one per line, in the models' order.")
    input_columns: InputColumns = None
    label_column: str | None = in_data("A table's label column, if its name does not show it.")
    images: Images = None
    strict: Strict = False

    def open(
        self,
        task: str,
        labels: tuple[str, ...] | None = None,
        columns: tuple[str, ...] | None = None,
        models: Sequence[Model] = (),
    ) -> Data:
        """Open the data, for a task and for models with these labels and input columns."""
        from ebjr.data.open import open_data
        from ebjr.labels import check_same_classes
        from ebjr.outputs import check_unread
        from ebjr.tasks import as_task

        names = None if self.classes is None else read_names(self.classes)
        check_same_classes("--classes", names, "the joint model", labels, "remove --classes")
        found = open_data(
            self.data,
            classes=names,
            on_unreadable="error" if self.strict else "skip",
            targets_are=as_task(task).targets_are,
            images=self.images,
            input_columns=self.input_columns,
            label_column=self.label_column,
            columns=columns,
            models=models,
        )
        found.how = (names, self.input_columns, self.label_column, str(self.images))
        check_unread(_WRITTEN.get(), chain([found.path], (file for _, file in found.files())))
        return found


@dataclass(frozen=True)
class PairOptions:
    """The models to record, and how their inputs are prepared."""

    student: str | None = in_models(
        "The cheap model: .onnx, .pt2, .skops, .joblib, or Python code as file.py:name or "
        "package.module:name (a model, or a function or class that makes one)."
    )
    teacher: str | None = in_models(
        "The expensive model: the same kinds, or an http(s):// address."
    )
    model: Several = in_models(
        "A model, instead of --student and --teacher. Repeat it, cheapest model first."
    )
    look: Several = in_models(
        "Add a second look of the first model: mirror, shift=2/0 or size=192. Repeatable."
    )
    trust: Trust = False
    preprocess: Several = in_models(
        "Like --student-preprocess, for all models; or repeat it, once per model."
    )
    student_preprocess: Preprocessing = None
    teacher_preprocess: str | None = in_models("The same for the teacher.")
    student_flops: FlopsGiven = None
    teacher_flops: FlopsGiven = None
    student_dollars: float | None = in_models("Dollars per example, instead of measuring them.")
    teacher_dollars: float | None = in_models("The same for the teacher.")
    student_layout: Layout = "auto"
    teacher_layout: Layout = "auto"
    student_output: str | None = in_models("The raw output's name, if the model has several.")
    teacher_output: str | None = in_models("The same for the teacher.")
    output_kind: str = in_models(
        "What the models return: logits, probabilities, or auto to detect it.", default="auto"
    )
    student_options: str | None = in_models(
        "How the model runs, with joint.toml's keys, like 'batch_size=8,dtype=bfloat16,"
        "providers=CUDAExecutionProvider'."
    )
    teacher_options: str | None = in_models("The same for the teacher.")

    @property
    def paths(self) -> dict[str, str]:
        """The models' files or addresses by role, cheapest first."""
        from ebjr.outcomes import roles_of

        of_pair = [one for one in fields(self) if one.name.startswith(("student", "teacher"))]
        mixed = [one.name for one in of_pair if getattr(self, one.name) != one.default]
        if self.model and mixed:
            raise ValueError(
                f"--{mixed[0].replace('_', '-')} does not go with --model, which names all models: "
                "remove one of them"
            )
        given = self.model or [path for path in (self.student, self.teacher) if path is not None]
        if len(given) < 2:
            raise ValueError("give --student and --teacher, or --model at least twice")
        return dict(zip(roles_of(len(given)), given, strict=True))

    def load_all(
        self, task: str, data: DataOptions, threads: int | None, link: str | None
    ) -> tuple[list[Model], Data, dict[str, Any]]:
        """Return the models, with looks after the first, the data, and `record_all`'s arguments."""
        from ebjr.costs import Cost
        from ebjr.data.looks import look
        from ebjr.tasks import as_task

        paths, given = self.paths, self.preprocess or ["infer"]
        changes = [parse_look(text) for text in self.look or ()]
        if any(change in changes[:place] for place, change in enumerate(changes)):
            raise ValueError("the same --look is given twice: remove one")
        ways = given * len(paths) if len(given) == 1 else [*given]
        if len(ways) != (count := len(paths)):
            raise ValueError(
                f"give --preprocess once, or once for each of {count} models, not {len(ways)} times"
            )
        ways[0], ways[-1] = self.student_preprocess or ways[0], self.teacher_preprocess or ways[-1]
        costs = [Cost()] * count
        costs[0] = Cost(flops=self.student_flops, dollars=self.student_dollars)
        costs[-1] = Cost(flops=self.teacher_flops, dollars=self.teacher_dollars)
        # a detector is loaded for the classes of its data, and a table opened for its models
        boxes = data.open(task) if as_task(task).targets_are == "boxes" else None
        load = partial(self._load, task=task, boxes=boxes, threads=threads, link=link)
        models = [load(role, path) for role, path in paths.items()]
        for place, change in enumerate(changes, 1):
            models.insert(place, look(models[0], **change))
            ways.insert(place, ways[0])
            costs.insert(place, Cost() if "size" in change else costs[0])
        source = boxes or data.open(task, models=models)
        return models, source, {"preprocess": ways, "costs": costs}

    def _load(
        self,
        role: str,
        path: str,
        task: str,
        boxes: Data | None,
        threads: int | None,
        link: str | None,
    ) -> Model:
        """Load one model: a file, or an address that is called as `link` says."""
        from ebjr.backends import is_address, load_model
        from ebjr.backends.entry import check_remote, parse_link, parse_options
        from ebjr.backends.python import import_path
        from ebjr.link.far import FarTeacher

        layout = getattr(self, f"{role}_layout", "auto")
        output, given = (getattr(self, f"{role}_{name}", None) for name in ("output", "options"))
        if layout != "auto" and boxes is None:
            raise ValueError(f"--{role}-layout is for detection, not for {task}")
        chosen = {} if output is None else {"output": output}
        if is_address(path):
            check_remote(task)
            if given is not None:
                raise ValueError(f"--{role}-options are for a file: use --link for an address")
            options, how = parse_link(link or "")
            return FarTeacher(load_model(path, **options, **chosen), how)
        if link is not None and role == "teacher":
            raise ValueError("--link is for a teacher at an address, not for a file: remove it")
        options = {} if threads is None or path.endswith(".toml") else {"threads": threads}
        options |= parse_options(given or "") | chosen
        if boxes is not None and (import_path(path) is None or layout != "auto"):
            options |= {"layout": layout, "class_ids": boxes.class_ids}
            options |= {} if boxes.classes is None else {"classes": len(boxes.classes)}
        try:
            return load_model(path, trust=self.trust, **options)
        except TypeError as error:
            raise ValueError(f"--{role}-options: {error}") from error


@dataclass(frozen=True)
class GoalOptions:
    """What a threshold must reach, and whether with a guarantee: arguments of `calibrate`."""

    goal: str = in_goal(
        "What to choose the threshold for: match-teacher, accuracy, budget or crossing.",
        default="match-teacher",
    )
    tolerance: float | None = in_goal(
        "match-teacher: how far quality may be below the teacher's, like 0.005."
    )
    target: float | None = in_goal("accuracy: the quality to reach, like 0.95, or an RMSE.")
    flops: float | None = in_goal("budget: the most FLOPs per example.")
    dollars: float | None = in_goal("budget: the most dollars per example.")
    seconds: float | None = in_goal("budget: the most seconds per example.")
    joules: float | None = in_goal("budget: the most joules per example.")
    bytes: float | None = in_goal("budget: the most bytes per example over the link.")
    deferral_rate: float | None = in_goal("budget: the highest deferral rate, like 0.2.")
    margin: float | None = in_goal(
        "match-teacher, accuracy: standard errors to exceed the goal by, 0.75 by default; "
        "with 0, new examples often fall short of the goal."
    )
    delta: float | None = in_guarantee(
        "Guarantee the goal, with at most this probability of failure, like 0.1."
    )
    promise: str | None = in_guarantee(
        "What --delta guarantees: excess (match-teacher's default), harm, risk or rate."
    )
    loss_bound: float | None = in_guarantee(
        "regression with --delta: the loss of an example (rmse, mse: its squared error) counts up "
        "to this bound."
    )


@dataclass(frozen=True)
class PromiseOptions:
    """A promise about the answers to these data, instead of the file's threshold."""

    promise: list[str] | None = in_promise(
        "Promise something about these answers, by asking the teacher about a sample: "
        "agreement=0.97 with the teacher; precision=0.9, recall=0.9 or both, with --positive; "
        "accuracy=0.9, with --labels. Without a number: as much as --teacher-calls allow."
    )
    delta: float | None = in_promise("The probability that the promise is broken, like 0.1.")
    teacher_calls: int | None = in_promise(
        "The most rows to ask the teacher about, with the sample.", min=1
    )
    positive: str | None = in_promise("The class for precision and recall, by name or number.")
    labels: Path | None = in_promise(
        "accuracy: a .csv with columns name and label, for rows drawn at random."
    )
    window: int | None = in_promise("Make one promise per this many rows.", min=1)
    seed: int = in_promise("The seed of the sample.", default=0, min=0)

    def wanted(self) -> Wanted | None:
        """Return what is promised; None without a promise."""
        from ebjr.within import Wanted

        others = {**vars(self), "promise": None, "seed": None}  # these say nothing without it
        check_together("--promise", self.promise or None, **others)
        if not self.promise:
            return None
        promised: dict[str, float | None] = {}
        for name, has, share in (text.partition("=") for text in self.promise):
            if name.strip() in promised:
                raise ValueError(f"--promise {name.strip()} is given twice: give it once")
            promised[name.strip()] = parse_number(share) if has else None
        return Wanted(promised, None, self.delta, self.teacher_calls, self.positive)

    def targets(self, names: tuple[str, ...] | None) -> dict[str, int] | None:
        """Return the given labels as numbers, by row name."""
        from ebjr.labels import listed_places, whole_numbers

        if self.labels is None:
            return None
        table = csv.DictReader(read_text(self.labels).splitlines())
        rows, columns = list(table), [*(table.fieldnames or ())]
        if not rows or [*map(columns.count, ("name", "label"))] != [1, 1]:
            raise ValueError(
                f"{self.labels} must have the columns name and label, each once, and at least one "
                "row"
            )
        odd = next((row for row in rows if None in row or None in row.values()), None)
        if odd is not None:
            raise ValueError(
                f"{self.labels} must have one cell per column in each row, unlike the row of "
                f"{odd['name']!r}: quote a label that has a comma"
            )
        words = [row["label"] for row in rows]
        places = listed_places(words, names)
        found = {row["name"]: place for row, place in zip(rows, places, strict=True)}
        if len(found) < len(rows):
            raise ValueError(f"{self.labels} names a row twice")
        if names and whole_numbers(names) is None and {*words}.isdisjoint(names):
            said = (f"{word} is {name}" for word, name in enumerate(names[:5]))
            note(f"the labels in {self.labels} are numbers, not names: {', '.join(said)}")
        return found


@dataclass(frozen=True)
class ChoiceOptions:
    """The score that is compared with the threshold, and the blend."""

    score: str = in_score(
        "The score, like 'energy' or 'softmax(temperature=2)', or 'auto'.", default="auto"
    )
    blend: str = in_score(
        "The student's weight in deferred answers, or 'auto'; 0 is the paper's.", default="auto"
    )
    stages: str | None = in_score(
        "With more than two models: 'auto' to choose a chain of them, or the chain by name, "
        "like student,model-2,teacher."
    )
    most_stages: int | None = in_score("The most models in a chain, by default 3.", min=2)
    unit: str | None = in_score(
        "The cost to compare chains by, by default the first known: $UNITS."
    )


@dataclass(frozen=True)
class SplitOptions:
    """How the outcomes are split to calibrate and to report."""

    fraction: float | None = in_data(
        "The share of the outcomes to calibrate on, by default 0.5; the rest is for the report."
    )
    seed: int | None = in_data("The seed of the split, by default 0.")

    @property
    def given(self) -> dict[str, Any]:
        """The options that are given."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class TrafficOptions:
    """The expected traffic, where it differs from the recorded examples."""

    traffic: str | None = in_data(
        "Resample the examples to the expected traffic, like popular=0.75: the share of popular "
        "classes."
    )
    popular: str | None = in_data(
        "The popular classes, listed as in --known-classes; by default the classes that the "
        "student knows (of several students, the one that knows most)."
    )

    def of(self, tables: Mapping[str, Outcomes]) -> Traffic | None:
        """Return the mix of the traffic and its popular classes."""
        from ebjr.tasks.specialized.known_classes import Traffic

        if self.traffic is None:
            if self.popular is not None:
                raise ValueError("--popular goes with --traffic, like --traffic popular=0.75")
            return None
        known = [table.known_classes for table in tables.values() if table.known_classes]
        if self.popular is not None:
            labels = next(iter(tables.values())).labels
            return Traffic.parse(self.traffic, parse_classes(self.popular, labels))
        if not known:
            raise ValueError(
                "no student here is specialized: name the popular classes with --popular"
            )
        return Traffic.parse(self.traffic, max(known, key=len))


@dataclass(frozen=True)
class ServerOptions:
    """Where a server listens and how it answers: arguments of `run_server`."""

    host: str = in_network("The address to listen on.", default="127.0.0.1")
    port: int = in_network("The port; 0 takes a free one.", default=8080, min=0, max=65535)
    grpc_port: int | None = in_network(
        "Also serve gRPC on this port; 0 takes a free one.", min=0, max=65535
    )
    timeout_seconds: float = in_network(
        "Timeout in seconds, for requests that set none.", "--timeout", default=30.0
    )
    student_batch: int = in_batches("The student's largest batch, in rows.", default=32, min=1)
    teacher_batch: int = in_batches("The teacher's largest batch, in rows.", default=64, min=1)
    max_wait_seconds: float = in_batches(
        "Seconds to wait for a batch to fill under load.", "--max-wait", default=0.0, min=0.0
    )
    queue_rows: int = in_batches("The most rows in a queue.", default=4096, min=1)
    token: str | None = in_knob("Bearer token required to move the knob.", envvar="EBJR_TOKEN")
    token_file: Path | None = in_knob("File of such tokens, one per line; reread when it changes.")
    infer_token: str | None = in_network(
        "Bearer token required to ask for answers; --token works too.", envvar="EBJR_INFER_TOKEN"
    )
    infer_token_file: Path | None = in_network(
        "File of such tokens, one per line; reread when it changes."
    )
    ssl_certfile: Path | None = in_network(
        "Serve TLS with this certificate (PEM); reread when it changes."
    )
    ssl_keyfile: Path | None = in_network("The certificate's key, if it is in another file.")
    ssl_keyfile_password: str | None = in_network(
        "The key's password.", envvar="EBJR_SSL_KEYFILE_PASSWORD"
    )
    ssl_ca_certs: Path | None = in_network(
        "Accept only clients whose certificate these authorities (PEM) signed."
    )
    ready: str = in_network(
        "Which model must be reachable for the server to be ready: student or teacher (a remote "
        "one).",
        default="student",
    )
    no_warm_up: bool = in_run(
        "Start without a warm-up batch per model.", "--no-warm-up", default=False
    )
    hosts: list[str] | None = in_network(
        "Accept this Host name too, like that of a proxy. Repeatable.", "--allow-host"
    )
    audit_log: Path | None = in_output("A file to append each move of the knob to, as a JSON line.")
    hold: str | None = in_knob(
        "What the autopilot holds: p99=50ms, deferral_rate=0.2, flops=50M or dollars=0.0004."
    )
    audit_rate: float = in_monitor(
        "The share of kept answers that an idle teacher checks, like 0.01.",
        default=0.0,
        min=0.0,
        max=1.0,
    )
    state: Path | None = in_monitor(
        "The folder for the monitor's state; by default the audit log's."
    )
    log: str = in_monitor(
        "The log format: words, or json with a line per request and its id.", default="words"
    )
    otel: bool = in_monitor(
        "Send OpenTelemetry traces (needs the `otel` extra).", "--otel", default=False
    )


# Texts


def read_names(file: Path) -> list[str]:
    """Return a text file's lines, without empty ones; ValueError if there are no others."""
    if not (names := [line.strip() for line in read_text(file).splitlines() if line.strip()]):
        raise ValueError(f"{file} must have a class on each line, but is empty")
    return names


def parse_look(text: str) -> dict[str, Any]:
    """Read a `--look` as arguments of `ebjr.look`."""
    from ebjr.data.looks import LOOK_KEYS
    from ebjr.data.preprocess import Preprocess

    change: dict[str, Any] = {}
    with suppress(ValueError):  # the message would name --preprocess
        change = Preprocess.parse(re.sub(r"\bmirror\b(?!\s*=)", "mirror=true", text)).as_dict()
    if not change or change.keys() - LOOK_KEYS:
        raise ValueError(f"--look must be like mirror, shift=2/0 or size=192, not {text!r}")
    return change


def class_names(teacher: Model, source: Data) -> tuple[str, ...] | None:
    """Return the class names in the teacher's order; None if they are not known yet."""
    from ebjr.labels import are_names
    from ebjr.model import facts

    own = facts(teacher).labels
    if are_names(own):
        return own
    numbers = source.classes is not None and all(map(str.isdigit, source.classes))
    return None if numbers else source.classes


def parse_classes(text: str, names: tuple[str, ...] | None) -> list[int]:
    """Return classes as numbers, from a list or a file of numbers or names."""
    from ebjr.labels import listed_places

    file = Path(text)
    listed = read_names(file) if file.is_file() else filter(None, map(str.strip, text.split(",")))
    return listed_places(list(listed), names)


def linked(outcomes: Outcomes, text: str | None) -> Outcomes:
    """Return outcomes with a link's cost, as ``--over-link`` gives it, added to the teacher's."""
    if text is None:
        return outcomes
    from ebjr.backends.entry import check_table
    from ebjr.data.preprocess import values_of
    from ebjr.link.far import over_link

    try:
        parts = values_of(text, "it", example := "bytes=3000,seconds=0.04")
        check_table(parts, ("bytes", "seconds"), "it", () if parts else ("bytes", "seconds"))
        return over_link(outcomes, **{name: float(value) for name, value in parts.items()})
    except ValueError as error:
        raise ValueError(f"--over-link must be like {example}, not {text!r}: {error}") from None


@contextmanager
def progress(console: Console) -> Iterator[Tell]:
    """Show a progress bar for each kind of work."""
    from rich import progress

    class Amount(progress.ProgressColumn):
        """Bytes for a download, a count for other work."""

        def render(self, task: Any) -> Any:
            fetched = "fetch" in task.description or "download" in task.description
            column = progress.DownloadColumn() if fetched else progress.MofNCompleteColumn()
            return column.render(task)

    columns = progress.BarColumn(), Amount(), progress.TimeRemainingColumn()
    tasks: dict[str, Any] = {}
    with progress.Progress("{task.description}", *columns, console=console) as bar:

        def tell(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield tell
