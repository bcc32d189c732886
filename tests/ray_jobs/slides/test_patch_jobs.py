"""The jobs that cut and index zipped patches, through Ray; what they refuse before it is started."""

import csv
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from adios.data import PatchReader
from adios.patches import index_writer
from adios.plan import build_plan
from pathray.data.order import uniform_order
from pathray.data.share import Lookup, Share
from pathray.data.stream import DecodeSettings
from ray_jobs import cut_patches, index_patches, index_slides
from ray_jobs.extract.ordered_map import RayMap
from ray_jobs.shell.cli import run_job
from ray_jobs.train.rank_stream import stream
from tests.builders.cohort import good_cohort
from tests.builders.jobs import ROOT, job_command, job_environment, kill_job, wait_for
from tests.builders.zips import SIZE, encoded, picture, write_folder


def run(module, config, *argv):
    return run_job(module.main, config, argv, module.CONFIGS_DIR)


def index_job(source, output, *argv):
    return run(index_patches, index_patches.IndexPatchesConfig, f"source={source}", f"output={output}", *argv)


def cut_job(*argv):
    return run(cut_patches, cut_patches.CutPatchesConfig, *argv)


def report(path):
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


@pytest.mark.ray
@pytest.mark.heavy
def test_the_index_through_ray_has_the_bytes_of_the_one_without(tmp_path, ray_cluster, capsys):
    from adios.patches.index import archives_of

    write_folder(tmp_path / "zips", archives=9)
    (tmp_path / "zips/s4.zip").write_bytes(b"none")
    assert (
        index_job(tmp_path / "zips", tmp_path / "ray/i.parquet", "max_corrupt_fraction=0.2", "archives_per_task=2") == 0
    )
    assert f"index={tmp_path}/ray/i.parquet" in capsys.readouterr().out
    root, archives = archives_of(str(tmp_path / "zips"))
    index_writer.index_patches(root, archives, str(tmp_path / "plain/i.parquet"), max_corrupt_fraction=0.2)
    for name in ("i.parquet", "i_quarantine.parquet"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


@pytest.mark.ray
@pytest.mark.heavy
def test_too_many_corrupt_archives_end_the_job_with_exit_code_2(tmp_path, ray_cluster, capsys):
    write_folder(tmp_path / "zips", archives=3)
    (tmp_path / "zips/s1.zip").write_bytes(b"none")
    assert index_job(tmp_path / "zips", tmp_path / "i.parquet") == 2
    assert "s1.zip: archive" in capsys.readouterr().err
    assert pq.read_table(tmp_path / "i_quarantine.parquet")["archive"].to_pylist() == ["s1.zip"]


def dies_on_s2(job):
    if job[0].name == "s2.zip":
        os._exit(1)
    return index_writer.index_one(job)


@pytest.mark.ray
@pytest.mark.heavy
def test_an_archive_on_which_the_process_dies_is_quarantined_alone(tmp_path, ray_cluster):
    from adios.patches.index import archives_of

    write_folder(tmp_path / "zips", archives=4)
    root, archives = archives_of(str(tmp_path / "zips"))
    over = RayMap(index_writer.report_death, chunk=4)
    summary = index_writer.index_patches(
        root,
        archives,
        str(tmp_path / "i.parquet"),
        max_corrupt_fraction=0.3,
        map=lambda function, jobs: over(dies_on_s2, jobs),
    )
    assert (summary.patches, summary.reasons) == (18, {"died": 1})


@pytest.mark.ray
@pytest.mark.heavy
def test_an_index_job_that_was_killed_goes_on_and_ends_with_the_same_bytes(tmp_path, ray_cluster):
    write_folder(tmp_path / "zips", archives=300, patches=2)
    environment = {**job_environment(), "PART_ARCHIVES": "40"}
    program = (
        "import os; from adios.patches import index_writer\n"
        "index_writer.PART_ARCHIVES = int(os.environ['PART_ARCHIVES'])\n"
        "from ray_jobs import index_patches; from ray_jobs.shell.cli import job\n"
        "job(index_patches.main, index_patches.IndexPatchesConfig, index_patches.CONFIGS_DIR)"
    )
    command = job_command("ray_jobs.index_patches")[:1] + ["-c", program]
    argv = [f"source={tmp_path}/zips", f"output={tmp_path}/killed/i.parquet", "archives_per_task=1"]
    process = subprocess.Popen([*command, *argv], cwd=ROOT, env=environment, text=True, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: list(Path(tmp_path).glob("killed/i_parts/part-*")) or process.poll() is not None)
    finally:
        kill_job(process)
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "killed/i.parquet").exists()
    assert index_job(tmp_path / "zips", tmp_path / "killed/i.parquet") == 0
    assert index_job(tmp_path / "zips", tmp_path / "whole/i.parquet") == 0
    assert (tmp_path / "killed/i.parquet").read_bytes() == (tmp_path / "whole/i.parquet").read_bytes()


