"""The loss scale of fp16: that of a mean over the global batch, whatever the batch, and whose fault an overflow is."""

import pytest
import torch

from pathray.device import Device
from pathray.train.scaler import GROWTH_STEPS, LossScale

CPU = Device.of("cpu")
FINE, OVERFLOWN = torch.tensor(1.0), torch.tensor(0.0)


@pytest.mark.parametrize(("images", "first"), [(1, 65536), (6, 16384), (64, 1024), (4096, 16)])
def test_a_scaled_sum_begins_about_as_large_as_a_mean_scaled_by_2_to_the_16(images, first):
    scale = LossScale("fp16", CPU, images)
    assert float(scale.scale) == first
    assert 65536 <= float(scale.apply(torch.ones(images).sum())) < 2 * 65536


@pytest.mark.parametrize(("saved", "then"), [(2.0**24, 2.0**18), (65536.0, 65536.0), (1.0, 1.0)])
def test_a_scale_of_an_older_checkpoint_goes_on_within_the_bounds(saved, then):
    scale = LossScale("fp16", CPU, 64)
    scale.load({"scale": torch.tensor(saved), "good": torch.tensor(7.0)})
    scale.update(FINE)
    assert float(scale.scale) == then and float(scale.good) == 8 and float(scale.can_shrink()) == 1


def test_it_falls_to_that_of_a_mean_scaled_by_1_before_an_overflow_counts_as_bad():
    scale = LossScale("fp16", CPU, 64)
    for halvings in range(16):
        assert float(scale.can_shrink()) == 1 and float(scale.scale) == 1024 / 2**halvings
        scale.update(OVERFLOWN)
    assert float(scale.scale) == 1 / 64 and float(scale.can_shrink()) == 0
    scale.update(OVERFLOWN)
    assert float(scale.scale) == 1 / 64


def test_it_doubles_after_two_thousand_good_steps_in_a_row_and_a_copy_goes_on_alike():
    scale, copy = LossScale("fp16", CPU, 8), LossScale("fp16", CPU, 8)
    for step in range(GROWTH_STEPS - 1):
        scale.update(FINE)
        if step == 5:
            copy.load(scale.tensors())
    assert float(scale.scale) == 8192
    scale.update(FINE)
    assert float(scale.scale) == 16384 and float(scale.good) == 0
    for _ in range(GROWTH_STEPS - 6):
        copy.update(FINE)
    assert float(copy.scale) == 16384


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_other_precisions_are_not_scaled(precision):
    scale, loss = LossScale(precision, CPU, 64), torch.tensor(3.0)
    scale.update(OVERFLOWN)
    assert scale.apply(loss) is loss and float(scale.scale) == 1 and scale.tensors() == {}
    assert float(scale.can_shrink()) == 0
