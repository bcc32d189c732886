"""Tables as people have them: every cell is what is written, and every fault has its row and column."""

from __future__ import annotations

import gzip
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pathray.errors import UserError
from pathray.files.sheet import read_sheet

PLAIN = "id,a,b\ns1,1,2.5\ns2,3,4\n"


def sheet(folder, text: str | bytes, name: str = "t.csv"):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_sheet(str(folder / name))


def refused(folder, text: str | bytes, name: str = "t.csv", column: str = "a") -> UserError:
    with pytest.raises(UserError) as e:
        sheet(folder, text, name).numbers(column)
    assert e.value.where["file"] == str(folder / name)
    return e.value


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        "\ufeff" + PLAIN,
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        PLAIN.rstrip("\n"),
        "# ours\n#\n" + PLAIN,
        "\n" + PLAIN.replace("\n", "\n\n"),
        PLAIN.replace("id,a,b", '"id"," a ","b"'),
        PLAIN.replace(",1,", ", 1 ,").replace("2.5", "2.50E+00"),
    ],
)
def test_dialects_of_one_table_are_the_same_table(tmp_path, text):
    found = sheet(tmp_path, text)
    assert (found.names, found.texts("id"), found.numbers("a").tolist()) == (["id", "a", "b"], ["s1", "s2"], [1, 3])
    assert found.numbers("b").tolist() == [2.5, 4]


def test_tabs_and_gzip_follow_from_the_name(tmp_path):
    tabs = PLAIN.replace(",", "\t").encode()
    for name in ("t.tsv", "t.TXT", "t.tab"):
        assert sheet(tmp_path, tabs, name).numbers("a").tolist() == [1, 3]
    assert sheet(tmp_path, gzip.compress(tabs), "t.tsv.gz").numbers("a").tolist() == [1, 3]


@pytest.mark.parametrize(
    "word", ["007", "1e3", "1.00E+03", "0x10", "12:30", "2024-01-05", "true", "NA", "a b", "1_000"]
)
def test_a_text_is_what_is_written_whatever_it_looks_like(tmp_path, word):
    assert sheet(tmp_path, f"id,a\n{word},1\n{word},2\n").texts("id") == [word, word]


@pytest.mark.parametrize(
    "cell", ["0x10", "1_000", "１２", "nan", "inf", "-inf", "1e999", "n/a", "", "TRUE", "1 000", "--"]
)
def test_only_plain_finite_decimals_are_numbers(tmp_path, cell):
    error = refused(tmp_path, f'id,a\ns1,1\ns2,"{cell}"\n')
    assert (error.where["row"], error.where["key"], error.where["found"]) == (3, "a", cell or "an empty cell")
    assert refused(tmp_path, f'id,a\ns1,"{cell}"\ns2,"{cell}"\n').where["row"] == 2


def test_a_decimal_comma_is_asked_about(tmp_path):
    assert "decimal point" in str(refused(tmp_path, 'id,a\ns1,"1,5"\n'))


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("# one\n# two\nid,a\ns1,1\ns2,x\n", 5),
        ("id,a\n\ns1,1\n\n\ns2,x\n", 6),
        ('id,a\n"s\n1",1\ns2,x\n', 4),
        ('"i\nd",a\ns1,1\ns2,x\n', 4),
        ("id,a\r\ns1,1\r\ns2,x\r\n", 3),
        ("id,a\rs1,1\rs2,x\r", 3),
    ],
)
def test_rows_have_the_numbers_of_their_lines(tmp_path, text, row):
    assert refused(tmp_path, text).where["row"] == row


