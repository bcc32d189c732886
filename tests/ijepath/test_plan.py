from dataclasses import replace

import numpy as np
import pytest

from ijepath.indexing.anchors import SlideAnchors
from ijepath.indexing.catalog_writer import write_catalog
from ijepath.plan import build_plan, identity, is_current, strata
from pathray.data.order import stratified_order
from pathray.errors import UserError
from tests.builders.anchors import anchors_at, index_row, small_profile, write_small_index

SLIDES = [("e", "lung", 5), ("b", "skin", 30), ("d", None, 7), ("a", "lung", 8), ("c", "skin", 1)]


@pytest.fixture
def catalog(tmp_path):
    rows = [index_row(i, organ, site=f"s{len(i + str(organ)) % 2}") for i, organ, _ in SLIDES]
    index = write_small_index(str(tmp_path / "slide_metadata.parquet"), rows, ("organ", "site"))
    path = str(tmp_path / "anchor_catalog_manifest.json")
    results = [
        anchors_at(row, count, first=100 * k) for k, (row, (_, _, count)) in enumerate(zip(rows, SLIDES, strict=True))
    ]
    write_catalog(
        path, small_profile(), results, slide_index=index, metadata_columns=("organ", "site"), rows_per_shard=11
    )
    return path, results


def rows_of(plan):
    columns = plan.take(np.arange(plan.rows))
    return list(zip(columns["source"].tolist(), columns["x"].tolist(), columns["y"].tolist(), strict=True))


def expected_rows(results, strata_in_order):
    """(source, x, y) grouped by stratum, then slide, then raster, built one row at a time."""
    rows = []
    for name in strata_in_order:
        for source, r in enumerate(results):
            if (r.slide["organ"] or "unknown") == name:
                rows += [(source, int(x), int(y)) for x, y in zip(r.center_x, r.center_y, strict=True)]
    return rows


@pytest.mark.parametrize("batch_size", [1, 4, 2048])
def test_rows_stand_by_stratum_then_slide_then_raster(catalog, tmp_path, batch_size):
    path, results = catalog
    plan = build_plan(path, str(tmp_path / "plan"), batch_size=batch_size)
    assert rows_of(plan) == expected_rows(results, ["lung", "skin", "unknown"])
    assert plan.meta["strata"] == [
        {"name": "lung", "start": 0, "rows": 13},
        {"name": "skin", "start": 13, "rows": 31},
        {"name": "unknown", "start": 44, "rows": 7},
    ]


def test_the_slide_table_has_what_a_reader_needs(catalog, tmp_path):
    plan = build_plan(catalog[0], str(tmp_path / "plan"))
    assert plan.sources["slide_id"].to_pylist() == ["e", "b", "d", "a", "c"]
    assert plan.sources["stratum_id"].to_pylist() == ["lung", "skin", "unknown", "lung", "skin"]
    first = plan.sources.slice(0, 1).to_pylist()[0]
    assert (first["wsi_path"], first["mask_path"], first["wsi_level0_spacing_mpp"]) == ("/slides/e.tiff", "", 0.5)


def test_the_same_catalog_gives_the_same_hash(catalog, tmp_path):
    first = build_plan(catalog[0], str(tmp_path / "one"))
    second = build_plan(catalog[0], str(tmp_path / "two"), batch_size=3)
    assert first.hash == second.hash


def test_strata_feed_the_order_with_even_shares(catalog, tmp_path):
    plan = build_plan(catalog[0], str(tmp_path / "plan"))
    order = stratified_order(strata(plan), seed=0, weights="uniform")
    drawn = plan.take(order.rows(np.arange(3000)))["source"]
    counts = np.bincount(drawn, minlength=5)
    assert [counts[0] + counts[3], counts[1] + counts[4], counts[2]] == [1000, 1000, 1000]


def test_another_stratum_key_is_looked_up_in_the_slide_index(catalog, tmp_path):
    path, results = catalog
    plan = build_plan(path, str(tmp_path / "plan"), sampling_stratum_key="site")
    sites = {r.slide["slide_id"]: r.slide["site"] for r in results}
    assert plan.sources["stratum_id"].to_pylist() == [sites[i] for i, _, _ in SLIDES]
    assert sum(s["rows"] for s in plan.meta["strata"]) == plan.rows == 51


def test_a_stratum_key_that_the_index_lacks_is_a_user_error(catalog, tmp_path):
    with pytest.raises(UserError, match="hospital"):
        build_plan(catalog[0], str(tmp_path / "plan"), sampling_stratum_key="hospital")
    assert not (tmp_path / "plan").exists()


def test_a_plan_is_current_only_for_its_catalog_and_key(catalog, tmp_path):
    path, results = catalog
    out = str(tmp_path / "plan")
    assert not is_current(out, path)
    build_plan(path, out)
    assert is_current(out, path) and is_current(out, path, "organ") and not is_current(out, path, "site")
    index = str(tmp_path / "slide_metadata.parquet")
    write_catalog(path, small_profile(), results[:2], slide_index=index, metadata_columns=("organ", "site"))
    assert not is_current(out, path)


def test_a_missing_default_key_gives_one_stratum_also_when_asked_for_by_name(tmp_path):
    row = index_row("a")
    del row["organ"]
    index = write_small_index(str(tmp_path / "slide_metadata.parquet"), [row], ())
    path = str(tmp_path / "catalog.json")
    write_catalog(path, small_profile(), [anchors_at(row, 3)], slide_index=index, metadata_columns=())
    for key in (None, "organ"):
        plan = build_plan(path, str(tmp_path / f"plan-{key}"), sampling_stratum_key=key)
        assert plan.meta["strata"] == [{"name": "unknown", "start": 0, "rows": 3}]


def test_identity_follows_anchors_and_strata_and_not_the_place_of_the_slides(catalog, tmp_path):
    path, results = catalog
    first = build_plan(path, str(tmp_path / "one"))
    by_site = build_plan(path, str(tmp_path / "two"), sampling_stratum_key="site")
    index = str(tmp_path / "slide_metadata.parquet")
    moved = [replace(r, slide=r.slide | {"wsi_path": f"gs://bucket/{r.slide['slide_id']}.svs"}) for r in results]
    options = {"slide_index": index, "metadata_columns": ("organ", "site")}
    write_catalog(path, small_profile(), moved, **options)
    elsewhere = build_plan(path, str(tmp_path / "three"))
    write_catalog(path, small_profile(), results[1:], **options)
    fewer = build_plan(path, str(tmp_path / "four"))
    assert identity(elsewhere) == identity(first) and elsewhere.hash != first.hash
    assert len({identity(p) for p in (first, by_site, fewer)}) == 3


def test_a_stratum_whose_slides_give_no_anchors_takes_no_part_and_the_order_never_waits_for_it(tmp_path):
    rows = [index_row("a", "lung"), index_row("b", "skin"), index_row("c", "liver")]
    index = write_small_index(str(tmp_path / "slide_metadata.parquet"), rows)
    path = str(tmp_path / "catalog.json")
    results = [anchors_at(rows[0], 3), SlideAnchors(rows[1], "no_valid_anchors"), anchors_at(rows[2], 2)]
    manifest = write_catalog(path, small_profile(), results, slide_index=index, metadata_columns=("organ",))
    assert manifest["stratum_counts"] == {"liver": 2, "lung": 3}
    plan = build_plan(path, str(tmp_path / "plan"))
    assert [s.name for s in strata(plan)] == ["liver", "lung"]
    drawn = stratified_order(strata(plan), seed=1).rows(np.arange(100))
    assert set(drawn.tolist()) == set(range(5))
