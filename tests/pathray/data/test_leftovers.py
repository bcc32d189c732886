"""What killed processes left half-written is removed at the next start; nothing else is."""

import os
import time

from pathray.data.leftovers import sweep_leftovers
from pathray.store.storage import Storage


def aged(path, seconds=7200):
    os.utime(path, (time.time() - seconds,) * 2)
    return path


def test_half_written_files_and_folders_of_earlier_starts_are_removed(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    Storage.of(run).write_bytes("metrics.jsonl", b"{}\n")
    old = [run / ".metrics.jsonl-0123abcd", run / "checkpoints" / ".COMMITTED.json-0123abcd"]
    for path in old:
        path.write_bytes(b"half")
    plan = tmp_path / ".run-89abcdef"
    plan.mkdir()
    (plan / "units.arrow").write_bytes(b"half")
    young, other, linked = run / ".new-0123abcd", tmp_path / ".others-0123abcd", run / ".link-0123abcd"
    for path in (young, other):
        path.write_bytes(b"keep")
    (tmp_path / "elsewhere").mkdir()
    linked.symlink_to(tmp_path / "elsewhere")
    foreign = run / ".cache-0123abcd"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("somebody else's")
    for path in (*old, plan, other, foreign):
        aged(path)
    assert sorted(sweep_leftovers(str(run))) == sorted(map(str, [*old, plan]))
    assert (
        young.exists() and other.exists() and foreign.exists() and linked.exists() and (run / "metrics.jsonl").exists()
    )
    assert sweep_leftovers(str(run)) == [] and sweep_leftovers(str(tmp_path / "absent")) == []
