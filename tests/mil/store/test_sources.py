import json
import os

import h5py
import pytest

from mil.store.build import StoreBuild
from mil.store.places import BuildSettings, read_header
from mil.store.sources import find_bags, is_current
from mil.store.write import write_slide
from pathray.errors import MissingFile, UserError
from tests.builders.bags import random_bag

SETTINGS = BuildSettings(max_instances=50)


@pytest.fixture
def bags(tmp_path):
    for i in range(3):
        random_bag(tmp_path / "h5" / f"site{i % 2}" / f"s{i}.h5", 60 + i, seed=i)
    return tmp_path / "h5"


def build(bags, store):
    listed = find_bags(str(bags))
    with StoreBuild(str(store), SETTINGS, [read_header(one) for one in listed.sources]) as building:
        building.finish(map(write_slide, building.places))
    return listed


def test_bags_are_found_at_any_depth_by_name(bags):
    assert [one.slide_id for one in find_bags(str(bags)).sources] == ["s0", "s1", "s2"]
    random_bag(bags / "s1.h5", 5)
    with pytest.raises(UserError, match="two bags of one slide.*key: s1"):
        find_bags(str(bags))
    with pytest.raises(MissingFile, match="no folder of bags"):
        find_bags(str(bags / "nowhere"))


def test_a_table_chooses_slides_and_those_without_a_bag_are_listed(bags, tmp_path):
    csv = tmp_path / "slides.csv"
    csv.write_text("slide_id,label\ns2,a\ns9,b\ns0,a\ns0,a\n")
    listed = find_bags(str(bags), str(csv))
    assert [one.slide_id for one in listed.sources] == ["s0", "s2"]
    assert [name for name, _ in listed.missing] == ["s9"] and "s9.h5" in listed.missing[0][1]


def test_a_column_of_paths_says_where_bags_are(bags, tmp_path):
    csv = tmp_path / "manifest.csv"
    csv.write_text("slide_id,slide_path\nfirst,site0/s0.h5\ns1,site9/s1.h5\n")
    listed = find_bags(str(bags), str(csv))
    assert [(one.slide_id, one.path[-11:]) for one in listed.sources] == [
        ("first", "site0/s0.h5"),
        ("s1", "site1/s1.h5"),
    ]


def test_a_touched_bag_is_current_and_changed_features_of_equal_shape_are_not(bags, tmp_path):
    listed = build(bags, tmp_path / "store")
    assert is_current(str(tmp_path / "store"), listed.sources, SETTINGS)
    os.utime(listed.sources[1].path, (1, 1))
    assert is_current(str(tmp_path / "store"), listed.sources, SETTINGS)
    with h5py.File(listed.sources[1].path, "r+") as file:
        file["features"][3, 2] += 0.5
    os.utime(listed.sources[1].path, (2, 2))
    assert not is_current(str(tmp_path / "store"), listed.sources, SETTINGS)


def test_other_settings_and_other_slides_make_a_store_stale(bags, tmp_path):
    listed = build(bags, tmp_path / "store")
    assert not is_current(str(tmp_path / "store"), listed.sources, BuildSettings(max_instances=49))
    assert not is_current(str(tmp_path / "store"), listed.sources[:2], SETTINGS)
    assert not is_current(str(tmp_path / "none"), listed.sources, SETTINGS)
    description = json.loads((tmp_path / "store" / "store.json").read_text())
    (tmp_path / "store" / "store.json").write_text(json.dumps(description | {"schema_version": 99}))
    assert not is_current(str(tmp_path / "store"), listed.sources, SETTINGS)
