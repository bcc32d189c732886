"""Masks: fixed numbers of tokens, a partition of the grid, flat marginals, and short or full-length blocks."""

from math import prod

import numpy as np
import pytest
from scipy.ndimage import label

from oct.config import RunConfig
from oct.masks import MaskSampler, fill
from oct.sections import DataConfig, MaskConfig, ModelConfig
from pathray.data.order import rng
from pathray.errors import UserError

KINDS = ("block", "random", "vjepa")


def sampler(kind: str, grid=(16, 24, 24), **mask) -> MaskSampler:
    data = DataConfig(image_size=[4 * grid[0], 16 * grid[1], 16 * grid[2]])
    return MaskSampler.of(RunConfig(data=data, mask=MaskConfig(kind=kind, **mask)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", [(16, 24, 24), (4, 4, 4), (5, 3, 8)])
def test_context_and_targets_partition_the_grid_in_fixed_numbers(kind, grid):
    masks = sampler(kind, grid)
    for draw in range(20):
        sample = masks.sample(rng(0, "masks", draw))
        assert len(sample) == 2 * masks.masks == (4 if kind == "vjepa" else 2)
        for i in range(masks.masks):
            context, target = sample[f"context_{i}"], sample[f"target_{i}"]
            assert (context.dtype, target.dtype) == (np.int32, np.int32)
            assert (len(context), len(target)) == (masks.visible[i], masks.hidden[i])
            assert np.array_equal(np.sort(np.concatenate([context, target])), np.arange(prod(grid)))
            assert np.all(np.diff(context) > 0) and np.all(np.diff(target) > 0)


def test_the_numbers_are_those_of_the_ratio_and_of_the_blocks():
    assert sampler("block").hidden == sampler("random").hidden == (5530,)  # .6 of 9,216
    assert sampler("block").visible == (3686,)
    short, long = 1 - 0.85**8, 1 - 0.3**2
    assert sampler("vjepa").hidden == (16 * round(short * 576), 16 * round(long * 576))


@pytest.mark.parametrize("kind", KINDS)
def test_every_slice_row_and_column_is_hidden_as_often_within_5_percent(kind):
    grid = (6, 8, 8)
    masks = sampler(kind, grid)
    for i in range(masks.masks):
        times = np.zeros(grid)
        draws = 2500
        for draw in range(draws):
            times.ravel()[masks.sample(rng(1, "masks", draw))[f"target_{i}"]] += 1
        share = masks.hidden[i] / prod(grid)
        for axis in range(3):
            marginal = times.mean(axis=tuple(a for a in range(3) if a != axis)) / draws
            assert np.abs(marginal / share - 1).max() < 0.05, (kind, i, axis, marginal / share)


def test_equal_generators_draw_equal_masks_and_others_do_not():
    masks = sampler("block")
    one, same, other = (masks.sample(rng(0, "masks", p))["target_0"] for p in (3, 3, 4))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def test_blocks_are_connected_where_single_tokens_are_not():
    """Neighbours of a hidden token are hidden more often in blocks: counted pairs, along every axis."""

    def together(kind):
        found = np.zeros(3)
        for draw in range(20):
            hidden = np.zeros(9216, bool)
            hidden[sampler(kind).sample(rng(2, "masks", draw))["target_0"]] = True
            volume = hidden.reshape(16, 24, 24)
            for axis in range(3):
                pairs = np.moveaxis(volume, axis, 0)
                found[axis] += (pairs[1:] & pairs[:-1]).sum() / pairs[1:].sum() / 20
        return found

    assert np.allclose(together("random"), 0.6, atol=0.02)
    assert together("block").min() > 0.8


def test_vjepa_hides_the_same_place_in_all_slices_in_a_few_pieces():
    sample = sampler("vjepa").sample(rng(0, "masks", 0))
    for i in range(2):
        hidden = np.zeros(9216, bool)
        hidden[sample[f"target_{i}"]] = True
        slices = hidden.reshape(16, 24, 24)
        assert (slices == slices[0]).all()
        assert label(slices[0])[1] <= 12


def test_the_last_block_is_trimmed_to_the_number_that_is_missing():
    blocks = iter([np.array([4, 5, 6]), np.array([6, 7, 8, 9])])
    assert fill(np.random.default_rng(0), 5, lambda g: next(blocks)).tolist() == [4, 5, 6, 7, 8]


def test_masks_that_hide_all_or_nothing_are_refused():
    data, model = DataConfig(image_size=[4, 16, 64]), ModelConfig()
    with pytest.raises(UserError, match=r"mask\.ratio") as error:
        MaskSampler.of(RunConfig(data=data, model=model, mask=MaskConfig(kind="random", ratio=0.05)))
    assert "[0] of 4 tokens" in str(error.value)
