"""Overlaps and matched objects against brute force over sets of pixels."""

from __future__ import annotations

import numpy as np
import pytest

from adios.nuclei.segmentation import METRICS, Score, matches, objects, otsu, score, summary, threshold_red


def blobs(seed: int, side: int = 40, count: int = 7) -> np.ndarray:
    """Instance labels of discs that may touch."""
    g = np.random.default_rng(seed)
    labels = np.zeros((side, side), np.int64)
    y, x = np.mgrid[:side, :side]
    for name in g.choice(np.arange(3, 90), count, replace=False):
        cy, cx, r = *g.uniform(4, side - 4, 2), g.uniform(3, 6)
        labels[((y - cy) ** 2 + (x - cx) ** 2 < r * r) & (labels == 0)] = name
    return labels


def pixels(labels: np.ndarray) -> list[set]:
    return [set(map(tuple, np.argwhere(labels == name))) for name in np.unique(labels) if name]


@pytest.mark.parametrize("seed", range(8))
def test_matched_objects_are_those_of_brute_force(seed):
    truth, moved = blobs(seed), np.roll(blobs(seed), (seed % 3, -(seed % 2)), (0, 1))
    moved[moved == np.unique(moved)[-1]] = 0
    sets_p, sets_t = pixels(moved), pixels(truth)
    ious = [len(p & t) / len(p | t) for p in sets_p for t in sets_t]
    found = [v for v in ious if v > 0.5]
    expected = (len(found), len(sets_p) - len(found), len(sets_t) - len(found), sum(found))
    assert matches(moved, truth) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(4))
def test_pixel_overlaps_are_those_of_sets(seed):
    truth, marked = blobs(seed), blobs(seed + 100) > 0
    a, b = set(map(tuple, np.argwhere(marked))), set(map(tuple, np.argwhere(truth)))
    got = score(marked, truth)
    assert got.dice == pytest.approx(2 * len(a & b) / (len(a) + len(b)))
    assert got.iou == pytest.approx(len(a & b) / len(a | b))


def test_perfect_empty_and_missing_segmentations_have_their_ends():
    truth = np.zeros((30, 30), int)
    truth[2:8, 2:8], truth[15:25, 15:25] = 4, 9
    perfect = score(truth > 0, truth)
    assert (perfect.dice, perfect.iou, perfect.tp, perfect.fp, perfect.fn) == (1, 1, 2, 0, 0)
    assert perfect.matched_iou == 2
    none = np.zeros((30, 30), bool)
    assert score(none, truth) == Score(0, 0, 0, 0, 2, 0)
    assert score(none, np.zeros((30, 30), int)) == Score(1, 1, 0, 0, 0, 0)


def test_objects_are_connected_parts_that_are_large_enough():
    marked = np.zeros((20, 20), bool)
    marked[0:4, 0:4], marked[10:13, 10:15], marked[4, 4] = True, True, True  # 16 px, 15 px, one across a corner
    labels = objects(marked)
    assert labels.max() == 1 and (labels > 0).sum() == 16 and labels[0, 0] == 1
    every = objects(marked, least_px=1)
    assert np.array_equal(every > 0, marked) and np.bincount(every.ravel()).tolist()[1:] == [16, 1, 15]


def test_a_summary_pools_objects_and_averages_overlaps():
    scores = [Score(0.5, 0.4, 3, 1, 0, 2.4), Score(0.9, 0.8, 1, 0, 2, 0.9), Score(0.1, 0.05, 0, 5, 4, 0.0)]
    got = summary(scores, resamples=400, seed=0)
    assert got["dice"] == pytest.approx(0.5) and got["iou"] == pytest.approx(1.25 / 3)
    dq, sq = 4 / (4 + 6 / 2 + 6 / 2), 3.3 / 4
    assert (got["dq"], got["sq"], got["pq"]) == pytest.approx((dq, sq, dq * sq))
    assert all(got[f"{name}_low"] <= got[name] <= got[f"{name}_high"] for name in METRICS)
    assert summary(scores[2:], resamples=10, seed=0)["pq"] == 0.0
    assert summary(scores, resamples=400, seed=0) == got


def test_otsu_is_the_threshold_of_largest_variance_between():
    for seed in range(6):
        g = np.random.default_rng(seed)
        values = np.concatenate([g.normal(80, 15, 300), g.normal(180, 20, 500)]).clip(0, 255).astype(np.uint8)
        best = []
        for t in range(255):
            low, high = values[values <= t].astype(float), values[values > t].astype(float)
            best.append(low.size * high.size * (low.mean() - high.mean()) ** 2 if low.size and high.size else 0.0)
        assert best[otsu(values)] == pytest.approx(max(best))
    assert otsu(np.full(9, 7, np.uint8)) == 0, "nothing to part"


def test_otsu_in_red_marks_nuclei_as_published(shared_data):
    from adios.nuclei.agreement import read_pairs

    folder = shared_data / "nuclei" / "dsb2018_brightfield"
    if not folder.is_dir():
        pytest.skip(f"no nuclei at {folder}")
    pairs = read_pairs(str(folder))
    dice = np.mean([score(threshold_red(p.image), p.labels).dice for p in pairs])
    assert len(pairs) == 107 and dice == pytest.approx(0.831, abs=0.002)
