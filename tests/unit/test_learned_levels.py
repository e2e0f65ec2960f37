"""Straight-through levels: exact forward, the slopes of the formulas backward, and costs that agree with the report."""

import pytest
import torch
from torch import nn

import slimbit
from slimbit.apply.layers import bind
from slimbit.measure.cost import cost_of_survey
from slimbit.measure.cost_config import CostConfig
from slimbit.numerics.levels import LayerLevels
from slimbit.records.network import LayerSpec
from slimbit.survey.module import survey_network
from slimbit.survey.result import Survey
from slimbit.training.learned_levels import LevelCost, learn_levels, learned_parts, levels_of


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.up = nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False)
        self.fold = nn.Conv2d(6, 4, 3, groups=2)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fold(self.up(x).relu()).flatten(2).transpose(1, 2)
        return self.out(self.attention(x, x, x, need_weights=False)[0].mean(1))


def started(
    grid: str = "midrise_zero", *, per_filter: bool = False
) -> tuple[nn.Module, Survey, dict[str, LayerLevels]]:
    net = Grouped()
    survey = survey_network(net, torch.zeros(2, 4, 3, 3))
    start = {}
    for name, bound in bind(net, survey.spec).items():
        weight = bound.weight()
        step = weight.flatten(1).std(1) if per_filter else weight.std()
        ratio = weight / (step.reshape(-1, *[1] * (weight.ndim - 1)) if per_filter else step)
        q = ratio.round() if grid == "midtread" else ratio.floor() + 0.5
        start[name] = LayerLevels(q.masked_fill(ratio.abs() < 0.25, 0) if grid == "midrise_zero" else q, step, grid)
    return net, survey, start


@pytest.mark.parametrize("grid", ["midrise", "midrise_zero", "midtread"])
@pytest.mark.parametrize("per_filter", [False, True])
def test_begins_with_the_levels_it_is_given(grid: str, per_filter: bool) -> None:
    net, survey, start = started(grid, per_filter=per_filter)
    learn_levels(net, survey.spec.layers, start)
    found = levels_of(net)
    assert found.keys() == start.keys()
    for name, levels in start.items():
        assert torch.equal(found[name].levels, levels.levels), name
        assert torch.allclose(found[name].steps, levels.steps)


def test_the_network_computes_with_step_times_level() -> None:
    net, survey, start = started(per_filter=True)
    learn_levels(net, survey.spec.layers, start)
    plain = Grouped()
    for name, bound in bind(plain, survey.spec).items():
        bound.store(start[name].weights())
    x = torch.randn(2, 4, 3, 3)
    assert torch.allclose(net(x), plain(x), atol=1e-5)


def test_gradients_are_the_straight_through_ones() -> None:
    spec = LayerSpec(name="fc", kind="linear", weight_key="weight", shape=(1, 3))
    net = nn.Linear(3, 1, bias=False)
    learn_levels(net, [spec], {"fc": LayerLevels(torch.tensor([[1.5, 0.0, -0.5]]), torch.tensor(0.4), "midrise_zero")})
    ((part, stored),) = learned_parts(net)
    with torch.no_grad():
        stored.add_(torch.tensor([[0.1, 0.05, 0.02]]))  # 0.7, 0.05, -0.18: levels stay
    net(torch.tensor([[1.0, 10.0, 100.0]])).sum().backward()
    assert torch.equal(stored.grad, torch.tensor([[1.0, 10.0, 100.0]]))
    wanted = (0.6 - 0.7) * 1 + (0.0 - 0.05) * 10 + (-0.2 + 0.18) * 100
    scale = 3**-0.25  # three weights share the step
    assert float(part.log_steps[0].grad) == pytest.approx(scale * wanted, rel=1e-5)
    part.steps()[0].log().backward()
    assert float(part.log_steps[0].grad) == pytest.approx(scale * (wanted + 1), rel=1e-5)


