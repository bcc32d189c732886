"""Archives cut from slides and images: the right squares, equal bytes, whole or not at all."""

import os
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from adios.data import decode_patch
from adios.patches.archives import read_directory
from adios.patches.cut import ImagesCut, SlideCut, cut, cut_if_needed
from adios.patches.index import archives_of
from adios.patches.index_writer import index_patches
from pathray.store.storage import StorageError
from pathray.wsi.reader import open_slide
from pathray.wsi.regions import read_region
from pathray.wsi.tiling import TileSpec
from tests.builders.cohort import square_mask, write_mask, write_slide
from tests.builders.zips import encoded, picture

SPEC = TileSpec(64, 0.5, min_tissue_fraction=0.5)


@pytest.fixture
def slide(tmp_path):
    """A job on a slide whose middle third, x 341…682 and y 256…512, is tissue."""
    path = write_slide(tmp_path / "s.tif", levels=1)
    mask = write_mask(tmp_path / "m.png", square_mask())
    return SlideCut("s", str(tmp_path / "zips/s.zip"), str(path), 0.5, str(mask))


def members(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {info.filename: archive.read(info) for info in archive.infolist()}


def test_patches_are_the_tiles_that_hold_enough_tissue(slide):
    assert cut(slide, SPEC).status == "ok"
    found = members(slide.output)
    corners = [(x, y) for y in range(256, 512, 64) for x in range(320, 704, 64)]
    corners = [(x, y) for x, y in corners if min(x + 64, 682.67) - max(x, 341.33) >= 32]
    assert list(found) == [f"patch_{i:03d}_64_x{x}_y{y}.png" for i, (x, y) in enumerate(corners)]
    reader = open_slide(slide.path)
    for (x, y), data in zip(corners, found.values(), strict=True):
        assert np.array_equal(decode_patch(data, 64), read_region(reader, x + 32, y + 32, 64, 0.5, mpp0=0.5).pixels)
    reader.close()


def test_patches_of_another_spacing_say_where_they_lie_in_level_0_pixels(slide):
    assert cut(slide, replace(SPEC, mpp=1.0)).patches == len(members(slide.output))
    for name in members(slide.output):
        x, y = (int(part[1:]) for part in name.removesuffix(".png").split("_")[3:])
        assert x % 128 == 0 and y % 128 == 0 and 64 < x + 64 < 1024


def test_equal_slides_give_equal_bytes_and_stored_members(slide, tmp_path):
    cut(slide, SPEC)
    again = replace(slide, output=str(tmp_path / "other/s.zip"))
    cut(again, SPEC)
    with open(slide.output, "rb") as a, open(again.output, "rb") as b:
        assert a.read() == b.read()
    assert {member.method for member in read_directory(slide.output).members} == {0}
    with zipfile.ZipFile(slide.output) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}  # and not when it was made


def test_what_was_cut_can_be_indexed_whole(slide, tmp_path):
    patches = cut(slide, SPEC).patches
    root, archives = archives_of(str(tmp_path / "zips"))
    summary = index_patches(root, archives, str(tmp_path / "i.parquet"), max_corrupt_fraction=0.0)
    assert summary.patches == patches > 0 and summary.reasons == {}


def test_a_finished_archive_is_skipped_until_its_slide_or_the_settings_change(slide):
    first = cut_if_needed(slide, SPEC)
    assert first.status == "ok"
    skipped = cut_if_needed(slide, SPEC)
    assert (skipped.status, skipped.patches) == ("skipped", first.patches)
    assert cut_if_needed(slide, replace(SPEC, min_tissue_fraction=0.9)).status == "ok"
    os.utime(slide.path, ns=(1, 1))
    assert cut_if_needed(slide, replace(SPEC, min_tissue_fraction=0.9)).status == "ok"


def test_an_archive_that_was_cut_short_is_made_again(slide):
    cut_if_needed(slide, SPEC)
    os.truncate(slide.output, os.path.getsize(slide.output) - 1)
    assert cut_if_needed(slide, SPEC).status == "ok"
    assert members(slide.output)


def test_a_slide_that_fails_half_way_leaves_no_archive(slide, monkeypatch):
    from adios.patches import cut as module

    calls, original = [], module.read_regions

    def failing(*args, **more):
        calls.append(args)
        if len(calls) == 2:
            raise OSError("gone")
        return original(*args, **more)

    monkeypatch.setattr(module, "read_regions", failing)
    monkeypatch.setattr(module, "BATCH", 4)
    outcome = cut_if_needed(slide, SPEC)
    assert (outcome.status, "gone" in outcome.error, os.path.exists(slide.output)) == ("failed", True, False)


