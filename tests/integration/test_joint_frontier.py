"""Several keep ratios in one run: every network is made once, swept, and can be taken from the run."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1]))

import frontier_case as case
import slimbit
from slimbit.cli import app
from slimbit.compress.prepared import digest_of
from slimbit.frontier.frontier import Frontier, open_run
from slimbit.frontier.progress import Progress
from slimbit.records.codec import from_json
from slimbit.records.config import PAPER, PruneConfig, TuneConfig
from slimbit.records.errors import InputError
from slimbit.records.plan import CompressionPlan
from slimbit.records.setting import Bits
from slimbit.survey.module import survey_network

KEEP_RATIOS = (1.0, 0.75, 0.5)
EACH = case.POINTS + case.BASELINES + 1
runner = CliRunner()


class Counting:
    """A tuning that changes a bias a little, and says how often it was called."""

    name = "counting"

    def __init__(self) -> None:
        self.calls: list[str] = []

    def tune_network(
        self, network: nn.Module, *, original: nn.Module, content: str, folder: Path, progress: Any
    ) -> None:
        self.calls.append(content)
        assert sum(p.numel() for p in network.parameters()) < sum(p.numel() for p in original.parameters())
        with torch.no_grad():
            network[7].bias.add_(0.01)
        progress("tuned")

    def train_admm(self, *_: Any, **__: Any) -> tuple[float, ...]:
        raise AssertionError("only ADMM trains before the cut")


def trace(out: Path, tuning: Counting | None = None, **changed: Any) -> Frontier:
    """A run whose pruned networks are tuned by a stand-in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slimbit.frontier.trace.tuning_for", lambda *_: tuning or Counting())
        return case.trace(out, **({"keep_ratios": KEEP_RATIOS, "prune": PruneConfig(tune=TuneConfig())} | changed))


@pytest.fixture(scope="module")
def tuner() -> Counting:
    return Counting()


@pytest.fixture(scope="module")
def told() -> list[Progress]:
    return []


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tuner: Counting, told: list[Progress]) -> tuple[Path, Frontier]:
    out = tmp_path_factory.mktemp("joint") / "run"
    return out, trace(out, tuner, progress=told.append)


def test_every_keep_ratio_is_swept_once(run: tuple[Path, Frontier], tuner: Counting, told: list[Progress]) -> None:
    points = run[1].points
    assert len(points) == len({p.key for p in points}) == len(KEEP_RATIOS) * EACH
    for ratio in KEEP_RATIOS:
        of_ratio = [p for p in points if p.keep_ratio == ratio]
        assert len(of_ratio) == EACH
        prefix = "" if ratio == 1 else f"width-{ratio:g}-"
        assert {p.key for p in of_ratio} >= {f"{prefix}sweep-00", f"{prefix}refine-00", f"{prefix}prune_only"}
        assert all(p.label.startswith("keep") == (ratio != 1) for p in of_ratio)
    assert len(tuner.calls) == 2
    assert next(m.message for m in told if m.stage == "prune") == "keep 0.75: tuned"
    assert next(m.trainings_left for m in told if m.stage == "start") == 2
    assert told[-1].trainings_left == 0
    assert (told[-1].stage, told[-1].done, told[-1].total) == ("done", len(points), len(points))


def test_the_given_network_has_the_points_of_a_run_of_its_own(run: tuple[Path, Frontier], tmp_path: Path) -> None:
    alone = case.outcome(case.trace(tmp_path / "alone"))
    joint = case.outcome(run[1])
    assert {key: joint[key] for key in alone} == alone


def test_pruned_only_is_the_network_at_eight_bits_as_it_is(run: tuple[Path, Frontier]) -> None:
    opened = open_run(run[0])
    for point in (p for p in run[1].points if p.policy == "prune_only"):
        plan = from_json(CompressionPlan, opened.read_object(point.plan, "json"), where="plan")
        assert (plan.config, point.setting) == (PAPER.model_copy(update={"statistics": "stored"}), Bits(8.0))
        if point.keep_ratio != 1:
            network = opened.pruned(point.keep_ratio, model=case.network()).model
            assert case.Agreement()(network) == pytest.approx(point.accuracy, abs=2)


