"""Decisions of the early stopper, worked out by hand."""

from __future__ import annotations

import itertools

import pytest

from pathray.errors import UserError
from pathray.evaluation.early_stopping import EarlyStopping, metric_key

NAN = float("nan")
APD = metric_key("pathorob", "camelyon", "apd")


def history(*values, key=APD):
    return [(100 * i, {} if v is None else {key: v}) for i, v in enumerate(values)]


def test_of_the_performance_drop_the_model_nearest_zero_is_kept():
    decision = EarlyStopping(APD, "max").decide(history(-0.30, -0.12, -0.02, -0.25))
    assert (decision.best, decision.best_images) == (-0.02, 200)


@pytest.mark.parametrize("metric", ["apd", "apd_ood", "ri", "clustering"])
def test_min_is_refused_where_it_would_pick_the_worst(metric):
    with pytest.raises(UserError, match="larger is better"):
        EarlyStopping(metric_key("pathorob", "camelyon", metric), "min")


def test_min_keeps_the_smallest_of_another_metric():
    decision = EarlyStopping("loss", "min").decide(history(3, 1, 2, key="loss"))
    assert (decision.best, decision.best_images, decision.since) == (1, 100, 1)


def test_a_first_nan_does_not_stick():
    stopper = EarlyStopping(APD, patience=2, min_evals=1)
    assert stopper.decide(history(NAN)).best is None
    decision = stopper.decide(history(NAN, -0.2))
    assert (decision.best, decision.improved, decision.stop) == (-0.2, True, False)
    assert stopper.decide(history(NAN, -0.2, -0.1)).best_images == 200
    assert not stopper.decide(history(NAN, NAN, NAN, NAN)).stop


def test_a_later_nan_is_an_evaluation_without_improvement():
    stopper = EarlyStopping(APD, patience=2, min_evals=2)
    assert not stopper.decide(history(-0.2, -0.1, NAN)).stop
    decision = stopper.decide(history(-0.2, -0.1, NAN, NAN))
    assert decision.stop and decision.best == -0.1 and decision.since == 2


def test_patience_counts_only_evaluations_that_have_the_metric():
    stopper = EarlyStopping(APD, patience=2, min_evals=1)
    assert not stopper.decide(history(-0.1, None, None, None, -0.2)).stop
    assert stopper.decide(history(-0.1, None, -0.2, None, -0.2)).stop


def test_nothing_stops_before_enough_numbers():
    falling = history(-0.1, -0.2, -0.3, -0.4)
    assert EarlyStopping(APD, patience=1, min_evals=4).decide(falling).stop
    assert not EarlyStopping(APD, patience=1, min_evals=5).decide(falling).stop


def test_results_out_of_order_give_the_same_decision():
    stopper = EarlyStopping(APD, patience=2, min_evals=2)
    entries = history(-0.3, -0.1, -0.2, NAN)
    decisions = {stopper.decide(order) for order in itertools.permutations(entries)}
    assert len(decisions) == 1 and decisions.pop().stop


def test_an_equal_value_is_no_improvement():
    assert EarlyStopping(APD, patience=2, min_evals=1).decide(history(-0.1, -0.1, -0.1)).stop


def test_settings_that_mean_nothing_are_refused():
    for bad in ({"mode": "most"}, {"patience": 0}, {"min_evals": 0}):
        with pytest.raises(UserError):
            EarlyStopping(APD, **bad)
