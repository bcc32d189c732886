"""A decoder that ends its process is found by what its thread was reading; nobody else is blamed."""

import json
import os
import signal
import subprocess
import sys
import tempfile

import numpy as np
import pyarrow as pa
import pytest

from pathray.data import crashes
from pathray.data.crashes import Excluded, Guarded, Journal, decide_exclusions, note_crashes, read_notes
from pathray.data.order import uniform_order
from pathray.data.plan import Plan, PlanWriter
from pathray.data.share import Lookup
from pathray.data.stream import DecodeSettings, stream_batches
from pathray.errors import UnreadableUnit, UserError
from tests.builders.jobs import ROOT

SCRIPT = """
import ctypes, os, signal, sys, threading, time
from pathray.data.crashes import Guarded
from pathray.data.plan import Plan

class Reader:
    benign_reasons = frozenset()
    def read(self, unit, position, attempt):
        if unit["row"] == 5:
            time.sleep(0.5)  # others are at their units
            {death}
        time.sleep(30)

reader = Guarded(Reader(), {run!r}, Plan.open({plan!r}))
def one(row):
    reader.read({{"row": row, "source": row % 2}}, 100 + row, 0)
threads = [threading.Thread(target=one, args=(row,), daemon=True) for row in (3, 4, 5)]
for t in threads:
    t.start()
{main}
time.sleep(30)
"""


@pytest.fixture
def plan(tmp_path):
    with PlanWriter(tmp_path / "plan", {"source": np.int32}, pa.table({"slide_id": ["a", "b"]})) as writer:
        writer.append({"source": np.arange(9) % 2})
    return Plan.open(tmp_path / "plan")


@pytest.fixture
def die(tmp_path, plan, monkeypatch):
    """die(code, main=""): the signal that ends a process whose thread runs `code` at row 5."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "local"))
    (tmp_path / "local").mkdir()
    environment = os.environ | {"TMPDIR": str(tmp_path / "local"), "PYTHONPATH": str(ROOT)}

    def run(death, main="pass"):
        script = SCRIPT.format(death=death, main=main, run=str(tmp_path / "run"), plan=plan.path)
        return -subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True).returncode

    return run


@pytest.mark.parametrize(
    ("death", "ends"),
    [("ctypes.string_at(0)", signal.SIGSEGV), ("os.abort()", signal.SIGABRT)],
)
def test_the_unit_of_the_thread_that_crashed_is_noted_and_no_other(die, tmp_path, plan, death, ends):
    run = str(tmp_path / "run")
    assert die(death) == ends
    assert note_crashes(run) == 1 and note_crashes(run) == 0
    (note,) = read_notes(run)
    assert note["units"] == [{"position": 105, "row": 5, "source": 1}] and note["plan"] == plan.units_hash
    assert "in read" in note["trace"] and list((tmp_path / "local").rglob("*.units")) == []
    assert not decide_exclusions([note], plan.units_hash)
    assert die(death) == ends and note_crashes(run) == 1
    assert decide_exclusions(read_notes(run), plan.units_hash) == Excluded(frozenset([5]))
    assert not decide_exclusions(read_notes(run), "another plan")


@pytest.mark.parametrize(
    ("death", "main", "ends"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "pass", signal.SIGKILL),
        ("os.kill(os.getpid(), signal.SIGTERM)", "pass", signal.SIGTERM),
        ("time.sleep(30)", "time.sleep(1); os.abort()", signal.SIGABRT),  # the main thread's own crash
    ],
)
def test_no_unit_is_blamed_for_a_death_from_outside_or_elsewhere(die, tmp_path, death, main, ends):
    assert die(death, main) == ends
    assert note_crashes(str(tmp_path / "run")) == 0 and read_notes(str(tmp_path / "run")) == []
    assert list((tmp_path / "local").rglob("*.units")) == []


def test_all_of_a_slide_is_read_no_more_after_three_deaths_at_different_units():
    notes = [{"plan": "p", "units": [{"position": i, "row": row, "source": 1}]} for i, row in enumerate((3, 5, 7))]
    assert not decide_exclusions(notes[:2], "p")
    assert decide_exclusions(notes, "p") == Excluded(sources=frozenset([1]))
    without = [{"plan": "p", "units": [{"position": i, "row": i, "source": -1}]} for i in range(3)]
    assert not decide_exclusions(without, "p")


class Rows:
    """Reads the row's number."""

    benign_reasons = frozenset()

    def read(self, unit, position, attempt):
        return {"x": np.array(unit["row"])}

    def collate(self, units):
        return {"x": np.stack([unit["x"] for unit in units])}


