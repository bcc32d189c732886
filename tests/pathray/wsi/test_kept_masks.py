"""Computed masks kept on a node: bit for bit, once per state of a slide, and never a reason to fail."""

import logging
import os

import numpy as np
import pytest

import pathray.wsi.kept_masks as module
from pathray.errors import UnreadableUnit
from pathray.wsi.kept_masks import cached_mask, pack_mask, unpack_mask


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PATHRAY_CACHE_DIR", str(tmp_path / "cache"))
    module._warn_once.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def slide(tmp_path):
    path = tmp_path / "s.tiff"
    path.write_bytes(b"pixels")
    return str(path)


class Computed:
    """Gives one random mask and counts how often it is asked."""

    def __init__(self, height=37, width=53):
        self.mask = (np.random.default_rng(0).random((height, width)) < 0.5).astype(np.uint8)
        self.count = 0

    def __call__(self):
        self.count += 1
        return self.mask


@pytest.mark.parametrize("shape", [(1, 1), (8, 16), (37, 53), (3, 1001)])
def test_a_packed_mask_comes_back_bit_for_bit(shape):
    mask = Computed(*shape).mask
    back = unpack_mask(pack_mask(mask))
    assert back.dtype == np.uint8 and np.array_equal(back, mask)


def test_a_mask_is_computed_once_and_read_ever_after(cache, slide):
    compute = Computed()
    for _ in range(3):
        assert np.array_equal(cached_mask(slide, "tiff", 0.25, compute), compute.mask)
    assert compute.count == 1 and len(list(cache.iterdir())) == 1


def test_what_a_mask_depends_on_is_in_its_name(cache, slide, monkeypatch):
    compute = Computed()
    cached_mask(slide, "tiff", 0.25, compute)
    cached_mask(slide, "openslide", 0.25, compute)
    cached_mask(slide, "tiff", 0.5, compute)
    os.utime(slide, ns=(1, 1))
    cached_mask(slide, "tiff", 0.25, compute)
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    cached_mask(slide, "tiff", 0.25, compute)
    assert compute.count == 5 and len(list(cache.iterdir())) == 5


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "other", "shape"])
def test_a_damaged_entry_is_computed_again_and_replaced(cache, slide, damage):
    compute = Computed()
    cached_mask(slide, "tiff", 0.25, compute)
    (entry,) = cache.iterdir()
    data = entry.read_bytes()
    middle = len(data) // 2
    entry.write_bytes(
        {
            "empty": b"",
            "cut": data[:middle],
            "flipped": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
            "other": b"no mask at all",
            "shape": pack_mask(compute.mask[:-5])[:20] + data[20:],
        }[damage]
    )
    assert np.array_equal(cached_mask(slide, "tiff", 0.25, compute), compute.mask) and compute.count == 2
    assert entry.read_bytes() == data
    assert np.array_equal(cached_mask(slide, "tiff", 0.25, compute), compute.mask) and compute.count == 2


def test_a_cache_that_cannot_be_used_is_told_once_and_costs_no_mask(cache, slide, caplog):
    cache.write_text("a file where the folder should be")
    compute = Computed()
    with caplog.at_level(logging.WARNING):
        for mpp in (0.25, 0.5, 1.0):
            assert np.array_equal(cached_mask(slide, "tiff", mpp, compute), compute.mask)
    assert compute.count == 3 and cache.is_file()
    told = [r.message for r in caplog.records]
    assert len(told) == len(set(told)) and 1 <= len(told) <= 2 and "recomputed" in told[0]


def test_nothing_is_kept_of_a_slide_that_cannot_be_read(cache, slide):
    def broken():
        raise UnreadableUnit("decode", slide)

    with pytest.raises(UnreadableUnit):
        cached_mask(slide, "tiff", 0.25, broken)
    assert not cache.exists() or not list(cache.iterdir())


def test_a_slide_without_a_state_is_left_to_its_reader(cache, tmp_path):
    compute = Computed()
    for path in (str(tmp_path / "gone.tiff"), "nowhere://bucket/s.tiff"):
        assert cached_mask(path, "tiff", 0.25, compute) is compute.mask
    assert compute.count == 2 and not cache.exists()
