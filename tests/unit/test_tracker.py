"""The tracker in training loops as people write them."""

import copy
import io
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor, nn

from slimbit.records.errors import InputError
from slimbit.training.tracker import SignalTracker

IMAGE = torch.zeros(1, 1, 6, 6)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(12, 2)
    )


def loss(net: nn.Module, number: int) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    images, labels = torch.randn(8, 1, 6, 6, generator=generator), torch.randint(2, (8,), generator=generator)
    return F.cross_entropy(net(images).float(), labels)


def train(net: nn.Module, tracker: SignalTracker, steps: range, optimizer: torch.optim.Optimizer | None = None) -> None:
    optimizer = optimizer or torch.optim.SGD(net.parameters(), lr=0.1)
    for number in steps:
        optimizer.zero_grad()
        loss(net, number).backward()
        optimizer.step()
        tracker.update()


def hooks(net: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


def test_tracked_are_the_layers_that_a_survey_counts_in_order() -> None:
    net = network()
    tracker = SignalTracker(net, IMAGE)
    train(net, tracker, range(2))
    record = tracker.end_epoch()
    assert [(row.name, row.positions, len(row.filter_noise)) for row in record.layers] == [
        ("0", 16, 4), ("3", 4, 3), ("5", 1, 2),
    ]  # fmt: skip
    assert record.filters == 9
    total = sum((row.positions or 0) * row.nonzero_weights * row.signal_to_noise for row in record.layers) / 12
    assert record.esn_analog_estimate == pytest.approx(total, rel=1e-12)


def test_history_and_epochs_are_counted() -> None:
    net = network()
    tracker = SignalTracker(net, start_epoch=3)
    for epoch in range(2):
        train(net, tracker, range(epoch + 1))
        tracker.end_epoch()
    assert [(r.epoch, r.iterations) for r in tracker.history] == [(3, 1), (4, 2)]


def test_the_network_is_not_changed_and_not_run() -> None:
    net = network()
    before = copy.deepcopy(net.state_dict())
    tracker = SignalTracker(net)
    tracker.update()
    tracker.end_epoch()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert net.training
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_positions_are_learned_from_the_first_pass_and_the_hooks_go() -> None:
    net = network()
    tracker = SignalTracker(net)
    net.eval()(IMAGE)
    assert hooks(net) > 0  # a pass in evaluation mode may take other ways
    net.train()(torch.zeros(5, 1, 6, 6))
    assert hooks(net) == 0
    train(net, tracker, range(1))
    assert [row.positions for row in tracker.end_epoch().layers] == [16, 4, 1]


def test_positions_of_parts_that_are_called_by_themselves() -> None:
    class Parts(nn.Module):  # as a LightningModule: its own forward is not what trains
        def __init__(self) -> None:
            super().__init__()
            self.body = network()[:5]
            self.head = nn.Linear(12, 2)
            self.idle = nn.Linear(2, 2)

    net = Parts()
    tracker = SignalTracker(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net.head(net.body(torch.randn(8, 1, 6, 6))).sum().backward()
    optimizer.step()
    tracker.update()
    assert hooks(net) == 0
    record = tracker.end_epoch()
    assert {row.name: row.positions for row in record.layers} == {
        "body.0": 16, "body.3": 4, "head": 1, "idle": None,
    }  # fmt: skip
    assert record.esn_analog_estimate is None  # unknown, not too small


def test_a_first_pass_that_breaks_off_is_watched_again() -> None:
    net = network()
    tracker = SignalTracker(net)
    with pytest.raises(RuntimeError):
        net(torch.zeros(1, 3, 6, 6))
    train(net, tracker, range(1))
    assert hooks(net) == 0
    assert [row.positions for row in tracker.end_epoch().layers] == [16, 4, 1]


def test_copies_of_the_network_do_not_report() -> None:
    net = network()
    tracker = SignalTracker(net)
    twin = copy.deepcopy(net)
    pickled = io.BytesIO()
    torch.save(net, pickled)
    pickled.seek(0)
    for other in (twin, torch.load(pickled, weights_only=False)):
        other(torch.zeros(2, 1, 6, 6))
    assert hooks(net) > 0
    train(net, tracker, range(1))
    assert [row.positions for row in tracker.end_epoch().layers] == [16, 4, 1]


def test_unknown_positions_leave_the_cost_unknown() -> None:
    net = network()
    tracker = SignalTracker(net)
    tracker.update()  # before any pass
    record = tracker.end_epoch()
    assert [row.positions for row in record.layers] == [None] * 3
    assert record.esn_analog_estimate is None


@pytest.mark.parametrize("order", ["before", "after", "in place"])
def test_compiled_networks_are_compiled_once_and_give_the_same_record(order: str) -> None:
    import torch._dynamo as dynamo

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    plain, net = Whole(), Whole()
    eager = SignalTracker(plain)
    train(plain, eager, range(3))
    dynamo.reset()
    dynamo.utils.counters.clear()
    if order == "before":
        model = torch.compile(net, backend="eager", fullgraph=True)
        tracker = SignalTracker(model)
    else:
        tracker = SignalTracker(net)
        model = torch.compile(net, backend="eager", fullgraph=True) if order == "after" else net
        if order == "in place":
            net.compile(backend="eager", fullgraph=True)
    train(model, tracker, range(3))
    assert dynamo.utils.counters["stats"]["unique_graphs"] == 1
    found, wanted = tracker.end_epoch(), eager.end_epoch()
    for a, b in zip(found.layers, wanted.layers, strict=True):
        assert (a.name, a.filter_signal, a.filter_noise) == (b.name, b.filter_signal, b.filter_noise)
    with_example = SignalTracker(model, IMAGE)
    with_example.update()
    assert [row.positions for row in with_example.end_epoch().layers] == [16, 4, 1]


def test_a_shared_weight_is_held_once_and_recorded_for_each_layer() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3), nn.Flatten(), nn.Linear(4, 2))
    net[1].weight = net[0].weight
    tracker = SignalTracker(net, IMAGE)
    train(net, tracker, range(2))
    assert sorted(k for k in tracker.state_dict() if k.startswith("start.")) == ["start.0.weight", "start.3.weight"]
    first, second, _ = tracker.end_epoch().layers
    assert (first.name, first.positions, second.name, second.positions) == ("0", 16, "1", 4)
    assert first.filter_noise == second.filter_noise
    assert first.noise > 0


