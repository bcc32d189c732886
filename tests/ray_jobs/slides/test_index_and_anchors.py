import csv
import ctypes
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from ijepath.indexing.anchors import slide_anchors
from ijepath.indexing.catalog import Catalog
from ijepath.indexing.index import read_index
from ijepath.plan import build_plan
from ijepath.profile import Profile
from pathray.errors import UserError
from ray_jobs import build_anchors, index_slides
from ray_jobs.extract.ordered_map import RayMap
from ray_jobs.shell.cli import run_job
from tests.builders.cohort import good_cohort, square_mask, write_manifest, write_mask, write_slide
from tests.builders.jobs import run_job_process

pytestmark = pytest.mark.ray
SMALL = ["profile.context_fov_um=64", "profile.target_fov_um=16", "profile.profile_id=small"]


def lost(item, error):
    return ("lost", item, str(error))


def late_first(x):
    time.sleep(0.3 if x == 0 else 0.0)
    return x * x


def holds_the_interpreter_on_two(item):
    if item == 2:
        ctypes.PyDLL(None).sleep(60)  # with the lock held, as a broken extension would
    return item


def dies_on_three(x):
    if x == 3:
        os._exit(1)
    return x


def asserts(x):
    raise AssertionError(f"ours {x}")


def index_job(folder, *argv, manifest="slides.csv"):
    folder = Path(folder)
    words = [f"manifest={folder / manifest}", f"output={folder / 'indexes' / 'slide_metadata.parquet'}", *argv]
    return run_job(index_slides.main, index_slides.IndexSlidesConfig, words, index_slides.CONFIGS_DIR)


def anchors_job(folder, *argv, profile=SMALL):
    indexes = Path(folder) / "indexes"
    words = [f"slide_index={indexes / 'slide_metadata.parquet'}", f"output={indexes / 'anchor_catalog_manifest.json'}"]
    config = build_anchors.BuildAnchorsConfig
    return run_job(
        build_anchors.main, config, [*words, *profile, *argv], build_anchors.CONFIGS_DIR, build_anchors.GROUPS
    )


def report(path):
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


def files_under(folder):
    """All but the summary, which says when it was written and what this start skipped."""
    paths = (p for p in sorted(Path(folder).rglob("*")) if p.is_file() and p.name != "summary.md")
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


def test_results_come_in_the_order_of_the_items_whatever_finishes_first(ray_cluster):
    assert list(RayMap(lost, chunk=3, num_cpus=2)(late_first, range(20))) == [x * x for x in range(20)]


@pytest.mark.parametrize("chunk", [1, 4])
def test_an_item_that_hangs_inside_a_library_is_lost_after_its_time_and_the_others_are_not(ray_cluster, chunk):
    got = list(RayMap(lost, chunk=chunk, num_cpus=2, timeout_s=2.0)(holds_the_interpreter_on_two, range(4)))
    assert got == [0, 1, ("lost", 2, "took longer than 2 s"), 3]


def test_an_item_that_kills_its_process_is_lost_alone(ray_cluster):
    got = list(RayMap(lost, chunk=4, num_cpus=2)(dies_on_three, range(8)))
    assert got == [0, 1, 2, ("lost", 3, "crashed the worker process (usually in a decoder)"), 4, 5, 6, 7]


def test_an_error_of_ours_is_not_taken_for_one_of_the_data(ray_cluster):
    with pytest.raises(AssertionError, match="ours 0"):
        list(RayMap(lost, num_cpus=2)(asserts, range(3)))


def test_no_more_items_are_taken_than_the_window_holds(ray_cluster):
    taken = []
    results = RayMap(lost, chunk=2, window=3, num_cpus=2)(late_first, (taken.append(i) or i for i in range(100)))
    next(results)
    assert len(taken) == 6
    results.close()


