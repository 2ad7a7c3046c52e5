"""`auto`'s choices on the first half of each split, made once for all scripts.

Kept in ``outcomes/choices``, which is not committed, by the outcomes' fingerprint, the split's seed
and the text of the code that chooses.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ebjr import Outcomes, as_score
from ebjr import blend as blending
from ebjr import scores as scoring
from ebjr.blend import as_blend, blend_text
from ebjr.calibration import choice, choose_blend, choose_score, learned
from ebjr.files import write_whole

KEPT = Path(__file__).parent / "other_pairs" / "outcomes" / "choices"
_CODE = hashlib.sha256(
    b"".join(Path(str(part.__file__)).read_bytes() for part in (choice, blending, learned, scoring))
).hexdigest()[:12]


def choice(outcomes: Outcomes, seed: int) -> dict[str, Any]:
    """Score and blend for the split of a seed, as `calibrate` takes them."""
    file = KEPT / f"{outcomes.fingerprint}_{seed}_{_CODE}.json"
    if not file.exists():
        calibration, _ = outcomes.split(0.5, seed)
        best = choose_score(calibration)
        KEPT.mkdir(parents=True, exist_ok=True)
        with write_whole(file) as stream:
            json.dump([str(best), blend_text(choose_blend(calibration, best))], stream)
    score, blend = json.loads(file.read_text())
    return {"score": as_score(score), "blend": as_blend(blend)}


def choices(outcomes: Outcomes, splits: int) -> dict[str, list[Any]]:
    """Return `scores` and `blends` of several splits, as `experiments.splits` takes them."""
    found = [choice(outcomes, seed) for seed in range(splits)]
    return {f"{name}s": [each[name] for each in found] for name in ("score", "blend")}
