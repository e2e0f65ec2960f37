"""Figures of a report as Plotly figure data, without colours: those come from a light or a dark template.

Plain dictionaries, valid as ``plotly.graph_objects.Figure(figure)``; the page shows them with the part of plotly.js
that is among its assets: scatter, bar, heatmap.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import cycle, islice
from typing import Any

from slimbit.records.setting import LEARNED
from slimbit.records.terminal import quantity
from slimbit.report.frames import MetricFrame, PointFrame, ReportData

FigureData = dict[str, Any]

USEFUL = 0.75
"""Share of the float accuracy below which a point is outside the first view of an accuracy figure."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
# Okabe and Ito's colours, distinct under the common colour-vision deficiencies; shapes differ as well
COLOURS = {
    "light": {"ink": "#1c2024", "quiet": "#60666d", "grid": "#e6e8ea", "front": "#0067a5", "base": "#c04f00",
              "signal": "#007a5a", "card": "#ffffff", "width1": "#a8307f", "width2": "#007a5a", "width3": "#8a6d00",
              "width4": "#5a4fcf"},
    "dark": {"ink": "#e9ebee", "quiet": "#a3aab2", "grid": "#2c3238", "front": "#62b8f0", "base": "#f0a04b",
             "signal": "#4fc79f", "card": "#171a1e", "width1": "#e58ac4", "width2": "#4fc79f", "width3": "#d9bd4a",
             "width4": "#a9a1ff"},
}  # fmt: skip


def accuracy_figure(data: ReportData, metric: str) -> FigureData:
    """Accuracy against one cost metric: Pareto front, other points, baselines, float accuracy.

    Traces, in the order of the templates: where there are several ways to points (`ways_of`) one for each, pruning
    alone, and baselines of pruned networks; then other points, front, baselines by policy, steps from training, the
    float network, the selected point. ``customdata`` holds the numbers of the points; the selected one is filled in by
    the page. The layout opens on the useful part of the accuracy; ``layout.meta.ranges`` has that and the whole
    ("useful", "all").

    Args:
        data: From `report_data`.
        metric: Name of a metric in ``data.metrics``.
    """
    frame = data.metric(metric)
    shown = [point for point in data.points if point.kind != "failed" and point.costs.get(metric)]
    by_cost = sorted(shown, key=lambda point: (point.costs[metric] or 0.0, point.number))
    joint = len(ways_of(data)) > 1
    others = [p for p in by_cost if p.kind == "ours" and p.number not in frame.front and not joint]
    baselines = [point for point in by_cost if point.kind == "baseline" and point.keep_ratio == 1]
    signals = [point for point in by_cost if point.kind == "signal"]
    ranges = {name: _ranges(data, shown, frame, whole=name == "all") for name in ("useful", "all")}
    unit = f" ({data.about.unit})" if data.about.unit else ""
    return {
        "data": [
            *(_of_ways(by_cost, data, frame) if joint else ()),
            _trace("other points", others, data, frame, lines=False),
            front_trace("Pareto front", data, metric),
            *(
                _trace(f"baseline: {policy}", [p for p in baselines if p.policy == policy], data, frame, lines=True)
                for policy in baseline_policies(data)
            ),
            _trace("training signal, by epoch", signals, data, frame, lines=False),
            _float_trace(data, frame),
            {"type": "scatter", "name": "selected", "x": [], "y": [], "mode": "markers", "hoverinfo": "skip",
             "showlegend": False},
        ],
        "layout": {
            "xaxis": {"type": "log", "title": {"text": plain(frame.title)}, "range": ranges["useful"]["x"],
                      "dtick": ranges["useful"]["dtick"], "tickformat": "~s", "tickangle": 0},
            "yaxis": {"title": {"text": f"{plain(data.about.score_name)}{unit}"}, "range": ranges["useful"]["y"]},
            "shapes": [{"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": data.about.float_accuracy,
                        "y1": data.about.float_accuracy}],
            "annotations": [{"xref": "paper", "x": 0, "y": data.about.float_accuracy,
                             "text": f"float {data.about.float_accuracy:.2f}"}, *_on_the_axis(data, frame)],
            "meta": {"ranges": ranges, "hidden": _outside(shown, ranges["useful"]["y"])},
        },
    }  # fmt: skip


