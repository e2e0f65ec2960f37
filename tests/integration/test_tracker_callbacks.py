"""The tracker inside Lightning's and Transformers' trainers."""

import copy
import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimbit.records.errors import InputError, MissingExtraError
from slimbit.records.signal import EpochSignal
from slimbit.training.tracker import SignalTracker

IMAGES = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 2
POSITIONS = [16, 4, 1]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(12, 2))


def by_hand(epochs: int, *, accumulate: int = 1, second: Sequence[int] = (0, 1, 2, 3)) -> list[EpochSignal]:
    """The same training in a plain loop; ``second`` is the order of the second epoch's batches."""
    net = network()
    tracker = SignalTracker(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for epoch in range(epochs):
        for number, batch in enumerate(second if epoch == 1 else (0, 1, 2, 3)):
            chosen = slice(2 * batch, 2 * batch + 2)
            (F.cross_entropy(net(IMAGES[chosen]), LABELS[chosen]) / accumulate).backward()
            if (number + 1) % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
                tracker.update()
        tracker.end_epoch()
    return list(tracker.history)


def assert_same(found: list[EpochSignal], wanted: list[EpochSignal]) -> None:
    assert [(r.epoch, r.iterations) for r in found] == [(r.epoch, r.iterations) for r in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert [row.positions for row in one.layers] == POSITIONS
        for a, b in zip(one.layers, other.layers, strict=True):
            assert a.name.endswith(b.name)
            assert a.filter_signal == pytest.approx(b.filter_signal, rel=1e-5)
            assert a.filter_noise == pytest.approx(b.filter_noise, rel=1e-4)


class TestLightning:
    pytestmark = pytest.mark.filterwarnings(
        "ignore:The 'train_dataloader' does not have many workers:UserWarning",
        "ignore:You're resuming from a checkpoint that ended before the epoch ended:UserWarning",
        "ignore:Checkpoint directory .* exists and is not empty:UserWarning",
        "ignore:.*isinstance.treespec, LeafSpec.* is deprecated:FutureWarning",
    )

    @pytest.fixture
    def lightning(self) -> Any:
        return pytest.importorskip("lightning.pytorch")

    def module(self, lightning: Any) -> Any:
        class Task(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.net = network()

            def training_step(self, batch: tuple[Tensor, Tensor], _number: int) -> Tensor:
                images, labels = batch
                return F.cross_entropy(self.net(images), labels)

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.SGD(self.parameters(), lr=0.1)

        return Task()

    def fit(self, lightning: Any, folder: Path, callbacks: list[Any], **settings: Any) -> Any:
        data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(IMAGES, LABELS), batch_size=2)
        path = settings.pop("ckpt_path", None)
        trainer = lightning.Trainer(
            default_root_dir=folder, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=callbacks, **{"enable_checkpointing": False} | settings,
        )  # fmt: skip
        trainer.fit(self.module(lightning), data, ckpt_path=path)
        return trainer

    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_records_are_those_of_a_plain_loop(self, lightning: Any, accumulate: int, tmp_path: Path) -> None:
        from slimbit.training.lightning import SignalCallback

        written: list[EpochSignal] = []
        callback = SignalCallback(writers=[written.append])
        trainer = self.fit(lightning, tmp_path, [callback], max_epochs=2, accumulate_grad_batches=accumulate)
        assert_same(written, by_hand(2, accumulate=accumulate))
        assert trainer.callback_metrics["signal_to_noise"] == pytest.approx(written[-1].signal_to_noise)
        assert trainer.callback_metrics["esn_analog"] == pytest.approx(written[-1].esn_analog_estimate)

    @pytest.mark.parametrize("every", ["epoch", 6])
    def test_a_run_continues_from_a_checkpoint(self, lightning: Any, every: str | int, tmp_path: Path) -> None:
        from slimbit.training.lightning import SignalCallback

        when = {"every_n_epochs": 1} if every == "epoch" else {"every_n_train_steps": every}
        again, settings = SignalCallback(), {"enable_checkpointing": True, "max_epochs": 1 if every == "epoch" else 2}
        for callback, changed in (
            (SignalCallback(), {}),
            (again, {"max_epochs": 3, "ckpt_path": tmp_path / "kept.ckpt"}),
        ):
            keep = lightning.callbacks.ModelCheckpoint(dirpath=tmp_path, filename="kept", **when)
            self.fit(lightning, tmp_path, [callback, keep], **settings | changed)
        # in the middle of an epoch Lightning begins the data again
        wanted = by_hand(3, second=(0, 1, 2, 3) if every == "epoch" else (0, 1, 0, 1))
        assert again.tracker is not None
        assert_same(list(again.tracker.history), wanted[1:])

    def test_a_survey_of_the_module_works_too(self, lightning: Any, tmp_path: Path) -> None:
        from slimbit.training.lightning import SignalCallback

        callback = SignalCallback(example_input=IMAGES[:1])
        with pytest.raises(
            InputError, match="Task must have a forward function to be counted, got none: pass the part"
        ):
            self.fit(lightning, tmp_path, [callback], max_epochs=1)  # this module has no forward of its own


class TestTransformers:
    def trainer(self, folder: Path, callbacks: list[Any], **settings: Any) -> Any:
        transformers = pytest.importorskip("transformers")

        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = network()

            def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
                logits = self.net(images)
                return {"loss": F.cross_entropy(logits, labels), "logits": logits}

        class InOrder(transformers.Trainer):
            def _get_train_sampler(self, *_: Any) -> Any:
                return torch.utils.data.SequentialSampler(rows)

            def create_optimizer(self, *_: Any, **__: Any) -> torch.optim.Optimizer:
                self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
                return self.optimizer

        rows = [{"images": image, "labels": label} for image, label in zip(IMAGES, LABELS, strict=True)]
        arguments = transformers.TrainingArguments(
            output_dir=str(folder), per_device_train_batch_size=2, use_cpu=True, report_to=[], disable_tqdm=True,
            lr_scheduler_type="constant", max_grad_norm=0.0, remove_unused_columns=False, logging_strategy="no",
            dataloader_pin_memory=False, **{"save_strategy": "no"} | settings,
        )  # fmt: skip
        return InOrder(model=Model(), args=arguments, train_dataset=rows, callbacks=callbacks)

    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_records_are_those_of_a_plain_loop(self, accumulate: int, tmp_path: Path) -> None:
        from slimbit.training.transformers import SignalCallback

        written: list[EpochSignal] = []
        callback = SignalCallback(writers=[written.append])
        trainer = self.trainer(
            tmp_path, [callback], num_train_epochs=2, gradient_accumulation_steps=accumulate
        )  # fmt: skip
        trainer.train()
        assert_same(written, by_hand(2, accumulate=accumulate))
        logged = [entry["signal_to_noise"] for entry in trainer.state.log_history if "signal_to_noise" in entry]
        assert logged == [record.signal_to_noise for record in written]

    def test_a_run_continues_from_a_checkpoint(self, tmp_path: Path) -> None:
        from slimbit.training.transformers import SignalCallback

        settings = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 6}
        through, again = SignalCallback(), SignalCallback()
        self.trainer(tmp_path, [through], **settings).train()
        self.trainer(tmp_path, [again], **settings).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
        assert again.tracker is not None
        assert through.tracker is not None
        assert_same(list(through.tracker.history), by_hand(3))
        assert_same(list(again.tracker.history), by_hand(3)[1:])


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    before = copy.copy(sys.modules)

    def hide(*names: str) -> None:
        for name in names:
            monkeypatch.setitem(sys.modules, name, None)

    yield hide
    monkeypatch.undo()
    for name in ("slimbit.training.lightning", "slimbit.training.transformers"):
        sys.modules.pop(name, None)
        if name in before:
            sys.modules[name] = before[name]


@pytest.mark.parametrize(
    ("module", "hidden", "extra"),
    [
        ("slimbit.training.lightning", ["lightning", "lightning.pytorch", "pytorch_lightning"], "lightning"),
        ("slimbit.training.transformers", ["transformers"], "transformers"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(module: str, hidden: list[str], extra: str, without: Any) -> None:
    without(*hidden)
    sys.modules.pop(module, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'slimbit\[{extra}\]'"):
        importlib.import_module(module)
