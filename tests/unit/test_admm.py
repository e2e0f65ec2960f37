"""ADMM beside its formulas written out, and on a real training."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
import pruning_case as case
import slimbit
from slimbit.compress.prepared import prepare
from slimbit.compress.prune import Pruner
from slimbit.records.config import PruneConfig, TuneConfig
from slimbit.records.errors import InputError
from slimbit.records.training import TrainConfig
from slimbit.training.admm import Admm, AdmmSettings
from slimbit.training.hold import held_at_zero
from slimbit.training.images import TrainImages
from slimbit.training.run import train_network
from slimbit.training.task import TrainTask


def largest_rows(values, keep=2):
    """The rows of ``weight`` with the largest norms."""
    norms = values["weight"].flatten(1).norm(dim=1)
    stays = torch.zeros(len(norms), dtype=torch.bool)
    stays[norms.argsort(descending=True)[:keep]] = True
    return {"weight": stays[:, None].expand_as(values["weight"])}


def test_penalty_projection_and_multipliers_are_those_of_the_formulas():
    model = nn.Linear(3, 4, bias=False)
    settings = AdmmSettings(rho_first=0.5, factor=4.0, stages=2, epochs_per_stage=2)
    admm = Admm(model, largest_rows, settings)
    u = np.zeros((4, 3))

    def project(w):
        rows = np.argsort(-np.linalg.norm(w, axis=1))[:2]
        return np.where(np.isin(np.arange(4), rows)[:, None], w, 0)

    z, rho = project(model.weight.detach().numpy().astype(float)), 0.5
    for epoch in range(1, 7):
        with torch.no_grad():
            model.weight.add_(torch.randn(4, 3))
        w = model.weight.detach().numpy().astype(float)
        penalty = admm.penalty(model)
        assert float(penalty.detach()) == pytest.approx(rho / 2 * ((w - z + u) ** 2).sum(), rel=1e-5)
        (slope,) = torch.autograd.grad(penalty, [model.weight])
        np.testing.assert_allclose(slope.numpy(), rho * (w - z + u), rtol=1e-4, atol=1e-6)
        admm.end_epoch(model, epoch)
        assert admm.residuals[-1] == pytest.approx(np.sqrt(((w - project(w)) ** 2).sum() / (w**2).sum()), rel=1e-5)
        if epoch == 1:  # within a stage but the last, neither projection nor multipliers move
            continue
        z = project(w + u)
        u = u + w - z
        following = 2.0
        u, rho = u * rho / following, following


def digits_task(count=512):
    data = slimbit.open_data("digits")
    images = TrainImages(
        pixels=data.train.images, labels=data.train.labels, mean=(0.0,), std=(1.0,), full_scale=16.0,
        chosen=np.arange(count),
    )  # fmt: skip
    return TrainTask(images=images)


def half_of_each_convolution(values):
    masks = {}
    for name, value in values.items():
        if value.ndim == 4:
            norms = value.flatten(1).norm(dim=1)
            stays = norms >= norms.sort(descending=True).values[len(norms) // 2 - 1]
            masks[name] = stays[:, None, None, None].expand_as(value)
    return masks


def trained():
    return slimbit.network("digits_resnet", weights=slimbit.zoo.shipped_weights("digits_resnet"))


def test_the_residual_falls_and_a_stopped_run_goes_on_to_the_same_bits(tmp_path):
    settings = AdmmSettings(rho_first=1e-2, factor=4.0, epochs_per_stage=2, stages=4)
    config = TrainConfig(
        epochs=settings.epochs, batch_size=32, optimizer={"learning_rate": 0.1, "momentum": 0.5},
        schedule={"name": "constant"}, augment={"crop": 1, "flip": False}, select="last",
    )  # fmt: skip

    def run(folder, stop_at=None):
        def stop(epoch, _signal, _model):
            if epoch.epoch == stop_at:
                raise KeyboardInterrupt

        model = trained()
        admm = Admm(model, half_of_each_convolution, settings)
        train_network(model, replace(digits_task(), regularizer=admm, epoch_done=stop), config, folder)
        return admm, model

    whole, model = run(tmp_path / "whole")
    ends = whole.residuals[1::2]  # of the stages
    assert ends[0] > ends[1] > ends[2] > ends[3], ends
    assert ends[-1] < 0.3 * ends[0], ends
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", stop_at=4)
    again, other = run(tmp_path / "stopped")
    assert again.residuals == whole.residuals
    for (name, a), (_, b) in zip(model.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("name", ["transposed", "unet"])
def test_admm_ranks_filters_not_inputs_of_transposed_convolutions(name, tmp_path):
    """What it chooses is what ranking by the norms of the filters themselves chooses, whatever order is stored."""

    class NoTuning:
        name = "none"

        def tune_network(self, network, **_):
            pass

        def train_admm(self, network, choose, **_):
            self.masks = choose(dict(network.named_parameters()))
            return ()

    model, x, tuning = case.foreign(name), case.images(), NoTuning()
    config = PruneConfig(by="admm", statistics="stored", tune=TuneConfig())
    pruner = Pruner(prepare(model, x[:1], [x]), config, tuning)
    wanted = pruner.plan(0.5)  # by norm; ADMM keeps as many
    assert pruner.prune(wanted, tmp_path, print).keep.axes == wanted.axes
    for module_name, module in model.named_modules():
        if isinstance(module, nn.ConvTranspose2d) and module.groups == 1:
            axis = wanted.axis(module_name, "filters")
            norms = module.weight.detach().square().sum((0, 2, 3))  # stored: inputs, filters, kernel
            assert sorted(norms.argsort(descending=True)[: len(axis.kept)].tolist()) == list(axis.kept)
            stays = tuning.masks[f"{module_name}.weight"].any(0).flatten(1).any(1)
            assert stays.nonzero().flatten().tolist() == list(axis.kept)


def test_a_state_of_other_masks_is_refused():
    model = nn.Linear(3, 4)
    admm = Admm(model, largest_rows)
    state = admm.state_dict()
    with pytest.raises(InputError, match=r"state of ADMM must be of this network, got 'u.weight' with shape \(4, 2\)"):
        Admm(model, largest_rows).load_state_dict({**state, "u.weight": torch.zeros(4, 2)})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rho_first": 0.0}, "rho_first must be a positive number, got 0.0"),
        ({"factor": 0.5}, "factor must be a number of 1 or more, got 0.5"),
        ({"stages": 0}, "stages and epochs_per_stage must be 1 or more, got 0 and 3"),
    ],
)
def test_wrong_settings_are_told(values, message):
    with pytest.raises(InputError, match=message):
        AdmmSettings(**values)


def test_weights_held_at_zero_stay_zero_through_training(tmp_path):
    model = trained()
    masks = half_of_each_convolution(dict(model.named_parameters()))
    hold = held_at_zero(masks)
    hold(model)
    config = TuneConfig(epochs=2, learning_rate=0.05, train={"augment": {"crop": 1, "flip": False}}).training()
    train_network(model, replace(digits_task(256), after_step=(hold,)), config, tmp_path)
    for name, mask in masks.items():
        value = dict(model.named_parameters())[name].detach()
        assert not value[~mask].any(), name
        assert bool((value[mask] != 0).all()), name


def test_tuning_follows_the_papers_settings():
    four, long = TuneConfig(epochs=4).training(), TuneConfig(epochs=160).training()
    assert (four.batch_size, four.schedule.name, four.schedule.milestones) == (64, "step", (2, 3))
    assert (long.batch_size, long.schedule.name, long.optimizer.weight_decay) == (100, "cosine", 5e-4)
    with pytest.raises(InputError, match="epochs must be greater than or equal to 1, got 0"):
        TuneConfig(epochs=0)
    with pytest.raises(InputError, match="masks must be of parameters of the network, got 'w' of"):
        held_at_zero({"w": torch.ones(1)})(nn.Linear(1, 1))
