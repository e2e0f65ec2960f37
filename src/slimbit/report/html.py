"""Pages as one HTML file that needs no network: data, scripts and styles are all inside."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

# What could end a <script>, start a comment in it, or be read as an entity; the same text once JSON is parsed.
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def composed(name: str, *, title: str, data: Mapping[str, Any], still: str = "", connects: bool = False) -> str:
    """The HTML text of a page; equal data give equal text.

    Names of networks and layers are the user's and may be hostile. They travel as JSON without ``<``, ``>`` and
    ``&`` and become text nodes; the page's content security policy allows our two scripts by their hashes, no other,
    and no network but, for a page that is served, the server it came from.

    Args:
        name: Of the page's ``.html`` among the assets, and of its ``.js`` where it has a script.
        title: Of the window.
        data: What the script draws.
        still: HTML that is shown where scripts do not run; its texts are escaped.
        connects: Whether the page may ask its own server for fresh data.
    """
    text = _asset(f"{name}.html").replace("{{head}}", _asset("head.html"))  # has slots of its own
    parts = {"style": _asset("page.css")}
    if "{{script}}" in text:
        scripts = {"plotly": _asset("plotly.min.js"), "script": _asset("common.js") + _asset(f"{name}.js")}
        parts |= {**scripts, "script_hashes": " ".join(map(_source_hash, scripts.values()))}
    parts |= {
        "title": html.escape(title),
        "data": embedded(data),
        "still": still,
        "connect": "connect-src 'self'; " if connects else "",
    }
    # one pass, so that nothing inside a part is taken for a slot
    return re.sub(r"\{\{(\w+)\}\}", lambda slot: parts[slot[1]], text)


def embedded(value: Mapping[str, Any]) -> str:
    r"""JSON that is safe inside a ``<script>`` element.

    >>> embedded({"name": "</script>"})
    '{"name":"\\u003c/script\\u003e"}'
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return re.sub("[<>&\u2028\u2029]", lambda found: _ESCAPES[found[0]], text)


def entity_tag(text: str) -> str:
    """The HTTP entity tag of a text."""
    return f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'


def _asset(name: str) -> str:
    return files("slimbit.report").joinpath("assets", name).read_text(encoding="utf-8")


def _source_hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
