"""What evaluations leave on storage, and what a restarted evaluator makes of it."""

import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time

import fsspec
import pytest
import torch

from pathray.errors import UserError
from pathray.evaluation import results
from pathray.evaluation.results import (
    BEST,
    DECISION,
    ROWS,
    Results,
    copy_committed,
    has_live_evaluator,
    is_evaluated,
    read_decision,
)
from pathray.evaluation.settings import EarlyStoppingConfig, SelectionConfig
from pathray.store.checkpoint import TENSORS, save
from pathray.store.committed import committed_dir, list_committed, remove_committed
from pathray.store.metrics_log import MetricsLog
from pathray.store.storage import StorageError
from tests.builders.bucket import BucketFileSystem
from tests.builders.jobs import ROOT

KEY = "pathorob/hospitals/ri"
STOPPING = EarlyStoppingConfig(True, SelectionConfig("pathorob", "hospitals", "ri"), patience_evals=2, min_evals=2)


def snapshot(run, images, index=None, identity="mine", encoder=True):
    """A committed snapshot that tells itself from others by one number."""
    meta = {"images_seen": images, "identity": {"hash": identity}} | ({} if index is None else {"tune_index": index})
    with committed_dir(f"{run}/checkpoints", f"tag-img{images}", meta) as directory:
        directory.write_bytes(TENSORS, str(images).encode())
        if encoder:
            directory.write_bytes("encoder/artifact.json", b"{}")
            directory.write_bytes("encoder/weights.safetensors", str(images).encode() * 9)
    return directory.path


def opened(run, stopping=STOPPING, identity="mine"):
    return Results(str(run), identity, stopping)


def judge(found, *values):
    """Record the snapshots in order, with these values of the metric; None for a failed one."""
    for there, value in zip(found.snapshots(), values, strict=False):
        if value is None:
            found.record(there, "failed", {}, error="why")
        else:
            found.record(there, "ok", {"pathorob": ["ri"]}, **{KEY: value})
        found.settle()


def names(run, name):
    return [c.meta["images_seen"] for c in list_committed(f"{run}/checkpoints", name)]


def test_snapshots_are_those_committed_of_this_run_with_an_encoder_oldest_first(tmp_path):
    for images, index in ((200, 2), (0, 0), (1000, 10)):
        snapshot(tmp_path, images, index)
    snapshot(tmp_path, 300, 3, identity="another")
    snapshot(tmp_path, 400, 4, encoder=False)
    (tmp_path / "checkpoints" / "tag-img500-0123abcd").mkdir()
    assert [(s.images_seen, s.index) for s in opened(tmp_path).snapshots()] == [(0, 0), (200, 2), (1000, 10)]
    assert [s.images_seen for s in opened(tmp_path, identity=None).snapshots()] == [0, 200, 300, 1000]


def test_a_snapshot_that_is_committed_between_two_looks_is_found(tmp_path):
    found = opened(tmp_path)
    snapshot(tmp_path, 100, 1)
    assert [s.images_seen for s in found.snapshots()] == [100]
    snapshot(tmp_path, 200, 2)
    assert [s.images_seen for s in found.snapshots()] == [100, 200]


def test_snapshots_of_a_run_without_tuning_are_numbered_by_their_images_and_not_by_their_names(tmp_path):
    for images in (1000, 500, 90):
        snapshot(tmp_path, images)
    assert [(s.images_seen, s.index) for s in opened(tmp_path).snapshots()] == [(90, 0), (500, 1), (1000, 2)]


def test_a_restarted_evaluator_knows_what_was_judged_failed_and_dropped(tmp_path):
    for i in range(3):
        snapshot(tmp_path, 100 * i, i)
    first = opened(tmp_path)
    a, b, c = first.snapshots()
    first.record(a, "ok", {"pathorob": ["ri"]}, **{KEY: 0.5})
    first.record(b, "failed", {"pathorob": ["ri"]}, error="no memory")
    first.record(c, "dropped", {})
    again = opened(tmp_path)
    assert [(r.images_seen, r.index, r.status) for r in again.records()] == [
        (0, 0, "ok"), (100, 1, "failed"), (200, 2, "dropped"),
    ]  # fmt: skip
    assert again.records()[0].due == {"pathorob": ["ri"]} and again.n_dropped() == 1
    assert is_evaluated(str(tmp_path), 100) and not is_evaluated(str(tmp_path), 300)


def test_the_neighbourhood_of_the_first_index_holds_for_the_run(tmp_path):
    for i in range(3):
        snapshot(tmp_path, 100 * i, i)
    found = opened(tmp_path)
    a, b, c = found.snapshots()
    found.record(a, "ok", {}, **{"probe/hospitals/knn_id": 0.5})
    found.record(c, "ok", {}, **{"pathorob/hospitals/ri_k": 11.0, "pathorob/a/b/ri_k": 3.0})
    found.record(b, "ok", {}, **{"pathorob/hospitals/ri_k": 1.0})
    assert opened(tmp_path).neighbours() == {"hospitals": 11, "a/b": 3}


