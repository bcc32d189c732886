"""The extraction job as a user meets it: folders in, bags and tables out, again and again.

Tests marked `ray` run the real pool; the others do the same jobs one by one in this process (`here`).
"""

import contextlib
import csv
import itertools
import os
import pickle
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pathray.features.read_bags import read_bag
from pathray.features.tables import read_table
from ray_jobs import extract_features
from ray_jobs.extract import actors as extraction
from ray_jobs.extract.actors import DIED
from ray_jobs.shell.cli import run_job
from ray_jobs.shell.runtime import Session
from tests.builders.cohort import write_manifest
from tests.builders.encoders import plain_features, write_encoder
from tests.builders.jobs import job_command, job_environment, kill_job, wait_for
from tests.builders.slides import truncate_tile, write_slide

NO_PICTURES = "thumbnails=false"


class Died(BaseException):
    """Raised in place of the death of a process."""


class OneByOne:
    """In place of the pool of actors: what would travel to them is pickled here, too."""

    def __init__(self, actors, num_cpus, num_gpus):
        assert actors >= 1 and num_cpus >= 1 and num_gpus == 0

    def __call__(self, build, items):
        function, lost = pickle.loads(pickle.dumps(build))(), []
        for number, item in enumerate(items):
            try:
                yield number, pickle.loads(pickle.dumps(function(pickle.loads(pickle.dumps(item)))))
            except Died:
                lost.append(number)
        yield from ((number, None) for number in lost)


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(extraction, "ActorMap", OneByOne)
    monkeypatch.setattr(extraction, "ray_session", lambda *a, **k: contextlib.nullcontext(Session(True, {"CPU": 2.0})))


def extract(folder, *words, encoders=("a",), source="slides=slides.csv", output="out"):
    key, _, value = source.partition("=")
    listed = ",".join(e if "=" in e else f"{folder}/{e}" for e in encoders)
    words = [f"encoders=[{listed}]", f"{key}={folder}/{value}", f"output={folder}/{output}", "actors=2", *words]
    return run_job(extract_features.main, extract_features.ExtractConfig, words, extract_features.CONFIGS_DIR)


def report(folder, output="out"):
    with open(Path(folder) / output / "report.csv", newline="") as f:
        return list(csv.DictReader(f))


def bags(folder, output="out"):
    return {str(p.relative_to(folder / output)): p.read_bytes() for p in sorted((folder / output).rglob("*.h5"))}


@pytest.fixture
def cohort(tmp_path):
    """Three slides and two encoders; the manifest gives one slide its spacing."""
    write_encoder(tmp_path / "a")
    write_encoder(tmp_path / "b", seed=1, dim=16)
    for i in range(3):
        write_slide(tmp_path / f"s{i}.tiff", seed=i, mpp=None if i == 2 else 0.5)
    rows = [{"slide_id": f"s{i}", "wsi_path": f"s{i}.tiff", "mpp": 0.5 if i == 2 else ""} for i in range(3)]
    write_manifest(tmp_path / "slides.csv", rows)
    return tmp_path


def test_slides_become_bags_and_are_skipped_the_next_time(here, cohort, capsys, monkeypatch):
    assert extract(cohort, encoders=("a", "b")) == 0
    assert capsys.readouterr().out == f"outputs: features={cohort}/out report={cohort}/out/report.csv\n"
    first, lines = bags(cohort), report(cohort)
    assert list(first) == [f"{e}/s{i}.h5" for e in "ab" for i in range(3)]
    assert [(r["slide_id"], r["status"], r["spacing_source"]) for r in lines] == [
        ("s0", "ok", "tags"), ("s1", "ok", "tags"), ("s2", "ok", "manifest"),
    ]  # fmt: skip
    for row in lines:
        assert int(row["tiles"]) == len(read_bag(str(cohort / "out/a" / f"{row['slide_id']}.h5")).features) > 20
    assert sorted(os.listdir(cohort / "out")) == [
        *("a", "b", "extraction.yaml", "qupath", "report.csv", "summary.md", "thumbnails")
    ]
    monkeypatch.setattr(extraction, "ActorMap", None)  # nothing is left to do for it
    assert extract(cohort, "batch_size=5", "actors=1", encoders=("a", "b")) == 0
    assert bags(cohort) == first and {r["status"] for r in report(cohort)} == {"skipped"}
    assert [r["tiles"] for r in report(cohort)] == [r["tiles"] for r in lines]


