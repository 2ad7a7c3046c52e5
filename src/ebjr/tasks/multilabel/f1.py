"""Micro F1 of a joint model, for any choice of deferred rows."""

import numpy as np


class JointF1:
    """``2 TP / (2 TP + FP + FN)`` over all labels of all rows, from predictions and targets, bool.

    All are (n, labels); the predictions are the student's, and those where a row is deferred.
    """

    def __init__(self, student: np.ndarray, deferred: np.ndarray, targets: np.ndarray) -> None:
        both = np.stack([student, deferred])
        self.hits = 2.0 * (both & targets).sum(axis=2)  # twice the labels that are rightly found
        self.sizes = 1.0 * both.sum(axis=2) + targets.sum(axis=1)  # those predicted, those right

    def __call__(self, deferred: np.ndarray, *, times: np.ndarray | None = None) -> float:
        """Micro F1 where the rows `deferred`, (n,) bool, are, and each row counts `times`."""
        counts = np.ones(deferred.shape, np.float64) if times is None else times
        both = (np.where(deferred, after, before) for before, after in (self.hits, self.sizes))
        return _ratio(*(float(values @ counts) for values in both))

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Each row's part (n,) if it is kept, and if deferred: to first order, averaged of both."""
        (before, after), n = self.hits, self.hits.shape[1]
        totals = self.sizes.sum(axis=1)
        ends = [_ratio(hits.sum(), total) for hits, total in zip(self.hits, totals, strict=True)]
        growth = self.sizes[1] - self.sizes[0]
        # over the other end's total, the changes of all rows add up to the whole change
        change = sum(
            (after - before - end * growth) / max(total, 1.0) / 2
            for end, total in zip(ends, totals[::-1], strict=True)
        )
        kept = before * n / max(totals[0], 1.0)
        kept += ends[0] - kept.mean()  # 0 but where there is nothing to find, and nothing found
        change += (ends[1] - ends[0] - change.sum()) / n  # rounding alone, as a rule
        return kept, kept + n * change


def _ratio(hits: float, sizes: float) -> float:
    return hits / sizes if sizes else 1.0  # nothing to find, and nothing found
