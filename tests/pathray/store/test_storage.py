"""One door to local folders and object stores: whole files, retried, errors that name the path."""

from __future__ import annotations

import errno
import os
import pickle
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pathray.store.storage
from pathray.errors import MissingFile, UserError
from pathray.store.cache import private_cache
from pathray.store.storage import Storage, StorageError, check_writable, file_state, write_atomic
from tests.builders.storage import FaultyFileSystem, full


@pytest.fixture(params=["local", "memory", "faulty"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """The same behaviours on a local folder and on object stores."""
    monkeypatch.setattr(pathray.store.storage, "FIRST_WAIT_S", 0.0)
    monkeypatch.setenv("PATHRAY_CACHE_DIR", str(tmp_path / "cache"))
    FaultyFileSystem.reset()
    roots = {"local": str(tmp_path / "run"), "memory": f"memory://{tmp_path.name}/run", "faulty": "faulty://bucket/run"}
    return Storage.of(roots[request.param])


def test_what_is_written_is_read_and_listed(store: Storage) -> None:
    assert store.list() == [] and not store.exists("a.txt")
    store.write_bytes("a.txt", b"one")
    store.write_bytes("sub/b.txt", b"two")
    assert store.read_bytes("a.txt") == b"one" and store.size("sub/b.txt") == 3
    assert store.list() == ["a.txt", "sub"] and store.list("sub") == ["b.txt"]
    with store.open("sub/b.txt") as f:
        assert f.read() == b"two"


def test_urls_and_paths_lead_back_to_the_same_place(store: Storage) -> None:
    store.write_bytes("sub/b.txt", b"two")
    assert Storage.of(store.join("sub")).read_bytes("b.txt") == b"two"
    assert Storage.of(store.url).list("sub") == ["b.txt"]
    assert store.at("sub").list() == ["b.txt"]


def test_writing_replaces_the_whole_file(store: Storage) -> None:
    store.write_bytes("a.txt", b"a long first version")
    store.write_bytes("a.txt", b"short")
    assert store.read_bytes("a.txt") == b"short"
    write_atomic(store.join("a.txt"), b"again")
    assert store.read_bytes("a.txt") == b"again" and store.list() == ["a.txt"]


def test_what_is_missing_is_named(store: Storage) -> None:
    for action in (store.read_bytes, store.size, store.local_copy, lambda n: store.open(n).read()):
        with pytest.raises(MissingFile, match="nothing.txt"):
            action("nothing.txt")
    store.remove("nothing.txt")


def test_removing_a_folder_removes_all_below(store: Storage) -> None:
    store.write_bytes("sub/deep/b.txt", b"two")
    store.write_bytes("keep.txt", b"one")
    store.remove("sub")
    assert not store.exists("sub/deep/b.txt") and store.list() == ["keep.txt"]


def test_a_local_copy_is_a_local_file_and_follows_changes(store: Storage) -> None:
    store.write_bytes("a.bin", b"first")
    assert store.local_copy("a.bin").read_bytes() == b"first"
    store.write_bytes("a.bin", b"second, longer")
    assert store.local_copy("a.bin").read_bytes() == b"second, longer"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of at most 25 bytes for the store at faulty://bucket."""
    monkeypatch.setattr(pathray.store.cache, "CACHE_BYTES", 25)
    monkeypatch.setenv("PATHRAY_CACHE_DIR", str(tmp_path / "cache"))
    FaultyFileSystem.reset()
    for name in "abcd":
        Storage.of("faulty://bucket").write_bytes(name, name.encode() * 10)
    return tmp_path / "cache"


def cached_names(cache: Path) -> list[str]:
    return sorted(p.name.partition("-")[2] for p in cache.iterdir())


def test_the_cache_is_bounded_and_what_was_not_used_for_longest_goes_first(cache: Path) -> None:
    store = Storage.of("faulty://bucket")
    for age, name in ((300, "a"), (200, "b")):
        os.utime(store.local_copy(name), (time.time() - age,) * 2)
    (cache / "notes.txt").write_bytes(b"the user's own " * 10)
    store.local_copy("a")  # used again
    store.local_copy("c")
    assert cached_names(cache) == ["", "a", "c"] and (cache / "notes.txt").exists()
    store.write_bytes("large", b"x" * 100)
    assert store.local_copy("large").read_bytes() == b"x" * 100
    assert cached_names(cache) == ["", "large"]


def test_room_is_not_made_by_what_is_being_fetched_but_by_what_was_given_up(cache: Path) -> None:
    store, digits = Storage.of("faulty://bucket"), "0" * 24
    for name in ("fetching", "given-up"):
        (cache / f".{digits}-{name}").parent.mkdir(exist_ok=True)
        (cache / f".{digits}-{name}").write_bytes(b"x" * 20)
    os.utime(cache / f".{digits}-given-up", (0, 0))
    store.local_copy("a")
    assert cached_names(cache) == ["a", "fetching"]


def test_a_copy_that_another_process_removed_is_fetched_again(cache: Path) -> None:
    store, seen = Storage.of("faulty://bucket"), list[Path]()

    def read(path: Path) -> bytes:
        seen.append(path)
        if len(seen) == 1:
            path.unlink()
        return path.read_bytes()

    assert store.read_local("a", read) == b"a" * 10 and len(seen) == 2
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        store.read_local("a", lambda path: Path("elsewhere").read_bytes())


def test_the_default_cache_is_for_its_user_alone_and_no_link_or_folder_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PATHRAY_CACHE_DIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = private_cache()
    assert folder.parent == tmp_path and stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o755)
    assert stat.S_IMODE(private_cache().stat().st_mode) == 0o700
    plain = Path.lstat
    with monkeypatch.context() as patch:
        patch.setattr(Path, "lstat", lambda path: os.stat_result((0o40700, 0, 0, 1, os.getuid() + 1, *plain(path)[5:])))
        with pytest.raises(UserError, match="cache folder is not your own .*PATHRAY_CACHE_DIR"):
            private_cache()
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="cache folder is not your own .*a link"):
        private_cache()


