"""The manifest's JSON Schema, made from its record; docs/reference/artifact.schema.json is this very text."""

from typing import Any

from slimbit.artifacts.manifest import Manifest
from slimbit.records.codec import pretty

ADDRESS = "https://json-schema.org/draft/2020-12/schema"


def manifest_schema() -> str:
    """JSON Schema of ``slimbit.json``.

    >>> import json
    >>> json.loads(manifest_schema())["required"]
    ['format', 'schema', 'network', 'plan', 'cost', 'layers', 'files', 'digest']
    """
    schema = _plain(Manifest.model_json_schema(by_alias=True))
    schema["properties"]["digest"] = {
        "description": "SHA-256 of this object without its digest, as JSON with sorted keys and without spaces.",
        "pattern": "^[0-9a-f]{64}$",
        "type": "string",
    }
    schema["required"] = ["format", "schema", *schema["required"], "digest"]
    return pretty({"$schema": ADDRESS, **schema}) + "\n"


def _plain(node: Any) -> Any:
    """Without generated titles, and with the first line of each docstring."""
    if isinstance(node, list):
        return [_plain(part) for part in node]
    if not isinstance(node, dict):
        return node
    kept = {key: value for key, value in node.items() if key != "title" or not isinstance(value, str)}
    if isinstance(kept.get("description"), str):
        kept["description"] = kept["description"].partition("\n")[0]
    return {key: _plain(value) for key, value in kept.items()}
