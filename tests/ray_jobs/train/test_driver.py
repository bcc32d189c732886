"""What the driver of a training shows and how it waits. Starts no Ray."""

import threading

from pathray.store.metrics_log import MetricsLog
from pathray.store.storage import Storage
from ray_jobs.train.driver import run_in_thread


def test_the_driver_shows_what_its_workers_log_while_it_waits(tmp_path, capfd):
    def train():
        MetricsLog(f"{tmp_path}/metrics.jsonl").append({"images_seen": 48, "loss": 0.2134, "images_per_s": 40.6})
        return threading.current_thread().name

    assert run_in_thread(train, Storage.of(tmp_path), 96) == "pathray-fit"
    assert "train: 48 of 96 images · loss 0.213" in capfd.readouterr().err
