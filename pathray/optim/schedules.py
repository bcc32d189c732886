"""Learning rate, weight decay, momentum and temperature as pure functions of the step. No state, no optimizer.

`step` counts from 0, the first update of a run of `total`; the last is step total − 1, where every schedule stands at
its end. Steps beyond keep the end, so a run that is prolonged by a placement change never divides by zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pathray.errors import UserError

KINDS = ("constant", "linear", "cosine", "warmup_cosine", "step")


def fraction(step: int, total: int) -> float:
    """How far the run is: 0 at the first step, 1 at the last and beyond."""
    return min(max(step, 0) / max(total - 1, 1), 1.0)


def linear(step: int, total: int, first: float, last: float) -> float:
    """A straight line from `first` at step 0 to `last` at step total − 1."""
    t = fraction(step, total)
    return (1 - t) * first + t * last


def cosine(step: int, total: int, first: float, last: float) -> float:
    """Half a cosine: last + (first − last)·(1 + cos πt)/2. Falls or rises."""
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

    `first` is where it starts, `last` where it ends (a constant has only `first`); a `warmup_cosine` climbs to `peak`
    during `warmup`: a fraction of the run if below 1, else a number of steps. A `step` schedule falls `drops` times by
    `factor`, after equal parts of the run.
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
            raise UserError("a schedule needs its end", key="last", found=None, expected="a number")
        if self.kind == "warmup_cosine" and self.peak is None:
            raise UserError("a warm-up needs its peak", key="peak", found=None, expected="a number")
        if not (math.isfinite(self.warmup) and self.warmup >= 0):
            raise UserError("a warm-up is a fraction or a number of steps", key="warmup", found=self.warmup)

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
