"""Figures of a training run as Plotly figure data, without colours: those come from a light or a dark template."""

import math
from collections.abc import Sequence
from typing import Any

from slimbit.records.terminal import quantity
from slimbit.report.figures import COLOURS, FigureData, plain, template
from slimbit.report.signal_frames import QUOTED, TrainingData

FIGURES = ("cost", "layers", "dead", "map")
_SHADES = {"light": (0.0, 0.58), "dark": (0.36, 1.0)}
"""Part of the colour scale with a contrast of 3 to 1 or more on the page."""
_NAMED = ("front", "base", "signal", "width1", "width3", "width4", "ink", "quiet")
"""Colours of few lines, which differ more than shades do."""
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "triangle-down")
TICKS = ((1.0,), (1.0, 2.0, 5.0), tuple(n / 2 for n in range(2, 20)), tuple(n / 10 for n in range(10, 100)))
ENOUGH_TICKS = 3
IN_LEGEND = 24
"""Layers up to which each has an entry in the legend; the map names all of them."""
VIRIDIS = ("#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725")
"""Colours at equal distances from 0 to 1 (Smith and van der Walt, matplotlib, CC0)."""


def signal_figures(data: TrainingData) -> dict[str, FigureData]:
    """The four figures by name: cost and accuracy, S/N per layer, dead filters, map of layers and epochs."""
    return {
        "cost": cost_figure(data),
        "layers": layers_figure(data),
        "dead": dead_figure(data),
        "map": map_figure(data),
    }


def cost_figure(data: TrainingData) -> FigureData:
    """What training shows per epoch beside the held-out accuracy (the paper's Figure 2), the closed form over it.

    ESN_a by Eq. (4), or S/N where positions are not known. Traces: measured, closed form, accuracy (mean of three).
    """
    known = any(epoch.esn_analog_estimate is not None for epoch in data.epochs)
    measured = [epoch.esn_analog_estimate if known else epoch.signal_to_noise for epoch in data.epochs]
    wanted = [epoch.predicted_esn_analog if known else epoch.predicted_signal_to_noise for epoch in data.epochs]
    accuracy = [epoch.accuracy_mean for epoch in data.epochs]
    name, title = ("ESN_a, Eq. (4)", "ESN_a (step²)") if known else ("S/N", "S/N (power ratio)")
    return {
        "data": [
            _line(data, name, measured),
            _line(data, "closed form", wanted),
            {**_line(data, "held-out accuracy, mean of 3 epochs", accuracy), "yaxis": "y2"},
        ],
        "layout": {
            "xaxis": _epochs(data),
            "yaxis": {"type": "log", "title": {"text": title}, **log_axis(measured + wanted)},
            "yaxis2": {"title": {"text": "accuracy (%)"}, "overlaying": "y", "side": "right", "tickmode": "auto",
                       "showgrid": False, "visible": any(value is not None for value in accuracy)},
            "hovermode": "x unified",
        },
    }  # fmt: skip


def layers_figure(data: TrainingData) -> FigureData:
    """S/N of every layer by epoch, from the first layer to the last, and the closed form as the last trace.

    Each of few layers is in the legend: a click there hides it, a double click shows it alone.
    """
    listed = {} if len(data.layers) <= IN_LEGEND else {"showlegend": False}
    lines = [{**_line(data, layer.name, layer.signal_to_noise), **listed} for layer in data.layers]
    predicted = [epoch.predicted_signal_to_noise for epoch in data.epochs]
    values = [value for layer in data.layers for value in layer.signal_to_noise] + predicted
    return {
        "data": [*lines, _line(data, "closed form", predicted)],
        "layout": {
            "xaxis": _epochs(data),
            "yaxis": {"type": "log", "title": {"text": "S/N (power ratio)"}, **log_axis(values)},
        },
    }  # fmt: skip


def dead_figure(data: TrainingData) -> FigureData:
    """Number of dead filters by epoch, a line per threshold."""
    lines = [
        _line(data, f"below {threshold:g}", [epoch.dead[place] for epoch in data.epochs])
        for place, threshold in enumerate(data.thresholds)
    ]
    most = max((epoch.dead[0] for epoch in data.epochs), default=0)
    return {
        "data": [{**line, "line": {"shape": "hv"}} for line in lines],
        "layout": {
            "xaxis": _epochs(data),
            "yaxis": {"title": {"text": f"dead filters of {data.epochs[-1].filters}"}, "tickformat": "d",
                      "range": [-0.02 * max(most, 4), 1.08 * max(most, 4)]},
            "hovermode": "x unified",
        },
    }  # fmt: skip


def map_figure(data: TrainingData) -> FigureData:
    """S/N in dB as a map: layers down, epochs across; gaps where there is no record or nothing moved."""
    decibels = [[None if not v else round(10 * math.log10(v), 2) for v in x.signal_to_noise] for x in data.layers]
    return {
        "data": [
            {
                "type": "heatmap",
                "x": [epoch.epoch for epoch in data.epochs],
                "y": [plain(layer.name) for layer in data.layers],
                "z": decibels,
                "colorbar": {"title": {"text": "S/N (dB)", "side": "right"}, "thickness": 12, "outlinewidth": 0},
                "hovertemplate": "%{y}, epoch %{x}: %{z:.1f} dB<extra></extra>",
                "hoverongaps": False,
            }
        ],
        "layout": {
            "xaxis": {**_epochs(data), "showgrid": False},
            "yaxis": {"autorange": "reversed", "type": "category", "showgrid": False, "dtick": 1},
        },
    }


