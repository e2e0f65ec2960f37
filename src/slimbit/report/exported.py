"""What the report shows of exported files: verdict, accuracy, operations, differences, saturation, time."""

from collections.abc import Sequence
from dataclasses import dataclass

from slimbit.records.latency import speed_ratios
from slimbit.records.terminal import MISSING
from slimbit.records.verification import ExportedFile, NodeExecution, Verification
from slimbit.report.frames import ReportData

LARGEST_SUM = 32_767
"""Of 16 bits, in which processors without VNNI add two products."""
WORDS = {"integer": "integers", "float": "floats", "gone": "folded away"}


@dataclass(frozen=True, kw_only=True)
class ExportedFrame:
    """One file as the page shows it; rows are cells of text.

    Attributes:
        point: Number of the point that it was written of.
        title: File and point.
        verdict: One sentence: whether runtime, reference and network agree.
        is_exact: Whether they do.
        facts: Names and values.
        operations: Name in the file, operator, what the runtime executes, in what; floats first.
        operations_text: Their counts.
        differences: Value, and largest difference of its codes between runtime and reference; largest first.
        differences_text: The largest of them.
        saturation: Layer, largest weight, largest sum of two products, whether that fits 16 bits; unsafe ones first.
        saturation_text: What to do about it.
        latencies: File, batch, threads, median, times the float file.
    """

    point: int
    title: str
    verdict: str
    is_exact: bool
    facts: tuple[tuple[str, str], ...]
    operations: tuple[tuple[str, str, str, str], ...]
    operations_text: str
    differences: tuple[tuple[str, str], ...]
    differences_text: str
    saturation: tuple[tuple[str, str, str, str], ...]
    saturation_text: str
    latencies: tuple[tuple[str, ...], ...]


def exported_frames(exported: Sequence[ExportedFile], data: ReportData) -> tuple[ExportedFrame, ...]:
    """What the page shows of files; those of points that the report does not have are left out.

    Args:
        exported: From the run.
        data: The rest of the report.
    """
    known = {point.number: point for point in data.points}
    return tuple(
        _frame(file, f"{file.verification.file}: point {known[file.point].name}", data.about.unit)
        for file in exported
        if file.point in known
    )


def _frame(file: ExportedFile, title: str, unit: str) -> ExportedFrame:
    found = file.verification
    rank = {"float": 0, "integer": 1, "gone": 2}
    nodes = sorted(found.nodes, key=lambda node: rank[node.fusion])
    return ExportedFrame(
        point=file.point,
        title=title,
        verdict=f"{found.verdict[0].upper()}{found.verdict[1:]}.",
        is_exact=found.is_exact,
        facts=_facts(file, unit),
        operations=tuple(
            (node.name.removesuffix("/result"), node.operator, node.executed or MISSING, WORDS[node.fusion])
            for node in nodes
        ),
        operations_text=_counted(found.nodes),
        differences=tuple(
            (name, str(value))
            for name, value in sorted(found.layer_differences.items(), key=lambda pair: (-pair[1], pair[0]))
        ),
        differences_text=_difference(found),
        saturation=tuple(
            (one.layer, str(one.largest_weight), f"{one.largest_pair:,}", "yes" if one.is_safe else "no")
            for one in sorted(found.saturation, key=lambda one: one.is_safe)
        ),
        saturation_text=_saturation(found),
        latencies=_latencies(file),
    )


def _difference(found: Verification) -> str:
    if not found.runtime:
        return "No runtime ran it."
    largest = max(found.layer_differences.values(), default=0)
    return f"Largest difference of a code: {largest}." if largest else "Every code of every value is equal."


def _facts(file: ExportedFile, unit: str) -> tuple[tuple[str, str], ...]:
    found, percent = file.verification, f" {unit}" if unit else ""
    accuracies = {"accuracy in the runtime": found.accuracy, "accuracy in the reference": found.reference_accuracy}
    padded = {
        one.runtime: f"too wide for its integers: {', '.join(one.too_wide[:5])}"
        if one.too_wide
        else f"executes {one.padding:.1f} times the bit-operations of the network"
        for one in file.padded
    }
    return (
        *((name, f"{value:.2f}{percent}") for name, value in accuracies.items() if value is not None),
        ("largest difference of an output", f"{found.largest_output_difference:g}"),
        ("answers that differ", str(found.answers_that_differ)),
        ("results near a rounding tie", str(found.near_ties)),
        ("size", f"{file.bytes:,} bytes"),
        ("processor", found.processor),
        *padded.items(),
        ("SHA-256", found.digest[:16]),
    )


def _counted(nodes: Sequence[NodeExecution]) -> str:
    counts = {kind: sum(node.fusion == kind for node in nodes) for kind in WORDS}
    if not nodes:
        return "No runtime was asked."
    return (
        f"{counts['integer']} operations run in integers, {counts['float']} in floats between integers, "
        f"{counts['gone']} were folded into others."
    )


def _saturation(found: Verification) -> str:
    if not found.needs_precision:
        return "No sum of two products can leave 16 bits: the file gives the same on processors without VNNI."
    emulated = (
        ""
        if found.answers_that_saturate is None
        else f" Emulated, {found.answers_that_saturate} of {found.saturating_images} answers change there."
    )
    return (
        f"On processors without VNNI, sums can saturate in {len(found.needs_precision)} layers: set "
        f"session.x64quantprecision there.{emulated}"
    )


def _latencies(file: ExportedFile) -> tuple[tuple[str, ...], ...]:
    if not file.latencies:
        return ()
    ratios = speed_ratios(file.latencies, file.latencies[-1].file)
    return tuple(
        (one.file, str(one.batch), str(one.threads), f"{1e3 * one.median_seconds:.3g} ms", f"{ratios[one]:.2f}")
        for one in file.latencies
    )
