"""Calibration images that do not vary are refused, and layers whose inputs do not vary are named."""

import pytest
import torch
from torch import Tensor, nn

import slimbit
from slimbit.apply.calibration import calibrate
from slimbit.frontier.progress import Progress
from slimbit.records.errors import InputError
from slimbit.survey.module import survey_network


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(144, 5)).eval()


def images(count: int = 16) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("value", [0.0, 1.0, torch.tensor([0.5, -1.0, 2.0]).reshape(1, 3, 1, 1)])
@pytest.mark.parametrize("batched", [False, True])
def test_constant_images_are_refused_with_the_layers_that_see_nothing(value, batched):
    constant = torch.zeros(16, 3, 8, 8) + value
    calibration = list(constant.split(1)) if batched else constant
    with pytest.raises(InputError) as refused:
        slimbit.quantize(network(), constant[:1], calibration, bits=4)
    assert str(refused.value) == (
        "calibration images must vary, got constant ones: the inputs of 3 of 3 layers do not vary (0, 3, 5)"
    )


class Times(nn.Module):
    """A table of times that is the same for every image, beside the images."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.time = network(), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x) + self.time(torch.ones(len(x), 4))
        return y


def test_a_layer_whose_input_does_not_vary_is_named():
    model, x = Times().eval(), images()
    found = calibrate(model, survey_network(model, x[:1]).spec, x)
    note = "on the calibration images the inputs of 1 of 4 layers do not vary (time), so nothing is learned about them"
    assert found.notes == (note,)
    config = slimbit.QuantConfig(compensation=True, statistics="paired")
    assert note in slimbit.quantize(model, x[:1], x, bits=4, config=config).cost.notes


def test_a_run_says_it_once(tmp_path):
    model, x = Times().eval(), images()
    said: list[str] = []

    def listen(progress: Progress) -> None:
        said.extend([progress.message] if progress.stage == "note" else [])

    def evaluate(network: nn.Module) -> float:
        with torch.no_grad():
            return 100 * float((network(x).argmax(1) == model(x).argmax(1)).double().mean())

    slimbit.trace_frontier(model, x[:1], x, evaluate, out=tmp_path / "run", points=2, progress=listen)
    assert said[0] == "16 calibration images, 16 at a time"
    assert [note.partition("(")[0] for note in said[1:]] == [
        "on the calibration images the inputs of 1 of 4 layers do not vary "
    ]


@pytest.mark.parametrize("calibration", [images(), images(1), torch.zeros(1, 3, 8, 8), list(images().split(3))])
def test_images_that_vary_and_one_image_alone_say_nothing(calibration):
    model = network()
    assert not calibrate(model, survey_network(model, images(1)).spec, calibration).notes


def test_images_of_one_colour_each_vary():
    model, colours = network(), images()[:, :, :1, :1].expand(-1, -1, 8, 8)
    assert not calibrate(model, survey_network(model, colours[:1]).spec, colours).notes
