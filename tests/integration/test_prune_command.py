"""`slimbit prune`: a folder with a smaller network that anybody can load."""

import json
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file
from typer.testing import CliRunner

import slimbit
from slimbit.cli import app as slimbit_app
from slimbit.cli.prune import prune
from slimbit.compress.prepared import PreparedNetwork, prepare
from slimbit.compress.prune import Pruner
from slimbit.records.codec import from_plain
from slimbit.records.config import PruneConfig
from slimbit.records.errors import InputError
from slimbit.records.keep import KeepPlan
from slimbit.sources.networks import survey_of
from slimbit.zoo import load_weights, shipped_weights
from slimbit.zoo.cards import read_card

pytest.importorskip("sklearn")  # brings the digits
QUICK = ("--calibration-images", 64, "--evaluate-images", 100)


def load_pruned(folder: Path, **how: object) -> torch.nn.Module:
    return slimbit.load(folder, **how).model


def run(out: Path, *arguments: object) -> dict:
    app = typer.Typer()
    app.command()(prune)
    call = ["digits_resnet", "--data", "digits", "--out", str(out), *map(str, (*QUICK, *arguments)), "--json"]
    result = CliRunner().invoke(app, call)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_what_is_written_is_what_was_measured(tmp_path: Path) -> None:
    told = run(tmp_path, "--keep", 0.75)
    small = load_pruned(tmp_path)
    data = slimbit.open_data("digits")
    assert told["after"]["accuracy"] == data.evaluator(100)(small) > 60
    assert slimbit.cost(small, torch.zeros(1, 1, 8, 8)).total.macs == told["after"]["macs"] < told["before"]["macs"]
    assert told["after"]["parameters"] == sum(p.numel() for p in small.parameters())
    written = json.loads((tmp_path / "prune.json").read_text())
    assert from_plain(KeepPlan, written["plan"], where="plan", schema=1).policy == "norm"
    assert read_card(tmp_path / "model.safetensors")["network"] == "digits_resnet"
    assert run(tmp_path / "again", "--keep", 0.75)["after"] == told["after"]
    assert all(map(torch.equal, load_pruned(tmp_path / "again").parameters(), small.parameters()))


def test_calibration_in_small_batches_changes_nothing(tmp_path: Path) -> None:
    whole, parts = run(tmp_path / "whole"), run(tmp_path / "parts", "--batch-size", 20, "--memory", 1)
    assert {**whole, "out": ""} == {**parts, "out": ""}
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts")]
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], atol=1e-6), name


def test_shares_by_layer(tmp_path: Path) -> None:
    run(tmp_path, "--keep", "layer1.*=0.5, layer3.*.conv1=0.25")
    whole, small = slimbit.network("digits_resnet"), load_pruned(tmp_path)
    left = {
        name: module.out_channels / whole.get_submodule(name).out_channels
        for name, module in small.named_modules()
        if isinstance(module, torch.nn.Conv2d)
    }
    assert {left[name] for name in left if name.startswith("layer2")} == {1.0}
    assert {left[name] for name in left if name.startswith("layer1")} == {0.5}
    assert left["layer3.0.conv1"] == 0.25
    assert left["layer3.0.conv2"] == 1.0


@pytest.mark.parametrize("by", ["norm", "fisher"])
def test_budgets(tmp_path: Path, by: str) -> None:
    half = run(tmp_path / "a", "--by", by, "--budget", "macs=0.5", "--protect", "layer3*")
    assert 0.3 < half["after"]["macs"] / half["before"]["macs"] <= 0.5
    assert load_pruned(tmp_path / "a").layer3[0].conv2.out_channels == 32
    bits = run(tmp_path / "b", "--by", by, "--budget", "esn_digital=500k", "--scope", "global")
    small = load_pruned(tmp_path / "b")
    report = slimbit.cost(small, torch.zeros(1, 1, 8, 8), bits=8)
    assert report.total.macs == bits["after"]["macs"]
    assert 300_000 < report.total.esn_digital <= 500_000
    assert sum(layer.macs for layer in survey_of(str(tmp_path / "b")).spec.layers) == bits["after"]["macs"]
    assert not survey_of(str(tmp_path / "b")).spec.notes  # its weights are no random ones
    with pytest.raises(InputError, match="--weights must not be given for a folder"):
        survey_of(str(tmp_path / "b"), weights=tmp_path / "b" / "model.safetensors")
    with pytest.raises(InputError, match=r"its card says: pruned by .*slimbit.load puts it together"):
        load_weights(slimbit.network("digits_resnet"), tmp_path / "b" / "model.safetensors")


