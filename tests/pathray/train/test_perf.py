"""The performance watch: figures on cadence, warnings for slow steps."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from pathray.device import Device
from pathray.train.loop import Tick
from pathray.train.perf import PerformanceWatch
from pathray.train.state import TrainState
from tests.builders.runs.recipes import Regression, settings


def tick(step: int, step_ms: float, wait_ms: float) -> Tick:
    state = TrainState(Regression(), settings(), Device.of("cpu"))
    return Tick(step, 6 * step, None, False, False, None, state, step_ms / 1e3, wait_ms / 1e3)


def test_rolling_figures_come_on_the_image_cadence() -> None:
    watch = PerformanceWatch(log_every_images=24, slow_step_ms=100, slow_data_wait_ms=50)
    times = [(999.0, 0.0), (10, 1), (20, 2), (30, 3), (40, 4), (200, 5), (10, 60), (10, 1)]
    rows = {s: row for s, (a, b) in enumerate(times, 1) if (row := watch.observe(tick(s, a, b)))}
    assert list(rows) == [4, 8]
    assert rows[4]["perf/step_ms_p50"] == pytest.approx(20) and rows[4]["perf/slow_steps"] == 0
    kept = np.array(times[1:])
    assert rows[8]["perf/step_ms_p95"] == pytest.approx(np.percentile(kept[:, 0], 95))
    assert rows[8]["perf/data_wait_share"] == pytest.approx(kept[:, 1].sum() / kept[:, 0].sum())
    assert rows[8]["perf/slow_steps"] == 1 and rows[8]["perf/slow_data_waits"] == 1


def test_slow_steps_and_waits_are_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    watch = PerformanceWatch(slow_step_ms=100, slow_data_wait_ms=50)
    with caplog.at_level(logging.WARNING):
        for t in (tick(1, 500, 400), tick(2, 150, 10), tick(3, 80, 70)):
            watch.observe(t)
    assert [r.getMessage() for r in caplog.records] == [
        "step 2 took 150 ms (limit 100)",
        "step 3 waited 70 ms for data (limit 50)",
    ]
