"""Convolutions and their gradients against sums in float64; a program, because a fault may end the process.

``python tests/gradient_matrix.py hook`` (or ``context``, or ``bare``: as torch computes them) prints a comment before
every convolution and a line for every wrong one.
"""

import itertools
import sys
from collections.abc import Iterator
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimbit.numerics.strided import protect_gradients, safe_gradients

INPUTS, KERNELS, STRIDES, SIZES = range(1, 13), (1, 3), (1, 2, 3), (7, 8, 16)
FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
IMAGES, FILTERS = 3, 8  # an odd number: threads meet in the middle of an image
TOLERANCE = 1e-5


class Functional(nn.Module):
    """A network whose own code convolves."""

    def __init__(self, layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
        super().__init__()
        self.weight, self.of = nn.Parameter(layer.weight.detach()), [layer]

    def forward(self, x: Tensor) -> Tensor:
        (layer,) = self.of
        if isinstance(layer, nn.ConvTranspose2d):
            more = layer.output_padding
            return F.conv_transpose2d(x, self.weight, stride=layer.stride, output_padding=more)
        return F.conv2d(x, self.weight, stride=layer.stride, padding=layer.padding)


def written_out(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """A convolution as its sum over the positions of the kernel."""
    x = F.pad(x, (padding,) * 4)
    height, width = ((side - k) // stride + 1 for side, k in zip(x.shape[2:], weight.shape[2:], strict=True))
    rows, columns = (range(k) for k in weight.shape[2:])
    return sum(
        torch.einsum(
            "nihw,oi->nohw",
            x[..., r : r + stride * (height - 1) + 1 : stride, c : c + stride * (width - 1) + 1 : stride],
            weight[:, :, r, c],
        )
        for r, c in itertools.product(rows, columns)
    )


def upwards(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """A transposed 1x1 convolution with all the output padding there can be."""
    output = x.new_zeros(len(x), weight.shape[1], *(side * stride for side in x.shape[2:]))
    output[..., ::stride, ::stride] = torch.einsum("nihw,io->nohw", x, weight[:, :, 0, 0])
    return output


def convolutions(way: str) -> Iterator[tuple[str, nn.Module, Tensor, Tensor]]:
    """Name, layer, input, and the output in float64."""
    sizes = [(k, side) for k, side in itertools.product(KERNELS, SIZES)] + [(1, 56)]
    generator = torch.Generator().manual_seed(0)
    for inputs, (kernel, side), stride in itertools.product((*INPUTS, 15, 16), sizes, STRIDES):
        layer = nn.Conv2d(inputs, FILTERS, kernel, stride=stride, padding=kernel // 2, bias=False)
        x = torch.randn(IMAGES, inputs, side, side, generator=generator)
        name = f"{inputs} inputs, kernel {kernel}, stride {stride}, {side}x{side}"
        yield name, layer, x, lambda x, w, s=stride, p=kernel // 2: written_out(x, w, s, p)
    for outputs, side, stride in itertools.product(INPUTS if way == "context" else (), (4, 8, 28), (2, 3)):
        layer = nn.ConvTranspose2d(FILTERS, outputs, 1, stride=stride, output_padding=stride - 1, bias=False)
        x = torch.randn(IMAGES, FILTERS, side, side, generator=generator)
        yield f"{outputs} outputs, transposed, stride {stride}", layer, x, lambda x, w, s=stride: upwards(x, w, s)


def errors(way: str) -> Iterator[str]:
    for name, layer, x, reference in convolutions(way):
        exact = x.double().requires_grad_(), layer.weight.detach().double().requires_grad_()
        wanted = reference(*exact)
        slope = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
        expected = [wanted, *torch.autograd.grad(wanted, exact, slope.double())]
        for (of_x, x_format), (of_w, w_format) in itertools.product(FORMATS.items(), FORMATS.items()):
            told = f"{name}, input {of_x}, weight {of_w}"
            print("#", told, flush=True)  # noqa: T201
            layer.to(memory_format=w_format)
            network = Functional(layer) if way == "context" else layer
            if way == "hook":
                protect_gradients(network)
            own = x.contiguous(memory_format=x_format).detach().requires_grad_()
            with safe_gradients(network) if way == "context" else nullcontext():
                output = network(own)
                found = [
                    output,
                    *torch.autograd.grad(output, [own, network.weight], slope.contiguous(memory_format=x_format)),
                ]
            for what, f, w in zip(
                ("output", "gradient of the input", "gradient of the weight"), found, expected, strict=True
            ):
                error = float((f - w).detach().abs().max() / w.detach().abs().max())
                if not error < TOLERANCE:
                    yield f"{told}: {what} is off by {error:.1e}"


if __name__ == "__main__":
    for line in errors(sys.argv[1]):
        print(line, flush=True)  # noqa: T201
    print("done")  # noqa: T201