def command(*arguments: object) -> None:
    done = CliRunner().invoke(slimbit_app, list(map(str, arguments)))
    assert done.exit_code == 0, done.output


def shapes(network: torch.nn.Module) -> list[torch.Size]:
    return [value.shape for value in network.parameters()]


def test_a_pruned_folder_is_swept_and_packed(tmp_path: Path) -> None:
    run(tmp_path / "slim", "--keep", 0.75)
    small, score = load_pruned(tmp_path / "slim"), slimbit.open_data("digits").evaluator(100)
    sweep = ("frontier", tmp_path / "slim", "--data", "digits", "--points", 2, *QUICK, "--no-baselines")
    command(*sweep, "--out", tmp_path / "run")
    info = slimbit.open_run(tmp_path / "run").info
    assert info.network == "digits_resnet, norm, keep 0.75"
    assert info.float_accuracy == score(small)
    command("pick", tmp_path / "run", "--budget", "esn_digital=1G", "--out", tmp_path / "packed")
    loaded = slimbit.load(tmp_path / "packed").model
    assert shapes(loaded) == shapes(small)
    assert score(loaded) == max(point.accuracy for point in slimbit.open_run(tmp_path / "run").points)


def test_a_pruned_folder_is_pruned_again(tmp_path: Path) -> None:
    run(tmp_path / "once", "--keep", 0.75)
    again = ("prune", tmp_path / "once", "--data", "digits", *QUICK, "--keep", 0.5, "--by", "fisher")
    command(*again, "--out", tmp_path / "twice")
    smaller = load_pruned(tmp_path / "twice")
    assert smaller.layer2[0].conv1.out_channels == load_pruned(tmp_path / "once").layer2[0].conv1.out_channels // 2
    plan = json.loads((tmp_path / "twice" / "prune.json").read_text())["plan"]
    assert (plan["policy"], plan["setting"]) == ("norm, fisher", "keep 0.75, keep 0.5")
    sweep = ("frontier", tmp_path / "once", "--data", "digits", "--points", 1, *QUICK, "--no-baselines")
    command(*sweep, "--widths", "1,0.5", "--by", "fisher", "--out", tmp_path / "run")
    pruned = next(
        p for p in slimbit.open_run(tmp_path / "run").points if p.keep_ratio == 0.5 and p.policy == "prune_only"
    )
    command("pick", tmp_path / "run", "--budget", f"macs={pruned.costs['macs']}", "--out", tmp_path / "packed")
    assert shapes(slimbit.load(tmp_path / "packed").model) == shapes(smaller)


def test_folders_that_are_no_network_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # a folder named like a network of the zoo does not stand in for it
        run(Path("digits_resnet"), "--keep", 0.75)
    assert survey_of("digits_resnet").spec.layers != survey_of("./digits_resnet").spec.layers
    sweep = ["frontier", "--data", "digits", "--points", "1", *map(str, QUICK), "--no-baselines", "--out"]
    monkeypatch.chdir(tmp_path / "digits_resnet")
    with pytest.raises(InputError, match="NETWORK must be given"):
        CliRunner().invoke(slimbit_app, [*sweep, "../run"], catch_exceptions=False)
    monkeypatch.chdir(tmp_path)
    command(*sweep, "run", "./digits_resnet")
    (tmp_path / "digits_resnet").rename("moved")
    pick = ["pick", "run", "--budget", "esn_digital=1G", "--out", "packed"]
    command(*pick)  # the run holds all that it takes
    command(*pick, "--network", "moved")  # the very same, or it were refused
    images = torch.rand(4, 1, 8, 8)
    (point,) = slimbit.open_run("run").points
    with torch.no_grad():
        assert torch.equal(load_pruned(Path("packed"))(images), slimbit.open_run("run").load(point).model(images))
    file = tmp_path / "moved" / "prune.json"
    known = json.loads(file.read_text())
    file.write_text(json.dumps({**known, "network": {**known["network"], "classes": 5}}))
    with pytest.raises(InputError, match="data must have the 5 classes of moved, got 10"):
        CliRunner().invoke(slimbit_app, [*sweep, "none", "moved"], catch_exceptions=False)
    file.write_text(json.dumps({**known, "network": {**known["network"], "source": "mine:net"}}))
    with pytest.raises(
        InputError,
        match=r"prune.json names a network that is built by running code, mine:net: add --allow-code",
    ):
        CliRunner().invoke(slimbit_app, [*sweep, "none", "moved"], catch_exceptions=False)
    file.write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"prune\.json must be nested at most 64 levels deep"):
        CliRunner().invoke(slimbit_app, [*sweep, "none", "moved"], catch_exceptions=False)
    assert not (tmp_path / "none").exists()


