"""Loss scaling for fp16, wholly on the device. bf16 and fp32 need none and get a scale of 1.

The scale halves after a step whose scaled gradient overflowed and doubles after `GROWTH_STEPS` good ones
(Micikevicius et al. 2018, arXiv 1710.03740, section 3.2).

The first scale and the bounds below are those of a loss that is a mean. Recipes give sums, so both are smaller by the
global batch, rounded down to a power of two: exact in every precision, and the same with any number of ranks and
micro-batches. The price is a small first scale where a large batch is accumulated of small ones; it rises from there.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pathray.device import Device

FIRST, LEAST, MOST, GROWTH_STEPS = 65536.0, 1.0, 2.0**24, 2000


class LossScale:
    """`scale` multiplies the loss before backward; the gradient is divided by it afterwards."""

    def __init__(self, precision: str, device: Device, global_batch: int) -> None:
        self.active = precision == "fp16"
        batch = 2.0 ** (global_batch.bit_length() - 1)
        self.least, self.most = LEAST / batch, MOST / batch
        self.scale = device.scalar(FIRST / batch if self.active else 1.0)
        self.good = device.scalar(0.0)

    def apply(self, loss: Tensor) -> Tensor:
        return loss * self.scale.to(loss.dtype) if self.active else loss

    def update(self, finite: Tensor) -> None:
        """After a step; `finite` 1 or 0: whether its gradient was."""
        if not self.active:
            return
        finite = finite.to(torch.float32)
        good = (self.good + 1) * finite
        grown = (good >= GROWTH_STEPS).to(torch.float32)
        factor = (1 + grown) * (1 - 0.5 * (1 - finite))
        self.scale = (self.scale * factor).clamp(self.least, self.most)
        self.good = good * (1 - grown)

    def excuses(self) -> Tensor:
        """1 while an overflow may be the scale's fault and not the run's: it can still fall."""
        return (self.scale > self.least).to(torch.float32) if self.active else torch.zeros_like(self.scale)

    def tensors(self) -> dict[str, Tensor]:
        return {"scale": self.scale, "good": self.good} if self.active else {}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        if self.active:
            self.scale = tensors["scale"].to(self.scale.device, copy=True)
            self.good = tensors["good"].to(self.good.device, copy=True)
