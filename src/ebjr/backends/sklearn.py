"""SklearnModel: a fitted scikit-learn estimator, or one with its interface."""

import inspect
from collections.abc import Iterator
from functools import cached_property
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from ebjr.arrays import is_array, row_count, to_numpy
from ebjr.errors import ModelError, needs, one_line
from ebjr.labels import label_text
from ebjr.model import InputShape, ModelFacts

CLASSIFIER_OUTPUTS = ("decision_function", "predict_log_proba", "predict_proba")
MULTILABEL_OUTPUTS = ("decision_function", "predict_proba")
REGRESSOR_OUTPUTS = ("predict", "predict_std")

_LEAST_PROBABILITY = 1e-12


class SklearnModel:
    """A fitted estimator as a model: batch in, raw output out.

    A classifier's raw output is its ``decision_function`` if it has one, else its
    ``predict_log_proba``, else the logarithm of its ``predict_proba``. A decision function is not
    normalized, like a network's logits. Log-probabilities have a log-sum-exp of 0 for every input,
    so that the score `energy` (eq. 3) is constant; `softmax`, `entropy` and `margin` work with
    both. A binary decision d becomes the columns ``-d/2`` and ``d/2``, whose softmax is the
    logistic function of d.

    A classifier fitted on an indicator of labels (n, labels) is for the task multilabel: its raw
    output is a logit for each label, its ``decision_function`` or the log-odds of its
    ``predict_proba``, in a ``MultiOutputClassifier`` those of the estimators in it.

    A tuned decision threshold (``TunedThresholdClassifierCV``) is subtracted from the decision, or
    from the log-odds of the probability, so that the largest column is the class of ``predict``.

    A regressor's raw output is its prediction, and the standard deviation if ``predict`` takes
    ``return_std``, for the score `predicted_std`.

    `output` names another method; for a regressor ``"predict"``, the prediction alone, or
    ``"predict_std"``. A batch of rank above two is flattened to rows. A list, of texts for example,
    is passed on. For an estimator fitted on a frame, a table's columns are chosen by its names, and
    several columns of texts are passed as a frame.
    """

    def __init__(
        self, estimator: Any, *, output: str | None = None, name: str | None = None
    ) -> None:
        self.estimator = estimator
        self.name = name or type(estimator).__name__
        classifies = _check_estimator(estimator, self.name)
        self.multilabel = classifies and _answers_label_sets(estimator, self.name)
        self.output = _chosen_output(estimator, output, classifies, self.multilabel, self.name)
        self._cut = _tuned_threshold(estimator, self.name) if classifies else None
        named = classifies and not self.multilabel
        self.labels = tuple(map(label_text, estimator.classes_)) if named else None
        if self.output == "decision_function":
            self._check_not_pairwise()
        features = getattr(estimator, "n_features_in_", None)
        self.texts, names = _reads_text(estimator), getattr(estimator, "feature_names_in_", None)
        several = None if features is None else (None, int(features))
        self.input_shape: InputShape | None = (None,) if self.texts and not several else several
        self.columns = None if names is None else tuple(map(str, names))

    @cached_property
    def facts(self) -> ModelFacts:
        """Name, labels, columns, input and options."""
        return ModelFacts(
            self.name,
            labels=self.labels,
            input_shape=self.input_shape,
            input_dtype=np.dtype(object) if self.texts else None,
            options={"output": self.output},
            multilabel=self.multilabel,
            probabilities=False,
            columns=self.columns,
        )

    def __call__(self, batch: Any, /) -> NDArray[Any]:
        """Return the raw output: (n, classes), (n, labels), or for a regressor (n, 1 or 2)."""
        rows = to_numpy(batch) if is_array(batch) else batch
        if is_array(rows) and rows.ndim > 2:
            rows = rows.reshape(len(rows), -1)
        count = row_count(rows)
        if count == 0:
            return np.zeros((0, self._columns))
        try:
            output = self._ask(rows)
        except (ValueError, TypeError, AttributeError, IndexError) as error:
            raise ModelError(
                f"{self.name} failed on a batch of shape "
                f"{getattr(rows, 'shape', (count,))}: {one_line(error)}"
            ) from error
        if output.shape != (count, self._columns):
            raise ModelError(
                f"{self.name} must return ({count}, {self._columns}), but returned shape "
                f"{output.shape}; use one of its outputs"
            )
        return output

    def _ask(self, rows: Any) -> NDArray[Any]:
        if self.texts and self.columns is not None and (is_array(rows) or isinstance(rows, list)):
            rows = _frame(rows, self.columns)
        if self.output == "predict_std":
            return np.column_stack(self.estimator.predict(rows, return_std=True))
        if self.multilabel:
            return self._label_logits(rows)
        if self._cut is not None:
            return self._cut.decision(self.estimator, rows)
        with np.errstate(divide="ignore"):  # some take the log of 0, which is clipped below
            answer = np.asarray(getattr(self.estimator, self.output)(rows))
        if self.output == "predict":
            return answer.reshape(row_count(rows), -1)
        if self.output == "decision_function":
            return np.stack([-answer / 2, answer / 2], axis=1) if answer.ndim == 1 else answer
        # a tree gives a class that it never saw the probability 0, whose log is -inf
        probability = np.exp(answer) if self.output == "predict_log_proba" else answer
        return np.log(np.maximum(probability, _LEAST_PROBABILITY))

    def _label_logits(self, rows: Any) -> NDArray[Any]:
        """Return each label's decision, or the log-odds of its probability, (n, labels)."""
        if self.output == "decision_function":
            return _decisions(self.estimator, rows)
        answer = self.estimator.predict_proba(rows)
        if isinstance(answer, list):  # (n, 2) for each label, or (n, 1) if it never varied
            every = zip(answer, self.estimator.classes_, strict=True)
            answer = np.column_stack([said[:, classes == 1].sum(axis=1) for said, classes in every])
        return _log_odds(answer)

    @property
    def _columns(self) -> int:
        if self.multilabel:
            return len(self.estimator.classes_)
        if self.labels is not None:
            return len(self.labels)
        return 2 if self.output == "predict_std" else 1

    def _check_not_pairwise(self) -> None:
        last = getattr(self.estimator, "_final_estimator", self.estimator)
        if len(self.labels or ()) > 2 and getattr(last, "decision_function_shape", None) == "ovo":
            raise ModelError(
                f"{self.name} decides between pairs of classes, but one number for each class is "
                "needed; make it with decision_function_shape='ovr'"
            )

    def __repr__(self) -> str:
        return f"SklearnModel({self.name}, output={self.output!r})"


