"""What the networks of this room share: widths and initial weights."""

from torch import nn


def scaled(channels: int, width: float) -> int:
    """Channels times the width multiplier, rounded half up, at least 1.

    >>> scaled(16, 0.5), scaled(12, 0.25), scaled(16, 0.05)
    (8, 3, 1)
    """
    return max(1, int(channels * width + 0.5))


def initialize(model: nn.Module) -> None:
    """Draw the weights of ``model`` anew, in place: He et al. (2015), arXiv 1502.01852; biases 0.

    Convolutions keep the variance of gradients (``fan_out``), linear layers that of signals (``fan_in``).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias) if module.bias is not None else None
