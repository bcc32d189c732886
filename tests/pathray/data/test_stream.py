import gc
import pickle
import threading
import time

import numpy as np
import pyarrow as pa
import pytest

from pathray.data.faults import StreamError
from pathray.data.order import uniform_order
from pathray.data.plan import Plan, PlanWriter
from pathray.data.share import Lookup, check_geometry, check_positions, rank_rows
from pathray.data.stalls import WINDOW, Stalls
from pathray.data.stream import DecodeSettings, decode, stream_batches
from pathray.errors import UnreachableUnit, UnreadableUnit, UserError
from pathray.store.outages import through_outages
from pathray.store.storage import StorageError


@pytest.fixture(scope="module")
def lookup(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "plan"
    with PlanWriter(path, {"source": np.int32, "x": np.int32}, pa.table({"path": ["s"]})) as writer:
        writer.append({"source": np.zeros(100), "x": np.arange(100)})
    return Lookup(Plan.open(path), uniform_order(100, seed=1))


class Reader:
    """Doubles x. `bad` maps x to a reason; `slow` maps x to seconds; `gate` blocks until set."""

    benign_reasons = frozenset({"tissue"})

    def __init__(self, bad=None, slow=None, gate=None):
        self.bad, self.slow, self.gate = bad or {}, slow or {}, gate
        self.live, self.most, self.lock = 0, 0, threading.Lock()

    def read(self, unit, position, attempt):
        x = int(unit["x"])
        if x in self.slow and attempt == 0:
            time.sleep(self.slow[x])
        if x in self.bad:
            raise UnreadableUnit(self.bad[x], f"x{x}")
        with self.lock:
            self.live += 1
            self.most = max(self.most, self.live)
        return {"value": np.full(1000, 2 * x), "attempt": attempt}

    def collate(self, units):
        return {"value": np.stack([u["value"] for u in units]), "attempt": np.array([u["attempt"] for u in units])}


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_position_goes_to_one_rank_at_its_step(lookup, world):
    global_batch, steps, micro = 12, 7, 2
    seen = {}
    for rank in range(world):
        for i, rows in enumerate(
            rank_rows(lookup, 0, steps * global_batch, global_batch, rank, world, micro, chunk=24)
        ):
            step = i // (global_batch // world // micro)
            for p, row in zip(rows["position"], rows["row"], strict=True):
                assert p not in seen
                seen[int(p)] = (step, int(row))
    assert sorted(seen) == list(range(steps * global_batch))
    assert all(step == p // global_batch for p, (step, _) in seen.items())
    assert [seen[p][1] for p in range(84)] == lookup.order.rows(np.arange(84)).tolist()


def test_a_stream_from_the_middle_is_the_tail_of_the_whole(lookup):
    whole = list(rank_rows(lookup, 0, 120, 12, 1, 3, 2))
    tail = list(rank_rows(lookup, 48, 120, 12, 1, 3, 2))
    assert [r["position"].tolist() for r in tail] == [r["position"].tolist() for r in whole[-len(tail) :]]


def test_a_batch_out_of_order_is_our_own_fault(lookup):
    rows = list(rank_rows(lookup, 0, 24, 12, 0, 1, 4))
    assert len(list(check_positions(rows, 0, 12, 0, 1, 4))) == 6
    with pytest.raises(AssertionError):
        list(check_positions([rows[1], rows[0]], 0, 12, 0, 1, 4))


@pytest.mark.parametrize(("g", "world", "micro"), [(12, 5, 1), (12, 2, 4), (0, 1, 1), (8, 1, 0)])
def test_workers_times_micro_must_divide_the_global_batch(g, world, micro):
    with pytest.raises(UserError, match="must divide"):
        check_geometry(g, world, micro)


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_come_decoded_in_order_whatever_the_threads(lookup, threads):
    slow = {int(x): 0.02 for x in lookup(np.arange(0, 100, 7))["x"]}
    rows = list(rank_rows(lookup, 0, 96, 12, 0, 1, 4))
    batches = list(stream_batches(iter(rows), Reader(slow=slow), lookup, DecodeSettings(threads=threads)))
    assert [b["position"].tolist() for b in batches] == [r["position"].tolist() for r in rows]
    for batch, r in zip(batches, rows, strict=True):
        assert np.array_equal(batch["value"][:, 0], 2 * r["x"])
        assert batch["corrupt"] == 0 and batch["faults"] == []


def test_an_unreadable_unit_is_replaced_counted_and_named(lookup):
    x = int(lookup([5])["x"][0])
    batch = next(stream_batches(rank_rows(lookup, 0, 12, 12, 0, 1, 12), Reader(bad={x: "truncated"}), lookup))
    expected = lookup.replacement(5, 1)["x"]
    assert batch["value"][5, 0] == 2 * expected and batch["attempt"][5] == 1
    assert batch["corrupt"] == 1
    (fault,) = batch["faults"]
    assert (fault.position, fault.reason, fault.path, fault.benign) == (5, "truncated", f"x{x}", False)


def test_a_benign_reason_replaces_without_counting_as_corruption(lookup):
    x = int(lookup([5])["x"][0])
    batch = next(stream_batches(rank_rows(lookup, 0, 12, 12, 0, 1, 12), Reader(bad={x: "tissue"}), lookup))
    assert batch["corrupt"] == 0 and len(batch["faults"]) == 1 and batch["faults"][0].benign


def test_a_plan_where_most_units_are_refused_for_a_benign_reason_still_trains(lookup):
    reader = Reader(bad={x: "tissue" for x in range(100) if x % 10})
    batches = list(stream_batches(rank_rows(lookup, 0, 96, 12, 0, 1, 12), reader, lookup))
    assert all((batch["value"] % 20 == 0).all() and batch["corrupt"] == 0 for batch in batches)
    assert max(batch["attempt"].max() for batch in batches) > 16


def test_decoding_in_a_task_gives_the_same_units_as_the_pool(lookup):
    reader = Reader(bad={x: "decode" for x in range(0, 100, 9)})
    rows = list(rank_rows(lookup, 0, 96, 12, 0, 1, 4))
    for row, pooled in zip(rows, stream_batches(iter(rows), reader, lookup), strict=True):
        alone = decode(reader, row, lookup)
        assert np.array_equal(alone["value"], pooled["value"]) and alone["faults"] == pooled["faults"]
        assert alone["corrupt"] == pooled["corrupt"]


def test_nothing_readable_at_all_ends_with_an_error_that_names_the_file(lookup):
    reader = Reader(bad={x: "missing" for x in range(100)})
    with pytest.raises(StreamError, match="no readable unit.*file: x") as e:
        next(stream_batches(rank_rows(lookup, 0, 12, 12, 0, 1, 4), reader, lookup))
    told = pickle.loads(pickle.dumps(e.value))
    assert str(told) == str(e.value) and told.faults == e.value.faults
    assert {f.position for f in told.faults} <= {0, 1, 2, 3} and len(told.faults) >= 16
    (rows,) = rank_rows(lookup, 0, 12, 12, 0, 1, 12)
    with pytest.raises(StreamError) as e:
        decode(reader, rows, lookup)
    assert {(f.position, f.reason) for f in e.value.faults} == {(0, "missing")}


def test_a_stalled_read_is_abandoned_after_its_timeout_and_its_unit_replaced(lookup):
    x = int(lookup([5])["x"][0])
    settings = DecodeSettings(threads=1, timeout_s=0.3)
    started = time.monotonic()
    batches = list(stream_batches(rank_rows(lookup, 0, 24, 12, 0, 1, 12), Reader(slow={x: 30}), lookup, settings))
    assert time.monotonic() - started < 10
    assert [f.reason for b in batches for f in b["faults"]] == ["timeout"]
    assert [f.path for b in batches for f in b["faults"]] == ["s"], "known by the name that the plan has for it"
    assert batches[0]["value"][5, 0] == 2 * lookup.replacement(5, 1)["x"]
    assert batches[0]["corrupt"] == 1


def test_storage_that_hangs_for_every_read_ends_with_a_clear_error(lookup):
    settings = DecodeSettings(threads=2, timeout_s=0.1, max_stalled=3)
    reader = Reader(slow={x: 5 for x in range(100)})
    with pytest.raises(UserError, match="reads hang"):
        list(stream_batches(rank_rows(lookup, 0, 48, 12, 0, 1, 12), reader, lookup, settings))


def test_reads_that_were_slow_are_forgotten_as_others_succeed(lookup, monkeypatch):
    """Two reads of each pass hang: more than the bound in all, never more than it among the newest."""
    monkeypatch.setattr("pathray.data.stalls.WINDOW", 40)
    settings = DecodeSettings(threads=2, timeout_s=0.4, max_stalled=3)
    reader = Reader(slow={0: 3, 50: 3})
    batches = list(stream_batches(rank_rows(lookup, 0, 300, 12, 0, 1, 12), reader, lookup, settings))
    assert [f.reason for batch in batches for f in batch["faults"]] == ["timeout"] * 6
    monkeypatch.setattr("pathray.data.stalls.WINDOW", 10**6)
    with pytest.raises(StreamError, match=r"reads hang.*4 reads longer than 0.4 s.*at most 3 of"):
        list(stream_batches(rank_rows(lookup, 0, 300, 12, 0, 1, 12), reader, lookup, settings))


def test_a_slow_read_counts_until_a_window_of_units_has_been_read():
    stalls = Stalls()
    assert [stalls.add() for _ in range(3)] == [1, 2, 3], "nothing is read in between: the storage hangs"
    stalls.succeed(WINDOW - 1)
    assert stalls.add() == 4
    stalls.succeed(1)
    assert stalls.add() == 2


def test_decoded_batches_wait_only_up_to_the_bound(lookup):
    reader = Reader()
    stream = stream_batches(
        rank_rows(lookup, 0, 1200, 12, 0, 1, 12), reader, lookup, DecodeSettings(threads=2, ahead=3)
    )
    next(stream)
    time.sleep(0.3)
    assert reader.most <= 12 * (3 + 2)
    by_bytes = Reader()
    one = 12 * 1000 * 8
    stream = stream_batches(
        rank_rows(lookup, 0, 1200, 12, 0, 1, 12), by_bytes, lookup, DecodeSettings(ahead=50, ahead_bytes=2 * one)
    )
    for _ in range(60):
        next(stream)
    time.sleep(0.3)
    assert by_bytes.most <= 12 * (60 + 51)
    before = by_bytes.most
    next(stream)
    time.sleep(0.2)
    assert by_bytes.most <= before + 12


def test_threads_end_with_the_stream(lookup):
    before = threading.active_count()
    stream = stream_batches(rank_rows(lookup, 0, 1200, 12, 0, 1, 12), Reader(), lookup, DecodeSettings(threads=4))
    next(stream)
    stream.close()
    del stream
    gc.collect()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() <= before


class AwayReader(Reader):
    """The storage of its data cannot be reached for `seconds` from the first read of the unit `x` on."""

    def __init__(self, x, seconds):
        super().__init__()
        self.x, self.seconds, self.until = x, seconds, None

    def read(self, unit, position, attempt):
        if self.until is None and int(unit["x"]) == self.x:
            self.until = time.monotonic() + self.seconds
        if self.until is not None and time.monotonic() < self.until:
            raise UnreachableUnit("gs://bucket/slide.svs", "ConnectionError in a request")
        return super().read(unit, position, attempt)


def test_an_outage_longer_than_a_read_may_take_replaces_no_unit_and_counts_no_stall(lookup, monkeypatch):
    monkeypatch.setitem(through_outages.__kwdefaults__, "first_pause_s", 0.05)
    rows = list(rank_rows(lookup, 0, 48, 12, 0, 1, 4))
    settings = DecodeSettings(threads=2, timeout_s=0.5, max_stalled=0)
    reader = AwayReader(int(rows[1]["x"][0]), seconds=1.2)
    batches = list(stream_batches(iter(rows), reader, lookup, settings))
    assert reader.until is not None, "storage was never away"
    for batch, r in zip(batches, rows, strict=True):
        assert np.array_equal(batch["value"][:, 0], 2 * r["x"]) and not batch["attempt"].any()
        assert batch["corrupt"] == 0 and batch["faults"] == []


def test_data_that_stay_away_end_the_stream_with_an_error_that_names_them(lookup, monkeypatch):
    monkeypatch.setitem(through_outages.__kwdefaults__, "first_pause_s", 0.05)
    monkeypatch.setitem(through_outages.__kwdefaults__, "outage_s", 0.2)
    rows = rank_rows(lookup, 0, 12, 12, 0, 1, 4)
    with pytest.raises(StorageError, match="gs://bucket/slide.svs") as e:
        list(stream_batches(rows, AwayReader(int(lookup([5])["x"][0]), seconds=60.0), lookup))
    assert e.value.passing


def test_a_readers_own_bug_is_raised_and_not_counted(lookup):
    class Broken(Reader):
        def read(self, unit, position, attempt):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        next(stream_batches(rank_rows(lookup, 0, 12, 12, 0, 1, 4), Broken(), lookup))
