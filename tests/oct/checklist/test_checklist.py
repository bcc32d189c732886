"""The pre-flight checklist: twelve lines on good data, and each fault found by the line that looks for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from oct.checklist import run as checklist
from oct.checklist.data_lines import look_at_dicom, look_at_files, look_at_manifest, look_at_storage
from oct.checklist.lines import Check, Fault, Line, NotPossible, Seen, run_check
from oct.checklist.mask_lines import look_at_marginals, look_at_masks, marginal_deviation
from oct.checklist.run import CHECKS, format_line, run_checklist, verdict
from oct.checklist.training_lines import look_at_transforms, look_at_views, run_pipeline
from oct.config import RunConfig
from oct.masks import MaskSampler
from oct.recipe import OctRecipe
from oct.sections import DataConfig, ModelConfig
from pathray.errors import UnreadableUnit
from tests.builders.oct.files import person_scans, write_volumes

GRID = {"image_size": [16, 64, 64], "spacing_mm": [0.4, 0.04, 0.12], "threads": 1}
MODEL = {"name": "vit_micro", "patch_size": [4, 16, 16]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes")
    write_volumes(folder, person_scans(3))
    return folder


def of(folder, **data) -> Seen:
    config = RunConfig(
        data=DataConfig(**({"manifest": f"{folder}/manifest.tsv"} | GRID | data)), model=ModelConfig(**MODEL)
    )
    return Seen(config, str(folder / "pictures"), samples=2)


def read(folder) -> Seen:
    seen = of(folder)
    look_at_manifest(seen)
    look_at_dicom(seen)
    return seen


def statuses(lines: list[Line]) -> str:
    return " ".join(line.status[0] for line in lines)


def test_twelve_lines_are_ok_on_good_data_and_say_what_they_saw(folder):
    lines = list(run_checklist(of(folder)))
    assert statuses(lines) == " ".join("o" * 12), [line for line in lines if line.status != "ok"]
    said = [line.found for line in lines]
    assert "manifest.tsv" in said[0] and "3 of 3" in said[1] and "3 files of 3 persons" in said[2]
    assert said[3] == "topcon_triton 3" and "2 volumes; the first 8×48×64" in said[4]
    assert "2×1×16×64×64" in said[5] and "K = 38 of 64" in said[7] and "26 context and 38 target" in said[8]
    assert "2×16×64×64 through the stream; vit_micro: loss" in said[10]
    assert sorted(p.name for p in (folder / "pictures").iterdir()) == ["masks.png", "volume.png"]
    assert verdict(lines) == "12 ok, 0 FAILED, 0 not run"


def test_without_a_manifest_every_line_that_can_still_runs(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.dcm").write_bytes(b"")
    lines = list(run_checklist(of(tmp_path)))
    assert statuses(lines) == "o o F n n n n o n n n o"
    assert "1 .dcm below the root" in lines[1].found and "manifest.tsv" in lines[2].found
    assert lines[3].found == "needs line 3" and lines[5].found == "needs line 5"


def test_an_index_instead_of_a_manifest_is_no_fault(folder, tmp_path):
    from oct.indexing.index import index_volumes
    from oct.indexing.index_file import make_index, write_index
    from oct.indexing.manifest import read_manifest

    manifest = read_manifest(f"{folder}/manifest.tsv")
    write_index(make_index(str(tmp_path / "i.parquet"), manifest.root, list(index_volumes(manifest))))
    seen = of(folder, manifest=None, index=str(tmp_path / "i.parquet"))
    lines = [run_check(n, check, seen) for n, check in enumerate(CHECKS[:6], start=1)]
    assert statuses(lines) == "o o o o o n" and "data.manifest" in lines[5].found


def test_a_root_that_is_not_there_or_empty_is_named(tmp_path, folder):
    with pytest.raises(Fault, match="gone is not there"):
        look_at_storage(of(folder, gcs_root=str(tmp_path / "gone")))
    with pytest.raises(Fault, match="is empty"):
        look_at_storage(of(folder, gcs_root=str(tmp_path)))


def test_archives_in_place_of_files_are_told_from_files(tmp_path):
    scans = person_scans(3)
    write_volumes(tmp_path, scans)
    look_at_files(of(tmp_path))
    (tmp_path / scans[1].path).write_bytes(b"PK\x03\x04" + bytes(200))
    with pytest.raises(Fault, match="is a ZIP archive") as fault:
        look_at_files(of(tmp_path))
    assert "expand" in fault.value.remedy
    (tmp_path / scans[1].path).write_bytes(bytes(200))
    with pytest.raises(Fault, match="no DICOM file"):
        look_at_files(of(tmp_path))
    (tmp_path / scans[1].path).unlink()
    with pytest.raises(Fault, match="1 of 3 files are not there") as fault:
        look_at_files(of(tmp_path))
    assert fault.value.remedy == ""
    (tmp_path / "topcon_triton.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(Fault, match="the root has topcon_triton.zip") as fault:
        look_at_files(of(tmp_path))
    assert "expand" in fault.value.remedy


def test_files_that_cannot_be_read_are_counted_by_reason(tmp_path):
    scans = person_scans(2)
    write_volumes(tmp_path, scans)
    (tmp_path / scans[0].path).write_bytes(b"")
    seen = read(tmp_path)
    assert len(seen.volumes) == 1
    (tmp_path / scans[1].path).unlink()
    seen = of(tmp_path)
    look_at_manifest(seen)
    with pytest.raises(Fault, match="none of 2 files") as fault:
        look_at_dicom(seen)
    assert "1 empty" in fault.value.found and "1 missing" in fault.value.found


def test_a_volume_without_content_fails_the_transforms(folder):
    seen = read(folder)
    origin, header, sampled = seen.volumes[0]
    assert look_at_transforms(seen).startswith("float32 16×64×64, mean")
    seen.volumes[0] = (origin, header, sampled._replace(image=np.zeros_like(sampled.image)))
    with pytest.raises(Fault, match="no content"):
        look_at_transforms(seen)


def test_a_mask_with_another_count_fails(folder, monkeypatch):
    sample = MaskSampler.sample

    def cut(self, rng):
        drawn = sample(self, rng)
        return drawn | {"target_0": drawn["target_0"][:-1]}

    seen = of(folder)
    assert "38 of 64" in look_at_masks(seen)
    monkeypatch.setattr(MaskSampler, "sample", cut)
    with pytest.raises(Fault, match="37 hidden of 64, expected 38"):
        look_at_masks(seen)


def test_two_augmented_views_fail(folder, monkeypatch):
    """The old fault: context and target were augmented each by itself, so that positions did not correspond."""
    seen, prepare = read(folder), OctRecipe.prepare
    look_at_views(seen)
    monkeypatch.setattr(
        OctRecipe, "prepare", lambda self, micro, at: (p := prepare(self, micro, at)) | {"other": p["image"].flip(2)}
    )
    with pytest.raises(Fault, match="2 volumes"):
        look_at_views(seen)
    monkeypatch.setattr(OctRecipe, "prepare", lambda *a: (p := prepare(*a)) | {"image": p["image"].flip(2)})
    with pytest.raises(Fault, match="not the one"):
        look_at_views(seen)


def test_masks_that_starve_late_slices_fail(folder, monkeypatch):
    """The official collator's fault: the first K tokens in raster order, so that what is last is never hidden."""
    seen = of(folder)
    assert "flat within" in look_at_marginals(seen)

    def starve(self, rng):
        tokens = np.sort(rng.permutation(64)[:50])
        return {"target_0": tokens[: self.hidden[0]], "context_0": np.setdiff1d(np.arange(64), tokens)}

    monkeypatch.setattr(MaskSampler, "sample", starve)
    with pytest.raises(Fault, match="slow axis: a place is hidden"):
        look_at_marginals(seen)


