import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mil.store.cap import RANDOM, STRATIFIED, allocate, cells_of, kept_rows


def ideal_of(counts, total):
    """The water level by bisection, in float64: min(n, max(floor, λ√n))."""
    floor = 1.0 if total >= len(counts) else 0.0
    low, high = 0.0, float(np.sqrt(counts).max()) + 1
    for _ in range(200):
        level = (low + high) / 2
        filled = np.minimum(counts, np.maximum(floor, level * np.sqrt(counts)))
        low, high = (level, high) if filled.sum() < total else (low, level)
    return np.minimum(counts, np.maximum(floor, low * np.sqrt(counts)))


@given(st.lists(st.integers(1, 900), min_size=1, max_size=60), st.floats(0.01, 1))
@settings(max_examples=200, deadline=None)
def test_cells_get_shares_of_the_square_root_of_their_tiles_within_one(counts, share):
    counts = np.array(counts)
    total = max(1, int(share * counts.sum()))
    given_ = allocate(counts, total)
    assert given_.sum() == total and (given_ <= counts).all() and (given_ >= 0).all()
    assert np.abs(given_ - ideal_of(counts, total)).max() < 1 + 1e-6
    assert total < len(counts) or (given_ >= 1).all()


def test_a_sparse_region_keeps_tiles_that_a_random_choice_would_lose():
    dense = np.stack(np.meshgrid(np.arange(100), np.arange(100)), -1).reshape(-1, 2)
    sparse = np.array([[400, 400], [401, 400], [402, 401]])
    coords = np.concatenate([dense, sparse])
    how = {"coords": coords, "grid": 32, "seed": 0, "name": "s"}
    assert (kept_rows(len(coords), 100, strategy=STRATIFIED, **how) >= 10_000).any()
    assert not (kept_rows(len(coords), 100, strategy=RANDOM, **how) >= 10_000).any()


@pytest.mark.parametrize("strategy", [RANDOM, STRATIFIED])
def test_what_is_kept_follows_from_seed_and_name(strategy):
    coords = np.random.default_rng(0).integers(0, 10**5, (5000, 2))

    def kept(seed=1, name="a", order=slice(None)):
        return kept_rows(5000, 700, strategy=strategy, coords=coords[order], grid=16, seed=seed, name=name)

    rows = kept()
    assert len(rows) == 700 and (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, kept())
    assert not np.array_equal(rows, kept(seed=2)) and not np.array_equal(rows, kept(name="b"))


def test_small_bags_are_kept_whole_and_bags_without_coords_are_sampled():
    np.testing.assert_array_equal(
        kept_rows(5, 5, strategy=STRATIFIED, coords=None, grid=4, seed=0, name="a"), np.arange(5)
    )
    assert len(kept_rows(50, 5, strategy=STRATIFIED, coords=None, grid=4, seed=0, name="a")) == 5
    assert kept_rows(50, None, strategy=RANDOM, coords=None, grid=4, seed=0, name="a").size == 50


def test_tiles_in_one_column_have_cells_along_it():
    coords = np.stack([np.full(8, 7), np.arange(8)], axis=1)
    assert cells_of(coords, 4).tolist() == [0, 0, 4, 4, 8, 8, 12, 12]
