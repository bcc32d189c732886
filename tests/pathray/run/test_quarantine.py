"""The merged report of unreadable units: the same whoever fetches its parts, and told about when there are many."""

import io
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pathray.data.faults import Fault
from pathray.errors import UserError
from pathray.run import quarantine
from pathray.store.storage import Storage

SLIDES = pa.table({"slide_id": [f"s{i}" for i in range(9)]})


class Slow:
    """A store whose earlier parts take longer than later ones; counts what is being read."""

    def __init__(self, store):
        self.store, self.lock = store, threading.Lock()
        self.reading, self.most, self.begun, self.ahead, self.done = 0, 0, 0, 0, 0

    def __getattr__(self, name):
        return getattr(self.store, name)

    def read_bytes(self, name):
        with self.lock:
            self.reading, self.begun = self.reading + 1, self.begun + 1
            self.most, self.ahead = max(self.most, self.reading), max(self.ahead, self.begun - self.done)
            late = 0.01 if self.begun % 5 == 1 else 0.0
        time.sleep(late)
        data = self.store.read_bytes(name)
        with self.lock:
            self.reading, self.done = self.reading - 1, self.done + 1
        return data


@pytest.fixture
def store(tmp_path):
    """90 parts of two ranks with positions that repeat, so that the order of parts shows in the report."""
    store, generator = Storage.of(tmp_path), np.random.default_rng(0)
    for first in range(0, 360, 8):
        for rank in range(2):
            faults = [
                Fault(int(p), 0, int(generator.integers(99)), int(p) % 9, "missing", f"{rank}.tiff", "", p % 3 == 0)
                for p in first + generator.permutation(8)[:3] // 2
            ]
            store.write_bytes(quarantine.part_name(first, first + 8, rank), quarantine.to_parquet(faults, SLIDES))
    return store


def test_parts_fetched_by_threads_give_the_report_of_parts_fetched_one_by_one(store, tmp_path, monkeypatch):
    monkeypatch.setattr(quarantine, "TOGETHER", 16)
    names = sorted(p.name for p in (tmp_path / "quarantine").iterdir())
    one_by_one = [row for name in names for row in pq.read_table(tmp_path / "quarantine" / name).to_pylist()]
    expected = sorted(one_by_one, key=lambda row: (row["position"], row["attempt"]))  # stable
    slow = Slow(store)
    assert quarantine.merge(slow) == sum(not row["benign"] for row in expected)
    merged = pq.read_table(io.BytesIO(store.read_bytes("quarantine.parquet")))
    assert merged.schema.equals(quarantine.SCHEMA) and merged.to_pylist() == expected
    assert len(expected) == 270 and len({(row["position"], row["attempt"]) for row in expected}) < 270
    assert 1 < slow.most <= quarantine.THREADS and slow.ahead <= 16, "no more at once than are joined"


def test_many_parts_are_told_about_and_few_are_not(store, monkeypatch, capsys):
    quarantine.merge(store)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(quarantine, "TOGETHER", 9)
    quarantine.merge(store)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 10 and told[-1].startswith("quarantine report: 100% (90 of 90 parts")


def test_a_part_that_cannot_be_read_is_an_error_and_no_report_is_written(store, tmp_path):
    (tmp_path / quarantine.part_name(8, 16, 1)).write_bytes(b"no parquet")
    with pytest.raises(UserError, match="part-0"):
        quarantine.merge(store)
    assert not store.exists("quarantine.parquet")
