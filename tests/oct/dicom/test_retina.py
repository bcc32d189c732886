"""The grid at the retina's depth: wherever a generated retina is, it is in the same place of the grid."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from oct.dicom.file import open_dicom
from oct.dicom.frames import iterate_frames
from oct.dicom.header import describe
from oct.dicom.resample import NOT_ANCHORED, read_volume
from oct.dicom.retina import NOT_FOUND, find_retina, frames_to_look_at
from oct.volume import Grid
from pathray.data.order import rng
from tests.builders.oct.opt_dicom import Scan, build_dicom
from tests.builders.oct.retina import DEPTH, layered_retina

ROWS, MM = 1024, 0.004
SPACING = (0.1, MM, 0.02)
AT_RETINA = Grid((12, 384, 48), (0.1, 2 * MM, 0.04), "retina")
CENTRED = Grid((12, 384, 48), (0.1, 2 * MM, 0.04))
MIDDLE = 192


def read(volume: np.ndarray, grid: Grid, **written):
    data = build_dicom(volume, Scan(**{"spacing_mm": SPACING} | written))
    return read_volume("x.dcm", grid, read=lambda _: data)


def layers_on_grid(sampled) -> np.ndarray:
    """The mean grey of each depth, `[H]`, of the scan's middle."""
    return sampled.image[4:8, :, 20:28].mean(axis=(0, 2))


@pytest.mark.parametrize("shift", [-200, -120, 120, 200])
def test_a_retina_that_is_shifted_stays_where_it_was_within_8_voxels(shift: int):
    at = [layers_on_grid(read(layered_retina(12, ROWS, 96, shift_rows=s), AT_RETINA)[0]) for s in (0, shift)]
    window = slice(MIDDLE - 100, MIDDLE + 100)
    fits = [np.corrcoef(at[0][window], np.roll(at[1], lag)[window])[0, 1] for lag in range(-60, 61)]
    assert abs(int(np.argmax(fits)) - 60) <= 8 and max(fits) > 0.98
    bright = np.flatnonzero(at[1] > 0.4 * at[1].max())
    assert abs((bright[0] + bright[-1]) / 2 - MIDDLE) < 0.1 * DEPTH * ROWS, "it is around the middle of the grid"


def test_at_the_center_a_shift_stays_a_shift():
    at = [layers_on_grid(read(layered_retina(12, ROWS, 96, shift_rows=s), CENTRED)[0]) for s in (0, 200)]
    assert abs(int(np.argmax(at[1])) - int(np.argmax(at[0])) - 100) <= 8, "200 rows of 4 µm are 100 voxels of 8 µm"


def test_the_grid_follows_a_retina_to_either_edge_of_the_depth():
    for shift in (-300, 400):
        sampled, header = read(layered_retina(12, ROWS, 96, shift_rows=shift), AT_RETINA)
        first, end = sampled.inside[1]
        assert header.notes == () and 0 <= first < MIDDLE < end <= 384
        assert (first > 0) == (shift < 0) and (end < 384) == (shift > 0)
        outside = np.delete(sampled.image, np.s_[first:end], axis=1)
        assert outside.size and not outside.any(), "beyond the volume there is nothing"


def test_shadows_bars_and_single_frames_do_not_move_it():
    volume = layered_retina(12, ROWS, 96, bits=8).astype(np.float32)
    row = find_retina(volume, 255)
    assert row is not None
    g = rng(0, "shadows", 0)
    dark = volume.copy()
    dark[:, :, 30:40] *= 0.1
    dark[:, :, 60:63] *= 0.3
    dark[3] = g.random((ROWS, 96)) * 8
    dark[:, 20:24] = 255
    found = find_retina(dark, 255)
    assert found is not None and abs(found - row) <= 8


@pytest.mark.parametrize("grey", [0, 3, 255])
def test_a_volume_without_contrast_is_read_at_its_center_and_says_so(grey: int):
    volume = np.full((4, ROWS, 32), grey, np.uint8)
    sampled, header = read(volume, AT_RETINA)
    centred, plain = read(volume, CENTRED)
    assert header.notes[-1] == NOT_FOUND and plain.notes == ()
    np.testing.assert_array_equal(sampled.image, centred.image)
    np.testing.assert_array_equal(sampled.inside, centred.inside)


def test_a_depth_without_spacing_is_fitted_as_ever_and_says_so():
    volume = layered_retina(4, 300, 32, shift_rows=60)
    sampled, header = read(volume, AT_RETINA, measures="")
    assert header.notes[-1] == NOT_ANCHORED and sampled.inside[1].tolist() == [0, 384]
    np.testing.assert_array_equal(sampled.image, read(volume, CENTRED, measures="")[0].image)


def test_a_crop_along_the_other_axes_does_not_change_the_depth():
    data = build_dicom(layered_retina(30, ROWS, 96, shift_rows=150), Scan(spacing_mm=SPACING))
    boxes = [
        read_volume("x.dcm", AT_RETINA, (z, y, x), read=lambda _: data)[0].inside[1].tolist()
        for z, y, x in ((0, 0, 0), (1, 0.3, 0.5), (0.5, 1, 1))
    ]
    assert boxes[0] == boxes[1] == boxes[2]


def test_looking_for_the_retina_holds_few_frames_at_a_time():
    """The file, the grid and four frames, as without it."""
    shape = (64, 512, 512)
    data = build_dicom(layered_retina(*shape), Scan(spacing_mm=(0.05, MIDDLE * 2e-5, 0.01)))
    grid = Grid((16, 96, 96), (0.2, 0.02, 0.05), "retina")
    read_volume("warm up", grid, read=lambda _: data)
    tracemalloc.start()
    read_volume("x.dcm", grid, read=lambda _: data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    frame = shape[1] * shape[2] * 4  # as float32
    assert peak <= 2 * 16 * 96 * 96 + 4 * frame


def test_few_frames_of_a_long_volume_are_looked_at():
    assert frames_to_look_at(4) == [0, 1, 2, 3]
    assert frames_to_look_at(128) == [12, 38, 64, 89, 115]


def test_the_retina_of_every_real_volume_is_found_and_moves_with_its_rows(shared_data: Path):
    found = 0
    for path in sorted((shared_data / "oct/retinal_oct/structural_oct").rglob("*.dcm")):
        file = open_dicom(path.read_bytes(), str(path))
        header = describe(file)
        if header.exclusion:
            continue
        frames = list(iterate_frames(file, header))
        top = round(0.06 * header.rows)  # above it all these retinas have vitreous
        row = find_retina(frames, (1 << header.bits_stored) - 1)
        moved = find_retina([np.roll(frame, top, axis=0) for frame in frames], (1 << header.bits_stored) - 1)
        assert row is not None and moved is not None and abs(moved - row - top) <= 8, path.name
        brightest = np.median([frame.mean(axis=1).argmax() for frame in frames])
        assert abs(row - brightest) < 0.12 * header.rows, f"{path.name}: the epithelium is next to it"
        found += 1
    assert found == 13