def test_the_only_group_left_is_not_cut_once_more() -> None:
    model, example = slimbit.network("mobilenet_v2"), torch.zeros(1, 3, 32, 32)
    small = slimbit.prune(model, example, keep=0.5)

    def prepared(network: torch.nn.Module) -> PreparedNetwork:
        return prepare(network, example, None, origin=small.origin, keep=small.keep)

    Pruner(prepared(small.model), PruneConfig())  # depthwise: many groups are left
    assert slimbit.prune(small, example, keep=0.5).cost.total.macs < small.cost.total.macs
    one = prepared(small.model)
    one.model.get_submodule("features.1.conv.0.0").groups = 1
    with pytest.raises(InputError, match=r"features.1.conv.0.0 must have more than one group left"):
        Pruner(one, PruneConfig())


def test_only_the_dead(tmp_path: Path) -> None:
    told = run(tmp_path, "--by", "dead", "--statistics", "stored")
    assert told["after"]["accuracy"] == pytest.approx(told["before"]["accuracy"], abs=1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--keep", 0), "keep must be greater than 0, got 0"),
        (("--keep", 1.5), "keep must be less than or equal to 1, got 1.5"),
        (
            ("--device", "abacus"),
            "--device must be one that this machine has, with float64, like cpu or cuda, got 'abacus'",
        ),
        (
            ("--device", "meta"),
            "--device must be one that this machine has, with float64, like cpu or cuda, got 'meta'",
        ),
        (("--keep", "half"), "--keep must be a share like 0.5, or shares by layer like .*, got 'half'"),
        (("--keep", "layer1.*="), "--keep must be a share like 0.5, or shares by layer like .*, got 'layer1"),
        (("--keep", "conv1=0.5,conv1=0.75"), "--keep must be a share like 0.5, or shares by layer like "),
        (("--keep", "lin*=0.5"), r"keep ratio of 'lin\*' must be 1, got 0.5: it is an output of the network"),
        (
            ("--keep", "layer1.*=0.5", "--protect", "layer1.*"),
            "keep ratio of 'layer1.*' must be 1, got 0.5: it is prot",
        ),
        (("--keep", "layer9.*=0.5"), "layer names and patterns must match layers, got 'layer9"),
        (("--keep", 0.5, "--budget", "macs=1M"), "one of --keep and --budget may be given, got both"),
        (("--by", "dead", "--keep", 0.5), "must not be given with --by dead"),
        (("--by", "magic"), "--by must be one of norm, signal, fisher, admm, dead"),
        (("--scope", "all"), "--scope must be one of layer, global"),
        (("--statistics", "new"), "--statistics must be one of"),
        (("--constants", "new"), "constants must be one of"),
        (("--budget", "macs=2"), "budget must be at least"),
        (("--budget", "latency=1M"), "metric must be one of"),
        (("--budget", "parameters=0.5"), "metric must be one that a keep plan counts, as weight_bytes or macs, got"),
        (("--distill",), "--tune-epochs must be given with --distill, got none"),
        (("--tune-epochs", 1, "--admm-epochs", 7), "--by admm must be given with --admm-epochs, got norm"),
        (("--protect", "layer9*"), "must match layers, got 'layer9"),
    ],
)
def test_refused(tmp_path: Path, arguments: tuple[object, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        run(tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must be a folder with slimbit\.json"):
        load_pruned(tmp_path)
    (tmp_path / "prune.json").write_text('{"schema": 7}')
    with pytest.raises(InputError, match="must have schema 1, got 7"):
        load_pruned(tmp_path)
    (tmp_path / "prune.json").unlink()
    run(tmp_path, "--keep", 0.9)
    data = json.loads((tmp_path / "prune.json").read_text())
    for change, words in (
        ({"network": {"source": 3}}, "network of"),
        ({"plan": {}}, r"plan of .*prune\.json must have schema 1, got None"),
    ):
        (tmp_path / "prune.json").write_text(json.dumps(data | change))
        with pytest.raises(InputError, match=words):
            load_pruned(tmp_path)
    (tmp_path / "prune.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match="plan must be for this network"):
        load_pruned(tmp_path, model=slimbit.network("resnet8"))


def test_tuning_recovers_and_a_second_call_finds_it_done(tmp_path: Path) -> None:
    alone = run(tmp_path / "alone", "--keep", 0.5)
    tuning = ("--keep", 0.5, "--tune-epochs", 2, "--tune-lr", 0.05, "--no-flip")
    tuned = run(tmp_path / "tuned", *tuning)
    assert tuned["after"]["macs"] == alone["after"]["macs"]
    assert tuned["after"]["accuracy"] > alone["after"]["accuracy"] + 10
    assert slimbit.read_training_run(tmp_path / "tuned" / "tune").signal[-1].epoch == 2
    before = (tmp_path / "tuned" / "model.safetensors").read_bytes()
    assert run(tmp_path / "tuned", *tuning)["after"] == tuned["after"]
    assert (tmp_path / "tuned" / "model.safetensors").read_bytes() == before
    for other in (("--by", "fisher"), ("--statistics", "absolute"), ("--distill",), ("--calibration-images", 32)):
        with pytest.raises(InputError, match=r"--out must be a new folder, .* with another pruning in it"):
            run(tmp_path / "tuned", *tuning, *other)
    for name in ("prune.json", "model.safetensors"):
        (tmp_path / "tuned" / name).unlink()  # stopped before the end
    with pytest.raises(InputError, match="must be continued with its images, normalization, weights and pruning"):
        run(tmp_path / "tuned", *tuning, "--weights", rolled(tmp_path))
    with pytest.raises(InputError, match=r"--out must be a new folder, .* with checkpoint.safetensors in it"):
        run(tmp_path / "tuned" / "tune", "--keep", 0.5)


def rolled(folder: Path) -> Path:
    """Weights that lead to the same plan: the classes in another order."""
    model = load_weights(slimbit.network("digits_resnet"), shipped_weights("digits_resnet"))
    with torch.no_grad():
        model.linear.weight.copy_(model.linear.weight.roll(1, 0))
    file = folder / "rolled.pth"
    torch.save(model.state_dict(), file)
    return file


def test_options_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "tune.toml"
    file.write_text("[augment]\ncrop = 0\n")
    run(tmp_path / "a", "--keep", 0.5, "--tune-epochs", 1, "--tune-lr", 0.05, "--no-flip", "--tune-config", file)
    config = json.loads((tmp_path / "a" / "tune" / "train.json").read_text())["config"]
    assert config["augment"] == {"crop": 0, "flip": False}
    for text, words in (
        ("epochs = 2", "epochs of the training's own settings"),
        ("[optimizer]\nlearning_rate = 0.1", "learning_rate"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=f"{words}.* must be left out"):
            run(tmp_path / "b", "--keep", 0.5, "--tune-epochs", 1, "--tune-config", file)


def test_the_original_can_be_the_teacher(tmp_path: Path) -> None:
    alone = run(tmp_path / "alone", "--keep", 0.5)
    taught = run(tmp_path / "taught", "--keep", 0.5, "--tune-epochs", 2, "--tune-lr", 0.05, "--no-flip", "--distill")
    assert taught["after"]["accuracy"] > alone["after"]["accuracy"] + 10


def test_the_signal_of_a_training_run_ranks(tmp_path: Path) -> None:
    run(tmp_path / "first", "--keep", 1, "--tune-epochs", 1, "--tune-lr", 0.01)
    told = run(tmp_path / "second", "--by", "signal", "--signal", tmp_path / "first" / "tune")
    assert told["after"]["filters"] < told["before"]["filters"]
    assert json.loads((tmp_path / "second" / "prune.json").read_text())["plan"]["policy"] == "signal"
    with pytest.raises(InputError, match=r"signal \(--signal RUN\) must be given for pruning by signal"):
        run(tmp_path / "third", "--by", "signal")


def test_settings_of_tuning_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="epochs must be greater than or equal to 1, got -1"):
        run(tmp_path / "out", "--tune-epochs", -1)
    assert not (tmp_path / "out").exists()


def test_the_teacher_needs_no_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bare.py").write_text(
        "import dataclasses\nimport slimbit\n\n\ndef data():\n    known = slimbit.open_data('digits')\n"
        "    return dataclasses.replace(known, train=type(known.train)(known.train.images, None))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    app = typer.Typer()
    app.command()(prune)
    call = ["digits_resnet", "--data", "bare:data", "--keep", "0.75", "--tune-epochs", "1", "--tune-lr", "0.05",
            "--no-flip", *map(str, QUICK), "--json"]  # fmt: skip
    result = CliRunner().invoke(app, [*call, "--distill", "--out", str(tmp_path / "a")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    alone = CliRunner().invoke(app, [*call[:5], *call[10:], "--out", str(tmp_path / "b")], catch_exceptions=False)
    assert json.loads(result.stdout)["after"]["accuracy"] > json.loads(alone.stdout)["after"]["accuracy"]
    assert slimbit.read_training_run(tmp_path / "a" / "tune").epochs[1].accuracy is None
    refused = CliRunner().invoke(app, [*call, "--out", str(tmp_path / "c")])
    assert "must have labels, got none" in str(refused.exception)
    assert not (tmp_path / "c").exists()
