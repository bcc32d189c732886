"""Writes a comparison: strict JSON, and next to it, under the same name, the forest plot and the page.

Not here: what they show (mil.comparison.figure, mil.comparison.page).
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from mil.comparison.comparing import Compared
from mil.comparison.figure import draw_forest
from mil.comparison.page import comparison_page
from pathray.store.storage import Storage

NAME, ENDING = "significance", ".json"


def write_comparison(compared: Compared, output: str, title: str, about: Mapping[str, object]) -> dict[str, object]:
    """The files by what they are. `output`: a path or URL that ends with .json, or a folder for significance.json;
    `about` goes into the JSON, such as settings and digests of the tables."""
    folder, name = split_output(output)
    store, picture = Storage.of(folder), draw_forest(compared)
    files = {"figure": f"{name}.png", "report": f"{name}.html", "significance": f"{name}{ENDING}"}
    text = json.dumps({**compared.as_json(), **about}, indent=1, allow_nan=False)
    store.write_bytes(files["figure"], picture)
    store.write_bytes(files["report"], comparison_page(compared, picture, title).encode())
    store.write_bytes(files["significance"], text.encode() + b"\n")
    return {key: store.join(file) for key, file in files.items()}


def split_output(output: str) -> tuple[str, str]:
    """The folder, and the name of the files without ending.

    >>> split_output("out/significance.json"), split_output("out")
    (('out', 'significance'), ('out', 'significance'))
    """
    if not output.endswith(ENDING):
        return output, NAME
    folder, _, name = output.rpartition("/")
    return folder or ("/" if output.startswith("/") else "."), name.removesuffix(ENDING) or NAME
