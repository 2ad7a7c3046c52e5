from __future__ import annotations

import numpy as np
import pytest

from ebjr import JointClassifier, Model, ModelError, Preprocess, Preprocessed, Router
from ebjr.link.far import FarTeacher
from ebjr.model import ModelFacts, answer, facts, model_name


class Named:
    name = "resnet20"

    def __call__(self, batch):
        return batch


class Oddly(Named):
    name = 3


def test_anything_callable_is_a_model():
    for model in (lambda batch: batch, Named(), np.sin):
        assert isinstance(model, Model)
    assert not isinstance("model.onnx", Model)


@pytest.mark.parametrize(
    ("model", "name"),
    [(Named(), "resnet20"), (Oddly(), "Oddly"), (np.sin, "sin"), (Named, "resnet20")],
)
def test_a_model_is_called_by_its_own_name(model, name):
    assert model_name(model) == name


def test_an_answer_is_handed_on_untouched(asarray):
    output = asarray(np.ones((3, 2)))
    found = answer(lambda batch: output, None, rows=3)
    assert found.output is output
    assert found.degraded is None


def test_a_joint_models_answer_is_its_raw_output():
    joint = JointClassifier(lambda x: x, lambda x: -x, Router("max_logit", 2.0))
    batch = np.array([[3.0, 0.0], [1.0, 0.0]])
    found = answer(joint, batch, rows=2)
    output, degraded = found.output, found.degraded
    np.testing.assert_array_equal(output, [[3.0, 0.0], [-1.0, 0.0]])
    assert degraded.tolist() == [False, False]


@pytest.mark.parametrize(
    ("output", "came"),
    [
        (np.ones((2, 5)), r"shape \(2, 5\)"),
        (np.ones((4, 5)), r"shape \(4, 5\)"),
        (np.ones((0, 5)), r"shape \(0, 5\)"),
        (np.float64(1.0), r"shape \(\)"),
        ([1.0, 2.0, 3.0], "list"),
        (None, "NoneType"),
    ],
)
def test_an_answer_without_a_row_for_each_input_is_a_model_error(output, came):
    def student(batch):
        return output

    message = (
        f"student was given 3 inputs and must return 3 rows of raw output, but returned {came}"
    )
    with pytest.raises(ModelError, match=message):
        answer(student, np.ones((3, 2)), rows=3)


def test_no_rows_for_no_inputs_is_an_answer():
    assert answer(lambda batch: np.ones((0, 5)), [], rows=0).output.shape == (0, 5)


def test_a_models_own_error_is_not_disguised():
    with pytest.raises(ZeroDivisionError):
        answer(lambda batch: 1 / 0, None, rows=1)


# facts


class Telling(Named):
    facts = ModelFacts("resnet20", labels=("cat", "dog"), input_shape=(4, 3, 8, 8))


def test_a_models_own_facts_come_first():
    assert facts(Telling()) is Telling.facts
    assert facts(Telling()).fixed_batch == 4


def test_what_a_callable_does_not_say_is_not_known():
    assert facts(lambda batch: batch) == ModelFacts("<lambda>")

    def odd(batch):
        return batch

    odd.input_shape, odd.path, odd.facts = "3 x 32 x 32", 7, "none of your business"
    odd.input_dtype, odd.input_name = np.float16, "x"
    known = facts(odd)
    assert (known.input_shape, known.path, known.input_name) == (None, None, "x")
    assert known.input_dtype == np.dtype(np.float16)


def test_an_estimator_and_a_torch_module_give_what_can_be_known():
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is absent")
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    known = facts(linear_model.LogisticRegression().fit([[0.0, 1.0], [2.0, 1.0]], ["no", "yes"]))
    assert (known.labels, known.input_shape) == (("no", "yes"), (None, 2))
    assert facts(torch.nn.Linear(2, 2)) == ModelFacts("Linear")
    assert facts(torch.nn.Linear(2, 2, device="meta")).device == "meta"


def test_a_wrapper_passes_its_models_facts_on_with_what_it_adds():
    pytest.importorskip("stamina", reason="stamina is not installed")
    wrapped = facts(Preprocessed(Telling(), Preprocess(size=8)))
    assert wrapped.labels == ("cat", "dog")
    assert wrapped.preprocess == {"size": 8}
    assert (wrapped.input_shape, wrapped.input_dtype) == ((4, None, None, 3), np.uint8)
    assert facts(FarTeacher(Preprocessed(Telling(), Preprocess(size=8)))) == wrapped
