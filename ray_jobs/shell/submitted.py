"""Refuses relative outputs of submitted jobs, which `ray job submit --working-dir` would delete with its copy."""

from __future__ import annotations

import os
import re

from pathray.errors import UserError

PACKAGE = re.compile(r"/runtime_resources/working_dir_files/")


def check_kept(path: str, key: str) -> None:
    """UserError for an output inside a submitted job's package, which Ray removes after the job."""
    if "://" in path and not path.startswith("file://"):
        return
    target = os.path.abspath(os.path.expanduser(path.removeprefix("file://")))
    if PACKAGE.search(target + "/") or PACKAGE.search(os.path.realpath(target) + "/"):
        raise UserError(
            "the output is inside Ray's copy of the submitted working directory, which is removed after the job",
            key=key,
            found=path,
            expected="an absolute path that all nodes share, or a URL (gs://, s3://)",
        )
