"""A run for a machine of one's own, and runs that are costed on a machine that was described later."""

import json
import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1]))

import frontier_case as case
import slimbit
from slimbit.cli import app
from slimbit.frontier.frontier import Frontier, open_run
from slimbit.frontier.store import open_store
from slimbit.frontier.sweep_plan import near_stage
from slimbit.records.cost import LayerCost
from slimbit.records.errors import InputError

MODES = """
name = "edge"
source = "data sheet, table 3"
[[mode]]
weight_bits = 8
activation_bits = 8
cost_per_mac = 0.5
[[mode]]
weight_bits = 4
activation_bits = 8
cost_per_mac = 0.25
"""
LATER = """
[[mode]]
weight_bits = 6
activation_bits = 8
cost_per_mac = 1
"""
runner = CliRunner()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("machines")
    (made / "edge.toml").write_text(MODES)
    (made / "later.toml").write_text(LATER)
    return made


@pytest.fixture(scope="module")
def run(folder: Path) -> Frontier:
    return case.trace(folder / "run", metric=str(folder / "edge.toml"), points=5)


def shown(*arguments: object) -> str:
    result = runner.invoke(app, [str(x) for x in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_points_are_for_the_machine_and_cost_what_it_pays(run: Frontier) -> None:
    assert run.metric == "hardware:edge"
    assert json.loads(run.info.machine)["name"] == "edge"
    ours = [point for point in run.points if not point.baseline]
    assert len(ours) > 1
    for point in run.points:
        small = run.load(point)
        paid = sum(x.macs * (0.25 if x.weight_bits <= 4 else 0.5) for x in small.cost.layers)
        assert point.costs["hardware:edge"] == pytest.approx(paid)
        assert {x.weight_bits for x in small.cost.layers} <= {0, 4, 8} or point.baseline
    costs = [point.costs["hardware:edge"] for point in sorted(ours, key=lambda p: p.price or 0.0)]
    assert costs == sorted(costs, reverse=True)  # type: ignore[type-var]


def test_the_same_call_continues_and_another_machine_of_that_name_does_not(run: Frontier, folder: Path) -> None:
    again = case.trace(folder / "run", metric=str(folder / "edge.toml"), points=5)
    assert [p.key for p in again.points] == [p.key for p in run.points]
    (folder / "other").mkdir()
    other = folder / "other" / "edge.toml"
    other.write_text(MODES.replace("0.25", "0.3"))
    with pytest.raises(InputError, match=r"machine of run .* must be .*0\.25.* as when it began, got .*0\.3"):
        case.trace(folder / "run", metric=str(other), points=5)


def test_points_near_a_cost_of_the_machine_are_added_once(folder: Path, run: Frontier) -> None:
    """So small a network has few plans, and may have none left between two points."""
    metric, before = str(folder / "edge.toml"), len(run.points)
    costs = [p.costs["hardware:edge"] or 0 for p in run.points if not p.baseline]
    near = {metric: (min(costs) + max(costs)) / 2}
    more = case.trace(folder / "run", metric=metric, points=5, near=near)
    stage = near_stage("hardware:edge", near[metric])
    assert open_store(folder / "run").noted("added", tuple[str, ...]) == (stage,)
    assert all(point.key.startswith(stage) for point in more.points[before:])
    assert case.trace(folder / "run", metric=metric, points=5, near=near).points == more.points


def test_a_run_is_costed_on_a_machine_that_was_described_later(run: Frontier, folder: Path) -> None:
    later = folder / "later.toml"
    frontier = open_run(run.path).with_hardware(later)
    for point in frontier.points:
        layers = run.load(point).cost.layers
        fits = all(x.weight_bits <= 6 for x in layers)
        assert point.costs["hardware:later"] == (sum(x.macs for x in layers) if fits else None)
    assert any(p.costs["hardware:later"] is None for p in frontier.points)  # 8 and 7 bits
    budget = max(p.costs["hardware:later"] or 0 for p in frontier.points) * 0.99
    best = frontier.best(within={"hardware:later": budget})
    assert best == frontier.best(within={later: budget})
    assert best.number == open_run(run.path).best(within={str(later): budget}).number
    assert [p.number for p in frontier.pareto(later)] == [p.number for p in frontier.pareto("hardware:later")]
    assert open_run(run.path).cheapest(50, "hardware:loom").costs["hardware:loom"] is not None
    with pytest.raises(InputError, match=r"got 'hardware:later'.* Known: edge, scalar_cpu"):
        run.best(within={"hardware:later": budget})
    assert frontier.with_hardware(later, folder / "edge.toml").points == frontier.points  # the run's own and it again


def test_a_machine_that_was_changed_needs_another_name(run: Frontier, folder: Path, tmp_path: Path) -> None:
    for name in ("edge", "later"):
        text = (folder / f"{name}.toml").read_text()
        (tmp_path / f"{name}.toml").write_text(text.replace("cost_per_mac = ", "cost_per_mac = 1"))
    with pytest.raises(InputError, match=r"machine 'edge' of \S+ must be the one that run \S+ was swept for"):
        open_run(run.path).with_hardware(tmp_path / "edge.toml")
    with pytest.raises(InputError, match=r"machine 'edge'.* give the changed machine another name"):
        run.best(within={str(tmp_path / "edge.toml"): 1e9})
    with pytest.raises(InputError, match=r"names of different machines must differ, got 'later' of .* beside another"):
        run.with_hardware(folder / "later.toml", tmp_path / "later.toml")


def test_a_picked_folder_is_costed_on_the_machine_of_its_run(run: Frontier, folder: Path, tmp_path: Path) -> None:
    small = run.load(run.points[0])
    small.save(tmp_path / "small")
    machine, paid = folder / "edge.toml", run.points[0].costs["hardware:edge"]
    report = json.loads(shown("cost", tmp_path / "small", "--hardware", machine, "--json"))
    assert report["hardware"]["edge"]["total"] == paid
    assert slimbit.cost(small, hardware=machine).hardware["edge"].total == paid


@pytest.mark.parametrize(
    "arguments", [("--budget", "hardware:later=25k"), ("--max-drop", 50, "--metric", "hardware:later")]
)
def test_a_machine_that_the_run_does_not_know_is_given_with_its_file(
    run: Frontier, tmp_path: Path, arguments: tuple[object, ...]
) -> None:
    result = runner.invoke(app, ["pick", str(run.path), *map(str, arguments), "--out", str(tmp_path / "small")])
    assert isinstance(result.exception, InputError)
    assert "or that --hardware describes, got 'hardware:later': add --hardware later.toml" in str(result.exception)
    assert "Known: edge, scalar_cpu" in str(result.exception)


def test_points_pick_and_report_show_the_machine(run: Frontier, folder: Path, tmp_path: Path) -> None:
    later = folder / "later.toml"
    rows = json.loads(shown("points", run.path, "--json", "--hardware", later, "--metric", "hardware:later"))
    assert rows["metric"] == "hardware:later"
    assert all({"hardware:edge", "hardware:later"} <= {*row} for row in rows["points"])
    assert "hardware:edge,hardware:later" in shown("points", run.path, "--csv", "--hardware", later).splitlines()[0]
    assert "hardware:later" in shown("points", run.path, "--hardware", later)
    budget = max(row["hardware:later"] or 0 for row in rows["points"])
    named = ("--network", "frontier_case:network", "--no-score")
    arguments = ("--budget", f"{later}={budget}", "--budget", "hardware:edge=1M", *named)
    assert "hardware:later" in shown("pick", run.path, *arguments, "--out", tmp_path / "a")
    assert slimbit.load(tmp_path / "a", model=case.network()).cost.total.macs <= budget
    least = shown("pick", run.path, "--min-accuracy", 50, "--metric", "hardware:edge", *named, "--out", tmp_path / "b")
    assert "hardware:edge" in least
    shown("report", run.path, "--hardware", later, "--out", tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "hardware:later" in text
    path, machine = re.escape(str(run.path)), re.escape(str(later))
    assert re.search(rf"slimbit pick {path} (--network \S+ )?--hardware {machine}", text)
    assert "machine, data sheet, table 3" in text


def test_a_machine_in_python(tmp_path: Path) -> None:
    def waits(layer: LayerCost) -> float:
        return max(layer.macs / 64, layer.weight_bytes)

    machine = slimbit.HardwareModel("roofline", "cycles", waits)
    frontier = slimbit.trace_frontier(
        case.prepared(), evaluate=case.Agreement(), out=tmp_path / "run", metric=machine, points=2
    )
    assert frontier.metric == "hardware:roofline"
    assert open_run(tmp_path / "run").best(within={"hardware:roofline": 1e9}) in frontier.points


def test_opening_a_run_runs_no_code_that_it_names(run: Frontier, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    copy.mkdir()
    for path in run.path.rglob("*"):
        if path.is_file() and path.suffix != ".lock":
            (copy / path.relative_to(run.path)).parent.mkdir(parents=True, exist_ok=True)
            (copy / path.relative_to(run.path)).write_bytes(path.read_bytes())
    info = json.loads((copy / "run.json").read_text()) | {"metric": "antigravity:fly_me"}
    (copy / "run.json").write_text(json.dumps(info))
    frontier = open_run(copy)
    assert frontier.pareto() == ()
    assert "antigravity" not in sys.modules


def test_a_file_that_names_code_as_the_cost_needs_consent(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('metric = "antigravity:fly_me"\nnetwork = "digits_resnet"\ndata = "digits"\n')
    result = runner.invoke(app, ["frontier", "--config", str(tmp_path / "run.toml"), "--out", str(tmp_path / "run")])
    assert isinstance(result.exception, InputError)
    assert "names a cost that is computed by running code, antigravity:fly_me" in str(result.exception)
    assert "--allow-code" in str(result.exception)
