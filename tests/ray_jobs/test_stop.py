"""`python -m ray_jobs.stop`: what it leaves for a run, and what it refuses. Starts no Ray."""

import json

from core.storage import Storage
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
    assert done.returncode == 2 and "no run is here" in done.stderr and str(tmp_path / "runn") in done.stderr
    assert not (tmp_path / "runn").exists()