def test_the_deviation_of_a_marginal_by_hand():
    hidden = np.zeros((100, 2, 1, 1), np.float32)
    hidden[:, 0] = 1
    hidden[:50, 1] = 1
    deviation, allowed = marginal_deviation(hidden, 0)
    assert deviation == pytest.approx(1 / 3)  # 1 and 0.5 about 0.75
    assert allowed == pytest.approx(4 * 0.5 / 10 / 0.75)
    assert marginal_deviation(hidden, 1)[0] == 0


def test_a_volume_that_breaks_between_the_lines_fails_the_pipeline(tmp_path):
    scans = person_scans(2)
    write_volumes(tmp_path, scans)
    seen = read(tmp_path)
    line = run_check(11, Check("pipeline", run_pipeline, "look"), seen)
    assert line.status == "ok", line.found
    whole = (tmp_path / scans[0].path).read_bytes()
    (tmp_path / scans[0].path).write_bytes(whole[:-2000])
    line = run_check(11, Check("pipeline", run_pipeline, "look"), seen)
    assert line.has_failed and "unreadable now: truncated" in line.found, line.found


def test_whatever_a_check_raises_is_its_line(folder):
    def line(error: Exception) -> Line:
        def look(seen: Seen) -> str:
            raise error

        return run_check(3, Check("name", look, "the usual"), of(folder))

    assert line(Fault("bad", "this")) == Line(3, "name", "FAILED", "bad", "this")
    assert line(Fault("bad")).remedy == "the usual"
    assert line(NotPossible("needs line 5")) == Line(3, "name", "not run", "needs line 5")
    assert line(UnreadableUnit("empty", "a.dcm")).found == "empty: a.dcm"
    ours = line(KeyError("x"))
    assert ours.found.startswith("KeyError: 'x' (test_checklist.py:") and "report" in ours.remedy


def test_lines_keep_to_the_width(folder):
    line = Line(7, "transforms", "FAILED", "word " * 60, "do " * 60)
    text = format_line(line, 100)
    assert max(map(len, text.splitlines())) <= 100 and "→ do" in text and text.startswith(" 7 FAILED   transforms")
    assert format_line(replace(line, number=0), 100).startswith("   FAILED")
    assert len({check.name for check in checklist.CHECKS}) == 12
