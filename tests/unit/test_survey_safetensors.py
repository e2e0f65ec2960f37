"""Bare safetensors files: costs per parameter only."""

import pytest
import torch
from safetensors.torch import save_file

from slimbit.records.errors import InputError
from slimbit.survey.safetensors_file import survey_safetensors


def test_tensors_become_layers_without_positions(tmp_path):
    tensors = {
        "conv.weight": torch.randn(4, 3, 3, 3),
        "conv.bias": torch.zeros(4),
        "half": torch.ones(2, 5, dtype=torch.bfloat16),
        "norm.running_mean": torch.zeros(4),
        "norm.num_batches_tracked": torch.tensor(3),
        "scale": torch.tensor(2.0),
        "table": torch.ones(2, 2, dtype=torch.int32),
    }
    save_file(tensors, tmp_path / "net.safetensors")
    survey = survey_safetensors(tmp_path / "net.safetensors")
    layers = {layer.name: layer for layer in survey.spec.layers}
    assert set(layers) == {"conv", "half"}
    conv = layers["conv"]
    assert (conv.kind, conv.weight_key, conv.shape) == ("tensor", "conv.weight", (4, 3, 3, 3))
    assert (conv.macs, conv.multiplicity("parameter")) == (0, 1)
    assert torch.equal(survey.weight(conv), tensors["conv.weight"])
    assert survey.weight(layers["half"]).dtype == torch.bfloat16
    assert {(o.name, o.elements) for o in survey.spec.other_parameters} == {("conv.bias", 4), ("scale", 1)}
    assert "no graph" in survey.spec.notes[0]


def test_names_stay_unique(tmp_path):
    tensors = {"a": torch.zeros(2, 2), "a.weight": torch.ones(3, 3)}
    save_file(tensors, tmp_path / "net.safetensors")
    survey = survey_safetensors(tmp_path / "net.safetensors")
    assert {layer.name: layer.shape for layer in survey.spec.layers} == {"a": (2, 2), "a.weight": (3, 3)}


def test_zero_size_layer_is_named(tmp_path):
    save_file({"fc.weight": torch.zeros(0, 3)}, tmp_path / "net.safetensors")
    with pytest.raises(InputError, match=r"layer 'fc.weight' .* must have weights, got shape \(0, 3\)"):
        survey_safetensors(tmp_path / "net.safetensors")


def test_floats_of_8_bits_are_refused_by_name(tmp_path):
    save_file({"fc.weight": torch.ones(2, 3).to(torch.float8_e4m3fn)}, tmp_path / "net.safetensors")
    with pytest.raises(InputError, match=r"tensor 'fc.weight' of .*net.safetensors must be of type .*, got F8_E4M3"):
        survey_safetensors(tmp_path / "net.safetensors")


def test_nothing_to_count(tmp_path):
    save_file({"bias": torch.zeros(3)}, tmp_path / "net.safetensors")
    with pytest.raises(InputError, match="two or more dimensions, got none"):
        survey_safetensors(tmp_path / "net.safetensors")


def test_only_the_header_is_read_until_a_weight_is_asked_for(tmp_path):
    path = tmp_path / "net.safetensors"
    save_file({"w": torch.ones(2, 2)}, path)
    survey = survey_safetensors(path)
    save_file({"w": torch.full((2, 2), 7.0)}, path)
    assert survey.weight(survey.spec.layers[0]).tolist() == [[7, 7], [7, 7]]
    path.unlink()
    with pytest.raises(InputError, match="must exist"):
        survey.weight(survey.spec.layers[0])
