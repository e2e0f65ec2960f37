"""The tracker on two processes: data-parallel and sharded training give the record of one process."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from slimbit.records.errors import InputError
from slimbit.records.signal import EpochSignal
from slimbit.training.tracker import SignalTracker

STEPS = 4
KINDS = ("ddp", "rows", "columns")


class Net(nn.Module):
    """Uneven shards, a transposed convolution and a shared weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 5, 3, padding=1)
        self.up = nn.ConvTranspose2d(5, 4, 2, stride=2)
        self.same = nn.Conv2d(4, 4, 3, padding=1)
        self.again = nn.Conv2d(4, 4, 3, padding=1)
        self.again.weight = self.same.weight
        self.one = nn.Conv2d(4, 1, 1)  # of which the second process has no shard
        self.fc = nn.Linear(1, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.again(F.relu(self.same(F.relu(self.up(F.relu(self.conv(x)))))))
        return self.fc(self.one(y).mean((2, 3)))


def network() -> Net:
    torch.manual_seed(0)
    return Net()


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 1, 6, 6, generator=generator), torch.randint(3, (8,), generator=generator)


def train(model: nn.Module, tracker: SignalTracker, steps: range, *, rank: int = 0, world: int = 1) -> None:
    """Each process sees its part of each batch; the gradients are averaged, so that all have one walk."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in steps:
        images, labels = (values[rank::world] for values in batch(step))
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        tracker.update()


def trained(model: nn.Module, *, rank: int = 0, world: int = 1) -> tuple[SignalTracker, dict[str, Tensor]]:
    """Two epochs, and the state in the middle of the second."""
    tracker = SignalTracker(model)
    train(model, tracker, range(STEPS), rank=rank, world=world)
    tracker.end_epoch()
    train(model, tracker, range(STEPS, STEPS + 2), rank=rank, world=world)
    state = tracker.state_dict()
    train(model, tracker, range(STEPS + 2, 2 * STEPS), rank=rank, world=world)
    tracker.end_epoch()
    return tracker, state


def wrapped(kind: str) -> nn.Module:
    if kind == "ddp":
        return nn.parallel.DistributedDataParallel(network())
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard

    # "columns" cuts filters into pieces, whose sums the processes have to add up
    place = None if kind == "rows" else lambda p: Shard(1) if p.ndim == 4 and p.shape[1] % 2 == 0 else None
    return fully_shard(network(), mesh=init_device_mesh("cpu", (2,)), shard_placement_fn=place)


def worker(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    for kind in KINDS:
        model = wrapped(kind)
        tracker, state = trained(model, rank=rank, world=2)
        if rank == 0:
            save_file(state, folder / f"{kind}.safetensors")
        dist.barrier()
        resumed = SignalTracker(model)
        resumed.load_state_dict(load_file(folder / f"{kind}.safetensors"))
        again = resumed.state_dict()
        assert all(torch.equal(again[name], state[name]) for name in state)
        records = [str(record.to_dict()) for record in tracker.history]
        (folder / f"{kind}-{rank}.txt").write_text("\n".join(records))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    commands = [[sys.executable, __file__, str(rank), str(folder)] for rank in range(2)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        errors = [process.communicate(timeout=120)[1] for process in running]
        assert [process.returncode for process in running] == [0, 0], "\n".join(errors)
    finally:
        for process in running:
            process.kill()
            process.communicate()
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_record_what_one_records(kind: str, runs: Path) -> None:
    expected, state = trained(network())
    texts = [(runs / f"{kind}-{rank}.txt").read_text().splitlines() for rank in range(2)]
    first, second = ([EpochSignal.from_dict(ast.literal_eval(line)) for line in lines] for lines in texts)
    assert first == second
    assert len(first) == 2
    for found, wanted in zip(first, expected.history, strict=True):
        assert [x.name for x in found.layers] == [x.name for x in wanted.layers]
        for a, b in zip(found.layers, wanted.layers, strict=True):
            assert (a.epoch, a.nonzero_weights, a.positions) == (b.epoch, b.nonzero_weights, b.positions)
            assert a.filter_signal == pytest.approx(b.filter_signal, rel=1e-4)
            assert a.filter_noise == pytest.approx(b.filter_noise, rel=1e-3)
        assert found.esn_analog_estimate is not None
    stored = load_file(runs / f"{kind}.safetensors")
    assert stored.keys() == state.keys()
    for name, value in state.items():
        torch.testing.assert_close(stored[name], value, rtol=1e-3, atol=1e-5)


def test_the_older_sharding_is_refused() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    net = nn.Sequential(nn.Linear(2, 2))
    net.add_module("part", FullyShardedDataParallel.__new__(FullyShardedDataParallel))
    nn.Module.__init__(net.part)
    with pytest.raises(InputError, match=r"made with torch\.distributed\.fsdp\.fully_shard, got .* at part"):
        SignalTracker(net)


if __name__ == "__main__":
    worker(int(sys.argv[1]), Path(sys.argv[2]))
