"""The benchmark of masks against nuclei is honest: what tests chooses nothing, and every image is covered whole."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from adios.nuclei.agreement import (
    Choice,
    Pair,
    choose,
    find,
    floors,
    masks_of,
    read_pairs,
    report,
    split,
)  # fmt: skip
from adios.nuclei.figures import HIT, Example, choose_examples, draw_examples, draw_hits, draw_outlines, draw_results
from adios.nuclei.segmentation import METRICS, score, summary
from pathray.errors import MissingFile, UserError


def pair(seed: int, height: int = 40, width: int = 56) -> Pair:
    """Dark discs on a pale, noisy ground."""
    g = np.random.default_rng(seed)
    labels = np.zeros((height, width), np.int64)
    y, x = np.mgrid[:height, :width]
    for name in range(1, 6):
        cy, cx = g.uniform(6, height - 6), g.uniform(6, width - 6)
        labels[((y - cy) ** 2 + (x - cx) ** 2 < 25) & (labels == 0)] = name
    image = np.where(labels[:, :, None] > 0, 90, 200) + g.integers(-20, 20, (height, width, 3))
    return Pair(f"{seed}.png", image.astype(np.uint8), labels)


PAIRS = [pair(i) for i in range(8)]


def perfect(p: Pair, channel: int, count: int = 3) -> np.ndarray:
    """Masks that have the nuclei in one channel."""
    masks = np.full((count, *p.labels.shape), 0.1, np.float32)
    masks[channel] = np.where(p.labels > 0, 0.9, 0.05)
    masks[(channel + 1) % count] = np.where(p.labels > 0, 0.05, 0.8)
    return masks


def test_the_channel_of_the_nuclei_is_found_on_training_images():
    choice, value = choose((perfect(p, 2) for p in PAIRS[:3]), PAIRS[:3])
    assert choice.channel == 2 and value == 1.0
    weak = [np.where(m == 0.9, 0.45, m) for m in (perfect(p, 1) for p in PAIRS[:3])]
    assert choose(iter(weak), PAIRS[:3])[0] == Choice(1, "argmax"), "never above one half, but always the largest"


def test_test_images_have_no_say_in_the_channel_and_the_oracle_is_never_worse():
    choice = Choice(0, "argmax")  # right on the training images, say
    found = [find(perfect(p, i % 2), p, choice) for i, p in enumerate(PAIRS)]
    assert [f.honest.dice for f in found[::2]] == [1.0] * 4 and max(f.honest.dice for f in found[1::2]) < 0.6
    assert all(f.oracle.dice == 1.0 for f in found) and all(f.oracle.dice >= f.honest.dice for f in found)
    floor = floors(PAIRS)
    figures = report(found, floor["otsu"], resamples=200, seed=0)
    assert figures["oracle_dice"] == 1.0 > figures["dice"] == pytest.approx(np.mean([f.honest.dice for f in found]))
    gap = np.mean([f.honest.dice - s.dice for f, s in zip(found, floor["otsu"], strict=True)])
    assert figures["dice_above_otsu"] == pytest.approx(gap)
    assert {f"{prefix}{m}" for m in METRICS for prefix in ("", "oracle_")} <= set(figures)


def test_a_split_is_seeded_and_divides_the_images():
    train, test = split(PAIRS, 0.3, 1)
    assert sorted(train + test) == list(range(8)) and len(train) == 2 and split(PAIRS, 0.3, 1) == (train, test)
    assert any(split(PAIRS, 0.3, seed) != (train, test) for seed in range(2, 5))
    assert [len(part) for part in split(PAIRS[:2], 0.01, 0)] == [1, 1]


@pytest.mark.parametrize(("height", "width", "squares"), [(40, 56, 4), (32, 32, 1), (20, 90, 4), (64, 33, 6)])
def test_masks_of_squares_cover_an_image_of_any_size(height, width, squares):
    seen = []

    def model(tiles: torch.Tensor) -> torch.Tensor:
        seen.append(len(tiles))
        assert tiles.shape[1:] == (32, 32, 3) and tiles.dtype == torch.uint8
        red = tiles[:, :, :, 0].float() / 255
        return torch.stack([red, 1 - red], dim=1)

    image = pair(3, height, width).image
    masks = masks_of(model, image, 32, 1.0, batch=2)
    assert masks.shape == (2, height, width) and masks[0] == pytest.approx(image[:, :, 0] / 255, abs=1e-6)
    assert max(seen) <= 2 and sum(seen) == squares
    halved = masks_of(model, image, 32, 0.5)
    assert halved.shape == masks.shape and np.abs(halved - masks).mean() < 0.1


def test_what_a_network_gets_wrong_at_the_edges_of_its_squares_leaves_no_seams():
    def model(tiles: torch.Tensor) -> torch.Tensor:
        masks = torch.full((len(tiles), 2, 32, 32), 0.5)
        masks[:, :, 0] = masks[:, :, -1] = masks[:, :, :, 0] = masks[:, :, :, -1] = 1.0  # padding
        return masks

    masks = masks_of(model, pair(0, 80, 80).image, 32, 1.0)
    assert masks[:, 1:-1, 1:-1].max() < 0.62 and masks[:, 0].min() == 1.0, "a plain mean has seams of 0.75"


def write(folder, pairs=PAIRS, mode: str = "labels"):
    for sub in ("images", "masks"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    for p in pairs:
        Image.fromarray(p.image).save(folder / "images" / p.name)
        labels = p.labels.astype(np.uint16) if mode == "labels" else np.where(p.labels > 0, 255, 0).astype(np.uint8)
        Image.fromarray(labels).save(folder / "masks" / p.name)
    return folder


def test_labels_are_read_as_they_are_and_a_plain_mask_by_its_parts(tmp_path):
    for got, own in zip(read_pairs(str(write(tmp_path / "a"))), PAIRS, strict=True):
        assert got.name == own.name and np.array_equal(got.labels, own.labels) and np.array_equal(got.image, own.image)
    plain = read_pairs(str(write(tmp_path / "b", mode="plain")))[0]
    assert np.array_equal(plain.labels > 0, PAIRS[0].labels > 0) and plain.labels.max() >= 2


def two_masks(folder, first: np.ndarray, second: np.ndarray):
    """Images `0.png` and `1.png`, all grey, with these masks."""
    for sub in ("images", "masks"):
        (folder / sub).mkdir(parents=True)
    for i, mask in enumerate((first, second)):
        Image.fromarray(np.full((*mask.shape, 3), 128, np.uint8)).save(folder / "images" / f"{i}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{i}.png")
    return str(folder)


@pytest.mark.parametrize("value", [1, 255])
def test_a_plain_mask_keeps_its_smallest_nuclei(tmp_path, value):
    mask = np.zeros((20, 20), np.uint8)
    mask[0:6, 0:6], mask[10:13, 10:15], mask[18, 18] = value, value, value  # 36, 15 and 1 pixels
    pair = read_pairs(two_masks(tmp_path, mask, mask))[0]
    assert np.bincount(pair.labels.ravel()).tolist() == [400 - 52, 36, 15, 1]
    truth = score(mask > 0, pair.labels)
    assert (truth.dice, truth.iou) == (1.0, 1.0) and (truth.tp, truth.fn) == (1, 2), "too small to be found as objects"


def test_a_nucleus_in_two_parts_is_one_where_nuclei_are_numbered_and_two_where_they_are_not(tmp_path):
    parts = np.zeros((20, 20), np.uint8)
    parts[2:8, 2:8], parts[12:18, 12:18] = 1, 1
    both = np.where(np.arange(400).reshape(20, 20) < 200, parts, 2 * parts)
    beside_numbers = read_pairs(two_masks(tmp_path / "a", parts, both))
    assert [pair.labels.max() for pair in beside_numbers] == [1, 2]
    assert np.array_equal(beside_numbers[0].labels, parts) and np.array_equal(beside_numbers[1].labels, both)
    alone = read_pairs(two_masks(tmp_path / "b", parts, 7 * parts))
    assert [np.unique(pair.labels).tolist() for pair in alone] == [[0, 1, 2], [0, 7]]
    assert (alone[0].labels[2, 2], alone[0].labels[12, 12]) == (1, 2)
    whole = np.where(parts[:, :10] > 0, 1, 0).astype(np.uint8)
    assert np.array_equal(read_pairs(two_masks(tmp_path / "c", whole, whole))[0].labels, whole), "connected: the same"


def test_a_label_below_0_is_named(tmp_path):
    folder = write(tmp_path)
    (folder / "images" / "3.png").rename(folder / "images" / "3.tiff")
    Image.fromarray(PAIRS[3].labels.astype(np.int32) - 1).save(folder / "masks" / "3.tiff")
    with pytest.raises(UserError, match=r"below 0.*masks/3\.tiff.*found: -1"):
        read_pairs(str(folder))


def test_endings_of_images_that_are_not_read_are_told(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a.gif", "b.GIF", "c.png"):
        (tmp_path / "images" / name).touch()
    with pytest.raises(MissingFile, match=r"found: '1, and files of \.GIF, \.gif'; expected: .*\.png, \.tif, \.tiff"):
        read_pairs(str(tmp_path))


@pytest.mark.parametrize(
    ("image", "mask", "kind"),
    [(".jpg", ".png", {"quality": 95}), (".JPEG", ".tif", {}), (".tiff", ".TIFF", {}), (".bmp", ".bmp", {})],
)
def test_images_and_masks_of_other_formats_belong_together_by_name(tmp_path, image, mask, kind):
    folder = write(tmp_path)
    for p in PAIRS:
        stem = p.name.removesuffix(".png")
        Image.open(folder / "images" / p.name).save(folder / "images" / f"{stem}{image}", **kind)
        labels = p.labels.astype(np.uint8)
        (folder / "images" / p.name).unlink()
        (folder / "masks" / p.name).unlink()
        Image.fromarray(labels).save(folder / "masks" / f"{stem}{mask}")
    for got, own in zip(read_pairs(str(folder)), PAIRS, strict=True):
        assert np.array_equal(got.labels, own.labels) and got.image.shape == own.image.shape
        assert np.abs(got.image.astype(int) - own.image).mean() < 14


def two_masks_of_one(folder):
    Image.open(folder / "masks" / "3.png").save(folder / "masks" / "3.tif")
    (folder / "images" / "3.png").rename(folder / "images" / "3.bmp")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda f: (f / "masks" / "3.png").rename(f / "masks" / "3.jpg"),
            r"has no mask of nuclei.*masks/3\.png.*3\.jpg.*JPEG",
        ),
        (two_masks_of_one, r"has no mask of nuclei.*3\.png, 3\.tif"),
        (lambda f: Image.open(f / "images" / "3.png").save(f / "images" / "3.jpg"), r"two images have one name"),
    ],
)
def test_an_image_whose_mask_is_not_clear_is_named(tmp_path, change, words):
    change(write(tmp_path))
    with pytest.raises(UserError, match=words):
        read_pairs(str(tmp_path))


@pytest.mark.parametrize("value", [1, 255])
@pytest.mark.parametrize("first", [0, 1])
def test_plain_masks_among_numbered_ones_are_refused_with_a_file_of_each(tmp_path, value, first):
    plain, numbered = np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8)
    for k, y in enumerate((1, 8, 15)):
        plain[y : y + 4, 2:9], numbered[y : y + 4, 2:9] = value, k + 1
    two_masks(tmp_path, *((plain, numbered) if first == 0 else (numbered, plain)))
    words = rf"plain and numbered masks are mixed.*masks/{first}\.png.*masks/{1 - first}\.png numbers nuclei.*one kind"
    with pytest.raises(UserError, match=words):
        read_pairs(str(tmp_path))


def test_half_tones_of_a_plain_mask_are_no_nuclei(tmp_path):
    plain = np.zeros((20, 20), np.uint8)
    plain[4:16, 4:16], plain[3, 4:16], plain[16, 4:16] = 255, 90, 170
    with pytest.raises(UserError, match=r"half-tones.*masks/0\.png.*3 values, mostly 255"):
        read_pairs(two_masks(tmp_path, plain, plain))


def test_what_is_wrong_with_the_images_is_named(tmp_path):
    with pytest.raises(MissingFile, match="images"):
        read_pairs(str(tmp_path))
    folder = write(tmp_path)
    (folder / "masks" / "3.png").unlink()
    with pytest.raises(MissingFile, match=r"masks/3\.png"):
        read_pairs(str(folder))
    Image.fromarray(np.zeros((5, 5), np.uint16)).save(folder / "masks" / "3.png")
    with pytest.raises(UserError, match=r"in its image's size.*3\.png.*\(5, 5\)"):
        read_pairs(str(folder))
    write(folder)
    (folder / "images" / "2.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"cannot be read.*images/2\.png"):
        read_pairs(str(folder))


def test_pictures_mark_hits_misses_and_touching_nuclei_apart():
    image = np.full((4, 6, 3), 200, np.uint8)
    labels = np.zeros((4, 6), np.int64)
    labels[:, :2], labels[:, 2:4] = 1, 2
    drawn = draw_outlines(image, labels)
    green = tuple(int(HIT[i : i + 2], 16) for i in (1, 3, 5))
    assert [tuple(drawn[0, x]) == green for x in range(6)] == [False, True, True, True, False, False]
    shown = draw_hits(image, labels == 1, labels > 0)
    assert len({tuple(shown[0, x]) for x in (0, 2, 5)}) == 3 and shown[0, 5].tolist() == [228] * 3
    assert choose_examples([0.2, 0.9, 0.5]) == [1, 2, 0] and choose_examples([0.4]) == [0]


def test_results_and_examples_are_drawn_also_for_one_checkpoint():
    floor = floors(PAIRS)
    found = {name: summary(own, resamples=50, seed=0) for name, own in floor.items()}
    figures = report([find(perfect(p, 0), p, Choice(0, "half")) for p in PAIRS], floor["otsu"], resamples=50, seed=0)
    rows = [{"step": step, "channel": 0, "rule": "half", **figures} for step in (0, 500)]
    for checkpoints in (rows[:1], rows):
        picture = draw_results({**found, "judging": PAIRS, "choosing": [], "checkpoints": checkpoints})
        assert Image.open(io.BytesIO(picture)).size == (1820, 650)
    examples = [Example(replace(p, name="$x$"), perfect(p, 1), Choice(1, "half")) for p in PAIRS[:2]]
    assert Image.open(io.BytesIO(draw_examples(examples))).size[0] > 1200
