"""Reads a user's small files as a whole, or reports what was found instead.

Not here: what the text means (pathray.files.sheet for tables), internal files (pathray.store.storage), slides
(pathray.wsi.backends.source).
"""

from __future__ import annotations

from pathray.errors import MissingFile, UserError
from pathray.store.storage import Storage
from pathray.urls import public

MAGIC = {
    b"PK\x03\x04": "an Excel workbook or a zip archive",
    b"\x1f\x8b": "gzip: its name must end in .gz",
    b"PAR1": "parquet: its name must end in .parquet",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


def read_user_file(path: str, what: str, expected: str) -> bytes:
    """The bytes at a path or URL. Raises MissingFile ("no such `what`"), UserError for a folder or a pipe (reading it
    would block), and StorageError if it cannot be read."""
    folder, slash, name = path.rpartition("/")
    try:
        return Storage.of(folder or slash or ".").read_bytes(name)
    except MissingFile as e:
        raise MissingFile(f"no such {what}", file=public(path), expected=expected) from e
    except UserError as e:
        if e.where.get("found") is None:
            raise
        raise UserError(e.message, file=public(path), found=e.where["found"], expected=expected) from e
    except ValueError as e:  # a zero byte in the name
        raise UserError("invalid path", file=repr(path), found=str(e), expected=expected) from e


def read_user_text(path: str, what: str, expected: str = "CSV in UTF-8") -> str:
    """The text at a path or URL, without a byte-order mark. UserError, naming the row, if it is not UTF-8."""
    return decode_text(path, read_user_file(path, what, expected), what)


def decode_text(path: str, data: bytes, what: str) -> str:
    """UTF-8 data as text. UserError, naming the row and the likely file type, if it is not UTF-8."""
    kind = next((name for magic, name in MAGIC.items() if data.startswith(magic)), None)
    try:
        if kind is not None:
            raise UserError(f"the {what} is not text", file=path, found=kind, expected="text in UTF-8")
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        row, expected = data[: e.start].count(b"\n") + 1, "UTF-8: save it again in that encoding"
        found = f"byte 0x{data[e.start]:02x}"
        raise UserError(f"the {what} is not UTF-8 text", file=path, row=row, found=found, expected=expected) from e
    if (at := text.find("\x00")) >= 0:
        row = text[:at].count("\n") + 1
        raise UserError(f"the {what} is not text", file=path, row=row, found="a zero byte", expected="text in UTF-8")
    return text
