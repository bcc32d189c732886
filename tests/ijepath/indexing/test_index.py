import os
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

import ijepath.indexing.index
from ijepath.indexing.anchors import anchors_of
from ijepath.indexing.catalog import Catalog
from ijepath.indexing.catalog import is_current as catalog_current
from ijepath.indexing.catalog_writer import write_catalog
from ijepath.indexing.index import (
    COLUMNS,
    SlideIndex,
    index_slide,
    index_slides,
    is_current,
    keep_first_results,
    read_index,
    schema,
    write_index,
)
from ijepath.indexing.manifest import ManifestRow, read_manifest
from ijepath.plan import build_plan
from ijepath.profile import Profile
from pathray.errors import MissingFile, UserError
from pathray.store.storage import Storage
from tests.builders.cohort import good_cohort, square_mask, write_manifest, write_mask, write_slide


def indexed(manifest_path, **options):
    manifest = read_manifest(manifest_path, reserved=COLUMNS)
    return SlideIndex(tuple(index_slides(manifest, **options)), manifest.metadata_columns)


def row_for(tmp_path, **facts):
    return ManifestRow(2, "s", str(write_slide(tmp_path / "s.tiff")), **facts)


def test_a_good_slide_is_described_at_every_level(tmp_path):
    mask = write_mask(tmp_path / "m.png", square_mask())
    row = index_slide(row_for(tmp_path, mask_path=str(mask)))
    assert (row["status"], row["error"]) == ("ok", "")
    assert (row["wsi_level0_width"], row["wsi_level0_height"]) == (1024, 768)
    assert row["wsi_level0_spacing_mpp"] == pytest.approx(0.5, rel=1e-4)
    assert row["wsi_shapes"] == [[1024, 768], [512, 384]]
    assert row["wsi_spacings_mpp"] == pytest.approx([0.5, 1.0], rel=1e-4)
    assert row["mask_shapes"] == [[256, 192]] and row["mask_spacings_mpp"] == pytest.approx([2.0], rel=1e-4)
    assert (row["mask_to_wsi_scale_x"], row["mask_to_wsi_scale_y"]) == (4.0, 4.0)
    assert row["spacing_source"] in ("header", "tags") and row["backend"] == "tiff"


def test_the_manifests_mpp_overrides_the_header(tmp_path):
    row = index_slide(row_for(tmp_path, mpp=0.25))
    assert (row["wsi_level0_spacing_mpp"], row["spacing_source"]) == (0.25, "manifest")
    assert row["wsi_spacings_mpp"] == [0.25, 0.5]


def test_a_slide_without_a_pixel_size_says_to_add_an_mpp_column(tmp_path):
    path = write_slide(tmp_path / "s.tiff", mpp=None)
    row = index_slide(ManifestRow(7, "s", str(path)))
    assert row["status"] == "failed"
    for part in ("add an `mpp` column", str(path), "row: 7"):
        assert part in row["error"]


def test_a_mask_of_another_aspect_is_a_named_error_with_the_tolerance(tmp_path):
    mask = write_mask(tmp_path / "m.png", square_mask(256, 256))
    row = index_slide(row_for(tmp_path, mask_path=str(mask)))
    assert row["status"] == "failed"
    for part in ("aspect ratio (", "tolerance 2% and one mask pixel", "256 x 256, ratio 1.0000", "1024 x 768, 1.3333"):
        assert part in row["error"]


@pytest.mark.parametrize(("width", "height"), [(257, 192), (256, 193), (13, 10), (252, 192)])
def test_a_mask_whose_sides_are_rounded_is_accepted(tmp_path, width, height):
    mask = write_mask(tmp_path / "m.png", square_mask(width, height))
    assert index_slide(row_for(tmp_path, mask_path=str(mask)))["status"] == "ok"


def broken_cohort(folder):
    """One slide of every kind of trouble, with a good one at the end; the manifest's path and what each error says."""
    good = write_slide(folder / "good.tiff")
    (folder / "noise.tiff").write_bytes(b"II*\x00" + os.urandom(500))
    (folder / "cut.tiff").write_bytes(good.read_bytes()[:-200])
    (folder / "vendor.sdpc").write_bytes(b"x")
    (folder / "noise.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    cases = [
        ("gone", "gone.tiff", "", "no such"),
        ("noise", "noise.tiff", "", "noise.tiff"),
        ("cut", "cut.tiff", "", "cut.tiff"),
        ("vendor", "vendor.sdpc", "", "SDPC"),
        ("text", "slides.csv", "", "slides.csv"),
        ("no mask", "good.tiff", "gone.png", "gone.png"),
        ("bad mask", "good.tiff", "noise.png", "noise.png"),
        ("twice", "good.tiff", "", ""),
        ("twice", "good.tiff", "", "duplicate slide_id"),
        ("good", "good.tiff", "", ""),
    ]
    rows = [{"slide_id": i, "wsi_path": w, "mask_path": m, "organ": "lung"} for i, w, m, _ in cases]
    return write_manifest(folder / "slides.csv", rows), [message for *_, message in cases]


