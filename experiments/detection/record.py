"""Record what every detector says: `python -m experiments.detection.record [name ...]`."""

from __future__ import annotations

import sys

from experiments.detection.pairs import SOURCES, detections

if __name__ == "__main__":
    for name in sys.argv[1:] or SOURCES:
        print(name, sum(map(len, detections(name))), "detections", flush=True)
