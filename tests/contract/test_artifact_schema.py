"""The written format is the one in the code."""

import json
from pathlib import Path

from slimbit.artifacts.manifest import FILES, LayerEntry, Manifest
from slimbit.artifacts.schema import manifest_schema

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def test_the_schema_file_is_up_to_date() -> None:
    assert json.loads((REFERENCE / "artifact.schema.json").read_text()) == json.loads(manifest_schema())


def test_the_page_names_every_key_and_file() -> None:
    page = (REFERENCE / "artifact-format.md").read_text()
    keys = [field.alias or name for name, field in Manifest.model_fields.items()]
    for name in ["slimbit.json", *FILES, *keys, *LayerEntry.model_fields, "digest", "huffman", "fixed"]:
        assert f"`{name}`" in page, name