def test_pictures_are_made_with_the_bags_and_shown_in_the_summary(here, cohort):
    assert extract(cohort) == 0
    text = (cohort / "out/summary.md").read_text()
    tiles = [int(row["tiles"]) for row in report(cohort)]
    for i in range(3):
        assert f"![s{i}: {tiles[i]:,} tiles](thumbnails/s{i}.png)" in text
        assert f"([GeoJSON for QuPath](qupath/s{i}.geojson))" in text
    assert f"| tiles | {sum(tiles):,} |" in text and "| ok | 3 |" in text and "[bags of a](a)" in text
    before = bags(cohort)
    (cohort / "out/thumbnails/s1.png").unlink()
    assert extract(cohort) == 0, "of an extraction of before there were pictures"
    assert (cohort / "out/thumbnails/s1.png").is_file() and bags(cohort) == before
    assert [row["status"] for row in report(cohort)] == ["skipped"] * 3
    assert [int(row["tiles"]) for row in report(cohort)] == tiles
    assert "3 × already extracted, unchanged" in (cohort / "out/summary.md").read_text()


def test_progress_counts_tiles_that_were_extracted_now(here, cohort, capsys):
    assert extract(cohort, NO_PICTURES) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("extract: ")]
    tiles = sum(int(row["tiles"]) for row in report(cohort))
    assert len(lines) == 3 and f" of 3 slides, {tiles:,} tiles, " in lines[-1] and "tiles/s" in lines[-1]
    assert " left)" in lines[0] and " left)" not in lines[-1]


def test_a_key_switches_the_pictures_off(here, cohort):
    assert extract(cohort, NO_PICTURES) == 0
    assert sorted(os.listdir(cohort / "out")) == ["a", "extraction.yaml", "report.csv", "summary.md"]
    assert "### Pictures" not in (cohort / "out/summary.md").read_text()


def test_another_encoder_does_not_draw_the_slides_again(here, cohort):
    def drawn():
        return {p.name: p.stat().st_mtime_ns for p in (cohort / "out").glob("*/*.png")}

    assert extract(cohort) == 0
    first = drawn()
    assert len(first) == 3 and extract(cohort, encoders=("a", "b")) == 0 and drawn() == first
    assert extract(cohort, "overlap_px=8", encoders=("a", "b")) == 0
    assert all(drawn()[name] > first[name] for name in first)


def test_a_bag_that_would_be_refused_today_is_reused_with_a_warning(here, cohort, caplog):
    write_slide(cohort / "s1.tiff", mpp=4.0)
    assert extract(cohort, "max_enlargement=9", NO_PICTURES, "min_tissue_fraction=0") == 0
    before = bags(cohort)
    caplog.clear()
    assert extract(cohort, "min_tissue_fraction=0") == 0, "nor is it opened again for its picture"
    rows = report(cohort)
    assert [row["status"] for row in rows] == ["skipped"] * 3 and bags(cohort) == before
    assert [bool(row["error"]) for row in rows] == [False, True, False]
    assert "made before this rule" in rows[1]["error"] and "1 bags would be rejected now" in caplog.text
    assert "made before this rule" in (cohort / "out/summary.md").read_text()
    caplog.clear()
    assert extract(cohort, "max_enlargement=9", "min_tissue_fraction=0") == 0
    assert not any(row["error"] for row in report(cohort)) and "refused" not in caplog.text


