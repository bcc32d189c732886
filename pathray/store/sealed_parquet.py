"""Parquet files with checksums of their contents, so that a flipped bit is an error instead of a wrong value.

The seal is in the footer's key-value metadata: a checksum of every column of every row group, the schema and the other
metadata, sealed as a record (pathray.store.records). Older files have no seal and are read without checks. Not here:
the tables' meaning.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pathray.errors import UserError
from pathray.store.records import add_seal, check_seal, parse_record

SEAL = "pathray_seal"
KEYS = frozenset(("schema", "meta", "rows", "groups"))
ROWS_PER_GROUP = 1 << 16
OWN = (SEAL, "ARROW:schema", "pandas")


class SealedWriter:
    """Like `pyarrow.parquet.ParquetWriter` with a `schema` and its metadata; every `write` makes one row group."""

    def __init__(self, sink: Any, schema: pa.Schema, **options: Any) -> None:
        self.schema = schema
        self._writer = pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True, **options)
        self._groups: list[list[int]] = []
        self._rows = 0

    def write(self, table: pa.Table) -> None:
        """Write one row group of at least one row. `table` must have the schema's columns."""
        assert table.num_rows > 0
        self._writer.write_table(table, row_group_size=table.num_rows)
        self._groups.append([_checksum(table.column(name)) for name in self.schema.names])
        self._rows += table.num_rows

    def close(self) -> None:
        if self._writer.is_open:
            record = {"schema": _form(self.schema), "meta": _meta(self.schema.metadata), "rows": self._rows}
            seal = json.dumps(add_seal({**record, "groups": self._groups}), separators=(",", ":"))
            self._writer.add_key_value_metadata({SEAL: seal})
            self._writer.close()

    def __enter__(self) -> SealedWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._writer.close()


class SealedFile:
    """An open parquet file, sealed or from before seals. `where` names it in errors.

    Raises UserError, calling the file `what`, if it is not parquet or its schema or metadata changed; `read_group`
    raises it if rows changed.
    """

    def __init__(self, source: Any, where: str, what: str, dictionaries: Sequence[str] = ()) -> None:
        self.where, self.what = where, what
        with self._translate_errors():
            self.file = pq.ParquetFile(
                source, memory_map=True, read_dictionary=list(dictionaries), page_checksum_verification=True
            )
            self.schema: pa.Schema = self.file.schema_arrow
            self.rows, self.groups = self.file.metadata.num_rows, self.file.num_row_groups
            self.meta = _meta(self.file.metadata.metadata)
            self._sums = self._parse_seal((self.file.metadata.metadata or {}).get(SEAL.encode()))

    def read_group(self, group: int, columns: Sequence[str] | None = None) -> pa.Table:
        with self._translate_errors():
            table = self.file.read_row_group(group, columns=list(columns) if columns is not None else None)
            table.validate(full=True)
            for name in table.column_names if self._sums else ():
                expected = self._sums[group][self.schema.names.index(name)]
                if (found := _checksum(table.column(name))) != expected:
                    raise UserError(
                        f"the {self.what} is damaged", file=self.where, key=name, found=found, expected=expected
                    )
        return table

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The row groups in order."""
        for group in range(self.groups):
            yield self.read_group(group, columns)

    def close(self) -> None:
        self.file.close(force=True)

    def _parse_seal(self, seal: bytes | None) -> list[list[int]]:
        if seal is None:
            return []
        record = parse_record(seal, self.where, self.what)
        check_seal(record, self.where, self.what, KEYS)
        plain = {"schema": _form(self.schema), "meta": self.meta, "rows": self.rows}
        for key, found in plain.items():
            if record[key] != found:
                raise UserError(f"the {self.what} is damaged", file=self.where, key=key, expected=record[key])
        groups: list[list[int]] = record["groups"]
        if len(groups) != self.groups:
            found, expected = self.groups, f"{len(groups)} row groups"
            raise UserError(f"the {self.what} is damaged", file=self.where, found=found, expected=expected)
        return groups

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Turn what the parquet library raises for damage into a UserError that names the file."""
        try:
            yield
        except UserError:
            raise
        except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, MemoryError) as e:
            found, expected = str(e).strip()[:200], "parquet"
            raise UserError(f"invalid or damaged {self.what}", file=self.where, found=found, expected=expected) from e


def to_bytes(table: pa.Table) -> bytes:
    """A table with its schema's metadata as a sealed parquet file. Equal tables give equal bytes."""
    buffer = io.BytesIO()
    with SealedWriter(buffer, table.schema) as writer:
        for start in range(0, table.num_rows, ROWS_PER_GROUP):
            writer.write(table.slice(start, ROWS_PER_GROUP))
    return buffer.getvalue()


def of_bytes(data: bytes, where: str, what: str) -> pa.Table:
    """The table with the file's metadata. UserError naming `where` if it is damaged or not a `what`."""
    file = SealedFile(io.BytesIO(data), where, what)
    tables = list(file.tables())
    return pa.concat_tables(tables) if tables else file.schema.empty_table()


def _checksum(column: pa.ChunkedArray) -> int:
    """CRC-32 of a column's values, independent of encoding, chunks and slices."""
    array = column.combine_chunks()
    array = pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) and array.num_chunks else array
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    kind = array.type
    crc = zlib.crc32(np.packbits(array.is_valid().to_numpy(zero_copy_only=False)).tobytes())
    if pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_large_string(kind):
        plain = array.cast(pa.large_binary()).fill_null(b"")
        lengths = pc.binary_length(plain).to_numpy()
        _, offsets, data = plain.buffers()
        span = np.frombuffer(offsets, np.int64)[plain.offset : plain.offset + len(plain) + 1]
        crc = zlib.crc32(lengths.tobytes(), crc)
        return zlib.crc32(memoryview(data)[span[0] : span[-1]], crc) if data is not None else crc
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        zero = pa.scalar(False if pa.types.is_boolean(kind) else 0, kind)
        return zlib.crc32(array.fill_null(zero).to_numpy(zero_copy_only=False).tobytes(), crc)
    return zlib.crc32(repr(array.to_pylist()).encode(), crc)


def _form(schema: pa.Schema) -> list[list[str]]:
    return [[field.name, str(_plain(field.type)).replace("<element: ", "<item: ")] for field in schema]  # of lists


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _meta(metadata: Mapping[bytes, bytes] | None) -> dict[str, str]:
    """The callers' metadata; bytes that are not UTF-8 are escaped."""
    plain = {
        k.decode(errors="backslashreplace"): v.decode(errors="backslashreplace") for k, v in (metadata or {}).items()
    }
    return {key: value for key, value in plain.items() if key not in OWN}