@pytest.mark.parametrize(
    ("form", "metric", "grid"),
    [
        ("analog", "esn_analog", "midrise_zero"),
        ("digital", "esn_digital", "midrise_zero"),
        ("digital", "esn_digital", "midrise"),
        ("filterwise", "esn_filterwise", "midrise"),
    ],
)
def test_exact_cost_is_that_of_the_report(form: str, metric: str, grid: str) -> None:
    net, survey, start = started(grid, per_filter=True)
    units = {layer.name: float(layer.multiplicity("mac")) for layer in survey.spec.layers}
    report = cost_of_survey(Survey(survey.spec, lambda layer: start[layer.name]), CostConfig())
    learn_levels(net, survey.spec.layers, start)
    assert LevelCost(form=form, units=units).exact(levels_of(net)) == pytest.approx(report.total[metric])


@pytest.mark.parametrize("level", [0.0, 0.5, 1.5, 3.5, 7.5])
def test_digital_slope_is_exact_at_the_largest_level_of_every_width(level: float) -> None:
    spec = LayerSpec(name="fc", kind="linear", weight_key="weight", shape=(1, 2))
    net = nn.Linear(2, 1, bias=False)
    learn_levels(net, [spec], {"fc": LayerLevels(torch.full((1, 2), level), torch.tensor(0.3), "midrise_zero")})
    cost = LevelCost(form="digital", units={"fc": 5.0})
    assert cost.slope(net).item() == pytest.approx(cost.exact(levels_of(net)), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("form", ["analog", "digital", "filterwise", "table"])
def test_slopes_agree_with_finite_differences(form: str) -> None:
    net, survey, start = started("midtread" if form == "table" else "midrise", per_filter=form != "table")
    learn_levels(net, survey.spec.layers, start)
    net.double()
    with torch.no_grad():
        for _, behind in learned_parts(net):  # levels tie for the largest weight
            behind.add_(torch.rand_like(behind) * 1e-3)
    tables = {layer.name: torch.tensor([1.0, 2.0, 5.0, 9.0, 20.0]).double() for layer in survey.spec.layers}
    cost = LevelCost(form=form, units={x.name: 3.0 for x in survey.spec.layers}, tables=tables)
    cost.slope(net).backward()
    part, stored = learned_parts(net)[0]
    place = int(stored.detach().abs().flatten().argmax())
    for tensor, index in ((stored, place), (part.log_steps[0], 0)):
        values = []
        for shift in (1e-6, -1e-6):
            with torch.no_grad():
                tensor.view(-1)[index] += shift
                values.append(cost.slope(net).item())
                tensor.view(-1)[index] -= shift
        assert float(tensor.grad.view(-1)[index]) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4, abs=1e-5)


def test_pruned_weights_stay_zero() -> None:
    spec = LayerSpec(name="fc", kind="linear", weight_key="weight", shape=(1, 2))
    net = nn.Linear(2, 1, bias=False)
    mask = torch.tensor([[True, False]])
    start = LayerLevels(torch.tensor([[0.5, 0.0]]), torch.tensor(1.0), "midrise")
    learn_levels(net, [spec], {"fc": start}, masks={"fc": mask})
    assert torch.equal(levels_of(net)["fc"].levels, start.levels)
    net(torch.ones(1, 2)).sum().backward()
    assert net.parametrizations.weight.original.grad.tolist() == [[1.0, 0.0]]


def test_a_weight_of_half_an_attention_projection_is_left_float() -> None:
    net, survey, start = started()
    query = next(x for x in survey.spec.layers if x.rows)
    before = net.attention.in_proj_weight.detach().clone()
    learn_levels(net, survey.spec.layers, {query.name: start[query.name]})
    rows = slice(*query.rows)
    assert torch.equal(net.attention.in_proj_weight[rows.stop :], before[rows.stop :])
    assert not torch.equal(net.attention.in_proj_weight[rows], before[rows])


def test_digits_network_is_covered() -> None:
    net = slimbit.network("digits_resnet")
    survey = survey_network(net, torch.zeros(1, 1, 8, 8))
    start = {
        name: LayerLevels((b.weight() / 0.1).floor() + 0.5, torch.tensor(0.1), "midrise")
        for name, b in bind(net, survey.spec).items()
    }
    learn_levels(net, survey.spec.layers, start)
    assert len(learned_parts(net)) == len(survey.spec.layers)
