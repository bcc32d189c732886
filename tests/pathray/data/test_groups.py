"""Positions that hold groups of rows: which group is where, how its rows are looked up, decoded and replaced."""

import pickle
import time

import numpy as np
import pyarrow as pa
import pytest
import torch

from pathray.data.crashes import Excluded, Guarded
from pathray.data.groups import FEWEST, grouped_order
from pathray.data.order import uniform_order
from pathray.data.plan import Plan, PlanWriter
from pathray.data.share import Lookup, check_positions, micro_batches, rank_rows
from pathray.data.stream import DecodeSettings, decode, stream_batches
from pathray.data.units import count_bytes
from pathray.errors import UnreadableUnit, UserError

N = 60
SIZES = np.random.default_rng(0).integers(1, 6, 25)
STARTS = np.concatenate([[0], np.cumsum(SIZES)])
ROWS = np.random.default_rng(1).integers(0, N, STARTS[-1])


@pytest.fixture(scope="module")
def lookup(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "plan"
    with PlanWriter(path, {"source": np.int32, "x": np.int32}, pa.table({"path": ["s"]})) as writer:
        writer.append({"source": np.zeros(N), "x": np.arange(N)})
    return Lookup(Plan.open(path), grouped_order(STARTS, ROWS, 1))


class Bags:
    """Reads row x as a ragged bag of 1 + x % 4 values; `bad` maps x to a reason; collates a group to a nested dict."""

    benign_reasons = frozenset({"tissue"})

    def __init__(self, bad=None):
        self.bad, self.read_so_far = bad or {}, 0

    def read(self, unit, position, attempt):
        x = int(unit["x"])
        if x in self.bad:
            raise UnreadableUnit(self.bad[x], f"x{x}")
        self.read_so_far += 1
        return {"bag": np.full((1 + x % 4, 3), x), "x": x, "slot": int(unit["slot"]), "attempt": attempt}

    def collate(self, units):
        bags = {"values": [u["bag"] for u in units], "lengths": torch.tensor([len(u["bag"]) for u in units])}
        return {"bags": bags, "x": np.array([u["x"] for u in units]), "slot": [u["slot"] for u in units]}


# --- order ------------------------------------------------------------------------------------------------------------


def test_groups_of_one_row_are_in_the_order_of_single_rows():
    rows, counts = grouped_order(np.arange(98), np.arange(97), 5).members(np.arange(300))
    assert counts.tolist() == [1] * 300
    assert np.array_equal(rows, uniform_order(97, 5).rows(np.arange(300)))


def test_every_pass_visits_its_own_groups_once_and_in_another_order_each_time():
    order = grouped_order(STARTS, ROWS, 3, passes=[0, 4, 15, 25])
    turns = [order.groups(25 * cycle + np.arange(25)) for cycle in range(3)]
    for groups in turns:
        for first, end in ((0, 4), (4, 15), (15, 25)):
            assert sorted(groups[first:end]) == list(range(first, end))
    assert len({tuple(groups) for groups in turns}) == 3


def test_members_are_the_rows_of_each_group_whichever_positions_are_asked_for_together():
    order = grouped_order(STARTS.astype(np.int32), ROWS.astype(np.int32), 3, passes=[0, 10, 25])
    rows, counts = order.members(np.arange(80))
    assert rows.dtype == counts.dtype == np.int64
    parts = [order.members([p])[0].tolist() for p in range(80)]
    assert rows.tolist() == sum(parts, [])
    groups = order.groups(np.arange(80))
    assert parts == [ROWS[STARTS[g] : STARTS[g + 1]].tolist() for g in groups]
    assert counts.tolist() == SIZES[groups].tolist() and order.units_per_position == pytest.approx(SIZES.mean())


def test_a_replacement_depends_on_position_attempt_and_slot_and_keeps_to_the_size_of_the_unit():
    size_of = np.random.default_rng(2).integers(1, 1000, N)
    sizes = size_of[ROWS]
    order = grouped_order(STARTS, ROWS, 1, sizes=sizes)
    smallest = np.sort(sizes)[FEWEST - 1]
    drawn = []
    for position in range(25):
        group = order.groups([position])[0]
        for slot in range(SIZES[group]):
            rows = [order.replacement(position, attempt, slot) for attempt in range(1, 9)]
            assert size_of[rows].max() <= max(smallest, sizes[STARTS[group] + slot])
            assert rows == [order.replacement(position, attempt, slot) for attempt in range(1, 9)]
            drawn.append(tuple(rows))
    assert len(set(drawn)) > 0.9 * len(drawn)
    free = grouped_order(STARTS, ROWS, 1)
    assert {free.replacement(0, attempt, 0) for attempt in range(1, 400)} > {order.replacement(0, 1, 0)}
    assert set(free.replacement(3, attempt, 0) for attempt in range(1, 400)) <= set(ROWS)


def test_tables_may_be_memory_mapped_and_travel(tmp_path):
    for name, table in (("starts", STARTS.astype(np.int32)), ("rows", ROWS.astype(np.int32))):
        np.save(tmp_path / f"{name}.npy", table)
    mapped = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("starts", "rows")]
    order = grouped_order(*mapped, 3)
    assert order.rows.dtype == np.int32 and not order.rows.flags.owndata, "not copied"
    assert order.nbytes == 4 * (STARTS.size + ROWS.size) + 8 * 2
    there = pickle.loads(pickle.dumps(order))
    for one in (order, there):
        assert np.array_equal(one.members(np.arange(50))[0], grouped_order(STARTS, ROWS, 3).members(np.arange(50))[0])


