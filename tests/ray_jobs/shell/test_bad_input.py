"""Input that the user can mend, through the pretraining job: exit code 2, one message that says where, and no trace."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pathray.config.load import load_config
from pathray.store import checkpoint
from tests.builders.cohort import write_manifest, write_mask
from tests.builders.jobs import run_job_process
from tests.builders.runs.run import TAG, command, index_and_catalog, pretrain, write_cohort
from tests.builders.slides import write_slide

NO_SLIDES = "nowhere.csv"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    """Two good slides: the folder of slides.csv."""
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder, slides=2)
    return folder


@pytest.fixture
def refused(capfd):
    """Runs the job and returns what it said on stderr, having checked that it was refused as it should be."""

    def run(output, manifest, *argv) -> str:
        code = pretrain(output, manifest, *argv)
        out, err = capfd.readouterr()
        assert code == 2, (code, err)
        assert "Traceback" not in err + out and 'File "' not in err + out, err
        assert [line[:6] for line in err.splitlines() if line.startswith("error:")] == ["error:"], err
        assert "outputs:" not in out
        return err[err.index("error:") :]

    return run


@cache
def identity(*argv: str) -> dict:
    """The identity of the tiny run with these keys on top, of some plan."""
    from ijepath.assembly import identity_of
    from ijepath.config import CONFIGS_DIR, GROUPS
    from ray_jobs.pretrain_ijepath import PretrainConfig, resolve_config

    words = command("", None, *argv)
    config = load_config(PretrainConfig, words, configs_dir=CONFIGS_DIR, groups=GROUPS).config
    return identity_of(resolve_config(config, anchors=1), "some plan")


def leave_checkpoint(output: Path, *argv: str) -> str:
    """A checkpoint of a run with these keys in `output`, as if it had been stopped; its path."""
    meta = {"images_seen": 8, "identity": identity(*argv), "seed": 0, "global_batch": 4}
    return checkpoint.save(str(output / "checkpoints"), f"{TAG}-latest", {"w": torch.zeros(1)}, meta).path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.context_fov=96"], ["command line", "data.context_fov", "data.context_fov_um"]),
        (["dta.seed=1"], ["command line", "dta", "data"]),
        (["data.threads=two"], ["data.threads", "'two'", "int"]),
        (["model.use_bfloat16=perhaps"], ["model.use_bfloat16", "'perhaps'", "bool"]),
        (["data.decode_on=cloud"], ["data.decode_on", "'cloud'", "worker | cluster"]),
        (["profile=nowhere"], ["profile", "'nowhere'", "ctx1p0_tgt0p5_fov512um_k4"]),
        (["--config", "nowhere"], ["nowhere", "smoke"]),
        (["optimization.total_images_budget=10%"], ["optimization.total_images_budget", "'10%'", "{epochs: n}"]),
        (["optimization.total_images_budget=many"], ["optimization.total_images_budget", "'many'"]),
        (["optimization.total_images_budget=0"], ["optimization.total_images_budget", "0", "> 0"]),
        (["logging.step_log_every_images=10%"], ["logging.step_log_every_images", "'10%'", "0.1"]),
        (["scaling.workers=-1"], ["scaling.workers", "-1", ">= 0"]),
        (["scaling.workers=3"], ["optimization.global_batch", "global_batch 4, workers 3", "a multiple of 3"]),
        (["optimization.micro_batch=3"], ["optimization.micro_batch", "micro_batch 3", "[1, 2, 4]"]),
        (["data.target_fov_um=120"], ["target_fov_um", "footprint 120 px", "96 px"]),
        (["data.context_mpp=0"], ["context_mpp", "> 0"]),
        (["checkpoint.resume=nowhere"], ["nowhere", "COMMITTED.json"]),
        (["data.anchor_catalog_manifest=nowhere.json"], ["nowhere.json", "anchor_catalog_manifest.json"]),
    ],
)
def test_a_bad_key_is_answered_before_ray_starts(tmp_path, cohort, refused, words, said):
    err = refused(tmp_path / "run", cohort / "slides.csv", *words)
    assert all(text in err for text in said), err
    assert not (tmp_path / "run").exists()


def test_a_bad_key_in_a_file_is_answered_with_the_file(tmp_path, cohort, refused):
    (tmp_path / "run.yaml").write_text(yaml.dump({"optimization": {"learning_rate": 1e-3, "lr": 1e-3}}))
    err = refused(tmp_path / "run", cohort / "slides.csv", "--config", str(tmp_path / "run.yaml"))
    assert all(text in err for text in ("run.yaml", "optimization.learning_rate")), err


BUDGET, MANIFEST, OUTPUT = "optimization.total_images_budget=8", "data.slide_manifest_csv=slides.csv", "output=run"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([BUDGET, OUTPUT], ["data.slide_manifest_csv", "data.slide_manifest_csv=slides.csv"]),
        ([BUDGET, MANIFEST], ["key: output", "output=FOLDER"]),
        ([MANIFEST, OUTPUT], ["not set", "optimization.total_images_budget"]),
    ],
)
def test_a_command_that_lacks_something_says_what(capfd, words, said):
    from ijepath.config import CONFIGS_DIR, GROUPS
    from ray_jobs import pretrain_ijepath as job
    from ray_jobs.shell.cli import run_job

    assert run_job(job.main, job.PretrainConfig, words, CONFIGS_DIR, GROUPS) == 2
    out, err = capfd.readouterr()
    assert all(text in err for text in said) and "Traceback" not in err + out, err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("slide_id,wsi_path\na,a.tiff\n", ["slides.csv", "mask_path", "slide_id,wsi_path,mask_path"]),
        ("slide_id,mask_path\na,\n", ["slides.csv", "wsi_path", "slide_id,wsi_path,mask_path"]),
        ("slide_id,wsi_path,mask_path\n", ["slides.csv", "header only", "one row per slide"]),
        ("", ["slides.csv", "slide_id,wsi_path,mask_path"]),
        ("slide_id,wsi_path,mask_path,status\na,a.tiff,,ok\n", ["slides.csv", "status"]),
    ],
)
def test_a_manifest_that_is_none_is_answered_before_ray_starts(tmp_path, refused, text, said):
    (tmp_path / "slides.csv").write_text(text)
    err = refused(tmp_path / "run", tmp_path / "slides.csv")
    assert all(part in err for part in said), err
    assert not (tmp_path / "run").exists()


def test_a_file_in_the_way_of_the_output_folder_is_named(tmp_path, cohort, refused):
    (tmp_path / "file").write_text("")
    for output in ("file", "file/run"):
        err = refused(tmp_path / output, cohort / "slides.csv")
        assert f"file: {tmp_path / 'file'};" in err and "key: output" in err


def test_a_missing_manifest_is_named(tmp_path, refused):
    assert NO_SLIDES in refused(tmp_path / "run", tmp_path / NO_SLIDES)


def test_the_process_ends_with_code_2_and_one_line(tmp_path):
    run = run_job_process(tmp_path, "ray_jobs.pretrain_ijepath", *command("run", NO_SLIDES))
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr.splitlines() == [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert str(tmp_path / NO_SLIDES) in run.stderr and len(run.stderr.splitlines()) == 1


# --- slides -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bad_slides(ray_cluster, tmp_path_factory) -> tuple[Path, int, str]:
    """One job on one good slide and one of every bad kind: the folder, the exit code, and what was said."""
    import contextlib
    import io

    folder = tmp_path_factory.mktemp("bad")
    write_cohort(folder, slides=1)
    write_slide(folder / "no_mpp.tiff", width=400, height=400, mpp=None)
    (folder / "unreadable.tiff").write_bytes(b"II*\x00" + bytes(2000))
    (folder / "notes.tiff").write_text("these are notes\n")
    (folder / "vendor.sdpc").write_bytes(bytes(100))
    write_mask(folder / "wide.png", np.full((100, 300), 255, np.uint8))
    rows = [
        {"slide_id": "good", "wsi_path": "slide0.tiff"},
        {"slide_id": "good", "wsi_path": "slide0.tiff"},
        {"slide_id": "gone", "wsi_path": "gone.tiff"},
        {"slide_id": "mask_gone", "wsi_path": "slide0.tiff", "mask_path": "gone.png"},
        {"slide_id": "unreadable", "wsi_path": "unreadable.tiff"},
        {"slide_id": "notes", "wsi_path": "notes.tiff"},
        {"slide_id": "vendor", "wsi_path": "vendor.sdpc"},
        {"slide_id": "wide_mask", "wsi_path": "slide0.tiff", "mask_path": "wide.png"},
        {"slide_id": "no_mpp", "wsi_path": "no_mpp.tiff"},
        {"slide_id": "bad_mpp", "wsi_path": "slide0.tiff", "mpp": "half"},
    ]
    manifest, said = write_manifest(folder / "slides.csv", rows), io.StringIO()
    with contextlib.redirect_stderr(said):
        code = pretrain(folder / "run", manifest)
    return folder, code, said.getvalue()


@pytest.mark.ray
@pytest.mark.parametrize(
    ("slide", "said"),
    [
        ("good", ["duplicate", "row 3", "row 2"]),
        ("gone", ["gone.tiff"]),
        ("mask_gone", ["gone.png"]),
        ("unreadable", ["unreadable.tiff"]),
        ("notes", ["notes.tiff"]),
        ("vendor", ["vendor.sdpc", ".sdpc", "open format"]),
        ("wide_mask", ["wide.png", "row: 9", "mask_path", "300 x 100, ratio 3.0000", "896 x 768"]),
        ("no_mpp", ["no_mpp.tiff", "row: 10", "mpp", "micrometres per pixel"]),
        ("bad_mpp", ["row 11", "'half'", "> 0"]),
    ],
)
def test_every_bad_slide_is_a_line_of_the_error_and_of_the_report(bad_slides, slide, said):
    folder, code, err = bad_slides
    assert code == 2 and "Traceback" not in err
    assert "error: 9 of 10 slides failed" in err and "min_success_fraction" in err
    (line,) = [line for line in err.splitlines() if line.strip().startswith(f"{slide}: ")]
    assert all(text in line for text in said), line
    report = (folder / "run" / "indexes" / "slide_metadata_report.csv").read_text().splitlines()
    (row,) = [row for row in report if row.startswith(f"{slide},") and ",failed," in row]
    assert said[0] in row


@pytest.mark.ray
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["data.context_fov_um=512"],
            ["2 x invalid_profile_geometry", "1024 level-0 pixels wide, the slide 896"],
        ),
        (["data.min_tissue_fraction=1"], ["2 x no_valid_anchors", "lower min_tissue_fraction"]),
        (["data.sampling_stratum_key=hospital"], ["hospital", "sampling_stratum_key", "['organ']"]),
    ],
)
def test_a_cohort_without_anchors_is_an_error_that_says_why(ray_cluster, tmp_path, refused, words, said):
    write_cohort(tmp_path, slides=2)
    paint_pale(tmp_path / "slide0.tiff", tmp_path / "slide1.tiff")
    err = refused(tmp_path / "run", tmp_path / "slides.csv", *words)
    assert all(text in err for text in said), err
    assert not (tmp_path / "run" / "indexes" / "anchor_catalog_manifest.json").exists()


def paint_pale(*paths: Path) -> None:
    """Slides with a little tissue only, so that no context is full of it."""
    image = np.full((768, 896, 3), 243, np.uint8)
    image[300:420, 300:420] = (190, 90, 160)
    for path in paths:
        write_slide(path, tile=128, downsamples=(1, 2), image=image)


def test_a_catalog_of_another_profile_is_refused_with_both_values(tmp_path, cohort, refused):
    catalog = index_and_catalog(tmp_path, str(cohort / "slides.csv"))
    words = [f"data.anchor_catalog_manifest={catalog}", "data.context_fov_um=128"]
    err = refused(tmp_path / "run", None, *words)
    assert all(text in err for text in (catalog, "data.context_fov_um", "found: 96", "expected: 128")), err


@pytest.mark.parametrize("change", ["shard", "version"])
def test_a_catalog_that_cannot_be_used_is_named(tmp_path, cohort, refused, change):
    catalog = Path(index_and_catalog(tmp_path, str(cohort / "slides.csv")))
    if change == "shard":
        (shard,) = (tmp_path / "anchors").iterdir()
        shard.unlink()
    else:
        catalog.write_text(json.dumps(json.loads(catalog.read_text()) | {"schema_version": 99}))
    err = refused(tmp_path / "run", None, f"data.anchor_catalog_manifest={catalog}")
    assert ("part-00000-" if change == "shard" else "newer version") in err, err
    assert str(tmp_path) in err


# --- resuming ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.seed=5"], ["data.seed: 0 in the checkpoint, 5 now"]),
        (["model.name=vit_small"], ["model.name: 'vit_tiny' in the checkpoint, 'vit_small' now"]),
        (["data.context_fov_um=112"], ["data.context_fov_um: 96 in the checkpoint, 112 now"]),
        (["optimization.global_batch=8"], ["optimization.global_batch: 4 in the checkpoint, 8 now"]),
        (["optimization.total_images_budget=64"], ["optimization.total_images_budget: 32 in the checkpoint, 64 now"]),
        (["optimization.lr=1e-2", "data.seed=3"], ["data.seed: 0", "optimization.lr: 0.001 in the checkpoint, 0.01"]),
    ],
)
def test_another_identity_is_refused_before_anything_is_built(tmp_path, cohort, refused, words, said):
    path = leave_checkpoint(tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    err = refused(tmp_path / "run", cohort / "slides.csv", *words)
    assert all(text in err for text in (*said, path, "only placement may change")), err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_named_checkpoint_of_another_run_is_refused_too(tmp_path, cohort, refused):
    path = leave_checkpoint(tmp_path / "other", "model.name=vit_small")
    err = refused(tmp_path / "run", cohort / "slides.csv", f"checkpoint.resume={path}")
    assert path in err and "model.name: 'vit_small' in the checkpoint, 'vit_tiny' now" in err


def test_the_global_batch_of_the_run_that_is_resumed_holds_without_being_named(tmp_path, cohort, refused):
    leave_checkpoint(tmp_path / "run")
    words = ["optimization.global_batch=null", "data.batch_size_per_gpu=3", "data.seed=5"]
    err = refused(tmp_path / "run", cohort / "slides.csv", *words)
    assert "data.seed: 0 in the checkpoint, 5 now" in err and "optimization.global_batch" not in err


def test_a_checkpoint_of_a_newer_version_is_refused(tmp_path, cohort, refused, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "SCHEMA_VERSION", 7)
        path = leave_checkpoint(tmp_path / "run")
    err = refused(tmp_path / "run", cohort / "slides.csv")
    assert all(text in err for text in (path, "newer version", "found: 7", "expected: 'at most 1'")), err


def test_a_damaged_commit_is_refused_with_its_file(tmp_path, cohort, refused):
    path = leave_checkpoint(tmp_path / "run")
    (Path(path) / "COMMITTED.json").write_text("{")
    assert f"{path}/COMMITTED.json" in refused(tmp_path / "run", cohort / "slides.csv")


def test_never_resuming_is_refused_where_there_is_a_run(tmp_path, cohort, refused):
    path = leave_checkpoint(tmp_path / "run")
    err = refused(tmp_path / "run", cohort / "slides.csv", "checkpoint.resume=never")
    assert all(text in err for text in (path, "checkpoint.resume", "auto, or a new output")), err


@pytest.mark.ray
@pytest.mark.heavy
def test_tensors_of_another_model_are_refused_by_the_worker_without_a_restart(ray_cluster, tmp_path, cohort, refused):
    from ijepath.plan import build_plan
    from ijepath.plan import identity as plan_identity

    catalog = index_and_catalog(tmp_path, str(cohort / "slides.csv"))
    own = identity()["values"]
    plan = build_plan(catalog, str(tmp_path / "plan"))
    meta = {"images_seen": 8, "seed": 0, "global_batch": 4, "identity": {"values": own | {"plan": plan_identity(plan)}}}
    left = checkpoint.save(str(tmp_path / "run" / "checkpoints"), f"{TAG}-latest", {"w": torch.zeros(1)}, meta)
    err = refused(tmp_path / "run", None, f"data.anchor_catalog_manifest={catalog}")
    assert all(t in err for t in ("holds another model", "patch_embed.proj.weight: missing", left.path)), err
    assert not list((tmp_path / "run" / "ray").glob("fatal-*"))
