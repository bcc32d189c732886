"""Which patches a resumed ADIOS run has when its folder has grown, has moved, or is another one. Starts no Ray."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from adios.assembly import identity_of
from adios.config import resolve
from adios.patches.index import archives_of
from adios.patches.index_writer import index_patches
from adios.plan import identity, paths
from pathray.config.load import load_config
from pathray.data.plan import Plan
from pathray.errors import UserError
from ray_jobs import pretrain_adios
from ray_jobs.train import plans, pretraining
from tests.builders.runs.adios_job import command
from tests.builders.zips import write_archive, write_folder


@pytest.fixture(params=["local", "remote"])
def run(request, tmp_path, monkeypatch):
    """`prepare(data_path, *argv)` of one run, which has a checkpoint from the first time on."""
    from adios.config import CONFIGS_DIR

    output = str(tmp_path / "run") if request.param == "local" else f"memory://{tmp_path.name}/run"
    monkeypatch.setenv("PATHRAY_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(pretrain_adios, "plan_folder", lambda root: str(tmp_path / "built"))
    state = SimpleNamespace(newest=None, output=output, built=tmp_path / "built", remote=request.param == "remote")
    for module in (plans, pretraining):
        monkeypatch.setattr(module, "checkpoint_to_resume", lambda config: state.newest)
    for module in (plans, pretrain_adios):
        monkeypatch.setattr(
            module,
            "recorded_identity",
            lambda config: state.newest.meta["identity"]["values"] if state.newest else {},
        )

    def index(config):
        path = str(config.data_path)
        return path if path.endswith(".parquet") else _indexed(path, f"{tmp_path}/indexes/{len(path)}.parquet")

    monkeypatch.setattr(pretrain_adios, "_index", index)

    def prepare(data_path, *argv):
        words = command(output, data_path, *argv)
        config = load_config(pretrain_adios.PretrainAdiosConfig, words, configs_dir=CONFIGS_DIR).config
        plan = pretrain_adios.prepare(config)
        if state.newest is None:
            known = identity_of(resolve(config, 1), identity(plan))
            state.newest = SimpleNamespace(path="checkpoint", meta={"identity": known})
        return plan

    state.prepare = prepare
    return state


def _indexed(folder, output):
    index_patches(*archives_of(str(folder)), output, max_corrupt_fraction=0.0)
    return output


def units(plan):
    return {name: plan.column(name).tolist() for name in ("source", "offset", "crc")}


def test_a_folder_that_has_grown_leaves_the_run_its_patches(run, tmp_path):
    write_folder(tmp_path / "zips")
    plan = run.prepare(tmp_path / "zips")
    begun = identity(plan), units(plan), paths(plan)
    write_archive(tmp_path / "zips" / "later.zip", 3)
    again = run.prepare(tmp_path / "zips")
    assert (identity(again), units(again), paths(again)) == begun and again.rows == 18


def test_another_folder_is_refused_and_the_runs_plan_stays_as_it_was(run, tmp_path):
    write_folder(tmp_path / "zips")
    plan = run.prepare(tmp_path / "zips")
    files = {p.name: p.read_bytes() for p in run.built.iterdir()}
    write_archive(tmp_path / "others" / "s0.zip", 4)
    with pytest.raises(UserError) as e:
        run.prepare(tmp_path / "others")
    assert "data_path" in str(e.value) and "s1.zip and 1 more" in str(e.value)
    assert {p.name: p.read_bytes() for p in run.built.iterdir()} == files
    assert identity(run.prepare(tmp_path / "zips")) == identity(plan)


def test_another_folder_is_refused_also_where_the_runs_plan_was_lost(run, tmp_path):
    write_folder(tmp_path / "zips")
    plan = run.prepare(tmp_path / "zips")
    shutil.rmtree(run.built)
    if run.remote:
        from pathray.store.storage import Storage

        Storage.of(f"{run.output}/plan").remove("plan.json")
    write_folder(tmp_path / "others", archives=2)
    with pytest.raises(UserError, match="plan"):
        run.prepare(tmp_path / "others")
    assert not run.built.exists() and not list(tmp_path.glob("built-*"))
    assert identity(run.prepare(tmp_path / "zips")) == identity(plan)  # built anew from the same patches
    assert run.built.exists() and not list(tmp_path.glob("built-*"))


@pytest.mark.parametrize("form", ["folder", "index", "archives_root"])
def test_archives_that_have_moved_are_read_where_they_are_now(run, tmp_path, form):
    write_folder(tmp_path / "zips")
    plan = run.prepare(tmp_path / "zips")
    begun = units(plan)
    (tmp_path / "zips").rename(tmp_path / "moved")
    write_archive(tmp_path / "moved" / "later.zip", 3)
    given = {
        "folder": lambda: [tmp_path / "moved"],
        "index": lambda: [_indexed(tmp_path / "moved", f"{tmp_path}/moved.parquet")],
        "archives_root": lambda: [
            _indexed(tmp_path / "moved", f"{tmp_path}/m.parquet"),
            f"data.archives_root={tmp_path / 'moved'}",
        ],
    }[form]()
    again = run.prepare(*given)
    assert identity(again) == identity(plan) and units(again) == begun
    assert paths(again) == [str(tmp_path / "moved" / f"s{i}.zip") for i in range(3)]
    reopened = Plan.open(again.origin, verify=True)
    assert paths(reopened) == paths(again) and np.array_equal(reopened.column("bytes"), plan.column("bytes"))


def test_a_driver_on_another_machine_takes_the_plan_that_the_run_published(run, tmp_path):
    if not run.remote:
        pytest.skip("a local run's plan lies in its folder")
    write_folder(tmp_path / "zips")
    plan = run.prepare(tmp_path / "zips")
    shutil.rmtree(run.built)  # the other machine has none
    write_archive(tmp_path / "zips" / "later.zip", 3)
    again = run.prepare(tmp_path / "zips")
    assert identity(again) == identity(plan) and again.rows == 18


def test_with_leave_to_change_the_plan_a_run_goes_on_with_the_patches_there_are_now(run, tmp_path):
    write_folder(tmp_path / "zips")
    run.prepare(tmp_path / "zips")
    write_archive(tmp_path / "zips" / "later.zip", 3)
    assert run.prepare(tmp_path / "zips", "checkpoint.resume_changes=[plan]").rows == 21
