"""The ADIOS job: what it refuses before Ray is started; from a folder of zips to artifacts; on with other workers.

Two processes train once, and others from their checkpoint, all without Ray: through it in test_adios_with_others.py.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pathray.run.fence import hold
from pathray.store import checkpoint
from tests.builders.runs.adios_job import WITHOUT_RAY, checkpoints, command, pretrain, train_job, train_rank
from tests.builders.runs.ranks import run_ranks
from tests.builders.zips import write_archive, write_folder

REFUSED = [
    (["data_path=null"], "data_path", "FOLDER of zips"),
    (["data_path=nowhere/patches.parquet"], "nowhere/patches.parquet", "index"),
    (["data_path=nowhere/zips"], "nowhere/zips", ""),
    (["num_masks=1"], "num_masks", "2"),
    (["data.image_size=72"], "data.image_size", "multiple of 16"),
    (["scaling.workers=3"], "global_batch", "multiple of 3"),
    (["optimization.warmup_iterations=9"], "optimization.warmup_iterations", "4"),
    (["crops_per_mak=2"], "crops_per_mak", "crops_per_mask"),
]


@pytest.mark.parametrize(("argv", "key", "expected"), REFUSED, ids=[r[1] for r in REFUSED])
def test_what_cannot_be_trained_is_said_before_ray_starts(argv, key, expected, tmp_path, capsys, monkeypatch):
    from ray_jobs.train import pretraining

    monkeypatch.setattr(pretraining, "ray_session", lambda *args, **kwargs: pytest.fail("Ray was started"))
    write_folder(tmp_path / "zips")
    assert pretrain(tmp_path / "run", tmp_path / "zips", *argv) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert key in said and expected in said and not (tmp_path / "run").exists()


def test_a_sound_config_writes_nothing_in_a_dry_run(tmp_path):
    write_folder(tmp_path / "zips")
    assert pretrain(tmp_path / "run", tmp_path / "zips", "--dry-run") == 0
    assert not (tmp_path / "run").exists()


def fit_in_two_processes(job):
    """In place of Ray: how the job ended."""
    with hold(job.run_dir) as fence:
        job.owner = fence.token
        return run_ranks(2, train_job, Path(job.run_dir).parent / "ranks", job)[0]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run of two processes, to the end."""
    from ray_jobs.train import pretraining

    folder = tmp_path_factory.mktemp("adios")
    write_folder(folder / "zips", archives=2, patches=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "fit", fit_in_two_processes)
        assert pretrain(folder / "run", folder / "zips", WITHOUT_RAY) == 0
    return folder


@pytest.mark.heavy
def test_a_folder_of_zips_becomes_checkpoints_an_encoder_a_mask_model_and_pictures(two):
    from adios.artifact import load
    from pathray.store.artifact import EncoderArtifact

    run = two / "run"
    assert sorted(checkpoints(run)) == [8, 16] and (run / "indexes" / "patches.parquet").exists()
    vit, about = EncoderArtifact.load(str(run / "encoder"))
    assert vit.config.dim == 32 and about["provenance"]["images_seen"] == 16
    snapshot, _ = EncoderArtifact.load(f"{checkpoints(run)[8]}/encoder")
    assert snapshot.config == vit.config
    assert load(str(run / "mask_model")).config.kind == "adios"
    assert load(checkpoints(run)[8]).facts["step"] == 2
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["images_seen"]]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    assert all(np.isfinite([row["loss/student"], row["loss/mask"], row["mask_mean/2"]]).all() for row in steps)
    assert steps[-1]["temperature"] == pytest.approx(0.05)
    pictures = [p.name for p in (run / "visualizations" / "masks").iterdir()]
    assert {"iter_00000002.png", "iter_00000004.png", "masks.gif"} <= set(pictures)


@pytest.mark.heavy
def test_a_checkpoint_of_two_workers_goes_on_with_one_and_ends_alike_though_the_folder_has_grown(two, tmp_path):
    shutil.copytree(two / "run", tmp_path / "run")
    shutil.rmtree(checkpoints(tmp_path / "run")[16])
    write_archive(two / "zips" / "later.zip", 3)
    try:
        assert pretrain(tmp_path / "run", two / "zips", WITHOUT_RAY) == 0
    finally:
        (two / "zips" / "later.zip").unlink()
    (expected, meta), (found, own) = (checkpoint.load(checkpoints(run)[16]) for run in (two / "run", tmp_path / "run"))
    assert meta["ran_on"]["world_size"] == 2 and own["ran_on"]["world_size"] == 1
    assert meta["identity"] == own["identity"]
    for name, tensor in expected.items():  # AdamW turns rounding of a gradient near 0 into a step
        apart = np.abs(found[name].numpy().astype(np.float64) - tensor.numpy())
        assert apart.mean() < 1e-5 and apart.max() < 1e-4, name


@pytest.mark.heavy
def test_two_processes_that_go_on_from_a_checkpoint_of_two_workers_end_with_the_same_bits(two, tmp_path):
    shutil.copytree(two / "run", tmp_path / "run")
    shutil.rmtree(checkpoints(tmp_path / "run")[16])
    words = command(tmp_path / "run", two / "zips", "scaling.workers=2")
    assert run_ranks(2, train_rank, tmp_path / "ranks", words) == ["budget", "budget"]
    (expected, _), (found, own) = (checkpoint.load(checkpoints(run)[16]) for run in (two / "run", tmp_path / "run"))
    assert own["ran_on"]["world_size"] == 2 and set(found) == set(expected)
    assert {name.partition(".")[0] for name in found} >= {"model", "optimizer"}, "weights and both optimizers"
    for name, tensor in expected.items():
        assert np.array_equal(found[name].numpy(), tensor.numpy()), name


def test_a_damaged_archive_is_quarantined_and_the_run_goes_on(tmp_path):
    import pyarrow.parquet as pq

    write_folder(tmp_path / "zips")
    archive = tmp_path / "zips" / "s0.zip"
    data = bytearray(archive.read_bytes())
    start = data.index(b"\x89PNG") + 60  # in the first patch's pixels
    data[start : start + 8] = bytes(8)
    archive.write_bytes(data)
    lenient = ("data.max_corrupt_fraction=0.5", "total_iterations=9", "save_freq=0", "viz_freq=0")
    assert pretrain(tmp_path / "run", tmp_path / "zips", WITHOUT_RAY, *lenient) == 0
    rows = pq.read_table(tmp_path / "run" / "quarantine.parquet").to_pylist()
    assert rows and {row["reason"] for row in rows} == {"crc"} and all("s0.zip" in str(row) for row in rows)
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["images_seen"] == 36


@pytest.mark.heavy
def test_another_config_does_not_go_on_with_a_run(two, capsys):
    assert pretrain(two / "run", two / "zips", "final_temp=0.1") == 2
    assert "final_temp" in capsys.readouterr().err
