"""From index to plan: narrow, filtered by size, hashed, and blind to where the archives lie."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adios.patches.index import SCHEMA, archives_of
from adios.patches.index_writer import index_patches
from adios.plan import build_plan, identity, paths
from pathray.errors import MissingFile, UserError
from tests.builders.zips import SIZE, encoded, patch_name, picture, write_archive, write_folder, write_zip


def build(source, output):
    root, archives = archives_of(str(source))
    index_patches(root, archives, str(output), max_corrupt_fraction=0.0)
    return str(output)


def test_a_unit_has_what_the_index_says_in_24_bytes(tmp_path):
    write_folder(tmp_path / "zips")
    index = build(tmp_path / "zips", tmp_path / "i.parquet")
    plan = build_plan(index, str(tmp_path / "plan"), patch_size=SIZE)
    rows = pq.read_table(index).to_pylist()
    units = plan.take(np.arange(plan.rows))
    assert sum(values.dtype.itemsize for values in units.values()) == 24
    found = zip(*(units[c].tolist() for c in ("source", "offset", "compressed", "bytes", "crc")), strict=True)
    names = plan.sources["archive"].to_pylist()
    expected = [(r["archive"], r["offset"], r["compressed_bytes"], r["bytes"], r["crc"]) for r in rows]
    assert [(names[source], *rest) for source, *rest in found] == expected
    assert paths(plan) == [str(tmp_path / "zips" / name) for name in names]


def test_only_patches_of_the_size_asked_for_are_in_the_plan(tmp_path):
    for name, sizes in (("a.zip", (32, 16, 32)), ("b.zip", (16, 16)), ("c.zip", (32,))):
        write_zip(tmp_path / "zips" / name, {patch_name(i, size): b"x" for i, size in enumerate(sizes)})
    index = build(tmp_path / "zips", tmp_path / "i.parquet")
    plan = build_plan(index, str(tmp_path / "plan"), patch_size=32)
    assert plan.sources["archive"].to_pylist() == ["a.zip", "c.zip"]
    assert plan.take(np.arange(plan.rows))["source"].tolist() == [0, 0, 1]
    with pytest.raises(UserError, match="no patches of 448 pixels") as caught:
        build_plan(index, str(tmp_path / "none"))
    assert caught.value.where["found"] == {"16 px": 3, "32 px": 3}
    assert not (tmp_path / "none").exists()


def test_moved_archives_have_the_same_identity_and_other_patches_another(tmp_path):
    write_folder(tmp_path / "zips")
    first = build_plan(build(tmp_path / "zips", tmp_path / "i.parquet"), str(tmp_path / "plan"), patch_size=SIZE)
    shutil.copytree(tmp_path / "zips", tmp_path / "moved")
    again = build_plan(build(tmp_path / "moved", tmp_path / "j.parquet"), str(tmp_path / "plan2"), patch_size=SIZE)
    told = build_plan(
        str(tmp_path / "i.parquet"), str(tmp_path / "plan3"), patch_size=SIZE, root=str(tmp_path / "moved")
    )
    assert identity(first) == identity(again) == identity(told)
    assert paths(again) == paths(told) == [str(tmp_path / f"moved/s{i}.zip") for i in range(3)]
    members = {patch_name(i, x=100 * i, y=7 * i): encoded(picture(f"new {i}")) for i in range(6)}
    write_zip(tmp_path / "moved/s0.zip", members)
    other = build_plan(build(tmp_path / "moved", tmp_path / "k.parquet"), str(tmp_path / "plan4"), patch_size=SIZE)
    assert other.rows == first.rows and identity(other) != identity(first)


def test_offsets_beyond_4_gb_fit(tmp_path):
    columns = {name: [0] for name in SCHEMA.names} | {
        "archive": ["a.zip"], "name": ["x"], "slide": ["a"], "offset": [7 << 32], "size": [448], "crc": [0xFFFFFFFF]
    }  # fmt: skip
    layout = SCHEMA.with_metadata({"schema_version": "1", "root": "/data"})
    pq.write_table(pa.table(columns, schema=layout), tmp_path / "i.parquet")
    plan = build_plan(str(tmp_path / "i.parquet"), str(tmp_path / "plan"))
    unit = plan.take([0])
    assert (int(unit["offset"][0]), int(unit["crc"][0])) == (7 << 32, 0xFFFFFFFF)


def test_an_index_that_is_not_there_is_missing(tmp_path):
    with pytest.raises(MissingFile):
        build_plan(str(tmp_path / "i.parquet"), str(tmp_path / "plan"))


def test_equal_patches_give_an_equal_plan(tmp_path):
    write_archive(tmp_path / "zips/a.zip", 5)
    index = build(tmp_path / "zips", tmp_path / "i.parquet")
    hashes = {build_plan(index, str(tmp_path / f"plan{i}"), patch_size=SIZE).hash for i in range(2)}
    assert len(hashes) == 1
