"""Modules and files that docstrings, comments and documents name exist."""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("pathray", "ijepath", "adios", "regression", "ray_jobs", "demo", "benchmarks", "tests")
NO_MODULES = {
    "pathray.continued_by",
    "pathray.continues",
    "ray_jobs.JOB",
    "regression.json",
}  # tags, a stand-in, a file
DOTTED = re.compile(rf"(?<![\w/.\-])((?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+)")
FILE = re.compile(rf"(?<![\w/.\-])((?:{'|'.join(PACKAGES)}|docs|examples|cluster)/[\w/\-]+\.(?:py|md|yaml|toml))(?!\w)")


def texts_of(path: Path) -> list[tuple[int, str]]:
    """Comments and docstrings of a module with their lines; a document whole."""
    text = path.read_text()
    if path.suffix == ".md":
        return [(1, text)]
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    owners = [node for node in statements(ast.parse(text)) if isinstance(node, kinds)]
    docstrings = [(getattr(n, "lineno", 1), doc) for n in owners if (doc := ast.get_docstring(n))]
    return docstrings + comments_of(path, text)


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """A node and the statements below it, without their expressions."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from statements(child)


def comments_of(path: Path, text: str) -> list[tuple[int, str]]:
    """Comments of a module that may name something; tokenizing is slow, so only where a `#` comes before a name."""
    after = [line.partition("#")[2] for line in text.splitlines()]
    if not any(DOTTED.search(part) or FILE.search(part) for part in after if part):
        return []
    with tokenize.open(path) as f:
        return [(t.start[0], t.string) for t in tokenize.generate_tokens(f.readline) if t.type == tokenize.COMMENT]


@cache
def names_in(path: Path) -> frozenset[str]:
    """Names that a module binds at its top level."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if path.name == "__init__.py" else tree.body:  # those of the face are below an if
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name) for alias in node.names}
    return frozenset(found)


@cache
def resolves(name: str) -> bool:
    """Whether a dotted name is a module of the tree, or something that one binds."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        base = ROOT.joinpath(*parts[:cut])
        module = base.with_suffix(".py") if base.with_suffix(".py").is_file() else base / "__init__.py"
        if module.is_file():
            return cut == len(parts) or parts[cut] in names_in(module) or parts[cut] in ("configs", "__version__")
        if base.is_dir() and cut == len(parts):
            return True
    return False


def sources() -> list[Path]:
    code = [p for package in PACKAGES for p in (ROOT / package).rglob("*.py") if "golden" not in str(p)]
    documents = [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(p for d in PACKAGES for p in ROOT.glob(f"{d}/*.md")),
    ]
    return code + documents


def test_modules_and_files_that_are_named_in_texts_exist():
    lost = []
    for path in sources():
        for line, text in texts_of(path):
            found = [name for name in DOTTED.findall(text) if name not in NO_MODULES and not resolves(name)]
            found += [name for name in FILE.findall(text) if not (ROOT / name).exists()]
            lost += [f"{path.relative_to(ROOT)}:{line}: {name}" for name in found]
    assert not lost, "\n".join(lost)


def test_a_name_that_does_not_exist_is_noticed():
    assert resolves("pathray.data.order") and resolves("pathray.errors.UserError")
    assert not resolves("pathray.data.ordering") and not resolves("pathray.errors.UserErrors")
