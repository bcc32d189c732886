"""What training jobs of all sciences share: paths, and an output that is asked for by those who need one. No Ray."""

import importlib
import os

import pytest

from pathray.config.load import load_config
from ray_jobs.shell.cli import run_job

JOBS = {
    "pretrain_ijepath": (
        "PretrainConfig",
        "ijepath.config",
        ["data.slide_manifest_csv=s.csv", "optimization.total_images_budget=64"],
    ),
    "pretrain_adios": ("PretrainAdiosConfig", "adios.config", ["data_path=zips"]),
    "train_regression": ("TrainRegressionConfig", "regression.config", ["data.table=t.csv", "data.split=f.csv"]),
    "train_folds": ("TrainFoldsConfig", "regression.config", ["data.table=t.csv", "splits=folds"]),
}


def parts(job):
    schema, science, argv = JOBS[job]
    module, config = importlib.import_module(f"ray_jobs.{job}"), importlib.import_module(science)
    return module, getattr(module, schema), argv, config.CONFIGS_DIR, getattr(config, "GROUPS", ())


@pytest.mark.parametrize("job", ["pretrain_ijepath", "pretrain_adios", "train_regression"])
def test_a_trials_config_is_located_though_it_has_no_output(job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module, schema, argv, configs, groups = parts(job)
    config = load_config(schema, [*argv, "checkpoint.resume=there"], configs_dir=configs, groups=groups).config
    done = module.make_paths_absolute(config)
    assert done.output is None and done.checkpoint.resume == str(tmp_path / "there")
    key, _, name = argv[0].partition("=")
    value = done
    for part in key.split("."):
        value = getattr(value, part)
    assert value == str(tmp_path / name)
    again = module.make_paths_absolute(
        load_config(schema, [*argv, "output=run"], configs_dir=configs, groups=groups).config
    )
    assert again.output == str(tmp_path / "run") and not os.listdir(tmp_path)


@pytest.mark.parametrize("job", list(JOBS))
@pytest.mark.parametrize(("argv", "said"), [([], "output is required"), (["output=taken/run"], "in the way")])
def test_a_job_without_a_place_for_its_output_ends_before_anything_is_read(
    job, argv, said, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file")
    module, schema, own, configs, groups = parts(job)
    assert run_job(module.main, schema, [*own, *argv], configs, groups) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert said in error and "key: output" in error
    assert os.listdir(tmp_path) == ["taken"]
