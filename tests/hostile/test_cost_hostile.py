"""Bad input: one clear sentence, exit code 2, and a network left as it was."""

import json
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from typer.testing import CliRunner

import slimbit
from slimbit.cli import app, main
from slimbit.records.errors import InputError

IMAGE = torch.zeros(1, 3, 8, 8)


def _snapshot(model):
    return (
        {name: (id(p), p.clone(), p.device, p.requires_grad) for name, p in model.state_dict(keep_vars=True).items()},
        [(name, module.training, len(module._forward_hooks), len(module._forward_pre_hooks), sorted(module.__dict__))
         for name, module in model.named_modules()],
    )  # fmt: skip


class Fragile(nn.Module):
    def __init__(self, *, fails):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fails = fails
        self.seen = 0

    def forward(self, x):
        self.seen += 1
        self.cache = x
        if self.fails:
            raise RuntimeError("on purpose")
        return self.norm(self.conv(x)) if x.sum() > -1 else x


@pytest.mark.parametrize("fails", [False, True])
def test_the_network_is_as_before_also_after_an_error(fails):
    model = Fragile(fails=fails)
    model.norm.eval()
    model.conv.register_forward_hook(lambda *_: None)
    before = _snapshot(model)
    if fails:
        with pytest.raises(InputError, match="on purpose"):
            slimbit.cost(model, IMAGE, bits=4)
    else:
        assert slimbit.cost(model, IMAGE, bits=4).total.macs == 36 * 4 * 27
    after = _snapshot(model)
    assert before[1] == after[1]
    assert model.seen == 0
    for name, (identity, value, device, grad) in before[0].items():
        now = after[0][name]
        assert (identity, device, grad) == (now[0], now[2], now[3])
        assert torch.equal(value, now[1])


@pytest.mark.parametrize("bits", [0, 99, -1, 17, float("nan"), float("inf"), "four", True])
def test_impossible_bits(bits):
    with pytest.raises(InputError, match="bits must be a number from 1 to 16"):
        slimbit.cost(nn.Conv2d(3, 4, 3), IMAGE, bits=bits)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("bits", [None, 4])
def test_weights_that_are_not_finite_name_the_layer(value, bits):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    model[1].weight.data[0, 0, 0, 0] = value
    with pytest.raises(InputError, match=r"layer 1 must be finite, got 1"):
        slimbit.cost(model, IMAGE, bits=bits)


@pytest.mark.parametrize(
    ("model", "example", "sentence"),
    [
        (nn.Conv2d(3, 4, 3), torch.zeros(1, 5, 8, 8), "example input must be one that Conv2d can run on, got 1x5x8x8"),
        (nn.Conv2d(3, 4, 3), "image", "must be a tensor, a tuple or a dict, got str"),
        (nn.ReLU(), IMAGE, "must have a layer that Slimbit counts"),
        (nn.LazyConv2d(4, 3), IMAGE, "must have a shape, got a lazy one"),
        ("resnet20", IMAGE, "example_input must be given for a module only, got one beside a str"),
        (7, IMAGE, "model must be a module, a compressed or prepared network, a path or a name, got int"),
        (7, None, "model must be a module, a compressed or prepared network, a path or a name, got int"),
        (nn.Conv2d(3, 4, 3), None, "example_input must be given for a module"),
        ("resnet21", None, "resnet21"),
    ],
)
def test_networks_that_cannot_be_counted(model, example, sentence):
    with pytest.raises(InputError, match=sentence):
        slimbit.cost(model, example)


