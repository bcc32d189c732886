"""Splits of a pretraining: shares, whole patients, parts from a table, and a file that is refused when edited."""

import json

import pytest

from mil.splits.manifest import list_slides, read_manifest, split_slides, write_manifest
from pathray.errors import UserError

IDS = [f"s{i:02d}" for i in range(40)]


def write_table(path, rows, columns="slide_id,patient_id"):
    path.write_text("\n".join([columns, *rows]) + "\n")
    return str(path)


def test_a_tenth_of_the_slides_validates_from_a_seed(tmp_path):
    table = list_slides(IDS[::-1], "store", None)
    split = split_slides(table, 1, 0.1)
    assert len(split.rows("val")) == 4 and len(split.rows("train")) == 36
    found = read_manifest(write_manifest(str(tmp_path), table, split, {"store_sha256": "x"}))
    assert sorted(found["train"] + found["val"]) == IDS and len(found["val"]) == 4
    assert set(split_slides(table, 2, 0.1).rows("val")) != set(split.rows("val"))


def test_slides_of_a_patient_stay_together_and_only_those_of_the_table_are_split(tmp_path):
    csv = write_table(tmp_path / "t.csv", [f"{one},p{i // 4}" for i, one in enumerate(IDS[:20])] + ["other,p9"])
    table = list_slides(IDS, "store", csv, patient_column="patient_id")
    split = split_slides(table, 0, 0.2)
    assert len(table.names) == 20 and len(split.rows("val")) == 4
    assert len(set(table.groups[split.rows("val")])) == 1


def test_a_manifest_gives_the_parts(tmp_path):
    rows = [f"{one},p{i},{'val' if i < 3 else 'train'}" for i, one in enumerate(IDS)]
    csv = write_table(tmp_path / "t.csv", rows, "slide_id,patient_id,split")
    split = split_slides(list_slides(IDS, "store", csv), 0, 0.5)
    assert split.rows("val").tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("rows", "columns", "said"),
    [
        (
            ["s01,p,train", "s02,p,val"],
            "slide_id,patient_id,split",
            "a patient is in two parts.*row: 3; found: 'p in tra",
        ),
        (["s01,p,test"], "slide_id,patient_id,split", r"row: 2; key: split; found: 'test'"),
        (["s01,p,train"], "slide_id,patient_id,split", "a part has no slide.*none of val"),
        (["s01,p", "s01,p"], "slide_id,patient_id", "two rows.*row: 3"),
        (["x,p"], "slide_id,patient_id", "no slide of the table is there.*slides such as s00"),
        (["s01,p", "s02,P"], "slide_id,patient_id", "differ only in case"),
        (["s01,p", "s02,p"], "slide_id,patient_id", "too few groups"),
    ],
)
def test_a_table_that_cannot_be_split_is_refused(tmp_path, rows, columns, said):
    csv = write_table(tmp_path / "t.csv", rows, columns)
    with pytest.raises(UserError, match=said):
        split_slides(list_slides(IDS, "store", csv, patient_column="patient_id"), 0, 0.1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m["val_ids"].append(m["train_ids"][0]), "a slide is there twice"),
        (lambda m: m["val_ids"].append(m["train_ids"].pop()), "the manifest was edited"),
        (lambda m: m.pop("val_ids"), "not a manifest"),
    ],
)
def test_an_edited_manifest_is_refused(tmp_path, change, said):
    table = list_slides(IDS, "store", None)
    path = write_manifest(str(tmp_path), table, split_slides(table, 1, 0.1), {})
    content = json.loads((tmp_path / "split_manifest.json").read_text())
    change(content)
    (tmp_path / "split_manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=said):
        read_manifest(path)
