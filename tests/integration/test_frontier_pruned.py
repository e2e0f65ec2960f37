"""The pruned networks behind the points of a run can be taken as they were before quantization."""

import pytest
import torch

import slimbit


@pytest.fixture(scope="module")
def frontier(tmp_path_factory):
    data = slimbit.open_data("digits")
    return slimbit.trace_frontier(
        slimbit.network("digits_resnet", weights="shipped"),
        torch.zeros(1, 1, 8, 8),
        data.calibration(64),
        data.evaluator(100),
        out=tmp_path_factory.mktemp("run") / "run",
        points=1,
        config=slimbit.RunConfig(keep_ratios=(1.0, 0.5), baselines=False),
    )


def test_it_is_what_pruning_alone_gives(frontier):
    found = slimbit.open_run(frontier.path).pruned(0.5)
    images = torch.cat(list(slimbit.open_data("digits").calibration(64)))
    wanted = slimbit.prune(slimbit.network("digits_resnet", weights="shipped"), images[:1], [images], keep=0.5)
    assert found.keep.axes == wanted.keep.axes
    assert found.plan is None
    torch.testing.assert_close(found.model(images), wanted.model(images))
    assert found.cost.total.macs == wanted.cost.total.macs


def test_it_goes_in_again(frontier, tmp_path):
    found = frontier.pruned(0.5)
    again = slimbit.load(found.save(tmp_path / "half"))
    images = torch.rand(8, 1, 8, 8)
    assert torch.equal(again.model(images), found.model(images))
    quarter = slimbit.prune(found, images[:1], keep=0.5)
    assert quarter.cost.total.macs < found.cost.total.macs
    assert slimbit.cost(found, bits=4).total.esn_digital < slimbit.cost(found, bits=8).total.esn_digital


def test_other_ratios_are_refused(frontier):
    for ratio in (1.0, 0.25):
        with pytest.raises(slimbit.InputError, match=r"keep_ratio must be one that the run has pruned to \(0.5\), got"):
            frontier.pruned(ratio)
