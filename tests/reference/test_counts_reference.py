"""Counts that were once wrong without a word, each beside its value from plain arithmetic or torch's own counter."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import slimbit
from slimbit.apply.mask import mask
from slimbit.apply.surgery import prune as cut
from slimbit.measure.cost import cost_of_survey
from slimbit.measure.cost_config import CostConfig
from slimbit.numerics.levels import LayerLevels
from slimbit.records.errors import InputError
from slimbit.records.keep import plan_of_units
from slimbit.records.network import LayerSpec, NetworkSpec
from slimbit.survey.filter_groups import find_filter_groups
from slimbit.survey.module import survey_network
from slimbit.survey.result import Survey
from slimbit.training.positions import PositionsWatch


def expected_value_layer() -> nn.Conv2d:
    """The last layer of YOLOv8's box head: a fixed convolution with the weights 0, 1, ... 15."""
    layer = nn.Conv2d(16, 1, 1, bias=False)
    layer.weight.data = torch.arange(16.0).reshape(1, 16, 1, 1)
    return layer


@pytest.mark.parametrize("bits", [None, 8])
def test_a_weight_that_is_zero_is_multiplied_all_the_same(bits):
    total = slimbit.cost(expected_value_layer(), torch.zeros(1, 16, 4, 4), bits=bits).total
    assert total.macs == 4 * 4 * 16
    assert total.nonzero_macs == 4 * 4 * (15 if bits is None else 16)  # the mid-rise grid has no zero


def test_filters_of_zeros_are_kept_until_somebody_prunes_them():
    layer = nn.Conv2d(3, 4, 3, bias=False)
    layer.weight.data[1] = 0
    found = slimbit.cost(layer, torch.zeros(1, 3, 8, 8)).layers[0]
    assert (found.macs, found.nonzero_macs) == (36 * 4 * 27, 36 * 3 * 27)
    assert (found.filter_bits, found.weight_bytes) == ((32,) * 4, 4 * 4 * 27)
    assert found.esn_filterwise == 32 * found.macs
    prune.custom_from_mask(layer, "weight", (layer.weight != 0).float())
    found = slimbit.cost(layer, torch.zeros(1, 3, 8, 8)).layers[0]
    assert (found.macs, found.filter_bits, found.weight_bytes) == (36 * 3 * 27, (32, 0, 32, 32), 4 * 3 * 27)


def of_levels(levels: torch.Tensor, bits: int, grid: str = "midtread"):
    spec = LayerSpec(name="a", kind="linear", weight_key="a", shape=tuple(levels.shape), positions=5)
    stored = LayerLevels(levels, torch.tensor(0.5), grid, bits)
    return cost_of_survey(Survey(NetworkSpec("net", (spec,)), lambda _: stored), CostConfig()).layers[0]


@pytest.mark.parametrize(
    ("levels", "bits"),
    [
        ([[-8, 7, 1], [0, 0, 0]], 4),  # int4 holds -8, for which the formula alone says 5 bits
        ([[255, 3, 0], [128, 0, 0]], 8),  # uint8 with the zero point 0
        ([[-128, 127, 0], [-3, 1, 1]], 8),  # uint8 with the zero point 128
    ],
)
def test_a_level_takes_no_more_bits_than_its_file_stores(levels, bits):
    found = of_levels(torch.tensor(levels), bits)
    assert found.weight_bits == bits
    assert max(found.filter_bits) == bits
    assert found.bit_operations == 5 * 6 * bits * 8
    table = {0: 0, 1: 2, 3: 3, 7: 4, 8: 5, 127: 8, 128: 9, 255: 9}  # floor(log2 |q|) + 2
    assert found.esn_digital == 5 * sum(min(bits, table[abs(q)]) for row in levels for q in row)
    assert found.esn_digital <= found.esn_filterwise <= bits * found.macs


def test_zeros_of_an_integer_file_are_multiplied_all_the_same():
    found = of_levels(torch.tensor([[0, 3, 0], [0, 0, 0]]), 8)
    assert (found.macs, found.nonzero_macs) == (5 * 6, 5)


def test_complex_weights_are_refused_by_name():
    model = nn.Sequential(nn.Linear(3, 2, dtype=torch.complex64))
    for bits in (None, 4):
        with pytest.raises(InputError, match=r"weights of layer 0 must be real, got complex64"):
            slimbit.cost(model, torch.zeros(1, 3, dtype=torch.complex64), bits=bits)