@pytest.mark.ray
@pytest.mark.heavy
def test_slides_are_cut_indexed_planned_and_streamed(tmp_path, ray_cluster):
    manifest = good_cohort(tmp_path, slides=2)
    index = tmp_path / "slides.parquet"
    assert run(index_slides, index_slides.IndexSlidesConfig, f"manifest={manifest}", f"output={index}") == 0
    words = (f"slides={index}", f"output={tmp_path}/zips", "size=32", "mpp=0.5")
    assert cut_job(*words) == 0
    rows = report(tmp_path / "zips/report.csv")
    assert [row["status"] for row in rows] == ["ok", "ok"]
    states = {path: path.stat().st_mtime_ns for path in (tmp_path / "zips").glob("*.zip")}
    assert len(states) == 2
    assert cut_job(*words) == 0
    assert [row["status"] for row in report(tmp_path / "zips/report.csv")] == ["skipped", "skipped"]
    assert {path: path.stat().st_mtime_ns for path in states} == states
    assert index_job(tmp_path / "zips", tmp_path / "i.parquet") == 0
    plan = build_plan(str(tmp_path / "i.parquet"), str(tmp_path / "plan"), patch_size=32)
    assert plan.rows == sum(int(row["patches"]) for row in rows) > 0


@pytest.mark.ray
@pytest.mark.heavy
def test_images_are_cut_by_subfolder_and_small_ones_reported(tmp_path, ray_cluster):
    for folder, size in (("a", 32), ("b/c", 64), ("b/c", 16)):
        (tmp_path / "in" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / folder / f"{size}.png").write_bytes(encoded(picture("x", size)))
    assert cut_job(f"images={tmp_path}/in", f"output={tmp_path}/zips", "size=32") == 0
    rows = {
        row["name"]: (row["status"], row["patches"], row["refused"]) for row in report(tmp_path / "zips/report.csv")
    }
    assert rows == {"a": ("ok", "1", "0"), "b__c": ("ok", "4", "1")}


def test_neither_slides_nor_images_is_the_users_error(tmp_path, capsys):
    assert cut_job(f"output={tmp_path}") == 2
    assert "one of them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("slides={0}/slides.parquet", "image_mpp=0.5"), "images=FOLDER"),
        (("images={0}/in", "image_mpp=0"), "> 0"),
        (("images={0}/in", "image_mpp=-0.5"), "> 0"),
        (("images={0}/in", "image_mpp=.inf"), "> 0"),
    ],
)
def test_a_spacing_that_images_cannot_have_is_the_users_error(tmp_path, capsys, monkeypatch, argv, expected):
    monkeypatch.setattr(cut_patches, "ray_session", lambda *args, **kwargs: pytest.fail("Ray was started"))
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(encoded(picture("a", 32)))
    assert cut_job(*(word.format(tmp_path) for word in argv), f"output={tmp_path}/zips", "size=32") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "key: image_mpp" in said and expected in said and not (tmp_path / "zips").exists()


@pytest.mark.ray
@pytest.mark.heavy
@pytest.mark.parametrize("decode_on", ["worker", "cluster"])
def test_every_patch_comes_once_through_the_stream(tmp_path, ray_cluster, decode_on):
    pictures = write_folder(tmp_path / "zips")
    assert index_job(tmp_path / "zips", tmp_path / "i.parquet") == 0
    plan = build_plan(str(tmp_path / "i.parquet"), str(tmp_path / "plan"), patch_size=SIZE)
    reader, lookup = PatchReader.of(plan, 0, size=SIZE), Lookup(plan, uniform_order(plan.rows, 0))
    seen = []
    for rank in range(2):
        share = Share(0, plan.rows, 6, 3, rank, 2)
        batches = stream(lookup, reader, share, decode_on=decode_on, settings=DecodeSettings(threads=1))
        seen += [image.tobytes() for batch in batches for image in np.asarray(batch["image"])]
    assert sorted(seen) == sorted(pixels.tobytes() for pixels in pictures.values())
