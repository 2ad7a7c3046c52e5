"""The served shipped pair beside six rivals, all relative to the fastest bare loop that we know.

``python -m benchmarks.serving.throughput --rivals V/bin/python`` takes about 15 minutes on two
cores; ``--quick --only ebjr batcher`` about two, and writes nothing. Every server runs the same
cascade (the same two files, score and threshold) on the same CIFAR-10 test images, one image a
request, sent by a process of its own. First each server is tried with the settings that its user
would try, at the most clients. Then rounds go through all servers in turn, until the 95 % interval
of each figure is narrow or the rounds are over. Before and after each visit a bare loop runs over
both ONNX sessions (``offline.py``), on as many workers as there are cores: the limit. A figure is
the ratio to the two loops around it, so that a change of the machine's speed meets both alike.

What share of the limit a server can reach is arithmetic: on busy cores an image costs the server's
processor time and the load generator's, which run on the same cores, where the loop pays for the
models alone. ``core_milliseconds`` has all of them. ``inside_ebjr`` takes queue and models apart.
``foreign_cores`` is what others took of the machine meanwhile: a window is repeated while that is
much, and the quietest counts. Where none was quiet, only figures of processor time mean something.

The rivals live in an environment of their own (``requirements.txt`` beside this file); those that
it lacks are left out, and the result says so.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from benchmarks.machine import about, save
from benchmarks.serving import processes
from benchmarks.serving.load import Target, as_fast_as_possible, at_rate, children_seconds
from benchmarks.serving.servers import (
    Running,
    Server,
    Settings,
    ask,
    running,
    servers,
    versions,
    wait_for,
)
from ebjr import JointClassifier, Outcomes, Router, calibrate, load_model, save_joint
from ebjr.demo import shipped
from ebjr.demo.cifar10 import load as load_cifar10

IMAGES = 512
CLIENTS = (16, 64)
LOAD_SHARE = 0.7
"""Of the best named rival's throughput: where latencies are compared."""
NARROW = 0.04
"""A figure is stable where its 95 % interval is at most so far from it, relative to it."""
MINUTES = {"whole": 12.5, "quick": 3.0}
"""No round begins that would end later than this; the latencies at a rate come afterwards."""
QUIET_CORES, TRIES = 0.15, 3
"""A window counts at once where others took at most so much of the machine; else the quietest."""
LEAST_ROUNDS = 3
NAMED = ("mosec", "litserve", "bentoml", "ray_serve")
CORES = len(os.sched_getaffinity(0))

Loop = tuple[int, int, int, str]
"""Workers, threads of a session, rows of a batch, and whether workers share the sessions."""

TODAY: Loop = (1, 2, 64, "")
LOOPS: tuple[Loop, ...] = (  # a server with 64 clients cannot form larger batches
    (CORES, 1, 64, ""),
    (CORES, 1, 64, "shared"),
    (CORES, 1, 32, "shared"),
)


