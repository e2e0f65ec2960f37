"""What is written comes back: the same network, bit for bit, from the folder alone."""

import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from artifact_case import small_model, with_levels
from slimbit import zoo
from slimbit.apply.compress import compress
from slimbit.artifacts.manifest import FILES, Manifest, read_manifest
from slimbit.compress.load import load
from slimbit.compress.model import CompressedModel
from slimbit.numerics.levels import LayerLevels
from slimbit.records.config import PAPER, Grid
from slimbit.records.errors import InputError
from slimbit.records.network import NetworkSpec
from slimbit.records.plan import CompressionPlan, LayerPlan
from slimbit.records.setting import Sigma
from slimbit.survey.module import survey_network


def shaken(model: nn.Module) -> nn.Module:
    """Statistics and biases that are not the initial ones."""
    generator = torch.Generator().manual_seed(1)
    for key, value in model.state_dict().items():
        if value.is_floating_point() and value.ndim == 1:
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
        elif key.endswith("num_batches_tracked"):
            value.fill_(7)
    return model.eval()


def compressed(model: nn.Module, example: Tensor, *, grid: Grid = "midrise_zero", per_filter: bool = False) -> Any:
    """The network rounded to about 3 bits, its first layer without its filters 1 and 2; and its survey."""
    spec = survey_network(model, example).spec
    layers = []
    for number, layer in enumerate(spec.layers):
        spread = float(model.get_parameter(layer.weight_key).detach().double().std()) * 0.8
        steps = tuple(spread * (1 + i / 10) for i in range(layer.filters)) if per_filter else (spread,)
        kept = tuple(i for i in range(layer.filters) if i not in (1, 2)) if number == 0 else None
        layers.append(LayerPlan(name=layer.name, steps=steps, grid=grid, kept=kept))
    plan = CompressionPlan(
        network="net",
        policy="sigma",
        layers=tuple(layers),
        setting=Sigma(0.8),
        config=PAPER.model_copy(update={"grid": grid, "statistics": "stored"}),
    )
    return compress(model, plan, spec), spec


def written(folder: Path, source: str = "resnet8@0.5", **how: Any) -> tuple[CompressedModel, NetworkSpec, Manifest]:
    example = torch.zeros(1, *zoo.default_input(source))
    result, spec = compressed(shaken(zoo.network(source)), example, **how)
    small = small_model(
        result.model, spec, result.layers, source=source, shape=tuple(example.shape[1:]), plan=result.plan
    )
    assert small.save(folder) == folder
    return small, spec, read_manifest(folder)


@pytest.mark.parametrize("grid", ["midrise", "midrise_zero", "midtread"])
@pytest.mark.parametrize("per_filter", [False, True])
def test_outputs_are_equal_bit_for_bit(tmp_path: Path, grid: Grid, per_filter: bool) -> None:
    result, *_ = written(tmp_path / "net", grid=grid, per_filter=per_filter)
    found = load(tmp_path / "net")
    network = found.model
    assert (found.plan, found.spec.layers[0].name) == (result.plan, "conv1")
    assert found.accuracy == result.accuracy
    for name, layer in result.layers.items():
        assert torch.equal(found.layers[name].levels, layer.levels), name
        assert torch.equal(found.layers[name].steps, layer.steps), name
    assert type(network) is type(result.model)
    assert not network.training
    for key, value in result.model.state_dict().items():
        assert torch.equal(network.state_dict()[key], value), key
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(network(images), result.model(images))
    assert not network.conv1.weight[1:3].any()


@pytest.mark.parametrize("source", ["vgg7@0.05", "mobilenet_v2@0.25", "resnet18@0.1"])
def test_every_family_comes_back_from_its_name(tmp_path: Path, source: str) -> None:
    result, *_ = written(tmp_path / "net", source)
    network = load(tmp_path / "net").model
    assert all(torch.equal(network.state_dict()[key], value) for key, value in result.model.state_dict().items())


