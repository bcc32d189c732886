"""Manifests in both forms, and errors that name file, row and column."""

from __future__ import annotations

import numpy as np
import pytest

from pathray.errors import MissingFile, UserError
from pathray.evaluation.datasets import KNOWN, open_dataset, read_manifest

OWN = "image_path,label,medical_center,slide_id,subset\na.png,t,north,s1,ID\nx/b.png,n,south,s2,OOD\n"
THEIRS = "subset,slide_id,patch_id,biological_class,medical_center\n"


def written(tmp_path, text, name="m.csv"):
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


def test_a_manifest_of_our_own_columns(tmp_path):
    got = read_manifest(written(tmp_path, OWN))
    assert got.images == (f"{tmp_path}/a.png", f"{tmp_path}/x/b.png")
    assert got.labels.tolist() == ["t", "n"] and got.centers.tolist() == ["north", "south"]
    assert got.in_domain.tolist() == [0] and got.out_of_domain.tolist() == [1]
    assert read_manifest(written(tmp_path, OWN), root="gs://bucket/p").images[1] == "gs://bucket/p/x/b.png"


def test_without_a_subset_all_is_in_domain(tmp_path):
    text = "image_path,label,medical_center,slide_id,sample_id\n/d/a.png,t,n,s1,7\n"
    got = read_manifest(written(tmp_path, text))
    assert got.images == ("/d/a.png",) and not got.ood.any()


def test_the_benchmarks_own_columns_and_subsets(tmp_path):
    text = THEIRS + "tumor-UMCU,test_016,16703,tumor,UMCU\nnormal-RUMC,test_056,25285,normal,RUMC\nOOD,x,1,tumor,CWZ\n"
    got = read_manifest(written(tmp_path, text))
    assert got.images[0] == f"{tmp_path}/test_016-16703.png"
    assert got.ood.tolist() == [False, False, True] and got.group.tolist() == ["tumor-UMCU", "normal-RUMC", ""]
    assert got.labels.tolist() == ["tumor", "normal", "tumor"]


def test_an_esca_patch_id_with_a_dot_is_no_file_name(tmp_path):
    got = read_manifest(written(tmp_path, THEIRS + "ID,case_017,advent.5989,ADVENT,UKK\n"))
    assert got.images == (f"{tmp_path}/case_017-advent.5989.png",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OWN.replace("label", "lable"), r"no such column.*m\.csv.*key: label.*lable"),
        (OWN.replace("north", ""), r"empty cell.*m\.csv.*row: 2.*medical_center"),
        (OWN.replace("OOD", "out"), r"no such subset.*row: 3.*subset.*'out'.*ID \| OOD"),
        (OWN + "c.png,t,north\n", r"different number of cells.*row: 4.*3 cells"),
        (OWN + "a.png,t,north,s1,ID\n", r"listed twice.*row: 4.*row 2"),
        (OWN + "c.png,t,south,s1,ID\n", r"s1 has more than one.*row: 4.*medical_center.*south.*north as in row 2"),
        (OWN + "c.png,t,north,s1,OOD\n", r"s1 has more than one.*row: 4.*subset"),
        (OWN + "c.png,T,north,s1,ID\n", r"two spellings of one name.*row: 4; key: label; found: 'T'"),
        (OWN + "c.png,t,North,s3,ID\n", r"two spellings of one name.*row: 4; key: medical_center"),
        ("# mine\n\n" + OWN + "a.png,t,north,s1,ID\n", r"listed twice.*row: 6.*row 4"),
        (OWN.replace(",", ";"), r"one column only: wrong separator.*semicolon"),
        (OWN.splitlines()[0], r"no rows"),
        (OWN.replace("subset", "label"), r"duplicate column.*label"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_manifest(written(tmp_path, text))


def test_a_manifest_that_is_not_there(tmp_path):
    with pytest.raises(MissingFile, match="no such manifest"):
        read_manifest(str(tmp_path / "none.csv"))


def test_the_reduced_list_serves_the_metrics_that_the_benchmark_uses_it_for(tmp_path):
    rows = [f"ID,s{i},{i},{'tn'[i % 2]},{'RU'[i // 2 % 2]}\n" for i in range(8)]
    full = written(tmp_path, THEIRS + "".join(rows), "camelyon.csv")
    got = open_dataset("camelyon", full)
    assert got.neighbours == 11 and "no reduced list" in got.notes[0] and len(got.rows["clustering"]) == 8
    written(tmp_path, THEIRS + "".join(rows[::-2]), "camelyon_reduced.csv")
    got = open_dataset("camelyon", full)
    assert not got.notes and len(got.images) == 8
    assert {m: len(r) for m, r in got.rows.items()} == {"ri": 8, "apd": 8, "clustering": 4}
    shown = [got.images[i] for i in got.index["clustering"]]
    assert shown == list(got.rows["clustering"].images)
    esca = open_dataset("tolkach_esca", full, reduced=str(tmp_path / "camelyon_reduced.csv"))
    assert {m: len(r) for m, r in esca.rows.items()} == {"ri": 4, "apd": 8, "clustering": 4}
    with pytest.raises(MissingFile):
        open_dataset("camelyon", full, reduced=str(tmp_path / "absent.csv"))


def test_neighbourhoods_are_the_benchmarks_and_auto_for_others(tmp_path):
    path = written(tmp_path, OWN)
    assert {name: known.k for name, known in KNOWN.items()} == {"camelyon": 11, "tcga": 61, "tolkach_esca": 46}
    assert open_dataset("mine", path).neighbours == "auto"
    assert open_dataset("tcga", path, neighbours=5).neighbours == 5
    assert np.array_equal(open_dataset("mine", path).index["ri"], [0, 1])
