"""Spots and counts → patches and targets, on made data and on a real section."""

from __future__ import annotations

import gzip
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pathray.errors import UserError
from pathray.features.images import read_image
from regression.tables.spatial import (
    Counts,
    check_same_spots,
    cut_patches,
    log1p_cp10k,
    read_counts,
    read_spots,
    select_genes,
    totals_of,
    write_table,
)
from regression.tables.table import read_table


def files(folder, counts: str = "spot\tA\tB\ns1\t1\t3\ns2\t0\t2\n", spots: str = "s2,p,8,4\ns1,q,3,3\n"):
    with gzip.open(folder / "counts.tsv.gz", "wt") as file:
        file.write(counts)
    (folder / "spots.csv").write_text("spot_id,patient,pixel_x,pixel_y\n" + spots)
    return str(folder / "counts.tsv.gz"), str(folder / "spots.csv")


def test_spots_meet_their_own_counts(tmp_path):
    counts, spots = files(tmp_path)
    read = read_spots(spots, group="patient")
    write_table(str(tmp_path / "table.csv"), read, ["2.png", "1.png"], read_counts(counts))
    table = read_table(str(tmp_path / "table.csv"), genes=["B", "A"], check_files=False)
    assert table.names.tolist() == ["2.png", "1.png"] and table.groups.tolist() == ["p", "q"]
    expected = np.log1p(1e4 * np.array([[2 / 2, 0], [3 / 4, 1 / 4]]))
    assert table.targets == pytest.approx(expected)
    own = read_counts(counts, {"s1": 8, "s2": 4})
    assert log1p_cp10k(own)[0] == pytest.approx(np.log1p(1e4 * np.array([1, 3]) / 8))


def test_names_that_look_like_numbers_stay_as_they_are_written(tmp_path):
    counts, spots = files(tmp_path, "\tA\tB\n001\t1\t3\n002\t0\t2\n", "002,07,8,4\n001,1e3,3,3\n")
    read = read_spots(spots, group="patient")
    assert (read.ids, read.groups, read.centres.tolist()) == (("002", "001"), ("07", "1e3"), [[8, 4], [3, 3]])
    assert read_counts(counts).spots == ("001", "002") and read_counts(counts).values.tolist() == [[1, 3], [0, 2]]


@pytest.mark.parametrize(
    ("counts", "spots", "message"),
    [
        ("spot\tA\ns1\t1\ns1\t2\n", "s1,p,1,1\n", "duplicate spot"),
        ("spot\tA\ns1\t1\ns2\t-2\n", "s1,p,1,1\n", "not a count"),
        ("spot\tA\ns1\tmany\n", "s1,p,1,1\n", "not a count"),
        ("spot\tA\ns1\t1\ns2\t0\n", "s1,p,1,1\n", "total is too small"),
        ("spot\tA\ns1\t1\ns2\t2\n", "s1,p,1,1\n", "have different spots"),
        ("spot\tA\ns1\t1\n", "s1,p,1,1\ns1,p,2,2\n", "duplicate spot"),
    ],
)
def test_a_merge_loses_and_doubles_nothing(tmp_path, counts, spots, message):
    paths = files(tmp_path, counts, spots)
    with pytest.raises(UserError, match=message):
        read = read_counts(paths[0])
        write_table(str(tmp_path / "t.csv"), read_spots(paths[1], group="patient"), ["1.png"], read)


def test_genes_are_chosen_on_training_rows_only():
    values = np.array([[0, 1, 5.0], [9, 2, 5.0], [0, 0, 0], [0, 0, 999.0]])
    train = np.array([True, True, False, False])
    assert select_genes(values, ["a", "b", "c"], train, 2) == ["a", "b"]
    with pytest.raises(UserError, match="too few genes vary"):
        select_genes(values, ["a", "b", "c"], train, 3)


def test_patches_are_cut_around_their_spots_at_the_spacing_asked_for(tmp_path):
    _, spots = files(tmp_path)
    image = np.random.default_rng(0).integers(0, 255, size=(12, 20, 3)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "section.png")
    read = read_spots(spots, group="patient")
    names = cut_patches(str(tmp_path / "section.png"), read, str(tmp_path / "p"), size_px=4, mpp=0.5, image_mpp=0.5)
    patch = np.asarray(Image.open(tmp_path / "p" / names[0]))
    assert names == ["s2.png", "s1.png"] and np.array_equal(patch, image[2:6, 6:10])
    cut_patches(str(tmp_path / "section.png"), read, str(tmp_path / "h"), size_px=2, mpp=1.0, image_mpp=0.5)
    halved = image[2:6, 6:10].reshape(2, 2, 2, 2, 3).mean(axis=(1, 3))
    assert np.abs(np.asarray(Image.open(tmp_path / "h" / "s2.png")) - halved).max() <= 0.5
    with pytest.raises(UserError, match="pixel size"):
        cut_patches(str(tmp_path / "section.png"), read, str(tmp_path / "n"), size_px=2, mpp=1.0)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="section's image cannot be read"):
        cut_patches(str(tmp_path / "broken.jpg"), read, str(tmp_path / "n"), size_px=2, mpp=1.0, image_mpp=0.5)
    far = read_spots(files(tmp_path, spots="s1,p,3,30\n")[1], group="patient")
    with pytest.raises(UserError, match="outside the image"):
        cut_patches(str(tmp_path / "section.png"), far, str(tmp_path / "n"), size_px=2, mpp=1.0, image_mpp=0.5)


