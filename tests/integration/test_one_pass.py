"""Batches that wait for each other give the result of one large batch, in one pass, and leave nothing behind."""

import itertools
import signal
import threading
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

import slimbit
from slimbit.apply.calibration import calibrate, samples_of
from slimbit.apply.compensation import compensation_factors
from slimbit.apply.compress import Compressed, compress
from slimbit.apply.layers import bind, weights_of
from slimbit.apply.lockstep import Lockstep
from slimbit.numerics.batches import Regrouped
from slimbit.numerics.memory import live_bytes
from slimbit.plan.inputs import PlanInputs
from slimbit.plan.steps import step_by_deviation
from slimbit.records.config import QuantConfig
from slimbit.records.errors import InputError
from slimbit.records.network import NetworkSpec
from slimbit.survey.module import survey_network

EVERY = [QuantConfig(target=t, statistics=s) for t in ("weights", "outputs") for s in ("paired_layerwise", "absolute")]


class Residual(nn.Module):
    """Branches, a grouped and a depthwise convolution, biases, BatchNorms and a module that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.wide, self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.again = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        y = torch.relu(self.wide(x)) + x
        y = torch.relu(self.again(torch.relu(self.again(self.deep(y)))))
        z: Tensor = self.head(y.mean((2, 3)))
        return z


class Attention(nn.Module):
    """Three layers read the same tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 6, bias=bias) for bias in (True, False, True))
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2)[..., :6]
        a = torch.softmax(self.q(x) @ self.k(x).transpose(1, 2), 2) @ self.v(x)
        y: Tensor = self.out(a).mean(1)
        return y


def prepared(net: nn.Module, x: Tensor, config: QuantConfig | None = None):
    spec = survey_network(net, x[:1]).spec
    plan = step_by_deviation(PlanInputs(spec=spec, weights=weights_of(net, spec)), 0.5, config or QuantConfig())
    return spec, plan


def images(count: int = 30, size: int = 6) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def network(kind: type[nn.Module] = Residual) -> nn.Module:
    torch.manual_seed(0)
    net = kind()
    net.train()(images())
    return net.eval()


def same(left: Compressed, right: Compressed) -> bool:
    states = left.model.state_dict(), right.model.state_dict()
    return left.digest() == right.digest() and all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("config", EVERY, ids=lambda r: f"{r.target}-{r.statistics}")
@pytest.mark.parametrize("kind", [Residual, Attention])
def test_batches_of_any_size_give_the_result_of_one(kind, config):
    """Float64: sums over channels inside a convolution may come in another order for another number of images."""
    net, x = network(kind).double(), images().double()
    spec, plan = prepared(net, x, config)
    for samples in (0, 40):
        whole = calibrate(net, spec, x, samples=samples, batch_size=len(x))
        wanted = compress(net, plan, spec, whole)
        for size in (1, 7, 10):
            parts = calibrate(net, spec, x, samples=samples, batch_size=size)
            assert len(parts.batches) == -(-len(x) // size)
            found = compress(net, plan, spec, parts)
            assert all(torch.equal(found.layers[name].levels, wanted.layers[name].levels) for name in wanted.layers)
            for key, value in wanted.model.state_dict().items():
                torch.testing.assert_close(found.model.state_dict()[key], value, rtol=1e-9, atol=1e-12)


def test_how_images_are_handed_over_does_not_matter_to_the_last_bit():
    net, x = network(), images()
    spec, plan = prepared(net, x)
    wanted = compress(net, plan, spec, calibrate(net, spec, x, batch_size=8))
    for batches in (x.split(5), [(part, torch.zeros(len(part))) for part in x.split(11)], [x[:1], x[1:]]):
        found = calibrate(net, spec, batches, batch_size=8)
        assert same(compress(net, plan, spec, found), wanted)
        assert compensation_factors(net, spec, found) == compensation_factors(
            net, spec, calibrate(net, spec, x, batch_size=8)
        )


def test_each_image_passes_once_and_nothing_is_left_behind():
    net, x = network(), images()
    spec, plan = prepared(net, x)
    calibration, before = calibrate(net, spec, x, batch_size=7), threading.active_count()
    calls: Counter[str] = Counter()

    class Counted(Residual):
        def forward(self, x: Tensor) -> Tensor:
            calls["images"] += len(x)
            calls["batches"] += 1
            return super().forward(x)

    counted = Counted()
    counted.load_state_dict(net.state_dict())
    result = compress(counted.eval(), plan, spec, calibration)
    assert calls == {"images": 30, "batches": 5}
    assert threading.active_count() == before
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in (*result.model.modules(), *net.modules()))


