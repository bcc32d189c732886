"""A directory counts when COMMITTED.json is there, and not before."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

import pathray.store.storage
from pathray.errors import MissingFile, UserError
from pathray.store.committed import (
    COMMITTED,
    committed_dir,
    list_committed,
    read_committed,
    remove_committed,
    sweep,
)
from pathray.store.storage import Storage, StorageError
from tests.builders.storage import FaultyFileSystem, full


@pytest.fixture(params=["local", "memory", "faulty"])
def parent(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(pathray.store.storage, "FIRST_WAIT_S", 0.0)
    monkeypatch.setenv("PATHRAY_CACHE_DIR", str(tmp_path / "cache"))
    FaultyFileSystem.reset()
    roots = {"local": str(tmp_path / "run"), "memory": f"memory://{tmp_path.name}/run", "faulty": "faulty://bucket/run"}
    return roots[request.param]


def write(parent: str, name: str, content: bytes = b"content", **meta: object) -> str:
    with committed_dir(parent, name, dict(meta)) as directory:
        directory.write_bytes("a.bin", content)
        with directory.local_file("b.bin") as path:
            path.write_bytes(content * 2)
    return directory.path


def test_a_committed_directory_is_listed_with_its_files_and_meta(parent: str) -> None:
    path = write(parent, "snap", images_seen=7)
    (found,) = list_committed(parent)
    assert (found.path, found.name, found.meta) == (path, "snap", {"images_seen": 7})
    assert found.read("a.bin", Path.read_bytes) == b"content" and found.files["b.bin"]["size"] == 14
    assert list_committed(parent, "snap") == [found] and list_committed(parent, "sna") == []


def test_nothing_is_listed_before_the_commit_nor_after_an_error(parent: str) -> None:
    with pytest.raises(RuntimeError), committed_dir(parent, "snap") as directory:
        directory.write_bytes("a.bin", b"x")
        assert list_committed(parent) == []
        raise RuntimeError("the writer dies")
    assert list_committed(parent) == [] and Storage.of(parent).list() == []
    with pytest.raises(MissingFile, match="not a committed directory"):
        read_committed(directory.path)


def test_names_with_dashes_are_told_apart(parent: str) -> None:
    write(parent, "run-img100")
    write(parent, "run")
    assert [c.name for c in list_committed(parent, "run")] == ["run"]
    assert [c.name for c in list_committed(parent, "run-img100")] == ["run-img100"]


def test_the_same_name_twice_never_collides(parent: str) -> None:
    assert write(parent, "snap", b"1") != write(parent, "snap", b"2")
    assert [c.read("a.bin", Path.read_bytes) for c in list_committed(parent, "snap")] == [b"1", b"2"]


@pytest.mark.parametrize("change", [b"contenT", b"short"])
def test_a_file_that_changed_after_the_commit_is_refused(parent: str, change: bytes) -> None:
    path = write(parent, "snap")
    Storage.of(path).write_bytes("a.bin", change)
    with pytest.raises(UserError, match="damaged"):
        read_committed(path).read("a.bin", Path.read_bytes)


def test_a_newer_schema_is_refused(parent: str) -> None:
    path = write(parent, "snap")
    record = json.loads(Storage.of(path).read_bytes(COMMITTED))
    Storage.of(path).write_bytes(COMMITTED, json.dumps({**record, "schema_version": 2}).encode())
    with pytest.raises(UserError, match="newer version.*found: 2"):
        list_committed(parent)


def test_nan_in_meta_is_refused_and_nothing_counts(parent: str) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write(parent, "snap", loss=float("nan"))
    assert list_committed(parent) == []


def test_a_removed_directory_loses_its_commit_first(parent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(parent, "snap")
    removed = []
    plain = Storage.remove

    def dies_after_the_first(self: Storage, name: str) -> None:
        if removed:
            raise KeyboardInterrupt
        removed.append(name)
        plain(self, name)

    monkeypatch.setattr(Storage, "remove", dies_after_the_first)
    with pytest.raises(KeyboardInterrupt):
        remove_committed(path)
    assert removed == [COMMITTED] and list_committed(parent) == []


def test_only_old_uncommitted_directories_of_ours_are_swept(parent: str) -> None:
    store = Storage.of(parent)
    kept = write(parent, "snap")
    store.write_bytes("snap-0123abcd/a.bin", b"half")
    store.write_bytes("users-own-folder/notes.txt", b"mine")
    assert sweep(parent, older_than_s=3600) == []
    time.sleep(0.01)
    if store.local:
        os.utime(Path(parent, "snap-0123abcd"), (0, 0))
        os.utime(Path(parent, "snap-0123abcd", "a.bin"), (0, 0))
    assert sweep(parent, older_than_s=0) == ["snap-0123abcd"]
    assert Storage.of(kept).exists(COMMITTED) and store.exists("users-own-folder/notes.txt")


def test_links_are_not_swept_whatever_they_lead_to(tmp_path: Path) -> None:
    elsewhere = write(str(tmp_path / "other"), "snap")
    (tmp_path / "half").mkdir()
    (tmp_path / "run").mkdir()
    for name, target in (("snap-0123abcd", elsewhere), ("snap-89abcdef", str(tmp_path / "half"))):
        os.symlink(target, tmp_path / "run" / name)
    assert sweep(str(tmp_path / "run"), older_than_s=-1) == []
    assert sorted(os.listdir(tmp_path / "run")) == ["snap-0123abcd", "snap-89abcdef"]
    assert Storage.of(elsewhere).exists(COMMITTED)


def test_a_sweep_takes_no_more_requests_when_there_are_more_checkpoints(
    parent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, plain = list[str](), Storage._retry

    def counted(store: Storage, action: Any, name: str, **more: Any) -> Any:
        asked.append(name)
        return plain(store, action, name, **more)

    counts = []
    for more in (1, 9):
        for _ in range(more):
            write(parent, "snap")
        with monkeypatch.context() as patch:
            patch.setattr(Storage, "_retry", counted)
            assert sweep(parent, older_than_s=0) == []
        counts.append(len(asked))
        asked.clear()
    assert counts[0] == counts[1] <= 2 and len(list_committed(parent)) == 10


@pytest.mark.parametrize("victim", ["a.bin", "b.bin", COMMITTED])
def test_a_store_that_is_full_at_any_file_leaves_what_was_there_and_nothing_new(victim: str) -> None:
    FaultyFileSystem.reset()
    before = write("faulty://bucket/run", "snap")
    FaultyFileSystem.fault = staticmethod(lambda op, path: full(op, path) if path.endswith(victim) else None)
    with pytest.raises(StorageError, match="No space left on device"):
        write("faulty://bucket/run", "snap")
    assert [c.path for c in list_committed("faulty://bucket/run")] == [before]
    assert read_committed(before).read("a.bin", Path.read_bytes) == b"content"


def test_an_upload_that_was_cut_short_is_noticed_at_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    FaultyFileSystem.reset()
    plain = FaultyFileSystem.pipe_file
    monkeypatch.setattr(FaultyFileSystem, "pipe_file", lambda self, path, value, **m: plain(self, path, value[:3], **m))
    with pytest.raises(StorageError, match="truncated"):
        write("faulty://bucket/run", "snap")
    monkeypatch.undo()
    assert list_committed("faulty://bucket/run") == []


def test_removing_a_link_removes_nothing_of_what_it_leads_to(tmp_path):
    with committed_dir(str(tmp_path / "elsewhere"), "good", {"n": 1}) as directory:
        directory.write_bytes("a.txt", b"kept")
    [good] = list_committed(str(tmp_path / "elsewhere"))
    (tmp_path / "run").mkdir()
    link = tmp_path / "run" / Path(good.path).name
    link.symlink_to(good.path)
    assert [c.name for c in list_committed(str(tmp_path / "run"))] == ["good"]
    remove_committed(str(link))
    assert not link.is_symlink() and list_committed(str(tmp_path / "run")) == []
    [still] = list_committed(str(tmp_path / "elsewhere"))
    assert still.meta["n"] == 1 and (Path(still.path) / "a.txt").read_bytes() == b"kept"
