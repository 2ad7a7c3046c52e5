"""scikit-learn estimators as students and teachers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.ensemble import (
    GradientBoostingClassifier,
    RandomForestClassifier,
    VotingClassifier,
)
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.linear_model import (
    BayesianRidge,
    LinearRegression,
    LogisticRegression,
    RidgeClassifier,
)
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    TunedThresholdClassifierCV,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import ClassifierChain, MultiOutputClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier

from ebjr import (
    JointClassifier,
    JointRegressor,
    Outcomes,
    Router,
    calibrate,
    load_model,
    record,
    record_batches,
)
from ebjr.backends.sklearn import SklearnModel
from ebjr.data.open import open_data
from ebjr.errors import ModelError, RecordingNote
from ebjr.scores import as_score


@pytest.fixture(scope="module")
def points():
    """Three clouds in the plane, and their labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    return rng.normal(0, 0.7, (300, 2)) + 2 * np.eye(3, 2)[labels], labels


CLASSIFIERS = [
    LogisticRegression(),
    LinearSVC(),
    SVC(),
    GradientBoostingClassifier(n_estimators=3),
    RandomForestClassifier(5, random_state=0),
    GaussianNB(),
    KNeighborsClassifier(),
    make_pipeline(StandardScaler(), LogisticRegression()),
]


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("estimator", CLASSIFIERS, ids=lambda model: type(model).__name__)
def test_every_classifier_answers_rows_whose_best_is_its_own_prediction(points, estimator, classes):
    inputs, labels = (part[points[1] < classes] for part in points)
    model = load_model(estimator.fit(inputs, labels))
    output = model(inputs)
    assert isinstance(model, SklearnModel)
    assert output.shape == (len(inputs), classes)
    assert np.isfinite(output).all()
    agree = output.argmax(axis=1) == estimator.predict(inputs)
    assert agree.mean() > 0.99  # ties of a forest's votes aside
    assert model.labels == tuple("012"[:classes])


def test_the_raw_output_is_the_decision_and_not_the_probability(points):
    logistic = LogisticRegression().fit(*points)
    np.testing.assert_array_equal(
        load_model(logistic)(points[0]), logistic.decision_function(points[0])
    )
    forest = RandomForestClassifier(5).fit(*points)
    assert load_model(forest).output == "predict_log_proba"
    np.testing.assert_allclose(
        np.exp(load_model(forest)(points[0])), forest.predict_proba(points[0]), atol=1e-11
    )
    np.testing.assert_allclose(
        load_model(logistic, output="predict_proba")(points[0]),
        load_model(logistic, output="predict_log_proba")(points[0]),
        rtol=1e-9,
    )


def test_a_binary_decision_becomes_two_columns_with_the_same_probabilities(points):
    inputs, labels = (part[points[1] < 2] for part in points)
    logistic = LogisticRegression().fit(inputs, labels)
    output = load_model(logistic)(inputs)
    share = np.exp(output) / np.exp(output).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(share, logistic.predict_proba(inputs), rtol=1e-10)
    # energy rises with how far a point is from the border, on either side of it
    energy = as_score("energy")(output)
    distance = np.abs(logistic.decision_function(inputs))
    np.testing.assert_array_equal(np.argsort(energy), np.argsort(distance))


def test_the_labels_name_the_columns_in_their_order(points):
    names = np.array(["wolf", "ant", "cat"])[points[1]]
    model = load_model(GaussianNB().fit(points[0], names))
    assert model.labels == ("ant", "cat", "wolf")
    best = np.array(model.labels)[model(points[0]).argmax(axis=1)]
    assert (best == names).mean() > 0.8


@pytest.mark.parametrize("estimator", [BayesianRidge(), GaussianProcessRegressor(alpha=0.1)])
@pytest.mark.parametrize("piped", [False, True])
def test_a_regressor_that_knows_its_deviation_says_it(points, estimator, piped):
    inputs, targets = points[0][:60], points[0][:60].sum(axis=1)
    fitted = (make_pipeline(StandardScaler(), estimator) if piped else estimator).fit(
        inputs, targets
    )
    mean, deviation = fitted.predict(inputs, return_std=True)
    np.testing.assert_allclose(load_model(fitted)(inputs), np.stack([mean, deviation], axis=1))
    np.testing.assert_allclose(load_model(fitted, output="predict")(inputs)[:, 0], mean)


def test_a_regressor_without_a_deviation_gives_one_column(points):
    model = load_model(LinearRegression().fit(points[0], points[0].sum(axis=1)))
    assert model(points[0]).shape == (300, 1)
    with pytest.raises(ModelError, match=r"LinearRegression has no predict_std; it has predict$"):
        load_model(model.estimator, output="predict_std")


