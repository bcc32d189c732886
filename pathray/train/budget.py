"""Resolves budgets and cadences given in images, iterations or epochs into images. Pure functions.

Budgets and cadences are rounded up to whole steps, because a step consumes exactly `global_batch` units. Equal cadences
therefore stay aligned. Not here: what happens at a cadence (pathray.train.loop).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pathray.errors import UserError

LOGS_PER_RUN = 50  # at least, if the run does not set how often it logs
UNITS = ("images", "iterations", "epochs")
BUDGET_FORMS = "images (a whole number > 0), {epochs: n} or {iterations: n}"
MORE_PASSES = 1.1  # warn if rounding up to whole steps makes this many times more passes than requested
CADENCE_FORMS = "images, {epochs: n}, {iterations: n}, or 0 for never"
FRACTION_FORMS = "images, or a fraction of the budget such as 0.1, or 0 for never"


def resolve_budget(value: Any, *, global_batch: int, epoch_images: int | None = None, key: str = "budget") -> int:
    """A budget in images, rounded up to whole steps.

    `value` is an int (images) or maps one of `images`, `iterations`, `epochs` to a number. Epochs may be fractional and
    need `epoch_images`, the units of one pass. UserError for anything else ("10%", NaN, 0, negative).
    """
    images = _images(value, global_batch, epoch_images, key, BUDGET_FORMS)
    if images <= 0:
        raise UserError("the budget must be > 0", key=key, found=value, expected=BUDGET_FORMS)
    return whole_steps(images, global_batch)


def passes_note(value: Any, *, images: int, global_batch: int, epoch_images: int) -> str:
    """A warning if a budget `value` in epochs was rounded up to many more passes, since a step consumes `global_batch`
    units; "" otherwise. `images` is the resolved budget."""
    asked = value.get("epochs") if isinstance(value, Mapping) else None
    passes = images / epoch_images
    if asked is None or passes <= MORE_PASSES * asked:
        return ""
    return (
        f"{passes:.3g} passes over the {epoch_images:,} training units instead of {asked:g}: a step uses "
        f"{global_batch:,} units, so {math.ceil(asked * epoch_images):,} images are rounded up to {images:,}; use a "
        "smaller global batch to come closer"
    )


def resolve_cadence(
    value: Any,
    *,
    global_batch: int,
    total_images: int | None = None,
    epoch_images: int | None = None,
    fractions: bool = False,
    key: str = "cadence",
) -> int:
    """A cadence in images, rounded up to whole steps; 0 (or None) means never.

    With `fractions`, a float from 0 to 1 is a share of `total_images`. UserError for an invalid cadence ("10%").
    """
    if value is None or (_is_number(value) and value == 0):
        return 0
    expected = FRACTION_FORMS if fractions else CADENCE_FORMS
    if fractions and isinstance(value, float) and 0 < value <= 1:
        assert total_images is not None, "a fraction needs the budget"
        return whole_steps(math.ceil(value * total_images), global_batch)
    images = _images(value, global_batch, epoch_images, key, expected)
    if images < 0:
        raise UserError("the cadence must be >= 0", key=key, found=value, expected=expected)
    return whole_steps(images, global_batch)


def log_cadence(value: Any, *, most: Any, global_batch: int, total_images: int, key: str = "log_every") -> int:
    """The logging cadence in images. None: a fiftieth of the budget, but at least as often as `most`.

    So short runs also show their loss. `value` and `most` are cadences as in `resolve_cadence`.
    """
    if value is not None:
        return resolve_cadence(value, global_batch=global_batch, key=key)
    share = whole_steps(math.ceil(total_images / LOGS_PER_RUN), global_batch)
    return min(share, resolve_cadence(most, global_batch=global_batch, key=key))


def whole_steps(images: int, global_batch: int) -> int:
    """`images` rounded up to a multiple of `global_batch`."""
    return -(-images // global_batch) * global_batch


def due(before: int, after: int, every: int) -> bool:
    """Whether (before, after] contains a multiple of `every`; False if `every` is 0."""
    return every > 0 and after // every > before // every


def _images(value: Any, global_batch: int, epoch_images: int | None, key: str, expected: str) -> int:
    unit, number = "images", value
    if isinstance(value, Mapping):
        if len(value) != 1 or next(iter(value)) not in UNITS:
            raise UserError("specify exactly one unit", key=key, found=dict(value), expected=expected)
        unit, number = next(iter(value.items()))
    if not _is_number(number):
        raise UserError("not a number", key=key, found=value, expected=expected)
    if unit == "epochs":
        if epoch_images is None:
            message = "epochs cannot be used here: the length of an epoch is unknown"
            raise UserError(message, key=key, found=value, expected="images or iterations")
        return int(math.ceil(number * epoch_images))
    if number != int(number):
        raise UserError(f"{unit} must be a whole number", key=key, found=value, expected=expected)
    return int(number) * (global_batch if unit == "iterations" else 1)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
