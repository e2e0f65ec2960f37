"""The whole post-training pass once more: plain loops over numbers, written from the formulas, sharing no code with it.

From float weights and calibration images to levels, steps, BatchNorm statistics, biases and cost, in float64:

1. Sensitivity: labels sampled from the network itself, mean squared gradient of their log-likelihood per filter.
2. What compensation leaves of it: pivots of ``H``, and the part of the input's power that is not its mean.
3. Steps of a price: ``step^4 = 24 price c sigma^2 / s`` (ESN_a), ``step^2 = 12 price c / (s ln 2)`` (ESN_d), or the
   best width of every filter (ESN'_d).
4. Layer by layer, on inputs that the already quantized layers make: the weight that fits the float outputs best,
   optimal brain quantization column by column, coordinate descent, refitted steps where wanted.
5. Behind each layer the bias or the BatchNorm statistics moved by what quantization changed.

Networks are chains (`torch.nn.Sequential`) of the modules that `Reference` knows.
"""

import itertools
import math
import pickle
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.nn.utils.prune import is_pruned, remove

SWEEPS, DAMPING, RIDGE, STRETCH, FLOOR = 2, 0.01, 0.1, 1.25, 1e-3
IMAGES_PER_PASS = 4
LINEAR = nn.Linear(1, 1)
"""Stands for a linear layer: of what kind a projection of an attention is."""


def signed_directions(logits, generator):
    """Random directions whose outer products are ``diag(p) - p p^T`` in the mean, image by image."""
    signs = torch.randint(0, 2, logits.shape, generator=generator)
    directions = torch.zeros_like(logits, dtype=torch.float64)
    for n, row in enumerate(logits.detach().double()):
        p = row.exp() / row.exp().sum()
        root = torch.where(signs[n] == 1, p.sqrt(), -p.sqrt())
        directions[n] = root - p * root.sum()
    return directions.to(logits)


