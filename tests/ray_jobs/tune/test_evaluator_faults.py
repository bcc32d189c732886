"""Evaluators and trainings that are killed beside each other: nothing is lost, nothing doubled, nothing disturbed."""

import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from pathray.evaluation.results import ROWS
from pathray.store.metrics_log import rows_of
from tests.builders.jobs import (
    alive,
    descendants,
    job_command,
    job_environment,
    kill_job,
    wait_for,
)
from tests.builders.patches import write_patches, write_tuning
from tests.builders.runs.run import BUDGET, command, discard, pretrain, undisturbed, weights

pytestmark = [pytest.mark.ray, pytest.mark.integration, pytest.mark.heavy]


def tuning(folder: Path, **given) -> str:
    return write_tuning(
        folder / "tuning.yaml", write_patches(folder / "patches"), execution="max_pending_jobs: 9", **given
    )


def judged(run: Path) -> list[tuple[int, str]]:
    rows = rows_of((run / ROWS).read_bytes()) if (run / ROWS).exists() else []
    return sorted((row["images_seen"], row["status"]) for row in rows)


def evaluator() -> list[int]:
    """Processes below this one that run an evaluation's trial."""
    found = []
    for pid in descendants(os.getpid()):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if line.startswith((b"ray::ImplicitFunc", b"ray::evaluation_trial")):
            found.append(pid)
    return found


@pytest.fixture(scope="module")
def killed(ray_cluster, tmp_path_factory):
    """A job that is killed between evaluations, and the same command again, of which an evaluator is killed: (its run,
    what was judged before, the evaluator, the run without either)."""
    folder, whole, evaluators = tmp_path_factory.mktemp("killed"), undisturbed(tmp_path_factory.getbasetemp()), []
    run = folder / "run"
    words = ("--config", tuning(folder))
    with (folder / "said").open("w") as said:
        line = job_command(
            "ray_jobs.pretrain_ijepath", *command(run, whole.manifest, *words, "tuning.execution.mode=sync")
        )
        job = subprocess.Popen(line, cwd=folder, env=job_environment(), stdout=said, stderr=said)
        try:
            wait_for(lambda: len(judged(run)) >= 2 or job.poll() is not None, seconds=240)
            assert job.poll() is None, (folder / "said").read_text()
        finally:
            kill_job(job)
    before = judged(run)

    def kill() -> None:
        (pid, *_) = wait_for(evaluator, seconds=120, every=0.05)
        os.kill(pid, signal.SIGKILL)
        evaluators.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    code = pretrain(run, whole.manifest, *words)
    killer.join()
    assert code == 0
    yield run, before, evaluators, whole
    discard(run)


def test_a_job_killed_between_evaluations_judges_every_snapshot_once_when_it_goes_on(killed):
    run, before, _, _ = killed
    assert 2 <= len(before) < 5
    assert judged(run) == [(images, "ok") for images in range(0, BUDGET + 1, 8)]


def test_an_evaluator_that_is_killed_is_started_again_and_the_training_does_not_notice(killed):
    run, _, evaluators, whole = killed
    assert evaluators and not alive(evaluators)
    assert judged(run) == [(images, "ok") for images in range(0, BUDGET + 1, 8)]
    assert weights(run) == weights(whole.folder)
