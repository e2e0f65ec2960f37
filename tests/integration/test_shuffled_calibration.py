"""Calibration images from a `DataLoader` that shuffles: another order is still the same images."""

import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[1]))
import frontier_case as case
import slimbit


def loader(seed: int, *, count: int = 48, batch: int = 16) -> DataLoader:
    data = TensorDataset(case.images(count, seed=3), torch.zeros(count))
    return DataLoader(data, batch_size=batch, shuffle=True, generator=torch.Generator().manual_seed(seed))


def test_a_run_is_continued_in_another_order(tmp_path: Path) -> None:
    net, x, evaluate = case.network(), case.images(1, seed=1), case.Agreement()

    def traced(images: DataLoader, points: int) -> slimbit.Frontier:
        config = slimbit.RunConfig(points=points, baselines=())
        return slimbit.trace_frontier(net, x, images, evaluate, out=tmp_path / "run", config=config)

    first = traced(loader(0), 2)
    calls = evaluate.calls
    again = traced(loader(1, batch=12), 2)
    assert [p.accuracy for p in again.points] == [p.accuracy for p in first.points]
    assert evaluate.calls == calls + 1  # of the float network
    with pytest.raises(slimbit.InputError, match="calibration images"):
        traced(loader(1, count=40), 2)


def test_a_network_is_pruned_twice_with_images_in_another_order() -> None:
    net, x = case.network(), case.images(1, seed=1)
    once = [slimbit.prune(net, x, loader(seed), keep=0.5) for seed in (0, 1)]
    assert once[0].keep == once[1].keep
    for name, value in once[0].model.state_dict().items():
        assert torch.allclose(value, once[1].model.state_dict()[name], rtol=0, atol=1e-5), name
    twice = slimbit.prune(once[0], x, loader(2), keep=0.5)
    assert [twice.model[k].out_channels for k in (0, 3)] == [2, 2]