def signal_templates(data: TrainingData, theme: str) -> dict[str, dict[str, Any]]:
    """Plotly templates of a theme, one per figure of `signal_figures`."""
    colours, layout = COLOURS[theme], template(theme)["layout"]
    low, high = _SHADES[theme]

    def lines(count: int) -> list[dict[str, Any]]:
        """Styles of so many lines: few differ by hue and symbol, many by shade."""
        if count <= len(_NAMED):
            return [_style(colours[name], width=1.5, symbol=symbol)
                    for name, symbol in zip(_NAMED[:count], _SYMBOLS, strict=False)]  # fmt: skip
        return [_style(viridis(low + (high - low) * i / (count - 1)), width=1.5) for i in range(count)]

    form = _style(colours["ink"], width=1.5, dash="dash")
    styles = {
        "cost": [_style(colours["front"]), form, _style(colours["base"], dash="dot")],
        "layers": [*lines(len(data.layers)), form],
        "dead": [{**style, "line": {**style["line"], "width": 3 if limit == QUOTED else 1.5}} for style, limit in
                 zip(lines(len(data.thresholds)), data.thresholds, strict=True)],
    }  # fmt: skip
    scale = [[i / (len(VIRIDIS) - 1), colour] for i, colour in enumerate(VIRIDIS)]
    templates = {name: {"data": {"scatter": style}, "layout": {**layout, "yaxis2": layout["yaxis"]}}
                 for name, style in styles.items()}  # fmt: skip
    return {**templates, "map": {"data": {"heatmap": [{"colorscale": scale}]}, "layout": layout}}


def viridis(place: float) -> str:
    """The colour of the scale at a place from 0 to 1, linear in RGB between those of `VIRIDIS`.

    >>> viridis(0.0), viridis(0.25), viridis(1.0)
    ('rgb(68, 1, 84)', 'rgb(59, 81, 138)', 'rgb(253, 231, 37)')
    """
    at = min(max(place, 0.0), 1.0) * (len(VIRIDIS) - 1)
    left = min(int(at), len(VIRIDIS) - 2)
    low, high = (bytes.fromhex(VIRIDIS[i][1:]) for i in (left, left + 1))
    red, green, blue = (round(a + (b - a) * (at - left)) for a, b in zip(low, high, strict=True))
    return f"rgb({red}, {green}, {blue})"


def _line(data: TrainingData, name: str, values: Sequence[float | None]) -> FigureData:
    """A line over the epochs; few epochs get markers, as a line of one point would not be seen."""
    known = any(value is not None for value in values)
    return {
        "type": "scatter",
        "name": plain(name),
        "mode": "lines+markers" if len(data.epochs) <= 40 else "lines",
        "x": [epoch.epoch for epoch in data.epochs],
        "y": list(values),
        "showlegend": known,
        "hovertemplate": f"{plain(name)}: %{{y:.4s}}<extra>epoch %{{x}}</extra>",
    }


def _style(colour: str, *, width: float = 2, dash: str = "solid", symbol: str = "circle") -> dict[str, Any]:
    return {"line": {"color": colour, "width": width, "dash": dash},
            "marker": {"color": colour, "size": 4 if symbol == "circle" else 7, "symbol": symbol}}  # fmt: skip


def _epochs(data: TrainingData) -> dict[str, Any]:
    first, last = data.epochs[0].epoch, data.epochs[-1].epoch
    room = max(0.5, 0.02 * (last - first))
    return {"title": {"text": "epoch"}, "range": [first - room, last + room], "tickformat": "d",
            **({"dtick": 1} if last - first < 12 else {})}  # fmt: skip


def log_axis(values: Sequence[float | None]) -> dict[str, Any]:
    """Range and ticks of a log axis: powers of ten if there are three of them, else 1, 2, 5 times these, or closer.

    Every tick has its whole number; Plotly's own leave out the power of ten ("5" for 5M) where the axis has none.
    """
    known = [value for value in values if value and value > 0] or [1.0]
    low, high = math.log10(min(known)), math.log10(max(known))
    room = max(0.06 * (high - low), 0.04)
    low, high = low - room, high + room
    ticks: list[float] = []
    for steps in TICKS:
        powers = range(math.floor(low), math.ceil(high) + 1)
        ticks = [n * 10.0**power for power in powers for n in steps if low <= math.log10(n * 10.0**power) <= high]
        if len(ticks) >= ENOUGH_TICKS:
            break
    return {"range": [round(low, 4), round(high, 4)], "tickmode": "array", "tickvals": ticks,
            "ticktext": [quantity(tick) for tick in ticks]}  # fmt: skip
