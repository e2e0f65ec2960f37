"""`experiments/fig8_imagenet` from pictures to tables, with a small network in place of the large ones."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import slimbit

pytest.importorskip("matplotlib")
EXPERIMENTS = Path(__file__).parents[2] / "experiments"
if str(EXPERIMENTS) not in sys.path:
    sys.path.insert(0, str(EXPERIMENTS))

from fig8_imagenet import images, networks, run, tables  # noqa: E402


class Brightness(nn.Module):
    """Class 3 for dark pictures, class 998 for bright ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 8, stride=8)
        self.norm, self.last = nn.BatchNorm2d(8), nn.Linear(8, 1000)
        with torch.no_grad():
            self.last.weight.mul_(0.01)
            self.last.weight[3], self.last.weight[998] = -1.0, 1.0
            self.last.bias.fill_(-4.0)[[3, 998]] = 0.0
            self.first.weight.abs_()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.norm(self.first(x)).mean((2, 3)))
        return logits


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for label, level in ((3, 60), (998, 190)):
        (root / f"{label:04d}").mkdir()
        for number in range(16):
            noise = np.random.default_rng([label, number]).integers(-50, 50, size=(227, 240, 3))
            Image.fromarray((level + noise).astype(np.uint8)).save(root / f"{label:04d}" / f"{number}.png")
    return root


def test_pictures_are_divided_once_and_numbered_by_their_folders(pictures):
    first, scored = images.split(pictures, 8, 20, seed=0)
    assert (len(first), len(scored)) == (8, 20)
    assert not {path for path, _ in first} & {path for path, _ in scored}
    assert {label for _, label in images.listed(pictures)} == {3, 998}
    assert images.pixels(first[0][0]).shape == (3, 224, 224)
    (pictures / "n01440764").mkdir()
    try:
        with pytest.raises(SystemExit, match="must have 1000 class folders or numbered ones, got 3"):
            images.listed(pictures)
    finally:
        (pictures / "n01440764").rmdir()


@pytest.mark.slow
def test_networks_have_the_macs_that_are_known_of_them():
    example = torch.zeros(1, 3, 224, 224)
    resnet = slimbit.cost(networks.resnet50_v1(), example, bits=1).total.macs
    assert resnet == pytest.approx(3.86e9, rel=0.01)  # 4.09G where the 3x3 convolution has the stride
    lite = networks.efficientnet_lite0()
    assert slimbit.cost(lite, example, bits=1).total.macs == pytest.approx(385e6, rel=0.01)
    assert sum(p.numel() for p in lite.parameters()) == 4_652_008


@pytest.mark.slow
def test_all_parts_run_go_on_and_make_tables(pictures, tmp_path, monkeypatch, capsys):
    def build(_: Path | None = None) -> nn.Module:
        torch.manual_seed(0)
        net = Brightness()
        net.train()(torch.randn(4, 3, 224, 224))
        return net.eval()

    monkeypatch.setattr(run, "NETWORKS", {"efficientnet-lite0": (build, run.HALF)})
    arguments = ["run.py", str(pictures), str(tmp_path / "out"), "--scale", "smoke", "--efficientnet-lite0", "any"]
    monkeypatch.setattr(sys, "argv", arguments)
    run.main()
    rows = [*csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines())]
    methods = {row["method"] for row in rows}
    assert methods == {
        "float", tables.MAX_ABS, tables.GPTQ, "sweep of esn_digital", "sweep of esn_filterwise", "sweep of esn_analog"
    }  # fmt: skip
    assert all(len(row["hits"]) == 4 for row in rows)  # 24 images: three bytes
    assert {row["accuracy"] for row in rows if row["method"] == "float"} == {"100"}
    assert (tmp_path / "out" / "fig8.png").stat().st_size > 10_000
    assert "| efficientnet-lite0 | esn_digital | max_abs, absolute statistics | 63 % |" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*-gptq/*.csv")}
    run.main()  # nothing is measured again
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_factor_is_read_off_at_equal_accuracy_with_an_interval_of_the_images():
    right = np.arange(100) < np.array([[90], [50], [90], [50]])
    ours = [(10.0, right[0]), (5.0, right[1])]
    theirs = [(40.0, right[2]), (20.0, right[3])]
    # both curves have the same images right: the factor is 4 whichever are drawn
    assert tables.factor_at(ours, theirs, 70.0) == pytest.approx((4.0, 4.0, 4.0))
    assert np.isnan(tables.factor_at(ours, theirs, 95.0)).any()
    noisy = [(40.0, np.roll(right[2], 7)), (20.0, np.roll(right[3], 31))]
    factor, low, high = tables.factor_at(ours, noisy, 70.0)
    assert low < factor == pytest.approx(4.0) < high
