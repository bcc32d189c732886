"""Budgets and cadences become images, in whole steps, or are refused."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathray.errors import UserError
from pathray.train.budget import due, log_cadence, passes_note, resolve_budget, resolve_cadence


@pytest.mark.parametrize(
    ("value", "images"),
    [(100, 128), (128, 128), (1e6, 1_000_000), ({"images": 33}, 64), ({"iterations": 5}, 160), ({"epochs": 2}, 2016),
     ({"epochs": 0.5}, 512)],
)  # fmt: skip
def test_budgets_are_rounded_up_to_whole_steps(value: Any, images: int) -> None:
    assert resolve_budget(value, global_batch=32, epoch_images=1000) == images


@pytest.mark.parametrize(
    ("value", "rows", "said"),
    [
        (
            {"epochs": 5},
            4,
            "16 passes over the 4 training units instead of 5: a step uses 64 .*20 images are rounded up to 64",
        ),
        ({"epochs": 1}, 50, "1.28 passes over the 50 training units instead of 1"),
        ({"epochs": 1}, 60, ""),
        ({"epochs": 3}, 1000, ""),
        (20, 4, ""),
        ({"iterations": 1}, 4, ""),
        (None, 4, ""),
    ],
)
def test_a_budget_in_passes_that_whole_steps_make_far_longer_is_told(value: Any, rows: int, said: str) -> None:
    images = resolve_budget(value or 64, global_batch=64, epoch_images=rows)
    note = passes_note(value, images=images, global_batch=64, epoch_images=rows)
    assert (re.search(said, note) is not None) if said else note == ""


@pytest.mark.parametrize(
    "value",
    ["10%", "100", None, True, 0, -5, 1.5, math.nan, math.inf, {"epochs": 1, "images": 2}, {"steps": 3}, {}, [100],
     {"epochs": "two"}, {"iterations": 2.5}],
)  # fmt: skip
def test_what_is_no_budget_is_refused_with_its_key(value: Any) -> None:
    with pytest.raises(UserError) as e:
        resolve_budget(value, global_batch=32, epoch_images=1000, key="optimization.total_images_budget")
    assert e.value.where["key"] == "optimization.total_images_budget"
    assert "iterations" in str(e.value.where["expected"]) or "positive" in e.value.message


def test_epochs_without_a_length_are_refused() -> None:
    with pytest.raises(UserError, match="length of an epoch is unknown"):
        resolve_budget({"epochs": 3}, global_batch=8)


@pytest.mark.parametrize(
    ("value", "images"),
    [(0, 0), (None, 0), (0.0, 0), (1, 32), (0.1, 320), (1.0, 3200), (500, 512), ({"epochs": 1}, 1024)],
)
def test_cadences_accept_images_and_fractions(value: Any, images: int) -> None:
    found = resolve_cadence(value, global_batch=32, total_images=3200, epoch_images=1000, fractions=True)
    assert found == images


@pytest.mark.parametrize("value", ["10%", -1, 1.5, math.nan, True, "often"])
def test_what_is_no_cadence_is_refused(value: Any) -> None:
    with pytest.raises(UserError):
        resolve_cadence(value, global_batch=32, total_images=3200, fractions=True)


def test_a_fraction_is_refused_where_none_is_meant() -> None:
    with pytest.raises(UserError):
        resolve_cadence(0.5, global_batch=32, total_images=3200)


@given(st.integers(1, 10**9), st.integers(1, 4096))
def test_a_budget_is_the_least_whole_number_of_steps(images: int, batch: int) -> None:
    found = resolve_budget(images, global_batch=batch)
    assert found % batch == 0 and 0 <= found - images < batch


@given(st.integers(1, 50), st.integers(1, 500), st.integers(1, 40))
def test_a_cadence_is_due_once_per_multiple_however_steps_fall(batch: int, every: int, steps: int) -> None:
    hits = sum(due(s * batch, (s + 1) * batch, every) for s in range(steps))
    crossed = {s for s in range(steps) if any(m % every == 0 for m in range(s * batch + 1, (s + 1) * batch + 1))}
    assert hits == len(crossed)
    assert not any(due(s * batch, (s + 1) * batch, 0) for s in range(steps))


@pytest.mark.parametrize(
    ("value", "total", "every"),
    [
        (None, 3200, 64),  # 3200 / 50
        (None, 512, 32),  # a fiftieth is less than a step
        (None, 10_000_000, 100_000),  # `most`
        (640, 3200, 640),  # what a run says is kept
        (640, 320, 640),
        (0, 3200, 0),
    ],
)
def test_a_run_that_does_not_say_how_often_it_logs_logs_fifty_times_or_every_step(
    value: int | None, total: int, every: int
) -> None:
    assert log_cadence(value, most=100_000, global_batch=32, total_images=total) == every
