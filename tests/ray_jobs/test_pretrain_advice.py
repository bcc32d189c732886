"""What a pretraining job says before it begins. Starts no Ray."""

import logging

import pyarrow as pa
import pytest

from core.config import load_config
from ijepath.config import CONFIGS_DIR, GROUPS
from ray_jobs.pretrain_ijepath import PretrainConfig, _check, remote_advice


def config(*words):
    base = ("output=run", "data.slide_manifest_csv=s.csv", "optimization.total_images_budget=100")
    return load_config(PretrainConfig, (*base, *words), configs_dir=CONFIGS_DIR, groups=GROUPS).config


@pytest.mark.parametrize(
    ("prefix", "slides", "words", "advised"),
    [
        ("gs://b/", 200, (), True),
        ("/disk/", 200, (), False),
        ("gs://b/", 20, (), False),
        ("gs://b/", 200, ("data.slide_window=4096",), False),
    ],
)
def test_many_slides_in_a_bucket_in_random_order_are_advised_of(prefix, slides, words, advised):
    sources = pa.table({"wsi_path": [f"{prefix}{i}.svs" for i in range(slides)]})
    advice = remote_advice(config(*words), sources)
    assert ("200 slides" in advice and "data.slide_window" in advice) if advised else advice == ""


def test_tuning_says_that_nothing_evaluates_its_snapshots(caplog):
    with caplog.at_level(logging.WARNING):
        _check(config())
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        _check(config("--config", "pathorob_camelyon"))
    assert "nothing evaluates them" in caplog.text
