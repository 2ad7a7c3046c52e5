"""The command line: parse, call, print."""

from __future__ import annotations

import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

import ebjr
from ebjr import options as opt
from ebjr.errors import SHOWN, EbjrError, RecordingNote, counted
from ebjr.files import json_number, sha256_of
from ebjr.plugins import is_refusal

if TYPE_CHECKING:
    from ebjr.data.examples import Data
    from ebjr.hub import JointFolder
    from ebjr.joint_file import JointConfig
    from ebjr.outcomes import Outcomes
    from ebjr.within import BatchCertificate

# heavy modules are imported by the commands that need them, so that `ebjr --help` is fast

app = typer.Typer(
    name="ebjr",
    cls=opt.Commands,
    help="Turn a cheap model and an expensive one for the same task into one model with a knob.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Add a command, see `ebjr.options.spread`."""
    return app.command(cls=opt.Command)(opt.spread(function))


def _console(*, stderr: bool = False) -> Console:
    """A console. Piped output is 160 columns wide, so that no table is cut."""
    console = Console(stderr=stderr)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 160
    return console


out = _console()
err = _console(stderr=True)
_progress = partial(opt.progress, err)

MOST_STATEMENTS = 10  # windows whose promise is printed in full


def main() -> None:
    """Run the command line; a user's mistake is one sentence and exit code 2."""
    try:
        with warnings.catch_warnings():
            for said in SHOWN:
                warnings.simplefilter("always", said)
            warnings.showwarning = _once_each()
            app()
    except (EbjrError, ValueError, TypeError, OSError, KeyboardInterrupt) as error:
        if isinstance(error, TypeError) and not is_refusal(error):
            raise  # a fault in code, which the traceback shows
        err.print(f"ebjr: {escape(_sentence(error))}", style="red", highlight=False, soft_wrap=True)
        for note in getattr(error, "__notes__", ()):
            _note(note)
        sys.exit(130 if isinstance(error, KeyboardInterrupt) else 2)


def _once_each() -> Callable[..., None]:
    """Make a function that shows each warning's text once."""
    shown = set()

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if (text := _as_flags(str(message))) not in shown:
            shown.add(text)
            _note(text, "NOTE" if category is RecordingNote else "WARNING")

    return show


def _sentence(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; no file was left half written"
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return _as_flags(str(error))


def _as_flags(text: str) -> str:
    """A message on one line, with names of Python arguments turned into flags."""
    line = " ".join(text.split())
    line = re.sub(r"\b(student|teacher)_preprocess=", r"--\1-preprocess", line)
    return re.sub(r"\bpreprocess=", "--preprocess", line)


@app.callback(invoke_without_command=True)
def _about(
    version: Annotated[bool, typer.Option("--version", help="Print version and extras.")] = False,
) -> None:
    if version:
        from ebjr.plugins import extras_text

        out.print(f"{ebjr.__version__}\n{extras_text()}", markup=False, highlight=False)
        raise typer.Exit


def _note(text: str, word: str = "NOTE") -> None:
    err.print(f"{word}: {escape(text)}", style="yellow", highlight=False, soft_wrap=True)


@command
def demo(
    folder: Path = opt.in_output(
        "The folder to write to.", "--output", "-o", default=Path("ebjr-demo"), file_okay=False
    ),
    task: str = opt.in_task("The demo's task: $DEMOS.", default="classification"),
    recorded: bool = opt.in_data(
        "Use the recorded answers in the package: no download.", "--recorded", default=False
    ),
    threads: opt.Threads = None,
    details: opt.Details = False,
    as_json: opt.Json = False,
) -> None:
    """Run the packaged models on real data: calibrate, evaluate, report."""
    from ebjr.demo import run_demo
    from ebjr.tables import print_study, print_sweep, study_figures

    with _progress() as tell:
        result = run_demo(folder, task=task, recorded=recorded, threads=threads, progress=tell)
    if result.recorded:
        _note(f"using the recorded answers in the package: {result.reason}")
    several = len(result.sweep.studies) > 1
    if as_json:
        figures = study_figures(result.study)
        figures |= {"sweep": result.sweep.as_dict()} if several else {}
        figures |= {"recorded": result.recorded, "joint_seconds": result.joint_seconds}
        print_json(figures | {"files": {name: str(path) for name, path in result.files.items()}})
        return
    if several:
        print_sweep(out, result.sweep)
    print_study(out, result.study, result.joint_seconds, details=details)
    _print_report(result.files["report.html"])
    if "joint.toml" in result.files:
        out.print(f"Knob:   {result.files['joint.toml']}", soft_wrap=True)


@command
def record(
    pair: opt.PairOptions,
    data: opt.DataOptions,
    output: Path = opt.in_output("The .npz file to write.", "--output", "-o", default=...),
    half: bool = opt.in_output("Store outputs in half precision.", "--half", default=False),
    as_json: opt.Json = False,
    task: str = opt.in_task("What the models do: $TASKS.", default="classification"),
    known_classes: str | None = opt.in_task(
        "specialized: the classes that the student knows, in its order, by number or name "
        "(7,3,12 or dog,cat), or a file with one per line."
    ),
    metric: opt.Metric = None,
    link: opt.LinkText = None,
    batch_size: opt.BatchSize = 64,
    threads: opt.Threads = None,
    restart: opt.Restart = False,
) -> None:
    """Run the models once on some data and save their answers; rerun to resume."""
    from ebjr.journal import Journal
    from ebjr.recording import counter
    from ebjr.tables import empty_words, print_recorded, recorded_models
    from ebjr.tasks import as_task

    as_task(task).metric(metric)
    with Journal(output, restart=restart) as journal, _progress() as tell:
        models, source, told = pair.load_all(task, data, threads, link)
        names, count = opt.class_names(models[-1], source), len(models)
        known = None if known_classes is None else opt.parse_classes(known_classes, names)
        outcomes = ebjr.record_all(
            models,
            source,
            task=task,
            batch_size=batch_size,
            progress=counter(f"recording {count} models", len(source), tell),
            output_kind=pair.output_kind,
            joules=True,
            metric=metric,
            known_classes=known,
            folder=output.resolve().parent,
            keep=journal,
            **told,
        )
        _report_unreadable(source.unreadable)
        outcomes.save(output, half=half)
        journal.remove()
    for words in empty_words(outcomes):
        _note(words)
    figures = {
        "examples": len(outcomes),
        "unreadable": len(source.unreadable),
        "labeled": outcomes.labeled,
        "metric": outcomes.metric,
        "student_quality": outcomes.quality("student"),
        "teacher_quality": outcomes.quality("teacher"),
        "student_cost": outcomes.student_cost.as_dict(),
        "teacher_cost": outcomes.teacher_cost.as_dict(),
        "models": recorded_models(outcomes),
        "output": str(output),
    }
    _show(as_json, figures, lambda: print_recorded(out, outcomes, output))


@command
def calibrate(
    outcomes: Annotated[
        list[Path],
        typer.Argument(
            help="A file that `ebjr record` wrote, or an .npz of raw outputs with student, teacher "
            "and targets. Give several to compare students that know different numbers of classes; "
            "all need the same examples and teacher, and the best student is used."
        ),
    ],
    wanted: opt.GoalOptions,
    choice: opt.ChoiceOptions,
    split: opt.SplitOptions,
    mix: opt.TrafficOptions,
    task: opt.OutcomesTask = None,
    metric: opt.Metric = None,
    student: str | None = opt.in_models("The student's file, if the outcomes do not name one."),
    teacher: str | None = opt.in_models(
        "The teacher's file or address, to use another than the recorded one."
    ),
    link: opt.LinkText = None,
    over_link: str | None = opt.in_link(
        "What a link adds to each deferred example, like bytes=3000,seconds=0.04, "
        "if both models were recorded on one machine."
    ),
    output: Path | None = opt.in_output("The joint.toml file to write.", "--output", "-o"),
    name: str = opt.in_output("The joint model's name.", default="joint"),
    report: opt.Report = None,
    details: opt.Details = False,
    as_json: opt.Json = False,
    imports: opt.Imports = None,
) -> None:
    """Choose a threshold on one half of the outcomes and report on the other half."""
    opt.check_together("--output", output, student=student, teacher=teacher, link=link)
    from ebjr.backends.entry import entries_of
    from ebjr.joint_file import JointConfig
    from ebjr.protocol import check_name
    from ebjr.sweep import check_distinct, run_sweep
    from ebjr.tables import print_study, print_sweep, study_figures

    check_name(name)
    check_distinct(outcomes)
    tables = {path.stem: opt.linked(_outcomes(path, metric, task), over_link) for path in outcomes}
    sweep = run_sweep(tables, traffic=mix.of(tables), **vars(wanted), **vars(choice), **split.given)
    found = sweep.study
    several = len(tables) > 1
    if output is not None:
        path = next(path for path in outcomes if path.stem == sweep.best)
        given = {"student": student, "teacher": teacher}
        entries = entries_of(found.outcomes, path, given, link)
        pair = entries["student"], entries["teacher"]
        JointConfig.of_study(*pair, found, name=name, imports=imports or ()).save(output)
    if report is not None:
        title = f"EBJR: {sweep.best}"
        found.write_report(report, title=title, extras=sweep.extras if several else ())
    if as_json:
        print_json(study_figures(found) | ({"sweep": sweep.as_dict()} if several else {}))
        return
    if several:
        print_sweep(out, sweep)
    print_study(out, found, details=details)
    _print_report(report)
    if output is not None:
        out.print(f"\nWrote {output}: router.threshold in it is the knob", soft_wrap=True)


@command
def evaluate(
    outcomes: Annotated[Path, typer.Argument(help="A file that `ebjr record` wrote.")],
    split: opt.SplitOptions,
    joint: Path | None = opt.in_models("A joint.toml whose threshold is evaluated."),
    compare: list[Path] | None = opt.in_models(
        "Outcomes of other models, or an .npz with `predictions`, on the same examples: "
        "test whether the joint model is significantly better. Repeatable."
    ),
    task: opt.OutcomesTask = None,
    metric: opt.Metric = None,
    report: opt.Report = None,
    title: str | None = opt.in_output("The report's title."),
    data: Path | None = opt.in_data("The recorded data, to show images in the report."),
    images: opt.Images = None,
    details: opt.Details = False,
    as_json: opt.Json = False,
) -> None:
    """Report quality and cost for every score, on examples kept out of calibration."""
    opt.check_together("--report", report, title=title, data=data)
    opt.check_together("--data", data, images=images)
    from ebjr.joint_file import JointConfig
    from ebjr.study import run_study
    from ebjr.tables import print_study, study_figures

    if joint is None:
        found = run_study(_outcomes(outcomes, metric, task), **split.given)
    else:
        config = JointConfig.read(joint)
        table = _outcomes(outcomes, metric, task, judging=config)
        found = config.study(table, **split.given)
    compared = found.compare_files(compare or [])
    if report is not None:
        notes = {"Outcomes file": outcomes.name}
        title = title or f"EBJR: {outcomes.stem}"
        shown = []
        if data is not None:
            shown = found.find_images(_open(data, images=images, task=found.outcomes.task), data)
        found.write_report(report, title=title, notes=notes, compared=compared, images=shown)
    if as_json:
        print_json(study_figures(found, compared))
        return
    print_study(out, found, compared=compared, details=details)
    _print_report(report)


@command
def recalibrate(
    joint: Annotated[Path, typer.Argument(help="The joint.toml in use.")],
    split: opt.SplitOptions,
    outcomes: Path | None = opt.in_data(
        "New outcomes of the same models, as `ebjr record` writes them."
    ),
    audits: Path | None = opt.in_data(
        "Instead of --outcomes: a server's monitor.json, or the folder that holds it."
    ),
    slices: Path | None = opt.in_data(
        "A table with one row per example, in order; each column slices the examples."
    ),
    slice_by: str | None = opt.in_data("The columns of --slices to use, like source,time."),
    task: opt.OutcomesTask = None,
    alpha: float = opt.in_guarantee("The chance of calling a kept promise broken.", default=0.05),
    worth: float = opt.in_guarantee(
        "The smallest change in deferral rate that counts as moved.", default=0.01
    ),
    output: Path | None = opt.in_output("The new joint.toml file to write.", "--output", "-o"),
    details: opt.Details = False,
    as_json: opt.Json = False,
) -> None:
    """Check a threshold on new examples; exit status 0 is kept, 3 is moved, 4 is broken."""
    from ebjr import recalibration as again
    from ebjr.joint_file import JointConfig
    from ebjr.tables import print_audits, print_recalibration

    if (outcomes is None) == (audits is None):
        raise ValueError("give either --outcomes (new examples) or --audits (a server's monitor)")
    if slice_by is not None and slices is None:
        raise ValueError("--slice-by picks columns of a table: add --slices TABLE")
    found: Any
    opt.check_together("--outcomes", outcomes, task=task, **split.given)
    if audits is not None:
        if output is not None or slices is not None:
            raise ValueError(
                "audits are counts, so they give no new threshold and no slices: use --outcomes "
                "with --output and --slices"
            )
        found = again.recalibrate_audits(joint, audits)
        _show(as_json, found.as_dict(), lambda: print_audits(out, found))
    else:
        assert outcomes is not None
        columns = None
        if slices is not None:
            chosen = [name.strip() for name in slice_by.split(",")] if slice_by else ()
            columns = again.read_slices(slices, chosen)
        config = JointConfig.read(joint)
        table = _outcomes(outcomes, None, task, judging=config)
        how: dict[str, Any] = {"alpha": alpha, "worth": worth, **split.given}
        found = again.recalibrate(config, table, slices=columns, **how)
        written = {"output": None if output is None or found.study is None else str(output)}
        _show(as_json, found.as_dict() | written, lambda: print_recalibration(out, found, details))
        if output is not None:
            found.new_config().save(output)
            if not as_json:
                out.print(f"\nWrote {output}", soft_wrap=True)
    raise typer.Exit(again.EXIT_STATUS[found.status])


@command
def predict(
    joint: Annotated[Path, typer.Argument(help="A joint.toml, or what `ebjr export` wrote.")],
    data: opt.DataOptions,
    promised: opt.PromiseOptions,
    output: Path = opt.in_output(
        "The file of answers: .jsonl, .csv or .parquet.", "--output", "-o", default=...
    ),
    as_json: opt.Json = False,
    threshold: opt.Threshold = None,
    operating_point: opt.OperatingPointName = None,
    batch_size: opt.BatchSize = 64,
    overlap: int = opt.in_run("Batches in flight; they share the cores.", default=2, min=1),
    threads: opt.Threads = None,
    trust: opt.Trust = False,
    restart: opt.Restart = False,
    on_ray: bool = opt.in_run(
        "Run on Ray: the cluster at RAY_ADDRESS, or a new local one.", "--ray", default=False
    ),
    imports: opt.Imports = None,
) -> None:
    """Answer every example with the joint model; rerun to resume."""
    from ebjr.backends.entry import files_of
    from ebjr.joint_file import JointConfig, chosen_threshold, read_joint

    known = read_joint(joint, threads=threads, overlap=overlap)
    if on_ray and not isinstance(known, JointConfig):
        raise ValueError(
            "Ray runs student and teacher separately: give the joint.toml from which "
            f"{joint} was exported"
        )
    wanted = promised.wanted()
    certificates: list[BatchCertificate] = []
    if wanted and not (isinstance(known, JointConfig) and not on_ray):
        raise ValueError(
            "--promise runs student and teacher separately: give a joint.toml and no --ray"
        )
    if wanted and (threshold, operating_point) != (None, None):
        raise ValueError(
            "--promise chooses its own thresholds: remove --threshold and --operating-point"
        )
    model: Any = known
    if isinstance(known, JointConfig) and not on_ray:  # on Ray each worker loads its own
        each = threads or known.threads_for(1 if wanted else overlap)
        model = known.load(trust=trust, **_threads(each))
    source = data.open(known.task, known.labels, known.columns, [model])
    chosen = chosen_threshold(known, threshold, operating_point)
    about = {"joint": sha256_of(*files_of(joint)), "data": str(data.data.resolve())}
    how: dict[str, Any] = {"batch_size": batch_size, "about": about, "restart": restart}
    with _progress() as tell:
        if wanted:
            from ebjr.predict import predict_within
            from ebjr.within import PromisedRun

            run = PromisedRun(
                model,
                wanted,
                labels=known.labels,
                targets=promised.targets(known.labels),
                batch_size=batch_size,
                seed=promised.seed,
                about=about,
            )
            done, certificates = predict_within(
                run, source, output, window=promised.window, restart=restart, tell=tell
            )
        elif on_ray:
            from ebjr.scale.ray_data import predict_file

            own = [
                str(Path(name).resolve()) if name.endswith(".py") else name
                for name in imports or ()
            ]
            how |= {"threads": threads, "imports": own}
            done = predict_file(joint, source, output, threshold=chosen, tell=tell, **how)
        else:
            from ebjr.predict import predict as predict_data

            model.router.threshold = chosen
            done = predict_data(
                model, source, output, overlap=overlap, labels=known.labels, tell=tell, **how
            )
    if done.resumed:
        _note(f"{done.resumed:,} answers come from an interrupted run")
    _report_unreadable(done.unreadable, source.omissions)
    counts = {key: getattr(done, key) for key in ("examples", "deferred", "degraded", "resumed")}
    rate = done.deferred / max(done.examples, 1)
    more = {"unreadable": len(done.unreadable), "output": str(output), "deferral_rate": rate}
    more |= {"dollars": done.dollars} if done.dollars else {}
    words = f"{counted(done.examples, 'answer')} in {output}; {rate:.1%} by the teacher"
    words += f"; ${done.dollars:,.4g} in total" if done.dollars else ""
    words += f"; {done.degraded:,} degraded: the teacher did not answer" if done.degraded else ""
    words = "\n".join([words, *(each.statement for each in certificates[:MOST_STATEMENTS])])
    if (left := len(certificates) - MOST_STATEMENTS) > 0:
        words += f"\n{counted(left, 'more promise')}, one per window: see --json."
    more |= {"promised": [each.as_dict() for each in certificates]} if certificates else {}
    _show(as_json, counts | more, lambda: out.print(words, soft_wrap=True, highlight=False))


@command
def export(
    joint: Annotated[Path, typer.Argument(help="A joint.toml that `ebjr calibrate` wrote.")],
    output: Path | None = opt.in_output("The .onnx file to write.", "--output", "-o"),
    triton: Path | None = opt.in_output(
        "The folder of a Triton model repository to write.", file_okay=False
    ),
    opset: int | None = opt.in_output(
        "The ONNX operator set; by default the higher of the two models' sets.", min=1
    ),
    external_data: bool = opt.in_output(
        "Store weights in a second file; always done from 2 GB.", "--external-data", default=False
    ),
    as_json: opt.Json = False,
    threshold: float | None = opt.in_knob("The default threshold, instead of the file's."),
    operating_point: opt.OperatingPointName = None,
) -> None:
    """Write student, score, router and teacher as one ONNX file with a threshold input."""
    if (output is None) == (triton is None):
        raise ValueError("give either --output (an .onnx file) or --triton (a folder)")
    from ebjr.export import export_joint, export_triton
    from ebjr.joint_file import JointConfig, chosen_threshold
    from ebjr.tables import print_exported

    config = JointConfig.read(joint)
    write: Any = export_joint if triton is None else export_triton
    with err.status("exporting"):
        found = write(
            config,
            output or triton,
            threshold=chosen_threshold(config, threshold, operating_point),
            opset=opset,
            external_data=external_data or None,
        )
    _show(as_json, found.as_dict(), lambda: print_exported(out, found.as_dict()))


@command
def serve(
    joint: Annotated[
        list[Path],
        typer.Argument(
            help="One or more joint.toml files; a folder with a folder for each model; or a single "
            "classifier, as `record` takes it, to serve as a teacher for remote students."
        ),
    ],
    how: opt.ServerOptions,
    body_bytes: int = opt.in_network(
        "The most bytes of a request body, decompressed too.", default=64 * 2**20, min=1
    ),
    connections: int = opt.in_network("Most open connections.", default=900, min=1),
    between: str | None = opt.in_knob(
        "The autopilot's limits: two deferral rates or operating points, like 0.05,match-teacher."
    ),
    preprocess: str | None = opt.in_models(
        "For a single classifier that takes images, like 'size=224'."
    ),
    threads: opt.Threads = None,
    trust: opt.Trust = False,
) -> None:
    """Serve joint models over Open Inference Protocol v2, with a live knob."""
    from ebjr.backends import FILES
    from ebjr.backends.python import SAVED, import_path
    from ebjr.data.preprocess import given_preprocess
    from ebjr.serving.app import run_server
    from ebjr.serving.limits import Limits, exposure
    from ebjr.serving.served import Served, served_alone, served_of
    from ebjr.serving.sources import source_of
    from ebjr.threads import available_cores, shared_cores

    def load(config: JointConfig) -> Served:
        each = threads or config.threads_for(available_cores())  # as many batches run at once
        return served_of(config, trust=trust, **_threads(each))

    prepare = None if preprocess is None else given_preprocess(preprocess, "preprocess")
    first, *others = joint
    models: Any
    if not others and (first.suffix in (*FILES, *SAVED) or import_path(first)):
        models = served_alone(first, prepare, trust=trust, **_threads(threads))
        names = models.name
    elif prepare is not None:
        raise ValueError("joint.toml holds each model's preprocessing: remove --preprocess")
    else:
        models = source_of(joint, load)
        names = models.names
    asking = how.infer_token or how.infer_token_file or how.ssl_ca_certs
    known = {"asking": bool(asking), "secret": how.ssl_certfile is not None}
    if (warning := exposure(how.host, **known)) is not None:
        _note(warning, "WARNING")
    run_server(
        models,
        limits=Limits(body_bytes=body_bytes, connections=connections),
        between=None if between is None else between.split(","),
        workers=None if threads is None else shared_cores(threads),
        started=lambda url: out.print(f"serving {names} at {url}", soft_wrap=True),
        **vars(how),
    )


@command
def push(
    joint: Annotated[Path, typer.Argument(help="A joint.toml that `ebjr calibrate` wrote.")],
    repo: Annotated[
        str | None, typer.Argument(help="OWNER/NAME on the Hugging Face Hub.", metavar="[REPO]")
    ] = None,
    private: bool = opt.in_output("Make the repository private.", "--private", default=False),
    output: Path | None = opt.in_output(
        "Write this folder instead of pushing.", "--output", "-o", file_okay=False
    ),
    as_json: opt.Json = False,
) -> None:
    """Push a joint model with its model files and a card to the Hugging Face Hub."""
    from ebjr.hub import pack_joint, push_joint

    if (repo is None) == (output is None):
        raise ValueError("give either OWNER/NAME (where to push) or --output (a folder to write)")
    if output is not None and private:
        raise ValueError("--private makes a repository private: remove it, or remove --output")
    if output is not None:
        found = pack_joint(joint, output)
    else:
        found = push_joint(joint, str(repo), private=private)
    _show_folder(as_json, found, found.url or str(found.path))


@command
def pull(
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the Hugging Face Hub.")],
    output: Path = opt.in_output(
        "The folder to write.", "--output", "-o", default=..., file_okay=False
    ),
    revision: str | None = opt.in_data("A branch, a tag or a commit."),
    as_json: opt.Json = False,
) -> None:
    """Pull a joint model from the Hugging Face Hub and check its files; runs none of its code."""
    from ebjr.hub import pull_joint

    found = pull_joint(repo, output, revision=revision)
    _show_folder(as_json, found, str(found.path))


def _show_folder(as_json: bool, found: JointFolder, where: str) -> None:
    for words in found.needs:
        _note(words)
    text = f"{where}: {', '.join(found.files)}"
    _show(as_json, vars(found), lambda: out.print(text, soft_wrap=True, highlight=False))


@command
def profile(
    model: Annotated[str, typer.Argument(help="A model, as `record` takes it.")],
    input_shape: str | None = opt.in_data(
        "The shape of one batch, like 1,3,32,32; optional if the model file gives it."
    ),
    seconds: float = opt.in_run("Seconds to measure each batch size.", default=2.0),
    threads: opt.Threads = None,
    trust: opt.Trust = False,
    tuned: bool = opt.in_run(
        "Find the fastest threads, overlap and batch size.", "--tune", default=False
    ),
    as_json: opt.Json = False,
) -> None:
    """Measure a model's FLOPs, parameters, latency, memory and joules."""
    from ebjr.evaluation.inputs import parse_shape
    from ebjr.tables import print_profile

    shape = parse_shape(input_shape)
    if tuned:
        if threads is not None:
            raise ValueError("--tune tries several numbers of threads: remove --threads")
        _tune(model, shape, seconds, as_json)
        return
    from ebjr.evaluation.profile import profile as profile_model

    with err.status("measuring"):
        loaded = ebjr.load_model(model, trust=trust, **_threads(threads))
        found = profile_model(loaded, shape, seconds=seconds)
    _show(as_json, found.as_dict(), lambda: print_profile(out, found))


def _tune(path: str, shape: tuple[int, ...] | None, seconds: float, as_json: bool) -> None:
    from ebjr.evaluation.profile import tune
    from ebjr.tables import print_tuning

    if Path(path).suffix.lower() != ".onnx":
        raise ValueError(f"--tune needs an .onnx file, not {path}")
    with err.status("measuring every setting in turn"):
        found = tune(
            lambda threads: ebjr.load_model(path, threads=threads), shape, seconds=seconds / 5
        )
    figures = {"settings": [asdict(setting) for setting in found]}
    _show(as_json, figures, lambda: print_tuning(out, found))


@command
def quantize(
    model: Annotated[Path, typer.Argument(help="An .onnx model file in single precision.")],
    data: opt.DataPath,
    output: Path = opt.in_output("The .onnx file to write.", "--output", "-o", default=...),
    preprocess: opt.Preprocessing = None,
    examples: int = opt.in_data("Calibrate on this many of the first inputs.", default=512, min=1),
    input_columns: opt.InputColumns = None,
    strict: opt.Strict = False,
    method: str = opt.in_run("How value ranges are chosen: $METHODS.", default="minmax"),
    weight_bits: int = opt.in_run(
        "7, correct on every processor, or 8, if it adds in 32 bits (x86 with VNNI).", default=7
    ),
    threads: opt.Threads = None,
    as_json: opt.Json = False,
) -> None:
    """Write an 8-bit copy of a model: a cheaper student, or a student made from its teacher."""
    from ebjr.data.looks import prepare_for
    from ebjr.data.preprocess import unprepared
    from ebjr.quantize import compare_seconds
    from ebjr.quantize import quantize as quantize_model
    from ebjr.tables import print_quantized

    source = _open(data, input_columns=input_columns, strict=strict)
    loaded = ebjr.load_model(model, **_threads(threads))
    first = next(source.batches(1))
    _, chosen = unprepared(prepare_for(loaded, first.inputs, preprocess or "infer"))
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
    _report_unreadable(source.unreadable, source.omissions)
    with err.status("measuring both"):
        row = first.inputs if chosen is None else chosen(first.inputs)
        after = ebjr.load_model(output, **_threads(threads))
        seconds = compare_seconds(loaded, after, row)
    figures = found.as_dict() | {"seconds": seconds}
    _show(as_json, figures, lambda: print_quantized(out, found, seconds))


def _open(
    data: Path,
    classes: Path | None = None,
    strict: bool = False,
    task: str = "classification",
    **how: Any,
) -> Data:
    """Open the data of a command that has few data options."""
    return opt.DataOptions(data, classes, strict=strict, **how).open(task)


def _outcomes(
    path: Path, metric: str | None, task: str | None, judging: JointConfig | None = None
) -> Outcomes:
    """Load outcomes, to calibrate on or for `judging`, in another metric if one is given."""
    from ebjr.study import check_classes

    found = ebjr.Outcomes.load(path, task=task)
    if metric is not None:
        found = replace(found, metric=metric)
    elif judging is not None:
        found = judging.in_own_metric(found)
    if judging is not None and (told := judging.unchecked(found)) is not None:
        _note(told)
    check_classes(found)
    return found


def _threads(threads: int | None) -> dict[str, Any]:
    return {} if threads is None else {"threads": threads}


def _print_report(path: Path | None) -> None:
    if path is not None:
        out.print(f"\nReport: {path.resolve().as_uri()}", soft_wrap=True)


def _report_unreadable(unreadable: Sequence[tuple[str, str]], omissions: str | None = None) -> None:
    """Print the examples that could not be read, and what was left out of the data."""
    if omissions is not None:
        _note(omissions)
    if not unreadable:
        return
    err.print(f"{counted(len(unreadable), 'example')} could not be read:", style="yellow")
    for name, reason in unreadable[:20]:
        err.print(f"  {escape(name)}: {escape(reason)}", highlight=False, soft_wrap=True)
    if len(unreadable) > 20:
        err.print(f"  and {len(unreadable) - 20} more")


def _show(as_json: bool, figures: dict[str, Any], for_a_person: Callable[[], None]) -> None:
    """Print JSON, or else what a person is shown."""
    if as_json:
        print_json(figures)
    else:
        for_a_person()


def print_json(figures: dict[str, Any]) -> None:
    """Print figures as JSON; infinity and NaN become strings."""
    text = json.dumps(json_number(figures), indent=2, allow_nan=False, default=str)
    sys.stdout.write(text + "\n")
