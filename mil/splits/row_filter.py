"""Chooses rows of a table by an expression such as `site == "B" and age >= 60`, without evaluating any code.

    column == "text"   column != 3   40 <= column < 60   column in ["a", "b"]   column not in [1, 2]
    and   or   not   ( )

A column whose name is not a word is written `` `tumor size` `` or col["tumor size"]. Compared with a number, cells must
be numbers; compared with a text, they are texts; < and > take numbers, or dates such as "2020-01-31". Not here: who
tests (mil.splits.making).
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pathray.errors import UserError
from pathray.files.sheet import Sheet

Mask = npt.NDArray[np.bool_]
LONGEST = 2000  # characters
QUOTED = re.compile(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|`([^`]*)`")
DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
FORMS = 'comparisons such as site == "B", 40 <= age < 60, stage in ["I", "II"]; and, or, not, ( )'
SAME: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {ast.Eq: operator.eq, ast.NotEq: operator.ne}
ORDER: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip
MIRRORED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE, ast.Eq: ast.Eq, ast.NotEq: ast.NotEq,
}  # fmt: skip


def rows_where(sheet: Sheet, expression: str, key: str = "splits.filter") -> Mask:
    """The rows `[N]` of the table for which the expression holds.

    UserError, naming the position, for anything but the forms above and for a column that the table lacks; naming the
    row, for a cell that cannot be compared; and if all rows or none are chosen.
    """
    expression = re.sub(r"\s", " ", expression).strip()
    text, names = _name_backticks(expression)
    try:
        if len(expression) > LONGEST:
            raise ValueError(f"longer than {LONGEST} characters")
        tree = ast.parse(text, mode="eval")
        chosen = _Filter(sheet, expression, text.encode(), key, names).mask(tree.body)
    except UserError:
        raise
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as e:
        at = f"position {e.offset}: " if isinstance(e, SyntaxError) and e.offset else ""
        found = f"{at}{getattr(e, 'msg', None) or e or 'too deeply nested'} in {expression[:80]}"
        raise UserError("the filter cannot be read", key=key, found=found, expected=FORMS) from e
    if chosen.all() or not chosen.any():
        message = f"the filter chooses {'all rows' if chosen.all() else 'no row'}"
        raise UserError(message, file=sheet.file, key=key, found=expression[:80], expected="some rows, and not all")
    return chosen


def _name_backticks(expression: str) -> tuple[str, dict[str, str]]:
    """The expression with a word of the same length for each column in backticks, and the columns by these words."""
    names: dict[str, str] = {}

    def name(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0]
        word = f"_{len(names)}".ljust(len(match[0]), "_")
        names[word] = match[1]
        return word

    return QUOTED.sub(name, expression), names


@dataclass(frozen=True)
class _Filter:
    """Turns the syntax tree of an expression into a mask. Nothing but the nodes named here is looked at."""

    sheet: Sheet
    expression: str
    parsed: bytes  # with words for columns in backticks
    key: str
    names: dict[str, str]

    def mask(self, node: ast.expr) -> Mask:
        if isinstance(node, ast.BoolOp):
            join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
            return np.asarray(join.reduce([self.mask(value) for value in node.values]), np.bool_)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self.mask(node.operand)
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            masks = [
                self._compare(node, left, op, right)
                for left, op, right in zip(sides, node.ops, sides[1:], strict=False)
            ]
            return np.asarray(np.logical_and.reduce(masks), np.bool_)
        raise self._refuse(node, "a comparison")

    def _compare(self, whole: ast.expr, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Mask:
        if isinstance(op, ast.In | ast.NotIn):
            chosen = self._is_in(self._column(left), right)
            return chosen if isinstance(op, ast.In) else ~chosen
        kind = type(op)
        if kind not in MIRRORED:
            raise self._refuse(whole, "== != < <= > >= in, not in")
        if isinstance(left, ast.Constant | ast.UnaryOp):
            left, kind, right = right, MIRRORED[kind], left
        name, value = self._column(left), self._literal(right)
        if kind in SAME:
            return np.asarray(SAME[kind](self._cells(name, value), value), np.bool_)
        if isinstance(value, str):
            self._check_dates(name, value, right)
        return np.asarray(ORDER[kind](self._cells(name, value), value), np.bool_)

    def _is_in(self, name: str, node: ast.expr) -> Mask:
        if not isinstance(node, ast.List | ast.Tuple | ast.Set) or not node.elts:
            raise self._refuse(node, 'a list such as ["a", "b"]')
        values = [self._literal(one) for one in node.elts]
        if len({isinstance(value, str) for value in values}) > 1:
            raise self._refuse(node, "texts alone, or numbers alone")
        return np.isin(self._cells(name, values[0]), values)

    def _cells(self, name: str, value: str | float) -> npt.NDArray[Any]:
        """The column as texts or as numbers, like the `value` that it is compared with."""
        if isinstance(value, str):
            return np.array(self.sheet.texts(name, may_be_empty=True), np.str_)
        return self.sheet.numbers(name, "the filter compares with a number", "a number")

    def _check_dates(self, name: str, value: str, node: ast.expr) -> None:
        if not DATE.fullmatch(value):
            raise self._refuse(node, 'a number, or a date such as "2020-01-31", after < and >')
        for i, cell in enumerate(self.sheet.texts(name, may_be_empty=True)):
            if not DATE.fullmatch(cell):
                raise self.sheet.cell_error("the filter compares with a date", i, name, "a date such as 2020-01-31")

    def _column(self, node: ast.expr) -> str:
        if isinstance(node, ast.Name):
            name = self.names.get(node.id, node.id)
        elif _is_col(node):
            name = node.slice.value  # type: ignore[attr-defined]
        else:
            raise self._refuse(node, "the name of a column")
        if name not in self.sheet.names:
            found, at = f"{name} at position {self._position(node.col_offset) + 1}", self.sheet.names
            message = "the filter names a column that the table lacks"
            raise UserError(message, file=self.sheet.file, key=self.key, found=found, expected=_listed(at))
        return str(name)

    def _literal(self, node: ast.expr) -> str | float:
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            value = self._literal(node.operand)
            if not isinstance(value, str):
                return -value
        elif isinstance(node, ast.Constant) and type(node.value) in (str, int, float):
            return node.value if isinstance(node.value, str) else float(node.value)  # type: ignore[arg-type]
        raise self._refuse(node, "a number, or a text in quotation marks")

    def _position(self, offset: int) -> int:
        """The character at a byte of what was parsed, from 0."""
        return len(self.parsed[:offset].decode(errors="replace"))

    def _refuse(self, node: ast.expr, expected: str) -> UserError:
        start, end = self._position(node.col_offset), self._position(node.end_col_offset or len(self.parsed))
        found = f"{self.expression[start:end][:80]} at position {start + 1}"
        return UserError("not allowed in a filter", key=self.key, found=found, expected=expected)


def _is_col(node: ast.expr) -> bool:
    """Whether it is col["name"]."""
    named = isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "col"
    return named and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str)  # type: ignore[attr-defined]


def _listed(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (" …" if len(names) > most else "")
