"""The regression jobs on tiny images whose colour says what is expressed: splits, training, evaluation, comparison.

Not here: cross-validations (tests/ray_jobs/train/regression/test_regression_folds.py).
"""

import csv
import errno
import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pathray.config.load import load_config
from pathray.errors import UserError
from pathray.run.fence import hold
from pathray.run.stop import request_stop
from pathray.store import checkpoint
from pathray.store.storage import Storage
from ray_jobs import aggregate_results, evaluate_regression, make_splits, train_regression
from ray_jobs.regression import runs as regression_runs
from ray_jobs.shell.cli import run_job
from regression import artifact
from regression import plan as plan_module
from regression.config import CONFIGS_DIR
from regression.data import ImageReader
from regression.normalise import Normaliser
from regression.recipe import RegressionRecipe
from regression.reports.report import read_results
from tests.builders.expression import save_random_encoder, write_images
from tests.builders.runs.adios_job import train_job
from tests.builders.runs.ranks import run_ranks
from tests.builders.runs.run import metrics

KEYS = (
    "data.target_dim=3", "data.image_size=32", "data.threads=1", "data.ahead=1", "model.backbone=vit_tiny",
    "train.batch_size=4", "train.grad_accum_steps=1", "train.images=48", "train.lr=1e-3", "eval.every=16",
    "logging.mlflow=false", "logging.log_every=4",
    "scaling.accelerator=cpu", "scaling.cpus_per_worker=0.5",
)  # fmt: skip


def split(table: str, output: Path, *argv: str) -> int:
    words = [f"table={table}", f"output={output}", "target_dim=3", *argv]
    return run_job(make_splits.main, make_splits.MakeSplitsConfig, words, CONFIGS_DIR)


def train(output: Path, table: str, parts: Path, *argv: str) -> int:
    words = [*KEYS, f"data.table={table}", f"data.split={parts}", f"output={output}", *argv]
    return run_job(train_regression.main, train_regression.TrainRegressionConfig, words, CONFIGS_DIR)


def train_here(output: Path, table: str, parts: Path, *argv: str) -> int:
    """The same in this process, without the session's cluster if there is one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray_jobs.extract.actor_map.is_ray_running", lambda: False)
        return train(output, table, parts, *argv, "scaling.workers=0")


def runs(output: Path) -> list[Path]:
    return sorted(p for p in output.iterdir() if p.name not in ("plans", "features"))


def weights(run: Path) -> dict:
    tensors, meta = checkpoint.load(checkpoint.latest(str(run / "checkpoints"), "regression").path)
    return {"images": meta["images_seen"]} | {name: value.numpy().tobytes() for name, value in tensors.items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A table of 24 images of six groups, and its hold-out split."""
    folder = tmp_path_factory.mktemp("expression")
    table = write_images(folder)
    assert split(table, folder / "split.csv", "fractions=[0.5, 0.25, 0.25]") == 0
    return table, folder / "split.csv"


# --- nothing trains ---------------------------------------------------------------------------------------------------


def test_a_split_is_made_by_whole_groups_and_again_the_same(data, tmp_path):
    table, parts = data
    rows = list(csv.DictReader(parts.read_text().splitlines()[1:]))
    assert len(rows) == 24 and {row["split"] for row in rows} == {"train", "val", "test"}
    assert all(len({row["split"] for row in rows if row["group_id"] == group}) == 1 for group in {"p0", "p1", "p5"})
    assert split(table, tmp_path / "again.csv", "fractions=[0.5, 0.25, 0.25]") == 0
    assert (tmp_path / "again.csv").read_bytes() == parts.read_bytes()


def test_every_group_is_left_out_once(data, tmp_path):
    assert split(data[0], tmp_path / "folds", "kind=leave_one_group_out") == 0
    folds = sorted((tmp_path / "folds").iterdir())
    held = [
        {r["group_id"] for r in csv.DictReader(p.read_text().splitlines()[1:]) if r["split"] == "test"} for p in folds
    ]
    assert len(folds) == 6 and sorted(group for groups in held for group in groups) == [f"p{i}" for i in range(6)]


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (("kind=random",), "kind"),
        (("fractions=[0.5, 0.5]",), "fractions"),
        (("fractions=[0.9, 0.2, 0.1]",), "fractions"),
        (("kind=group_kfold", "k=9"), "9 folds of 6 groups"),
        (("target_dim=50",), "50"),
    ],
)
def test_a_split_that_cannot_be_made_is_refused_and_nothing_written(data, tmp_path, capsys, argv, word):
    assert split(data[0], tmp_path / "split.csv", *argv) == 2
    assert word in capsys.readouterr().err and not (tmp_path / "split.csv").exists()