def front_trace(name: str, data: ReportData, metric: str) -> FigureData:
    """The Pareto front of a report, its points of the sweep with their letters.

    Args:
        name: In the legend.
        data: From `report_data`.
        metric: Name of a metric in ``data.metrics``.
    """
    frame = data.metric(metric)
    front = [data.point(number) for number in frame.front]
    return {
        **_trace(name, front, data, frame, lines=True),
        "mode": "lines+markers+text",
        "text": [point.name if point.kind == "ours" else "" for point in front],
        "textposition": "top left",
        "cliponaxis": False,
    }


def _float_trace(data: ReportData, frame: MetricFrame) -> FigureData:
    """The float network, where it has a cost."""
    cost = frame.float_cost
    text = f"<b>float32</b><br>{plain(data.about.score_name)} {data.about.float_accuracy:.2f}<br>{plain(frame.label)}"
    return {
        "type": "scatter",
        "name": "float32",
        "mode": "markers",
        "showlegend": cost is not None,
        "x": [] if cost is None else [cost],
        "y": [] if cost is None else [data.about.float_accuracy],
        "hoverinfo": "text",
        "hovertext": [] if cost is None else [f"{text}  {quantity(cost)} {frame.unit}"],
    }


def _on_the_axis(data: ReportData, frame: MetricFrame) -> list[dict[str, Any]]:
    """Names of the 8-bit and the float network at their costs; x of an annotation is a power of ten."""
    eight = None if data.reference is None else data.point(data.reference).costs.get(frame.name)
    places = {"8 bits": eight, "float32": frame.float_cost}
    return [
        {"x": math.log10(cost), "yref": "paper", "y": 0, "text": f"\N{BLACK UP-POINTING TRIANGLE} {name}",
         "xanchor": "center", "xshift": 0}
        for name, cost in places.items()
        if cost
    ]  # fmt: skip


def ways_of(data: ReportData) -> list[str]:
    """Ways to points of one's own, in words: the largest keep ratio first, what is learned behind what is not."""
    ours = {(-point.keep_ratio, point.policy == LEARNED) for point in data.points if point.kind == "ours"}
    return [_way(-ratio, learned=learned) for ratio, learned in sorted(ours)]


def _way(ratio: float, *, learned: bool) -> str:
    if ratio == 1:
        return "learn" if learned else "quantize only"
    return f"prune to {ratio:g}, then {'learn' if learned else 'quantize'}"


def _of_ways(by_cost: Sequence[PointFrame], data: ReportData, frame: MetricFrame) -> list[FigureData]:
    """A curve for each way, what pruning alone reaches, and (hidden at first) baselines of pruned networks."""
    ours = [point for point in by_cost if point.kind == "ours"]
    curves = [
        _trace(
            way,
            [point for point in ours if _way(point.keep_ratio, learned=point.policy == LEARNED) == way],
            data,
            frame,
            lines=True,
        )
        for way in ways_of(data)
    ]
    alone = [point for point in by_cost if point.kind == "pruned"]
    pruned = [point for point in by_cost if point.kind == "baseline" and point.keep_ratio != 1]
    hidden = {
        **_trace(f"prune, then {', '.join(baseline_policies(data))}", pruned, data, frame, lines=False),
        "visible": "legendonly",
    }
    return [*curves, _trace("prune only, 8 bits", alone, data, frame, lines=True), hidden]


def histogram_figure(data: ReportData) -> FigureData:
    """Filters by the width of their widest level, 0 = pruned; heights are filled in for the selected point."""
    widest = max((len(layers.filters) for layers in data.layers.values()), default=1)
    return {
        "data": [{"type": "bar", "x": list(range(widest)), "y": [0] * widest, "hoverinfo": "skip"}],
        "layout": {
            "xaxis": {"title": {"text": "bits (0 = pruned)"}, "dtick": 1,
                      "tickangle": 0, "showgrid": False, "range": [-0.6, widest - 0.4]},
            "yaxis": {"title": {"text": "filters"}, "rangemode": "tozero"},
        },
    }  # fmt: skip


