"""Networks and plans that pruning cannot or must not handle: each works or says clearly what is wrong."""

import copy
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm
from torch.nn.utils import prune as torch_prune

sys.path.insert(0, str(Path(__file__).parents[1]))

import pruning_case as case
import slimbit
from slimbit.apply.mask import held_masks, mask
from slimbit.apply.reestimate import reestimate
from slimbit.apply.surgery import prune, rebuild
from slimbit.compress.prepared import prepare
from slimbit.compress.prune import Pruner
from slimbit.compress.tuning import Tuning
from slimbit.records.config import PruneConfig, TuneConfig
from slimbit.records.errors import InputError
from slimbit.records.keep import AxisKeep, KeepPlan, plan_of_units
from slimbit.survey.filter_groups import find_filter_groups
from slimbit.training.images import TrainImages
from slimbit.training.objectives import distillation
from slimbit.training.run import train_network
from slimbit.training.task import TrainTask
from slimbit.zoo import network
from structures import STRUCTURES, Shell


def plain(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return case.lively(nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(),
            nn.Linear(64, 5),
        ))  # fmt: skip


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def both(model: nn.Module, plan: KeepPlan, x: Tensor, tolerance: float = 1e-5) -> nn.Module:
    """Both forms agree, and the caller's network is untouched."""
    before = [(key, value.clone()) for key, value in model.state_dict().items()]
    modes = [m.training for m in model.modules()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    small = prune(model, plan, x[:1])
    found, wanted = outputs(small, x), outputs(mask(model, plan, x[:1]), x)
    assert torch.allclose(found.float(), wanted.float(), atol=tolerance * max(1.0, float(wanted.abs().max())))
    assert all(torch.equal(a, b) and k == j for (k, a), (j, b) in zip(before, model.state_dict().items(), strict=True))
    assert [m.training for m in model.modules()] == modes
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    return small


@pytest.mark.parametrize(
    "other",
    [
        lambda: case.foreign("unet"),
        lambda: network("resnet8"),
        lambda: nn.Sequential(nn.Linear(3, 6)),
        lambda: nn.Sequential(nn.Conv2d(3, 7, 3)),
    ],
)
def test_plans_for_another_network(other) -> None:
    model, x = plain(), case.images()
    _, plan = case.halved(model, x[:1], constants="zero")
    for use in (lambda m: prune(m, plan, x[:1]), lambda m: mask(m, plan), lambda m: held_masks(plan, m)):
        with pytest.raises(InputError, match="plan must be for this network"):
            use(other())
    with pytest.raises(InputError, match="plan must be for this network"):
        rebuild(other(), plan, {})


def test_plans_that_fit_nobody() -> None:
    """Filters without what reads them, and parts of groups: found before anybody uses the result."""
    model, x = plain(), case.images()
    torn = KeepPlan(network="n", policy="mine", axes=(AxisKeep(name="0", role="filters", size=6, kept=(0,)),))
    with pytest.raises(InputError, match="code of module '1' must follow the smaller sizes"):
        prune(model, torn, x[:1])
    twisted = (
        AxisKeep(name="3", role="filters", size=4, kept=(0,)),
        AxisKeep(name="6", role="inputs", size=64, kept=tuple(range(16, 32))),
    )
    with pytest.raises(
        InputError, match=r"outputs must stay those of the masked network, got others from (module '6'|the network) on"
    ):
        prune(model, KeepPlan(network="n", policy="mine", axes=twisted, constants="zero"), x[:1])
    grouped = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 1, groups=4))
    for kept in ((0, 1), (0, 2)):
        axes = (
            AxisKeep(name="1", role="filters", size=8, kept=(0, 2)),
            AxisKeep(name="1", role="inputs", size=8, kept=kept),
        )
        with pytest.raises(InputError, match="whole groups of '1'"):
            prune(grouped, KeepPlan(network="n", policy="mine", axes=axes), torch.zeros(1, 4, 2, 2))


def test_state_dicts_of_another_network() -> None:
    model, x = plain(), case.images()
    _, plan = case.halved(model, x[:1])
    with pytest.raises(InputError, match="state dict must be that of the pruned network"):
        rebuild(model, plan, model.state_dict())


def test_folding_needs_an_example() -> None:
    model, x = plain(), case.images()
    _, plan = case.halved(model, x[:1])
    with pytest.raises(InputError, match="example input must be given for a plan that folds constants, got none"):
        mask(model, plan)
    mask(model, replace(plan, axes=()))


