"""Scores a segmentation against its truth, image by image; pure NumPy, no model. And Otsu's threshold, the floor.

    Dice = 2 |A ∩ B| / (|A| + |B|)          IoU = |A ∩ B| / |A ∪ B|
    DQ = TP / (TP + FP/2 + FN/2)   SQ = Σ IoU of matches / TP   PQ = DQ · SQ     (Kirillov et al., arXiv 1801.00868)

Objects match if their IoU exceeds ½, so each matches at most one. Not here: marked pixels (adios.nuclei.agreement).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pathray.stats.bootstrap import cluster_counts, percentile_interval

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.integer]
Floats = npt.NDArray[np.float64]
METRICS = ("dice", "iou", "dq", "sq", "pq")
LEAST_PX = 16  # smaller connected parts of the marked pixels are no objects


@dataclass(frozen=True)
class Score:
    """One image: its Dice and IoU, matched, false and missed objects, and the sum of the matches' IoU."""

    dice: float
    iou: float
    tp: int
    fp: int
    fn: int
    matched_iou: float


def score(marked: Bools, truth: Ints) -> Score:
    """The score of marked pixels `[H, W]` against instance labels `[H, W]` (0: background). Objects are connected parts
    of at least 16 marked pixels. If both are empty, Dice and IoU are 1."""
    nuclei = truth > 0
    both, one = int((marked & nuclei).sum()), int((marked | nuclei).sum())
    total = int(marked.sum()) + int(nuclei.sum())
    tp, fp, fn, matched = matches(objects(marked), truth)
    return Score(2 * both / total if total else 1.0, both / one if one else 1.0, tp, fp, fn, matched)


def objects(marked: Bools, least_px: int = LEAST_PX) -> npt.NDArray[np.int64]:
    """Labels 1…K `[H, W]` of the connected parts (4 neighbours) of at least `least_px` pixels."""
    from scipy import ndimage

    labels, _ = ndimage.label(marked)
    sizes = np.bincount(labels.ravel())
    kept = sizes >= least_px
    kept[0] = False
    names = np.cumsum(kept) * kept
    out: npt.NDArray[np.int64] = names[labels]
    return out


def matches(predicted: Ints, truth: Ints) -> tuple[int, int, int, float]:
    """TP, FP, FN and the sum of the matches' IoU of two labellings `[H, W]` (0: background)."""
    p, p_size = _renumber(predicted)
    t, t_size = _renumber(truth)
    shared = np.bincount(p * len(t_size) + t, minlength=len(p_size) * len(t_size)).reshape(len(p_size), len(t_size))
    iou = shared / np.maximum(p_size[:, None] + t_size[None] - shared, 1)
    found = iou[1:, 1:][iou[1:, 1:] > 0.5]
    tp = int(found.size)
    return tp, len(p_size) - 1 - tp, len(t_size) - 1 - tp, float(found.sum())


def summary(scores: Sequence[Score], *, resamples: int, seed: int) -> dict[str, float]:
    """Over images: mean Dice and IoU, and DQ, SQ and PQ of all objects together, each with ``_low`` and ``_high`` of a
    95% bootstrap interval over images. If nothing matches, SQ and PQ are 0."""
    table = np.array([[s.dice, s.iou, s.tp, s.fp, s.fn, s.matched_iou] for s in scores], np.float64)
    out = dict(zip(METRICS, _metrics(np.ones((1, len(scores))), table)[0].tolist(), strict=True))
    if len(scores) > 1:
        drawn = np.concatenate([_metrics(counts, table) for counts in cluster_counts(len(scores), resamples, seed)])
        for k, name in enumerate(METRICS):
            out[f"{name}_low"], out[f"{name}_high"] = percentile_interval(drawn[:, k])
    return out


def _metrics(counts: Floats, table: Floats) -> Floats:
    """The five metrics `[R, 5]`, with image i drawn counts[r, i] times."""
    dice, iou, tp, fp, fn, matched = (counts @ table).T
    drawn = counts.sum(axis=1)
    all_objects = tp + (fp + fn) / 2
    dq = np.divide(tp, all_objects, out=np.ones_like(tp), where=all_objects > 0)
    sq = np.divide(matched, tp, out=np.where(all_objects > 0, 0.0, 1.0), where=tp > 0)
    return np.column_stack([dice / drawn, iou / drawn, dq, sq, dq * sq])


def otsu(values: npt.NDArray[np.uint8]) -> int:
    """The threshold t with the largest variance between values ≤ t and values > t (Otsu 1979)."""
    counts = np.bincount(values.ravel(), minlength=256).astype(np.float64)
    below, total = np.cumsum(counts), counts.sum()
    mass = np.cumsum(counts * np.arange(256))
    above = total - below
    sound = (below > 0) & (above > 0)
    gap = np.divide(mass, below, out=np.zeros(256), where=sound) - np.divide(
        mass[-1] - mass, above, out=np.zeros(256), where=sound
    )
    return int(np.argmax(below * above * gap**2))


def threshold_red(image: npt.NDArray[np.uint8]) -> Bools:
    """Otsu on the red channel of H&E `[H, W, 3]`: haematoxylin absorbs red, eosin does not."""
    red = image[:, :, 0]
    marked: Bools = red <= otsu(red)
    return marked


def _renumber(labels: Ints) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Labels as 0…K without gaps, flat, and their sizes; 0 stays 0, even if no pixel has it."""
    names = np.union1d(labels, [0])
    assert names[0] == 0, "labels are 0 or more"
    flat = np.searchsorted(names, labels.ravel())
    return flat, np.bincount(flat, minlength=len(names))