def template(theme: str, *, ways: int = 1, baselines: int = 1) -> dict[str, Any]:
    """Plotly template of a theme ("light" or "dark"): the same figure in other colours.

    Args:
        theme: Its name.
        ways: How many ways to points the report has, see `ways_of`.
        baselines: How many policies its baselines have.
    """
    colours = COLOURS[theme]
    axis = {"gridcolor": colours["grid"], "linecolor": colours["quiet"], "zeroline": False, "ticks": "",
            "automargin": True, "title": {"standoff": 12, "font": {"size": 13}}}  # fmt: skip
    return {"data": _trace_styles(colours, ways=ways, baselines=baselines), "layout": {
        "font": {"family": FONT, "size": 13, "color": colours["quiet"]},
        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
        "xaxis": {**axis, "showline": True}, "yaxis": axis,
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "yref": "container", "y": 0, "yanchor": "bottom"},
        "hoverlabel": {"align": "left", "bgcolor": colours["card"], "bordercolor": colours["quiet"],
                       "font": {"family": FONT, "color": colours["ink"]}},
        "hovermode": "closest", "dragmode": "zoom", "bargap": 0.3,
        "shapedefaults": {"line": {"color": colours["quiet"], "width": 1, "dash": "dash"}, "layer": "below"},
        "annotationdefaults": {"showarrow": False, "xanchor": "left", "yanchor": "bottom", "xshift": 6,
                               "font": {"size": 12, "color": colours["quiet"]}},
    }}  # fmt: skip


def plain(text: str) -> str:
    """Text that Plotly shows as it is: its labels otherwise understand some HTML, links among it."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _trace(name: str, points: Sequence[PointFrame], data: ReportData, frame: MetricFrame, *, lines: bool) -> FigureData:
    accuracies = [point.accuracy or 0.0 for point in points]
    above = [a if p.high is None else p.high for p, a in zip(points, accuracies, strict=True)]
    below = [a if p.low is None else p.low for p, a in zip(points, accuracies, strict=True)]
    return {
        "type": "scatter",
        "name": plain(name),
        "mode": "lines+markers" if lines else "markers",
        "showlegend": bool(points),
        "x": [point.costs[frame.name] for point in points],
        "y": accuracies,
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [round(high - a, 6) for high, a in zip(above, accuracies, strict=True)],
            "arrayminus": [round(a - low, 6) for low, a in zip(below, accuracies, strict=True)],
        },
        "customdata": [point.number for point in points],
        "hoverinfo": "text",
        "hovertext": [_hover(point, data) for point in points],
    }


def _hover(point: PointFrame, data: ReportData) -> str:
    interval = "" if point.low is None or point.high is None else f"  ({point.low:.2f} to {point.high:.2f})"
    rows = [f"<b>{plain(point.name)}</b>", f"{plain(data.about.score_name)} {plain(point.accuracy_text)}{interval}"]
    if point.clamped:
        rows.append(f"clamped: {len(point.clamped)} of the layers")
    rows += [
        f"{plain(metric.label)}  {plain(point.texts.get(metric.name, '-'))} {metric.unit}" for metric in data.metrics
    ]
    if point.name != point.label:
        rows.append(plain(point.label))
    return "<br>".join(rows)


def baseline_policies(data: ReportData) -> tuple[str, ...]:
    """Policies of the baselines of a report, each once; the paper's stands for none."""
    return tuple(dict.fromkeys(point.policy for point in data.points if point.kind == "baseline")) or ("max_abs",)


def _ranges(data: ReportData, points: Sequence[PointFrame], frame: MetricFrame, *, whole: bool) -> dict[str, Any]:
    """Axis ranges, the one of x in powers of ten, around the points that a view shows, intervals included."""
    top = data.about.float_accuracy
    near = [point for point in points if whole or (point.accuracy or 0.0) >= USEFUL * top] or points
    lows = [point.accuracy or 0.0 if point.low is None else point.low for point in near]
    highs = [point.accuracy or 0.0 if point.high is None else point.high for point in near]
    costs = [math.log10(cost) for cost in (frame.float_cost, *(point.costs[frame.name] for point in near)) if cost]
    x = _padded(min(costs, default=0.0), max(costs, default=1.0))
    return {
        "x": x,
        "dtick": log_ticks(x),
        "y": _padded(min([top, *lows]), max([top, *highs])),
    }


