"""The terminal of a job shows its own words and errors; what Ray says beside that is in a file."""

import subprocess
import sys

import pytest

from tests.builders.jobs import ROOT, job_environment

WORDS = """
import ctypes, logging, os, sys, warnings
from ray_jobs.shell.cli import _log_to_stderr
from ray_jobs.shell.quiet import own_stderr, quiet_driver, to_terminal
own_stderr()
before = sys.stderr
_log_to_stderr()
ray = logging.getLogger("ray")
ray.propagate = False
ray.addHandler(logging.StreamHandler(sys.stderr))
with quiet_driver(sys.argv[1]):
    os.write(2, b"[2026 E 1 1] core_worker.cc:1: compiled words\\n")
    logging.getLogger("ray.data").warning("ray warns")
    logging.getLogger("ray.data").error("ray fails")
    logging.getLogger("ours").info("job informs")
    warnings.warn("deprecated words", FutureWarning)
    warnings.warn("user is warned", UserWarning)
    print("bar", file=before)
    to_terminal("SIGINT: words")
    if sys.argv[2] == "crash":
        ctypes.string_at(0)
    if sys.argv[2] == "raise":
        raise RuntimeError("trace is shown")
os.write(2, b"after\\n")
logging.getLogger("ours").info("goes on")
"""
NOISE = ("compiled words", "ray warns", "deprecated words")
SHOWN = ("ray fails", "job informs", "user is warned", "bar", "SIGINT: words")


@pytest.mark.parametrize("end", ["well", "raise", "crash"])
def test_noise_goes_to_the_file_and_words_and_errors_stay_on_the_terminal(tmp_path, end):
    path = tmp_path / "ray.log"
    words = [sys.executable, "-W", "always", "-c", WORDS, str(path), end]
    run = subprocess.run(words, cwd=ROOT, env=job_environment(), capture_output=True, text=True, timeout=60)
    noise = path.read_text()
    assert all(word in noise and word not in run.stderr for word in NOISE), run.stderr
    assert all(word in run.stderr for word in SHOWN)
    expected = {"well": ["after", "goes on"], "raise": ["trace is shown"], "crash": ["Segmentation fault"]}
    assert all(word in run.stderr for word in expected[end])


def test_a_file_that_cannot_be_written_changes_nothing(tmp_path):
    words = [sys.executable, "-c", WORDS, str(tmp_path / "nowhere" / "ray.log"), "well"]
    run = subprocess.run(words, cwd=ROOT, env=job_environment(), capture_output=True, text=True, timeout=60)
    assert run.returncode == 0 and all(word in run.stderr for word in ("compiled words", *SHOWN, "after"))
