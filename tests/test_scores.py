from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import cuts, logits

from ebjr import SCORES, Router, Score, as_score, register_score
from ebjr.arrays import to_numpy
from ebjr.scores import energy, random, softmax_energy
from ebjr.tasks.specialized.scores import LOGITS_AND_OTHER

ROWS = np.random.default_rng(0).normal(0, 5, (64, 10))
TEMPERED = ("energy", "softmax_energy", "softmax", "entropy", "margin")
INFORMED = tuple(name for name in SCORES if name != "random")
SHIFT_WITH_LOGITS = ("energy", "max_logit")


def _normalized(z, p=4.0):
    z = z - z.mean(axis=1, keepdims=True)
    return z.max(axis=1) / np.linalg.norm(z, ord=p, axis=1)


def _margin(z):
    second, first = np.sort(scipy.special.softmax(z, axis=1))[:, -2:].T
    return first - second


ORACLES = {
    "energy": lambda z: scipy.special.logsumexp(z, axis=1),
    "softmax_energy": lambda z: scipy.special.logsumexp(scipy.special.softmax(z, axis=1), axis=1),
    "softmax": lambda z: scipy.special.softmax(z, axis=1).max(axis=1),
    "entropy": lambda z: -scipy.stats.entropy(scipy.special.softmax(z, axis=1), axis=1),
    "margin": _margin,
    "max_logit": lambda z: z.max(axis=1),
    "normalized_logit": _normalized,
    "label_mass": lambda z: np.exp(scipy.special.logsumexp(z, axis=1)).clip(max=1),
}


def half(asarray, name):
    """An array in half precision, of whichever library has it."""
    torch = pytest.importorskip("torch")
    if name == "float16":
        return asarray(ROWS.astype(np.float16))
    if asarray is np.asarray:
        pytest.skip("NumPy has no bfloat16")
    return torch.as_tensor(ROWS).bfloat16()


@pytest.fixture
def registry():
    """The named scores, as they were afterwards."""
    before = dict(SCORES)
    yield SCORES
    SCORES.clear()
    SCORES.update(before)


def test_every_informed_score_has_an_oracle():
    assert set(ORACLES) == set(INFORMED)


@pytest.mark.parametrize("name", INFORMED)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_score_is_what_scipy_says(name, dtype, asarray):
    rows = ROWS.astype(dtype)
    found = to_numpy(as_score(name)(asarray(rows)))
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(found, ORACLES[name](rows.astype(float)), tolerance, tolerance)


@pytest.mark.parametrize("name", TEMPERED)
@pytest.mark.parametrize("temperature", [0.5, 1, 3.0])
def test_a_temperature_divides_the_logits(name, temperature, asarray):
    found = to_numpy(SCORES[name](asarray(ROWS), temperature=temperature))
    factor = temperature if name == "energy" else 1
    np.testing.assert_allclose(found, factor * ORACLES[name](ROWS / temperature), 1e-12, 1e-12)


@pytest.mark.parametrize("p", [1, 2.0, 3.5])
def test_a_normalized_logit_takes_any_norm(p, asarray):
    found = to_numpy(as_score(f"normalized_logit(p={p})")(asarray(ROWS)))
    np.testing.assert_allclose(found, _normalized(ROWS, p))


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [0, 1, 5])
def test_shape_dtype_and_library_are_kept(name, dtype, n, asarray):
    rows = asarray(ROWS[:n].astype(dtype))
    score = as_score(name)(rows)
    assert type(score) is type(rows)
    assert score.dtype == rows.dtype
    assert tuple(score.shape) == (n,)
    assert getattr(score, "device", None) == getattr(rows, "device", None)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_single(name, dtype, asarray):
    rows = half(asarray, dtype)
    score = as_score(name)(rows)
    single = as_score(name)(asarray(to_numpy(rows).astype(np.float32)))
    assert score.dtype == single.dtype
    np.testing.assert_array_equal(to_numpy(score), to_numpy(single))


@pytest.mark.parametrize("name", INFORMED)
def test_half_precision_is_close(name, asarray):
    score = to_numpy(as_score(name)(half(asarray, "float16")))
    np.testing.assert_allclose(score, ORACLES[name](ROWS), atol=0.02)


@pytest.mark.parametrize("name", SCORES)
def test_integer_logits_are_taken_for_floats(name, asarray):
    rows = np.array([[3, 1, 0], [0, 2, 2]])
    np.testing.assert_array_equal(
        to_numpy(as_score(name)(asarray(rows))), to_numpy(as_score(name)(asarray(rows * 1.0)))
    )


