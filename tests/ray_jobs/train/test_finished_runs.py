"""A finished run says so without Ray, a longer budget trains on, and a stop holds while features are computed."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pathray.config.load import fingerprint, load_config
from pathray.data.plan import Plan
from pathray.errors import UserError
from pathray.nn.vit import ViT, vit_config
from pathray.run.layout import STOP
from pathray.run.stop import request_stop
from pathray.store import checkpoint
from pathray.store.artifact import EncoderArtifact
from ray_jobs import pretrain_adios, pretrain_ijepath, train_regression
from ray_jobs.regression import frozen_features
from ray_jobs.regression.checks import is_finished
from ray_jobs.regression.frozen_features import FeaturesStopped
from ray_jobs.shell.cli import run_job
from ray_jobs.stop import StopConfig
from ray_jobs.stop import main as stop
from ray_jobs.train import training_jobs
from ray_jobs.train.tracking_feed import tell_tracking
from tests.builders.expression import save_random_encoder, write_images
from tests.builders.runs.run import KEYS
from tests.builders.zips import write_folder
from tests.ray_jobs.train.regression.test_regression_jobs import KEYS as REGRESSION
from tests.ray_jobs.train.regression.test_regression_jobs import split


def leave(run: Path, tag: str, identity: dict, seen: int, exported: bool = True) -> None:
    """A checkpoint at `seen` images and the encoder that was exported there."""
    meta = {"images_seen": seen, "identity": identity}
    checkpoint.save(str(run / "checkpoints"), f"{tag}-latest", {"w": torch.zeros(1)}, meta)
    if exported:
        vit = ViT(vit_config("vit_tiny", img_size=(32, 32), dim=24, depth=1, heads=2))
        facts = {"images_seen": seen, "identity": identity["hash"]}
        preprocessing = {"mean": [0.5] * 3, "std": [0.2] * 3, "size": 32, "mpp": 0.5}
        EncoderArtifact.save(str(run / "encoder"), vit, preprocessing=preprocessing, science="x", provenance=facts)


class Pretraining:
    """A pretraining job on inputs that nothing needs to read, and its identity."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.run = name, folder / "run"
        self.module = {"ijepath": pretrain_ijepath, "adios": pretrain_adios}[name]
        if name == "ijepath":
            (folder / "slides.csv").write_text("slide_id,wsi_path,mask_path\na,a.tiff,\n")
            self.words = [*KEYS, f"data.slide_manifest_csv={folder}/slides.csv", f"output={self.run}"]
            self.schema, self.groups = pretrain_ijepath.PretrainConfig, pretrain_ijepath.GROUPS
            self.budget, self.longer = 32, "optimization.total_images_budget=64"
            self.changes = "[optimization.total_images_budget]"
        else:
            write_folder(folder / "zips", archives=1, patches=1)
            own = ["--config=smoke", "global_batch=4", "total_iterations=8", "optimization.warmup_iterations=1"]
            self.words = [*own, f"data_path={folder}/zips", f"output={self.run}"]
            self.schema, self.groups = pretrain_adios.PretrainAdiosConfig, ()
            self.budget, self.longer, self.changes = 32, "total_iterations=16", "[total_iterations, total_images]"

    def config(self):
        argv = self.words
        return load_config(self.schema, argv, configs_dir=self.module.CONFIGS_DIR, groups=self.groups).config

    def identity(self) -> dict:
        config = self.module.make_paths_absolute(self.config())
        if self.name == "ijepath":
            from ijepath.assembly import identity_of

            return identity_of(pretrain_ijepath.resolve_config(config, 1), "plan")
        from adios.assembly import identity_of as adios_identity
        from adios.config import resolve

        return adios_identity(resolve(config, 1), "plan")

    def start(self, *words: str) -> int:
        argv = [*self.words, *words]
        return run_job(self.module.main, self.schema, argv, self.module.CONFIGS_DIR, self.groups)


class RayStarted(Exception):
    """Instead of Ray."""


