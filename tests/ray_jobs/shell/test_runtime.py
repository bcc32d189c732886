from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from pathray.errors import UserError
from ray_jobs.shell.runtime import RuntimeConfig, _runtime_env, object_store_mb, ray_session
from tests.builders.jobs import ROOT, job_environment

EMBEDDED = """
import os, signal, sys
from ray_jobs.shell.runtime import RuntimeConfig, ray_session, worker_environment
from pathray.config.sections import ScalingConfig
from ray_jobs.train.attempts import worker_runtime_env
mine = lambda *a: None
signal.signal(signal.SIGTERM, mine)
with ray_session(RuntimeConfig(address="local", omp_threads=3, object_store_mb=100), cpus=5) as session:
    import ray
    task = ray.remote(num_cpus=0.1)(lambda: os.environ["OMP_NUM_THREADS"])
    print(session.embedded, session.resources["CPU"] >= 7, ray.get(task.remote()))
    print(signal.getsignal(signal.SIGTERM) is mine)
    print(worker_environment()["OMP_NUM_THREADS"], "OMP_NUM_THREADS" in os.environ)
    print(worker_runtime_env(ScalingConfig(threads_per_worker=3)))
    print(worker_runtime_env(ScalingConfig(threads_per_worker=2))["env_vars"]["OMP_NUM_THREADS"])
    with ray_session(RuntimeConfig()) as inner:
        print(inner.embedded)
    print(ray.is_initialized())
print(ray.is_initialized(), worker_environment())
"""


@pytest.mark.ray
def test_an_embedded_ray_has_room_for_the_data_beside_the_workers_and_ends_with_the_session():
    environment = {name: value for name, value in job_environment().items() if name != "OMP_NUM_THREADS"}
    run = subprocess.run(
        [sys.executable, "-c", EMBEDDED], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [
        "True True 3", "True", "3 False", "None", "2", "False", "True", "False {}",
    ]  # fmt: skip


@pytest.mark.ray
def test_a_running_ray_is_used_and_left_running(ray_cluster):
    import ray

    with ray_session(RuntimeConfig(), cpus=6) as session:
        assert (session.embedded, session.resources["CPU"]) == (False, 6)
    assert ray.is_initialized()


@pytest.mark.ray
@pytest.mark.parametrize("need", [{"cpus": 7}, {"gpus": 1}])
def test_too_few_resources_are_refused_before_anything_starts_unless_the_cluster_grows(ray_cluster, need):
    with pytest.raises(UserError, match="too few"), ray_session(RuntimeConfig(), **need):
        raise AssertionError("started")
    with ray_session(RuntimeConfig(), autoscaling=True, **need):
        pass


@pytest.mark.ray
def test_a_users_error_from_a_task_is_printed_without_the_remote_trace(ray_cluster, capsys):
    import ray

    from ray_jobs.shell.cli import _report

    def fail() -> None:
        raise UserError("no mpp", file="a.svs")

    with pytest.raises(ray.exceptions.RayTaskError) as info:
        ray.get(ray.remote(fail).remote())
    assert _report(info.value) == 2
    assert capsys.readouterr().err == "error: no mpp (file: a.svs)\n"


def test_fewer_cpus_than_needed_is_refused_before_ray_starts(monkeypatch):
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("ray started"))
    with (
        pytest.raises(UserError, match="runtime.num_cpus"),
        ray_session(RuntimeConfig(address="local", num_cpus=2), cpus=3),
    ):
        pass


def test_an_address_where_nobody_answers_is_the_users_to_mend(monkeypatch):
    import ray

    def refuse(**arguments):
        assert arguments["address"] == "10.0.0.1:6379"
        raise ConnectionError("no route")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(UserError, match="10.0.0.1:6379"), ray_session(RuntimeConfig()):
        pass


@pytest.mark.parametrize("kind", ["RuntimeEnvSetupError", "ValueError"])
def test_a_runtime_environment_that_cannot_be_set_up_is_not_taken_for_a_missing_cluster(kind, monkeypatch):
    import ray

    def refuse(**arguments):
        if kind == "ValueError":
            raise ValueError("Failed to merge the Job's runtime env {} with a ray.init's runtime env {}")
        raise ray.exceptions.RuntimeEnvSetupError("pip install torch==9.9 failed")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(UserError) as error, ray_session(RuntimeConfig(address="10.0.0.1:6379")):
        pass
    assert error.value.where["key"] == "runtime_env" and "no Ray cluster" not in str(error.value)
    assert kind == "ValueError" or "torch==9.9" in str(error.value)


def test_a_submitted_jobs_own_environment_is_not_set_twice(monkeypatch):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert _runtime_env(RuntimeConfig(omp_threads=2))["env_vars"]["OMP_NUM_THREADS"] == "2"
    submitted = {"runtime_env": {"env_vars": {"OMP_NUM_THREADS": "4"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(submitted))
    assert "OMP_NUM_THREADS" not in _runtime_env(RuntimeConfig())["env_vars"]


@pytest.mark.parametrize("bad", [{"num_cpus": 0}, {"omp_threads": 0}, {"object_store_mb": 10}])
def test_impossible_sizes_are_refused(bad):
    with pytest.raises(UserError, match=f"runtime.{next(iter(bad))}"):
        RuntimeConfig(**bad)


def test_the_object_store_fits_shared_memory():
    size = object_store_mb()
    assert 100 <= size <= 1024
    if os.path.isdir("/dev/shm"):
        stat = os.statvfs("/dev/shm")
        assert size == 100 or size <= stat.f_bavail * stat.f_frsize >> 20
