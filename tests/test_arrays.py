from __future__ import annotations

import warnings
import zipfile

import array_api_compat
import numpy as np
import pytest
import scipy.sparse
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import logits

from ebjr import Outcomes, arrays
from ebjr.arrays import to_numpy
from ebjr.data.open import open_data
from ebjr.evaluation.predictions import read_predictions

ROWS = np.random.default_rng(0).normal(0, 3, (7, 4))


def test_an_array_knows_its_namespace(asarray):
    array = asarray(ROWS)
    assert arrays.namespace(array) is array_api_compat.array_namespace(array)
    assert arrays.is_array(array)


@pytest.mark.parametrize("thing", [[1.0], "x", 3, None])
def test_what_is_no_array_has_no_namespace(thing):
    assert not arrays.is_array(thing)
    with pytest.raises(TypeError):
        arrays.namespace(thing)


def test_to_numpy_and_back_is_the_same_array(asarray):
    array = asarray(ROWS)
    back = arrays.convert_like(arrays.to_numpy(array), reference=array)
    assert type(back) is type(array)
    np.testing.assert_array_equal(to_numpy(back), ROWS)


def test_to_numpy_takes_gradients_bfloat16_and_lists():
    torch = pytest.importorskip("torch")
    np.testing.assert_array_equal(to_numpy(torch.ones(2, requires_grad=True)), [1, 1])
    assert to_numpy(torch.ones(2, dtype=torch.bfloat16)).dtype == np.float32
    assert to_numpy(torch.ones(2, dtype=torch.float16)).dtype == np.float16
    np.testing.assert_array_equal(to_numpy([1, 2]), [1, 2])


def test_masked_values_are_no_numbers():
    masked = np.ma.array([1.0, 1e20], mask=[False, True])
    with pytest.raises(ValueError, match="1 of 2 values are masked: leave their rows out"):
        to_numpy(masked)
    assert to_numpy(masked[:1]).tolist() == [1.0]


@pytest.mark.parametrize("awkward", [np.broadcast_to(1.0, (3, 2)), ROWS[::-1], ROWS[:, ::-1]])
def test_read_only_and_reversed_arrays_become_tensors(awkward):
    torch = pytest.importorskip("torch")
    tensor = arrays.convert_like(awkward, reference=torch.zeros(1))
    np.testing.assert_array_equal(tensor.numpy(), awkward)


