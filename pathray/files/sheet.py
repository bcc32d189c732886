"""Reads users' tables: CSV, TSV (also .gz) or parquet. Every error names the row and column.

All CSV cells are text, whatever they look like: 007 stays 007, and 0x10 is not a number. Comment lines (#) at the top
and blank lines are skipped; rows keep their line numbers. Not here: the CSV dialect (pathray.files.csv_rows), which
columns are required.
"""

from __future__ import annotations

import gzip
import io
import logging
import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pathray.errors import UserError
from pathray.files.csv_rows import (
    check_comment,
    check_header,
    check_lengths,
    check_once,
    plain_number,
    records,
    separator_of,
    spelling,
)
from pathray.files.text import decode_text, read_user_file

Floats = npt.NDArray[np.float64]
SHOWN = 8
ROUNDED = re.compile(r"\d\.\d+E\+\d{2,}")  # what a spreadsheet makes of a long number
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sheet:
    """A table with stripped column names. `lines` `[N]` holds the line of each row in a CSV, or the row number (from 0)
    in a parquet table."""

    file: str
    table: pa.Table
    lines: Sequence[int]

    @property
    def names(self) -> list[str]:
        return list(self.table.column_names)

    def need(self, *names: str) -> None:
        """UserError for the first missing column."""
        for name in names:
            if name not in self.names:
                found = self.names[:SHOWN]
                raise UserError("the table has no such column", file=self.file, key=name, found=found, expected=name)

    def only(self, rows: Sequence[int]) -> Sheet:
        """The given rows only."""
        return Sheet(self.file, self.table.take(list(rows)), [self.lines[i] for i in rows])

    def texts(self, name: str, may_be_empty: bool = False) -> list[str]:
        """The cells `[N]` as stripped text. UserError for empty cells, lists and bytes."""
        import pyarrow.compute as pc

        try:
            cells = pc.utf8_trim_whitespace(pc.fill_null(self.table[name].cast(pa.string()), "")).to_pylist()
        except (pa.ArrowException, UnicodeDecodeError) as e:
            row = next((i for i, cell in enumerate(self.table[name].to_pylist()) if not _is_text(cell)), 0)
            raise self.cell_error("not text", row, name, "text in UTF-8, or numbers") from e
        if not may_be_empty and "" in cells:
            raise self.cell_error("an empty cell", cells.index(""), name, "a value")
        return [str(cell) for cell in cells]

    def numbers(self, name: str, message: str = "not a number", expected: str = "a number") -> Floats:
        """The cells `[N]` as numbers. UserError for the first cell that is not a finite number."""
        values = _numbers(self.table[name])
        if (bad := np.flatnonzero(~np.isfinite(values))).size:
            cell = self.table[name][int(bad[0])].as_py()
            comma = isinstance(cell, str) and "," in cell and plain_number(cell.replace(",", ".")) is not None
            hint = " with a decimal point" if comma else ""
            raise self.cell_error(message, int(bad[0]), name, f"{expected}{hint}")
        return values

    def check_spelling(self, name: str, what: str) -> None:
        """UserError for two values of a column that differ only in case or Unicode form: one of the `what` (such as
        persons) could be on both sides of a split. A warning for a number that a spreadsheet may have rounded."""
        first: dict[str, int] = {}
        cells = self.texts(name)
        for i, cell in enumerate(cells):
            other = first.setdefault(spelling(cell), i)
            if cells[other] != cell:
                expected = f"one spelling: row {self.lines[other]} has {cells[other]}"
                raise self.cell_error(f"two {what} differ only in case or Unicode form", i, name, expected)
        if rounded := [cells[i] for i in first.values() if ROUNDED.fullmatch(cells[i])]:
            log.warning("%s: %s %s may be a number that a spreadsheet rounded", self.file, name, rounded[0])

    def cell_error(self, message: str, i: int, name: str, expected: str) -> UserError:
        """A UserError that shows the cell in row `i` of column `name`."""
        cell = self.table[name][i].as_py()
        empty = cell is None or (isinstance(cell, str) and not cell.strip())
        found = "an empty cell" if empty else cell if isinstance(cell, int | float) else str(cell)[:80]
        return UserError(message, file=self.file, row=self.lines[i], key=name, found=found, expected=expected)


