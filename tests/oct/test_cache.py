"""Local copies of DICOM files: read once, whole, bounded, and never in the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from oct import cache
from oct.cache import VolumeCache
from pathray.errors import MissingFile, UnreachableUnit, UserError

SIZE = 1000


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were read from the storage, in order; each is SIZE bytes of its last letter."""
    found: list[str] = []

    def read(path: str) -> bytes:
        found.append(path)
        return path[-1].encode() * SIZE

    monkeypatch.setattr(cache, "read_source", read)
    return found


def test_a_file_is_read_from_the_storage_once(reads: list[str], tmp_path: Path) -> None:
    copies = VolumeCache.of(str(tmp_path / "copies"), 1)
    assert [copies.read("gs://b/a", f"{SIZE}:1") for _ in range(3)] == [b"a" * SIZE] * 3
    assert VolumeCache.of(str(tmp_path / "copies"), 1).read("gs://b/a", f"{SIZE}:1") == b"a" * SIZE
    assert reads == ["gs://b/a"]


def test_a_file_that_has_changed_is_read_again(reads: list[str], tmp_path: Path) -> None:
    copies = VolumeCache.of(str(tmp_path), 1)
    for state in (f"{SIZE}:1", f"{SIZE}:2"):
        copies.read("gs://b/a", state)
    assert reads == ["gs://b/a", "gs://b/a"]


def test_copies_never_take_more_than_the_limit(reads: list[str], tmp_path: Path) -> None:
    copies = VolumeCache(str(tmp_path), limit=3 * SIZE)
    for letter in "abcdefg":
        copies.read(f"gs://b/{letter}", f"{SIZE}:1")
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3 * SIZE


def test_without_a_folder_every_read_goes_to_the_storage(
    reads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(cache.CACHE_ENV, raising=False)
    for _ in range(2):
        VolumeCache.of(None, 1).read("gs://b/a", "1")
    assert len(reads) == 2
    monkeypatch.setenv(cache.CACHE_ENV, str(tmp_path / "named"))
    assert VolumeCache.of(None, 1).folder == str(tmp_path / "named")


def test_a_full_disk_is_no_fault_of_the_volume(
    reads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert VolumeCache.of(str(tmp_path), 1).read("gs://b/a", f"{SIZE}:1") == b"a" * SIZE
    assert list(tmp_path.iterdir()) == [] and reads == ["gs://b/a"]


@pytest.mark.parametrize("error", [MissingFile("no such file", file="a"), UnreachableUnit("a", "503")])
def test_what_the_storage_says_reaches_the_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(path: str) -> bytes:
        raise error

    monkeypatch.setattr(cache, "read_source", fail)
    with pytest.raises(type(error)):
        VolumeCache.of(str(tmp_path), 1).read("gs://b/a", "1")
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_the_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.cache_dir"):
        VolumeCache.of(str(tmp_path / "file"), 1)


def test_a_damaged_copy_is_replaced_from_the_storage(reads: list[str], tmp_path: Path) -> None:
    copies = VolumeCache.of(str(tmp_path), 1)
    copies.read("gs://b/a", f"{SIZE}:1")
    (copy,) = tmp_path.iterdir()
    copy.write_bytes(b"")
    assert copies.read("gs://b/a", f"{SIZE}:1") == b"a" * SIZE and len(reads) == 2
    assert copies.read("gs://b/a", f"{SIZE}:1") == b"a" * SIZE
    assert copies.read("gs://b/a", f"{SIZE}:1") == b"a" * SIZE and len(reads) == 3


def test_a_cache_of_no_bytes_is_none(reads: list[str], tmp_path: Path) -> None:
    VolumeCache.of(str(tmp_path), 0).read("gs://b/a", f"{SIZE}:1")
    assert list(tmp_path.iterdir()) == []
