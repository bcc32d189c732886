import pickle

import numpy as np
import pyarrow as pa
import pytest

from pathray.data.plan import CHUNK_BITS, DESCRIPTION, UNITS, Plan, PlanWriter, publish
from pathray.data.plan import SOURCES as SOURCES_FILE
from pathray.errors import MissingFile, UserError
from pathray.store.storage import Storage

COLUMNS = {"source": np.int32, "x": np.int32, "y": np.int32}
SOURCES = pa.table({"slide_id": ["a", "b"], "wsi_path": ["a.svs", "b.svs"]})


def build(path, n=1000, **meta):
    with PlanWriter(path, COLUMNS, SOURCES, meta) as writer:
        for part in np.array_split(np.arange(n), 3):
            writer.append({"source": part * 2 // n, "x": part * 3, "y": -part})
    return Plan.open(path, verify=True)


def test_rows_come_back_in_the_order_asked_for(tmp_path):
    plan = build(tmp_path / "plan")
    rows = np.array([999, 0, 7, 7, 500])
    taken = plan.take(rows)
    assert np.array_equal(taken["x"], rows * 3) and np.array_equal(taken["y"], -rows)
    assert taken["source"].dtype == np.int32
    assert plan.rows == 1000 and plan.sources["slide_id"].to_pylist() == ["a", "b"]


def test_plans_longer_than_a_chunk_are_looked_up_across_chunks(tmp_path):
    n = (2 << CHUNK_BITS) + 5
    plan = build(tmp_path / "plan", n)
    rows = np.random.default_rng(0).integers(0, n, 5000)
    assert np.array_equal(plan.take(rows)["x"], rows * 3)
    assert plan.column("x").size == n


def test_a_row_costs_no_more_than_sixteen_bytes(tmp_path):
    plan = build(tmp_path / "plan", 200_000)
    assert (tmp_path / "plan" / UNITS).stat().st_size < 200_000 * 12 + 4096
    assert plan.rows == 200_000


def test_the_hash_is_of_the_content_and_the_same_on_every_build(tmp_path):
    assert build(tmp_path / "a").hash == build(tmp_path / "b").hash
    assert build(tmp_path / "a").hash != build(tmp_path / "b", 999).hash
    assert build(tmp_path / "a").hash != build(tmp_path / "b", seed=1).hash


def test_a_plan_pickles_as_its_path(tmp_path):
    plan = build(tmp_path / "plan")
    assert len(pickle.dumps(plan)) < 500
    assert np.array_equal(pickle.loads(pickle.dumps(plan)).take([3])["x"], [9])


def test_an_abandoned_or_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), PlanWriter(tmp_path / "plan", COLUMNS, SOURCES) as writer:
        writer.append({"source": [0], "x": [0], "y": [0]})
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_rewriting_a_plan_replaces_it_whole(tmp_path):
    build(tmp_path / "plan", 10)
    assert build(tmp_path / "plan", 20).rows == 20
    assert [p.name for p in tmp_path.iterdir()] == ["plan"]


def test_slides_rows_are_found_as_segments(tmp_path):
    assert build(tmp_path / "plan", 1000).segments().tolist() == [0, 500]


def test_bad_plans_are_refused(tmp_path):
    with pytest.raises(MissingFile, match="no plan"):
        Plan.open(tmp_path / "nothing")
    with pytest.raises(UserError, match="int32"), PlanWriter(tmp_path / "wide", COLUMNS, SOURCES) as writer:
        writer.append({"source": [0], "x": [2**31], "y": [0]})
    build(tmp_path / "plan")
    data = bytearray((tmp_path / "plan" / UNITS).read_bytes())
    data[-400] ^= 1
    (tmp_path / "plan" / UNITS).write_bytes(bytes(data))
    with pytest.raises(UserError, match="damaged"):
        Plan.open(tmp_path / "plan", verify=True)
    text = (tmp_path / "plan" / "plan.json").read_text()
    (tmp_path / "plan" / "plan.json").write_text(text.replace('"rows": 1000', '"rows": 1001'))
    with pytest.raises(UserError, match="altered"):
        Plan.open(tmp_path / "plan")


def test_a_plan_published_to_a_bucket_opens_from_its_url(tmp_path, monkeypatch):
    monkeypatch.setenv("PATHRAY_CACHE_DIR", str(tmp_path / "cache"))
    plan = build(tmp_path / "plan")
    publish(plan.path, "memory://bucket/run/plan")
    remote = Plan.open("memory://bucket/run/plan", verify=True)
    assert remote.hash == plan.hash and np.array_equal(remote.take([5])["x"], [15])
    assert pickle.loads(pickle.dumps(remote)).hash == plan.hash
    with pytest.raises(MissingFile):
        Plan.open("memory://bucket/none")


def test_a_plan_is_fetched_once_and_not_when_its_files_do_not_belong_together(tmp_path, monkeypatch):
    monkeypatch.setenv("PATHRAY_CACHE_DIR", str(tmp_path / "cache"))
    url, fetched, get = "memory://bucket/fetched/plan", [], Storage.get
    monkeypatch.setattr(Storage, "get", lambda *given: (fetched.append(given[1]), get(*given)))
    publish(build(tmp_path / "plan").path, url)
    assert Plan.open(url).path == Plan.open(url).path and fetched == [UNITS, SOURCES_FILE]
    newer = build(tmp_path / "newer", 500)
    Storage.of(url).put(tmp_path / "newer" / DESCRIPTION, DESCRIPTION)
    with pytest.raises(UserError, match="damaged .*memory://bucket/fetched/plan/units.arrow"):
        Plan.open(url)
    publish(build(tmp_path / "again").path, url)
    publish(newer.path, url)
    assert Plan.open(url).hash == newer.hash and len(list((tmp_path / "cache").iterdir())) == 2


def test_a_plan_that_is_published_already_is_not_copied_again_and_an_older_one_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("PATHRAY_CACHE_DIR", str(tmp_path / "cache"))
    url, copied, put = "memory://bucket/again/plan", [], Storage.put
    monkeypatch.setattr(Storage, "put", lambda *given: (copied.append(given[2]), put(*given)))
    plan = build(tmp_path / "plan")
    publish(plan.path, url)
    publish(plan.path, url)
    assert copied == [UNITS, SOURCES_FILE], "the description is written, last"
    newer = build(tmp_path / "newer", 500)
    publish(newer.path, url)
    assert len(copied) == 4 and Plan.open(url, verify=True).hash == newer.hash


def test_a_plan_whose_copy_breaks_off_is_no_plan(tmp_path, monkeypatch):
    url, put = "memory://bucket/broken/plan", Storage.put
    publish(build(tmp_path / "plan").path, url)

    def breaks(store, source, name):
        if name == SOURCES_FILE:
            raise OSError("gone")
        put(store, source, name)

    monkeypatch.setattr(Storage, "put", breaks)
    with pytest.raises(OSError, match="gone"):
        publish(build(tmp_path / "newer", 500).path, url)
    with pytest.raises(MissingFile):
        Plan.open(url)
