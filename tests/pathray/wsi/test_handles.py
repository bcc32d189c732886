import os
import pickle
import threading

import numpy as np
import pytest

from pathray.errors import MissingFile, UnreadableUnit
from pathray.store.storage import file_state
from pathray.wsi import handles
from pathray.wsi.backends.tiles import TileCache
from pathray.wsi.handles import HandleCache
from tests.builders.slides import write_slide


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    return [str(write_slide(folder / f"{i}.tif", width=400, height=300, seed=i, downsamples=(1,))) for i in range(5)]


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def test_a_slide_is_opened_once_and_the_least_recently_used_is_let_go(paths, monkeypatch):
    opened, open_with = [], handles.open_with
    monkeypatch.setattr(handles, "open_with", lambda path, *a, **k: opened.append(path) or open_with(path, *a, **k))
    cache, before = HandleCache(max_open=2), descriptors()
    a, b, c = paths[:3]
    for path in (a, b, a, c, a, c, b):
        assert cache.get(path).path == path
    assert opened == [a, b, c, b] and len(cache) == 2
    assert descriptors() == before + 2


def test_the_tiles_of_all_slides_share_one_bound(paths):
    cache = HandleCache(max_open=5, cache_bytes=600_000)
    for path in paths * 2:
        cache.get(path).read_level(0, 10, 10, 300, 250)
        assert 0 < cache.tiles.nbytes <= 600_000


def test_tiles_of_two_slides_are_not_mixed_up(paths):
    cache = HandleCache()
    first = [cache.get(p).read_level(0, 5, 5, 380, 280) for p in paths]
    again = [cache.get(p).read_level(0, 5, 5, 380, 280) for p in paths]
    for i, (x, y) in enumerate(zip(first, again, strict=True)):
        np.testing.assert_array_equal(x, y)
        assert i == 0 or not np.array_equal(x, first[0])


def test_a_reader_that_fell_out_still_reads(paths):
    cache = HandleCache(max_open=1)
    reader = cache.get(paths[0])
    expected = reader.read_level(0, 0, 0, 300, 300)
    for path in paths[1:]:
        cache.get(path)
    np.testing.assert_array_equal(reader.read_level(0, 0, 0, 300, 300), expected)


def test_it_travels_empty(paths):
    cache = HandleCache(max_open=3, cache_bytes=1 << 20, backend="tiff")
    cache.get(paths[0]).read_level(0, 3, 3, 299, 290)
    twin = pickle.loads(pickle.dumps(cache))
    assert (len(twin), twin.max_open, twin.cache_bytes, twin.backend) == (0, 3, 1 << 20, "tiff")


def test_a_failed_open_leaves_nothing_behind(tmp_path, paths):
    cache = HandleCache()
    with pytest.raises(MissingFile):
        cache.get(str(tmp_path / "no.svs"))
    assert len(cache) == 0


def test_an_open_that_stalls_holds_up_nobody_else(paths, monkeypatch):
    gate, open_with = threading.Event(), handles.open_with

    def slow(path, *a, **k):
        if path == paths[0]:
            assert gate.wait(20)
        return open_with(path, *a, **k)

    monkeypatch.setattr(handles, "open_with", slow)
    cache, got = HandleCache(), []
    stalled = threading.Thread(target=lambda: got.append(cache.get(paths[0])))
    stalled.start()
    cache.get(paths[1]).read_level(0, 0, 0, 100, 100)
    assert not got
    gate.set()
    stalled.join()
    assert got[0] is cache.get(paths[0])


def test_many_threads_over_few_handles_read_right(paths):
    cache, wrong = HandleCache(max_open=2, cache_bytes=1 << 20), []
    expected = {p: HandleCache().get(p).read_level(0, 20, 30, 350, 250) for p in paths}

    def work(seed):
        for i in np.random.default_rng(seed).integers(0, len(paths), 40):
            if not np.array_equal(cache.get(paths[i]).read_level(0, 20, 30, 350, 250), expected[paths[i]]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(s,)) for s in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == [] and len(cache) <= 2


