"""Networks by name, and loading of well-made weight files."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, fx, nn

from slimbit import zoo
from slimbit.records.errors import InputError

SMALL = ("resnet8", "resnet8-A", "resnet8-B", "vgg7@0.1", "densenet_bc_100_12@0.25", "resnet18@0.1", "resnet50@0.1",
         "mobilenet_v2@0.25")  # fmt: skip


def tiny() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2))


def same(state: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)


@pytest.fixture
def state() -> dict[str, Tensor]:
    """Weights of `tiny`, different from fresh ones in every entry."""
    return {
        "0.weight": torch.arange(18.0).reshape(2, 1, 3, 3),
        "1.weight": torch.tensor([2.0, 3.0]),
        "1.bias": torch.tensor([-1.0, 4.0]),
        "1.running_mean": torch.tensor([0.5, 0.25]),
        "1.running_var": torch.tensor([5.0, 6.0]),
        "1.num_batches_tracked": torch.tensor(7),
    }


# --- networks -------------------------------------------------------------------------------------------------


def test_names_and_inputs_come_without_torch() -> None:
    code = (
        "import sys; from slimbit import zoo; zoo.names(); zoo.default_input('vgg7@0.5'); zoo.default_classes('vgg7')\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_names() -> None:
    expected = {f"resnet{depth}{kind}" for depth in (8, 14, 20, 32, 44, 56, 110) for kind in ("", "-A", "-B")}
    expected |= {"digits_resnet", "vgg7", "densenet_bc_100_12", "resnet18", "resnet50", "mobilenet_v2"}
    assert set(zoo.names()) == expected
    assert len(zoo.names()) == len(expected)


@pytest.mark.parametrize("name", zoo.names())
def test_every_network_maps_its_input_to_its_classes(name: str) -> None:
    with torch.device("meta"):
        logits = zoo.network(name).eval()(torch.empty(2, *zoo.default_input(name)))
    assert logits.shape == (2, zoo.default_classes(name))
    assert zoo.default_classes(name) == (1000 if zoo.default_input(name) == (3, 224, 224) else 10)


@pytest.mark.parametrize("name", SMALL)
def test_traced_network_computes_the_same(name: str) -> None:
    torch.manual_seed(0)
    model = zoo.network(name, classes=3).eval()
    images = torch.randn(2, *zoo.default_input(name))[:, :, :64, :64]
    traced = fx.symbolic_trace(model)
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(traced(images), expected, rtol=0, atol=0)
    assert expected.shape == (2, 3)
    assert expected.std() > 0


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_learns(name: str) -> None:
    torch.manual_seed(0)
    model = zoo.network(name, classes=3)
    images = torch.randn(4, *zoo.default_input(name))[:, :, :64, :64]
    F.cross_entropy(model(images), torch.tensor([0, 1, 2, 0])).backward()
    idle = [key for key, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert idle == []


def test_width_scales_every_filter() -> None:
    full, half = zoo.network("resnet20-A"), zoo.network("resnet20-A@0.5")
    for key, weight in half.state_dict().items():
        if key not in ("linear.bias", "conv1.weight", "linear.weight") and weight.dim() == 4:
            assert [2 * size for size in weight.shape[:2]] == list(full.state_dict()[key].shape[:2])
    assert tuple(half.linear.weight.shape) == (10, 32)


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(16, 32, 2), (5, 10, 2), (5, 8, 2), (4, 4, 1)])
def test_padded_shortcut(inputs: int, outputs: int, stride: int) -> None:
    from slimbit.zoo.resnet_cifar import PaddedShortcut

    x = torch.randn(2, inputs, 6, 6)
    y = PaddedShortcut(inputs, outputs, stride=stride)(x)
    before = (outputs - inputs) // 2
    assert y.shape == (2, outputs, 6 // stride, 6 // stride)
    assert torch.equal(y[:, before : before + inputs], x[:, :, ::stride, ::stride])
    assert not y[:, :before].any()
    assert not y[:, before + inputs :].any()


def test_random_weights_follow_the_callers_seed() -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(zoo.network("resnet8").state_dict())
    assert same(states[0], states[1])
    assert not same(states[0], states[2])


def test_initial_weights_are_he() -> None:
    torch.manual_seed(0)
    weight = zoo.network("resnet8").layer3[0].conv2.weight
    # std = sqrt(2 / fan_out) = sqrt(2 / (64 * 9)) = 0.0589; 36,864 draws: standard error 0.4 %
    assert weight.std().item() == pytest.approx((2 / 576) ** 0.5, rel=0.02)


@pytest.mark.parametrize("name", ["resnet2O", "ResNet20", "resnet21", "mobilenetv2", "", "x" * 10_000, "resnet20-C@1"])
def test_unknown_network(name: str) -> None:
    with pytest.raises(InputError, match="network name must be one that exists, got") as caught:
        zoo.network(name)
    assert len(str(caught.value)) < 600


def test_unknown_network_shows_the_closest() -> None:
    with pytest.raises(InputError, match=r"got 'ResNet50'; did you mean resnet50 or"):
        zoo.default_input("ResNet50")


@pytest.mark.parametrize(
    ("name", "call"), [("mynet.build", "mynet:build"), ("a.nets.make", "a.nets:make"), ("mynet.py", "mynet.py:build")]
)
def test_a_dot_where_the_colon_of_ones_own_network_belongs(name: str, call: str) -> None:
    with pytest.raises(InputError, match=rf"got '{name}'; a network of your own is module:callable, here {call}$"):
        zoo.network(name)


BAD_WIDTHS = ["0", "", "abc", "9999", "-1", "nan", "inf", "1e1", "0.04", "8.01", "1_0", "1 ", "@1", "0.5-A", "9" * 5000]
ARABIC_ONE = "\N{ARABIC-INDIC DIGIT ONE}"  # float() accepts it


@pytest.mark.parametrize("width", [*BAD_WIDTHS, ARABIC_ONE])
def test_bad_width(width: str) -> None:
    with pytest.raises(InputError, match=r"width after @ must be a number from 0\.05 to 8, got 'resnet20@"):
        zoo.network(f"resnet20@{width}")


@pytest.mark.parametrize("classes", [0, -1, True, 2.0, "10", 10**7])
def test_bad_classes(classes: Any) -> None:
    with pytest.raises(InputError, match="classes must be a whole number from 1 to 1000000, got"):
        zoo.network("resnet8", classes=classes)


def test_name_must_be_text() -> None:
    with pytest.raises(InputError, match="network name must be text, got None"):
        zoo.network(None)  # type: ignore[arg-type]


# --- weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".th", ".PTH", ".pth.tar"])
def test_loads_into_the_same_model(tmp_path: Path, state: dict[str, Tensor], suffix: str) -> None:
    file = tmp_path / f"w{suffix}"
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    model = tiny().eval()
    assert zoo.load_weights(model, file) is model
    assert not model.training
    assert same(model.state_dict(), state)
    assert same(zoo.read_weights(str(file)), state)


def test_loads_the_old_torch_format(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert same(zoo.load_weights(tiny(), tmp_path / "w.pth").state_dict(), state)


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "state_dict": lambda s: {"epoch": 3, "state_dict": s, "best_acc1": torch.tensor(91.0), "optimizer": {"lr": 0.1}},
    "model": lambda s: {"model": s},
    "model_state_dict": lambda s: {"model_state_dict": s, "loss": 0.3},
    "net": lambda s: {"net": prefixed(s, "module."), "acc": 91.2, "epoch": 7},
    "ema": lambda s: {"state_dict_ema": s, "arch": "tiny"},
    "plain before ema": lambda s: {"state_dict_ema": {n: v + 1 for n, v in s.items()}, "state_dict": s},
    "nested": lambda s: {"model": {"state_dict": s, "step": 1}},
    "parameters": lambda s: {n: nn.Parameter(v, requires_grad=v.is_floating_point()) for n, v in s.items()},
    "data parallel": lambda s: prefixed(s, "module."),
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "both": lambda s: {"state_dict": prefixed(s, "module._orig_mod.")},
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrappers_and_prefixes(tmp_path: Path, state: dict[str, Tensor], wrapper: str) -> None:
    torch.save(WRAPPED[wrapper](state), tmp_path / "w.pth")
    assert same(zoo.load_weights(tiny(), tmp_path / "w.pth").state_dict(), state)


def test_wrapped_model_takes_bare_weights(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_file(state, tmp_path / "w.safetensors")
    model = nn.DataParallel(tiny())
    zoo.load_weights(model, tmp_path / "w.safetensors")
    assert same(model.module.state_dict(), state)


def test_batch_counter_may_be_missing(tmp_path: Path, state: dict[str, Tensor]) -> None:
    del state["1.num_batches_tracked"]
    save_file(state, tmp_path / "w.safetensors")
    model = zoo.load_weights(tiny(), tmp_path / "w.safetensors")
    assert same(model.state_dict(), {**state, "1.num_batches_tracked": torch.tensor(0)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_become_the_models_type(tmp_path: Path, state: dict[str, Tensor], dtype: torch.dtype) -> None:
    save_file({n: v.to(dtype) if v.is_floating_point() else v for n, v in state.items()}, tmp_path / "w.safetensors")
    model = zoo.load_weights(tiny(), tmp_path / "w.safetensors")
    assert same(model.state_dict(), state)  # the numbers are exact in every type
    assert model[0].weight.dtype == torch.float32
    assert zoo.load_weights(tiny().to(dtype), tmp_path / "w.safetensors")[0].weight.dtype == dtype


@pytest.fixture
def shared_checkpoint() -> Path:
    folder = os.environ.get("SLIMBIT_DATA")
    if not folder:
        pytest.skip("SLIMBIT_DATA is not set")
    return Path(folder) / "weights" / "cifar10_resnet20.safetensors"


def test_public_cifar_checkpoint_loads(shared_checkpoint: Path) -> None:
    weights = zoo.read_weights(shared_checkpoint)
    model = zoo.load_weights(zoo.network("resnet20-A"), shared_checkpoint)
    state = {n: v for n, v in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    assert same(state, weights)


def test_public_cifar_checkpoint_lacks_projections(shared_checkpoint: Path) -> None:
    # 3 projections, each 1 convolution weight and 4 BatchNorm tensors
    with pytest.raises(
        InputError, match=r"15 missing: layer1\.0\.shortcut\.0\.weight, .* and 7 more; they fit resnet20-A$"
    ):
        zoo.load_weights(zoo.network("resnet20"), shared_checkpoint)