@dataclass
class Bench:
    """Settings that all measurements share."""

    folder: Path
    images: np.ndarray
    joint: JointClassifier
    seconds: int
    began: float = field(default_factory=time.monotonic)

    @property
    def minutes(self) -> float:
        """Return the seconds since the start."""
        return (time.monotonic() - self.began) / 60

    def offline(self, loop: Loop, seconds: float) -> dict[str, float]:
        """Run a bare loop over both sessions in a separate process."""
        script = str(Path(__file__).with_name("offline.py"))
        paths = [str(self.folder / name) for name in ("student.onnx", "teacher.onnx", "images.npy")]
        rest = [self.joint.router.threshold, seconds, *filter(None, loop)]
        words = [sys.executable, script, *paths, *map(str, rest)]
        return quietest(partial(self._offline, words))

    def _offline(self, words: Sequence[str]) -> dict[str, float]:
        spent, busy, began = children_seconds(), processes.busy(), time.perf_counter()
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        spent, busy = children_seconds() - spent, processes.busy() - busy
        foreign = max(0.0, busy - spent) / (time.perf_counter() - began)
        return {**json.loads(done.stdout), "foreign_cores": foreign}

    @contextmanager
    def serving(
        self, name: str, server: Server, settings: Settings
    ) -> Iterator[tuple[Running, Target]]:
        """A server that is warm, and the prepared bodies of all images."""
        environment = {
            **{
                f"CASCADE_{role.upper()}": str(self.folder / f"{role}.onnx")
                for role in ("student", "teacher", "joint")
            },
            "CASCADE_THRESHOLD": repr(self.joint.router.threshold),
        }
        with running(server, self.folder, environment, settings) as place:
            wait_for(server, place.url, self.images[0])
            target = self.target(name, server, place.url)
            as_fast_as_possible(target, 16, 1)
            yield place, target

    def target(self, name: str, server: Server, url: str) -> Target:
        """Return the folder of the bodies of all images."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        for number, image in enumerate(self.images):
            body, headers = server.body(image)
            (folder / f"{number}.body").write_bytes(body)
        return Target(url, str(folder), len(self.images), server.content_type, headers)

    def agreement(self, server: Server, url: str) -> float:
        """The share of images that a server answers as our joint model does, and defers alike."""
        images = self.images[:50]
        answer = self.joint(images)
        wanted = zip(answer.prediction.tolist(), answer.deferred.tolist(), strict=True)
        said = [ask(server, url, image) for image in images]
        return float(np.mean([one == other for one, other in zip(said, wanted, strict=True)]))

    def tuned(self, name: str, server: Server) -> Settings:
        """The settings with which a server is fastest, over all numbers of clients alike."""
        rates: list[float] = []
        for settings in server.tried:
            try:
                with self.serving(name, server, settings) as (place, target):
                    found = [quietest(partial(self.window, place, target, n, 2)) for n in CLIENTS]
                rates.append(geometric_mean([each["images_per_second"] for each in found]))
            except (OSError, RuntimeError) as error:
                rates.append(0.0)
                print(name, dict(settings), error, flush=True)
            print(name, dict(settings), round(rates[-1]), flush=True)
        return server.tried[int(np.argmax(rates))]

    def visit(self, name: str, server: Server, settings: Settings) -> dict[str, Any]:
        """All figures of a server in a round."""
        with self.serving(name, server, settings) as (place, target):
            found: dict[str, Any] = {"agrees": self.agreement(server, place.url)}
            for clients in CLIENTS:
                measured = quietest(partial(self.window, place, target, clients, self.seconds))
                found[str(clients)] = measured
                print(name, clients, {k: round(v, 3) for k, v in measured.items()}, flush=True)
            one = as_fast_as_possible(target, 1, max(1, self.seconds // 2))
            found["one_client_milliseconds"] = one["p50_milliseconds"]
        return found

    def window(
        self, place: Running, target: Target, clients: int, seconds: int
    ) -> dict[str, float]:
        """Load a server with `clients` and return throughput, latency and processor time."""
        told, spent, busy = told_by(place), place.seconds, processes.busy()
        measured = as_fast_as_possible(target, clients, seconds)
        spent, busy = place.seconds - spent, processes.busy() - busy
        images = measured["images_per_second"] * seconds
        own = spent + 1e-3 * measured["wrk_core_milliseconds"] * images
        return {
            **measured,
            "core_milliseconds": 1e3 * spent / images,
            "foreign_cores": max(0.0, busy - own) / seconds,
            **inside(told, told_by(place)),
        }


def quietest(measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The first of some windows in which the machine was ours, or that in which it most was."""
    found: list[dict[str, float]] = []
    while len(found) < TRIES and (not found or found[-1]["foreign_cores"] > QUIET_CORES):
        found.append(measure())
    return min(found, key=lambda each: each["foreign_cores"])


def prepare(folder: Path) -> tuple[np.ndarray, JointClassifier]:
    """Write models, joint.toml, joint.onnx and images; the images and the joint model served."""
    for name in ("student.onnx", "teacher.onnx"):
        with shipped(name) as path:
            (folder / name).write_bytes(path.read_bytes())
    with shipped("outcomes.npz") as path:
        point = calibrate(
            Outcomes.load(path).split(0.5, seed=0)[0], score="softmax", blend=0.0, margin=0.0
        )
    models = [load_model(folder / f"{role}.onnx", threads=1) for role in ("student", "teacher")]
    joint = JointClassifier(*models, Router("softmax", point.threshold))
    save_joint(folder / "joint.toml", joint, point=point)
    words = ["export", str(folder / "joint.toml"), "-o", str(folder / "joint.onnx")]
    subprocess.run([sys.executable, "-m", "ebjr", *words], check=True, capture_output=True)
    pixels, _ = load_cifar10("test")
    chosen = np.random.default_rng(0).permutation(len(pixels))[:IMAGES]
    images = np.ascontiguousarray(pixels[chosen].transpose(0, 3, 1, 2), np.float32) / 255
    np.save(folder / "images.npy", images)
    return images, joint