def test_a_child_starts_empty_even_if_a_thread_of_the_parent_held_the_lock(paths):
    cache = HandleCache()
    expected = cache.get(paths[0]).read_level(0, 0, 0, 300, 280)
    with cache._open.lock, cache.tiles._state.lock:
        child = os.fork()
        if child == 0:
            good = len(cache) == 0 and cache.tiles.nbytes == 0
            good &= np.array_equal(cache.get(paths[0]).read_level(0, 0, 0, 300, 280), expected)
            os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(cache) == 1


def test_a_tile_cache_replaces_forgets_and_refuses_what_is_too_large():
    cache = TileCache(1000)
    cache.put((1, 0, 0), np.zeros(300, np.uint8))
    cache.put((1, 0, 0), np.ones(400, np.uint8))
    cache.put((2, 0, 0), np.zeros(500, np.uint8))
    cache.put((3, 0, 0), np.zeros(501, np.uint8))
    assert cache.nbytes == 900 and cache.get((3, 0, 0)) is None and cache.get((1, 0, 0)).all()
    cache.put((4, 0, 0), np.zeros(200, np.uint8))  # (2, …) was used longest ago
    assert cache.get((2, 0, 0)) is None and cache.nbytes == 600
    cache.forget(1)
    assert cache.get((1, 0, 0)) is None and cache.nbytes == 200


@pytest.mark.parametrize("how", ["replaced", "truncated", "touched"])
def test_a_slide_that_changes_while_it_is_in_use_is_not_opened_again(tmp_path, how):
    first, second = (str(write_slide(tmp_path / f"{n}.tif", width=300, height=200, seed=n)) for n in (1, 2))
    cache = HandleCache(max_open=1)
    expected = cache.get(first).read_level(0, 0, 0, 50, 50)
    cache.get(second)
    np.testing.assert_array_equal(cache.get(first).read_level(0, 0, 0, 50, 50), expected)  # unchanged: opened again
    cache.get(second)
    if how == "replaced":
        os.replace(write_slide(tmp_path / "new.tif", width=320, height=200, seed=3), first)
    elif how == "truncated":
        os.truncate(first, 1000)
    else:
        os.utime(first, (1, 1))
    with pytest.raises(UnreadableUnit, match="replaced during the run") as e:
        cache.get(first)
    assert (e.value.reason, e.value.path) == ("changed", first)
    os.remove(first)
    with pytest.raises(MissingFile):
        cache.get(first)


@pytest.mark.parametrize("how", ["replaced", "truncated", "copied"])
def test_a_slide_is_compared_with_the_one_that_was_indexed_when_it_is_opened_first(tmp_path, how):
    path = str(write_slide(tmp_path / "a.tif", width=300, height=200, seed=1))
    indexed = file_state(path)
    if how == "replaced":
        os.replace(write_slide(tmp_path / "new.tif", width=320, height=200, seed=3), path)
    elif how == "truncated":
        os.truncate(path, 1000)
    else:
        os.utime(path, (1, 1))  # a copy on another machine
        assert HandleCache().get(path, indexed).level_shapes[0] == (300, 200)
        return
    with pytest.raises(UnreadableUnit, match="changed since it was indexed") as e:
        HandleCache().get(path, indexed)
    assert (e.value.reason, e.value.path) == ("changed", path)


def test_a_folder_of_files_is_compared_by_all_their_sizes_and_a_new_time_is_told(tmp_path, caplog):
    here = HandleCache()._process_handles()
    for name in ("1.dcm", "2.dcm"):
        (tmp_path / name).write_bytes(b"x" * 9)
    folder, indexed = str(tmp_path), file_state(str(tmp_path))
    os.utime(tmp_path / "1.dcm", (1, 1))
    HandleCache()._check_unchanged(here, folder, indexed)
    assert "modification time differs from the index" in caplog.text
    (tmp_path / "1.dcm").write_bytes(b"x" * 8)
    with pytest.raises(UnreadableUnit, match="changed since it was indexed"):
        HandleCache()._check_unchanged(HandleCache()._process_handles(), folder, indexed)
