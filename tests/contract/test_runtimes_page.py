"""docs/reference/runtimes.md shows what records/runtimes.toml holds."""

from pathlib import Path

from slimbit.records.runtimes import RuntimeSupport, runtime_table

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "runtimes.md"


def widths(bits: tuple[int, ...]) -> str:
    whole = len(bits) > 2 and list(bits) == list(range(bits[0], bits[-1] + 1))
    return f"{bits[0]} to {bits[-1]}" if whole else ", ".join(map(str, bits))


def row(runtime: RuntimeSupport) -> str:
    codes = (
        f"{'unsigned or signed' if runtime.unsigned else 'signed'}, zero point {'any' if runtime.zero_points else '0'}"
    )
    speed = "-" if runtime.speed_int8 is None else f"{runtime.speed_int8[0]:g} to {runtime.speed_int8[1]:g} times float"
    safe = "-" if runtime.largest_safe_weight is None else str(runtime.largest_safe_weight)
    cells = (
        f"[{runtime.title}]({runtime.source})", f"`{runtime.name}`", runtime.format, widths(runtime.weight_bits),
        widths(runtime.stored_weight_bits), widths(runtime.activation_bits), codes, str(runtime.channels), safe, speed,
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def test_the_page_has_every_row_and_every_note() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("| [")] == [row(runtime) for runtime in runtime_table()]
    notes = [line for line in lines if line.startswith("* ")]
    expected = [f"* {runtime.title}: {note}" for runtime in runtime_table() for note in runtime.notes]
    measured = [f"* {runtime.title}: {runtime.measured}." for runtime in runtime_table() if runtime.measured]
    slow = [
        f"* {runtime.title}: {runtime.speed_weight_only:g} times the speed of float."
        for runtime in runtime_table() if runtime.speed_weight_only
    ]  # fmt: skip
    assert notes == expected + measured + slow
