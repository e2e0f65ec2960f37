"""`slimbit show`: what a run, a picked or pruned folder, or an exported file is, and what to do with it next."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from slimbit.records.codec import pretty, sha256
from slimbit.records.errors import InputError, MissingExtraError
from slimbit.records.files import check_regular, parse_json
from slimbit.records.keep import PRUNED
from slimbit.records.origin import is_findable, runs_code
from slimbit.records.run import RUN_FILE
from slimbit.records.terminal import quantity, score_text, shown

SCHEMA = 1
COSTS = ("macs", "esn_digital", "esn_analog", "bit_operations", "weight_bytes")
"""Cost metrics that are shown; ``slimbit cost`` has the others."""


@dataclass(frozen=True)
class Description:
    """What something is.

    Attributes:
        kind: "run", "model", "pruned" or "onnx".
        title: In one line.
        facts: Names and values, for people.
        commands: What to do next.
    """

    kind: str
    title: str
    facts: Mapping[str, str]
    commands: tuple[str, ...]


def show(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="A run, a folder of slimbit pick or prune, or an exported file.", show_default=False
        ),
    ],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what PATH is: where it comes from, what it costs, how accurate it is, and the next command."""
    found = described(path)
    if as_json:
        data = {"schema": SCHEMA, "kind": found.kind, "title": found.title, **found.facts, "next": found.commands}
        typer.echo(pretty(data), nl=False)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in found.facts.items():
        table.add_row(name, shown(value))
    console = Console()
    console.print(Text(shown(found.title), style="bold"), table)
    for command in found.commands:
        console.print(Text.assemble("next: ", (shown(command), "bold")), soft_wrap=True)


def described(path: Path) -> Description:
    """What a path is.

    Raises:
        InputError: Nothing that Slimbit writes, or damaged.
    """
    from slimbit.artifacts.manifest import MANIFEST

    if (path / RUN_FILE).is_file():
        return _run(path)
    if (path / MANIFEST).is_file():
        return _model(path)
    if (path / PRUNED).is_file():
        return _pruned(path)
    if path.is_file() and path.suffix.lower() == ".onnx":
        return _onnx(path)
    raise InputError(f"PATH must be a run, a folder of slimbit pick or prune, or an exported .onnx file, got {path}")


def _run(path: Path) -> Description:
    from slimbit.frontier.frontier import open_run

    run = open_run(path)
    info, done = run.info, [point for point in run.points if point.state == "done"]
    interval = "" if info.float_low is None else f" ({info.float_low:.1f}-{info.float_high:.1f})"
    on = "" if info.evaluate_images is None else f" on {info.evaluate_images:,} images"
    bits = info.quant.activation_bits
    named = shlex.quote(str(path))
    facts = {
        "network": info.origin.source or info.network,
        "weights": info.origin.weights,
        "network digest": info.network_digest[:16],
        "data": info.origin.data,
        f"float {info.score_name}": score_text(info.float_accuracy, info.float_accuracy) + interval + on,
        "metric": info.metric,
        "activations": "float" if bits is None else f"{bits} bits, integer arithmetic",
        "keep ratios": ", ".join(f"{ratio:g}" for ratio in info.keep_ratios) if len(info.keep_ratios) > 1 else "",
        "points": f"{len(done)} finished, {len(run.points) - len(done)} failed",
        "Pareto front": f"{len(run.pareto())} points" if done else "",
        "compared with": ", ".join(info.baselines),
        "exported files": ", ".join(f"{one.verification.file} of point {one.point}" for one in run.exported()),
        "made with": _versions(info.versions),
    }
    export = "" if bits is None else " --export small.onnx"
    drop = "0.01" if abs(info.float_accuracy) <= 1 else "1"  # in units of the metric
    source = info.origin.source
    how = _consent(source) if is_findable(source) else " --network MODULE:CALLABLE"
    commands = (f"slimbit report {named}", f"slimbit pick {named} --max-drop {drop} --out small{export}{how}")
    return Description("run", f"{path}: a run of {info.network}", _known(facts), commands)


