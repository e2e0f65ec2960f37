"""Hardware cost models against numbers worked out by hand and a slow loop written from the formulas."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import nn

import slimbit
from slimbit.measure.cost import with_hardware
from slimbit.measure.hardware import (
    HardwareModel,
    hardware_cost,
    hardware_names,
    load_hardware,
    sparse_model,
)
from slimbit.measure.hardware_toml import HardwareTable, Mode
from slimbit.records.cost import LayerCost
from slimbit.records.errors import InputError

# A 1x1 convolution, 2 filters of 3 weights at 10 positions: 6 weights, 60 MACs. Levels:
#   filter 0:  0.5  -1.5   0        filter 1:  3.5  0  0.5
LEVELS = ((0.5, -1.5, 0.0), (3.5, 0.0, 0.5))
LAYER = LayerCost(
    name="conv",
    kind="conv2d",
    shape=(2, 3, 1, 1),
    filters=2,
    positions=10,
    weights=6,
    grid="midrise_zero",
    weight_bits=3,
    activation_bits=5,
    steps=(0.1,),
    filter_bits=(2, 3),
    parameters=8,
    macs=60,  # 10 x 6
    nonzero_macs=40,  # 10 x 4
    esn_analog=150.0,  # 10 x (0.25 + 2.25 + 12.25 + 0.25)
    esn_digital=70,  # 10 x (1 + 2 + 3 + 1)
    esn_filterwise=150,  # 10 x (3 x 2 + 3 x 3)
    esn_analog_class_a=735.0,  # 10 x 6 x 3.5^2
    bit_operations=900,  # 60 x 3 x 5
    weight_bytes=1.875,
    mean_bits=7 / 6,
)
FLOAT = replace(
    LAYER,
    name="stem",
    grid="float32",
    weight_bits=32,
    activation_bits=32,
    nonzero_macs=60,
    esn_analog=None,
    esn_analog_class_a=None,
    esn_digital=1920,
    esn_filterwise=1920,
)


def total(name: str, *layers: LayerCost) -> float:
    return hardware_cost(load_hardware(name), layers).total


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("scalar_cpu", 40),  # nnz c
        ("simd", 15),  # 60 / 4: 5 bits fit an 8-bit lane
        ("int8_array", 60),  # 60 x 1 x 1
        ("stripes", 18.75),  # 60 x 5 / 16
        ("loom", 3.515625),  # 60 x 5 x 3 / 256
        ("bit_fusion", 30),  # 60 x p2(2) x p2(3) / 16 = 60 x 2 x 4 / 16
        ("filterwise", 150),
        ("sparse", 60),  # min(60, 40 x 1.5)
        ("analog_class_a", 735),
        ("analog_class_b", 150),
        ("ideal_digital", 70),
    ],
)
def test_golden_cost(name: str, expected: float) -> None:
    assert total(name, LAYER) == expected


def test_every_built_in_model_has_a_golden_number() -> None:
    marks = test_golden_cost.pytestmark  # type: ignore[attr-defined]
    assert tuple(name for name, _ in marks[0].args[1]) == hardware_names()


def slow_cost(name: str, weight_bits: int, activation_bits: int) -> float:
    """Cost MAC by MAC, each MAC costed on its own by what the machine does with it."""

    def power(slices: float) -> int:
        width = 1
        while width < slices:
            width *= 2
        return width

    cost = 0.0
    for _position in range(10):
        for filter_levels in LEVELS:
            for level in filter_levels:
                widest = max(weight_bits, activation_bits)
                cost += {
                    "scalar_cpu": 1.0 if level else 0.0,
                    "simd": 0.25 if widest <= 8 else 0.5 if widest <= 16 else 1.0,
                    "int8_array": math.ceil(weight_bits / 8) * math.ceil(activation_bits / 8),
                    "stripes": activation_bits / 16,
                    "loom": weight_bits * activation_bits / 256,
                    "bit_fusion": power(weight_bits / 2) * power(activation_bits / 2) / 16,
                }[name]
    return cost


@pytest.mark.parametrize("name", ["scalar_cpu", "simd", "int8_array", "stripes", "loom", "bit_fusion"])
def test_agrees_with_a_slow_loop_at_every_width(name: str) -> None:
    for weight_bits in range(1, 33):
        for activation_bits in range(1, 33):
            layer = replace(LAYER, weight_bits=weight_bits, activation_bits=activation_bits)
            assert total(name, layer) == pytest.approx(slow_cost(name, weight_bits, activation_bits), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "bits", "picojoules"),
    [
        ("scalar_cpu", 8, 184.0),  # 40 non-zero MACs x (3.7 + 0.9), float32 whatever the bits
        ("simd", 8, 18.0),  # 60 x (0.2 int8 multiply + 0.1 int32 add)
        ("simd", 9, 90.0),  # 60 x (1.1 + 0.4), fp16
        ("simd", 17, 276.0),  # 60 x (3.7 + 0.9), fp32
        ("int8_array", 8, 18.0),  # 60 passes x 0.3
        ("int8_array", 9, 72.0),  # 60 x 2 x 2 passes x 0.3
        ("stripes", 8, None),
        ("loom", 8, None),
        ("bit_fusion", 8, None),
        ("filterwise", 8, None),
        ("sparse", 8, None),
        ("analog_class_a", 8, None),
        ("analog_class_b", 8, None),
        ("ideal_digital", 8, None),
    ],
)
def test_energy(name: str, bits: int, picojoules: float | None) -> None:
    cost = hardware_cost(load_hardware(name), [replace(LAYER, weight_bits=bits, activation_bits=bits)])
    assert cost.picojoules == (None if picojoules is None else pytest.approx(picojoules))


def test_sum_over_layers_keeps_their_order() -> None:
    cost = hardware_cost(load_hardware("simd"), [LAYER, FLOAT])
    assert cost.layers == (15, 60)
    assert cost.total == 75
    assert cost.picojoules == pytest.approx(18 + 276)
    assert (cost.model, cost.unit) == ("simd", "float32 MAC cycles")
    assert cost.source


def test_removed_layer_costs_nothing_anywhere() -> None:
    nothing = dict.fromkeys(
        ["macs", "nonzero_macs", "esn_digital", "esn_filterwise", "bit_operations", "weight_bits"], 0
    )
    gone = replace(LAYER, **nothing, esn_analog=0.0, esn_analog_class_a=0.0, weight_bytes=0.0, filter_bits=(0, 0))
    assert {total(name, gone) for name in hardware_names()} == {0.0}


@pytest.mark.parametrize("name", ["analog_class_a", "analog_class_b"])
def test_analog_refuses_a_float_layer_and_says_what_to_do(name: str) -> None:
    with pytest.raises(InputError, match=f"layer 'stem' must be quantized .*'{name}', got float32: .*--bits 8"):
        total(name, LAYER, FLOAT)


def test_simd_refuses_what_no_lane_holds() -> None:
    with pytest.raises(InputError, match=r"layer 'conv' must have at most 32 bits .*got 64"):
        total("simd", replace(LAYER, weight_bits=64))


@pytest.mark.parametrize(
    ("overhead", "density", "paid"),
    # 600 MACs: 300 x 1.5; 300 x 2 = dense; 400 x 1.5 = dense; 540 x 1.5 is over, so dense; no overhead
    [(0.5, 300, 450), (1.0, 300, 600), (0.5, 400, 600), (0.5, 540, 600), (0.0, 540, 540)],
)
def test_sparse_overhead(overhead: float, density: int, paid: float) -> None:
    layer = replace(LAYER, macs=600, nonzero_macs=density)
    assert hardware_cost(sparse_model(overhead), [layer]).total == paid


@pytest.mark.parametrize("overhead", [-0.1, math.inf, math.nan])
def test_sparse_overhead_is_checked(overhead: float) -> None:
    with pytest.raises(InputError, match="overhead"):
        sparse_model(overhead)


def my_machine(layer: LayerCost) -> float:
    return 2 * layer.weights


MY_MODEL = HardwareModel("my machine", "cycles", my_machine, lambda layer: 0.5 * layer.weights)
NOT_A_MODEL = 3


class TestOwnFunction:
    def test_function(self) -> None:
        cost = hardware_cost(load_hardware(my_machine), [LAYER])
        assert (cost.total, cost.picojoules) == (12, None)  # 2 x 6 weights
        assert cost.model.endswith(":my_machine")

    def test_model_is_returned_as_it_is(self) -> None:
        assert load_hardware(MY_MODEL) is MY_MODEL
        assert hardware_cost(MY_MODEL, [LAYER]).picojoules == 3

    def test_one_layer_without_energy_leaves_the_total_unknown(self) -> None:
        model = replace(MY_MODEL, energy=lambda layer: 1.0 if layer is LAYER else None)
        assert hardware_cost(model, [LAYER, FLOAT]).picojoules is None

    def test_from_a_file(self) -> None:
        assert hardware_cost(load_hardware(f"{__file__}:my_machine"), [LAYER]).total == 12
        assert load_hardware(f"{__file__}:MY_MODEL").name == "my machine"

    def test_from_a_module(self) -> None:
        assert hardware_cost(load_hardware("operator:attrgetter.__name__.__len__"), []).total == 0

    @pytest.mark.parametrize(
        ("where", "message"),
        [
            ("no_such_package:cost", "must name an importable module, got 'no_such_package': No module named"),
            ("math:no_such_function", "must name something in math, got 'no_such_function'"),
            ("math:pi", "'math:pi' must be a function, got float"),
            (f"{__file__}:NOT_A_MODEL", "must be a function, got int"),
            ("/no/such/file.py:cost", "must name an importable module, got '/no/such/file.py'"),
            (":", "must name an importable module, got ''"),
        ],
    )
    def test_wrong_place(self, where: str, message: str) -> None:
        with pytest.raises(InputError, match=message):
            load_hardware(where)

    @pytest.mark.parametrize("answer", [math.nan, math.inf, -1, True, None, "12", 10**400, 1j])
    def test_answer_must_be_a_cost(self, answer: object) -> None:
        model = HardwareModel("odd", "cycles", lambda layer: answer)  # type: ignore[arg-type, return-value]
        with pytest.raises(InputError, match="cost of layer 'conv' on hardware model 'odd' must be a finite"):
            hardware_cost(model, [LAYER])

    def test_energy_must_be_an_energy(self) -> None:
        model = replace(MY_MODEL, energy=lambda layer: -1.0)
        with pytest.raises(InputError, match="energy of layer 'conv' on hardware model 'my machine'"):
            hardware_cost(model, [LAYER])

    def test_energy_that_raises(self) -> None:
        model = replace(MY_MODEL, energy=lambda layer: layer.macs / 0)
        with pytest.raises(InputError, match=r"energy of layer 'conv' .*ZeroDivisionError"):
            hardware_cost(model, [LAYER])

    def test_own_input_error_is_passed_on(self) -> None:
        def refuse(layer: LayerCost) -> float:
            raise InputError(f"{layer.name} is too big for me")

        for model in (replace(MY_MODEL, function=refuse), replace(MY_MODEL, energy=refuse)):
            with pytest.raises(InputError, match=r"^conv is too big for me$"):
                hardware_cost(model, [LAYER])

    def test_function_that_raises(self) -> None:
        model = HardwareModel("odd", "cycles", lambda layer: layer.macs / 0)
        with pytest.raises(InputError, match=r"layer 'conv' .*'odd' .*ZeroDivisionError: division by zero"):
            hardware_cost(model, [LAYER])

    def test_sum_must_be_finite_too(self) -> None:
        model = HardwareModel("odd", "cycles", lambda layer: 1e308)
        with pytest.raises(InputError, match="'odd' must be finite"):
            hardware_cost(model, [LAYER] * 2)


def test_unknown_name_names_the_closest() -> None:
    with pytest.raises(InputError, match="'bitfusion'; did you mean bit_fusion"):
        load_hardware("bitfusion")
    with pytest.raises(InputError, match=r"'qqq'\. It must be"):
        load_hardware("qqq")
    with pytest.raises(InputError, match="got 3"):
        load_hardware(3)  # type: ignore[arg-type]


# The built-in machines whose formula a TOML table can say, said as a TOML table.
EQUIVALENTS = {
    "scalar_cpu": "skips_zeros = true\n[[mode]]\nweight_bits = 64\nactivation_bits = 64\ncost_per_mac = 1",
    "simd": "".join(
        f"[[mode]]\nweight_bits = {bits}\nactivation_bits = {bits}\n"
        f"cost_per_mac = {bits / 32}\npicojoules_per_mac = {picojoules}\n"
        for bits, picojoules in [(8, 0.3), (16, 1.5), (32, 4.6)]
    ),
    "int8_array": (
        "[[mode]]\nweight_bits = 64\nactivation_bits = 64\nweight_slice_bits = 8\n"
        "activation_slice_bits = 8\ncost_per_mac = 1\npicojoules_per_mac = 0.3"
    ),
    "stripes": ("[[mode]]\nweight_bits = 64\nactivation_bits = 64\nactivation_slice_bits = 1\ncost_per_mac = 0.0625"),
    "loom": (
        "[[mode]]\nweight_bits = 64\nactivation_bits = 64\nweight_slice_bits = 1\n"
        "activation_slice_bits = 1\ncost_per_mac = 0.00390625"
    ),
    "bit_fusion": "".join(
        f"[[mode]]\nweight_bits = {weight}\nactivation_bits = {activation}\ncost_per_mac = {weight * activation / 64}\n"
        for weight in (2, 4, 8, 16, 32)
        for activation in (2, 4, 8, 16, 32)
    ),
    "sparse": (
        "skips_zeros = true\nzero_overhead = 0.5\n[[mode]]\nweight_bits = 64\nactivation_bits = 64\ncost_per_mac = 1"
    ),
}


@pytest.mark.parametrize("name", EQUIVALENTS)
def test_toml_table_equals_the_built_in_machine(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"my_{name}.toml"
    path.write_text(EQUIVALENTS[name], encoding="utf-8")
    mine, built_in = load_hardware(path), load_hardware(name)
    for weight_bits in range(1, 33):
        for activation_bits in range(1, 33):
            layer = replace(LAYER, weight_bits=weight_bits, activation_bits=activation_bits)
            left, right = hardware_cost(mine, [layer]), hardware_cost(built_in, [layer])
            assert left.total == pytest.approx(right.total, rel=1e-12)
            if left.picojoules is not None:
                assert left.picojoules == pytest.approx(right.picojoules)


class TestToml:
    def load(self, folder: Path, text: str) -> HardwareModel:
        path = folder / "edge-npu.toml"
        path.write_text(text, encoding="utf-8")
        return load_hardware(str(path))

    def test_rounds_up_to_the_cheapest_mode_that_holds_the_layer(self, tmp_path: Path) -> None:
        model = self.load(
            tmp_path,
            "[[mode]]\nweight_bits = 8\nactivation_bits = 8\ncost_per_mac = 1.0\npicojoules_per_mac = 0.3\n"
            "[[mode]]\nweight_bits = 4\nactivation_bits = 8\ncost_per_mac = 0.5\npicojoules_per_mac = 0.2\n",
        )
        # 3x5 bits: both modes hold it, 4x8 is cheaper: 60 x 0.5, 60 x 0.2
        cheap = hardware_cost(model, [LAYER])
        assert (cheap.total, cheap.picojoules) == (30, pytest.approx(12))
        # 5x5 bits: only 8x8: 60 x 1, 60 x 0.3
        dear = hardware_cost(model, [replace(LAYER, weight_bits=5)])
        assert (dear.total, dear.picojoules) == (60, pytest.approx(18))

    def test_layer_that_fits_no_mode(self, tmp_path: Path) -> None:
        model = self.load(tmp_path, "[[mode]]\nweight_bits = 8\nactivation_bits = 8\ncost_per_mac = 1\n")
        message = r"layer 'stem' must fit a mode of hardware model 'edge-npu' \(8x8 bits\), got 32x32 bits"
        with pytest.raises(InputError, match=message):
            hardware_cost(model, [LAYER, FLOAT])

    def test_what_is_not_given(self, tmp_path: Path) -> None:
        model = self.load(tmp_path, "[[mode]]\nweight_bits = 8\nactivation_bits = 8\ncost_per_mac = 1\n")
        assert (model.name, model.unit, model.description, model.energy) == ("edge-npu", "cycles", "", None)
        assert model.source.endswith("edge-npu.toml")

    def test_texts(self, tmp_path: Path) -> None:
        model = self.load(
            tmp_path,
            'name = "Edge NPU"\nunit = "ns"\nsource = "data sheet"\ndescription = "fast"\n'
            "[[mode]]\nweight_bits = 8\nactivation_bits = 8\ncost_per_mac = 1\n",
        )
        assert (model.name, model.unit, model.source, model.description) == (
            "Edge NPU",
            "ns",
            "data sheet",
            "fast",
        )


HOW_TO = Path(__file__).parents[2] / "docs" / "how-to" / "own-hardware-model.md"


def test_every_table_of_the_how_to_is_a_machine(tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", HOW_TO.read_text(encoding="utf-8"), re.DOTALL)
    layer = replace(LAYER, weight_bits=9, activation_bits=12)
    costs = []
    for block in blocks:
        path = tmp_path / "page.toml"
        path.write_text(block, encoding="utf-8")
        machine = load_hardware(path)
        if "[[layer]]" in block:  # a table of measured times, of its own layers only
            assert machine.name == "cpu"
            continue
        costs.append(hardware_cost(machine, [layer]).total)
    # Stripes 60 x 12 / 16; 8x8-bit array 60 x ceil(9/8) x ceil(12/8); sparse min(60, 40 x 1.75)
    assert costs == [45, 240, 60]


def test_the_how_to_names_every_key() -> None:
    page = HOW_TO.read_text(encoding="utf-8")
    keys = {field.name for kind in (HardwareTable, Mode) for field in fields(kind)} - {"mode"}
    assert [key for key in sorted(keys) if f"| `{key}` |" not in page] == []


NPU = """
name = "npu"
unit = "cycles"
source = "data sheet"

