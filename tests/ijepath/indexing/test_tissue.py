"""Tissue masks that are computed: once per slide and node, compact in memory, and never another sample for it."""

import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import ijepath.indexing.tissue
import pathray.wsi.tissue
from ijepath.config import DataConfig, OptimizationConfig, RunConfig, resolve_global_batch
from ijepath.data import AnchorReader, ReaderConfig
from ijepath.indexing.anchors import slide_anchors
from ijepath.indexing.index import index_slide
from ijepath.indexing.manifest import ManifestRow
from ijepath.indexing.tissue import BLOCK, Blocks, TissueCache
from ijepath.profile import Profile
from pathray.wsi.reader import open_slide
from pathray.wsi.tissue import tissue_mask
from tests.builders.slides import tissue_image, write_slide

BOX = (100.0, 40.0, 1500.0, 1300.0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PATHRAY_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def unmasked(tmp_path_factory):
    """Paths of two slides of 2048 x 1536 at 0.5 mpp without masks."""
    folder = tmp_path_factory.mktemp("unmasked")
    images = [tissue_image(2048, 1536, seed=seed) for seed in range(2)]
    return [str(write_slide(folder / f"{i}.tif", image=image)) for i, image in enumerate(images)]


@pytest.fixture
def computations(monkeypatch):
    """The paths of the slides whose mask is computed from now on."""
    made, original = [], pathray.wsi.tissue.tissue_mask

    def counted(slide, mpp0):
        made.append(slide.path)
        return original(slide, mpp0)

    for module in (pathray.wsi.tissue, __import__("ijepath.indexing.anchors", fromlist=["tissue_mask"])):
        monkeypatch.setattr(module, "tissue_mask", counted)
    return made


class Shaped:
    """What a window asks of a slide: its size and name."""

    backend = "tiff"

    def __init__(self, name, width, height):
        self.path, self.level_shapes = name, ((width, height),)


def without_disk(monkeypatch):
    monkeypatch.setattr("pathray.wsi.kept_masks._name", lambda *_: "")


@pytest.mark.parametrize("values", [(0, 255), (0, 97, 255)])
def test_blocks_give_back_every_box_of_what_they_were_made_of(values):
    generator = np.random.default_rng(0)
    shares = np.kron(generator.choice(values, (7, 9)), np.ones((37, 41))).astype(np.uint8)
    shares[100:140, 50:90] = generator.choice(values, (40, 40))
    blocks = Blocks.of(shares)
    for _ in range(50):
        top, left = generator.integers(0, shares.shape)
        bottom, right = generator.integers((top, left), shares.shape) + 1
        assert np.array_equal(blocks.part(top, bottom, left, right), shares[top:bottom, left:right])


def test_blocks_of_a_computed_mask_take_a_bit_a_cell_and_equal_ones_are_kept_once():
    mask = np.zeros((20 * BLOCK, 30 * BLOCK), np.uint8)
    mask[5 * BLOCK : 9 * BLOCK, 2 * BLOCK :] = 255  # all glass and all tissue: two kinds
    mask[0, 0] = 255  # and one of its own
    assert Blocks.of(mask).nbytes == 3 * BLOCK**2 // 8 + 20 * 30 * 4


def test_a_window_shows_the_computed_mask_to_the_bit_whether_it_was_kept_or_not(unmasked, computations):
    slide = open_slide(unmasked[0])
    cold = TissueCache(8.0).window(slide, "", 0.5, BOX)
    warm = TissueCache(8.0).window(open_slide(unmasked[0]), "", 0.5, BOX)
    assert computations == [unmasked[0]], "the second cache read what the first kept"
    mask = tissue_mask(slide, 0.5)
    cells = mask[int(BOX[1] // 16) : int(-(-BOX[3] // 16)), int(BOX[0] // 16) : int(-(-BOX[2] // 16))]
    assert cold.cell == warm.cell == (16.0, 16.0) and 0 < cells.sum() < cells.size
    for window in (cold, warm):
        assert np.array_equal(np.diff(np.diff(window.integral, axis=0), axis=1), cells)


def reader_of(paths):
    config = RunConfig(
        data=DataConfig(batch_size_per_gpu=4, context_fov_um=256, target_fov_um=64),
        optimization=OptimizationConfig(total_images_budget=64),
    )
    sources = {"wsi_path": paths, "mask_path": [""] * len(paths), "wsi_level0_spacing_mpp": [0.5] * len(paths)}
    return AnchorReader(ReaderConfig.of(resolve_global_batch(config, 1)), sources)


def samples(reader):
    units = [{"source": np.int32(i), "x": np.int32(1024), "y": np.int32(768)} for i in (0, 1, 0, 1)]
    return [reader.read(unit, position, 0) for position, unit in enumerate(units)]


def test_a_mask_is_computed_once_for_anchors_and_all_readers_and_their_samples_stay_the_same(
    unmasked, computations, tmp_path, monkeypatch
):
    rows = [index_slide(ManifestRow(2, f"s{i}", path, "")) for i, path in enumerate(unmasked)]
    profile = Profile(context_fov_um=256.0, target_fov_um=64.0)
    first = [slide_anchors(row | {"wsi_level0_spacing_mpp": 0.5}, profile) for row in rows]
    assert computations == unmasked
    again = [slide_anchors(row | {"wsi_level0_spacing_mpp": 0.5}, profile) for row in rows]
    assert all(
        np.array_equal(a.tissue_fraction, b.tissue_fraction) and len(a) for a, b in zip(first, again, strict=True)
    )
    reader = reader_of(unmasked)
    warm = [samples(reader), samples(pickle.loads(pickle.dumps(reader)))]
    assert computations == unmasked, "the anchors' masks served both readers"
    monkeypatch.setenv("PATHRAY_CACHE_DIR", str(tmp_path / "another"))
    cold = samples(reader_of(unmasked))
    assert len(computations) == 4
    for found in warm:
        for one, other in zip(found, cold, strict=True):
            assert all(np.array_equal(one[name], other[name]) for name in other)


def test_threads_that_want_one_slides_mask_wait_for_the_first(monkeypatch):
    without_disk(monkeypatch)
    made = []

    def slow(slide, mpp0):
        made.append(slide.path)
        time.sleep(0.2)  # the others come meanwhile
        return np.ones((50, 60), np.uint8)

    monkeypatch.setattr("pathray.wsi.tissue.tissue_mask", slow)
    cache, slides = TissueCache(8.0), [Shaped(f"{i}", 960, 800) for i in range(2)]
    with ThreadPoolExecutor(8) as pool:
        windows = list(pool.map(lambda i: cache.window(slides[i % 2], "", 0.5, (0, 0, 640, 640)), range(8)))
    assert sorted(made) == ["0", "1"] and all(w.integral[-1, -1] == 1600 for w in windows)


def test_a_computation_that_hangs_does_not_hold_up_the_others_for_ever(monkeypatch):
    without_disk(monkeypatch)
    monkeypatch.setattr(ijepath.indexing.tissue, "WAIT_S", 0.05)
    begun, over = threading.Event(), threading.Event()

    def hanging(slide, mpp0):
        if not begun.is_set():
            begun.set()
            assert over.wait(30)
        return np.ones((50, 60), np.uint8)

    monkeypatch.setattr("pathray.wsi.tissue.tissue_mask", hanging)
    cache, slide = TissueCache(8.0), Shaped("s", 960, 800)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(cache.window, slide, "", 0.5, (0, 0, 640, 640))
        assert begun.wait(30)
        try:
            assert cache.window(slide, "", 0.5, (0, 0, 640, 640)).integral[-1, -1] == 1600
        finally:
            over.set()
        assert first.result().integral[-1, -1] == 1600


def test_the_masks_of_300_slides_fit_where_ten_did_and_stay_within_their_bytes(monkeypatch):
    without_disk(monkeypatch)
    height, width = 800, 1000
    y, x = np.mgrid[:height, :width]
    section = (((x - 500) / 380) ** 2 + ((y - 400) / 300) ** 2 < 1).astype(np.uint8)  # one round piece of tissue
    made = []

    def mask(slide, mpp0):
        made.append(slide.path)
        return np.roll(section, int(slide.path), axis=1)

    monkeypatch.setattr("pathray.wsi.tissue.tissue_mask", mask)
    slides = [Shaped(f"{i}", width * 16, height * 16) for i in range(300)]
    wide, narrow = TissueCache(8.0, max_bytes=10 * width * height), TissueCache(8.0, max_bytes=100_000)
    for i, slide in enumerate(slides * 2):
        box = (4000.0, 3000.0, 5000.0, 4000.0)
        window = wide.window(slide, "", 0.5, box)
        assert wide.nbytes <= wide.max_bytes
        if i % 10 == 0:
            assert np.array_equal(narrow.window(slide, "", 0.5, box).integral, window.integral)
            assert narrow.nbytes <= narrow.max_bytes
    assert len(made) == 300 + 60, "the wide cache made each once, the narrow one had room for a few"