@pytest.mark.parametrize(
    ("starts", "rows", "more", "word"),
    [([0], [], {}, "no groups"), ([0, 2, 2, 3], [1, 2, 3], {}, "an empty one, number 1"),
     ([0, 2], [1, 2, 3], {}, "0 … 2 of 3"), ([1, 3], [1, 2, 3], {}, "1 … 3 of 3"),
     ([0, 1, 3], [1, 2, 3], {"passes": [0, 1]}, "`passes` does not"),
     ([0, 1, 3], [1, 2, 3], {"sizes": [4, 5]}, "needs a size")],
)  # fmt: skip
def test_tables_that_are_no_groups_are_refused(starts, rows, more, word):
    with pytest.raises(UserError, match=word):
        grouped_order(starts, rows, 0, **more)


# --- rows -------------------------------------------------------------------------------------------------------------


def test_the_rows_of_groups_are_looked_up_in_order_with_position_and_slot(lookup):
    found = lookup([7, 3, 30])
    groups = [lookup.order.members([p])[0].tolist() for p in (7, 3, 30)]
    assert found["row"].tolist() == found["x"].tolist() == sum(groups, [])
    assert found["position"].tolist() == sum([[p] * len(g) for p, g in zip((7, 3, 30), groups, strict=True)], [])
    assert found["slot"].tolist() == sum([list(range(len(g))) for g in groups], [])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_micro_batches_of_groups_are_of_whole_groups_and_go_to_one_rank_at_their_step(lookup, world):
    held = {}
    for rank in range(world):
        share = (12 * 6, 12, rank, world, 2)
        batches = list(check_positions(rank_rows(lookup, 0, *share, chunk=40), 0, 12, rank, world, 2))
        assert len(batches) == 6 * 12 // world // 2
        for batch in batches:
            positions = batch["position"][batch["slot"] == 0]
            assert positions.size == 2
            for p in positions:
                held[p] = batch["row"][batch["position"] == p].tolist()
    assert held == {p: lookup.order.members([p])[0].tolist() for p in range(72)}
    (first, second, *_) = rank_rows(lookup, 0, 12, 12, 0, 1, 2)
    with pytest.raises(AssertionError):
        list(check_positions([second, first], 0, 12, 0, 1, 2))


