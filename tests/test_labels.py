"""What data and models call their classes: matched by name, by number, or refused."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ebjr.labels import Places, are_names, check_same_names, listed_places, places

NAMES = ("bird", "cat", "dog")


def where(*given):
    found = places(*given)
    return None if found.place is None else found.place.tolist()


def test_numbers_from_0_are_no_names():
    assert are_names(NAMES)
    assert are_names(("1", "2", "3"))
    assert not are_names(("0", "1", "2"))
    assert not are_names(None)


@pytest.mark.parametrize("named_by", ["folders", "table", "categories", "given"])
def test_names_in_another_order_are_mapped(named_by):
    assert where(("dog", "bird", "cat"), NAMES, 3, named_by) == [2, 0, 1]
    assert where(NAMES, NAMES, 3, named_by) is None
    assert places(NAMES, None, 3, named_by).labels == NAMES


def test_folders_of_some_classes_are_taken_by_name_and_it_is_said():
    found = places(("dog", "cat"), NAMES, 3, "folders")
    assert found.place.tolist() == [2, 1]
    assert (
        found.said
        == "the data's classes are matched by their names: dog is class 2, cat is class 1"
    )
    assert found.labels == NAMES


@pytest.mark.parametrize(
    "models", [None, tuple(map(str, range(20))), tuple("abcdefghijklmnopqrst")]
)
def test_folders_called_by_numbers_are_these_classes(models):
    found = places(("17", "3"), models, 20, "folders")
    assert found.place.tolist() == [17, 3]
    assert "17 is class 17, 3 is class 3" in found.said


def test_folders_of_all_numbers_are_not_taken_in_the_order_of_text():
    names = sorted(map(str, range(11)))  # 0, 1, 10, 2, ...
    found = places(names, None, 11, "folders")
    assert found.place.tolist() == [int(name) for name in names]
    assert "10 is class 10" in found.said
    assert places([str(k) for k in range(5)], None, 5, "folders").said is None


def test_folders_that_count_from_1_are_taken_in_the_order_that_is_said():
    assert places(("1", "2", "3"), None, 3, "folders").said is None
    found = places(sorted(map(str, range(1, 11))), None, 10, "folders")
    assert found.place is None
    assert "in" not in found.labels
    assert "10 is class 1" in found.said


def test_a_model_that_counts_from_1_is_asked_for_its_numbers():
    found = places(None, ("1", "2", "3"), 3, None)
    assert found.of(np.array([3, 1]), 3).tolist() == [2, 0]
    with pytest.raises(
        ValueError, match="the class '0', which is not one of the models' 3 classes"
    ):
        found.of(np.array([0, 1]), 3)


@pytest.mark.parametrize(
    ("names", "models", "classes", "named_by", "says"),
    [
        (("cow", "cat"), NAMES, 3, "folders", "the class 'cow', which is not one of the models' 3"),
        (("cat", "dog"), None, 1000, "folders", "have 2 classes (cat, dog), but the models return"),
        (("a", "b", "c"), NAMES, 3, "table", "the class 'a', which is not one of the models' 3"),
        (("a", "b"), NAMES, 3, "given", "have 2 classes (a, b), but the models return 3"),
        (("25", "3"), None, 20, "folders", "have 2 classes (25, 3), but the models return 20"),
    ],
)
def test_names_that_are_not_the_models_are_refused(names, models, classes, named_by, says):
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        places(names, models, classes, named_by)
    assert "--classes" in str(error.value)


def test_what_the_user_calls_the_models_classes_is_believed():
    assert places(("a", "b", "c"), NAMES, 3, "given").labels == ("a", "b", "c")


def test_label_sets_move_by_columns():
    found = places(("dog", "bird"), NAMES, 3, "given")
    sets = np.array([[1, 0], [1, 1], [0, 0]], bool)
    assert found.of(sets, 3).tolist() == [[0, 0, 1], [1, 0, 1], [0, 0, 0]]


def test_a_label_that_the_data_do_not_name_is_refused():
    found = places(("dog", "bird"), NAMES, 3, "given")
    with pytest.raises(ValueError, match=r"labels must lie in 0..1, since the data name 2 classes"):
        found.of(np.array([0, 2]), 3)


def test_the_first_class_that_differs_is_named():
    check_same_names(NAMES, NAMES)
    with pytest.raises(ValueError, match=r"in another order: class 1 is 'cat' .* 'dog'"):
        check_same_names(NAMES, ("bird", "dog", "cat"))
    with pytest.raises(ValueError, match=r"by other names: class 2 is 'dog' .* 'cow'"):
        check_same_names(NAMES, ("bird", "cat", "cow"))


def test_a_model_that_names_other_classes_than_it_answers_is_refused():
    with pytest.raises(
        ValueError, match=r"the models name 3 classes \(bird, cat, dog\), but return 2"
    ):
        places(None, NAMES, 2, None)


def test_a_name_of_two_classes_does_not_tell_them_apart():
    """Like ImageNet's two cranes."""
    names = ("crane", "fox", "crane")
    assert places(names, names, 3, "given").place is None
    named = Places(names, by_name=True)
    assert named.of(np.array(["fox"]), 3).tolist() == [1]
    with pytest.raises(ValueError, match="several of the models' classes are called so"):
        named.of(np.array(["crane", "fox"]), 3)
    with pytest.raises(ValueError, match="several of the models' classes are called so"):
        places(("crane", "fox"), names, 3, "folders")


@pytest.mark.parametrize(
    ("words", "names", "expected"),
    [
        ("2 0", NAMES, [2, 0]),
        ("dog bird", NAMES, [2, 0]),
        ("7 3", ("3", "7", "9"), [1, 0]),
        ("7 3", ("03", "07", "09"), [1, 0]),
        ("7 3", None, [7, 3]),
        ("1 0", ("1", "0", "other"), [0, 1]),
    ],
)
def test_listed_classes_are_all_names_or_all_numbers(words, names, expected):
    assert listed_places(words.split(), names) == expected


@pytest.mark.parametrize(
    ("words", "names", "sentence"),
    [
        ("dog 0", NAMES, "'0' is not a class name; known are bird, cat, dog"),
        ("0 1", ("3", "7", "9"), "'0' is not a class name; known are 3, 7, 9"),
        ("0 3", ("3", "7", "9"), "'0' is not a class name"),
        ("cow", NAMES, "'cow' is neither a class number nor a class name; known are bird"),
        ("cow", None, "'cow' is neither .*; no class has a name"),
        ("-1", NAMES, "'-1' is neither"),
        ("cat", ("cat", "dog", "cat"), "'cat' is the name of several classes"),
    ],
)
def test_a_listed_class_that_may_be_another_is_refused(words, names, sentence):
    with pytest.raises(ValueError, match=sentence):
        listed_places(words.split(), names)