def test_pyarrow_reads_what_we_write(store: Storage) -> None:
    table = pa.table({"x": [1, 2, 3]})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    store.write_bytes("t.parquet", sink.getvalue().to_pybytes())
    assert pq.read_table(store.path("t.parquet"), filesystem=store.pyarrow_fs()).equals(table)


def test_an_unknown_protocol_is_refused_with_what_to_install() -> None:
    with pytest.raises(UserError, match="no access to nowhere://.*gcsfs"):
        Storage.of("nowhere://bucket/x")


def test_storage_that_fails_for_a_while_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pathray.store.storage, "FIRST_WAIT_S", 0.0)
    failures = [OSError("reset by peer"), TimeoutError("slow"), ValueError("500 backend error")]
    FaultyFileSystem.reset(lambda operation, path: failures.pop() if failures else None)
    store = Storage.of("faulty://bucket")
    store.write_bytes("a.txt", b"all of it")
    assert store.read_bytes("a.txt") == b"all of it" and len(FaultyFileSystem.calls) == 5


def test_storage_that_goes_on_failing_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pathray.store.storage, "FIRST_WAIT_S", 0.0)
    FaultyFileSystem.reset(lambda operation, path: OSError("backend unavailable"))
    with pytest.raises(StorageError, match="cannot write: backend unavailable .*faulty://bucket/a.txt"):
        Storage.of("faulty://bucket").write_bytes("a.txt", b"x")
    assert len(FaultyFileSystem.calls) == pathray.store.storage.ATTEMPTS


