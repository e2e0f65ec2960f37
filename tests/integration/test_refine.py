"""Refinement: float parameters of a compressed network tuned towards the float network on calibration images."""

from pathlib import Path

import pytest
import torch

import slimbit
from slimbit.records.config import QuantConfig
from slimbit.records.errors import InputError


@pytest.fixture(scope="module")
def prepared() -> slimbit.PreparedNetwork:
    images = slimbit.open_data("digits").calibration(200)
    return slimbit.prepare(slimbit.network("digits_resnet", weights="shipped"), torch.zeros(1, 1, 8, 8), images)


def distance(small: slimbit.CompressedModel, prepared: slimbit.PreparedNetwork) -> float:
    images = torch.cat(list(slimbit.open_data("digits").evaluator(250).batches()))
    with torch.inference_mode():
        return float((small.model(images) - prepared.model(images)).square().mean())


@pytest.mark.parametrize("activation_bits", [None, 8])
def test_outputs_come_closer_on_other_images_and_levels_stay(
    prepared: slimbit.PreparedNetwork, activation_bits: int | None
) -> None:
    # where nothing else repairs what rounding has moved
    config = QuantConfig(activation_bits=activation_bits, compensation=False, target="weights", statistics="stored")
    plain, refined = (
        slimbit.quantize(prepared, bits=3, config=config.model_copy(update={"refine": passes})) for passes in (0, 8)
    )
    assert distance(refined, prepared) < 0.8 * distance(plain, prepared)
    for name, layer in plain.layers.items():
        assert torch.equal(layer.levels, refined.layers[name].levels)
    (note,) = (note for note in refined.cost.notes if note.startswith("refined by "))
    assert " of 8 passes: squared distance" in note
    pairs = zip(refined.network.parameters(), plain.network.parameters(), strict=True)
    assert all(value.requires_grad == before.requires_grad for value, before in pairs)


def test_a_refined_network_is_saved_and_loaded(prepared: slimbit.PreparedNetwork, tmp_path: Path) -> None:
    small = slimbit.quantize(prepared, bits=3, config=QuantConfig(refine=2))
    small.save(tmp_path / "small")
    images = torch.randn(8, 1, 8, 8)
    loaded = slimbit.load(tmp_path / "small", model=slimbit.network("digits_resnet"))
    with torch.inference_mode():
        assert torch.equal(loaded.model(images), small.model(images))


def test_a_point_of_a_run_is_the_refined_one(prepared: slimbit.PreparedNetwork, tmp_path: Path) -> None:
    evaluate = slimbit.open_data("digits").evaluator(100)
    config = slimbit.RunConfig(points=3, baselines=(), quant=QuantConfig(refine=2))
    run = slimbit.trace_frontier(prepared, evaluate=evaluate, out=tmp_path / "run", config=config)
    point = run.points[1]
    small = slimbit.open_run(tmp_path / "run").load(point, model=slimbit.network("digits_resnet"))
    assert float(evaluate(small.model)) == point.accuracy


def test_nothing_is_kept_that_does_not_help(prepared: slimbit.PreparedNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    from slimbit.apply import refine

    monkeypatch.setattr(refine, "LEARNING_RATE", 10.0)
    config = QuantConfig(refine=1)
    refined = slimbit.quantize(prepared, bits=4, config=config)
    plain = slimbit.quantize(prepared, bits=4, config=QuantConfig())
    assert any(note.startswith("refined by 0 of 1 passes") for note in refined.cost.notes)
    for name, value in plain.network.state_dict().items():
        assert torch.equal(value, refined.network.state_dict()[name]), name


def test_few_images_are_refused(prepared: slimbit.PreparedNetwork) -> None:
    few = slimbit.prepare(prepared.model, torch.zeros(1, 1, 8, 8), torch.randn(20, 1, 8, 8))
    with pytest.raises(InputError, match="calibration images must be at least 50 to refine, got 20"):
        slimbit.quantize(few, bits=4, config=QuantConfig(refine=1))