def _check_estimator(estimator: Any, name: str) -> bool:
    """Check that an estimator is fitted; tell whether it is a classifier."""
    with needs("learned", "running a scikit-learn estimator"):
        from sklearn.base import is_classifier, is_regressor
        from sklearn.exceptions import NotFittedError
        from sklearn.utils.validation import check_is_fitted
    try:
        check_is_fitted(estimator)
    except NotFittedError as error:
        raise ModelError(f"{name} is not fitted yet; call its fit first") from error
    if not (is_classifier(estimator) or is_regressor(estimator)):
        raise ModelError(
            f"{name} must be a classifier or a regressor, or a pipeline that ends in one"
        )
    return bool(is_classifier(estimator))


def _frame(rows: Any, columns: tuple[str, ...]) -> Any:
    """Make a frame of rows of texts, for an estimator fitted on one."""
    try:
        pandas: Any = import_module("pandas")
    except ImportError as error:
        raise ModelError("an estimator fitted on a frame needs pandas: install it") from error
    return pandas.DataFrame(rows, columns=list(columns))


def _reads_text(estimator: Any) -> bool:
    """Tell whether an estimator's first step, or a transformer of some columns, reads texts."""
    if steps := getattr(estimator, "steps", None):
        return _reads_text(steps[0][1])
    parts = [part[1] for part in getattr(estimator, "transformers_", ())]
    return hasattr(estimator, "build_analyzer") or any(map(_reads_text, parts))


def _last(estimator: Any) -> Any:
    """Return the last estimator in a pipeline, or the best of a parameter search."""
    inside = getattr(estimator, "_final_estimator", getattr(estimator, "best_estimator_", None))
    return estimator if inside is None else _last(inside)


class _Cut(NamedTuple):
    """A tuned threshold, the method that it applies to, and the class above it."""

    method: str
    threshold: float
    above: int

    def decision(self, estimator: Any, rows: Any) -> NDArray[Any]:
        """Return -d/2 and d/2, (n, 2), of a decision d that is 0 at the threshold."""
        answer = np.asarray(getattr(estimator, self.method)(rows))
        if self.method == "predict_proba":
            decision = _log_odds(answer[:, self.above]) - _log_odds(self.threshold)
        else:
            decision = (answer if self.above else -answer) - self.threshold
        # predict counts 0 as above
        decision = np.where(decision == 0, _LEAST_PROBABILITY, decision)
        columns = np.stack([-decision / 2, decision / 2], axis=1)
        return columns if self.above else columns[:, ::-1]


