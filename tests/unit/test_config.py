"""Settings: one validation for Python, TOML and the command line, and how a fault is told."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from slimbit.records.config import FrontierConfig, PruneConfig, QuantConfig, RunConfig, TuneConfig
from slimbit.records.errors import InputError
from slimbit.records.signal import EpochSignal, LayerSignal


def written(folder: Path, text: str) -> Path:
    file = folder / "slimbit.toml"
    file.write_text(text)
    return file


def read(folder: Path, text: str) -> FrontierConfig:
    return FrontierConfig.from_toml(written(folder, text))


def test_everything_can_be_set(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        network = "resnet20-A"
        weights = "net.safetensors"
        data = "cifar10:data,normalize=imagenet"
        input = "3x32x32"
        metric = "esn_analog"
        points = 8
        baselines = false
        keep_ratios = [1, 0.5]
        calibration_images = 200
        evaluate_images = 1000
        seed = 3
        storage = "sqlite:///x.db"
        likelihood = "gaussian"
        [quant]
        rounding = "rate_aware"
        statistics = "paired"
        grid = "midtread"
        skip = ["fc"]
        [prune]
        by = "fisher"
        protect = ["layer3.*"]
        [prune.tune]
        epochs = 2
        distill = true
        [prune.tune.train.augment]
        flip = false
        """,
    )
    assert (found.network, found.points, found.baselines, found.keep_ratios) == ("resnet20-A", 8, (), (1.0, 0.5))
    assert found.quant == QuantConfig(rounding="rate_aware", statistics="paired", grid="midtread", skip=("fc",))
    tune = TuneConfig(epochs=2, distill=True, train={"augment": {"flip": False}})
    assert found.prune == PruneConfig(by="fisher", protect=("layer3.*",), tune=tune)
    assert found.run() == RunConfig(
        metric="esn_analog", points=8, baselines=False, keep_ratios=(1, 0.5), seed=3, storage="sqlite:///x.db",
        likelihood="gaussian", quant=found.quant, prune=found.prune,
    )  # fmt: skip


def test_options_win_over_the_file(tmp_path: Path) -> None:
    found = read(tmp_path, "points = 8\nseed = 1\n[quant]\ngrid = 'midtread'\nskip = ['fc']").with_options(
        {"points": 4, "seed": None, "quant": {"grid": "midrise", "skip": None}, "prune": {"by": None}}
    )
    assert (found.points, found.seed, found.quant.grid, found.quant.skip) == (4, 1, "midrise", ("fc",))
    assert found.prune == PruneConfig()


