"""Crops and flips: the fast indexing against a slow loop, and calibration images as training sees them."""

import pytest
import torch

import slimbit
from slimbit.numerics.augment import draw_moves, moved
from slimbit.records.training import AugmentConfig


@pytest.mark.parametrize("largest", [0, 1, 3])
def test_pixels_are_moved_as_in_a_slow_loop(largest):
    generator = torch.Generator().manual_seed(7)
    images = torch.randint(1, 256, (5, 2, 6, 4), generator=generator, dtype=torch.uint8)
    drawn = draw_moves(5, AugmentConfig(), largest=largest, seed=3)
    expected = torch.zeros_like(images)
    for i in range(5):
        for row in range(6):
            for column in range(4):
                mirrored = 3 - column if drawn.flip[i] else column
                y, x = row + int(drawn.shift[0, i]) - largest, mirrored + int(drawn.shift[1, i]) - largest
                if 0 <= y < 6 and 0 <= x < 4:
                    expected[i, :, row, column] = images[i, :, y, x]
    assert torch.equal(moved(images, drawn.shift, drawn.flip, largest=largest), expected)


def test_augmented_calibration_is_the_same_images_moved():
    data = slimbit.open_data("digits")
    plain = torch.cat(list(data.calibration(40, seed=5)))
    still = torch.cat(list(data.calibration(40, seed=5, augment=AugmentConfig(crop=0, flip=False))))
    assert torch.equal(still.sum((1, 2, 3)).sort().values, plain.sum((1, 2, 3)).sort().values)
    batches = data.calibration(40, batch_size=16, seed=5, augment=True)
    once, twice = torch.cat(list(batches)), torch.cat(list(batches))
    assert torch.equal(once, twice)
    assert not torch.equal(once, still)
    drawn = draw_moves(40, AugmentConfig(), largest=1, seed=5)
    assert torch.equal(once, moved(still, drawn.shift, drawn.flip, largest=1))


def test_another_seed_moves_other_images():
    data = slimbit.open_data("digits")
    first, second = (torch.cat(list(data.calibration(20, seed=seed, augment=True))) for seed in (0, 1))
    assert not torch.equal(first, second)