@pytest.mark.parametrize("gone", [Excluded(frozenset([5])), Excluded(sources=frozenset([1]))], ids=["unit", "slide"])
def test_what_crashed_is_replaced_and_reported_as_any_unreadable_unit(plan, tmp_path, gone):
    lookup = Lookup(plan, uniform_order(plan.rows, 1))
    rows = [lookup(np.arange(9))]
    run = str(tmp_path / "run")
    found = [
        next(iter(stream_batches(rows, Guarded(Rows(), run, plan, gone), lookup, DecodeSettings(threads=n))))
        for n in (1, 3)
    ]
    crashes.end(run)
    assert np.array_equal(found[0]["x"], found[1]["x"])
    assert 5 not in found[0]["x"] and (not gone.sources or (found[0]["x"] % 2 == 0).all())
    kept = [row in gone.rows or row % 2 in gone.sources for row in rows[0]["row"].tolist()]
    assert np.array_equal(found[0]["x"][~np.array(kept)], rows[0]["row"][~np.array(kept)])
    reasons = {(f.reason, f.path, f.benign) for f in found[0]["faults"]}
    assert reasons == {("crashed_decoder", "b", False)} and found[0]["corrupt"] == sum(kept)


def test_a_process_that_ends_well_leaves_no_journal(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run = str(tmp_path / "run")
    journal = crashes.begin(run, "p").journal
    with journal.reading(1, 2, 3):
        assert note_crashes(run) == 0, "its process lives"
        assert len(list(tmp_path.rglob("*.units"))) == 1
    crashes.end(run)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_more_threads_than_slots_are_read_without_a_note(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(crashes, "SLOTS", 0)
    journal = Journal(str(tmp_path / "run"), "p")
    with journal.reading(1, 2, 3):
        pass
    journal.close()
    journal.close()


def test_a_damaged_note_is_an_error_that_names_it(die, tmp_path):
    run = str(tmp_path / "run")
    die("os.abort()")
    note_crashes(run)
    (path,) = (tmp_path / "run" / crashes.FOLDER).iterdir()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"plan": "another"}))
    with pytest.raises(UserError, match=path.name):
        read_notes(run)


def test_notes_hold_when_only_the_files_of_the_slides_moved(tmp_path):
    def planned(name, folder, slides=("a", "b")):
        sources = pa.table({"slide_id": list(slides), "wsi_path": [f"{folder}/{slide}.svs" for slide in slides]})
        with PlanWriter(tmp_path / name, {"source": np.int32}, sources) as writer:
            writer.append({"source": np.arange(9) % 2})
        return Plan.open(tmp_path / name)

    here, there, other = planned("1", "/here"), planned("2", "/there"), planned("3", "/here", ("a", "c"))
    assert here.hash != there.hash and here.units_hash == there.units_hash != other.units_hash


@pytest.mark.parametrize(("reading", "blamed"), [(1, 1), (2, 0)])
def test_a_crash_outside_of_pythons_threads_is_put_down_to_the_only_unit_in_flight(reading, blamed):
    slots = b"".join(crashes.SLOT.pack(100 + i, i, i, i) for i in range(reading)) + crashes.SLOT.pack(*crashes.FREE)
    segfault = "Fatal Python error: Segmentation fault\n\nThread 0x00000064 (most recent call first):\n"
    assert len(crashes._units_to_blame(slots, segfault)) == blamed
    assert crashes._units_to_blame(slots, segfault.replace("Segmentation fault", "Aborted")) == []


def test_a_temporary_folder_that_takes_no_journal_ends_no_run(tmp_path, plan, monkeypatch, caplog):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    reader = Guarded(Rows(), str(tmp_path / "run"), plan)
    assert reader.read({"row": 3, "source": 1}, 0, 0)["x"] == 3
    assert reader.read({"row": 4, "source": 0}, 1, 0)["x"] == 4
    assert caplog.text.count("no journal could be opened") == 1
    crashes.end(str(tmp_path / "run"))


def test_a_process_begun_after_two_deaths_refuses_the_unit_though_the_run_did_not_know_it(tmp_path, plan):
    run = str(tmp_path / "run")
    for name in "ab":
        crashes._note(run, name, plan.units_hash, [{"position": 0, "row": 5, "source": 1}], "trace")
    reader = Guarded(Rows(), run, plan)
    with pytest.raises(UnreadableUnit, match="crashed_decoder: b: decoding this unit crashed"):
        reader.read({"row": 5, "source": 1}, 0, 0)
    assert reader.read({"row": 7, "source": 1}, 1, 0)["x"] == 7
    crashes.end(run)