def test_what_failed_and_why_is_in_the_summary(here, cohort):
    (cohort / "s1.tiff").write_bytes(b"no slide")
    assert extract(cohort, "min_success_fraction=0.5") == 0
    text = (cohort / "out/summary.md").read_text()
    assert "### Failed (1)" in text and "- 1 × no backend reads this slide" in text and "  - `s1`" in text
    assert "![s1" not in text and "![s0" in text


def test_only_what_changed_is_done_again(here, cohort):
    assert extract(cohort, NO_PICTURES) == 0
    first = bags(cohort)
    write_slide(cohort / "s1.tiff", seed=9)
    (cohort / "out/a/s2.h5").unlink()
    assert extract(cohort, NO_PICTURES, encoders=("a", "b")) == 0
    again = bags(cohort)
    assert [r["status"] for r in report(cohort)] == ["ok", "ok", "ok"], "b is new for all of them"
    assert again["a/s0.h5"] == first["a/s0.h5"] and again["a/s2.h5"] == first["a/s2.h5"]
    assert again["a/s1.h5"] != first["a/s1.h5"]
    assert extract(cohort, NO_PICTURES) == 0 and {r["status"] for r in report(cohort)} == {"skipped"}
    write_encoder(cohort / "a", seed=7)
    assert extract(cohort, NO_PICTURES) == 0 and {r["status"] for r in report(cohort)} == {"ok"}
    assert bags(cohort)["a/s0.h5"] != first["a/s0.h5"]
    assert extract(cohort, NO_PICTURES, "min_tissue_fraction=0.5") == 0 and {r["status"] for r in report(cohort)} == {
        "ok"
    }
    assert extract(cohort, NO_PICTURES, "min_tissue_fraction=0.5", "overwrite=true") == 0
    assert {r["status"] for r in report(cohort)} == {"ok"}


def test_a_slide_that_fails_is_a_line_of_the_report_and_the_exit_code_says_whether_it_matters(here, cohort, capsys):
    write_slide(cohort / "s1.tiff", downsamples=(1, 2))
    truncate_tile(cohort / "s1.tiff", 1, 0)
    rows = [{"slide_id": f"s{i}", "wsi_path": f"s{i}.tiff"} for i in range(3)]
    rows += [{"slide_id": "gone", "wsi_path": "gone.svs"}, {"slide_id": "s0", "wsi_path": "s0.tiff"}]
    rows += [{"slide_id": "vendor", "wsi_path": "v.sdpc"}, {"slide_id": "../up", "wsi_path": "s0.tiff"}]
    (cohort / "v.sdpc").write_bytes(b"x")
    write_manifest(cohort / "slides.csv", rows)
    assert extract(cohort, NO_PICTURES) == 2
    said = capsys.readouterr().err
    assert "6 of 7 slides failed" in said and "Traceback" not in said and "min_success_fraction" in said
    lines = report(cohort)
    assert [r["status"] for r in lines] == ["ok"] + ["failed"] * 6
    for row, reason in zip(
        lines[1:],
        ["truncated", "mpp", "no such file", "duplicate", "SDPC", "cannot be used as a file name"],
        strict=True,
    ):
        assert reason in row["error"], row
    assert list(bags(cohort)) == ["a/s0.h5"] and os.listdir(cohort / "out/a") == ["s0.h5"]
    assert extract(cohort, NO_PICTURES, "min_success_fraction=0.1") == 0, "and the finished one is kept"
    assert report(cohort)[0]["status"] == "skipped"
    assert extract(cohort, NO_PICTURES, "min_success_fraction=0.2", "slide_mpp=0.5") == 0
    assert report(cohort)[2]["spacing_source"] == "config"