@pytest.mark.parametrize(
    ("text", "words", "row"),
    [
        ("a,b\ns1,1,2\ns2,3,4\n", "first column, as written by R", 2),
        ("id,a\ns1,1,\ns2,3,\n", "ends with a separator", 2),
        ("id,a\ns1,1\ns2,3,4,5\n", "different number of cells", 3),
        ("id,a\ns1,1\ns2,3,4\n", "different number of cells", 3),
        ("id,a\ns1,1\n\ns2\n", "different number of cells", 4),
        ("id,a\ns1,1\n  \n", "only blanks", 3),
        ('id,a\ns1,"1\ns2,2\n', "quotation mark", 2),
        ("id;a\ns1;1\n", "one column only: wrong separator.*semicolon", 1),
        ("# x\nid;a\ns1;1,5\n", "one column only: wrong separator.*semicolon", 2),
        ("id\ts\ns1\t1\n", "wrong separator.*tab", 1),
        ("id,a,a\ns1,1,2\n", "duplicate column", 1),
        ("id,a, a\ns1,1,2\n", "duplicate column", 1),
        ("#id,a\ns1,1\ns2,2\n", "this comment may be the header", 1),
        ("id,a\ns1,1\ns\xe4,2\n".encode("latin-1"), "not UTF-8", 3),
        (PLAIN.encode("utf-16"), "UTF-16", None),
        (b"PK\x03\x04" + bytes(9), "Excel", None),
        (gzip.compress(PLAIN.encode(), mtime=0), "gz", None),
        ("id,a\ns1,1\ns\x002,1\n", "zero byte", 3),
        ("", "is empty", None),
        ("# only this\n", "is empty", None),
        ("id,a\n", "no rows", None),
        ("id,a\n\n\n", "no rows", None),
    ],
)
def test_what_is_no_table_is_refused_with_the_place_and_the_reason(tmp_path, text, words, row):
    error = refused(tmp_path, text)
    assert error.where["row"] == row or row is None
    assert re.search(words, str(error)), error


def test_a_comment_of_as_many_cells_is_taken_for_one_above_an_empty_line(tmp_path):
    assert sheet(tmp_path, "# made by me, in May\n\nid,a\ns1,1\n").texts("id") == ["s1"]


def parquet(folder, **columns):
    pq.write_table(pa.table(columns), folder / "t.parquet")
    return read_sheet(str(folder / "t.parquet"))


@pytest.mark.parametrize(
    "cells",
    [
        pa.array(["1", " 2.5", "3e0"]),
        pa.array(["1", "2.5", "3"]).dictionary_encode(),
        pa.array([1.0, 2.5, 3.0], pa.float32()),
        pa.array(["1", "2.5", "3"], pa.large_string()),
        pa.array([100, 250, 300], pa.int64()).cast(pa.decimal128(21, 0)),
    ],
)
def test_numbers_in_parquet_are_read_from_texts_too(tmp_path, cells):
    found = parquet(tmp_path, a=cells, b=cells).numbers("a")
    assert (found / found[0]).tolist() == [1, 2.5, 3]


@pytest.mark.parametrize(
    ("cells", "row"),
    [
        (pa.array(["1", "0x10"]), 1),
        (pa.array(["1", None]), 1),
        (pa.array([1.0, float("nan")]), 1),
        (pa.array([[1.0], [2.0]]), 0),
        (pa.array([True, False]), 0),
        (pa.array([b"\xff", b"1"]), 0),
        (pa.array([{"x": 1}, {"x": 2}]), 0),
    ],
)
def test_what_is_no_number_in_parquet_is_refused_by_row(tmp_path, cells, row):
    with pytest.raises(UserError, match="not a number") as e:
        parquet(tmp_path, a=cells, b=cells).numbers("a")
    assert (e.value.where["row"], e.value.where["key"]) == (row, "a")


@pytest.mark.parametrize(
    ("cells", "row"),
    [
        (pa.array([["p"], ["q"]]), 0),
        (pa.array([b"p", b"\xff\xfe"]), 1),
        (pa.array([{"x": 1}, {"x": 2}]), 0),
        (pa.array(["p", None]), 1),
        (pa.array(["p", " "]), 1),
    ],
)
def test_what_is_no_text_in_parquet_is_refused_by_row(tmp_path, cells, row):
    with pytest.raises(UserError, match="not text|empty cell") as e:
        parquet(tmp_path, a=cells, b=cells).texts("a")
    assert (e.value.where["row"], e.value.where["key"]) == (row, "a")


def test_a_damaged_parquet_file_is_refused(tmp_path):
    assert "cannot be read" in str(refused(tmp_path, b"PAR1" + bytes(40), "t.parquet"))
    assert "parquet" in str(refused(tmp_path, b"PAR1" + bytes(40), "t.csv"))
