"""Generate what the repository keeps: python -m docs.make.committed.

README's table and picture come from the demo's recorded answers, the picture of preprocessing from
`Preprocess`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from docs.make.measured import table
from docs.make.sources import DOCS, ROOT
from ebjr import OperatingPoint, Outcomes, Study, TradeOffCurve, run_study
from ebjr.costs import Cost, flops_text
from ebjr.data.preprocess import PADDING, _place
from ebjr.demo import shipped
from ebjr.evaluation.plots import thin_rows
from ebjr.evaluation.report import point_title

README = ROOT / "README.md"
BEGIN = "<!-- Made of the recorded answers by: python -m docs.make.committed -->\n\n"
END = "\n\n<!-- Until here. -->"

GRAY, CHOSEN, PAIR, ENERGY = "#8A8F98", "#7468E8", "#56B4E9", "#D55E00"
"""Colors that show on white and on black."""


def demo_studies() -> tuple[Study, Study]:
    """Return the studies of `ebjr demo` on the recorded answers: the pair alone, all models."""
    with shipped("outcomes.npz") as recorded:
        outcomes = Outcomes.load(recorded)
    return run_study(outcomes.pair("student", "teacher")), run_study(outcomes)


# README's table


def demo_table(pair: Study, stages: Study) -> str:
    """Return the rows of both models, the pair at its goal and its best, and the stages."""
    result, measure = pair.result, pair.outcomes.measure
    rows = [
        [role, measure.words(quality), "", flops_text(cost), ""]
        for role, quality, cost in (
            ("student", result.student_quality, result.student_cost),
            ("teacher", result.teacher_quality, result.teacher_cost),
        )
    ]
    rows.append(_joint_row(f"two stages: {point_title(result)}", result))
    rows.append(_joint_row("for the best accuracy", pair.best_accuracy))
    count = {3: "three", 4: "four"}[len(stages.stages)]
    title = f"{count} stages: {point_title(stages.result)}"
    rows.append([f"**{cell}**" for cell in _joint_row(title, stages.result)])
    head = [f"held-out half, {result.n:,} images", "accuracy", "deferred", "MFLOPs", "cheaper"]
    return table(head, rows)


def _joint_row(name: str, point: OperatingPoint) -> list[str]:
    quality = f"{100 * point.quality:.2f} %"
    rate = f"{100 * point.deferral_rate:.1f} %"
    return [name, quality, rate, flops_text(point.cost), f"{point.saving:.2f}x"]


def readme_with(text: str, made: str) -> str:
    """Return README's text with another table between the marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + made + END + after


# The curve

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 300, 56, 20, 16, 44


def curve_picture(pair: Study, stages: Study) -> str:
    """Draw accuracy against MFLOPs on the held-out half: stages, pair, paper, random."""
    held_out, result = pair.held_out, pair.result
    more, chosen = stages.point.curve(stages.held_out), pair.point.curve(held_out)
    paper = TradeOffCurve.of(held_out, "energy")
    qualities = [*chosen.quality, *paper.quality]
    ends = (min(qualities), max(qualities))
    most = chosen.cost_in("flops")[-1] / 1e6

    def at(megaflops: float, quality: float) -> tuple[float, float]:
        across = megaflops / (1.04 * most)
        up = (quality - ends[0] + 0.001) / (ends[1] - ends[0] + 0.002)
        return (
            round(LEFT + across * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1),
        )

    def line(curve: TradeOffCurve, color: str, width: float) -> str:
        rows = thin_rows(curve, most=80)
        megaflops = curve.cost_in("flops") / 1e6
        places = [at(megaflops[row], curve.quality[row]) for row in rows]
        text = " ".join(f"{x:g},{y:g}" for x, y in places)
        return f'<polyline points="{text}" stroke="{color}" stroke-width="{width}" fill="none"/>'

    student = at(_megaflops(result.student_cost), result.student_quality)
    teacher = at(_megaflops(result.teacher_cost), result.teacher_quality)
    knob = at(_megaflops(stages.result.cost), stages.result.quality)
    corner = (WIDTH - RIGHT, HEIGHT - BOTTOM)
    last = at(most, result.teacher_quality)
    parts = [
        _line((LEFT, teacher[1]), (WIDTH - RIGHT, teacher[1]), dashed=True),
        _line(student, last),
        line(paper, ENERGY, 1.75),
        line(chosen, PAIR, 2.5),
        line(more, CHOSEN, 3.5),
        _line((LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, HEIGHT - BOTTOM)),
        *(_dot(place, GRAY) for place in (student, teacher)),
        _dot(knob, CHOSEN, 7),
        _text((LEFT, TOP), "accuracy", -48, 6),
        _text(student, "student alone", 10, 16),
        _text(teacher, "teacher alone", -4, 18, "end"),
        _text(
            *(knob, f"the joint model: {stages.result.saving:.2f} times fewer FLOPs"),
            *(14, 20, "start", CHOSEN),
        ),
        _text(corner, "with a second student between", 0, -80, "end", CHOSEN),
        _text(corner, f"the pair: {point_title(result)}", 0, -58, "end", PAIR),
        _text(corner, "the paper's score, energy, no blend", 0, -36, "end", ENERGY),
        _text(corner, "random inputs to the teacher", 0, -14, "end"),
        _text(
            (WIDTH - RIGHT, HEIGHT),
            "MFLOPs per image: more inputs go to the teacher",
            0,
            -10,
            "end",
        ),
    ]
    for quality in _ticks(*ends):
        x, y = at(0, quality)
        parts.append(_text((x, y), f"{100 * quality:g} %", -8, 4, "end"))
    for megaflops in (100, 200, 300):
        x, y = at(megaflops, ends[0])
        parts.append(_text((x, HEIGHT - BOTTOM), str(megaflops), 0, 16, "middle"))
    title = "Accuracy of the shipped models on CIFAR-10 against MFLOPs per image, by threshold"
    return _svg(WIDTH, HEIGHT, title, parts)


