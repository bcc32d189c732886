"""`--dry-run` of every job: it writes nothing, counts what the job would work on, and misses what is not there."""

import importlib
import json
import shutil
from pathlib import Path

import pytest

from pathray.errors import UserError
from ray_jobs.__main__ import jobs as all_jobs
from ray_jobs.shell.cli import run_job
from ray_jobs.shell.dry_run import Needs, Slide, check_files, check_slides
from ray_jobs.tune.config import TrainingJob
from tests.builders.cohort import write_manifest, write_slide
from tests.builders.inputs import jobs, write_inputs
from tests.ray_jobs.slides.test_nuclei_benchmark import images as write_nuclei
from tests.ray_jobs.slides.test_spatial_patches import made as write_spots

NAMES = [name.rpartition(".")[2] for name in all_jobs()]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    write_spots(folder)
    write_nuclei(folder / "nuclei")
    return folder


def dry(name: str, *words: str) -> int:
    module = importlib.import_module(f"ray_jobs.{name}")
    where = getattr(module, "CONFIGS_DIR", Path(module.__file__).parent)
    return run_job(
        module.main, TrainingJob(name, ()).schema, [*words, "--dry-run"], where, getattr(module, "GROUPS", ())
    )


def tree(folder: Path) -> dict[str, int]:
    """Every folder, and every file with the time of its last change."""
    return {str(p): 0 if p.is_dir() else p.stat().st_mtime_ns for p in sorted(folder.rglob("*"))}


@pytest.fixture
def no_ray(monkeypatch) -> None:
    def started(*args, **kwargs):
        raise AssertionError("a dry run starts no Ray")

    monkeypatch.setattr("ray.init", started)


@pytest.mark.parametrize("name", NAMES)
def test_a_dry_run_writes_nothing_and_says_how_much_there_is(name, inputs, tmp_path, monkeypatch, caplog, no_ray):
    caplog.set_level("INFO")
    for place in ("work", "tmp", "cache"):
        (tmp_path / place).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    job, before = jobs(inputs)[name], (tree(inputs), tree(tmp_path))
    assert dry(name, *job.words) == 0, caplog.text
    assert (tree(inputs), tree(tmp_path)) == before
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("dry run: ")][-1:]
    assert job.units in line and line.endswith("nothing was started or written")


@pytest.mark.parametrize("name", NAMES)
def test_an_input_that_is_not_there_is_refused_in_a_dry_run(name, inputs, tmp_path, capsys, no_ray):
    job, gone = jobs(inputs)[name], str(tmp_path / "gone.csv")
    words = [word for word in job.words if word.partition("=")[0] != job.input]
    (given,) = [word for word in job.words if word.partition("=")[0] == job.input]
    within = {"sweep": inputs / "images" / "table.csv", "benchmark_models": inputs / "mil" / "slides.csv"}
    if name in within:  # the input is among the arguments of another job
        words.append(given.replace(str(within[name]), gone))
    else:
        words.append(f"{job.input}={gone}")
    assert dry(name, *words) == 2
    assert "gone.csv" in capsys.readouterr().err


def cohort(folder: Path) -> str:
    """Three slides: one is not there, one does not say its spacing, one is coarse."""
    write_slide(folder / "mute.tiff", mpp=None)
    write_slide(folder / "coarse.tiff", mpp=8.0)
    names = ("gone", "mute", "coarse")
    return write_manifest(folder / "slides.csv", [{"slide_id": n, "wsi_path": f"{n}.tiff"} for n in names])


@pytest.mark.parametrize(
    ("name", "key", "more"),
    [
        ("index_slides", "manifest", ("output=i.parquet",)),
        ("extract_features", "slides", ("output=out",)),
        ("pretrain_ijepath", "data.slide_manifest_csv", ("--config=smoke", "output=out")),
    ],
)
def test_slides_that_would_fail_are_named_with_the_reason(name, key, more, inputs, tmp_path, capsys, caplog, no_ray):
    more = (*more, f"encoders=[{inputs}/encoder]") if name == "extract_features" else more
    words = (f"{key}={cohort(tmp_path)}", *more)
    assert dry(name, *words) == 2
    said = capsys.readouterr().err
    assert "gone: no such file" in said and "mute: the slide does not say its pixel size" in said
    assert ("coarse: the slide is too coarse" in said) == (name != "index_slides")
    assert "min_success_fraction" in said
    assert dry(name, *words, "min_success_fraction=0") == 0
    assert "would fail: gone: no such file" in caplog.text


