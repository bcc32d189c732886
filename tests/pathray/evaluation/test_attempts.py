"""Retries of an evaluation are bounded, also where each attempt takes its whole job along."""

import pytest

from pathray.evaluation.attempts import FOLDER, INTERRUPTIONS, Attempts
from pathray.store.storage import Storage
from tests.builders.storage import FaultyFileSystem


def restarted(path):
    return Attempts(Storage.of(path), "tag-img8-0123abcd")


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_failures_count_over_restarts(tmp_path, retries):
    for n in range(1 + retries):
        attempts = restarted(tmp_path)
        assert not attempts.are_spent(retries)
        attempts.begin()
        attempts.fail(f"ValueError: number {n}", "the trace")
    assert attempts.are_spent(retries) and restarted(tmp_path).are_spent(retries)
    assert restarted(tmp_path).last() == (f"ValueError: number {retries}", "the trace")
    assert not Attempts(Storage.of(tmp_path), "another").are_spent(0)


def test_attempts_that_died_without_an_error_are_forgiven_a_few_times(tmp_path):
    for _ in range(1 + INTERRUPTIONS):
        assert not restarted(tmp_path).are_spent(0)
        restarted(tmp_path).begin()
    assert restarted(tmp_path).are_spent(0) and "process died" in restarted(tmp_path).last()[0]
    restarted(tmp_path).clear()
    restarted(tmp_path).clear()
    assert not restarted(tmp_path).are_spent(0)


def test_an_attempt_that_was_ended_on_purpose_does_not_count(tmp_path):
    attempts = restarted(tmp_path)
    attempts.begin()
    attempts.fail("ValueError: x", "")
    for _ in range(9):
        restarted(tmp_path).begin()
        restarted(tmp_path).forgive()
    restarted(tmp_path).forgive()
    assert not restarted(tmp_path).are_spent(1) and restarted(tmp_path).are_spent(0)


def test_notes_hold_no_signed_urls(tmp_path):
    attempts = restarted(tmp_path)
    attempts.begin()
    attempts.fail("OSError: https://host/a.png?X-Goog-Signature=deadbeef", "https://host/a?X-Goog-Signature=deadbeef")
    assert "deadbeef" not in (tmp_path / FOLDER / "tag-img8-0123abcd.json").read_text()


def test_storage_that_takes_no_notes_and_damaged_ones_leave_the_evaluation_alone(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("pathray.store.storage.FIRST_WAIT_S", 0.0)
    FaultyFileSystem.reset(lambda operation, path: OSError("503"))
    attempts = restarted("faulty://bucket/run")
    attempts.begin()
    attempts.fail("ValueError: x", "")
    assert attempts.are_spent(0) and "could not be noted" in caplog.text
    FaultyFileSystem.reset()
    (tmp_path / FOLDER).mkdir(parents=True)
    for content in ("{", "3", "[3]"):
        (tmp_path / FOLDER / "tag-img8-0123abcd.json").write_text(content)
        assert not restarted(tmp_path).are_spent(0)