# --- decoding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
def test_groups_are_collated_one_by_one_and_stay_ragged(lookup, threads):
    rows = list(rank_rows(lookup, 0, 48, 12, 0, 1, 4))
    batches = list(stream_batches(iter(rows), Bags(), lookup, DecodeSettings(threads=threads)))
    assert [b["position"].tolist() for b in batches] == [list(range(p, p + 4)) for p in range(0, 48, 4)]
    for batch in batches:
        groups = [lookup.order.members([p])[0].tolist() for p in batch["position"]]
        assert [x.tolist() for x in batch["x"]] == groups
        assert batch["slot"] == [list(range(len(g))) for g in groups]
        assert [[v[0, 0] for v in bags["values"]] for bags in batch["bags"]] == groups
        assert [bags["lengths"].tolist() for bags in batch["bags"]] == [[1 + x % 4 for x in g] for g in groups]
        assert (batch["units"], batch["corrupt"], batch["faults"]) == (sum(map(len, groups)), 0, [])


def test_an_unreadable_unit_of_a_group_is_replaced_in_its_slot_and_counted_by_itself(lookup):
    rows = list(rank_rows(lookup, 0, 48, 12, 0, 1, 4))
    reader = Bags(bad={x: "decode" if x % 2 else "tissue" for x in range(0, N, 3)})
    corrupt = 0
    for batch, own in zip(stream_batches(iter(rows), reader, lookup), rows, strict=True):
        expected = []
        for position, slot, x in zip(own["position"], own["slot"], own["x"], strict=True):
            attempts, attempt = [int(x)], 0
            while attempts[-1] in reader.bad:
                attempt += 1
                attempts.append(lookup.order.replacement(int(position), attempt, int(slot)))
            expected.append(attempts)
        assert np.concatenate(batch["x"]).tolist() == [attempts[-1] for attempts in expected]
        assert [f.row for f in batch["faults"]] == [row for attempts in expected for row in attempts[:-1]]
        assert batch["corrupt"] == sum(any(row % 2 for row in attempts[:-1]) for attempts in expected)
        alone = decode(reader, own, lookup)
        assert [x.tolist() for x in alone["x"]] == [x.tolist() for x in batch["x"]]
        assert (alone["faults"], alone["corrupt"], alone["units"]) == (batch["faults"], batch["corrupt"], own["x"].size)
        corrupt += batch["corrupt"]
    assert corrupt > 10


def test_a_row_whose_decoder_ended_a_process_is_replaced_in_every_group_that_has_it(lookup, tmp_path):
    (rows,) = micro_batches(lookup(np.arange(25)), 25)
    row = int(np.bincount(rows["row"]).argmax())
    reader = Guarded(Bags(), str(tmp_path), lookup.plan, Excluded(rows=frozenset({row})))
    batch, plain = decode(reader, rows, lookup), decode(Bags(bad={row: "crashed_decoder"}), rows, lookup)
    assert [x.tolist() for x in batch["x"]] == [x.tolist() for x in plain["x"]]
    assert batch["corrupt"] == (rows["row"] == row).sum() > 1
    assert {(f.row, f.reason) for f in batch["faults"]} == {(row, "crashed_decoder")}


def test_bytes_are_those_of_arrays_tensors_lists_and_mappings():
    bags = [np.zeros((n, 8), np.float32) for n in (3, 5)]
    batch = {
        "bags": bags,
        "more": {"t": torch.zeros(7, dtype=torch.int64), "deep": [[np.zeros(2, np.uint8)], (b"abc",)]},
    }
    assert count_bytes(batch | {"name": "no data", "n": 3, "faults": []}) == 8 * 8 * 4 + 7 * 8 + 2 + 3


def test_groups_wait_decoded_up_to_a_bound_of_the_bytes_that_they_really_hold(lookup):
    class Large(Bags):
        def collate(self, units):
            return {"x": [np.zeros(10_000, np.uint8) for _ in units]}

    reader, most = Large(), int(SIZES.max())
    settings = DecodeSettings(threads=1, ahead=50, ahead_bytes=3 * most * 10_000)
    stream = stream_batches(rank_rows(lookup, 0, 12_000, 12, 0, 1, 1), reader, lookup, settings)
    used = sum(next(stream)["units"] for _ in range(60))  # the first are read before any size is known
    time.sleep(0.3)
    assert reader.read_so_far - used <= 3 * most
    used += sum(next(stream)["units"] for _ in range(30))
    time.sleep(0.3)
    assert reader.read_so_far - used <= 3 * most