def test_index_then_anchors_then_plan_over_ray(ray_cluster, tmp_path, capsys):
    good_cohort(tmp_path)
    assert index_job(tmp_path) == 0
    assert anchors_job(tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    indexes = tmp_path / "indexes"
    assert lines[0] == f"outputs: index={indexes}/slide_metadata.parquet report={indexes}/slide_metadata_report.csv"
    catalog = Catalog.open(str(indexes / "anchor_catalog_manifest.json"), verify=True)
    profile = Profile(profile_id="small", context_fov_um=64.0, target_fov_um=16.0)
    expected = [slide_anchors(row, profile) for row in read_index(str(indexes / "slide_metadata.parquet")).rows]
    assert catalog.total_anchors == sum(len(e) for e in expected) > 100
    assert [line["anchors"] for line in report(indexes / "anchor_catalog_manifest_report.csv")] == [
        str(len(e)) for e in expected
    ]
    plan = build_plan(catalog.path, str(tmp_path / "plan"))
    assert [s["name"] for s in plan.meta["strata"]] == ["lung", "skin"]
    order = [0, 2, 1]  # by stratum, then slide
    np.testing.assert_array_equal(plan.column("x"), np.concatenate([expected[i].center_x for i in order]))
    np.testing.assert_array_equal(plan.column("source"), np.repeat(order, [len(expected[i]) for i in order]))


def test_running_again_gives_the_same_bytes_and_resume_changes_nothing(ray_cluster, tmp_path):
    good_cohort(tmp_path)
    assert index_job(tmp_path, "slides_per_task=1") == anchors_job(tmp_path) == 0
    first = files_under(tmp_path / "indexes")
    for words in ([], ["resume=true"]):
        assert index_job(tmp_path, *words) == anchors_job(tmp_path, *words) == 0
        assert files_under(tmp_path / "indexes") == first


def test_failed_slides_make_the_exit_code_2_name_themselves_and_leave_the_index(ray_cluster, tmp_path, capsys):
    good_cohort(tmp_path)
    rows = [{"slide_id": "bad", "wsi_path": "gone.tiff"}, *report(tmp_path / "slides.csv")]
    write_manifest(tmp_path / "slides.csv", rows)
    assert index_job(tmp_path) == 2
    said = capsys.readouterr().err
    assert "1 of 4 slides failed" in said and "bad: " in said and "gone.tiff" in said and "Traceback" not in said
    lines = report(tmp_path / "indexes" / "slide_metadata_report.csv")
    assert [line["status"] for line in lines] == ["failed", "ok", "ok", "ok"]
    assert index_job(tmp_path, "min_success_fraction=0.75") == 0
    assert anchors_job(tmp_path) == 0, "a slide that the index has given up is no failure of the anchors"
    lines = report(tmp_path / "indexes" / "anchor_catalog_manifest_report.csv")
    assert (lines[0]["reason"], lines[0]["anchors"]) == ("slide_status_not_ok", "0")
    write_slide(tmp_path / "gone.tiff")
    assert index_job(tmp_path, "resume=true") == 0
    assert not read_index(str(tmp_path / "indexes" / "slide_metadata.parquet")).failed_rows


def test_a_slide_that_cannot_be_read_is_reported_and_the_catalog_written_without_it(ray_cluster, tmp_path, capsys):
    good_cohort(tmp_path)
    assert index_job(tmp_path) == 0
    (tmp_path / "mask1.tiff").write_bytes(b"II*\x00" + bytes(40))
    (tmp_path / "mask2.png").unlink()
    assert anchors_job(tmp_path) == 2
    assert "2 of 3 slides failed" in capsys.readouterr().err
    lines = report(tmp_path / "indexes" / "anchor_catalog_manifest_report.csv")
    assert [line["reason"] for line in lines] == ["", "error", "missing_mask_path"]
    assert anchors_job(tmp_path, "min_success_fraction=0.3") == 0
    catalog = Catalog.open(str(tmp_path / "indexes" / "anchor_catalog_manifest.json"))
    assert catalog.total_anchors == int(lines[0]["anchors"]) > 0


def test_zero_anchors_are_an_error_and_the_report_says_why(ray_cluster, tmp_path, capsys):
    good_cohort(tmp_path)
    write_mask(tmp_path / "mask0.png", np.zeros_like(square_mask()))
    assert index_job(tmp_path) == 0
    assert anchors_job(tmp_path, profile=["profile=ctx1p0_tgt0p5_fov512um_k4"]) == 2
    said = capsys.readouterr().err
    assert "no slide has an anchor" in said and "3 x invalid_profile_geometry" in said and "Traceback" not in said
    lines = report(tmp_path / "indexes" / "anchor_catalog_manifest_report.csv")
    assert {line["reason"] for line in lines} == {"invalid_profile_geometry"}
    assert not (tmp_path / "indexes" / "anchor_catalog_manifest.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["min_success_fraction=2"], "min_success_fraction"),
        (["slides_per_task=0"], "slides_per_task"),
        (["min_sucess_fraction=1"], "min_success_fraction"),
        (["manifest=/nowhere.csv"], "/nowhere.csv"),
    ],
)
def test_bad_words_to_the_index_job_are_answered_before_ray_starts(tmp_path, capsys, words, said):
    assert index_job(tmp_path, *words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "slide_metadata.parquet"),
        (["profile=nowhere"], "ctx1p0_tgt0p5_fov512um_k4"),
        (["profile.context_mpp=0"], "context_mpp"),
        (["profile.contxt_mpp=1"], "context_mpp"),
        (["rows_per_shard=0"], "rows_per_shard"),
    ],
)
def test_bad_words_to_the_anchor_job_are_answered_before_ray_starts(tmp_path, capsys, words, said):
    assert anchors_job(tmp_path, *words) == 2
    assert said in capsys.readouterr().err


