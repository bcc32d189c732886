"""What ADIOS trains, in the hands of the others: evaluators beside the training, extraction, regression. One training.

Not here: the training itself (test_pretrain_adios), and what those jobs do with any encoder (their own tests).
"""

import contextlib
import csv
import io
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pathray.config.load import load_config
from pathray.evaluation.results import ROWS, read_decision
from pathray.features.tables import read_table
from pathray.store import checkpoint
from pathray.store.artifact import EncoderArtifact
from pathray.store.metrics_log import rows_of
from tests.builders.expression import write_images
from tests.builders.patches import CENTERS, write_patches, write_tuning
from tests.builders.runs.adios_job import WITHOUT_RAY, checkpoints, command, pretrain, train_rank
from tests.builders.runs.ranks import run_ranks
from tests.builders.zips import write_folder
from tests.ray_jobs.extract.test_extract_features import extract
from tests.ray_jobs.train.regression.test_regression_jobs import KEYS, runs, split, train

MEAN, STD = (0.7, 0.55, 0.65), (0.2, 0.25, 0.15)  # of the run, and no defaults
INPUTS = (f"data.mean={list(MEAN)}", f"data.std={list(STD)}", "data.mpp=0.5")
DIM, BUDGET, K = 32, 16, 3
RI = ("ri", "ri_k", "acc_knn")
CLUSTERING = ("clustering_score", "ari_class", "ari_center")
BESIDE = {"tune/tune_index", "tune/tune_images_seen", "tune/queue_depth", "tune/dropped", "tune/lag_images"}


class Trained(NamedTuple):
    run: Path
    encoder: str
    manifest: Path  # of the labelled patches
    outcome: object
    printed: str
    words: tuple[str, ...]  # on top of the tiny run's


@pytest.fixture(scope="module")
def trained(ray_cluster, tmp_path_factory):
    """The tiny run of two workers with evaluations every 8 of its 16 images, on labelled patches of two centres."""
    from ray_jobs.train import pretraining

    base, outcomes, printed = tmp_path_factory.mktemp("adios_with_others"), [], io.StringIO()
    write_folder(base / "zips", archives=2, patches=6)
    manifest = over_tints(Path(write_patches(base / "patches", px=32)))
    tuning = write_tuning(
        base / "tuning.yaml", str(manifest), execution="max_pending_jobs: 9, keep_last_n_snapshots: 9"
    )
    fit = pretraining.fit
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(pretraining, "fit", lambda job: outcomes.append(fit(job)) or outcomes[-1])
        assert pretrain(base / "run", base / "zips", *(words := words_of(tuning))) == 0
    (outcome,) = outcomes
    return Trained(base / "run", str(base / "run" / "encoder"), manifest, outcome, printed.getvalue(), words)


def words_of(tuning: str) -> tuple[str, ...]:
    return ("--config", tuning, *INPUTS, "save_freq=3", "viz_freq=0", "scaling.workers=2")


def over_tints(manifest: Path) -> Path:
    """The manifest with every other slide in either centre: a centre that is a tint has its own for neighbours, and an
    index of 0 whatever the encoder."""
    header, *lines = manifest.read_text().splitlines()
    rows = [line.split(",") for line in lines]
    moved = [f"{file},{kind},{CENTERS[int(slide[-1]) % 2]},{slide}" for file, kind, _, slide in rows]
    manifest.write_text("\n".join([header, *moved]) + "\n")
    return manifest


def by_hand(encoder: str, files: list[Path]) -> np.ndarray:
    """Mean patch tokens `[N, D]`: the artifact's ViT on one image at a time, the run's preprocessing in float64."""
    vit, _ = EncoderArtifact.load(encoder)
    out = []
    for file in files:
        x = ((np.asarray(Image.open(file), np.float64) / 255 - MEAN) / STD).transpose(2, 0, 1)
        tokens = vit(torch.from_numpy(x[None]).float())[0]
        out.append(tokens[1 + vit.config.registers :].mean(dim=0).numpy())  # after class token and registers
    return np.array(out, np.float64)


def index_by_hand(x: np.ndarray, labels, centers, slides, k: int) -> float:
    """SO / (SO + OS) over the k nearest of other slides: same class of another centre, other class of the same."""
    x, so, os = x / np.linalg.norm(x, axis=1, keepdims=True), 0, 0
    for i in range(len(x)):
        others = [j for j in range(len(x)) if slides[j] != slides[i]]
        for j in sorted(others, key=lambda j: np.linalg.norm(x[i] - x[j]))[:k]:
            so += labels[j] == labels[i] and centers[j] != centers[i]
            os += labels[j] != labels[i] and centers[j] == centers[i]
    return so / (so + os)


