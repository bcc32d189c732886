"""What a table may hold; every fault is named with its row and column."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import regression
from pathray.errors import MissingFile, UserError
from regression.config import RunConfig
from regression.tables.table import read_table


def frame(folder, rows: int = 6, genes: int = 3) -> pd.DataFrame:
    """A sound table, and (empty) files for its images."""
    g = np.random.default_rng(0)
    (folder / "img").mkdir(exist_ok=True)
    names = [f"img/{i}.png" for i in range(rows)]
    for name in names:
        (folder / name).touch()
    columns = {"path": names, "group_id": [f"p{i // 2}" for i in range(rows)]}
    return pd.DataFrame(columns | {f"y{k}": g.normal(size=rows) for k in range(genes)})


def written(folder, table: pd.DataFrame, name: str = "table.csv") -> str:
    path = folder / name
    table.to_parquet(path) if name.endswith("parquet") else table.to_csv(path, index=False)
    return str(path)


@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
def test_a_table_is_read_with_paths_relative_to_it(tmp_path, name):
    made = frame(tmp_path)
    table = read_table(written(tmp_path, made, name), target_dim=3)
    assert np.array_equal(table.targets, made[["y0", "y1", "y2"]].to_numpy())
    assert table.paths[1] == str(tmp_path / "img" / "1.png") and table.groups.tolist()[1:3] == ["p0", "p1"]
    assert table.genes == ("y0", "y1", "y2") and len(table) == 6


def test_named_genes_are_taken_in_the_order_asked_for(tmp_path):
    made = frame(tmp_path).rename(columns={"y0": "CD74", "y1": "ERBB2"})
    table = read_table(written(tmp_path, made), genes=["ERBB2", "CD74"])
    assert np.array_equal(table.targets, made[["ERBB2", "CD74"]].to_numpy())


def test_the_digest_is_of_the_rows_and_not_of_their_order_or_place(tmp_path):
    made = frame(tmp_path)
    (tmp_path / "moved").mkdir()
    first = read_table(written(tmp_path, made)).hash
    assert read_table(written(tmp_path / "moved", frame(tmp_path / "moved").iloc[::-1])).hash == first
    made.loc[2, "y1"] += 1e-9
    assert read_table(written(tmp_path, made)).hash != first


@pytest.mark.parametrize(
    ("change", "message", "row", "key"),
    [
        (lambda t: t.assign(y1=[0, 1, np.nan, 3, 4, 5]), "not a finite target", 4, "y1"),
        (lambda t: t.assign(y1=["0", "1", "2", "much", "4", "5"]), "not a finite target", 5, "y1"),
        (lambda t: t.assign(y2=[0, 1, 2, 3, np.inf, 5]), "not a finite target", 6, "y2"),
        (lambda t: t.assign(path=[*t.path[:5], t.path[1]]), "duplicate path", 7, "path"),
        (lambda t: t.assign(path=[*t.path[:5], "./img//1.png"]), "duplicate path", 7, "path"),
        (lambda t: t.assign(path=[*t.path[:5], "img/none.png"]), "no such image", 7, "path"),
        (lambda t: t.assign(group_id=["a", "", *"bcde"]), "empty cell", 3, "group_id"),
        (lambda t: t.assign(y0=1.5), "do not vary over the rows", None, "y0"),
        (lambda t: t.drop(columns="group_id"), "no such column", None, "group_id"),
        (lambda t: t.drop(columns="y2"), "wrong number of targets", None, "targets"),
        (lambda t: t.drop(columns="y1"), "lacks target columns", None, "y1"),
    ],
)
def test_every_fault_is_named_with_its_row_and_column(tmp_path, change, message, row, key):
    path = written(tmp_path, change(frame(tmp_path)))
    with pytest.raises(UserError, match=message) as error:
        read_table(path, target_dim=3)
    assert (error.value.where["file"], error.value.where["row"], error.value.where["key"]) == (path, row, key)


def test_a_table_that_is_not_there_is_missing(tmp_path):
    with pytest.raises(MissingFile, match="no such table"):
        read_table(str(tmp_path / "none.csv"))


def test_the_example_is_a_table_of_fifty_targets():
    path = Path(regression.__file__).parent / "example" / "table.csv"
    table = read_table(str(path), target_dim=50, check_files=False)
    assert table.targets.shape == (6, 50) and len(set(table.groups.tolist())) == 3


def test_the_readme_names_only_keys_that_exist():
    text = (Path(regression.__file__).parent / "README.md").read_text()
    keys = set(re.findall(r"`((?:data|model|train|loss|eval|augment)\.[a-z_]+)", text)) - {"data.py"}
    config = RunConfig()
    missing = [key for key in keys if not hasattr(getattr(config, key.split(".")[0]), key.split(".")[1])]
    assert len(keys) > 6 and missing == []


PLACED = "path,group_id,y0,x,y,section,image,image_mpp\na.png,p,1,10,20,01,s.png,0.5\nb.png,q,2,30,40,02,,0.5\n"


def placed(tmp_path, text: str = PLACED, check: bool = False):
    (tmp_path / "placed.csv").write_text(text)
    return read_table(str(tmp_path / "placed.csv"), check_files=check)


def test_a_table_may_say_where_its_images_lie_and_is_the_same_table(tmp_path):
    table = placed(tmp_path)
    assert table.places.x.tolist() == [10, 30] and table.places.y.tolist() == [20, 40]
    assert table.places.section.tolist() == ["01", "02"] and table.places.image.tolist() == [f"{tmp_path}/s.png", ""]
    assert table.places.image_mpp.tolist() == [0.5, 0.5] and np.isnan(table.places.radius_px).all()
    without = placed(tmp_path, "path,group_id,y0\na.png,p,1\nb.png,q,2\n")
    assert without.places is None and without.hash == table.hash
    bare = placed(tmp_path, "path,group_id,y0,x,y\na.png,p,1,1,1\nb.png,q,2,2,2\n")
    assert bare.places.section.tolist() == ["p", "q"], "a group is a section where none is named"


def test_coordinates_that_are_none_are_refused_by_row(tmp_path):
    for old, new, words in (
        ("10,20", "ten,20", "not a finite coordinate or size.*row: 2; key: x"),
        ("30,40,02,,0.5", "30,40,02,,0", "must be positive.*row: 3; key: image_mpp"),
    ):
        with pytest.raises(UserError, match=words):
            placed(tmp_path, PLACED.replace(old, new))
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"no such image.*row: 2; key: image"):
        placed(tmp_path, check=True)


def test_targets_of_a_table_are_in_one_unit(tmp_path):
    text = "path,group_id,y0,unit\na.png,p,1,{}\nb.png,q,2,{}\n"
    assert placed(tmp_path, text.format("CP10k", "CP10k")).unit == "CP10k"
    with pytest.raises(UserError, match="several units"):
        placed(tmp_path, text.format("CP10k", "TPM"))


def test_a_gene_that_is_silent_is_refused_for_training_and_taken_for_an_evaluation(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("path,group_id,y0,y1\na.png,p,1.0,0\nb.png,q,2.5,0\n")
    with pytest.raises(UserError, match="do not vary over the rows"):
        read_table(str(path), check_files=False)
    assert read_table(str(path), check_files=False, constant_genes=True).targets.tolist() == [[1.0, 0.0], [2.5, 0.0]]


@pytest.mark.parametrize("header", ["path,group_id,y0,y0", "path,path,y0,y1", "path,group_id,group_id,y0"])
def test_a_table_with_a_column_twice_is_refused_by_name(tmp_path, header):
    path = tmp_path / "t.csv"
    path.write_text(f"{header}\na.png,p,1.0,2.0\nb.png,q,2.5,3.0\n")
    with pytest.raises(UserError, match="duplicate column") as e:
        read_table(str(path), check_files=False)
    assert e.value.where["key"] in header and e.value.where["file"] == str(path)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("cell", ["1_000", "1,5", "high", "--", "0x10"])
def test_a_target_that_only_looks_like_a_number_is_refused_with_its_row(tmp_path, suffix, cell):
    path = str(tmp_path / f"t.{suffix}")
    if suffix == "csv":
        (tmp_path / "t.csv").write_text(f'path,group_id,y0\na.png,p,1.0\nb.png,q,"{cell}"\n')
    else:
        table = pa.table({"path": ["a.png", "b.png"], "group_id": ["p", "q"], "y0": ["1.0", cell]})
        pq.write_table(table, path)
    with pytest.raises(UserError, match="not a finite target") as e:
        read_table(path, check_files=False)
    assert (e.value.where["row"], e.value.where["key"], e.value.where["found"]) == (
        3 if suffix == "csv" else 1,
        "y0",
        cell,
    )


def test_a_comment_on_top_and_blank_lines_leave_rows_their_numbers(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("# my cohort\n#\npath,group_id,y0\na.png,p,1.0\n\nb.png,q,2.0\n")
    table = read_table(str(path), check_files=False)
    assert table.names.tolist() == ["a.png", "b.png"] and [table.row_of(i) for i in (0, 1)] == [4, 6]
    with pytest.raises(MissingFile, match="row: 4"):
        read_table(str(path))


def test_a_patient_in_two_spellings_is_refused(tmp_path):
    with pytest.raises(UserError, match="differ only in case or Unicode form.*row: 3; key: group_id; found: 'p1'.*P1"):
        placed(tmp_path, "path,group_id,y0\na.png,P1,1\nb.png,p1,2\n")
    composed, decomposed = "M\u00fcller", "Mu\u0308ller"
    with pytest.raises(UserError, match="Unicode form"):
        placed(tmp_path, f"path,group_id,y0\na.png,{composed},1\nb.png,{decomposed},2\n")


def test_a_group_that_a_spreadsheet_rounded_is_warned_of(tmp_path, caplog):
    placed(tmp_path, "path,group_id,y0\na.png,1.00E+05,1\nb.png,1.00E+05,2\n")
    assert "group_id 1.00E+05 may be a number that a spreadsheet rounded" in caplog.text
    caplog.clear()
    placed(tmp_path, "path,group_id,y0\na.png,1e2,1\nb.png,007,2\n")
    assert caplog.text == ""