def test_what_was_judged_for_whoever_asked_counts_for_the_run_itself(tmp_path):
    snapshot(tmp_path, 100, 1)
    snapshot(tmp_path, 100, 1, identity="another")
    watching = opened(tmp_path, identity=None)
    (newest,) = watching.snapshots()[-1:]
    watching.record(newest, "ok", {}, **{KEY: 0.5})
    assert [len(opened(tmp_path, identity=name).rows) for name in ("mine", "another")] == [0, 1]


def test_rows_of_another_run_in_the_same_folder_do_not_count(tmp_path):
    snapshot(tmp_path, 100, 1)
    judge(opened(tmp_path), 0.9)
    assert opened(tmp_path, identity="another").records() == []


def test_a_half_written_row_is_evaluated_again(tmp_path):
    for i in range(2):
        snapshot(tmp_path, 100 * i, i)
    judge(opened(tmp_path), 0.5, 0.6)
    text = (tmp_path / ROWS).read_bytes()
    (tmp_path / ROWS).write_bytes(text[:-20])
    assert [r.images_seen for r in opened(tmp_path).records()] == [0]


def test_the_best_snapshot_is_kept_as_a_copy_of_the_one_that_was_judged(tmp_path):
    for i in range(4):
        snapshot(tmp_path, 100 * i, i)
    found = opened(tmp_path)
    judge(found, 0.5, 0.8, 0.7, math.nan)
    (best,) = list_committed(str(tmp_path / "checkpoints"), BEST)
    assert best.meta["images_seen"] == 100 and best.meta["best"] == 0.8 and best.meta["metric"] == KEY
    assert best.read("encoder/weights.safetensors", lambda p: p.read_bytes()) == b"100" * 9
    assert best.read(TENSORS, lambda p: p.read_bytes()) == b"100"


def test_the_best_snapshot_stays_when_its_source_is_removed(tmp_path):
    for i in range(4):
        snapshot(tmp_path, 100 * i, i)
    found = opened(tmp_path)
    judge(found, 0.9, 0.8, 0.7, 0.6)
    removed = found.prune(1, "tag")
    assert len(removed) == 3 and [s.images_seen for s in found.snapshots()] == [300]
    assert names(tmp_path, BEST) == [0]
    found.settle()
    assert names(tmp_path, BEST) == [0]


def test_an_evaluator_that_died_before_it_copied_the_best_does_so_at_its_next_start(tmp_path):
    for i in range(2):
        snapshot(tmp_path, 100 * i, i)
    dead = opened(tmp_path)
    for there, value in zip(dead.snapshots(), (0.4, 0.6), strict=True):
        dead.record(there, "ok", {}, **{KEY: value})
    opened(tmp_path).settle()
    assert names(tmp_path, BEST) == [100] and read_decision(str(tmp_path))["best_images"] == 100


def test_what_is_not_judged_yet_is_never_removed(tmp_path):
    for i in range(5):
        snapshot(tmp_path, 100 * i, i)
    found = opened(tmp_path)
    there = found.snapshots()
    found.record(there[0], "ok", {}, **{KEY: 0.1})
    found.record(there[2], "dropped", {})
    found.settle()
    found.prune(1, "tag")
    assert [s.images_seen for s in found.snapshots()] == [100, 300, 400]