@pytest.mark.parametrize(
    ("operation", "act"),
    [
        ("remove", lambda store: store.remove("sub")),
        ("open", lambda store: store.open("sub/a.txt").close()),
        ("time", lambda store: store.modified_at("sub")),
    ],
)
def test_removing_opening_and_asking_for_times_are_tried_again_and_fail_clearly(
    operation: str, act: Callable[[Storage], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pathray.store.storage, "FIRST_WAIT_S", 0.0)
    FaultyFileSystem.reset()
    store = Storage.of("faulty://bucket")
    store.write_bytes("sub/a.txt", b"x")
    failures = [OSError("reset by peer"), ValueError("503 backend error")]
    FaultyFileSystem.fault = staticmethod(lambda op, path: failures.pop() if op == operation and failures else None)
    act(store)
    assert not failures and store.exists("sub") == (operation != "remove")
    store.write_bytes("sub/a.txt", b"x")
    FaultyFileSystem.fault = staticmethod(lambda op, path: OSError("unavailable") if op == operation else None)
    with pytest.raises(StorageError, match="unavailable .*faulty://bucket/sub"):
        act(store)


def test_a_full_disk_is_not_tried_again() -> None:
    FaultyFileSystem.reset(full)
    with pytest.raises(StorageError, match="cannot write: No space left on device") as e:
        Storage.of("faulty://bucket").write_bytes("a.txt", b"x")
    assert len(FaultyFileSystem.calls) == 1 and e.value.errno == errno.ENOSPC
    assert isinstance(e.value, UserError) and isinstance(e.value, OSError)


class HttpError(Exception):
    """As gcsfs raises it: no OSError, with the status as `code`."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@pytest.mark.parametrize(
    ("error", "passing", "calls"),
    [
        (OSError("503 backend error"), True, 5),
        (ValueError("whatever a client raises"), True, 5),
        (OSError(errno.ESTALE, os.strerror(errno.ESTALE)), True, 5),
        (OSError("Forbidden: bucket/a.txt\nno storage.objects.create access"), False, 1),
        (PermissionError("Access Denied"), False, 1),
        (HttpError("Invalid Credentials", 401), False, 1),
        (HttpError("Too Many Requests", 429), True, 5),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), False, 1),
        (FileNotFoundError("no such bucket"), False, 1),
    ],
)
def test_an_error_says_whether_it_may_pass(
    error: Exception, passing: bool, calls: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pathray.store.storage, "FIRST_WAIT_S", 0.0)
    FaultyFileSystem.reset(lambda operation, path: error)
    store = Storage.of("faulty://bucket")
    with pytest.raises(StorageError) as e:
        store.write_bytes("a.txt", b"x")
    assert e.value.passing == passing and len(FaultyFileSystem.calls) == calls
    FaultyFileSystem.calls.clear()
    caplog.clear()
    with pytest.raises(StorageError) as e:
        store.without_retries().at("sub").write_bytes("a.txt", b"x")
    assert e.value.passing == passing and len(FaultyFileSystem.calls) == 1 and caplog.text == ""


def test_an_object_is_made_only_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    FaultyFileSystem.reset()
    store = Storage.of("faulty://bucket")
    store.create_bytes("a.txt", b"first")
    with pytest.raises(FileExistsError):
        store.create_bytes("a.txt", b"second")
    assert store.read_bytes("a.txt") == b"first"
    plain = FaultyFileSystem.pipe_file
    monkeypatch.setattr(FaultyFileSystem, "pipe_file", lambda self, path, value: plain(self, path, value))
    store.create_bytes("b.txt", b"by a client that knows no conditions")
    assert store.read_bytes("b.txt") == b"by a client that knows no conditions"


def test_a_failed_local_write_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Storage.of(tmp_path)
    store.write_bytes("a.txt", b"old")

    def no_room(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(StorageError, match="No space left"):
        store.write_bytes("a.txt", b"new")
    monkeypatch.undo()
    assert store.read_bytes("a.txt") == b"old" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(StorageError, match="Permission denied"):
        Storage.of(tmp_path).write_bytes("a.txt", b"x")


def test_a_bucket_that_is_not_there_or_a_file_in_the_way_is_a_clear_error(tmp_path: Path) -> None:
    FaultyFileSystem.reset(lambda operation, path: FileNotFoundError("no such bucket"))
    with pytest.raises(StorageError, match="cannot write: no such bucket .*faulty://nobucket/a.txt"):
        Storage.of("faulty://nobucket").write_bytes("a.txt", b"x")
    assert len(FaultyFileSystem.calls) == 1
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot write: .*file/a.txt"):
        Storage.of(tmp_path / "file").write_bytes("a.txt", b"x")


def test_unfinished_files_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / ".a.txt-0123abcd").write_bytes(b"half")
    (tmp_path / "a.txt").write_bytes(b"whole")
    assert Storage.of(tmp_path).list() == ["a.txt"]


def test_a_file_in_the_root_folder_is_written_there(monkeypatch):
    written = []
    monkeypatch.setattr(Storage, "write_bytes", lambda store, name, data: written.append(store.path(name)))
    write_atomic("/a.txt", b"x")
    assert written == ["/a.txt"]


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC, errno.EACCES, errno.EDQUOT])
def test_an_output_that_cannot_be_written_is_told_beforehand(tmp_path, monkeypatch, code):
    def refuse(*words, **more):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("pathray.store.storage.os.fsync", refuse)
    with pytest.raises(UserError, match=os.strerror(code)) as info:
        check_writable(str(tmp_path / "new" / "run"), "output")
    assert info.value.where["file"] == tmp_path and info.value.where["key"] == "output"
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_of_an_output_is_told_and_a_good_place_is_left_as_it_is(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="in the way"):
        check_writable(str(tmp_path / "file" / "run" / "deep"), "output")
    for path in (tmp_path / "file", tmp_path / "new" / "run", tmp_path):
        check_writable(str(path), "output")
    check_writable("memory://x/run", "output")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("read", ["read_bytes", "open", "size", "get"])
def test_what_would_be_below_a_plain_file_is_missing(tmp_path: Path, read: str) -> None:
    (tmp_path / "file").write_text("x")
    more = (tmp_path / "copy",) if read == "get" else ()
    with pytest.raises(MissingFile, match="file/meta.json"):
        getattr(Storage.of(tmp_path / "file"), read)("meta.json", *more)


@pytest.mark.parametrize("read", ["read_bytes", "open"])
def test_pipes_and_folders_are_no_files_and_nobody_waits_for_them(tmp_path: Path, read: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, found in (("pipe", "a pipe"), ("folder", "a folder")):
        with pytest.raises(UserError, match=f"not a regular file.*{name}.*{found}"):
            getattr(Storage.of(tmp_path), read)(name)


def test_a_name_may_hold_what_fsspec_takes_for_a_chain(tmp_path):
    (tmp_path / "x::y.tif").write_bytes(b"12345")
    assert file_state(str(tmp_path / "x::y.tif")).startswith("5:")


def test_an_error_that_may_pass_still_may_after_it_was_pickled() -> None:
    error = pickle.loads(pickle.dumps(StorageError.temporary("away", file="faulty://bucket/a", found="503")))
    assert error.passing and str(error) == "away (file: faulty://bucket/a; found: '503')"
    assert not pickle.loads(pickle.dumps(StorageError("full", file="a"))).passing
