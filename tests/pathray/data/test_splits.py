"""Splits by whole groups: what they share, what is refused, and that the order of a table does not matter."""

from __future__ import annotations

import numpy as np
import pytest

from pathray.data.split_files import groups_that_train, read_split, write_split
from pathray.data.splits import folds, holdout, stratified_folds
from pathray.errors import UserError
from regression.tables.table import Table

SIZES = [1, 7, 3, 12, 5, 4, 9, 2, 6, 11]


def table(sizes=SIZES, reverse: bool = False) -> Table:
    groups = np.repeat([f"p{i}" for i in range(len(sizes))], sizes)
    names = np.array([f"{i}.png" for i in range(len(groups))])
    targets = np.arange(2.0 * len(groups)).reshape(-1, 2)
    step = -1 if reverse else 1
    return Table("/data/table.csv", names[::step], groups[::step], targets[::step], ("y0", "y1"))


def sides(of: Table, split) -> dict[str, set[str]]:
    return {name: set(of.groups[split.rows(name)].tolist()) for name in ("train", "val", "test")}


@pytest.mark.parametrize("seed", range(5))
def test_a_group_stands_on_one_side_and_fractions_are_near(seed):
    made = holdout(table(), seed, train=0.6, val=0.2, test=0.2)
    parts = sides(table(), made)
    assert sum(map(len, parts.values())) == 10 and set.union(*parts.values()) == {f"p{i}" for i in range(10)}
    shares = {name: made.rows(name).size / 60 for name in parts}
    assert shares == pytest.approx({"train": 0.6, "val": 0.2, "test": 0.2}, abs=0.15) and min(shares.values()) > 0


def test_the_order_of_the_rows_does_not_matter_and_the_seed_does():
    a, b = holdout(table(), 3), holdout(table(reverse=True), 3)
    assert np.array_equal(a.of, b.of[::-1])
    assert any(sides(table(), holdout(table(), s)) != sides(table(), a) for s in range(4, 9))


def test_every_group_tests_once():
    for made in (folds(table(), 0, 4), folds(table(), 0)):
        tested = [sides(table(), split)["test"] for split in made]
        assert sum(map(len, tested)) == 10 and set.union(*tested) == {f"p{i}" for i in range(10)}
        for split in made:
            parts = sides(table(), split)
            assert not parts["test"] & (parts["train"] | parts["val"]) and not parts["train"] & parts["val"]
            assert parts["val"] and parts["train"]
    assert all(len(t) == 1 for t in tested) and len(tested) == 10


def test_two_groups_can_be_left_out_in_turn_without_validation():
    made = folds(table([4, 5]), 0, validation=False)
    assert sorted(s.rows("test").size for s in made) == [4, 5] and all(s.rows("val").size == 0 for s in made)
    with pytest.raises(UserError, match="invalid number of folds"):
        folds(table([4, 5]), 0)


def test_a_split_comes_back_from_its_file_for_the_table_in_any_order(tmp_path):
    made, path = holdout(table(), 1), str(tmp_path / "s.csv")
    write_split(path, table(), made)
    assert np.array_equal(read_split(path, table(reverse=True)).of[::-1], made.of)
    again = str(tmp_path / "t.csv")
    write_split(again, table(reverse=True), holdout(table(reverse=True), 1))
    assert (tmp_path / "t.csv").read_bytes() == (tmp_path / "s.csv").read_bytes()


def test_the_split_of_another_table_is_refused(tmp_path):
    path, other = str(tmp_path / "s.csv"), table()
    write_split(path, table(), holdout(table(), 1))
    other.targets[5, 0] += 1
    with pytest.raises(UserError, match="another table"):
        read_split(path, other)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{0},p1,{1}", "{0},p1,{2}", "a group appears in more than one split"),
        ("{0},p1,{1}", "{0},p2,{1}", "another group than in the table"),
        ("{0},p1,{1}", "{0},p1,dev", "not a row of a split"),
        ("{0},p1,{1}", "none.png,p1,{1}", "no such row"),
        ("{0},p1,{1}\n", "", "does not place"),
    ],
)
def test_a_split_that_was_edited_is_refused_with_its_row(tmp_path, old, new, message):
    made, path = holdout(table(), 1), tmp_path / "s.csv"
    write_split(str(path), table(), made)
    part = str(made.of[4])
    other = "test" if part != "test" else "train"
    text = path.read_text()
    assert old.format("4.png", part, other) in text
    path.write_text(text.replace(old.format("4.png", part, other), new.format("4.png", part, other)))
    with pytest.raises(UserError, match=message) as error:
        read_split(str(path), table())
    assert error.value.where["file"] == str(path) and (error.value.where["row"] or error.value.where["key"])


