"""A run whose process is killed at every stage, and started again: it ends as one that nothing happened to."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pathray.run.layout import OWNER
from pathray.store.committed import COMMITTED
from pathray.store.storage import Storage
from tests.builders.jobs import job_environment
from tests.builders.runs.bucket_run import URL, left, register
from tests.builders.runs.killed_run import BATCH, POINTS, STEPS, Runs
from tests.builders.runs.toy_science import write_plan

IN_A_TAKEOVER = [point for point in POINTS if "takeover" in point]
OF_A_BUCKET = ["between the files of a snapshot", "in the export", "in a takeover, before the owner is written"]
ON_A_DISK = [point for point in POINTS if point and point != "in a takeover, after the owner was written"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("toy")
    started = Runs(write_plan(folder / "plan").path, folder, job_environment())
    yield started
    started.close()


@pytest.fixture(scope="module")
def undisturbed(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert runs.end(str(folder)) == 0
    found = left(str(folder))
    assert [images for images, _ in found["rows"]] == [BATCH * step for step in range(1, STEPS + 1)]
    assert len(found["unreadable"]) > 10 and found["artifact"][0] == STEPS * BATCH
    return found


def killed_and_finished(runs: Runs, run: str, point: str) -> None:
    """Kill a run at the point, in a takeover after it was killed before, and start it again."""
    if point in IN_A_TAKEOVER:
        assert runs.end(run, "in a step") == -signal.SIGKILL
    assert runs.end(run, point) == -signal.SIGKILL, "it was not killed"
    assert runs.end(run) == 0


@pytest.mark.parametrize("point", ON_A_DISK)
def test_a_run_killed_at_any_point_ends_bit_equal_when_it_is_started_again(
    point: str, runs: Runs, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    killed_and_finished(runs, str(run), point)
    assert left(str(run)) == undisturbed
    assert not (run / OWNER).exists()
    whole = [path for path in (run / "checkpoints").iterdir() if (path / COMMITTED).exists()]
    assert len([path for path in whole if "toy-latest" in path.name]) == 1, "older ones are removed"


@pytest.mark.parametrize("point", [*OF_A_BUCKET, "in a takeover, after the owner was written"])
def test_so_does_a_run_whose_folder_is_in_a_bucket(
    point: str, runs: Runs, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(runs, "scratch", tmp_path)
    register(tmp_path, monkeypatch.setenv)
    killed_and_finished(runs, URL, point)
    assert left(URL) == undisturbed and not Storage.of(URL).exists(OWNER)


def test_a_run_killed_at_one_point_after_another_ends_bit_equal(
    runs: Runs, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    points = ["in a row of metrics", "before the commit", "in the export"]
    assert {runs.end(str(tmp_path / "run"), point) for point in points} == {-signal.SIGKILL}
    assert runs.end(str(tmp_path / "run")) == 0
    assert left(str(tmp_path / "run")) == undisturbed
    assert os.listdir(tmp_path) == ["run"]