def read_sheet(path: str, what: str = "table") -> Sheet:
    """The table at a path or URL. Raises MissingFile, and UserError (with the row) for an unreadable table: a wrong
    separator, rows of different lengths, a duplicate column, no rows."""
    data = read_user_file(path, what, "CSV, TSV or parquet")
    plain = path.lower().removesuffix(".gz")
    if plain != path.lower():
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as e:
            raise UserError(f"the {what} cannot be decompressed", file=path, found=str(e), expected="gzip") from e
    if plain.endswith(".parquet"):
        sheet = _of_parquet(path, data, what)
    else:
        sheet = _of_text(path, data, what, separator_of(path))
    if sheet.table.num_rows == 0:
        raise UserError(f"the {what} has no rows", file=path, found="a header only", expected="at least one row")
    return sheet


def _of_text(path: str, data: bytes, what: str, separator: str) -> Sheet:
    from pyarrow import csv as reader

    text = decode_text(path, data, what)
    if "\n" not in text and "\r" in text:
        text = text.replace("\r", "\n")
        data = text.encode()
    rows = records(path, text, separator)
    line, header = next(rows, (1, []))
    check_header(path, line, header, separator, what)
    check_comment(path, text, line, header, separator)
    if next(rows, None) is None:
        raise UserError(f"the {what} has no rows", file=path, found="a header only", expected="at least one row")
    above, names = line + sum(cell.count("\n") for cell in header), [str(k) for k in range(len(header))]
    whole = min(len(data) + 1, (1 << 31) - 1)  # a line of 15,000 genes is long
    read = reader.ReadOptions(column_names=names, skip_rows=above, block_size=whole)
    parse = reader.ParseOptions(delimiter=separator, newlines_in_values=True)
    convert = reader.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
    try:
        table = reader.read_csv(io.BytesIO(data), read, parse, convert)
    except (pa.ArrowException, OSError) as e:
        check_lengths(path, text, separator)
        raise UserError(f"the {what} cannot be read", file=path, found=str(e)[:200], expected="CSV or TSV") from e
    lines: Sequence[int] = range(above + 1, above + 1 + table.num_rows)
    if text.count("\n") + (not text.endswith("\n")) != above + table.num_rows:  # blank lines, or breaks inside cells
        lines = [number for number, _ in records(path, text, separator)][1:]
    return Sheet(path, table.rename_columns([name.strip() for name in header]), lines)


def _of_parquet(path: str, data: bytes, what: str) -> Sheet:
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(io.BytesIO(data))
    except (pa.ArrowException, OSError, ValueError) as e:
        raise UserError(f"the {what} cannot be read", file=path, found=str(e)[:200], expected="parquet") from e
    names = [str(name).strip() for name in table.column_names]
    check_once(path, None, names)
    return Sheet(path, table.rename_columns(names), range(table.num_rows))


def _numbers(column: Any) -> Floats:
    """The cells as numbers, NaN for others. Text counts in plain decimal notation only: not 1_000, 0x10 or 1,5."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind):
        return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), np.float64)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        import pyarrow.compute as pc

        texts = pc.utf8_trim_whitespace(column.cast(pa.string()))
        try:
            return np.asarray(texts.cast(pa.float64()).to_numpy(), np.float64)
        except pa.ArrowInvalid:
            return np.array([plain_number(text or "") for text in texts.to_pylist()], np.float64)
    return np.full(len(column), math.nan)


def _is_text(cell: Any) -> bool:
    try:
        return not isinstance(cell, list | dict) and (not isinstance(cell, bytes) or bool(cell.decode() or True))
    except UnicodeDecodeError:
        return False
