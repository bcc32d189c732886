"""What the benchmark that kills runs would notice, on folders made by hand; its draw; its processes. Without Ray."""

import json
import os
import signal
import sys
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks.faults import kill_checks as checks
from benchmarks.faults.kill_runs import Job, is_agent
from benchmarks.faults.kills import KINDS, draw
from pathray.store import checkpoint
from tests.builders.jobs import wait_for

STEP = 4


@pytest.fixture
def run(tmp_path):
    """A run's folder with a committed checkpoint of eight images, its metrics and a part of its quarantine report."""
    checkpoint.save(str(tmp_path / "checkpoints"), "toy-img8", {"x": torch.arange(6.0)}, {"images_seen": 8})
    write_metrics(tmp_path, [0, 4, 8])
    (tmp_path / "quarantine").mkdir()
    table = pa.table({"position": [3], "attempt": [0], "row": [7], "reason": ["truncated"]})
    pq.write_table(table, tmp_path / "quarantine" / "part-0.parquet")
    return tmp_path


def write_metrics(run, images, end=""):
    rows = [json.dumps({"images_seen": n, "step": n // STEP, "loss": 1 / (n + 1), "time": 5.0 + n}) for n in images]
    (run / "metrics.jsonl").write_text("\n".join(rows) + "\n" + end)


def tensors(run):
    return next((run / "checkpoints").glob("*/tensors.safetensors"))


def test_a_sound_run_has_no_problems(run):
    assert checks.problems_in(run, STEP) == []
    assert checks.newest_row(run)["images_seen"] == 8


def test_a_committed_checkpoint_whose_file_is_cut_short_or_changed_is_found(run):
    whole = tensors(run).read_bytes()
    for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])):
        tensors(run).write_bytes(damaged)
        assert "tensors.safetensors is committed, but not whole" in checks.half_checkpoints(run)[0]
    tensors(run).unlink()
    assert len(checks.half_checkpoints(run)) == 1


def test_a_checkpoint_that_is_not_committed_does_not_count(run):
    tensors(run).with_name("COMMITTED.json").unlink()
    tensors(run).write_bytes(b"half")
    assert checks.half_checkpoints(run) == [] and checks.uncommitted(run) == {tensors(run).parent.name}


@pytest.mark.parametrize("images", [[4, 8, 8], [4, 12], [8, 4], [4, 8, 4, 8]])
def test_doubled_missing_and_disordered_rows_are_found(run, images):
    write_metrics(run, images)
    assert len(checks.metrics_problems(run, STEP)) == 1


def test_a_row_that_is_just_being_written_is_none_yet(run):
    write_metrics(run, [4, 8], end='{"images_seen": 12, "lo')
    assert checks.metrics_problems(run, STEP) == [] and checks.newest_row(run)["images_seen"] == 8
    write_metrics(run, [4], end='{"images_seen": 8, "lo\n')
    assert checks.metrics_problems(run, STEP) != []


def test_a_quarantine_report_that_cannot_be_read_is_found(run):
    (run / "quarantine.parquet").write_bytes(b"PAR1")
    assert "quarantine.parquet" in checks.quarantine_problems(run)[0]


def test_results_differ_by_one_bit_of_a_tensor_or_one_figure(run):
    expected = checks.result_of(run)
    assert "snapshot at 8 images" in expected and checks.differences(expected, checks.result_of(run)) == []
    write_metrics(run, [4, 8, 12])
    assert checks.differences(expected, checks.result_of(run)) == ["metrics"]
    write_metrics(run, [4, 8])
    whole = tensors(run).read_bytes()
    tensors(run).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert checks.differences(expected, checks.result_of(run)) == ["snapshot at 8 images"]


def test_kills_are_drawn_from_the_seed_alone_in_all_kinds_and_windows_of_their_own():
    kills = draw(30, seed=3, steps=8)
    assert kills == draw(30, seed=3, steps=8) != draw(30, seed=4, steps=8)
    assert Counter(kill.kind for kill in kills) == dict.fromkeys(KINDS, 5)
    window = 8 * STEP
    assert all(0 < kill.at_images - window * i <= window for i, kill in enumerate(kills))


def test_a_start_knows_its_processes_when_their_parent_is_dead(tmp_path):
    child = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).wait()"
    job = Job([sys.executable, "-c", child], tmp_path / "said.txt", str(tmp_path))
    try:
        wait_for(lambda: len(job.processes()) == 2)
        os.kill(job.process.pid, signal.SIGKILL)
        assert job.wait(10) == -signal.SIGKILL
        assert len(job.left()) == 1 and "time.sleep" in job.left()[0]
    finally:
        job.kill_all()
    assert job.left() == []


def test_rays_agents_are_told_from_the_raylet_that_names_them():
    assert is_agent("ray::DashboardAgent ") and is_agent("python -u /x/ray/dashboard/agent.py --node-id=1")
    assert not is_agent("/x/ray/raylet/raylet --dashboard_agent_command=/x/ray/dashboard/agent.py --head")
    assert not is_agent("ray::RayTrainWorker.run")
