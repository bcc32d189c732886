"""What the tests took: the slowest twenty over all stages, the files that took longest, and the total of each package.

    .ci/slowest.py build/junit

Reads the JUnit files that pytest wrote into the folder, one per stage. Seconds are summed over processes that ran at
the same time.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

TESTS, FILES = 20, 15


class Test(NamedTuple):
    seconds: float
    stage: str
    file: str
    name: str


def read_tests(folder: Path) -> list[Test]:
    """Every test of every stage, the slowest first."""
    found = []
    for path in sorted(folder.glob("*.xml")):
        for case in ElementTree.parse(path).getroot().iter("testcase"):
            file = case.get("file") or f"{case.get('classname', '').replace('.', '/')}.py"
            found.append(Test(float(case.get("time", 0)), path.stem, file, case.get("name", "")))
    return sorted(found, reverse=True)


def package_of(file: str) -> str:
    """The package whose minutes in CONTRIBUTING.md a test file takes."""
    parts = Path(file).parts
    return parts[1] if len(parts) > 2 else "top level"


def report(tests: list[Test]) -> str:
    files: Counter[tuple[str, str]] = Counter()
    packages: Counter[tuple[str, str]] = Counter()
    for test in tests:
        files[test.file, test.stage] += test.seconds
        packages[package_of(test.file), test.stage] += test.seconds
    lines = [f"── slowest {min(TESTS, len(tests))} of {len(tests)} tests"]
    lines += [f"{test.seconds:7.1f} s  {test.file}::{test.name}" for test in tests[:TESTS]]
    for title, totals in (("files", files.most_common(FILES)), ("packages", packages.most_common())):
        lines += ["", f"── {title}", *(f"{seconds:7.1f} s  {name}  ({stage})" for (name, stage), seconds in totals)]
    return "\n".join([*lines, "", f"── {sum(test.seconds for test in tests) / 60:.1f} minutes of tests in all"])


if __name__ == "__main__":
    print(report(read_tests(Path(sys.argv[1]))))
