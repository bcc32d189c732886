"""What a training job says when it starts: from where, and whose lines of progress these are."""

import logging
from types import SimpleNamespace

import pytest
import torch

from pathray.store import checkpoint
from ray_jobs.train.training_jobs import log_start, progress_name


def test_a_resumed_run_says_from_which_checkpoint_and_how_much_is_done(tmp_path, caplog):
    meta = {"images_seen": 12_800, "identity": {"values": {}}}
    newest = checkpoint.save(str(tmp_path / "checkpoints"), "small-latest", {"w": torch.zeros(1)}, meta)
    with caplog.at_level(logging.INFO):
        log_start(newest, str(tmp_path), 512_000)
    assert newest.path in caplog.text and "12,800 of 512,000 images" in caplog.text


def test_a_fresh_run_says_that_it_starts_from_the_beginning(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        log_start(None, str(tmp_path), 512)
    assert "no checkpoint" in caplog.text and str(tmp_path) in caplog.text


@pytest.mark.parametrize(
    ("logging_config", "name"),
    [({"run_name": "fold_3"}, "train fold_3"), ({"run_name": None}, "train"), ({}, "train")],
)
def test_folds_that_train_at_the_same_time_have_names_in_their_lines(logging_config, name):
    assert progress_name(SimpleNamespace(logging=SimpleNamespace(**logging_config))) == name


@pytest.mark.parametrize("folder", ["/a/sweep/trials/0a1b_00003", "gs://bucket/sweep/trials/0a1b_00003/"])
def test_the_run_of_a_sweeps_trial_has_the_trials_name_in_its_lines(folder):
    config = SimpleNamespace(output=folder, logging=SimpleNamespace(run_name=None))
    assert progress_name(config) == "train 0a1b_00003"
    assert progress_name(SimpleNamespace(output="/a/run", logging=SimpleNamespace())) == "train"
