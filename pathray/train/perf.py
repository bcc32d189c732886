"""Reports slow steps and slow data (`logging.performance_debug`) from the ticks, without slowing them down.

Times are measured on the host. On CUDA and XLA the host runs ahead of the device, so a single step's time says little;
use the rolling figures and the data wait.
"""

from __future__ import annotations

import logging
from collections import deque

import numpy as np

from pathray.train.budget import due
from pathray.train.loop import Tick

log = logging.getLogger(__name__)

KEPT, WARNINGS = 512, 20


class PerformanceWatch:
    """Observes every tick, warns of slow ones, and summarises the last `KEPT` steps every `log_every_images`."""

    def __init__(
        self, *, log_every_images: int = 2048, slow_step_ms: float = 250.0, slow_data_wait_ms: float = 50.0
    ) -> None:
        self.log_every_images = log_every_images
        self.slow_step_ms, self.slow_data_wait_ms = slow_step_ms, slow_data_wait_ms
        self.steps: deque[tuple[float, float]] = deque(maxlen=KEPT)
        self.slow_steps = self.slow_waits = 0
        self._before: int | None = None

    def observe(self, tick: Tick) -> dict[str, float]:
        """Figures when the cadence is due, else empty: rolling median and 95th percentile of step time and data wait,
        the share of time spent waiting for data, and the number of slow steps and waits so far."""
        before = self._before
        self._before = tick.images_seen
        if before is None:
            return {}  # the first step compiles, warms up and opens files
        step_ms, wait_ms = 1e3 * tick.step_s, 1e3 * tick.wait_s
        self.steps.append((step_ms, wait_ms))
        self._warn(tick.step, step_ms, wait_ms)
        if not due(before, tick.images_seen, self.log_every_images):
            return {}
        figures = self._figures()
        log.info("performance: %s", ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
        return figures

    def _warn(self, step: int, step_ms: float, wait_ms: float) -> None:
        slow_wait, slow_step = wait_ms > self.slow_data_wait_ms, step_ms > self.slow_step_ms
        self.slow_waits += slow_wait
        self.slow_steps += slow_step
        if slow_wait and self.slow_waits <= WARNINGS:
            log.warning("step %d waited %.0f ms for data (limit %.0f)", step, wait_ms, self.slow_data_wait_ms)
        if slow_step and self.slow_steps <= WARNINGS:
            log.warning("step %d took %.0f ms (limit %.0f)", step, step_ms, self.slow_step_ms)
        if (slow_wait and self.slow_waits == WARNINGS) or (slow_step and self.slow_steps == WARNINGS):
            log.warning("further warnings about slow steps are suppressed")

    def _figures(self) -> dict[str, float]:
        steps = np.array(self.steps, np.float64)
        return {
            "perf/step_ms_p50": float(np.median(steps[:, 0])),
            "perf/step_ms_p95": float(np.percentile(steps[:, 0], 95)),
            "perf/data_wait_ms_p50": float(np.median(steps[:, 1])),
            "perf/data_wait_ms_p95": float(np.percentile(steps[:, 1], 95)),
            "perf/data_wait_share": float(steps[:, 1].sum() / max(steps[:, 0].sum(), 1e-9)),
            "perf/slow_steps": float(self.slow_steps),
            "perf/slow_data_waits": float(self.slow_waits),
        }