def test_two_estimators_become_one(points):
    inputs, labels = points
    student, teacher = GaussianNB().fit(inputs[:, :1], labels), SVC(probability=False)
    student = load_model(make_pipeline(StandardScaler(), LogisticRegression(C=1e-3)).fit(*points))
    teacher = load_model(SVC().fit(inputs, labels))
    outcomes = Outcomes(student(inputs), teacher(inputs), labels, task="classification")
    point = calibrate(outcomes, goal="budget", deferral_rate=0.3)
    answer = JointClassifier(student, teacher, point.router, blend=point.blend)(inputs)
    assert 0 < answer.deferred.mean() <= 0.3
    assert (answer.prediction == labels).mean() >= outcomes.quality("student")


def test_two_regressors_become_one(points):
    inputs, targets = points[0], np.sin(2 * points[0][:, 0])
    student = load_model(BayesianRidge().fit(inputs, targets))
    teacher = load_model(GaussianProcessRegressor(alpha=0.1).fit(inputs, targets))
    threshold = float(np.median(-student(inputs)[:, 1]))
    answer = JointRegressor(
        student,
        load_model(teacher.estimator, output="predict"),
        Router("predicted_std", threshold),
    )(inputs)
    assert 0.4 < answer.deferred.mean() < 0.6
    np.testing.assert_allclose(
        answer.prediction[answer.deferred], teacher(inputs)[answer.deferred, 0]
    )


def test_images_tensors_and_texts_are_batches_too(points):
    images = np.random.default_rng(0).random((20, 3, 4, 4))
    model = load_model(GaussianNB().fit(images.reshape(20, -1), np.arange(20) % 2))
    np.testing.assert_array_equal(model(images), model(torch.as_tensor(images)))
    assert model.input_shape == (None, 48)
    texts = ["good film", "bad film", "good", "bad"]
    said = load_model(make_pipeline(CountVectorizer(), LogisticRegression()).fit(texts, [1, 0] * 2))
    np.testing.assert_array_equal(said(texts).argmax(axis=1), [1, 0, 1, 0])


def test_no_rows_are_answered_by_none(points):
    assert load_model(GaussianNB().fit(*points))(points[0][:0]).shape == (0, 3)
    assert load_model(BayesianRidge().fit(*points))(points[0][:0]).shape == (0, 2)


@pytest.mark.parametrize(
    ("estimator", "options", "message"),
    [
        (GaussianNB(), {}, "GaussianNB is not fitted yet; call its fit first"),
        (StandardScaler().fit([[0.0]]), {}, "must be a classifier or a regressor"),
        (
            SVC(decision_function_shape="ovo").fit(np.eye(3), [0, 1, 2]),
            {},
            "make it with decision_function_shape='ovr'",
        ),
        (
            GaussianNB().fit(np.eye(2), [0, 1]),
            {"output": "decision_function"},
            "GaussianNB has no decision_function; it has predict_log_proba, predict_proba",
        ),
    ],
)
def test_what_cannot_answer_says_why(estimator, options, message):
    with pytest.raises(ModelError, match=message):
        load_model(estimator, **options)


def test_an_output_that_does_not_exist_is_refused(points):
    with pytest.raises(ValueError, match="output must be one of decision_function, predict_log"):
        load_model(GaussianNB().fit(*points), output="logits")


def test_a_batch_of_other_features_is_one_sentence(points):
    with pytest.raises(ModelError, match=r"GaussianNB failed on a batch of shape \(2, 5\): X has"):
        load_model(GaussianNB().fit(*points))(np.zeros((2, 5)))


def test_a_regressor_of_two_quantities_is_refused(points):
    model = load_model(LinearRegression().fit(points[0], points[0]))
    with pytest.raises(ModelError, match=r"must return \(\d+, 1\), but returned"):
        model(points[0])


