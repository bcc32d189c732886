"""Figures of a geometry ledger per device: counts, spacings with sources, image share on both grids, exclusions.

Tables of text for a page, and one chart. Not here: the rows themselves (oct.pictures.ledger), the page
(oct.pictures.audit_page).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from oct.pictures.ledger import ASSUMED, GAPS, GRIDS, NAMES, NO_EYE, OTHER_EYE, Ledger
from oct.volume import AXES
from pathray.draw.canvas import ACCENTS, FAINT, INK, MUTED
from pathray.draw.charts import plain_frame
from pathray.draw.figures import new_figure, plain_text, to_png

MOST_DEVICES = 30  # on the page; the CSV has all
COUNTS = ("device", "files", "volumes", "excluded", "persons", "assumed axes", "irregular", "reordered", "eyes differ",
          "eye not known")  # fmt: skip
SPACING = ("device", "axis", "spacing, mm: least – median – greatest", "sources")
SHARES = ("device", *(f"{name}: {' × '.join(f'{mm:g}' for mm in grid.spacing_mm)} mm" for name, grid in GRIDS.items()))
QUANTILES = (0.05, 0.5, 0.95)
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """A table of a page: a title, a sentence, names of columns and rows of text, the first cell a name."""

    title: str
    sentence: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def devices_of(ledger: Ledger) -> tuple[list[str], int]:
    """The devices with the most files, at most `MOST_DEVICES`, and how many others there are."""
    counts = Counter(ledger.table["device"].to_pylist())
    names = sorted(counts, key=lambda name: (-counts[name], name))
    return sorted(names[:MOST_DEVICES]), max(0, len(names) - MOST_DEVICES)


def count_table(ledger: Ledger, devices: Sequence[str]) -> Table:
    """Counts per device, and of all files."""
    rows = [_counts(ledger, name, _of(ledger, name)) for name in devices]
    rows.append(_counts(ledger, "all", np.ones(ledger.table.num_rows, bool)))
    sentence = "Of accepted volumes, except files and excluded. Assumed axes: volumes with at least one."
    return Table("Devices", sentence, COUNTS, rows)


def spacing_table(ledger: Ledger, devices: Sequence[str]) -> Table:
    """Recorded spacings per device and axis, with how many volumes have it from where."""
    rows = []
    for name in devices:
        table = ledger.table.filter(pa.array(_of(ledger, name) & ledger.accepted))
        for axis in AXES if table.num_rows else ():
            sources = Counter(table[f"source_{axis}"].to_pylist())
            told = ", ".join(f"{source.replace('_', ' ')} {count:,}" for source, count in sources.most_common())
            rows.append((name, NAMES[axis], _range_of(recorded(table, axis)), told))
    return Table("Spacing", "Without assumed ones, which are no measurement.", SPACING, rows)


def share_table(ledger: Ledger, devices: Sequence[str]) -> Table:
    """The share of the grid that is image: 5%, median and 95% of the volumes of a device."""
    rows = []
    for name in devices:
        own = _of(ledger, name) & ledger.accepted
        rows.append((name, *(_quantiles(_share(ledger, grid)[own]) for grid in GRIDS)))
    sentence = "5% – median – 95% of the volumes, by size and spacing alone. Outside of it a token holds nothing."
    return Table("Image share", sentence, SHARES, rows)


def exclusion_table(ledger: Ledger, devices: Sequence[str]) -> Table:
    """Excluded files per reason and device."""
    table = ledger.table.filter(pc.not_equal(ledger.table["exclusion"], ""))
    found = Counter(zip(table["exclusion"].to_pylist(), table["device"].to_pylist(), strict=True))
    reasons = Counter(table["exclusion"].to_pylist())
    rows = [
        (
            reason.replace("_", " "),
            f"{count:,}",
            *(f"{found[reason, d]:,}" if found[reason, d] else "" for d in devices),
        )
        for reason, count in reasons.most_common()
    ]
    return Table("Excluded files", "They stay in the index with the reason.", ("reason", "files", *devices), rows)


def recorded(table: pa.Table, axis: str) -> Floats:
    """The spacings `[n]` of an axis that something says, in mm."""
    known = table.filter(pc.not_equal(table[f"source_{axis}"], "assumed"))
    values: Floats = known[f"spacing_{axis}_mm"].to_numpy()
    return values


def draw_shares(ledger: Ledger, devices: Sequence[str]) -> bytes:
    """A PNG: per device the image share on both grids, a bar from 5% to 95% of the volumes and a dot at the median."""
    figure = new_figure(8.4, 1.3 + 0.42 * len(devices), 130)
    axes = figure.add_subplot()
    for k, grid in enumerate(GRIDS):
        for i, name in enumerate(devices):
            shares = _share(ledger, grid)[_of(ledger, name) & ledger.accepted]
            if shares.size:
                low, middle, high = np.quantile(shares, QUANTILES)
                y, label = i + 0.18 * (2 * k - 1), None
                axes.plot([low, high], [y, y], color=ACCENTS[k], linewidth=4, alpha=0.35, solid_capstyle="butt")
                axes.plot([middle], [y], "o", color=ACCENTS[k], markersize=6, label=label)
        axes.plot([], [], "o-", color=ACCENTS[k], label=f"{grid} grid")
    axes.set_yticks(range(len(devices)), [plain_text(name, 40) for name in devices])
    axes.set(xlim=(0, 1.02), ylim=(len(devices) - 0.5, -0.5))
    axes.set_xlabel("share of the grid that is image", fontsize=9, color=MUTED)
    plain_frame(axes)
    axes.grid(axis="x", color=FAINT, linewidth=0.6, alpha=0.7)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.legend(fontsize=8.5, frameon=False, labelcolor=MUTED, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2)
    figure.tight_layout()
    return to_png(figure)


def _counts(ledger: Ledger, name: str, own: npt.NDArray[np.bool_]) -> tuple[str, ...]:
    accepted = own & ledger.accepted
    persons = pc.count_distinct(ledger.table["person"].filter(pa.array(accepted))).as_py()
    problems = ledger.problems
    assumed = np.logical_or.reduce([problems[ASSUMED.format(NAMES[axis])] for axis in AXES])
    reordered = pc.fill_null(ledger.table["reordered"], False).to_numpy()
    figures = (own, accepted, own & ~ledger.accepted)
    further = (assumed, problems[GAPS], reordered, problems[OTHER_EYE], problems[NO_EYE])
    numbers = [int(rows.sum()) for rows in figures] + [persons] + [int((accepted & rows).sum()) for rows in further]
    return name, *(f"{number:,}" for number in numbers)


def _of(ledger: Ledger, device: str) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = pc.equal(ledger.table["device"], device).to_numpy()
    return found


def _share(ledger: Ledger, grid: str) -> Floats:
    shares: Floats = ledger.table[f"image_share_{grid}"].to_numpy(zero_copy_only=False)
    return shares


def _range_of(values: Floats) -> str:
    if not values.size:
        return "none recorded"
    return " – ".join(f"{value:.4g}" for value in (values.min(), np.median(values), values.max()))


def _quantiles(values: Floats) -> str:
    return " – ".join(f"{v:.1%}" for v in np.quantile(values, QUANTILES)) if values.size else ""
