"""What the driver shows of a training whose workers are elsewhere: from the run's metrics. Starts no Ray."""

import io
import json
import time
from functools import partial

import pytest
import tqdm

from pathray.reports.progress import duration
from pathray.run.progress import TrainingProgress
from pathray.store.metrics_log import MetricsLog
from pathray.store.storage import Storage, StorageError


class Terminal(io.StringIO):
    def isatty(self):
        return True


def row(images, loss=0.2134, rate=40.6):
    return {"images_seen": images, "loss": loss, "images_per_s": rate}


def shown(folder, images, total=100_000, stream=None):
    """What is shown of rows at `images`, looked at after each."""
    stream = stream or io.StringIO()
    progress = TrainingProgress(Storage.of(folder), total, stream=stream)
    metrics = MetricsLog(f"{folder}/metrics.jsonl")
    for n in images:
        metrics.append(row(n))
        progress.look(now=True)
    progress.close()
    return stream.getvalue()


def test_a_line_says_images_of_the_budget_loss_speed_and_time_left(tmp_path):
    said = shown(tmp_path, [12_288])
    assert said == "train: 12,288 of 100,000 images · loss 0.213 · 40.6 images/s · 36 min left\n"


def test_there_is_a_line_for_the_first_row_and_for_every_tenth(tmp_path):
    lines = shown(tmp_path, range(0, 1001, 25), total=1000).splitlines()
    assert [line.split()[1] for line in lines] == ["0", *(str(n) for n in range(100, 901, 100)), "1,000"]
    assert "left" not in lines[-1]


def test_on_a_terminal_there_is_a_bar_with_the_same_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(tqdm, "tqdm", partial(tqdm.tqdm, disable=False))  # the tests' environment switches bars off
    said = shown(tmp_path, [25_000, 50_000], stream=Terminal())
    assert "train:  50%|" in said and "| 50,000 of 100,000 images · loss 0.213 · 40.6 images/s · 21 min left" in said


def test_rows_of_an_earlier_attempt_are_no_news(tmp_path):
    MetricsLog(f"{tmp_path}/metrics.jsonl").append(row(500))
    time.sleep(0.002)
    assert shown(tmp_path, [], total=1000) == ""
    assert shown(tmp_path, [625], total=1000).startswith("train: 625 of 1,000")


def test_rows_without_a_loss_and_a_loss_that_is_no_number_do_no_harm(tmp_path):
    stream = io.StringIO()
    progress = TrainingProgress(Storage.of(tmp_path), 0, stream=stream)
    progress.look(now=True)
    metrics = MetricsLog(f"{tmp_path}/metrics.jsonl")
    metrics.append({"images_seen": 0, "anchors": 5})
    progress.look(now=True)
    metrics.append({"images_seen": 8, "loss": float("nan"), "images_per_s": float("nan")})
    progress.look(now=True)
    assert stream.getvalue() == "train: 8 images · loss nan\n"


def test_between_rows_that_are_hours_apart_progress_is_shown_all_the_same(tmp_path, monkeypatch):
    stream, clock = io.StringIO(), [0.0]
    progress = TrainingProgress(Storage.of(tmp_path), 100_000, stream=stream)
    monkeypatch.setattr("pathray.run.progress.time.monotonic", lambda: clock[0])
    start = time.time()
    for seconds in (0, 60, 500, 700):
        clock[0] = seconds
        beat = {"images_seen": 32 + 2 * seconds, "time": start + seconds}
        (tmp_path / "progress.json").write_text(json.dumps(beat))
        progress.look(now=True)
    assert stream.getvalue().splitlines() == [
        "train: 32 of 100,000 images",
        "train: 1,432 of 100,000 images · 2 images/s · 13.7 h left",
    ], "a line every ten minutes, where a tenth takes longer"


def test_a_sign_of_life_of_an_earlier_attempt_is_no_news(tmp_path):
    (tmp_path / "progress.json").write_text(json.dumps({"images_seen": 32, "time": time.time() - 60}))
    assert shown(tmp_path, []) == ""


def test_only_the_end_of_a_long_log_is_read(tmp_path):
    progress = TrainingProgress(Storage.of(tmp_path), 10_000, stream=io.StringIO())
    metrics = MetricsLog(f"{tmp_path}/metrics.jsonl")
    for n in range(2000):
        metrics.append(row(n))
    assert (tmp_path / "metrics.jsonl").stat().st_size > 1 << 16
    newest = progress._newest()
    assert newest is not None and newest["images_seen"] == 1999


def test_a_remote_run_is_looked_at_less_often_and_its_trouble_is_only_logged(tmp_path, caplog):
    class Bucket:
        local, asked = False, 0

        def exists(self, name):
            self.asked += 1
            raise StorageError("cannot read: 503", file=name)

    bucket = Bucket()
    progress = TrainingProgress(bucket, 10, stream=io.StringIO())
    assert progress.every_s == 30.0 and TrainingProgress(Storage.of(tmp_path), 10).every_s == 2.0
    progress.look()
    assert bucket.asked == 0
    progress.close()
    assert bucket.asked == 1 and "503" in caplog.text


@pytest.mark.parametrize(
    ("seconds", "said"), [(45, "45 s"), (2160, "36 min"), (18_700, "5.2 h"), (268_000, "3.1 days")]
)
def test_durations_are_said_as_people_do(seconds, said):
    assert duration(seconds) == said
