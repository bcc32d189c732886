"""Members of archives by position: whole and right, or refused with the reason."""

import io
import os
import pickle
import struct
import zipfile
import zlib

import pytest

from adios.patches.archives import Fault, SourceCache, fault_of, member_limit, read_directory, read_member, unsafe
from pathray.errors import UnreadableUnit
from pathray.wsi.backends.source import open_source
from tests.builders.zips import write_zip

LIMIT = member_limit(32)
DATA = bytes(range(256)) * 20


class Counting:
    """A source that remembers what was asked of it."""

    def __init__(self, path):
        self.source, self.reads = open_source(path), []

    def read_many(self, ranges):
        self.reads.append(list(ranges))
        return self.source.read_many(ranges)


def read(path, member, limit=LIMIT, source=None):
    source = source or open_source(path)
    got = read_member(source, path, member.offset, member.compressed, member.size, member.crc, limit)
    return bytes(got.content)


def reason_of(path, member, **more):
    with pytest.raises(UnreadableUnit) as caught:
        read(path, member, **more)
    assert caught.value.path.startswith(path)
    return caught.value.reason


def only(path):
    (member,) = read_directory(path).members
    return member


def patched(path, old, new, count=1):
    """The file with one sequence of bytes replaced by another as long; it must stand there `count` times."""
    with open(path, "rb") as f:
        data = f.read()
    assert data.count(old) == count and len(old) == len(new)
    with open(path, "wb") as f:
        f.write(data.replace(old, new))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_member_is_one_ranged_read(tmp_path, method):
    path = write_zip(tmp_path / "a.zip", {"a/first.png": DATA[:99], "second.png": DATA}, method)
    members = read_directory(path).members
    source = Counting(path)
    assert [read(path, m, source=source) for m in members] == [DATA[:99], DATA]
    assert [len(ranges) for ranges in source.reads] == [1, 1]


def test_a_member_on_an_object_store_is_one_range_request(tmp_path):
    import fsspec

    path = write_zip(tmp_path / "a.zip", {"x.png": DATA, "y.png": DATA[::-1]})
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/bucket/a.zip", (tmp_path / "a.zip").read_bytes())
    url = "memory://bucket/a.zip"
    try:
        assert read_directory(url) == read_directory(path)
        assert read(url, read_directory(url).members[1]) == DATA[::-1]
    finally:
        fs.rm("/bucket", recursive=True)


def test_a_long_extra_field_costs_a_second_read_and_nothing_else(tmp_path):
    info = zipfile.ZipInfo("x.png")
    info.extra = struct.pack("<HH", 0xCAFE, 4000) + b"\0" * 4000
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, DATA)
    path = str(tmp_path / "a.zip")
    source = Counting(path)
    assert read(path, only(path), source=source) == DATA
    assert len(source.reads) == 2


@pytest.mark.parametrize("gigabytes", [3, 5])
def test_members_beyond_2_and_4_gb_are_read(tmp_path, gigabytes):
    path = str(tmp_path / "large.zip")
    with open(path, "wb") as f:
        f.truncate(gigabytes << 30)  # a hole: takes no room on the disk
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x.png", DATA)
    member = only(path)
    assert member.offset == gigabytes << 30
    assert read(path, member) == DATA
    assert os.stat(path).st_blocks * 512 < 1 << 20


def test_an_archive_with_something_before_it_is_read(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"x.png": DATA})
    whole = open(path, "rb").read()
    with open(path, "wb") as f:
        f.write(b"#!/bin/sh\n" + whole)
    assert read(path, only(path)) == DATA


@pytest.mark.parametrize("cut", [0, 10, 200, 5100])
def test_a_corrupt_or_truncated_archive_has_no_directory(tmp_path, cut):
    path = write_zip(tmp_path / "a.zip", {"x.png": DATA})
    os.truncate(path, cut)
    with pytest.raises(UnreadableUnit) as caught:
        read_directory(path)
    assert caught.value.reason == "archive"


def test_a_directory_that_lies_outside_the_file_is_no_directory(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"x.png": DATA})
    with open(path, "r+b") as f:
        f.seek(-10, io.SEEK_END)
        f.write(struct.pack("<I", 1 << 30))  # the size of the directory
    with pytest.raises(UnreadableUnit) as caught:
        read_directory(path)
    assert caught.value.reason == "archive"


def test_a_missing_archive_is_missing(tmp_path):
    with pytest.raises(UnreadableUnit, match="missing"):
        read_directory(str(tmp_path / "a.zip"))


def test_a_member_that_ends_with_its_file_is_truncated(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"x.png": DATA})
    member = only(path)
    os.truncate(path, 3000)
    assert reason_of(path, member) == "truncated"
    os.truncate(path, 20)
    assert reason_of(path, member) == "truncated"