def _ticks(low: float, high: float) -> list[float]:
    """Return whole percents and halves between two shares."""
    return [
        half / 200
        for half in range(round(200 * low), round(200 * high) + 1)
        if low <= half / 200 <= high
    ]


def _megaflops(cost: Cost) -> float:
    assert cost.flops is not None
    return cost.flops / 1e6


# The picture of preprocessing

IMAGE, INPUT = (160, 240), (120, 120)
CAPTIONS: Mapping[str, str] = {
    "squash": "squash: sides change",
    "crop": "crop: edges go",
    "letterbox": f"letterbox: gray {PADDING}",
}

SCENE = (
    '<rect width="240" height="160" fill="#7FB2E5"/><circle cx="52" cy="44" r="26" fill="#F4C542"/>'
    '<path d="M90 130 L150 46 L210 130 Z" fill="#5B6C7D"/>'
    '<rect y="128" width="240" height="32" fill="#6A9A5B"/>'
    '<rect x="2" y="2" width="236" height="156" fill="none" stroke="#D55E00" stroke-width="4"/>'
)


def preprocess_picture() -> str:
    """Draw an image and the result of each way to resize it, placed as `Preprocess` places it."""
    parts = [
        f'<g transform="translate(8 8)">{SCENE}</g>',
        _text((128, 190), "image, 240 x 160", 0, 0, "middle"),
    ]
    for number, (resize, caption) in enumerate(CAPTIONS.items()):
        left = 280 + 148 * number
        (tall, wide), top, across = _place(IMAGE, INPUT, resize)
        scale = f"translate({across} {top}) scale({wide / IMAGE[1]:.6g} {tall / IMAGE[0]:.6g})"
        page = f"rgb({PADDING} {PADDING} {PADDING})"
        parts += [
            f'<svg x="{left}" y="28" width="{INPUT[1]}" height="{INPUT[0]}">'
            f'<rect width="100%" height="100%" fill="{page}"/>'
            f'<g transform="{scale}">{SCENE}</g></svg>',
            _text((left + INPUT[1] / 2, 190), caption, 0, 0, "middle"),
        ]
    title = "An image of 240 x 160 pixels squashed, cropped and letterboxed to 120 x 120"
    return _svg(716, 204, title, parts)


def _svg(width: int, height: int, title: str, parts: list[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" font-family="sans-serif" font-size="13">'
        f"<title>{title}</title>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _line(start: tuple[float, float], end: tuple[float, float], dashed: bool = False) -> str:
    places = f'x1="{start[0]:g}" y1="{start[1]:g}" x2="{end[0]:g}" y2="{end[1]:g}"'
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<line {places} stroke="{GRAY}"{dashes}/>'


def _dot(place: tuple[float, float], color: str, radius: int = 5) -> str:
    return f'<circle cx="{place[0]:g}" cy="{place[1]:g}" r="{radius}" fill="{color}"/>'


def _text(
    place: tuple[float, float],
    words: str,
    right: float,
    down: float,
    anchor: str = "start",
    color: str = GRAY,
) -> str:
    x, y = place[0] + right, place[1] + down
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{color}">{words}</text>'


def files() -> dict[Path, str]:
    """Return each file's text."""
    studies = demo_studies()
    return {
        README: readme_with(README.read_text(), demo_table(*studies)),
        DOCS / "assets/curve.svg": curve_picture(*studies),
        DOCS / "assets/preprocess.svg": preprocess_picture(),
    }


def main() -> None:
    """Write the files."""
    for path, text in files().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
