"""Which slides are part of a run is settled when it is begun: a slide that comes or goes does not make another run."""

import logging

import pytest
import torch

from ijepath.config import CONFIGS_DIR, GROUPS
from ijepath.plan import identity
from pathray.config.load import load_config
from pathray.errors import UserError
from pathray.store import checkpoint
from ray_jobs.pretrain_ijepath import PretrainConfig
from ray_jobs.train.ijepath_inputs import prepare
from tests.builders.runs.run import TAG, command, write_cohort

pytestmark = pytest.mark.ray


@pytest.fixture
def prepared(ray_cluster, tmp_path):
    """Prepares the run on three slides, of which two must be readable; gives which anchors stand where."""
    manifest = write_cohort(tmp_path)

    def run():
        words = command(tmp_path / "run", manifest, "min_success_fraction=0.6")
        return prepare(load_config(PretrainConfig, words, configs_dir=CONFIGS_DIR, groups=GROUPS).config)

    return run


def leave_checkpoint(run):
    checkpoint.save(str(run / "checkpoints"), f"{TAG}-latest", {"w": torch.zeros(1)}, {"images_seen": 8})


def test_a_slide_that_becomes_readable_is_not_part_of_a_run_that_has_checkpoints(prepared, tmp_path, caplog):
    (tmp_path / "slide2.tiff").rename(tmp_path / "away.tiff")
    before = prepared()
    leave_checkpoint(tmp_path / "run")
    (tmp_path / "away.tiff").rename(tmp_path / "slide2.tiff")
    with caplog.at_level(logging.WARNING):
        after = prepared()
    assert identity(after.plan) == identity(before.plan) and after.built == ["slide index"]
    assert "1 slides have become readable since this run was begun and are not part of it" in caplog.text
    (tmp_path / "slides.csv").write_text((tmp_path / "slides.csv").read_text().replace("slide0", "moved0"))
    (tmp_path / "slide0.tiff").rename(tmp_path / "moved0.tiff")
    moved = prepared()
    assert identity(moved.plan) == identity(before.plan) and "anchor catalog" in moved.built
    assert moved.plan.sources["wsi_path"].to_pylist()[0] == str(tmp_path / "moved0.tiff")


def test_a_slide_that_becomes_readable_before_there_is_a_checkpoint_is_part_of_the_run(prepared, tmp_path):
    (tmp_path / "slide2.tiff").rename(tmp_path / "away.tiff")
    before = prepared()
    (tmp_path / "away.tiff").rename(tmp_path / "slide2.tiff")
    assert prepared().plan.rows > before.plan.rows


def test_a_slide_that_is_gone_stays_part_of_a_run_as_long_as_few_are(prepared, tmp_path):
    before = prepared()
    leave_checkpoint(tmp_path / "run")
    (tmp_path / "slide2.tiff").rename(tmp_path / "away.tiff")
    assert identity(prepared().plan) == identity(before.plan)
    assert "s2" in (tmp_path / "run" / "indexes" / "slide_metadata_report.csv").read_text()
    (tmp_path / "slide1.tiff").unlink()
    with pytest.raises(UserError, match=r"2 of 3 slides failed(.|\n)*slide1.tiff"):
        prepared()
