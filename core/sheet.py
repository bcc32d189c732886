"""Tables as people have them: CSV, TSV (also .gz) or parquet, with every fault named by row and column.

All cells of a CSV are text, whatever they look like: 007 stays 007, and 0x10 is no number. Comment lines (#) on top are
skipped, blank lines too; rows keep the numbers of their lines. Not here: which columns there must be.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from core.errors import UserError
from core.user_files import decoded, read_user_file

Floats = npt.NDArray[np.float64]
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
WITH_TABS = (".tsv", ".tab", ".txt")
SHOWN = 8


@dataclass(frozen=True)
class Sheet:
    """The columns by name, stripped of blanks around it; `lines` `[N]` are the line of each row in a CSV, or the rows
    of a parquet table from 0."""

    file: str
    table: pa.Table
    lines: Sequence[int]

    @property
    def names(self) -> list[str]:
        return list(self.table.column_names)

    def need(self, *names: str) -> None:
        """UserError for the first column that is not there."""
        for name in names:
            if name not in self.names:
                found = self.names[:SHOWN]
                raise UserError("the table has no such column", file=self.file, key=name, found=found, expected=name)

    def only(self, rows: Sequence[int]) -> Sheet:
        """Some of the rows."""
        return Sheet(self.file, self.table.take(list(rows)), [self.lines[i] for i in rows])

    def texts(self, name: str, may_be_empty: bool = False) -> list[str]:
        """The cells `[N]` as text without blanks around them. UserError for an empty one, and for lists and bytes."""
        import pyarrow.compute as pc

        try:
            cells = pc.utf8_trim_whitespace(pc.fill_null(self.table[name].cast(pa.string()), "")).to_pylist()
        except (pa.ArrowException, UnicodeDecodeError) as e:
            row = next((i for i, cell in enumerate(self.table[name].to_pylist()) if not _is_text(cell)), 0)
            raise self.refused("not text", row, name, "text in UTF-8, or numbers") from e
        if not may_be_empty and "" in cells:
            raise self.refused("an empty cell", cells.index(""), name, "a value")
        return [str(cell) for cell in cells]

    def numbers(self, name: str, message: str = "not a number", expected: str = "a number") -> Floats:
        """The cells `[N]` as numbers. UserError for the first that is not a finite one."""
        values = _numbers(self.table[name])
        if (bad := np.flatnonzero(~np.isfinite(values))).size:
            cell = self.table[name][int(bad[0])].as_py()
            comma = isinstance(cell, str) and cell.count(",") == 1 and bool(_finite(cell.replace(",", ".")))
            hint = " with a decimal point" if comma else ""
            raise self.refused(message, int(bad[0]), name, f"{expected}{hint}")
        return values

    def refused(self, message: str, i: int, name: str, expected: str) -> UserError:
        """The error for a cell, which it shows."""
        cell = self.table[name][i].as_py()
        empty = cell is None or (isinstance(cell, str) and not cell.strip())
        found = "an empty cell" if empty else cell if isinstance(cell, int | float) else str(cell)[:80]
        return UserError(message, file=self.file, row=self.lines[i], key=name, found=found, expected=expected)


def read_sheet(path: str, what: str = "table") -> Sheet:
    """The table at a path or URL. MissingFile; UserError for what cannot be read as one, naming the row: another
    separator, a row of another length, a column twice, no rows."""
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
        raise UserError(f"the {what} has no rows", file=path, found="a header only", expected="one row or more")
    return sheet


def separator_of(path: str) -> str:
    """Tabs or commas, by the file's name."""
    return "\t" if path.lower().removesuffix(".gz").endswith(WITH_TABS) else ","


