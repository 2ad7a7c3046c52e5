"""Two baselines: random routing of images, and each image's exact gain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ebjr.tasks.detection.precision import RECALLS, JointPrecision


@dataclass(frozen=True)
class RandomRouting:
    """Return the result of random routing: m orders at r deferral rates."""

    rates: np.ndarray
    curves: np.ndarray  # (m, r): AP

    @classmethod
    def of(
        cls,
        joint: JointPrecision,
        repeats: int = 200,
        rates: np.ndarray = RECALLS,
        seed: int = 0,
    ) -> RandomRouting:
        """Draw `repeats` random orders."""
        rng = np.random.default_rng(seed)
        curves = [joint.curve(rng.permutation(joint.images), rates) for _ in range(repeats)]
        return cls(rates, np.stack(curves))

    def gain(self, curve: np.ndarray) -> tuple[float, float]:
        """A curve's AP over the mean random one, averaged over the deferral rates, and its p.

        The p is the chance that a random order does as well: of m random orders and the score's
        own, the fraction that gains as much (a permutation test, one-sided).
        """
        own, random = curve.mean(), self.curves.mean(axis=1)
        p = (1 + (random >= own).sum()) / (1 + len(random))
        return float(own - random.mean()), float(p)


def exact_gains(joint: JointPrecision) -> np.ndarray:
    """Return the AP that each image gains from the teacher's answer, (n,): the oracle's order.

    The mean of what is won where the student answers all others, and where the teacher does. To
    defer by falling gain is no bound, as gains do not add up, but no score that sees the student
    alone comes near it. Two evaluations for each image, where `JointPrecision.rows` approximates.
    """
    gain = np.empty(joint.images)
    none, every = np.zeros(joint.images, bool), np.ones(joint.images, bool)
    low, high = joint(none), joint(every)
    for image in range(joint.images):
        none[image], every[image] = True, False
        gain[image] = (joint(none) - low + high - joint(every)) / 2
        none[image], every[image] = False, True
    return gain
