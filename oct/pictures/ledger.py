"""The geometry ledger of an index as a table: a row per file, its spacings and sources, image shares and problems.

All comes from the index; no file is opened, and 56,000 rows take a second. Not here: figures per device
(oct.pictures.audit), the page (oct.pictures.audit_page).
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from oct.indexing.index_file import VolumeIndex
from oct.indexing.statistics import image_shares
from oct.volume import AXES, Grid

Bools = npt.NDArray[np.bool_]
SEED_GRID = Grid()
FOV_GRID = Grid(SEED_GRID.shape, (0.1, 0.005, 0.0167))
GRIDS = {"seed": SEED_GRID, "fov": FOV_GRID}
SPACINGS, SOURCES = [f"spacing_{axis}_mm" for axis in AXES], [f"source_{axis}" for axis in AXES]
LISTED = ["path", "line", "person", "device", "region", "laterality", "laterality_manifest", "laterality_header"]
COLUMNS = [*LISTED, "frames", "rows", "columns", *SPACINGS, *SOURCES, "reordered", "irregular"]
LAST = ["exclusion", "detail", "notes"]
NO_EYE, OTHER_EYE, GAPS = "eye not known", "manifest and header name different eyes", "irregular gaps"
ASSUMED = "assumed spacing of {}"
NAMES = dict(zip(AXES, ("the slow axis", "depth", "the B-scan"), strict=True))
LITTLE = "under {:.0%} of the {} grid is image"
LITTLE_IMAGE = 0.05


@dataclass(frozen=True)
class Ledger:
    """table: a row per file of the index, in its order. problems: which rows have each, the worst first."""

    table: pa.Table
    problems: dict[str, Bools]

    @property
    def accepted(self) -> Bools:
        """Which rows are volumes to train on."""
        found: Bools = pc.equal(self.table["exclusion"], "").to_numpy()
        return found

    def problem_rows(self, most: int) -> list[tuple[int, list[str]]]:
        """(row of the table, its problems) of the first `most` rows with a problem: excluded files last."""
        any_problem = np.logical_or.reduce(list(self.problems.values()))
        order = np.flatnonzero(any_problem)
        order = order[np.argsort(~self.accepted[order], kind="stable")]
        return [(i, [name for name, rows in self.problems.items() if rows[i]]) for i in order[:most].tolist()]


def build_ledger(index: VolumeIndex) -> Ledger:
    """The ledger of all rows of an index. `image_share_seed`, `image_share_fov`: null where a file is excluded."""
    table = index.table.select(COLUMNS)
    accepted = pc.equal(index.table["exclusion"], "")
    rows = np.flatnonzero(accepted.to_numpy())
    for name, grid in GRIDS.items():
        share = np.full(table.num_rows, np.nan)
        share[rows] = image_shares(index.accepted, grid)
        table = table.append_column(f"image_share_{name}", pa.array(share, from_pandas=True))
    for name in LAST:
        table = table.append_column(name, index.table[name])
    return Ledger(table, find_problems(table, accepted.to_numpy()))


def find_problems(table: pa.Table, accepted: Bools) -> dict[str, Bools]:
    """Which rows have each problem; of accepted volumes, then every reason of exclusion."""
    found = {OTHER_EYE: accepted & _differs(table)}
    for axis in AXES:
        found[ASSUMED.format(NAMES[axis])] = accepted & _is(table, f"source_{axis}", "assumed")
    found[GAPS] = accepted & pc.fill_null(table["irregular"], False).to_numpy()
    found[NO_EYE] = accepted & _is(table, "laterality", "") & ~found[OTHER_EYE]
    shares = table["image_share_fov"].to_numpy(zero_copy_only=False)
    found[LITTLE.format(LITTLE_IMAGE, "fov")] = accepted & (np.nan_to_num(shares, nan=1.0) < LITTLE_IMAGE)
    for reason in sorted(set(table["exclusion"].to_pylist()) - {""}):
        found[f"excluded: {reason}"] = _is(table, "exclusion", reason)
    return found


def to_csv(ledger: Ledger) -> bytes:
    """The table as a CSV with a header."""
    out = BytesIO()
    pacsv.write_csv(ledger.table, out)
    return out.getvalue()


def _is(table: pa.Table, column: str, value: str) -> Bools:
    found: Bools = pc.fill_null(pc.equal(table[column], value), value == "").to_numpy()
    return found


def _differs(table: pa.Table) -> Bools:
    listed, read = table["laterality_manifest"], table["laterality_header"]
    both = pc.and_(pc.not_equal(pc.fill_null(listed, ""), ""), pc.not_equal(pc.fill_null(read, ""), ""))
    found: Bools = pc.and_(both, pc.fill_null(pc.not_equal(listed, read), False)).to_numpy()
    return found
