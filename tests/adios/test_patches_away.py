"""Zipped patches in a bucket that is away for a while: the stream waits and gives the same batches."""

import numpy as np
import pytest

from adios.data import PatchReader
from adios.patches.archives import read_directory
from adios.patches.index import archives_of
from adios.patches.index_writer import index_patches
from adios.plan import build_plan, paths
from pathray.data.order import uniform_order
from pathray.data.share import Lookup, rank_rows
from pathray.data.stream import DecodeSettings, stream_batches
from pathray.errors import UnreachableUnit
from pathray.store.outages import through_outages
from pathray.store.storage import write_atomic
from tests.builders.bucket import BucketFileSystem, Outage
from tests.builders.runs.bucket_run import register
from tests.builders.zips import SIZE, write_folder

FOLDER = "bucket://store/zips"


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """The plan of archives in a bucket."""
    register(tmp_path, monkeypatch.setenv)
    monkeypatch.setitem(through_outages.__kwdefaults__, "first_pause_s", 0.05)
    write_folder(tmp_path / "zips")
    for path in (tmp_path / "zips").iterdir():
        write_atomic(f"{FOLDER}/{path.name}", path.read_bytes())
    root, archives = archives_of(FOLDER)
    index_patches(root, archives, str(tmp_path / "i.parquet"), max_corrupt_fraction=0.0)
    yield build_plan(str(tmp_path / "i.parquet"), str(tmp_path / "plan"), patch_size=SIZE)
    BucketFileSystem.outage = None


def batches_of(plan, **settings):
    lookup = Lookup(plan, uniform_order(plan.rows, 0))
    reader = PatchReader.of(plan, 0, size=16)
    return list(
        stream_batches(rank_rows(lookup, 0, 12, 6, 0, 1, 3), reader, lookup, DecodeSettings(threads=2, **settings))
    )


@pytest.mark.parametrize(("operation", "spared"), [("look", 0), ("read", 0), ("read", 7)])
def test_patches_are_the_same_after_an_outage_and_none_is_replaced(plan, operation, spared):
    expected = batches_of(plan)
    BucketFileSystem.outage = away = Outage(operation, "store/zips/*", 1.0, spared)
    found = batches_of(plan, timeout_s=0.7, max_stalled=0)
    assert away.refused, "storage was never away"
    for one, other in zip(found, expected, strict=True):
        assert one.pop("faults") == other.pop("faults") == []
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("operation", ["look", "read"])
def test_an_archive_is_not_damaged_because_its_storage_is_away(plan, operation):
    path = paths(plan)[0]
    BucketFileSystem.outage = Outage(operation, "store/zips/*", 60.0)
    with pytest.raises(UnreachableUnit) as e:
        read_directory(path)
    assert (e.value.reason, e.value.path) == ("io", path)
    BucketFileSystem.outage = Outage(operation, "store/zips/*", 0.05)
    assert read_directory(path).members
