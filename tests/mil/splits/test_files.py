"""Files of splits: they come back for the cohort in any order, and what was edited, cut or is of others is refused."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mil.cohort import read_cohort
from mil.config import SplitsConfig
from mil.splits import read_split, split_files, splits_of, write_splits
from mil.splits.files import KEY, rows_of
from mil.store.reading import Store
from pathray.errors import MissingFile, UserError
from pathray.store.sealed_parquet import to_bytes
from tests.builders.mil import write_cohort


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort"), patients=12)


def cohort_of(root, csv="slides.csv", label="label", task="classification"):
    return read_cohort(str(root / csv), Store(str(root / "store")), label=label, task=task)


@pytest.fixture
def cohort(root):
    return cohort_of(root)


@pytest.fixture
def folder(cohort, tmp_path):
    write_splits(str(tmp_path), cohort, splits_of(cohort, SplitsConfig(folds=3)))
    return tmp_path


def read_all(folder, cohort):
    return {name: read_split(path, cohort) for name, path in split_files(str(folder)).items()}


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (SplitsConfig(folds=3), ["fold_0", "fold_1", "fold_2"]),
        (SplitsConfig("holdout"), ["run"]),
        (SplitsConfig("mccv", repeats=2), ["repeat_0", "repeat_1"]),
        (SplitsConfig("nested", folds=2, inner_folds=2), [f"outer_{i}_inner_{j}" for i in (0, 1) for j in (0, 1)]),
    ],
)
def test_splits_come_back_for_a_table_in_another_order(cohort, root, tmp_path, config, names):
    made = splits_of(cohort, config)
    write_splits(str(tmp_path), cohort, made)
    first, *lines = (root / "slides.csv").read_text().splitlines()
    (root / "reversed.csv").write_text("\n".join([first, *lines[::-1]]) + "\n")
    other = cohort_of(root, "reversed.csv")
    found = read_all(tmp_path, other)
    assert list(found) == names == list(made)
    for name, split in found.items():
        assert np.array_equal(split.of, made[name].of) and split.meta["kind"] == made[name].meta["kind"]
    again = write_splits(str(tmp_path / "again"), other, splits_of(other, config))
    for path in again.values():
        name = path.rpartition("/")[2]
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_the_summary_counts_slides_patients_and_classes_in_strict_json(cohort, folder):
    found = json.loads((folder / "summary.json").read_text(), parse_constant=pytest.fail)
    assert (found["scheme"], found["settings"]["seed"], found["slides"], found["patients"]) == (
        "stratified-group-k-fold", 42, 24, 12,
    )  # fmt: skip
    for entry in found["splits"].values():
        assert entry["parts"]["test"] == {"slides": 8, "patients": 4, "classes": {"normal": 4, "tumor": 4}}
    assert found["store_sha256"] == cohort.store_hash and found["table_sha256"] == cohort.hash


def test_a_regression_has_numbers_as_labels_and_no_classes(root, tmp_path):
    cohort = cohort_of(root, label="score", task="regression")
    write_splits(str(tmp_path), cohort, splits_of(cohort, SplitsConfig("holdout")))
    assert np.array_equal(read_all(tmp_path, cohort)["run"].of, splits_of(cohort, SplitsConfig("holdout"))["run"].of)
    assert "classes" not in json.loads((tmp_path / "summary.json").read_text())["splits"]["run"]["parts"]["test"]


def test_files_of_an_earlier_scheme_do_not_stay(cohort, folder):
    write_splits(str(folder), cohort, splits_of(cohort, SplitsConfig("holdout")))
    assert sorted(path.name for path in folder.iterdir()) == ["fold_run.parquet", "summary.json"]


def edit(path, change, keep=True, seal=False):
    """The file with changed rows: with the metadata that it had, or as pandas writes it, or sealed anew."""
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    edited = pa.Table.from_pylist(rows, schema=table.schema if keep else table.schema.remove_metadata())
    if seal:
        own = {KEY: table.schema.metadata[KEY.encode()]}
        path.write_bytes(to_bytes(edited.replace_schema_metadata(own)))
    else:
        pq.write_table(edited, path)


def move_patient(rows):
    patient = next(row["patient_id"] for row in rows if row["part"] == "test")
    for row in rows:
        row["part"] = "train" if row["patient_id"] == patient else row["part"]


def move_slide(rows):
    next(row for row in rows if row["part"] == "test")["part"] = "train"


def repeat_slide(rows):
    rows.append({**rows[0], "part": "val" if rows[0]["part"] != "val" else "test", "patient_id": "other"})


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"change": move_patient}, "the split was edited"),
        ({"change": move_patient, "keep": False}, "another program wrote it"),
        ({"change": move_patient, "seal": True}, "the split was edited"),
        (
            {"change": move_slide, "seal": True},
            r"a patient is in two parts.*row: \d+; found: 'P\d+ in train \(row \d+\)",
        ),
        ({"change": repeat_slide, "seal": True}, r"a slide is in two parts.*row: 24; found: 'p00_s0 in"),
        ({"change": lambda rows: rows.append(rows[0]), "seal": True}, "a slide is there twice.*row: 24"),
        ({"change": lambda rows: rows[3].update(part="dev"), "seal": True}, "not a row of a split.*row: 3"),
        ({"change": lambda rows: rows[3].update(label=None), "seal": True}, "not a row of a split.*row: 3"),
        ({"change": lambda rows: rows.pop(), "seal": True}, "the split was edited"),
    ],
)
def test_an_edited_file_is_refused_with_its_row(cohort, folder, how, said):
    path = folder / "fold_0.parquet"
    edit(path, **how)
    with pytest.raises(UserError, match=said) as error:
        read_split(str(path), cohort)
    assert error.value.where["file"] == str(path)


def test_a_file_that_is_cut_short_or_missing_is_refused(cohort, folder):
    path = folder / "fold_1.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"fold_1\.parquet"):
        split_files(str(folder))
    path.unlink()
    with pytest.raises(MissingFile, match=r"fold_1\.parquet"):
        split_files(str(folder))


def test_a_fold_of_another_run_among_the_others_is_refused(cohort, folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    write_splits(str(other), cohort, splits_of(cohort, SplitsConfig(folds=3, seed=7)))
    (folder / "fold_2.parquet").write_bytes((other / "fold_2.parquet").read_bytes())
    with pytest.raises(UserError, match=r"not the one of the summary.*fold_2\.parquet"):
        split_files(str(folder))
    (folder / "summary.json").unlink()
    with pytest.raises(MissingFile, match="incomplete"):
        split_files(str(folder))


@pytest.mark.parametrize(
    "change", [lambda s: s["splits"].pop("fold_1"), lambda s: s.update(sha256="0"), lambda s: s.clear()]
)
def test_an_edited_summary_is_refused(folder, change):
    content = json.loads((folder / "summary.json").read_text())
    change(content)
    (folder / "summary.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"summary.*summary\.json"):
        split_files(str(folder))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("p03_s1,P03,tumor", "p03_s1,P03,normal", "row: 7; found: 'p03_s1 of P03, tumor'"),
        ("p03_s1,P03", "p03_s1,P04", "row: 7"),
        ("p11_s1,P11,tumor,1.1,2,23,1\n", "", "row: 23; found: 'p11_s1"),
    ],
)
def test_the_split_of_another_cohort_is_refused_with_the_first_difference(root, folder, old, new, said):
    text = (root / "slides.csv").read_text()
    assert old in text
    (root / "other.csv").write_text(text.replace(old, new))
    with pytest.raises(UserError, match=f"the split is of another cohort.*{said}"):
        read_all(folder, cohort_of(root, "other.csv"))


def test_a_folder_without_splits_is_missing(tmp_path):
    with pytest.raises(MissingFile, match=r"summary\.json with fold_"):
        split_files(str(tmp_path))


def test_rows_are_sorted_by_slide_whatever_the_table(cohort):
    rows = rows_of(cohort, splits_of(cohort, SplitsConfig("holdout"))["run"])
    assert [row[0] for row in rows] == sorted(cohort.names.tolist())