def test_objects_give_network_accuracy_and_cost_back(run: tuple[Path, Frontier]) -> None:
    opened, evaluate = open_run(run[0]), case.Agreement()
    for point in (p for p in run[1].points if p.key.endswith("sweep-02")):
        found = opened.load(point, model=case.network())
        network = found.model
        filters = int(point.keep_ratio * 6 + 0.5), int(point.keep_ratio * 8 + 0.5)
        assert (found.keep is None) == (point.keep_ratio == 1)
        assert (network[0].out_channels, network[3].out_channels) == filters
        for name, layer in found.layers.items():
            assert torch.equal(network.get_submodule(name).weight, layer.levels * layer.steps)
        assert evaluate(network) == point.accuracy
        macs = slimbit.cost(network, torch.zeros(1, 1, 6, 6)).total.macs
        assert point.costs["macs"] <= macs  # filters at zero bits are gone as well
        report = json.loads(opened.read_object(point.objects["cost"], "json"))
        assert sum(len(layer["filter_bits"]) for layer in report["layers"]) == sum(filters) + case.CLASSES


def test_the_same_call_does_nothing_twice(run: tuple[Path, Frontier], tuner: Counting) -> None:
    evaluate, calls = case.Agreement(), len(tuner.calls)
    again = trace(run[0], tuner, evaluate=evaluate)
    assert (evaluate.calls, len(tuner.calls)) == (1, calls)  # of the float network
    assert case.outcome(again) == case.outcome(run[1])


@pytest.mark.parametrize("stage", ["prune", "range", "point", "refine"])
def test_a_run_stopped_anywhere_ends_the_same(run: tuple[Path, Frontier], tmp_path: Path, stage: str) -> None:
    seen = []

    def stop(progress: Progress) -> None:
        seen.append(progress.stage)
        late = progress.done > EACH or stage == "prune"
        if progress.stage == stage and late and seen.count(stage) > 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trace(tmp_path, progress=stop)
    assert case.outcome(trace(tmp_path)) == case.outcome(run[1])


def test_stages_serve_other_runs(tmp_path: Path) -> None:
    first, second, third = Counting(), Counting(), Counting()
    settings = {"keep_ratios": (0.5,), "baselines": False, "points": 1, "stages": str(tmp_path / "stages")}
    a = trace(tmp_path / "a", first, **settings)
    b = trace(tmp_path / "b", second, **{**settings, "metric": "esn_analog"})
    assert (len(first.calls), len(second.calls)) == (1, 0)
    assert digest_of(a.pruned(0.5).model.state_dict()) == digest_of(b.pruned(0.5).model.state_dict())
    trace(tmp_path / "c", third, **settings, prune=PruneConfig(tune=TuneConfig(), statistics="stored"))
    assert len(third.calls) == 1


