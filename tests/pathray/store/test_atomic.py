"""Files and folders that are published completely or not at all."""

import errno
import os

import pytest

from pathray.store.atomic import publish_file, replace_folder, replacing_file


def test_a_file_replaces_its_target_when_it_is_whole_and_leaves_nothing_beside_it(tmp_path):
    target = tmp_path / "a.json"
    target.write_text("old")
    with replacing_file(target, tmp_path / ".a.json-0") as partial:
        partial.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new" and os.listdir(tmp_path) == ["a.json"]


def test_after_an_error_the_target_is_as_it_was(tmp_path, monkeypatch):
    target = tmp_path / "a.json"
    target.write_text("old")
    with pytest.raises(KeyError), replacing_file(target, tmp_path / ".a.json-0") as partial:
        partial.write_text("half")
        raise KeyError("b")

    def no_room(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(OSError, match="No space"), replacing_file(target, tmp_path / ".a.json-1") as partial:
        partial.write_text("whole, but not durable")
    with pytest.raises(FileNotFoundError):
        publish_file(tmp_path / "none", target)
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]


def test_a_folder_takes_the_place_of_another_with_all_its_files(tmp_path):
    for content in ("one", "two"):
        partial = tmp_path / f".plan-{content}"
        partial.mkdir()
        (partial / content).write_text(content)
        replace_folder(partial, tmp_path / "plan")
        assert os.listdir(tmp_path) == ["plan"] and os.listdir(tmp_path / "plan") == [content]


def test_a_folder_that_cannot_be_put_in_place_leaves_the_older_one_there(tmp_path, monkeypatch):
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "one").write_text("one")
    partial, replace = tmp_path / ".plan-two", os.replace
    partial.mkdir()

    def no_room(source, target):
        if source == partial:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", no_room)
    with pytest.raises(OSError, match="No space"):
        replace_folder(partial, tmp_path / "plan")
    assert sorted(os.listdir(tmp_path)) == [".plan-two", "plan"] and os.listdir(tmp_path / "plan") == ["one"]
