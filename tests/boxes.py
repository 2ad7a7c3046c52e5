"""Boxes that more than one test file draws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ebjr.tasks.detection.boxes import Detections, GroundTruth


def random_boxes(rng, n, side=64):
    """Boxes (n, 4) on whole pixels, some of them without area."""
    corners = np.sort(rng.integers(0, side, (n, 2, 2)), axis=1)
    return corners.reshape(n, 4).astype(float)


def random_detections(rng, n, classes=4, side=64, bins=0):
    return Detections(
        random_boxes(rng, n, side),
        rng.normal(0, 2, (n, classes)),
        (side, side),
        bins=rng.normal(0, 2, (n, 4, bins)) if bins else None,
    )


def random_scene(rng, images, classes=4, objects=6, extra=8, ties=False, crowds=True):
    """Labeled images, and a detector that finds most of what is there and more that is not."""
    truth, found = [], []
    for _ in range(images):
        n = int(rng.integers(0, objects + 1))
        boxes = random_boxes(rng, n)
        labels = rng.integers(0, classes, n)
        crowd = rng.random(n) < (0.2 if crowds else 0)
        truth.append(GroundTruth(boxes, labels, crowd))
        seen = np.repeat(np.flatnonzero(rng.random(n) < 0.8), 2)
        near = boxes[seen] + rng.integers(-2, 3, (len(seen), 4))
        near = np.concatenate([near, random_boxes(rng, int(rng.integers(0, extra)))])
        near = np.stack(
            [
                near[:, [0, 2]].min(axis=1),
                near[:, [1, 3]].min(axis=1),
                near[:, [0, 2]].max(axis=1),
                near[:, [1, 3]].max(axis=1),
            ],
            axis=1,
        )
        logits = rng.normal(-1, 2, (len(near), classes))
        logits[np.arange(len(seen)), labels[seen]] += 3
        if ties:
            logits = logits.round()
        found.append(Detections(near, logits, (64, 64)))
    return truth, found


def random_pair(seed, images=12, **how):
    """Labeled images, and what a student and a teacher find on them."""
    rng = np.random.default_rng(seed)
    truth, student = random_scene(rng, images, **how)
    _, other = random_scene(np.random.default_rng(seed), images, **how)  # the same objects
    teacher = [
        replace(
            found,
            logits=found.logits + rng.normal(0, 1, found.logits.shape),
            labels=None,
            scores=None,
        )
        for found in other
    ]
    return truth, student, teacher