def _model(path: Path) -> Description:
    from slimbit.artifacts.manifest import read_entry, read_manifest
    from slimbit.records.activations import MOST_BITS
    from slimbit.records.codec import from_json
    from slimbit.records.plan import CompressionPlan

    manifest = read_manifest(path)
    plan = from_json(CompressionPlan, read_entry(path, manifest, "plan.json"), where=str(path / "plan.json"))
    bits, named = plan.config.activation_bits, shlex.quote(str(path))
    size = sum(entry.bytes for entry in manifest.files.values())
    facts = {
        "network": manifest.network.source,
        "float weights": manifest.network.weights_digest[:16],
        "quantized by": ", ".join(filter(None, (manifest.plan.policy, manifest.plan.setting))),
        "activations": "float" if bits is None else f"{bits} bits (inputs {MOST_BITS}), integer arithmetic",
        "pruned": "yes" if "keep.json" in manifest.files else "",
        "accuracy": _accuracy(None if manifest.accuracy is None else manifest.accuracy.model_dump()),
        **_costs(manifest.cost),
        "files": f"{len(manifest.files) + 1}, {size:,} bytes",
        "plan digest": manifest.plan.digest[:16],
        "levels digest": manifest.files["levels.bin"].sha256[:16],
        "made with": _versions(manifest.provenance.get("versions")),
    }
    command = f"slimbit export {named} --out model.onnx" + (" --float" if bits is None else "")
    command += _consent(manifest.network.source)
    return Description("model", f"{path}: a compressed network", _known(facts), (command, f"slimbit cost {named}"))


def _pruned(path: Path) -> Description:
    from slimbit.artifacts.pruned import read_pruned

    found, named = read_pruned(path), shlex.quote(str(path))
    weights = path / "model.safetensors"
    facts = {
        "network": found.network.source,
        "pruned by": ", ".join(filter(None, (found.plan.policy, found.plan.setting))),
        "axes": f"{len(found.plan.axes)} lose filters or inputs",
        "weights": f"{weights.stat().st_size:,} bytes" if weights.is_file() else "",
        "original's weights": found.network.weights_digest[:16],
    }
    consent = _consent(found.network.source)
    commands = (f"slimbit cost {named}{consent}", f"slimbit frontier {named} --data SPEC --out RUN{consent}")
    return Description("pruned", f"{path}: a pruned network", _known(facts), commands)


def _onnx(path: Path) -> Description:
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise MissingExtraError("onnx", "onnx", "reading an ONNX file") from error
    from slimbit.exchange.verify import load_model

    size = check_regular(path, "ONNX file")
    model, named = load_model(path), shlex.quote(str(path))
    stored = {entry.key.removeprefix("slimbit."): entry.value for entry in model.metadata_props}
    kinds = {node.op_type for node in model.graph.node}
    form = "QONNX" if "Quant" in kinds else "integers (QDQ)" if "QuantizeLinear" in kinds else "floats"
    if "network" not in stored:
        raise InputError(f"PATH must be an ONNX file that slimbit export wrote, got {path} without its metadata")
    opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    narrow = any(t.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4) for t in model.graph.initializer)
    facts = {
        "network": stored.get("network", ""),
        "form": form + (", weights of four bits" if narrow else ""),
        "inputs": "; ".join(_input(value) for value in model.graph.input),
        "operators": f"opset {opset}, {len(model.graph.node)} nodes",
        "policy": stored.get("policy", ""),
        "accuracy": _accuracy(_json(stored.get("accuracy"))),
        **_costs(_json(stored.get("cost")) or {}),
        "size": f"{size:,} bytes",
        "plan digest": stored.get("plan", "")[:16],
        "SHA-256": sha256(path.read_bytes())[:16],
        "made with": _versions((_json(stored.get("provenance")) or {}).get("versions")),
    }
    verify = f"slimbit verify {named} DIR{_consent(stored['network'])}"
    command = verify if form.startswith("integers") else f"slimbit cost {named}"
    return Description("onnx", f"{path}: an exported network", _known(facts), (command, f"slimbit latency {named}"))


def _consent(source: str) -> str:
    """The option without which a command does not build a network that runs code."""
    return " --allow-code" if runs_code(source) else ""


def _input(value: Any) -> str:
    batch, *sizes = (dim.dim_value for dim in value.type.tensor_type.shape.dim)
    return f"{value.name} {'x'.join(map(str, sizes))}, batches of {batch or 'any size'}"


def _json(text: str | None) -> dict[str, Any] | None:
    """An entry of a file's metadata; None where there is none or it is damaged."""
    try:
        found = None if text is None else parse_json(text, "metadata of the file")
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _accuracy(entry: Mapping[str, Any] | None) -> str:
    if not entry or entry.get("value") is None:
        return "not measured"
    low, high = entry.get("low"), entry.get("high")
    interval = "" if low is None or high is None else f" ({low:.1f}-{high:.1f})"
    where = entry.get("measured_on")
    return f"{entry['value']:.2f}{interval}" + (f", {where}" if where else "")


def _costs(costs: Mapping[str, Any]) -> dict[str, str]:
    return {name: quantity(costs[name]) for name in COSTS if costs.get(name) is not None}


def _versions(versions: Any) -> str:
    return ", ".join(f"{name} {value}" for name, value in versions.items()) if isinstance(versions, Mapping) else ""


def _known(facts: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in facts.items() if value}
