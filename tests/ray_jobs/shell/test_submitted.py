"""Outputs of jobs that run in Ray's copy of a folder. Starts no Ray."""

from __future__ import annotations

import pytest

from pathray.errors import UserError
from ray_jobs.shell.submitted import check_kept

PACKAGE = "ray/session_2025/runtime_resources/working_dir_files/_ray_pkg_0a1b"


@pytest.mark.parametrize("path", ["outputs/run", "i.parquet", "./a/../b"])
def test_a_relative_output_of_a_submitted_job_is_refused(tmp_path, monkeypatch, path):
    folder = tmp_path / PACKAGE
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="all nodes share") as info:
        check_kept(path, "output")
    assert (info.value.where["key"], info.value.where["found"]) == ("output", path)


def test_absolute_outputs_and_urls_of_a_submitted_job_and_relative_ones_elsewhere_are_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_kept("outputs/run", "output")
    (tmp_path / PACKAGE).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / PACKAGE)
    for path in (str(tmp_path / "run"), "gs://bucket/run", "memory://run"):
        check_kept(path, "output")