def test_a_training_that_lacks_its_inputs_is_refused_before_ray_starts(data, tmp_path, capsys):
    table, parts = data
    other = tmp_path / "other.csv"
    other.write_text(parts.read_text().replace(",val", ",test", 1))
    for given, word in (((str(tmp_path / "no.csv"), parts), "no.csv"), ((table, other), "more than one split")):
        assert train(tmp_path / "out", *given) == 2
        assert word in capsys.readouterr().err
    assert train(tmp_path / "out", table, parts, "model.backbone=artifact") == 2
    assert "model.artifact" in capsys.readouterr().err


def with_val_rows(data, folder: Path, count: int) -> tuple[str, Path]:
    """The table and split without the other rows that validate."""
    table, parts = Path(data[0]), data[1]
    val = [line.split(",")[0] for line in parts.read_text().splitlines() if line.endswith(",val")][count:]
    left = [line for line in table.read_text().splitlines() if line.split(",")[0] not in val]
    split_left = [line for line in parts.read_text().splitlines()[1:] if line.split(",")[0] not in val]
    fewer = table.with_name(f"val{count}.csv")
    fewer.write_text("\n".join(left) + "\n")
    (folder / "fewer_split.csv").write_text("\n".join(split_left) + "\n")
    return str(fewer), folder / "fewer_split.csv"


@pytest.mark.parametrize("count", [0, 1])
def test_early_stopping_without_validation_is_refused_with_the_reason(data, tmp_path, capsys, caplog, count):
    caplog.set_level("INFO")
    table, parts = with_val_rows(data, tmp_path, count)
    for more in ((), ("--dry-run",)):
        assert train(tmp_path / "out", table, parts, "eval.patience=1", *more) == 2
        said = capsys.readouterr().err
        assert f"1, with {count} val rows in {parts}" in said and "eval.patience=null" in said
    assert train(tmp_path / "out", table, parts, "--dry-run") == 0
    told = [r for r in caplog.records if "nothing validates" in r.getMessage()]
    assert [r.levelname for r in told] == [("INFO", "WARNING")[count]] and str(parts) in told[0].getMessage()


def test_two_rows_that_validate_are_enough_for_early_stopping(data, tmp_path):
    assert train(tmp_path / "out", *with_val_rows(data, tmp_path, 2), "eval.patience=1", "--dry-run") == 0


def test_more_passes_than_were_asked_for_are_told_before_the_training(data, tmp_path, caplog):
    words = ("train.images=null", "train.epochs=5", "train.grad_accum_steps=16")
    train_regression.prepare_run(config_of(data, tmp_path, *words))
    assert "5.33 passes" not in caplog.text, "64 images for 60 are nearly five passes"
    train_regression.prepare_run(config_of(data, tmp_path, *words, "train.epochs=1"))
    assert "5.33 passes over the 12 training units instead of 1: a step uses 64" in caplog.text
    assert "train.global_batch" in caplog.text


def test_a_training_on_mps_is_refused_with_what_to_take_instead(data, tmp_path, capsys):
    assert train(tmp_path / "out", *data, "scaling.accelerator=mps") == 2
    said = capsys.readouterr().err
    assert all(word in said for word in ("MPS cannot train data-parallel", "scaling.accelerator", "'mps'", "cuda"))


def test_a_sound_config_is_said_to_be_sound_without_training(data, tmp_path, caplog):
    caplog.set_level("INFO")
    assert train(tmp_path / "out", *data, "--dry-run") == 0
    assert "12 training rows" in caplog.text and not (tmp_path / "out").exists()


