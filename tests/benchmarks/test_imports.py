"""Benchmarks run by hand; what they import from the library and from each other must be there all the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

IMPORT_ALL = "import importlib, sys; print(len([importlib.import_module(name) for name in sys.argv[1:]]))"


def test_every_benchmark_imports() -> None:
    folder = ROOT / "benchmarks"
    scripts = [path.stem for path in sorted(folder.rglob("*.py"))]
    assert len(set(scripts)) == len(scripts) > 20
    environment = {
        "PYTHONPATH": f"{ROOT}:{folder}:{folder / 'data'}:{folder / 'faults'}",
        "PATH": "",
        "OMP_NUM_THREADS": "1",
    }
    ran = subprocess.run([sys.executable, "-c", IMPORT_ALL, *scripts], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split()[-1] == str(len(scripts))