def test_manifest_tells_what_is_in_the_folder(tmp_path: Path) -> None:
    result, spec, manifest = written(tmp_path / "net")
    assert read_manifest(tmp_path / "net") == manifest
    assert sorted(p.name for p in (tmp_path / "net").iterdir()) == sorted([*FILES, "slimbit.json"])
    assert manifest.plan.digest == result.plan.digest()
    assert (manifest.plan.policy, manifest.plan.setting) == ("sigma", "k = 0.8")
    assert manifest.accuracy is not None
    assert (manifest.accuracy.value, manifest.accuracy.uncompressed) == (91.25, 92.0)
    assert manifest.cost["macs"] == 4  # one weight at 2 x 2 positions
    assert [layer.name for layer in manifest.layers] == [layer.name for layer in spec.layers]
    assert manifest.files["levels.bin"].bytes == (tmp_path / "net" / "levels.bin").stat().st_size


def test_levels_take_less_than_the_widths_and_scales(tmp_path: Path) -> None:
    """ESN'_d counts every weight at the width of its filter; with the scales that is the yardstick."""
    result, spec, manifest = written(tmp_path / "net", "resnet20-A")
    widths = sum(
        float(torch.log2(2 * layer.levels.flatten(1).abs().amax(1) + 1).ceil().sum()) * layer.levels[0].numel()
        for layer in result.layers.values()
    )
    scales = 4 * len(spec.layers)
    assert manifest.files["levels.bin"].bytes <= 1.05 * (widths / 8 + scales)
    assert manifest.files["levels.bin"].bytes < 0.85 * widths / 8  # measured: 0.77


class Odd(nn.Module):
    """Layers that keep their weights in other orders and types."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 6, 3, groups=2)
        self.tied = nn.Linear(6, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, 6)
        self.head.weight = self.tied.weight
        self.register_buffer("table", torch.arange(5))

    def forward(self, x: Tensor) -> Any:
        x = self.tied(self.up(x).mean(dim=(2, 3)))
        return self.head(self.attention(x[:, None], x[:, None], x[:, None])[0])


def odd_levels(model: nn.Module, spec: NetworkSpec) -> dict[str, LayerLevels]:
    """Random levels for the transposed layer, one third of the attention's stacked weight, and the tied weight."""
    generator = torch.Generator().manual_seed(0)
    names = [
        next(n for n in (layer.name for layer in spec.layers) if wanted in n) for wanted in ("up", "q_proj", "tied")
    ]
    found = {}
    for name in names:
        shape = spec.layer(name).shape
        levels = torch.randint(-4, 4, shape, generator=generator) + 0.5
        found[name] = LayerLevels(levels, torch.rand(shape[0], generator=generator) + 0.1, "midrise")
    return found


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_any_module_comes_back_into_a_given_one(tmp_path: Path, kind: torch.dtype) -> None:
    model = Odd().eval()
    spec = survey_network(model, torch.zeros(1, 4, 5, 5)).spec
    model = model.to(kind)
    levels = odd_levels(model, spec)
    small = with_levels(model, spec, levels, state={"up.bias": torch.ones(6)})
    plan = CompressionPlan(network="odd", policy="mine", layers=())
    small_model(small, spec, levels, source="Odd", shape=(4, 5, 5), plan=plan).save(tmp_path / "net")
    given = Odd().train()
    before = {key: value.clone() for key, value in given.state_dict().items()}
    network = load(tmp_path / "net", model=given).model
    assert given.training
    assert all(torch.equal(value, before[key]) for key, value in given.state_dict().items())
    assert not network.training
    assert network.head.weight is network.tied.weight
    for key, value in small.state_dict().items():
        assert network.state_dict()[key].dtype == value.dtype
        assert torch.equal(network.state_dict()[key], value), key
    # by the formula: filters of a transposed convolution lie along its second dimension
    q, step = levels["up"].levels, levels["up"].steps
    assert torch.equal(network.up.weight[2, 1], (q[3 + 1, 0] * step[3 + 1]).to(kind))  # second group, its filter 1
    with pytest.raises(InputError, match="model must be given for this artifact: network name must be one"):
        load(tmp_path / "net")