def told_by(place: Running) -> dict[tuple[str, str, str], float]:
    """Sums and counts of the time in queues and in models, by stage, as our metrics have them."""
    if not place.url.endswith("/infer"):
        return {}
    line = r'^ebjr_(wait|batch)_seconds_(sum|count)\{.*stage="(\w+)".*\} (\S+)$'
    return {
        (what, kind, stage): float(value)
        for what, kind, stage, value in re.findall(line, place.get("/metrics"), re.MULTILINE)
    }


def inside(
    before: Mapping[tuple[str, str, str], float], after: Mapping[tuple[str, str, str], float]
) -> dict[str, float]:
    """By stage: a row's time in the queue, a batch's in the model, and the rows of a batch."""
    new = {key: value - before.get(key, 0.0) for key, value in after.items()}
    found = {}
    for stage in sorted({stage for _, _, stage in new}):
        rows, batches = (max(1.0, new.get((what, "count", stage), 0)) for what in ("wait", "batch"))
        found[f"{stage}_queue_milliseconds"] = 1e3 * new.get(("wait", "sum", stage), 0.0) / rows
        found[f"{stage}_model_milliseconds"] = 1e3 * new.get(("batch", "sum", stage), 0.0) / batches
        found[f"{stage}_rows_per_batch"] = rows / batches
    return found


def half_width(values: Sequence[float]) -> float:
    """Return the relative half-width of the mean's 95 % interval."""
    if len(values) < 2:
        return float("inf")
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return float(student_t.ppf(0.975, len(values) - 1) * error / np.mean(values))


@dataclass
class Round:
    """The visits of a round, and the bare loops around them."""

    visits: dict[str, dict[str, Any]] = field(default_factory=dict)
    limits: list[dict[str, float]] = field(default_factory=list)
    today: float = 0.0

    def around(self, name: str, figure: str = "images_per_second") -> float:
        """A figure of the limit, the mean of both loops around a visit."""
        at = list(self.visits).index(name)
        return float(np.mean([loop[figure] for loop in self.limits[at : at + 2]]))

    def limit(self, figure: str = "images_per_second") -> float:
        """A figure of the limit in this round."""
        return float(np.median([loop[figure] for loop in self.limits]))

    def share(self, name: str, clients: str) -> float:
        """Return a server's share of the limit."""
        return float(self.visits[name][clients]["images_per_second"]) / self.around(name)

    def affordable(self, name: str, clients: str) -> float:
        """Return the share of the limit that a server's processor time allows."""
        told = self.visits[name][clients]
        whole = told["core_milliseconds"] + told["wrk_core_milliseconds"]
        return self.around(name, "core_milliseconds") / float(whole)

    def overhead(self, name: str) -> float:
        """Return one client's latency beyond a bare call of the student, in milliseconds."""
        bare = self.around(name, "one_image_milliseconds")
        return float(self.visits[name]["one_client_milliseconds"]) - bare


def measured_rounds(
    bench: Bench, chosen: Mapping[str, tuple[Server, Settings]], loop: Loop, most: int, until: float
) -> list[Round]:
    """Rounds through all servers, until all figures are stable, or rounds or time are over."""
    found: list[Round] = []
    last = 0.0
    while not found or (
        len(found) < most
        and bench.minutes + last < until
        and (len(found) < LEAST_ROUNDS or max(widths(found).values()) > NARROW)
    ):
        last = -bench.minutes
        found.append(one_round(bench, chosen, loop))
        last += bench.minutes
        print({key: round(width, 3) for key, width in widths(found).items()}, flush=True)
    return found


