"""A threshold on new examples: judged as a test would, chosen as `calibrate` does, by slice."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from boxes import random_pair

import ebjr
from ebjr import Cost, JointConfig, Outcomes, TradeOffCurve, recalibrate, run_study
from ebjr.backends.entry import ModelEntry
from ebjr.calibration.guarantee import LossesAt
from ebjr.monitor import DriftMonitor, RiskMonitor
from ebjr.recalibration import (
    EXIT_STATUS,
    FEW,
    OVER,
    WINDOWS,
    WITHIN,
    least_examples,
    read_slices,
    recalibrate_audits,
)
from ebjr.windows import STATE_FILE, STATE_FORMAT, RiskWindows

CLASSES = ("ant", "bee", "cat", "dog")


def table(n: int, seed: int = 0, *, noise: float = 2.0, models: int = 2, **more) -> Outcomes:
    """Labeled answers of models whose noise falls, recorded with hashes of files."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 4, n)
    clear = 4 * np.eye(4)[targets]
    student, *between, teacher = (
        clear + rng.normal(0, spread, clear.shape) for spread in np.linspace(noise, 1.2, models)
    )
    told = {"path": "absent.onnx", "preprocess": {"size": 8}}
    roles = ["student", *(f"model-{k}" for k in range(2, models)), "teacher"]
    about = {role: {**told, "sha256": role} for role in roles}
    costs = [Cost(flops=1.0 + k) for k in range(1, models - 1)]
    return Outcomes(
        student,
        teacher,
        targets,
        between=tuple(between),
        between_costs=tuple(costs),
        student_cost=Cost(flops=1.0),
        teacher_cost=Cost(flops=9.0),
        labels=CLASSES,
        models=about,
        **more,
    )


def entry(role: str, cost: float) -> ModelEntry:
    return ModelEntry("absent.onnx", role, ebjr.Preprocess(size=8), Cost(flops=cost))


PAIR = entry("student", 1.0), entry("teacher", 9.0)


def config_of(before: Outcomes, **goal) -> JointConfig:
    how = {"score": "softmax", "blend": 0.0} if before.task == "classification" else {}
    return JointConfig.of_study(*PAIR, run_study(before, **how, **goal))


@pytest.fixture(scope="module")
def config() -> JointConfig:
    return config_of(table(6000), tolerance=0.02)


# --- today's threshold


@pytest.mark.parametrize(
    "goal",
    [
        {"tolerance": 0.02},
        {"tolerance": 0.02, "delta": 0.1},
        {"tolerance": 0.02, "delta": 0.1, "promise": "harm"},
        {"goal": "accuracy", "target": 0.9},
        {"goal": "accuracy", "target": 0.88, "delta": 0.1},
        {"goal": "budget", "flops": 4.0},
        {"goal": "budget", "deferral_rate": 0.3, "delta": 0.1},
        {"goal": "crossing"},
    ],
    ids=str,
)
def test_where_nothing_has_changed_the_threshold_is_kept_and_judged_on_all(goal):
    config, since = config_of(table(6000, 34), **goal), table(5000, 2)
    found = recalibrate(config, since)
    assert (found.status, EXIT_STATUS[found.status]) == ("kept", 0)
    curve = TradeOffCurve.of(since, "softmax", 0.0)
    expected = curve.at(threshold=config.threshold)
    for name in ("threshold", "deferral_rate", "quality", "n"):
        assert getattr(found.today, name) == getattr(expected, name)
    if goal.get("goal") == "crossing":
        assert found.loss is None
        return
    loss = {
        "excess": expected.teacher_quality - expected.quality,
        "risk": 1 - expected.quality,
        "rate": expected.deferral_rate,
    }.get(found.promise, found.loss.estimate)
    assert found.loss.estimate == pytest.approx(loss, abs=1e-9)
    assert found.loss.low < loss < found.loss.high
    limits = {"accuracy": 1 - goal.get("target", 0), "budget": 3 / 9}
    assert found.limit == pytest.approx(
        goal.get("deferral_rate", limits.get(goal.get("goal"), 0.02))
    )


