from __future__ import annotations

import contextlib
import io
import os
import runpy
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from pathray.reports.progress import Progress
from ray_jobs.shell.cli import Outputs, Terminated, run_job
from tests.builders.jobs import (
    job_command,
    job_environment,
    join_threads_that_exit,
    run_job_process,
    write_toy_job,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_toy_job(tmp_path)
    return tmp_path


@pytest.fixture
def here(folder, monkeypatch, capfd):
    """Runs the toy job in this process as `python -m` does; its exit code and what it said on stdout and stderr."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))

    def run(*argv: str) -> tuple[object, str, str]:
        monkeypatch.delitem(sys.modules, "toy_job", raising=False)
        monkeypatch.setattr(sys, "argv", ["toy_job", *argv])
        with pytest.raises(SystemExit) as end:
            runpy.run_module("toy_job", run_name="__main__", alter_sys=True)
        sys.modules.pop("toy_job", None)
        return end.value.code, *capfd.readouterr()

    return run


def test_the_last_line_names_the_outputs_and_nothing_lives_in_main(folder):
    run = run_job_process(folder, "toy_job", "end=well", "--dry-run")
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["toy_job True", "outputs: index=a.parquet report=r.csv"]


def test_a_result_that_is_not_good_enough_sets_the_exit_code(here):
    assert here("end=poor")[:2] == (1, "outputs: report=r.csv\n")


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("end=user", "error: no slides (file: slides.csv; row: 3)\n"),
        ("end=wrapped", "error: unreadable (file: a.svs)\n"),
        ("edn=x", "error: unknown key (file: command line; key: edn; found: 'edn'; expected: 'end')\n"),
        ("amount=1", "error: a required key is not set (key: end; expected: 'end=…')\n"),
    ],
)
def test_a_users_error_is_one_line_without_a_trace_and_exit_code_2(here, argument, said):
    code, out, err = here(argument)
    assert (code, out) == (2, "")
    assert err.replace("; found: 'edn'", "") == said.replace("; found: 'edn'", "")


def test_our_own_error_leaves_a_trace_and_exit_code_1(here):
    code, _, err = here("end=assert")
    assert code == 1 and "Traceback" in err and "AssertionError: ours" in err


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_job_cleans_up_and_says_so_by_its_exit_code(folder, sent, code):
    process = subprocess.Popen(
        job_command("toy_job", "end=wait"), cwd=folder, env=job_environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "waiting\n"
    process.send_signal(sent)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (code, "cleaned up\n")
    assert "Traceback" not in err


def test_print_config_prints_yaml_and_runs_nothing(here):
    assert here("end=user", "--print-config")[:2] == (0, "end: user\namount: 1\n")


def test_help_opens_with_the_jobs_docstring_and_imports_neither_ray_nor_torch(folder, tmp_path):
    for name in ("ray", "torch"):
        (tmp_path / "traps" / name).mkdir(parents=True)
        (tmp_path / "traps" / name / "__init__.py").write_text("raise SystemError('imported for --help')")
    run = run_job_process(folder, "toy_job", "--help", paths=(tmp_path / "traps",))
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("Adds numbers up. Only here to be run by a test.\n")
    assert "usage: python -m toy_job" in run.stdout
    assert "end: str   REQUIRED   # how it ends" in run.stdout


def test_a_job_started_as_a_script_is_told_how_to_start_it(folder):
    run = subprocess.run(
        [sys.executable, "toy_job.py", "end=well"], cwd=folder, env=job_environment(), capture_output=True, text=True
    )
    assert run.returncode == 2
    assert "python -m" in run.stderr


def test_outputs_without_paths_say_none():
    assert Outputs().line() == "outputs: none"


def test_progress_off_a_terminal_is_a_line_for_every_tenth():
    stream = io.StringIO()
    with Progress(25, "index", "slides", stream) as progress:
        for _ in range(25):
            progress.update()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("index: 12% (3 of 25 slides")
    assert lines[-1].startswith("index: 100% (25 of 25 slides")


def test_progress_says_how_fast_parts_are_done_and_how_long_it_will_take(monkeypatch):
    stream, now = io.StringIO(), [100.0]
    monkeypatch.setattr("pathray.reports.progress.time.monotonic", lambda: now[0])
    with Progress(4, "extract", "slides", stream, parts="tiles") as progress:
        for tiles in (1500, 500, 0, 1000):
            now[0] += 60.0
            progress.update(1, tiles)
    assert stream.getvalue().splitlines() == [
        "extract: 25% (1 of 4 slides, 1,500 tiles, 25.0 tiles/s, 3 min left)",
        "extract: 50% (2 of 4 slides, 2,000 tiles, 16.7 tiles/s, 2 min left)",
        "extract: 75% (3 of 4 slides, 2,000 tiles, 11.1 tiles/s, 60 s left)",
        "extract: 100% (4 of 4 slides, 3,000 tiles, 12.5 tiles/s)",
    ]


def test_slow_progress_has_a_line_at_least_every_ten_minutes(monkeypatch):
    stream, now = io.StringIO(), [0.0]
    monkeypatch.setattr("pathray.reports.progress.time.monotonic", lambda: now[0])
    with Progress(1000, "index", "slides", stream) as progress:
        for _ in range(9):
            now[0] += 250.0
            progress.update()
    assert len(stream.getvalue().splitlines()) == 3


def test_progress_of_unknown_length_ends_with_the_count():
    stream = io.StringIO()
    with Progress(None, "tiles", stream=stream) as progress:
        progress.update(7)
    assert stream.getvalue().startswith("tiles: 7 items in ")


@dataclass
class NoConfig:
    seed: int = 0


def ends_in_compiled_code(loaded):
    try:
        raise Terminated
    except Terminated as e:
        raise SystemError("returned a result with an exception set") from e


def ends_by_itself(loaded):
    raise SystemError("returned NULL without setting an exception")


def test_a_signal_that_compiled_code_turned_into_another_error_is_still_told_as_one(capsys, tmp_path):
    assert run_job(ends_in_compiled_code, NoConfig, [], tmp_path) == 143
    assert capsys.readouterr().err == "terminated\n"
    assert run_job(ends_by_itself, NoConfig, [], tmp_path) == 1
    assert "SystemError: returned NULL" in capsys.readouterr().err


HOSTILE = """
import signal, sys
sys.argv = ["toy", "end=wait"]
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
import toy_job
from pathlib import Path
from ray_jobs.shell.cli import job
job(toy_job.main, toy_job.ToyConfig, Path("configs"))
"""


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_job_takes_signals_that_its_parent_had_ignored_and_blocked(folder, sent, code):
    process = subprocess.Popen(
        [sys.executable, "-c", HOSTILE], cwd=folder, env=job_environment(folder), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "waiting\n"
    process.send_signal(sent)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (code, "cleaned up\n")
    assert "waiting up to 10 s" in err and "Traceback" not in err


class Swallows:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def swallows_the_first(loaded):
    Swallows()  # raised in a destructor, Python only prints it
    time.sleep(20)


def test_a_signal_that_a_destructor_swallowed_is_told_again(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    assert run_job(swallows_the_first, NoConfig, [], tmp_path) == 143


def test_a_job_that_does_not_end_after_a_signal_is_ended(tmp_path, monkeypatch):
    codes: list[int] = []
    monkeypatch.setattr("ray_jobs.shell.cli.GRACE_S", 0.0)
    monkeypatch.setattr("ray_jobs.shell.cli.os._exit", codes.append)

    def holds(loaded):
        while not codes:
            with contextlib.suppress(Terminated):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.05)

    try:
        assert run_job(holds, NoConfig, [], tmp_path) == 0  # here only: `_exit` did not end the process
    finally:
        join_threads_that_exit()
    assert codes[0] == 143


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        (signal.SIGTERM, signal.SIGTERM, 143),
        (signal.SIGINT, signal.SIGTERM, 143),
        (signal.SIGTERM, signal.SIGINT, 130),
    ],
)
def test_the_second_signal_to_a_training_sets_its_exit_code(tmp_path, first, second, code):
    from pathray.store.storage import Storage
    from ray_jobs.train.driver import stop_on_signals

    def training(loaded):
        with stop_on_signals(Storage.of(tmp_path)):
            os.kill(os.getpid(), first)
            os.kill(os.getpid(), second)
            time.sleep(20)

    assert run_job(training, NoConfig, [], tmp_path) == code
