"""A unit whose decoder ends the process: every start gets further, and what is trained does not depend on the way."""

import json
import shutil
import signal
import subprocess
import sys

import pyarrow.parquet as pq

from pathray.data.order import uniform_order
from tests.builders.jobs import job_environment
from tests.builders.runs.toy_run import train_toy, weights
from tests.builders.runs.toy_science import write_plan

START = """
import json, sys
from pathlib import Path
from pathray.data.plan import Plan
from tests.builders.runs.toy_run import train_toy
train_toy(Path(sys.argv[1]), Plan.open(sys.argv[2]), **json.loads(sys.argv[3]))
"""


def start(run, plan, **changes) -> int:
    """The exit code of a process that trains in `run`."""
    words = [sys.executable, "-c", START, str(run), plan.path, json.dumps(changes)]
    return subprocess.run(words, env=job_environment(), check=False, timeout=120, capture_output=True).returncode


def test_it_is_replaced_exactly_on_every_later_start(tmp_path):
    plan, run = write_plan(tmp_path / "plan"), tmp_path / "run"
    row = int(uniform_order(plan.rows, 0).rows([40])[0])
    train_toy(tmp_path / "known", plan, refused_rows=[row])
    codes = [start(run, plan, save_every=12, crash_rows=[row]) for _ in range(3)]
    assert codes == [-signal.SIGSEGV, -signal.SIGSEGV, 0], "after two deaths it is not read any more"
    (fault,) = pq.read_table(run / "quarantine.parquet").to_pylist()
    assert (fault["position"], fault["row"], fault["reason"]) == (40, row, "crashed_decoder")
    assert weights(tmp_path / "known") == weights(run)
    (tmp_path / "again").mkdir()
    shutil.copytree(run / "crashes", tmp_path / "again" / "crashes")
    assert start(tmp_path / "again", plan, crash_rows=[row]) == 0
    assert weights(tmp_path / "known") == weights(tmp_path / "again")
