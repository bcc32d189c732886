"""Files that a user names are there, are files, and are text, or the error says what they are."""

from __future__ import annotations

import os
import threading

import pytest

from pathray.errors import MissingFile, UserError
from pathray.files.text import read_user_text


def reads(path: str):
    """What reading ends with, within seconds."""
    found = []

    def read() -> None:
        try:
            found.append(read_user_text(path, "table"))
        except Exception as e:
            found.append(e)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    assert found, "still waiting"
    return found[0]


def test_a_pipe_is_refused_at_once_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "t.csv")
    error = reads(str(tmp_path / "t.csv"))
    assert isinstance(error, UserError) and "pipe" in str(error) and str(tmp_path / "t.csv") in str(error)
    assert "device" in str(reads("/dev/zero"))


def test_a_folder_a_missing_file_and_an_odd_name_are_told_apart(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file.csv").write_text("a,b\n")
    assert "found: 'a folder'" in str(reads(str(tmp_path / "folder.csv")))
    assert "found: 'a folder'" in str(reads(str(tmp_path / "folder.csv") + "/"))
    assert isinstance(reads(str(tmp_path / "none.csv")), MissingFile)
    assert isinstance(reads(str(tmp_path / "file.csv" / "t.csv")), MissingFile)
    for name in ("a\0b.csv", "a" * 300 + ".csv"):
        assert isinstance(reads(str(tmp_path / name)), UserError)


def test_paths_are_relative_absolute_or_urls(tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_text("\ufeffa,b\n")
    monkeypatch.chdir(tmp_path)
    for path in ("t.csv", "./t.csv", str(tmp_path / "t.csv"), f"file://{tmp_path}/t.csv"):
        assert read_user_text(path, "table") == "a,b\n"
    import fsspec

    fsspec.filesystem("memory").pipe_file("/tables/t.csv", b"a,b\n")
    assert read_user_text("memory://tables/t.csv", "table") == "a,b\n"
    with pytest.raises(MissingFile, match="no such table.*memory"):
        read_user_text("memory://tables/none.csv", "table")
