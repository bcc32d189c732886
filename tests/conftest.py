"""What every test shares: import paths, quiet threads, seeds, one local Ray cluster, the real slides if present."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
for name, value in {
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_AUTH_MODE": "disabled",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "MPLBACKEND": "Agg",
    "TQDM_DISABLE": "1",
}.items():
    os.environ.setdefault(name, value)
os.environ.pop("RAY_ADDRESS", None)  # never somebody's real cluster

import numpy as np  # noqa: E402
import pytest  # noqa: E402

SHARED_DATA = ROOT.parent / "shared" / "data"
START_FIRST = (  # the files that take longest, the longest first: from the list that .ci/run prints at its end
    "tests/demo/test_whole_demo.py",
    "tests/ray_jobs/train/regression/test_regression_jobs.py",
    "tests/ray_jobs/tune/test_evaluator_faults.py",
    "tests/ray_jobs/train/test_faults.py",
    "tests/ray_jobs/train/test_finished_runs.py",
    "tests/ray_jobs/train/adios/test_adios_with_others.py",
    "tests/ray_jobs/tune/test_evaluators.py",
    "tests/ray_jobs/tune/test_sweep_regression.py",
    "tests/ray_jobs/tune/test_sweep_schedulers.py",
    "tests/ray_jobs/tune/test_sweep.py",
    "tests/ray_jobs/train/test_trainer.py",
    "tests/ray_jobs/train/test_in_process.py",
    "tests/ray_jobs/train/test_pretrain_ijepath.py",
    "tests/ray_jobs/train/adios/test_pretrain_adios.py",
    "tests/ray_jobs/slides/test_patch_jobs.py",
    "tests/ray_jobs/extract/test_extract_features.py",
    "tests/ray_jobs/shell/test_bad_input.py",
)


@pytest.fixture(autouse=True)
def seeds() -> None:
    """The global generators start equal in every test; code under test should not use them anyway."""
    random.seed(0)
    np.random.seed(0)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(0)
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real sample data beside the repository; tests that need it skip where it is missing."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real sample data at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One embedded cluster for the session of this process: six logical CPUs, no dashboard, nothing attached from
    outside. Where tests run in several processes, each has its own: those that wait for Ray then run side by side."""
    import ray

    assert not ray.is_initialized(), "a test started Ray by itself; use the ray_cluster fixture"
    paths = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
    ray.init(
        address="local",
        num_cpus=6,
        include_dashboard=False,
        object_store_memory=200 << 20,
        log_to_driver=False,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}},
    )
    yield
    ray.shutdown()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files of `START_FIRST` before all others. `make test` and `make test-heavy` give whole files to two
    processes, and a long one at the end would leave the other process idle."""
    first = {str(ROOT / name): number for number, name in enumerate(START_FIRST)}
    items.sort(key=lambda item: first.get(str(item.path), len(first)))