@pytest.mark.parametrize("bits", [None, 4])
def test_weights_without_values_are_refused_by_name(bits):
    with pytest.raises(InputError, match=r"weights of layer 0 must have values, got a network on the meta device"):
        slimbit.cost(nn.Sequential(nn.Linear(3, 2)).to("meta"), torch.zeros(1, 3, device="meta"), bits=bits)


def total_work(report) -> int:
    return report.total.macs + sum(work.macs for work in report.other_work)


class Anchors(nn.Module):
    """Reads its anchors first and the images second, and works on both."""

    def __init__(self):
        super().__init__()
        self.embed, self.conv = nn.Linear(4, 8), nn.Conv2d(3, 8, 3)

    def forward(self, anchors, image):
        return torch.einsum("ac,nchw->nahw", self.embed(anchors), self.conv(image))


class TimeStep(nn.Module):
    """A table of times beside a batch of images, as in diffusion."""

    def __init__(self):
        super().__init__()
        self.conv, self.scale = nn.Conv2d(3, 4, 3), nn.Linear(1, 4)

    def forward(self, times, x):
        return self.conv(x) * self.scale(times.mean().reshape(1, 1)).reshape(1, 4, 1, 1)


class FixedBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 2, 3), nn.Linear(72, 5)

    def forward(self, x):
        return self.fc(self.conv(x).view(4, 72))


class Transposing(nn.Module):
    """Images come first; the recurrent layer inside wants the sequence first."""

    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.rnn(x.transpose(0, 1))[0][-1])


SEQUENCE = 7 * (3 * 12 * 12 + 12 * 12)  # projections in and out of one sequence of 7 tokens
BATCHES = {
    # name: network, example, MACs of one image in layers, work in no layer
    "a signal without batch": (nn.Conv1d(4, 8, 3, padding=1), torch.zeros(4, 128), 128 * 8 * 4 * 3, 0),
    "a batch of signals": (nn.Conv1d(4, 8, 3, padding=1), torch.zeros(5, 4, 128), 128 * 8 * 4 * 3, 0),
    "as many channels out as in": (nn.Conv1d(4, 4, 3, padding=1), torch.zeros(4, 128), 128 * 4 * 4 * 3, 0),
    "an image without batch": (nn.Conv2d(3, 8, 3, padding=1), torch.zeros(3, 6, 6), 36 * 8 * 27, 0),
    "a plain batch": (nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), torch.zeros(6, 3, 4), 60, 0),
    # heads of 4 x 3 wide: scores 7 x 7 x 12 and weighted values as many
    "sequence first": (nn.TransformerEncoderLayer(12, 4, 24), torch.zeros(7, 5, 12), SEQUENCE + 7 * 2 * 24 * 12,
                       2 * 49 * 12),
    "one sequence": (nn.TransformerEncoderLayer(12, 4, 24), torch.zeros(7, 12), SEQUENCE + 7 * 2 * 24 * 12,
                     2 * 49 * 12),
    "batch first": (nn.TransformerEncoderLayer(12, 4, 24, batch_first=True), torch.zeros(5, 7, 12),
                    SEQUENCE + 7 * 2 * 24 * 12, 2 * 49 * 12),
    "attention in a module of one's own": (nn.Sequential(nn.TransformerEncoderLayer(12, 4, 24), nn.Linear(12, 3)),
                                           torch.zeros(7, 5, 12), SEQUENCE + 7 * 2 * 24 * 12 + 7 * 36, 2 * 49 * 12),
    "recurrent inside": (Transposing(), torch.zeros(5, 7, 6), 8 * 2, 7 * 24 * (6 + 8)),
    # anchors are embedded once, whatever the batch; 9 x 8 x 36 products of both per image
    "anchors first": (Anchors(), (torch.zeros(9, 4), torch.zeros(2, 3, 8, 8)), 9 * 32 + 36 * 8 * 27, 9 * 8 * 36),
    "anchors, one image": (Anchors(), (torch.zeros(9, 4), torch.zeros(1, 3, 8, 8)), 9 * 32 + 36 * 8 * 27, 9 * 8 * 36),
    "times first": (TimeStep(), (torch.zeros(1000, 1), torch.zeros(2, 3, 8, 8)), 36 * 4 * 27 + 4, 0),
    "a fixed batch": (FixedBatch(), torch.zeros(4, 1, 8, 8), 36 * 2 * 9 + 72 * 5, 0),
}  # fmt: skip


