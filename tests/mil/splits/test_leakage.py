"""Copies of a bag under two patients: found whatever was done to them, and similar slides of one site are not taken
for copies."""

import csv
from dataclasses import dataclass

import numpy as np
import pytest

from mil.splits.bag_overlap import shared_tiles
from mil.splits.leakage import REPORT, SAME_CONTENT, SAME_TILES, check_duplicates, find_duplicates
from mil.splits.nearest_means import suspicious_pairs
from mil.store.places import BuildSettings
from mil.store.reading import Store
from pathray.data.splits import Split
from pathray.errors import UserError
from tests.builders.bags import grid_coords, write_bag
from tests.builders.mil import make_store

DIM, SLIDES = 48, 20
ROUNDED = BuildSettings(max_instances=None)


def one_site(slides: int = SLIDES, seed: int = 0) -> dict[str, np.ndarray]:
    """Bags of one hospital: all slides have the same few kinds of tissue in about equal shares, in its own colours."""
    draw = np.random.default_rng(seed)
    kinds = draw.normal(size=(6, DIM)) + 4
    return {
        f"s{i:02d}": (kinds[draw.integers(0, 6, n)] + 0.3 * draw.normal(size=(n, DIM))).astype(np.float32)
        for i, n in enumerate(draw.integers(120, 200, slides))
    }


def store_of(folder, bags, settings=ROUNDED) -> Store:
    for i, (name, features) in enumerate(bags.items()):
        write_bag(folder / "h5" / f"{name}.h5", features, grid_coords(len(features), seed=i))
    return make_store(folder / "store", folder / "h5", settings)


def found_in(store: Store, groups=None) -> list[tuple[str, str, str]]:
    slides = np.arange(len(store))
    found = find_duplicates(store, slides, np.array(groups or store.ids))
    return [(store.ids[one.a], store.ids[one.b], one.kind) for one in found]


