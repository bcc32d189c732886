import hashlib
import os
import pickle

import h5py
import numpy as np
import pytest

from mil.store.build import StoreBuild
from mil.store.cap import RANDOM, STRATIFIED, kept_rows
from mil.store.places import BuildSettings, Source, lay_out, read_header
from mil.store.reading import Store
from mil.store.write import digest_of, write_slide
from pathray.errors import MissingFile, UserError
from pathray.features.read_bags import open_bag, read_bag
from tests.builders.bags import grid_coords, random_bag, write_bag

ALL = BuildSettings(dtype="float32", max_instances=None)


def sources_in(folder):
    return [Source(path.stem, str(path)) for path in sorted(folder.glob("*.h5"))]


def build(folder, sources, settings=ALL):
    with StoreBuild(str(folder), settings, [read_header(one) for one in sources]) as build:
        written = build.finish(map(write_slide, build.places))
    return Store(str(folder)), written


@pytest.fixture
def bags(tmp_path):
    for i, rows in enumerate((5, 5000, 1, 300)):
        random_bag(tmp_path / "h5" / f"s{i}.h5", rows, seed=i)
    return tmp_path / "h5"


def test_a_store_holds_each_slides_features_and_positions(bags, tmp_path):
    store, _ = build(tmp_path / "store", sources_in(bags))
    assert store.ids == ["s0", "s1", "s2", "s3"] and store.rows.tolist() == [5, 5000, 1, 300]
    for i, name in enumerate(store.ids):
        bag = read_bag(str(bags / f"{name}.h5"))
        np.testing.assert_array_equal(store.features(i), bag.features)
        np.testing.assert_allclose(store.positions(i), bag.coords / 512, atol=1e-6)
        np.testing.assert_allclose(store.means[i], bag.features.mean(axis=0), atol=1e-6)
        store.check(i)
    again = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(again.features(3), store.features(3))


@pytest.mark.parametrize("strategy", [RANDOM, STRATIFIED])
def test_capped_features_and_coordinates_stay_together(bags, tmp_path, strategy):
    settings = BuildSettings(dtype="float32", max_instances=64, cap_strategy=strategy, cap_grid_size=8)
    store, _ = build(tmp_path / "store", sources_in(bags), settings)
    assert store.rows.tolist() == [5, 64, 1, 64] and store.slides["listed_rows"].to_pylist() == [5, 5000, 1, 300]
    bag = read_bag(str(bags / "s1.h5"))
    rows = kept_rows(5000, 64, strategy=strategy, coords=bag.coords, grid=8, seed=42, name="s1")
    np.testing.assert_array_equal(store.features(1), bag.features[rows])
    np.testing.assert_array_equal(store.stored_coords(1), bag.coords[rows])


def test_slides_fill_chunks_of_a_limited_size_and_stay_whole(bags, tmp_path):
    settings = BuildSettings(dtype="float16", max_instances=None, chunk_bytes=301 * 8 * 2)
    store, _ = build(tmp_path / "store", sources_in(bags), settings)
    assert store.slides["chunk"].to_pylist() == [0, 1, 2, 2] and store.slides["start"].to_pylist() == [0, 0, 0, 1]
    np.testing.assert_array_equal(store.features(3), read_bag(str(bags / "s3.h5")).features.astype(np.float16))


def test_equal_bags_make_equal_stores_whatever_the_order_and_the_chunks_of_their_files(bags, tmp_path):
    first, _ = build(tmp_path / "one", sources_in(bags))
    bag = read_bag(str(bags / "s1.h5"))
    with h5py.File(bags / "s1.h5", "w") as file:  # the same content in another layout
        file.create_dataset("features", data=bag.features, chunks=(17, 3))
        file["coords"] = bag.coords
        file["coords"].attrs.update(bag.tile)
    second, _ = build(tmp_path / "two", sources_in(bags)[::-1])
    assert first.meta["sha256"] == second.meta["sha256"]
    assert first.slides["source_sha256"].to_pylist() == second.slides["source_sha256"].to_pylist()


def test_changed_features_of_equal_shape_have_another_digest(bags):
    def digest():
        with open_bag(str(bags / "s0.h5")) as bag:
            return digest_of(bag)

    before = digest()
    with h5py.File(bags / "s0.h5", "r+") as file:
        file["features"][3, 2] += 1e-3
    assert digest() != before