def records(path: str, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of every row of a CSV, the header first; comment lines on top and blank lines are skipped."""
    lines, skipped = _numbered(text), 0
    for line in lines:
        if line.strip() and not line.startswith("#"):
            break
        skipped += 1
    else:
        return
    reader, number = csv.reader(_with_first(line, lines), delimiter=separator, strict=True), 0
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            message = "not valid CSV: is a quotation mark open?"
            raise UserError(message, file=path, row=skipped + number, found=str(e), expected="rows of cells") from e
        if cells:
            yield skipped + number, cells


def _of_text(path: str, data: bytes, what: str, separator: str) -> Sheet:
    from pyarrow import csv as reader

    text = decoded(path, data, what)
    if "\n" not in text and "\r" in text:
        text = text.replace("\r", "\n")
        data = text.encode()
    rows = records(path, text, separator)
    line, header = next(rows, (1, []))
    check_header(path, line, header, separator, what)
    _no_header_behind_a_mark(path, text, line, header, separator)
    if next(rows, None) is None:
        raise UserError(f"the {what} has no rows", file=path, found="a header only", expected="one row or more")
    above, names = line + sum(cell.count("\n") for cell in header), [str(k) for k in range(len(header))]
    whole = min(len(data) + 1, (1 << 31) - 1)  # a line of 15,000 genes is long
    read = reader.ReadOptions(column_names=names, skip_rows=above, block_size=whole)
    parse = reader.ParseOptions(delimiter=separator, newlines_in_values=True)
    convert = reader.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
    try:
        table = reader.read_csv(io.BytesIO(data), read, parse, convert)
    except (pa.ArrowException, OSError) as e:
        _check_lengths(path, text, separator)
        raise UserError(f"the {what} cannot be read", file=path, found=str(e)[:200], expected="CSV or TSV") from e
    lines: Sequence[int] = range(above + 1, above + 1 + table.num_rows)
    if text.count("\n") + (not text.endswith("\n")) != above + table.num_rows:  # blank lines, or breaks inside of cells
        lines = [number for number, _ in records(path, text, separator)][1:]
    return Sheet(path, table.rename_columns([name.strip() for name in header]), lines)


def _of_parquet(path: str, data: bytes, what: str) -> Sheet:
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(io.BytesIO(data))
    except (pa.ArrowException, OSError, ValueError) as e:
        raise UserError(f"the {what} cannot be read", file=path, found=str(e)[:200], expected="parquet") from e
    names = [str(name).strip() for name in table.column_names]
    _once(path, None, names)
    return Sheet(path, table.rename_columns(names), range(table.num_rows))


def check_header(path: str, line: int, header: Sequence[str], separator: str, what: str = "table") -> None:
    """UserError for an empty file, for one column where there should be several, and for a column that is there twice,
    of which one would silently win."""
    if not header:
        raise UserError(f"the {what} is empty", file=path, expected="a header and rows")
    if len(header) == 1:
        others = [name for mark, name in SEPARATORS.items() if mark != separator and mark in header[0]]
        hint = f"wrong separator? it looks like a {others[0]}" if others else "wrong separator?"
        expected = f"columns separated by a {SEPARATORS[separator]}: .tsv and .txt are read with tabs, others by commas"
        message = f"the {what} has one column only: {hint}"
        raise UserError(message, file=path, row=line, found=header[0][:80], expected=expected)
    _once(path, line, [name.strip() for name in header])


def _once(path: str, line: int | None, names: Sequence[str]) -> None:
    first: dict[str, int] = {}
    for k, name in enumerate(names):
        if first.setdefault(name, k) != k:
            found = f"columns {first[name] + 1} and {k + 1}"
            key = name or "(no name)"
            raise UserError("a column is there twice", file=path, row=line, key=key, found=found, expected="once")


def _no_header_behind_a_mark(path: str, text: str, line: int, header: Sequence[str], separator: str) -> None:
    """UserError where the comment right above the columns may be their header: taken for a comment, it would cost the
    first row."""
    above = text.split("\n", line - 1)[line - 2] if line > 1 else ""
    if above.count(separator) + 1 == len(header) and not _is_json(above[1:]):
        message = "is this comment the header? Remove its # if it is, else put an empty line below it"
        expected = f"a header, and not {separator.join(header)[:80]}"
        raise UserError(message, file=path, row=line - 1, found=above.strip()[:80], expected=expected)


def _check_lengths(path: str, text: str, separator: str) -> None:
    """UserError for the first row that has another number of cells than the header, and why that may be."""
    rows = records(path, text, separator)
    wanted, second = len(next(rows)[1]), True
    for line, cells in rows:
        if len(cells) != wanted:
            message = "a row has another number of cells than the header"
            if len(cells) == wanted + 1 and not cells[-1].strip():
                message = "a row ends with a separator that the header lacks: remove it"
            elif len(cells) == wanted + 1 and second:
                message = "the header lacks the name of the first column, as R writes it: use col.names=NA in R"
            elif cells == [cells[0]] and not cells[0].strip():
                message = "a line of blanks: remove it"
            found, expected = f"{len(cells)} cells", f"{wanted}, as in the header"
            raise UserError(message, file=path, row=line, found=found, expected=expected)
        second = False


def _numbered(text: str) -> Iterator[str]:
    """Lines with their ends."""
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        yield text[start:end]
        start = end


def _with_first(first: str, others: Iterator[str]) -> Iterator[str]:
    yield first
    yield from others


def _numbers(column: Any) -> Floats:
    """NaN for what is no number; of texts only plain decimal ones are: 1_000, 0x10 and 1,5 are not."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind):
        return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), np.float64)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        import pyarrow.compute as pc

        texts = pc.utf8_trim_whitespace(column.cast(pa.string()))
        try:
            return np.asarray(texts.cast(pa.float64()).to_numpy(), np.float64)
        except pa.ArrowInvalid:
            return np.array([_finite(text) for text in texts.to_pylist()], np.float64)
    return np.full(len(column), math.nan)


def _finite(text: str | None) -> float | None:
    """None for what is no finite number."""
    try:
        value = math.nan if text is None else pa.scalar(text.strip()).cast(pa.float64()).as_py()
    except pa.ArrowInvalid:
        return None
    return value if math.isfinite(value) else None


def _is_text(cell: Any) -> bool:
    try:
        return not isinstance(cell, list | dict) and (not isinstance(cell, bytes) or bool(cell.decode() or True))
    except UnicodeDecodeError:
        return False


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
