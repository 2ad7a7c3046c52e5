"""The command line: parse, call, print."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

import ebjr
from ebjr.backends.exported import ExportedJoint
from ebjr.costs import Cost, further_columns, millijoules_text
from ebjr.curve import TradeOffCurve
from ebjr.data.open import ArrayData, Batch, Data, open_data
from ebjr.data.preprocess import Preprocess, infer_preprocess, prepared, unprepared
from ebjr.demo import DEMOS, run_demo
from ebjr.errors import EbjrError, GridWarning, PromiseWarning
from ebjr.evaluation.flops import count_flops
from ebjr.evaluation.power import Load, with_joules
from ebjr.evaluation.predictions import read_predictions
from ebjr.evaluation.profile import measure_latency
from ebjr.evaluation.profile import profile as profile_model
from ebjr.evaluation.tests import Comparison
from ebjr.evaluation.tune import tune
from ebjr.files import check_writable, sha256_of
from ebjr.joint import JointModel
from ebjr.joint_file import (
    Entry,
    JointConfig,
    ModelEntry,
    RemoteEntry,
    check_remote,
    entry_from_table,
    entry_of,
    parse_link,
)
from ebjr.known_classes import Traffic
from ebjr.link.far import FarTeacher
from ebjr.link.far import over_link as with_link
from ebjr.metrics import as_metric
from ebjr.model import Model, model_name
from ebjr.outcomes import Outcomes, record_batches
from ebjr.precision import SHOWN
from ebjr.predict import predict as predict_data
from ebjr.quantize import METHODS
from ebjr.quantize import quantize as quantize_model
from ebjr.scores import score_title
from ebjr.study import Study, run_study, study_point
from ebjr.sweep import run_sweep
from ebjr.tables import (
    flops_text,
    ms_text,
    plain_table,
    print_study,
    print_sweep,
    study_figures,
)
from ebjr.tasks import TASKS, as_task
from ebjr.threads import shared_cores

app = typer.Typer(
    name="ebjr",
    help="Any cheap model and any expensive model for the same task become one with a knob.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _console(*, stderr: bool = False) -> Console:
    """A console; a table that goes to a file or a pipe is as wide as it needs to be."""
    console = Console(stderr=stderr)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 160
    return console


out = _console()
err = _console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for a machine.")]
DataPath = Annotated[
    Path,
    typer.Option("--data", help="A folder of images, .npz, .parquet, .arrow, or COCO's .json."),
]
Images = Annotated[
    Path | None, typer.Option(help="COCO's .json: the folder or .zip of its images.")
]
Layout = Annotated[
    str, typer.Option(help="detection: how its outputs are read, as detr or yolov8; or auto.")
]
LinkText = Annotated[
    str | None,
    typer.Option(
        "--link",
        help="How a far teacher is asked, like 'send=jpeg,timeout_seconds=2,retries=1,"
        "when_unavailable=queue': any of joint.toml's keys for it.",
    ),
]
Threads = Annotated[int | None, typer.Option(help="Threads of each model.", min=1)]
Strict = Annotated[
    bool, typer.Option("--strict", help="Stop at the first image that cannot be read.")
]
ImageColumn = Annotated[
    str | None, typer.Option(help="A table's column of images, if its name does not tell.")
]
LabelColumn = Annotated[
    str | None, typer.Option(help="A table's column of labels, if its name does not tell.")
]
Classes = Annotated[
    Path | None, typer.Option(help="A file with the classes' names in the models' order.")
]
KnownClasses = Annotated[
    str | None,
    typer.Option(
        help="specialized: the classes that the student knows, in its order, by number or name: "
        "like 7,3,12 or dog,cat, or a file with one a line."
    ),
]
TrafficMix = Annotated[
    str | None,
    typer.Option(
        "--traffic",
        help="Draw the examples in another mix than recorded, like popular=0.75: so much of a "
        "popular class.",
    ),
]
Popular = Annotated[
    str | None,
    typer.Option(
        help="The popular classes, listed like --known-classes; else those that the student knows "
        "(of several the one that knows the most)."
    ),
]
Score = Annotated[
    str, typer.Option(help="A score's name, like 'energy' or 'softmax(temperature=2)', or 'auto'.")
]
Blend = Annotated[
    str, typer.Option(help="The student's weight in a deferred answer, or 'auto'; 0 is the paper.")
]
Goal = Annotated[str, typer.Option(help="match-teacher, accuracy, budget or crossing.")]
Tolerance = Annotated[
    float | None, typer.Option(help="match-teacher: how far below the teacher it may be, as 0.005.")
]
Target = Annotated[float | None, typer.Option(help="accuracy: what to reach, as 0.95, or an RMSE.")]
Flops = Annotated[float | None, typer.Option(help="budget: FLOPs per example.")]
Seconds = Annotated[float | None, typer.Option(help="budget: seconds per example.")]
Joules = Annotated[float | None, typer.Option(help="budget: joules per example.")]
Bytes = Annotated[
    float | None, typer.Option(help="budget: bytes per example over the link to the teacher.")
]
Rate = Annotated[float | None, typer.Option(help="budget: the most to defer, as 0.2.")]
Delta = Annotated[
    float | None,
    typer.Option(help="Guarantee the goal: it may fail with this probability, as 0.1."),
]
Promise = Annotated[
    str | None,
    typer.Option(help="What delta guarantees: excess (match-teacher's default), harm, risk, rate."),
]
LossBound = Annotated[
    float | None,
    typer.Option(help="regression with delta: the largest loss of an example that counts."),
]
MetricName = Annotated[
    str | None,
    typer.Option("--metric", help="regression: rmse, mse, mae or r2; detection: ap, ap50 or f1."),
]
Fraction = Annotated[
    float, typer.Option(help="The share of the outcomes to calibrate on; the rest is reported on.")
]
Seed = Annotated[int, typer.Option(help="Of the split.")]


def main() -> None:
    """Run the command line; a user's mistake is one sentence and exit code 2."""
    try:
        with warnings.catch_warnings():
            for said in (PromiseWarning, GridWarning):
                warnings.simplefilter("always", said)
            warnings.showwarning = _show_warning
            app()
    except (EbjrError, ValueError, OSError) as error:
        err.print(f"ebjr: {escape(_sentence(error))}", style="red", highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        err.print("ebjr: interrupted; no file was left half written", highlight=False)
        sys.exit(130)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    err.print(f"WARNING: {escape(' '.join(str(message).split()))}", style="yellow", soft_wrap=True)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return " ".join(str(error).split())


@app.callback(invoke_without_command=True)
def _about(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        out.print(ebjr.__version__)
        raise typer.Exit


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--output", "-o", help="Where the files go.")] = Path(
        "ebjr-demo"
    ),
    task: Annotated[str, typer.Option(help=f"{', '.join(DEMOS)}.")] = "classification",
    recorded: Annotated[
        bool, typer.Option("--recorded", help="Use the shipped answers: no download.")
    ] = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Shipped models on real data: calibrate, evaluate, report."""
    with _progress() as tell:
        result = run_demo(folder, task=task, recorded=recorded, threads=threads, progress=tell)
    if result.recorded:
        err.print(
            f"NOTE: these are the shipped, recorded answers: {result.reason}",
            style="bold yellow",
            highlight=False,
        )
    several = len(result.sweep.studies) > 1
    figures = study_figures(result.study)
    figures |= {"sweep": result.sweep.as_dict()} if several else {}
    figures |= {"recorded": result.recorded, "joint_seconds": result.joint_seconds}
    figures |= {"files": {name: str(path) for name, path in result.files.items()}}
    if as_json:
        _print_json(figures)
        return
    if several:
        print_sweep(out, result.sweep)
    print_study(out, result.study, result.joint_seconds)
    out.print(f"\nReport: {result.files['report.html'].resolve().as_uri()}", soft_wrap=True)
    if "joint.toml" in result.files:
        out.print(f"Knob:   {result.files['joint.toml']}", soft_wrap=True)


@app.command()
def record(
    student: Annotated[str, typer.Option(help="The cheap model: .onnx or .pt2.")],
    teacher: Annotated[
        str, typer.Option(help="The expensive model: .onnx, .pt2, or an http(s):// address.")
    ],
    data: DataPath,
    output: Annotated[Path, typer.Option("--output", "-o", help="The outcomes file, .npz.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Inputs given to a model at once.")] = 64,
    student_preprocess: Annotated[
        str | None,
        typer.Option(help="Like 'size=160,resize=crop,mean=0.5/0.5/0.5', or a .toml file."),
    ] = None,
    teacher_preprocess: Annotated[str | None, typer.Option(help="The same for it.")] = None,
    student_flops: Annotated[float | None, typer.Option(help="Instead of counting them.")] = None,
    teacher_flops: Annotated[float | None, typer.Option(help="Instead of counting them.")] = None,
    link: LinkText = None,
    threads: Threads = None,
    classes: Classes = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    strict: Strict = False,
    half: Annotated[bool, typer.Option("--half", help="Keep half precision.")] = False,
    task: Annotated[str, typer.Option(help=f"{', '.join(TASKS)}.")] = "classification",
    known_classes: KnownClasses = None,
    metric: MetricName = None,
    images: Images = None,
    student_layout: Layout = "auto",
    teacher_layout: Layout = "auto",
    as_json: Json = False,
) -> None:
    """Run both models once on some data and keep what they said."""
    measure = as_metric(metric, as_task(task).name)
    columns = {"image_column": image_column, "label_column": label_column}
    source = _open(data, classes, strict, numbers=task == "regression", images=images, **columns)
    if task == "regression" and source.has_targets and not isinstance(source, ArrayData):
        raise ValueError(f"regression reads numbers from the targets of an .npz, not from {data}")
    if not source.has_targets:
        err.print(
            f"NOTE: {escape(str(data))} has no labels: the teacher's own answers are taken for "
            f"right, and every {measure.title} is agreement with it",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )
    known = _known_classes(known_classes, source.classes)
    as_task(task, known)
    check_writable(output)
    models: dict[str, Model] = {}
    entries: dict[str, Entry] = {}
    loads: dict[str, Load] = {}
    given = {
        "student": (student, student_preprocess, student_flops, student_layout),
        "teacher": (teacher, teacher_preprocess, teacher_flops, teacher_layout),
    }
    first = next(source.batches(batch_size))
    _check_labels(first, task, data)
    for role, (path, preprocess, flops, layout) in given.items():
        options, how = _threads(threads) | _detector(task, layout, source), None
        if _is_url(path):
            check_remote(task)
            options, how = parse_link(link or "")
        flag = f"--{role}-preprocess"
        model = _prepared(ebjr.load_model(path, **options), preprocess, first, flag)
        models[role] = model
        if how is not None:  # asked again where that helps, and all rows
            models[role] = FarTeacher(model, replace(how, rows_per_second=None))
        else:
            loads[role] = _load(model, first, flops)
            flops = loads[role].flops if flops is None else flops
        entries[role] = entry_of(model, Cost(flops=flops), how)
    costs = {role: entry.cost for role, entry in entries.items()}
    if len(loads) == len(models):  # joules of what runs elsewhere are not ours to count
        with err.status("finding the joules of both models"):
            costs = with_joules(costs, loads)
    loads.clear()  # a whole batch of each model's inputs
    entries = {role: replace(entry, cost=costs[role]) for role, entry in entries.items()}
    with _progress() as tell:
        outcomes = record_batches(
            models["student"],
            models["teacher"],
            _counted(source, batch_size, tell, "recording both models"),
            student_cost=entries["student"].cost,
            teacher_cost=entries["teacher"].cost,
            labels=None if task == "regression" else source.classes,
            task=task,
            metric=metric,
            known_classes=known,
        )
    _report_unreadable(source.unreadable)
    folder = output.resolve().parent
    provenance = {role: entry.as_table(folder) for role, entry in entries.items()}
    replace(outcomes, models=provenance).save(output, half=half)
    _report_empty(outcomes)
    figures = {
        "examples": len(outcomes),
        "unreadable": len(source.unreadable),
        "labeled": outcomes.labeled,
        "metric": outcomes.metric,
        "student_quality": outcomes.quality("student"),
        "teacher_quality": outcomes.quality("teacher"),
        "student_cost": outcomes.student_cost.as_dict(),
        "teacher_cost": outcomes.teacher_cost.as_dict(),
        "output": str(output),
    }
    if as_json:
        _print_json(figures)
        return
    both = outcomes.student_cost + outcomes.teacher_cost
    table = plain_table("", measure.title, "MFLOPs", "ms/example", *further_columns(both, both))
    for role in ("student", "teacher"):
        cost = getattr(outcomes, f"{role}_cost")
        further = further_columns(both, cost).values()
        table.add_row(
            role, measure.text(outcomes.quality(role)), flops_text(cost), ms_text(cost), *further
        )
    out.print(table)
    out.print(f"{len(outcomes):,} examples in {output}", soft_wrap=True)


@app.command()
def calibrate(
    outcomes: Annotated[
        list[Path],
        typer.Argument(
            help="What `ebjr record` wrote. Several: students of more or fewer classes, recorded "
            "on the same examples beside the same teacher, of which the best is taken."
        ),
    ],
    goal: Goal = "match-teacher",
    tolerance: Tolerance = None,
    target: Target = None,
    flops: Flops = None,
    seconds: Seconds = None,
    joules: Joules = None,
    bytes: Bytes = None,
    deferral_rate: Rate = None,
    delta: Delta = None,
    promise: Promise = None,
    loss_bound: LossBound = None,
    metric: MetricName = None,
    score: Score = "auto",
    blend: Blend = "auto",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The joint.toml to write.")
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="The student's file, if the outcomes do not name it.")
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="The teacher's file or address, if it is another than was recorded."),
    ] = None,
    link: LinkText = None,
    over_link: Annotated[
        str | None,
        typer.Option(
            help="What a link adds to an example that the teacher answers, like "
            "bytes=3000,seconds=0.04, where both models were recorded side by side."
        ),
    ] = None,
    fraction: Fraction = 0.5,
    seed: Seed = 0,
    name: Annotated[str, typer.Option(help="What the joint model is called.")] = "joint",
    traffic: TrafficMix = None,
    popular: Popular = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML report here.")] = None,
    as_json: Json = False,
) -> None:
    """Choose a threshold on one half of the outcomes, and report on the other."""
    tables = {
        path.stem: _linked(_judged(Outcomes.load(path), metric), over_link) for path in outcomes
    }
    if len(tables) < len(outcomes):
        raise ValueError("the outcomes' files must have different names, which tell them apart")
    for file in (output, report):
        if file is not None:
            check_writable(file)
    for table in tables.values():
        _check_classes(table)
    sweep = run_sweep(
        tables,
        goal,
        traffic=_traffic(traffic, popular, tables),
        score=score,
        blend=blend,
        fraction=fraction,
        seed=seed,
        tolerance=tolerance,
        target=target,
        flops=flops,
        seconds=seconds,
        joules=joules,
        bytes=bytes,
        deferral_rate=deferral_rate,
        delta=delta,
        promise=promise,
        loss_bound=loss_bound,
    )
    found = sweep.study
    several = len(tables) > 1
    if output is not None:
        path = next(path for path in outcomes if path.stem == sweep.best)
        given = {"student": student, "teacher": teacher}
        entries = _entries(found.outcomes, path, given, link)
        JointConfig.of_study(entries["student"], entries["teacher"], found, name=name).save(output)
    if report is not None:
        title = f"EBJR: {sweep.best}"
        found.write_report(report, title=title, extras=sweep.extras if several else ())
    if as_json:
        _print_json(study_figures(found) | ({"sweep": sweep.as_dict()} if several else {}))
        return
    if several:
        print_sweep(out, sweep)
    print_study(out, found)
    if report is not None:
        out.print(f"\nReport: {report.resolve().as_uri()}", soft_wrap=True)
    if output is not None:
        out.print(f"\nWrote {output}: the knob is router.threshold in it", soft_wrap=True)


@app.command()
def evaluate(
    outcomes: Annotated[Path, typer.Argument(help="What `ebjr record` wrote.")],
    joint: Annotated[
        Path | None, typer.Option(help="A joint.toml: evaluate its threshold.")
    ] = None,
    compare: Annotated[
        list[Path] | None,
        typer.Option(
            help="Outcomes of other models, or an .npz with `predictions`, on the same examples: "
            "is the joint model better by more than chance? May be given several times."
        ),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML report here.")] = None,
    metric: MetricName = None,
    fraction: Fraction = 0.5,
    seed: Seed = 0,
    title: Annotated[str | None, typer.Option(help="Of the report.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="detection: what was recorded, to show images in the report."),
    ] = None,
    images: Images = None,
    as_json: Json = False,
) -> None:
    """Every score's figures on examples that no threshold was chosen on."""
    table = _judged(Outcomes.load(outcomes), metric)
    if report is not None:
        check_writable(report)
    _check_classes(table)
    if joint is None:
        found = run_study(table, fraction=fraction, seed=seed)
    else:
        config = JointConfig.read(joint)
        chosen_by = config.calibration.get("chosen_on", {}).get("metric")
        if metric is None and config.task == table.task:
            table = _judged(table, chosen_by)
        found = _study_of(config, table, fraction, seed)
    compared = _compared(found, compare or [])
    if report is not None:
        notes = {"Outcomes file": outcomes.name}
        title = title or f"EBJR: {outcomes.stem}"
        shown = [] if data is None else _shown(found, data, images)
        found.write_report(report, title=title, notes=notes, compared=compared, images=shown)
    if as_json:
        _print_json(study_figures(found, compared))
        return
    print_study(out, found, compared=compared)
    if report is not None:
        out.print(f"\nReport: {report.resolve().as_uri()}", soft_wrap=True)


@app.command()
def predict(
    joint: Annotated[Path, typer.Argument(help="What `ebjr calibrate` or `ebjr export` wrote.")],
    data: DataPath,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The answers: .parquet, or else JSON lines.")
    ],
    threshold: Annotated[float | None, typer.Option(help="Instead of the file's.")] = None,
    operating_point: Annotated[
        str | None, typer.Option(help="One that the file names, instead of its threshold.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Inputs given to a model at once.")] = 64,
    overlap: Annotated[
        int, typer.Option(min=1, help="Batches in work at once; the cores are shared.")
    ] = 2,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew, whatever an interrupted run left.")
    ] = False,
    threads: Threads = None,
    classes: Classes = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    strict: Strict = False,
    images: Images = None,
    on_ray: Annotated[
        bool, typer.Option("--ray", help="On a Ray cluster: RAY_ADDRESS's, or one made here.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Answer every example of some data with the joint model; interrupted, it goes on."""
    known = _read_joint(joint, threads, overlap)
    if on_ray and not isinstance(known, JointConfig):
        raise ValueError(
            f"on Ray student and teacher run on their own: give the joint.toml that {joint} was "
            "exported from"
        )
    table = {"image_column": image_column, "label_column": label_column}
    numbers = known.task == "regression"
    source = _open(data, classes, strict, numbers=numbers, images=images, **table)
    check_writable(output)
    chosen = _chosen_threshold(known, threshold, operating_point)
    how: dict[str, Any] = {
        "batch_size": batch_size,
        "about": {"joint": sha256_of(joint), "data": str(data.resolve())},
        "restart": restart,
    }
    with _kept(output), _progress() as tell:
        if on_ray:
            from ebjr.scale.ray_data import predict_file

            done = predict_file(
                joint, source, output, threshold=chosen, threads=threads, tell=tell, **how
            )
        else:
            model: JointModel | ExportedJoint
            if isinstance(known, JointConfig):
                model = known.load(**_threads(threads or known.threads_for(overlap)))
            else:
                model = known
            model.router.threshold = chosen
            done = predict_data(
                model, source, output, overlap=overlap, labels=known.labels, tell=tell, **how
            )
    if done.resumed:
        err.print(f"NOTE: {done.resumed:,} answers are of an interrupted run", style="yellow")
    _report_unreadable(done.unreadable)
    counts = {key: getattr(done, key) for key in ("examples", "deferred", "degraded", "resumed")}
    figures: dict[str, Any] = {**counts, "unreadable": len(done.unreadable), "output": str(output)}
    figures["deferral_rate"] = done.deferred / max(done.examples, 1)
    if as_json:
        _print_json(figures)
        return
    share = f"{figures['deferral_rate']:.1%}"
    out.print(f"{done.examples:,} answers in {output}; {share} by the teacher", soft_wrap=True)


@app.command()
def export(
    joint: Annotated[Path, typer.Argument(help="What `ebjr calibrate` wrote.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The .onnx file to write.")
    ] = None,
    triton: Annotated[
        Path | None, typer.Option(help="A folder: write a model repository for Triton.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="The knob's default, instead of the file's.")
    ] = None,
    operating_point: Annotated[
        str | None, typer.Option(help="One that the file names, instead of its threshold.")
    ] = None,
    opset: Annotated[
        int | None,
        typer.Option(min=1, help="Of ONNX's operators; the higher of both models' if left out."),
    ] = None,
    external_data: Annotated[
        bool, typer.Option("--external-data", help="Weights in a second file, as from 2 GB on.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Student, score, router and teacher as one ONNX file, the threshold an input."""
    if (output is None) == (triton is None):
        raise ValueError("give either --output, the file to write, or --triton, a folder")
    from ebjr.export import export_joint, export_triton

    config = JointConfig.read(joint)
    options: dict[str, Any] = {
        "threshold": _chosen_threshold(config, threshold, operating_point),
        "opset": opset,
        "external_data": external_data or None,
    }
    with err.status("exporting"):
        if output is not None:
            check_writable(output)
            found = export_joint(config, output, **options)
        else:
            assert triton is not None
            found = export_triton(config, triton, **options)
    if as_json:
        _print_json(found.as_dict())
        return
    table = plain_table(escape(str(found.path)), "")
    beside = "" if found.data is None else f", with {found.data.name} beside it"
    table.add_row("size", f"{found.bytes / 1e6:,.1f} MB{beside}")
    table.add_row("opset, IR version", f"{found.opset}, {found.ir_version}")
    table.add_row(
        "input", escape(f"{found.input['name']} {found.input['dtype']} {found.input['shape']}")
    )
    table.add_row(
        "threshold", f"{found.threshold:g} unless given; on {escape(score_title(found.score))}"
    )
    table.add_row("beside the joint model", f"same decisions, output within {found.difference:.1e}")
    out.print(table)


@app.command()
def serve(
    joint: Annotated[
        Path,
        typer.Argument(
            help="What `ebjr calibrate` wrote; or a classifier alone, .onnx or .pt2, as a teacher "
            "for students elsewhere."
        ),
    ],
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
    grpc_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Listen for gRPC too; 0 takes a free port."),
    ] = None,
    student_batch: Annotated[int, typer.Option(min=1, help="The student's most rows.")] = 32,
    teacher_batch: Annotated[int, typer.Option(min=1, help="The teacher's most rows.")] = 64,
    max_wait: Annotated[
        float, typer.Option(min=0.0, help="Seconds to wait for a batch to fill under load.")
    ] = 0.0,
    queue_rows: Annotated[int, typer.Option(min=1, help="The most rows that may wait.")] = 4096,
    timeout: Annotated[float, typer.Option(help="Seconds for a request that names none.")] = 30.0,
    body_bytes: Annotated[
        int, typer.Option(min=1, help="The largest request, also when decompressed.")
    ] = 64 * 2**20,
    connections: Annotated[int, typer.Option(min=1, help="The most clients at once.")] = 900,
    token: Annotated[
        str | None,
        typer.Option(envvar="EBJR_TOKEN", help="Who moves the knob must show it as a bearer."),
    ] = None,
    audit_log: Annotated[
        Path | None,
        typer.Option(help="A file to which each move of the knob is appended, a JSON line each."),
    ] = None,
    hold: Annotated[
        str | None,
        typer.Option(help="The autopilot holds p99=50ms, deferral_rate=0.2 or flops=50M."),
    ] = None,
    between: Annotated[
        str | None,
        typer.Option(
            help="Its bounds: two deferral rates or operating points, like 0.05,match-teacher."
        ),
    ] = None,
    audit_rate: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="The share of kept answers that the teacher checks when idle, as 0.01.",
        ),
    ] = 0.0,
    state: Annotated[
        Path | None,
        typer.Option(help="A folder for the monitor's state; else that of the audit log."),
    ] = None,
    log: Annotated[
        str, typer.Option(help="words, or json: with a line for each request, and its id.")
    ] = "words",
    otel: Annotated[
        bool, typer.Option("--otel", help="Send OpenTelemetry traces (the extra `otel`).")
    ] = False,
    preprocess: Annotated[
        str | None,
        typer.Option(help="Of a classifier alone that is to take images, like 'size=224'."),
    ] = None,
    threads: Threads = None,
) -> None:
    """One endpoint for both models: Open Inference Protocol v2, and a live knob."""
    from ebjr.serving.app import run_server
    from ebjr.serving.limits import Limits, exposure
    from ebjr.serving.served import served_alone, served_of

    prepare = None if preprocess is None else _preprocess(preprocess)
    if joint.suffix in (".onnx", ".pt2"):
        served = served_alone(joint, prepare, **_threads(threads))
    elif prepare is not None:
        raise ValueError("joint.toml has the preprocessing of both models: leave --preprocess out")
    else:
        config = JointConfig.read(joint)  # both models are at work at once
        served = served_of(config, **_threads(threads or config.threads_for(2)))
    if (warning := exposure(host, token)) is not None:
        err.print(f"WARNING: {warning}", style="yellow", soft_wrap=True)
    run_server(
        served,
        host=host,
        port=port,
        grpc_port=grpc_port,
        token=token,
        timeout_seconds=timeout,
        limits=Limits(body_bytes=body_bytes, connections=connections),
        student_batch=student_batch,
        teacher_batch=teacher_batch,
        max_wait_seconds=max_wait,
        queue_rows=queue_rows,
        audit_log=audit_log,
        hold=hold,
        between=None if between is None else between.split(","),
        audit_rate=audit_rate,
        state=state,
        log=log,
        otel=otel,
        started=lambda url: out.print(f"serving {served.name} at {url}", soft_wrap=True),
    )


@app.command()
def profile(
    model: Annotated[str, typer.Argument(help="A model file: .onnx or .pt2.")],
    input_shape: Annotated[
        str | None, typer.Option(help="Of one batch, like 1,3,32,32; an .onnx file may say it.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="How long to measure each batch size.")] = 2.0,
    threads: Threads = None,
    tuned: Annotated[
        bool,
        typer.Option("--tune", help="Measure which threads, overlap and batch size are fastest."),
    ] = False,
    as_json: Json = False,
) -> None:
    """FLOPs, parameters, latency, memory and joules of a model."""
    if tuned:
        _print_tuning(model, _shape(input_shape), seconds, as_json)
        return
    with err.status("measuring"):
        loaded = ebjr.load_model(model, **_threads(threads))
        found = profile_model(loaded, _shape(input_shape), seconds=seconds)
    if as_json:
        _print_json(found.as_dict())
        return
    table = plain_table(escape(found.name), "")
    if found.flops is not None:
        table.add_row("FLOPs per example", f"{found.flops:,.0f}")
    if found.parameters is not None:
        table.add_row("parameters", f"{found.parameters:,}")
    if found.peak_memory_bytes is not None:
        table.add_row("peak memory", f"{found.peak_memory_bytes / 2**20:,.1f} MiB")
    for latency in found.latencies:
        table.add_row(
            f"batch of {latency.batch_size}",
            f"p50 {1e3 * latency.p50_seconds:.3f} ms, p95 {1e3 * latency.p95_seconds:.3f} ms",
        )
    for power in found.powers:
        words = f"{millijoules_text(power.joules)} mJ, {power.how}"
        table.add_row(f"an example in a batch of {power.batch_size}", words)
    out.print(table)
    if found.powers:
        power = found.powers[0]
        out.print(f"\njoules are {power.how}: {power.source}", highlight=False, soft_wrap=True)


def _print_tuning(path: str, shape: tuple[int, ...] | None, seconds: float, as_json: bool) -> None:
    """How a model is run best here, as a table."""
    if Path(path).suffix.lower() != ".onnx":
        raise ValueError(f"threads are tuned for an .onnx file, not for {path}")
    with err.status("measuring every setting in turn"):
        found = tune(
            lambda threads: ebjr.load_model(path, threads=threads), shape, seconds=seconds / 5
        )
    if as_json:
        _print_json({"settings": [setting.as_dict() for setting in found]})
        return
    table = plain_table("threads", "overlap", "batch", "examples/s", "ms/batch")
    for each in found:
        rate, time = f"{each.examples_per_second:,.0f}", f"{1e3 * each.batch_seconds:.3f}"
        table.add_row(str(each.threads), str(each.overlap), str(each.batch_size), rate, time)
    out.print(table)
    best, quick = found[0], min(found, key=lambda each: each.batch_seconds)
    out.print(
        f"\nmost examples per second: --threads {best.threads} --overlap {best.overlap} "
        f"--batch-size {best.batch_size}\nthe quickest answer: --threads {quick.threads}, a batch "
        f"of {quick.batch_size}",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def quantize(
    model: Annotated[Path, typer.Argument(help="A model file, .onnx, in single precision.")],
    data: DataPath,
    output: Annotated[Path, typer.Option("--output", "-o", help="The .onnx file to write.")],
    preprocess: Annotated[
        str | None,
        typer.Option(help="Like 'size=160,resize=crop,mean=0.5/0.5/0.5', or a .toml file."),
    ] = None,
    examples: Annotated[int, typer.Option(min=1, help="Inputs to calibrate on, the first.")] = 512,
    method: Annotated[
        str, typer.Option(help=f"How ranges are chosen: {', '.join(METHODS)}.")
    ] = "minmax",
    weight_bits: Annotated[
        int,
        typer.Option(
            help="7, right on every processor; or 8, where it adds in 32 bits (x86 with VNNI)."
        ),
    ] = 7,
    threads: Threads = None,
    image_column: ImageColumn = None,
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Write a model in eight-bit numbers: a cheaper student, or a teacher as its own student."""
    source = _open(data, None, strict, image_column=image_column)
    check_writable(output)
    loaded = ebjr.load_model(model, **_threads(threads))
    first = next(source.batches(1))
    _, chosen = unprepared(_prepared(loaded, preprocess, first, "--preprocess"))
    with _progress() as tell:
        found = quantize_model(
            model,
            (batch.inputs for batch in source.batches(32)),
            output,
            preprocess=chosen,
            examples=examples,
            method=method,
            weight_bits=weight_bits,
            tell=tell,
        )
    _report_unreadable(source.unreadable)
    with err.status("measuring both"):
        row = first.inputs if chosen is None else chosen(first.inputs)
        both = [loaded, ebjr.load_model(output, **_threads(threads))]
        sizes = [size for size in (1, 64) if getattr(loaded, "fixed_batch", None) in (None, size)]
        times = [
            measure_latency(each, lambda n: np.repeat(row, n, axis=0), sizes, seconds=1.0)
            for each in both
        ]
    seconds = {
        f"batch_{size}": {"before": before.p50_seconds, "after": after.p50_seconds}
        for size, before, after in zip(sizes, *times, strict=True)
    }
    if as_json:
        _print_json(found.as_dict() | {"seconds": seconds})
        return
    table = plain_table("", "before", "after")
    table.add_row(
        "size", *(f"{n / 2**20:,.2f} MiB" for n in (found.bytes_before, found.bytes_after))
    )
    for size, pair in zip(sizes, seconds.values(), strict=True):
        table.add_row(f"batch of {size}", *(f"{1e3 * value:.3f} ms" for value in pair.values()))
    out.print(table)
    kinds = ", ".join(f"{count} {kind}" for kind, count in found.operators.items())
    alike = (
        "" if found.agreement is None else f"{found.agreement:.2%} of their best answers alike; "
    )
    out.print(
        f"\n{kinds} in eight bits, calibrated on {found.examples:,} examples: {alike}outputs moved "
        f"by {found.difference:.3f} of their deviation\n{output}",
        highlight=False,
        soft_wrap=True,
    )


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text("utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{file} is no text file: give one with a class a line") from None


def _known_classes(text: str | None, names: Sequence[str] | None) -> list[int] | None:
    """Labels from a list or a file of them, by number or by name."""
    if text is None:
        return None
    file = Path(text)
    listed = _lines(file) if file.is_file() else text.split(",")
    found = []
    for word in filter(None, (entry.strip() for entry in listed)):
        if names is not None and word in names:
            found.append(list(names).index(word))
        elif word.isdecimal():
            found.append(int(word))
        else:
            known = f"; there are {', '.join(names)}" if names else ", and the data name no classes"
            raise ValueError(f"known class {word!r} is no number and no class's name{known}")
    return found


def _judged(outcomes: Outcomes, metric: str | None) -> Outcomes:
    """The outcomes judged by another metric, if one is given."""
    return outcomes if metric is None else replace(outcomes, metric=metric)


def _check_classes(outcomes: Outcomes) -> None:
    if outcomes.measure.binary and len(np.unique(outcomes.targets)) < 2:
        raise ValueError(
            f"all {len(outcomes)} targets are of class {outcomes.targets[0]}: calibrating needs "
            "examples of at least two classes"
        )


def _traffic(
    text: str | None, popular: str | None, tables: Mapping[str, Outcomes]
) -> Traffic | None:
    """The mix of the traffic, and which classes are the popular ones."""
    if text is None:
        if popular is not None:
            raise ValueError("--popular goes with --traffic, like --traffic popular=0.75")
        return None
    first = next(iter(tables.values()))
    if popular is not None:
        chosen: Any = _known_classes(popular, first.labels)
    else:
        known = [table.known_classes for table in tables.values() if table.known_classes]
        if not known:
            raise ValueError("no student here is specialized: say with --popular what is popular")
        chosen = max(known, key=len)
    return Traffic.parse(text, chosen)


def _study_of(config: JointConfig, outcomes: Outcomes, fraction: float, seed: int) -> Study:
    """The study of a threshold that is there already, on examples it was not chosen on."""
    calibration = config.calibration
    if calibration.get("outcomes") == outcomes.fingerprint:
        fraction = calibration.get("split_fraction", fraction)
        seed = calibration.get("split_seed", seed)
    table = outcomes.with_scale(config.rescale)
    curve = TradeOffCurve.of(table, config.score, config.blend, keep=[config.threshold])
    point = replace(curve.at(threshold=config.threshold), certified=config.certificate)
    goal = {key: calibration[key] for key in ("goal", *_GOAL_ARGUMENTS) if key in calibration}
    traffic = _recorded_traffic(calibration)
    return study_point(outcomes, point, goal or None, fraction=fraction, seed=seed, traffic=traffic)


def _recorded_traffic(calibration: Mapping[str, Any]) -> Traffic | None:
    """The mix that a threshold was calibrated for."""
    table = calibration.get("traffic")
    return None if table is None else Traffic(table["popular"], table["popular_classes"])


def _compared(study: Study, paths: list[Path]) -> list[Comparison]:
    """The joint model against every prediction in some files, on the held-out half."""
    return [
        study.compare(prediction, name)
        for path in paths
        for name, prediction in read_predictions(path, study.outcomes, study.held_out_rows).items()
    ]


_GOAL_ARGUMENTS = (
    *("tolerance", "target", "flops", "seconds", "joules", "bytes"),
    *("deferral_rate", "delta", "promise", "loss_bound"),
)


def _entries(
    outcomes: Outcomes, path: Path, given: dict[str, str | None], link: str | None
) -> dict[str, Entry]:
    """Both models for joint.toml: as recorded, unless given."""
    costs = {"student": outcomes.student_cost, "teacher": outcomes.teacher_cost}
    entries = {}
    for role, source in given.items():
        table = outcomes.models.get(role)
        if table is None and source is None:
            raise ValueError(
                f"{path} does not say which file its {role} was: give it with --{role}"
            )
        entry = None
        if table is not None:
            entry = entry_from_table(table, path.resolve().parent, f"{path}: {role}")
        if source is not None:
            preprocess = None if entry is None else entry.preprocess
            entry = replace(_entry(source, link), preprocess=preprocess)
        elif isinstance(entry, RemoteEntry) and link is not None:
            options, how = parse_link(link)
            entry = replace(entry, options={**entry.options, **options}, link=how)
        assert entry is not None
        entries[role] = replace(entry, cost=costs[role])
    return entries


def _entry(source: str, link: str | None) -> Entry:
    """The entry of a file or of an address, as it is now."""
    if not _is_url(source):
        return ModelEntry.of_file(source)
    options, how = parse_link(link or "")
    return entry_of(ebjr.load_model(source, **options), link=how)


def _is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def _linked(outcomes: Outcomes, text: str | None) -> Outcomes:
    """The outcomes with what a link adds to the teacher's cost."""
    if text is None:
        return outcomes
    try:
        parts = dict(part.split("=") for part in text.split(","))
        added = {name.strip(): float(value) for name, value in parts.items()}
        return with_link(outcomes, **added)
    except (ValueError, TypeError):
        raise ValueError(f"--over-link is like bytes=3000,seconds=0.04, not {text!r}") from None


def _prepared(model: Model, text: str | None, first: Batch, flag: str) -> Model:
    """The model with its preprocessing: as given, or inferred where the data are images."""
    images = isinstance(first.inputs, list) or (
        first.inputs.dtype == np.uint8 and first.inputs.ndim == 4 and first.inputs.shape[-1] == 3
    )
    if text is not None:
        chosen = _preprocess(text)
    elif not images or getattr(model, "send", "tensor") != "tensor":  # sent as they are
        return model
    else:
        shape = getattr(model, "input_shape", None)
        if shape is None:
            raise ValueError(
                f"{model_name(model)} does not say what size of image it takes: give {flag}, like "
                "'size=224,range=0..1'"
            )
        chosen = infer_preprocess(shape)
        words = ", ".join(f"{key} {value}" for key, value in chosen.as_dict().items())
        err.print(
            f"NOTE: no {flag} given; from {model_name(model)}'s input: {words}, "
            f"pixels in {chosen.range[0]:g}..{chosen.range[1]:g}, no mean and std",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )
    return prepared(model, chosen)


def _preprocess(text: str) -> Preprocess:
    """Preprocessing as a flag gives it, or a file."""
    file = Path(text)
    return Preprocess.from_file(file) if file.suffix == ".toml" else Preprocess.parse(text)


def _load(model: Model, first: Batch, flops: float | None) -> Load:
    """A model without its preprocessing, on this data as it takes it, with its FLOPs."""
    inputs = first.inputs
    if hasattr(model, "with_preprocess"):
        inputs = inputs[:4]  # a detector's are large
    model, preprocess = unprepared(model)
    inputs = inputs[: getattr(model, "fixed_batch", None) or len(inputs)]
    if preprocess is not None:
        inputs = preprocess(inputs)
    try:
        counted = count_flops(model, tuple(np.shape(inputs)))
    except (EbjrError, ValueError) as error:
        if flops is None:
            err.print(f"NOTE: FLOPs not counted: {escape(_sentence(error))}", style="yellow")
        return Load(model, inputs)
    if counted.known is None and flops is None:
        words = ", ".join(counted.uncounted)
        err.print(f"NOTE: FLOPs not counted: {escape(words)} cannot be", style="yellow")
    return Load(model, inputs, counted.known if flops is None else flops, counted.parameter_bytes)


def _open(
    path: Path,
    classes: Path | None,
    strict: bool,
    numbers: bool = False,
    images: Path | None = None,
    **columns: str | None,
) -> Data:
    names = None
    if classes is not None:
        names = list(filter(None, map(str.strip, _lines(classes))))
    return open_data(
        path,
        classes=names,
        on_unreadable="error" if strict else "skip",
        numbers=numbers,
        images=images,
        **columns,
    )


def _shown(study: Study, data: Path, images: Path | None) -> list[Any]:
    """The images that a report of detectors shows, in the order of `sample_rows`."""
    source = _open(data, None, strict=False, images=images)
    wanted, found, row = set(study.sample_rows.tolist()), {}, 0
    for batch in source.batches(64):
        for image in batch.inputs:
            if row in wanted:
                found[row] = image
            row += 1
    if row != len(study.outcomes):
        raise ValueError(
            f"{data} has {row} images and the outcomes are of {len(study.outcomes)}: give the data "
            "that were recorded"
        )
    return [found[row] for row in study.sample_rows.tolist()]


def _check_labels(first: Batch, task: str, path: Path) -> None:
    """Say that data are for another task before a model runs on them."""
    boxes = isinstance(first.targets, list)
    if boxes and task != "detection":
        raise ValueError(f"{path} has labeled boxes: give --task detection")
    if first.targets is not None and task == "detection" and not boxes:
        raise ValueError(f"detection reads labeled boxes from COCO's .json, not from {path}")


def _detector(task: str, layout: str, source: Data) -> dict[str, Any]:
    """What `load_model` needs beside a path to load a detector."""
    if task != "detection":
        if layout != "auto":
            raise ValueError(f"a layout is for detection, not for {task}")
        return {}
    known = {} if source.classes is None else {"classes": len(source.classes)}
    return {"layout": layout, **known}


def _report_empty(outcomes: Outcomes) -> None:
    """Say how many images have no box to find, and on how many the student finds none."""
    if outcomes.task != "detection":
        return
    counts = {
        "have no labeled box and count as empty": [len(real) for real in outcomes.targets],
        f"have no box of the student with a score above {SHOWN:g}: most scores always defer them": [
            len(found.above(SHOWN)) for found in outcomes.student
        ],
    }
    for words, boxes in counts.items():
        if 0 in boxes:
            err.print(
                f"NOTE: {boxes.count(0)} of {len(outcomes)} images {words}",
                style="yellow",
                highlight=False,
                soft_wrap=True,
            )


def _counted(source: Data, batch_size: int, tell: Tell, what: str) -> Iterator[tuple[Any, Any]]:
    """The inputs and targets of some data, with progress."""
    done, total = 0, len(source)
    for batch in source.batches(batch_size):
        yield batch.inputs, batch.targets
        done += len(batch)
        tell(what, done, total)


def _report_unreadable(unreadable: Sequence[tuple[str, str]]) -> None:
    if not unreadable:
        return
    err.print(f"{len(unreadable)} examples could not be read:", style="yellow")
    for name, reason in unreadable[:20]:
        err.print(f"  {escape(name)}: {escape(reason)}", highlight=False, soft_wrap=True)
    if len(unreadable) > 20:
        err.print(f"  and {len(unreadable) - 20} more")


@contextmanager
def _kept(output: Path) -> Iterator[None]:
    """Say where the answers of a run that stops are."""
    try:
        yield
    except BaseException:
        part = output.with_name(f"{output.name}.part")
        if part.is_file():
            err.print(
                f"NOTE: what was answered is in {escape(str(part))}; the same command goes on "
                "from there",
                style="yellow",
                highlight=False,
                soft_wrap=True,
            )
        raise


def _read_joint(path: Path, threads: int | None, overlap: int) -> JointConfig | ExportedJoint:
    """What a ``joint.toml`` says, or an exported file, loaded."""
    if path.suffix.lower() != ".onnx":
        return JointConfig.read(path)
    return ExportedJoint(path, threads=threads or shared_cores(overlap))


def _chosen_threshold(
    joint: JointConfig | ExportedJoint, threshold: float | None, name: str | None
) -> float:
    if threshold is not None and name is not None:
        raise ValueError("give --threshold or --operating-point, not both")
    if name is None:
        own = joint.threshold if isinstance(joint, JointConfig) else joint.router.threshold
        return own if threshold is None else threshold
    if name not in joint.operating_points:
        known = ", ".join(joint.operating_points) or "none"
        raise ValueError(f"there is no operating point {name!r}; the file names {known}")
    return float(joint.operating_points[name]["threshold"])


def _threads(threads: int | None) -> dict[str, Any]:
    return {} if threads is None else {"threads": threads}


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"input shape must be whole numbers like 1,3,32,32, not {text!r}"
        ) from None


Tell = Callable[[str, int, int | None], None]


@contextmanager
def _progress() -> Iterator[Tell]:
    """A progress bar for each thing that is being done, on standard error."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        _Amount(),
        TimeRemainingColumn(),
        console=err,
    )
    tasks: dict[str, Any] = {}
    with bar:

        def tell(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield tell


class _Amount(MofNCompleteColumn):
    """Bytes for a download, a count for everything else."""

    def render(self, task: Any) -> Any:
        if "fetch" in task.description or "download" in task.description:
            return DownloadColumn().render(task)
        return super().render(task)


def _print_json(figures: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(_plain(figures), indent=2, allow_nan=False, default=str) + "\n")


def _plain(value: Any) -> Any:
    """Numbers that JSON has no word for become text."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return value
