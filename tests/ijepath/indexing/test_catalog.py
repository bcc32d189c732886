import hashlib
import json
from dataclasses import replace
from functools import partialmethod

import numpy as np
import pyarrow.parquet as pq
import pytest

from ijepath.indexing.anchors import SlideAnchors
from ijepath.indexing.catalog import SCHEMA, Catalog, is_current, stale_reason
from ijepath.indexing.catalog_writer import ROWS_PER_GROUP, report_line, write_catalog
from ijepath.indexing.manifest import folder_of
from pathray.errors import MissingFile, UserError
from pathray.store.storage import Storage, StorageError
from tests.builders.anchors import anchors_at, index_row, small_profile, write_small_index


@pytest.fixture
def cohort(tmp_path):
    """Five slides: three strata, one without anchors, one without an organ; and their index on disk."""
    organs = {"b": "lung", "a": "skin", "empty": "lung", "c": None, "d": "lung"}
    rows = [index_row(slide_id, organ, mpp=0.25 if slide_id == "d" else 0.5) for slide_id, organ in organs.items()]
    index = write_small_index(str(tmp_path / "indexes" / "slide_metadata.parquet"), rows)
    counts = {"b": 9, "a": 4, "c": 6, "d": 5}
    results = [
        anchors_at(row, counts[row["slide_id"]]) if row["slide_id"] in counts else SlideAnchors(row, "no_valid_anchors")
        for row in rows
    ]
    return str(tmp_path / "indexes" / "anchor_catalog_manifest.json"), index, results


def build(cohort, **options):
    path, index, results = cohort
    options = {"slide_index": index, "metadata_columns": ("organ",)} | options
    return write_catalog(path, options.pop("profile", small_profile()), results, **options)


def test_the_manifest_names_everything_that_the_specification_names(cohort):
    manifest = build(cohort, rows_per_shard=10)
    assert json.loads(open(cohort[0]).read()) == manifest
    assert manifest["total_anchors"] == 24
    assert manifest["stratum_counts"] == {"lung": 14, "skin": 4, "unknown": 6}
    assert manifest["sampling_stratum_key"] == "organ" and manifest["schema_version"] == 1
    assert manifest["slide_index_path"] == "slide_metadata.parquet"
    assert manifest["profile"]["context_fov_um"] == 64.0
    shards = manifest["anchor_shards"]
    assert [s["rows"] for s in shards] == [10, 10, 4]
    assert [s["path"] for s in shards] == [
        f"anchors/part-{i:05d}-{s['sha256'][:12]}.parquet" for i, s in enumerate(shards)
    ]
    assert shards[0]["stratum_counts"] == {"lung": 9, "skin": 1}


def test_rows_are_ordered_by_slide_then_raster_across_shards(cohort):
    build(cohort, rows_per_shard=10)
    table = Catalog.open(cohort[0]).batches(["slide_id", "center_x_level0", "center_y_level0"], batch_size=3)
    rows = [tuple(r.values()) for batch in table for r in batch.to_pylist()]
    expected = [
        (r.slide["slide_id"], int(x), int(y)) for r in cohort[2] for x, y in zip(r.center_x, r.center_y, strict=True)
    ]
    assert rows == expected


def test_the_same_inputs_give_the_same_bytes_and_the_recorded_digests(cohort, tmp_path):
    def everything():
        folder = tmp_path / "indexes"
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    manifest = build(cohort, rows_per_shard=7)
    first = everything()
    build(cohort, rows_per_shard=7)
    assert everything() == first
    for shard in manifest["anchor_shards"]:
        assert hashlib.sha256(first[shard["path"]]).hexdigest() == shard["sha256"]


def test_columns_say_what_is_read_and_what_it_means(cohort):
    build(cohort)
    (batch,) = Catalog.open(cohort[0]).batches(batch_size=100)
    assert batch.schema.remove_metadata() == SCHEMA
    last = batch.to_pylist()[-1]
    assert last["anchor_id"] == f"d:{last['center_x_level0']}:{last['center_y_level0']}"
    assert (last["source_context_mpp"], last["source_target_mpp"]) == (0.5, 0.25)
    assert (last["effective_context_mpp"], last["effective_target_mpp"]) == (1.0, 0.5)
    assert (last["context_size_px"], last["target_size_px"], last["target_footprint_px"]) == (64, 32, 16)
    assert (last["context_size_level0"], last["target_size_level0"]) == (256, 64)
    assert (last["profile_id"], last["stratum_id"], last["wsi_path"]) == ("small", "lung", "/slides/d.tiff")


