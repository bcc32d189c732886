"""`python -m ray_jobs.stop`: what it leaves for a run, and what it refuses. Starts no Ray."""

import json

from pathray.store.storage import Storage
from ray_jobs.__main__ import jobs
from tests.builders.jobs import run_job_process


def test_a_run_is_asked_to_stop_by_its_folder_alone(tmp_path):
    run = tmp_path / "a=run"
    Storage.of(run).write_bytes("config_resolved.yaml", b"{}")
    done = run_job_process(tmp_path, "ray_jobs.stop", str(run))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"outputs: stop={run / 'STOP'}"
    assert json.loads((run / "STOP").read_text())["time"] > 0
    assert "ray_jobs.stop" in jobs()


def test_a_folder_without_a_run_is_refused_and_left_alone(tmp_path):
    done = run_job_process(tmp_path, "ray_jobs.stop", f"run={tmp_path / 'runn'}")
    assert done.returncode == 2 and "no run found" in done.stderr and str(tmp_path / "runn") in done.stderr
    assert not (tmp_path / "runn").exists()


def test_a_run_that_has_ended_is_told_so_and_is_not_asked(tmp_path):
    run = tmp_path / "run"
    Storage.of(run).write_bytes("config_resolved.yaml", b"{}")
    Storage.of(run).write_bytes("progress.json", b'{"images_seen": 2048, "time": 1.0, "end": "budget"}')
    done = run_job_process(tmp_path, "ray_jobs.stop", str(run))
    assert done.returncode == 0 and "has ended (budget, after 2,048 images)" in done.stderr
    assert not (run / "STOP").exists()


def test_a_run_whose_last_sign_of_life_is_damaged_or_older_is_asked(tmp_path):
    for name, beat in {"half": b'{"images_se', "going": b'{"images_seen": 8, "time": 1.0}', "list": b"[]"}.items():
        Storage.of(tmp_path / name).write_bytes("config_resolved.yaml", b"{}")
        Storage.of(tmp_path / name).write_bytes("progress.json", beat)
        assert run_job_process(tmp_path, "ray_jobs.stop", name).returncode == 0
        assert (tmp_path / name / "STOP").exists()
