"""The user's folder of slides becomes a manifest, or a sentence that says what is wrong with it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from demo.slides import manifest_of
from pathray.errors import UserError
from tests.builders.cohort import write_slide


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as f:
        return list(csv.DictReader(f))


def test_slides_in_subfolders_get_distinct_ids_and_absolute_paths(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "in" / name).mkdir(parents=True)
        write_slide(tmp_path / "in" / name / "one.tif")
    (tmp_path / "in" / "readme.txt").write_text("not a slide")
    rows = read(manifest_of(tmp_path / "in", tmp_path / "out" / "slides.csv"))
    assert [row["slide_id"] for row in rows] == ["a-one", "b-one"]
    assert all(Path(row["wsi_path"]).is_absolute() and row["mpp"] == "" for row in rows)


def test_mpp_is_entered_only_where_the_file_does_not_tell(tmp_path: Path) -> None:
    write_slide(tmp_path / "known.tif", mpp=0.25)
    write_slide(tmp_path / "unknown.tif", mpp=None)
    rows = {row["slide_id"]: row["mpp"] for row in read(manifest_of(tmp_path, tmp_path / "s.csv", 0.5))}
    assert rows == {"known": "", "unknown": "0.5"}


def test_a_missing_spacing_says_how_to_give_it(tmp_path: Path) -> None:
    write_slide(tmp_path / "unknown.tif", mpp=None)
    with pytest.raises(UserError, match=r"unknown.*MPP=0\.5"):
        manifest_of(tmp_path, tmp_path / "s.csv")


@pytest.mark.parametrize(("names", "found"), [([], "nothing"), (["a.sdpc", "b.sdpc", "c"], "2 × .sdpc, 1 × no suffix")])
def test_a_folder_without_slides_names_what_is_there(tmp_path: Path, names: list[str], found: str) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError) as error:
        manifest_of(tmp_path, tmp_path / "out" / "s.csv")
    assert error.value.where["found"] == found and ".svs" in str(error.value)


def test_a_missing_folder_and_a_damaged_slide_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        manifest_of(tmp_path / "nowhere", tmp_path / "s.csv")
    (tmp_path / "broken.svs").write_bytes(b"")
    with pytest.raises(UserError, match=r"broken\.svs"):
        manifest_of(tmp_path, tmp_path / "s.csv")


def test_a_manifest_is_taken_as_it_is(tmp_path: Path) -> None:
    manifest = tmp_path / "mine.csv"
    manifest.write_text("slide_id,wsi_path,mask_path\n")
    assert manifest_of(manifest, tmp_path / "s.csv") == manifest
    with pytest.raises(UserError, match="folder"):
        manifest_of(write_slide(tmp_path / "one.tif"), tmp_path / "s.csv")
