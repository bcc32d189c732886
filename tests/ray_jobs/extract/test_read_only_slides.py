"""Extraction from a folder that nobody may write in, and a report whose counts add up to what was listed."""

import builtins
import collections
import contextlib
import io
import os
from pathlib import Path

import numpy as np
import pytest

from pathray.store.storage import Storage
from ray_jobs.extract import actors as extraction
from ray_jobs.shell.runtime import Session
from tests.builders.cohort import write_manifest
from tests.builders.encoders import write_encoder
from tests.builders.slides import write_slide
from tests.ray_jobs.extract.test_extract_features import OneByOne, bags, extract, report


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(extraction, "ActorMap", OneByOne)
    monkeypatch.setattr(extraction, "ray_session", lambda *a, **k: contextlib.nullcontext(Session(True, {"CPU": 2.0})))


def tree(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in [folder, *sorted(folder.rglob("*"))]}


@contextlib.contextmanager
def read_only(folder: Path, monkeypatch):
    """Permissions, and for root, whom they do not stop, functions that refuse to write below the folder."""

    def inside(path) -> bool:
        return isinstance(path, str | os.PathLike) and str(os.path.abspath(path)).startswith(f"{folder}/")

    def guard(original, writes):
        def careful(path, *args, **kwargs):
            if inside(path) and writes(*args, **kwargs):
                raise PermissionError(13, "Permission denied", str(path))
            return original(path, *args, **kwargs)

        return careful

    def by_mode(mode="r", *args, **kwargs):
        return any(letter in mode for letter in "wax+")

    def by_flags(flags, *args, **kwargs):
        return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))

    guarded = (
        (builtins, "open", by_mode), (io, "open", by_mode), (os, "open", by_flags),
        *((os, name, lambda *a, **k: True) for name in ("mkdir", "remove", "unlink", "rename", "replace", "rmdir")),
    )  # fmt: skip
    paths = [folder, *folder.rglob("*")]
    modes = {path: path.stat().st_mode for path in paths}
    try:
        for path in paths:
            path.chmod(modes[path] & ~0o222)
        with monkeypatch.context() as patch:
            for where, name, writes in guarded:
                patch.setattr(where, name, guard(getattr(where, name), writes))
            yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


@pytest.mark.parametrize("how", ["slides=slides", "slides=slides/slides.csv"])
def test_nothing_is_written_where_the_slides_are(here, tmp_path, monkeypatch, how):
    write_encoder(tmp_path / "a")
    (tmp_path / "slides" / "deep").mkdir(parents=True)
    for name in ("s0", "deep/s1"):
        write_slide(tmp_path / "slides" / f"{name}.tiff", mpp=0.5)
    rows = [{"slide_id": i, "wsi_path": f"{n}.tiff"} for i, n in (("s0", "s0"), ("deep__s1", "deep/s1"))]
    write_manifest(tmp_path / "slides" / "slides.csv", rows)
    before = tree(tmp_path / "slides")
    with read_only(tmp_path / "slides", monkeypatch):
        with pytest.raises(PermissionError):
            (tmp_path / "slides" / "x").write_text("the guard works")
        assert extract(tmp_path, source=how) == 0
    assert tree(tmp_path / "slides") == before
    assert sorted(bags(tmp_path)) == ["a/deep__s1.h5", "a/s0.h5"]


def test_listed_slides_are_ok_or_empty_or_failed(here, tmp_path, caplog):
    caplog.set_level("INFO")
    write_encoder(tmp_path / "a")
    (tmp_path / "s").mkdir()
    write_slide(tmp_path / "s" / "good.tiff", mpp=0.5)
    write_slide(tmp_path / "s" / "white.tiff", image=np.full((768, 896, 3), 255, np.uint8))
    write_slide(tmp_path / "s" / "mute.tiff", mpp=None)
    (tmp_path / "s" / "broken.svs").write_bytes(b"II*\x00" + bytes(50))
    assert extract(tmp_path, "min_success_fraction=0", source="slides=s") == 0
    found = collections.Counter(row["status"] for row in report(tmp_path))
    assert found == {"ok": 1, "empty": 1, "failed": 2} and sum(found.values()) == 4
    summary = Storage.of(str(tmp_path / "out")).read_bytes("summary.md").decode()
    for name, count in (("slides", 4), *found.items()):
        assert f"| {name} | {count} |" in summary
    (said,) = [r.getMessage() for r in caplog.records if "slides listed" in r.getMessage()]
    assert said.startswith("4 slides listed: ") and "1 ok" in said and "1 empty" in said and "2 failed" in said
