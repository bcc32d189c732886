"""Evaluations beside a pretraining on OCT: in an evaluator's process, and through the whole job with its own config."""

import json

import pytest

from oct.config import CONFIGS_DIR
from pathray.evaluation.settings import DatasetConfig, PluginConfig
from ray_jobs import pretrain_oct as job
from ray_jobs.shell.cli import run_job
from ray_jobs.tune.evaluation_trial import TrialSpec, evaluate_once
from tests.builders.oct.labelled import LABELS, write_oct_encoder
from tests.builders.oct.oct_job import KEYS
from tests.builders.oct.two_devices import write_two_devices

JUDGED = ("--config", "scanner_or_disease", "tuning.execution.cpus=0.5", "tuning.tune_every=8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_devices")
    write_two_devices(folder)
    write_oct_encoder(folder / "encoder")
    return folder


def pretrain(folder, output, *argv) -> int:
    words = (*KEYS, "optimization.total_images=8", "optimization.warmup=0", f"output={output}", *JUDGED, *argv)
    return run_job(job.main, job.PretrainOctConfig, list(words), CONFIGS_DIR)


def test_an_evaluators_process_reads_volumes_by_itself(folder, tmp_path):
    own = {"devices": DatasetConfig(volumes=f"{folder}/volumes.parquet")}
    plugin = PluginConfig("probe", datasets=own, embedding="none")
    due = json.dumps({"probe": ["knn"]})
    config = {"encoder": f"{folder}/encoder", "due": due, "images_seen": 8, "neighbours": "{}"}
    told = evaluate_once(config, TrialSpec((plugin,), str(tmp_path), "cpu", 1, retries=0))
    assert json.loads(told["judged"])["metrics"].keys() == {"probe/devices/knn_id"}


@pytest.mark.ray
def test_snapshots_of_a_pretraining_are_judged_by_device_and_label(ray_cluster, folder, tmp_path):
    words = (f"data.index={folder}/volumes.parquet", f"tuning.plugins[1].datasets.biology.labels={folder}/{LABELS}",
             "tuning.plugins[1].datasets.biology.label=label", "tuning.plugins[1].datasets.biology.neighbours=3",
             "scaling.workers=1")  # fmt: skip
    assert pretrain(folder, tmp_path, *words) == 0
    rows = [json.loads(line) for line in (tmp_path / "robustness.jsonl").read_text().splitlines()]
    assert sorted((row["images_seen"], row["status"]) for row in rows) == [(0, "ok"), (8, "ok")]
    for row in rows:
        assert 0 <= row["probe/devices/linear_id"] <= 1 and 0 <= row["pathorob/biology/ri"] <= 1
        assert row["pathorob/biology/ri_k"] == 3 and "failed" not in row


def test_datasets_of_images_and_missing_indexes_are_refused_before_ray_starts(folder, tmp_path, capsys):
    """Without data.index the shipped config has no volumes to judge on."""
    assert pretrain(folder, tmp_path / "a", f"data.manifest={folder}/manifest.tsv", "scaling.workers=1") == 2
    assert "only volumes have this" in capsys.readouterr().err
    words = (f"data.index={folder}/volumes.parquet", "scaling.workers=1")
    own = "tuning.plugins[0].datasets.devices"
    images = [f"{own}.{word}" for word in ("volumes=null", "label=null", "max_volumes=null", "manifest_csv=a.csv")]
    assert pretrain(folder, tmp_path / "b", *words, *images) == 2
    assert "an encoder of volumes is judged on volumes" in capsys.readouterr().err
    lost = "tuning.plugins[0].datasets.devices.volumes=nowhere.parquet"
    assert pretrain(folder, tmp_path / "c", *words, lost) == 2
    assert "no index of volumes here" in capsys.readouterr().err