def test_the_new_threshold_is_the_one_that_a_study_of_the_new_examples_finds():
    config, since = config_of(table(6000), tolerance=0.02, delta=0.1), table(5000, 1)
    found = recalibrate(config, since, fraction=0.4, seed=5)
    study = run_study(
        since, tolerance=0.02, delta=0.1, score="softmax", blend=0.0, fraction=0.4, seed=5
    )
    assert found.study.point.threshold == study.point.threshold
    assert found.study.result == study.result
    assert found.study.point.certified.n == 2000
    assert found.found.n == 5000
    saved = 1 - found.found.cost.flops / found.today.cost.flops
    assert found.saving == pytest.approx(saved)
    assert found.change.estimate == found.found.deferral_rate - found.today.deferral_rate


def test_a_student_that_got_worse_has_broken_the_promise(config):
    found = recalibrate(config, table(5000, 1, noise=3.5))
    assert (found.status, EXIT_STATUS[found.status]) == ("broken", 4)
    assert found.loss.low > found.limit == 0.02
    assert found.found.deferral_rate > found.today.deferral_rate
    assert found.statement.startswith("Broken: the goal is refuted; the loss beyond")
    assert "costs " in found.statement
    assert "% more flops" in found.statement


def test_a_student_that_got_better_has_moved_and_the_promise_is_shown(config):
    found = recalibrate(config, table(5000, 1, noise=1.4))
    assert (found.status, EXIT_STATUS[found.status]) == ("moved", 3)
    assert found.shown
    assert found.change.high < -0.01
    assert found.saving > 0.02
    assert recalibrate(config, table(5000, 1, noise=1.4), worth=0.5).status == "kept"


def test_few_examples_leave_the_promise_open_and_say_so(config):
    found = recalibrate(config, table(60, 3))
    assert found.status == "kept"
    assert not found.shown
    assert "the goal is not refuted; " in found.statement


def test_a_goal_that_nothing_reaches_now_leaves_no_threshold_to_write():
    config = config_of(table(6000), tolerance=0.02, delta=0.1)
    found = recalibrate(config, table(60, 1))
    assert found.study is None
    assert "no threshold keeps excess" in found.reason
    assert f"No threshold can be chosen now: {found.reason}" in found.statement
    with pytest.raises(ebjr.CalibrationError, match="there is no new threshold to write"):
        found.new_config()


def test_a_knob_that_was_moved_by_hand_is_judged_where_it_is_and_promises_nothing():
    config, since = config_of(table(6000), tolerance=0.02, delta=0.1), table(5000, 1)
    assert recalibrate(config, since).today.certified is not None
    moved = replace(config, threshold=0.2)
    with pytest.warns(ebjr.PromiseWarning, match="threshold is 0.2 and was"):
        found = recalibrate(moved, since)
    assert found.today.threshold == 0.2
    assert found.today.certified is None
    assert found.status == "broken"
    assert found.new_config().changes == []


def losses(kind: str, rng, n: int, mean: float) -> LossesAt:
    """Independent losses of a mean, as a threshold's are."""
    curve = TradeOffCurve.of(table(10), "softmax", 0.0)
    own = LossesAt.of(curve, {"binomial": "risk", "trinomial": "excess"}.get(kind, "risk"), 0.5)
    if kind == "trinomial":
        drawn = rng.choice([-1.0, 0.0, 1.0], n, p=[0.04, 0.92 - mean, 0.04 + mean])
    elif kind == "binomial":
        drawn = (rng.random(n) < mean).astype(float)
    else:
        drawn = rng.beta(2, 2 / mean - 2, n)
        own = replace(own, test="betting")
    return replace(own, loss=drawn)


