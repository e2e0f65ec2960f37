"""Networks from the wild, traced from end to end: each must keep its promises or say clearly why it cannot."""

import copy
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from slimbit.apply.calibration import calibrate
from slimbit.apply.compress import compress
from slimbit.compress.prepared import prepare
from slimbit.frontier.frontier import open_run
from slimbit.frontier.trace import trace_frontier
from slimbit.measure.sensitivity import measure_sensitivity
from slimbit.numerics.batches import Regrouped, as_called, output_heads, pieces
from slimbit.numerics.copies import plain_network
from slimbit.numerics.rounding import cholesky
from slimbit.plan.inputs import PlanInputs
from slimbit.plan.steps import step_by_range
from slimbit.records.config import PAPER, QuantConfig, RunConfig
from slimbit.records.errors import InputError
from slimbit.survey.module import survey_network


def images(count: int = 48, *, seed: int = 0) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5)
    ).eval()  # fmt: skip


def likeness(found: Tensor, wanted: Tensor) -> float:
    return 100 * float(1 - (found - wanted).double().square().sum() / (wanted - wanted.mean(0)).double().square().sum())


def flat(outputs: object) -> Tensor:
    return torch.cat([head.float().reshape(len(head), -1) for head in output_heads(outputs)], 1)


def traced(model: nn.Module, out: Path, x: Tensor | None = None, **changed: object) -> list[tuple[float, bool]]:
    """Likeness of each point's outputs to the float ones; asserts all that holds for every network."""
    x = images() if x is None else x
    before = copy.deepcopy(dict(model.state_dict()))
    modes = [module.training for module in model.modules()]
    with torch.no_grad():
        wanted = flat(plain_network(model)(x))

    def evaluate(network: nn.Module) -> float:
        with torch.no_grad():
            return likeness(flat(network(x)), wanted)

    calibration = changed.pop("calibration", x)
    config = RunConfig(**({"points": 2} | changed))
    found = trace_frontier(model, x[:1], calibration, evaluate, out=out, config=config)
    assert [p.error for p in found.points if p.state == "failed"] == []
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    run = open_run(out)
    for point in found.points:
        assert evaluate(run.load(point, model=model).model) == point.accuracy
    return [(p.accuracy or 0.0, p.baseline) for p in found.points]


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.kind, self.age = plain()[:5], nn.Linear(96, 4), nn.Linear(96, 1)

    def forward(self, x: Tensor) -> dict[str, object]:
        f = self.body(x)
        return {"kind": self.kind(f), "more": (self.age(f), None)}


class Named(nn.Module):
    """Calls its layers by keyword, normalizes after an in-place ReLU, and keeps what it computed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Linear(216, 5)
        self.last: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        f = F.relu_(self.conv(input=x))
        y: Tensor = self.head(input=self.norm(input=f).flatten(1))
        self.last = [y]
        return y


class Probe(nn.Module):
    """A head on a backbone that sees no gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = plain()[:5], nn.Linear(96, 5)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            f = self.body(x)
        y: Tensor = self.head(f)
        return y


class Scaled(nn.Linear):
    """A layer whose weight is not what multiplies its input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * 0.1, self.bias)


class Experts(nn.Module):
    """Each image goes to one of three layers, so batches and compressed networks differ in who is called."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(64, 3), nn.ModuleList(nn.Linear(64, 5) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        chosen, y = self.gate(x).argmax(1), x.new_zeros(len(x), 5)
        for i, expert in enumerate(self.experts):
            y[chosen == i] = expert(x[chosen == i])
        return y


