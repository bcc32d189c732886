import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pathray.data.order import MAX_CYCLE, Stratum, permute, rng, stratified_order, uniform_order, unit_seeds
from pathray.errors import UserError


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_permute_is_a_bijection(n, key):
    assert np.array_equal(np.sort(permute(np.arange(n), n, np.uint64(key))), np.arange(n))


def test_permute_reaches_a_hundred_million_without_a_table():
    n = 10**8
    rows = permute(np.arange(n - 200_000, n), n, np.uint64(7))
    assert np.unique(rows).size == 200_000
    assert rows.min() >= 0 and rows.max() < n


@pytest.mark.parametrize("n", [2, 3, 5, 8, 17])
def test_small_permutations_are_uniform_over_keys(n):
    keys = unit_seeds(0, "keys", np.arange(20_000)).astype(np.uint64)
    for index in (0, n - 1):
        counts = np.bincount(permute(np.full(keys.size, index), n, keys), minlength=n)
        chi2 = float(((counts - keys.size / n) ** 2 / (keys.size / n)).sum())
        assert chi2 < 45, (n, index, counts)  # 1e-4 tail of 16 degrees of freedom
    first, second = permute(np.zeros(keys.size, np.int64), n, keys), permute(np.ones(keys.size, np.int64), n, keys)
    pairs = np.bincount(first * n + second, minlength=n * n)[~np.eye(n, dtype=bool).ravel()]
    expected = keys.size / pairs.size
    assert ((pairs - expected) ** 2 / expected).sum() / max(pairs.size - 1, 1) < 2.5, (n, pairs)


def test_neighbouring_positions_do_not_get_neighbouring_rows():
    rows = uniform_order(10_000, seed=3).rows(np.arange(10_000))
    assert abs(np.corrcoef(rows, np.arange(10_000))[0, 1]) < 0.05
    assert np.mean(np.abs(np.diff(rows)) < 10) < 0.01


def test_every_row_once_per_pass_and_the_second_pass_differs_from_the_first():
    order = uniform_order(997, seed=5)
    first, second = order.rows(np.arange(997)), order.rows(np.arange(997, 2 * 997))
    assert np.array_equal(np.sort(first), np.arange(997))
    assert np.array_equal(np.sort(second), np.arange(997))
    assert np.mean(first == second) < 0.02


def test_rows_do_not_depend_on_how_positions_are_grouped():
    order = stratified_order(
        [Stratum("a", 0, 13), Stratum("b", 13, 50), Stratum("c", 63, 7)], 1, {"a": 1, "b": 5, "c": 0.5}
    )
    whole = order.rows(np.arange(4000))
    parts = np.concatenate([order.rows(np.arange(i, min(i + 37, 4000))) for i in range(0, 4000, 37)])
    assert np.array_equal(whole, parts)
    assert order.rows([1234])[0] == whole[1234]


def test_strata_are_drawn_by_their_weights_and_not_corrected_again_by_their_size():
    strata = [Stratum("rare", 0, 10), Stratum("common", 10, 990)]
    order = stratified_order(strata, seed=0, weights="uniform")
    share = np.mean(order.rows(np.arange(10_000)) < 10)
    assert share == pytest.approx(0.5, abs=1e-3)
    proportional = stratified_order(strata, seed=0, weights="proportional")
    assert np.mean(proportional.rows(np.arange(16_000)) < 10) == pytest.approx(0.01, abs=1e-3)


def test_each_stratum_is_passed_through_whole_before_a_row_repeats():
    order = stratified_order([Stratum("a", 0, 40), Stratum("b", 40, 60)], 2, {"a": 0.3, "b": 0.7})
    rows = order.rows(np.arange(order.slots.size * 40))
    for start, n in ((0, 40), (40, 60)):
        counts = np.bincount(rows[(rows >= start) & (rows < start + n)] - start, minlength=n)
        assert counts.max() - counts.min() <= 1 + order.slots.size // n


