"""Networks that are certain of every answer: sampled labels say nothing, and compression must not follow from that."""

import pytest
import torch
from torch import Tensor, nn

import slimbit
from slimbit.measure.sensitivity import temperature_of

BUDGET = 60e3


@pytest.fixture(scope="module")
def images() -> Tensor:
    pytest.importorskip("sklearn")
    return torch.cat(list(slimbit.open_data("digits").calibration(64)))


def network(scale: float) -> nn.Module:
    """The digits network with larger outputs: the same decisions, with more certainty."""
    net = slimbit.network("digits_resnet", weights="shipped")
    with torch.no_grad():
        net.linear.weight *= scale
        net.linear.bias *= scale
    return net


@pytest.mark.parametrize("scale", [10, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_saturated_network_is_compressed_like_the_same_one_that_doubts(scale: float, images: Tensor) -> None:
    """Its sensitivities were 1e-21 and less, and every budget gave it 14,034 bits: 74 % of its decisions were left."""
    plain, sure = (slimbit.prepare(network(s), images[:1], images) for s in (1, scale))
    assert plain.sensitivity.temperature == 1
    assert not plain.sensitivity.notes
    assert sure.sensitivity.temperature > scale
    # the share of each layer is what counts: a factor for all layers is one for the price
    first, other = (torch.tensor([p.sensitivity.layer(x.name) for x in p.spec.layers[:-1]]) for p in (plain, sure))
    ratio = other / first
    assert ratio.max() < 4 * ratio.min()
    small = slimbit.quantize(sure, budget={"esn_digital": BUDGET})
    assert 0.9 * BUDGET < small.cost.total.esn_digital <= BUDGET
    with torch.no_grad():
        agreement = (small.model(images).argmax(1) == network(1)(images).argmax(1)).double().mean()
    assert agreement > 0.97
    assert any("certain of its answers on all 64 calibration images" in note for note in small.cost.notes)


def test_filters_of_a_saturated_network_are_ranked_as_those_of_the_same_one_that_doubts(images: Tensor) -> None:
    kept = []
    for scale in (1, 1000):
        slim = slimbit.prune(network(scale), images[:1], images, keep=0.5, by="fisher")
        kept.append({(axis.name, number) for axis in slim.keep.axes if axis.role == "filters" for number in axis.kept})
    assert len(kept[0] & kept[1]) > 0.7 * len(kept[0])


@pytest.mark.parametrize(
    ("head", "is_soft"),
    [
        (lambda x: torch.stack([x, -x], 1), True),  # two classes
        (lambda x: x, True),  # the logit of a yes, one number per image
        (lambda x: {"a": torch.stack([x, -x], 1), "b": torch.stack([-x, x], 1)}, True),
        (lambda x: torch.stack([x * 0, x * 0], 1), False),  # all alike: softening changes nothing
        (lambda x: torch.stack([x / 1e3, -x / 1e3], 1), False),  # doubts
    ],
)
def test_the_temperature_makes_one_label_in_a_hundred_another(head, is_soft: bool) -> None:
    class Head(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor] | Tensor:
            return head(x[:, 0])

    x = torch.tensor([[500.0], [-800.0], [300.0]])
    found = temperature_of(Head(), [x])
    if not is_soft:
        assert found == 1
        return
    margin = (2 if head(x[:, 0])[0 if isinstance(head(x[:, 0]), Tensor) else "a"].ndim else 1) * x.abs() / found
    assert torch.sigmoid(-margin.double()).mean() == pytest.approx(0.01, rel=0.02)