def _tuned_threshold(estimator: Any, name: str) -> _Cut | None:
    """Return the tuned threshold of an estimator's last step, or None."""
    from sklearn import model_selection as selection

    known = (selection.FixedThresholdClassifier, selection.TunedThresholdClassifierCV)
    found = [each for each in _nested(estimator) if isinstance(each, known)]
    if not found:
        return None
    last = _last(estimator)
    if last is not found[0]:
        raise ModelError(
            f"{name} has a tuned decision threshold inside, in a {type(found[0]).__name__}, that "
            "its raw output ignores; give an estimator or a pipeline that ends in it"
        )
    own = last.response_method
    asked = ("predict_proba", "decision_function") if own == "auto" else (own,)
    method = next(method for method in asked if hasattr(last, method))
    threshold = getattr(last, "best_threshold_", getattr(last, "threshold", "auto"))
    if threshold == "auto":
        threshold = 0.5 if method == "predict_proba" else 0.0
    scorer = getattr(last, "_curve_scorer", None)  # a tuned one keeps the positive label here
    positive = last.pos_label if scorer is None else scorer._get_pos_label()
    above = 1 if positive is None else last.classes_.tolist().index(positive)
    return _Cut(method, float(threshold), above)


def _nested(estimator: Any) -> Iterator[Any]:
    yield estimator
    inside = [getattr(estimator, name, None) for name in ("best_estimator_", "estimator_")]
    several = getattr(estimator, "estimators_", [])
    inside += several if isinstance(several, list) else []
    inside += [step for _, step in getattr(estimator, "steps", [])]
    for part in inside:
        if hasattr(part, "get_params"):
            yield from _nested(part)


def _log_odds(probability: Any) -> NDArray[Any]:
    return logit(np.clip(probability, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY))


def _answers_label_sets(estimator: Any, name: str) -> bool:
    """Tell whether a classifier was fitted on an indicator (n, labels)."""
    if isinstance(estimator.classes_, list):
        if all({*classes.tolist()} <= {0, 1} for classes in estimator.classes_):
            return True
        raise ModelError(
            f"{name} must have one output, or several of 0 and 1, but has "
            f"{len(estimator.classes_)} outputs with other classes; fit one estimator for each"
        )
    last = _last(estimator)
    target = getattr(getattr(last, "_label_binarizer", None), "y_type_", "")
    return bool(getattr(last, "multilabel_", False)) or target.startswith("multilabel")


def _decides(estimator: Any) -> bool:
    """Tell whether an estimator, or each of its parts for a label, has a decision function."""
    from sklearn.multioutput import MultiOutputClassifier

    last = _last(estimator)
    several = last.estimators_ if isinstance(last, MultiOutputClassifier) else [None]
    return all(hasattr(part, "decision_function") for part in several)


def _decisions(estimator: Any, rows: Any) -> NDArray[Any]:
    """Return the decisions of an estimator, or of its parts for each label, (n, labels)."""
    if hasattr(estimator, "decision_function"):
        return np.asarray(estimator.decision_function(rows))
    if hasattr(estimator, "best_estimator_"):
        return _decisions(estimator.best_estimator_, rows)
    if hasattr(estimator, "_final_estimator"):
        before = estimator[:-1]
        return _decisions(estimator[-1], before.transform(rows) if len(before) else rows)
    return np.column_stack([part.decision_function(rows) for part in estimator.estimators_])


def _chosen_output(
    estimator: Any, output: str | None, classifies: bool, multilabel: bool, name: str
) -> str:
    several = MULTILABEL_OUTPUTS if multilabel else CLASSIFIER_OUTPUTS
    known = several if classifies else REGRESSOR_OUTPUTS
    if output is not None and output not in known:
        raise ValueError(f"output must be one of {', '.join(known)}, not {output!r}")
    if classifies:
        has = [method for method in known if hasattr(estimator, method)]
        if multilabel and "decision_function" not in has and _decides(estimator):
            has.insert(0, "decision_function")
    else:
        last = getattr(estimator, "_final_estimator", estimator)  # a pipeline hides its signature
        gives_std = "return_std" in inspect.signature(last.predict).parameters
        has = ["predict_std", "predict"] if gives_std else ["predict"]
    if not has or output not in (None, *has):
        raise ModelError(
            f"{name} has no {output or ' and no '.join(known)}; it has {', '.join(has) or 'none'}"
        )
    return output or has[0]
