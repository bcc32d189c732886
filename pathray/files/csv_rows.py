"""Parses a user's CSV into rows and checks separators, headers, comments and quotation marks.

Comment lines (#) at the top and blank lines are skipped; rows keep their line numbers. Imports nothing large. Not here:
files as tables of columns (pathray.files.sheet), which columns are required.
"""

from __future__ import annotations

import csv
import json
import math
import re
import unicodedata
from collections.abc import Iterator, Sequence

from pathray.errors import UserError

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
WITH_TABS = (".tsv", ".tab", ".txt")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def separator_of(path: str) -> str:
    """Tab or comma, chosen by the file's name."""
    return "\t" if path.lower().removesuffix(".gz").endswith(WITH_TABS) else ","


def records(path: str, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of every row of a CSV, header first; comment lines at the top and blank lines are skipped."""
    lines, skipped = _split_lines(text), 0
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
            message = "not valid CSV: check for an unclosed quotation mark"
            raise UserError(message, file=path, row=skipped + number, found=str(e), expected="rows of cells") from e
        if cells:
            yield skipped + number, cells


def check_header(path: str, line: int, header: Sequence[str], separator: str, what: str = "table") -> None:
    """UserError for an empty file, a single column where several are expected, and a duplicate column (one of the two
    would silently win)."""
    if not header:
        raise UserError(f"the {what} is empty", file=path, expected="a header and rows")
    if len(header) == 1:
        others = [name for mark, name in SEPARATORS.items() if mark != separator and mark in header[0]]
        hint = f"wrong separator, probably a {others[0]}" if others else "wrong separator"
        expected = f"columns separated by a {SEPARATORS[separator]} (tab in .tsv and .txt files, comma in others)"
        message = f"the {what} has one column only: {hint}"
        raise UserError(message, file=path, row=line, found=header[0][:80], expected=expected)
    check_once(path, line, [name.strip() for name in header])


def check_once(path: str, line: int | None, names: Sequence[str]) -> None:
    first: dict[str, int] = {}
    for k, name in enumerate(names):
        if first.setdefault(name, k) != k:
            found = f"columns {first[name] + 1} and {k + 1}"
            key = name or "(no name)"
            raise UserError("duplicate column", file=path, row=line, key=key, found=found, expected="once")


def check_comment(path: str, text: str, line: int, header: Sequence[str], separator: str) -> None:
    """UserError if the comment right above the header may be the real header: the first row would be lost."""
    above = text.split("\n", line - 1)[line - 2] if line > 1 else ""
    if above.count(separator) + 1 == len(header) and not _is_json(above[1:]):
        message = "this comment may be the header: remove its #, or put an empty line below it if it is not"
        expected = f"a header instead of {separator.join(header)[:80]}"
        raise UserError(message, file=path, row=line - 1, found=above.strip()[:80], expected=expected)


def check_lengths(path: str, text: str, separator: str) -> None:
    """UserError for the first row whose number of cells differs from the header, with the likely cause."""
    rows = records(path, text, separator)
    wanted, second = len(next(rows)[1]), True
    for line, cells in rows:
        if len(cells) != wanted:
            message = "the row has a different number of cells than the header"
            if len(cells) == wanted + 1 and not cells[-1].strip():
                message = "the row ends with a separator, unlike the header: remove it"
            elif len(cells) == wanted + 1 and second:
                message = "the header has no name for the first column, as written by R: use col.names=NA in R"
            elif cells == [cells[0]] and not cells[0].strip():
                message = "the line contains only blanks: remove it"
            found, expected = f"{len(cells)} cells", f"{wanted} cells, as in the header"
            raise UserError(message, file=path, row=line, found=found, expected=expected)
        second = False


def plain_number(text: str) -> float | None:
    """The number in plain decimal notation, or None if it is not one or not finite. 1_000, 0x10 and 1,5 are None."""
    value = float(text) if NUMBER.fullmatch(text.strip()) else math.nan
    return value if math.isfinite(value) else None


def _split_lines(text: str) -> Iterator[str]:
    """The lines, including their line ends."""
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        yield text[start:end]
        start = end


def _with_first(first: str, others: Iterator[str]) -> Iterator[str]:
    yield first
    yield from others


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def spelling(name: str) -> str:
    """A name without differences in case and Unicode composition, to compare spellings.

    >>> spelling("Mu\u0308ller") == spelling("M\u00fcLLER")
    True
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