@pytest.fixture(params=["ijepath", "adios"])
def pretraining(request, tmp_path, monkeypatch) -> Pretraining:
    made = Pretraining(request.param, tmp_path)
    monkeypatch.setattr(
        "ray_jobs.train.pretraining.ray_session", lambda *args, **more: (_ for _ in ()).throw(RayStarted())
    )
    return made


def test_a_finished_pretraining_says_so_without_ray(pretraining, capsys, caplog):
    caplog.set_level("INFO")
    leave(pretraining.run, pretraining.config().logging.write_tag, pretraining.identity(), pretraining.budget)
    (pretraining.run / "mask_model").mkdir()
    assert pretraining.start() == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert f"encoder={pretraining.run}/encoder" in said and "checkpoint=" in said
    assert "this run is finished (32 images)" in caplog.text and "checkpoint.resume_changes=[" in caplog.text


@pytest.mark.parametrize(("seen", "exported"), [(16, True), (32, False)])
def test_a_pretraining_that_has_something_left_to_do_goes_on(pretraining, capsys, seen, exported):
    leave(pretraining.run, pretraining.config().logging.write_tag, pretraining.identity(), seen, exported)
    (pretraining.run / "mask_model").mkdir(parents=True)
    assert pretraining.start() == 1 and "RayStarted" in capsys.readouterr().err


def test_a_finished_pretraining_trains_on_to_a_longer_budget_where_the_change_is_named(pretraining, capsys):
    leave(pretraining.run, pretraining.config().logging.write_tag, pretraining.identity(), pretraining.budget)
    (pretraining.run / "mask_model").mkdir()
    assert pretraining.start(pretraining.longer) == 2
    assert "checkpoint.resume_changes=[" in capsys.readouterr().err
    assert pretraining.start(pretraining.longer, f"checkpoint.resume_changes={pretraining.changes}") == 1
    assert "RayStarted" in capsys.readouterr().err


def test_snapshots_that_wait_for_evaluators_are_something_left_to_do(tmp_path):
    from pathray.evaluation.settings import DatasetConfig, PluginConfig, TuningConfig
    from pathray.store.committed import committed_dir

    tuning = TuningConfig(True, plugins=[PluginConfig(datasets={"h": DatasetConfig("m.csv")})])
    config = SimpleNamespace(output=str(tmp_path), tuning=tuning)
    newest = SimpleNamespace(meta={"identity": {"hash": "x"}})
    assert not training_jobs._has_backlog(config, newest)
    meta = {"images_seen": 8, "identity": {"hash": "x"}, "tune_index": 1}
    with committed_dir(f"{tmp_path}/checkpoints", "t-img8", meta) as written:
        written.write_bytes("encoder/artifact.json", b"{}")
    assert training_jobs._has_backlog(config, newest)
    tuning.enable = False
    assert not training_jobs._has_backlog(config, newest)


def test_anchors_in_a_budget_of_passes_are_those_of_the_runs_plan(tmp_path, monkeypatch):
    made = Pretraining("ijepath", tmp_path)
    made.words.append("optimization.total_images_budget={epochs: 2}")
    config, asked = pretrain_ijepath.make_paths_absolute(made.config()), []
    monkeypatch.setattr(pretrain_ijepath, "outputs_if_finished", lambda config, images, keys: asked.append(images))
    monkeypatch.setattr(pretrain_ijepath, "checkpoint_to_resume", lambda config: object())
    monkeypatch.setattr(pretrain_ijepath, "recorded_identity", lambda config: {})
    assert pretrain_ijepath._outputs_if_finished(config) is None and asked == [], "nobody knows how many they are"
    monkeypatch.setattr(Plan, "open", lambda path: SimpleNamespace(rows=20))
    assert pretrain_ijepath._outputs_if_finished(config) is None and asked == [40]


