"""The list of slow tests at the end of .ci/run: read from pytest's own report, slowest first, summed per package."""

import importlib.util
import subprocess
import sys

import pytest

from tests.builders.jobs import ROOT, job_environment


@pytest.fixture(scope="module")
def slowest():
    spec = importlib.util.spec_from_file_location("slowest", ROOT / ".ci/slowest.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["slowest"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["slowest"]


def test_stages_are_joined_and_summed(slowest, tmp_path):
    case = '<testcase classname="tests.x" file="{}" name="{}" time="{}"/>'
    stages = {
        "test": [("tests/adios/nuclei/test_a.py", "test_a[1]", 1.5), ("tests/test_readme.py", "test_b", 0.25)],
        "test-heavy": [("tests/adios/test_c.py", "test_c", 90.0), ("tests/adios/test_c.py", "test_d", 30.0)],
    }
    for stage, cases in stages.items():
        body = "".join(case.format(*one) for one in cases)
        (tmp_path / f"{stage}.xml").write_text(f"<testsuites><testsuite>{body}</testsuite></testsuites>")
    found = slowest.read_tests(tmp_path)
    assert [test.name for test in found] == ["test_c", "test_d", "test_a[1]", "test_b"]
    lines = slowest.report(found).splitlines()
    assert lines[:2] == ["── slowest 4 of 4 tests", "   90.0 s  tests/adios/test_c.py::test_c"]
    assert "  120.0 s  tests/adios/test_c.py  (test-heavy)" in lines
    assert "  120.0 s  adios  (test-heavy)" in lines and "    1.5 s  adios  (test)" in lines
    assert "    0.2 s  top level  (test)" in lines and lines[-1] == "── 2.0 minutes of tests in all"


def test_a_report_of_pytest_names_the_file_of_each_test(slowest, tmp_path):
    (tmp_path / "test_two.py").write_text("def test_one(): ...\ndef test_other(): ...\n")
    words = [
        "-c",
        "/dev/null",
        "--rootdir",
        ".",
        "-o",
        "junit_family=xunit1",
        "--junitxml=junit/test.xml",
        "test_two.py",
    ]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *words], cwd=tmp_path, env=job_environment(), capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found = slowest.read_tests(tmp_path / "junit")
    assert {(test.file, test.name, test.stage) for test in found} == {
        ("test_two.py", "test_one", "test"), ("test_two.py", "test_other", "test"),
    }  # fmt: skip
