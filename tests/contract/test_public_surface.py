"""The names that others rely on: complete, documented, typed, and cheap to import."""

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import slimbit

ROOT = Path(__file__).parents[2]
PUBLIC = [
    *("Accuracy", "CompressedModel", "CostReport", "EpochSignal", "Frontier", "FrontierPoint", "HardwareModel"),
    *("InputError", "LearnConfig", "MissingExtraError", "PreparedNetwork", "PruneConfig", "QuantConfig", "RunConfig"),
    *("SignalTracker", "SlimbitError", "StoreError", "TrainConfig", "TrainingRun", "TuneConfig", "Verification"),
    *("cost", "hardware_names", "load", "network", "open_data", "open_run", "predicted_signal_to_noise", "prepare"),
    *("prune", "quantize", "read_training_run", "trace_frontier", "train", "verify"),
]
FUNCTIONS = [name for name in PUBLIC if inspect.isfunction(getattr(slimbit, name))]
ERRORS = [name for name in PUBLIC if name.endswith("Error")]
MOST_PARAMETERS = 10


def test_public_names() -> None:
    assert slimbit.__all__ == [*PUBLIC, "__version__"]
    assert len(PUBLIC) == 35
    assert set(slimbit.__all__) <= set(dir(slimbit))
    for name in slimbit.__all__:
        assert getattr(slimbit, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'mask'"):
        slimbit.mask  # noqa: B018 - gone


def test_what_the_type_checker_sees_is_what_there_is() -> None:
    """The imports under ``TYPE_CHECKING`` and the table of lazy names say the same."""
    imports = [n for n in ast.walk(ast.parse(Path(slimbit.__file__).read_text())) if isinstance(n, ast.ImportFrom)]
    declared = {alias.asname: node.module for node in imports for alias in node.names if alias.asname}
    assert declared == slimbit._HOMES
    assert (Path(slimbit.__file__).parent / "py.typed").exists()


def examples_of(name: str) -> str:
    """Docstring of a function, or of a class and its own methods."""
    found = getattr(slimbit, name)
    members = vars(found).values() if inspect.isclass(found) else ()
    own = [getattr(member, "__func__", getattr(member, "fget", member)) for member in members]
    return "\n".join(filter(None, [found.__doc__, *(one.__doc__ for one in own if inspect.isfunction(one))]))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_is_documented_with_an_example(name: str) -> None:
    assert inspect.getdoc(getattr(slimbit, name))
    assert name in ERRORS or ">>> " in examples_of(name)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_have_few_parameters_with_types_and_words(name: str) -> None:
    function = getattr(slimbit, name)
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
    assert len(parameters) <= MOST_PARAMETERS
    assert all(p.annotation is not p.empty for p in parameters)
    assert inspect.signature(function).return_annotation is not inspect.Signature.empty
    assert sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters) <= 4
    documented = re.findall(r"^ {4,8}(\w+): ", function.__doc__.split("Args:")[-1], flags=re.MULTILINE)
    assert {p.name for p in named} <= set(documented) or not named


def test_errors_have_one_base() -> None:
    for name in ERRORS:
        assert issubclass(getattr(slimbit, name), slimbit.SlimbitError)
    assert issubclass(slimbit.InputError, ValueError)


@pytest.mark.parametrize(
    "before", ["", "import slimbit.zoo", "from slimbit import cost", "import slimbit.cli", "slimbit.network"]
)
def test_the_zoo_works_whatever_was_imported_before(before: str) -> None:
    code = f"import slimbit\n{before}\nassert 'resnet20' in slimbit.zoo.names()"
    subprocess.run([sys.executable, "-c", code], check=True)


def _loads_torch(code: str) -> bool:
    check = f"{code}\nimport sys; sys.exit(3 if 'torch' in sys.modules else 0)"
    return subprocess.run([sys.executable, "-c", check], check=False).returncode == 3


def test_import_and_records_do_not_load_torch() -> None:
    assert not _loads_torch(
        "import slimbit, slimbit.records.cost, slimbit.records.terminal, slimbit.measure.hardware\n"
        "slimbit.QuantConfig(), slimbit.RunConfig(), slimbit.TrainConfig(), slimbit.CostReport, slimbit.zoo.names()"
    )


def test_help_does_not_load_torch() -> None:
    code = (
        "import sys; from slimbit.cli import main; sys.argv = ['slimbit', 'cost', '--help']\n"
        "try: main()\nexcept SystemExit: pass"
    )
    assert not _loads_torch(code)


def test_metrics_are_readable_by_name() -> None:
    import torch

    report = slimbit.cost(torch.nn.Linear(3, 2), torch.zeros(1, 3), bits=2)
    assert report.total["macs"] == report.total.macs == 6
    assert report.versus(report).ratios()["macs"] == 1
    assert report.to_csv().splitlines()[-1].startswith("total,")


# --- experiments, benchmarks and guides ---


def python_of(file: Path) -> Iterator[tuple[str, str]]:
    """Python in a file with its place; of a page every block of Python or of a session."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".py":
        yield str(file.relative_to(ROOT)), text
        return
    for number, (language, block) in enumerate(re.findall(r"```(\w*)\n(.*?)```", text, flags=re.DOTALL)):
        session = [line[4:] for line in block.splitlines() if line.startswith((">>> ", "... "))]
        if session or language in ("python", "py"):
            yield f"{file.relative_to(ROOT)}, block {number}", "\n".join(session) if session else block


def private_uses(code: str) -> list[str]:
    """Imports of what is inside, and attributes of ``slimbit`` that are not public."""
    found, public = [], {*PUBLIC, "__version__", "zoo"}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "slimbit":
            names = [alias.name for alias in node.names]
            private = (node.module or "").split(".")[1:] not in ([], ["zoo"])
            found += [
                f"{node.module}: {name}"
                for name in names
                if private or (node.module == "slimbit" and name not in public)
            ]
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.startswith("slimbit.") and a.name != "slimbit.zoo"]
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "slimbit":
            found += [f"slimbit.{node.attr}"] if node.attr not in public else []
    return found


def pages_and_scripts() -> list[Path]:
    folders = [ROOT / name for name in ("experiments", "benchmarks", "docs")]
    files = [file for folder in folders for kind in ("*.py", "*.md") for file in folder.rglob(kind)]
    return sorted([*files, ROOT / "README.md"])


def test_experiments_benchmarks_and_guides_use_public_names_only() -> None:
    assert len(pages_and_scripts()) > 20
    found = {
        place: uses for file in pages_and_scripts() for place, code in python_of(file) if (uses := private_uses(code))
    }
    assert found == {}


def test_private_uses_are_found() -> None:
    assert private_uses("import slimbit\nslimbit.cost, slimbit.zoo.names()\nfrom slimbit.zoo import names") == []
    assert private_uses("from slimbit.plan.keep import keep_by_norm") == ["slimbit.plan.keep: keep_by_norm"]
    assert private_uses("import slimbit.apply.mask") == ["slimbit.apply.mask"]
    assert private_uses("from slimbit.zoo.timm_models import timm_model") == ["slimbit.zoo.timm_models: timm_model"]
    assert private_uses("import slimbit\nslimbit.mask(1)\nfrom slimbit import find_filter_groups") == [
        "slimbit: find_filter_groups",
        "slimbit.mask",
    ]