@pytest.mark.parametrize("kind", ["binomial", "trinomial", "betting"])
def test_a_kept_promise_is_refuted_and_an_end_is_wrong_at_most_alpha_of_the_time(kind):
    rng, alpha, draws = np.random.default_rng(7), 0.1, 400
    wrong = np.zeros(3)
    for number in range(draws):
        own = losses(kind, rng, 500, 0.05)
        quick = own.interval(alpha, quick=True)
        # an exact interval of excess takes long, and its test at one mean does not
        wrong += [own.refutes(0.05, alpha), quick.low > 0.05, quick.high < 0.05]
        if number < 20:
            exact = own.interval(alpha)
            assert exact.low <= own.loss.mean() <= exact.high
            if abs(exact.low - 0.05) > 1e-3:
                assert own.refutes(0.05, alpha) == (exact.low > 0.05)
    assert (wrong / draws <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / draws)).all()


@pytest.mark.parametrize("kind", ["binomial", "trinomial", "betting"])
def test_a_promise_that_is_broken_by_much_is_refuted(kind):
    rng = np.random.default_rng(8)
    found = [losses(kind, rng, 800, 0.12).refutes(0.05, 0.05) for _ in range(50)]
    assert np.mean(found) > 0.9


# --- slices


def test_classes_and_values_are_slices_whose_losses_add_up(config):
    since = table(4000, 1)
    columns = {
        "source": np.array(["a", "b"])[np.arange(4000) % 2],
        "time": np.datetime64("2026-11-01") + np.random.default_rng(0).permutation(4000),
    }
    found = recalibrate(config, since, slices=columns)
    by_column = {
        name: [one for one in found.slices if one.column == name]
        for name in ("class", "source", "time")
    }
    assert [one.name for one in by_column["class"]] == list(CLASSES)
    assert [one.name for one in by_column["source"]] == ["a", "b"]
    assert len(by_column["time"]) == WINDOWS
    for parts in by_column.values():
        n = np.array([one.n for one in parts])
        assert n.sum() == 4000
        for figure, whole in (("quality", found.today.quality), ("deferral_rate", None)):
            mean = n @ [getattr(one, figure) for one in parts] / 4000
            assert mean == pytest.approx(whole or found.today.deferral_rate)
        mean = n @ [one.loss.estimate for one in parts] / 4000
        assert mean == pytest.approx(found.loss.estimate)
        after = found.found.teacher_quality - found.found.quality
        assert n @ [one.loss_after for one in parts] / 4000 == pytest.approx(after)
    assert by_column["time"][0].name.startswith("2026-11-01 to ")


def test_a_slice_that_went_wrong_is_named_and_does_not_decide(config):
    since = table(8000, 1)
    student = np.array(since.student)
    rows = np.arange(8000) < 400
    student[rows] = 9 * np.eye(4)[(since.targets[rows] + 1) % 4]  # sure, and wrong
    source = np.where(rows, "new camera", "others")
    found = recalibrate(config, replace(since, student=student), slices={"source": source})
    standing = {one.name: one.standing for one in found.slices if one.column == "source"}
    assert standing["new camera"] == OVER
    assert "source new camera" in found.statement
    small = replace(since, student=np.where(rows[:, None] & (source == "x")[:, None], 0, student))
    assert found.loss.estimate > recalibrate(config, since).loss.estimate
    assert len(small) == 8000


def test_slices_below_the_least_number_are_too_few_and_cost_the_others_nothing(config):
    since = table(3000, 1)
    names = np.array([f"rare {k}" if k < 40 else "common" for k in range(3000)])
    found = recalibrate(config, since, slices={"source": names})
    few = [one for one in found.slices if one.standing == FEW]
    assert len(few) == 40
    assert all(one.loss is None for one in few)
    assert found.least == least_examples(0.05 / 5)  # four classes, and what is common
    assert recalibrate(config, since, slices={"s": names[::-1]}).least == found.least