def test_a_value_beyond_float16_is_refused_and_kept_in_float32(bags, tmp_path):
    with h5py.File(bags / "s0.h5", "r+") as file:
        file["features"][3, 2] = 70000
    _, written = build(tmp_path / "half", sources_in(bags), BuildSettings())
    (failed,) = [one for one in written if one.error]
    assert failed.source.slide_id == "s0" and "7e+04" in failed.error and "float32" in failed.error
    store, _ = build(tmp_path / "full", sources_in(bags))
    assert store.features(0)[3, 2] == 70000


def test_slides_that_cannot_be_read_are_told_and_the_others_stored(bags, tmp_path):
    (bags / "s9.h5").write_bytes(b"no bag")
    with h5py.File(bags / "s3.h5", "r+") as file:
        file["features"][200, 1] = np.nan
    headers = [read_header(one) for one in sources_in(bags)]
    assert [h.error[:15] for h in headers] == ["", "", "", "", "not an H5 file,"]
    store, written = build(tmp_path / "store", sources_in(bags))
    assert store.ids == ["s0", "s1", "s2"]
    assert ["row: 200" in one.error for one in written] == [False, False, False, True]


def test_bags_of_two_encoders_are_refused_with_an_example_of_each(bags, tmp_path):
    random_bag(bags / "t.h5", 9, dim=5)
    with pytest.raises(UserError, match=r"different widths.*t\.h5.*1 of 5.*4 of 8"):
        build(tmp_path / "store", sources_in(bags))
    twice = [read_header(Source("s0", str(bags / f"s{i}.h5"))) for i in range(2)]
    with pytest.raises(UserError, match="two bags of one slide"):
        lay_out(twice, "", ALL)


def test_a_build_that_ends_early_leaves_the_older_store_readable(bags, tmp_path):
    store, _ = build(tmp_path / "store", sources_in(bags))
    before = [hashlib.sha256(np.ascontiguousarray(store.features(i)).data).digest() for i in range(4)]
    headers = [read_header(one) for one in sources_in(bags)]
    with pytest.raises(ZeroDivisionError), StoreBuild(str(tmp_path / "store"), ALL, headers) as build_:
        write_slide(build_.places[0])
        raise ZeroDivisionError
    assert sorted(os.listdir(tmp_path)) == ["h5", "store"]
    again = Store(str(tmp_path / "store"))
    assert [hashlib.sha256(np.ascontiguousarray(again.features(i)).data).digest() for i in range(4)] == before


def test_one_slide_has_equal_positions_from_trident_and_stamp(tmp_path):
    features, tiles = np.ones((40, 8), np.float32), grid_coords(40, side=1)
    write_bag(tmp_path / "h5" / "t.h5", features, tiles * 512, of_coords={"patch_size_level0": 512})
    stamp = {"unit": "um", "tile_size_um": 256.1}
    write_bag(tmp_path / "h5" / "u.h5", features, tiles * 256.1, key="feats", whole=stamp)
    store, _ = build(tmp_path / "store", sources_in(tmp_path / "h5"))
    np.testing.assert_allclose(store.positions(0), store.positions(1), atol=1e-5)
    assert store.slides["unit"].to_pylist() == ["px", "um"] and store.slides["side_stated"].to_pylist() == [True, True]


def test_bags_without_coords_have_no_positions(tmp_path):
    write_bag(tmp_path / "h5" / "a.h5", np.ones((4, 3), np.float32))
    store, _ = build(tmp_path / "store", sources_in(tmp_path / "h5"))
    assert store.positions(0) is None


def test_a_flipped_bit_is_named_by_its_slide(bags, tmp_path):
    store, _ = build(tmp_path / "store", sources_in(bags))
    with open(tmp_path / "store" / "features_000.bin", "r+b") as file:
        file.seek(5 * 8 * 4 + 11)
        file.write(b"\xff")
    store.check(0)
    with pytest.raises(UserError, match="damaged.*key: s1"):
        store.check(1)


def test_a_store_that_was_cut_short_is_refused(bags, tmp_path):
    build(tmp_path / "store", sources_in(bags))
    os.truncate(tmp_path / "store" / "coords_000.bin", 99)
    with pytest.raises(UserError, match="damaged.*coords_000"):
        Store(str(tmp_path / "store"))
    with pytest.raises(MissingFile, match="no feature store"):
        Store(str(bags))


def test_real_bags_of_other_tools_are_stored(shared_data, tmp_path):
    sources = [Source(path.stem, str(path)) for path in sorted((shared_data / "mil").glob("*.h5"))]
    store, written = build(tmp_path / "store", sources, BuildSettings())
    assert store.rows.tolist() == [180, 777] and store.dim == 512 and not any(one.error for one in written)
    assert store.positions(0) is None and store.positions(1) is not None
