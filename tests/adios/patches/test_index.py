"""The patch index: every patch once, in a fixed order, whatever was interrupted; what will not do is told."""

import os
import pickle
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from adios.patches import index_writer
from adios.patches.archives import read_directory
from adios.patches.index import PatchIndex, archives_of, index_archive
from adios.patches.index_writer import index_one, index_patches, quarantine_path
from pathray.errors import MissingFile, UserError
from tests.builders.jobs import ROOT, job_environment
from tests.builders.zips import SIZE, encoded, patch_name, picture, write_archive, write_folder, write_zip


def build(source, output, *, max_corrupt_fraction=0.0, map=map):
    root, archives = archives_of(str(source))
    return index_patches(root, archives, str(output), max_corrupt_fraction=max_corrupt_fraction, map=map)


def quarantine(output):
    return pq.read_table(quarantine_path(str(output))).to_pylist()


def counting(calls):
    """A map that notes the archives whose directory is read."""

    def over(function, jobs):
        for job in jobs:
            found = function(job)
            if found.table is not None:
                calls.append(job[0].name)
            yield found

    return over


def test_a_row_says_what_the_archive_and_the_name_say(tmp_path):
    write_archive(tmp_path / "zips/site/slide_7.zip", 3, method=zipfile.ZIP_DEFLATED)
    build(tmp_path / "zips", tmp_path / "out/i.parquet")
    rows = pq.read_table(tmp_path / "out/i.parquet").to_pylist()
    with zipfile.ZipFile(tmp_path / "zips/site/slide_7.zip") as archive:
        for i, (row, info) in enumerate(zip(rows, archive.infolist(), strict=True)):
            assert row == {
                "archive": "site/slide_7.zip",
                "name": f"patch_{i:03d}_{SIZE}_x{100 * i}_y{7 * i}.png",
                "offset": info.header_offset,
                "compressed_bytes": info.compress_size,
                "bytes": info.file_size,
                "method": 8,
                "crc": info.CRC,
                "slide": "site__slide_7",
                "x": 100 * i,
                "y": 7 * i,
                "size": SIZE,
            }
    index = PatchIndex.open(str(tmp_path / "out/i.parquet"))
    assert (index.root, index.rows) == (str(tmp_path / "zips"), 3)


def test_archives_stand_in_the_order_of_their_names_and_members_in_that_of_the_archive(tmp_path):
    for name in ("b.zip", "a/z.zip", "a.zip"):
        write_zip(tmp_path / "zips" / name, {patch_name(i): b"x" for i in (3, 1, 2)})
    build(tmp_path / "zips", tmp_path / "i.parquet")
    table = pq.read_table(tmp_path / "i.parquet")
    assert table["archive"].to_pylist() == ["a.zip"] * 3 + ["a/z.zip"] * 3 + ["b.zip"] * 3
    assert table["name"].to_pylist()[:3] == [patch_name(i) for i in (3, 1, 2)]


def test_members_of_other_names_are_counted_and_left_out(tmp_path):
    others = ["notes.txt", "patch_001_448.png", "__MACOSX/._" + patch_name(1), "patch_001_0_x1_y2.png", "thumb.png"]
    write_zip(
        tmp_path / "zips/a.zip", {patch_name(1): b"x", "deep/" + patch_name(2): b"x"} | dict.fromkeys(others, b"")
    )
    summary = build(tmp_path / "zips", tmp_path / "i.parquet")
    assert (summary.patches, dict(summary.reasons)) == (2, {"other": 5})
    (line,) = quarantine(tmp_path / "i.parquet")
    assert (line["reason"], line["name"], line["members"]) == ("other", "notes.txt", 5)


def test_a_corrupt_archive_is_quarantined_by_name_and_the_index_goes_on(tmp_path):
    write_folder(tmp_path / "zips")
    (tmp_path / "zips/s1.zip").write_bytes((tmp_path / "zips/s1.zip").read_bytes()[:-30])
    summary = build(tmp_path / "zips", tmp_path / "i.parquet", max_corrupt_fraction=0.4)
    assert (summary.patches, summary.corrupt) == (12, 1)
    (line,) = quarantine(tmp_path / "i.parquet")
    assert (line["archive"], line["name"], line["reason"]) == ("s1.zip", "", "archive")


