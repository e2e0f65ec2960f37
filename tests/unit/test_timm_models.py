"""timm with a torchvision that is absent, broken or fine; a small package that imports what timm does stands in."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

TIMM = """
import torchvision.transforms.functional as F
from torch import nn
from torchvision import transforms
from torchvision.datasets import CIFAR10
from torchvision.ops.misc import FrozenBatchNorm2d
from torchvision.transforms import InterpolationMode

MODES = {InterpolationMode.NEAREST: 0, InterpolationMode.BICUBIC: 3}


class Resize(transforms.Resize):
    pass


def list_models():
    return ["tiny", "sick"]


def is_model(name):
    return name in list_models()


def create_model(name, pretrained, num_classes=10):
    assert not pretrained
    assert not isinstance(nn.BatchNorm2d(1), FrozenBatchNorm2d)
    if name == "sick":
        raise TypeError("no such head")
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, num_classes))
    model.pretrained_cfg = {"input_size": (3, 8, 8)}
    return model
"""
FINE = """
class FrozenBatchNorm2d: ...
class CIFAR10: ...
class Resize: ...
class InterpolationMode:
    NEAREST, BICUBIC = "nearest", "bicubic"
"""
BROKEN = 'raise RuntimeError("operator torchvision::nms does not exist")'


def package(folder: Path, name: str, source: str) -> None:
    file = folder / Path(*name.split(".")) / "__init__.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source)


@pytest.fixture(params=["absent", "broken", "fine"])
def packages(request, tmp_path):
    package(tmp_path, "timm", TIMM)
    if request.param == "broken":
        package(tmp_path, "torchvision", BROKEN)
    if request.param == "fine":
        for name in ("", ".ops", ".ops.misc", ".transforms", ".transforms.functional", ".datasets"):
            package(tmp_path, f"torchvision{name}", FINE)
    return tmp_path


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    setup = f"import sys; sys.path.insert(0, {str(folder)!r})\n"
    return subprocess.run(
        [sys.executable, "-c", setup + textwrap.dedent(code)], capture_output=True, text=True, check=False, timeout=120
    )


def test_networks_work_whatever_torchvision_is(packages):
    code = """
        from slimbit.cli import main
        sys.argv = ["slimbit", "cost", "timm:tiny", "--csv", "--no-layers"]
        try:
            main()
        finally:
            import timm  # as others in the process will
            if "placeholder" in sys.modules.get("torchvision", sys).__class__.__name__.lower():
                sys.exit(9)
    """
    done = run(code, packages)
    assert done.returncode == 0, done.stderr
    total = dict(zip(*(line.split(",") for line in done.stdout.strip().splitlines()), strict=True))
    assert int(total["macs"]) == 36 * 4 * 27 + 144 * 10


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tinny", "timm must know the model, got tinny; did you mean tiny?"),
        ("sick", "timm must be able to build sick, got TypeError: no such head"),
    ],
)
def test_what_is_wrong_with_a_name_is_said(name, said, tmp_path):
    package(tmp_path, "timm", TIMM)
    done = run(f"from slimbit.zoo.timm_models import timm_model; timm_model({name!r})", tmp_path)
    assert said in done.stderr.splitlines()[-1]


def test_a_broken_timm_is_said(tmp_path):
    package(tmp_path, "timm", 'raise OSError("libjpeg is missing")')
    done = run("from slimbit.zoo.timm_models import timm_model; timm_model('tiny')", tmp_path)
    assert "InputError: timm must be importable, got OSError: libjpeg is missing" in done.stderr.splitlines()[-1]


def test_network_takes_names_of_timm_and_they_are_saved_by_name(tmp_path):
    package(tmp_path, "timm", TIMM)
    code = f"""
        import torch, slimbit
        net, images = slimbit.network("timm:tiny", classes=3).eval(), torch.randn(4, 3, 8, 8)
        small = slimbit.quantize(net, images[:1], images, bits=4)
        again = slimbit.load(small.save({str(tmp_path / "small")!r}))
        assert again.origin.source == "timm:tiny"
        assert torch.equal(again.model(images), small.model(images))
        slimbit.network("timm:tiny", weights="shipped")
    """
    done = run(code, tmp_path)
    assert "weights of timm:tiny must be a file, got 'shipped': none come with Slimbit" in done.stderr.splitlines()[-1]