def test_none_of_many_slices_that_keep_the_limit_is_called_over_and_such_that_do_not_are():
    lax = config_of(table(6000), goal="accuracy", target=0.8)
    _, point = lax.point_on(table(200_000, 9))
    limits = {"edge": point.quality, "far": point.quality + 0.1}
    edge, far = (
        replace(lax, calibration={**lax.calibration, "target": limit}) for limit in limits.values()
    )
    over = 0
    for seed in range(30):
        since = table(4000, 100 + seed)
        parts = np.random.default_rng(seed).integers(0, 40, 4000)
        found = recalibrate(edge, since, slices={"part": parts})
        assert sum(one.column == "part" for one in found.slices) == 40
        over += any(one.standing == OVER for one in found.slices)
    assert over <= 5  # of 30: with probability at most 0.05 each
    found = recalibrate(far, since, slices={"part": parts})
    assert [one.standing for one in found.slices if one.column == "class"] == [OVER] * 4
    found = recalibrate(lax, table(20_000, 1))
    assert [one.standing for one in found.slices] == [WITHIN] * 4


def test_numbers_of_many_values_are_cut_and_of_few_are_slices_by_value(config):
    since = table(2000, 1)
    columns = {
        "camera": np.arange(2000) % 7,
        "second": np.arange(2000) + 5,
        "lux": np.linspace(0, 1, 2000),
        "flag": np.arange(2000) % 2 == 0,
        "gain": np.where(np.arange(2000) < 150, np.nan, np.arange(2000.0)),
    }
    found = recalibrate(config, since, slices=columns)
    counts = {name: sum(one.column == name for one in found.slices) for name in columns}
    cut = {"second": WINDOWS, "lux": WINDOWS, "gain": WINDOWS + 1}
    assert counts == {"camera": 7, "flag": 2, **cut}
    sizes = {one.name: one.n for one in found.slices if one.column == "gain"}
    assert sizes["missing"] == 150
    assert set(sizes.values()) == {150, 185}


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"source": ["a"]}, r"source of slices must have one value per example, \(2000,\)"),
        ({"id": [f"row {k}" for k in range(20_000)]}, "has 20,000 values"),
    ],
)
def test_columns_that_are_no_slices_are_refused(config, columns, words):
    n = 2000 if len(next(iter(columns.values()))) == 1 else 20_000
    with pytest.raises(ValueError, match=words):
        recalibrate(config, table(n, 1), slices=columns)


# --- what is refused


