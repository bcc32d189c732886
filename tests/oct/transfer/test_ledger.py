"""Records of a transfer: kept while it runs, compacted at its end, and never trusted when damaged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from oct.transfer.ledger import Ledger
from pathray.run.fence import Superseded

SCHEMA = pa.schema([("path", pa.string()), ("state", pa.string())])


def rows(*numbers: int, state: str = "1") -> list[dict[str, str]]:
    return [{"path": f"p{n}", "state": state, "other": "not kept"} for n in numbers]


def open_ledger(folder: Path) -> Ledger:
    return Ledger(str(folder / "ledger"), SCHEMA, "path", part_rows=2)


def test_what_was_done_before_an_error_is_kept(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        for row in open_ledger(tmp_path).keep(rows(1, 2, 3, 4)):
            1 / (row["path"] != "p3")
    assert sorted(open_ledger(tmp_path).read()) == ["p1", "p2", "p3"]


def test_a_start_that_was_replaced_leaves_the_parts_of_its_successor_alone(tmp_path: Path) -> None:
    def taken_over() -> Iterator[dict[str, str]]:
        yield from rows(1)
        list(open_ledger(tmp_path).keep(rows(2, 3)))  # by the new owner, under the name that is next
        raise Superseded("another start has taken over this folder")

    with pytest.raises(Superseded):
        list(open_ledger(tmp_path).keep(taken_over()))
    assert sorted(open_ledger(tmp_path).read()) == ["p2", "p3"]


def test_the_newest_row_of_a_path_counts(tmp_path: Path) -> None:
    list(open_ledger(tmp_path).keep(rows(1, 2)))
    list(open_ledger(tmp_path).keep(rows(1, state="2")))
    found = open_ledger(tmp_path).read()
    assert [found[p] for p in ("p1", "p2")] == [{"path": "p1", "state": "2"}, {"path": "p2", "state": "1"}]


def test_a_compact_ledger_is_one_part(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    list(ledger.keep(rows(*range(7))))
    ledger.compact(ledger.read().values())
    assert len(list((tmp_path / "ledger").iterdir())) == 1 and len(open_ledger(tmp_path).read()) == 7


def test_a_damaged_part_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    list(open_ledger(tmp_path).keep(rows(1, 2, 3)))
    part = sorted((tmp_path / "ledger").iterdir())[0]
    part.write_bytes(part.read_bytes()[:-9])
    assert list(open_ledger(tmp_path).read()) == ["p3"] and "looked at again" in caplog.text
