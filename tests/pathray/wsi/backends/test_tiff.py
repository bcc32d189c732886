"""The direct tile path where tiles are missing, damaged or shared."""

import pickle
import threading

import numpy as np
import pytest

from pathray.errors import UnreadableUnit
from pathray.wsi.backends.source import LocalFile
from pathray.wsi.reader import open_slide
from tests.builders.slides import (
    cut_file,
    garble_tile,
    set_tile_bytes,
    tile_range,
    tissue_image,
    truncate_tile,
    write_slide,
)


def slide_of(tmp_path, codec="jpeg", **options):
    return write_slide(tmp_path / "slide.tif", width=700, height=600, codec=codec, downsamples=(1, 2), **options)


def test_a_sparse_tile_is_white_and_its_neighbours_are_not(tmp_path):
    image = tissue_image(700, 600)
    path = slide_of(tmp_path, "deflate", image=image)
    set_tile_bytes(path, 0, 4, 0)  # row 1, column 1 of a grid of 3 × 3
    expected = image.copy()
    expected[256:512, 256:512] = 255
    slide = open_slide(str(path))
    np.testing.assert_array_equal(slide.read_level(0, 0, 0, 700, 600), expected)
    np.testing.assert_array_equal(slide.read_level(0, 256, 256, 256, 256), expected[256:512, 256:512])


def test_a_tile_that_aperio_left_out_of_a_lower_level_comes_from_the_finer_one(tmp_path):
    image = tissue_image(1024, 1024)
    path = write_slide(tmp_path / "s.svs", kind="svs", codec="deflate", image=image, downsamples=(1, 2))
    whole = open_slide(str(path)).read_level(1, 0, 0, 512, 512)
    set_tile_bytes(path, 2, 3, 0)  # page 1 is the thumbnail
    np.testing.assert_array_equal(open_slide(str(path)).read_level(1, 0, 0, 512, 512), whole)
    openslide = pytest.importorskip("openslide")
    theirs = np.asarray(openslide.OpenSlide(path).read_region((512, 512), 1, (256, 256)).convert("RGB"))
    assert np.abs(theirs.astype(int) - whole[256:, 256:]).mean() < 6  # OpenSlide does the same, with another filter


@pytest.mark.parametrize(
    "codec", ["jpeg", "jpeg_rgb", "jp2k_33005", "jp2k", "deflate", "deflate_predictor", "lzw", "none"]
)
@pytest.mark.parametrize("keep", [0.9, 0.4])
def test_a_truncated_tile_is_an_unreadable_unit_that_names_level_and_tile(tmp_path, codec, keep):
    path = slide_of(tmp_path, codec)
    truncate_tile(path, 0, 4, keep)
    slide = open_slide(str(path))
    for box in [(256, 256, 256, 256), (300, 310, 20, 5)]:
        with pytest.raises(UnreadableUnit) as e:
            slide.read_level(0, *box)
        assert e.value.reason == ("truncated" if codec.startswith("j") else "decode")
        assert e.value.path == str(path) and "level 0, tile 4 (row 1, column 1)" in e.value.detail
    slide.read_level(0, 0, 0, 256, 256)
    slide.read_level(1, 0, 0, 350, 300)


@pytest.mark.parametrize("codec", ["jpeg", "jp2k_33005", "deflate", "lzw"])
def test_a_tile_of_zeros_is_an_unreadable_unit(tmp_path, codec):
    path = slide_of(tmp_path, codec)
    garble_tile(path, 1, 3)
    with pytest.raises(UnreadableUnit, match="level 1, tile 3"):
        open_slide(str(path)).read_level(1, 270, 260, 9, 9)


@pytest.mark.parametrize("codec", ["jpeg", "none", "jp2k"])
def test_a_file_that_ends_within_a_tile_is_truncated_there_and_readable_before(tmp_path, codec):
    path = write_slide(tmp_path / "s.tif", width=700, height=600, codec=codec, downsamples=(1,))
    cut_file(path, 0, 8)
    slide = open_slide(str(path))
    slide.read_level(0, 0, 0, 512, 512)
    with pytest.raises(UnreadableUnit) as e:
        slide.read_level(0, 500, 500, 30, 30)
    assert e.value.reason == "truncated" and "tile 8" in e.value.detail


