"""Checks of config values shared by all sections. Each raises UserError naming the key.

`section` is "" for keys at the top of a config.
"""

from __future__ import annotations

import math

from pathray.errors import UserError

ACCELERATORS = ("auto", "cpu", "cuda", "xla")


def check_one_of(config: object, section: str, **choices: tuple[str, ...]) -> None:
    for key, names in choices.items():
        if getattr(config, key) not in names:
            _fail("unknown choice", section, key, getattr(config, key), " | ".join(names))


def check_positive(config: object, section: str, *keys: str) -> None:
    for key in keys:
        value = getattr(config, key)
        if value is not None and not (math.isfinite(value) and value > 0):
            _fail("the value must be > 0", section, key, value, "> 0")


def check_at_least(config: object, section: str, low: float, *keys: str) -> None:
    for key in keys:
        value = getattr(config, key)
        if not (math.isfinite(value) and value >= low):
            _fail(f"the value must be >= {low:g}", section, key, value, f">= {low}")


def check_between(config: object, section: str, low: float, high: float, *keys: str) -> None:
    for key in keys:
        if not low <= getattr(config, key) <= high:
            _fail("the value is out of range", section, key, getattr(config, key), f"between {low} and {high}")


def check_ordered(config: object, section: str, low: str, high: str) -> None:
    if getattr(config, low) > getattr(config, high):
        _fail(f"must not exceed {section}.{high}", section, low, getattr(config, low), f"<= {getattr(config, high)}")


def check_range(config: object, section: str, *keys: str) -> None:
    for key in keys:
        pair = getattr(config, key)
        if len(pair) != 2 or not 0 < pair[0] <= pair[1]:
            _fail("the value must be [low, high]", section, key, pair, "0 < low <= high")


def check_rgb(config: object, section: str) -> None:
    """UserError unless `mean` and `std` are None or have a value for each colour, and std > 0."""
    for key in ("mean", "std"):
        values = getattr(config, key)
        if values is not None and (len(values) != 3 or (key == "std" and min(values) <= 0)):
            _fail("one value per colour is required", section, key, values, "3 numbers, std > 0")


def check_accelerator(name: str, key: str) -> None:
    """UserError unless `name` is auto, cpu, cuda or xla. Apple's MPS is rejected: its processes cannot train
    together."""
    if name == "mps":
        message = "MPS cannot train data-parallel: torch.distributed has no backend for it"
        raise UserError(message, key=key, found=name, expected="cpu on this machine, or a machine with cuda or xla")
    if name not in ACCELERATORS:
        raise UserError("unknown accelerator", key=key, found=name, expected="auto, cpu, cuda or xla")


def _fail(message: str, section: str, key: str, found: object, expected: object) -> None:
    raise UserError(message, key=f"{section}.{key}" if section else key, found=found, expected=expected)
