"""Training, Fisher ranking and anyone's own loop with narrow networks, twice; a program, as a fault may end it.

``python tests/narrow_training.py FOLDER`` prints a digest of the results of each. They are equal where nothing writes
beside its memory.
"""

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import slimbit
from pruning_case import halved
from slimbit.apply.surgery import prune
from slimbit.measure.group_sensitivity import measure_group_sensitivity
from slimbit.records.training import TrainConfig
from slimbit.survey.filter_groups import find_filter_groups
from slimbit.training.run import train_network
from training_case import task_of


def digest(tensors: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return total.hexdigest()[:16]


def main(folder: Path) -> None:
    data, example = slimbit.open_data("digits"), torch.zeros(1, 1, 8, 8)
    config = TrainConfig(epochs=1, batch_size=32, validation_images=0, augment={"crop": 1, "flip": False})
    for part in ("first", "second"):
        torch.manual_seed(0)
        network = slimbit.network("digits_resnet@0.5")
        train_network(network, task_of(data), config, folder / part)
        print("trained", digest(network.state_dict()))  # noqa: T201

        images = torch.cat(list(data.calibration(63))).contiguous(memory_format=torch.channels_last)
        units = measure_group_sensitivity(
            network, find_filter_groups(network, example), [images], generator=torch.Generator().manual_seed(0)
        )
        print("ranked", digest({name: torch.tensor(values) for name, values in units.items()}))  # noqa: T201

        small = prune(network, halved(network.eval(), example)[1], example)
        small = small.train().to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(small.parameters(), lr=0.05)
        for _ in range(10):
            optimizer.zero_grad()
            F.cross_entropy(small(images), torch.arange(63) % 10).backward()
            optimizer.step()
        print("own loop", digest(small.state_dict()))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
