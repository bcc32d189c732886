"""Reads `dataset_index.pkl` safely: `[(zip_path, [names])]` and nothing else.

A pickle is a program. Only the instructions that build lists, tuples, strings and whole numbers are allowed; anything
else in the file (a class, a call) is refused by name before it runs. This uses the Python interpreter of the standard
library with a restricted table of instructions: the C interpreter always has all of them, and allocates as much memory
as a number in the file says.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any

from pathray.errors import UnreachableUnit, UserError
from pathray.urls import public
from pathray.wsi.backends.source import read_source

EXPECTED = "a pickled list of (zip_path, [names]): lists, tuples and strings only"
ALLOWED = (
    *("PROTO", "FRAME", "STOP", "MARK"),
    *("EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("INT", "BININT", "BININT1", "BININT2"),
    *("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET"),
)

Entry = tuple[str, list[str]]


def read_pickle_index(path: str) -> list[Entry]:
    """The entries (zip_path, [member names]) of a `dataset_index.pkl`, in its order. `path` may be a URL.

    MissingFile if there is none; UserError, naming the object, if it holds anything but lists, tuples, strings and
    numbers; UserError, naming the entry, if their structure is another one.
    """
    try:
        data = read_source(path)
    except UnreachableUnit as e:
        raise UserError("the index cannot be read", file=e.path, found=e.detail) from e
    try:
        found = _Restricted(io.BytesIO(data)).load()
    except _Refused as e:
        raise UserError("unsafe pickle refused", file=public(path), found=str(e), expected=EXPECTED) from e
    except Exception as e:  # a damaged pickle can raise anything
        message = "not a pickled index"
        found = f"{type(e).__name__}: {e}"
        raise UserError(message, file=public(path), found=found, expected=EXPECTED) from e
    return _entries(found, public(path))


class _Refused(Exception):
    """A forbidden instruction; its text names the object or instruction."""


_Interpreter: Any = pickle._Unpickler  # type: ignore[attr-defined]  # the Python one, which has no types


class _Restricted(_Interpreter):  # type: ignore[misc]
    dispatch: dict[int, Callable[[Any], None]]

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, fix_imports=False, encoding="utf-8")

    def refuse_lines(self) -> None:
        """GLOBAL and INST: module and name follow as lines."""
        raise _Refused(".".join(self.readline()[:-1].decode("utf-8", "backslashreplace") for _ in range(2)))

    def refuse_stack(self) -> None:
        """STACK_GLOBAL: module and name are on the stack."""
        raise _Refused(".".join(str(part) for part in self.stack[-2:]))

    def find_class(self, module: str, name: str) -> Any:
        raise _Refused(f"{module}.{name}")


def _refusal(name: str) -> Callable[[Any], None]:
    def refuse(self: Any) -> None:
        raise _Refused(f"the pickle instruction {name}")

    return refuse


def _table() -> dict[int, Callable[[Any], None]]:
    """Instruction → its handler: the standard library's if allowed, a refusal for all others."""
    table = {}
    for op in pickletools.opcodes:
        code = ord(op.code)
        allowed = op.name in ALLOWED
        table[code] = pickle._Unpickler.dispatch[code] if allowed else _refusal(op.name)  # type: ignore[attr-defined]
        if op.name in ("GLOBAL", "INST"):
            table[code] = _Restricted.refuse_lines
        elif op.name == "STACK_GLOBAL":
            table[code] = _Restricted.refuse_stack
    return table


_Restricted.dispatch = _table()


def _entries(found: Any, path: str) -> list[Entry]:
    if not isinstance(found, list | tuple):
        raise UserError("the index is not a list", file=path, found=type(found).__name__, expected=EXPECTED)
    entries = []
    for number, entry in enumerate(found):
        if not (isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[0], str)):
            raise UserError("not an entry", file=path, row=number, found=_brief(entry), expected="(zip_path, [names])")
        archive, names = entry
        if not isinstance(names, list | tuple):
            raise UserError("an entry without a list of names", file=path, row=number, key=archive, found=_brief(names))
        for name in names:
            if not isinstance(name, str):
                raise UserError("not a member's name", file=path, row=number, key=archive, found=_brief(name))
        entries.append((archive, list(names)))
    return entries


def _brief(value: Any) -> str:
    """A short description of an invalid value, however deep it is nested."""
    if isinstance(value, list | tuple):
        return f"{type(value).__name__} of {len(value)}"
    return f"{type(value).__name__} {value!r}"[:100]