def test_each_slide_that_fails_is_one_failed_row_and_the_others_go_on(tmp_path):
    path, messages = broken_cohort(tmp_path)
    index = indexed(path)
    for row, message in zip(index.rows, messages, strict=True):
        assert (row["status"] == "failed") == bool(message), row
        assert message in row["error"] and "\n" not in row["error"]
        assert row["organ"] == "lung"


def test_a_first_failed_slide_does_not_change_the_parquet_schema(tmp_path):
    path, _ = broken_cohort(tmp_path)
    index = indexed(path)
    schemas = []
    for rows in (index.rows, index.rows[::-1], index.failed_rows, index.rows[-1:]):
        write_index(str(tmp_path / "index.parquet"), SlideIndex(tuple(rows), index.metadata_columns))
        schemas.append(pq.read_schema(tmp_path / "index.parquet").remove_metadata())
    assert all(s == schema(("organ",)) for s in schemas)


def test_an_index_comes_back_as_it_was_written_and_equal_rows_give_equal_bytes(tmp_path):
    index = indexed(good_cohort(tmp_path))
    path = tmp_path / "new folder" / "index.parquet"
    write_index(str(path), index)
    first = path.read_bytes()
    assert read_index(str(path)) == index
    write_index(str(path), indexed(str(tmp_path / "slides.csv"), map=lambda f, xs: list(map(f, xs))))
    assert path.read_bytes() == first


def test_resume_keeps_unchanged_ok_rows_and_tries_failed_ones_again(tmp_path, monkeypatch):
    path = good_cohort(tmp_path)
    (tmp_path / "slide1.tiff").rename(tmp_path / "away")
    before = indexed(path)
    assert [r["status"] for r in before.rows] == ["ok", "failed", "ok"]
    (tmp_path / "away").rename(tmp_path / "slide1.tiff")
    write_slide(tmp_path / "slide2.tiff", width=2000)
    write_mask(tmp_path / "mask2.png", square_mask(500))
    opened = []
    real = ijepath.indexing.index.open_slide
    monkeypatch.setattr(
        ijepath.indexing.index, "open_slide", lambda p, **k: opened.append(os.path.basename(p)) or real(p, **k)
    )
    after = indexed(path, previous=before.rows)
    assert opened == ["slide1.tiff", "slide2.tiff"]
    assert [r["status"] for r in after.rows] == ["ok", "ok", "ok"] and after.rows[0] == before.rows[0]
    assert after.rows[2]["wsi_level0_width"] == 2000


def test_resume_sees_a_changed_mask_and_a_changed_mpp_but_keeps_pixels_facts_over_other_metadata(tmp_path, monkeypatch):
    mask = write_mask(tmp_path / "m.png", square_mask())
    row = row_for(tmp_path, mask_path=str(mask), metadata={"mpp": None, "organ": "lung"})
    before = index_slide(row)
    opened = []
    real = ijepath.indexing.index.open_slide
    monkeypatch.setattr(ijepath.indexing.index, "open_slide", lambda p, **k: opened.append(p) or real(p, **k))
    assert index_slide(replace(row, metadata={"mpp": None, "organ": "skin"}), previous=before) == before | {
        "organ": "skin"
    }
    assert not opened
    changed = index_slide(replace(row, mpp=0.3, metadata={"mpp": "0.3", "organ": "lung"}), previous=before)
    assert len(opened) == 1 and changed["wsi_level0_spacing_mpp"] == 0.3
    write_mask(mask, square_mask(128, 96))
    assert index_slide(row, previous=before)["mask_shapes"] == [[128, 96]] and len(opened) == 2


def test_an_index_is_current_for_its_manifest_only(tmp_path):
    path = good_cohort(tmp_path)
    index_path = str(tmp_path / "index.parquet")
    assert not is_current(index_path, read_manifest(path))
    write_index(index_path, indexed(path))
    assert is_current(index_path, read_manifest(path))
    text = (tmp_path / "slides.csv").read_text()
    (tmp_path / "slides.csv").write_text(text.replace("skin", "liver"))
    assert not is_current(index_path, read_manifest(path))
    (tmp_path / "slides.csv").write_text(text)
    write_mask(tmp_path / "mask0.png", square_mask(128, 96))
    assert not is_current(index_path, read_manifest(path)), "a mask that changed is to be read again"
    write_index(index_path, indexed(path))
    assert is_current(index_path, read_manifest(path))
    (tmp_path / "slides.csv").write_text(text + "s9,gone.tiff,,lung\n")
    write_index(index_path, indexed(path))
    assert not is_current(index_path, read_manifest(path)), "a failed slide is to be tried again"


