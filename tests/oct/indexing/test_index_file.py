"""The index as a file: equal rows, equal bytes; what is damaged, foreign or newer is refused; parts of a killed job."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from oct.indexing.index import index_volumes
from oct.indexing.index_file import read_index, write_index
from oct.indexing.index_parts import PART_ROWS, IndexParts
from oct.indexing.manifest import read_manifest
from pathray.errors import MissingFile, UserError
from tests.builders.oct.scans import Scan, both_eyes, index_scans, read_scan, write_scans


def test_an_index_reads_back_as_it_was_written(tmp_path):
    index = index_scans(tmp_path, [*both_eyes("1"), Scan("2", there=False)])
    data = (tmp_path / "oct.parquet").read_bytes()
    again = read_index(index.path)
    assert again.root == str(tmp_path) and again.table.equals(index.table)
    write_index(again)
    assert (tmp_path / "oct.parquet").read_bytes() == data
    assert pq.read_table(index.path)["frames"].to_pylist() == [8, 8, None]  # any reader of parquet opens it


def test_an_index_that_is_not_there_is_named(tmp_path):
    with pytest.raises(MissingFile, match="no index of volumes here"):
        read_index(str(tmp_path / "gone.parquet"))


def test_a_changed_index_is_refused(tmp_path):
    index = index_scans(tmp_path, both_eyes("1"))
    table, meta = pq.read_table(index.path), pq.ParquetFile(index.path).metadata.metadata
    seal = {b"pathray_seal": meta[b"pathray_seal"], b"schema_version": b"1", b"root": str(tmp_path).encode()}
    other = table.set_column(table.column_names.index("person"), "person", pa.array(["1", "2"]))
    pq.write_table(other.replace_schema_metadata(seal), index.path)
    with pytest.raises(UserError, match="damaged"):
        read_index(index.path)


def test_another_table_and_a_newer_index_are_refused(tmp_path):
    path = str(tmp_path / "other.parquet")
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(UserError, match="not an index of volumes"):
        read_index(path)
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({"schema_version": "2", "root": "/"}), path)
    with pytest.raises(UserError, match="newer version"):
        read_index(path)


def test_a_manifest_in_place_of_its_index_is_refused_with_the_job_that_makes_one(tmp_path):
    (tmp_path / "manifest.tsv").write_text("person_id\tfilepath\n1\t/a.dcm\n")
    with pytest.raises(UserError, match=r"not an index of volumes.*manifest\.tsv.*ray_jobs\.index_oct"):
        read_index(str(tmp_path / "manifest.tsv"))


def test_rows_of_a_killed_job_are_kept_and_not_read_again(tmp_path):
    count = PART_ROWS + 3
    manifest = read_manifest(write_scans(tmp_path, [Scan(str(i)) for i in range(count)]))
    output, read = str(tmp_path / "i.parquet"), []

    def reader(path, spacing):
        read.append(path)
        if len(read) == PART_ROWS + 2:
            raise KeyboardInterrupt
        return read_scan(path, spacing)

    parts = IndexParts(output, manifest.root)
    with pytest.raises(KeyboardInterrupt):
        list(parts.keep(index_volumes(manifest, read_header=reader), []))
    known = IndexParts(output, manifest.root).rows()
    assert len(known) == PART_ROWS + 1 and len(parts.names) == 2
    rows = list(parts.keep(index_volumes(manifest, previous=known, read_header=reader), known))
    assert len(read) == count + 1 and [row["person"] for row in rows] == [str(i) for i in range(count)]
    assert len(IndexParts(output, manifest.root).rows()) == count, "what was known is not stored again"
    parts.remove()
    assert IndexParts(output, manifest.root).rows() == [] and not (tmp_path / "i_parts").exists()


def test_a_damaged_part_and_parts_of_another_root_are_left_out(tmp_path, caplog):
    index = index_scans(tmp_path, both_eyes("1"))
    parts = IndexParts(index.path, index.root)
    for row in index.table.to_pylist():
        list(parts.keep([row], []))
    assert [row["person"] for row in IndexParts(index.path, index.root).rows()] == ["1", "1"]
    assert IndexParts(index.path, "/elsewhere").rows() == []
    (tmp_path / "oct_parts/part-00000001.parquet").write_bytes(b"half")
    assert len(IndexParts(index.path, index.root).rows()) == 1
    assert "read again" in caplog.text
