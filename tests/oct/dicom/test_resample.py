"""Against float64: PyTorch's antialiased interpolation, a linear ramp in mm, and a sum written out voxel by voxel."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from oct.dicom.header import read_header
from oct.dicom.resample import put_on_grid, read_volume
from oct.volume import GREY, Geometry, Grid, Triple, VolumeHeader
from pathray.errors import UnreachableUnit, UnreadableUnit
from tests.builders.oct.opt_dicom import EN_FACE, Scan, build_dicom
from tests.builders.oct.retina import layered_retina

RECORDED = ("positions", "shared_measures", "shared_measures")
GREY_LEVEL = GREY / 255


def header_of(
    shape: tuple[int, int, int],
    spacing_mm: Triple,
    *,
    sources: tuple[str, str, str] = RECORDED,
    offsets_mm: tuple[float, ...] | None = None,
    bits: int = 8,
) -> VolumeHeader:
    geometry = Geometry(spacing_mm, sources, tuple(range(shape[0])), offsets_mm)
    return VolumeHeader("", "", "", *shape, bits, False, "", "", "", geometry)


def torch_oracle(volume: np.ndarray, shape: tuple[int, int, int], bits: int = 8) -> np.ndarray:
    """The whole volume stretched to `shape`, float64, triangle filter; 0 … `GREY`."""
    how = {"mode": "bilinear", "antialias": True, "align_corners": False}
    image = torch.from_numpy(volume.astype(np.float64))[:, None]
    image = functional.interpolate(image, size=shape[1:], **how)[:, 0]
    image = functional.interpolate(image.flatten(1)[None, None], size=(shape[0], shape[1] * shape[2]), **how)
    return image.reshape(shape).numpy() * GREY / (2**bits - 1)


@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((12, 40, 36), (4, 10, 12)),  # down by whole numbers
        ((10, 33, 28), (7, 9, 20)),  # down by fractions
        ((5, 9, 8), (17, 30, 12)),  # up
        ((9, 50, 6), (20, 7, 31)),  # both
        ((6, 8, 10), (6, 8, 10)),  # as it is
        ((1, 8, 10), (3, 4, 5)),  # one frame
        ((70, 65, 66), (64, 60, 62)),  # several blocks
    ],
)
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_resample_is_within_one_grey_of_float64(shape, grid, bits: int):
    volume = np.random.default_rng(0).integers(0, 1 << bits, shape).astype(np.uint8 if bits == 8 else np.uint16)
    spacing = (0.05, 0.02, 0.02)
    native = tuple(s * g / n for s, g, n in zip(spacing, grid, shape, strict=True))
    sampled = put_on_grid(volume, header_of(shape, native, bits=bits), Grid(grid, spacing))
    assert np.abs(sampled.image - torch_oracle(volume, grid, bits)).max() <= 1, "of 32,767: rounding only"
    assert sampled.inside.tolist() == [[0, n] for n in grid]
    assert sampled.spacing_mm == spacing
    assert sampled.image.dtype == np.int16


@pytest.mark.parametrize("shape", [(31, 496, 768), (128, 300, 200)])
def test_resample_of_a_retina_is_within_one_grey_of_float64(shape):
    volume, grid = layered_retina(*shape), (40, 96, 120)
    native = tuple(s * g / n for s, g, n in zip((0.05, 0.02, 0.02), grid, shape, strict=True))
    sampled = put_on_grid(volume, header_of(shape, native), Grid(grid))
    assert np.abs(sampled.image - torch_oracle(volume, grid)).max() <= GREY_LEVEL / 100


def test_full_range_becomes_full_range():
    for bits in (8, 10, 16):
        volume = np.full((4, 6, 6), (1 << bits) - 1, np.uint16)
        image = put_on_grid(volume, header_of((4, 6, 6), (0.03, 0.011, 0.05), bits=bits), Grid((2, 3, 9))).image
        assert image.max() == GREY
        assert put_on_grid(volume * 0, header_of((4, 6, 6), (1, 1, 1), bits=bits), Grid((2, 3, 9))).image.max() == 0


def voxel_by_voxel(volume: np.ndarray, places: np.ndarray, voxels: int, step: float) -> np.ndarray:
    """z only, `[voxels, …]` float64, written as a sum over frames for each voxel."""
    edges = [1.5 * places[0] - 0.5 * places[1], *((places[1:] + places[:-1]) / 2), 1.5 * places[-1] - 0.5 * places[-2]]
    out, middle = [], (edges[0] + edges[-1]) / 2
    for k in range(voxels):
        z, total, weights = middle + (k + 0.5 - voxels / 2) * step, 0.0, 0.0
        after = min(max(int(np.sum(places <= z)), 1), len(places) - 1)
        if places[after] - places[after - 1] >= step:
            part = min(max((z - places[after - 1]) / (places[after] - places[after - 1]), 0.0), 1.0)
            out.append((1 - part) * volume[after - 1] + part * volume[after])
            continue
        for i, place in enumerate(places):
            weight = max(0.0, 1 - abs(place - z) / step) * (edges[i + 1] - edges[i])
            total, weights = total + weight * volume[i].astype(np.float64), weights + weight
        out.append(total / weights)
    return np.array(out) * GREY / 255


@pytest.mark.parametrize("step", [0.01, 0.045, 0.2])
def test_irregular_gaps_are_interpolated_at_true_positions(step: float):
    offsets = np.cumsum([0, 0.05, 0.03, 0.2, 0.04, 0.05, 0.06, 0.02, 0.1])
    volume = np.random.default_rng(1).integers(0, 256, (len(offsets), 3, 4)).astype(np.uint8)
    extent = offsets[-1] + (0.05 + 0.1) / 2
    voxels = math.floor(extent / step + 0.5)
    header = header_of(volume.shape, (offsets[-1] / 8, 0.02, 0.02), offsets_mm=tuple(offsets))
    sampled = put_on_grid(volume, header, Grid((voxels, 3, 4), (step, 0.02, 0.02)))
    assert np.abs(sampled.image - voxel_by_voxel(volume, offsets, voxels, step)).max() <= 1


@pytest.mark.parametrize("step", [0.02, 0.05])
def test_a_ramp_in_mm_stays_a_ramp_over_irregular_gaps(step: float):
    """Frames taken as evenly spaced would bend it."""
    offsets = np.cumsum([0, 0.05, 0.05, 0.3, 0.05, 0.15, 0.05])
    volume = np.broadcast_to((100 + 100 * offsets)[:, None, None], (7, 2, 2)) * 256  # 16 bits: no rounding to speak of
    voxels = 60
    header = header_of((7, 2, 2), (0.65 / 6, 0.02, 0.02), offsets_mm=tuple(offsets), bits=16)
    sampled = put_on_grid(volume.astype(np.uint16), header, Grid((voxels, 2, 2), (step, 0.02, 0.02)))
    begin, end = sampled.inside[0]
    z = 0.325 + (np.arange(begin, end) + 0.5 - (begin + end) / 2) * step
    inner = (z > 0.05) & (z < 0.6)
    expected = (100 + 100 * z) * 256 * GREY / 65535
    assert np.abs(sampled.image[begin:end, 0, 0] - expected)[inner].max() < 2


def test_what_is_shorter_than_the_grid_is_centred():
    volume = np.full((4, 10, 6), 255, np.uint8)
    sampled = put_on_grid(volume, header_of((4, 10, 6), (0.05, 0.02, 0.02)), Grid((8, 13, 6)))
    assert sampled.inside.tolist() == [[2, 6], [1, 11], [0, 6]]
    assert (sampled.image[2:6, 1:11] == GREY).all()
    assert sampled.image.sum(dtype=np.int64) == 4 * 10 * 6 * GREY, "and 0 outside"


@pytest.mark.parametrize(("crop", "begin"), [(0.0, 0), (0.5, 3), (1.0, 6), (0.3, 2)])
def test_what_exceeds_the_grid_is_cropped_by_a_part_of_the_excess(crop: float, begin: int):
    volume = np.random.default_rng(2).integers(0, 256, (10, 11, 12)).astype(np.uint8)
    for axis in range(3):
        shape = [10, 11, 12]
        size = shape[axis] - 6
        shape[axis] = size
        crops = [0.5, 0.5, 0.5]
        crops[axis] = crop
        sampled = put_on_grid(volume, header_of((10, 11, 12), (0.05, 0.02, 0.02)), Grid(tuple(shape)), tuple(crops))
        expected = np.take(volume, range(begin, begin + size), axis) * (GREY / 255)
        assert np.abs(sampled.image - expected).max() <= 0.51
        assert sampled.inside[axis].tolist() == [0, size]


def test_an_assumed_spacing_is_fitted_and_never_resampled():
    """5 × 450 × 900 at 1 mm would be 100 × 22,500 × 45,000 voxels of the grid: 10^11."""
    volume = layered_retina(5, 450, 900)
    header = header_of((5, 450, 900), (1.0, 1.0, 1.0), sources=("assumed",) * 3)
    tracemalloc.start()
    sampled = put_on_grid(volume, header, Grid())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sampled.inside.tolist() == [[0, 64], [0, 384], [0, 384]]
    assert all(math.isnan(s) for s in sampled.spacing_mm)
    assert np.abs(sampled.image - torch_oracle(volume, (64, 384, 384))).max() <= 1
    assert peak < 60e6


def test_axes_are_fitted_one_by_one():
    header = header_of((10, 20, 30), (0.1, 1.0, 0.02), sources=("positions", "assumed", "manifest"))
    sampled = put_on_grid(np.zeros((10, 20, 30), np.uint8), header, Grid((32, 32, 32)))
    assert sampled.inside.tolist() == [[6, 26], [0, 32], [1, 31]]
    assert sampled.spacing_mm[0] == 0.05 and math.isnan(sampled.spacing_mm[1]) and sampled.spacing_mm[2] == 0.02


def test_a_recorded_spacing_of_1_mm_is_only_computed_where_the_grid_is():
    header = header_of((5, 45, 90), (1.0, 1.0, 1.0))
    sampled = put_on_grid(np.full((5, 45, 90), 255, np.uint8), header, Grid((16, 32, 32)))
    assert (sampled.image == GREY).all()


def test_the_retina_keeps_its_place_in_mm():
    """A layer 40 µm above the middle of the volume is 2 voxels above the middle of the grid."""
    volume = np.zeros((4, 201, 20), np.uint8)
    volume[:, 90] = 255  # the middle is row 100
    sampled = put_on_grid(volume, header_of((4, 201, 20), (0.05, 0.004, 0.02)), Grid((4, 50, 20)))
    rows = sampled.image.sum(axis=(0, 2), dtype=np.int64)
    assert (rows * np.arange(50)).sum() / rows.sum() == pytest.approx(24.5 - 10 * 0.004 / 0.02, abs=0.01)


def test_read_volume_puts_shuffled_frames_in_place(tmp_path: Path):
    volume, shuffled = layered_retina(6, 40, 50), (4, 2, 0, 5, 1, 3)
    (tmp_path / "a.dcm").write_bytes(build_dicom(volume, Scan(stored=shuffled, reversed_normal=True)))
    sampled, header = read_volume(str(tmp_path / "a.dcm"), Grid((6, 16, 24)))
    assert header.geometry.sources == RECORDED
    expected = put_on_grid(volume, header_of(volume.shape, (0.05, 0.004, 0.012)), Grid((6, 16, 24)))
    np.testing.assert_array_equal(sampled.image, expected.image)
    assert np.all(np.diff(sampled.image[:, 8, 4:5].ravel().astype(int)) != 0), "the frames differ"


def test_frames_outside_the_crop_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from pydicom import uid

    from oct.dicom import frames

    decoded: list[int] = []
    original = frames.decode_frame
    monkeypatch.setattr(frames, "decode_frame", lambda *a: decoded.append(a[5]) or original(*a))
    volume = layered_retina(20, 12, 14)
    (tmp_path / "a.dcm").write_bytes(build_dicom(volume, Scan(syntax=uid.RLELossless)))
    sampled, header = read_volume(str(tmp_path / "a.dcm"), Grid((4, 8, 8)), (0.25, 0.5, 0.5))
    assert decoded == [4, 5, 6, 7]
    np.testing.assert_array_equal(sampled.image, put_on_grid(volume, header, Grid((4, 8, 8)), (0.25, 0.5, 0.5)).image)


def test_files_that_are_no_volumes_are_unreadable_by_their_reason(tmp_path: Path):
    (tmp_path / "flat.dcm").write_bytes(build_dicom(layered_retina(3, 8, 8), Scan(sop_class=EN_FACE)))
    (tmp_path / "empty.dcm").write_bytes(b"")
    for name, reason in (("flat.dcm", "en_face"), ("empty.dcm", "empty"), ("none.dcm", "missing")):
        with pytest.raises(UnreadableUnit) as error:
            read_volume(str(tmp_path / name), Grid())
        assert (error.value.reason, error.value.path) == (reason, str(tmp_path / name))


def test_read_volume_takes_a_url():
    import fsspec

    content = build_dicom(layered_retina(3, 8, 8))
    with fsspec.open("memory://oct/a.dcm", "wb") as file:
        file.write(content)
    sampled, header = read_volume("memory://oct/a.dcm", Grid((3, 4, 4)))
    assert header == read_header(content, "x") and sampled.image.any()


def test_storage_that_is_away_is_no_fault_of_the_volume():
    def read(path: str) -> bytes:
        raise UnreachableUnit(path, "503")

    with pytest.raises(UnreachableUnit):
        read_volume("gs://bucket/a.dcm", Grid(), read=read)


def test_a_manifest_spacing_resamples(tmp_path: Path):
    (tmp_path / "a.dcm").write_bytes(build_dicom(layered_retina(4, 20, 20), Scan(measures="")))
    sampled, header = read_volume(str(tmp_path / "a.dcm"), Grid((8, 32, 32)), manifest_spacing=(None, 0.01, 0.02))
    assert header.geometry.sources == ("positions", "manifest", "manifest")
    assert sampled.inside.tolist() == [[2, 6], [11, 21], [6, 26]]


@pytest.mark.parametrize("bits", [8, 16])
def test_peak_memory_is_the_file_the_output_and_four_frames(tmp_path: Path, bits: int):
    """128 frames in float32 would be 64 MB more."""
    from pydicom import uid

    shape, grid = (128, 512, 256), Grid((64, 128, 128))
    volume = layered_retina(4, 512, 256, bits=bits, noise=0)[np.arange(128) % 4]
    scan = Scan(syntax=uid.RLELossless, spacing_mm=(0.02, 0.004, 0.012))
    for syntax in (uid.RLELossless, uid.ExplicitVRLittleEndian):
        content = build_dicom(volume, Scan(syntax=syntax, spacing_mm=scan.spacing_mm))
        (tmp_path / "a.dcm").write_bytes(content)
        read_volume(str(tmp_path / "a.dcm"), grid)  # what is imported and kept
        tracemalloc.start()
        sampled, _ = read_volume(str(tmp_path / "a.dcm"), grid)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        frame, header = shape[1] * shape[2] * 4, 8000 * shape[0]  # float32 pixels; Python objects of a frame's groups
        assert peak <= len(content) + sampled.image.nbytes + 4 * frame + header, (peak - len(content)) / frame
