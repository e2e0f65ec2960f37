"""The report as one HTML file that needs no network: data, scripts and styles are all inside."""

import base64
import hashlib
import html
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from slimbit.report.figures import accuracy_figure, histogram_figure, template
from slimbit.report.frames import ReportData

# What could end a <script>, start a comment in it, or be read as an entity; the same text once JSON is parsed.
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def page(data: ReportData) -> str:
    """The HTML text of a report; equal data give equal text.

    Names of networks and layers are the user's and may be hostile. They travel as JSON without ``<``, ``>`` and
    ``&`` and become text nodes; the page's content security policy allows our two scripts by their hashes, no other,
    and no network.
    """
    from plotly.offline import get_plotlyjs

    parts = {"style": _asset("page.css"), "plotly": get_plotlyjs(), "script": _asset("page.js")}
    hashes = " ".join(_source_hash(parts[name]) for name in ("plotly", "script"))
    parts |= {
        "script_hashes": hashes,
        "title": html.escape(f"{data.about.network}: accuracy against cost"),
        "data": embedded(contents(data)),
    }
    # one pass, so that nothing inside a part is taken for a slot
    return re.sub(r"\{\{(\w+)\}\}", lambda slot: parts[slot[1]], _asset("page.html"))


def contents(data: ReportData) -> dict[str, Any]:
    """Everything that the page's script draws."""
    return {
        "report": asdict(data),
        "figures": {metric.name: accuracy_figure(data, metric.name) for metric in data.metrics},
        "histogram": histogram_figure(data),
        "templates": {theme: template(theme) for theme in ("light", "dark")},
        "pick": f"slimbit pick {shlex.quote(data.about.run)}",
    }


def embedded(value: Mapping[str, Any]) -> str:
    r"""JSON that is safe inside a ``<script>`` element.

    >>> embedded({"name": "</script>"})
    '{"name":"\\u003c/script\\u003e"}'
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return re.sub("[<>&\u2028\u2029]", lambda found: _ESCAPES[found[0]], text)


def _asset(name: str) -> str:
    return files("slimbit.report").joinpath("assets", name).read_text(encoding="utf-8")


def _source_hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
