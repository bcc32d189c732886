"""One line per unit, and an error that names those that failed when too many did."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from pathray.errors import MissingFile, UnreadableUnit, UserError
from pathray.reports.units import check_success, describe, write_report

ROWS = [{"id": f"s{i}" if i else "", "status": "failed", "error": f"why {i}"} for i in range(12)]
ROWS += [{"id": f"ok{i}", "status": status, "error": ""} for i, status in enumerate(("ok", "skipped", "empty"))]


def test_too_few_good_units_are_an_error_that_lists_the_first_that_failed() -> None:
    check_success(ROWS, "id", "slides", 0.2, "report.csv")
    with pytest.raises(UserError) as e:
        check_success(ROWS, "id", "slides", 0.21, "report.csv")
    text = str(e.value)
    assert text.startswith("12 of 15 slides failed:\n  (no id): why 0\n  s1: why 1\n")
    assert "s9: why 9\n  and 2 more\n" in text and "s10" not in text
    assert e.value.where["file"] == "report.csv" and e.value.where["found"] == 0.2
    check_success([], "id", "slides", 1.0, "report.csv")


def test_what_is_wrong_may_stand_in_another_column() -> None:
    row = {"slide_id": "a", "status": "failed", "error": "no", "detail": "the mask is gone"}
    with pytest.raises(UserError, match="1 of 1 slides failed:\n  a: the mask is gone\n"):
        check_success([row], "slide_id", "slides", 0.5, "report.csv", "detail")


def test_a_report_has_its_columns_and_one_line_per_row(tmp_path: Path) -> None:
    write_report(str(tmp_path / "report.csv"), ("id", "error"), iter(ROWS[:2]))
    assert (tmp_path / "report.csv").read_text() == "id,error\n,why 0\ns1,why 1\n"


def test_an_error_is_one_line_and_says_its_kind_unless_it_is_ours() -> None:
    assert describe(MissingFile("no\n such file", file="a.csv")) == "no such file (file: a.csv)"
    assert describe(UnreadableUnit("decode", "a.tiff", "cut\nshort")) == "decode: a.tiff: cut short"
    assert describe(KeyError("x")) == "KeyError: 'x'"


COLUMNS = ("id", "status", "error", "mpp0", "seconds")


def _read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


def test_a_rerun_keeps_the_facts_of_what_was_finished_before(tmp_path: Path) -> None:
    path = tmp_path / "report.csv"
    first = {"mpp0": 0.25, "seconds": 4.5, "error": ""}
    rows = [{"id": name, "status": status, **first} for name, status in (("a", "ok"), ("b, c", "ok"), ("d", "failed"))]
    write_report(str(path), COLUMNS, rows, key="id")
    blank = {"error": "", "mpp0": None, "seconds": 0.0}
    for _ in range(3):
        write_report(str(path), COLUMNS, [{"id": r["id"], "status": "skipped", **blank} for r in rows], key="id")
        found = _read(path)
        assert [(row["status"], row["mpp0"], row["seconds"]) for row in found[:2]] == [("skipped", "0.25", "4.5")] * 2
    assert found[2]["mpp0"] == "", "what failed has no facts to keep"


def test_a_unit_that_is_done_anew_has_its_new_facts(tmp_path: Path) -> None:
    path = tmp_path / "report.csv"
    write_report(str(path), COLUMNS, [{"id": "a", "status": "ok", "mpp0": 0.25, "seconds": 4.5, "error": ""}], key="id")
    write_report(str(path), COLUMNS, [{"id": "a", "status": "failed", "mpp0": "", "error": "gone"}], key="id")
    assert _read(path) == [{"id": "a", "status": "failed", "error": "gone", "mpp0": "", "seconds": ""}]


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"other,columns\n1,2\n", b'id,status\n"a', b"id,status\na,ok,x,y\n"]
)
def test_an_earlier_report_that_is_damaged_is_written_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "report.csv"
    path.write_bytes(content)
    write_report(str(path), COLUMNS, [{"id": "a", "status": "skipped", "mpp0": 0.5}], key="id")
    assert _read(path)[0]["mpp0"] == "0.5" and len(_read(path)) == 1