def test_a_dry_run_of_the_command_line_looks_at_the_slides_and_writes_nothing(tmp_path):
    manifest = write_manifest(tmp_path / "slides.csv", [{"slide_id": "a", "wsi_path": "gone.tiff"}])
    gone = run_job_process(tmp_path, "ray_jobs.index_slides", "manifest=slides.csv", "output=i.parquet", "--dry-run")
    assert gone.returncode == 2 and "a: no such file" in gone.stderr
    assert os.listdir(tmp_path) == [os.path.basename(manifest)]
    write_slide(tmp_path / "gone.tiff")
    run = run_job_process(tmp_path, "ray_jobs.index_slides", "manifest=slides.csv", "output=i.parquet", "--dry-run")
    assert run.returncode == 0, run.stderr
    assert "dry run: 1 slides" in run.stderr and sorted(os.listdir(tmp_path)) == ["gone.tiff", "slides.csv"]


def test_the_real_slides_give_anchors(ray_cluster, shared_data, tmp_path):
    wsi = shared_data / "wsi"
    names = ["CMU-1-Small-Region.svs", "TCGA-CR-7395-01A-01-TS1.svs", "derived/CMU1_pyramid_jp2k.svs"]
    rows = [{"slide_id": Path(n).stem, "wsi_path": wsi / n, "organ": o} for n, o in zip(names, "abc", strict=True)]
    write_manifest(tmp_path / "slides.csv", [row | {"mpp": 0.5 if row["organ"] == "b" else ""} for row in rows])
    assert index_job(tmp_path) == anchors_job(tmp_path, profile=["profile=ctx1p0_tgt0p5_fov512um_k4"]) == 0
    manifest = json.loads((tmp_path / "indexes" / "anchor_catalog_manifest.json").read_text())
    assert set(manifest["stratum_counts"]) == {"a", "b", "c"}
    table = [b for b in Catalog.open(str(tmp_path / "indexes" / "anchor_catalog_manifest.json")).batches()]
    for row in (r for b in table for r in b.to_pylist()):
        half = row["context_size_level0"] // 2
        assert row["center_x_level0"] >= half and row["center_y_level0"] >= half and row["tissue_fraction"] >= 0.2
        assert row["effective_context_mpp"] == 1.0 and row["wsi_level0_spacing_mpp"] in (pytest.approx(0.499), 0.5)


def test_config_schemas_name_the_stratum_key_error(ray_cluster, tmp_path, capsys):
    good_cohort(tmp_path)
    assert index_job(tmp_path) == 0
    assert anchors_job(tmp_path, "sampling_stratum_key=hospital") == 2
    assert "hospital" in capsys.readouterr().err
    with pytest.raises(UserError, match="rows_per_shard"):
        build_anchors.BuildAnchorsConfig(rows_per_shard=0)