def test_a_layer_without_weights_is_named():
    layer = nn.Linear(3, 4)
    layer.weight = nn.Parameter(torch.zeros(0, 3))
    with pytest.raises(InputError, match=r"parameter 1.weight must have at least one element"):
        slimbit.cost(nn.Sequential(nn.Linear(3, 3), layer), torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"steps": {"1": 0.1}}, "steps must be for layers of Sequential, got 1"),
        ({"steps": {}}, "steps must be given for every layer"),
        ({"steps": 0.0}, "must be positive numbers"),
        ({"steps": {"0": [0.1, 0.2]}}, "one number or one for each of its 4 filters"),
        ({"bits": 4, "steps": 0.1}, "must not both be given"),
        ({"bits": 4, "policy": "max_abz"}, "did you mean max_abs"),
        ({"bits": 4, "per": "image"}, "per must be one of mac, parameter"),
        ({"bitz": 4}, "options of cost must be"),
        ({"steps": "a"}, "must be numbers, got 'a'"),
        ({"bits": 4, "activation_bits": "8"}, "activation bits must be a whole number from 1 to 32"),
        ({"bits": 4, "activation_bits": 3.5}, "activation bits must be a whole number from 1 to 32"),
    ],
)
def test_options_that_make_no_sense(options, sentence):
    with pytest.raises(InputError, match=sentence):
        slimbit.cost(nn.Sequential(nn.Conv2d(3, 4, 3)), IMAGE, **options)


def test_an_all_zero_layer_costs_its_grid():
    layer = nn.Conv2d(3, 4, 3, bias=False)
    nn.init.zeros_(layer.weight)
    total = slimbit.cost(layer, IMAGE, bits=2).total
    assert total.esn_digital == total.macs  # mid-rise has no zero: every weight becomes +0.5
    assert slimbit.cost(layer, IMAGE).total.nonzero_macs == 0


def _run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "slimbit", *arguments], capture_output=True, text=True, check=False, timeout=120
    )


def test_the_command_line_says_one_sentence_and_exits_with_2(tmp_path):
    done = _run("cost", "resnet2O", "--bits", "4")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "resnet20" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["cost", "resnet20", "--bits", "0"], "bits must be a number from 1 to 16"),
        (["cost", "resnet20", "--bits", "99"], "bits must be a number from 1 to 16"),
        (["cost", "resnet20", "--input", "3xx32"], "--input must be positive sizes"),
        (["cost", "resnet20", "--input", "1x32x32"], "can run on, got 1x1x32x32"),
        (["cost", "resnet20", "--input", "999999x999999x999999"], "--input must have at most"),
        (["cost", "resnet20", "--weights", "nowhere.pth"], "nowhere.pth"),
        (["cost", "weights.pth"], "give it with --weights"),
        (["cost", "nowhere.onnx"], "nowhere.onnx"),
        (["cost", "nowhere.safetensors"], "nowhere.safetensors"),
        (["cost", "nowhere.pt2"], "nowhere.pt2"),
        (["cost", "no.such.module:network"], "NETWORK must name an importable module"),
        (["cost", "json:dumps"], "must return a network"),
        (["cost", "resnet20", "--hardware", "loon"], "loom"),
        (["cost", "resnet20", "--json", "--csv"], "only one of"),
        (["cost", "resnet20", "--versus", "vgg77"], "vgg7"),
    ],
)
def test_bad_arguments(arguments, sentence, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["slimbit", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    captured = capsys.readouterr()
    assert stopped.value.code == 2
    assert sentence in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12), max_size=4))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_odd_arguments_never_show_a_traceback(arguments):
    result = CliRunner().invoke(app, ["cost", "resnet8", "--no-layers", *arguments])
    assert result.exception is None or isinstance(result.exception, InputError | SystemExit), result.exception


def test_json_holds_what_it_promises():
    done = _run("cost", "resnet8", "--bits", "2", "--hardware", "loom", "--hardware", "ideal_digital", "--json")
    data = json.loads(done.stdout)
    assert data["schema"] == 1
    assert (data["network"], data["per"]) == ("resnet8", "mac")
    assert data["total"]["macs"] == 12_763_776
    assert [layer["name"] for layer in data["layers"]][:2] == ["conv1", "layer1.0.conv1"]
    assert data["hardware"]["ideal_digital"]["total"] == data["total"]["esn_digital"]


def test_an_argument_of_thousands_of_digits_is_not_said_again_in_full() -> None:
    command = [sys.executable, "-m", "slimbit", "cost", "digits_resnet", "9" * 5000]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 2
    assert found.stderr.startswith("error: NETWORK must be one, got also 999")
    assert len(found.stderr) < 300
