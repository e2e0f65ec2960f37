"""Schedules, settings, augmentation and checkpoints of training, each beside a slow form of itself."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from slimbit.records.errors import InputError
from slimbit.records.recipes import recipe_names
from slimbit.records.training import AugmentConfig, TrainConfig
from slimbit.training.checkpoint import Checkpoint, check_fits, read_checkpoint, write_checkpoint
from slimbit.training.images import Batches, Share, TrainImages
from slimbit.training.schedule import learning_rate

CPU = torch.device("cpu")


def rates(config, steps_per_epoch):
    return [learning_rate(config, step, steps_per_epoch) for step in range(config.epochs * steps_per_epoch)]


def reference_rates(scheduler, config, steps_per_epoch, **options):
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=config.optimizer.learning_rate, momentum=0.9)
    schedule = scheduler(optimizer, **options)
    found = []
    for _ in range(config.epochs * steps_per_epoch):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_cosine_is_torchs():
    config = TrainConfig(epochs=5, schedule={"name": "cosine"})
    wanted = reference_rates(torch.optim.lr_scheduler.CosineAnnealingLR, config, 7, T_max=35)
    assert rates(config, 7) == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_step_is_torchs():
    config = TrainConfig(epochs=6, schedule={"name": "step", "milestones": [2, 5], "factor": 0.2})
    wanted = reference_rates(torch.optim.lr_scheduler.MultiStepLR, config, 3, milestones=[6, 15], gamma=0.2)
    assert rates(config, 3) == pytest.approx(wanted, rel=1e-9)


def test_one_cycle_rises_from_a_25th_to_the_peak_and_falls_to_nothing():
    config = TrainConfig(epochs=4, schedule={"name": "one_cycle", "warm_up": 0.25}, optimizer={"learning_rate": 0.5})
    found = rates(config, 100)
    assert found[0] == pytest.approx(0.02)
    assert max(found) == pytest.approx(0.5)
    assert found.index(max(found)) == 100
    assert found[:101] == sorted(found[:101])
    assert found[100:] == sorted(found[100:], reverse=True)
    assert found[-1] < 1e-4


def test_constant_stays():
    assert set(rates(TrainConfig(epochs=2, schedule={"name": "constant"}), 5)) == {0.1}


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_are_valid_and_say_their_scale(name):
    found = TrainConfig.from_recipe(name)
    assert found.scale == name.rpartition("-")[2]
    assert math.isfinite(learning_rate(found, 0, 10))


def test_an_unknown_recipe_names_its_like():
    with pytest.raises(InputError, match=r"must be one that comes with Slimbit, got 'fig4-quik'; did you mean fig4"):
        TrainConfig.from_recipe("fig4-quik")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", r"train\.toml: settings must hold only known keys, got epoch; did you mean epochs"),
        ("[optimizer]\nlearning_rat = 1.0", "only known keys, got optimizer.learning_rat; did you mean learning_rate"),
        ("[optimizer]\nlearning_rate = 0.0", "optimizer.learning_rate must be greater than 0"),
        ("[optimizer]\nmomentum = 1.0", "optimizer.momentum must be less than 1"),
        ("batch_size = 10\naccumulate = 3", "batch_size must be a multiple of accumulate, got 10, 3"),
        ('[schedule]\nname = "step"\nmilestones = [5, 3]', r"milestones must be rising epochs from 1, got \(5, 3\)"),
        ("[optimizer]\nmomentum = 0.0\nnesterov = true", "momentum must be above 0 for nesterov"),
        ('precision = "float16"', "precision must be 'float32' or 'bfloat16', got 'float16'"),
    ],
)
def test_wrong_settings_are_told_with_their_key(tmp_path, text, message):
    file = tmp_path / "train.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        TrainConfig.from_toml(file)


def test_options_win_over_the_file_and_leave_the_rest():
    base = TrainConfig(epochs=3, optimizer={"learning_rate": 0.2, "nesterov": True})
    found = base.with_options({"seed": 7, "optimizer": {"learning_rate": 0.3, "momentum": None}})
    assert (found.epochs, found.seed, found.optimizer.learning_rate, found.optimizer.nesterov) == (3, 7, 0.3, True)


def test_the_digest_follows_what_the_weights_depend_on():
    base = TrainConfig()
    assert base.digest() == TrainConfig(keep_weights=True, data="cifar10:/elsewhere").digest()
    assert base.digest() != TrainConfig(seed=1).digest()
    assert base.digest() != TrainConfig(optimizer={"weight_decay": 1e-4}).digest()


def images(count=12, *, dtype=np.uint8, chosen=None):
    pixels = np.random.default_rng(0).integers(1, 255, (count, 3, 6, 5)).astype(dtype)
    labels = np.arange(count, dtype=np.int64)
    return TrainImages(pixels=pixels, labels=labels, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), chosen=chosen)


def drawn(source, augment, seed=3, **share):
    batches = Batches(source, augment, device=CPU)
    return [part for parts in batches.epoch(seed, Share(**share)) for part in parts]


def test_crops_and_flips_are_those_of_a_loop_over_images():
    source = images()
    batches = drawn(source, AugmentConfig(crop=2, flip=True), batch_size=4)
    seen = dict(zip(torch.cat([y for _, y in batches]).tolist(), torch.cat([x for x, _ in batches]), strict=True))
    mean, std = (torch.tensor(v)[:, None, None] for v in (source.mean, source.std))
    moves = set()
    for label, image in seen.items():
        original = torch.from_numpy(source.pixels[label])
        padded = torch.nn.functional.pad(original, (2, 2, 2, 2))
        found = [
            (top, left, mirrored)
            for top in range(5)
            for left in range(5)
            for mirrored in (False, True)
            if torch.allclose(image, (mirror(padded[:, top : top + 6, left : left + 5], mirrored) / 255 - mean) / std)
        ]
        assert len(found) == 1, label
        moves.add(found[0])
    assert len(seen) == 12
    assert len(moves) > 6
    assert {mirrored for *_, mirrored in moves} == {False, True}


def mirror(image, mirrored):
    return image.flip(2) if mirrored else image


def test_without_augmentation_each_image_comes_once_and_as_it_is():
    source = images(dtype=np.float32)
    found = drawn(source, AugmentConfig(crop=0, flip=False), batch_size=5)
    labels = torch.cat([labels for _, labels in found]).tolist()
    assert len(labels) == len(set(labels)) == 10  # two images fill no batch
    mean, std = (torch.tensor(v)[:, None, None] for v in (source.mean, source.std))
    whole = torch.cat([batch for batch, _ in found])
    torch.testing.assert_close(whole, (torch.from_numpy(source.pixels[labels]) - mean) / std)
    assert whole[:1].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_batches_lie_in_memory_as_asked_also_with_one_channel(channels, channels_last):
    source = TrainImages(pixels=np.zeros((4, channels, 8, 8), np.uint8), mean=(0.0,) * channels, std=(1.0,) * channels)
    batches = Batches(source, AugmentConfig(), device=CPU, channels_last=channels_last)
    (((batch, _),),) = batches.epoch(0, Share(batch_size=4))
    wanted = (64 * channels, 1, 8 * channels, channels) if channels_last else (64 * channels, 64, 8, 1)
    assert batch.stride() == wanted
    layout = torch.channels_last if channels_last else torch.contiguous_format
    with torch.no_grad():  # the layout of the images decides for all layers
        assert torch.nn.Conv2d(channels, 2, 3)(batch).is_contiguous(memory_format=layout)


def test_images_are_moved_by_an_eighth_of_their_side_unless_told():
    pixels = np.full((64, 1, 16, 24), 255, np.uint8)
    source = TrainImages(pixels=pixels, labels=None, mean=(0.0,), std=(1.0,))
    ((batch, labels),) = drawn(source, AugmentConfig(), batch_size=64)
    assert labels is None
    rows = (batch[:, 0] == 0).all(2).sum(1)
    columns = (batch[:, 0] == 0).all(1).sum(1)
    assert (int(rows.max()), int(columns.max())) == (2, 2)


def test_only_chosen_images_are_used():
    found = drawn(images(chosen=np.array([7, 6, 4, 1])[::-1]), AugmentConfig(), batch_size=2)
    assert sorted(torch.cat([labels for _, labels in found]).tolist()) == [1, 4, 6, 7]


def test_the_shares_of_all_processes_make_the_batch():
    source, augment = images(), AugmentConfig(crop=1)
    whole = drawn(source, augment, batch_size=4)
    shares = [drawn(source, augment, batch_size=4, rank=rank, processes=2) for rank in range(2)]
    for (batch, labels), (first, ours), (second, theirs) in zip(whole, *shares, strict=True):
        order = torch.stack([ours, theirs], 1).flatten()
        assert order.tolist() == labels.tolist()
        assert torch.equal(torch.stack([first, second], 1).flatten(0, 1), batch)


def test_it_makes_no_difference_whether_parts_are_accumulated_or_shared():
    source, augment = images(), AugmentConfig(crop=1)
    accumulated = drawn(source, augment, batch_size=6, accumulate=2)
    shares = [drawn(source, augment, batch_size=6, rank=rank, processes=2) for rank in range(2)]
    turns = [part for both in zip(*shares, strict=True) for part in both]
    for (a, x), (b, y) in zip(accumulated, turns, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(x, y)
    both = drawn(source, augment, batch_size=6, accumulate=3)
    assert sorted(torch.cat([labels for _, labels in both]).tolist()) == list(range(12))


def test_the_seed_decides_the_order():
    first, again, other = (drawn(images(), AugmentConfig(), seed=seed, batch_size=6) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for (a, _), (b, _) in zip(first, other, strict=True))


class Lazy:
    """Images that are decoded on demand."""

    def __init__(self, pixels):
        self.pixels, self.shape, self.asked = pixels, pixels.shape, 0

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        self.asked += 1
        return self.pixels[index]


def test_images_on_demand_are_the_same_images():
    source = images()
    lazy = TrainImages(pixels=Lazy(source.pixels), labels=source.labels, mean=source.mean, std=source.std)
    for (a, x), (b, y) in zip(
        drawn(source, AugmentConfig(), batch_size=4), drawn(lazy, AugmentConfig(), batch_size=4), strict=True
    ):
        assert torch.equal(a, b)
        assert torch.equal(x, y)
    assert lazy.pixels.asked == 3


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(InputError, match="batch_size must be a multiple of accumulate times processes = 6, got 8"):
        Share(batch_size=8, accumulate=2, processes=3)


def written(path, model):
    groups = {"model": model.state_dict(), "momentum": {"weight": torch.full((2, 3), 0.5)}}
    checkpoint = Checkpoint(epoch=4, digest="abc", best_epoch=3, best_accuracy=12.5, tensors=groups)
    write_checkpoint(path, checkpoint)
    return checkpoint


def test_a_checkpoint_comes_back(tmp_path):
    path = tmp_path / "c.safetensors"
    assert read_checkpoint(path) is None
    before = written(path, nn.Linear(3, 2))
    after = read_checkpoint(path)
    assert (after.epoch, after.digest, after.best_epoch, after.best_accuracy) == (4, "abc", 3, 12.5)
    for group, tensors in before.tensors.items():
        assert tensors.keys() == after.tensors[group].keys()
        assert all(torch.equal(tensors[name], after.tensors[group][name]) for name in tensors)


def test_a_damaged_checkpoint_is_told(tmp_path):
    path = tmp_path / "c.safetensors"
    written(path, nn.Linear(3, 2))
    for content in (path.read_bytes()[:-3], b"", b"x" * 100):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"checkpoint .*c.safetensors must be a whole checkpoint"):
            read_checkpoint(path)


def test_a_checkpoint_of_another_network_or_run_is_told(tmp_path):
    path = tmp_path / "c.safetensors"
    written(path, nn.Linear(3, 2))
    checkpoint = read_checkpoint(path)
    with pytest.raises(InputError, match=r"of this network, got 'weight' with shape \(2, 3\) instead of \(2, 4\)"):
        check_fits(checkpoint, nn.Linear(4, 2), "abc", path)
    with pytest.raises(InputError, match="must come from the same settings"):
        check_fits(checkpoint, nn.Linear(3, 2), "abd", path)
