"""metrics.jsonl is strict and cut back on resume; MLflow gets every row once."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pathray.run.tracking.mlflow import MlflowFeeder, redact
from pathray.run.tracking.tracked import REDACTED
from pathray.store.metrics_log import MetricsLog
from tests.builders.storage import FaultyFileSystem


@pytest.fixture(params=["local", "faulty"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    FaultyFileSystem.reset()
    folder = str(tmp_path / "run") if request.param == "local" else "faulty://bucket/run"
    return f"{folder}/metrics.jsonl"


def fill(path: str, images: list[int], **more: Any) -> MetricsLog:
    log = MetricsLog(path)
    for n in images:
        log.append({"images_seen": n, "loss": n / 10, **more})
    log.flush()
    return log


def without_time(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "time"} for row in rows]


def test_rows_come_back_in_order_with_the_time_they_were_written(path: str) -> None:
    before = time.time()
    rows = fill(path, [10, 20], note="x").read()
    assert without_time(rows) == [{"images_seen": n, "loss": n / 10, "note": "x"} for n in (10, 20)]
    assert all(before - 1 <= row["time"] <= time.time() + 1 for row in rows)


def test_nan_and_inf_are_null_and_named_so_that_every_parser_reads_the_file(tmp_path: Path) -> None:
    log = MetricsLog(str(tmp_path / "metrics.jsonl"))
    log.append({"images_seen": 6, "loss": math.nan, "norm": -math.inf, "lr": np.float32(0.25), "gone": None})
    raw = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert raw["loss"] is None and raw["norm"] is None and raw["nonfinite"] == ["loss", "norm"]
    (row,) = log.read()
    assert math.isnan(row["loss"]) and math.isnan(row["norm"]) and row["gone"] is None and row["lr"] == 0.25


def test_a_resume_cuts_the_log_back_to_its_checkpoint(path: str) -> None:
    fill(path, [10, 20, 30, 40])
    log = MetricsLog(path)
    assert log.cut_back(25) == 2
    log.append({"images_seen": 30, "loss": 0.5})
    log.close()
    assert [(r["images_seen"], r["loss"]) for r in MetricsLog(path).read()] == [(10, 1.0), (20, 2.0), (30, 0.5)]
    assert MetricsLog(path).cut_back(0) == 3 and MetricsLog(path).read() == []


def test_a_row_half_written_at_a_crash_is_neither_read_nor_glued_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    fill(str(path), [10])
    with path.open("ab") as f:
        f.write(b'{"images_seen":20,"lo')
    assert [r["images_seen"] for r in MetricsLog(str(path)).read()] == [10]
    MetricsLog(str(path)).append({"images_seen": 20, "loss": 1.0})
    assert [r["images_seen"] for r in MetricsLog(str(path)).read()] == [10, 20]
    with path.open("ab") as f:
        f.write(b'{"images_seen":20,"lo')
    assert MetricsLog(str(path)).cut_back(100) == 1


def test_on_object_storage_rows_wait_for_the_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    FaultyFileSystem.reset()
    log = MetricsLog("faulty://bucket/run/metrics.jsonl", flush_every_s=1e9)
    for n in range(5):
        log.append({"images_seen": n})
    writes = [call for call in FaultyFileSystem.calls if call[0] == "write"]
    assert len(writes) <= 1
    log.close()
    assert len(MetricsLog("faulty://bucket/run/metrics.jsonl").read()) == 5


def test_secrets_do_not_reach_mlflow() -> None:
    found = redact(
        {
            "storage.api_key": "abc",
            "tuning.hf_token": "abc",
            "password": "abc",
            "data.sampling_stratum_key": "organ",
            "uri": "postgresql://user:pass@host:5432/db",
            "signed": "https://storage.googleapis.com/b/x?X-Goog-Signature=deadbeef",
            "list": ["gs://bucket/a", "s3://id:secret@bucket/b"],
            "lr": 0.1,
        }
    )
    assert [found[k] for k in ("storage.api_key", "tuning.hf_token", "password")] == [REDACTED] * 3
    assert found["data.sampling_stratum_key"] == "organ" and found["lr"] == "0.1"
    assert found["uri"] == "postgresql://host:5432/db"
    assert found["signed"] == "https://storage.googleapis.com/b/x"
    assert found["list"] == "['gs://bucket/a', 's3://bucket/b']"
    assert "abc" not in str(found) and "pass" not in str(list(found.values()))


def test_nested_parameters_come_out_under_names_that_mlflow_takes_whole_or_cut_short() -> None:
    found = redact(
        {
            "identity": {"hash": "ab", "values": {"data.plugins[0].seed": 3, "mask.context_keep_tokens": 16}},
            "plugins": [{"name": "stain", "hf_token": "abc"}, {"name": "blur"}],
            "levels": [1, 2.5, "three"],
            "weird (%) name": None,
            "long": "x" * 501,
            "n" * 300: 1,
        }
    )
    assert found.pop("n" * 250) == "1" and found.pop("long") == "x" * 499 + "…"
    assert found == {
        "identity.hash": "ab",
        "identity.values.data.plugins.0.seed": "3",
        "identity.values.mask.context_keep_tokens": "16",
        "plugins.0.name": "stain",
        "plugins.0.hf_token": REDACTED,
        "plugins.1.name": "blur",
        "levels": "[1, 2.5, 'three']",
        "weird ___ name": "None",
    }


@pytest.fixture(scope="module")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all: making its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


def history(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    return [(m.step, m.value) for m in MlflowClient(uri).get_metric_history(run_id, key)]


def test_mlflow_gets_every_row_once_over_restarts(tmp_path: Path, mlflow_uri: str) -> None:
    path = str(tmp_path / "metrics.jsonl")
    log = fill(path, [10, 20, 30])
    first = MlflowFeeder(path, uri=mlflow_uri, run_name="demo", params={"lr": 0.1, "api_key": "abc"})
    assert first.feed() == 3 and first.feed() == 0
    log.append({"images_seen": 40, "loss": math.nan, "note": "words are not metrics"})
    assert first.feed() == 1

    found = history(mlflow_uri, first.run_id, "loss")
    assert [step for step, _ in found] == [10, 20, 30, 40] and math.isnan(found[3][1])
    again = MlflowFeeder(path, uri=mlflow_uri)
    assert again.feed() == 0 and again.run_id == first.run_id
    again.close()

    from mlflow import MlflowClient

    run = MlflowClient(mlflow_uri).get_run(first.run_id)
    assert run.data.params == {"lr": "0.1", "api_key": REDACTED} and run.info.status == "FINISHED"
    assert "time" not in run.data.metrics


def test_a_resumed_run_keeps_its_parameters_and_takes_new_ones(tmp_path: Path, mlflow_uri: str) -> None:
    from mlflow import MlflowClient

    path = str(tmp_path / "metrics.jsonl")
    log = fill(path, [10])
    first = MlflowFeeder(path, uri=mlflow_uri, params={"data": {"plugins[0]": 1, "seeds": [1, 2]}, "lr": 0.1})
    assert first.feed() == 1
    log.append({"images_seen": 20, "loss": 1.0})
    second = MlflowFeeder(path, uri=mlflow_uri, params={"data": {"plugins[0]": 2}, "lr": 0.2, "workers": 4})
    assert second.feed() == 1 and second.run_id == first.run_id
    found = MlflowClient(mlflow_uri).get_run(first.run_id).data.params
    assert found == {"data.plugins.0": "1", "data.seeds": "[1, 2]", "lr": "0.1", "workers": "4"}


def test_parameters_that_mlflow_refuses_neither_stop_the_metrics_nor_begin_runs(
    tmp_path: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pathray.run.tracking.mlflow._name", lambda key: "../" + key)
    path = str(tmp_path / "metrics.jsonl")
    fill(path, [10])
    first, second = (MlflowFeeder(path, uri=mlflow_uri, params={"lr": 0.1}) for _ in range(2))
    assert (first.feed(), second.feed()) == (1, 0) and first.run_id == second.run_id
    assert "MLflow does not take the parameters" in caplog.text


def test_the_thread_follows_a_growing_file_and_drains_it_at_the_end(tmp_path: Path, mlflow_uri: str) -> None:
    path = str(tmp_path / "metrics.jsonl")
    with MlflowFeeder(path, uri=mlflow_uri, every_s=0.05) as feeder:
        log = fill(path, [1, 2])
        deadline = time.monotonic() + 60
        while len(history(mlflow_uri, feeder.run_id, "loss") if feeder.run_id else []) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        log.append({"images_seen": 3, "loss": 0.3})
    assert [step for step, _ in history(mlflow_uri, feeder.run_id, "loss")] == [1, 2, 3]


def test_trouble_with_mlflow_is_logged_and_never_raised(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(str(tmp_path / "metrics.jsonl"), [1])
    with MlflowFeeder(str(tmp_path / "metrics.jsonl"), uri="nosuch://database"):
        pass
    assert "MLflow could not be fed to the end" in caplog.text


def test_the_default_is_sqlite_beside_the_metrics(tmp_path: Path) -> None:
    assert MlflowFeeder(str(tmp_path / "metrics.jsonl")).uri == f"sqlite:///{tmp_path}/mlflow.db"


def test_a_row_whose_value_was_changed_on_disk_is_no_row(tmp_path, caplog):
    log = MetricsLog(str(tmp_path / "metrics.jsonl"))
    for images in (1, 2, 3):
        log.append({"images_seen": images, "loss": 0.5, "odd": float("nan")})
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"images_seen":2,"loss":0.5', b'"images_seen":2,"loss":0.1'))
    with caplog.at_level("WARNING"):
        rows = MetricsLog(str(path)).read()
    assert [row["images_seen"] for row in rows] == [1, 3] and "damaged" in caplog.text
    assert all(np.isnan(row["odd"]) and "check" not in row for row in rows)
    assert MetricsLog(str(path)).cut_back(3) == 1 and len(path.read_bytes().splitlines()) == 2
    MetricsLog(str(path)).append({"images_seen": 4})
    assert [row["images_seen"] for row in MetricsLog(str(path)).read()] == [1, 3, 4]


@pytest.mark.parametrize("line", [b"3", b"[1]", b'"text"', b"\xff{}", b'{"loss": 1.0}', b'{"images_seen": "1"}'])
def test_a_line_that_is_no_row_is_left_out_of_the_log(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"images_seen": 5, "loss": 0.5}\n' + line + b"\n")
    assert MetricsLog(str(path)).read() == [{"images_seen": 5, "loss": 0.5}]


def cut_and_resumed(path: str) -> None:
    log = MetricsLog(path)
    log.cut_back(20)
    for n in (30, 40, 50):
        log.append({"images_seen": n, "loss": 7.0})


def test_values_of_rows_that_were_cut_back_are_in_no_run_that_goes_on(tmp_path: Path, mlflow_uri: str) -> None:
    from mlflow import MlflowClient

    path = str(tmp_path / "metrics.jsonl")
    fill(path, [10, 20, 30, 40])
    first = MlflowFeeder(path, uri=mlflow_uri, run_name="demo", params={"lr": 0.1}, tags={"mlflow.parentRunId": "p"})
    assert first.feed() == 4
    cut_and_resumed(path)
    second = MlflowFeeder(path, uri=mlflow_uri)  # a driver started anew; `first` plays the one whose workers restarted
    assert second.feed() == 5 and second.run_id != first.run_id
    expected = [(10, 1.0), (20, 2.0), (30, 7.0), (40, 7.0), (50, 7.0)]
    assert history(mlflow_uri, second.run_id, "loss") == expected
    old, new = (MlflowClient(mlflow_uri).get_run(feeder_run) for feeder_run in (first.run_id, second.run_id))
    assert old.data.tags["pathray.continued_by"] == new.info.run_id and old.info.status == "KILLED"
    assert new.data.params == {"lr": "0.1"} and new.data.tags["mlflow.parentRunId"] == "p"
    assert first.feed() == 0 and first.run_id == second.run_id  # the record in the folder tells it
    assert history(mlflow_uri, second.run_id, "loss") == expected


def test_rows_cut_back_under_a_running_feeder_begin_a_new_run_too(tmp_path: Path, mlflow_uri: str) -> None:
    path = str(tmp_path / "metrics.jsonl")
    fill(path, [10, 20, 30])
    feeder = MlflowFeeder(path, uri=mlflow_uri)
    assert feeder.feed() == 3
    old = feeder.run_id
    cut_and_resumed(path)
    assert feeder.feed() == 5 and feeder.run_id != old
    assert [v for _, v in history(mlflow_uri, feeder.run_id, "loss")] == [1.0, 2.0, 7.0, 7.0, 7.0]


def test_two_feeders_of_one_file_tell_each_row_once(tmp_path: Path, mlflow_uri: str) -> None:
    path, rows = str(tmp_path / "metrics.jsonl"), str(tmp_path / "robustness.jsonl")
    fill(path, [10])
    trainer = MlflowFeeder(path, uri=mlflow_uri, beside={"robustness.jsonl": "tune/images"})
    watch = MlflowFeeder(rows, uri=mlflow_uri, marker="tune/images", ends=False)
    assert (trainer.feed(), watch.feed()) == (1, 0) and trainer.run_id == watch.run_id
    log = fill(rows, [10, 20])
    assert (watch.feed(), trainer.feed()) == (2, 0)
    log.append({"images_seen": 30, "loss": 3.0})
    assert (trainer.feed(), watch.feed()) == (1, 0)
    assert [step for step, _ in history(mlflow_uri, trainer.run_id, "tune/images")] == [10, 20, 30]


@pytest.fixture
def black_hole() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(8)
        yield f"http://anna:geheim@127.0.0.1:{server.getsockname()[1]}"


def test_a_server_that_never_answers_does_not_hold_the_end(
    tmp_path: Path, black_hole: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pathray.run.tracking.mlflow.SILENT_S", 0.2)
    path = str(tmp_path / "metrics.jsonl")
    fill(path, [1])
    feeder = MlflowFeeder(path, uri=black_hole)
    feeder.close()
    assert feeder._thread is not None and feeder._thread.is_alive()  # left behind: it cannot be asked to end
    assert "does not answer" in caplog.text and "geheim" not in caplog.text


class Unwell(BaseHTTPRequestHandler):
    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_error(500)

    def log_message(self, *words: object) -> None:
        pass


def test_a_server_that_fails_is_asked_once_and_gets_everything_at_the_next_start(
    tmp_path: Path, mlflow_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(tmp_path / "metrics.jsonl")
    fill(path, [1, 2])
    with HTTPServer(("127.0.0.1", 0), Unwell) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        MlflowFeeder(path, uri=f"http://anna:geheim@127.0.0.1:{server.server_port}").close()
        server.shutdown()
    assert Unwell.asked == 1 and "geheim" not in caplog.text
    assert MlflowFeeder(path, uri=mlflow_uri).feed() == 2


def test_a_refused_connection_is_told_without_the_login(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(str(tmp_path / "metrics.jsonl"), [1])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    MlflowFeeder(str(tmp_path / "metrics.jsonl"), uri=f"http://anna:geheim@127.0.0.1:{port}").close()
    assert "the next start sends the rest" in caplog.text and "geheim" not in caplog.text


def test_an_away_server_does_not_make_the_run_that_it_has_a_lost_one(tmp_path: Path) -> None:
    (tmp_path / "mlflow_run.json").write_text('{"run_id": "r1", "tracking_uri": "http://127.0.0.1:1"}')
    fill(str(tmp_path / "metrics.jsonl"), [1])
    MlflowFeeder(str(tmp_path / "metrics.jsonl"), uri="http://127.0.0.1:1").close()
    assert json.loads((tmp_path / "mlflow_run.json").read_text())["run_id"] == "r1"
