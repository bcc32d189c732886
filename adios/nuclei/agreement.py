"""Benchmarks checkpoints on nuclei: the channels of a mask model against nuclei annotated by hand.

The channel for nuclei and its threshold rule are chosen on training images; all reported figures come from the others.
The `oracle` chooses for each test image by its truth: an optimistic bound, not a method. Floors: Otsu's threshold in
red, and everything marked. Not here: metrics (adios.nuclei.segmentation), pictures (adios.nuclei.figures).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adios.nuclei.segmentation import Bools, Score, objects, score, summary, threshold_red
from pathray.data.order import rng
from pathray.errors import MissingFile, UnreadableUnit, UserError
from pathray.features.images import read_image
from pathray.files.images import open_image
from pathray.stats.bootstrap import paired_difference
from pathray.store.storage import Storage
from pathray.wsi.resize import resize

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Masks = Callable[[Tensor], Tensor]  # uint8 [B, S, S, 3] -> a softmax [B, N, S, S]
RULES = ("argmax", "half")  # a pixel is marked if the channel is the largest, or above one half
IMAGES, TRUTH = "images", "masks"
MASK_ENDINGS = (".png", ".tif", ".tiff", ".bmp")
ENDINGS = (*MASK_ENDINGS, ".jpg", ".jpeg")  # of images
PLAIN_PARTS = 3  # a neighbour may cut a nucleus into two parts; three parts are nuclei without numbers


@dataclass(frozen=True)
class Pair:
    """An image `[H, W, 3]` and its nuclei `[H, W]`, numbered from 1."""

    name: str
    image: Pixels
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Choice:
    """The channel for nuclei, and the rule that thresholds it."""

    channel: int
    rule: str

    def mark(self, masks: Floats) -> Bools:
        """The marked pixels `[H, W]` of masks `[N, H, W]`."""
        if self.rule == "argmax":
            marked: Bools = masks.argmax(axis=0) == self.channel
        else:
            marked = masks[self.channel] > 0.5
        return marked


@dataclass(frozen=True)
class Found:
    """A model's result on one test image: with the choice made on the training images, and with the oracle."""

    honest: Score
    oracle: Score


def read_pairs(folder: str) -> list[Pair]:
    """`images/NAME` (PNG, JPEG, TIFF or BMP) with the mask of its name in `masks/` (PNG, TIFF or BMP), by name. Masks
    are instance labels, or plain: 0 and 255, or 0 and 1 if no mask of the folder has two labels. In a plain mask each
    connected part, however small, is a nucleus.

    So one nucleus in two parts stays one if it has a number: any but 1 and 255, or 1 next to numbered masks.
    MissingFile and UserError name an image without a mask, a mask of another size or with labels below 0, a plain mask
    among numbered ones, and unreadable files.
    """
    store = Storage.of(folder)
    pairs = []
    for name, mask in _names(store):
        try:
            image = read_image(store.join(IMAGES, name))
        except UnreadableUnit as e:
            raise UserError("an image cannot be read", file=store.join(IMAGES, name), found=e.detail) from e
        pairs.append((mask, Pair(name, image, _labels(store, mask, image.shape[:2]))))
    numbered = next((mask for mask, pair in pairs if len(_values(pair.labels)) > 1), None)
    if numbered is not None:
        _check_numbered(store, numbered, pairs)
    return [replace(pair, labels=_instances(pair.labels, numbered is not None)) for _, pair in pairs]


def _names(store: Storage) -> list[tuple[str, str]]:
    """Images and their masks. MissingFile for too few images or a missing mask; UserError for an ambiguous one."""
    listed = store.list(IMAGES)
    names = [name for name in listed if name.lower().endswith(ENDINGS)]
    if len(names) < 2:
        others = sorted({os.path.splitext(name)[1] for name in set(listed) - set(names)})
        found = f"{len(names)}, and files of {', '.join(others)}" if others else len(names)
        expected = f"2 or more of {', '.join(ENDINGS)}"
        raise MissingFile("at least two images are required", file=store.join(IMAGES), found=found, expected=expected)
    by_stem, seen = dict[str, list[str]](), dict[str, str]()
    for mask in store.list(TRUTH):
        by_stem.setdefault(os.path.splitext(mask)[0], []).append(mask)
    out = []
    for name in names:
        stem = os.path.splitext(name)[0]
        if (other := seen.setdefault(stem, name)) != name:
            file, expected = store.join(IMAGES, name), "one image of each name: rename one, and its mask"
            raise UserError("two images have one name", file=file, found=other, expected=expected)
        masks = by_stem.get(stem, [])
        fit = [mask for mask in masks if mask.lower().endswith(MASK_ENDINGS)]
        fit = [name] if name in fit else fit
        if len(fit) != 1:
            there, file = ", ".join(masks) or None, store.join(TRUTH, f"{stem}.png")
            expected = f"one mask of its name, {', '.join(MASK_ENDINGS)} (JPEG would change labels)"
            raise MissingFile("an image has no mask of nuclei", file=file, found=there, expected=expected)
        out.append((name, fit[0]))
    return out


