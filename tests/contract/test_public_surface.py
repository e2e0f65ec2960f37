"""The names that others rely on, and what importing them may cost."""

import subprocess
import sys

import slimbit

PUBLIC = [
    *("CompressionPlan", "CostReport", "EpochSignal", "Frontier", "FrontierPoint", "HardwareModel", "InputError"),
    *("KeepPlan", "PruneConfig", "Layout", "Recipe", "SignalTracker", "SlimbitError", "Slimming", "TrainConfig"),
    *(
        "TrainImages",
        "TrainTask",
        "Tuning",
        "best_within_budget",
        "cheapest_at_accuracy",
        "compress",
        "cost",
        "hardware_names",
    ),
    *("keep_by_fisher", "keep_by_norm", "load", "load_hardware", "load_pruned", "load_weights", "mask", "network"),
    *("open_data", "open_run", "pareto_front", "prune", "read_training_run", "survey_network", "tied_filters"),
    *("trace_frontier", "train_network", "write_report", "__version__"),
]


def test_public_names():
    assert slimbit.__all__ == PUBLIC
    for name in slimbit.__all__:
        assert getattr(slimbit, name) is not None
    assert set(slimbit.__all__) <= set(dir(slimbit))


def _loads_torch(code: str) -> bool:
    check = f"{code}\nimport sys; sys.exit(3 if 'torch' in sys.modules else 0)"
    return subprocess.run([sys.executable, "-c", check], check=False).returncode == 3


def test_import_and_records_do_not_load_torch():
    assert not _loads_torch("import slimbit, slimbit.records.cost, slimbit.report.tables, slimbit.measure.hardware")


def test_help_does_not_load_torch():
    code = (
        "import sys; from slimbit.cli import main; sys.argv = ['slimbit', 'cost', '--help']\n"
        "try: main()\nexcept SystemExit: pass"
    )
    assert not _loads_torch(code)


def test_metrics_are_readable_by_name():
    import torch

    report = slimbit.cost(torch.nn.Linear(3, 2), torch.zeros(1, 3), bits=2)
    assert report.total["macs"] == report.total.macs == 6
    assert report.versus(report).ratios()["macs"] == 1
    assert report.to_csv().splitlines()[-1].startswith("total,")
