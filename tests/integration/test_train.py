"""Training end to end on the digits: learned, resumed to the last bit, stopped by a bad loss, shared by processes."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import slimbit
from slimbit.records.errors import InputError
from slimbit.records.files import StoreError
from slimbit.records.signal_file import read_signal
from slimbit.records.training import TrainConfig
from slimbit.training.checkpoint import read_checkpoint
from slimbit.training.fit import TrainingError
from slimbit.training.objectives import distillation
from slimbit.training.run import RunLabel, train_network
from slimbit.zoo.cards import read_card

sys.path.insert(0, str(Path(__file__).parents[1]))
from training_case import task_of

pytestmark = pytest.mark.filterwarnings("ignore:.*lightning.*", "ignore:.*pkg_resources.*")


@pytest.fixture(scope="module")
def digits():
    return slimbit.open_data("digits")


def settings(**more):
    plain = {
        "epochs": 3,
        "batch_size": 32,
        "validation_images": 0,
        "augment": {"crop": 1, "flip": False},
        "schedule": {"name": "one_cycle"},
    }
    return TrainConfig(**{**plain, **more})


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return slimbit.network("digits_resnet")


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_network_learns_and_the_folder_tells_how(tmp_path, digits):
    scored = []

    def validate(model):
        scored.append(digits.evaluator(200)(model))
        return scored[-1]

    model, told = network(), []
    label = RunLabel(card={"network": "digits_resnet", "normalize": "none", "classes": 10}, test=digits.evaluator())
    task = task_of(digits, 1024, validate=validate, listener=told.append)
    config = settings(epochs=6, keep_weights=True)
    result = train_network(model, task, config, tmp_path, label=label)
    assert result.test_accuracy > 85
    assert [epoch.accuracy for epoch in result.epochs] == scored
    assert result.accuracy == max(scored)
    assert result.epochs[-1].loss < result.epochs[0].loss / 2
    assert read_card(tmp_path / "model.safetensors")["accuracy"] == result.test_accuracy
    assert same(weights(tmp_path), dict(model.state_dict()))
    assert same(weights(tmp_path), load_file(tmp_path / "weights" / f"epoch-{result.epoch:03d}.safetensors"))
    written = json.loads((tmp_path / "train.json").read_text())
    assert written["result"] == {
        "epoch": result.epoch,
        "accuracy": result.accuracy,
        "test_accuracy": result.test_accuracy,
    }
    records = read_signal(tmp_path / "signal.jsonl")
    assert [record.epoch for record in records] == [1, 2, 3, 4, 5, 6]
    assert [r.signal_to_noise for r in records] == [epoch.signal_to_noise for epoch in result.epochs]
    assert all(record.esn_analog_estimate > 0 and record.iterations == 32 for record in records)
    assert [p.finished for p in told if p.finished] == list(result.epochs)
    assert sum(p.finished is None for p in told) == 6 * 2  # a look at the loss after 25 and after 32 steps


class StopAfterError(Exception):
    pass


def stop_after(epoch):
    def done(finished, _signal, _model):
        if finished.epoch == epoch:
            raise StopAfterError

    return done


@pytest.mark.parametrize("more", [{}, {"accumulate": 2, "precision": "bfloat16", "channels_last": False}])
def test_a_run_that_was_stopped_ends_with_the_same_bits(tmp_path, digits, more):
    config = settings(**more)
    train_network(network(), task_of(digits), config, tmp_path / "whole")
    with pytest.raises(StopAfterError):  # stopped before the checkpoint of epoch 3: it is done again
        train_network(network(), task_of(digits, epoch_done=stop_after(3)), config, tmp_path / "stopped")
    assert len((tmp_path / "stopped" / "epochs.jsonl").read_text().splitlines()) == 3
    train_network(network(seed=9), task_of(digits), config, tmp_path / "stopped")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))
    whole, stopped = (read_signal(tmp_path / name / "signal.jsonl") for name in ("whole", "stopped"))
    assert whole == stopped
    again = train_network(network(), task_of(digits), config, tmp_path / "whole")  # nothing is left to do
    assert len(again.epochs) == 3


def test_dropout_is_resumed_too(tmp_path, digits):
    def dropping():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Dropout(0.5), nn.Linear(32, 10))

    def begun():
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return dropping()

    config = settings(epochs=2, channels_last=False)
    train_network(begun(), task_of(digits), config, tmp_path / "whole")
    with pytest.raises(StopAfterError):
        train_network(begun(), task_of(digits, epoch_done=stop_after(2)), config, tmp_path / "stopped")
    torch.rand(7)  # the caller's random numbers do not matter
    train_network(begun(), task_of(digits), config, tmp_path / "stopped")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))


def test_the_callers_random_numbers_stay_as_they_were(tmp_path, digits):
    torch.manual_seed(3)
    wanted = torch.rand(3)
    torch.manual_seed(3)
    train_network(network(), task_of(digits), settings(epochs=1), tmp_path)
    assert torch.equal(torch.rand(3), wanted)


def test_accumulated_parts_give_the_gradient_of_the_batch(tmp_path, digits):
    def linear():
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        nn.init.zeros_(model[1].weight)
        nn.init.zeros_(model[1].bias)
        return model

    found = []
    for accumulate in (1, 4):
        model = linear()
        config = settings(accumulate=accumulate, channels_last=False, epochs=1)
        train_network(model, task_of(digits), config, tmp_path / str(accumulate))
        found.append(model[1].weight.detach())
    torch.testing.assert_close(found[0], found[1])
    assert float(found[0].abs().max()) > 0.01


def test_a_network_learns_from_a_teacher_without_labels(tmp_path, digits):
    teacher = slimbit.network("digits_resnet", weights="shipped")
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    task = task_of(digits, 1024, objective=distillation(teacher))
    unlabelled = replace(task, images=replace(task.images, labels=None))
    student = network()
    config = settings(epochs=6, optimizer={"learning_rate": 0.05})
    train_network(student, unlabelled, config, tmp_path)
    assert digits.evaluator()(student) > 85
    assert same(before, teacher.state_dict())
    with pytest.raises(InputError, match="training images must have labels, got none"):
        train_network(network(), replace(unlabelled, objective=None), config, tmp_path / "labels")


def test_a_loss_that_is_no_number_stops_and_keeps_the_checkpoint(tmp_path, digits):
    def objective(model, images, labels):
        calls.append(1)
        loss = nn.functional.cross_entropy(model(images), labels)
        return loss * float("nan") if len(calls) == 8 + 3 else loss

    calls = []
    task = task_of(digits, objective=objective)
    wanted = r"loss must be a finite number, got nan at step 3 of epoch 2; the checkpoint of epoch 1 is kept"
    with pytest.raises(TrainingError, match=wanted):
        train_network(network(), task, settings(), tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    result = train_network(network(), task, settings(), tmp_path)  # calls are past the bad one
    assert [epoch.epoch for epoch in result.epochs] == [1, 2, 3]


def test_weights_that_are_no_numbers_after_the_last_step_are_not_kept(tmp_path, digits):
    def spoil(model):
        calls.append(1)
        if len(calls) == 2 * 8:  # the last step of epoch 2: no loss sees it
            with torch.no_grad():
                model.conv1.weight[0, 0, 0, 0] = float("inf")

    calls = []
    wanted = (
        r"weights must be finite numbers, got others in conv1.weight after the last step of epoch 2; the checkpoint of"
    )
    with pytest.raises(TrainingError, match=wanted):
        train_network(network(), task_of(digits, after_step=(spoil,)), settings(), tmp_path)
    assert read_checkpoint(tmp_path / "checkpoint.safetensors").epoch == 1
    assert not (tmp_path / "model.safetensors").exists()


def test_what_was_given_wrong_at_first_can_be_put_right(tmp_path, digits):
    with pytest.raises(InputError, match="batch_size must be at most"):
        train_network(network(), task_of(digits, 20), settings(), tmp_path)
    result = train_network(network(), task_of(digits), settings(epochs=1), tmp_path)
    assert json.loads((tmp_path / "train.json").read_text())["config"]["epochs"] == len(result.epochs) == 1


def test_other_images_under_the_same_name_are_refused(tmp_path, digits):
    label = RunLabel(data="digits", fingerprint="a")
    train_network(network(), task_of(digits), settings(epochs=1), tmp_path, label=label)
    train_network(network(), task_of(digits), settings(epochs=1), tmp_path, label=RunLabel(data="digits"))
    with pytest.raises(InputError, match="continued with its images, normalization, weights and pruning, got others"):
        train_network(network(), task_of(digits), settings(epochs=1), tmp_path, label=replace(label, fingerprint="b"))


def test_a_lost_list_of_epochs_is_told(tmp_path, digits):
    train_network(network(), task_of(digits), settings(epochs=1), tmp_path)
    (tmp_path / "epochs.jsonl").unlink()
    with pytest.raises(InputError, match=r"epochs.jsonl must exist beside checkpoint.safetensors, got no such file"):
        train_network(network(), task_of(digits), settings(epochs=1), tmp_path)


def test_no_compiler_is_told_in_a_sentence(tmp_path, digits, monkeypatch):
    from torch._inductor.exc import InvalidCxxCompiler

    def broken(model, images, labels):
        raise InvalidCxxCompiler

    with pytest.raises(TrainingError, match=r"torch.compile must work here, got .*: train with --no-compile"):
        train_network(network(), task_of(digits, objective=broken), settings(), tmp_path)


def test_a_change_after_every_step_holds(tmp_path, digits):
    def hold(model):
        with torch.no_grad():
            model.conv1.weight[0].zero_()

    model = network()
    train_network(model, task_of(digits, after_step=(hold,)), settings(epochs=1), tmp_path)
    assert float(model.conv1.weight[0].detach().abs().max()) == 0
    assert float(model.conv1.weight[1].detach().abs().max()) > 0


def test_a_run_with_other_settings_or_data_is_refused(tmp_path, digits):
    train_network(network(), task_of(digits), settings(epochs=1), tmp_path, label=RunLabel(data="digits"))
    with pytest.raises(
        InputError, match=r"with its own settings, got another epochs \(2 instead of 1\), seed \(1 inst"
    ):
        train_network(network(), task_of(digits), settings(epochs=2, seed=1), tmp_path, label=RunLabel(data="digits"))
    with pytest.raises(InputError, match="continued with its data 'digits', got 'letters'"):
        train_network(network(), task_of(digits), settings(epochs=1), tmp_path, label=RunLabel(data="letters"))


def test_a_checkpoint_of_another_network_is_refused(tmp_path, digits):
    train_network(network(), task_of(digits), settings(epochs=1), tmp_path)
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(InputError, match=r"checkpoint .* must be of this network, got '1.bias' with shape none"):
        train_network(other, task_of(digits), settings(epochs=1), tmp_path)


def test_a_folder_with_other_things_is_refused(tmp_path, digits):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match=r"new folder, an empty one or a run, got .* with 'thesis.tex' in it"):
        train_network(network(), task_of(digits), settings(epochs=1), tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["thesis.tex"]


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, digits, monkeypatch):
    train_network(network(), task_of(digits), settings(epochs=2), tmp_path / "whole")
    real, calls = os.replace, []

    def full(source, target):
        calls.append(target)
        if len(calls) > 4:  # train.json, then epochs, signal and checkpoint of epoch 1, then no more
            raise OSError(28, "No space left on device")
        real(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises((StoreError, OSError), match="No space left"):
            train_network(network(), task_of(digits), settings(epochs=2), tmp_path / "full")
    assert (tmp_path / "full" / "checkpoint.safetensors").exists()
    train_network(network(), task_of(digits), settings(epochs=2), tmp_path / "full")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "full"))


def test_too_few_images_for_a_batch_are_told(tmp_path, digits):
    with pytest.raises(InputError, match="batch_size must be at most the 20 training images, got 32"):
        train_network(network(), task_of(digits, 20), settings(), tmp_path)


def command(*arguments, **environment):
    cleaned = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=300, check=False,
        env={**cleaned, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


OPTIONS = ("--epochs", "2", "--batch-size", "32", "--train-images", "256", "--validation-images", "64")


def test_the_command_trains_and_goes_on(tmp_path):
    run = [
        "-m", "slimbit", "train", "digits_resnet", "--data", "digits", *OPTIONS, "--lr", "0.05", "--out", str(tmp_path),
    ]  # fmt: skip
    first = command(*run)
    assert first.returncode == 0, first.stderr
    lines = first.stdout.splitlines()
    assert lines[0].startswith("epoch 1/2  loss ")
    assert "held out" in lines[0]
    assert "S/N" in lines[0]
    assert "test images" in lines[-1]
    again = command(*run)
    assert again.returncode == 0
    assert again.stdout.splitlines() == lines[-1:]
    moved = command(*[part if part != "digits" else "digits,normalize=half" for part in run])
    assert moved.returncode == 2
    assert "with its images, normalization, weights and pruning, got others of the same name" in " ".join(
        moved.stderr.split()
    )
    other = command(*run, "--seed", "5")
    assert other.returncode == 2
    assert "must be continued with its own settings, got another seed (5 instead of 0)" in " ".join(
        other.stderr.split()
    )


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_bits(tmp_path):
    run = ["-m", "slimbit", "train", "digits_resnet", "--data", "digits", "--epochs", "60", "--no-flip", "--out"]
    whole = command(*run, str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    lines = tmp_path / "killed" / "epochs.jsonl"
    for done in (3, 20):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with subprocess.Popen([sys.executable, *run, str(tmp_path / "killed")], env=environment) as process:
            while process.poll() is None and not (lines.exists() and len(lines.read_text().splitlines()) >= done):
                time.sleep(0.01)
            process.kill()
        assert process.returncode == -signal.SIGKILL, "it was done before it was killed"
    rest = command(*run, str(tmp_path / "killed"))
    assert rest.returncode == 0, rest.stderr
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    assert read_signal(tmp_path / "whole" / "signal.jsonl") == read_signal(tmp_path / "killed" / "signal.jsonl")


def test_two_processes_train_what_one_trains_in_two_parts(tmp_path):
    """BatchNorm looks at the part of a batch that it is given: two processes see what accumulation in one sees."""
    run = ["-m", "slimbit", "train", "digits_resnet", "--data", "digits", *OPTIONS, "--lr", "0.02", "--out"]
    two = command(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *run, str(tmp_path / "two")
    )  # fmt: skip
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("epoch 1/2") == 1
    one = command(*run, str(tmp_path / "one"), "--accumulate", "2")
    assert one.returncode == 0, one.stderr
    found, wanted = (read_checkpoint(tmp_path / name / "checkpoint.safetensors").tensors for name in ("two", "one"))
    for name, tensor in wanted["model"].items():
        # each process has statistics of its own, and the first one's are kept
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(found["model"][name], tensor, rtol=1e-3, atol=1e-5)
    single, both = (read_signal(tmp_path / name / "signal.jsonl") for name in ("one", "two"))
    for a, b in zip(single, both, strict=True):
        assert b.signal_to_noise == pytest.approx(a.signal_to_noise, rel=1e-3)