def test_anchor_ids_are_unique(cohort):
    build(cohort)
    ids = [i for b in Catalog.open(cohort[0]).batches(["anchor_id"]) for i in b.column(0).to_pylist()]
    assert len(set(ids)) == len(ids) == 24


def test_shards_are_zstd_and_a_slide_larger_than_a_row_group_is_cut(cohort):
    path, index, _ = cohort
    large = anchors_at(index_row("large", "lung"), 2 * ROWS_PER_GROUP + 10)
    manifest = build((path, index, [large]), rows_per_shard=ROWS_PER_GROUP + 5)
    assert [s["rows"] for s in manifest["anchor_shards"]] == [ROWS_PER_GROUP + 5, ROWS_PER_GROUP + 5]
    file = pq.ParquetFile(path.replace("anchor_catalog_manifest.json", manifest["anchor_shards"][0]["path"]))
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [ROWS_PER_GROUP, 5]
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    x = np.concatenate([b.column(0).to_numpy() for b in Catalog.open(path).batches(["center_y_level0"])])
    np.testing.assert_array_equal(x, large.center_y)


def test_no_anchor_at_all_is_an_error_that_counts_the_reasons_and_keeps_the_old_catalog(cohort):
    build(cohort)
    path, index, results = cohort
    none = [replace(r, center_x=r.center_x[:0], reason="no_valid_anchors", detail="0.1 is tissue") for r in results]
    with pytest.raises(UserError, match=r"no slide has an anchor \(b: 0.1 is tissue\)") as caught:
        build((path, index, none))
    assert caught.value.where["found"] == "5 x no_valid_anchors" and caught.value.where["file"] == index
    assert Catalog.open(path, verify=True).total_anchors == 24


def test_a_smaller_catalog_leaves_no_shards_of_the_larger_one_before(cohort, tmp_path):
    build(cohort, rows_per_shard=2)
    (tmp_path / "indexes" / "anchors" / "notes.txt").touch()
    (shard,) = build(cohort, rows_per_shard=100)["anchor_shards"]
    left = sorted(p.name for p in (tmp_path / "indexes" / "anchors").iterdir())
    assert left == ["notes.txt", shard["path"].removeprefix("anchors/")]


def test_catalogs_of_two_profiles_stand_in_one_folder(cohort, tmp_path):
    (tmp_path / "indexes" / "notes.json").write_text("[1]")
    build(cohort, rows_per_shard=10)
    other = str(tmp_path / "indexes" / "other.json")
    build((other, *cohort[1:]), profile=replace(small_profile(), target_fov_um=32.0))
    build((other, *cohort[1:]), profile=replace(small_profile(), target_fov_um=32.0), rows_per_shard=20)
    assert [Catalog.open(path, verify=True).total_anchors for path in (cohort[0], other)] == [24, 24]
    assert len(list((tmp_path / "indexes" / "anchors").iterdir())) == 3 + 2


def test_no_shard_is_removed_beside_a_damaged_manifest_that_may_name_it(cohort, tmp_path, caplog):
    (tmp_path / "indexes" / "broken.json").write_text('{"anchor_shards": ')
    first = build(cohort, rows_per_shard=10)["anchor_shards"]
    second = build(cohort, rows_per_shard=20)["anchor_shards"]
    left = {f"anchors/{p.name}" for p in (tmp_path / "indexes" / "anchors").iterdir()}
    assert left == {shard["path"] for shard in first + second} and "broken.json" in caplog.text