def test_the_real_counts_give_the_published_targets(shared_data):
    folder = shared_data / "regression" / "her2st"
    if not folder.is_dir():
        pytest.skip(f"no spatial transcriptomics at {folder}")
    spots = read_spots(str(folder / "spots.tsv"), group="section")
    totals = totals_of(spots, "total_counts")
    counts = read_counts(str(folder / "counts_top250.tsv.gz"), totals)
    lines = (folder / "targets_log1p_cp10k_top50.tsv").read_text().splitlines()
    genes = lines[0].split("\t")[1:]
    published = np.array([line.split("\t")[1:] for line in lines[1:]], np.float64)
    place = {gene: k for k, gene in enumerate(counts.genes)}
    assert tuple(line.split("\t")[0] for line in lines[1:]) == counts.spots
    assert log1p_cp10k(counts)[:, [place[g] for g in genes]] == pytest.approx(published, abs=6e-5)
    assert isinstance(counts, Counts) and counts.values.shape == (1193, 250)


def test_patches_of_a_real_section_are_the_published_ones(shared_data, tmp_path):
    folder = shared_data / "regression" / "her2st"
    if not (folder / "raw" / "B4.jpg").is_file():
        pytest.skip(f"no section image at {folder}")
    spots = read_spots(str(folder / "spots.tsv"), group="section")
    patches = spots.sheet.texts("patch")
    some = [i for i, section in enumerate(spots.groups) if section == "B4"][::60]
    few = replace(spots, ids=tuple(spots.ids[i] for i in some), centres=spots.centres[some])
    cut_patches(str(folder / "raw" / "B4.jpg"), few, str(tmp_path), size_px=224, mpp=1.0, image_mpp=1.0)
    for i, spot in zip(some, few.ids, strict=True):
        own, published = read_image(str(tmp_path / f"{spot}.png")), read_image(str(folder / patches[i]))
        assert np.abs(own.astype(int) - published).mean() < 3  # JPEG, twice


@pytest.mark.parametrize("header", ["spot\tA\tB\tA", "spot\tA\tA\tB", "spot\tA\tspot\tB", "spot\tA\t\t"])
def test_a_column_that_stands_twice_is_refused_with_both_places(tmp_path, header):
    counts, _ = files(tmp_path, f"{header}\ns1\t1\t3\t57\ns2\t0\t2\t4\n")
    with pytest.raises(UserError, match="duplicate column") as e:
        read_counts(counts)
    assert e.value.where["row"] == 1 and "columns" in str(e.value.where["found"])


@pytest.mark.parametrize(
    ("suffix", "mark", "word"),
    [("csv", ";", "semicolon"), ("csv", "\t", "tab"), ("tsv", ",", "comma"), ("csv", "|", "bar")],
)
def test_another_separator_is_asked_about(tmp_path, suffix, mark, word):
    path = tmp_path / f"counts.{suffix}"
    path.write_text("spot,A,B\ns1,1,3\n".replace(",", mark))
    with pytest.raises(UserError, match=f"one column only: wrong separator.*{word}"):
        read_counts(str(path))
    with pytest.raises(UserError, match="one column only"):
        read_spots(str(path), group="patient")


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("", "an empty cell"),
        ("missing", "missing"),
        ("0", "0"),
        ("-3", "-3"),
        ("nan", "nan"),
        ("n/a", "n/a"),
        ("NULL", "NULL"),
        ("inf", "inf"),
    ],
)
def test_a_total_that_is_no_number_above_zero_is_refused_with_its_row(tmp_path, cell, shown):
    path = tmp_path / "spots.csv"
    path.write_text(f"spot_id,patient,pixel_x,pixel_y,n\ns1,p,1,2,40\ns2,p,3,4,{cell}\n")
    read = read_spots(str(path), group="patient")
    with pytest.raises(UserError, match="not a total") as e:
        totals_of(read, "n")
    assert (e.value.where["row"], e.value.where["key"]) == (3, "n") and shown in str(e.value.where["found"])
    assert str(path) in str(e.value)