@pytest.fixture(scope="module")
def label_sets():
    """Points, and which of three labels each has."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(0, 1, (120, 4))
    return inputs, (inputs[:, :3] + rng.normal(0, 0.3, (120, 3)) > 0.2).astype(int)


MULTILABEL = [
    MultiOutputClassifier(LogisticRegression()),
    MultiOutputClassifier(LinearSVC()),
    MultiOutputClassifier(GaussianNB()),
    OneVsRestClassifier(LinearSVC()),
    OneVsRestClassifier(GaussianNB()),
    KNeighborsClassifier(),
    RandomForestClassifier(5, random_state=0),
    MLPClassifier((8,), max_iter=40, random_state=0, solver="lbfgs"),
    RidgeClassifier(),
    ClassifierChain(LogisticRegression()),
    make_pipeline(StandardScaler(), MultiOutputClassifier(LinearSVC())),
    make_pipeline(MultiOutputClassifier(LinearSVC())),
    GridSearchCV(MultiOutputClassifier(LinearSVC()), {"estimator__C": [1.0]}, cv=2),
    GridSearchCV(RidgeClassifier(), {"alpha": [1.0]}, cv=2),
]


@pytest.mark.parametrize("estimator", MULTILABEL, ids=str)
@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
def test_every_multilabel_estimator_answers_a_logit_for_each_label(label_sets, estimator):
    inputs, targets = label_sets
    model = load_model(estimator.fit(inputs, targets))
    output = model(inputs)
    assert output.shape == targets.shape
    assert np.isfinite(output).all()
    np.testing.assert_array_equal(output > 0, estimator.predict(inputs) == 1)
    assert (model.facts.multilabel, model.labels) == (True, None)
    assert model(inputs[:0]).shape == (0, 3)


def test_label_logits_are_decisions_or_the_log_odds_of_probabilities(label_sets):
    inputs, targets = label_sets
    each = MultiOutputClassifier(LogisticRegression()).fit(inputs, targets)
    expected = np.stack([part.decision_function(inputs) for part in each.estimators_], axis=1)
    np.testing.assert_array_equal(load_model(each)(inputs), expected)
    odds = load_model(each, output="predict_proba")
    np.testing.assert_allclose(odds(inputs), expected, rtol=1e-6)
    near = load_model(KNeighborsClassifier().fit(inputs, targets))(inputs)
    assert np.abs(near).max() == pytest.approx(27.6, abs=0.1)  # a probability of 0 or 1


def test_a_label_that_was_never_there_is_never_answered(label_sets):
    inputs, targets = label_sets[0], label_sets[1] * [1, 0, 1]
    output = load_model(KNeighborsClassifier().fit(inputs, targets))(inputs)
    assert (output[:, 1] < -27).all()


def test_two_multilabel_estimators_become_one(label_sets):
    inputs, targets = label_sets
    student = load_model(MultiOutputClassifier(GaussianNB()).fit(inputs[:, :4], targets))
    teacher = load_model(OneVsRestClassifier(LogisticRegression()).fit(inputs, targets))
    outcomes = record(student, teacher, inputs, targets, task="multilabel")
    assert outcomes.labels is None
    point = calibrate(outcomes, goal="budget", deferral_rate=0.4)
    answer = outcomes.kind.final(student, teacher, point.router, blend=point.blend)(inputs)
    assert answer.prediction.shape == targets.shape
    assert answer.deferred.mean() <= 0.4
    assert (answer.prediction == targets).all(axis=1).mean() == pytest.approx(point.quality)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_multilabel_model_goes_with_no_other_task(label_sets, task):
    inputs, targets = label_sets
    model = load_model(KNeighborsClassifier().fit(inputs, targets))
    with pytest.raises(ValueError, match=r"KNeighborsClassifier, .*task='multilabel'\)$"):
        record(model, model, inputs, targets[:, 0], task=task)


@pytest.mark.parametrize("estimator", [LogisticRegression(), LinearRegression()])
def test_a_model_of_one_label_is_refused_for_label_sets(label_sets, estimator):
    inputs, targets = label_sets
    teacher = load_model(KNeighborsClassifier().fit(inputs, targets))
    student = load_model(estimator.fit(inputs, targets[:, 0]))
    message = r"the student, L.*Regression, returns one label for each input, but task multilabel"
    with pytest.raises(ValueError, match=message):
        record_batches(student, teacher, [(inputs, targets)], task="multilabel")


def test_several_questions_at_once_are_refused(label_sets):
    inputs, targets = label_sets
    with pytest.raises(ModelError, match="must have one output, or several of 0 and 1"):
        load_model(RandomForestClassifier(2).fit(inputs, targets + 1))
    model = KNeighborsClassifier().fit(inputs, targets)
    with pytest.raises(ValueError, match="must be one of decision_function, predict_proba, not"):
        load_model(model, output="predict_log_proba")
    with pytest.raises(ModelError, match="KNeighborsClassifier has no decision_function; it has"):
        load_model(model, output="decision_function")


TUNED = [
    TunedThresholdClassifierCV(LogisticRegression(), scoring="balanced_accuracy"),
    TunedThresholdClassifierCV(LinearSVC(), scoring="balanced_accuracy"),
    FixedThresholdClassifier(LogisticRegression(), threshold=0.2),
    FixedThresholdClassifier(LogisticRegression(), threshold=0.2, pos_label="no"),
    FixedThresholdClassifier(LinearSVC(), threshold=0.3, pos_label="no"),
    FixedThresholdClassifier(DecisionTreeClassifier(max_depth=2), threshold=0.5),
    make_pipeline(StandardScaler(), FixedThresholdClassifier(LogisticRegression(), threshold=0.9)),
    GridSearchCV(FixedThresholdClassifier(LogisticRegression()), {"threshold": [0.3, 0.7]}),
]


@pytest.mark.parametrize("estimator", TUNED, ids=lambda each: type(each).__name__)
def test_a_tuned_threshold_is_in_the_logits(points, estimator):
    inputs, labels = points
    named = np.array(["yes", "no", "no"])[labels]
    fitted = estimator.fit(inputs, named)
    said = np.array(fitted.classes_)[load_model(fitted)(inputs).argmax(axis=1)]
    assert (said == fitted.predict(inputs)).all()


def test_a_tuned_threshold_deep_inside_is_refused(points):
    inputs, labels = points
    inside = FixedThresholdClassifier(LogisticRegression(), threshold=0.2)
    several = VotingClassifier([("a", inside)], voting="soft").fit(inputs, labels == 0)
    with pytest.raises(ModelError, match="tuned decision threshold inside, in a FixedThreshold"):
        load_model(several)


FRAMES = ["frame", "sparse", "shuffled"]


@pytest.mark.parametrize("form", FRAMES)
def test_what_estimators_are_fitted_on_is_taken_by_position(points, form):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    sparse = pytest.importorskip("scipy.sparse")
    inputs, labels = points
    rows: object = pandas.DataFrame(inputs, columns=["x", "y"])
    if form == "shuffled":
        rows = rows.sample(frac=1, random_state=0)
        inputs = rows.to_numpy()
        labels = labels[rows.index]
    elif form == "sparse":
        rows = sparse.coo_matrix(inputs)  # which has no rows of its own
    fitted = LogisticRegression().fit(rows, labels)
    model = load_model(fitted)
    found = record(model, model, rows, pandas.Series(labels, index=labels * 7), batch_size=64)
    assert found.student_quality.mean() == fitted.score(rows, labels)
    answer = JointClassifier(model, model, Router("margin", 0.5))(rows)
    assert 0 < answer.deferred.sum() < len(labels)
    assert (answer.prediction == fitted.predict(rows)).all()


def test_a_shuffled_series_of_texts_is_taken_by_position():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    texts = pandas.Series(["good fine", "bad poor", "fine", "poor"] * 20).sample(
        frac=1, random_state=0
    )
    labels = texts.str.contains("good|fine").astype(int)
    fitted = make_pipeline(CountVectorizer(), LogisticRegression()).fit(texts, labels)
    model = load_model(fitted)
    part = texts.iloc[10:40]
    found = record(model, model, part, labels.iloc[10:40], batch_size=7)
    assert found.student_quality.mean() == 1.0


def test_labels_by_name_are_looked_up_in_the_models(points):
    inputs, labels = points
    named = np.array(["dog", "cat", "bird"])[labels]
    model = load_model(LogisticRegression().fit(inputs, named))
    found = record(model, model, inputs, named.astype(object))
    assert found.labels == ("bird", "cat", "dog")
    assert found.student_quality.mean() == model.estimator.score(inputs, named)
    whole = record(model, model, inputs, labels, labels=("dog", "cat", "bird"))
    assert (whole.targets == found.targets).all()


def test_labels_that_do_not_start_at_0_are_what_the_model_calls_them(points):
    inputs, labels = points
    model = load_model(LogisticRegression().fit(inputs, 10 * labels + 5))
    found = record(model, model, inputs, 10 * labels + 5)
    assert found.targets.tolist() == labels.tolist()
    with pytest.raises(
        ValueError, match=r"the class '0', which is not one of the models' 3 classes"
    ):
        record(model, model, inputs, labels)


@pytest.mark.parametrize("names", [[1.0, 2.0, 3.0], [-1, 0, 1], [2, 4, 6], [-1.0, 1.0, 5.0]])
def test_numbers_that_are_no_places_are_looked_up(points, names):
    inputs, labels = points
    targets = np.array(names)[labels]
    model = load_model(LogisticRegression().fit(inputs, targets))
    found = record(model, model, inputs, targets)
    assert found.student_quality.mean() == model.estimator.score(inputs, targets)
    some = labels < 2
    part = record(model, model, inputs[some], targets[some].astype(int))
    assert part.student_quality.mean() == model.estimator.score(inputs[some], targets[some])


def test_truth_and_falsehood_are_labels(points):
    inputs, labels = points
    model = load_model(LogisticRegression().fit(inputs, labels == 1))
    found = record(model, model, inputs, labels == 1)
    assert found.student_quality.mean() == model.estimator.score(inputs, labels == 1)


class Turned:
    """A model with its columns the other way round, as its labels say."""

    def __init__(self, model):
        self.model, self.labels = model, model.labels[::-1]

    def __call__(self, batch):
        return self.model(batch)[:, ::-1]


def test_models_that_name_their_classes_otherwise_are_refused_wherever_they_meet(points):
    inputs, labels = points
    model = load_model(LogisticRegression().fit(inputs, np.array(["dog", "cat", "bird"])[labels]))
    other = load_model(LogisticRegression().fit(inputs, np.array(["dog", "cat", "cow"])[labels]))
    numbered = load_model(LogisticRegression().fit(inputs, labels))
    says = "in another order: class 0 is 'bird' for the student and 'dog' for the teacher"
    for meet in (
        lambda teacher: record(model, teacher, inputs, labels),
        lambda teacher: JointClassifier(model, teacher, Router("margin", 1.0)),
    ):
        with pytest.raises(ValueError, match=says):
            meet(Turned(model))
        with pytest.raises(ValueError, match=r"by other names: class 0 is 'bird' .* 'cat'"):
            meet(other)
    with pytest.raises(ValueError, match=r"the teacher only numbers them.*--classes \(labels=\)"):
        record(model, numbered, inputs, labels)
    with pytest.raises(ValueError, match="the teacher only numbers them"):
        record(model, numbered, inputs, labels, labels=("dog", "cat", "bird"))
    with pytest.warns(RecordingNote, match="the student's accuracy is .*, no better than guessing"):
        same = record(model, numbered, inputs, labels, labels=("bird", "cat", "dog"))
    assert same.labels == ("bird", "cat", "dog")


def test_texts_of_several_columns_are_the_frame_that_was_fitted(tmp_path):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    from sklearn.compose import ColumnTransformer

    frame = pandas.DataFrame(
        {"title": ["good", "bad"] * 20, "body": ["fine film", "poor film"] * 20}
    )
    parts = [("t", CountVectorizer(), "title"), ("b", CountVectorizer(), "body")]
    labels = [1, 0] * 20
    named = make_pipeline(ColumnTransformer(parts), LogisticRegression()).fit(frame, labels)
    model = load_model(named)
    assert (model.facts.columns, model.facts.input_dtype) == (("title", "body"), np.dtype(object))
    rows = frame.to_numpy(object)
    np.testing.assert_array_equal(model(rows), model(frame))
    with pytest.raises(ModelError, match="failed on a batch of shape"):
        model(rows[:, :1])
    frame.iloc[:, ::-1].assign(label=labels).to_csv(tmp_path / "t.csv", index=False)
    data = open_data(tmp_path / "t.csv", models=[model])
    assert (data.columns, data.inputs.tolist()) == (("title", "body"), rows.tolist())
    lone = make_pipeline(ColumnTransformer(parts[:1]), LogisticRegression()).fit(
        frame[["title"]], labels
    )
    np.testing.assert_array_equal(load_model(lone)(["good", "bad"]).argmax(axis=1), [1, 0])
    parts = [("t", CountVectorizer(), 0), ("b", CountVectorizer(), 1)]
    placed = make_pipeline(ColumnTransformer(parts), LogisticRegression()).fit(rows, labels)
    np.testing.assert_array_equal(load_model(placed)(rows), model(rows))


def test_columns_of_numbers_go_by_the_names_that_an_estimator_was_fitted_on(points, tmp_path):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    inputs, labels = points
    frame = pandas.DataFrame(inputs, columns=["x", "y"])
    model = load_model(LogisticRegression().fit(frame, labels))
    frame.iloc[:, ::-1].assign(label=labels).to_csv(tmp_path / "t.csv", index=False)
    np.testing.assert_allclose(open_data(tmp_path / "t.csv", models=[model]).inputs, inputs)
    with pytest.raises(
        ValueError, match="the models read the columns x, y in this order, not y, x"
    ):
        record(model, model, open_data(tmp_path / "t.csv", input_columns="y,x"))