def test_a_layer_frozen_for_the_whole_epoch_is_not_in_its_record() -> None:
    net = network()
    for parameter in net[0].parameters():
        parameter.requires_grad_(False)
    tracker = SignalTracker(net, IMAGE)
    train(net, tracker, range(2))
    record = tracker.end_epoch()
    assert [row.name for row in record.layers] == ["3", "5"]
    assert math.isfinite(record.esn_analog_estimate or math.inf)
    for parameter in net[0].parameters():
        parameter.requires_grad_(True)  # after the epoch began
    train(net, tracker, range(2))
    assert [row.name for row in tracker.end_epoch().layers] == ["0", "3", "5"]
    train(net, tracker, range(2))
    net[0].weight.requires_grad_(False)  # it did move
    assert [row.name for row in tracker.end_epoch().layers] == ["0", "3", "5"]


def test_weights_that_could_move_and_did_not_have_no_noise() -> None:
    net = network()
    tracker = SignalTracker(net, IMAGE)
    tracker.update()
    record = tracker.end_epoch()
    assert record.signal_to_noise == math.inf
    assert record.esn_analog_estimate == math.inf


def test_embeddings_cost_nothing_even_when_they_stand_still() -> None:
    net = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 2))
    tracker = SignalTracker(net, torch.zeros(1, 5, dtype=torch.int64))
    net[1].weight.data += 1
    tracker.update()
    record = tracker.end_epoch()
    assert (record.layers[0].positions, record.layers[0].esn_analog_estimate) == (0, 0.0)
    assert record.esn_analog_estimate == record.layers[1].esn_analog_estimate


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
        lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
        lambda p: torch.optim.RMSprop(p, lr=0.01),
    ],
)
def test_any_optimizer(make: type[torch.optim.Optimizer]) -> None:
    net = network()
    tracker, optimizer, start = SignalTracker(net), make(net.parameters()), net[3].weight.detach().clone()
    noise = 0.0
    for number in range(3):
        train(net, tracker, range(number, number + 1), optimizer)
        noise += float((net[3].weight.detach() - start).double().square().sum()) / 3
    assert tracker.end_epoch().layer("3").noise == pytest.approx(noise)


def test_gradient_accumulation_counts_steps_of_the_optimizer() -> None:
    net, whole = network(), network()
    tracker, beside = SignalTracker(net), SignalTracker(whole)
    for model, watcher, parts in ((net, tracker, 2), (whole, beside, 1)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model[1].eval()  # so that halves of a batch add up to the batch
        for number in range(3):
            x = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(number))
            for part in x.chunk(parts):
                model(part).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            watcher.update()
    found, wanted = tracker.end_epoch(), beside.end_epoch()
    assert found.iterations == 3
    assert [row.positions for row in found.layers] == [16, 4, 1]
    assert [row.noise for row in found.layers] == pytest.approx([row.noise for row in wanted.layers], rel=1e-4)