def test_too_many_corrupt_archives_stop_the_index(tmp_path):
    write_folder(tmp_path / "zips", archives=4)
    for i in (1, 2):
        (tmp_path / f"zips/s{i}.zip").write_bytes(b"none")
    calls = []
    with pytest.raises(UserError, match="2 of 4 archives are corrupt") as caught:
        build(tmp_path / "zips", tmp_path / "i.parquet", max_corrupt_fraction=0.4, map=counting(calls))
    assert calls == ["s0.zip", "s1.zip", "s2.zip"]  # and s3 need not be asked
    assert caught.value.where["key"] == "max_corrupt_fraction"
    assert not (tmp_path / "i.parquet").exists()
    assert [line["archive"] for line in quarantine(tmp_path / "i.parquet")] == ["s1.zip", "s2.zip"]


def test_a_corrupt_archive_is_tried_again(tmp_path):
    write_folder(tmp_path / "zips")
    whole = (tmp_path / "zips/s1.zip").read_bytes()
    (tmp_path / "zips/s1.zip").write_bytes(b"none")
    build(tmp_path / "zips", tmp_path / "i.parquet", max_corrupt_fraction=0.5)
    (tmp_path / "zips/s1.zip").write_bytes(whole)
    assert build(tmp_path / "zips", tmp_path / "i.parquet").patches == 18


def test_an_archive_that_was_away_for_a_while_is_not_read_again(tmp_path):
    write_folder(tmp_path / "zips")
    build(tmp_path / "zips", tmp_path / "i.parquet")
    (tmp_path / "zips/s1.zip").rename(tmp_path / "away.zip")
    (tmp_path / "zips/s1.zip").symlink_to(tmp_path / "nowhere.zip")
    assert build(tmp_path / "zips", tmp_path / "i.parquet", max_corrupt_fraction=0.5).reasons == {"missing": 1}
    (tmp_path / "away.zip").rename(tmp_path / "zips/s1.zip")
    calls = []
    assert build(tmp_path / "zips", tmp_path / "i.parquet", map=counting(calls)).patches == 18
    assert calls == []


def damaged_directory(path, name, offset, value):
    """Overwrite bytes of a member's line in the directory."""
    data = bytearray(path.read_bytes())
    at = data.rindex(name.encode()) - 46
    assert data[at : at + 4] == b"PK\1\2"
    data[at + offset : at + offset + len(value)] = value
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (24, (999).to_bytes(4, "little"), "size"),  # stored, and of another size than compressed
        (20, (1 << 20).to_bytes(4, "little") * 2, "bomb"),
        (20, (9000).to_bytes(4, "little") * 2, "truncated"),
        (8, b"\1", "encrypted"),
        (10, b"\x0c", "method"),
    ],
)
def test_a_member_that_will_not_do_is_quarantined_by_name(tmp_path, offset, value, reason):
    write_archive(tmp_path / "zips/a.zip", 3)
    damaged_directory(tmp_path / "zips/a.zip", patch_name(1, x=100, y=7), offset, value)
    with pytest.raises(UserError, match="1 of 3 members are corrupt"):
        build(tmp_path / "zips", tmp_path / "i.parquet", max_corrupt_fraction=0.3)
    assert build(tmp_path / "zips", tmp_path / "i.parquet", max_corrupt_fraction=0.4).patches == 2
    (line,) = quarantine(tmp_path / "i.parquet")
    assert (line["name"], line["reason"]) == (patch_name(1, x=100, y=7), reason)


def test_names_that_lead_out_of_the_archive_and_doubled_ones_are_quarantined(tmp_path):
    first, last = encoded(picture("first")), encoded(picture("last"))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for name, data in (("../" + patch_name(1), first), (patch_name(2), first), (patch_name(2), last)):
            archive.writestr(name, data)
        archive.writestr("a\\..\\" + patch_name(3), first)
    build(tmp_path, tmp_path / "i.parquet", max_corrupt_fraction=1.0)
    (row,) = pq.read_table(tmp_path / "i.parquet").to_pylist()
    assert row["crc"] == read_directory(str(tmp_path / "a.zip")).members[2].crc
    lines = quarantine(tmp_path / "i.parquet")
    assert sorted(line["reason"] for line in lines) == ["duplicate", "name", "name"]
    assert {line["detail"].partition(",")[0] for line in lines if line["reason"] == "name"} == {
        "the name leads out of the archive", "a backslash in the name",
    }  # fmt: skip


