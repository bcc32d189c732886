"""The whole pretraining job with its run folder in an object store: killed with its Ray, and resumed without one."""

import subprocess

import fsspec
import pytest

from ijepath.indexing.catalog import Catalog
from ijepath.indexing.index import read_index
from pathray.data.plan import Plan
from pathray.store import checkpoint
from pathray.store.artifact import EncoderArtifact
from pathray.store.committed import list_committed
from tests.builders.bucket import BucketFileSystem, make_known
from tests.builders.jobs import job_command, job_environment, kill_job, wait_for
from tests.builders.runs.run import (
    BUDGET,
    GLOBAL_BATCH,
    TAG,
    WITHOUT_RAY,
    command,
    metrics,
    pretrain,
    undisturbed,
    weights,
)

pytestmark = [pytest.mark.ray, pytest.mark.integration, pytest.mark.heavy]
URL = "bucket://store/run"


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The folder behind the bucket, known to this process and to those that it starts."""
    monkeypatch.setenv("BUCKET_ROOT", str(tmp_path / "bucket"))
    monkeypatch.setenv("PATHRAY_CACHE_DIR", str(tmp_path / "cache"))
    fsspec.register_implementation("bucket", BucketFileSystem, clobber=True)
    return tmp_path / "bucket"


def kill_at_its_second_checkpoint(words, folder, bucket, paths):
    """Runs the job until the commit of its second checkpoint hangs, and kills all its processes."""
    environment = {**job_environment(*paths), "BUCKET_HANGS": "*/checkpoints/*/COMMITTED.json"}
    with (folder / "said").open("w") as said:
        line = job_command("ray_jobs.pretrain_ijepath", *words)
        job = subprocess.Popen(line, cwd=folder, env=environment, stdout=said, stderr=said)
        try:
            wait_for(lambda: (bucket / "hangs").exists() or job.poll() is not None, seconds=240)
            assert job.poll() is None, (folder / "said").read_text()
        finally:
            kill_job(job)


def test_a_killed_job_goes_on_from_a_bucket_to_the_same_bits(bucket, tmp_path, tmp_path_factory, monkeypatch, capsys):
    whole = undisturbed(tmp_path_factory.getbasetemp())
    known, folder = make_known(tmp_path / "site"), tmp_path / "here"
    folder.mkdir()
    words = command(URL, whole.manifest)
    kill_at_its_second_checkpoint(words, tmp_path, bucket, (known,))
    (before,) = list_committed(f"{URL}/checkpoints")
    assert before.meta["images_seen"] == 2 * GLOBAL_BATCH

    monkeypatch.chdir(folder)
    capsys.readouterr()
    assert pretrain(URL, whole.manifest, WITHOUT_RAY) == 0
    assert weights(URL) == weights(whole.folder) and weights(URL)[0] == BUDGET
    assert [row["images_seen"] for row in metrics(URL)] == list(range(GLOBAL_BATCH, BUDGET + 1, GLOBAL_BATCH))
    assert [row["loss"] for row in metrics(URL)] == [row["loss"] for row in metrics(whole.folder)]
    newest = checkpoint.latest(f"{URL}/checkpoints", TAG)
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == f"outputs: run={URL} checkpoint={newest.path} encoder={URL}/encoder"
    assert [row["status"] for row in read_index(f"{URL}/indexes/slide_metadata.parquet").rows] == ["ok"] * 3
    catalog = Catalog.open(f"{URL}/indexes/anchor_catalog_manifest.json", verify=True)
    assert Plan.open(f"{URL}/plan", verify=True).rows == catalog.total_anchors
    EncoderArtifact.load(f"{URL}/encoder")
    assert list(folder.iterdir()) == [], "nothing of the run is left where the command was given"