def _check_numbered(store: Storage, numbered: str, pairs: Sequence[tuple[str, Pair]]) -> None:
    """UserError for a plain mask among numbered masks: all its nuclei would count as one."""
    for mask, pair in pairs:
        own = _values(pair.labels)
        if own == [255] or (own == [1] and objects(pair.labels > 0, least_px=1).max() >= PLAIN_PARTS):
            file, found = store.join(TRUTH, mask), f"0 and {own[0]}, while {store.join(TRUTH, numbered)} numbers nuclei"
            expected = "masks of one kind: a number for each nucleus in all of them, or 0 and 255 in all of them"
            raise UserError("plain and numbered masks are mixed", file=file, found=found, expected=expected)


def split(pairs: Sequence[Pair], train_fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the images to choose on and of those to evaluate on, at least one each; equal for equal names."""
    order = rng(seed, "nuclei", 0).permutation(len(pairs))
    count = min(max(1, round(train_fraction * len(pairs))), len(pairs) - 1)
    return sorted(order[:count].tolist()), sorted(order[count:].tolist())


def masks_of(model: Masks, image: Pixels, size: int, scale: float, batch: int = 8) -> Floats:
    """Masks `[N, H, W]` of an image of any size: squares of `size` cover the image (enlarged by `scale`) and overlap by
    a quarter. There their masks are averaged, with weights that fall towards the edge of a square, where a network is
    least certain. An image smaller than a square is mirrored at its edges."""
    height, width = image.shape[:2]
    scaled = resize(image, max(1, round(width * scale)), max(1, round(height * scale)))
    h, w = scaled.shape[:2]
    scaled = np.pad(scaled, ((0, max(0, size - h)), (0, max(0, size - w)), (0, 0)), mode="symmetric")
    corners = [(y, x) for y in _starts(scaled.shape[0], size) for x in _starts(scaled.shape[1], size)]
    total: Floats | None = None
    sums, weight = np.zeros(scaled.shape[:2], np.float32), _tent(size)
    for first in range(0, len(corners), batch):
        part = corners[first : first + batch]
        tiles = np.stack([scaled[y : y + size, x : x + size] for y, x in part])
        found = model(torch.from_numpy(tiles)).float().cpu().numpy()
        total = np.zeros((found.shape[1], *sums.shape), np.float32) if total is None else total
        for (y, x), own in zip(part, found, strict=True):
            total[:, y : y + size, x : x + size] += own * weight
            sums[y : y + size, x : x + size] += weight
    assert total is not None
    mean = torch.from_numpy(total / sums)[None, :, :h, :w]
    if (h, w) != (height, width):
        mean = torch.nn.functional.interpolate(mean, (height, width), mode="bilinear", align_corners=False)
    out: Floats = mean[0].numpy()
    return out


def choose(masks: Iterator[Floats], pairs: Sequence[Pair]) -> tuple[Choice, float]:
    """The channel and rule with the largest mean Dice over images, and that Dice; ties go to the first."""
    total: dict[Choice, float] = {}
    for own, pair in zip(masks, pairs, strict=True):
        for choice in candidates(len(own)):
            total[choice] = total.get(choice, 0.0) + dice(choice.mark(own), pair.labels > 0)
    best = max(total, key=lambda choice: total[choice])
    return best, total[best] / len(pairs)


def find(masks: Floats, pair: Pair, choice: Choice) -> Found:
    """The result of `choice`, and of the best choice for this image."""
    oracle = max(candidates(len(masks)), key=lambda c: dice(c.mark(masks), pair.labels > 0))
    honest = score(choice.mark(masks), pair.labels)
    return Found(honest, honest if oracle == choice else score(oracle.mark(masks), pair.labels))


def candidates(channels: int) -> list[Choice]:
    return [Choice(channel, rule) for channel in range(channels) for rule in RULES]


def dice(marked: Bools, nuclei: Bools) -> float:
    total = int(marked.sum()) + int(nuclei.sum())
    return 2 * int((marked & nuclei).sum()) / total if total else 1.0


def report(found: Sequence[Found], floor: Sequence[Score], *, resamples: int, seed: int) -> dict[str, Any]:
    """All figures of one model on the test images, with 95% intervals over images: the five metrics, those of the
    oracle as ``oracle_…``, and the difference of its Dice to Otsu's on the same images."""
    honest = summary([f.honest for f in found], resamples=resamples, seed=seed)
    oracle = summary([f.oracle for f in found], resamples=resamples, seed=seed)
    out: dict[str, Any] = {**honest, **{f"oracle_{name}": value for name, value in oracle.items()}}
    own, otsu = [f.honest.dice for f in found], [s.dice for s in floor]
    if len(found) > 1:
        above = paired_difference(own, otsu, method="percentile", resamples=resamples, seed=seed)
        out |= {"dice_above_otsu": above.estimate, "dice_above_otsu_low": above.low, "dice_above_otsu_high": above.high}
    return out


def floors(pairs: Sequence[Pair]) -> dict[str, list[Score]]:
    """Baselines without training: Otsu's threshold in the red channel of each image, and everything marked."""
    return {
        "otsu": [score(threshold_red(p.image), p.labels) for p in pairs],
        "everything": [score(np.ones(p.labels.shape, np.bool_), p.labels) for p in pairs],
    }


def _labels(store: Storage, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    path = store.join(TRUTH, name)
    try:
        with open_image(store.read_bytes(f"{TRUTH}/{name}")) as file:
            values = np.asarray(file)
    except (OSError, SyntaxError, ValueError) as e:
        raise UserError("a mask cannot be read", file=path, found=str(e)[:200], expected="a PNG or TIFF") from e
    if values.shape != tuple(shape) or values.dtype.kind not in "biu":
        found = f"{values.dtype} {values.shape}"
        raise UserError(
            "not a mask of labels in its image's size", file=path, found=found, expected=f"whole numbers {shape}"
        )
    labels = values.astype(np.int64)
    if labels.min() < 0:
        raise UserError("a label is below 0", file=path, found=int(labels.min()), expected="0, or a nucleus number")
    marked = labels[labels > 0]
    if len(np.unique(marked)) > 1 and np.count_nonzero(marked == 255) > marked.size / 2:
        found, expected = f"{len(np.unique(marked))} values, mostly 255", "0 and 255 only: scale it without smoothing"
        raise UserError(
            "a plain mask has half-tones, which would count as nuclei", file=path, found=found, expected=expected
        )
    return labels


def _values(labels: npt.NDArray[np.int64]) -> list[int]:
    found: list[int] = np.unique(labels[labels > 0]).tolist()
    return found


def _instances(labels: npt.NDArray[np.int64], numbered: bool) -> npt.NDArray[np.int64]:
    """Nuclei `[H, W]` from 1: `labels` as they are, or the connected parts of a plain mask. `numbered`: other masks of
    the folder number their nuclei, so 1 is one nucleus."""
    own = _values(labels)
    plain = own == [255] or (own == [1] and not numbered)
    return objects(labels > 0, least_px=1) if plain else labels


def _tent(size: int) -> Floats:
    """Weights `[S, S]`: 1 in the middle, falling linearly to the edges, never 0."""
    side = 1 - np.abs(np.arange(size) - (size - 1) / 2) / ((size + 1) / 2)
    return np.outer(side, side).astype(np.float32)


def _starts(length: int, size: int) -> list[int]:
    """The fewest evenly spaced starts of squares that cover `length` and overlap by at least a quarter.

    >>> _starts(320, 224), _starts(224, 224), _starts(120, 32)
    ([0, 96], [0], [0, 22, 44, 66, 88])
    """
    overlap = size // 4
    count = max(1, -(-(length - overlap) // (size - overlap)))
    return [round(i) for i in np.linspace(0, length - size, count)]