def test_mixed_precision_follows_the_weights_that_the_optimizer_steps() -> None:
    net = network()
    tracker = SignalTracker(net, IMAGE)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    start, noise = net[0].weight.detach().clone(), 0.0
    for number in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(net, number)
        value.backward()
        optimizer.step()
        with torch.autocast("cpu", torch.bfloat16):
            tracker.update()  # also inside of autocast
        noise += float((net[0].weight.detach() - start).double().square().sum()) / 3
    row = tracker.end_epoch().layers[0]
    assert row.noise == pytest.approx(noise)


@pytest.mark.parametrize("stop", [0, 1, 4, 5])
def test_a_resumed_tracker_ends_bit_for_bit_as_one_that_ran_through(stop: int) -> None:
    through = network()
    tracker = SignalTracker(through)
    resumed = copy.deepcopy(through)
    train(through, tracker, range(4))
    tracker.end_epoch()
    train(through, tracker, range(4, 8))
    tracker.end_epoch()

    first = SignalTracker(resumed)
    train(resumed, first, range(min(stop, 4)))
    if stop >= 4:
        first.end_epoch()
        train(resumed, first, range(4, stop))
    content = save(first.state_dict())  # through a file, as a checkpoint goes
    weights = copy.deepcopy(resumed.state_dict())
    del first, resumed

    again = network(seed=1)
    again.load_state_dict(weights)
    second = SignalTracker(again)
    second.load_state_dict(load(content))
    train(again, second, range(stop, 4))
    if stop < 4:
        second.end_epoch()
    train(again, second, range(max(stop, 4), 8))
    second.end_epoch()
    assert second.history == tracker.history[-len(second.history) :]


def test_a_state_is_a_copy() -> None:
    net = network()
    tracker = SignalTracker(net)
    train(net, tracker, range(2))
    state = tracker.state_dict()
    kept = {name: value.clone() for name, value in state.items()}
    train(net, tracker, range(2))
    tracker.end_epoch()
    assert all(torch.equal(value, kept[name]) for name, value in state.items())


def test_weights_may_change_type_and_be_replaced_by_others_of_their_shape() -> None:
    net = network()
    tracker = SignalTracker(net, IMAGE)
    train(net, tracker, range(1))
    net[5].weight = nn.Parameter(net[5].weight.detach() + 1)
    net.double()
    tracker.update()
    row = tracker.end_epoch().layer("5")
    assert row.noise == pytest.approx(12, rel=0.2)  # 24 weights moved by about 1 in one of two iterations
    tracker.update()
    assert tracker.end_epoch().layer("5").noise == 0


def test_one_copy_of_the_weights_is_held() -> None:
    net = nn.Sequential(nn.Linear(500, 400, bias=False), nn.Linear(400, 300, bias=False)).bfloat16()
    tracker = SignalTracker(net)
    tracker.update()
    held = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors_of(tracker)}
    weights, filters = 320_000, 700
    assert sum(held.values()) <= 2 * weights + 8 * (2 + 1) * (filters + 10)


def tensors_of(thing: object, seen: set[int] | None = None) -> list[Tensor]:
    """Tensors that an object holds, but for those of the network."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, nn.Module):
        return []
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        return [thing]
    parts = thing.values() if isinstance(thing, dict) else thing if isinstance(thing, list | tuple) else []
    inside = [*parts, *getattr(thing, "__dict__", {}).values()]
    return [tensor for part in inside for tensor in tensors_of(part, seen)]


def test_errors_say_what_is_wrong() -> None:
    net = network()
    with pytest.raises(InputError, match="start_epoch must be a whole number from 1, got 0"):
        SignalTracker(net, start_epoch=0)
    with pytest.raises(InputError, match="must have layers with weights, got none in ReLU"):
        SignalTracker(nn.ReLU())
    tracker = SignalTracker(net, IMAGE)
    with pytest.raises(InputError, match="must follow at least one update in the epoch, got none in epoch 1"):
        tracker.end_epoch()
    net[5].weight = nn.Parameter(torch.zeros(3, 12))
    with pytest.raises(InputError, match=r"weight 5.weight must keep its shape \(2, 12\), got \(3, 12\)"):
        tracker.update()
    net[5] = nn.Linear(12, 2)
    other = SignalTracker(net, IMAGE)
    other.update()
    net[5] = nn.Linear(12, 2)
    with pytest.raises(InputError, match=r"module of weight 5\.weight must stay the one"):
        other.end_epoch()


def test_a_weight_that_cannot_be_followed_is_named() -> None:
    net = network()
    values = net[3].weight.detach()
    del net[3].weight
    net[3].weight = values
    with pytest.raises(InputError, match=r"weight 3\.weight must be a parameter, or computed from parameters by"):
        SignalTracker(net, IMAGE)
