"""The checks of masks, lines 8 and 12: exactly K hidden tokens in each, and every place hidden as often as any other.

Not here: how masks are drawn (oct.masks), pictures of them (oct.pictures.mask_slides).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from oct.checklist.lines import Check, Fault, Seen
from oct.masks import MaskSampler
from pathray.data.order import rng

MASKS, MANY_MASKS = 16, 300
FLAT = 0.05  # of the mean: how far a marginal may be from it
SIGMAS = 4.0  # … or what chance alone gives with this many masks


def look_at_masks(seen: Seen) -> str:
    """Line 8: every mask has exactly K hidden tokens, and hidden and visible ones are all tokens."""
    sampler = MaskSampler.of(seen.config)
    tokens = math.prod(sampler.grid)
    for i in range(MASKS):
        drawn = sampler.sample(rng(seen.config.data.seed, "masks", i))
        for k, count in enumerate(sampler.hidden):
            target, context = drawn[f"target_{k}"], drawn[f"context_{k}"]
            if len(target) != count or not np.array_equal(np.sort(np.r_[target, context]), np.arange(tokens)):
                raise Fault(
                    f"mask {k} of draw {i}: {len(target)} hidden of {tokens}, expected {count}, each token once"
                )
    told = ", ".join(f"{count:,} of {tokens:,} ({count / tokens:.1%})" for count in sampler.hidden)
    return f"{seen.config.mask.kind}: K = {told} hidden in each of {MASKS} draws"


def look_at_marginals(seen: Seen) -> str:
    """Line 12: every place along every axis is hidden as often as any other, within 5% or what chance gives."""
    sampler = MaskSampler.of(seen.config)
    told = []
    for k, count in enumerate(sampler.hidden):
        hidden = np.zeros((MANY_MASKS, math.prod(sampler.grid)), np.float32)
        for i in range(MANY_MASKS):
            hidden[i, sampler.sample(rng(seen.config.data.seed, "marginals", i))[f"target_{k}"]] = 1
        worst = [marginal_deviation(hidden.reshape(-1, *sampler.grid), axis) for axis in range(3)]
        share = count / math.prod(sampler.grid)
        for name, (deviation, allowed) in zip(("slow axis", "depth", "along the B-scan"), worst, strict=True):
            if deviation > allowed:
                found = f"{name}: a place is hidden {deviation:.1%} more or less often than the mean of {share:.1%}"
                raise Fault(f"{found}; at most {allowed:.1%} expected of {MANY_MASKS} masks")
        told.append(", ".join(f"{deviation:.1%}" for deviation, _ in worst))
    return f"{MANY_MASKS} masks: along slow axis, depth, B-scan flat within {'; '.join(told)}"


def marginal_deviation(hidden: npt.NDArray[np.float32], axis: int) -> tuple[float, float]:
    """How far the marginal along an axis is from its mean at most, and how far it may be; as parts of the mean. hidden
    `[masks, z, y, x]` of 0 and 1."""
    others = tuple(a + 1 for a in range(3) if a != axis)
    shares = hidden.mean(axis=others)
    mean = shares.mean()
    chance = SIGMAS * float(shares.std(axis=0).max()) / math.sqrt(len(shares))
    return float(np.abs(shares.mean(axis=0) - mean).max() / mean), max(FLAT, chance / float(mean))


EXACT = Check("masks", look_at_masks, "compare `mask` with the tokens: data.image_size / model.patch_size")
MARGINALS = Check("masks validated", look_at_marginals, "report it: a place that is hidden less is learned less")
