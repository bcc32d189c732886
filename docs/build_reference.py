"""The API reference: every module's docstrings as pages, in build/docs. `make docs` runs it.

Not the documentation: that is README.md and the pages next to this file.
"""

from __future__ import annotations

import pkgutil
import re
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import pdoc

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "build" / "docs"
PACKAGES = ("pathray", "ijepath", "adios", "oct", "regression")  # jobs have --help

_TAGS = r"(?:<[^>]*>|\s)*"  # between the words of a type, where pdoc colours it
_NDARRAY = "numpy . ndarray [ tuple [ typing . Any , ... ] , numpy . dtype [".split()
_KIND = r"(?:\w+ \. )?(\w+) (?:\[ typing \. Any \] )?\] \]".replace(" ", _TAGS)
_ARRAY = re.compile(_TAGS.join(map(re.escape, _NDARRAY)) + _TAGS + _KIND)


def modules() -> list[str]:
    """What pdoc is told: it finds the modules of a package by itself, unless that says `__all__`."""
    found = list(PACKAGES)
    for package in PACKAGES:
        for module in pkgutil.walk_packages(import_module(package).__path__, f"{package}."):
            if hasattr(import_module(module.name.rpartition(".")[0]), "__all__"):
                found.append(module.name)
    return found


def build(names: Sequence[str], output: Path) -> None:
    """Write the pages of modules, and of those inside them, into a folder."""
    warnings.filterwarnings("ignore", "Error parsing type annotation")  # of named tuples: shown as they are written
    pdoc.render.configure(docformat="markdown", show_source=False, footer_text="Pathray")
    pdoc.pdoc(*names, output_directory=output)
    for page in output.rglob("*.html"):
        page.write_text(readable(page.read_text()))


def readable(page: str) -> str:
    """A page with `ndarray[uint8]` for what numpy's own name of that type takes a line for, and no empty links."""
    return re.sub(r'<a href="">(.*?)</a>', r"\1", _ARRAY.sub(r"ndarray[\1]", page))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    build(modules(), OUTPUT)
    print(OUTPUT / "index.html")
