"""One joined batch of 500 CIFAR-10 images and the same images in five batches: the same levels of a real ResNet-20."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from slimbit import zoo
from slimbit.apply.calibration import calibrate
from slimbit.apply.compensation import compensation_factors
from slimbit.apply.compress import compress
from slimbit.apply.layers import weights_of
from slimbit.measure.sensitivity import measure_sensitivity
from slimbit.plan.inputs import PlanInputs
from slimbit.plan.steps import step_by_price
from slimbit.survey.module import survey_network

SHARED = os.environ.get("SLIMBIT_DATA")


@pytest.mark.slow
@pytest.mark.skipif(SHARED is None, reason="SLIMBIT_DATA is not set")
def test_plans_and_levels_of_five_batches_have_the_digests_of_one(tmp_path: Path) -> None:
    subprocess.run([sys.executable, f"{SHARED}/unpack.py", str(tmp_path)], check=True)
    data = zoo.open_data(f"cifar10:{tmp_path},normalize=imagenet")
    model = zoo.load_weights(zoo.network("resnet20-A"), f"{SHARED}/weights/cifar10_resnet20.safetensors").eval()
    images = torch.cat(list(data.calibration(500)))
    spec = survey_network(model, images[:1]).spec
    sensitivity = measure_sensitivity(model, spec, images[:100], generator=torch.Generator().manual_seed(0))
    found = []
    for batches, size in ((images, 500), (images.split(100), 100)):
        calibration = calibrate(model, spec, batches, batch_size=size)
        assert len(calibration.batches) == 500 // size
        inputs = PlanInputs(
            spec=spec,
            weights=weights_of(model, spec),
            sensitivity=sensitivity,
            compensation_factors=compensation_factors(model, spec, calibration),
        )
        plan = step_by_price(inputs, 1e-9, "esn_digital")
        found.append((plan.digest(), compress(model, plan, spec, calibration).digest()))
    assert found[0] == found[1]