@pytest.mark.parametrize(
    ("given_dtype", "computed"),
    [
        ("float16", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
        ("int64", "float64"),
        ("uint8", "float64"),
        ("bool", "float64"),
    ],
)
def test_as_float_widens_half_precision_and_integers(given_dtype, computed, asarray):
    found = arrays.as_float(asarray(np.ones((2, 2), given_dtype)))
    assert to_numpy(found).dtype == computed


def test_as_float_leaves_floats_alone(asarray):
    array = asarray(ROWS)
    assert arrays.as_float(array) is array


@given(rows=logits(), scale=st.sampled_from([1e-3, 1.0, 100.0, 1e4]))
@settings(max_examples=60, deadline=None)
def test_logsumexp_and_log_softmax_are_scipys(rows, scale):
    rows = rows * scale
    np.testing.assert_allclose(
        arrays.logsumexp(rows), scipy.special.logsumexp(rows, axis=-1), atol=1e-12
    )
    np.testing.assert_allclose(
        arrays.log_softmax(rows), scipy.special.log_softmax(rows, axis=-1), atol=1e-9
    )


def test_logsumexp_works_on_the_last_axis_of_any_rank(asarray):
    cube = np.random.default_rng(1).normal(size=(2, 3, 4))
    np.testing.assert_allclose(
        to_numpy(arrays.logsumexp(asarray(cube))), scipy.special.logsumexp(cube, axis=-1)
    )


@given(rows=logits())
@settings(max_examples=50, deadline=None)
def test_the_top_two_are_those_of_a_sort(rows):
    first, second = arrays.top_two(rows)
    np.testing.assert_array_equal(np.stack([second, first], axis=1), np.sort(rows)[:, -2:])


def test_the_top_two_keep_a_tie_and_a_nan(asarray):
    first, second = arrays.top_two(asarray(np.array([[2.0, 5.0, 5.0], [1.0, np.nan, 2.0]])))
    np.testing.assert_array_equal(to_numpy(first), [5.0, np.nan])
    assert to_numpy(second)[0] == 5.0


@pytest.mark.parametrize(
    ("batch", "n"),
    [(ROWS, 7), (np.ones((0, 3)), 0), (np.ones(2), 2), (["a"], 1), ([], 0), ((1, 2), 2)],
)
def test_a_batch_has_rows(batch, n):
    assert arrays.row_count(batch) == n


@pytest.mark.parametrize(
    ("thing", "words"), [("text", "str"), (3, "int"), (np.array(1.0), "ndarray without dimensions")]
)
def test_what_has_no_rows_is_no_batch(thing, words):
    with pytest.raises(TypeError, match=f"a pandas or sparse table, not {words}"):
        arrays.row_count(thing)


@given(data=st.data(), n=st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_rows_taken_and_put_back_return_to_their_places(data, n):
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, n - 1)))), dtype=np.int64)
    library = data.draw(st.sampled_from(["numpy", "torch", "list"]))
    whole = np.arange(2.0 * n).reshape(n, 2)
    if library == "torch":
        whole = pytest.importorskip("torch").as_tensor(whole)
    taken = arrays.take_rows(list(whole) if library == "list" else whole, rows)
    assert len(taken) == len(rows)
    if library == "list":
        assert all(
            one is whole[row] or (one == whole[row]).all()
            for one, row in zip(taken, rows, strict=True)
        )
        return
    before = to_numpy(whole).copy()
    merged = to_numpy(arrays.put_rows(whole, rows, -taken))
    expected = before.copy()
    expected[rows] *= -1
    np.testing.assert_array_equal(merged, expected)
    np.testing.assert_array_equal(to_numpy(whole), before)


@pytest.mark.parametrize("one", ["float16", "float32", "float64"])
@pytest.mark.parametrize("other", ["float16", "float32", "float64"])
def test_rows_put_have_the_wider_dtype(one, other, asarray):
    merged = arrays.put_rows(
        asarray(np.zeros((3, 2), one)), np.array([1]), asarray(np.full((1, 2), 0.1, other))
    )
    wider = np.result_type(one, other)
    assert to_numpy(merged).dtype == wider
    np.testing.assert_array_equal(to_numpy(merged)[1], np.full(2, 0.1, other).astype(wider))


@pytest.mark.parametrize("shape", [(4,), (4, 1), (2, 3, 4)])
def test_logits_have_rows_and_at_least_two_classes(shape, asarray):
    with pytest.raises(ValueError, match="with at least 2 classes, not"):
        arrays.as_logits(asarray(np.ones(shape)))


@pytest.mark.parametrize("form", ["csr_array", "coo_array", "csc_matrix"])
def test_a_sparse_matrix_is_known_by_its_numbers(form):
    """Recordings and promises resume only over the same data."""
    make, dense = getattr(scipy.sparse, form), np.diag([1.0, 2.0, 0.0])
    others = (2 * dense, dense[::-1], np.diag([1.0, 2.0]), np.pad(dense, (0, 1)))
    assert arrays.fingerprint(make(dense)) == arrays.fingerprint(make(dense.copy()))
    for other in others:
        assert arrays.fingerprint(make(dense)) != arrays.fingerprint(make(other))


@pytest.mark.parametrize("name", ["labels.npy", "labels"])
def test_an_archive_with_two_arrays_of_one_name_is_refused_by_every_reader(name, tmp_path):
    path, rows = tmp_path / "twice.npz", np.arange(2)
    np.savez(path, labels=rows, student=np.eye(2), teacher=np.eye(2), targets=rows, inputs=rows)
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of its own duplicates
        archive.writestr(name, archive.read("targets.npy"))
    outcomes = Outcomes(np.eye(2), np.eye(2), rows)
    for read in (Outcomes.load, open_data, lambda path: read_predictions(path, outcomes, rows)):
        with pytest.raises(
            ValueError, match=r"twice\.npz.* it has 2 arrays named labels: keep one"
        ):
            read(path)