@pytest.mark.parametrize("name", ["build_anchors", "cut_patches", "preview_ijepath"])
def test_slides_of_an_index_that_have_gone_since_are_named(name, inputs, tmp_path, capsys, no_ray):
    folder = tmp_path / "moved"
    write_inputs_of_slides(folder)
    (folder / "cohort" / "slide1.tiff").unlink()
    assert dry(name, *jobs(folder)[name].words) == 2
    assert "s1: no such file" in capsys.readouterr().err


def write_inputs_of_slides(folder: Path) -> None:
    from tests.builders.runs.run import index_and_catalog, write_cohort

    index_and_catalog(folder, write_cohort(folder / "cohort", slides=2))


def test_a_slide_is_as_fine_as_its_level_says_and_a_fallback_counts(tmp_path):
    path = str(write_slide(tmp_path / "mute.tiff", mpp=None))
    needs = Needs((0.5,))
    assert check_slides([Slide("a", path, fallback_mpp=1.0)], "s.csv", 1.0, needs) == 1
    with pytest.raises(UserError, match="a: the slide is too coarse: .*1.1 .*enlarge it 2.2 times"):
        check_slides([Slide("a", path, mpp=1.1, fallback_mpp=1.0)], "s.csv", 1.0, needs)
    assert check_slides([Slide("a", path, mpp=0.5), Slide("b", path)], "s.csv", 0.5, needs) == 1


def test_archives_that_an_index_lists_and_that_are_gone_are_named(inputs, tmp_path, capsys, no_ray):
    shutil.copytree(inputs / "zips", tmp_path / "zips")
    (tmp_path / "zips" / "s1.zip").unlink()
    words = (f"data_path={inputs}/patches.parquet", f"data.archives_root={tmp_path}/zips", f"output={tmp_path}/out")
    assert dry("pretrain_adios", "--config=smoke", *words) == 2
    said = capsys.readouterr().err
    assert "do not exist" in said and "s1.zip" in said and "key: data_path" in said
    with pytest.raises(UserError, match="a.zip and 1 more"):
        check_files([str(tmp_path / "a.zip"), str(tmp_path / "b.zip")], "index", "source")


def test_images_that_an_evaluator_would_read_are_looked_for(inputs, tmp_path, capsys, no_ray):
    shutil.copytree(inputs / "patches", tmp_path / "patches")
    next((tmp_path / "patches").glob("*.png")).unlink()
    words = jobs(inputs)["evaluate"].words
    plugins = json.dumps([{"name": "pathorob", "datasets": {"h": {"manifest_csv": f"{tmp_path}/patches/patches.csv"}}}])
    assert dry("evaluate", *words, f"tuning.plugins={plugins}") == 2
    assert ".png" in capsys.readouterr().err


def test_images_that_a_list_names_and_that_are_gone_are_named(inputs, tmp_path, capsys, caplog, no_ray):
    caplog.set_level("INFO")
    present = next((inputs / "patches").glob("*.png"))
    (tmp_path / "list.csv").write_text(f"path\n{present}\n{tmp_path}/gone.png\n")
    words = (f"images={tmp_path}/list.csv", f"encoders=[{inputs}/encoder]", f"output={tmp_path}/out", "resize=true")
    assert dry("extract_features", *words) == 2
    said = capsys.readouterr().err
    assert "1 of 2 images failed" in said and "gone.png: no such file" in said
    assert dry("extract_features", *words, "min_success_fraction=0.5") == 0
    assert "dry run: 1 images;" in caplog.text and not (tmp_path / "out").exists()
