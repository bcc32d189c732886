"""The pretraining job as a whole, on tiny real-format slides: from a manifest to an encoder, and the same again."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ijepath.indexing.catalog import Catalog
from ijepath.indexing.index import read_index
from pathray.config.load import load_config
from pathray.data.plan import Plan
from pathray.store import checkpoint
from pathray.store.artifact import EncoderArtifact
from tests.builders.cohort import write_manifest
from tests.builders.runs.run import (
    BUDGET,
    GLOBAL_BATCH,
    STEPS,
    TAG,
    WITHOUT_RAY,
    checkpoints,
    discard,
    index_and_catalog,
    metrics,
    pretrain,
    quarantined,
    undisturbed,
    weights,
)  # fmt: skip

pytestmark = pytest.mark.integration
IMAGES = list(range(GLOBAL_BATCH, BUDGET + 1, GLOBAL_BATCH))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return undisturbed(tmp_path_factory.getbasetemp())


@pytest.fixture
def run(tmp_path):
    """A folder for one more run, whose checkpoints do not outlive the test."""
    yield tmp_path / "run"
    discard(tmp_path / "run")


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in metrics(folder)]


def test_a_manifest_and_an_output_folder_become_index_anchors_plan_and_checkpoints(whole):
    run = whole.folder
    assert whole.code == 0
    index = read_index(str(run / "indexes" / "slide_metadata.parquet"))
    assert [row["status"] for row in index.rows] == ["ok"] * 3
    catalog = Catalog.open(str(run / "indexes" / "anchor_catalog_manifest.json"), verify=True)
    assert Plan.open(run / "plan", verify=True).rows == catalog.total_anchors > BUDGET
    left = checkpoints(run)
    assert {name.rpartition("-")[0]: seen for name, seen in left.items()} == {
        f"{TAG}-img16": 16, f"{TAG}-latest": 24, f"{TAG}-img32": 32,
    }  # fmt: skip
    newest = checkpoint.latest(str(run / "checkpoints"), TAG)
    expected = f"outputs: run={run} checkpoint={newest.path} encoder={run / 'encoder'}"
    assert whole.printed.splitlines()[-1] == expected


def test_every_step_is_logged_with_finite_figures_and_the_loss_falls(whole):
    rows = metrics(whole.folder)
    assert [row["images_seen"] for row in rows] == IMAGES
    keys = ("loss", "grad_norm", "lr", "wd", "step_ms", "data_wait_ms", "images_per_s", "anchor_passes_seen",
            "context_keep_tokens", "target_predict_tokens", "target_feature_std", "target_rankme")  # fmt: skip
    assert all(math.isfinite(row[key]) for row in rows for key in keys)
    assert np.mean(losses(whole.folder)[-3:]) < 0.9 * np.mean(losses(whole.folder)[:3])
    assert rows[-1]["lr"] < rows[1]["lr"] and rows[-1]["wd"] > rows[0]["wd"]


def test_the_encoder_is_the_teacher_of_the_last_checkpoint_and_gives_finite_features(whole):
    vit, about = EncoderArtifact.load(str(whole.folder / "encoder"))
    tensors, meta = checkpoint.load(checkpoint.latest(str(whole.folder / "checkpoints"), TAG).path)
    teacher = {
        name.removeprefix("model.teacher."): t for name, t in tensors.items() if name.startswith("model.teacher.")
    }
    state = vit.state_dict()
    assert state.keys() == teacher.keys() and all(torch.equal(state[name], teacher[name]) for name in state)
    student = [name for name in teacher if not torch.equal(teacher[name], tensors[f"model.student.{name}"])]
    assert student, "the teacher lags behind the student"
    size = about["preprocessing"]["size"]
    features = vit(torch.rand(2, 3, size, size))
    assert size == 48 and features.shape == (2, 9, 192) and bool(torch.isfinite(features).all())
    assert float(features.std(dim=(0, 1)).mean()) > 0.01
    facts = about["provenance"]
    assert (about["mpp"], facts["images_seen"], facts["identity"]) == (0.5, BUDGET, meta["identity"]["hash"])


def test_the_resolved_config_is_saved_and_is_a_config(whole):
    from ijepath.config import CONFIGS_DIR, GROUPS
    from ray_jobs.pretrain_ijepath import PretrainConfig

    saved = str(whole.folder / "config_resolved.yaml")
    config = load_config(PretrainConfig, ["--config", saved], configs_dir=CONFIGS_DIR, groups=GROUPS).config
    assert (config.optimization.global_batch, config.optimization.total_images_budget) == (GLOBAL_BATCH, BUDGET)
    assert (config.output, config.data.slide_manifest_csv) == (str(whole.folder), whole.manifest)


def test_the_same_command_again_does_nothing_more(whole):
    def left() -> dict[str, tuple[int, bytes]]:
        files = [p for p in whole.folder.rglob("*") if p.is_file() and p.relative_to(whole.folder).parts[0] != "ray"]
        kept = [p for p in files if p.relative_to(whole.folder).parts[0] != "encoder"]
        return {str(p): (p.stat().st_mtime_ns, p.read_bytes() if p.suffix != ".safetensors" else b"") for p in kept}

    before, artifact = left(), (whole.folder / "encoder" / "artifact.json").read_bytes()
    assert pretrain(whole.folder, whole.manifest, WITHOUT_RAY) == 0
    after = left()
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed == set()
    assert (whole.folder / "encoder" / "artifact.json").read_bytes() == artifact


@pytest.mark.ray
def test_two_workers_that_decode_on_the_cluster_take_the_same_steps_up_to_rounding(ray_cluster, whole, run):
    words = ("scaling.workers=2", "optimization.micro_batch=1", "data.anchor_stream_batch_size=4")
    assert pretrain(run, whole.manifest, *words, "data.decode_on=cluster") == 0
    assert [row["images_seen"] for row in metrics(run)] == IMAGES
    np.testing.assert_allclose(losses(run), losses(whole.folder), rtol=2e-4)
    _, meta = checkpoint.load(checkpoint.latest(str(run / "checkpoints"), TAG).path)
    assert (meta["ran_on"]["world_size"], meta["ran_on"]["micro_batch"]) == (2, 1)


def test_a_run_goes_on_from_a_named_checkpoint_of_another_folder_to_the_same_weights(whole, run):
    (snapshot,) = (whole.folder / "checkpoints").glob(f"{TAG}-img{BUDGET // 2}-*")
    before = sorted(p.name for p in (whole.folder / "checkpoints").iterdir())
    assert pretrain(run, whole.manifest, WITHOUT_RAY, f"checkpoint.resume={snapshot}") == 0
    assert weights(run) == weights(whole.folder)
    assert [row["images_seen"] for row in metrics(run)] == [n for n in IMAGES if n > BUDGET // 2]
    assert losses(run) == losses(whole.folder)[STEPS // 2 :]
    assert sorted(p.name for p in (whole.folder / "checkpoints").iterdir()) == before


@pytest.mark.heavy
def test_the_real_slides_train_with_their_catalog_given(shared_data, run, tmp_path):
    wsi = shared_data / "wsi"
    slides = {"CMU-1-Small-Region.svs": "", "TCGA-CR-7395-01A-01-TS1.svs": 0.5, "derived/CMU1_pyramid_jp2k.svs": ""}
    rows = [
        {"slide_id": Path(name).stem, "wsi_path": wsi / name, "mpp": mpp, "organ": f"organ{i}"}
        for i, (name, mpp) in enumerate(slides.items())
    ]
    manifest = write_manifest(tmp_path / "slides.csv", rows)
    catalog = index_and_catalog(tmp_path, manifest)
    words = (WITHOUT_RAY, f"data.anchor_catalog_manifest={catalog}", "data.max_corrupt_fraction=0")
    assert pretrain(run, None, *words) == 0
    assert set(Catalog.open(catalog).manifest["stratum_counts"]) == {"organ0", "organ1", "organ2"}
    assert len(losses(run)) == STEPS and all(math.isfinite(x) for x in losses(run))
    assert all(row["benign"] for row in quarantined(run))
    EncoderArtifact.load(str(run / "encoder"))
