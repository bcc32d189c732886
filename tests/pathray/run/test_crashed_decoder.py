"""A unit whose decoder ends the process: every start gets further, and what is trained does not depend on the way."""

import shutil
import signal

import pyarrow.parquet as pq

from pathray.data.order import uniform_order
from pathray.data.plan import Plan
from tests.builders.runs.ranks import exit_code
from tests.builders.runs.toy_run import train_toy, weights
from tests.builders.runs.toy_science import write_plan


def train(run, plan, changes):
    train_toy(run, Plan.open(plan), **changes)


def start(run, plan, **changes):
    """The exit code of a process that trains in `run`."""
    return exit_code(train, run, plan.path, changes)


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
