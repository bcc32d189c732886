import errno
import os

import h5py
import numpy as np
import pytest

from pathray.errors import MissingFile, UserError
from pathray.features.bags import BagWriter, read_summary
from pathray.features.read_bags import open_bag, read_bag
from pathray.store.storage import StorageError

COORDS = np.array([[0, 0], [64, 0], [0, 64], [64, 64], [128, 64]], np.int64)
TILE = {"name": "s1", "patch_size": 32, "patch_size_level0": 64, "overlap": 0, "mpp": 1.0}
FEATURES = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)


def writer(path, *, dtype="float32", coords=COORDS, dim=7):
    given = {"tile": TILE, "provenance": {"encoder": {"sha256": "ab"}}, "fingerprint": "f1"}
    return BagWriter(str(path), coords, dim, dtype=dtype, **given)


def write(path, features=FEATURES, **options):
    with writer(path, **options) as bag:
        bag.write(3, features[3:])
        bag.write(0, features[:3])
    return path


def test_a_bag_comes_back_as_it_was_written(tmp_path):
    bag = read_bag(str(write(tmp_path / "a" / "s1.h5")))
    np.testing.assert_array_equal(bag.features, FEATURES)
    np.testing.assert_array_equal(bag.coords, COORDS)
    assert bag.features.dtype == np.float32 and bag.tile == TILE and bag.provenance == {"encoder": {"sha256": "ab"}}
    half = read_bag(str(write(tmp_path / "half.h5", dtype="float16")))
    np.testing.assert_array_equal(half.features, FEATURES.astype(np.float16))


def test_others_find_in_it_what_they_look_for(tmp_path):
    """The keys, ranks and attributes that readers of CLAM and TRIDENT bags use."""
    with h5py.File(write(tmp_path / "s1.h5"), "r") as file:
        assert file["features"].shape == (5, 7) and file["coords"].shape == (5, 2)
        attributes = dict(file["coords"].attrs)
        assert {"patch_size", "patch_size_level0", "overlap", "name"} <= set(attributes)
        assert isinstance(attributes["name"], str) and int(attributes["patch_size_level0"]) == 64


def test_equal_inputs_give_equal_bytes(tmp_path):
    first, second = write(tmp_path / "1" / "s.h5"), write(tmp_path / "2" / "s.h5")
    assert first.read_bytes() == second.read_bytes()


def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path):
    path = write(tmp_path / "s.h5")
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError), writer(path) as bag:
        bag.write(0, FEATURES[:2] + 1)
        raise ZeroDivisionError
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["s.h5"]


def test_a_bag_with_unwritten_rows_is_never_published(tmp_path):
    with pytest.raises(AssertionError, match="2 rows"), writer(tmp_path / "s.h5") as bag:
        bag.write(0, FEATURES[:3])
    assert os.listdir(tmp_path) == []
    with pytest.raises(AssertionError, match="twice"), writer(tmp_path / "s.h5") as bag:
        bag.write(0, FEATURES[:3])
        bag.write(2, FEATURES[2:])
    assert os.listdir(tmp_path) == []


def test_features_that_float16_cannot_hold_are_refused_and_so_are_those_that_are_not_finite(tmp_path):
    large = FEATURES * 1e6
    with pytest.raises(UserError, match=r"do not fit float16.*expected: 'float32'"):
        write(tmp_path / "s.h5", large, dtype="float16")
    write(tmp_path / "s.h5", large)
    for bad in (np.nan, np.inf):
        broken = FEATURES.copy()
        broken[4, 2] = bad
        with pytest.raises(UserError, match="not finite"):
            write(tmp_path / "t.h5", broken)
    assert os.listdir(tmp_path) == ["s.h5"]


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_is_told_with_the_path_and_leaves_nothing(tmp_path, monkeypatch, call):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    if call == "fsync":
        monkeypatch.setattr("pathray.store.atomic.fsync", full)
    else:
        monkeypatch.setattr(h5py.Dataset, "__setitem__", full)
    with pytest.raises(StorageError, match=r"No space left.*s\.h5"):
        write(tmp_path / "s.h5")
    assert os.listdir(tmp_path) == []


def test_a_bag_on_remote_storage_is_uploaded_whole():
    path = "memory://bags/enc/s1.h5"
    with pytest.raises(ZeroDivisionError), writer(path) as bag:
        bag.write(0, FEATURES)
        raise ZeroDivisionError
    assert read_summary(path) is None
    write(path)
    np.testing.assert_array_equal(read_bag(path).features, FEATURES)
    assert read_summary(path).fingerprint == "f1"


def test_a_summary_says_what_a_bag_is_made_of_or_that_it_is_none(tmp_path):
    path = write(tmp_path / "s.h5")
    assert (read_summary(str(path)).fingerprint, read_summary(str(path)).rows) == ("f1", 5)
    assert read_summary(str(tmp_path / "none.h5")) is None
    (tmp_path / "cut.h5").write_bytes(path.read_bytes()[:900])
    assert read_summary(str(tmp_path / "cut.h5")) is None
    with h5py.File(path, "r+") as file:
        file.attrs["schema_version"] = 99
    assert read_summary(str(path)) is None
    with pytest.raises(UserError, match="newer version"):
        read_bag(str(path))