@pytest.mark.ray
def test_in_a_pool_a_slide_that_kills_its_process_is_lost_alone_and_the_others_have_the_same_features(
    ray_cluster, cohort, monkeypatch
):
    from ray_jobs.extract import slides as extract_slides

    monkeypatch.setattr(extract_slides, "extract_slide", Deadly("s1"))
    assert extract(cohort, "min_success_fraction=0.6", "batch_size=64", encoders=("a", "b")) == 0
    assert [(r["status"], r["error"]) for r in report(cohort)] == [("ok", ""), ("failed", DIED), ("ok", "")]
    monkeypatch.undo()
    monkeypatch.setattr(extraction, "ActorMap", OneByOne)
    assert extract(cohort, encoders=("a", "b")) == 0
    assert [r["status"] for r in report(cohort)] == ["skipped", "ok", "skipped"]
    assert extract(cohort, NO_PICTURES, "batch_size=3", "actors=1", encoders=("a", "b"), output="2") == 0
    for encoder, name in itertools.product("ab", ("s0", "s2")):
        first, second = (read_bag(str(cohort / folder / encoder / f"{name}.h5")) for folder in ("out", "2"))
        np.testing.assert_array_equal(first.coords, second.coords)
        np.testing.assert_allclose(first.features, second.features, atol=1e-5)
        assert first.provenance == second.provenance


class Deadly:
    """Extraction that a decoder crashes in, on one slide."""

    def __init__(self, slide_id):
        self.slide_id = slide_id

    def __call__(self, job, *rest):
        from pathray.features.slides import extract_slide

        if job.slide_id == self.slide_id:
            os._exit(1)
        return extract_slide(job, *rest)


def test_a_full_disk_ends_the_job_with_the_path_and_no_half_bag(here, cohort, capsys, monkeypatch):
    from ray_jobs.extract import slides as extract_slides

    monkeypatch.setattr(extract_slides, "extract_slide", full_disk)
    assert extract(cohort, "actors=1") == 2
    said = capsys.readouterr().err
    assert "No space left on device" in said and "s0.h5" in said and "Traceback" not in said
    assert bags(cohort) == {} and [r["status"] for r in report(cohort)] == ["not done"] * 3