def test_empty_strata_take_no_part_and_do_not_loop():
    order = stratified_order([Stratum("none", 0, 0), Stratum("some", 0, 5)], 0, "uniform")
    assert set(order.rows(np.arange(50)).tolist()) == set(range(5))
    with pytest.raises(UserError, match="no stratum"):
        stratified_order([Stratum("none", 0, 0)], 0, "uniform")
    with pytest.raises(UserError, match="no rows"):
        uniform_order(0, 0)


def test_a_very_rare_stratum_keeps_the_cycle_bounded():
    order = stratified_order([Stratum("rare", 0, 1), Stratum("big", 1, 10**8)], 0, "proportional")
    assert order.slots.size <= MAX_CYCLE + 1
    assert order.shares["rare"] == pytest.approx(1 / MAX_CYCLE, rel=0.1)


@pytest.mark.parametrize(
    ("weights", "word"),
    [("unifrom", "uniform, proportional"), ({"a": 1}, "without a weight"), ({"a": 1, "b": 1, "x": 1}, "not there"),
     ({"a": -1, "b": 1}, ">= 0"), ({"a": 0, "b": 0}, "positive weight")],
)  # fmt: skip
def test_bad_stratum_weights_are_refused_by_name(weights, word):
    with pytest.raises(UserError, match=word):
        stratified_order([Stratum("a", 0, 3), Stratum("b", 3, 3)], 0, weights)


def test_windows_keep_few_slides_open_and_still_visit_every_row_once():
    sizes = np.array([100, 1, 57, 300, 42, 200, 150, 80])
    segments = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    order = uniform_order(int(sizes.sum()), 4, window=128, segments=segments)
    rows = order.rows(np.arange(2 * sizes.sum()))
    half = sizes.sum()
    assert np.array_equal(np.sort(rows[:half]), np.arange(half))
    assert np.array_equal(np.sort(rows[half:]), np.arange(half))
    slide = np.searchsorted(segments, rows, side="right") - 1
    open_at_once = [np.unique(slide[i : i + 128]).size for i in range(0, half - 128, 128)]
    assert max(open_at_once) <= 4
    assert not np.array_equal(slide[:half], slide[half:])


def test_a_replacement_comes_from_the_same_stratum_and_differs_per_attempt():
    order = stratified_order([Stratum("a", 0, 100), Stratum("b", 100, 100)], 0, "uniform")
    for position in range(20):
        low = order.rows([position])[0] < 100
        rows = [order.replacement(position, attempt) for attempt in range(1, 9)]
        assert all((row < 100) == low for row in rows)
        assert len(set(rows)) > 4
        assert rows == [order.replacement(position, attempt) for attempt in range(1, 9)]


def test_draws_depend_on_seed_purpose_position_and_attempt():
    base = rng(1, "boxes", 10).random(4)
    assert np.array_equal(base, rng(1, "boxes", 10, 0).random(4))
    for other in (rng(2, "boxes", 10), rng(1, "stain", 10), rng(1, "boxes", 11), rng(1, "boxes", 10, 1)):
        assert not np.array_equal(base, other.random(4))
    seeds = unit_seeds(1, "augment", np.arange(10_000))
    assert np.unique(seeds).size == 10_000 and seeds.min() >= 0
    assert unit_seeds(1, "augment", [77])[0] == seeds[77]


def test_order_is_the_same_in_another_process():
    code = (
        "import numpy as np; from pathray.data.order import *; "
        "o = stratified_order([Stratum('a', 0, 13), Stratum('b', 13, 50)], 9); "
        "print(o.rows(np.arange(20)).tolist(), rng(1, 'boxes', 3).integers(0, 1000, 3).tolist())"
    )
    seen = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    order = stratified_order([Stratum("a", 0, 13), Stratum("b", 13, 50)], 9)
    seen.add(f"{order.rows(np.arange(20)).tolist()} {rng(1, 'boxes', 3).integers(0, 1000, 3).tolist()}\n")
    assert len(seen) == 1
