"""A cluster that may grow is not refused for what it does not have yet. Starts no Ray."""

from contextlib import contextmanager

import pytest

from ijepath.config import CONFIGS_DIR, GROUPS
from pathray.config.load import load_config
from pathray.errors import UserError
from ray_jobs import pretrain_ijepath
from ray_jobs.shell import runtime
from ray_jobs.shell.runtime import Session
from ray_jobs.train import pretraining
from tests.builders.runs.run import write_cohort


class Asked(Exception):
    pass


@pytest.mark.parametrize("autoscaling", [True, False])
def test_pretraining_asks_a_growing_cluster_for_no_cpus_beforehand(tmp_path, monkeypatch, autoscaling):
    @contextmanager
    def small_cluster(config, *, cpus=1.0, gpus=0.0, autoscaling=False, needed=True):
        yield runtime._require_capacity(Session(False, {"CPU": 1.0}), cpus, gpus, autoscaling)

    def prepare(config):
        raise Asked

    monkeypatch.setattr(pretraining, "ray_session", small_cluster)
    monkeypatch.setattr(pretraining, "begin", lambda *asked: "cpu")
    monkeypatch.setattr(pretrain_ijepath, "prepare", prepare)
    write_cohort(tmp_path, slides=1)
    argv = [
        *(f"data.slide_manifest_csv={tmp_path / 'slides.csv'}", f"output={tmp_path / 'run'}"),
        *("optimization.total_images_budget=64", "scaling.workers=4", f"scaling.autoscaling={autoscaling}"),
    ]
    loaded = load_config(pretrain_ijepath.PretrainConfig, argv, configs_dir=CONFIGS_DIR, groups=GROUPS)
    with pytest.raises(Asked if autoscaling else UserError):
        pretrain_ijepath.main(loaded)
