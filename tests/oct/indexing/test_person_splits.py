"""Splits by person: both eyes on one side, strata in equal shares, recommendations honoured."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from oct.indexing.file_lists import FileList, list_files
from oct.indexing.person_splits import read_persons, recommended_split, stratified_split
from pathray.data.split_files import read_split, write_split
from pathray.errors import UserError
from tests.builders.oct.scans import both_eyes, index_scans

DEVICES = ("topcon_triton", "zeiss_cirrus", "heidelberg_spectralis")


def cohort(persons: int, seed: int = 0) -> FileList:
    """Persons with one or two eyes on one or two devices, Cirrus being rare."""
    rng, rows = np.random.default_rng(seed), []
    for p in range(persons):
        for device in rng.choice(DEVICES, size=rng.integers(1, 3), replace=False, p=(0.6, 0.1, 0.3)):
            for eye in ("L", "R")[: rng.integers(1, 3)]:
                rows.append((f"{device}/{p}/{eye}.dcm", str(p), f"{device} | Macula | {eye}"))
    names, groups, strata = (np.array(column) for column in zip(*rows, strict=True))
    return FileList("oct.parquet", names, groups, strata, range(2, len(rows) + 2))


def sides(files, split):
    found = defaultdict(set)
    for person, part in zip(files.groups.tolist(), split.of.tolist(), strict=True):
        found[person].add(part)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_no_person_is_on_two_sides_of_a_split(seed):
    files = cohort(120, seed)
    split = stratified_split(files, seed)
    assert all(len(parts) == 1 for parts in sides(files, split).values())
    assert len(split.of) == len(files.names) and set(split.of.tolist()) == {"train", "val", "test"}


def test_both_eyes_of_a_person_stay_on_one_side(tmp_path):
    files = list_files(index_scans(tmp_path, [scan for p in "1234567" for scan in both_eyes(p)]))
    split = stratified_split(files, 3, train=0.4, val=0.3, test=0.3)
    eyes = Counter(zip(files.groups.tolist(), split.of.tolist(), strict=True))
    assert len(eyes) == 7 and set(eyes.values()) == {2}


@pytest.mark.parametrize("seed", range(4))
def test_every_stratum_is_split_in_about_the_asked_shares(seed):
    """Within two volumes of the share of each stratum; a split that ignores strata is a dozen off."""
    files = cohort(400, seed)
    split = stratified_split(files, seed, train=0.6, val=0.2, test=0.2)
    for stratum, total in Counter(files.strata.tolist()).items():
        own = Counter(split.of[files.strata == stratum].tolist())
        for part, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
            assert abs(own[part] - share * total) <= 2, (stratum, part, own, total)


def test_a_split_depends_on_its_seed_and_not_on_the_order_of_the_rows():
    files = cohort(60)
    order = np.random.default_rng(1).permutation(len(files.names))
    moved = FileList("b", files.names[order], files.groups[order], files.strata[order], [files.lines[i] for i in order])
    first, again = stratified_split(files, 5), stratified_split(moved, 5)
    assert first.of[order].tolist() == again.of.tolist() and first.meta["table"] == again.meta["table"]
    assert first.of.tolist() != stratified_split(files, 6).of.tolist()


def test_no_part_stays_empty_and_too_few_persons_are_refused():
    split = stratified_split(cohort(3), 0, train=0.98, val=0.01, test=0.01)
    assert set(split.of.tolist()) == {"train", "val", "test"}
    assert set(stratified_split(cohort(2), 0, train=0.5, val=0.5, test=0).of.tolist()) == {"train", "val"}
    with pytest.raises(UserError, match="too few persons"):
        stratified_split(cohort(2), 0)
    with pytest.raises(UserError, match="add up to 1"):
        stratified_split(cohort(9), 0, train=0.9)


def participants(tmp_path, text):
    (tmp_path / "participants.tsv").write_text(text.replace(" ", "\t"))
    return str(tmp_path / "participants.tsv")


def test_a_recommended_split_is_honoured_for_every_eye(tmp_path):
    files = list_files(index_scans(tmp_path, [scan for p in ("1", "2", "3") for scan in both_eyes(p)]))
    table = participants(tmp_path, "participant_id age recommended_split\n9 40 val\n3 50 test\n1 60 Train\n2 70 val\n")
    assert recommended_split(files, table).of.tolist() == ["train", "train", "val", "val", "test", "test"]


@pytest.mark.parametrize(
    ("text", "words", "row"),
    [
        ("person_id recommended_split\n1 train\n2 held\n", "unknown split", 3),
        ("person_id recommended_split\n1 train\n2 \n", "an empty cell", 3),
        ("person_id recommended_split\n1 train\n2 val\n1 val\n", "more than one split", 4),
        ("person_id recommended_split\n1 train\n3 val\n", "not in the table", None),
        ("person_id split\n1 train\n2 val\n", "no such column", None),
        ("name recommended_split\n1 train\n2 val\n", "one column must name the person", 1),
    ],
)
def test_recommendations_that_are_not_complete_are_refused_with_their_row(tmp_path, text, words, row):
    files = list_files(index_scans(tmp_path, [*both_eyes("1"), *both_eyes("2")]))
    with pytest.raises(UserError, match=words) as error:
        recommended_split(files, participants(tmp_path, text))
    assert error.value.where["row"] == row


def test_a_split_is_written_read_and_names_its_persons(tmp_path):
    files = cohort(20)
    split, path = stratified_split(files, 0), str(tmp_path / "split.csv")
    write_split(path, files, split)
    assert read_split(path, files).of.tolist() == split.of.tolist()
    parts = {part: read_persons(path, part) for part in ("train", "val", "test")}
    assert set.union(*parts.values()) == set(files.groups.tolist()) and sum(map(len, parts.values())) == 20
    with pytest.raises(UserError, match="another table"):
        read_split(path, cohort(21))


def test_a_split_file_by_volume_is_refused(tmp_path):
    """The eyes of person 1 in two parts, as a split by file leaves them."""
    (tmp_path / "split.csv").write_text("path,group_id,split\na/1/L.dcm,1,train\na/1/R.dcm,1,val\n")
    with pytest.raises(UserError, match="more than one split") as error:
        read_persons(str(tmp_path / "split.csv"), "train")
    assert error.value.where["row"] == 3
