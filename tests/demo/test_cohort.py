"""The made cohort: two hospitals that differ in stain and scanner, tissue that carries its labels, equal bytes."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from demo.anatomy import LYMPHOID, TUMOUR, grow
from demo.cohort import CohortSettings, SlidePlan, generate, main, plan, render
from demo.organs import ORGANS
from demo.scanner import HOSPITALS, NORTH, SOUTH
from pathray.errors import UserError

SMALL = CohortSettings(slides_per_hospital=1, size_um=640, patches_per_label=3, patch_px=96)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("cohort"), SMALL, workers=1).parent


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as f:
        return list(csv.DictReader(f))


def slides_of(root: Path) -> dict[str, Path]:
    return {row["site"]: root / row["wsi_path"] for row in rows_of(root / "manifest.csv")}


def test_manifest_names_existing_files_and_both_hospitals(cohort: Path) -> None:
    rows = rows_of(cohort / "manifest.csv")
    assert list(rows[0]) == ["slide_id", "wsi_path", "mask_path", "organ", "site"]
    assert {row["site"] for row in rows} == {"north", "south"}
    assert all((cohort / row["wsi_path"]).is_file() for row in rows)
    assert [bool(row["mask_path"]) for row in rows] == [True, False]


@pytest.mark.parametrize("hospital", HOSPITALS, ids=lambda h: h.name)
def test_openslide_and_tiffslide_see_the_same_pyramid_and_spacing(cohort: Path, hospital) -> None:
    openslide, tiffslide = pytest.importorskip("openslide"), pytest.importorskip("tiffslide")
    path = str(slides_of(cohort)[hospital.name])
    with openslide.OpenSlide(path) as a, tiffslide.TiffSlide(path) as b:
        assert a.level_dimensions == b.level_dimensions and len(a.level_dimensions) == 3
        assert [round(d) for d in a.level_downsamples] == [1, 2, 4]
        assert float(a.properties["openslide.mpp-x"]) == pytest.approx(hospital.mpp, rel=1e-3)
        assert float(b.properties["tiffslide.mpp-x"]) == pytest.approx(hospital.mpp, rel=1e-3)
        box = (300, 300), 0, (256, 256)
        ours, theirs = (np.asarray(s.read_region(*box))[..., :3].astype(int) for s in (a, b))
        assert np.abs(ours - theirs).max() <= 3


def test_masks_cover_the_tissue_that_was_painted(cohort: Path) -> None:
    from PIL import Image

    row = rows_of(cohort / "manifest.csv")[0]
    mask = np.asarray(Image.open(cohort / row["mask_path"])) > 0
    tifffile = pytest.importorskip("tifffile")
    picture = tifffile.imread(cohort / row["wsi_path"], level=0)
    side = picture.shape[0] // mask.shape[0]
    cells = picture[: mask.shape[0] * side, : mask.shape[1] * side].reshape(mask.shape[0], side, mask.shape[1], side, 3)
    saturation = np.ptp(cells.mean((1, 3)), axis=-1)
    grown = ndimage.binary_dilation(mask, iterations=2)
    assert saturation[~grown].max() < 12, "nothing is stained outside the mask, but for two cells of ragged edge"
    assert 0.2 < mask.mean() < 0.95 and (saturation[mask] > 12).mean() > 0.6


def test_hospitals_differ_in_colour_and_white_point(cohort: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    pictures = {site: tifffile.imread(path, level=2).astype(float) for site, path in slides_of(cohort).items()}
    corner = {site: np.median(p[:6, :6], axis=(0, 1)) for site, p in pictures.items()}
    assert np.abs(corner["north"] - NORTH.white).max() < 4 and np.abs(corner["south"] - SOUTH.white).max() < 4
    mean = {site: p[np.ptp(p, axis=-1) > 30].mean(0) for site, p in pictures.items()}
    assert mean["south"][2] - mean["south"][0] > mean["north"][2] - mean["north"][0] + 5, "south's stain is bluer"


def test_equal_settings_give_equal_bytes_and_another_seed_does_not(cohort: Path, tmp_path: Path) -> None:
    def digests(root: Path) -> dict[str, str]:
        files = [p for p in root.rglob("*") if p.is_file() and p.name != "cohort.json"]
        return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    again = generate(tmp_path / "again", SMALL, workers=2).parent
    assert digests(again) == digests(cohort)
    other = plan(CohortSettings(seed=1))
    assert {s.seed for s in other}.isdisjoint(s.seed for s in plan(CohortSettings()))


def test_a_finished_cohort_is_kept_and_an_unfinished_one_is_made_again(cohort: Path) -> None:
    slide = slides_of(cohort)["north"]
    before = slide.stat().st_mtime_ns
    generate(cohort, SMALL, workers=1)
    assert slide.stat().st_mtime_ns == before
    done = json.loads((cohort / "cohort.json").read_text())
    assert done["settings"]["size_um"] == 640


def test_patches_lie_in_the_zone_of_their_label(cohort: Path) -> None:
    from PIL import Image

    rows = rows_of(cohort / "patches.csv")
    assert list(rows[0]) == ["image_path", "label", "medical_center", "slide_id"]
    assert {row["medical_center"] for row in rows} == {"north", "south"}
    shown = {row["image_path"]: np.asarray(Image.open(cohort / row["image_path"])) for row in rows}
    assert {image.shape for image in shown.values()} == {(96, 96, 3)}
    darkness = {
        label: np.mean([255 - shown[r["image_path"]].mean() for r in rows if r["label"] == label])
        for label in {r["label"] for r in rows}
    }
    assert darkness["tumour"] > darkness["benign"], "crowded nuclei are darker than open glands"


def test_every_organ_has_its_zones_and_tumour_takes_about_the_share_asked_for() -> None:
    for organ in ORGANS.values():
        anatomy = grow(organ, 5, 800, tumour_share=0.4)
        zone, tissue = anatomy.zone, anatomy.tissue > 0
        assert ((zone == TUMOUR) | (zone == LYMPHOID))[tissue].mean() == pytest.approx(0.45, abs=0.15), organ.name
        assert not (zone[~tissue]).any()
        assert ((anatomy.lumen > 1) <= (anatomy.gland > 0)).all(), "a lumen lies inside its gland"


def test_a_slide_without_tumour_has_none() -> None:
    slide = SlidePlan("one", "prostate", NORTH, 3, 0.0, 1)
    picture, anatomy = render(slide, 400)
    assert picture.shape == (800, 800, 3) and not (anatomy.zone == TUMOUR).any()


def test_wrong_settings_name_the_key() -> None:
    with pytest.raises(UserError, match="size_um"):
        CohortSettings(size_um=10)
    with pytest.raises(UserError, match="slides_per_hospitl"):
        main(["slides_per_hospitl=3"])
