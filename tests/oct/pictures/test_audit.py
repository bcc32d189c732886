"""The ledger of an index and its page: counts by hand, all rows in the CSV, a page of bounded size."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from oct.indexing.index_file import make_index
from oct.pictures.audit import count_table, devices_of, exclusion_table, share_table, spacing_table
from oct.pictures.audit_page import audit_page, problem_table
from oct.pictures.ledger import build_ledger, to_csv
from tests.builders.oct.scans import Scan, both_eyes, index_scans

ASSUMED = ("positions", "assumed", "assumed")
TRITON = {"size": (64, 496, 384), "spacing_mm": (0.1, 0.004, 0.015)}  # 6.4 × 1.984 × 5.76 mm


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    scans = [
        *both_eyes("1", **TRITON),
        Scan("2", **TRITON, header_eye="L", name="other"),
        Scan("3", "", header_eye="", **TRITON, name="none", offsets_mm=(0.0, 0.1, 0.3)),
        Scan("4", device="zeiss_cirrus", sources=ASSUMED, spacing_mm=(0.05, 1.0, 1.0)),
        Scan("5", device="zeiss_cirrus", exclusion="circular"),
        Scan("6", device="zeiss_cirrus", there=False, name="<gone>"),
    ]
    return index_scans(tmp_path_factory.mktemp("audit"), scans)


@pytest.fixture(scope="module")
def ledger(index):
    return build_ledger(index)


def test_counts_per_device_are_those_of_the_scans(ledger):
    rows = {row[0]: row[1:] for row in count_table(ledger, devices_of(ledger)[0]).rows}
    assert rows["topcon_triton"] == ("4", "4", "0", "3", "0", "1", "0", "1", "1")
    assert rows["zeiss_cirrus"] == ("3", "1", "2", "1", "1", "0", "0", "0", "0")
    assert rows["all"] == ("7", "5", "2", "4", "1", "1", "0", "1", "1")


def test_an_assumed_spacing_is_no_spacing(ledger):
    rows = {row[:2]: row[2:] for row in spacing_table(ledger, ["topcon_triton", "zeiss_cirrus"]).rows}
    assert rows["topcon_triton", "depth"] == ("0.004 – 0.004 – 0.004", "shared measures 4")
    assert rows["zeiss_cirrus", "depth"] == ("none recorded", "assumed 1")
    assert rows["zeiss_cirrus", "the slow axis"] == ("0.05 – 0.05 – 0.05", "positions 1")


def test_image_shares_on_both_grids(ledger):
    """6.4 × 1.984 × 5.76 mm on 64 × 384 × 384 voxels. Seed: all of z (3.2 mm), 99 rows, 288 columns. fov: 64 slices of
    0.1, all 384 rows (1.92 mm), 345 columns of 0.0167."""
    seed, fov = 99 / 384 * 288 / 384, 345 / 384
    table = ledger.table.to_pydict()
    assert table["image_share_seed"][0] == pytest.approx(seed) and table["image_share_fov"][0] == pytest.approx(fov)
    assert table["image_share_seed"][5] is None, "an excluded file fills no grid"
    (row, _) = share_table(ledger, ["topcon_triton", "zeiss_cirrus"]).rows
    assert row[1:] == (" – ".join(3 * [f"{seed:.1%}"]), " – ".join(3 * [f"{fov:.1%}"]))


def test_exclusions_are_counted_by_reason_and_device(ledger):
    rows = exclusion_table(ledger, ["topcon_triton", "zeiss_cirrus"]).rows
    assert sorted(rows) == [("circular", "1", "", "1"), ("missing", "1", "", "1")]


def test_problem_rows_name_every_problem_and_excluded_files_come_last(ledger):
    rows = problem_table(ledger, 10).rows
    assert [row[1].rpartition("/")[2] for row in rows][-2:] == ["5_r_macula.dcm", "<gone>.dcm"]
    problems = {row[1].rpartition("/")[2]: row[3] for row in rows}
    assert problems["other.dcm"] == "manifest and header name different eyes"
    assert problems["none.dcm"] == "irregular gaps; eye not known"
    assert problems["4_r_macula.dcm"].startswith("assumed spacing of depth; assumed spacing of the B-scan")
    assert not {"1_r_macula.dcm", "1_l_macula.dcm"} & set(problems)
    assert len(problem_table(ledger, 2).rows) == 2


def test_the_csv_has_every_file_of_the_index(index, ledger):
    rows = list(csv.DictReader(io.StringIO(to_csv(ledger).decode())))
    assert [row["path"] for row in rows] == index.table["path"].to_pylist()
    assert rows[4]["source_y"] == "assumed" and rows[5]["exclusion"] == "circular"
    assert float(rows[0]["spacing_y_mm"]) == 0.004 and rows[6]["spacing_y_mm"] == ""


def test_the_page_has_the_tables_and_escapes_names(index, ledger):
    page = audit_page(index, ledger, most_rows=50, csv_name="ledger.csv")
    assert "&lt;gone&gt;.dcm" in page and "<gone>" not in page
    assert 'href="ledger.csv"' in page and "7 listed = 5 accepted + 2 excluded" in page
    assert "circular" in page and "data:image/png;base64," in page


def test_a_page_of_56_000_files_is_not_larger(index):
    """50 devices of 1,120 files: tables for 30 of them, and 100 rows."""
    first = index.table.slice(0, 1).to_pylist()[0] | {"laterality": "", "laterality_manifest": ""}
    rows = [
        first | {"path": f"{i % 50:02d}/{i}.dcm", "line": i, "device": f"device_{i % 50:02d}"} for i in range(56_000)
    ]
    big = make_index("big.parquet", index.root, rows)
    ledger = build_ledger(big)
    page = audit_page(big, ledger, most_rows=100, csv_name="big.csv")
    assert len(page) < 400_000 and "and 20 devices more" in page and page.count("eye not known") <= 102 + 2
    assert np.sum(ledger.accepted) == 56_000