def warm(model: nn.Module) -> nn.Module:
    """As in training: statistics are those of the images, and results with a history lie about."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    model.train()(images())
    return model


def old_style() -> nn.Module:
    model = plain()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        weight_norm(model[0])
        spectral_norm(model[2])
    return model.eval()


def parametrized() -> nn.Module:
    model = plain()
    parametrizations.weight_norm(model[0])
    parametrizations.spectral_norm(model[2])
    return model.eval()


NETWORKS = {
    "heads": Heads,
    "named": lambda: warm(Named()),
    "no gradient below the head": Probe,
    "subclass": lambda: nn.Sequential(nn.Flatten(), Scaled(64, 32), nn.ReLU(), nn.Linear(32, 5)),
    "experts": Experts,
    "one logit": lambda: nn.Sequential(*plain()[:5], nn.Linear(96, 1)),
    "a logit without axis": lambda: nn.Sequential(*plain()[:5], nn.Linear(96, 1), nn.Flatten(0)),
    "weight_norm": parametrized,
    "old weight_norm": old_style,
    "compiled": lambda: torch.compile(plain(), backend="eager"),
}


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_every_point_is_measured_and_comes_back(build, tmp_path):
    torch.manual_seed(0)
    model = build()
    points = traced(model, tmp_path / "run", baselines=isinstance(model, Heads | Named))
    for kind in {baseline for _, baseline in points}:
        assert max(accuracy for accuracy, baseline in points if baseline == kind) > 95


def test_bfloat16_network(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(216, 5)).bfloat16()
    assert max(traced(model, tmp_path / "run", images().bfloat16(), baselines=False))[0] > 95


@pytest.mark.parametrize("metric", ["esn_digital", "esn_filterwise"])
def test_pruned_weights_stay_zero(metric):
    model = plain()
    prune.l1_unstructured(model[2], "weight", 0.5)
    mask = model[2].weight_mask.clone()
    prepared = prepare(model, images(1), images())
    baselines = [prepared.plan_bits(bits) for bits in range(2, 9)]
    for plan in (prepared.plan_at(1e-6, metric, QuantConfig()), *baselines):
        levels = compress(prepared.model, plan, prepared.spec, prepared.calibration).layers["2"].levels
        assert not levels[mask == 0].any()
        assert levels[mask == 1].any() == (plan.layer("2").kept != ())
    assert hasattr(model[2], "weight_orig")


def test_a_copy_without_parametrizations_leaves_the_original_whole():
    model = parametrized()
    wanted = model(images())
    folded = plain_network(nn.DataParallel(model))
    torch.testing.assert_close(folded(images()), wanted)
    assert type(folded[0]) is nn.Conv2d
    torch.testing.assert_close(model(images()), wanted)
    assert hasattr(model[0], "parametrizations")


def test_layers_that_are_zero_stay_zero_without_a_zero_level():
    model = plain()
    with torch.no_grad():
        model[0].weight[2].zero_()
        model[2].weight.zero_()
    spec = survey_network(model, images(1)).spec
    weights = {str(i): model[i].weight.detach() for i in (0, 2, 5)}
    plan = step_by_range(PlanInputs(spec=spec, weights=weights), 4, QuantConfig(grid="midrise", statistics="absolute"))
    levels = {name: layer.levels for name, layer in compress(model, plan, spec, images()).layers.items()}
    assert not levels["2"].any()
    assert not levels["0"][2].any()
    assert levels["0"][[0, 1, 3, 4, 5]].all()


def test_statistics_of_a_shared_batchnorm_are_not_those_of_its_first_call():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1, momentum=None)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.norm(self.conv(x)) * 3
            z: Tensor = self.norm(self.conv(y))
            return z

    torch.manual_seed(0)
    model = Twice()
    model.train()(images())
    model.eval()
    spec = survey_network(model, images(1)).spec
    plan = step_by_range(
        PlanInputs(spec=spec, weights={"conv": model.conv.weight.detach()}),
        10,
        PAPER,
    )
    result = compress(model, plan, spec, images())
    with torch.no_grad():
        assert likeness(result.model(images()).flatten(1), model(images()).flatten(1)) > 99


def test_a_relu_in_place_between_layer_and_batchnorm_is_seen():
    direct = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).eval()
    bent = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(4)).eval()
    found = [set(calibrate(net, survey_network(net, images(1)).spec, images()).normalized) for net in (direct, bent)]
    assert found == [{"0"}, set()]


def test_a_layer_without_gradient_is_as_sensitive_as_with_one():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 5)).eval()

    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.net[2](self.net[:2](x).detach())
            return y

    def sensitivity(net: nn.Module, name: str) -> float:
        spec = survey_network(net, images(1)).spec
        found = measure_sensitivity(net, spec, images(), generator=torch.Generator().manual_seed(0))
        return found.layer(name)

    whole, cut = sensitivity(model, "1"), sensitivity(Cut(), "net.1")
    assert 0.5 < cut / whole < 2


@pytest.mark.parametrize("count", [1, 2])
def test_few_images_do_not_make_collapse_look_like_float(count, tmp_path):
    points = traced(plain(), tmp_path / "run", calibration=images(count, seed=1), baselines=False)
    assert max(accuracy for accuracy, baseline in points if not baseline) > 80


def test_batches_follow_the_example():
    class Two(nn.Module):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return left + right

    a, b, label = torch.ones(3, 2), torch.zeros(3, 2), torch.zeros(3)
    example = (a[:1], b[:1])
    for batch in ((a, b), (a, b, label), ((a, b), label)):
        (found,) = as_called([batch], Two(), example)
        assert found.keys() == {"left", "right"}
        assert torch.equal(found["left"], a)
    (found,) = as_called([{"left": a, "label": label}], Two(), {"left": a[:1]})
    assert found.keys() == {"left"}
    (whole,) = Regrouped(({"left": a, "right": b}, {"left": a[:1], "right": b[:1]}), 4)
    assert whole["left"].shape == (4, 2)
    assert [len(part["right"]) for part in pieces([whole], 3)] == [3, 1]


def test_skipped_and_looked_up_layers_do_not_hide_the_range_of_prices(tmp_path):
    model = nn.Sequential(nn.Embedding(2000, 8), nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 5))
    words = torch.randint(0, 2000, (48, 8), generator=torch.Generator().manual_seed(0))
    points = traced(model, tmp_path / "run", words, quant=QuantConfig(skip=("4",)), baselines=False)
    assert max(points)[0] > 95


class Stale(nn.Module):
    """Works with a copy of its weight: compressing the weight changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 5)
        self.copy = self.layer.weight.detach().clone()

    def forward(self, x: Tensor) -> Tensor:
        self.layer(x.flatten(1))
        return F.linear(x.flatten(1), self.copy)