def test_options_leave_records_within_settings_as_they_are() -> None:
    layer = LayerSignal(name="a", epoch=1, nonzero_weights=9, positions=1, filter_signal=(1.0,), filter_noise=(0.0,))
    epoch = EpochSignal(epoch=1, iterations=1, layers=(layer,))
    config = RunConfig(keep_ratios=(0.5,), prune=PruneConfig(by="signal", signal=epoch))
    found = config.with_options({"points": 4, "prune": {"protect": ["a"]}})
    assert found.prune.signal == epoch
    assert (found.points, found.prune.by, found.prune.protect, config.prune.protect) == (4, "signal", ("a",), ())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("point = 8", r"slimbit\.toml: settings must hold only known keys, got point; did you mean points"),
        ("[quant]\nstatistic = 1", r"only known keys, got quant\.statistic; did you mean statistics"),
        ("[quant]\nsteps = 1", r"only known keys, got quant\.steps"),
        ("[recipe]\nrounding = 'nearest'", r"only known keys, got recipe"),
        ("[prune.tune]\nepoch = 1", r"only known keys, got prune\.tune\.epoch; did you mean epochs"),
        ("[prune.tune.train.augment]\nflips = 1", r"got prune\.tune\.train\.augment\.flips; did you mean flip"),
        ("points = 0", r"points must be greater than or equal to 1, got 0"),
        ("points = '8'", "points must be a valid integer, got '8'"),
        ("points = true", "points must be a valid integer, got True"),
        ("baselines = 1", "baselines must be a list, got 1"),
        ("baselines = ['acid']", r"baselines\.0 must be 'max_abs' or 'aciq', got 'acid'"),
        ("baselines = ['aciq', 'aciq']", "baselines must be named once, got aciq, aciq"),
        ("metric = 'macs'", "metric must be 'esn_analog', 'esn_digital' or 'esn_filterwise', got 'macs'"),
        ("[quant]\nrounding = 'up'", r"quant\.rounding must be 'nearest' or 'rate_aware', got 'up'"),
        ("quant = 3", "quant must be a table with the fields of QuantConfig, got 3"),
        ("[quant]\nskip = [1]", r"quant\.skip\.0 must be a valid string, got 1"),
        ("[quant]\nskip = 'fc'", r"quant\.skip must be a list, got 'fc'"),
        ("keep_ratios = []", r"keep_ratios must be a list of at least 1, got \[\]"),
        ("keep_ratios = [0.5, 0]", r"keep_ratios\.1 must be greater than 0, got 0"),
        ("keep_ratios = [0.5, 0.5]", r"keep_ratios must differ in six digits, got \[0\.5, 0\.5\]"),
        ("seed = inf", "seed must be a valid integer, got inf"),
        ("signal_epochs = [3]", r"signal \(--signal RUN\) must be given with signal_epochs, got none"),
        ("[prune]\nby = 'fisher'", r"keep_ratios \(--widths\) must be given with settings of pruning"),
        ("keep_ratios = [0.5]\n[prune]\nby = 'dead'", "by must be one that reaches a ratio, got dead"),
        (
            "keep_ratios = [0.5]\n[prune]\nby = 'admm'",
            r"prune: tune \(--tune-epochs\) must be given for pruning by admm",
        ),
        ("[prune.tune.train]\nepochs = 3", r"prune\.tune: epochs of the training's own settings must be left out"),
        ("[prune.keep]\n'layer1.*' = 2", r"prune\.keep\.layer1\.\* must be less than or equal to 1, got 2"),
        ("metric = 'esn_filterwise'\n[quant]\ngrid = 'midrise_zero'", "grid must be midrise or midtread for esn_filt"),
        ("metric = 'esn_filterwise'\n[quant]\nrounding = 'rate_aware'", "rounding must be nearest for esn_filterwise"),
        ("points = 8\npoints = 9", r"slimbit\.toml must be TOML"),
        ("a = " + "[" * 100_000, r"slimbit\.toml must be TOML"),
        ("points = 1" + " " * (1 << 20), "must have at most 1,048,576 bytes"),
    ],
)
def test_faults_are_told_with_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as raised:
        read(tmp_path, text)
    assert "slimbit.toml" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "pydantic" not in str(raised.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="configuration must exist"):
        FrontierConfig.from_toml(tmp_path / "none.toml")
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="must be UTF-8 text"):
        FrontierConfig.from_toml(tmp_path / "x.toml")


def test_a_fault_has_one_sentence_whoever_builds_the_settings(tmp_path: Path) -> None:
    said = "quant.rounding must be 'nearest' or 'rate_aware', got 'up'"
    ways = (
        lambda: RunConfig(quant={"rounding": "up"}),
        lambda: RunConfig().with_options({"quant": {"rounding": "up"}}),
        lambda: read(tmp_path, "[quant]\nrounding = 'up'"),
    )
    for way in ways:
        with pytest.raises(InputError) as raised:
            way()
        assert str(raised.value).endswith(said)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        QuantConfig().grid = "midtread"


def test_each_metric_has_a_grid_that_suits_it() -> None:
    found = {metric: QuantConfig().for_metric(metric).grid for metric in ("esn_analog", "esn_digital", None)}
    assert found == {"esn_analog": "midrise_zero", "esn_digital": "midrise_zero", None: "midrise"}
    assert QuantConfig().for_metric("esn_filterwise").grid == "midrise"
    assert QuantConfig(grid="midtread").for_metric("esn_digital").grid == "midtread"


def test_tuning_says_epochs_and_rate_once() -> None:
    for train, name in (({"epochs": 3}, "epochs"), ({"optimizer": {"learning_rate": 0.3}}, "learning_rate")):
        with pytest.raises(InputError, match=f"^{name} of the training's own settings must be left out"):
            TuneConfig(train=train)
    chosen = TuneConfig(epochs=8, learning_rate=0.2, train={"batch_size": 32, "optimizer": {"momentum": 0.5}}).training(
        seed=7
    )
    assert (chosen.epochs, chosen.batch_size, chosen.seed) == (8, 32, 7)
    assert (chosen.optimizer.learning_rate, chosen.optimizer.momentum) == (0.2, 0.5)
    assert chosen.schedule.milestones == (4, 6)