def full_disk(job, *rest):
    import errno

    from pathray.features.slides import extract_slide
    from pathray.store import atomic

    real = atomic.fsync

    def fsync(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    atomic.fsync = fsync
    try:
        return extract_slide(job, *rest)
    finally:
        atomic.fsync = real


def test_a_folder_of_real_slides(here, shared_data, tmp_path):
    write_encoder(tmp_path / "a", size=224, mpp=1.0)
    (tmp_path / "wsi").symlink_to(shared_data / "wsi")
    words = ["slide_mpp=0.5", "slide_parquet=true", "dtype=float16", "min_tissue_fraction=0.5"]
    assert extract(tmp_path, *words, source="slides=wsi") == 0
    lines = report(tmp_path)
    assert [r["slide_id"] for r in lines] == [
        "CMU-1-Small-Region", "TCGA-CR-7395-01A-01-TS1", "derived__CMU1_pyramid_generic", "derived__CMU1_pyramid_jp2k",
        "derived__CMU1_pyramid_jpeg",
    ]  # fmt: skip
    assert [r["spacing_source"] for r in lines] == ["header", "config", "tags", "header", "header"]
    one, three = (read_bag(str(tmp_path / "out/a" / f"{lines[i]['slide_id']}.h5")) for i in (0, 3))
    assert one.features.dtype == np.float16 and len(one.features) > 5
    shared = {tuple(c): i for i, c in enumerate(three.coords)}
    pairs = [(i, shared[tuple(c)]) for i, c in enumerate(one.coords) if tuple(c) in shared]
    assert len(pairs) > 5
    left, right = one.features[[i for i, _ in pairs]], three.features[[j for _, j in pairs]]
    correlation = [np.corrcoef(a.astype(float), b.astype(float))[0, 1] for a, b in zip(left, right, strict=True)]
    assert min(correlation) > 0.95, "one slide, encoded twice"
    table = read_table(str(tmp_path / "out/a/CMU-1-Small-Region.parquet"))
    np.testing.assert_array_equal(table.features, one.features)


@pytest.fixture
def patches(tmp_path):
    """Nine images of two sizes in folders, one of them broken, and two encoders."""
    write_encoder(tmp_path / "a")
    write_encoder(tmp_path / "b", seed=1, dim=16)
    for i in range(9):
        path = tmp_path / "patches" / "xyz"[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32 if i % 2 else 48, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    (tmp_path / "patches/y/4.png").write_bytes(b"no image")
    return tmp_path


def test_images_become_one_table_in_the_order_of_the_folder(here, patches, monkeypatch):
    words = ["images_per_part=2", "min_success_fraction=0.8", "batch_size=3"]
    assert extract(patches, *words, encoders=("a", "b"), source="images=patches") == 0
    names = sorted(str(p.relative_to(patches / "patches")) for p in (patches / "patches").rglob("*.png"))
    kept = [name for name in names if name != "y/4.png"]
    images = [np.asarray(Image.open(patches / "patches" / name)) for name in kept]
    for name in "ab":
        table = read_table(str(patches / "out" / name / "features.parquet"))
        assert table.columns["path"] == kept
        np.testing.assert_allclose(table.features, plain_features(str(patches / name), images), atol=1e-5)
        assert table.meta["provenance"]["encoder_name"] == name
        assert os.listdir(patches / "out" / name) == ["features.parquet"]
    assert [r["path"] for r in report(patches)] == names
    assert [r["path"] for r in report(patches) if r["status"] == "failed"] == ["y/4.png"]
    monkeypatch.setattr(extraction, "ActorMap", None)
    before = (patches / "out/a/features.parquet").read_bytes()
    assert extract(patches, "images_per_part=4", encoders=("a", "b"), source="images=patches") == 2, "still failed"
    assert (patches / "out/a/features.parquet").read_bytes() == before


def test_a_list_of_images_goes_on_from_its_finished_parts(here, patches, monkeypatch):
    from ray_jobs.extract import images as extract_images

    names = [f"{'xyz'[i % 3]}/{i}.png" for i in (0, 1, 2, 3, 5, 6, 7)]
    (patches / "list.csv").write_text("organ,path\n" + "".join(f"o{i},{n}\n" for i, n in enumerate(names)))
    words = ["images_per_part=3", f"images_root={patches}/patches"]
    monkeypatch.setattr(extract_images, "extract_images", DeadlyPart("z/5.png"))
    assert extract(patches, *words, source="images=list.csv") == 2
    assert [r["status"] for r in report(patches)] == ["ok"] * 3 + ["failed"] * 3 + ["ok"]
    partial = read_table(str(patches / "out/a/features.parquet"))
    assert partial.columns["organ"] == ["o0", "o1", "o2", "o6"] and partial.meta["fingerprint"] == ""
    times = {p.name: p.stat().st_mtime_ns for p in (patches / "out/a/_parts").iterdir()}
    assert sorted(times) == ["part-000000.parquet", "part-000002.parquet"]
    monkeypatch.setattr(extract_images, "extract_images", DeadlyPart("x/0.png"))  # of a part that is finished
    assert extract(patches, *words, source="images=list.csv") == 0
    table = read_table(str(patches / "out/a/features.parquet"))
    assert table.columns["path"] == names and table.columns["organ"] == [f"o{i}" for i in range(7)]
    images = [np.asarray(Image.open(patches / "patches" / name)) for name in names]
    np.testing.assert_allclose(table.features, plain_features(str(patches / "a"), images), atol=1e-5)
    assert os.listdir(patches / "out/a") == ["features.parquet"]


class DeadlyPart:
    def __init__(self, name):
        self.name = name

    def __call__(self, job, *rest):
        from pathray.features.images import extract_images

        if self.name in job.names:
            raise Died
        return extract_images(job, *rest)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pooling=max"], "mean or cls"),
        (["pooling=cls"], "no class token"),
        (["tile_px=40"], "multiple of 16"),
        (["overlap_px=32"], "overlap_px"),
        (["mpp=0"], "key: mpp"),
        (["images=patches"], "found: 'slides and images'"),
        (["slides=''"], "found: 'none'"),
        (["encoders=[]"], "`encoders` is required"),
        (["encoders=[/nowhere]"], "no encoder here"),
        (["slides=/nowhere.csv"], "/nowhere.csv"),
        (["slides=/nowhere"], "no such folder"),
        (["poolign=mean"], "pooling"),
        (["dtype=float64"], "float32 or float16"),
    ],
)
def test_bad_words_are_answered_before_ray_starts(tmp_path, capsys, words, said):
    write_encoder(tmp_path / "a")
    write_manifest(tmp_path / "slides.csv", [{"slide_id": "s", "wsi_path": "s.tiff"}])
    assert extract(tmp_path, *words) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_encoders_that_disagree_or_share_a_name_need_a_word_of_the_user(tmp_path, capsys):
    write_encoder(tmp_path / "a")
    write_encoder(tmp_path / "b", size=64, mpp=0.5)
    write_encoder(tmp_path / "deep/a", mpp=None)
    write_slide(tmp_path / "s.tiff")
    write_manifest(tmp_path / "slides.csv", [{"slide_id": "s", "wsi_path": "s.tiff"}])
    dry = "--dry-run"
    assert extract(tmp_path, dry, encoders=("a", "b")) == 2
    assert "encoders differ" in capsys.readouterr().err
    assert extract(tmp_path, dry, "mpp=0.5", "tile_px=64", encoders=("a", "b")) == 0
    assert extract(tmp_path, dry, encoders=("a", "deep/a")) == 2
    assert "name them" in capsys.readouterr().err
    named = (f"first={tmp_path}/a", f"second={tmp_path}/deep/a")
    assert extract(tmp_path, dry, encoders=named) == 0
    assert extract(tmp_path, dry, encoders=("deep/a",)) == 2
    assert "no encoder states" in capsys.readouterr().err