@pytest.mark.parametrize("name", INFORMED)
@given(rows=logits(), shift=st.floats(-50, 50))
@settings(max_examples=60, deadline=None)
def test_energy_and_max_logit_shift_with_the_logits_and_no_other_score_does(name, rows, shift):
    score = as_score(name)
    expected = score(rows) + (shift if name in SHIFT_WITH_LOGITS else 0)
    if name == "label_mass":  # it is a share, and grows by a factor
        expected = np.exp(np.minimum(energy(rows) + shift, 0))
    np.testing.assert_allclose(score(rows + shift), expected, atol=1e-10)


@given(rows=logits(classes=st.integers(2, 40)))
@settings(max_examples=60, deadline=None)
def test_softmax_energy_stays_in_its_narrow_range(rows):
    classes = rows.shape[1]
    score = softmax_energy(rows)
    assert (score >= 1 / classes + np.log(classes) - 1e-12).all()
    assert (score <= 1 + np.log1p((classes - 1) / np.e) + 1e-12).all()


def test_the_published_thresholds_fit_softmax_energy_alone():
    for classes, published in ((10, 2.46), (100, 4.6195)):
        flat, peaked = np.zeros((1, classes)), 99 * np.eye(classes)[:1]
        low, high = softmax_energy(flat)[0], softmax_energy(peaked)[0]
        assert low < published < high
    assert energy(peaked)[0] > 90


@pytest.mark.parametrize("name", INFORMED)
def test_higher_is_easier(name, asarray):
    flat, peaked = [1.0, 0.9, 1.1, 1.0], [8.0, 0.0, 0.0, 0.0]
    # less than 0, as log-probabilities are
    hard, easy = to_numpy(as_score(name)(asarray(np.array([flat, peaked]) - 10)))
    assert hard < easy


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize(
    "row",
    [
        [np.nan, 0, 1],
        [np.inf, 0, 1],
        [np.inf] * 3,
        [np.inf, -np.inf, 0],
        [-np.inf] * 3,
        [np.nan] * 3,
    ],
)
def test_a_row_that_is_no_distribution_has_the_score_nan_and_is_deferred(name, row, asarray):
    rows = asarray(np.array([[4.0, 0.0, 1.0], row, [0.0, 7.0, 2.0]]))
    score, deferred = Router(name, threshold=-1e9)(rows)
    np.testing.assert_array_equal(np.isnan(to_numpy(score)), [False, True, False])
    np.testing.assert_array_equal(to_numpy(deferred), [False, True, False])


@pytest.mark.parametrize("name", [*TEMPERED, "max_logit"])
def test_a_class_ruled_out_by_a_logit_of_minus_infinity_is_fine(name, asarray):
    ruled_out = to_numpy(as_score(name)(asarray(np.array([[2.0, -np.inf, 1.0, 0.0]]))))
    without = ORACLES[name](np.array([[2.0, -1e3, 1.0, 0.0]]))
    np.testing.assert_allclose(ruled_out, without)


@pytest.mark.parametrize("name", INFORMED)
@pytest.mark.parametrize(("dtype", "huge"), [("float32", 1e38), ("float64", 4e307)])
def test_huge_logits_do_not_overflow(name, dtype, huge, asarray):
    rows = np.array([[huge, -huge, 0.0], [huge, huge, 0.0], [-huge, 0.0, 1.0]], dtype)
    assert np.isfinite(to_numpy(as_score(name)(asarray(rows)))).all()


