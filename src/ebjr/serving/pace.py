"""How long a model's batches take, and how many rows one should have."""

import math

import numpy as np

TURN_SECONDS = 0.02  # that the rows of a batch may take: others wait for it
SMOOTH = 0.9  # weight of what was known of the seconds of a row
FADING = 0.95  # of the weight of a batch with each later one
ENOUGH = 5.0  # weight of batches before they count: the first ones warm a model up
ALIKE = 0.01  # squared spread of batch sizes, relative, under which their slope says nothing
SURE = 2.0  # standard errors added to the slope


class Pace:
    """The seconds of a model's call and of each row of it, from its latest batches.

    `row` is the smoothed quotient of seconds and rows, 0 while unknown. `most` is the most rows
    that a batch should have: more would hardly be cheaper, and keep others waiting.
    """

    def __init__(self) -> None:
        self.row, self.most = 0.0, math.inf
        self._weight, self._sums = 0.0, np.zeros(5)

    def add(self, rows: int, seconds: float) -> None:
        """Take a batch into account."""
        each = seconds / rows
        self.row = SMOOTH * self.row + (1 - SMOOTH) * each if self.row else each
        self._weight = FADING * self._weight + 1
        self._sums *= FADING
        self._sums += rows, seconds, rows * rows, rows * seconds, seconds * seconds
        self.most = self._best()

    def _best(self) -> float:
        """Return `most`.

        The rows of a batch take no longer than its call, or `TURN_SECONDS` if that is longer. The
        seconds of a row are the slope of seconds over rows plus `SURE` standard errors. Batches of
        one size have no slope: another size is tried.
        """
        if self._weight < ENOUGH:
            return math.inf
        rows, seconds, *products = (self._sums / self._weight).tolist()
        spread, common, noise = (
            product - by
            for product, by in zip(products, (rows**2, rows * seconds, seconds**2), strict=True)
        )
        if spread <= ALIKE * rows * rows:
            return max(1.0, rows / 2 if rows * self.row > TURN_SECONDS and rows > 1 else 2 * rows)
        slope = max(common / spread, 0.0)
        error = math.sqrt(max(noise - slope * common, 0.0) / spread / self._weight)
        slope = min(slope + SURE * error, seconds / rows)
        call = seconds - slope * rows
        return max(1.0, max(call, TURN_SECONDS) / slope) if slope else math.inf
