"""From a language model's tokens to log-probabilities of labels.

For each token that it wrote, a server lists the likeliest tokens in its place. A label has several
spellings (case, leading blanks) and one or more tokens. The known probabilities of all its
spellings are added up; the unknown ones are bounded.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BEFORE = b" \t\r\n\"'`*"  # ignored before an answer
LEAST = 1e-12  # lower limit of a bound: listed probabilities are rounded
ROUNDING = 0.01  # by which listed probabilities may exceed 1
LEAST_MASS = 0.01  # of all labels together: with less, the model is answering something else
AFTER_SAMPLING = -100.0  # a runner-up this unlikely: the server lists 1 and 0 after sampling
_UNKNOWN = "\ufffd".encode()  # part of a letter, whose bytes the server did not send


@dataclass(frozen=True)
class Position:
    """The written token at one place, and the log-probabilities of the likeliest ones there."""

    written: bytes
    logprob: float
    listed: Mapping[bytes, float]


class Unclear(ValueError):
    """The tokens do not determine a label; `longer`: more of them may."""

    def __init__(self, why: str, *, longer: bool = False) -> None:
        super().__init__(why)
        self.longer = longer


class LabelTokens:
    """The labels of a closed question, as a language model spells them.

    - `answers`: By label, its texts. Each also counts in lower, upper and title case, unless
      another label is spelled so.

    Raises
    ------
    ValueError
        `answers` has fewer than two labels, an empty text, or one text for two labels.

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
                raise ValueError(f"the label {name!r} needs non-empty texts, not {texts!r}")
            for text in texts:
                if exact.setdefault(text.strip(), place) != place:
                    raise ValueError(
                        f"two labels have the text {text.strip()!r}: give each its own"
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
        """The most bytes, and so the most tokens, of a label."""
        return max(map(len, self._written))

    def label(self, text: str) -> int | None:
        """Return the label that an answer begins with, or None."""
        return self._who(text.encode(errors="replace").lstrip(self._before))[0]

    def after(self, text: str) -> str:
        """Return what follows the label in an answer."""
        said = text.encode(errors="replace").lstrip(self._before)
        return said[len(self._whole(said)) :].decode(errors="replace")

    def logprobs(
        self, positions: Sequence[Position], *, ended: bool = False
    ) -> NDArray[np.float64]:
        """Return the log-probability of each label, or a bound if it is unknown, (labels,).

        The written tokens are followed until they make one whole label. Of the other listed tokens,
        those that complete a label count for it; the beginning of a label only bounds it, since
        "The" need not become "Theft".

        - `positions`: The tokens of the answer, from its beginning.
        - `ended`: The model itself ended its answer after them.

        Raises
        ------
        Unclear
            The numbers are not log-probabilities, no token is a label, or the tokens do not tell
            the labels apart.
        """
        count = len(self.names)
        for number, place in enumerate(positions):
            _check(place, first=not number)
        known, bound, begun = np.zeros(count), np.zeros(count), np.zeros(count)
        before, path, whole, may = 1.0, b"", None, frozenset(range(count))
        for place in positions:
            # an unlisted token has at most what the list leaves, and at most its least likely entry
            rest = max(LEAST, 1 - sum(map(math.exp, place.listed.values())))
            least = math.exp(min(place.listed.values(), default=0.0))
            bound[[*may]] += before * min(rest, least)
            for token, logprob in place.listed.items():
                if _UNKNOWN in token:  # it may begin any label
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
            known[whole] += before * (1 + 1e-9)  # in a tie the written label wins
        return self._told(known, bound + begun)

    def _told(self, known: Any, bound: Any) -> NDArray[np.float64]:
        """Return the logarithm of the known probabilities, and of the bound for the others."""
        if not known.any():
            raise Unclear("no label is among the likeliest tokens")
        if known.sum() < LEAST_MASS:
            raise Unclear(
                f"all labels together have {known.sum():.1%}: the model answers something else"
            )
        best = int(np.argmax(known))
        rival = np.where(np.arange(len(known)) == best, 0.0, np.maximum(known, bound))
        if rival.max() > known[best]:
            other = self.names[int(np.argmax(rival))]
            raise Unclear(f"{other!r} may be likelier than {self.names[best]!r}: they begin alike")
        return np.asarray(np.log(np.where(known > 0, known, np.maximum(bound, LEAST))))

    def _labels_of(self, text: bytes) -> tuple[int | None, frozenset[int]]:
        """Return the label of a text that ends here, if any, and the labels it may still become."""
        may, whole = set[int](), self._written.get(self._whole(text))
        for written, place in self._written.items():
            # tokenizers keep whole words together: "no" does not begin "not sure"
            goes_on = whole is None or not written[len(text) : len(text) + 1].isalpha()
            if place != whole and written.startswith(text) and goes_on:
                may.add(place)
        return whole, frozenset(may)

    def _whole(self, text: bytes) -> bytes:
        """Return the longest spelling of a label that a text begins with, or empty bytes."""
        own = (w for w in self._written if text.startswith(w) and _ends(text, len(w)))
        return max(own, key=len, default=b"")


def _ends(text: bytes, length: int) -> bool:
    """Tell whether a word ends at `length`: no letter or digit follows, not even a part of one."""
    follows = text[length : length + 4]  # the longest letter in UTF-8
    letter = follows.decode(errors="ignore")[:1]
    return not follows or (bool(letter) and not letter.isalnum())


def _check(place: Position, *, first: bool) -> None:
    """Check that a place lists log-probabilities, and more than the best one."""
    known = [place.logprob, *place.listed.values()]
    if not all(-math.inf <= one <= ROUNDING for one in known):
        raise Unclear(f"log-probabilities must be at most 0, but one is {max(known):.4g}")
    if (total := sum(map(math.exp, place.listed.values()))) > 1 + ROUNDING:
        raise Unclear(f"the likeliest tokens have probabilities of {total:.4g} together, above 1")
    if _UNKNOWN in place.written:
        raise Unclear("the server sent part of a letter without its bytes")
    if first and len(place.listed) < 2:
        raise Unclear("the server listed only one token, which says nothing of its confidence")
    if first and sorted(place.listed.values())[-2] < AFTER_SAMPLING:
        raise Unclear("one token has probability 1: the server lists probabilities after sampling")


def positions_of(logprobs: Any) -> list[Position]:
    """Read a choice's ``logprobs``, in OpenAI's form for chats or for completions.

    A ValueError says what is missing.
    """
    if isinstance(content := getattr(logprobs, "content", None), list):
        return [
            Position(_bytes(one), one.logprob, _listed((_bytes(e), e.logprob) for e in _top(one)))
            for one in content
        ]
    tokens, own, top = (getattr(logprobs, name, None) for name in _LEGACY)
    if not (tokens and own and top and len(tokens) == len(own) == len(top)):
        raise ValueError("the answer has no log-probabilities")
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
    """Return log-probabilities by token; tokens of the same bytes are added up."""
    found: dict[bytes, float] = {}
    for token, logprob in tokens:
        known = found.get(token)
        found[token] = logprob if known is None else float(np.logaddexp(known, logprob))
    return found


def _bytes(token: Any) -> bytes:
    """Return a token's bytes, which the server sends because a token may be half a letter."""
    return bytes(token.bytes) if token.bytes else _as_bytes(token.token)


def _as_bytes(token: str) -> bytes:
    r"""Return a token's bytes from its text, which may spell them like ``bytes:\xe3\x81``."""
    if token.startswith("bytes:\\x"):
        return bytes.fromhex(token.removeprefix("bytes:").replace("\\x", ""))
    return token.encode()


def _number(logprob: float | None) -> float:
    if logprob is None:
        raise ValueError("the written token has no log-probability")
    return logprob


def _top(one: Any) -> Iterable[Any]:
    if not one.top_logprobs:
        raise ValueError("the answer does not list the likeliest tokens (top_logprobs)")
    return one.top_logprobs
