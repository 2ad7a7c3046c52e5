"""From a language model's tokens to log-probabilities of labels.

A server tells, for each token that it wrote, the most likely tokens in its place. A label is
written in several ways (case, leading blanks) and in one token or several; what is known of each
way of writing it is added up, and what is not known is bounded.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BEFORE = b" \t\r\n\"'`*"  # what may come before an answer and says nothing
LEAST = 1e-12  # no bound is less: shares are rounded
ROUNDING = 0.01  # by which listed probabilities may exceed 1
LEAST_MASS = 0.01  # of all labels: below it the model says something else
AFTER_SAMPLING = -100.0  # no model is so sure: the server tells 1 and 0, and not what it thought
_UNKNOWN = "\ufffd".encode()  # a part of a letter that came without its bytes


@dataclass(frozen=True)
class Position:
    """The likeliest tokens at one place, with their log-probabilities, and which was written."""

    written: bytes
    logprob: float
    listed: Mapping[bytes, float]


class Unclear(ValueError):
    """The tokens do not tell which label it is; `longer` says whether more tokens may."""

    def __init__(self, why: str, *, longer: bool = False) -> None:
        super().__init__(why)
        self.longer = longer


class LabelTokens:
    """The labels of a closed question, as a language model writes them.

    - `answers`: By label, the texts that mean it. Each is also known in lower, upper and title
      case, as far as no other label is written so.

    A ValueError refuses fewer than two labels, an empty text, and one text of two labels.

    Examples
    --------
    >>> labels = LabelTokens({"no": ["no"], "yes": ["yes"]})
    >>> listed = {b" Yes": -0.5, b"yes": -2.0, b"No": -1.6, b"It": -4.0}
    >>> labels.logprobs([Position(b" Yes", -0.5, listed)]).round(2)
    array([-1.6, -0.3])
    """

    def __init__(self, answers: Mapping[str, Sequence[str]]) -> None:
        if len(answers) < 2:
            raise ValueError(f"labels must be at least two, not {len(answers)}")
        self.names = tuple(answers)
        exact: dict[str, int] = {}
        for place, (name, texts) in enumerate(answers.items()):
            if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
                raise ValueError(
                    f"the label {name!r} needs texts that are not empty, not {texts!r}"
                )
            for text in texts:
                if exact.setdefault(text.strip(), place) != place:
                    raise ValueError(
                        f"two labels are written {text.strip()!r}: name each one apart"
                    )
        written = dict(exact)
        for change in (str.lower, str.upper, str.capitalize, str.title):
            found: dict[str, set[int]] = {}
            for text, place in exact.items():
                found.setdefault(change(text), set()).add(place)
            for text, places in found.items():
                if len(places) == 1:
                    written.setdefault(text, *places)
        self._written = {text.encode(): place for text, place in written.items()}
        starts = {bytes([one]) for text in self._written for one in text[:1]}
        self._before = bytes(one for one in _BEFORE if bytes([one]) not in starts)
        self._who = lru_cache(maxsize=4096)(self._labels_of)

    @property
    def longest(self) -> int:
        """The most bytes of a label: it has no more tokens."""
        return max(map(len, self._written))

    def label(self, text: str) -> int | None:
        """The label that a whole answer begins with; None where it begins with none."""
        return self._who(text.encode(errors="replace").lstrip(self._before))[0]

    def after(self, text: str) -> str:
        """What a whole answer says after the label that it begins with."""
        said = text.encode(errors="replace").lstrip(self._before)
        return said[len(self._whole(said)) :].decode(errors="replace")

    def logprobs(
        self, positions: Sequence[Position], *, ended: bool = False
    ) -> NDArray[np.float64]:
        """(labels,): the log-probability of each label, as far as it is known, or else a bound.

        What was written is followed until it is one label, whole. Of tokens that were not written
        those count that are a whole label; the beginning of a label only bounds it, as "The" may
        be no "Theft".

        - `positions`: What is known of each token of the answer, from its beginning.
        - `ended`: Whether the model ended its answer itself after them.

        Raises `Unclear` where the numbers are no log-probabilities, where the labels are not among
        the tokens, or where these do not tell labels apart.
        """
        count = len(self.names)
        for number, place in enumerate(positions):
            _check(place, first=not number)
        known, bound, begun = np.zeros(count), np.zeros(count), np.zeros(count)
        before, path, whole, may = 1.0, b"", None, frozenset(range(count))
        for place in positions:
            rest = max(LEAST, 1 - sum(map(math.exp, place.listed.values())))
            least = math.exp(min(place.listed.values(), default=0.0))
            bound[[*may]] += before * min(rest, least)
            for token, logprob in place.listed.items():
                if _UNKNOWN in token:  # of any of them
                    begun[[*may]] += before * math.exp(logprob)
                elif token != place.written:
                    own, others = self._who((path + token).lstrip(self._before))
                    if own is not None and not others:
                        known[own] += before * math.exp(logprob)
                    elif own is not None or others:
                        begins = [*others, *([] if own is None else [own])]
                        begun[begins] += before * math.exp(logprob)
            before *= math.exp(place.listed.get(place.written, place.logprob))
            path += place.written
            whole, may = self._who(path.lstrip(self._before))
            if not may:
                break
        if may and not (ended and positions):
            raise Unclear("the answer was cut before it was a whole label", longer=True)
        if whole is not None:
            known[whole] += before * (1 + 1e-9)  # as likely as another, it is the one that was said
        return self._told(known, bound + begun)

    def _told(self, known: Any, bound: Any) -> NDArray[np.float64]:
        """The logarithm of what is known, and where nothing is of the bound."""
        if not known.any():
            raise Unclear("no label is among the likeliest tokens")
        if known.sum() < LEAST_MASS:
            raise Unclear(f"all labels together have {known.sum():.1%}: it says something else")
        best = int(np.argmax(known))
        rival = np.where(np.arange(len(known)) == best, 0.0, np.maximum(known, bound))
        if rival.max() > known[best]:
            other = self.names[int(np.argmax(rival))]
            raise Unclear(f"{other!r} may be likelier than {self.names[best]!r}: they begin alike")
        return np.asarray(np.log(np.where(known > 0, known, np.maximum(bound, LEAST))))

    def _labels_of(self, text: bytes) -> tuple[int | None, frozenset[int]]:
        """The label that a beginning is, if it ends here; and those that it may still become."""
        may, whole = set[int](), self._written.get(self._whole(text))
        for written, place in self._written.items():
            # a word is a token where it can be: "no" is not the beginning of "not sure"
            goes_on = whole is None or not written[len(text) : len(text) + 1].isalpha()
            if place != whole and written.startswith(text) and goes_on:
                may.add(place)
        return whole, frozenset(may)

    def _whole(self, text: bytes) -> bytes:
        """The longest label that a text begins with, as it is written; empty where it is none."""
        own = (w for w in self._written if text.startswith(w) and _ends(text, len(w)))
        return max(own, key=len, default=b"")


def _ends(text: bytes, length: int) -> bool:
    """Whether a word ends at a place: no letter or digit follows, nor a part of a letter."""
    follows = text[length : length + 4]
    letter = follows.decode(errors="ignore")[:1]
    return not follows or (bool(letter) and not letter.isalnum())


def _check(place: Position, *, first: bool) -> None:
    """Check that what is listed at a place can be log-probabilities, and is not only its best."""
    known = [place.logprob, *place.listed.values()]
    if not all(-math.inf <= one <= ROUNDING for one in known):
        raise Unclear(f"log-probabilities are at most 0, and one is {max(known):.4g}")
    if (total := sum(map(math.exp, place.listed.values()))) > 1 + ROUNDING:
        raise Unclear(f"the likeliest tokens have probabilities of {total:.4g} together, above 1")
    if _UNKNOWN in place.written:
        raise Unclear("a part of a letter came without its bytes")
    if first and len(place.listed) < 2:
        raise Unclear("only one of the likeliest tokens came, so that nobody knows how sure it is")
    if first and sorted(place.listed.values())[-2] < AFTER_SAMPLING:
        raise Unclear("one token has all: these are probabilities after sampling")


def positions_of(logprobs: Any) -> list[Position]:
    """The positions in a choice's ``logprobs``, in OpenAI's form of chats or of completions.

    A ValueError says what is missing.
    """
    if isinstance(content := getattr(logprobs, "content", None), list):
        return [
            Position(_bytes(one), one.logprob, _listed((_bytes(e), e.logprob) for e in _top(one)))
            for one in content
        ]
    tokens, own, top = (getattr(logprobs, name, None) for name in _LEGACY)
    if not (tokens and own and top and len(tokens) == len(own) == len(top)):
        raise ValueError("it came without log-probabilities")
    return [
        Position(
            _as_bytes(token),
            _number(logprob),
            _listed((_as_bytes(each), p) for each, p in (listed or {}).items()),
        )
        for token, logprob, listed in zip(tokens, own, top, strict=True)
    ]


_LEGACY = ("tokens", "token_logprobs", "top_logprobs")


def _listed(tokens: Iterable[tuple[bytes, float]]) -> dict[bytes, float]:
    """Log-probabilities by token; of tokens that are written alike, their sum."""
    found: dict[bytes, float] = {}
    for token, logprob in tokens:
        known = found.get(token)
        found[token] = logprob if known is None else float(np.logaddexp(known, logprob))
    return found


def _bytes(token: Any) -> bytes:
    """A token's own bytes, where they are told: one may be half a letter."""
    return bytes(token.bytes) if token.bytes else _as_bytes(token.token)


def _as_bytes(token: str) -> bytes:
    r"""A token's bytes from its text, which may name them, as ``bytes:\xe3\x81``."""
    if token.startswith("bytes:\\x"):
        return bytes.fromhex(token.removeprefix("bytes:").replace("\\x", ""))
    return token.encode()


def _number(logprob: float | None) -> float:
    if logprob is None:
        raise ValueError("the token that was written came without its log-probability")
    return logprob


def _top(one: Any) -> Iterable[Any]:
    if not one.top_logprobs:
        raise ValueError("it came without the likeliest tokens (top_logprobs)")
    return one.top_logprobs