KILLED = """
import os, signal, sys
from adios.patches import index_writer
from adios.patches.index import archives_of
index_writer.PART_ARCHIVES = 1
ticks = []
def tick():
    ticks.append(1)
    if len(ticks) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
root, archives = archives_of(sys.argv[1])
index_writer.index_patches(root, archives, sys.argv[2], max_corrupt_fraction=0.0, tick=tick)
"""


def test_an_index_resumed_after_a_kill_has_the_same_bytes_and_reads_only_what_is_new(tmp_path):
    write_folder(tmp_path / "zips", archives=5)
    environment = {**job_environment(), "PYTHONHASHSEED": "7"}
    argv = [sys.executable, "-c", KILLED, str(tmp_path / "zips"), str(tmp_path / "killed/i.parquet")]
    assert subprocess.run(argv, cwd=ROOT, env=environment).returncode == -signal.SIGKILL
    assert not (tmp_path / "killed/i.parquet").exists()
    calls = []
    build(tmp_path / "zips", tmp_path / "killed/i.parquet", map=counting(calls))
    assert calls == ["s3.zip", "s4.zip"]
    build(tmp_path / "zips", tmp_path / "whole/i.parquet")
    for name in ("i.parquet", "i_quarantine.parquet"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_row_groups_do_not_depend_on_the_parts_that_rows_came_in(tmp_path, monkeypatch):
    write_folder(tmp_path / "zips", archives=5, patches=7)
    monkeypatch.setattr(index_writer, "ROW_GROUP", 10)
    build(tmp_path / "zips", tmp_path / "whole/i.parquet")
    monkeypatch.setattr(index_writer, "PART_ARCHIVES", 2)
    build(tmp_path / "zips", tmp_path / "parts/i.parquet")
    assert len(os.listdir(tmp_path / "parts/i_parts")) == 3 > len(os.listdir(tmp_path / "whole/i_parts"))
    assert (tmp_path / "whole/i.parquet").read_bytes() == (tmp_path / "parts/i.parquet").read_bytes()
    metadata = pq.read_metadata(tmp_path / "whole/i.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [10, 10, 10, 5]


def test_a_folder_that_grew_and_changed_is_read_only_where_it_did(tmp_path):
    write_folder(tmp_path / "zips", archives=3)
    build(tmp_path / "zips", tmp_path / "i.parquet")
    write_archive(tmp_path / "zips/a_new.zip", 2)
    write_archive(tmp_path / "zips/s1.zip", 4)
    (tmp_path / "zips/s0.zip").unlink()
    calls = []
    summary = build(tmp_path / "zips", tmp_path / "i.parquet", map=counting(calls))
    assert (calls, summary.kept, summary.patches) == (["a_new.zip", "s1.zip"], 1, 12)
    build(tmp_path / "zips", tmp_path / "fresh/i.parquet")
    assert (tmp_path / "i.parquet").read_bytes() == (tmp_path / "fresh/i.parquet").read_bytes()


def test_parts_of_nothing_that_is_left_go(tmp_path):
    write_folder(tmp_path / "zips", archives=2)
    build(tmp_path / "zips", tmp_path / "i.parquet")
    for i in range(2):
        write_archive(tmp_path / f"zips/s{i}.zip", 9)
    build(tmp_path / "zips", tmp_path / "i.parquet")
    assert os.listdir(tmp_path / "i_parts") == ["part-00000002.parquet"]


def test_what_was_refused_before_is_told_again(tmp_path):
    write_zip(tmp_path / "zips/a.zip", {patch_name(1): b"x", "notes.txt": b""})
    build(tmp_path / "zips", tmp_path / "i.parquet")
    first = quarantine(tmp_path / "i.parquet")
    summary = build(tmp_path / "zips", tmp_path / "i.parquet")
    assert summary.kept == 1 and summary.reasons == {"other": 1} and quarantine(tmp_path / "i.parquet") == first


def test_a_pickled_index_chooses_archives_and_members(tmp_path):
    write_folder(tmp_path / "zips", archives=3)
    elsewhere = tmp_path / "elsewhere.zip"
    write_archive(elsewhere, 2)
    names = [patch_name(i, x=100 * i, y=7 * i) for i in range(6)]
    entries = [
        (str(tmp_path / "zips/s2.zip"), names[:2]),
        ("./s0.zip", [names[3], "gone.png"]),
        (str(elsewhere), names[:1]),
    ]
    (tmp_path / "zips/dataset_index.pkl").write_bytes(pickle.dumps(entries))
    summary = build(tmp_path / "zips/dataset_index.pkl", tmp_path / "i.parquet", max_corrupt_fraction=0.5)
    table = pq.read_table(tmp_path / "i.parquet")
    assert table["archive"].to_pylist() == [str(elsewhere), "s0.zip", "s2.zip", "s2.zip"]
    assert table["name"].to_pylist() == [names[0], names[3], *names[:2]]
    assert summary.reasons == {"absent": 1}


def test_a_pickle_that_lists_other_members_now_is_read_again(tmp_path):
    write_folder(tmp_path / "zips", archives=1)
    for kept in (2, 3):
        entries = [("s0.zip", [patch_name(i, x=100 * i, y=7 * i) for i in range(kept)])]
        (tmp_path / "zips/dataset_index.pkl").write_bytes(pickle.dumps(entries))
        assert build(tmp_path / "zips/dataset_index.pkl", tmp_path / "i.parquet").patches == kept


def test_an_archive_beyond_4_gb_is_indexed(tmp_path):
    with open(tmp_path / "large.zip", "wb") as f:
        f.truncate(5 << 30)
    with zipfile.ZipFile(tmp_path / "large.zip", "a") as archive:
        archive.writestr(patch_name(1), b"x")
    build(tmp_path, tmp_path / "i.parquet")
    assert pq.read_table(tmp_path / "i.parquet")["offset"].to_pylist() == [5 << 30]


def test_a_folder_on_an_object_store_is_indexed_there(tmp_path):
    import fsspec

    write_folder(tmp_path / "zips")
    fs = fsspec.filesystem("memory")
    try:
        for path in sorted((tmp_path / "zips").iterdir()):
            fs.pipe_file(f"/bucket/zips/{path.name}", path.read_bytes())
        build("memory://bucket/zips", "memory://bucket/out/i.parquet")
        build(tmp_path / "zips", tmp_path / "i.parquet")
        with fs.open("/bucket/out/i.parquet") as f:
            assert pq.read_table(f).equals(pq.read_table(tmp_path / "i.parquet"))
    finally:
        fs.rm("/bucket", recursive=True)


def test_a_folder_without_archives_or_patches_is_the_users_error(tmp_path):
    with pytest.raises(MissingFile):
        build(tmp_path / "none", tmp_path / "i.parquet")
    (tmp_path / "zips").mkdir()
    with pytest.raises(UserError, match="no archives"):
        build(tmp_path / "zips", tmp_path / "i.parquet")
    write_zip(tmp_path / "zips/a.zip", {"notes.txt": b""})
    with pytest.raises(UserError, match="no patches"):
        build(tmp_path / "zips", tmp_path / "i.parquet")


def test_a_file_that_is_no_index_is_refused(tmp_path):
    with pytest.raises(MissingFile):
        PatchIndex.open(str(tmp_path / "i.parquet"))
    (tmp_path / "i.parquet").write_bytes(b"text")
    with pytest.raises(UserError, match="invalid or damaged patch index"):
        PatchIndex.open(str(tmp_path / "i.parquet"))
    write_folder(tmp_path / "zips")
    build(tmp_path / "zips", tmp_path / "i.parquet")
    with pytest.raises(UserError, match="not a patch index"):
        PatchIndex.open(quarantine_path(str(tmp_path / "i.parquet")))


def test_an_archive_whose_state_is_known_is_not_opened(tmp_path, monkeypatch):
    write_folder(tmp_path / "zips", archives=1)
    _, (archive,) = archives_of(str(tmp_path / "zips"))
    state = index_archive(archive).state
    monkeypatch.setattr("adios.patches.index.read_directory", lambda path: pytest.fail("it was read"))
    assert index_one((archive, state)).table is None


def test_no_module_of_the_science_uses_the_salted_hash():
    import ast

    calls = [
        (path.name, node.lineno)
        for path in sorted((Path(ROOT) / "adios").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "hash"
    ]
    assert calls == []
