"""Files from streams: whole or not at all, on a disk and in a bucket."""

from __future__ import annotations

import gc
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from oct.transfer.whole_file import check_content, write_pieces
from pathray.errors import UnreadableUnit
from pathray.store.storage import StorageError
from tests.builders.gcs import GcsServer, serve_gcs


@pytest.fixture
def gcs(monkeypatch: pytest.MonkeyPatch) -> Iterator[GcsServer]:
    with serve_gcs(monkeypatch) as server:
        yield server


def pieces(count: int, fails: bool = False, size: int = 1 << 20) -> Iterator[bytes]:
    for number in range(count):
        yield bytes([number]) * size
    if fails:
        raise UnreadableUnit("crc", "a")


@pytest.mark.parametrize("count", [0, 1, 8, 9, 20])
def test_a_stream_becomes_an_object(gcs: GcsServer, count: int) -> None:
    """Below, at and above the size of an upload's part."""
    state = write_pieces("gs://scans/o/a.dcm", pieces(count))
    assert gcs.get("o/a.dcm") == b"".join(pieces(count)) and state.startswith(f"{count << 20}:")


@pytest.mark.parametrize("count", [1, 8, 20])
def test_a_stream_that_fails_leaves_no_object(gcs: GcsServer, count: int) -> None:
    """Neither at the end of a block nor when the file object is collected."""
    with pytest.raises(UnreadableUnit, match="crc"):
        write_pieces("gs://scans/o/a.dcm", pieces(count, fails=True))
    gc.collect()
    assert gcs.names() == [] and gcs.written == []


@pytest.mark.parametrize("count", [1, 20])
def test_an_older_file_stays_when_its_successor_fails(gcs: GcsServer, tmp_path: Path, count: int) -> None:
    for path in ("gs://scans/a.dcm", str(tmp_path / "new" / "a.dcm")):
        write_pieces(path, iter([b"old"]))
        with pytest.raises(UnreadableUnit):
            write_pieces(path, pieces(count, fails=True))
    assert gcs.get("a.dcm") == b"old" == (tmp_path / "new" / "a.dcm").read_bytes()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.dcm"]


def test_an_object_that_is_not_what_was_sent_is_an_error(gcs: GcsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    real = gcs.storage.create_file

    def alters(bucket: str, name: str, content: bytes, about: dict[str, str], *more: object) -> None:
        real(bucket, name, content, {**about, "md5Hash": "AAAAAAAAAAAAAAAAAAAAAA=="}, *more)

    monkeypatch.setattr(gcs.storage, "create_file", alters)
    with pytest.raises(StorageError, match="instead of") as caught:
        write_pieces("gs://scans/a.dcm", iter([b"new"]))
    assert caught.value.passing


def test_a_disk_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"cannot write.*file/a\.dcm"):
        write_pieces(f"{tmp_path}/file/a.dcm", iter([b"new"]))


def test_content_is_compared_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oct.transfer.whole_file.BLOCK_BYTES", 7)
    content = bytes(range(100))
    path = tmp_path / "a"
    path.write_bytes(content)
    crc = zlib.crc32(content)
    assert check_content(str(path), 100, crc) == ""
    assert check_content(str(path), 99, crc) == "100 bytes, expected 99"
    assert check_content(str(path), 100, crc ^ 1) == f"crc {crc:08x}, expected {crc ^ 1:08x}"
    assert check_content(str(tmp_path / "b"), 100, crc) == "missing"
