"""Loss scaling for fp16, entirely on the device. bf16 and fp32 do not need it and use a scale of 1.

The scale halves after a step whose scaled gradient overflowed and doubles after `GROWTH_STEPS` good ones
(Micikevicius et al. 2018, arXiv 1710.03740, section 3.2).

The initial scale and its bounds below apply to a mean loss. Recipes return sums, so all are divided by the global
batch, rounded down to a power of two. This is exact in every precision and independent of ranks and micro-batches. If
a large batch is accumulated from small ones, the initial scale is smaller than necessary and grows later.
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
        """Update the scale after a step; `finite` is 1 if its gradient was finite, else 0."""
        if not self.active:
            return
        finite = finite.to(torch.float32)
        good = (self.good + 1) * finite
        grown = (good >= GROWTH_STEPS).to(torch.float32)
        factor = (1 + grown) * (1 - 0.5 * (1 - finite))
        self.scale = (self.scale * factor).clamp(self.least, self.most)
        self.good = good * (1 - grown)

    def can_shrink(self) -> Tensor:
        """1 while the scale can still shrink, so that an overflow may be due to the scale and not to the run."""
        return (self.scale > self.least).to(torch.float32) if self.active else torch.zeros_like(self.scale)

    def tensors(self) -> dict[str, Tensor]:
        return {"scale": self.scale, "good": self.good} if self.active else {}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        if self.active:
            self.scale = tensors["scale"].to(self.scale.device, copy=True)
            self.good = tensors["good"].to(self.good.device, copy=True)