def test_an_image_that_is_too_coarse_is_refused_unless_the_key_allows_it(tmp_path):
    counts, spots = files(tmp_path, spots="s2,p,40,40\ns1,q,30,30\n")
    Image.fromarray(np.full((80, 80, 3), 120, np.uint8)).save(tmp_path / "section.png")
    read, how = read_spots(spots, group="patient"), {"size_px": 16, "mpp": 0.5, "image_mpp": 2.0}
    with pytest.raises(UserError, match=r"4.0 times.*max_enlargement=2"):
        cut_patches(str(tmp_path / "section.png"), read, str(tmp_path / "out"), **how)
    assert not (tmp_path / "out").exists()
    found = cut_patches(str(tmp_path / "section.png"), read, str(tmp_path / "out"), **how, max_enlargement=4.0)
    assert found == ["s2.png", "s1.png"]


@pytest.mark.parametrize("cell", ["2.5", "1_000", "-1", "many", "nan"])
def test_a_cell_that_is_no_whole_number_is_no_count(tmp_path, cell):
    counts, _ = files(tmp_path, f"spot\tA\tB\ns1\t1\t3\ns2\t0\t{cell}\n")
    with pytest.raises(UserError, match="not a count") as e:
        read_counts(counts)
    assert (e.value.where["row"], e.value.where["key"]) == (3, "B")


def test_a_blank_in_front_of_a_gene_does_not_make_another_gene(tmp_path):
    counts, _ = files(tmp_path, "spot\tTBCE\t TBCE\ns1\t1\t3\n")
    with pytest.raises(UserError, match="duplicate column"):
        read_counts(counts)


def test_a_total_with_an_underscore_is_no_number(tmp_path):
    (tmp_path / "spots.csv").write_text("spot_id,patient,pixel_x,pixel_y,n\ns1,p,1,2,40\ns2,p,3,4,1_000\n")
    with pytest.raises(UserError, match="not a total") as e:
        totals_of(read_spots(str(tmp_path / "spots.csv"), group="patient"), "n")
    assert e.value.where["row"] == 3


@pytest.mark.parametrize("cells", [("0x10", "0x10"), ("0x10", "3"), ("3", "1,5"), ("", "3"), ("2", "1e-3")])
def test_counts_that_are_no_plain_numbers_are_refused_also_where_all_of_a_column_is_such(tmp_path, cells):
    counts, _ = files(tmp_path, "spot\tA\tB\n" + "".join(f"s{i}\t{cell}\t3\n" for i, cell in enumerate(cells)))
    with pytest.raises(UserError, match="not a count") as e:
        read_counts(counts)
    assert e.value.where["key"] == "A" and e.value.where["row"] == (3 if cells[0] in ("2", "3") else 2)


@pytest.mark.parametrize("header", ["spot\tA\t", "spot\t\tB", "spot\tA\t  "])
def test_a_gene_without_a_name_is_refused(tmp_path, header):
    counts, _ = files(tmp_path, f"{header}\ns1\t1\t3\n")
    with pytest.raises(UserError, match="no gene name"):
        read_counts(counts)


def test_counts_as_excel_writes_whole_numbers_are_read(tmp_path):
    counts, _ = files(tmp_path, "spot\tA\tB\ns1\t1.00E+03\t3.0\n")
    assert read_counts(counts).values.tolist() == [[1000, 3]]


def test_a_spots_coordinate_is_blamed_in_its_own_row(tmp_path):
    _, spots = files(tmp_path, spots="s1,p,1,1\ns2,p,2,2\ns3,p,1_0,3\n")
    with pytest.raises(UserError, match="not a finite coordinate") as e:
        read_spots(spots, group="patient")
    assert (e.value.where["row"], e.value.where["key"], e.value.where["found"]) == (4, "pixel_x", "1_0")


def test_patients_in_two_spellings_are_refused(tmp_path):
    _, spots = files(tmp_path, spots="s1,P7,1,1\ns2,p8,2,2\ns3,p7,3,3\n")
    with pytest.raises(UserError, match=r"differ only in case or Unicode form.*row: 4; key: patient.*row 2 has P7"):
        read_spots(spots, group="patient")
    _, spots = files(tmp_path, spots="s1,007,1,1\ns2, 007 ,2,2\ns3,7,3,3\n")
    assert read_spots(spots, group="patient").groups == ("007", "007", "7")


def test_counts_with_genes_in_rows_are_told_to_be_transposed(tmp_path):
    counts, spots = files(tmp_path, "gene\ts1\ts2\nA\t1\t3\nB\t2\t4\n")
    with pytest.raises(UserError, match="transpose the counts"):
        check_same_spots(read_spots(spots, group="patient"), read_counts(counts))
    counts, spots = files(tmp_path, "spot\tA\ns1\t1\ns3\t2\n")
    with pytest.raises(UserError, match="each spot in both files"):
        check_same_spots(read_spots(spots, group="patient"), read_counts(counts))
