import os
import subprocess
import sys
import time

import pytest

from pathray.features.publish import replacing, sweep
from tests.builders.jobs import ROOT, alive, job_environment, wait_for

DIES = """
import os, sys
from pathray.features.publish import replacing
with replacing(sys.argv[1]) as partial:
    partial.write_bytes(b"half")
    os.kill(os.getpid(), 9)
"""


def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "deep" / "a.bin"
    with replacing(str(path)) as partial:
        partial.write_bytes(b"one")
        assert not path.exists()
    with pytest.raises(KeyError), replacing(str(path)) as partial:
        partial.write_bytes(b"two")
        raise KeyError
    assert path.read_bytes() == b"one" and os.listdir(path.parent) == ["a.bin"]


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_writes_is_not(tmp_path):
    run = subprocess.run([sys.executable, "-c", DIES, str(tmp_path / "a.bin")], cwd=ROOT, env=job_environment())
    assert run.returncode == -9
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".a.bin-") and left.endswith(".partial")
    pid = left.split("-")[2]
    os.rename(tmp_path / left, tmp_path / (left := f"{left}.{pid}.part"))  # as a GeoJsonWriter inside it leaves it
    (tmp_path / ".hidden").touch()
    with replacing(str(tmp_path / "b.bin")) as living:
        living.write_bytes(b"x")
        assert sweep(str(tmp_path)) == [str(tmp_path / left)]
    assert sorted(os.listdir(tmp_path)) == [".hidden", "b.bin"]


def test_what_a_killed_process_left_is_swept_before_its_parent_has_waited_for_it(tmp_path):
    """Workers killed together with their parent stay zombies where the first process of a container reaps nobody."""
    with subprocess.Popen(
        [sys.executable, "-c", DIES, str(tmp_path / "a.bin")], cwd=ROOT, env=job_environment()
    ) as run:
        wait_for(lambda: not alive([run.pid]), seconds=60)
        os.kill(run.pid, 0)  # still in the process table
        (left,) = os.listdir(tmp_path)
        assert sweep(str(tmp_path)) == [str(tmp_path / left)]
    assert os.listdir(tmp_path) == []


def test_a_partial_file_of_another_machine_is_left_alone_for_a_day(tmp_path):
    other = tmp_path / f".a.h5-00000000-{2**22 + 1}-01234567.partial"
    other.touch()
    assert sweep(str(tmp_path)) == []
    os.utime(other, (time.time() - 90000,) * 2)
    assert sweep(str(tmp_path)) == [str(other)]
    assert sweep(str(tmp_path / "nowhere")) == [] and sweep("memory://nowhere") == []