def labelled(manifest: Path) -> tuple[list[Path], list[str], list[str], list[str]]:
    """Files, classes, centres and slides of a manifest."""
    rows = list(csv.DictReader(manifest.read_text().splitlines()))
    files = [manifest.parent / row["image_path"] for row in rows]
    return files, *([row[key] for row in rows] for key in ("label", "medical_center", "slide_id"))


def judged(run: Path) -> list[dict]:
    return sorted(rows_of((run / ROWS).read_bytes()), key=lambda row: row["images_seen"])


@pytest.mark.ray
@pytest.mark.heavy
def test_two_workers_of_ray_end_with_the_bits_of_two_processes_without_it(trained, tmp_path):
    shutil.copytree(trained.run / "plan", tmp_path / "run" / "plan")
    words = command(tmp_path / "run", trained.run.parent / "zips", *trained.words)
    assert run_ranks(2, train_rank, tmp_path / "ranks", words) == ["budget", "budget"]
    (expected, meta), (found, own) = (
        checkpoint.load(checkpoints(run)[BUDGET]) for run in (trained.run, tmp_path / "run")
    )
    assert own["ran_on"]["world_size"] == meta["ran_on"]["world_size"] == 2 and set(found) == set(expected)
    assert all(np.array_equal(found[name].numpy(), tensor.numpy()) for name, tensor in expected.items())


# --- evaluators -------------------------------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.heavy
def test_every_snapshot_is_judged_under_the_names_that_other_encoders_are_judged_under(trained):
    found = judged(trained.run)
    assert [(row["images_seen"], row["tune/tune_index"], row["status"]) for row in found] == [
        (0, 0, "ok"), (8, 1, "ok"), (16, 2, "ok"),
    ]  # fmt: skip
    for row, due in zip(found, (RI + CLUSTERING, RI, RI + CLUSTERING), strict=True):
        names = {key.removeprefix("pathorob/hospitals/") for key in row if key.startswith("pathorob/")}
        assert names - {"clustering_score_low", "clustering_score_high"} == set(due)
        assert row.keys() >= BESIDE and row["tune/tune_images_seen"] == row["images_seen"]
        assert row["pathorob/hospitals/ri_k"] == K and row["tune/dropped"] == 0


@pytest.mark.ray
@pytest.mark.heavy
def test_the_index_of_a_snapshot_is_that_of_the_student_of_its_own_step(trained):
    files, *of = labelled(trained.manifest)
    found = {row["images_seen"]: row["pathorob/hospitals/ri"] for row in judged(trained.run)}
    students = {images: by_hand(f"{path}/encoder", files) for images, path in checkpoints(trained.run).items()}
    assert {*found} == {0, 8, 16} <= {*students}
    expected = {images: index_by_hand(students[images], *of, K) for images in found}
    assert found == pytest.approx(expected, abs=1e-9)
    assert len(set(expected.values())) > 1 and all(0 < value < 1 for value in expected.values())
    assert not np.allclose(students[0], students[16], atol=1e-4), "it learns"


@pytest.mark.ray
@pytest.mark.heavy
def test_evaluations_do_not_end_the_training_before_its_budget(trained):
    assert (trained.outcome.end, trained.outcome.images_seen) == ("budget", BUDGET)
    assert read_decision(str(trained.run)) is None and not (trained.run / "STOP").exists()
    rows = [json.loads(line) for line in (trained.run / "metrics.jsonl").read_text().splitlines()]
    assert [row["images_seen"] for row in rows if "loss/student" in row] == [4, 8, 12, 16]
    assert EncoderArtifact.load(trained.encoder)[1]["provenance"]["images_seen"] == BUDGET
    assert f"robustness={trained.run / ROWS}" in trained.printed and f"encoder={trained.encoder}" in trained.printed


def test_the_tuning_section_of_a_run_is_that_of_an_ijepath_run(tmp_path):
    from adios import config as adios
    from ijepath import config as ijepath
    from ray_jobs.pretrain_adios import PretrainAdiosConfig
    from ray_jobs.pretrain_ijepath import PretrainConfig

    argv = ["--config", write_tuning(tmp_path / "tuning.yaml", "patches.csv", every=12, execution="mode: sync")]
    ours = load_config(PretrainAdiosConfig, argv, configs_dir=adios.CONFIGS_DIR).config.tuning
    argv = [*argv, "optimization.total_images_budget=16"]
    theirs = load_config(PretrainConfig, argv, configs_dir=ijepath.CONFIGS_DIR, groups=ijepath.GROUPS).config.tuning
    assert ours == theirs
    assert (ours.enable, ours.tune_every, ours.execution.mode, ours.plugins[0].name) == (True, 12, "sync", "pathorob")


