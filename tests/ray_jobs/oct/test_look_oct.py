"""The jobs that look at OCT data before a training: preview_oct, audit_oct and check_oct. None of them starts Ray."""

from __future__ import annotations

import csv

import pytest
from PIL import Image

from oct.config import CONFIGS_DIR
from ray_jobs import audit_oct, check_oct, preview_oct
from ray_jobs.shell.cli import run_job
from tests.builders.oct.files import WORDS, person_scans, write_volumes
from tests.builders.oct.scans import both_eyes, index_scans


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    monkeypatch.setattr("ray.init", lambda *a, **k: pytest.fail("Ray was started"))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_volumes(tmp_path_factory.mktemp("volumes"), person_scans(3))


def preview(*words: str) -> int:
    return run_job(preview_oct.main, preview_oct.PreviewOctConfig, [*WORDS, "png_scale=0.4", *words], CONFIGS_DIR)


def audit(*words: str) -> int:
    return run_job(audit_oct.main, audit_oct.AuditOctConfig, words, audit_oct.CONFIGS_DIR)


def check(*words: str) -> int:
    return run_job(check_oct.main, check_oct.CheckOctConfig, [*WORDS, *words], CONFIGS_DIR)


def test_a_preview_has_two_slides_of_each_volume_and_a_page(manifest, tmp_path, capsys):
    assert preview(f"data.manifest={manifest}", f"output_dir={tmp_path}", "num_samples=2") == 0
    slides = sorted(p.name for p in tmp_path.glob("*.png"))
    assert len(slides) == 4 and Image.open(tmp_path / slides[0]).size == (640, 368)
    page = (tmp_path / "index.html").read_text()
    assert all(f'src="{name}"' in page for name in slides)
    assert f"page={tmp_path}/index.html" in capsys.readouterr().out
    first = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert preview(f"data.manifest={manifest}", f"output_dir={tmp_path}/again", "num_samples=2") == 0
    assert {p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()} == first, "the seed decides"


def test_a_preview_without_a_readable_volume_ends_with_2_and_no_page(tmp_path, capsys):
    scans = person_scans(2)
    manifest = write_volumes(tmp_path / "data", scans)
    for scan in scans:
        (tmp_path / "data" / scan.path).write_bytes(b"")
    assert preview(f"data.manifest={manifest}", f"output_dir={tmp_path}/out") == 2
    said = capsys.readouterr().err
    assert "no volume could be read" in said and "empty" in said and not (tmp_path / "out" / "index.html").exists()
    for scan in scans:
        (tmp_path / "data" / scan.path).unlink()
    assert preview(f"data.manifest={manifest}", f"output_dir={tmp_path}/out", "--dry-run") == 2


@pytest.mark.parametrize("word", ["num_samples=0", "png_scale=0", "seed=-1"])
def test_wrong_keys_end_with_2(manifest, tmp_path, word):
    assert preview(f"data.manifest={manifest}", f"output_dir={tmp_path}", word) == 2


def test_an_audit_writes_a_page_and_a_csv_of_all_rows(tmp_path, capsys):
    index = index_scans(tmp_path, [eye for p in range(3) for eye in both_eyes(str(p))])
    assert audit(f"index={index.path}", f"output={tmp_path}/audit.html", "max_rows=5") == 0
    assert f"ledger={tmp_path}/audit.csv" in capsys.readouterr().out
    with open(tmp_path / "audit.csv") as file:
        assert [row["path"] for row in csv.DictReader(file)] == index.table["path"].to_pylist()
    assert 'href="audit.csv"' in (tmp_path / "audit.html").read_text()
    assert audit(f"index={index.path}", f"output={tmp_path}/folder") == 2


def test_the_checklist_prints_twelve_lines_and_ends_with_0_or_1(manifest, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XLA_USE_BF16", "1")
    words = (f"data.manifest={manifest}", f"output_dir={tmp_path}", "samples=2")
    assert check(*words) == 0
    said = capsys.readouterr().out
    numbers = [line[:2].strip() for line in said.splitlines() if line[3:6] == "ok " and line[:2].strip()]
    assert numbers[:12] == [str(n) for n in range(1, 13)] and "12 ok, 0 FAILED, 0 not run" in said
    assert "XLA_USE_BF16" in said
    assert check(*words, "mask.kind=vjepa", "data.gcs_root=/nowhere") == 1
    said = capsys.readouterr().out
    assert " 1 FAILED   storage reachable" in said and "→ set data.gcs_root" in said and "12 ok       masks" in said