@pytest.mark.parametrize("last", range(8))
def test_a_build_that_ends_at_any_write_leaves_the_older_or_the_newer_catalog(cohort, monkeypatch, last):
    """Four shards and the manifest are written, then three older shards removed; it ends at the one after `last`."""
    older, done = build(cohort, rows_per_shard=10), []
    plain = {name: getattr(Storage, name) for name in ("write_bytes", "remove")}

    def ends(name, store, *given):
        if len(done) == last:
            raise KeyboardInterrupt
        plain[name](store, *given)
        done.append((name, given[0]))

    profile = replace(small_profile(), target_fov_um=32.0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        for name in plain:
            patch.setattr(Storage, name, partialmethod(lambda s, *given, name: ends(name, s, *given), name=name))
        build(cohort, profile=profile, rows_per_shard=7)
    found = Catalog.open(cohort[0], verify=True).manifest
    assert (found == older) == (last < 5) and found["total_anchors"] == 24
    newer = build(cohort, profile=profile, rows_per_shard=7)
    assert Catalog.open(cohort[0], verify=True).manifest == newer
    kept = Storage.of(folder_of(cohort[0])).list("anchors")
    assert [f"anchors/{name}" for name in kept] == [shard["path"] for shard in newer["anchor_shards"]]


def test_shards_of_an_older_catalog_that_cannot_be_removed_are_a_warning(cohort, monkeypatch, caplog):
    build(cohort, rows_per_shard=10)

    def forbidden(store, name):
        raise StorageError("cannot write", file=name)

    monkeypatch.setattr(Storage, "remove", forbidden)
    build(cohort, rows_per_shard=7)
    assert "could not remove shards" in caplog.text
    assert len(Catalog.open(cohort[0]).manifest["anchor_shards"]) == 4


def test_a_stratum_column_that_is_not_there_is_named(cohort):
    with pytest.raises(UserError, match="hospital") as caught:
        build(cohort, sampling_stratum_key="hospital")
    assert caught.value.where["expected"] == ["organ"]


def test_without_an_organ_column_there_is_one_stratum(cohort):
    assert build(cohort, metadata_columns=("site",))["stratum_counts"] == {"unknown": 24}


def test_a_catalog_is_current_only_for_the_inputs_it_was_built_from(cohort, tmp_path):
    path, index, _ = cohort
    profile = small_profile()
    assert stale_reason(path, profile, index) == "none yet"
    build(cohort)
    assert is_current(path, profile, index) and is_current(path, replace(profile, targets_per_context=9), index)
    assert "min_tissue_fraction 0.2 -> 0.5" in stale_reason(path, replace(profile, min_tissue_fraction=0.5), index)
    assert "stratum key" in stale_reason(path, profile, index, "site")
    write_small_index(index, [index_row("other", "skin")])
    assert "slide index changed" in stale_reason(path, profile, index)
    (shard,) = build(cohort)["anchor_shards"]
    (tmp_path / "indexes" / shard["path"]).unlink()
    assert "missing" in stale_reason(path, profile, index)


def test_identity_does_not_depend_on_where_files_lie_but_on_anchors_and_strata(cohort, tmp_path):
    first = build(cohort)["identity"]
    path, index, results = cohort
    moved = [replace(r, slide=r.slide | {"wsi_path": "/elsewhere/x.tiff"}) for r in results]
    assert build((path, index, moved))["identity"] == first
    assert build((path, index, results[::-1]))["identity"] != first
    assert build(cohort, metadata_columns=())["identity"] != first


def test_what_is_no_catalog_is_refused_by_name(tmp_path):
    path = tmp_path / "anchor_catalog_manifest.json"
    with pytest.raises(MissingFile, match="anchor_catalog_manifest.json"):
        Catalog.open(str(path))
    path.write_text("[1, 2]")
    with pytest.raises(UserError, match="invalid or damaged anchor catalog manifest"):
        Catalog.open(str(path))
    path.write_text('{"schema_version": 99}')
    with pytest.raises(UserError, match="newer version"):
        Catalog.open(str(path))


def test_an_altered_shard_is_found_when_verified(cohort, tmp_path):
    (part,) = build(cohort)["anchor_shards"]
    shard = tmp_path / "indexes" / part["path"]
    shard.write_bytes(shard.read_bytes() + b"x")
    with pytest.raises(UserError, match="altered"):
        Catalog.open(cohort[0], verify=True)


def test_a_report_line_holds_status_reason_and_count(cohort):
    lines = [report_line(r) for r in cohort[2]]
    assert lines[0] == {"slide_id": "b", "status": "ok", "reason": "", "anchors": 9, "detail": ""}
    assert (lines[2]["status"], lines[2]["reason"], lines[2]["anchors"]) == ("skipped", "no_valid_anchors", 0)