def test_keys_of_slides_are_refused_for_images(patches, capsys):
    assert extract(patches, "tile_px=32", source="images=patches") == 2
    assert "applies to slides only" in capsys.readouterr().err


def test_a_dry_run_of_the_command_line_writes_nothing(cohort, caplog):
    caplog.set_level("INFO")
    assert extract(cohort, "--dry-run", encoders=("a", f"x={cohort}/b")) == 0
    assert "3 slides, 0 already finished; tiles of 32 px at 1 µm/px (32 µm) for a, x" in caplog.text
    assert not (cohort / "out").exists()


@pytest.mark.heavy
def test_a_job_that_was_killed_resumes_where_it_was(here, tmp_path, monkeypatch):
    """The job is killed with its Ray, and resumed in this process."""
    write_encoder(tmp_path / "a", dim=192, depth=6, heads=3)
    (tmp_path / "wsi").mkdir()
    for i in range(5):
        write_slide(tmp_path / "wsi" / f"w{i}.tiff", seed=i, width=1800, height=1400)
    words = ["encoders=[a]", "slides=wsi", "actors=1", "batch_size=8", NO_PICTURES, "runtime.num_cpus=2"]
    command = job_command("ray_jobs.extract_features", *words, "output=out")
    job = subprocess.Popen(command, cwd=tmp_path, env=job_environment(), stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: len(list((tmp_path / "out").rglob("*.h5"))) >= 2 or job.poll() is not None, every=0.02)
    finally:
        kill_job(job)
    assert job.returncode == -signal.SIGKILL
    done = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "out/a").glob("*.h5")}
    assert 2 <= len(done) < 5, "the kill came too late to prove anything"
    monkeypatch.chdir(tmp_path)
    for output in ("out", "clean"):
        argv = [*words, f"output={output}"]
        assert run_job(extract_features.main, extract_features.ExtractConfig, argv, extract_features.CONFIGS_DIR) == 0
    for name, (when, content) in done.items():
        assert ((tmp_path / "out/a" / name).stat().st_mtime_ns, content) == (
            when,
            (tmp_path / "clean/a" / name).read_bytes(),
        )
    assert bags(tmp_path, "out") == bags(tmp_path, "clean") and len(bags(tmp_path)) == 5
    assert all(name.endswith(".h5") for name in os.listdir(tmp_path / "out/a"))