def test_slides_of_a_run_that_was_begun_are_those_of_its_beginning(tmp_path):
    manifest = read_manifest(good_cohort(tmp_path))
    (tmp_path / "slide2.tiff").rename(tmp_path / "away.tiff")
    first, second, third = index_slides(manifest)
    assert [row["status"] for row in (first, second, third)] == ["ok", "ok", "failed"]
    begun = (third, first, first | {"status": "failed", "error": "duplicate slide_id"}, second)
    found = SlideIndex((first | {"organ": "liver"}, second | {"status": "failed"}, third | {"status": "ok"}))
    assert keep_first_results(found, begun).rows == (first | {"organ": "liver"}, second, third)
    assert keep_first_results(found, ()).rows == found.rows
    twice = SlideIndex((first, first | {"status": "failed", "error": "duplicate slide_id"}))
    assert keep_first_results(twice, begun).rows == twice.rows


def test_what_is_no_index_is_refused_by_name(tmp_path):
    path = tmp_path / "index.parquet"
    with pytest.raises(MissingFile, match="index.parquet"):
        read_index(str(path))
    path.write_bytes(b"not parquet")
    with pytest.raises(UserError, match="invalid or damaged slide index"):
        read_index(str(path))
    pq.write_table(schema().empty_table().select(["slide_id"]), path)
    with pytest.raises(UserError, match="wsi_path"):
        read_index(str(path))


def test_the_real_slides_are_indexed_and_the_one_without_a_pixel_size_needs_it_in_the_manifest(shared_data, tmp_path):
    names = ["CMU-1-Small-Region.svs", "TCGA-CR-7395-01A-01-TS1.svs", *(
        f"derived/CMU1_pyramid_{kind}" for kind in ("jpeg.svs", "jp2k.svs", "generic.tiff")
    )]  # fmt: skip
    rows = [{"slide_id": n.split("/")[-1], "wsi_path": str(shared_data / "wsi" / n)} for n in names]
    by_id = {r["slide_id"]: r for r in indexed(write_manifest(tmp_path / "plain.csv", rows)).rows}
    tcga = "TCGA-CR-7395-01A-01-TS1.svs"
    assert by_id[tcga]["status"] == "failed" and "`mpp` column" in by_id[tcga]["error"]
    ok = [r for r in by_id.values() if r["status"] == "ok"]
    assert len(ok) == 4 and all(r["wsi_shapes"][0] == [2220, 2967] for r in ok)
    np.testing.assert_allclose([r["wsi_level0_spacing_mpp"] for r in ok], 0.499, atol=1e-3)
    given = [r | {"mpp": "0.5" if r["slide_id"] == tcga else ""} for r in rows]
    index = indexed(write_manifest(tmp_path / "given.csv", given))
    assert not index.failed_rows and index.rows[1]["wsi_shapes"][0] == [4443, 3567]


def test_slides_masks_manifest_index_and_catalog_may_all_lie_behind_urls(tmp_path):
    root = "memory://bucket/cohort"
    good_cohort(tmp_path, slides=2)
    store = Storage.of(root)
    for path in tmp_path.iterdir():
        store.put(path, f"wsi/{path.name}")
    index = indexed(f"{root}/wsi/slides.csv")
    assert [r["status"] for r in index.rows] == ["ok", "ok"], index.failed_rows
    write_index(f"{root}/indexes/slide_metadata.parquet", index)
    profile = Profile(context_fov_um=64.0, target_fov_um=16.0)
    catalog = f"{root}/indexes/anchor_catalog_manifest.json"
    options = {"slide_index": f"{root}/indexes/slide_metadata.parquet", "metadata_columns": index.metadata_columns}
    write_catalog(catalog, profile, anchors_of(read_index(options["slide_index"]).rows, profile), **options)
    plan = build_plan(catalog, str(tmp_path / "plan"), sampling_stratum_key="organ")
    assert plan.rows == Catalog.open(catalog, verify=True).total_anchors > 50
    assert plan.sources["wsi_path"].to_pylist() == [f"{root}/wsi/slide{i}.tiff" for i in range(2)]
    assert catalog_current(catalog, profile, options["slide_index"])