class Steered(nn.Module):
    """Which way data goes depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.left, self.right = plain()[:3], nn.Conv2d(6, 4, 3), nn.Conv2d(6, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        x = self.left(x) if float(x.mean()) > 0 else self.right(x)
        return self.head(x.mean((2, 3)))


def test_control_flow_that_reads_values() -> None:
    """The path that the example takes is found; what it does not reach stays, and a cut through it is refused."""
    model, x = Steered().eval(), case.images()
    filter_groups = find_filter_groups(model, x[:1])
    assert filter_groups.fixed["right"] == "it is never called"
    assert filter_groups.fixed["body.0"] == "mean does not keep channels apart"
    _, plan = case.halved(model, x[:1])
    both(model, plan, x)
    assert {axis.name for axis in plan.axes} == {"left", "head"}


class Thrifty(nn.Module):
    """A way that only training takes, and one that only bright images take."""

    def __init__(self, *, way: str) -> None:
        super().__init__()
        self.body, self.side, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 5, 1)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x).relu()
        takes = self.training if self.way == "training" else float(x.mean()) > 1
        return (self.head(y) + (self.head(self.side(y)) if takes else 0)).mean((2, 3))


TUNE = TuneConfig(epochs=1, train={"batch_size": 4})


def four_images() -> TrainTask:
    x = case.images(4)
    images = TrainImages(pixels=x.numpy(), mean=(0.0,) * 3, std=(1.0,) * 3, labels=np.arange(4))
    return TrainTask(images=images, example_input=x[:1])


@pytest.mark.parametrize("way", ["training", "bright"])
def test_ways_that_the_example_does_not_take(way: str, tmp_path: Path) -> None:
    model, x = Thrifty(way=way).eval(), case.images(4)
    tuning = Tuning(task=four_images(), config=TUNE.training(), tune=TUNE)
    pruner = Pruner(prepare(model, x[:1], [x + 2.0], name="thrifty"), PruneConfig(tune=TUNE), tuning)
    words = r"pruned thrifty must run on its images, got .* channels.*; layers that the example does not reach: side"
    with pytest.raises(InputError, match=words):
        pruner.prune(pruner.plan(0.5), tmp_path, str)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tuning_in_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"weights must be float32 or wider to be trained, got torch.b?float16 in 0"):
        train_network(plain().to(dtype), four_images(), TUNE.training(), tmp_path)


def test_a_frozen_batchnorm_stays_as_it_is_when_tuned(tmp_path: Path) -> None:
    model = plain()
    model[1].requires_grad_(requires_grad=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train_network(model, four_images(), TUNE.training(), tmp_path)
    same = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert same == {name for name in before if name.startswith("1.")}


@pytest.mark.parametrize("make", [lambda x: {"a": x}, lambda x: x[:, :1], lambda x: x[:, 0]])
def test_outputs_that_cannot_be_distilled(make) -> None:
    model = nn.Sequential(nn.Flatten())
    model.register_forward_hook(lambda _module, _inputs, output: make(output))
    with pytest.raises(InputError, match="outputs must be one tensor of logits of two classes or more"):
        distillation(model)(model, torch.ones(2, 3), None)


def test_a_wrong_plan_is_not_hidden_by_values_that_are_no_numbers() -> None:
    model, x = plain(), case.images()
    _, plan = case.halved(model, x[:1])
    with torch.no_grad():
        model[6].bias[0] = float("nan")
    small = prune(model, plan, x[:1])
    assert outputs(small, x).isnan().any(dim=0).tolist() == [True, *[False] * 4]
    wrong = [
        replace(axis, kept=axis.removed) if (axis.name, axis.role) == ("3", "inputs") else axis for axis in plan.axes
    ]
    with pytest.raises(InputError, match="outputs must stay those of the masked network"):
        prune(model, replace(plan, axes=tuple(wrong)), x[:1])


class Counting(nn.Module):
    """What comes out beside the logits depends on how many channels there are."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv, self.head = kind, nn.Conv2d(3, 6, 3), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> object:
        x = F.relu(self.conv(x)).mean((2, 3))
        y = self.head(x)
        if self.kind == "lost":
            return (y, y.mean(1)) if self.conv.out_channels == 6 else (y,)
        if self.kind == "new":
            return (y,) if self.conv.out_channels == 6 else (y, y.mean(1))
        if self.kind == "beside logits":
            return {"logits": y, "scale": y.mean(1) * self.conv.out_channels}
        return (y.argmax(1) if self.conv.out_channels == 6 else y.argmin(1)) if self.kind == "indices" else y.argmax(1)


@pytest.mark.parametrize("kind", ["lost", "new", "beside logits", "indices"])
def test_every_output_is_compared(kind: str) -> None:
    x = case.images()
    model = case.lively(Counting(kind))
    _, plan = case.halved(model, x[:1])
    with pytest.raises(
        InputError, match="outputs must stay those of the masked network, got others from the network on"
    ):
        prune(model, plan, x[:1])


