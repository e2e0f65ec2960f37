"""Attention whose projections hooks can reach computes what torch's own does, and is compensated like linear layers."""

import pytest
import torch
from torch import Tensor, nn

import slimbit
from slimbit.apply.attention import open_attention, opened_attention
from slimbit.apply.calibration import calibrate
from slimbit.numerics.copies import copied
from slimbit.survey.module import survey_network

SETTINGS = {
    "batch first": {"batch_first": True},
    "batch second": {},
    "other widths of keys and values": {"kdim": 5, "vdim": 3, "batch_first": True},
    "no bias": {"bias": False, "batch_first": True},
    "extra key and value": {"add_bias_kv": True, "add_zero_attn": True},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("masked", [False, True])
def test_open_attention_computes_the_same(settings, masked):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, **settings).eval()
    query, key, value = torch.randn(4, 4, 8), torch.randn(4, 4, attention.kdim), torch.randn(4, 4, attention.vdim)
    masks = {}
    if masked:
        masks = {
            "attn_mask": torch.ones(4, 4, dtype=torch.bool).triu(1),
            "key_padding_mask": torch.tensor([[False, False, False, True]] * 4),
        }
    wanted = attention(query, key, value, **masks)
    opened = open_attention(copied(attention))(query, key, value, **masks)
    assert torch.allclose(opened[0], wanted[0], atol=1e-6)
    assert torch.allclose(opened[1], wanted[1], atol=1e-6)
    alone = attention(query[0], key[0], value[0], need_weights=False)[0]
    assert torch.allclose(
        open_attention(attention)(query[0], key[0], value[0], need_weights=False)[0], alone, atol=1e-6
    )


def test_an_attention_that_was_open_is_torch_s_own_again_also_after_an_error():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    names = [name for name, _ in layer.named_modules()], list(layer.state_dict())
    with opened_attention(layer):
        assert "self_attn.q_proj" in dict(layer.named_modules())
        assert list(layer.state_dict()) == names[1]
    with pytest.raises(RuntimeError), opened_attention(layer):
        layer(torch.zeros(1, 2, 7))  # features of another width
    assert type(layer.self_attn) is nn.MultiheadAttention
    assert ([name for name, _ in layer.named_modules()], list(layer.state_dict())) == names


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 16, 4, stride=4)
        self.layers = nn.Sequential(*(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(2)))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.layers(self.patches(x).flatten(2).transpose(1, 2))
        logits: Tensor = self.head(tokens.mean(1))
        return logits


def test_projections_of_attention_are_compensated_and_their_biases_corrected():
    torch.manual_seed(0)
    net = Encoder().eval()
    with torch.no_grad():
        for layer in net.layers:
            layer.self_attn.in_proj_bias.normal_(0, 0.2)
    x, other = torch.randn(96, 1, 12, 12), torch.randn(96, 1, 12, 12)
    spec = survey_network(net, x[:1]).spec
    calibration = calibrate(net, spec, x)
    projections = [layer.name for layer in spec.layers if layer.kind == "attention"]
    assert len(projections) == 8
    assert set(projections) <= set(calibration.reached)
    assert set(projections) <= set(calibration.outputs)  # each has a bias
    stacked = "layers.0.self_attn."
    assert [calibration.same_input[f"{stacked}{part}_proj"] for part in "kv"] == [f"{stacked}q_proj"] * 2

    def error(**settings: object) -> float:
        small = slimbit.quantize(net, x[:1], x, bits=3, config=slimbit.QuantConfig(**settings))
        assert {type(m) for m in small.model.modules()} == {type(m) for m in net.modules()}
        with torch.no_grad():
            return float((small.model(other) - net(other)).square().mean())

    plain = {"compensation": False, "target": "weights", "statistics": "stored"}
    assert error() < 0.5 * error(**plain)
    assert error(**plain | {"statistics": "paired_layerwise"}) < error(**plain)


def test_the_result_does_not_depend_on_how_images_are_divided():
    torch.manual_seed(0)
    net, x = Encoder().eval(), torch.randn(20, 1, 12, 12)
    one, five = (
        slimbit.quantize(slimbit.prepare(net, x[:1], x, batch_size=size), bits=3).model.state_dict() for size in (20, 4)
    )
    assert all(torch.equal(one[name], five[name]) for name in one)