def test_layers_that_read_the_same_tensor_share_their_moments(monkeypatch):
    net, x = network(Attention), images()
    spec, plan = prepared(net, x)
    calibration = calibrate(net, spec, x, batch_size=8)
    assert calibration.same_input == {"k": "q", "v": "q"}
    shared = compress(net, plan, spec, calibration)
    from slimbit.numerics import moments

    made, original = [], moments._add_products
    monkeypatch.setattr(moments, "_add_products", lambda *args: (made.append(1), original(*args)))
    assert same(compress(net, plan, spec, calibration), shared)
    assert len(made) == 2  # of q, k and v once, and of the last layer
    monkeypatch.setattr("slimbit.apply.layerwise.are_same", lambda *_: False)
    assert same(compress(net, plan, spec, calibration), shared)
    assert len(made) == 2 + 4


def test_an_input_that_was_changed_in_place_is_not_shared():
    class Changed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = x.clone()
            first = self.a(x)
            y: Tensor = first + self.b(torch.relu_(x))
            return y.mean((2, 3))

    net, x = network(Changed), images()
    assert calibrate(net, survey_network(net, x[:1]).spec, x).same_input == {}


class Fails(Residual):
    """Fails in one batch only, behind the first layers."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if len(x) == 2:
            raise RuntimeError("no room")
        return y


@pytest.mark.parametrize("place", ["forward", "action"])
def test_errors_of_a_pass_and_of_an_action_come_out_and_end_all_passes(place, monkeypatch):
    net, x = network(), images()
    spec, plan = prepared(net, x)
    calibration, before = calibrate(net, spec, x, batch_size=7), threading.active_count()
    broken = network(Fails if place == "forward" else Residual)
    broken.load_state_dict(net.state_dict())
    seen: list[nn.Module] = []
    if place == "action":

        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("no room")

        monkeypatch.setattr("slimbit.apply.layerwise.correct_bias", fail)
    keep = Lockstep.run
    monkeypatch.setattr(Lockstep, "run", lambda self, order: (seen.append(self.network), keep(self, order)))
    with pytest.raises(RuntimeError, match="no room"):
        compress(broken, plan, spec, calibration)
    assert threading.active_count() == before
    assert not any(m._forward_pre_hooks or m._forward_hooks for net in seen for m in net.modules())


def test_an_interrupt_ends_all_passes() -> None:
    class Interrupted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x)
            if len(x) == 2:
                signal.raise_signal(signal.SIGINT)  # as Ctrl-C does: in the main thread, whoever runs
            return y

    before = threading.active_count()
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run side by side ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            calibrate(
                Interrupted(), survey_network(Interrupted(), torch.ones(1, 3)).spec, torch.ones(8, 3), batch_size=3
            )
    finally:
        signal.signal(signal.SIGINT, handler)
    assert threading.active_count() == before


def test_batches_that_take_other_paths_do_not_wait_for_ever():
    """Batch 0 skips the first layer: the others go through it first, and the second sees all of them."""
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    came: list[tuple[str, list[int]]] = []

    def forward(model: nn.Module, batch: Tensor) -> Tensor:
        x: Tensor = batch if float(batch[0, 0]) == 0 else model[0](batch)
        return model[1](x) if float(batch[0, 0]) < 3 else x

    lockstep = Lockstep(
        net,
        [torch.full((2, 2), float(k)) for k in range(4)],
        forward,
        lambda place, values: came.append((place, sorted(values))),
    )
    for name, module in net.named_children():
        module.register_forward_pre_hook(lambda _, args, name=name: lockstep.wait(name, args[0]))
    lockstep.run(int)
    assert came == [("0", [1, 2, 3]), ("1", [0, 1, 2])]


def test_threads_work_under_the_settings_of_the_caller():
    net, seen = nn.Linear(2, 2), []

    def forward(model: nn.Module, batch: Tensor) -> None:
        seen.append((model(batch).dtype, torch.is_grad_enabled(), torch.empty(0).device.type))

    with torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"):
        Lockstep(net, [torch.ones(1, 2, device="cpu")] * 2, forward, lambda *_: None).run(int)
    assert seen == [(torch.bfloat16, False, "meta")] * 2


def test_what_does_not_fit_into_memory_is_kept_in_half_precision_then_left_out_and_it_says_so():
    net, x = network(), images(40)
    spec = survey_network(net, x[:1]).spec
    live = live_bytes(net, x[:4], lambda model, batch: model(batch), set(net.modules()))
    each, half = live.whole / 4, live.halved / 4
    # input and output of the widest layer of one image, 8 + 8 channels of 6 x 6, and the branch beside it
    assert 2 * 8 * 36 * 4 <= each <= 4 * 8 * 36 * 4
    assert each / 2 < half < each
    whole = calibrate(net, spec, x, memory_bytes=int(40 * each))
    assert (whole.notes, whole.halved) == ((), False)
    assert sum(map(len, whole.batches)) == 40
    halved = calibrate(net, spec, x, memory_bytes=int(40 * half) + 1)
    assert halved.halved
    assert halved.notes[0].startswith("calibration keeps waiting activations in half precision: those of all images ")
    assert sum(map(len, halved.batches)) == 40
    assert len(halved.batches) > 1
    for name, rows in whole.rows.items():  # float16 has 11 bits
        assert torch.allclose(halved.rows[name], rows, atol=float(rows.abs().max()) * 2**-9), name
    part = calibrate(net, spec, x, memory_bytes=int(10.5 * half))
    assert sum(map(len, part.batches)) == 10
    assert "half precision, and uses 10 of 40 images: those of all images need " in part.notes[0]
    wanted = calibrate(net, spec, x[:10])
    assert all(
        torch.allclose(part.rows[name], rows, atol=float(rows.abs().max()) * 2**-9)
        for name, rows in wanted.rows.items()
    )


def test_memory_of_waiting_batches_is_given_back_in_half_precision_and_is_whole_again_when_they_go_on():
    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            shortcut = self.first(x)
            sizes.append((shortcut, shortcut.clone()))
            return self.second(shortcut * 2) + shortcut

    sizes: list[tuple[Tensor, Tensor]] = []
    net, stored = Held().eval(), []

    def act(*_: object) -> None:
        stored.extend(tensor.untyped_storage().nbytes() for tensor, _ in sizes)

    lockstep = Lockstep(net, images(9).split(3), lambda model, batch: model(batch[:, :2]), act, halved=True)
    net.second.register_forward_pre_hook(lambda _, args: lockstep.wait("second", args[0]))
    lockstep.run(lambda _: 0)
    assert stored == [0, 0, 0]  # the shortcut waits in half precision beside the layer's input
    for tensor, before in sizes:
        assert torch.allclose(tensor, before, rtol=0, atol=float(before.abs().max()) * 2**-11)
        assert not torch.equal(tensor, before)


def test_batch_size_and_memory_reach_calibration_from_the_public_functions():
    net, x = network(), images(24)
    prepared = slimbit.prepare(net, x[:1], x, batch_size=5, memory_gib=1.0)
    assert [len(batch) for batch in prepared.calibration.batches] == [5, 5, 5, 5, 4]
    assert prepared.division == "24 calibration images, 5 at a time"
    tight = slimbit.prepare(net, x[:1], x, memory_gib=6000 * 12 / (1 << 30))
    small = slimbit.quantize(tight, bits=4)
    assert any("half precision" in note for note in small.cost.notes)
    with pytest.raises(InputError, match="memory_gib must be a positive number, got 0"):
        slimbit.prepare(net, x[:1], x, memory_gib=0)
    with pytest.raises(InputError, match="batch_size must be a whole number of 1 or more, got True"):
        slimbit.prepare(net, x[:1], x, batch_size=True)


@pytest.mark.parametrize("size", [0, -1, 1.5, True])
def test_a_batch_size_must_be_a_whole_number(size):
    net, x = network(), images()
    with pytest.raises(InputError, match="batch size must be a whole number of 1 or more"):
        calibrate(net, survey_network(net, x[:1]).spec, x, batch_size=size)


def test_large_layers_are_sampled_less_but_enough():
    def bound(filters: int, inputs: int, kernel: int):
        net = nn.Sequential(nn.Conv2d(inputs, filters, kernel, device="meta"))
        spec: NetworkSpec = survey_network(net, torch.zeros(1, inputs, kernel, kernel, device="meta")).spec
        return next(iter(bind(net, spec).values()))

    assert samples_of(bound(64, 64, 3), 16384) == 16384
    assert samples_of(bound(512, 512, 3), 16384) == 4608  # 16384 * 576 / 4608 would be 2048
    assert samples_of(bound(2048, 512, 1), 16384) == 2048  # outputs of 16 MiB
    assert samples_of(bound(2048, 512, 1), 0) == 0


def test_regrouped_batches_are_the_same_images_in_order():
    x = torch.arange(11.0)[:, None]
    for cuts, size, most in itertools.product(([11], [3, 4, 4], [1] * 11), (1, 4, 20), (None, 7)):
        found = Regrouped(x.split(cuts), size, most)
        assert torch.equal(torch.cat(list(found)), x[:most])
        assert [len(part) for part in found][:-1] == [size] * (len(found) - 1)
    assert Regrouped(x.split(11), 5)[0].data_ptr() == x.data_ptr()  # a view: nothing is stored twice
    unlike = Regrouped((torch.zeros(3, 1), torch.zeros(3, 2)), 2, 4)
    assert [tuple(part.shape) for part in unlike] == [(2, 1), (1, 1), (1, 2)]
    assert unlike.images == 4
    tables = Regrouped([{"a": x[:4], "b": x[:4]}, {"a": x[4:], "b": x[4:]}], 6)
    assert [len(part["b"]) for part in tables] == [6, 5]
