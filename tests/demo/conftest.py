from __future__ import annotations

import numpy as np
import pytest

from ebjr.demo.fetch import Arrays

ROWS = 3  # images in each of the six files of a tiny archive


@pytest.fixture
def splits() -> dict[str, Arrays]:
    rng = np.random.default_rng(0)

    def some(count: int) -> Arrays:
        return rng.integers(0, 256, (count, 32, 32, 3), np.uint8), rng.integers(0, 10, count)

    return {"train": some(5 * ROWS), "test": some(ROWS)}
