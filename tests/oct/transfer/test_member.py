"""Members of a ZIP as streams: every method, bounded reads, and every damage."""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import pytest

from oct.transfer import member as module
from oct.transfer.archive import Member, read_directory
from oct.transfer.member import stream_member
from pathray.errors import UnreadableUnit
from pathray.wsi.backends.source import open_source
from tests.builders.oct.zipped import build_deflate64, build_zip, content_of

NAME = "structural_oct/topcon_triton/1/a.dcm"
LARGE = content_of(1, 3_000_000)


def write(folder: Path, data: bytes) -> str:
    (folder / "a.zip").write_bytes(data)
    return str(folder / "a.zip")


def read(path: str, member: Member | None = None) -> bytes:
    member = member or read_directory(path)[0]
    return b"".join(stream_member(open_source(path), member))


@pytest.mark.parametrize("zip64", [False, True])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("content", [b"", b"x", LARGE], ids=["empty", "one byte", "large"])
def test_content_comes_as_zipfile_reads_it(tmp_path: Path, content: bytes, method: int, zip64: bool) -> None:
    data = build_zip([(NAME, content), ("b.dcm", b"other")], method, zip64)
    path = write(tmp_path, data)
    assert read(path) == zipfile.ZipFile(io.BytesIO(data)).read(NAME) == content
    assert read(path, read_directory(path)[1]) == b"other"


def test_deflate64_of_windows_is_inflated(tmp_path: Path) -> None:
    path = write(tmp_path, build_deflate64(NAME, LARGE))
    assert read_directory(path)[0].method == 9 and read(path) == LARGE


def test_deflate64_without_its_library_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, build_deflate64(NAME, LARGE))
    monkeypatch.setitem(sys.modules, "inflate64", None)
    with pytest.raises(UnreadableUnit, match=r"Deflate64 \(9\): needs the package inflate64"):
        read(path)


def test_another_method_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnreadableUnit, match=r"method.*LZMA \(14\)"):
        read(write(tmp_path, build_zip([(NAME, b"x")], zipfile.ZIP_LZMA)))


def test_neither_archive_nor_member_is_ever_whole_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads and pieces are bounded, whatever the member's size: here zeros, of which a read holds a thousandfold."""
    monkeypatch.setattr(module, "READ_BYTES", 10_000)
    monkeypatch.setattr("oct.transfer.inflate.MOST_OUT", 50_000)
    path = write(tmp_path, build_zip([(NAME, bytes(20_000_000) + LARGE)]))
    member, source = read_directory(path)[0], open_source(path)
    asked: list[int] = []

    class Counted:
        size = source.size

        def read_many(self, ranges: list[tuple[int, int]]) -> list[bytes]:
            asked.extend(size for _, size in ranges)
            return source.read_many(ranges)

    sizes = [len(piece) for piece in stream_member(Counted(), member)]  # type: ignore[arg-type]
    assert sum(sizes) == 23_000_000 and max(sizes) <= 50_000 and max(asked) <= 10_000
    assert sum(asked) == member.compressed + 30, "each byte once, and the local header"


def damage(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + bytes([data[at] ^ value]) + data[at + 1 :]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_no_damaged_byte_passes(tmp_path: Path, method: int) -> None:
    data = build_zip([(NAME, content_of(3, 400))], method)
    begin, member = 30 + len(NAME), read_directory(write(tmp_path, data))[0]
    for at in range(begin, begin + member.compressed, 7):
        with pytest.raises(UnreadableUnit, match="crc|deflate|size"):
            read(write(tmp_path, damage(data, at, 0x10)), member)


def test_the_last_piece_waits_for_the_check(tmp_path: Path) -> None:
    data = build_zip([(NAME, content_of(3, 400))], zipfile.ZIP_STORED)
    path = write(tmp_path, damage(data, 200, 1))
    passed: list[bytes] = []
    with pytest.raises(UnreadableUnit, match="crc"):
        passed.extend(stream_member(open_source(path), read_directory(path)[0]))
    assert passed == [], "a writer that closes its file after the last piece would have published it"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"offset": 3}, "header"),
        ({"size": 399}, "more than the 399 bytes"),
        ({"size": 401}, "size"),
        ({"crc": 1}, "crc"),
        ({"flags": 1}, "encrypted"),
        ({"compressed": 100}, "early"),
        ({"compressed": 10**6}, "truncated|deflate"),
    ],
)
def test_a_directory_that_does_not_fit_is_refused(tmp_path: Path, fault: dict[str, int], reason: str) -> None:
    path = write(tmp_path, build_zip([(NAME, content_of(3, 400))]))
    member = read_directory(path)[0]
    with pytest.raises(UnreadableUnit, match=reason):
        read(path, Member(**{**vars(member), **fault}))


def test_what_is_no_archive_is_unreadable(tmp_path: Path) -> None:
    for content in (b"", b"PK", b"no archive" * 100, build_zip([(NAME, LARGE)])[:-40]):
        with pytest.raises(UnreadableUnit, match="archive"):
            read_directory(write(tmp_path, content))
    with pytest.raises(UnreadableUnit, match="missing"):
        read_directory(str(tmp_path / "none.zip"))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 11, 16, 40])
def test_content_is_the_same_however_small_the_reads_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """A read that holds nothing but the end of the stream gives an empty piece, after which the last came twice."""
    monkeypatch.setattr(module, "READ_BYTES", size)
    path = write(tmp_path, build_zip([(NAME, content_of(2, 700))]))
    assert read(path) == content_of(2, 700)
    whole = read_directory(path)[0].compressed
    monkeypatch.setattr(module, "READ_BYTES", max(1, whole - size))
    assert read(path) == content_of(2, 700)
