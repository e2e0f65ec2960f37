"""What a report shows where scripts do not run: the sentence, a figure as SVG, and the table of points."""

import math
from collections.abc import Iterable, Sequence
from html import escape
from xml.sax.saxutils import quoteattr

from slimbit.records.terminal import MISSING, quantity
from slimbit.report.figures import accuracy_figure
from slimbit.report.frames import MetricFrame, PointFrame, ReportData

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 16, 48
COLUMNS = 6
"""Costs that the table has, the run's own first."""
CLASSES = {"ours": "ours", "baseline": "base", "signal": "signal", "pruned": "base"}
STEPS = (1, 2, 5)


def still_page(data: ReportData) -> str:
    """The report as HTML without scripts; every text of others is escaped."""
    frame, about = data.metrics[0], data.about
    headline = next((found for found in data.headlines if found.drop == 1), data.headlines[0])
    return "".join((
        f"<h1>{escape(about.network)}</h1>",
        f'<p class="lead">{escape(headline.text)}</p>',
        f'<p class="notice">{escape(about.missing)}</p>' if about.missing else "",
        f'<p class="note">{escape(about.score_name)} against {escape(frame.title)}, without scripts.</p>',
        figure(data, frame),
        table(data),
        "<ul>", *(f"<li>{escape(text)}</li>" for text in data.assumptions), "</ul>",
    ))  # fmt: skip


def figure(data: ReportData, frame: MetricFrame) -> str:
    """The points that the first view of the report's figure shows, the front among them as a line."""
    ranges = accuracy_figure(data, frame.name)["layout"]["meta"]["ranges"]["useful"]
    left, right, low, high = map(float, (*ranges["x"], *ranges["y"]))

    def x(cost: float) -> float:
        return LEFT + (math.log10(cost) - left) / (right - left) * (WIDTH - LEFT - RIGHT)

    def y(accuracy: float) -> float:
        return HEIGHT - BOTTOM - (accuracy - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    shown = [p for p in data.points if p.accuracy is not None and p.accuracy >= low and p.costs.get(frame.name)]
    front = [p for number in frame.front if (p := data.point(number)) in shown]
    title = f"{data.about.score_name} against {frame.title}"
    parts = [f'<svg class="still" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label={quoteattr(title)}>']
    for accuracy in _accuracy_ticks(low, high):
        parts += _line("grid", (LEFT, y(accuracy)), (WIDTH - RIGHT, y(accuracy)))
        parts += _text("end", LEFT - 8, y(accuracy) + 4, f"{accuracy:g}")
    for cost in _cost_ticks(left, right):
        parts += _line("grid", (x(cost), TOP), (x(cost), HEIGHT - BOTTOM))
        parts += _text("middle", x(cost), HEIGHT - BOTTOM + 18, quantity(cost))
    parts += _text("middle", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, frame.title)
    parts += _line("float", (LEFT, y(data.about.float_accuracy)), (WIDTH - RIGHT, y(data.about.float_accuracy)))
    places = " ".join(f"{x(p.costs[frame.name] or 1):.1f},{y(p.accuracy or 0):.1f}" for p in front)
    parts.append(f'<polyline class="front" points="{places}"/>')
    for point in shown:
        parts.append(_dot(point, x(point.costs[frame.name] or 1), y(point.accuracy or 0), on_front=point in front))
        if point in front and point.kind == "ours":
            parts += _text("end", x(point.costs[frame.name] or 1) - 6, y(point.accuracy or 0) - 6, point.name)
    return "".join((*parts, "</svg>"))


def table(data: ReportData) -> str:
    """Every point, the cheapest first."""
    metrics, first = data.metrics[:COLUMNS], data.metrics[0]
    order = sorted(data.points, key=lambda p: (p.costs.get(first.name) or math.inf, p.number))
    heads = ("", "point", data.about.score_name, "95 % interval", *(metric.title for metric in metrics))
    rows = [
        (
            "●" if p.number in first.front else "",
            p.name,
            f"failed: {p.error}" if p.error else p.accuracy_text,
            MISSING if p.low is None or p.high is None else f"{p.low:.2f} to {p.high:.2f}",
            *(p.texts.get(metric.name, MISSING) for metric in metrics),
        )
        for p in order
    ]
    return text_table(heads, rows)


def text_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as HTML; every text is escaped."""
    return (
        f'<div class="scroll"><table><thead>{_row("th", heads)}</thead>'
        f"<tbody>{''.join(_row('td', cells) for cells in rows)}</tbody></table></div>"
    )


def _row(tag: str, cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"


def _line(kind: str, start: tuple[float, float], end: tuple[float, float]) -> Sequence[str]:
    return (f'<line class="{kind}" x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}"/>',)


def _text(anchor: str, x: float, y: float, text: str) -> Sequence[str]:
    return (f'<text text-anchor="{anchor}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>',)


def _dot(point: PointFrame, x: float, y: float, *, on_front: bool) -> str:
    kind = CLASSES[point.kind] + (" best" if on_front else "")
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{escape(point.name)}</title></circle>'


def _accuracy_ticks(low: float, high: float) -> list[float]:
    """Four to ten round numbers between two accuracies."""
    size = 10 ** math.floor(math.log10((high - low) / 4))
    step = next(size * times for times in (*STEPS, 10) if (high - low) / (size * times) <= 10)
    return [round(step * i, 9) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _cost_ticks(left: float, right: float) -> list[float]:
    """Powers of ten, and 2 and 5 times these where there are few of them."""
    steps = STEPS if right - left < 2 else (1,)
    found = [n * 10.0**power for power in range(math.floor(left), math.ceil(right) + 1) for n in steps]
    return [cost for cost in found if left <= math.log10(cost) <= right]