def test_too_few_groups_and_odd_fractions_are_refused():
    with pytest.raises(UserError, match="too few groups"):
        holdout(table([3, 4]), 0)
    with pytest.raises(UserError, match="add up to 1"):
        holdout(table(), 0, train=0.9)


@pytest.mark.parametrize("comment", ["# my split", "# one\n# two\n# 3", "#", "# [1]"])
@pytest.mark.parametrize("own", [True, False])
def test_comments_on_top_of_a_split_change_nothing_and_rows_keep_their_numbers(tmp_path, comment, own):
    path, made = tmp_path / "split.csv", holdout(table(), 3)
    write_split(str(path), table(), made)
    lines = path.read_text().splitlines()
    text = "\n".join([comment, *(lines if own else lines[1:])]) + "\n"
    path.write_text(text)
    assert np.array_equal(read_split(str(path), table()).of, made.of)
    path.write_text(text + "nobody.png,p,train\n")
    with pytest.raises(UserError) as e:
        read_split(str(path), table())
    assert e.value.where["row"] == len(text.splitlines()) + 1


def test_a_split_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "split.csv").write_bytes("path,group_id,split\n".encode("utf-16"))
    with pytest.raises(UserError, match="not text.*UTF-16"):
        read_split(str(tmp_path / "split.csv"), table())


PLAIN = "path,group_id,split\na,p,train\nb,q,test\nc,r,val\n"


@pytest.mark.parametrize(
    "text", [PLAIN, "\ufeff# x\r\n" + PLAIN.replace("\n", "\r\n"), PLAIN.replace(",", " , ") + "\n\n"]
)
def test_groups_that_train_are_read_from_any_dialect(tmp_path, text):
    (tmp_path / "s.csv").write_text(text, newline="")
    assert groups_that_train(str(tmp_path / "s.csv")) == {"p"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (PLAIN.replace("q,test", "p,test"), "row: 3; found: 'p in train and in test'"),
        (PLAIN.replace("q,test", "q,Train"), "not a row of a split.*row: 3"),
        (PLAIN.replace("q,test", "q"), "not a row of a split.*row: 3"),
        (PLAIN.replace(",", ";"), "one column only: wrong separator.*semicolon"),
        (PLAIN.replace("split", "part"), "not a split.*row: 1"),
        ("", "the split is empty"),
    ],
)
def test_a_split_that_would_choose_the_wrong_groups_is_refused(tmp_path, text, words):
    (tmp_path / "s.csv").write_text(text)
    for read in (groups_that_train, lambda path: read_split(path, table())):
        if read is groups_that_train or "row: 3; found: 'p in" not in words:
            with pytest.raises(UserError, match=words):
                read(str(tmp_path / "s.csv"))


def test_a_folder_given_as_a_split_is_refused(tmp_path):
    with pytest.raises(UserError, match="a folder"):
        read_split(str(tmp_path), table())


CITED = {
    "holdout": "train val train train train train train val train test",
    0: "train train test test train val train train train val",
    1: "val train train train val test val train train test",
    2: "test val train train test train test val val train",
    3: "train test val val train train train test test train",
}


def test_the_splits_of_a_seed_stay_those_that_people_have_cited():
    def parts(split) -> str:
        of = dict(zip(table().groups.tolist(), split.of.tolist(), strict=True))
        return " ".join(of[f"p{i}"] for i in range(len(SIZES)))

    found = {"holdout": parts(holdout(table(), 42))} | {i: parts(s) for i, s in enumerate(folds(table(), 42, 4))}
    assert found == CITED


def test_stratified_folds_hold_the_labels_in_the_shares_of_the_whole():
    of = table([4] * 30)
    labels = np.where(np.arange(120) // 4 % 3 == 0, "tumour", "normal")  # of every third group
    made = stratified_folds(of, labels, 0, 5)
    tested = [sides(of, split)["test"] for split in made]
    assert sum(map(len, tested)) == 30 and set.union(*tested) == {f"p{i}" for i in range(30)}
    for split in made:
        assert (labels[split.rows("test")] == "tumour").mean() == pytest.approx(1 / 3)
        assert (labels[split.rows("val")] == "tumour").mean() == pytest.approx(1 / 3)
    backwards = stratified_folds(table([4] * 30, reverse=True), labels[::-1], 0, 5)
    assert all(np.array_equal(a.of, b.of[::-1]) for a, b in zip(made, backwards, strict=True))
    with pytest.raises(UserError, match=r"invalid number of folds.*31 folds of 30 groups"):
        stratified_folds(of, labels, 0, 31)