def test_compressed_data_that_end_too_early_are_truncated(tmp_path):
    from dataclasses import replace

    path = write_zip(tmp_path / "a.zip", {"x.png": DATA}, zipfile.ZIP_DEFLATED)
    member = only(path)
    assert reason_of(path, replace(member, compressed=member.compressed - 5)) == "truncated"


def test_a_wrong_crc_is_found(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"x.png": DATA})
    member = only(path)
    patched(path, DATA[:256] * 20, b"\x01" + DATA[1:256] + DATA[:256] * 19)
    assert reason_of(path, member) == "crc"


def test_data_that_do_not_decompress_are_found(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"x.png": DATA}, zipfile.ZIP_DEFLATED)
    member = only(path)
    with open(path, "r+b") as f:
        f.seek(member.offset + 30 + len("x.png"))
        f.write(b"\xff" * 8)
    assert reason_of(path, member) == "deflate"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("wrong", [len(DATA) + 1, len(DATA) - 1])
def test_a_wrong_size_in_the_directory_is_found(tmp_path, method, wrong):
    from dataclasses import replace

    path = write_zip(tmp_path / "a.zip", {"x.png": DATA}, method)
    member = replace(only(path), size=wrong)
    shorter = "bomb" if method == zipfile.ZIP_DEFLATED else "size"  # more comes out than was said
    assert reason_of(path, member) == ("size" if wrong > len(DATA) else shorter)


def test_a_header_that_is_none_is_found(tmp_path):
    from dataclasses import replace

    path = write_zip(tmp_path / "a.zip", {"x.png": DATA})
    assert reason_of(path, replace(only(path), offset=7)) == "header"


def test_a_bomb_is_refused_before_it_is_read(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"x.png": bytes(20 << 20)}, zipfile.ZIP_DEFLATED)
    source, member = Counting(path), only(path)
    assert reason_of(path, member, source=source) == "bomb" and source.reads == []
    assert fault_of(member, 1 << 40, LIMIT).reason == "bomb"


def test_a_bomb_that_lies_about_its_size_is_never_inflated(tmp_path, monkeypatch):
    from dataclasses import replace

    path = write_zip(tmp_path / "a.zip", {"x.png": bytes(20 << 20)}, zipfile.ZIP_DEFLATED)
    sizes, original = [], zlib.decompressobj

    class Watched:
        def __init__(self, bits):
            self.inner = original(bits)

        def decompress(self, data, most):
            content = self.inner.decompress(data, most)
            sizes.append(len(content))
            return content

    monkeypatch.setattr("adios.patches.archives.zlib.decompressobj", Watched)
    assert reason_of(path, replace(only(path), size=1000)) == "bomb"
    assert sizes == [1001]


def test_encrypted_members_and_other_methods_are_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"x.png": DATA})
    member = only(path)
    with open(path, "r+b") as f:
        f.seek(6)
        f.write(b"\x01")
    assert reason_of(path, member) == "encrypted"
    path = write_zip(tmp_path / "b.zip", {"x.png": DATA}, zipfile.ZIP_LZMA)
    assert reason_of(path, only(path)) == "method"
    assert fault_of(only(path), 1 << 40, LIMIT).reason == "method"


def test_a_member_that_reaches_into_the_directory_is_refused(tmp_path):
    from dataclasses import replace

    directory = read_directory(write_zip(tmp_path / "a.zip", {"x.png": DATA}))
    (member,) = directory.members
    assert fault_of(member, directory.end, LIMIT) is None
    longer = replace(member, compressed=member.compressed + 10, size=member.size + 10)
    assert isinstance(fault_of(longer, directory.end, LIMIT), Fault)
    assert fault_of(longer, directory.end, LIMIT).reason == "truncated"


@pytest.mark.parametrize("name", ["../x.png", "a/../../x.png", "/x.png", "a\\x.png", "C:x.png", "x\0.png", "a/.."])
def test_a_name_that_leads_out_of_the_archive_is_unsafe(name):
    assert unsafe(name)


@pytest.mark.parametrize("name", ["x.png", "a/b/x.png", "a..b/x.png", "...png"])
def test_other_names_are_safe(name):
    assert not unsafe(name)


def test_few_archives_stay_open_and_none_travels(tmp_path):
    paths = [write_zip(tmp_path / f"{i}.zip", {"x.png": DATA}) for i in range(5)]
    cache = SourceCache(2)
    first = cache.get(paths[0])
    for path in paths:
        cache.get(path)
    assert len(cache) == 2
    assert read(paths[0], only(paths[0]), source=first) == DATA  # in use while it fell out
    assert cache.get(paths[4]) is cache.get(paths[4])
    assert len(pickle.loads(pickle.dumps(cache))) == 0