[[mode]]
weight_bits = 8
activation_bits = 8
cost_per_mac = 0.0625
"""


def priced(factor: float) -> HardwareModel:
    return HardwareModel("npu", "units", lambda layer: factor * layer.macs)


def test_two_models_of_one_name_are_refused_and_none_vanishes() -> None:
    report = slimbit.cost(nn.Linear(3, 2), torch.zeros(1, 3), bits=2)
    refusal = "names of different hardware models must differ, got 'npu' at 12 units beside another 'npu' at 6 units"
    with pytest.raises(InputError, match=refusal):
        with_hardware(report, [priced(1.0), priced(2.0)])
    once = with_hardware(report, priced(1.0))
    with pytest.raises(InputError, match=refusal):
        with_hardware(once, priced(2.0))
    assert with_hardware(once, priced(1.0)) == once
    both = with_hardware(once, ["loom", "stripes"])
    assert list(both.hardware) == ["npu", "loom", "stripes"]
    assert both.hardware["npu"].total == 6  # 3 x 2 MACs


def test_a_file_given_twice_counts_once_and_another_of_its_name_is_refused(tmp_path: Path) -> None:
    paths = [tmp_path / folder / "npu.toml" for folder in "abc"]
    for path, cost in zip(paths, ("0.0625", "0.0625", "0.125"), strict=True):
        path.parent.mkdir()
        path.write_text(NPU.replace("0.0625", cost), encoding="utf-8")
    net, example = nn.Linear(3, 2), torch.zeros(1, 3)
    twice = slimbit.cost(net, example, bits=2, hardware=paths[:2])
    assert {name: entry.total for name, entry in twice.hardware.items()} == {"npu": 0.375}  # 6 MACs at 1/16
    with pytest.raises(InputError, match=r"got 'npu' of \S+c/npu.toml at 0.75 cycles beside another 'npu' at 0.375"):
        slimbit.cost(net, example, bits=2, hardware=paths)


def test_ratios_of_hardware_are_in_the_order_asked_for_in_every_process() -> None:
    """Python's hash of a text differs from process to process, unless PYTHONHASHSEED is set."""
    names = hardware_names()
    code = (
        "import slimbit, torch, json; layer = torch.nn.Linear(3, 2)\n"
        f"report = slimbit.cost(layer, torch.zeros(1, 3), bits=2, hardware={names!r})\n"
        "print(json.dumps(list(report.versus(report).ratios())))"
    )
    for seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        )
        assert tuple(json.loads(done.stdout))[-len(names) :] == names


def test_reports_are_compared_only_where_they_count_the_same() -> None:
    layer, example = nn.Conv2d(3, 2, 3), torch.zeros(1, 3, 5, 5)
    per_image, per_weight = (slimbit.cost(layer, example, bits=2, per=per) for per in ("mac", "parameter"))
    with pytest.raises(InputError, match="compared reports must both be per mac, got one per parameter"):
        per_image.versus(per_weight)
    with pytest.raises(InputError, match="compared reports must both be per parameter, got one per mac"):
        per_weight.versus(per_image)
    assert per_weight.versus(per_weight).ratios()["macs"] == 1
