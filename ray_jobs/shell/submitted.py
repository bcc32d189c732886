"""Relative outputs of a job that `ray job submit --working-dir` runs would be lost with the copy of the folder."""

from __future__ import annotations

import os
import re

from pathray.errors import UserError

PACKAGE = re.compile(r"/runtime_resources/working_dir_files/")


def check_kept(path: str, key: str) -> None:
    """UserError for an output inside of the package of a submitted job, which Ray removes after the job."""
    if "://" in path and not path.startswith("file://"):
        return
    target = os.path.abspath(os.path.expanduser(path.removeprefix("file://")))
    if PACKAGE.search(target + "/") or PACKAGE.search(os.path.realpath(target) + "/"):
        raise UserError(
            "this job runs in Ray's copy of the submitted working directory, which is removed with the job",
            key=key,
            found=path,
            expected="an absolute path that all nodes share, or a URL (gs://, s3://)",
        )