@pytest.mark.parametrize(("uri", "told"), [(None, 0), ("sqlite:///a.db", 0), ("https://mlflow.example", 1)])
def test_a_server_that_was_away_is_told_the_rest_of_a_finished_run(uri, told, tmp_path, monkeypatch):
    jobs = []
    name = "ray_jobs.train.tracking_feed.feed_tracking"
    monkeypatch.setattr(name, lambda job, store: jobs.append(job) or nullcontext())
    made = Pretraining("ijepath", tmp_path)
    made.words += ["logging.mlflow=true", *([f"logging.tracking_uri={uri}"] if uri else [])]
    newest = SimpleNamespace(meta={"identity": {"hash": "x", "values": {"plan": "p"}}})
    tell_tracking(made.config(), str(made.run), newest)
    assert len(jobs) == told
    if told:
        assert jobs[0].tracking.uri == uri and jobs[0].identity == {"plan": "p", "identity": "x"}


# --- a regression -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("expression")
    made = write_images(folder)
    assert split(made, folder / "split.csv", "fractions=[0.5, 0.25, 0.25]") == 0
    return made, folder / "split.csv"


def regression(table, output: Path, *words: str):
    named = ("logging.run_name=r", f"data.table={table[0]}", f"data.split={table[1]}", f"output={output}")
    argv = [*REGRESSION, *named, *words]
    return load_config(train_regression.TrainRegressionConfig, argv, configs_dir=train_regression.CONFIGS_DIR).config


def ended(table, output: Path, seen: int = 48, end: str = "budget", since: int = 0) -> Path:
    """A run with results at `seen` images."""
    run = train_regression.prepare_run(train_regression.make_paths_absolute(regression(table, output)))
    meta = {"images_seen": seen, "identity": run.identity, "notes": {"selection": {"since_best": since}}}
    checkpoint.save(f"{run.folder}/checkpoints", "regression-latest", {"w": torch.zeros(1)}, meta)
    (Path(run.folder) / "metrics.json").write_text(json.dumps({"end": end, "run_name": "r"}))
    return Path(run.folder)


def begin_again(table, output: Path, *words: str) -> train_regression.Run:
    return train_regression.prepare_run(train_regression.make_paths_absolute(regression(table, output, *words)))


def test_the_command_of_a_finished_regression_without_a_name_finds_it_and_another_one_does_not(table, tmp_path):
    unnamed = ("logging.run_name=null",)
    config = train_regression.make_paths_absolute(regression(table, tmp_path, *unnamed))
    run = train_regression.prepare_run(config)
    placement = fingerprint(run.config, placement=True)
    meta = {"images_seen": 48, "identity": run.identity, "placement": placement}
    checkpoint.save(f"{run.folder}/checkpoints", "regression-latest", {"w": torch.zeros(1)}, meta)
    (Path(run.folder) / "metrics.json").write_text(json.dumps({"end": "budget", "run_name": "r"}))
    again = begin_again(table, tmp_path, *unnamed)
    assert again.folder == run.folder and is_finished(again)
    others = ("train.batch_size=8", "train.lr=0.5", "eval.samplewise=true", "checkpoint.resume=never", "seed=7")
    for other in others:
        assert begin_again(table, tmp_path, *unnamed, other).folder != run.folder, other


LONGER = ("train.images=64", "checkpoint.resume_changes=[train.images]")