@pytest.mark.parametrize(("model", "example", "layers", "other"), BATCHES.values(), ids=BATCHES)
def test_the_batch_is_what_the_network_makes_of_it(model, example, layers, other):
    report = slimbit.cost(model, example)
    assert report.total.macs == layers
    assert sum(work.macs for work in report.other_work) == other
    assert not report.notes


class Mixed(nn.Module):
    """Reads values, hides its batch and fixes it: nothing shows how many images there are."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 3)

    def forward(self, x):
        return self.fc(x.reshape(2, 3, 5)).sum()


def test_an_unknown_batch_is_said_and_can_be_given():
    (note,) = slimbit.cost(Mixed(), torch.zeros(6, 5)).notes
    assert note.startswith("No dimension of the example input (6x5) was found to be the batch")
    assert slimbit.cost(Mixed(), torch.zeros(6, 5)).total.macs == 6 * 15
    given = slimbit.cost(Mixed(), torch.zeros(6, 5), batch=6)
    assert given.total.macs == 15
    assert not given.notes
    anchors = slimbit.cost(Anchors(), (torch.zeros(9, 4), torch.zeros(2, 3, 8, 8)), batch=2)
    assert anchors.total.macs == 9 * 32 + 36 * 8 * 27
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(InputError, match="batch must be a positive whole number, got"):
            slimbit.cost(Mixed(), torch.zeros(6, 5), batch=wrong)
    with pytest.raises(InputError, match=r"batch must divide the 6 positions of fc, got 4"):
        slimbit.cost(Mixed(), torch.zeros(6, 5), batch=4)


LEARNED = {
    "images": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)), (torch.zeros(5, 3, 8, 8),), [36, 1]),
    "times first": (TimeStep(), (torch.zeros(1000, 1), torch.zeros(5, 3, 8, 8)), [36]),
    "sequence first": (nn.Sequential(nn.Linear(6, 6), nn.GRU(6, 8)), (torch.zeros(7, 5, 6),), [7]),
    "nothing but layers": (nn.Linear(4, 2), (torch.zeros(5, 4),), [1]),
    "a batch of pairs": (nn.Bilinear(4, 4, 2), (torch.zeros(5, 9, 4), torch.zeros(5, 9, 4)), [9]),
}


@pytest.mark.parametrize(("model", "inputs", "positions"), LEARNED.values(), ids=LEARNED)
def test_positions_of_one_image_are_learned_from_a_pass_that_cannot_be_repeated(model, inputs, positions):
    watch = PositionsWatch(model.train())
    model(*inputs)
    assert list(watch.positions.values())[: len(positions)] == positions


def test_positions_stay_unknown_where_the_batch_does_not_show():
    class Pairs(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, left, right):
            return self.fc(left).sum() + self.fc(right).sum()

    watch = PositionsWatch(Pairs().train())
    watch._network(torch.zeros(5, 4), torch.zeros(9, 4))
    assert watch.positions == {}


class Skip(nn.Conv2d):
    def forward(self, x):
        return x[:, :1].expand(-1, self.out_channels, -1, -1)


class Twice(nn.Conv2d):
    """Returns a tuple, and multiplies by its weight twice."""

    def forward(self, x):
        return self._conv_forward(x, self.weight, None), self._conv_forward(-x, self.weight, None)


class First(nn.Sequential):
    def forward(self, x):
        for module in self:
            x = module(x)
            x = x[0] if isinstance(x, tuple) else x
        return x


class Standardized(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class Narrow(nn.Conv2d):
    """Uses half of its filters."""

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight[: self.out_channels // 2], padding=1)


def test_a_subclass_counts_for_what_it_computes():
    model = nn.Sequential(Skip(3, 4, 3), Standardized(4, 4, 3), Narrow(4, 6, 3))
    report = slimbit.cost(model, torch.zeros(1, 3, 8, 8))
    assert [(layer.name, layer.macs) for layer in report.layers] == [("1", 36 * 4 * 36)]
    assert [(work.name, work.macs) for work in report.other_work] == [("2", 36 * 3 * 36)]
    assert {other.owner for other in report.other_parameters} == {
        "Skip (multiplies nothing by its weight)", "Narrow (multiplies by something else than its weight)",
    }  # fmt: skip
    assert [note.partition(", because")[0] for note in report.notes] == [
        "Skip (1 modules, the first is 0) is not counted as the Conv2d it derives from",
        "Narrow (1 modules, the first is 2) is not counted as the Conv2d it derives from",
    ]


def test_a_subclass_that_returns_a_tuple_is_counted():
    model = First(Twice(3, 4, 3, bias=False), nn.Conv2d(4, 2, 1, bias=False))
    report = slimbit.cost(model, torch.zeros(1, 3, 8, 8))
    assert [(layer.name, layer.positions) for layer in report.layers] == [("0", 2 * 36), ("1", 36)]
    assert not report.other_work


class OnALoan(nn.Linear):
    """Multiplies by its weight where nobody sees it, and returns what no rule reads."""

    def forward(self, x):
        return [x]


def test_a_rule_that_fails_does_not_blame_the_example():
    report = slimbit.cost(First(nn.Linear(4, 4), OnALoan(4, 4)), torch.zeros(1, 4))
    assert [layer.name for layer in report.layers] == ["0"]
    assert report.notes[0].startswith("OnALoan (1 modules, the first is 1) is not counted as the Linear")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_part_is_listed():
    part = torch.jit.script(nn.Sequential(nn.Conv2d(4, 5, 3), nn.ReLU()))
    report = slimbit.cost(nn.Sequential(nn.Conv2d(3, 4, 3), part), torch.zeros(1, 3, 8, 8))
    assert report.total.macs == 36 * 4 * 27
    assert [(work.macs, work.parameters[0]) for work in report.other_work] == [(16 * 5 * 36, "1.0.weight")]
    assert report.notes[0].startswith("Module 1 is scripted, so its layers are not counted")


@pytest.mark.filterwarnings("ignore")
def test_a_flattened_program_is_listed_with_advice():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
    program = torch.export.export(net, (torch.zeros(1, 3, 8, 8),))
    report = slimbit.cost(program.module(), torch.zeros(1, 3, 8, 8))
    assert (report.layers, report.total.macs, report.total.mean_bits) == ((), 0, 0)
    assert total_work(report) == 36 * 4 * 27 + 144 * 5
    assert "count the module it was made from" in report.notes[0]
    assert [layer.macs for layer in slimbit.cost(program).layers] == [36 * 4 * 27, 144 * 5]
    with pytest.raises(InputError, match=r"got ExportedProgram: count it with slimbit.cost"):
        survey_network(program, torch.zeros(1, 3, 8, 8))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_packed_weights_are_said_with_advice():
    net = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 5)))
    with pytest.raises(InputError, match=r"got none\. The weights of 1 modules are packed .* before convert\(\)"):
        slimbit.cost(net, torch.zeros(1, 4))


def test_a_network_without_forward_names_the_part_that_computes():
    class Lit(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.backbone = nn.Linear(4, 2), nn.Conv2d(3, 4, 3)

    with pytest.raises(InputError, match=r"Lit must have a forward function .* like its module backbone or head"):
        slimbit.cost(Lit(), torch.zeros(1, 3, 8, 8))


class Autoencoder(nn.Module):
    """Decodes with the transposed weight of its encoder."""

    def __init__(self, width):
        super().__init__()
        self.encoder, self.middle = nn.Linear(8, width), nn.Linear(width, width)

    def forward(self, x):
        return nn.functional.linear(self.middle(self.encoder(x).relu()), self.encoder.weight.t())


@pytest.mark.parametrize("width", [8, 6])
def test_a_weight_that_is_also_used_transposed_is_pruned_with_what_reads_it(width):
    model, x = Autoencoder(width), torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    filter_groups = find_filter_groups(model, x[:1])
    (group,) = filter_groups.groups  # what the encoder makes, the middle layer's inputs and outputs are all its filters
    assert {(member.name, member.role) for member in group.members} == {
        ("encoder", "filters"), ("middle", "inputs"), ("middle", "filters")
    }  # fmt: skip
    plan = plan_of_units(filter_groups, {"encoder": range(width // 2)}, policy="half")
    torch.testing.assert_close(cut(model, plan, x[:1])(x), mask(model, plan, x[:1])(x))
    report = slimbit.cost(Autoencoder(width), torch.zeros(1, 8))
    assert report.total.macs == 8 * width + width * width
    assert [(work.macs, work.parameters) for work in report.other_work] == [(8 * width, ("encoder.weight",))]
