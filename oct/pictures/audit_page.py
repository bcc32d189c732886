"""The page of a geometry ledger: tables per device, a chart of the image share, and the first rows with a problem.

Its size depends on the number of devices and on `most_rows`, not on the number of files. Not here: the figures
(oct.pictures.audit), the CSV of all rows (oct.pictures.ledger).
"""

from __future__ import annotations

from base64 import b64encode

from oct.indexing.index_file import VolumeIndex
from oct.pictures.audit import Table, count_table, devices_of, draw_shares, exclusion_table, share_table, spacing_table
from oct.pictures.ledger import Ledger
from oct.pictures.previews import TEMPLATES
from pathray.reports.page import PagePicture, render_page
from pathray.urls import public_text


def audit_page(index: VolumeIndex, ledger: Ledger, *, most_rows: int, csv_name: str) -> str:
    """The page. csv_name: what the table of all rows is called, next to the page."""
    devices, more = devices_of(ledger)
    tables = [count_table(ledger, devices), spacing_table(ledger, devices), share_table(ledger, devices)]
    if ledger.table.num_rows > ledger.accepted.sum():
        tables.append(exclusion_table(ledger, devices))
    problems = [(name, f"{int(rows.sum()):,}") for name, rows in ledger.problems.items() if rows.any()]
    values = {
        "facts": [("Index", public_text(index.path)), ("Files below", public_text(index.root)), ("Files", str(index))],
        "tables": tables,
        "more_devices": more,
        "chart": _chart(ledger, devices),
        "problems": problems,
        "rows": problem_table(ledger, most_rows),
        "most_rows": most_rows,
        "csv_name": csv_name,
    }
    return render_page("audit.html.j2", values, TEMPLATES)


def problem_table(ledger: Ledger, most: int) -> Table:
    """The first `most` rows with a problem; accepted volumes first."""
    columns = ledger.table.select(["line", "path", "device", "detail", "notes"])
    rows = []
    for i, problems in ledger.problem_rows(most):
        own = {name: columns[name][i].as_py() for name in columns.column_names}
        told = "; ".join(text for text in (own["detail"], own["notes"]) if text)
        rows.append((f"{own['line']}", str(own["path"]), str(own["device"]), "; ".join(problems), told))
    return Table("Rows", "", ("row", "file", "device", "problem", "what the index says"), rows)


def _chart(ledger: Ledger, devices: list[str]) -> PagePicture | None:
    if not ledger.accepted.any():
        return None
    source = "data:image/png;base64," + b64encode(draw_shares(ledger, devices)).decode()
    return PagePicture(source, "Image share per device on the grids seed and fov", "")
