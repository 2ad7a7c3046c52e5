"""The heads' answers on CIFAR-100's test images: `python -m experiments.specialized.answers`.

Trains the heads of `experiments.specialized.measure` on the features that `record` left, half a
minute, and writes ``answers/``: the largest logits of each image, as
`experiments.other_pairs.pairs.packed` has them. Figure 6 is recomputed from these.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from ebjr import Cost, Outcomes
from ebjr.files import write_whole
from experiments.other_pairs.pairs import answers, packed, unpacked

ANSWERS = Path(__file__).parent / "answers"
LARGEST = 8


def file_of(size: int | None) -> Path:
    """Return the file of the head that knows `size` classes; None: the general one."""
    return ANSWERS / f"{'general' if size is None else f'knows_{size}'}.npz"


@cache
def table(size: int, teacher: str) -> tuple[Outcomes, tuple[int, ...]]:
    """Return a head that knows `size` popular classes beside a teacher, and these classes."""
    with np.load(file_of(size)) as kept:
        head, known = unpacked(kept), tuple(kept["known"].tolist())
    said = answers(teacher)
    outcomes = Outcomes(
        head["output"],
        said["output"],
        said["targets"],
        "specialized",
        student_cost=Cost(flops=float(head["flops"])),
        teacher_cost=Cost(flops=float(said["flops"])),
        known_classes=known,
    )
    return outcomes, known


def main() -> None:
    """Train every head and write what it says."""
    from experiments.specialized.measure import ORDER, SIZES, load, student

    ANSWERS.mkdir(exist_ok=True)
    targets = load("test", "trunk")["labels"]
    for size in SIZES:
        known = tuple(int(label) for label in ORDER[:size])
        logits, flops, seconds = student("whole", known)
        said = {"output": logits, "targets": targets, "flops": np.array(flops)}
        with write_whole(file_of(size), "wb") as stream:
            np.savez_compressed(stream, **packed(said, LARGEST), known=np.array(known))
        print(f"{file_of(size)}: {seconds:.0f} s")


if __name__ == "__main__":
    main()