def test_examples_that_say_nothing_of_the_threshold_are_refused(config, tmp_path):
    before, since = table(6000), table(3000, 1)
    models = {role: dict(about) for role, about in since.models.items()}
    models["teacher"]["sha256"] = "another"
    for outcomes, words in [
        (before, "was calibrated on these outcomes"),
        (replace(since, models=models), "another teacher \\(sha256\\) than joint.toml"),
        (
            replace(since, labels=tuple("abcd")),
            "class 0 is 'a' in the outcomes and 'ant' in joint.toml",
        ),
        (replace(since, labeled=False), "calibrated on labels, but these outcomes only have"),
        (since.take(np.arange(24)), "24 examples are too few to judge .* at least 25"),
    ]:
        with pytest.raises(ValueError, match=words):
            recalibrate(config, outcomes)
    with pytest.raises(ValueError, match="does not name the goal of its threshold"):
        recalibrate(replace(config, calibration={}), since)
    for wrong in ({"alpha": 0.0}, {"alpha": 0.5}, {"worth": -0.1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            recalibrate(config, since, **wrong)


def test_a_promise_about_agreement_is_not_judged_by_labels():
    before, since = table(6000), table(3000, 1)
    own = replace(before, targets=before.predictions("teacher"), labeled=False)
    config = config_of(own, tolerance=0.05, delta=0.1)
    with pytest.raises(ValueError, match="promises agreement with the teacher"):
        recalibrate(config, since)
    agreed = replace(since, targets=since.predictions("teacher"), labeled=False)
    assert recalibrate(config, agreed).status == "kept"


def test_a_model_file_that_has_changed_is_refused(config, tmp_path):
    file = tmp_path / "student.onnx"
    file.write_bytes(b"another")
    other = replace(config, student=replace(config.student, path=str(file)))
    with pytest.raises(ebjr.ModelError, match="has changed since the threshold was calibrated"):
        recalibrate(other, table(3000, 1))


# --- tasks, stages and traffic


def test_a_chain_is_judged_and_chosen_by_its_last_threshold(run, tmp_path):
    table(6000, models=3).save("old.npz")
    table(6000, 1, models=3).save("new.npz")
    words = "calibrate old.npz --stages student,model-2,teacher --tolerance 0.02 -o joint.toml"
    code, _, error = run(*words.split())
    assert code == 0, error
    words = "recalibrate joint.toml --outcomes new.npz -o new.toml --json"
    code, printed, error = run(*words.split())
    assert code in (0, 3), error
    before, after = JointConfig.read("joint.toml"), JointConfig.read("new.toml")
    assert before.student == after.student
    assert (after.score, after.blend) == (before.score, before.blend)
    assert after.threshold == json.loads(printed)["held_out"]["threshold"]
    assert after.changes == []
    with pytest.raises(ValueError, match="must be of all models of joint"):
        recalibrate("joint.toml", table(6000, 1))


def regression(n: int, seed: int, noise: float = 1.0) -> Outcomes:
    rng = np.random.default_rng(seed)
    targets, spread = rng.normal(0, 3, n), rng.uniform(0.1, 2, n)
    student = np.column_stack([targets + noise * spread * rng.normal(size=n), spread])
    teacher = targets + rng.normal(0, 0.3, n)
    costs = {"student_cost": Cost(flops=1.0), "teacher_cost": Cost(flops=9.0)}
    return Outcomes(student, teacher, targets, task="regression", **costs)


@pytest.mark.parametrize(
    ("metric", "goal"),
    [
        ("rmse", {"tolerance": 0.2}),
        ("rmse", {"goal": "accuracy", "target": 0.6}),
        ("r2", {"goal": "accuracy", "target": 0.95}),
        ("mae", {"tolerance": 0.2, "delta": 0.1, "loss_bound": 5.0}),
        ("rmse", {"goal": "accuracy", "target": 0.8, "delta": 0.1, "loss_bound": 25.0}),
    ],
    ids=str,
)
def test_regressors_are_judged_in_the_unit_of_their_metric(metric, goal):
    before = replace(regression(3000, 0), metric=metric)
    study = run_study(before, score="predicted_std", blend=0.0, **goal)
    config = JointConfig.of_study(*PAIR, study)
    source = {"source": np.arange(3000) % 3}
    found = recalibrate(config, regression(3000, 1), slices=source)
    assert found.status == "kept"
    assert found.today.metric == metric
    worse = recalibrate(config, regression(3000, 1, noise=3.0), slices=source)
    assert worse.status == "broken"
    assert worse.loss.low > worse.limit
    assert [one.standing for one in worse.slices] == [OVER] * 3
    if goal.get("goal") == "accuracy" and metric == "rmse":
        assert found.limit == goal["target"]
        assert found.loss.estimate == pytest.approx(-found.today.quality, rel=0.02)
    if metric == "r2":
        assert found.loss.estimate == pytest.approx(1 - found.today.quality)
    cut = None if "loss_bound" not in goal else worse.clipped
    assert worse.as_dict()["clipped"] == cut
    assert (f"; {cut} losses were cut off" in worse.statement) == (cut is not None)
    assert cut is None or cut > (found.clipped or 0)


@pytest.mark.parametrize(
    ("metric", "goal"), [("ap", {"tolerance": 0.05}), ("f1", {"tolerance": 0.2, "delta": 0.2})]
)
def test_detectors_are_judged_by_ap_and_by_f1(metric, goal):
    def seen(seed: int) -> Outcomes:
        truth, student, teacher = random_pair(seed, images=80)
        return Outcomes(student, teacher, truth, task="detection", metric=metric)

    study = run_study(seen(0), score="max_confidence", blend=0.0, **goal)
    config = JointConfig.of_study(*PAIR, study)
    found = recalibrate(config, seen(1), slices={"night": np.arange(80) % 2 == 0})
    assert found.today.metric == metric
    assert found.status in EXIT_STATUS
    assert [one.column for one in found.slices] == ["night", "night"]
    assert found.loss.low <= found.loss.estimate <= found.loss.high
    expected = found.today.teacher_quality - found.today.quality
    assert found.loss.estimate == pytest.approx(expected, abs=1e-9)


def test_sets_of_labels_are_slices_by_each_label():
    def tagged(seed: int, noise: float = 1.5) -> Outcomes:
        rng = np.random.default_rng(seed)
        targets = (rng.random((3000, 3)) < 0.4).astype(int)
        clear = 4 * targets - 2.0
        student = clear + rng.normal(0, noise, clear.shape)
        teacher = clear + rng.normal(0, 0.8, clear.shape)
        return Outcomes(student, teacher, targets, task="multilabel", labels=("a", "b", "c"))

    study = run_study(tagged(0), tolerance=0.05, score="smallest_margin", blend=0.0)
    config = JointConfig.of_study(*PAIR, study)
    since = tagged(1)
    found = recalibrate(config, since)
    assert [(one.name, one.n) for one in found.slices] == [
        (name, int(since.targets[:, place].sum())) for place, name in enumerate("abc")
    ]
    assert recalibrate(config, tagged(1, noise=3.0)).status == "broken"


def test_the_mix_of_traffic_that_was_chosen_for_is_drawn_again():
    from ebjr.tasks.specialized.known_classes import Traffic

    mix = Traffic(0.8, (0, 1))
    study = run_study(table(6000), tolerance=0.02, score="softmax", blend=0.0, traffic=mix)
    found = recalibrate(JointConfig.of_study(*PAIR, study), table(6000, 1))
    assert found.today.n < 4500
    counts = {one.name: one.n for one in found.slices}
    assert (counts["ant"] + counts["bee"]) / found.today.n == pytest.approx(0.8, abs=0.01)
    assert found.new_config().traffic == mix


# --- the command


@pytest.fixture
def folder(run, tmp_path) -> Path:
    table(6000).save("old.npz")
    table(6000, 1).save("new.npz")
    table(6000, 2, noise=3.5).save("worse.npz")
    table(6000, 3, noise=1.4).save("better.npz")
    words = "calibrate old.npz --score softmax --blend 0 --tolerance 0.02 -o joint.toml"
    code, _, error = run(*words.split())
    assert code == 0, error
    rows = [f"{'day' if k % 3 else 'night'},2026-11-{1 + k % 28:02d}T12:00:00" for k in range(6000)]
    Path("rows.csv").write_text("\n".join(["light,taken", *rows]))
    return tmp_path


@pytest.mark.parametrize(("data", "status"), [("new", 0), ("better", 3), ("worse", 4)])
def test_the_exit_status_says_what_to_do_and_nothing_is_written_unasked(run, folder, data, status):
    before = sorted(path.name for path in folder.iterdir())
    words = f"recalibrate joint.toml --outcomes {data}.npz --slices rows.csv".split()
    code, printed, error = run(*words)
    assert code == status, error
    word = {0: "Kept", 3: "Moved", 4: "Broken"}[status]
    assert printed.startswith(f"{word}: ")
    assert "chosen now, on 3,000 others" in printed
    assert "light night" in run(*words, "--slice-by", "taken, light", "--details")[1]
    assert sorted(path.name for path in folder.iterdir()) == before
    found = json.loads(run(*words, "--json")[1])
    assert (found["status"], found["exit_status"]) == (word.lower(), status)
    assert {one["column"] for one in found["slices"]} == {"class", "light", "taken"}


def test_a_new_file_is_the_old_one_with_the_new_threshold(run, folder):
    words = "recalibrate joint.toml --outcomes better.npz -o new.toml"
    code, printed, _ = run(*words.split())
    assert code == 3
    assert "Wrote new.toml" in printed
    old, new = JointConfig.read("joint.toml"), JointConfig.read("new.toml")
    assert new.threshold != old.threshold
    again = run_study(table(6000, 3, noise=1.4), tolerance=0.02, score="softmax", blend=0.0)
    assert new.threshold == again.point.threshold
    changed = ("threshold", "calibration", "operating_points")
    assert replace(new, **{name: getattr(old, name) for name in changed}) == old
    assert new.calibration["drift"]["n"] == 3000
    code, printed, _ = run("evaluate", "better.npz", "--joint", "new.toml", "--json")
    assert json.loads(printed)["held_out"]["n"] == 3000
    code, _, error = run("recalibrate", "new.toml", "--outcomes", "better.npz")
    assert code == 2
    assert "calibrated on these outcomes" in error


def test_a_file_that_cannot_be_written_is_an_error_after_the_judgment(run, folder):
    words = "calibrate old.npz --score softmax --blend 0 --tolerance 0.02 --delta 0.1 -o sure.toml"
    code, _, error = run(*words.split())
    assert code == 0, error
    table(60, 1, noise=6.0).save("few.npz")
    words = "recalibrate sure.toml --outcomes few.npz"
    code, printed, _ = run(*words.split())
    assert code == 4
    assert "No threshold can be chosen now: no threshold keeps excess" in printed
    code, printed, error = run(*words.split(), "-o", "new.toml")
    assert code == 2
    assert printed.startswith("Broken: ")
    assert "there is no new threshold to write" in error
    assert not Path("new.toml").exists()
    code, printed, _ = run(*words.split(), "-o", "new.toml", "--json")
    assert (code, json.loads(printed)["output"]) == (2, None)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "give either --outcomes"),
        ("--outcomes new.npz --audits .", "give either --outcomes"),
        ("--outcomes new.npz --slice-by light", "--slice-by picks columns of a table"),
        ("--outcomes new.npz --slices rows.csv --slice-by hue", "no column 'hue'; it has light"),
        ("--outcomes new.npz --alpha 0.7", "alpha must lie between 0 and 0.5"),
        ("--audits . -o new.toml", "give no new threshold"),
        ("--audits .", "monitor.json does not exist"),
        ("--outcomes new.npz -o joint.toml", "would overwrite"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(run, folder, words, said):
    code, printed, error = run("recalibrate", "joint.toml", *words.split())
    assert (code, printed) == (2, "")
    assert error.count("ebjr: ") == 1
    assert said in error.replace("\n", " ")


def test_columns_of_a_table_are_read_as_they_are(folder):
    columns = read_slices("rows.csv", ["taken"])
    assert list(columns) == ["taken"]
    assert columns["taken"].dtype.kind == "M"
    assert set(read_slices("rows.csv")) == {"light", "taken"}


# --- audits


def state(folder: Path, risk: RiskMonitor | None, drift=None, windows=None, of="abc") -> Path:
    monitors = {"disagreement": risk and risk.state(), "drift": drift and drift.state()}
    kept = {
        "format": STATE_FORMAT,
        "calibration": of,
        "monitors": {name: found for name, found in monitors.items() if found},
        "windows": windows and windows.state(),
    }
    (folder / STATE_FILE).write_text(json.dumps(kept))
    return folder


@pytest.fixture
def served(config) -> JointConfig:
    return replace(config, calibration={**config.calibration, "outcomes": "abc"})


def watched(*losses: np.ndarray, deferred: int = 0) -> tuple[RiskMonitor, RiskWindows]:
    risk, windows = RiskMonitor(0.05), RiskWindows(0.05)
    for loss in losses:
        risk.update(loss)
        asked = np.arange(len(loss)) < deferred
        windows.update(loss, "2026-11-30T07:00:00+00:00", deferred=asked)
    return risk, windows


def test_audits_judge_the_promise_in_all_and_by_windows(served, tmp_path):
    rng = np.random.default_rng(0)
    usual = rng.random((4, 1000)) < 0.04
    risk, windows = watched(*usual)
    found = recalibrate_audits(served, state(tmp_path, risk, windows=windows))
    assert (found.status, dict(found.why)) == ("kept", {})
    assert len(found.as_dict()["windows"]) == 4
    assert "Audits cannot choose a new threshold" in found.statement
    risk, windows = watched(*usual, rng.random(1000) < 0.3)
    found = recalibrate_audits(served, state(tmp_path, risk, windows=windows) / STATE_FILE)
    assert found.status == "broken"
    assert [window["status"] for window in found.as_dict()["windows"]][-1] == "broken"


def test_audits_say_where_there_is_room_or_the_deferral_rate_is_another(served, tmp_path):
    quiet = np.zeros(1000)
    risk, windows = watched(quiet, deferred=300)
    found = recalibrate_audits(served, state(tmp_path, risk, windows=windows))
    assert found.status == "moved"
    assert "kept with room" in found.why["room"]
    assert "30.0% were deferred" in found.why["room"]
    risk, windows = watched(quiet)  # nothing is deferred: there is nothing to save
    assert recalibrate_audits(served, state(tmp_path, risk, windows=windows)).status == "kept"
    drift = DriftMonitor(np.arange(1000.0), threshold=100.0)
    of_these = replace(served, calibration={**served.calibration, "drift": drift.reference})
    drift.update(np.linspace(0, 300, 2000))
    found = recalibrate_audits(of_these, state(tmp_path, risk, drift, windows))
    assert found.status == "moved"
    assert "the deferral rate is 0.33" in found.why["rate"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"calibration": "xyz"}, "a server with another calibration"),
        ({"calibration": None}, "a server with another calibration"),
        ({"monitors": {}}, "has no audits"),
        ({"format": "other"}, "the format is 'other'"),
        ({"monitors": {"disagreement": {"format": "x"}}}, "is not a server's monitor.json"),
        ({"monitors": []}, "is not a server's monitor.json"),
    ],
)
def test_a_state_that_says_nothing_of_the_threshold_is_refused(served, tmp_path, change, words):
    file = state(tmp_path, watched(np.zeros(100))[0]) / STATE_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=words):
        recalibrate_audits(served, file)