def test_damaged_stages_are_named(tmp_path: Path) -> None:
    settings = {"keep_ratios": (0.5,), "baselines": False, "points": 1, "stages": str(tmp_path / "stages")}
    trace(tmp_path / "a", **settings)
    (file,) = (tmp_path / "stages").glob("*/network.safetensors")
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"pruned\.json must name the network beside it, got another or none: delete"):
        trace(tmp_path / "b", **settings)
    content = bytearray(file.read_bytes() + bytes(8))
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"pruned\.json must name the network beside it, got another or none: delete"):
        trace(tmp_path / "c", **settings)
    record = file.with_name("pruned.json")
    record.write_text(record.read_text()[:-9])
    with pytest.raises(InputError, match=r"pruned\.json must be complete JSON"):
        trace(tmp_path / "d", **settings)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"keep_ratios": (1.0, 0.5)}, "keep ratios of run .* must be 1.0, 0.75, 0.5 as when it began, got 1.0, 0.5"),
        (
            {"prune": PruneConfig(by="fisher", tune=TuneConfig())},
            r"by \(settings of pruning\) of run .* must be norm .* got fisher",
        ),
    ],
)
def test_other_settings_are_refused(run: tuple[Path, Frontier], changed: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        trace(run[0], **changed)


@pytest.mark.parametrize(
    ("ratios", "said"),
    [
        ((), "keep_ratios must be a list of at least 1"),
        ((0,), r"keep_ratios\.0 must be greater than 0, got 0"),
        ((1.5,), r"keep_ratios\.0 must be less than or equal to 1, got 1.5"),
        ((1, 1), "keep_ratios must differ in six digits"),
        ((0.5, 0.5000001), "keep_ratios must differ in six digits"),
        (("1",), r"keep_ratios\.0 must be a valid number, got '1'"),
        ((True,), r"keep_ratios\.0 must be a valid number, got True"),
    ],
)
def test_keep_ratios_that_are_none(tmp_path: Path, ratios: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        case.trace(tmp_path / "run", keep_ratios=ratios)
    assert not (tmp_path / "run").exists()


def test_tuning_without_data_is_refused_before_anything_is_scored(tmp_path: Path) -> None:
    evaluate = case.Agreement()
    with pytest.raises(InputError, match="data must be given to tune the pruned network"):
        case.trace(tmp_path / "run", evaluate=evaluate, keep_ratios=(0.5,), prune=PruneConfig(tune=TuneConfig()))
    assert evaluate.calls == 0
    assert not (tmp_path / "run").exists()


def test_the_callers_network_is_untouched(tmp_path: Path) -> None:
    model = case.network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = {"keep_ratios": (0.5,), "baselines": False, "points": 1}
    case.trace(tmp_path, model=model, prune=PruneConfig(constants="zero"), **settings)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model[0].out_channels == 6


# --- the command ---


DIGITS = (
    "digits_resnet",
    "--data",
    "digits",
    "--calibration-images",
    "64",
    "--evaluate-images",
    "200",
    "--points",
    "2",
)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sklearn")
    place = tmp_path_factory.mktemp("digits")
    (place / "tune.toml").write_text("[augment]\nflip = false\n")
    call = ["frontier", *DIGITS, "--widths", "1,0.5", "--tune-epochs", "2", "--tune-lr", "0.05", "--no-baselines",
            "--tune-config", str(place / "tune.toml"), "--out", str(place / "run")]  # fmt: skip
    result = runner.invoke(app, call, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "keep 0.5: tuning: epoch 2/2, loss" in result.output
    (said,) = (line for line in result.output.splitlines() if line.startswith("Prune or quantize? "))
    shown = (slimbit.open_run(place / "run").report().read_text()).split('"answers":[{"metric":"esn_digital","text":"')[
        1
    ]
    assert shown.startswith(said.removeprefix("Prune or quantize? "))  # the report says the same
    return place


def test_a_pruned_point_is_picked_packed_and_loaded(digits: Path) -> None:
    listed = runner.invoke(app, ["points", str(digits / "run"), "--json"]).stdout
    point = min((p for p in json.loads(listed)["points"] if p["width"] == 0.5), key=lambda p: p["esn_digital"])
    budget = f"esn_digital={point['esn_digital']}"
    result = runner.invoke(app, ["pick", str(digits / "run"), "--budget", budget, "--out", str(digits / "slim")])
    assert result.exit_code == 0, result.output
    assert "keep 0.5" in result.output
    model = slimbit.load(digits / "slim").model
    assert model.layer3[0].conv2.out_channels == 16
    assert slimbit.open_data("digits").evaluator(200)(model) == point["accuracy"]
    other = slimbit.load(digits / "slim", model=slimbit.network("digits_resnet")).model
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(model(x), other(x))
    keep = json.loads((digits / "slim" / "keep.json").read_text())
    (digits / "slim" / "keep.json").write_text(json.dumps({**keep, "policy": "mine"}))
    with pytest.raises(InputError, match=r"artifact file must have at most .* bytes, got .*keep\.json"):
        slimbit.load(digits / "slim")


def test_the_report_answers_the_question(digits: Path) -> None:
    result = runner.invoke(app, ["report", str(digits / "run")])
    assert result.exit_code == 0, result.output
    text = (digits / "run" / "report.html").read_text()
    assert "quantize only" in text
    assert "prune to 0.5" in text


def test_the_signal_of_training_ranks_and_adds_points(digits: Path) -> None:
    whole = ["prune", *DIGITS[:-2], "--keep", "1", "--tune-epochs", "1", "--tune-lr", "0.01"]
    assert runner.invoke(app, [*whole, "--out", str(digits / "whole")]).exit_code == 0
    out, training = str(digits / "signal"), str(digits / "whole" / "tune")
    call = ["frontier", *DIGITS[:-1], "1", "--widths", "1,0.5", "--no-baselines", "--by", "signal",
            "--signal", training, "--out", out]  # fmt: skip
    result = runner.invoke(app, call, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    points = json.loads(runner.invoke(app, ["points", out, "--json"]).stdout)["points"]
    assert {(p["width"], p["policy"]) for p in points} >= {(1.0, "signal"), (0.5, "optimal"), (0.5, "prune_only")}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--widths", "1,half"], "--widths must be numbers with commas between them, got '1,half'"),
        (["--widths", "1,2"], "--widths must be shares of the filters, above 0 and up to 1, got '1,2'"),
        (["--by", "fisher"], "keep_ratios (--widths) must be given with settings of pruning"),
        (["--widths", "1,0.5", "--by", "dead"], "by must be one that reaches a ratio, got dead"),
        (["--widths", "1,0.5", "--by", "admm"], "tune (--tune-epochs) must be given for pruning by admm"),
        (["--widths", "1,0.5", "--by", "magic"], "by must be"),
        (["--widths", "1,0.5", "--by", "signal"], "signal (--signal RUN) must be given for pruning by signal"),
        (["--widths", "1,0.5", "--distill"], "--tune-epochs must be given with --distill"),
        (["--widths", "1,0.5", "--tune-lr", "0.2"], "--tune-epochs must be given with --tune-lr"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, options: list[str], words: str) -> None:
    pytest.importorskip("sklearn")
    result = runner.invoke(app, ["frontier", *DIGITS, *options, "--out", str(tmp_path / "run")])
    assert isinstance(result.exception, InputError), result.output
    assert words in str(result.exception)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("ratios", "prune", "words"),
    [
        # by="dead" keeps what is alive, whatever the ratio says: a network of 100 % of the filters is not "keep 0.5"
        ((1.0, 0.5), {"by": "dead"}, "by must be one that reaches a ratio, got dead, which decides by itself"),
        ((0.5,), {"by": "dead"}, "by must be one that reaches a ratio, got dead"),
        # 0.95 of 6 filters and of 8 filters are 6 and 8
        ((1.0, 0.95), {}, "keep ratio 0.95 must remove filters of case, got one that keeps all of them"),
        ((0.95,), {"by": "fisher"}, "keep ratio 0.95 must remove filters"),
        ((1.0, 0.5), {"protect": ("*",)}, "keep ratio 0.5 must remove filters"),
        ((0.99,), {"scope": "global"}, "keep ratio 0.99 must remove filters"),  # of 14 filters
    ],
)
def test_no_point_is_named_after_a_keep_ratio_that_its_network_has_not(
    tmp_path: Path, ratios: tuple[float, ...], prune: dict[str, Any], words: str
) -> None:
    evaluate = case.Agreement()
    with pytest.raises(InputError, match=words):
        case.trace(tmp_path / "run", keep_ratios=ratios, prune=prune, evaluate=evaluate)
    assert (evaluate.calls, (tmp_path / "run" / "run.json").exists()) == (0, False)


def test_admm_trains_before_it_cuts(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    (tmp_path / "tune.toml").write_text("batch_size = 32\n[augment]\nflip = false\n")
    call = ["prune", *DIGITS[:-2], "--by", "admm", "--admm-epochs", "2", "--admm-lr", "0.1", "--tune-epochs", "1",
            "--tune-config", str(tmp_path / "tune.toml"), "--keep", "0.75", "--json", "--out"]  # fmt: skip
    result = runner.invoke(app, [*call, str(tmp_path / "a")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    residuals = told["admm_residuals"]
    assert len(residuals) == 8
    assert residuals[-1] < 0.5 * residuals[0]
    assert json.loads((tmp_path / "a" / "prune.json").read_text())["plan"]["policy"] == "admm"
    again = runner.invoke(app, [*call, str(tmp_path / "b")], catch_exceptions=False)
    assert json.loads(again.stdout) == {**told, "out": str(tmp_path / "b")}
    assert told["after"]["filters"] == sum(three_quarters())
    whole = runner.invoke(app, [*call[:-3], "1", "--json", "--out", str(tmp_path / "whole")], catch_exceptions=False)
    assert "admm_residuals" not in json.loads(whole.stdout)  # there is nothing to train towards


def three_quarters() -> list[int]:
    """Three quarters of the filters of every layer of the digits network, and its ten classes."""
    spec = survey_network(slimbit.network("digits_resnet"), torch.zeros(1, 1, 8, 8)).spec
    return [layer.filters if layer.name == "linear" else round(0.75 * layer.filters) for layer in spec.layers]