def test_a_callable_runs_only_where_code_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_networks.py").write_text(
        "from torch import nn\n"
        "calls = []\n"
        "def small():\n"
        "    calls.append(1)\n"
        "    return nn.Sequential(nn.Linear(3, 2))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    model = nn.Sequential(nn.Linear(3, 2))
    spec = survey_network(model, torch.zeros(1, 3)).spec
    levels = {"0": LayerLevels(torch.full((2, 3), 1.5), torch.tensor(0.5), "midrise")}
    small = with_levels(model, spec, levels)
    small_model(small, spec, levels, source="own_networks:small", shape=(3,)).save(tmp_path / "net")
    with pytest.raises(InputError, match=r"model must be given .* or allow_code=True where you trust it"):
        load(tmp_path / "net")
    network = load(tmp_path / "net", allow_code=True).model
    assert torch.equal(network[0].weight, torch.full((2, 3), 0.75))
    import own_networks

    assert own_networks.calls == [1]


def test_loading_leaves_the_callers_random_numbers_alone(tmp_path: Path) -> None:
    written(tmp_path / "net")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load(tmp_path / "net")
    assert torch.equal(torch.rand(3), expected)


def test_the_same_again_is_fine_and_equal_to_the_byte(tmp_path: Path) -> None:
    result, *_ = written(tmp_path / "one")
    times = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "one").iterdir()}
    for folder in ("one", "two"):
        result.save(tmp_path / folder)
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "one").iterdir()} == times
    for name in times:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_other_folders_are_refused_and_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_text("cat")
    with pytest.raises(InputError, match=r"new or empty folder, got .*photos, which holds something else"):
        written(tmp_path / "photos")
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["cat.png"]
    written(tmp_path / "net")
    before = (tmp_path / "net" / "slimbit.json").read_bytes()
    with pytest.raises(InputError, match="holds another or a damaged artifact"):
        written(tmp_path / "net", grid="midtread")
    assert (tmp_path / "net" / "slimbit.json").read_bytes() == before
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="new or empty folder"):
        written(tmp_path / "file")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "net", "photos"]


def test_an_empty_folder_and_missing_parents_will_do(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "a" / "b"):
        written(folder)
        assert load(folder)
        umask = os.umask(0)
        os.umask(umask)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o777 & ~umask


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"where it can be written, got .*net: No space left on device"):
        written(tmp_path / "net")
    assert not list(tmp_path.iterdir())


def with_other_weights(result: Any, levels: dict[str, LayerLevels]) -> None:
    result.model.conv1.weight.data[0, 0, 0, 0] += 1


def with_bad_steps(result: Any, levels: dict[str, LayerLevels]) -> None:
    levels["conv1"] = LayerLevels(levels["conv1"].levels, torch.tensor(0.0), "midtread")


def with_thirds(result: Any, levels: dict[str, LayerLevels]) -> None:
    levels["conv1"] = LayerLevels(levels["conv1"].levels / 3, levels["conv1"].steps * 3, "midtread")
    result.model.conv1.weight.data = levels["conv1"].weights()


def with_another_grid(result: Any, levels: dict[str, LayerLevels]) -> None:
    levels["conv1"] = LayerLevels(levels["conv1"].levels, levels["conv1"].steps, "midrise_zero")


def with_an_unknown_layer(result: Any, levels: dict[str, LayerLevels]) -> None:
    levels["conv_1"] = levels.pop("conv1")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (with_other_weights, "weights of layer 'conv1' must be exactly step"),
        (with_bad_steps, "steps of layer 'conv1' must be positive"),
        (with_thirds, "levels of layer 'conv1' must be whole or half"),
        (with_another_grid, "layer 'conv1': levels must lie on the grid midrise_zero"),
        (with_an_unknown_layer, "got 'conv_1'; did you mean conv1"),
    ],
)
def test_what_is_not_the_networks_is_refused(tmp_path: Path, fault: Callable[..., None], message: str) -> None:
    model = shaken(zoo.network("resnet8@0.5"))
    result, spec = compressed(model, torch.zeros(1, 3, 32, 32), grid="midtread")
    levels = dict(result.layers)
    fault(result, levels)
    small = small_model(result.model, spec, levels, source="resnet8@0.5", shape=(3, 32, 32), plan=result.plan)
    with pytest.raises(InputError, match=message):
        small.save(tmp_path / "net")
    assert not list(tmp_path.iterdir())
