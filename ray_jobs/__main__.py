"""`python -m ray_jobs`: the jobs there are, one line each. Reads their source only, so it is instant."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent


def jobs(package: Path = PACKAGE) -> dict[str, str]:
    """Module name -> first line of its docstring, for every module with a `main` that hands it to `job(main, …)`."""
    found: dict[str, str] = {}
    for path in sorted(package.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        if _is_job(tree):
            name = ".".join([package.name, *path.relative_to(package).with_suffix("").parts])
            found[name] = (ast.get_docstring(tree) or "").split("\n")[0]
    return found


def _is_job(tree: ast.Module) -> bool:
    has_main = any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
    calls = [node for guard in tree.body if isinstance(guard, ast.If) for node in ast.walk(guard)]
    return has_main and any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "job" for node in calls
    )


def listing() -> str:
    found = jobs()
    width = max(map(len, found), default=0)
    lines = [f"  python -m {name:<{width}}   {description}" for name, description in found.items()]
    usage = "Each takes [--config FILE]… [--dry-run] [--print-config] [KEY=VALUE]…; --help lists its keys."
    return "\n".join(["Jobs:", *lines, "", usage])


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] not in ("-h", "--help"):
        print(f"error: a job is started as python -m ray_jobs.{sys.argv[1]}\n\n{listing()}", file=sys.stderr)
        raise SystemExit(2)
    print(listing())
