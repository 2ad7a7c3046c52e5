from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebjr.backends.label_tokens import LabelTokens, Position, Unclear, positions_of

YES_NO = LabelTokens({"no": ["no"], "yes": ["yes"]})


def at(written, **listed):
    """A position by tokens with probabilities; a leading underscore is a blank."""
    found = {token.replace("_", " ").encode(): np.log(p) for token, p in listed.items()}
    own = written.replace("_", " ").encode()
    return Position(own, found[own], found)


def probabilities(labels, *positions, ended=False):
    return np.exp(labels.logprobs(positions, ended=ended)).round(6).tolist()


def test_spellings_of_a_label_are_added_up():
    found = at("_yes", _yes=0.3, Yes=0.2, YES=0.1, no=0.15, _No=0.05, The=0.1)
    assert probabilities(YES_NO, found) == [0.2, 0.6]


def test_a_label_that_is_not_listed_has_the_bound_of_the_least_likely_token_listed():
    assert probabilities(YES_NO, at("yes", yes=0.6, The=0.02)) == [0.02, 0.6]


def test_a_label_that_is_not_listed_has_no_more_than_what_is_left():
    assert probabilities(YES_NO, at("yes", yes=0.8, The=0.195)) == [0.005, 0.8]


def test_a_word_that_begins_like_a_label_is_not_the_label():
    labels = LabelTokens({"theft": ["theft"], "no": ["no"]})
    with pytest.raises(Unclear, match="'theft' may be likelier than 'no'"):
        labels.logprobs([at("no", no=0.3, The=0.4)])
    with pytest.raises(Unclear, match="no label is among"):
        YES_NO.logprobs([at("nobody", nobody=0.7, yesterday=0.2)])


def test_what_was_written_is_followed_until_it_is_a_whole_label():
    labels = LabelTokens({"positive": ["positive"], "possible": ["possible"]})
    first = at("pos", pos=0.8, neg=0.1)
    with pytest.raises(Unclear) as raised:
        labels.logprobs([first])
    assert raised.value.longer
    assert probabilities(labels, first, at("itive", itive=0.75, sible=0.25)) == [0.6, 0.2]


def test_a_blank_before_the_answer_says_nothing():
    newline = Position(b"\n", np.log(0.5), {b"\n": np.log(0.5), b"yes": np.log(0.3)})
    assert probabilities(YES_NO, newline, at("yes", yes=0.6, no=0.4)) == [0.2, 0.6]


def test_numbers_are_told_apart_by_what_follows():
    labels = LabelTokens({str(n): [str(n)] for n in (1, 10)})
    one = Position(b"1", 0.0, {b"1": 0.0, b"2": -9.0})
    with pytest.raises(Unclear):
        labels.logprobs([one])
    assert probabilities(labels, one, ended=True)[0] == 1
    assert probabilities(labels, one, at("0", **{"0": 0.9, ".": 0.1})) == [0.1, 0.9]


def test_a_word_that_is_a_label_is_no_beginning_of_another():
    labels = LabelTokens({"no": ["no"], "not sure": ["not sure"], "yes": ["yes"]})
    assert probabilities(labels, at("_no", _no=0.6, _yes=0.3, x=0.02))[0] == 0.6


def test_half_a_letter_is_a_token():
    labels = LabelTokens({"да": ["да"], "нет": ["нет"]})
    first, second = "да".encode()[:1], "да".encode()[1:]
    known = Position(first, -0.1, {first: -0.1, b"x": -3.0})
    path = [known, Position(second, -0.2, {second: -0.2})]
    assert labels.logprobs(path)[0] == pytest.approx(-0.3)


def test_half_a_letter_without_its_bytes_may_be_any_label():
    labels = LabelTokens({"да": ["да"], "нет": ["нет"]})
    half = "\ufffd".encode()
    with pytest.raises(Unclear, match="without its bytes"):
        labels.logprobs([Position(half, -0.1, {half: -0.1, "нет".encode(): -3.0})])
    with pytest.raises(Unclear, match="may be likelier"):
        labels.logprobs([Position("нет".encode(), -1.0, {"нет".encode(): -1.0, half: -0.9})])