def test_runs_on_the_same_rows_share_a_plan_and_another_split_has_its_own(data, tmp_path):
    table, parts = data
    (tmp_path / "other.csv").write_text("")
    assert split(table, tmp_path / "other.csv", "fractions=[0.5, 0.25, 0.25]", "seed=7") == 0
    plans = tmp_path / "plans"
    for _ in range(2):
        train_regression.plan_of(config_of(data, tmp_path))
    (one,) = plans.iterdir()
    written = {path: path.stat().st_mtime_ns for path in one.iterdir()}
    train_regression.plan_of(config_of((table, tmp_path / "other.csv"), tmp_path))
    assert len(list(plans.iterdir())) == 2
    assert {path: path.stat().st_mtime_ns for path in one.iterdir()} == written
    rows = [f"{line},{i},{i}" for i, line in enumerate(Path(table).read_text().splitlines())]
    placed = Path(table).with_name("placed.csv")
    placed.write_text("\n".join(rows).replace(",0,0", ",x,y", 1) + "\n")
    train_regression.plan_of(config_of((placed, parts), tmp_path))
    assert len(list(plans.iterdir())) == 3, "a table that says where its images lie has a plan that knows it"
    (one / "units.arrow").write_bytes(b"cut short")
    assert train_regression.plan_of(config_of(data, tmp_path)).rows == 12, "a damaged plan is made again"


def config_of(data, output: Path, *argv: str):
    words = [*KEYS, f"data.table={data[0]}", f"data.split={data[1]}", f"output={output}", *argv]
    loaded = load_config(train_regression.TrainRegressionConfig, words, configs_dir=CONFIGS_DIR)
    return train_regression.make_paths_absolute(loaded.config)


def begun(data, output: Path, *argv: str) -> train_regression.Run:
    """The run of a config, as if it had been interrupted after its first step."""
    config = config_of(data, output, *argv)
    run = train_regression.run_of(config, train_regression.plan_of(config))
    meta = {"images_seen": 4, "identity": run.identity}
    checkpoint.save(f"{run.folder}/checkpoints", "regression-latest", {"w": torch.zeros(1)}, meta)
    return run


def test_an_unfinished_run_is_gone_on_with_and_that_of_another_config_stands_in_nobodys_way(data, tmp_path):
    run = begun(data, tmp_path, "train.grad_accum_steps=2")
    more = config_of(data, tmp_path, "train.grad_accum_steps=2", "scaling.workers=2")
    assert train_regression.run_of(more, run.plan).folder == run.folder
    three = ("train.grad_accum_steps=2", "scaling.workers=3")
    with pytest.raises(UserError, match="must divide"):  # 8 images of the run: it is not begun anew
        train_regression.run_of(config_of(data, tmp_path, *three), run.plan)
    other = train_regression.run_of(config_of(data, tmp_path, *three, "train.lr=0.5"), run.plan)
    assert other.newest is None and other.folder != run.folder and other.config.train.global_batch == 24


