"""Sums a phase's gradient and a few scalars over all ranks, without a DDP wrapper.

`FlatSync` (default): one all-reduce of everything after accumulation, in fixed parameter order. With equal W, threads
and build, results are bit-equal however often a run is stopped and resumed. (DDP is not: it rebuilds its buckets after
the first step of every start.)

`OverlapSync`: buckets of a fixed layout are reduced during the last micro-batch's backward pass. It equals the
flat sum up to rounding, because the order of additions differs, and is itself bit-equal on resume.

Both work with any recipe, because they use parameters only and no forward hooks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pathray.device import Device

BUCKET_BYTES = 25 << 20


class FlatSync:
    """One flat all-reduce of gradient and scalars."""

    def __init__(self, params: Sequence[Tensor], device: Device) -> None:
        self.params, self.device = list(params), device

    def begin(self) -> None:
        """Called before the first micro-batch."""
        for p in self.params:
            p.grad = None

    def last_micro(self) -> None:
        """Called before the last micro-batch's backward pass."""

    def reduce(self, scalars: Tensor) -> tuple[Tensor, Tensor]:
        """(Σ over ranks of the accumulated gradient `[Σ sizes]`, Σ over ranks of `scalars` `[K]`).

        A missing gradient counts as zero. The parameters' own gradients are released.
        """
        parts = [torch.zeros_like(p).view(-1) if p.grad is None else p.grad.reshape(-1) for p in self.params]
        flat = torch.cat([*parts, scalars.to(parts[0].dtype)])
        for p in self.params:
            p.grad = None
        self.device.all_reduce_sum_(flat)
        return flat[: -scalars.numel()], flat[-scalars.numel() :]


class OverlapSync:
    """Bucketed all-reduce during the last backward pass, always from the last parameter to the first."""

    def __init__(self, params: Sequence[Tensor], device: Device, bucket_bytes: int = BUCKET_BYTES) -> None:
        self.params, self.device = list(params), device
        sizes = [p.numel() for p in self.params]
        self.buffer = torch.zeros(sum(sizes), dtype=self.params[0].dtype, device=self.params[0].device)
        self.views = [v.view_as(p) for v, p in zip(torch.split(self.buffer, sizes), self.params, strict=True)]
        self.buckets = _buckets(sizes, bucket_bytes // self.buffer.element_size())
        self.bucket_of = [b for b, (first, end, _) in enumerate(self.buckets) for _ in range(first, end)]
        self.bucket_of.reverse()  # buckets run from the last parameter to the first
        self.waiting: list[int] = []
        self.handles: list[Any] = []
        self.armed = False
        for i, p in enumerate(self.params):
            p.register_post_accumulate_grad_hook(lambda _, i=i: self._on_gradient_ready(i))  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        self.buffer.zero_()
        for p, view in zip(self.params, self.views, strict=True):
            p.grad = view
        self.armed, self.handles = False, []

    def last_micro(self) -> None:
        self.waiting = [end - first for first, end, _ in self.buckets]
        self.armed = True

    def reduce(self, scalars: Tensor) -> tuple[Tensor, Tensor]:
        self.waiting = [0] * len(self.buckets)  # parameters without a gradient will not arrive
        self._send()
        self.armed = False
        total = scalars.to(self.buffer.dtype).clone()
        self.device.all_reduce_sum_(total)
        for handle in self.handles:
            if handle is not None:
                handle.wait()
        for p in self.params:
            p.grad = None
        return self.buffer, total

    def _on_gradient_ready(self, i: int) -> None:
        if self.armed:
            self.waiting[self.bucket_of[i]] -= 1
            self._send()

    def _send(self) -> None:
        while len(self.handles) < len(self.buckets) and self.waiting[len(self.handles)] <= 0:
            part = self.buckets[len(self.handles)][2]
            self.handles.append(self.device.all_reduce_sum_(self.buffer[part], wait=False))


def gradient_sync(kind: str, params: Sequence[Tensor], device: Device) -> FlatSync | OverlapSync:
    """The sync of one phase: `flat`, or `overlap` if several ranks reduce."""
    if kind == "overlap" and device.reduces:
        return OverlapSync(params, device)
    return FlatSync(params, device)


def _buckets(sizes: Sequence[int], at_most: int) -> list[tuple[int, int, slice]]:
    """(first parameter, end, slice of the flat buffer), from the last parameter to the first."""
    ends = [0]
    for size in sizes:
        ends.append(ends[-1] + size)
    buckets, end = [], len(sizes)
    while end:
        first = end - 1
        while first and ends[end] - ends[first - 1] <= at_most:
            first -= 1
        buckets.append((first, end, slice(ends[first], ends[end])))
        end = first
    return buckets