def one_round(bench: Bench, chosen: Mapping[str, tuple[Server, Settings]], loop: Loop) -> Round:
    """A visit to each server, a bare loop before and after each."""
    this = Round(today=bench.offline(TODAY, 2)["images_per_second"])
    this.limits.append(bench.offline(loop, 2))
    for name, (server, settings) in chosen.items():
        this.visits[name] = bench.visit(name, server, settings)
        this.limits.append(bench.offline(loop, 2))
    return this


def widths(rounds: Sequence[Round]) -> dict[str, float]:
    """Return the width of the interval of each server's share, by number of clients."""
    return {
        f"{name} {clients}": half_width([each.share(name, str(clients)) for each in rounds])
        for name in rounds[0].visits
        for clients in CLIENTS
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """The median, how uncertain it is, and each round's value."""
    return {
        "median": round(float(np.median(values)), 3),
        "relative_half_width": round(half_width(values), 3),
        "each": [round(value, 3) for value in values],
    }


def summary(rounds: Sequence[Round]) -> dict[str, Any]:
    """Every figure of every server."""
    names = list(rounds[0].visits)
    all_clients = [str(clients) for clients in CLIENTS]

    def table(figure: str, names: Sequence[str] = names) -> dict[str, dict[str, float]]:
        return {
            name: {
                clients: round(
                    float(np.median([r.visits[name][clients][figure] for r in rounds])), 3
                )
                for clients in all_clients
            }
            for name in names
        }

    def limits(figure: str) -> float:
        return round(float(np.median([each.limit(figure) for each in rounds])), 3)

    own = rounds[0].visits.get("ebjr", {}).get("64", {})
    return {
        "limit_images_per_second": limits("images_per_second"),
        "todays_loop_of_limit": spread([each.today / each.limit() for each in rounds]),
        "images_per_second": table("images_per_second"),
        "share_of_limit": {
            name: {
                clients: spread([each.share(name, clients) for each in rounds])
                for clients in all_clients
            }
            for name in names
        },
        "share_that_processor_time_allows": {
            name: {
                clients: round(float(np.median([r.affordable(name, clients) for r in rounds])), 3)
                for clients in all_clients
            }
            for name in names
        },
        "p99_milliseconds": table("p99_milliseconds"),
        "core_milliseconds": {
            "limit": limits("core_milliseconds"),
            **table("core_milliseconds"),
            "wrk": table("wrk_core_milliseconds"),
        },
        "inside_ebjr": {
            figure: table(figure, ["ebjr"])["ebjr"]
            for figure in own
            if figure.startswith(("student_", "teacher_"))
        },
        "foreign_cores": table("foreign_cores"),
        "one_image_milliseconds": limits("one_image_milliseconds"),
        "one_client_overhead_milliseconds": {
            name: spread([each.overhead(name) for each in rounds]) for name in names
        },
        "agrees_with_the_joint_model": {
            name: min(each.visits[name]["agrees"] for each in rounds) for name in names
        },
    }


def times(rounds: Sequence[Round], rivals: Sequence[str], clients: str) -> list[float]:
    """Return our throughput over the best rival's, round by round."""
    return [
        each.share("ebjr", clients) / max(each.share(name, clients) for name in rivals)
        for each in rounds
    ]


def goals(rounds: Sequence[Round]) -> dict[str, Any]:
    """Return the server's targets, each with its value, its goal and whether it is met."""
    names = [name for name in rounds[0].visits if name != "ebjr"]
    named = [name for name in names if name in NAMED]

    def p99(clients: str) -> list[float]:
        late = [
            {name: visit[clients]["p99_milliseconds"] for name, visit in each.visits.items()}
            for each in rounds
        ]
        return [each["ebjr"] / min(each[name] for name in names) for each in late]

    least: dict[str, tuple[list[float], float]] = {}
    most: dict[str, tuple[list[float], float]] = {
        "one_client_overhead_milliseconds": ([each.overhead("ebjr") for each in rounds], 0.5)
    }
    for clients, share in (("64", 0.85), ("16", 0.75)):
        least[f"share_of_limit_{clients}"] = [each.share("ebjr", clients) for each in rounds], share
        todays = [each.share("ebjr", clients) * each.limit() / each.today for each in rounds]
        least[f"share_of_todays_loop_{clients}"] = todays, {"64": 0.95, "16": 0.9}[clients]
        if "batcher" in names:
            least[f"times_the_batcher_{clients}"] = times(rounds, ["batcher"], clients), 1.4
        if named:
            least[f"times_best_named_rival_{clients}"] = times(rounds, named, clients), 2.5
        if names:
            most[f"p99_over_the_best_{clients}"] = p99(clients), 1.0
    found = {}
    for wanted, sign in ((least, 1), (most, -1)):
        for name, (values, goal) in wanted.items():
            met = sign * float(np.median(values)) >= sign * goal
            found[name] = {**spread(values), "goal": goal, "met": met}
    return found


def latencies(
    bench: Bench, chosen: Mapping[str, tuple[Server, Settings]], rate: float
) -> dict[str, Any]:
    """Latencies under an open loop of some rate; None: a server cannot."""
    found: dict[str, Any] = {}
    for name, (server, settings) in chosen.items():
        with bench.serving(name, server, settings) as (_, target):
            try:
                found[name] = at_rate(target, rate, bench.seconds + 2)
            except subprocess.CalledProcessError:  # it refuses requests at this rate
                found[name] = None
            print(name, found[name], flush=True)
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that the options ask for."""
    figures: dict[str, Any] = {**about(seed=0), "images": IMAGES, "seconds": options.seconds}
    with tempfile.TemporaryDirectory() as place:
        bench = Bench(Path(place), *prepare(Path(place)), seconds=options.seconds)
        known = servers(bench.folder, options.rivals, bench.joint.student.input_name)
        figures["versions"] = found = versions(options.rivals, known)
        wanted = {
            name: server
            for name, server in known.items()
            if (server.needs is None or found[server.needs])
            and (not options.only or name in options.only)
        }
        figures["deferral_rate"] = float(bench.joint(bench.images).deferred.mean())
        loops = LOOPS[:1] if options.quick else LOOPS
        rates = [bench.offline(loop, 3)["images_per_second"] for loop in loops]
        loop = loops[int(np.argmax(rates))]
        print(list(zip(loops, rates, strict=True)), flush=True)
        chosen = {
            name: (server, server.tried[0] if options.quick else bench.tuned(name, server))
            for name, server in wanted.items()
        }
        figures["settings"] = {name: dict(settings) for name, (_, settings) in chosen.items()}
        figures["limit"] = dict(zip(("workers", "threads", "batch", "sessions"), loop, strict=True))
        until = MINUTES["quick" if options.quick else "whole"]
        rounds = measured_rounds(bench, chosen, loop, options.rounds, until)
        figures |= {"rounds": len(rounds), **summary(rounds)}
        if "ebjr" in chosen:
            figures["goals"] = goals(rounds)
            figures["times"] = {
                name: {
                    str(clients): spread(times(rounds, [name], str(clients))) for clients in CLIENTS
                }
                for name in chosen
                if name != "ebjr"
            }
        rivals = [figures["images_per_second"][name]["64"] for name in NAMED if name in chosen]
        if rivals and not options.quick:
            rate = LOAD_SHARE * max(rivals)
            fast = [n for n, found in figures["images_per_second"].items() if found["64"] > rate]
            able = {name: chosen[name] for name in fast}
            figures["at_rate"] = dict.fromkeys(chosen) | latencies(bench, able, rate)
        figures["minutes"] = round(bench.minutes, 1)
    return figures


def main() -> None:
    """Measure, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rivals", default=sys.executable, help="the rivals' Python")
    parser.add_argument("--seconds", type=int, help="of each window; 4, quickly 2")
    parser.add_argument("--rounds", type=int, default=6, help="at most")
    parser.add_argument("--quick", action="store_true", help="nothing is tuned or written")
    parser.add_argument("--only", nargs="*", help="these servers alone; nothing is written then")
    options = parser.parse_args()
    options.seconds = options.seconds or (2 if options.quick else 4)
    figures = measure(options)
    if options.only or options.quick:
        print(json.dumps(figures, indent=2))
    else:
        save("serving", figures)


if __name__ == "__main__":
    main()