def test_outputs_that_are_no_floating_point_numbers_are_those_of_the_masked_network() -> None:
    x = case.images()
    model = case.lively(Counting("classes"))
    _, plan = case.halved(model, x[:1])
    assert torch.equal(outputs(prune(model, plan, x[:1]), x), outputs(mask(model, plan, x[:1]), x))


def test_a_pass_that_fails() -> None:
    with pytest.raises(InputError, match=r"module '0' of Sequential must run on the example input, got RuntimeError"):
        find_filter_groups(plain(), torch.zeros(1, 4, 8, 8))


class Numbers(nn.Module):
    """Sizes stand in the code."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv, self.norm, self.head = kind, nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.norm(self.conv(x)))
        x = x.view(len(x), 6, -1) if self.kind == "view" else x.flatten(2)
        return self.head(x.mean(2))


def test_sizes_in_the_code_are_found() -> None:
    x = case.images()
    for kind, refused in (("view", True), ("flatten", False)):
        model = case.lively(Numbers(kind))
        if refused:
            with pytest.raises(InputError, match=r"got none \(conv: view holds the size 6 in its code;"):
                case.halved(model, x[:1])
        else:
            _, plan = case.halved(model, x[:1])
            both(model, plan, x)


class KnowsItsSize(nn.Module):
    """What it computes depends on the number of channels of one layer, in a way that only values show."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.stem, self.other = way, nn.Conv2d(3, 6, 3), nn.ConvTranspose2d(6, 6, 3)
        self.conv, self.norm, self.head = nn.ConvTranspose2d(6, 8, 3, padding=2), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(self.other(F.relu(self.stem(x))))))
        if self.way == "scale":
            x = x / torch.ones(x.shape[1], device=x.device).sum()
        elif not x.is_meta and x.shape[1] != 8:
            raise RuntimeError("there must be 8 channels")
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("way", "wrong"),
    [
        ("scale", "outputs must stay those of the masked network, got others from module 'head' on: protect 'conv'$"),
        ("check", "code of the network must follow the smaller sizes, got there must be 8 channels: protect 'conv'$"),
    ],
)
def test_advice_works(way: str, wrong: str) -> None:
    """The layers that are named are those to protect, and that is enough."""
    model, x = case.lively(KnowsItsSize(way)), case.images()
    _, plan = case.halved(model, x[:1])
    with pytest.raises(InputError, match=wrong):
        prune(model, plan, x[:1])
    _, rest = case.halved(model, x[:1], protect=("conv",))
    small = both(model, rest, x)
    assert (small.stem.out_channels, small.other.out_channels, small.conv.out_channels) == (3, 3, 8)


def test_modules_called_twice() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block = (
                nn.Conv2d(3, 6, 3, padding=1),
                nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()),
            )
            self.again, self.norm, self.head = self.block, nn.BatchNorm2d(6), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.again(self.norm(self.block(self.stem(x))))).mean((2, 3)))

    torch.manual_seed(0)
    model, x = case.lively(Net()), case.images()
    filter_groups, plan = case.halved(model, x[:1])
    assert [g.layers for g in filter_groups.groups] == [("stem", "block.0")]
    small = both(model, plan, x)
    assert small.again is small.block


@pytest.mark.parametrize("kind", ["weight norm", "old weight norm", "spectral", "torch mask"])
def test_computed_weights(kind: str) -> None:
    """They count as the weights that they compute, and the result has plain ones."""
    model, x = plain(), case.images()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make = {
            "weight norm": parametrizations.weight_norm,
            "old weight norm": weight_norm,
            "spectral": parametrizations.spectral_norm,
            "torch mask": lambda m: torch_prune.l1_unstructured(m, "weight", 0.3),
        }[kind]
        for place in (0, 3, 6):
            make(model[place])
    model.eval()
    outputs(model, x)
    filter_groups = find_filter_groups(model, x[:1])
    assert [g.layers for g in filter_groups.groups] == [("0",), ("3",)]
    plan = plan_of_units(filter_groups, {"0": (1, 2, 5), "3": (0, 3)}, policy="mine")
    small = both(model, plan, x)
    assert {"0.weight", "0.bias"} <= set(dict(small.named_parameters()))
    if kind == "torch mask":
        assert small[3].weight_mask.shape == small[3].weight.shape == (2, 3, 3, 3)


