"""What preparing volumes must not do: overwrite the originals, whatever their folder is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from oct.transfer.prepare import plan_preparation
from pathray.errors import UserError
from tests.builders.oct.scans import both_eyes, index_scans


def test_the_folder_of_the_volumes_is_refused_by_every_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = index_scans(tmp_path / "in", both_eyes("1"))
    (tmp_path / "link").symlink_to(tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    for output in (str(tmp_path / "in"), "in", "./in/", f"{tmp_path}/./in", str(tmp_path / "link")):
        with pytest.raises(UserError, match="would overwrite"):
            plan_preparation(index, output, {})
    jobs = plan_preparation(index, str(tmp_path / "out"), {})
    assert [job.source == job.target for job in jobs] == [False, False]
