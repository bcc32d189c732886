"""Labels joined with the volumes of an index: what is left out and counted, and what is refused."""

from collections import Counter

import numpy as np
import pytest

from oct.downstream.cohort import read_cohort
from pathray.errors import UserError
from tests.builders.oct.labelled import LABELS, NUMBERS, OF_VOLUMES, thickness, write_labelled, write_table

TRITON = "structural_oct/topcon_triton"


def read(folder, rows, tmp_path, task="classification"):
    return read_cohort(f"{folder}/volumes.parquet", write_table(tmp_path / "l.csv", rows), "label", task)


def test_labels_of_persons_are_of_all_their_volumes(labelled):
    cohort = read_cohort(f"{labelled}/volumes.parquet", f"{labelled}/{LABELS}", "label", "classification")
    assert cohort.names.tolist() == cohort.groups.tolist() == [f"{p:02d}" for p in range(12)]
    assert cohort.classes == ("thick", "thin") and cohort.truth.tolist() == [1, 0] * 6
    assert [row["person"] for row in cohort.volumes] == [cohort.names[u] for u in cohort.unit]
    assert Counter(cohort.unit.tolist()) == dict.fromkeys(range(12), 2) and cohort.notes == []
    assert str(cohort) == "12 labelled persons of 12 persons, 24 volumes: thick 6, thin 6"


def test_labels_of_volumes_may_have_the_manifests_paths(labelled):
    cohort = read_cohort(f"{labelled}/volumes.parquet", f"{labelled}/{OF_VOLUMES}", "label", "classification")
    assert len(cohort.names) == 24 and cohort.persons == 12 and not cohort.per_person
    assert cohort.names[0] == f"{TRITON}/00/00_l_macula.dcm" and cohort.groups[0] == "00"


def test_numbers_are_read_as_they_are(labelled):
    cohort = read_cohort(f"{labelled}/volumes.parquet", f"{labelled}/{NUMBERS}", "label", "regression")
    np.testing.assert_allclose(cohort.truth, [thickness(p) for p in range(12)])
    assert cohort.classes == ()


def test_what_has_no_label_or_no_volume_is_counted(labelled, tmp_path):
    rows = [("person_id", "label"), ("00", "a"), ("01", "b"), ("02", ""), ("99", "a"), ("01", "b")]
    cohort = read(labelled, rows, tmp_path)
    assert cohort.names.tolist() == ["00", "01"]
    counts = Counter(why for _, why in cohort.notes)
    assert counts == {
        "no label": 1,
        "a label of a person that the index does not have": 1,
        "a volume without a label": 2 * 10,
    }


def test_a_label_of_an_excluded_volume_says_why_it_is_excluded(tmp_path):
    from oct.indexing.index_file import make_index, read_index, write_index

    index = read_index(write_labelled(tmp_path, persons=2))
    rows = index.table.to_pylist()
    rows[0]["exclusion"] = "single_frame"
    write_index(make_index(index.path, index.root, rows))
    cohort = read_cohort(index.path, f"{tmp_path}/{OF_VOLUMES}", "label", "classification")
    assert len(cohort.names) == 3
    assert cohort.notes == [(rows[0]["path"], "a label of a volume that the index excludes: single_frame")]


@pytest.mark.parametrize(
    ("rows", "task", "message"),
    [
        (
            [("person_id", "label"), ("00", "a"), ("00", "b")],
            "classification",
            "two labels for one person_id: 00.*row: 3",
        ),
        ([("person_id", "label"), ("00", "a"), ("01", "a")], "classification", "all labels are equal"),
        ([("person_id", "label"), ("00", "1"), ("01", "1.0")], "regression", "all labels are equal"),
        ([("person_id", "label"), ("00", "1"), ("01", "low")], "regression", "not a number.*row: 3.*low"),
        ([("person_id", "label"), ("97", "a"), ("98", "b")], "classification", "no label is of a volume in the index"),
        ([("person_id", "label"), ("00", ""), ("01", "")], "classification", "no row has a label"),
        ([("person_id", "grade"), ("00", "1")], "classification", "no such column.*label"),
        ([("name", "label"), ("00", "1")], "classification", "one column must name the person"),
        ([("person_id", "label"), *((f"{p:02d}", p / 7) for p in range(9))], "classification", "data.task=regression"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused_with_the_remedy(labelled, tmp_path, rows, task, message):
    with pytest.raises(UserError, match=message):
        read(labelled, rows, tmp_path, task)


def test_the_order_of_the_table_changes_nothing(labelled, tmp_path):
    rows = [(f"{p:02d}", "ab"[p % 2]) for p in range(12)]
    a = read(labelled, [("person_id", "label"), *rows], tmp_path)
    b = read(labelled, [("person_id", "label"), *reversed(rows)], tmp_path)
    assert a.hash == b.hash and a.names.tolist() == b.names.tolist() and a.truth.tolist() == b.truth.tolist()
    assert a.row_of(0) == 2 and b.row_of(0) == 13
