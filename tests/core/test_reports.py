"""One line per unit, and an error that names those that failed when too many did."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import MissingFile, UnreadableUnit, UserError
from core.reports import check_success, describe, write_report

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
