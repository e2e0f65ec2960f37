"""`slimbit demo`: the cost of a ResNet-20 at float, 8, 4, 2 and 1 bits."""

from rich.console import Console


def demo() -> None:
    """Show what a ResNet-20 costs at float, 8, 4, 2 and 1 bits. No data, no download."""
    from slimbit.cli.networks import example_of, model_of
    from slimbit.measure.cost import cost
    from slimbit.report.tables import CostTable, totals_table

    model, shape = model_of("resnet20")
    reports = [cost(model, example_of(shape), bits=bits) for bits in (None, 8, 4, 2, 1)]
    console = Console()
    for report in reports:
        console.print(CostTable(report), "")
    console.print(totals_table(reports))
