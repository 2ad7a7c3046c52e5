"""Figure 6 with one trunk: `python -m experiments.specialized.one_trunk [--images 1000]`.

Cuts the published network in two files, of which the second continues from the first one's
features: the trunk with its exit, and the rest. Both run as a pair on test images; what the rest
costs is counted in its file, and its answers are compared with those of the whole network. Then
``with_one_trunk`` in ``results_whole_osi_full.json`` is what the students that were measured there
save beside that rest: every one of them is a head on the same trunk.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx.utils

from ebjr import JointClassifier, Model, Router, load_model, record
from ebjr.evaluation.flops import count_flops
from experiments.other_pairs.pairs import cifar100_images, data_folder
from experiments.specialized.record import SHAPE
from runs import about, save

HERE = Path(__file__).parent
RESULT = "results_whole_osi_full"
FEATURES = "/Conv_24_output_0"
"""The last tensor that the exit and the whole network share: both files call it so."""
FEATURE_SHAPE = (1, 48, 15, 15)
SEED = 0


def whole() -> Model:
    """The network that is not cut."""
    return load_model(data_folder() / "cifar100" / "weights" / "osi_full_cifar100.onnx", threads=1)


def pair(folder: Path) -> tuple[Model, Model]:
    """The trunk with its exit, and the rest, which continues from its features."""
    weights = data_folder() / "cifar100" / "weights"
    parts = {"exit": (["image"], ["logits", FEATURES]), "full": ([FEATURES], ["logits"])}
    files = [folder / f"{name}.onnx" for name in parts]
    for file, (name, (given, wanted)) in zip(files, parts.items(), strict=True):
        source = weights / f"osi_{name}_cifar100.onnx"
        onnx.utils.extract_model(str(source), str(file), given, wanted, check_model=False)
    student = load_model(files[0], features=FEATURES, threads=1)
    return student, load_model(files[1], continues=True, threads=1)


@cache
def rest_flops() -> float:
    """FLOPs of the rest: what a deferred row costs."""
    with tempfile.TemporaryDirectory() as folder:
        return count_flops(pair(Path(folder))[1], FEATURE_SHAPE).flops


def run(images: int) -> dict[str, Any]:
    """The pair on test images: its costs, and how far its answers are from the whole network's."""
    pixels, labels = cifar100_images("test", images)
    batch = pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255
    network = load_model(whole().path, threads=1, batch_size=100)
    with tempfile.TemporaryDirectory() as folder:
        student, rest = pair(Path(folder))
        table = record(student, rest, batch, labels, batch_size=100)
        joint = JointClassifier(student, rest, Router("softmax", 0.5))
        answer = joint(batch[:200])
    wanted = network(batch)
    together = np.where(answer.deferred, wanted[:200].argmax(axis=1), table.student[:200].argmax(1))
    return {
        "images": images,
        "student_mflops": round((table.student_cost.flops or 0) / 1e6, 2),
        "rest_mflops": round((table.teacher_cost.flops or 0) / 1e6, 2),
        "whole_mflops": round(count_flops(network, SHAPE).flops / 1e6, 2),
        "largest_difference_of_logits": float(f"{np.abs(table.teacher - wanted).max():.3g}"),
        "same_answers": float((table.teacher.argmax(axis=1) == wanted.argmax(axis=1)).mean()),
        "joint_answers_as_they_should_be": float((answer.prediction == together).mean()),
        "accuracy": round(100 * table.quality("teacher"), 2),
        "about": about(SEED),
    }


def main() -> None:
    """Run the pair and print each student's saving beside its rest."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--images", type=int, default=1000)
    trunk = run(words.parse_args().images)
    kept = json.loads((HERE / f"{RESULT}.json").read_text())
    for name, study in kept.items():
        if name.endswith(" known"):
            for kind, mflops in study["student_mflops"].items():
                for ways in study[kind].values():
                    for row in ways.values():
                        paid = mflops + row["deferral_rate"] * trunk["rest_mflops"]
                        row["with_one_trunk"] = round(trunk["whole_mflops"] / paid, 3)
    save(RESULT, kept | {"one_trunk": trunk}, folder=HERE)


if __name__ == "__main__":
    main()