def test_a_plan_that_another_run_publishes_at_the_same_moment_is_taken_as_it_is(data, tmp_path, monkeypatch):
    config, published = config_of(data, tmp_path), []

    class Late(plan_module.PlanWriter):
        def close(self) -> str:
            """Looks whether the folder is there; then the other comes."""
            own = super().close()
            if not published:
                published.append(own)
                raise OSError(errno.ENOTEMPTY, "Directory not empty", str(self.path))
            return own

    monkeypatch.setattr(plan_module, "PlanWriter", Late)
    assert train_regression.plan_of(config).hash == published[0]
    monkeypatch.setattr(Late, "close", lambda self: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        train_regression.plan_of(config_of(data, tmp_path / "other"))


def test_runs_that_begin_within_a_second_have_folders_of_their_own(data, tmp_path, monkeypatch):
    """The name says neither the loss nor the weight decay."""
    now = time.localtime(1e9)
    still = SimpleNamespace(
        time=lambda: 1e9, localtime=time.localtime, strftime=lambda form, at=now: time.strftime(form, at)
    )
    monkeypatch.setattr(regression_runs, "time", still)
    first = begun(data, tmp_path)
    assert begun(data, tmp_path, "loss.kind=huber").folder != first.folder
    assert len(runs(tmp_path)) == 2


def test_a_model_is_evaluated_on_another_cohort_of_which_nothing_trains_and_never_into_a_run(data, tmp_path, capsys):
    config, rows = config_of(data, tmp_path), Path(data[0]).read_text().splitlines()[1:]
    recipe = RegressionRecipe(config, Normaliser.none(("y0", "y1", "y2")))
    model, run = tmp_path / "run" / "encoder", tmp_path / "run"
    artifact.save(str(model), recipe.net, recipe.preprocessing, recipe.normaliser, {})
    (run / "metrics.json").write_text(json.dumps({"run_name": "run", "end": "budget", "best": {}}))
    (run / "config_resolved.yaml").touch()
    lines = [",".join([*row.split(",")[:2], "test"]) for row in rows]
    (tmp_path / "cohort.csv").write_text("\n".join(["path,group_id,split", *lines]) + "\n")
    words = [f"model={model}", f"table={data[0]}", f"split={tmp_path}/cohort.csv", "accelerator=cpu"]
    schema = evaluate_regression.EvaluateRegressionConfig
    assert run_job(evaluate_regression.main, schema, [*words, f"output={run}"], CONFIGS_DIR) == 2
    assert "contains a training run" in capsys.readouterr().err
    assert run_job(evaluate_regression.main, schema, [*words, f"output={run}/cohort"], CONFIGS_DIR) == 0
    for description in ("{", "[]", "{}", '{"schema_version": 1}', '{"schema_version": 1, "sha256": 1}'):
        shutil.copytree(model, tmp_path / "damaged", dirs_exist_ok=True)
        (tmp_path / "damaged" / "regression.json").write_text(description)
        words[0] = f"model={tmp_path}/damaged"
        assert run_job(evaluate_regression.main, schema, [*words, f"output={tmp_path}/o"], CONFIGS_DIR) == 2
        err = capsys.readouterr().err
        assert "damaged regression's description" in err or "weights were altered" in err
    found = json.loads((run / "cohort" / "metrics.json").read_text())
    assert (found["part"], found["groups"]) == ("test", 6) and -1 <= found["spearman"] <= 1
    assert [row["run_name"] for row in read_results(Storage.of(tmp_path))] == ["run"]


def test_a_file_in_place_of_a_model_is_named(data, tmp_path, capsys):
    (tmp_path / "model").write_text("none")
    words = [f"model={tmp_path}/model", f"table={data[0]}", "split=none.csv", f"output={tmp_path}/out"]
    schema = evaluate_regression.EvaluateRegressionConfig
    assert run_job(evaluate_regression.main, schema, words, CONFIGS_DIR) == 2
    assert f"no regression here (file: {tmp_path}/model" in capsys.readouterr().err


def test_a_folder_without_finished_runs_is_named(tmp_path, capsys):
    assert run_job(aggregate_results.main, aggregate_results.AggregateConfig, [f"runs={tmp_path}"], CONFIGS_DIR) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_a_probe_that_is_no_encoder_is_refused_before_the_training_and_not_after_it(data, tmp_path, capsys):
    probe = f"eval.probes.other={tmp_path / 'none'}"
    assert train(tmp_path / "out", *data, probe, "--dry-run") == 2
    assert str(tmp_path / "none") in capsys.readouterr().err
    save_random_encoder(tmp_path / "none")
    train_regression.check_probes(config_of(data, tmp_path, probe))


def test_the_title_of_a_probe_cannot_be_that_of_a_baseline(data, tmp_path, capsys):
    assert train(tmp_path / "out", *data, f"eval.probes.colour={tmp_path}") == 2
    assert "eval.probes" in capsys.readouterr().err


# --- trained in this process ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The run that was trained undisturbed: the folder of all runs, and its own."""
    output = tmp_path_factory.mktemp("regression") / "out"
    assert train_here(output, *data) == 0
    (run,) = runs(output)
    return output, run


def test_a_run_leaves_its_model_its_metrics_and_every_prediction_once(trained, data):
    output, run = trained
    assert run.name.startswith("vit_tiny__bs4x1x1__lr0.001__seed42__")
    found = json.loads((run / "metrics.json").read_text())
    assert found["run_name"] == run.name and found["best_primary"] == found["best"]["spearman"]
    assert artifact.load(str(run / "encoder")).normaliser.genes == ("y0", "y1", "y2")
    import pyarrow.parquet as pq

    rows = {row["path"]: row["split"] for row in csv.DictReader(data[1].read_text().splitlines()[1:])}
    found_rows = pq.read_table(run / "predictions.parquet").to_pylist()
    for part in ("val", "test"):
        names = [row["path"] for row in found_rows if row["part"] == part]
        assert sorted(names) == sorted(name for name, own in rows.items() if own == part)
    genes = list(csv.DictReader((run / "per_gene.csv").read_text().splitlines()))
    expected = [(part, gene) for part in ("val", "test") for gene in ("y0", "y1", "y2")]
    assert [(row["part"], row["gene"]) for row in genes] == expected
    kinds = [f"{kind}_{part}.png" for kind in ("genes", "per_gene") for part in ("test", "val")]
    assert sorted(path.name for path in (run / "figures").iterdir()) == kinds
    assert found["last"]["images_seen"] == 48 and {"spearman", "pearson"} <= set(found["last"])
    assert "48 images, step 12: " in (run / "log.txt").read_text()


def test_a_finished_run_is_left_as_it_is_named_again_or_not(trained, data):
    output, run = trained
    before = (run / "metrics.json").stat().st_mtime_ns
    for words in ((f"logging.run_name={run.name}",), ()):
        assert train_here(output, *data, *words) == 0
    assert runs(output) == [run] and (run / "metrics.json").stat().st_mtime_ns == before


def test_an_interrupted_run_is_gone_on_with_by_the_same_command_to_the_same_bits(trained, data, tmp_path, monkeypatch):
    output, read = tmp_path / "out", ImageReader.read
    monkeypatch.setattr("regression.reports.report.figures", lambda *args: ())

    def read_and_stop(reader, unit, position, attempt):
        if position == 20:
            request_stop(str(runs(output)[0]))
        return read(reader, unit, position, attempt)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageReader, "read", read_and_stop)
        assert train_here(output, *data) == 0
    (run,) = runs(output)
    assert 0 < weights(run)["images"] <= 24 and not (run / "metrics.json").exists()
    assert train_here(output, *data) == 0
    assert runs(output) == [run] and weights(run) == weights(trained[1])
    known, found = (json.loads((r / "metrics.json").read_text()) for r in (trained[1], run))
    assert known["test"] == found["test"] and known["best"] == found["best"]