# --- extraction -------------------------------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.heavy
def test_extracted_features_are_the_students_own(trained, tmp_path):
    folder = tmp_path / "few"
    folder.mkdir()
    files, *_ = labelled(trained.manifest)
    for file in files[::5]:
        (folder / file.name).symlink_to(file)
    assert extract(tmp_path, "actors=1", encoders=(f"student={trained.encoder}",), source="images=few") == 0
    table = read_table(str(tmp_path / "out" / "student" / "features.parquet"))
    names = sorted(file.name for file in files[::5])
    assert table.columns["path"] == names and table.features.shape == (len(names), DIM)
    assert np.isfinite(table.features).all() and table.features.std(axis=0).min() > 1e-4
    expected = by_hand(trained.encoder, [folder / name for name in names])
    np.testing.assert_allclose(table.features, expected, atol=1e-5, rtol=0)
    assert table.meta["provenance"]["encoder"]["science"] == "adios"


# --- regression -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def expression(tmp_path_factory):
    """A table of 24 images of six groups, and its hold-out split."""
    folder = tmp_path_factory.mktemp("expression")
    table = write_images(folder)
    assert split(table, folder / "split.csv", "fractions=[0.5, 0.25, 0.25]") == 0
    return table, folder / "split.csv"


def student_tensors(trained: Trained) -> dict[str, bytes]:
    vit, _ = EncoderArtifact.load(trained.encoder)
    return {name: tensor.numpy().tobytes() for name, tensor in vit.state_dict().items()}


@pytest.mark.ray
@pytest.mark.heavy
def test_a_regression_begins_with_the_students_weights_and_may_train_them(trained):
    from ray_jobs.train_regression import CONFIGS_DIR, TrainRegressionConfig
    from regression.model import build_net, preprocessing

    argv = [*KEYS, "data.table=a.csv", "data.split=b.csv", "model.backbone=artifact"]
    argv += [f"model.artifact={trained.encoder}"]
    config = load_config(TrainRegressionConfig, argv, configs_dir=CONFIGS_DIR).config
    net, given = build_net(config), preprocessing(config)
    own = {name: tensor.numpy().tobytes() for name, tensor in net.backbone.state_dict().items()}
    assert own == student_tensors(trained) and all(p.requires_grad for p in net.parameters())
    assert (given.mean, given.std, given.size, given.mpp) == (MEAN, STD, 32, 0.5)


@pytest.mark.ray
@pytest.mark.heavy
def test_a_regression_on_the_frozen_student_predicts_from_its_features(trained, expression, tmp_path):
    from regression import artifact

    table, parts = expression
    frozen = (WITHOUT_RAY, "model.backbone=artifact", f"model.artifact={trained.encoder}", "model.frozen=true")
    assert train(tmp_path / "out", table, parts, *frozen, "train.images=16", "eval.baselines=false") == 0
    (run,) = runs(tmp_path / "out")
    found = artifact.load(str(run / "encoder"))
    own = {name: tensor.numpy().tobytes() for name, tensor in found.net.backbone.state_dict().items()}
    assert own == student_tensors(trained)
    rows = pq.read_table(run / "predictions.parquet").to_pylist()
    files = [Path(table).parent / row["path"] for row in rows]
    weight, bias = (p.double().numpy() for p in (found.net.head.linear.weight, found.net.head.linear.bias))
    training = {row["path"] for row in csv.DictReader(parts.read_text().splitlines()[1:]) if row["split"] == "train"}
    known = [row for row in csv.DictReader(Path(table).read_text().splitlines()) if row["path"] in training]
    y = np.array([[float(row[f"y{k}"]) for k in range(3)] for row in known])
    expected = (by_hand(trained.encoder, files) @ weight.T + bias) * y.std(axis=0) + y.mean(axis=0)
    assert len(rows) == 12 and len(y) == 12 and np.abs(weight).max() > 0
    predicted = np.array([[row[f"predicted_y{k}"] for k in range(3)] for row in rows])
    np.testing.assert_allclose(predicted, expected, atol=1e-4, rtol=0)