def test_a_slide_without_tissue_is_empty_and_has_no_archive(slide, tmp_path):
    write_mask(tmp_path / "none.png", np.zeros((192, 256), np.uint8))
    outcome = cut_if_needed(replace(slide, mask_path=str(tmp_path / "none.png")), SPEC)
    assert (outcome.status, os.path.exists(slide.output)) == ("empty", False)


def test_settings_that_leave_nothing_to_cut_leave_no_archive_of_earlier_settings(slide, tmp_path):
    assert cut_if_needed(slide, SPEC).status == "ok"
    paths = write_images(tmp_path / "in", a=(64, 64))
    images = ImagesCut("in", str(tmp_path / "in.zip"), paths)
    assert cut_if_needed(images, SPEC).status == "ok"
    statuses = [cut_if_needed(job, replace(SPEC, size_px=600)).status for job in (slide, images)]
    assert statuses == ["empty", "failed"]
    assert not os.path.exists(slide.output) and not os.path.exists(images.output)


def test_an_archive_that_cannot_be_written_ends_the_job(slide, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        cut_if_needed(replace(slide, output=str(tmp_path / "file/s.zip")), SPEC)


def write_images(folder, **sizes):
    folder.mkdir()
    for name, (width, height) in sizes.items():
        pixels = np.resize(picture(name, 128), (height, width, 3))
        (folder / f"{name}.png").write_bytes(encoded(pixels))
    return tuple(str(folder / f"{name}.png") for name in sizes)


def test_images_are_cut_into_squares_side_by_side(tmp_path):
    paths = write_images(tmp_path / "in", a=(70, 64), b=(32, 32))
    outcome = cut(ImagesCut("in", str(tmp_path / "in.zip"), paths), replace(SPEC, size_px=32))
    found = members(tmp_path / "in.zip")
    places = ["x0_y0", "x32_y0", "x0_y32", "x32_y32", "x0_y0"]
    assert list(found) == [f"patch_{i:03d}_32_{place}.png" for i, place in enumerate(places)]
    whole = np.resize(picture("a", 128), (64, 70, 3))
    assert np.array_equal(decode_patch(found["patch_001_32_x32_y0.png"], 32), whole[:32, 32:64])
    assert (outcome.status, outcome.patches, outcome.refused) == ("ok", 5, 0)


def whole_image(name, width, height):
    return np.resize(picture(name, 128), (height, width, 3))


def interpolated(pixels, width, height):
    """Linear between pixel centres, by torch in float64."""
    x = torch.from_numpy(pixels.astype(np.float64)).movedim(-1, 0)[None]
    y = torch.nn.functional.interpolate(x, (height, width), mode="bilinear", align_corners=False)
    return y[0].movedim(0, -1).numpy()


def block_means(pixels, width, height):
    """Means of 2 x 2 pixels."""
    return pixels.astype(np.float64).reshape(height, 2, width, 2, 3).mean(axis=(1, 3))


@pytest.mark.parametrize(
    ("own", "spacing", "size", "resampled", "oracle", "corners"),
    [
        (0.5, 0.25, (40, 32), (80, 64), interpolated, {0: 0, 32: 16}),  # twice the pixels
        (0.5, 0.4, (64, 52), (80, 65), interpolated, {0: 0, 32: 26}),  # 25.6 is in the image's pixel 26
        (0.25, 0.5, (130, 64), (65, 32), block_means, {0: 0, 32: 64}),  # half of them
    ],
)
def test_images_of_another_spacing_are_resampled_and_say_where_they_lie_in_their_own_pixels(
    tmp_path, own, spacing, size, resampled, oracle, corners
):
    paths = write_images(tmp_path / "in", a=size)
    job = ImagesCut("in", str(tmp_path / "in.zip"), paths, own)
    outcome = cut(job, replace(SPEC, size_px=32, mpp=spacing))
    whole = oracle(whole_image("a", *size), *resampled)
    places = [(x, y) for y in (0, 32) for x in (0, 32) if x + 32 <= resampled[0] and y + 32 <= resampled[1]]
    found = members(tmp_path / "in.zip")
    assert list(found) == [f"patch_{i:03d}_32_x{corners[x]}_y{corners[y]}.png" for i, (x, y) in enumerate(places)]
    assert (outcome.status, outcome.patches, outcome.refused) == ("ok", len(places), 0)
    for (x, y), data in zip(places, found.values(), strict=True):
        apart = decode_patch(data, 32).astype(np.float64) - whole[y : y + 32, x : x + 32]
        assert np.abs(apart).max() <= 0.5 + 1e-3, "rounded to whole numbers, and no more"


def test_squares_of_images_overlap_as_those_of_slides_do(tmp_path):
    paths = write_images(tmp_path / "in", a=(70, 48))
    spec = replace(SPEC, size_px=32, overlap_px=16)
    cut(ImagesCut("in", str(tmp_path / "in.zip"), paths), spec)
    corners = [(x, y) for y in (0, 16) for x in (0, 16, 32)]
    found = members(tmp_path / "in.zip")
    assert list(found) == [f"patch_{i:03d}_32_x{x}_y{y}.png" for i, (x, y) in enumerate(corners)]
    whole = whole_image("a", 70, 48)
    for (x, y), data in zip(corners, found.values(), strict=True):
        assert np.array_equal(decode_patch(data, 32), whole[y : y + 32, x : x + 32])


def test_overlap_is_of_the_resampled_pixels(tmp_path):
    paths = write_images(tmp_path / "in", a=(24, 16))
    cut(ImagesCut("in", str(tmp_path / "in.zip"), paths, 0.5), replace(SPEC, size_px=32, mpp=0.25, overlap_px=24))
    found = members(tmp_path / "in.zip")
    assert list(found) == [f"patch_{i:03d}_32_x{x}_y0.png" for i, x in enumerate((0, 4, 8))]
    left, right = (decode_patch(found[name], 32) for name in list(found)[:2])
    assert np.array_equal(left[:, 8:], right[:, :24]) and not np.array_equal(left, right)


def test_images_too_small_after_resampling_are_refused_with_that_size(tmp_path):
    paths = write_images(tmp_path / "in", a=(32, 32), small=(40, 31))
    job = ImagesCut("in", str(tmp_path / "in.zip"), paths, 0.5)
    outcome = cut_if_needed(job, replace(SPEC, mpp=0.25))
    assert (outcome.status, outcome.patches, outcome.refused) == ("ok", 1, 1)
    assert "small.png: 80 x 62 pixels at 0.25 µm, expected at least 64 x 64" in outcome.error
    assert list(members(tmp_path / "in.zip")) == ["patch_000_64_x0_y0.png"]
    outcome = cut_if_needed(replace(job, output=str(tmp_path / "none.zip")), replace(SPEC, size_px=32, mpp=1.0))
    assert (outcome.status, outcome.patches, outcome.refused) == ("failed", 0, 2)
    assert "a.png: 16 x 16 pixels at 1 µm" in outcome.error and not (tmp_path / "none.zip").exists()


def test_a_finished_archive_of_images_is_made_again_when_spacing_or_overlap_change(tmp_path):
    paths = write_images(tmp_path / "in", a=(64, 64))
    job, spec = ImagesCut("in", str(tmp_path / "in.zip"), paths, 0.5), replace(SPEC, size_px=32)
    corners = {0.5: 4, 0.25: 1, 1.0: 16}  # of each spacing of the images: they are cut at 0.5
    for own in (0.5, 0.25, 1.0):
        for status in ("ok", "skipped"):
            outcome = cut_if_needed(replace(job, mpp=own), spec)
            assert (outcome.status, outcome.patches) == (status, corners[own])
    changes = [({"mpp": 1.0}, 1), ({"overlap_px": 16}, 9), ({"size_px": 64}, 1)]
    for change, patches in changes:
        assert cut_if_needed(job, spec).status == "ok"
        outcomes = [cut_if_needed(job, replace(spec, **change)) for _ in range(2)]
        assert [(o.status, o.patches) for o in outcomes] == [("ok", patches), ("skipped", patches)]
    assert cut_if_needed(job, replace(spec, size_px=64, min_tissue_fraction=0.9)).status == "skipped"
    unknown = replace(job, mpp=None)
    outcomes = [cut_if_needed(unknown, replace(spec, mpp=spacing)) for spacing in (0.5, 0.25)]
    assert [o.status for o in outcomes] == ["ok", "skipped"], "without a spacing of their own they stay as they are"


def test_images_that_are_too_small_or_unreadable_are_refused_with_the_reason(tmp_path):
    paths = write_images(tmp_path / "in", a=(32, 32), small=(40, 31))
    (tmp_path / "in/bad.png").write_bytes(b"no image")
    job = ImagesCut("in", str(tmp_path / "in.zip"), (*paths, str(tmp_path / "in/bad.png")))
    outcome = cut_if_needed(job, replace(SPEC, size_px=32))
    assert (outcome.status, outcome.patches, outcome.refused) == ("ok", 1, 2)
    assert (
        "small.png: 40 x 31 pixels, expected at least 32 x 32" in outcome.error and "bad.png: decode" in outcome.error
    )
    assert cut_if_needed(job, SPEC).status == "failed"