def test_the_audits_of_another_threshold_on_the_same_outcomes_are_refused(served, tmp_path):
    own = DriftMonitor.of_reference(served.calibration["drift"])
    risk = watched(np.zeros(1000))[0]
    assert recalibrate_audits(served, state(tmp_path, risk, own)).status == "kept"
    known = {**served.calibration["drift"], "threshold": 0.5}
    with pytest.raises(ValueError, match="another threshold or score, chosen on the same outcomes"):
        recalibrate_audits(
            replace(served, calibration={**served.calibration, "drift": known}), tmp_path
        )


def test_a_promised_deferral_rate_is_judged_beside_the_disagreement(served, tmp_path):
    folder = state(tmp_path, watched(np.zeros(1000))[0])
    kept = json.loads((folder / STATE_FILE).read_text())
    rate = RiskMonitor(0.1, promise="rate")
    rate.update(np.ones(1000, bool))
    kept["monitors"]["rate"] = rate.state()
    (folder / STATE_FILE).write_text(json.dumps(kept))
    found = recalibrate_audits(served, folder)
    assert found.status == "broken"
    assert "deferral rate" in found.statement


def test_few_audits_are_no_judgement(served, tmp_path):
    folder = state(tmp_path, watched(np.zeros(10))[0])
    with pytest.raises(ValueError, match="has 10 rows; at least 25 are needed"):
        recalibrate_audits(served, folder)
