"""The job that expands ZIPs: on a disk, through Ray, and on Google's storage with failures, killed and restarted."""

import contextlib
import csv
import os
import signal
import subprocess
import sys
import zipfile
import zlib

import pytest

from pathray.run.fence import Fence
from ray_jobs import expand_oct
from ray_jobs.expand_oct import ExpandOctConfig
from ray_jobs.shell.cli import run_job
from tests.builders.gcs import serve_gcs
from tests.builders.jobs import ROOT, job_environment, wait_for
from tests.builders.oct.zipped import build_zip, content_of, triton, write_zip

LINE = "members of"


def run(*argv) -> int:
    return run_job(expand_oct.main, ExpandOctConfig, argv, expand_oct.CONFIGS_DIR)


@pytest.fixture
def without_ray(monkeypatch):
    monkeypatch.setattr(expand_oct, "ray_session", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr("ray_jobs.extract.ordered_map.is_ray_running", lambda: False)  # another test's cluster


@pytest.fixture
def quick(monkeypatch):
    """No waiting between tries, here and inside gcsfs."""
    monkeypatch.setattr("oct.transfer.expand.PAUSES_S", (0.0,) * 6)

    async def sleep(seconds):
        pass

    monkeypatch.setattr("gcsfs.retry.asyncio.sleep", sleep)


def cohort(persons: int) -> list[tuple[str, bytes]]:
    return [(triton(p, eye), content_of(2 * p + (eye == "l"))) for p in range(1001, 1001 + persons) for eye in "rl"]


def report_of(path) -> dict[str, dict[str, str]]:
    return {row["member"]: row for row in csv.DictReader(open(path, newline=""))}


def test_archives_become_files_with_counts_by_reason(tmp_path, without_ray, caplog, capsys):
    caplog.set_level("INFO")
    members = cohort(2)
    write_zip(tmp_path / "zips" / "a.zip", [*members[:3], ("retinal_oct/manifest.tsv", b"x"), ("../../evil.dcm", b"x")])
    write_zip(tmp_path / "zips" / "more" / "b.zip", [members[3], members[0], ("readme.zip", b"x")], zipfile.ZIP_STORED)
    (tmp_path / "zips" / "broken.zip").write_bytes(b"no zip")
    words = (f"archives={tmp_path}/zips", f"output={tmp_path}/oct")
    assert run(*words) == 2
    said = capsys.readouterr().err
    assert "3 of 9 members failed" in said and "../../evil.dcm: its name leads out" in said
    assert (
        "8 members of 3 archives = 4 written + 0 kept + 2 skipped + 2 failed; 12.0 kB; 1 archives could" in caplog.text
    )
    for name, content in members:
        assert (tmp_path / "oct" / name.removeprefix("retinal_oct/")).read_bytes() == content
    rows = report_of(tmp_path / "oct" / "expansion.csv")
    assert rows[members[1][0]]["crc32"] == f"{zlib.crc32(members[1][1]):08x}"
    assert not (tmp_path / "evil.dcm").exists() and len(list((tmp_path / "oct").rglob("*.dcm"))) == 4
    assert "| members written | 4 |" in (tmp_path / "oct" / "summary.md").read_text()
    assert run(*words, "min_success_fraction=0.5") == 0
    assert "8 members of 3 archives = 0 written + 4 kept + 2 skipped + 2 failed" in caplog.text


def test_a_validation_reads_every_file_and_writes_none(tmp_path, without_ray, caplog, capsys):
    caplog.set_level("INFO")
    members = cohort(2)
    write_zip(tmp_path / "a.zip", members)
    words = (f"archives={tmp_path}/a.zip", f"output={tmp_path}/oct")
    assert run(*words) == 0 and run(*words, "validate_only=true") == 0
    assert "4 members of 1 archives = 4 right + 0 skipped + 0 failed; 12.0 kB" in caplog.text
    files = sorted((tmp_path / "oct" / "structural_oct").rglob("*.dcm"))
    flipped = bytearray(files[0].read_bytes())
    flipped[100] ^= 1
    times = os.stat(files[0])
    files[0].write_bytes(flipped)
    os.utime(files[0], ns=(times.st_atime_ns, times.st_mtime_ns))
    files[1].write_bytes(b"short")
    files[2].unlink()
    assert run(*words, "validate_only=true") == 2
    said = capsys.readouterr().err
    assert "3 of 4 members failed" in said and "missing" in said and "5 bytes, expected 3000" in said
    assert f"expected {zlib.crc32(dict((n.rpartition('/')[2], c) for n, c in members)[files[0].name]):08x}" in said
    assert not files[2].exists() and files[1].read_bytes() == b"short"


@pytest.mark.ray
def test_members_are_written_through_ray(tmp_path, ray_cluster, caplog):
    caplog.set_level("INFO")
    members = cohort(6)
    write_zip(tmp_path / "a.zip", members[:7])
    write_zip(tmp_path / "b.zip", members[7:])
    assert run(f"archives={tmp_path}", f"output={tmp_path}/oct", "members_per_task=2") == 0
    assert "12 members of 2 archives = 12 written" in caplog.text
    for name, content in members:
        assert (tmp_path / "oct" / name.removeprefix("retinal_oct/")).read_bytes() == content


def test_a_bucket_that_fails_every_tenth_time_gets_every_member_once(monkeypatch, without_ray, quick, caplog):
    caplog.set_level("INFO")
    members = [*cohort(10), (triton(1100), content_of(9, 20 << 20))]
    with serve_gcs(monkeypatch) as gcs:
        gcs.put("zips/a.zip", build_zip(members[:9], zip64=True))
        gcs.put("zips/b.zip", build_zip(members[9:]))
        gcs.failing = 0.1
        assert run("archives=gs://scans/zips", "output=gs://scans/oct") == 0, caplog.text
        assert any(a.status >= 400 for a in gcs.asked)
        for name, content in members:
            assert gcs.get(name.replace("retinal_oct/", "oct/")) == content
        gcs.failing, before = 0.0, len(gcs.asked)
        assert run("archives=gs://scans/zips", "output=gs://scans/oct") == 0
        assert "21 members of 2 archives = 0 written + 21 kept" in caplog.text
        assert gcs.count("read", "oct/structural_oct", before) == 0, "known by their generation"
        sent = sum(a.sent for a in gcs.asked[before:] if a.name.startswith("zips/"))
        assert sent < 2 * (1 << 19), "only the directories"


JOB = """
import contextlib, sys
from ray_jobs import expand_oct
from ray_jobs.shell.cli import run_job
expand_oct.ray_session = lambda *_, **__: contextlib.nullcontext()
sys.exit(run_job(expand_oct.main, expand_oct.ExpandOctConfig, sys.argv[1:], expand_oct.CONFIGS_DIR))
"""


def test_a_killed_job_continues_and_no_object_is_half(monkeypatch, without_ray, caplog, capsys):
    """While it lives, no other start writes there; once it is dead, the next start takes its place at once."""
    caplog.set_level("INFO")
    members = [*cohort(4), (triton(1100), content_of(9, 40 << 20)), *cohort(9)[8:]]
    words = ("archives=gs://scans/zips/a.zip", "output=gs://scans/oct")
    with serve_gcs(monkeypatch) as gcs:
        gcs.put("zips/a.zip", build_zip(members))
        gcs.round_trip_s = 0.01
        job = subprocess.Popen([sys.executable, "-c", JOB, *words], cwd=ROOT, env=job_environment())
        try:
            large = "oct/structural_oct/topcon_triton/1100"
            wait_for(lambda: sum(a.kind == "write" and a.name.startswith(large) for a in gcs.asked) > 1, 60)
            assert run(*words) == 2
            said = capsys.readouterr().err
            assert "another process writes there" in said and f"process {job.pid}, since 20" in said
        finally:
            job.send_signal(signal.SIGKILL)
            job.wait()
        there = [name for name in gcs.names() if name.endswith(".dcm")]
        assert 1 <= len(there) < len(members) and not any(name.startswith(large) for name in there)
        gcs.round_trip_s, before = 0.0, len(gcs.written)
        assert run(*words) == 0
        assert "its owner has ended" in caplog.text and "waiting for a sign of life" not in caplog.text
        kept, written = len(there), len(members) - len(there)
        assert f"{len(members)} members of 1 archives = {written} written + {kept} kept + 0 skipped" in caplog.text
        for name, content in members:
            assert gcs.get(name.replace("retinal_oct/", "oct/")) == content
        assert sorted(n for n in gcs.written[before:] if n.endswith(".dcm")) == sorted(set(gcs.names()) & {
            n.replace("retinal_oct/", "oct/") for n, _ in members} - set(there))  # fmt: skip
        assert run(*words, "validate_only=true") == 0


def test_a_job_whose_place_was_taken_writes_no_report_over_the_others(tmp_path, without_ray, monkeypatch, capsys):
    write_zip(tmp_path / "a.zip", cohort(2))
    words = (f"archives={tmp_path}/a.zip", f"output={tmp_path}/oct")
    watch = Fence.watch

    def lose_place(self, items):
        for number, item in enumerate(watch(self, items)):
            if number == 1:
                (tmp_path / "oct/owner.json").write_text('{"token": "another"}')
                self.check()
            yield item

    with monkeypatch.context() as patch:
        patch.setattr(Fence, "watch", lose_place)
        assert run(*words) == 2
    assert "another start has taken over this folder" in capsys.readouterr().err
    assert not (tmp_path / "oct/expansion.csv").exists() and (tmp_path / "oct/owner.json").exists()
    assert run(*words, "validate_only=true", "min_success_fraction=0") == 0, "it writes no volumes: it needs no place"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("archives=gone.zip", "output=o"), "no such archive"),
        (("archives=.", "output=o"), "no archives here"),
        (("archives=https://u:p@h/a.zip", "output=o"), "login or a signature"),
        (("archives=a.zip", "output=o", "min_success_fraction=2"), "min_success_fraction"),
        (("archives=a.zip", "output=o", "members_per_task=0"), "members_per_task"),
    ],
)
def test_keys_that_do_not_fit_are_refused(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*words) == 2 and said in capsys.readouterr().err
