"""Schedules against their closed forms at both ends, in the middle and beyond."""

from __future__ import annotations

import math

import pytest

from pathray.errors import UserError
from pathray.optim.schedules import Schedule, constant, cosine, linear, warmup_cosine


def test_warmup_climbs_from_start_to_peak_and_the_cosine_falls_to_final():
    at = [warmup_cosine(s, 1001, 100, 2e-5, 2e-4, 1e-6) for s in range(1001)]
    assert at[0] == 2e-5
    assert at[50] == pytest.approx((2e-5 + 2e-4) / 2)
    assert at[100] == pytest.approx(2e-4) and max(at) == at[100]
    assert at[550] == pytest.approx((2e-4 + 1e-6) / 2)
    assert at[325] == pytest.approx(1e-6 + (2e-4 - 1e-6) * (1 + math.cos(math.pi / 4)) / 2)
    assert at[1000] == 1e-6
    assert at[:101] == sorted(at[:101]) and at[100:] == sorted(at[100:], reverse=True)
    assert warmup_cosine(5000, 1001, 100, 2e-5, 2e-4, 1e-6) == 1e-6


def test_cosine_rises_as_well_as_it_falls():
    weight_decay = Schedule("cosine", 0.04, 0.1)
    assert weight_decay(0, 201) == pytest.approx(0.04)
    assert weight_decay(50, 201) == pytest.approx(0.1 + (0.04 - 0.1) * (1 + math.cos(math.pi / 4)) / 2)
    assert weight_decay(100, 201) == pytest.approx(0.07)
    assert weight_decay(200, 201) == weight_decay(999, 201) == 0.1


def test_momentum_rises_linearly_over_the_run():
    momentum = Schedule("linear", 0.996, 1.0)
    assert momentum(0, 11) == 0.996
    assert momentum(5, 11) == pytest.approx(0.998)
    assert momentum(10, 11) == momentum(12, 11) == 1.0


def test_warmup_is_a_fraction_of_the_run_or_a_number_of_steps():
    by_fraction = Schedule("warmup_cosine", 0.0, 0.0, peak=1.0, warmup=0.1)
    by_steps = Schedule("warmup_cosine", 0.0, 0.0, peak=1.0, warmup=10)
    assert by_fraction.warmup_steps(100) == by_steps.warmup_steps(100) == 10
    assert [by_fraction(s, 100) for s in range(100)] == [by_steps(s, 100) for s in range(100)]
    assert by_steps(10, 100) == 1.0 and by_steps(5, 100) == 0.5
    none = Schedule("warmup_cosine", 0.0, 0.0, peak=1.0)
    assert none(0, 100) == 1.0


@pytest.mark.parametrize("total", [0, 1, 2])
def test_the_shortest_runs_have_finite_values(total):
    for schedule in (Schedule("cosine", 1.0, 0.0), Schedule("linear", 1.0, 0.0), constant(0.5)):
        assert all(0 <= schedule(s, total) <= 1 for s in range(3))
    warm = Schedule("warmup_cosine", 0.1, 0.0, peak=1.0, warmup=5)
    assert all(0 <= warm(s, total) <= 1 for s in range(8))
    assert linear(0, 1, 3.0, 7.0) == 3.0 and cosine(0, 1, 3.0, 7.0) == 3.0


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"kind": "cosin", "first": 1.0, "last": 0.0}, "kind"),
        ({"kind": "cosine", "first": 1.0}, "last"),
        ({"kind": "warmup_cosine", "first": 1.0, "last": 0.0}, "peak"),
        ({"kind": "warmup_cosine", "first": 1.0, "last": 0.0, "peak": 1.0, "warmup": -1.0}, "warmup"),
    ],
)
def test_a_senseless_schedule_is_refused_with_its_key(options, key):
    with pytest.raises(UserError, match=f"key: {key}"):
        Schedule(**options)


def test_a_step_schedule_falls_after_equal_parts_of_the_run():
    lr = Schedule("step", 1.0)
    assert [lr(step, 9) for step in range(9)] == pytest.approx([1] * 3 + [0.1] * 3 + [0.01] * 3)
    assert lr(50, 9) == pytest.approx(0.01) and Schedule("step", 2.0, drops=1, factor=0.5)(5, 10) == 1.0
