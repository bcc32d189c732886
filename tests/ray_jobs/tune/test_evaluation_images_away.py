"""An evaluation whose labelled images are in a bucket that is away: it waits, and is not failed for good."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pathray.evaluation.settings import DatasetConfig, PluginConfig
from pathray.store.outages import through_outages
from pathray.store.storage import Storage
from ray_jobs.tune import evaluation_trial
from ray_jobs.tune.evaluation_trial import TrialSpec, evaluate_with_retries
from tests.builders.bucket import BucketFileSystem, Outage
from tests.builders.encoders import write_encoder
from tests.builders.runs.bucket_run import register

IMAGES = "bucket://store/images"


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[dict[str, Any], TrialSpec]]:
    """The evaluation of an encoder by eight images in a bucket."""
    register(tmp_path, monkeypatch.setenv)
    monkeypatch.setattr(evaluation_trial, "FIRST_PAUSE_S", 0.05)
    store, lines = Storage.of(IMAGES), ["image_path,label,medical_center,slide_id"]
    for i in range(8):
        file = io.BytesIO()
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(file, "PNG")
        store.write_bytes(f"{i}.png", file.getvalue())
        lines.append(f"{IMAGES}/{i}.png,l{i % 2},c{i // 2 % 2},s{i % 4}")
    (tmp_path / "m.csv").write_text("\n".join(lines) + "\n")
    plugin = PluginConfig(datasets={"hospitals": DatasetConfig(str(tmp_path / "m.csv"))}, embedding="none")
    config = {"encoder": write_encoder(tmp_path / "encoder"), "due": json.dumps({"pathorob": ["ri"]})}
    yield (
        config | {"images_seen": 8, "neighbours": "{}", "snapshot": "a"},
        TrialSpec((plugin,), str(tmp_path / "run"), "cpu", 1, retries=0),
    )
    BucketFileSystem.outage = None


def test_an_evaluation_waits_for_images_that_are_away(
    trial: tuple[dict[str, Any], TrialSpec], caplog: pytest.LogCaptureFixture
) -> None:
    expected = json.loads(evaluate_with_retries(*trial)["judged"])
    BucketFileSystem.outage = away = Outage("read", "store/images/*", 1.0, spared=3)
    found = evaluate_with_retries(*trial)
    assert away.refused, "storage was never away"
    assert json.loads(found["judged"]) == expected and expected["metrics"] and not expected["failed"]
    assert "an evaluation waits for storage" in caplog.text


def test_an_evaluation_whose_images_stay_away_is_tried_again_before_it_fails(
    trial: tuple[dict[str, Any], TrialSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(through_outages.__kwdefaults__, "outage_s", 0.2)
    BucketFileSystem.outage = Outage("read", "store/images/*", 60.0)
    found = evaluate_with_retries(*trial)
    assert "the storage of the images cannot be reached" in found["error"] and IMAGES in found["error"]
    assert "StorageError" in found["trace"], "it was met as an error that may pass, which is tried again"


def test_an_image_that_is_missing_is_the_users_error_at_once(trial: tuple[dict[str, Any], TrialSpec]) -> None:
    Storage.of(IMAGES).remove("3.png")
    found = evaluate_with_retries(*trial)
    assert "3.png" in found["error"] and found["trace"] == ""
