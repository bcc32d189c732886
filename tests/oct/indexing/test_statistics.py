"""Figures per device, against counts and shares by hand."""

import math

import numpy as np
import pytest

from oct.dicom.axis import plan_axes
from oct.indexing.statistics import image_shares, statistics, text_table
from oct.volume import Grid
from tests.builders.oct.scans import Scan, both_eyes, index_scans, read_scan

ASSUMED = ("positions", "assumed", "assumed")


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    big = {"size": (128, 1024, 512), "spacing_mm": (0.047, 0.00195, 0.0117)}
    scans = [
        *both_eyes("1", **big),
        Scan("2", **{**big, "size": (64, 1024, 512)}),
        Scan("3", "L", header_eye="R", **big),  # an eye left open
        Scan("4", device="zeiss_cirrus", size=(5, 450, 900), spacing_mm=(0.067, 1.0, 1.0), sources=ASSUMED),
        Scan("5", device="zeiss_cirrus", exclusion="single_frame"),
        Scan("6", device="other", size=(2, 384, 384), spacing_mm=(1, 0.02, 0.02), sources=("assumed", "root", "root")),
    ]
    return index_scans(tmp_path_factory.mktemp("oct"), scans)


def test_volumes_persons_eyes_and_sizes_are_counted_per_device(index):
    _, triton, cirrus = statistics(index.accepted, Grid())
    assert (triton.device, triton.volumes, triton.persons, triton.eyes, triton.unknown_eyes) == (
        "topcon_triton", 4, 3, 3, 1,
    )  # fmt: skip
    assert triton.sizes == (((128, 1024, 512), 3), ((64, 1024, 512), 1))
    assert (cirrus.device, cirrus.volumes, cirrus.persons, cirrus.eyes) == ("zeiss_cirrus", 1, 1, 1)
    assert cirrus.spacing_mm[0] == 0.067 and math.isnan(cirrus.spacing_mm[1]), "an assumed spacing is no spacing"
    assert dict(cirrus.sources[1]) == {"assumed": 1}


def test_the_share_of_image_is_the_filled_part_of_the_grid(index):
    """At the default grid, 128 frames fill z; 1.9968 mm of y are 100 of 384 voxels of 0.02 mm, 5.9904 mm of x are 300;
    64 frames are 3.008 mm, 60 of 64 voxels. Axes of an assumed spacing are fitted to the grid.
    """
    shares = image_shares(index.accepted, Grid())
    whole = (100 / 384) * (300 / 384)
    assert 0.20 < whole < 0.25
    np.testing.assert_allclose(shares, [whole, whole, whole * 60 / 64, whole, 7 / 64, 1.0], rtol=1e-12)
    fov = image_shares(index.accepted, Grid(spacing_mm=(0.1, 0.005, 0.0167)))
    np.testing.assert_allclose(fov[0], (60 / 64) * 1.0 * (359 / 384), rtol=1e-12)


def test_the_share_of_image_is_what_a_volume_on_the_grid_has(tmp_path):
    rng, grid = np.random.default_rng(0), Grid((8, 24, 32), (0.05, 0.02, 0.02))
    scans = []
    for n in range(60):
        size = tuple(int(k) for k in rng.integers(2, 40, 3))
        sources = tuple(rng.choice(["root", "assumed"], 3, p=(0.8, 0.2)).tolist())
        scans.append(Scan(str(n), size=size, spacing_mm=tuple(rng.uniform(0.002, 0.06, 3).tolist()), sources=sources))
    shares = image_shares(index_scans(tmp_path, scans).accepted, grid)
    for scan, share in zip(scans, shares.tolist(), strict=True):
        header, _ = read_scan(str(tmp_path / scan.path), None)
        filled = [plan.end - plan.start for plan in plan_axes(header, grid, (0.5, 0.5, 0.5))]
        assert share == pytest.approx(np.prod(filled) / np.prod(grid.shape), rel=1e-12)


def test_the_table_has_a_line_per_device_with_its_figures(index):
    header, _, triton, cirrus = text_table(statistics(index.accepted, Grid())).split("\n")
    assert header.startswith("device") and header.rstrip().endswith("image")
    assert "3 (+1 volumes of unknown side)" in triton and "128×1024×512 (3), 64×1024×512 (1)" in triton
    assert "0.067, –, –" in cirrus and "positions, assumed, assumed" in cirrus and cirrus.endswith("10.9%")
