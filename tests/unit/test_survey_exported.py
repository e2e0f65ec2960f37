"""Programs of torch.export: the graph says what multiplies which parameter."""

import logging
import zipfile

import pytest
import torch
from torch import nn

from slimbit.records.errors import InputError
from slimbit.survey.exported import survey_exported
from slimbit.zoo import network


class Mixed(nn.Module):
    """Grouped and transposed convolutions, attention, tied weights, weight norm, a plain product."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, groups=2)
        self.norm = nn.BatchNorm2d(6)
        self.up = nn.ConvTranspose2d(6, 4, 2, 2, groups=2)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 8))
        self.plain = nn.Parameter(torch.randn(8, 4))

    def forward(self, x):
        tokens = self.up(self.norm(self.conv(x))).flatten(2).transpose(1, 2)
        tokens = self.normed(tokens) @ self.plain
        return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)


def exported(module, *inputs, **options):
    return torch.export.export(module.eval(), inputs, **options)


@pytest.fixture(scope="module")
def mixed():
    module = Mixed()
    return module, exported(module, torch.randn(2, 4, 6, 6))


def test_layers_and_macs_per_image(mixed):
    module, program = mixed
    survey = survey_exported(program)
    # 4x4 positions after the convolution, which the transposed one reads; 8x8 tokens after it
    assert {layer.name: (layer.kind, layer.shape, layer.positions) for layer in survey.spec.layers} == {
        "conv": ("conv2d", (6, 2, 3, 3), 16),
        "up": ("conv_transpose2d", (4, 3, 2, 2), 16),
        "normed": ("linear", (8, 4), 64),
        "plain": ("linear", (4, 8), 64),
    }
    (work,) = survey.spec.other_work
    assert (work.operation, work.macs) == ("scaled_dot_product_attention", 2 * 64 * 64 * 4)
    assert {o.name: o.owner for o in survey.spec.other_parameters} == {
        "norm.weight": "BatchNorm2d",
        "norm.bias": "BatchNorm2d",
    }
    assert [layer.bias_parameters for layer in survey.spec.layers] == [6, 4, 8, 0]
    assert module.training is False


def test_weights_come_filters_first(mixed):
    module, program = mixed
    survey = survey_exported(program)
    read = {layer.name: survey.weight(layer) for layer in survey.spec.layers}
    assert torch.equal(read["conv"], module.conv.weight)
    assert torch.equal(read["up"][3, 1], module.up.weight[4, 1])  # second group: inputs 3..5, filters 2..3
    assert torch.allclose(read["normed"], module.normed.weight)
    assert torch.equal(read["plain"], module.plain.T)
    assert not any(weight.requires_grad for weight in read.values())


def test_a_saved_file_says_the_same(mixed, tmp_path, caplog):
    _, program = mixed
    torch.export.save(program, tmp_path / "mixed.pt2")
    with caplog.at_level(logging.DEBUG):
        survey = survey_exported(tmp_path / "mixed.pt2", allow_code=True)
    assert survey.spec.name == "mixed"
    assert survey.spec.layers == survey_exported(program).spec.layers
    assert not caplog.records


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch warns about itself
def test_lowered_graph_says_the_same(mixed):
    """Linear layers become permute + addmm, products an expanded bmm; their weights must still be found."""
    module, program = mixed
    lowered = survey_exported(program.run_decompositions())
    assert [(layer.name, layer.shape, layer.macs) for layer in lowered.spec.layers] == [
        (layer.name, layer.shape, layer.macs) for layer in survey_exported(program).spec.layers
    ]
    assert torch.equal(lowered.weight(lowered.spec.layer("plain")), module.plain.T)
    assert torch.allclose(lowered.weight(lowered.spec.layer("normed")), module.normed.weight)


def test_repeated_calls_add_positions_and_tied_weights_share_memory():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(10, 4)
            self.mix = nn.Linear(4, 4)
            self.head = nn.Linear(4, 10, bias=False)
            self.head.weight = self.table.weight

        def forward(self, tokens):
            return self.head(self.mix(self.mix(self.table(tokens))))

    survey = survey_exported(exported(Tied(), torch.zeros(1, 6, dtype=torch.long)))
    table, mix, head = survey.spec.layers
    assert (table.name, table.kind, table.macs) == ("table", "embedding", 0)
    assert (mix.calls, mix.positions, mix.bias_parameters) == (2, 12, 4)
    assert (head.name, head.shared_with, head.positions) == ("head", "table", 6)
    assert not survey.spec.other_parameters


def test_dynamic_batch_counts_as_one():
    batch = torch.export.Dim("batch", min=1, max=64)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2), nn.Linear(36, 2))
    program = exported(module, torch.randn(2, 3, 8, 8), dynamic_shapes=({0: batch},))
    assert [layer.positions for layer in survey_exported(program).spec.layers] == [36, 4]


def test_dynamic_image_size_is_refused():
    height = torch.export.Dim("height", min=4, max=64)
    program = exported(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8), dynamic_shapes=({2: height},))
    with pytest.raises(InputError, match="every dimension but the batch must be fixed"):
        survey_exported(program)


def test_regions_without_gradient_are_entered():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 5)
            self.last = nn.Linear(5, 3)

        def forward(self, x):
            with torch.no_grad():
                hidden = self.first(x)
            return self.last(hidden)

    survey = survey_exported(exported(Frozen(), torch.randn(1, 4)))
    assert [(layer.name, layer.macs) for layer in survey.spec.layers] == [("first", 20), ("last", 15)]


@pytest.mark.filterwarnings("ignore::Warning")  # torch warns about itself
def test_branches_are_noted():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 5)

        def forward(self, x):
            x = self.fc(x)
            return torch.cond(x.sum() > 0, lambda y: y * 2, lambda y: y + 1, (x,))

    survey = survey_exported(exported(Branch(), torch.randn(1, 4)))
    assert "nothing in it is counted" in survey.spec.notes[0]


def test_recurrent_layers_are_other_work_with_their_parameters():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.ParameterList(torch.randn(12, 4) for _ in range(2))
            self.fc = nn.Linear(4, 2)

        def forward(self, x):
            state = torch.zeros(1, x.shape[0], 4)
            return self.fc(torch.gru(x, state, list(self.weights), False, 1, 0.0, False, False, True)[0])

    survey = survey_exported(exported(Recurrent(), torch.randn(1, 3, 4)))
    (work,) = survey.spec.other_work
    assert (work.operation, work.macs) == ("gru", 3 * 2 * 48)
    assert work.parameters == ("weights.0", "weights.1")


def test_public_resnet20_has_the_count_that_other_tools_agree_on(tmp_path):
    """QONNX, calflops and flop_counter / 2 all say 40,813,184 for projections in stages 2 and 3."""
    program = exported(network("resnet20-B"), torch.zeros(1, 3, 32, 32))
    assert sum(layer.macs for layer in survey_exported(program).spec.layers) == 40_813_184


def test_zero_size_layer_is_named():
    class Empty(nn.Module):
        def __init__(self):
            super().__init__()
            self.gone = nn.Parameter(torch.zeros(0, 4))

        def forward(self, x):
            return nn.functional.linear(x, self.gone)

    with pytest.raises(InputError, match=r"layer 'gone' must have weights, got shape \(0, 4\)"):
        survey_exported(exported(Empty(), torch.randn(1, 4)))


def test_other_archives_are_told_apart(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "checkpoint.pt2")
    with pytest.raises(InputError, match=r"write one with torch.export.save"):
        survey_exported(tmp_path / "checkpoint.pt2", allow_code=True)


def test_a_failing_load_says_why_and_logs_nothing(mixed, tmp_path, caplog):
    """With correct checksums, so that the loader itself meets an operator that this torch does not have."""
    torch.export.save(mixed[1], tmp_path / "mixed.pt2")
    with zipfile.ZipFile(tmp_path / "mixed.pt2") as old, zipfile.ZipFile(tmp_path / "bad.pt2", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b"aten.batch_norm", b"aten.batch_fish"))
    with caplog.at_level(logging.DEBUG), pytest.raises(InputError, match="batch_fish"):
        survey_exported(tmp_path / "bad.pt2", allow_code=True)
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]


def test_a_bad_checksum_stops_before_anything_is_unpickled(mixed, tmp_path, monkeypatch):
    path = tmp_path / "mixed.pt2"
    torch.export.save(mixed[1], path)
    with zipfile.ZipFile(path) as archive:
        entry = next(info for info in archive.infolist() if info.filename.endswith("sample_inputs/model.pt"))
    content = bytearray(path.read_bytes())
    place = content.index(b"sample_inputs/model.pt", entry.header_offset) + entry.file_size
    content[place] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr(torch.export, "load", lambda *_: pytest.fail("the damaged file was loaded"))
    with pytest.raises(InputError, match=r"bad checksum in .*sample_inputs/model.pt"):
        survey_exported(path, allow_code=True)


class Reshaped(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 3)

    def forward(self, x):
        return self.fc(x.reshape(2, 3, 5))


def test_the_batch_is_what_inputs_and_outputs_have_in_common():
    convolution = survey_exported(exported(nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8)))
    assert convolution.spec.layers[0].macs == 36 * 4 * 27
    assert convolution.spec.notes[0].startswith("The first dimension of the inputs, 2, is counted as the batch")
    # as many channels out as in: the convolution itself says that there is no batch
    signal = survey_exported(exported(nn.Conv1d(4, 4, 3, padding=1), torch.randn(4, 128)))
    assert signal.spec.layers[0].macs == 128 * 4 * 4 * 3
    unknown = survey_exported(exported(Reshaped(), torch.randn(6, 5)))
    assert unknown.spec.layers[0].macs == 6 * 15
    assert unknown.spec.notes[0].startswith("No dimension of the inputs (6x5) was found to be the batch")
    given = survey_exported(exported(Reshaped(), torch.randn(6, 5)), batch=6)
    assert (given.spec.layers[0].macs, given.spec.notes) == (15, ())