def test_evaluating_the_exported_model_gives_the_runs_own_figures(trained, data, tmp_path, capsys):
    words = [f"model={trained[1] / 'encoder'}", f"table={data[0]}", f"split={data[1]}", f"output={tmp_path}"]
    job = evaluate_regression
    assert run_job(job.main, job.EvaluateRegressionConfig, [*words, "accelerator=cpu"], CONFIGS_DIR) == 0
    found, known = (json.loads((p / "metrics.json").read_text()) for p in (tmp_path, trained[1]))
    assert {key: found[key] for key in known["test"]} == pytest.approx(known["test"])


def test_runs_are_compared_in_one_table_that_is_printed_too(trained, capsys):
    assert run_job(aggregate_results.main, aggregate_results.AggregateConfig, [f"runs={trained[0]}"], CONFIGS_DIR) == 0
    assert f"| {trained[1].name} |" in capsys.readouterr().out
    assert f"| {trained[1].name} |" in (trained[0] / "results.md").read_text()


# --- trained in two processes -----------------------------------------------------------------------------------------
# Through Ray in test_regression_folds.py.


def fit_in_two_processes(job):
    """In place of the training in this process: how the job ended."""
    with hold(job.run_dir) as fence:
        job.owner = fence.token
        return run_ranks(2, train_job, Path(job.run_dir).parent / "ranks", job)[0]


@pytest.mark.heavy
def test_two_workers_see_the_same_units_at_every_step_and_end_in_the_same_results(trained, data, tmp_path, monkeypatch):
    monkeypatch.setattr(train_regression, "fit", fit_in_two_processes)
    halves = ("train.batch_size=2", "train.grad_accum_steps=2")  # for one worker; of two, each takes one of them
    assert train_here(tmp_path, *data, *halves, "logging.run_name=two") == 0
    here, in_two = trained[1], tmp_path / "two"
    known, found = ([row["loss"] for row in metrics(run) if "loss" in row] for run in (here, in_two))
    assert len(known) == 12 and found == pytest.approx(known, rel=1e-3)
    known, found = (json.loads((run / "metrics.json").read_text()) for run in (here, in_two))
    assert found["baselines"] == known["baselines"] and found["test"] == pytest.approx(known["test"], abs=0.05)
    assert weights(in_two)["images"] == 48
