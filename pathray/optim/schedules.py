"""Schedules of learning rate, weight decay, momentum and temperature: pure functions of the step.

`step` counts from 0 to total − 1, where every schedule has its final value. Later steps keep that value, so extending a
run never divides by zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pathray.errors import UserError

KINDS = ("constant", "linear", "cosine", "warmup_cosine", "step")


def fraction(step: int, total: int) -> float:
    """Progress of the run: 0 at the first step, 1 at the last and after it."""
    return min(max(step, 0) / max(total - 1, 1), 1.0)


def linear(step: int, total: int, first: float, last: float) -> float:
    """A straight line from `first` at step 0 to `last` at step total − 1."""
    t = fraction(step, total)
    return (1 - t) * first + t * last


def cosine(step: int, total: int, first: float, last: float) -> float:
    """Half a cosine from `first` to `last`: last + (first − last)·(1 + cos πt)/2."""
    t = fraction(step, total)
    if t >= 1:
        return last
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * t))


def warmup_cosine(step: int, total: int, warmup: int, start: float, peak: float, final: float) -> float:
    """Linear from `start` at step 0 to `peak` at step `warmup`, then half a cosine to `final` at step total − 1."""
    if step < warmup:
        return start + (peak - start) * step / warmup
    return cosine(step - warmup, total - warmup, peak, final)


@dataclass(frozen=True)
class Schedule:
    """One schedule with its numbers: ``schedule(step, total)``.

    It goes from `first` to `last` (a constant has only `first`). A `warmup_cosine` rises to `peak` during `warmup`: a
    fraction of the run if below 1, else a number of steps. A `step` schedule is multiplied `drops` times by `factor`,
    after equal parts of the run.
    """

    kind: str
    first: float
    last: float | None = None
    peak: float | None = None
    warmup: float = 0.0
    drops: int = 2
    factor: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError("no such schedule", key="kind", found=self.kind, expected=KINDS)
        if self.kind not in ("constant", "step") and self.last is None:
            raise UserError(f"`last` is required for a {self.kind} schedule", key="last", expected="a number")
        if self.kind == "warmup_cosine" and self.peak is None:
            raise UserError("`peak` is required for a warmup_cosine schedule", key="peak", expected="a number")
        if not (math.isfinite(self.warmup) and self.warmup >= 0):
            expected = "a fraction below 1, or a number of steps"
            raise UserError("warmup must be >= 0", key="warmup", found=self.warmup, expected=expected)

    def warmup_steps(self, total: int) -> int:
        return round(self.warmup * total) if self.warmup < 1 else int(self.warmup)

    def __call__(self, step: int, total: int) -> float:
        if self.kind == "step":
            return self.first * self.factor ** min(step * (self.drops + 1) // max(total, 1), self.drops)
        if self.last is None:
            return self.first
        if self.kind == "linear":
            return linear(step, total, self.first, self.last)
        if self.kind == "cosine":
            return cosine(step, total, self.first, self.last)
        assert self.peak is not None
        return warmup_cosine(step, total, self.warmup_steps(total), self.first, self.peak, self.last)


def constant(value: float) -> Schedule:
    return Schedule("constant", value)