def log_ticks(limits: Sequence[float]) -> str | int:
    """Plotly's ``dtick`` of a log axis between two powers of ten: every digit; 1, 2, 5; or powers of ten.

    >>> log_ticks([6.0, 6.3]), log_ticks([6.0, 7.5]), log_ticks([5.0, 8.0])
    ('D1', 'D2', 1)
    """
    decades = limits[1] - limits[0]
    return "D1" if decades < 0.35 else "D2" if decades < 2 else 1


def _padded(low: float, high: float) -> list[float]:
    room = 0.06 * (high - low) or 0.5
    return [round(low - room, 6), round(high + room, 6)]


def _outside(points: Iterable[PointFrame], limits: Sequence[float]) -> int:
    return sum((point.accuracy or 0.0) < limits[0] for point in points)


def _bars(hue: str) -> dict[str, Any]:
    """Error bars, fainter than the points they belong to: many of them stand close together."""
    return {"thickness": 1, "width": 0, "color": f"{hue}73"}


def _way_styles(colours: dict[str, str], ways: int) -> list[dict[str, Any]]:
    """Styles of the traces that only reports with several ways have."""
    names = ("front", "width1", "width2", "width3", "width4")
    hues = [colours[names[i % len(names)]] for i in range(ways)]
    curves = [
        {"marker": {"color": hue, "size": 6, "symbol": symbol}, "line": {"color": hue, "width": 1.5},
         "error_y": _bars(hue)}
        for hue, symbol in zip(hues, cycle(("circle", "square", "triangle-down", "cross", "star")), strict=False)
    ]  # fmt: skip
    alone = {"marker": {"color": colours["ink"], "symbol": "x", "size": 8},
             "line": {"color": colours["ink"], "width": 1.5, "dash": "dash"},
             "error_y": _bars(colours["ink"])}  # fmt: skip
    pruned = {"marker": {"color": colours["base"], "symbol": "diamond-open", "size": 8},
              "error_y": _bars(colours["base"])}  # fmt: skip
    return [*curves, alone, pruned]


def _trace_styles(colours: dict[str, str], *, ways: int, baselines: int) -> dict[str, Any]:
    """Styles by type and order of traces: see `accuracy_figure`."""
    named = {"textfont": {"color": colours["ink"], "size": 12}}
    front = {"marker": {"color": colours["front"], "size": 9}, "line": {"color": colours["front"], "width": 2},
             "error_y": _bars(colours["front"]), **named}  # fmt: skip
    if ways > 1:  # the curves of the ways have colours and error bars; the front goes over them as a ribbon of rings
        front = {"marker": {"color": colours["ink"], "size": 11, "symbol": "circle-open", "line": {"width": 1.5}},
                 "line": {"color": colours["ink"], "width": 1, "dash": "dot"},
                 "error_y": {"thickness": 0, "width": 0}, **named}  # fmt: skip
    ring = {"symbol": "circle-open", "size": 20, "color": colours["ink"], "line": {"width": 2}}
    return {
        "scatter": [
            *(_way_styles(colours, ways) if ways > 1 else ()),
            {"marker": {"color": colours["quiet"], "symbol": "circle-open", "size": 8},
             "error_y": _bars(colours["quiet"])},
            front,
            *({"marker": {"color": colours["base"], "symbol": symbol, "size": 9},
               "line": {"color": colours["base"], "width": 1.5, "dash": dash}, "error_y": _bars(colours["base"])}
              for symbol, dash in islice(cycle((("diamond", "dot"), ("square", "dash"))), baselines)),
            {"marker": {"color": colours["signal"], "symbol": "triangle-up", "size": 10},
             "error_y": _bars(colours["signal"])},
            {"marker": {"color": colours["ink"], "symbol": "star", "size": 11}},
            {"marker": ring},
        ],
        "bar": [{"marker": {"color": colours["front"]}, "textposition": "outside", "cliponaxis": False}],
    }  # fmt: skip