@pytest.mark.parametrize(
    ("listed", "why"),
    [
        ({b"yes": 5.0, b"no": -1.0}, "at most 0, but one is 5"),
        ({b"yes": 1000.0, b"no": -1.0}, "at most 0"),
        ({b"yes": float("nan"), b"no": -1.0}, "at most 0"),
        ({b"yes": -0.1, b"no": -0.1}, "probabilities of 1.81 together"),
        ({b"yes": 0.0, b"no": 0.0}, "probabilities of 2 together"),
        ({b"yes": 0.0}, "the server listed only one token"),
        ({b"yes": 0.0, b"no": -9999.0}, "after sampling"),
        ({b"I": -0.0001, b"yes": -13.0}, "labels together have 0.0%"),
    ],
)
def test_numbers_that_are_no_log_probabilities_of_labels_are_no_answer(listed, why):
    written = max(listed, key=listed.get)
    with pytest.raises(Unclear, match=why):
        YES_NO.logprobs([Position(written, listed[written], listed)])


def test_of_two_labels_alike_the_one_that_was_said_is_the_answer():
    listed = {b"yes": np.log(0.5), b"no": np.log(0.5)}
    for written, place in ((b"no", 0), (b"yes", 1)):
        assert np.argmax(YES_NO.logprobs([Position(written, listed[written], listed)])) == place


def test_tokens_that_are_written_alike_are_added_up():
    def token(text, p, top=None):
        return SimpleNamespace(token=text, logprob=np.log(p), bytes=None, top_logprobs=top)

    top = [token("yes", 0.4), token("yes", 0.1), token("no", 0.2)]
    found = positions_of(SimpleNamespace(content=[token("yes", 0.4, top)]))
    np.testing.assert_allclose(np.exp(YES_NO.logprobs(found)), [0.2, 0.5], 1e-6)


def test_case_that_tells_labels_apart_is_kept():
    labels = LabelTokens({"country": ["US"], "pronoun": ["us"]})
    assert probabilities(labels, at("US", US=0.6, us=0.4)) == [0.6, 0.4]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"a": ["a"]}, "at least two"),
        ({"a": ["x"], "b": ["x"]}, "two labels have the text 'x'"),
        ({"a": [" "], "b": ["b"]}, "needs non-empty texts"),
        ({"a": [], "b": ["b"]}, "needs non-empty texts"),
    ],
)
def test_labels_that_cannot_be_told_apart_are_refused(answers, message):
    with pytest.raises(ValueError, match=message):
        LabelTokens(answers)


@pytest.mark.parametrize(
    ("text", "label"), [("Yes.", 1), (" **no**", 0), ("yesterday", None), ("", None), ("YES!", 1)]
)
def test_the_label_of_a_whole_answer(text, label):
    assert YES_NO.label(text) == label


@given(
    st.dictionaries(
        st.sampled_from([b"yes", b" yes", b"No", b"no", b"It", b"\n", b"n", b"yesterday"]),
        st.floats(0.01, 1.0),
        min_size=1,
    )
)
def test_the_mass_of_labels_is_never_more_than_all_and_the_best_is_the_likeliest(weights):
    total = sum(weights.values()) * 1.05
    listed = {token: np.log(weight / total) for token, weight in weights.items()}
    written = max(listed, key=listed.get)
    try:
        found = np.exp(YES_NO.logprobs([Position(written, listed[written], listed)], ended=True))
    except Unclear:
        return
    real = [
        sum(np.exp(p) for token, p in listed.items() if token.strip().lower() == name)
        for name in (b"no", b"yes")
    ]
    assert found[np.argmax(found)] == pytest.approx(max(real))
    assert real[np.argmax(found)] == pytest.approx(max(real))
    assert (found > 0).all()
    assert (found <= 1 + 1e-9).all()


def test_a_reply_without_log_probabilities_is_said_to_be_so():
    with pytest.raises(ValueError, match="the answer has no log-probabilities"):
        positions_of(None)