def test_bags_of_others_are_read(tmp_path, shared_data):
    for name, rows in (("wsi_features_TCGA-AD-6964.h5", 777), ("wsi_features_TCGA-3X-AAVA.h5", 180)):
        bag = read_bag(str(shared_data / "mil" / name))
        assert bag.features.shape == (rows, 512) and bag.provenance == {}
        assert bag.coords is None or bag.coords.shape == (rows, 2)


def test_a_leading_axis_of_one_is_taken_off(tmp_path):
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file["features"], file["coords"] = FEATURES[None], COORDS[None]
    bag = read_bag(str(tmp_path / "t.h5"))
    assert bag.features.shape == (5, 7) and bag.coords.shape == (5, 2)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"x": FEATURES}, "no features"),
        ({"features": FEATURES[:, 0]}, "not a bag"),
        ({"features": COORDS}, "not a bag"),
        ({"features": FEATURES[:0]}, "empty"),
        ({"features": FEATURES, "coords": COORDS[:4]}, "do not match"),
        ({"features": np.full((2, 3), np.nan, np.float32)}, "not finite"),
    ],
)
def test_what_is_no_bag_is_refused_with_the_reason(tmp_path, content, said):
    with h5py.File(tmp_path / "t.h5", "w") as file:
        for key, value in content.items():
            file[key] = value
    with pytest.raises(UserError, match=said):
        read_bag(str(tmp_path / "t.h5"))
    (tmp_path / "t.h5").write_bytes(b"not H5 at all")
    with pytest.raises(UserError, match="not an H5 file"):
        read_bag(str(tmp_path / "t.h5"))
    with pytest.raises(MissingFile):
        read_bag(str(tmp_path / "u.h5"))


def write_layout(path, coords, whole=None, of_coords=None, features=None):
    """A bag as other tools write it: attributes of the file and of its coords."""
    with h5py.File(path, "w") as file:
        file["features"] = np.ones((len(coords), 3), np.float32) if features is None else features
        file["coords"] = coords
        file.attrs.update(whole or {})
        file["coords"].attrs.update(of_coords or {})
    return str(path)


CORNERS = np.array([(0, 0), (2, 0), (0, 1), (3, 7)])  # in sides of a tile


@pytest.mark.parametrize(
    ("scale", "whole", "of_coords"),
    [
        (512, {}, {"patch_size": 256, "patch_size_level0": 512, "target_magnification": 20}),  # TRIDENT
        (1024, {}, {"patch_size": 256, "patch_level": 1, "downsample": np.array([4.0, 4.0])}),  # CLAM
        (256.5, {"unit": "um", "tile_size_um": 256.5, "tile_size_px": 224}, {}),  # STAMP
        (256.5, {"unit": "um", "tile_size": 256.5}, {}),
        (224, {}, {}),  # nothing is said: the least distance between tiles
    ],
)
def test_a_slide_has_equal_positions_in_every_layout(tmp_path, scale, whole, of_coords):
    bag = read_bag(write_layout(tmp_path / "b.h5", CORNERS * scale, whole, of_coords))
    np.testing.assert_allclose(bag.positions, CORNERS, atol=1e-12)
    assert (bag.unit, bag.side) == ("um" if whole else "px", scale)
    np.testing.assert_array_equal(bag.coords, CORNERS * scale)  # fractions and all


def test_coords_are_whole_numbers_unless_they_have_fractions(tmp_path):
    assert read_bag(write_layout(tmp_path / "a.h5", CORNERS * 512.0)).coords.dtype == np.int64
    assert read_bag(write_layout(tmp_path / "b.h5", CORNERS * 256.5)).coords.dtype == np.float64


@pytest.mark.parametrize(
    ("coords", "whole", "said"),
    [
        (np.array([(0.0, 1.0), (np.nan, 2.0)]), {}, "coords are not finite.*row: 1"),
        (np.zeros((300, 2), np.int64), {}, "many tiles at few positions.*300 rows at 1 positions"),
        (CORNERS, {"unit": "inch"}, "unknown unit.*inch"),
    ],
)
def test_coords_that_say_nothing_are_refused(tmp_path, coords, whole, said):
    path = write_layout(tmp_path / "b.h5", coords, whole)
    with pytest.raises(UserError, match=said):
        read_bag(path)


def test_a_bag_is_read_in_ranges_and_the_first_bad_row_is_named(tmp_path):
    features = np.arange(12, dtype=np.float32).reshape(4, 3)
    features[2, 1] = np.inf
    with open_bag(write_layout(tmp_path / "b.h5", CORNERS, features=features)) as bag:
        assert (bag.rows, bag.dim, bag.dtype) == (4, 3, np.float32)
        np.testing.assert_array_equal(bag.read(0, 2), features[:2])
        with pytest.raises(UserError, match="not finite.*row: 2"):
            bag.read(1, 4)
