"""How long a model's batches take, and how many rows one should have."""

import math

TURN_SECONDS = 0.008  # that a batch may take for its rows: others wait for it
FADING = 0.9  # of the weight of a batch with each later one
ENOUGH = 5.0  # weight of batches, about seven, before they count: the first ones warm a model up
ALIKE = 0.01  # squared spread of batch sizes, relative, under which their slope says nothing


class Pace:
    """The seconds of a model's call and of each row of it, from its latest batches.

    `row` is the smoothed quotient of seconds and rows, 0 while unknown.
    """

    def __init__(self) -> None:
        self.row = 0.0
        self._weight = self._rows = self._seconds = self._square = self._product = 0.0

    def add(self, rows: int, seconds: float) -> None:
        """Take a batch into account."""
        each = seconds / max(rows, 1)
        self.row = FADING * self.row + (1 - FADING) * each if self.row else each
        self._weight = FADING * self._weight + 1
        self._rows = FADING * self._rows + rows
        self._seconds = FADING * self._seconds + seconds
        self._square = FADING * self._square + rows * rows
        self._product = FADING * self._product + rows * seconds

    def most(self) -> float:
        """Return the most rows of a batch; more would hardly be cheaper, and keep others waiting.

        The rows of a batch take no longer than its call, or `TURN_SECONDS` if that is longer. While
        all batches are of one size, call and rows cannot be told apart: another size is tried.
        """
        if self._weight < ENOUGH:
            return math.inf
        rows, seconds = self._rows / self._weight, self._seconds / self._weight
        spread = self._square / self._weight - rows * rows
        if spread <= ALIKE * rows * rows:
            return max(1.0, rows / 2 if rows * self.row > TURN_SECONDS and rows > 1 else 2 * rows)
        slope = (self._product / self._weight - rows * seconds) / spread
        slope = min(max(slope, 0.0), seconds / rows)
        call = seconds - slope * rows
        return max(1.0, max(call, TURN_SECONDS) / slope) if slope else math.inf