@pytest.mark.parametrize("name", SCORES)
@given(data=st.data(), library=st.sampled_from(["numpy", "torch"]))
@settings(max_examples=50, deadline=None)
def test_any_split_into_batches_gives_the_same_scores(name, data, library):
    rows = data.draw(logits(rows=st.integers(1, 40)), label="rows").astype(np.float32)
    parts = data.draw(cuts(len(rows)), label="parts")
    if library == "torch":
        rows = pytest.importorskip("torch").as_tensor(rows)
    score = as_score(name)
    whole = to_numpy(score(rows))
    split = np.concatenate([to_numpy(score(rows[part])) for part in parts])
    if library == "numpy":
        np.testing.assert_array_equal(split, whole)
    else:  # its vector and scalar loops round differently
        np.testing.assert_allclose(split, whole, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", SCORES)
def test_the_layout_in_memory_does_not_change_a_score(name):
    """Else a row on the threshold would be kept in one batch and deferred in another."""
    rows = np.asfortranarray(np.random.default_rng(2).normal(0, 4, (200, 10)).astype(np.float32))
    alone = np.concatenate([as_score(name)(rows[n : n + 1]) for n in range(len(rows))])
    np.testing.assert_array_equal(as_score(name)(rows), alone)
    np.testing.assert_array_equal(as_score(name)(np.ascontiguousarray(rows)), alone)


@pytest.mark.parametrize("name", SCORES)
def test_a_score_writes_nothing_into_its_input(name, asarray):
    rows = asarray(ROWS.copy())
    as_score(name)(rows)
    np.testing.assert_array_equal(to_numpy(rows), ROWS)


@pytest.mark.parametrize("name", SCORES)
def test_a_tensor_that_needs_gradients_is_scored(name):
    torch = pytest.importorskip("torch")
    rows = torch.as_tensor(ROWS)
    scored = as_score(name)(rows.clone().requires_grad_())
    np.testing.assert_array_equal(to_numpy(scored), to_numpy(as_score(name)(rows)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_random_is_uniform(dtype, asarray):
    rows = np.random.default_rng(1).normal(0, 3, (20_000, 3)).astype(dtype)
    values = to_numpy(random(asarray(rows)))
    assert (values >= 0).all()
    assert (values < 1).all()
    assert scipy.stats.kstest(values, "uniform").pvalue > 0.001


def test_random_takes_a_class_that_is_ruled_out(asarray):
    rows = asarray(np.array([[1.0, -np.inf], [np.nan, 0.0], [np.inf, 0.0]]))
    assert np.isnan(to_numpy(random(rows))).tolist() == [False, True, True]


def test_random_depends_on_row_and_seed_alone(asarray):
    rows = asarray(ROWS)
    first = to_numpy(random(rows))
    np.testing.assert_array_equal(first, to_numpy(random(rows)))
    np.testing.assert_array_equal(first[::-1], to_numpy(random(asarray(ROWS[::-1].copy()))))
    other = to_numpy(random(rows, seed=1))
    assert abs(np.corrcoef(first, other)[0, 1]) < 0.4
    assert (first != other).all()


def test_random_takes_predictions_alone(asarray):
    values = to_numpy(random(asarray(np.arange(500.0)[:, None])))
    assert len(np.unique(values)) == 500


def test_random_tells_neighbors_and_permuted_rows_apart():
    rows = np.concatenate([np.arange(200.0)[:, None] * [0, 1], np.arange(1, 200)[:, None] * [1, 0]])
    assert len(np.unique(random(rows))) == len(rows)


@pytest.mark.parametrize("name", INFORMED)
@pytest.mark.parametrize("shape", [(3,), (3, 1), (2, 3, 4), ()])
def test_output_that_is_not_logits_is_refused_with_its_shape(name, shape, asarray):
    with pytest.raises(ValueError, match=r"must have shape \(n, classes\)") as caught:
        as_score(name)(asarray(np.ones(shape)))
    assert str(tuple(shape)) in str(caught.value)


def test_output_that_is_no_array_is_refused_by_type():
    with pytest.raises(TypeError, match="not list"):
        energy([[1.0, 2.0]])


@pytest.mark.parametrize("name", TEMPERED)
@pytest.mark.parametrize("temperature", [0, -1.0, np.nan, np.inf])
def test_a_temperature_must_be_positive(name, temperature):
    with pytest.raises(ValueError, match="temperature must be a positive number"):
        SCORES[name](ROWS, temperature=temperature)


@pytest.mark.parametrize("p", [0, 0.5, -2, np.nan, np.inf])
def test_a_norm_must_be_at_least_one(p):
    with pytest.raises(ValueError, match="p must be a number of at least 1"):
        SCORES["normalized_logit"](ROWS, p=p)


@pytest.mark.parametrize(
    ("text", "name", "parameters"),
    [
        ("energy", "energy", {}),
        (" margin ", "margin", {}),
        ("energy()", "energy", {}),
        ("softmax(temperature=2)", "softmax", {"temperature": 2}),
        (" energy( temperature = 0.5 ) ", "energy", {"temperature": 0.5}),
        ("normalized_logit(p=3.0)", "normalized_logit", {"p": 3.0}),
        ("random(seed=7)", "random", {"seed": 7}),
    ],
)
def test_a_score_is_read_from_text_and_written_back(text, name, parameters):
    score = as_score(text)
    assert (score.name, dict(score.parameters)) == (name, parameters)
    assert score.named
    assert as_score(str(score)) == score
    np.testing.assert_array_equal(score(ROWS), SCORES[name](ROWS, **parameters))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("certainty", "there is no score named 'certainty'; there are: energy, softmax_energy"),
        ("certainty(temperature=2)", "there is no score named 'certainty'"),
        ("", "there is no score named ''"),
        ("softmax(2)", "cannot read the score"),
        ("softmax(temperature=", "cannot read the score"),
        ("softmax(temperature=T)", "cannot read the score"),
        ("softmax(**{'temperature': 2})", "cannot read the score"),
        ("softmax(temperature=__import__('os'))", "cannot read the score"),
        ("a.softmax()", "cannot read the score"),
        ("softmax() + 1", "cannot read the score"),
        ("softmax(temperature=0)", "temperature must be a positive number"),
        ("softmax(temperature='hot')", "softmax does not take the parameters"),
        ("learned", "score learned must be fitted to outcomes: use ebjr.calibrate"),
        ("softmax(heat=2)", "softmax does not take the parameters"),
        ("max_logit(temperature=2)", "max_logit does not take the parameters"),
        ("random(seed=-1)", "seed"),
        ("random(seed='a')", "seed"),
    ],
)
def test_text_that_is_no_score_is_refused_in_one_sentence(text, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")) as caught:
        as_score(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("thing", [3, None, ["energy"]])
def test_what_is_neither_text_nor_callable_is_no_score(thing):
    with pytest.raises(TypeError, match="score must be a name or a callable") as caught:
        as_score(thing)
    assert type(thing).__name__ in str(caught.value)


def test_any_callable_is_a_score():
    class Largest:
        def __call__(self, output):
            return output.max(axis=1)

    def largest(output):
        return output.max(axis=1)

    for function, name in ((largest, "largest"), (Largest(), "Largest")):
        score = as_score(function)
        assert (score.name, score.named, str(score)) == (name, False, name)
        np.testing.assert_array_equal(score(ROWS), ROWS.max(axis=1))
        assert as_score(score) is score


@pytest.mark.parametrize(
    ("function", "came"),
    [
        (lambda output: output, r"\(64, 10\)"),
        (lambda output: output[:3, 0], r"\(3,\)"),
        (lambda output: output[:, :1], r"\(64, 1\)"),
        (lambda output: 0.5, "float"),
        (lambda output: None, "NoneType"),
    ],
)
def test_a_score_must_give_one_number_for_each_row(function, came):
    with pytest.raises(ValueError, match=f"one number for each of 64 rows, but returned {came}"):
        as_score(function)(ROWS)


def test_a_registered_score_is_found_by_name(registry):
    @register_score
    def second_logit(logits, scale=1.0):
        return scale * np.sort(logits)[:, -2]

    score = as_score("second_logit(scale=2.0)")
    assert score.named
    assert registry["second_logit"] is second_logit
    np.testing.assert_array_equal(score(ROWS), 2 * np.sort(ROWS)[:, -2])
    assert register_score(second_logit) is second_logit


def test_a_name_is_given_to_one_score_only(registry):
    def energy(logits):
        return logits[:, 0]

    with pytest.raises(ValueError, match="a score named energy exists already"):
        register_score(energy)
    assert registry["energy"] is not energy


def test_a_score_that_borrows_a_name_is_not_that_score():
    assert not Score("energy", lambda output: output[:, 0]).named


# scores of specialized students: the last column is "other"


def _best_known(z):
    return scipy.special.softmax(z, axis=1)[:, :-1].max(axis=1)


SPECIALIZED_ORACLES = {
    "known_softmax": _best_known,
    **{
        f"specialized_{name}": lambda z, name=name: np.where(
            z.argmax(axis=1) == z.shape[1] - 1, -np.inf, ORACLES[name](z[:, :-1])
        )
        for name in ("softmax", "margin", "entropy", "energy")
    },
}
MARKING = tuple(name for name in LOGITS_AND_OTHER.scores if name != "known_softmax")


def test_every_specialized_score_has_an_oracle():
    assert set(SPECIALIZED_ORACLES) == set(LOGITS_AND_OTHER.scores)


@pytest.mark.parametrize("name", LOGITS_AND_OTHER.scores)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [0, 1, 64])
def test_a_specialized_score_is_what_scipy_says(name, dtype, n, asarray):
    rows = ROWS[:n].astype(dtype)
    found = as_score(name)(asarray(rows))
    assert type(found) is type(asarray(rows))
    assert found.dtype == asarray(rows).dtype
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    expected = SPECIALIZED_ORACLES[name](rows.astype(float))
    np.testing.assert_allclose(to_numpy(found), expected, tolerance, tolerance)


@pytest.mark.parametrize("name", MARKING)
def test_where_other_wins_no_threshold_keeps_the_row(name, asarray):
    rows = asarray(np.array([[3.0, 1.0, 2.9], [3.0, 1.0, 3.1], [3.0, 1.0, 3.0]]))
    score, deferred = Router(name, threshold=-1e9)(rows)
    assert np.isneginf(to_numpy(score)).tolist() == [False, True, False]  # a tie is no win
    assert to_numpy(deferred).tolist() == [False, True, False]


@pytest.mark.parametrize("name", LOGITS_AND_OTHER.scores)
@pytest.mark.parametrize("row", [[np.nan, 0, 1], [0, 1, np.nan], [0, 1, np.inf], [-np.inf] * 3])
def test_a_specialized_score_of_a_row_that_is_no_distribution_is_nan(name, row, asarray):
    rows = asarray(np.array([[4.0, 0.0, 1.0], row]))
    score, deferred = Router(name, threshold=-1e9)(rows)
    assert np.isnan(to_numpy(score)).tolist() == [False, True]
    assert to_numpy(deferred).tolist() == [False, True]


@given(rows=logits(classes=st.integers(2, 6)), shift=st.floats(-50, 50))
@settings(max_examples=60, deadline=None)
def test_specialized_energy_shifts_with_the_logits(rows, shift):
    score = as_score("specialized_energy")
    np.testing.assert_allclose(score(rows + shift), score(rows) + shift, atol=1e-10)


@given(rows=logits(classes=st.integers(2, 6)), other=st.floats(-9, 9))
@settings(max_examples=60, deadline=None)
def test_specialized_energy_leaves_out_the_logit_of_other(rows, other):
    """It decides whether "other" wins, and nothing else (eq. 16 and 17)."""
    changed = rows.copy()
    changed[:, -1] = other
    before, after = as_score("specialized_energy")(rows), as_score("specialized_energy")(changed)
    kept = np.isfinite(before) & np.isfinite(after)
    np.testing.assert_array_equal(before[kept], after[kept])


@pytest.mark.parametrize("name", LOGITS_AND_OTHER.scores)
@given(rows=logits(rows=st.integers(1, 40), classes=st.integers(3, 6)), data=st.data())
@settings(max_examples=30, deadline=None)
def test_any_split_into_batches_gives_the_same_specialized_scores(name, rows, data):
    parts = data.draw(cuts(len(rows)))
    score, rows = as_score(name), rows.astype(np.float32)
    split = np.concatenate([score(rows[part]) for part in parts])
    np.testing.assert_array_equal(split, score(rows))


@pytest.mark.parametrize("name", LOGITS_AND_OTHER.scores)
def test_a_specialized_score_divides_the_logits_by_a_temperature(name, asarray):
    factor = 2.0 if name == "specialized_energy" else 1.0
    found = to_numpy(as_score(f"{name}(temperature=2.0)")(asarray(ROWS)))
    np.testing.assert_allclose(found, factor * SPECIALIZED_ORACLES[name](ROWS / 2), 1e-12, 1e-12)


def test_one_known_class_has_an_energy_and_a_probability_and_nothing_to_compare(asarray):
    rows = asarray(np.array([[2.0, 1.0], [1.0, 2.0]]))
    assert to_numpy(as_score("specialized_energy")(rows)).tolist() == [2.0, -np.inf]
    assert to_numpy(as_score("known_softmax")(rows)).round(3).tolist() == [0.731, 0.269]
    with pytest.raises(
        ValueError, match="needs at least two known classes and 'other', 3 columns, not 2"
    ):
        as_score("specialized_margin")(rows)


def test_a_function_with_the_name_of_a_score_is_not_taken_for_it():
    """A file would name it, and be read with the other function."""

    def softmax(logits):
        return -abs(logits).sum(axis=1)

    with pytest.raises(ValueError, match="a score named softmax exists already: rename yours"):
        as_score(softmax)
    assert as_score(SCORES["softmax"]).named
