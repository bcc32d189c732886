"""The exact per-rank stream through Ray Data, and the developer API it stands on."""

import inspect
import threading
import time

import numpy as np
import pyarrow as pa
import pytest

from pathray.data.order import uniform_order
from pathray.data.plan import Plan, PlanWriter
from pathray.data.share import Lookup, rank_rows
from pathray.data.stream import DecodeSettings
from pathray.errors import UnreadableUnit
from ray_jobs.train.rank_source import RankRows
from ray_jobs.train.rank_stream import Share, rows, stream
from tests.builders.runs.toy_bags import BagConfig, BagReader, bag_order, expected_rows, write_bags

pytestmark = pytest.mark.ray
N = 500


@pytest.fixture(scope="module")
def lookup(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "plan"
    with PlanWriter(path, {"source": np.int32, "x": np.int32}, pa.table({"path": ["s"]})) as writer:
        writer.append({"source": np.zeros(N), "x": np.arange(N)})
    return Lookup(Plan.open(path), uniform_order(N, seed=1))


class SquareReader:
    benign_reasons = frozenset({"tissue"})

    def read(self, unit, position, attempt):
        x = int(unit["x"])
        if x % 11 == 0:
            raise UnreadableUnit("truncated" if x % 2 else "tissue", f"x{x}")
        return {"image": np.full((4, 4, 3), x % 251, np.uint8), "x": x}

    def collate(self, units):
        return {"image": np.stack([u["image"] for u in units]), "x": np.array([u["x"] for u in units])}


def test_the_datasource_api_is_as_this_code_expects():
    from ray.data import Datasource, ReadTask

    signature = inspect.signature(Datasource.get_read_tasks)
    assert list(signature.parameters)[:4] == ["self", "parallelism", "per_task_row_limit", "data_context"]
    assert {"read_fn", "metadata"} <= set(inspect.signature(ReadTask.__init__).parameters)


def test_ray_streams_the_same_rows_as_the_local_stream(ray_cluster, lookup):
    for rank, world in ((0, 1), (1, 2), (2, 3)):
        share = Share(24, 24 * 60, 24, 4, rank, world)
        local = list(rank_rows(lookup, 24, 24 * 60, 24, rank, world, 4))
        through_ray = list(rows(lookup, share, chunk=128))
        assert len(through_ray) == len(local)
        for a, b in zip(through_ray, local, strict=True):
            assert sorted(a) == sorted(b)
            assert all(np.array_equal(a[k], b[k]) for k in b)


def test_decoding_on_the_cluster_gives_the_same_units_as_decoding_in_the_worker(ray_cluster, lookup):
    share = Share(0, 24 * 6, 24, 4, 1, 2)
    in_worker = list(stream(lookup, SquareReader(), share, settings=DecodeSettings(threads=2)))
    on_cluster = list(stream(lookup, SquareReader(), share, decode_on="cluster"))
    assert len(in_worker) == len(on_cluster) == 6 * 3
    for a, b in zip(in_worker, on_cluster, strict=True):
        assert np.array_equal(a["position"], b["position"]) and np.array_equal(a["x"], b["x"])
        assert a["image"].dtype == b["image"].dtype == np.uint8 and np.array_equal(a["image"], b["image"])
        assert a["corrupt"] == b["corrupt"] and a["faults"] == b["faults"]
    assert sum(a["corrupt"] for a in in_worker) > 0


class SlowFirst(SquareReader):
    """Its first units take longer than all that come after them."""

    def read(self, unit, position, attempt):
        if position < 12:
            time.sleep(0.3)
        return super().read(unit, position, attempt)


def test_a_slow_first_decoding_task_keeps_its_place(ray_cluster, lookup):
    share = Share(0, 24 * 9, 24, 12, 0, 1)
    batches = list(stream(lookup, SlowFirst(), share, decode_on="cluster", tasks=3))
    assert np.concatenate([b["position"] for b in batches]).tolist() == list(range(24 * 9))


def test_a_consumer_that_pauses_for_long_does_not_lose_its_stream(ray_cluster, lookup):
    import ray.data

    context = ray.data.DataContext.get_current()
    before = context.execution_no_progress_timeout_s
    context.execution_no_progress_timeout_s = 1
    try:
        batches = rows(lookup, Share(0, 24 * 4000, 24, 24, 0, 1), chunk=128)
        seen = len(next(batches)["position"])
        time.sleep(4)
        seen += sum(len(batch["position"]) for batch in batches)
    finally:
        context.execution_no_progress_timeout_s = before
    assert seen == 24 * 4000


def test_rows_are_the_same_however_many_windows_they_come_in(ray_cluster, lookup, monkeypatch):
    share = Share(24, 24 * 60, 24, 4, 1, 2)
    whole = list(rows(lookup, share, chunk=10**6))
    monkeypatch.setattr("ray_jobs.train.rank_stream.WINDOW_ROWS", 12 * 20)
    cut = list(rows(lookup, share, chunk=12 * 5 + 7))
    assert len(cut) == len(whole) == 59 * 3
    assert all(np.array_equal(a[name], b[name]) for a, b in zip(cut, whole, strict=True) for name in a)


def test_no_ray_data_execution_outlives_its_window(ray_cluster, lookup):
    """Its scheduling loop would compete with the decoding threads for as long as the run lasts."""
    batches = rows(lookup, Share(0, 24 * 60, 24, 4, 0, 1), chunk=10**6)
    next(batches)
    assert not [t.name for t in threading.enumerate() if "StreamingExecutor" in t.name]
    assert sum(1 for _ in batches) == 60 * 6 - 1


def test_a_stream_that_is_closed_early_ends_its_thread(ray_cluster, lookup):
    batches = rows(lookup, Share(0, 24 * 4000, 24, 4, 0, 1), chunk=128)
    next(batches)
    batches.close()
    for thread in [t for t in threading.enumerate() if t.name.startswith("pathray-rows")]:
        thread.join(60)
        assert not thread.is_alive()


def test_nothing_left_to_read_is_an_empty_stream(ray_cluster, lookup):
    assert list(stream(lookup, SquareReader(), Share(48, 48, 24, 4, 0, 1))) == []


def test_a_rank_source_is_one_ordered_task(lookup):
    (task,) = RankRows(lookup, Share(0, 48, 24, 4, 0, 1)).get_read_tasks(8)
    positions = np.concatenate([t["position"].to_numpy() for t in task()])
    assert positions.tolist() == list(range(48))


def test_decoding_tasks_cover_the_share_in_order_without_gap(lookup):
    tasks = RankRows(lookup, Share(24, 24 * 8, 24, 4, 1, 2), steps_per_task=3).get_read_tasks(8)
    assert len(tasks) == 3
    positions = np.concatenate([t["position"].to_numpy() for task in tasks for t in task()])
    expected = [s * 24 + 12 + i for s in range(1, 8) for i in range(12)]
    assert positions.tolist() == expected


def test_a_long_cluster_stream_continues_across_windows(ray_cluster, lookup, monkeypatch):
    monkeypatch.setattr("ray_jobs.train.rank_stream.TASKS_PER_WINDOW", 2)
    batches = list(stream(lookup, SquareReader(), Share(0, 24 * 9, 24, 12, 0, 1), decode_on="cluster", tasks=3))
    assert np.concatenate([b["position"] for b in batches]).tolist() == list(range(24 * 9))


# --- groups -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bags(tmp_path_factory):
    plan = write_bags(tmp_path_factory.mktemp("bags") / "plan")
    return Lookup(plan, bag_order(plan, 0))


def test_the_rows_of_groups_travel_through_ray_in_order_and_uncut(ray_cluster, bags, monkeypatch):
    monkeypatch.setattr("ray_jobs.train.rank_stream.WINDOW_ROWS", 100)
    share = Share(12, 12 * 20, 12, 3, 1, 2)
    local = list(rank_rows(bags, 12, 12 * 20, 12, 1, 2, 3))
    through_ray = list(rows(bags, share, chunk=60))
    monkeypatch.setattr("ray_jobs.train.rank_source.LARGE", 0)
    by_reference = list(rows(bags, share, chunk=60))
    assert len(local) == len(through_ray) == len(by_reference) == 19 * 2
    for a, b, c in zip(through_ray, local, by_reference, strict=True):
        assert sorted(a) == sorted(b) == sorted(c) and "slot" in b
        assert all(np.array_equal(a[k], b[k]) and np.array_equal(c[k], b[k]) for k in b)


def test_groups_are_decoded_alike_in_the_workers_and_on_the_cluster(ray_cluster, bags):
    """Two ranks; every seventh bag cannot be read and is replaced in its slot."""
    reader, config = BagReader(BagConfig()), BagConfig()
    got = {}
    for rank in range(2):
        share = Share(0, 12 * 5, 12, 2, rank, 2)
        in_worker = list(stream(bags, reader, share, settings=DecodeSettings(threads=2)))
        on_cluster = list(stream(bags, reader, share, decode_on="cluster"))
        assert len(in_worker) == len(on_cluster) == 5 * 3
        for a, b in zip(in_worker, on_cluster, strict=True):
            assert sorted(a) == sorted(b) == ["corrupt", "faults", "position", "row", "units", "x"]
            assert (a["corrupt"], a["units"], a["faults"]) == (b["corrupt"], b["units"], b["faults"])
            assert np.array_equal(a["position"], b["position"])
            for ours, theirs in zip(a["x"], b["x"], strict=True):
                assert all(np.array_equal(p, q) and p.dtype == q.dtype for p, q in zip(ours, theirs, strict=True))
            got |= {int(p): r.tolist() for p, r in zip(b["position"], b["row"], strict=True)}
        assert sum(a["corrupt"] for a in in_worker) > 0
    assert got == {p: expected_rows(bags.order, bags.plan, config, p) for p in range(60)}