def test_snapshots_that_a_run_without_evaluators_was_asked_to_keep_are_never_removed(tmp_path):
    for images in (100, 200, 300):
        snapshot(tmp_path, images)
    for i in (4, 5, 6):
        snapshot(tmp_path, 100 * i, i)
    found = opened(tmp_path)
    judge(found, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    assert len(found.prune(1, "tag")) == 2
    assert [s.images_seen for s in found.snapshots()] == [100, 200, 300, 600]


def test_evaluations_beyond_the_checkpoint_that_a_run_goes_on_from_do_not_count(tmp_path):
    paths = [snapshot(tmp_path, 100 * i, i) for i in range(4)]
    found = opened(tmp_path)
    judge(found, 0.1, 0.2, 0.3, 0.3)
    assert found.cut_back("tag") == 0 and len(found.rows) == 4
    for path in paths[2:]:
        remove_committed(path)
    assert found.cut_back("tag") == 2
    assert (
        [row["images_seen"] for row in opened(tmp_path).rows] == [0, 100] == [row["images_seen"] for row in found.rows]
    )
    assert not is_evaluated(str(tmp_path), 200)
    shutil.rmtree(tmp_path / "checkpoints")
    assert found.cut_back("tag") == 2 and opened(tmp_path).rows == []


def test_a_row_that_could_not_be_written_is_neither_doubled_nor_glued_to_the_next(tmp_path, monkeypatch):
    for i in range(2):
        snapshot(tmp_path, 100 * i, i)
    found = opened(tmp_path)
    first, second = found.snapshots()
    found.record(first, "ok", {}, **{KEY: 0.1})
    own = MetricsLog.append

    def full(self, row):
        own(self, row)
        content = (tmp_path / ROWS).read_bytes()
        (tmp_path / ROWS).write_bytes(content[:-20])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(MetricsLog, "append", full)
        found.record(second, "ok", {}, **{KEY: 0.2})
    assert [row["images_seen"] for row in found.rows] == [0]
    found.record(second, "ok", {}, **{KEY: 0.2})
    assert [row[KEY] for row in opened(tmp_path).rows] == [0.1, 0.2]


@pytest.mark.parametrize("attempts", [1, 2])
def test_a_row_that_object_storage_refused_is_written_once(monkeypatch, attempts):
    from pathray.evaluation.backlog import Snapshot

    run = f"memory://refused-{attempts}-{time.time_ns()}"
    found = Results(run, "mine")
    found.record(Snapshot("s0", 0, 0), "ok", {})
    with monkeypatch.context() as patched:
        patched.setattr(MetricsLog, "flush", lambda self: (_ for _ in ()).throw(StorageError("503")))
        for _ in range(attempts):
            with pytest.raises(StorageError):
                found.record(Snapshot("s1", 100, 1), "ok", {})
    found.record(Snapshot("s1", 100, 1), "ok", {})
    assert [row["images_seen"] for row in Results(run, "mine").rows] == [0, 100]


def test_the_snapshot_that_a_killed_run_would_go_on_from_is_never_removed(tmp_path):
    path = snapshot(tmp_path, 100, 1)
    save(str(tmp_path / "checkpoints"), "other-latest", {"w": torch.zeros(1)}, {"images_seen": 500})
    found = opened(tmp_path)
    judge(found, 0.5)
    snapshot(tmp_path, 50, 0)  # the newest of the tag is the one at 100, though another is looked at last
    assert found.prune(1, "tag") == [] and path.endswith(found.snapshots()[-1].path.rpartition("/")[2])


def test_the_decision_says_when_to_stop_and_where_it_was_taken(tmp_path):
    for i in range(5):
        snapshot(tmp_path, 100 * i, i)
    found = opened(tmp_path)
    judge(found, 0.5, 0.8, 0.7)
    assert read_decision(str(tmp_path))["stop"] is False
    found.record(found.snapshots()[3], "ok", {}, **{KEY: 0.6})
    assert found.settle().stop
    decision = read_decision(str(tmp_path))
    assert (decision["stop"], decision["best_images"], decision["decided_at_images"]) == (True, 100, 300)
    assert decision["trained_to_images"] == 400 and decision["identity"] == "mine"
    assert decision["metric"] == KEY
    found.record(found.snapshots()[4], "ok", {}, **{KEY: 0.6})
    found.settle()
    assert read_decision(str(tmp_path))["decided_at_images"] == 300, "not what came in after it"


def test_a_first_evaluation_without_a_number_does_not_hold_up_the_decision(tmp_path):
    for i in range(3):
        snapshot(tmp_path, 100 * i, i)
    judge(opened(tmp_path), math.nan, 0.2, 0.3)
    assert read_decision(str(tmp_path))["best_images"] == 200


def test_without_early_stopping_there_is_no_decision_and_no_best(tmp_path):
    snapshot(tmp_path, 100, 1)
    found = opened(tmp_path, EarlyStoppingConfig(enable=False))
    judge(found, 0.5)
    assert found.settle() is None and not (tmp_path / DECISION).exists() and names(tmp_path, BEST) == []


def test_a_run_has_one_evaluator_at_a_time(tmp_path, monkeypatch):
    found = opened(tmp_path)
    assert found.claim("one") and not found.claim("two") and found.claim("one")
    assert has_live_evaluator(str(tmp_path))
    clock = time.time()
    monkeypatch.setattr(results.time, "time", lambda: clock + results.ALIVE_FOR_S + 1)
    assert found.claim("two"), "the other has given no sign of life"
    found.release()
    assert not has_live_evaluator(str(tmp_path))


def test_the_evaluator_of_a_killed_process_of_this_machine_is_followed_at_once(tmp_path):
    process = subprocess.Popen(["true"])
    process.wait()
    opened(tmp_path).claim("dead")
    sign = json.loads((tmp_path / results.ALIVE).read_text())
    (tmp_path / results.ALIVE).write_text(json.dumps({**sign, "pid": process.pid}))
    assert opened(tmp_path).claim("next")
    (tmp_path / results.ALIVE).write_text(json.dumps({**sign, "who": "far", "pid": process.pid, "host": "elsewhere"}))
    assert not opened(tmp_path).claim("next"), "of another machine only silence is a sign"


@pytest.fixture(params=["local", "bucket", "bucket without conditions"])
def anywhere(request, tmp_path, monkeypatch):
    """A run folder that does not exist yet."""
    monkeypatch.setenv("BUCKET_ROOT", str(tmp_path / "bucket"))
    fsspec.register_implementation("bucket", BucketFileSystem, clobber=True)
    if request.param == "bucket without conditions":
        monkeypatch.setenv("BUCKET_WITHOUT_CONDITIONS", "1")
    return str(tmp_path / "run") if request.param == "local" else "bucket://store/run"


@pytest.mark.parametrize("before", ["nobody", "a dead one", "a damaged sign"])
def test_of_evaluators_that_claim_a_run_at_once_one_does(anywhere, before):
    store = opened(anywhere).store
    if before != "nobody":
        old = {"who": "old", "time": time.time() - 2 * results.ALIVE_FOR_S, "host": "elsewhere", "pid": 1}
        store.write_bytes(results.ALIVE, json.dumps(old).encode() if before == "a dead one" else b"{")
    together, claimed = threading.Barrier(8), []

    def claim(who):
        mine = opened(anywhere)
        together.wait()
        if mine.claim(who):
            claimed.append(who)

    threads = [threading.Thread(target=claim, args=(f"e{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert claimed == [json.loads(store.read_bytes(results.ALIVE))["who"]]


CLAIMS = """
import os, sys, fsspec
from tests.builders.bucket import BucketFileSystem
from pathray.evaluation.results import Results
fsspec.register_implementation("bucket", BucketFileSystem, clobber=True)
print("ready", flush=True)
for line in sys.stdin:
    run, os.environ["BUCKET_WITHOUT_CONDITIONS"] = line.split()
    if os.environ["BUCKET_WITHOUT_CONDITIONS"] == "no":
        del os.environ["BUCKET_WITHOUT_CONDITIONS"]
    print(Results(run, None).claim(sys.argv[1]), flush=True)
"""


def test_of_two_processes_that_claim_a_run_at_once_one_does(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "BUCKET_ROOT": str(tmp_path / "bucket")}
    pipe = subprocess.PIPE
    both = [
        subprocess.Popen([sys.executable, "-c", CLAIMS, who], stdin=pipe, stdout=pipe, text=True, env=environment)
        for who in "ab"
    ]
    assert [process.stdout.readline() for process in both] == ["ready\n"] * 2
    for place in (f"{tmp_path}/run no", "bucket://store/one no", "bucket://store/two yes"):
        for process in both:
            process.stdin.write(f"{place}\n")
            process.stdin.flush()
        assert sorted(process.stdout.readline().strip() for process in both) == ["False", "True"], place
    for process in both:
        process.communicate()


def test_a_run_that_another_evaluates_by_now_is_not_released(tmp_path, monkeypatch):
    first, second = opened(tmp_path), opened(tmp_path)
    assert first.claim("one")
    clock = time.time()
    monkeypatch.setattr(results.time, "time", lambda: clock + results.ALIVE_FOR_S + 1)
    assert second.claim("two")
    first.release()
    assert not first.claim("one") and has_live_evaluator(str(tmp_path))
    second.release()
    assert first.claim("one")


def test_a_damaged_decision_is_named(tmp_path):
    (tmp_path / DECISION).write_text("{")
    with pytest.raises(UserError, match=DECISION):
        read_decision(str(tmp_path))


def test_a_copy_of_a_damaged_snapshot_is_refused_and_leaves_nothing(tmp_path):
    path = snapshot(tmp_path, 100, 1)
    (tmp_path / "checkpoints" / path.rpartition("/")[2] / TENSORS).write_bytes(b"999")
    with pytest.raises(UserError, match="damaged"):
        copy_committed(path, str(tmp_path / "checkpoints"), BEST, {})
    assert names(tmp_path, BEST) == []


def test_rows_are_strict_json_with_their_place_on_the_image_axis(tmp_path):
    snapshot(tmp_path, 100, 1)
    judge(opened(tmp_path), 0.5)
    (row,) = [json.loads(line) for line in (tmp_path / ROWS).read_text().splitlines()]
    assert row["images_seen"] == row["tune/tune_images_seen"] == 100 and row["tune/tune_index"] == 1
    assert row["status"] == "ok" and row[KEY] == 0.5 and row["snapshot"].startswith("tag-img100-")
