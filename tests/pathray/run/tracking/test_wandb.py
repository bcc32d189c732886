"""W&B, offline: its files have the rows of metrics.jsonl once each, the config without secrets, and what a run left."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from pathray.config.sections import LoggingConfig, WandbConfig
from pathray.errors import UserError
from pathray.run.layout import WANDB_RUN
from pathray.run.tracking import wandb_process
from pathray.run.tracking.tracked import REDACTED, numbers_of, public_params
from pathray.run.tracking.wandb_mirror import MirrorSpec, is_finished
from pathray.run.tracking.wandb_process import WandbProcess, check_installed
from pathray.store.metrics_log import MetricsLog, rows_of
from pathray.store.storage import Storage
from tests.builders.runs.offline_wandb import OfflineRun, offline_runs

pytest.importorskip("wandb", reason="W&B is an extra: pip install 'pathray[wandb]'")
EVALUATIONS, AXIS = "robustness.jsonl", "tune/tune_images_seen"


def fill(run: Path, images: list[int], **more: Any) -> None:
    log = MetricsLog(str(run / "metrics.jsonl"))
    for n in images:
        log.append({"images_seen": n, "step": n // 2, "loss": n / 7, "positions/0": "00ff", **more})


def mirror(run: Path, *, fails: bool = False, **more: Any) -> None:
    """A job's whole life as W&B sees it: everything is told at its end."""
    spec = MirrorSpec(str(run), **({"mode": "offline", "project": "toys", "name": "first", "every_s": 600.0} | more))
    process = WandbProcess(spec, end_s=120.0).__enter__()
    process.close(1 if fails else 0)


def numbers(run: OfflineRun) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith("_")} for row in run.rows]


def expected(run: Path) -> list[dict[str, Any]]:
    return [numbers_of(row) for row in rows_of((run / "metrics.jsonl").read_bytes())]


def test_the_offline_file_has_every_row_the_config_and_what_the_run_left(tmp_path: Path) -> None:
    fill(tmp_path, [2, 4, 6])
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "weights").write_bytes(b"w")
    config = public_params({"lr": 0.1, "hub_token": "geheim", "uri": "https://me:geheim@host/x", "none": None})
    mirror(tmp_path, tags=["a", "b"], config=config, encoder=True)
    (run,) = offline_runs(tmp_path)
    assert numbers(run) == expected(tmp_path) and len(run.rows) == 3
    assert [row["_step"] for row in run.rows] == [2, 4, 6]
    assert (run.project, run.name, run.tags, run.exit_code) == ("toys", "first", ["a", "b"], 0)
    assert run.config["lr"] == 0.1 and run.config["hub_token"] == REDACTED and run.config["uri"] == "https://host/x"
    assert {"system.host", "system.python", "system.cpus", "system.torch"} <= run.config.keys()
    assert run.summary["outputs/encoder"] == str(tmp_path / "encoder")
    assert run.artifacts == {f"encoder-{run.run_id}": ["weights"]}
    everything = b"".join(p.read_bytes() for p in (tmp_path / "wandb").rglob("*") if p.is_file())
    assert b"geheim" not in everything
    assert is_finished(Storage.of(tmp_path))


def test_a_resumed_run_continues_the_same_one_and_tells_no_row_twice(tmp_path: Path) -> None:
    fill(tmp_path, [2, 4, 6])
    mirror(tmp_path, fails=True)
    assert not is_finished(Storage.of(tmp_path))
    MetricsLog(str(tmp_path / "metrics.jsonl")).cut_back(4)
    fill(tmp_path, [6, 8])
    mirror(tmp_path)
    first, second = offline_runs(tmp_path)
    assert first.run_id == second.run_id == json.loads((tmp_path / WANDB_RUN).read_text())["run_id"]
    assert (first.exit_code, second.exit_code) == (1, 0)
    assert [row["images_seen"] for row in first.rows + second.rows] == [2, 4, 6, 8]
    assert numbers(first) + numbers(second) == expected(tmp_path)


def test_evaluations_are_told_on_an_axis_of_their_own(tmp_path: Path) -> None:
    fill(tmp_path, [2, 4])
    MetricsLog(str(tmp_path / EVALUATIONS)).append({"images_seen": 2, "tune/pathorob": 0.5})
    mirror(tmp_path, beside={EVALUATIONS: AXIS})
    (run,) = offline_runs(tmp_path)
    told = [row for row in run.rows if "tune/pathorob" in row]
    assert [(row["tune/pathorob"], row[AXIS]) for row in told] == [(0.5, 2)]
    assert [row["images_seen"] for row in run.rows] == [2, 4]


def test_a_mirror_that_fails_warns_once_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No key and no server: W&B refuses to begin."""
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(wandb_process, "END_S", 1.0)
    fill(tmp_path, [2])
    with caplog.at_level(logging.WARNING), WandbProcess(MirrorSpec(str(tmp_path), "online", "toys"), end_s=1.0) as own:
        fill(tmp_path, [4])
    said = [record.message for record in caplog.records]
    assert len(said) == 1 and "W&B is slow" in said[0] and "metrics.jsonl has everything" in said[0]
    assert own._process is not None
    own._process.kill()
    own._process.wait()
    assert len(expected(tmp_path)) == 2


def test_a_mirror_that_cannot_run_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with WandbProcess(MirrorSpec(str(tmp_path), "offline", "toys")):
        fill(tmp_path, [2])
    assert [record.message for record in caplog.records if "could not be started" in record.message]


def test_the_mirror_finds_this_package_from_any_folder_and_nothing_of_it_by_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modules of the package would hide others of the same name if its own folder were on the path."""
    given: list[dict[str, str]] = []

    def refuse(*args: Any, env: dict[str, str], **more: Any) -> None:
        given.append(env)
        raise OSError("not started")

    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setattr(wandb_process.subprocess, "Popen", refuse)
    with WandbProcess(MirrorSpec(str(tmp_path), "offline", "toys")):
        pass
    root, *others = given[0]["PYTHONPATH"].split(os.pathsep)
    assert (Path(root) / "pathray" / "run" / "tracking" / "wandb_mirror.py").is_file() and others == ["/elsewhere"]


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="wandb is not installed") as error:
        check_installed()
    assert "pathray[wandb]" in str(error.value.where["expected"])


def test_off_is_the_default_also_where_yaml_makes_it_a_boolean() -> None:
    assert LoggingConfig().wandb.mode == "off" == WandbConfig(mode="False").mode
    with pytest.raises(UserError) as error:
        WandbConfig(mode="dryrun")
    assert error.value.where["key"] == "logging.wandb.mode"


def test_a_damaged_record_and_a_missing_key_are_told_in_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, [2])
    for name in ("WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    mirror(tmp_path, mode="online")
    assert "API key" in caplog.text and "Traceback" not in caplog.text
    caplog.clear()
    (tmp_path / WANDB_RUN).write_text("{")
    assert not is_finished(Storage.of(tmp_path))
    mirror(tmp_path)
    assert "W&B: the mirror ended" in caplog.text and "JSONDecodeError" in caplog.text