def changed(bag: np.ndarray, how: str) -> np.ndarray:
    draw = np.random.default_rng(1)
    if how == "noised":
        return bag + 0.02 * draw.normal(size=bag.shape).astype(np.float32)
    if how == "float16":
        return bag.astype(np.float16).astype(np.float32)
    if how == "bfloat16":
        return (bag.view(np.uint32) & 0xFFFF0000).view(np.float32)
    return bag[draw.permutation(len(bag))[: len(bag) // (2 if how == "cut" else 1)]]


def test_similar_slides_of_one_site_are_not_taken_for_copies(tmp_path):
    assert found_in(store_of(tmp_path, one_site())) == []


@pytest.mark.parametrize("how", ["noised", "float16", "bfloat16", "reordered", "cut"])
def test_a_changed_copy_under_another_patient_is_found_among_similar_slides(tmp_path, how):
    bags = one_site()
    bags["x"] = changed(bags["s03"], how)
    assert found_in(store_of(tmp_path, bags, BuildSettings("float32", None))) == [("s03", "x", SAME_TILES)]


@pytest.mark.parametrize("most", [None, 60])
def test_a_renamed_bag_is_found_even_if_other_tiles_were_kept_of_it(tmp_path, most):
    bags = one_site()
    bags["zz"] = bags["s05"]
    for i, (name, features) in enumerate(bags.items()):
        write_bag(tmp_path / "h5" / f"{name}.h5", features, grid_coords(len(features), seed=5 if name == "zz" else i))
    store = make_store(tmp_path / "store", tmp_path / "h5", BuildSettings(max_instances=most, cap_strategy="random"))
    assert found_in(store) == [("s05", "zz", SAME_CONTENT)]


def test_more_copies_than_neighbours_are_found(tmp_path):
    bags = one_site()
    draw = np.random.default_rng(2)
    for i in range(12):
        bags[f"x{i:02d}"] = bags["s00"] + 0.01 * draw.normal(size=bags["s00"].shape).astype(np.float32)
    in_pairs = {name for a, b, _ in found_in(store_of(tmp_path, bags)) for name in (a, b)}
    assert in_pairs == {"s00", *(f"x{i:02d}" for i in range(12))}


def test_copies_that_are_each_others_neighbours_are_suspicious_in_a_large_cohort():
    draw = np.random.default_rng(0)
    means = draw.normal(size=(300, DIM)).astype(np.float32)
    means[:30] = means[0] + 1e-3 * draw.normal(size=(30, DIM))
    pairs = suspicious_pairs(means, np.array([f"p{i}" for i in range(300)]))
    assert {i for pair in pairs for i in pair} == set(range(30))


def test_copies_within_a_patient_are_no_fault(tmp_path):
    bags = one_site(6)
    bags["x"] = changed(bags["s03"], "noised")
    patients = ["p0", "p1", "p2", "p3", "p4", "p5", "p3"]
    assert found_in(store_of(tmp_path, bags), patients) == []
    assert found_in(Store(str(tmp_path / "store"))) != []


def test_suspicion_is_local_so_that_a_dense_cluster_raises_none_and_a_copy_inside_it_does():
    draw = np.random.default_rng(0)
    sites = np.repeat(draw.normal(size=(3, DIM)), (500, 200, 20), axis=0)
    spread = np.repeat([0.001, 0.1, 1.0], (500, 200, 20))[:, None]
    means = (sites + spread * draw.normal(size=sites.shape)).astype(np.float32)
    groups = np.array([f"p{i}" for i in range(len(means))])
    assert suspicious_pairs(means, groups) == []
    means[17] = means[250] + 1e-5
    assert suspicious_pairs(means, groups) == [(17, 250)]
    groups[17] = groups[250]
    assert suspicious_pairs(means, groups) == []


def test_bags_of_a_few_tiles_have_to_agree_to_rounding():
    draw = np.random.default_rng(0)
    few = draw.normal(size=(3, DIM)).astype(np.float32)
    assert shared_tiles(few, few.astype(np.float16)) == (1.0, True)
    assert shared_tiles(few, few + 0.1)[1] is False
    assert shared_tiles(few[:1], np.concatenate([few, few + 1]))[1] is True


def test_glass_that_many_slides_have_makes_no_copies():
    draw = np.random.default_rng(0)
    glass = np.ones((60, DIM))
    a, b = (np.concatenate([draw.normal(size=(60, DIM)), glass]) for _ in range(2))
    assert shared_tiles(a, b) == (0.0, False)


@dataclass
class Listed:
    """A table of groups."""

    names: np.ndarray
    groups: np.ndarray
    file: str = "slides.csv"
    hash: str = ""

    def row_of(self, index: int) -> int:
        return index + 2


def test_a_pair_in_two_parts_is_refused_by_name_reported_and_can_be_allowed(tmp_path, caplog):
    bags = one_site(6)
    bags["x"] = changed(bags["s03"], "noised")
    store, names = store_of(tmp_path, bags), np.array(list(bags))
    table = Listed(names, np.array([f"p{name}" for name in names]))
    together = Split(np.array(["train"] * 4 + ["val", "test", "train"]), {})
    apart = Split(np.array(["train"] * 4 + ["val", "test", "test"]), {})
    rows = np.arange(len(names))
    check_duplicates(store, table, rows, {"fold_0": together}, folder=str(tmp_path))
    assert not (tmp_path / REPORT).exists()
    splits = {"fold_0": together, "fold_1": apart}
    with pytest.raises(
        UserError, match=r"row: 8; key: x; found: 's03 \(ps03\) and x \(px\), same tiles: train and tes"
    ):
        check_duplicates(store, table, rows, splits, folder=str(tmp_path))
    with open(tmp_path / REPORT, newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["slide_a"], row["patient_b"], row["where"]) == ("s03", "px", "train and test of fold_1")
    check_duplicates(store, table, rows, splits, allowed=True)
    assert "s03 (ps03) and x (px)" in caplog.text
