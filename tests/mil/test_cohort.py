import numpy as np
import pytest

from mil.cohort import read_cohort
from mil.store.reading import Store
from mil.target import REGRESSION
from pathray.errors import UserError
from tests.builders.mil import write_cohort


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort"), patients=6)


def read(folder, text=None, tmp=None, **more):
    csv = folder / "slides.csv"
    if text is not None:
        csv = tmp / "slides.csv"
        csv.write_text(text)
    return read_cohort(str(csv), Store(str(folder / "store")), label=more.pop("label", "label"), **more)


def test_slides_are_joined_with_the_store_whatever_the_order_of_the_table(cohort, tmp_path):
    found = read(cohort)
    assert len(found.names) == 12 and found.patients == 6 and found.classes == ("normal", "tumor")
    header, *rows = (cohort / "slides.csv").read_text().splitlines()
    again = read(cohort, "\n".join([header, *rows[::-1]]) + "\n", tmp_path)
    assert again.hash == found.hash and again.names.tolist() == found.names.tolist()
    np.testing.assert_array_equal(again.truth, found.truth)


def test_a_label_map_numbers_the_classes_whatever_its_order(cohort):
    one = read(cohort, label_map={"tumor": 0, "normal": 1})
    two = read(cohort, label_map={"normal": 1, "tumor": 0})
    assert one.classes == two.classes == ("tumor", "normal") and one.hash == two.hash
    np.testing.assert_array_equal(one.labels, read(cohort).labels)
    with pytest.raises(UserError, match=r"data\.label_map.*0 to 1, each once"):
        read(cohort, label_map={"normal": 0, "tumor": 2})


def test_ten_classes_keep_their_names(cohort, tmp_path):
    text = "slide_id,patient_id,label\n" + "".join(f"p0{i // 2}_s{i % 2},{i},c{i % 4 * 5}\n" for i in range(12))
    assert read(cohort, text, tmp_path).classes == ("c0", "c10", "c15", "c5")


def test_what_is_left_out_is_told_with_its_reason(cohort, tmp_path):
    text = "slide_id,patient_id,label\np00_s0,a,x\np00_s1,a,\np01_s0,b,y\nelsewhere,c,x\n"
    left_out = dict(read(cohort, text, tmp_path).left_out)
    assert left_out["p00_s1"] == "no label" and left_out["elsewhere"] == "not in the store"
    assert left_out["p05_s1"] == "not in the table" and len(left_out) == 11


def test_numbers_are_the_truth_of_a_regression(cohort):
    found = read(cohort, label="score", task=REGRESSION)
    assert found.classes == () and found.truth[:3].tolist() == [0.0, 0.1, 1.0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("slide_id,label\np00_s0,x\n", "no such column.*patient_id"),
        ("slide_id,patient_id,label\nq,a,x\nr,b,y\n", "no labelled slide is in the store"),
        ("slide_id,patient_id,label\np00_s0,a,x\np01_s0,b,x\n", "all labels are equal"),
        ("slide_id,patient_id,label\np00_s0,a,x\np00_s0,a,y\n", "two values.*row: 3; key: label.*x, as in row 2"),
        ("slide_id,patient_id,label\np00_s0,a,x\np00_s0,b,x\n", "two values.*row: 3; key: patient_id"),
        ("slide_id,patient_id,label\np00_s0,A,x\np01_s0,a,y\n", "differ only in case.*row 2 has A"),
    ],
)
def test_a_table_that_cannot_be_trained_on_is_refused(cohort, tmp_path, text, said):
    with pytest.raises(UserError, match=said):
        read(cohort, text, tmp_path)


SURVIVAL = {"task": "survival", "time": "months", "event": "died"}


def test_survival_has_times_and_events_instead_of_labels(cohort):
    found = read(cohort, **SURVIVAL)
    assert found.classes == () and found.label == "months and died" and found.events.tolist()[4:6] == [0, 0]
    assert found.labels.tolist()[3:5] == ["event", "censored"] and "10 with an event" in str(found)
    other = read(cohort, task="regression", label="months")
    assert other.hash != found.hash and other.events is None


def test_grades_are_in_the_order_of_their_numbers_or_of_the_map(cohort, tmp_path):
    assert read(cohort, task="ordinal", label="grade").classes == ("0", "1", "2")
    text = (cohort / "slides.csv").read_text().replace(",0,", ",low,").replace(",2,", ",high,").replace(",1,", ",mid,")
    with pytest.raises(UserError, match=r"grades need an order.*label_map"):
        read(cohort, text, tmp_path, task="ordinal", label="grade")
    order = {"high": 2, "low": 0, "mid": 1}
    assert read(cohort, text, tmp_path, task="ordinal", label="grade", label_map=order).classes == (
        "low",
        "mid",
        "high",
    )


@pytest.mark.parametrize(
    ("change", "more", "said"),
    [
        ("", {"event": None}, r"survival needs the column of events.*data\.event=COLUMN"),
        ("", {"task": "classification"}, r"data\.time is of survival alone"),
        ("", {}, None),
        (",-13,1", {}, "a time below 0.*row: 4"),
        (",13,yes", {}, "neither observed nor censored"),
        (",14,1", {}, "patient P01 has two values"),
    ],
)
def test_outcomes_that_are_none_are_refused_with_row_and_column(cohort, tmp_path, change, more, said):
    text = (cohort / "slides.csv").read_text()
    if change.startswith(","):
        assert text.count(",13,1") == 2
        text = text.replace(",13,1", change, 1)
    if said is None:
        assert read(cohort, text, tmp_path, **SURVIVAL).patients == 6
        return
    with pytest.raises(UserError, match=said):
        read(cohort, text, tmp_path, **{**SURVIVAL, **more})


def test_survival_without_an_event_is_refused(cohort, tmp_path):
    header, *rows = (cohort / "slides.csv").read_text().splitlines()
    rows = [row.rpartition(",")[0] + ",0" for row in rows]
    with pytest.raises(UserError, match="0 in all 12 rows"):
        read(cohort, "\n".join([header, *rows]) + "\n", tmp_path, **SURVIVAL)