class SelfAttention(nn.Module):
    """Attention of a sequence to itself, ``(images, tokens, features)``: four linear layers and a mixture of values."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.block = nn.MultiheadAttention(features, heads, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x, x, x, need_weights=False)[0]


@dataclass
class Layer:
    """One weight of the chain.

    Attributes:
        weight: Float, ``(filters, inputs / groups, taps...)``.
        positions: Output positions per image.
        mask: False where a weight was pruned.
        steps: One, or one per filter.
    """

    name: str
    weight: np.ndarray
    groups: int = 1
    positions: int = 0
    mask: np.ndarray | None = None
    sensitivity: np.ndarray = field(default_factory=lambda: np.zeros(0))
    factor: float = 1.0
    steps: np.ndarray = field(default_factory=lambda: np.zeros(0))
    limits: np.ndarray | None = None
    rates: np.ndarray | None = None
    kept: set[int] | None = None
    levels: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def value(self) -> np.ndarray:
        return self.levels * self.steps.reshape(-1, *[1] * (self.weight.ndim - 1))


class Reference:
    """Levels, steps, statistics and biases of a chain at a price."""

    def __init__(self, network: nn.Sequential, images: torch.Tensor, *, price, metric, config, seed=0) -> None:
        copied = pickle.loads(pickle.dumps(network))  # deepcopy refuses what masks leave behind
        self.chain = list(network.named_children())
        self.images = images.double().numpy()
        self.price, self.metric, self.config = price, metric, config
        self.grid = config.grid or ("midrise" if metric == "esn_filterwise" else "midrise_zero")
        self.layers = {layer.name: layer for name, module in self.chain for layer in layers_of(name, module)}
        self.biases = {key: bias for name, module in self.chain for key, bias in biases_of(name, module)}
        self._float_biases = dict(self.biases)
        self.statistics = {
            name: (module.running_mean.double().numpy().copy(), module.running_var.double().numpy().copy())
            for name, module in self.chain
            if isinstance(module, nn.BatchNorm2d)
        }
        self._inputs, self._outputs = {}, {}
        self._float_pass()
        self._sensitivities(copied, images, seed)
        self._factors()
        for layer in self.layers.values():
            self._plan(layer)
        self._quantize()

    # --- the float network ---

    def _float_pass(self) -> None:
        weights = {key: layer.weight for key, layer in self.layers.items()}

        def visit(name, module, x):
            self._inputs[name] = x
            self._outputs[name] = y = self._forward(name, module, x, weights)
            if is_window(module):
                self.layers[name].positions = positions_of(module, x, y)
            return y

        self._walk(visit)

    def _walk(self, visit) -> None:
        """Visit every module in order with its input; an attention is four linear layers with a mixture between."""
        x = self.images
        for name, module in self.chain:
            if isinstance(module, SelfAttention):
                q, k, v = (visit(f"{name}.block.{part}_proj", LINEAR, x) for part in "qkv")
                x = visit(f"{name}.block.out_proj", LINEAR, mixed(module.block, q, k, v))
            else:
                x = visit(name, module, x)

    def _forward(self, name, module, x, weights):
        if is_window(module):
            return outputs(module, x, weights[name], self.biases.get(name))
        if isinstance(module, nn.BatchNorm2d):
            mean, variance = (along(value) for value in self.statistics[name])
            scale, shift = (along(value.detach().double().numpy()) for value in (module.weight, module.bias))
            return (x - mean) / np.sqrt(variance + module.eps) * scale + shift
        if isinstance(module, nn.ReLU):
            return np.maximum(x, 0)
        assert isinstance(module, nn.Flatten), module
        return x.reshape(len(x), -1)

    def _sensitivities(self, network, images, seed) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _, module in network.named_children():
            if is_window(module) and is_pruned(module):
                remove(module, "weight")  # a pruned weight has a gradient, too: the mean is over all of a filter
        sums = {name: np.zeros(len(layer.weight)) for name, layer in self.layers.items()}
        for start in range(0, len(images), IMAGES_PER_PASS):
            logits = network(images[start : start + IMAGES_PER_PASS])
            network.zero_grad()
            (logits * signed_directions(logits, generator)).sum().backward()
            for name, _ in self.chain:
                for layer in layers_of(name, network.get_submodule(name), gradient=True):
                    sums[layer.name] += (layer.weight**2).reshape(len(layer.weight), -1).mean(1)
        for name, total in sums.items():
            self.layers[name].sensitivity = total / len(images)

    def _factors(self) -> None:
        """Shares of the sensitivities that compensation leaves."""

        def visit(name, module, x):
            if is_window(module):
                rows = patches(module, x)
                moment, whole = second_moment(rows, centred=self._absorbs(name)), second_moment(rows, centred=False)
                spread = mean_diagonal(moment).mean() / mean_diagonal(whole).mean()
                pivots = [pivot for group in damped(moment) for pivot in pivots_of(group)]
                self.layers[name].factor = max(FLOOR, spread * sum(pivots) / len(pivots))
            return self._outputs[name]

        if self.config.compensation:
            self._walk(visit)

    def _absorbs(self, name) -> bool:
        """Whether a bias, or the BatchNorm right behind, can take up a shift of a layer's mean output."""
        return name in self.biases or self._is_normalized(name)

    # --- steps ---

    def _plan(self, layer) -> None:
        if self.metric == "esn_filterwise":
            self._plan_widths(layer)
            return
        charge = self.price * layer.positions
        parts = list(layer.weight) if self.config.granularity == "filter" else [layer.weight]
        filters = layer.sensitivity if self.config.granularity == "filter" else [layer.sensitivity.mean()]
        steps = []
        for part, s in zip(parts, filters, strict=True):
            left, widest = s * layer.factor, 8 * np.abs(part).max()
            if self.metric == "esn_analog":
                step = (24 * charge * (part**2).mean() / left) ** 0.25
            else:
                step = (12 * charge / (left * math.log(2))) ** 0.5
            steps.append(max(widest / 2**16, min(widest, step)))
        layer.steps = np.array(steps)
        if self.config.rounding == "rate_aware":
            layer.rates = np.array([2 * charge / s for s in filters])
        if self.grid == "midrise":  # no zero: a filter is pruned where its levels cost more than they save
            layer.kept = set()
            for f, weights in enumerate(layer.weight):
                step, s = layer.steps[f % len(steps)], filters[f % len(steps)]
                q = self._nearest(weights.flatten(), step, None)
                error = ((weights.flatten() - step * q) ** 2).sum()
                if s / 2 * error + charge * sum(map(self._phi, q)) < s / 2 * (weights**2).sum():
                    layer.kept.add(f)

    def _plan_widths(self, layer) -> None:
        """Of every width 0 to 8 the best step; of the widths the one with the least loss plus price times bits."""
        macs = layer.positions * layer.weight[0].size
        steps, limits, layer.kept = [], [], set()
        for f, weights in enumerate(layer.weight):
            best = (layer.sensitivity[f] / 2 * (weights**2).sum(), 0, 1.0)
            for bits in range(1, 9):
                limit = 2 ** (bits - 1) - (1.0 if self.grid == "midtread" else 0.5)
                tried = []
                for k in range(48):
                    step = np.abs(weights).max() / max(limit, 0.5) * 0.96**k
                    q = self._nearest(weights.flatten(), step, limit)
                    tried.append((((weights.flatten() - step * q) ** 2).sum(), step))
                error, step = min(tried, key=lambda pair: pair[0])
                best = min(
                    best, (layer.sensitivity[f] * layer.factor / 2 * error + self.price * macs * bits, bits, step)
                )
            _, bits, step = best
            compensated = self.config.compensation
            steps.append(step * (STRETCH if compensated else 1.0))
            limits.append(2 ** (max(bits, 1) - 1) - (1.0 if self.grid == "midtread" else 0.5))
            if bits:
                layer.kept.add(f)
        layer.steps, layer.limits = np.array(steps), np.array(limits)

    def _nearest(self, weight, step, limit):
        """The level next to a weight, or to each of several."""
        ratio = weight / step
        level = np.round(ratio) if self.grid == "midtread" else np.floor(ratio) + 0.5
        if self.grid == "midrise_zero":
            level = np.where(np.abs(ratio) <= 0.25, 0.0, level)
        return level if limit is None else np.clip(level, -limit, limit)

    def _phi(self, level) -> float:
        return level**2 if self.metric == "esn_analog" else bits_of(level)

    # --- layer by layer ---

    def _quantize(self) -> None:
        layerwise = self.config.statistics == "paired_layerwise"

        def visit(name, module, x):
            if is_window(module) and self.config.compensation:
                self._compensate(self.layers[name], name, module, x)
            elif is_window(module):
                self._round(self.layers[name])
            return self._corrected(name, module, x) if layerwise else self._step(name, module, x)

        self._walk(visit)
        if self.config.statistics in ("paired", "absolute"):
            self._walk(self._corrected)

    def _step(self, name, module, x):
        return self._forward(name, module, x, {name: self.layers[name].value()} if name in self.layers else {})

    def _corrected(self, name, module, x):
        """A module's output after its bias or statistics were corrected."""
        axes = tuple(d for d in range(x.ndim) if d != 1)
        if isinstance(module, nn.BatchNorm2d):
            mean, variance = self.statistics[name]
            now = x.mean(axes), x.var(axes)
            if self.config.statistics == "absolute":
                count = x.size // x.shape[1]
                self.statistics[name] = now[0], now[1] * count / (count - 1)
            else:
                then = self._inputs[name].mean(axes), self._inputs[name].var(axes)
                alive = (then[1] > 1e-6 * variance) & (now[1] > 1e-6 * then[1])
                stretch = np.where(alive, np.sqrt(variance / np.where(alive, then[1], 1)), 1.0)
                ratio = np.where(alive, now[1] / np.where(alive, then[1], 1), 1.0)
                self.statistics[name] = mean + (now[0] - then[0]) * stretch, variance * ratio
        y = self._step(name, module, x)
        if name in self.biases and not self._is_normalized(name):
            filters = y.ndim - 1 if isinstance(module, nn.Linear) else 1
            axes = tuple(d for d in range(y.ndim) if d != filters)
            shift = self._outputs[name].mean(axes) - y.mean(axes)
            self.biases[name] = self.biases[name] + shift
            y = y + along(shift, y.ndim - filters + 1)
        return y

    def _is_normalized(self, name) -> bool:
        """Whether a BatchNorm stands right behind a module of the chain."""
        pairs = itertools.pairwise(self.chain)
        return any(first == name and isinstance(behind, nn.BatchNorm2d) for (first, _), (_, behind) in pairs)

    def _round(self, layer) -> None:
        """Nearest levels one by one, or the cheaper ones that the rate prefers."""
        flat = layer.weight.reshape(len(layer.weight), -1)
        layer.levels = np.zeros_like(flat)
        for f, d in itertools.product(range(flat.shape[0]), range(flat.shape[1])):
            layer.levels[f, d] = self._best(layer, f, flat[f, d], 1.0, self._kept_by_mask(layer, f, d))
        self._finish(
            layer, flat, np.broadcast_to(np.eye(flat.shape[1]), (1, flat.shape[1], flat.shape[1])) * (1 + DAMPING)
        )

    def _compensate(self, layer, name, module, x) -> None:
        rows = patches(module, x)
        centred = self._absorbs(name) and self.config.statistics != "stored"
        moment = second_moment(rows, centred=centred)
        target = layer.weight.reshape(layer.groups, -1, rows.shape[2])
        if self.config.target == "outputs":
            bias = self._float_biases.get(name, 0.0)
            wanted = self._outputs[name]
            wanted = wanted if isinstance(module, nn.Linear) else np.moveaxis(wanted, 1, -1)
            wanted = wanted.reshape(-1, len(layer.weight)) - bias
            target = self._fitted(target, moment, rows, wanted, centred=centred)
        h = damped(moment)
        flat = target.reshape(len(layer.weight), -1)
        layer.levels = np.zeros_like(flat)
        each = len(layer.weight) // layer.groups
        for f in range(len(flat)):
            self._brain_surgeon(layer, f, flat[f], h[f // each])
            self._descend(layer, f, flat[f], h[f // each])
        self._finish(layer, flat, h)

    @staticmethod
    def _fitted(weight, moment, rows, wanted, *, centred):
        """``W + (C - W H) (H + eps I)^-1``, group by group."""
        fitted = np.zeros_like(weight)
        for g, w in enumerate(weight):
            x, y = rows[:, g], wanted[:, g * len(w) : (g + 1) * len(w)]
            if centred:
                x, y = x - x.mean(0), y - y.mean(0)
            cross = y.T @ x / len(x)
            scale = np.diagonal(moment[g]).mean()
            ridge = moment[g] + (RIDGE * scale if scale > 0 else 1.0) * np.eye(len(moment[g]))
            fitted[g] = w + (cross - w @ moment[g]) @ np.linalg.inv(ridge)
        return fitted

    def _brain_surgeon(self, layer, f, weights, h) -> None:
        """Optimal brain quantization: round the strongest column left, let all others that are left adapt."""
        w, left = weights.copy(), strongest_first(h)
        while left:
            j, rest = left[0], left[1:]
            step, limit = self._at(layer.steps, f), None if layer.limits is None else self._at(layer.limits, f)
            q = self._nearest(w[j], step, limit) if self._kept_by_mask(layer, f, j) else 0.0
            layer.levels[f, j] = q
            if rest:  # their best answer to the error: -H_rest^-1 H_rest,j error
                answer = np.linalg.solve(h[np.ix_(rest, rest)], h[rest, j])
                w[rest] += answer * (w[j] - step * q)
            left = rest

    def _descend(self, layer, f, weights, h) -> None:
        step = self._at(layer.steps, f)
        for _ in range(SWEEPS):
            for j in range(len(weights)):
                gap = weights - step * layer.levels[f]
                gap[j] = weights[j]
                best = weights[j] + (h[j] @ gap - h[j, j] * weights[j]) / h[j, j]
                layer.levels[f, j] = self._best(layer, f, best, h[j, j], self._kept_by_mask(layer, f, j))

    def _best(self, layer, f, weight, strength, kept) -> float:
        """The level with the least ``strength (w - step q)^2 + rate phi(q)``: of every level there is."""
        step, limit = self._at(layer.steps, f), None if layer.limits is None else self._at(layer.limits, f)
        if not kept:
            return 0.0
        nearest = self._nearest(weight, step, limit)
        if layer.rates is None:
            return nearest
        rate, sign = self._at(layer.rates, f), math.copysign(1, nearest)
        start = {"midrise": 0.5, "midrise_zero": 0.5, "midtread": 1.0}[self.grid]
        levels = [sign * (start + k) for k in range(int(abs(nearest)) + 1)]
        levels += [] if self.grid == "midrise" else [0.0]
        return min(levels, key=lambda q: strength * (weight - step * q) ** 2 + rate * self._phi(q))

    def _finish(self, layer, target, h) -> None:
        if self.config.refit:
            each = len(target) // len(h)
            steps = np.zeros(len(target))
            for f, (w, q) in enumerate(zip(target, layer.levels, strict=True)):
                energy = q @ h[f // each] @ q
                fitted = w @ h[f // each] @ q / energy if energy > 0 else 0.0
                steps[f] = fitted if fitted > 0 else self._at(layer.steps, f)
            layer.steps = steps
        for f in range(len(target)):
            if layer.kept is not None and f not in layer.kept:
                layer.levels[f] = 0.0
        layer.levels = layer.levels.reshape(layer.weight.shape)

    @staticmethod
    def _at(values, f) -> float:
        return float(values[f if len(values) > 1 else 0])

    @staticmethod
    def _kept_by_mask(layer, f, d) -> bool:
        return layer.mask is None or bool(layer.mask.reshape(len(layer.weight), -1)[f, d])

    # --- cost ---

    def cost(self, metric) -> float:
        """Eqs. (2) and (3) of the paper and ESN'_d, level by level."""
        total = 0.0
        for layer in self.layers.values():
            rows = layer.levels.reshape(len(layer.weight), -1)
            for f, q in enumerate(rows):
                if metric == "esn_filterwise":
                    total += layer.positions * self._read(layer, f) * max(map(bits_of, q))
                else:
                    total += layer.positions * sum(v**2 if metric == "esn_analog" else bits_of(v) for v in q)
        return total

    @staticmethod
    def _read(layer, f) -> int:
        """Weights of a filter that meet an input which any filter of its group reads."""
        each = len(layer.weight) // layer.groups
        group = layer.levels[f // each * each :][:each].reshape(each, layer.weight.shape[1], -1)
        return int((group != 0).any((0, 2)).sum()) * group.shape[2]


def bits_of(level) -> int:
    """0 for 0, else ``ceil(log2(2 |q| + 1))``."""
    return 0 if level == 0 else math.ceil(math.log2(2 * abs(level) + 1))


def positions_of(module, x, y) -> int:
    """How often an image meets a weight: at each output position, or input position where transposed."""
    if isinstance(module, nn.Linear):
        return math.prod(y.shape[1:-1])
    return math.prod((x if isinstance(module, nn.ConvTranspose2d) else y).shape[2:])


def is_window(module) -> bool:
    return isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)


def biases_of(name, module) -> list[tuple[str, np.ndarray]]:
    """Biases of a module by layer name."""
    if isinstance(module, SelfAttention):
        parts = [*module.block.in_proj_bias.split(module.block.embed_dim), module.block.out_proj.bias]
        keys = [f"{name}.block.{part}_proj" for part in ("q", "k", "v", "out")]
        return [(key, part.detach().double().numpy().copy()) for key, part in zip(keys, parts, strict=True)]
    if not is_window(module) or module.bias is None:
        return []
    return [(name, module.bias.detach().double().numpy().copy())]


def layers_of(name, module, *, gradient=False) -> list[Layer]:
    """Weights of a module, or their gradients, filters first."""

    def numbers(parameter):
        value = parameter.grad if gradient else parameter
        return value.detach().double().numpy().copy()

    if isinstance(module, nn.MultiheadAttention | SelfAttention):
        block = module.block
        rows = np.split(numbers(block.in_proj_weight), 3)
        rows.append(numbers(block.out_proj.weight))
        return [Layer(f"{name}.block.{part}_proj", row) for part, row in zip(("q", "k", "v", "out"), rows, strict=True)]
    if not is_window(module):
        return []
    parameter = getattr(module, "weight_orig", module.weight)
    weight, mask = numbers(parameter), getattr(module, "weight_mask", None)
    groups = getattr(module, "groups", 1)
    if mask is not None:
        weight = weight * mask.double().numpy()
    if isinstance(module, nn.ConvTranspose2d):  # stored inputs first, (inputs, filters / groups, taps)
        weight = np.concatenate([part.swapaxes(0, 1) for part in np.split(weight, groups)])
    return [Layer(name, weight, groups, mask=None if mask is None else mask.bool().numpy())]


def patches(module, x) -> np.ndarray:
    """What every output position reads, ``(positions, groups, inputs of a group * taps)``, position by position."""
    if isinstance(module, nn.Linear):
        return x.reshape(-1, 1, x.shape[-1])
    height, width = output_size(module, x.shape[2:])
    found = []
    for image, row, column in itertools.product(range(len(x)), range(height), range(width)):
        taps = [read(module, x[image], (row, column), tap) for tap in np.ndindex(*module.kernel_size)]
        found.append(np.stack(taps, 1).reshape(module.groups, -1))
    return np.stack(found)


def output_size(module, size) -> tuple[int, ...]:
    found = []
    for d, n in enumerate(size):
        reach, stride, pad = module.dilation[d] * (module.kernel_size[d] - 1) + 1, module.stride[d], module.padding[d]
        if isinstance(module, nn.ConvTranspose2d):
            found.append((n - 1) * stride + reach - 2 * pad + module.output_padding[d])
        else:
            found.append((n + 2 * pad - reach) // stride + 1)
    return tuple(found)


def read(module, image, position, tap) -> np.ndarray:
    """All channels of the pixel that one tap of an output position reads; zeros outside, and between the pixels."""
    pixel = []
    for d, (place, k) in enumerate(zip(position, tap, strict=True)):
        if isinstance(module, nn.ConvTranspose2d):
            spread = place + module.padding[d] - k * module.dilation[d]
            at, there = divmod(spread, module.stride[d])
            pixel.append(at if there == 0 else -1)
        else:
            pixel.append(place * module.stride[d] - module.padding[d] + k * module.dilation[d])
    if any(at < 0 or at >= n for at, n in zip(pixel, image.shape[1:], strict=True)):
        return np.zeros(len(image))
    return image[:, pixel[0], pixel[1]]


def outputs(module, x, weight, bias) -> np.ndarray:
    rows = patches(module, x)
    groups = rows.shape[1]
    parts = [rows[:, g] @ w.T for g, w in enumerate(weight.reshape(groups, len(weight) // groups, -1))]
    y = np.concatenate(parts, 1) + (0.0 if bias is None else bias)
    if isinstance(module, nn.Linear):
        return y.reshape(*x.shape[:-1], len(weight))
    return np.moveaxis(y.reshape(len(x), *output_size(module, x.shape[2:]), len(weight)), -1, 1)


def mixed(block, q, k, v) -> np.ndarray:
    """What the heads of an attention make of queries, keys and values."""
    size, found = block.head_dim, []
    for h in range(block.num_heads):
        at = slice(h * size, (h + 1) * size)
        scores = q[..., at] @ k[..., at].swapaxes(1, 2) / math.sqrt(size)
        odds = np.exp(scores - scores.max(-1, keepdims=True))
        found.append(odds / odds.sum(-1, keepdims=True) @ v[..., at])
    return np.concatenate(found, -1)


def along(values, ndim=4) -> np.ndarray:
    return values.reshape(-1, *[1] * (ndim - 2))


def second_moment(rows, *, centred) -> np.ndarray:
    """``mean_p x x^T`` of each group, around the mean or around zero; nothing where only rounding varies."""
    found = []
    for g in range(rows.shape[1]):
        mean = rows[:, g].mean(0)
        x = rows[:, g] - mean
        moment = x.T @ x / len(x)
        if np.diagonal(moment).mean() <= 1e-12 * (mean**2).mean():
            moment[:] = 0
        found.append(moment if centred else moment + np.outer(mean, mean))
    return np.stack(found)


def mean_diagonal(moment) -> np.ndarray:
    return np.array([np.diagonal(group).mean() for group in moment])


def damped(moment) -> np.ndarray:
    """A mean diagonal of 1, plus 1 % of it; the identity in place of nothing."""
    eye = np.eye(moment.shape[1])
    means = mean_diagonal(moment)
    return np.stack([(g / m if m > 0 else eye) + DAMPING * eye for g, m in zip(moment, means, strict=True)])


def strongest_first(h) -> list[int]:
    """Columns by falling diagonal in steps of 2^-16 of its mean; equal ones keep their order."""
    return sorted(range(len(h)), key=lambda j: -round(h[j, j] / np.diagonal(h).mean() * 2**16))


def pivots_of(h) -> list[float]:
    """What an error in each column costs once the columns behind it have adapted: ``H_jj - H_jr H_rr^-1 H_rj``."""
    order, found = strongest_first(h), []
    while order:
        j, rest = order[0], order[1:]
        lost = h[j, rest] @ np.linalg.solve(h[np.ix_(rest, rest)], h[rest, j]) if rest else 0.0
        found.append(h[j, j] - lost)
        order = rest
    return found
