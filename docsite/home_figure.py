"""Draws the figure of the home page, light and dark, from the results of experiments/resnet20_posttraining.

    python docsite/home_figure.py

Large letters in a small picture: on a telephone it is shown at three quarters of its size.
"""

import csv
import math
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments/resnet20_posttraining/results.csv"
FOLDER = ROOT / "docs/pictures"
WIDTH, HEIGHT = 480, 330
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 34, 52
COSTS, ACCURACIES = (4e6, 2.6e8), (80.0, 93.0)
FLOAT = 91.73
THEMES = {
    "light": {"ink": "#1c2024", "quiet": "#4f555b", "grid": "#dfe2e5", "ours": "#0067a5", "plain": "#b34a00"},
    "dark": {"ink": "#e9ebee", "quiet": "#b4bac1", "grid": "#3a4047", "ours": "#62b8f0", "plain": "#f0a04b"},
}


def main() -> None:
    """Write both files."""
    with RESULTS.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (row["sweep"], row["seed"]) == ("esn_digital", "0")]
    FOLDER.mkdir(exist_ok=True)
    for theme, colours in THEMES.items():
        (FOLDER / f"home-{theme}.svg").write_text(drawn(rows, colours), encoding="utf-8")


def drawn(rows: Iterable[dict[str, str]], colours: dict[str, str]) -> str:
    """The figure as SVG."""
    points = sorted(
        (float(row["esn_digital"]), float(row["accuracy"]), row["baseline"], row["setting"]) for row in rows
    )
    inside = [point for point in points if point[1] >= ACCURACIES[0]]
    ours = [(cost, accuracy) for cost, accuracy, baseline, _ in inside if baseline == "False"]
    plain = [(cost, accuracy, setting) for cost, accuracy, baseline, setting in inside if baseline == "True"]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, sans-serif" '
        f'font-size="16" fill="{colours["quiet"]}">'
    )
    parts = [head]
    parts += [text(0, 16, "accuracy on CIFAR-10 (%)", colours["ink"])]
    for accuracy in (80, 84, 88, 92):
        parts += [line((LEFT, y(accuracy)), (WIDTH - RIGHT, y(accuracy)), colours["grid"])]
        parts += [text(LEFT - 8, y(accuracy) + 5, str(accuracy), anchor="end")]
    for cost, name in ((5e6, "5M"), (1e7, "10M"), (2e7, "20M"), (5e7, "50M"), (1e8, "100M"), (2e8, "200M")):
        parts += [line((x(cost), TOP), (x(cost), HEIGHT - BOTTOM), colours["grid"])]
        parts += [text(x(cost), HEIGHT - BOTTOM + 20, name, anchor="middle")]
    middle, title = (LEFT + WIDTH - RIGHT) / 2, "cost of an image (bits of all multiplications)"
    parts += [text(middle, HEIGHT - 8, title, colours["ink"], anchor="middle")]
    parts += [line((LEFT, y(FLOAT)), (WIDTH - RIGHT, y(FLOAT)), colours["quiet"], dash="6 4")]
    parts += [text(WIDTH - RIGHT, y(FLOAT) - 7, f"float {FLOAT}", anchor="end")]
    for curve, colour in ((ours, colours["ours"]), ([point[:2] for point in plain], colours["plain"])):
        places = " ".join(f"{x(cost):.1f},{y(accuracy):.1f}" for cost, accuracy in curve)
        parts += [f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="3"/>']
        parts += [f'<circle cx="{x(c):.1f}" cy="{y(a):.1f}" r="4" fill="{colour}"/>' for c, a in curve]
    parts += [
        text(x(cost) + 5, y(accuracy) + 20, setting.removesuffix(" bits"), colours["plain"])
        for cost, accuracy, setting in plain
        if setting not in ("3 bits", "7 bits")
    ]
    parts += [text(x(9.4e6), y(85.6), "Slimbit", colours["ours"], weight="bold")]
    parts += [text(WIDTH - RIGHT, y(83.2), "plain rounding to", colours["plain"], anchor="end", weight="bold")]
    parts += [text(WIDTH - RIGHT, y(82.2), "8 to 3 bits", colours["plain"], anchor="end", weight="bold")]
    return "\n".join([*parts, "</svg>\n"])


def x(cost: float) -> float:
    """Place of a cost, on a logarithmic axis."""
    low, high = map(math.log10, COSTS)
    return LEFT + (math.log10(cost) - low) / (high - low) * (WIDTH - LEFT - RIGHT)


def y(accuracy: float) -> float:
    """Place of an accuracy."""
    low, high = ACCURACIES
    return HEIGHT - BOTTOM - (accuracy - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def line(start: tuple[float, float], end: tuple[float, float], colour: str, *, dash: str = "none") -> str:
    """A thin line."""
    return (
        f'<line x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}" stroke="{colour}" '
        f'stroke-dasharray="{dash}"/>'
    )


def text(
    left: float, base: float, words: str, colour: str = "", *, anchor: str = "start", weight: str = "normal"
) -> str:
    """Words at a place."""
    fill = f' fill="{colour}"' if colour else ""
    bold = ' font-weight="bold"' if weight == "bold" else ""
    return f'<text x="{left:.1f}" y="{base:.1f}" text-anchor="{anchor}"{fill}{bold}>{words}</text>'


if __name__ == "__main__":
    main()
