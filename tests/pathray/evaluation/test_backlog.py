"""Which snapshot is next, with what, and which are dropped: over every order in which things may come."""

import pytest

from pathray.evaluation.backlog import Record, Snapshot, decide

CADENCES = {"pathorob": {"ri": 1, "apd": 2, "clustering": 4}}


def snapshots(*indices: int) -> list[Snapshot]:
    return [Snapshot(f"s{i}", 100 * i, i) for i in indices]


def record(index: int, status: str = "ok", due: tuple[str, ...] = ("ri",)) -> Record:
    return Record(100 * index, index, status, {"pathorob": list(due)})


def drained(there: list[Snapshot], records: list[Record], limit: int | None = 2) -> list[tuple[int, tuple[str, ...]]]:
    """(index, metrics) of everything that is evaluated until nothing waits."""
    out = []
    records = list(records)
    while True:
        found = decide(there, records, [], CADENCES, limit)
        records += [Record(s.images_seen, s.index, "dropped", {}) for s in found.drop]
        if found.next is None:
            return out
        records.append(Record(found.next.images_seen, found.next.index, "ok", found.due))
        out.append((found.next.index, tuple(found.due["pathorob"])))


def test_the_newest_waiting_snapshot_is_next_and_the_queue_stays_bounded():
    found = decide(snapshots(0, 1, 2, 3, 4), [record(0)], [], CADENCES, 2)
    assert found.next == snapshots(4)[0]
    assert [s.index for s in found.drop] == [2, 1] and found.waiting == 1


def test_nothing_is_evaluated_twice():
    there = snapshots(0, 1, 2)
    records = [record(0), record(2, "failed"), record(1, "dropped")]
    assert decide(there, records, [], CADENCES, 2).next is None
    assert decide(there, records[:1], [record(2, "running")], CADENCES, 2).next == there[1]


def test_without_a_limit_nothing_is_dropped():
    found = decide(snapshots(*range(9)), [], [], CADENCES, None)
    assert (found.next, found.drop, found.waiting) == (snapshots(8)[0], (), 8)


def test_a_heavy_metric_that_was_due_on_a_dropped_evaluation_is_carried_to_the_next():
    heavy = ("ri", "apd", "clustering")
    records = [record(0, due=heavy), *(record(i, "dropped", ()) for i in (2, 3, 4))]
    assert decide(snapshots(0, 2, 3, 4, 5), records, [], CADENCES, 2).due == {"pathorob": list(heavy)}
    evaluated = record(5, due=heavy)
    assert decide(snapshots(5, 7), [*records, evaluated], [], CADENCES, 2).due == {"pathorob": ["ri", "apd"]}


def test_a_heavy_metric_of_a_failed_evaluation_is_carried_too():
    records = [record(0, due=("ri", "apd", "clustering")), record(1), record(2, "failed", ("ri", "apd"))]
    assert decide(snapshots(3), records, [], CADENCES, 2).due == {"pathorob": ["ri", "apd"]}


def test_a_heavy_metric_is_not_run_twice_for_a_snapshot_that_only_waits():
    records = [record(0, due=("ri", "apd", "clustering")), record(1)]
    assert drained(snapshots(0, 1, 2, 3), records) == [(3, ("ri",)), (2, ("ri", "apd"))]


def test_an_evaluation_behind_a_newer_one_that_had_the_metric_has_no_debt_of_its_own():
    records = [record(0, due=("ri", "apd")), record(4, due=("ri", "apd", "clustering"))]
    assert decide(snapshots(3), records, [], CADENCES, 2).due == {"pathorob": ["ri"]}


def test_a_run_without_a_baseline_owes_nothing_before_its_first_snapshot():
    assert decide(snapshots(1), [], [], CADENCES, 2).due == {"pathorob": ["ri"]}
    assert decide(snapshots(0), [], [], CADENCES, 2).due == {"pathorob": ["ri", "apd", "clustering"]}


def test_a_plugin_without_a_metric_due_is_left_out():
    found = decide(snapshots(1), [], [], {"probe": {"linear": 3}, **CADENCES}, 2)
    assert found.due == {"pathorob": ["ri"]}


@pytest.mark.parametrize("slow", [1, 2, 3, 5])
def test_with_an_evaluator_slower_than_the_cadence_every_snapshot_is_judged_or_dropped_and_no_debt_is_left(slow):
    """One evaluation takes `slow` cadences: the queue never holds more than two, and heavy metrics keep their rate."""
    records: list[Record] = []
    running: list[tuple[int, Record]] = []
    for now in range(40):
        running = [(end, r) for end, r in running if end > now or records.append(r)]
        there = snapshots(*range(now + 1))
        found = decide(there, records, [r for _, r in running], CADENCES, 2)
        records += [Record(s.images_seen, s.index, "dropped", {}) for s in found.drop]
        waiting = now + 1 - len(records) - len(running)
        assert waiting <= 2
        if not running and found.next is not None:
            assert found.next.index == now, "the newest is next"
            running = [(now + slow, Record(found.next.images_seen, found.next.index, "ok", found.due))]
    judged = [r for r in records if r.status == "ok"]
    for metric, every in CADENCES["pathorob"].items():
        at = [r.index for r in judged if metric in r.due["pathorob"]]
        steps = [b - a for a, b in zip(at, at[1:], strict=False)]
        assert at[0] == 0 and max(steps) <= every + 2 * slow, (metric, at)