def test_a_finished_regression_says_so_without_ray_and_trains_on_to_a_longer_budget(
    table, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO")
    folder = ended(table, tmp_path)
    monkeypatch.setattr(train_regression, "ray_session", lambda *args, **more: (_ for _ in ()).throw(RayStarted()))
    outputs = train_regression.work_on(begin_again(table, tmp_path))
    assert outputs.paths["metrics"] == str(folder / "metrics.json")
    assert "this run is finished (48 images)" in caplog.text and "resume_changes=[train.epochs, train" in caplog.text
    with pytest.raises(UserError, match="train.images: 48 in the checkpoint, 64 now"):
        begin_again(table, tmp_path, "train.images=64")
    with pytest.raises(RayStarted):
        train_regression.work_on(begin_again(table, tmp_path, *LONGER))
    assert not (folder / "metrics.json").exists(), "until it is trained on, the run is unfinished"
    assert json.loads((folder / "metrics_48.json").read_text())["end"] == "budget"


@pytest.mark.parametrize(
    ("words", "finished"),
    [
        (("eval.patience=2",), True),
        (("eval.patience=2", *LONGER), True),
        (("eval.patience=3",), False),
        ((), False),
    ],
)
def test_a_regression_that_early_stopping_has_ended_trains_on_with_more_patience(
    table, tmp_path, caplog, words, finished
):
    caplog.set_level("INFO")
    ended(table, tmp_path, seen=32, end="early_stop", since=2)
    assert is_finished(begin_again(table, tmp_path, *words)) == finished
    assert ("a larger eval.patience, or null, trains on" in caplog.text) == finished


def test_results_that_are_damaged_are_named(table, tmp_path):
    (ended(table, tmp_path, seen=32) / "metrics.json").write_text('{"end":')
    with pytest.raises(UserError, match=r"not the metrics of a run.*metrics\.json"):
        is_finished(begin_again(table, tmp_path))


def test_a_stop_that_comes_while_features_are_computed_ends_the_run(table, tmp_path, monkeypatch, caplog):
    """`ray_jobs.stop` finds the run, and the STOP is neither lost nor waited out."""
    caplog.set_level("INFO")
    run = train_regression.prepare_run(train_regression.make_paths_absolute(regression(table, tmp_path)))
    asked: list[str] = []

    def parts(work, missing):
        for number in missing:
            asked.append(f"part {number}")
            stop(SimpleNamespace(config=StopConfig(run.folder), dry_run=False))
            yield number, 1

    monkeypatch.setattr(train_regression, "ray_session", lambda *args, **more: nullcontext())
    monkeypatch.setattr(train_regression, "begin", lambda *args: asked.append("begin") or "cpu")
    monkeypatch.setattr(train_regression, "fit", lambda job: pytest.fail("it was asked to stop"))
    monkeypatch.setattr("ray_jobs.extract.actor_map.ActorMap", lambda *args: parts)
    monkeypatch.setattr("ray_jobs.train.resources.resolve_accelerator", lambda *args: "cpu")
    monkeypatch.setattr("regression.features.FeatureFolder.missing", lambda self: [0, 0, 0])
    outputs = train_regression.work_on(run)
    assert asked == ["begin", "part 0"] and outputs.paths == {"run": run.folder}
    assert (Path(run.folder) / STOP).exists() and "stopped while features" in caplog.text
    request_stop(run.folder)
    with pytest.raises(FeaturesStopped):
        frozen_features.ensure_features(
            run.config, run.plan, run.config.scaling, "again", train_regression.is_asked_to_stop(run)
        )


def test_a_finished_regression_is_trained_on_to_its_longer_budget(table, tmp_path, monkeypatch):
    monkeypatch.setattr("regression.reports.report.figures", lambda *args: ())
    save_random_encoder(tmp_path / "small")
    argv = [*REGRESSION, "scaling.workers=0", "eval.baselines=false", "logging.run_name=r", f"data.table={table[0]}"]
    argv += [f"data.split={table[1]}", f"output={tmp_path}", "model.backbone=artifact"]
    argv += [f"model.artifact={tmp_path / 'small'}"]
    schema, where = train_regression.TrainRegressionConfig, train_regression.CONFIGS_DIR
    assert run_job(train_regression.main, schema, argv, where) == 0
    assert run_job(train_regression.main, schema, [*argv, *LONGER], where) == 0
    rows = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert [row["images_seen"] for row in rows if "loss" in row] == list(range(4, 65, 4))
    results = [json.loads((tmp_path / "r" / name).read_text()) for name in ("metrics_48.json", "metrics.json")]
    assert [found["last"]["images_seen"] for found in results] == [48, 64]
