"""Reads and writes features as parquet tables: one row per image or tile, with its other columns.

Column ``features`` is a fixed-size list of float16 or float32. The file's metadata holds the fingerprint, the
provenance and the missing images. Not here: bags in H5 (pathray.features.bags).
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pathray.errors import UserError
from pathray.features.publish import clear_errors, replacing
from pathray.store.storage import Storage, write_atomic

SCHEMA_VERSION = 1
FEATURES = "features"
ROWS_AT_A_TIME = 1 << 14


@dataclass(frozen=True)
class FeatureTable:
    """`features` ``[N, D]``, all other columns by name, and the metadata written with them."""

    features: npt.NDArray[Any]
    columns: dict[str, list[Any]]
    meta: dict[str, Any]


def feature_column(features: npt.NDArray[Any]) -> pa.Array:
    """``[N, D]`` as an Arrow column of fixed-size lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(features).ravel()), features.shape[1])


def feature_type(dim: int, dtype: str) -> pa.DataType:
    return pa.list_(pa.from_numpy_dtype(np.dtype(dtype)), dim)


def write_table(path: str, table: pa.Table, meta: Mapping[str, Any]) -> None:
    """Publish a small table, completely or not at all. Equal tables give equal bytes."""
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(_pack_meta(meta)), buffer, compression="zstd")
    write_atomic(path, buffer.getvalue())


def merge_tables(parts: Sequence[str], path: str, meta: Mapping[str, Any]) -> int:
    """Concatenate tables of equal schema, one in memory at a time; returns the number of rows."""
    rows = 0
    with replacing(path) as partial:
        writer: pq.ParquetWriter | None = None
        for part in parts:
            table = _read(part)
            if writer is None:
                writer = pq.ParquetWriter(partial, table.schema.with_metadata(_pack_meta(meta)), compression="zstd")
            with clear_errors(path):
                writer.write_table(table.replace_schema_metadata(_pack_meta(meta)))
            rows += table.num_rows
        assert writer is not None, "nothing to merge"
        with clear_errors(path):
            writer.close()
    return rows


def read_table(path: str) -> FeatureTable:
    """Read a feature table. Raises MissingFile, and UserError if it is not a feature table or too new."""
    table = _read(path)
    column = table[FEATURES].combine_chunks()
    dim = column.type.list_size
    flat = column.flatten().to_numpy(zero_copy_only=False)
    columns = {name: table[name].to_pylist() for name in table.column_names if name != FEATURES}
    return FeatureTable(flat.reshape(-1, dim), columns, _unpack_meta(table.schema, path))


def read_meta(path: str) -> dict[str, Any] | None:
    """The metadata of a table; None if it cannot be read. Reads no rows."""
    folder, _, name = path.rpartition("/")
    store = Storage.of(folder or ".")
    try:
        with store.open(name) as file:
            return _unpack_meta(pq.read_schema(file), path)
    except (UserError, pa.ArrowInvalid, OSError):
        return None


def bag_to_parquet(path: str) -> str:
    """Write the bag at `path` (an .h5) as a table with columns x, y, features next to it; returns the table's path."""
    from pathray.features.bags import open_h5

    target = path.removesuffix(".h5") + ".parquet"
    with open_h5(path) as bag, replacing(target) as partial:
        features, coords = bag["features"], bag["coords"]
        schema = pa.schema(
            [("x", pa.int64()), ("y", pa.int64()), (FEATURES, feature_type(features.shape[1], features.dtype.str))],
            metadata=_pack_meta(
                {"fingerprint": bag.attrs["fingerprint"], "provenance": json.loads(bag.attrs["provenance"])}
            ),
        )
        with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
            for start in range(0, len(coords), ROWS_AT_A_TIME):
                at = coords[start : start + ROWS_AT_A_TIME]
                values = feature_column(features[start : start + ROWS_AT_A_TIME])
                columns = [pa.array(at[:, 0]), pa.array(at[:, 1]), values]
                with clear_errors(target):
                    writer.write_table(pa.table(columns, schema=schema))
    return target


def _read(path: str) -> pa.Table:
    folder, _, name = path.rpartition("/")
    data = Storage.of(folder or ".").read_bytes(name)
    try:
        table = pq.read_table(io.BytesIO(data))
    except pa.ArrowInvalid as e:
        raise UserError("not a parquet file, or damaged", file=path, found=str(e)[:200]) from e
    if FEATURES not in table.column_names or not pa.types.is_fixed_size_list(table.schema.field(FEATURES).type):
        raise UserError("not a feature table", file=path, found=table.column_names, expected=FEATURES)
    _unpack_meta(table.schema, path)
    return table


def _pack_meta(meta: Mapping[str, Any]) -> dict[str, str]:
    text = json.dumps({"schema_version": SCHEMA_VERSION, **meta}, sort_keys=True, allow_nan=False)
    return {"pathray": text}


def _unpack_meta(schema: pa.Schema, path: str) -> dict[str, Any]:
    text = (schema.metadata or {}).get(b"pathray")
    if text is None:
        raise UserError("this table was not written by an extraction", file=path)
    meta: dict[str, Any] = json.loads(text)
    if meta["schema_version"] > SCHEMA_VERSION:
        found, expected = meta["schema_version"], f"at most {SCHEMA_VERSION}"
        raise UserError("the table was written by a newer version", file=path, found=found, expected=expected)
    return meta
