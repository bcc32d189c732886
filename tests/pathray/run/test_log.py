"""log.txt tells what a run said and measured, while it runs and after it was resumed."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path

import pytest

from pathray.run.log import _Writer, run_log
from pathray.store.metrics_log import MetricsLog
from pathray.store.storage import Storage
from tests.builders.jobs import wait_for

log = logging.getLogger("pathray.test")


def rows(path: str, *images: int) -> None:
    metrics = MetricsLog(path)
    for seen in images:
        metrics.append({"images_seen": seen, "loss": 1 / seen})
    metrics.close()


@pytest.fixture(autouse=True)
def told(caplog):
    caplog.set_level("INFO")


def test_lines_and_rows_are_on_file_before_the_run_has_ended(tmp_path):
    with run_log(Storage.of(tmp_path / "run")):
        log.info("an update sees %d images", 16)
        assert "an update sees 16 images" in (tmp_path / "run" / "log.txt").read_text()
        rows(str(tmp_path / "run" / "metrics.jsonl"), 16, 32)
        wait_for(lambda: "32 images: loss 0.03125" in (tmp_path / "run" / "log.txt").read_text(), seconds=20)
    assert len((tmp_path / "run" / "log.txt").read_text().splitlines()) == 3
    log.info("after the end")
    assert "after the end" not in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize("where", ["local", "memory"])
def test_a_resumed_run_appends_and_repeats_no_row(tmp_path, where):
    store = Storage.of(tmp_path if where == "local" else f"memory://{tmp_path.name}")
    with run_log(store):
        log.info("begun")
        rows(store.join("metrics.jsonl"), 16, 32, 48)
    time.sleep(0.01)  # rows are told by their time, in milliseconds: a resumed run has a later start time
    with run_log(store):
        MetricsLog(store.join("metrics.jsonl")).cut_back(16)  # the checkpoint was there
        rows(store.join("metrics.jsonl"), 32)
        log.info("ended")
    lines = [line.split(" ", 2)[2].partition(" ")[0] for line in store.read_bytes("log.txt").decode().splitlines()]
    assert lines[0] == "begun" and sorted(lines[1:4]) == ["16", "32", "48"] and sorted(lines[4:]) == ["32", "ended"]


def test_what_ended_a_run_is_told_and_logins_are_not(tmp_path):
    with pytest.raises(RuntimeError), run_log(Storage.of(tmp_path)):
        log.info("feeding https://anna:geheim@mlflow.example/base?token=geheim")
        raise RuntimeError("the disk burns")
    text = (tmp_path / "log.txt").read_text()
    assert "RuntimeError: the disk burns" in text and "geheim" not in text and "mlflow.example" in text


def test_a_log_that_cannot_be_written_ends_no_run(tmp_path, capsys):
    Path(tmp_path / "log.txt").mkdir()
    with run_log(Storage.of(tmp_path)):
        log.info("going on")
        rows(str(tmp_path / "metrics.jsonl"), 16)
    assert "log.txt cannot be written" in capsys.readouterr().err


def test_runs_beside_each_other_have_their_own_words_alone(tmp_path):
    both = threading.Barrier(2)

    def work(name: str) -> None:
        with run_log(Storage.of(tmp_path / name)):
            both.wait(20)
            log.info("%s begins", name)
            both.wait(20)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in ("one", "other"):
        (line,) = (tmp_path / name / "log.txt").read_text().splitlines()
        assert line.endswith(f"{name} begins")


def test_a_signal_whose_handler_logs_while_a_line_is_written_does_not_hold_the_run_up(tmp_path, monkeypatch):
    written, makedirs, interrupted = threading.Event(), os.makedirs, []

    def write():
        writer = _Writer(Storage.of(tmp_path))

        def handler(*given, **more):  # in the middle of a line
            if threading.current_thread() is thread and not interrupted:
                interrupted.append(True)
                writer.note("from the handler")
            makedirs(*given, **more)

        monkeypatch.setattr(os, "makedirs", handler)
        writer.note("a line")
        writer.close()
        written.set()

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    assert written.wait(20), "the handler waits for the line that it interrupted"
    assert [line.split(" ", 2)[2] for line in (tmp_path / "log.txt").read_text().splitlines()] == [
        "from the handler",
        "a line",
    ]
