"""What is done in one place only, and names in the text that lead somewhere."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src/slimbit"
MODULES = sorted(SOURCE.rglob("*.py"))
READERS = {"json", "tomllib", "hashlib"}
ELSEWHERE = {
    "records/codec.py": "the place",
    "records/files.py": "bytes of a file to plain data, within limits; `codec` makes records of them",
    "report/html.py": "data inside a page, escaped for its script, and the script's hash for the page's own policy",
    "apply/calibration.py": "a seed from a layer's name",
    "exchange/verify.py": "a file's hash",
    "frontier/trials.py": "rows of Optuna's tables, in its own form",
}


def imported(module: ast.Module) -> set[str]:
    """Modules and names that a file imports, wherever."""
    found = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module), *(alias.name for alias in node.names)}
    return found


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_only_the_codec_reads_and_writes_records(file: Path) -> None:
    name = str(file.relative_to(SOURCE))
    found = imported(ast.parse(file.read_text(encoding="utf-8")))
    if name not in ELSEWHERE:
        assert not found & READERS
    if name != "records/codec.py":
        assert "ValidationError" not in found


TEXTS = [*MODULES, *sorted((ROOT / "docs").rglob("*.md")), *ROOT.glob("*.md"), *(ROOT / "experiments").rglob("*.md")]
DOTTED = re.compile(r"`(slimbit(?:\.\w+)+)(?:\([^`]*\))?`")


def leads_somewhere(name: str) -> bool:
    """Whether a dotted name is a module, or something in one; an attribute of a class may be a field without value."""
    parts = name.split(".")
    if parts[1:] == ["json"]:  # the file in an artifact
        return True
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            fields = {**getattr(found, "__annotations__", {}), **getattr(found, "model_fields", {})}
            if not hasattr(found, part):
                return part in fields and part == parts[-1]
            found = getattr(found, part)
        return True
    return False


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_dotted_names_in_docstrings_and_pages_exist(file: Path) -> None:
    wrong = [name for name in DOTTED.findall(file.read_text(encoding="utf-8")) if not leads_somewhere(name)]
    assert not wrong
    assert file.suffix == ".md" or "HkxAS6VFDB" not in file.read_text(encoding="utf-8"), "name the paper by its title"