def test_frozen_batchnorm_and_frozen_weights() -> None:
    model, x = plain(), case.images()
    model[1].requires_grad_(requires_grad=False)
    model.train()
    model[1].eval()
    _, plan = case.halved(model, x[:1])
    small = both(model, plan, x)
    assert not small[1].weight.requires_grad
    assert small[0].weight.requires_grad
    assert not small.training
    no_statistics = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, track_running_stats=False), nn.Conv2d(6, 2, 1)
    ).eval()
    _, plan = case.halved(no_statistics, x[:1], constants="zero")
    both(no_statistics, plan, x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    model, x = plain().to(dtype), case.images().to(dtype)
    _, plan = case.halved(model, x[:1])
    small = both(model, plan, x, tolerance=1e-10 if dtype is torch.float64 else 0.02)
    assert {p.dtype for p in small.parameters()} == {dtype}


def test_wrappers() -> None:
    model, x = plain(), case.images()
    _, plan = case.halved(model, x[:1])
    assert torch.equal(outputs(prune(nn.DataParallel(model), plan, x[:1]), x), outputs(prune(model, plan, x[:1]), x))
    assert [g.name for g in find_filter_groups(nn.DataParallel(model), x[:1]).groups] == ["0", "3"]


def test_hooks_of_the_users_own_and_results_that_lie_about() -> None:
    model, x = plain(), case.images()
    met: list[int] = []
    model[0].register_forward_hook(lambda *_: met.append(1))
    model.last = model(x)
    _, plan = case.halved(model, x[:1])
    met.clear()
    prune(copy.deepcopy(plain()), plan, x[:1])
    both(model, plan, x)


def test_nothing_can_be_removed() -> None:
    with pytest.raises(InputError, match=r"must have filters that can be removed, got none \(0: it is an output"):
        case.halved(nn.Sequential(nn.Linear(3, 2)), torch.zeros(1, 3))


def test_several_inputs_and_outputs_of_any_kind() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image, self.words, self.head = nn.Conv2d(3, 4, 3), nn.Embedding(9, 6), nn.Linear(10, 5)

        def forward(self, image: Tensor, *, words: Tensor) -> dict[str, Tensor]:
            features = torch.cat((self.image(image).relu().amax((2, 3)), self.words(words).mean(1)), 1)
            return {"logits": self.head(features), "features": features.detach()}

    model = Net().eval()
    example = {"image": case.images(1), "words": torch.tensor([[1, 2]])}
    filter_groups = find_filter_groups(model, example)
    assert filter_groups.groups == ()
    assert filter_groups.fixed["image"] == "it is an output of the network"


@pytest.mark.parametrize(
    ("batches", "words"), [((), "at least one batch"), (torch.full((2, 3, 8, 8), torch.nan), "finite")]
)
def test_reestimation_needs_images(batches: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        reestimate(plain(), batches)


def test_reestimation_of_another_original() -> None:
    model, x = plain(), case.images(8)
    _, plan = case.halved(model, x[:1])
    small = prune(model, plan, x[:1])
    with pytest.raises(InputError, match="channels of '1' must be 3 of the original's by the plan, got 6"):
        reestimate(small, x, original=model)


def test_layers_that_return_several_tensors() -> None:
    class Both(nn.Conv2d):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = super().forward(x)
            return y, y.relu()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = Both(3, 8, 3), Both(8, 6, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.third(self.second(self.first(x)[1])[0])

    x = case.images()
    small = slimbit.prune(Net(), x, keep=0.5)
    assert (small.model.first.out_channels, small.model.second.out_channels) == (4, 3)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_what_is_scripted_stays_and_the_rest_is_cut() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), torch.jit.script(nn.Conv2d(8, 8, 1)), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)
    )
    x = case.images()
    pruned = slimbit.prune(model, x, keep=0.5)
    assert [getattr(layer, "out_channels", None) for layer in pruned.model] == [8, 8, 3, 2]
    with torch.no_grad():
        assert torch.allclose(pruned.model(x), mask(model, pruned.keep, x)(x), rtol=0, atol=1e-5)


def test_layers_that_read_in_parts_are_not_ranked_by_sensitivity() -> None:
    model, x = Shell(STRUCTURES["octaves"]()), case.images(4)
    with pytest.raises(InputError, match=r"'body.first' must be a tensor of all channels .* got tuple: rank by norm"):
        slimbit.prune(model, x[:1], x, keep=0.5, by="fisher")


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch warns about itself
def test_graphs_without_layers_say_what_to_use() -> None:
    x = case.images(1)
    with pytest.raises(
        InputError, match=r"got none\. The network is a graph of functions .* the module it was made from"
    ):
        slimbit.prune(torch.export.export(plain(), (x,)).module(), x, keep=0.5)
