"""Signals reach a job that waits inside Ray, and say what they wait for."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass

import pytest

from pathray.reports.progress import Progress
from ray_jobs.shell.cli import GRACE_S, run_job
from tests.builders.cohort import write_manifest, write_slide
from tests.builders.hanging_server import hanging_server
from tests.builders.jobs import job_command, job_environment, join_threads_that_exit, wait_for


@dataclass
class NoConfig:
    seed: int = 0


def hangs() -> None:
    time.sleep(300)


def told(seconds: float, *numbers: int) -> None:
    """Send the signals to this process, the first after so long."""

    def send() -> None:
        for number in numbers:
            time.sleep(seconds)
            os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()


@pytest.mark.ray
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_job_that_waits_for_a_task_which_hangs(ray_cluster, tmp_path, capfd, sent, code):
    import ray

    def waits(loaded):
        future = ray.remote(num_cpus=0, max_retries=0)(hangs).remote()
        try:
            ray.get(future)
        finally:
            ray.cancel(future, force=True)

    told(2.0, sent)
    started = time.monotonic()
    assert run_job(waits, NoConfig, [], tmp_path) == code
    assert time.monotonic() - started < 2.0 + 0.8 * GRACE_S
    assert "did not stop in time" not in capfd.readouterr().err


@pytest.mark.heavy
@pytest.mark.integration
def test_sigterm_ends_an_index_job_whose_slides_do_not_answer(tmp_path):
    with hanging_server(write_slide(tmp_path / "s.tiff")) as server:
        server.hang()
        write_manifest(tmp_path / "slides.csv", [{"slide_id": f"s{i}", "wsi_path": server.url} for i in range(3)])
        words = [f"manifest={tmp_path}/slides.csv", f"output={tmp_path}/i.parquet"]
        process = subprocess.Popen(
            job_command("ray_jobs.index_slides", *words), env=job_environment(), text=True, stderr=subprocess.PIPE
        )
        wait_for(lambda: server.asked or process.poll() is not None)
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 143 and time.monotonic() - started < GRACE_S + 5, said
    assert not (tmp_path / "i.parquet").exists()


def test_a_first_signal_says_what_ends_and_for_how_long_at_most_it_waits(tmp_path, capfd):
    def works(loaded):
        with Progress(10, "extract", "slides") as progress:
            progress.update(3)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(20)

    assert run_job(works, NoConfig, [], tmp_path) == 130
    said = capfd.readouterr().err
    assert f"SIGINT: ending extract (3 of 10 slides done); waiting up to {GRACE_S:.0f} s for work in progress" in said
    assert "repeat the signal to end at once" in said and not Progress.shown


def test_a_second_signal_ends_a_job_that_does_not_stop_within_a_second(tmp_path, monkeypatch):
    ended: list[tuple[int, float]] = []
    monkeypatch.setattr("ray_jobs.shell.cli.os._exit", lambda code: ended.append((code, time.monotonic())))

    def holds(loaded):
        while not ended:
            with contextlib.suppress(KeyboardInterrupt):  # the job that does not stop
                time.sleep(0.05)

    started = time.monotonic()
    told(0.5, signal.SIGINT, signal.SIGTERM)
    try:
        run_job(holds, NoConfig, [], tmp_path)
    finally:
        join_threads_that_exit()
    assert ended[0][0] == 143 and ended[0][1] - started < 6


def test_what_ray_raises_after_a_sigterm_still_counts_as_one(tmp_path, capfd):
    def waits(loaded):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(20)
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None

    assert run_job(waits, NoConfig, [], tmp_path) == 143 and "terminated" in capfd.readouterr().err
