"""The predecessor's store: every slide comes through with its bits, and what does not fit is named."""

import numpy as np
import pytest

from mil.store.build import StoreBuild
from mil.store.index_arrays import read_array_index
from mil.store.open_bags import open_bag_of, state_of
from mil.store.places import BuildSettings, read_header
from mil.store.reading import Store
from mil.store.sources import find_bags, is_current
from mil.store.write import write_slide
from pathray.errors import MissingFile, UserError

IDS, LENGTHS, CHUNKS, DIM = ["b", "a", "c"], [5, 3, 4], [0, 0, 1], 6
KEEP_ALL = BuildSettings(dtype="float32", max_instances=None)


def write_arrays(folder, dtype=np.float32, leave=(), **changes):
    """Three slides in two chunks. Returns features and coords by slide."""
    folder.mkdir(exist_ok=True)
    draw, slides = np.random.default_rng(0), {}
    for chunk in (0, 1):
        own = [(one, n) for one, n, c in zip(IDS, LENGTHS, CHUNKS, strict=True) if c == chunk]
        for one, n in own:
            cells = draw.choice(100, n, replace=False)
            coords = np.stack([cells % 10, cells // 10], 1).astype(np.int32) * 256
            slides[one] = (draw.normal(size=(n, DIM)).astype(dtype), coords)
        for i, kind in enumerate(("features", "coords")):
            np.concatenate([slides[one][i] for one, _ in own]).tofile(folder / f"{kind}_{chunk:03d}.bin")
    arrays = {
        "slide_ids": np.array(IDS), "offsets": np.array([0, 5, 0]), "lengths": np.array(LENGTHS),
        "chunk_ids": np.array(CHUNKS), "feat_dim": np.array(DIM),
    } | changes  # fmt: skip
    np.savez(folder / "index_arrays.npz", **{k: v for k, v in arrays.items() if k not in leave})
    return slides


def build(folder, target, settings=KEEP_ALL):
    headers = [read_header(one) for one in find_bags(str(folder)).sources]
    with StoreBuild(str(target), settings, headers) as building:
        building.finish(map(write_slide, building.places))
    return Store(str(target))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_every_slide_keeps_its_features_and_coords(tmp_path, dtype):
    slides = write_arrays(tmp_path / "old", dtype)
    store = build(tmp_path / "old", tmp_path / "new")
    assert store.ids == ["a", "b", "c"]
    for i, one in enumerate(store.ids):
        np.testing.assert_array_equal(store.features(i), slides[one][0].astype(np.float32))
        np.testing.assert_array_equal(store.stored_coords(i), slides[one][1])
        store.check(i)
        np.testing.assert_allclose(store.means[i], slides[one][0].astype(np.float64).mean(axis=0), rtol=1e-6)


def test_a_store_of_it_is_current_until_its_content_changes(tmp_path):
    write_arrays(tmp_path / "old")
    build(tmp_path / "old", tmp_path / "new")
    sources = find_bags(str(tmp_path / "old")).sources
    assert is_current(str(tmp_path / "new"), sources, KEEP_ALL)
    (tmp_path / "old" / "features_000.bin").touch()
    assert is_current(str(tmp_path / "new"), sources, KEEP_ALL)
    with open(tmp_path / "old" / "features_000.bin", "r+b") as file:
        file.write(np.float32(7).tobytes())
    assert not is_current(str(tmp_path / "new"), sources, KEEP_ALL)


@pytest.mark.parametrize(
    "changes",
    [
        {"offsets": np.array([0, 5, 8])},  # that run on over chunks
        {"slide_ids": np.array([b"b", b"a", b"c"])},
        {"feat_dtype": np.array("fp32"), "feat_dim": np.array([DIM])},
    ],
)
def test_variants_of_the_arrays_mean_the_same(tmp_path, changes):
    slides = write_arrays(tmp_path / "old", **changes)
    index = read_array_index(str(tmp_path / "old"))
    assert index.ids == tuple(IDS) and index.offsets.tolist() == [0, 5, 0] and index.dim == DIM
    with open_bag_of(f"{tmp_path}/old/index_arrays.npz#c") as bag:
        np.testing.assert_array_equal(bag.read(), slides["c"][0])


def test_arrays_by_other_names_and_without_coords_are_read(tmp_path):
    changes = {"starts": np.array([0, 5, 0]), "chunk_map": np.array(CHUNKS), "feature_dtype": np.array("float16")}
    write_arrays(tmp_path / "old", np.float16, leave=("offsets", "chunk_ids", "feat_dim"), **changes)
    for path in (tmp_path / "old").glob("coords*"):
        path.unlink()
    with open_bag_of(f"{tmp_path}/old/index_arrays.npz#b") as bag:
        assert (bag.rows, bag.dim, bag.dtype, bag.coords) == (5, DIM, np.float16, None)


def test_arrays_of_objects_are_refused_with_the_remedy_and_never_unpickled(tmp_path):
    write_arrays(tmp_path / "old", slide_ids=np.array(IDS, object))
    with pytest.raises(UserError, match=r"key: slide_ids.*astype\(str\)"):
        find_bags(str(tmp_path / "old"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"leave": ("offsets", "lengths")}, "offsets or starts or row_offsets; lengths or"),
        ({"lengths": np.array([5, 3])}, r"int64\[2\]"),
        ({"lengths": np.array([5, 3, 0])}, "key: c; found: 'offset 0, length 0'"),
        ({"lengths": np.array([5, 3, 9])}, r"not as large as the index says.*features_001\.bin"),
        ({"offsets": np.array([0, 4, 0])}, "overlap or leave a gap.*key: a"),
        ({"chunk_ids": np.array([0, 0, 2])}, r"a chunk is missing.*features_002\.bin"),
        ({"slide_ids": np.array(["a", "b", "a"])}, "there twice.*key: a"),
        ({"slide_ids": np.array([["a", "b", "c"]])}, "not the ids"),
        ({"feat_dim": np.array(DIM + 1)}, "cannot be told"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_refused(tmp_path, changes, said):
    write_arrays(tmp_path / "old", **changes)
    with pytest.raises(UserError, match=said):
        read_array_index(str(tmp_path / "old"))


def test_files_that_are_cut_short_or_no_index_are_refused(tmp_path):
    write_arrays(tmp_path / "old")
    with open(tmp_path / "old" / "coords_000.bin", "r+b") as file:
        file.truncate(60)
    with pytest.raises(UserError, match=r"coords_000\.bin.*60 bytes.*64 bytes"):
        read_array_index(str(tmp_path / "old"))
    (tmp_path / "old" / "index_arrays.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(UserError, match="not an index of arrays"):
        find_bags(str(tmp_path / "old"))
    with pytest.raises(MissingFile):
        read_array_index(str(tmp_path))


def test_a_value_that_is_not_finite_fails_its_slide_alone(tmp_path):
    slides = write_arrays(tmp_path / "old")
    flat = np.concatenate([slides["b"][0], slides["a"][0]])
    flat[6, 2] = np.nan
    flat.tofile(tmp_path / "old" / "features_000.bin")
    headers = [read_header(one) for one in find_bags(str(tmp_path / "old")).sources]
    with StoreBuild(str(tmp_path / "new"), KEEP_ALL, headers) as building:
        written = building.finish(map(write_slide, building.places))
    errors = {one.source.slide_id: one.error for one in written if one.error}
    assert list(errors) == ["a"] and "not finite" in errors["a"] and "row: 1" in errors["a"]


def test_a_slide_that_is_not_there_is_missing(tmp_path):
    write_arrays(tmp_path / "old")
    with pytest.raises(MissingFile, match="no such slide"), open_bag_of(f"{tmp_path}/old/index_arrays.npz#z"):
        pass
    assert state_of(f"{tmp_path}/old/index_arrays.npz#c")[0] > 4 * DIM * 4