def test_a_file_cut_within_its_structure_is_unreadable_not_a_crash(tmp_path):
    path = slide_of(tmp_path)
    data = path.read_bytes()
    start = tile_range(path, 0, 0)[0]
    for size in (8, 12, start // 2, start - 3):
        path.write_bytes(data[:size])
        with pytest.raises(UnreadableUnit):
            open_slide(str(path)).read_level(0, 0, 0, 10, 10)
    path.write_bytes(b"")
    with pytest.raises(UnreadableUnit, match="empty"):
        open_slide(str(path))


def test_reads_by_many_threads_equal_reads_by_one(tmp_path):
    path = slide_of(tmp_path)
    rng = np.random.default_rng(0)
    boxes = [(int(x), int(y), 130, 120) for x, y in rng.integers(-50, 600, (60, 2))]
    expected = [open_slide(str(path)).read_level(0, *box) for box in boxes]
    slide, wrong = open_slide(str(path), cache_bytes=1 << 20), []

    def work(seed):
        for i in np.random.default_rng(seed).permutation(len(boxes)):
            if not np.array_equal(slide.read_level(0, *boxes[i]), expected[i]):
                wrong.append(boxes[i])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_stalled_read_holds_up_no_other(tmp_path, monkeypatch):
    path, gate, stalled = slide_of(tmp_path), threading.Event(), threading.Event()
    slide, read_many = open_slide(str(path)), LocalFile.read_many
    first = tile_range(path, 0, 0)[0]

    def slow(source, ranges):
        if ranges[0][0] == first:
            stalled.set()
            assert gate.wait(20)
        return read_many(source, ranges)

    monkeypatch.setattr(LocalFile, "read_many", slow)
    thread = threading.Thread(target=slide.read_level, args=(0, 0, 0, 300, 300))
    thread.start()
    assert stalled.wait(20)
    assert slide.read_level(0, 300, 300, 300, 200).shape == (200, 300, 3)
    assert thread.is_alive()
    gate.set()
    thread.join()


def test_overlapping_boxes_decode_each_tile_once(tmp_path, monkeypatch):
    path, fetched = slide_of(tmp_path), []
    read_many = LocalFile.read_many
    monkeypatch.setattr(LocalFile, "read_many", lambda s, r: fetched.extend(o for o, _ in r) or read_many(s, r))
    slide = open_slide(str(path), cache_bytes=0)
    fetched.clear()
    boxes = [(100, 100, 300, 300), (120, 130, 300, 300), (10, 20, 256, 256), (200, 300, 100, 290)]
    crops = slide.read_boxes(0, boxes)
    assert len(fetched) == len(set(fetched)) == 6
    for box, crop in zip(boxes, crops, strict=True):
        np.testing.assert_array_equal(crop, slide.read_level(0, *box))


def test_a_second_read_of_a_region_comes_from_the_cache_and_caches_stay_within_their_bytes(tmp_path, monkeypatch):
    path, fetched = slide_of(tmp_path), []
    read_many = LocalFile.read_many
    monkeypatch.setattr(LocalFile, "read_many", lambda s, r: fetched.extend(r) or read_many(s, r))
    slide = open_slide(str(path))
    first = slide.read_level(0, 100, 100, 300, 300)
    fetched.clear()
    np.testing.assert_array_equal(slide.read_level(0, 100, 100, 300, 300), first)
    slide.read_level(0, 120, 110, 200, 100)
    assert fetched == []
    small = open_slide(str(path), cache_bytes=500_000)
    for x in range(0, 500, 60):
        small.read_level(0, x, x // 2, 200, 300)
        assert 0 < small._cache.nbytes <= 500_000


def test_what_was_read_may_be_written_to_without_harm(tmp_path):
    for codec in ("jpeg", "none", "deflate"):
        slide = open_slide(str(slide_of(tmp_path, codec)))
        for box in [(0, 0, 256, 256), (10, 10, 300, 300), (600, 500, 50, 50)]:
            first = slide.read_level(0, *box)
            kept = first.copy()
            first[:] = 0
            np.testing.assert_array_equal(slide.read_level(0, *box), kept)


def test_a_cached_tile_with_too_few_rows_is_decoded_again(tmp_path):
    path = slide_of(tmp_path)
    whole = open_slide(str(path)).read_level(0, 0, 0, 700, 600)
    slide = open_slide(str(path))
    for rows in (10, 40, 41, 255, 30, 256, 300):
        np.testing.assert_array_equal(slide.read_level(0, 5, 0, 400, rows), whole[:rows, 5:405])


def test_pixels_do_not_depend_on_what_was_read_before(tmp_path):
    """A shortened JPEG is decoded four rows further than asked for; the last of them are not the slide's."""
    image = tissue_image(700, 600)
    image[::7] //= 2  # so that neighbouring rows differ in chroma
    path = str(slide_of(tmp_path, image=image))
    whole = open_slide(path).read_level(0, 0, 0, 700, 600)
    for rows in (10, 11, 40, 47, 100):
        slide = open_slide(path)
        slide.read_level(0, 5, 0, 400, rows)
        for more in range(1, 5):
            found = slide.read_level(0, 5, 0, 400, rows + more)
            np.testing.assert_array_equal(found, whole[: rows + more, 5:405], f"{rows} rows, then {more} more")


def test_a_slide_deleted_after_it_was_opened_can_still_be_read(tmp_path):
    path = slide_of(tmp_path)
    slide = open_slide(str(path))
    expected = slide.read_level(0, 0, 0, 300, 300)
    path.unlink()
    np.testing.assert_array_equal(slide.read_level(0, 0, 0, 300, 300), expected)


def test_a_reader_travels_as_its_path(tmp_path):
    slide = open_slide(str(slide_of(tmp_path)))
    twin = pickle.loads(pickle.dumps(slide))
    np.testing.assert_array_equal(twin.read_level(1, 5, 5, 99, 88), slide.read_level(1, 5, 5, 99, 88))