class Complex(nn.Linear):
    def __init__(self) -> None:
        super().__init__(64, 5, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(torch.complex64)).abs()


class Free(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 64))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), self.weight)


@pytest.mark.parametrize(
    ("build", "changed", "message"),
    [
        (Stale, {}, "outputs of the network must depend on its weights"),
        (Free, {}, "Free must have a layer to compress"),
        (plain, {"calibration": [{"pixels": images()}]}, "calibration batches must be ones that the network runs on"),
        (plain, {"calibration": 7}, "calibration must be a tensor of images or batches"),
        (plain, {"calibration": RunConfig()}, "calibration batch 0 must hold images, got str"),
        (
            lambda: nn.Sequential(nn.Flatten(), Complex()),
            {},
            "weight of layer '1' must be a float tensor, got complex64",
        ),
    ],
)
def test_what_cannot_be_compressed_is_said(build, changed, message, tmp_path):
    with pytest.raises(InputError, match=message):
        traced(build(), tmp_path / "run", **changed)


def test_factors_exist_for_what_rounding_made_indefinite():
    bent = torch.tensor([[1.0, 1.0], [1.0, 1.0 - 1e-7]], dtype=torch.float64)
    factor = cholesky(
        torch.stack([bent, torch.eye(2, dtype=torch.float64) * 4, torch.full((2, 2), torch.inf).double()])
    )
    torch.testing.assert_close(factor[0] @ factor[0].T, bent, rtol=0, atol=2e-6)
    assert factor[1].tolist() == [[2.0, 0.0], [0.0, 2.0]]
    assert factor[2].tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_inputs_too_large_to_be_squared_are_rounded_plainly():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(108, 5)).eval()
    spec, x = survey_network(model, images(1)).spec, images() * 1e20
    weights = {"0": model[0].weight.detach(), "2": model[2].weight.detach()}
    plan = step_by_range(
        PlanInputs(spec=spec, weights=weights), 4, QuantConfig(grid="midrise_zero", statistics="stored")
    )
    alone = step_by_range(
        PlanInputs(spec=spec, weights=weights),
        4,
        QuantConfig(grid="midrise_zero", compensation=False, target="weights", statistics="stored"),
    )
    found, wanted = compress(model, plan, spec, x), compress(model, alone, spec)
    assert all(torch.equal(found.layers[name].levels, wanted.layers[name].levels) for name in weights)
