"""Extraction from OCT volumes as a user meets it: an index in, bags and a table out, again and again.

The jobs run one by one in this process, as those of slides do; one test runs the real pool.
"""

import contextlib
import csv
import os
from itertools import product

import numpy as np
import pytest
import torch

from oct.downstream.preprocess import Preprocessing, pool_tokens
from oct.encoding.encoder import load_encoder
from oct.encoding.extraction import read_tokens
from oct.indexing.index_file import make_index, read_index, write_index
from pathray.errors import UserError
from pathray.features.read_bags import read_bag
from pathray.features.tables import read_table
from pathray.store.artifact import EncoderArtifact
from pathray.wsi.backends.source import read_source
from ray_jobs import extract_features
from ray_jobs.extract import actors as extraction
from ray_jobs.shell.cli import run_job
from ray_jobs.shell.runtime import Session
from tests.builders.encoders import write_encoder
from tests.builders.oct.labelled import SIZE, SPACING_MM, write_labelled, write_oct_encoder
from tests.ray_jobs.extract.test_extract_features import OneByOne

PERSONS = 2


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(extraction, "ActorMap", OneByOne)
    monkeypatch.setattr(extraction, "ray_session", lambda *a, **k: contextlib.nullcontext(Session(True, {"CPU": 2.0})))


@pytest.fixture
def cohort(tmp_path):
    """Both eyes of two persons, and two encoders of other grids."""
    write_labelled(tmp_path, PERSONS)
    write_oct_encoder(tmp_path / "a")
    write_oct_encoder(tmp_path / "b", seed=7, size=[4, 16, 48], spacing_mm=[0.4, 0.04, 0.03])
    return tmp_path


def extract(folder, *words, encoders=("a",)):
    listed = ",".join(f"{folder}/{e}" for e in encoders)
    argv = [f"encoders=[{listed}]", f"volumes={folder}/volumes.parquet", f"output={folder}/out", "actors=1", *words]
    return run_job(extract_features.main, extract_features.ExtractConfig, argv, extract_features.CONFIGS_DIR)


def report(folder) -> list[dict[str, str]]:
    with open(folder / "out/report.csv", newline="") as file:
        return list(csv.DictReader(file))


def files(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder / "out")): p.read_bytes() for p in sorted((folder / "out").rglob("*.*5"))}


def tokens_of(folder, encoder, path) -> torch.Tensor:
    """`[1, N, D]` of a volume, of the artifact and its preprocessing alone."""
    vit, description = EncoderArtifact.load(f"{folder}/{encoder}")
    given = Preprocessing.of(description, encoder)
    sampled = given.read(f"{folder}/{path}", (None, None, None), read_source)
    image, inside = torch.from_numpy(sampled.image)[None], torch.from_numpy(sampled.inside)[None]
    with torch.no_grad():
        return vit(given.inputs(image, inside))[:, vit.num_prefix :]


def test_volumes_become_a_table_and_bags_and_are_skipped_the_next_time(here, cohort, capsys, monkeypatch):
    assert extract(cohort, encoders=("a", "b")) == 0
    assert capsys.readouterr().out == f"outputs: features={cohort}/out report={cohort}/out/report.csv\n"
    rows = read_index(f"{cohort}/volumes.parquet").accepted.to_pylist()
    for name in "ab":
        table = read_table(f"{cohort}/out/{name}/features.parquet")
        expected = [tokens_of(cohort, name, row["path"])[0].mean(0).numpy() for row in rows]
        np.testing.assert_allclose(table.features, expected, atol=1e-5)
        assert table.columns["path"] == [row["path"] for row in rows]
        assert table.columns["person"] == ["00", "00", "01", "01"] and table.columns["eye"] == ["R", "L", "R", "L"]
        assert set(table.columns["device"]) == {"topcon_triton"}
        assert table.columns["spacing_y_mm"] == [SPACING_MM[1]] * 4 and set(table.columns["source_z"]) == {"positions"}
        description = EncoderArtifact.load(f"{cohort}/{name}")[1]
        for key in ("sha256", "preprocessing"):
            assert table.meta["provenance"]["encoder"][key] == description[key]
    assert [row["status"] for row in report(cohort)] == ["ok"] * 4
    before, table = files(cohort), (cohort / "out/a/features.parquet").stat()
    assert len(before) == 8
    monkeypatch.setattr(extraction, "ActorMap", None)  # nothing is left to do for it
    assert extract(cohort, encoders=("a", "b")) == 0
    assert files(cohort) == before and [row["status"] for row in report(cohort)] == ["skipped"] * 4
    assert report(cohort)[0]["source_y"] == "shared_measures", "the report keeps what an earlier start knew"
    assert (cohort / "out/a/features.parquet").stat().st_mtime_ns == table.st_mtime_ns


def test_a_key_keeps_the_grid_of_tokens_with_its_size_in_mm(here, cohort):
    assert extract(cohort, "tokens=true", "dtype=float16") == 0
    row = read_index(f"{cohort}/volumes.parquet").accepted.to_pylist()[0]
    path = f"{cohort}/out/a/{row['path'].removesuffix('.dcm').replace('/', '__')}.h5"
    found, expected = read_tokens(path), tokens_of(cohort, "a", row["path"])
    assert found.tokens.shape == (2, 4, 4, expected.shape[2]) and found.tokens.dtype == np.float16
    np.testing.assert_allclose(found.tokens.reshape(32, -1), expected[0].numpy(), atol=2e-3)
    assert found.token_mm == pytest.approx((0.8, 0.16, 0.48)), "patches of 4 × 8 × 8 voxels"
    np.testing.assert_allclose(found.pooled, expected[0].mean(0).numpy(), atol=1e-5)
    bag = read_bag(path)
    assert bag.coords is not None and bag.coords[[0, 1, 4, 16]].tolist() == [[0, 0, 0], [0, 0, 8], [0, 8, 0], [4, 0, 0]]
    assert bag.tile["voxels"].tolist() == SIZE and bag.tile["inside"].shape == (3, 2)
    facts = found.about["source"]["facts"]
    assert facts["person"] == "00" and facts["eye"] == "R" and facts["source_x"] == "shared_measures"
    assert found.about["encoder"]["sha256"] == EncoderArtifact.load(f"{cohort}/a")[1]["sha256"]


def test_tokens_can_be_averaged_before_they_are_kept(here, cohort):
    assert extract(cohort, "tokens=true", "token_pool=[1,2,4]") == 0
    row = read_index(f"{cohort}/volumes.parquet").accepted.to_pylist()[0]
    found = read_tokens(f"{cohort}/out/a/{row['path'].removesuffix('.dcm').replace('/', '__')}.h5")
    expected = pool_tokens(tokens_of(cohort, "a", row["path"]), (2, 4, 4), (1, 2, 4))
    np.testing.assert_allclose(found.tokens.reshape(4, -1), expected[0].numpy(), atol=1e-5)
    assert found.tokens.shape[:3] == (2, 2, 1) and found.token_mm == pytest.approx((0.8, 0.32, 1.92))


@pytest.mark.parametrize("pool", [(1, 3, 4), (2, 2, 1), (9, 1, 99)])
def test_blocks_of_tokens_are_means_within_the_grid_and_their_size_is_no_larger_than_it(here, cohort, pool):
    assert extract(cohort, "tokens=true", "token_pool=[{},{},{}]".format(*pool)) == 0
    row = read_index(f"{cohort}/volumes.parquet").accepted.to_pylist()[0]
    path = f"{cohort}/out/a/{row['path'].removesuffix('.dcm').replace('/', '__')}.h5"
    whole, grid = tokens_of(cohort, "a", row["path"])[0].numpy().reshape(2, 4, 4, -1), (2, 4, 4)
    starts = [range(0, n, p) for n, p in zip(grid, pool, strict=True)]
    expected = [
        whole[z : z + pool[0], y : y + pool[1], x : x + pool[2]].mean((0, 1, 2), np.float64)
        for z, y, x in product(*starts)
    ]
    found, bag = read_tokens(path), read_bag(path)
    assert found.tokens.shape[:3] == tuple(map(len, starts))
    np.testing.assert_allclose(found.tokens.reshape(len(expected), -1), expected, atol=1e-5)
    assert bag.coords is not None
    assert bag.coords.tolist() == [[4 * z, 8 * y, 8 * x] for z, y, x in product(*starts)], "patches of 4 × 8 × 8"
    held = [min(p, n) for p, n in zip(pool, grid, strict=True)]
    assert found.token_mm == pytest.approx((0.8 * held[0], 0.16 * held[1], 0.48 * held[2]))
    assert bag.tile["token_voxels"].tolist() == [4 * held[0], 8 * held[1], 8 * held[2]]


def test_a_bag_without_tokens_is_the_pooled_features_and_says_how_to_get_them(here, cohort):
    assert extract(cohort) == 0
    table = read_table(f"{cohort}/out/a/features.parquet")
    for row, volume in enumerate(table.columns["volume_id"]):
        bag = read_bag(f"{cohort}/out/a/{volume}.h5")
        np.testing.assert_array_equal(bag.features, table.features[[row]])
        assert bag.coords is not None and bag.coords.tolist() == [[0, 0, 0]]
    with pytest.raises(UserError, match=r"not the tokens of a volume.*tokens=true"):
        read_tokens(f"{cohort}/out/a/{volume}.h5")
    assert extract(cohort, "tokens=true") == 0
    assert [row["status"] for row in report(cohort)] == ["ok"] * 4, "the key changes what is kept"
    assert read_tokens(f"{cohort}/out/a/{volume}.h5").tokens.shape[:3] == (2, 4, 4)


def test_damaged_and_missing_volumes_are_counted_and_the_others_are_written(here, cohort, capsys):
    rows = read_index(f"{cohort}/volumes.parquet").accepted.to_pylist()
    broken, lost = (cohort / rows[i]["path"] for i in (1, 2))
    broken.write_bytes(broken.read_bytes()[:-4000])
    lost.unlink()
    assert extract(cohort) == 2
    said = capsys.readouterr().err
    assert "2 of 4 volumes failed" in said and "truncated" in said and "min_success_fraction" in said
    assert [row["status"] for row in report(cohort)] == ["ok", "failed", "failed", "ok"]
    assert len(read_table(f"{cohort}/out/a/features.parquet").features) == 2
    assert extract(cohort, "min_success_fraction=0.5") == 0, "what was done is kept"
    assert [row["status"] for row in report(cohort)] == ["skipped", "failed", "failed", "skipped"]
    meta = read_table(f"{cohort}/out/a/features.parquet").meta
    assert [path for path, _ in meta["failed"]] == [rows[1]["path"], rows[2]["path"]]
    summary = (cohort / "out/summary.md").read_text()
    assert "| failed | 2 |" in summary and "Features of volumes" in summary


def test_a_changed_volume_and_a_new_encoder_are_all_that_is_done_again(here, cohort):
    assert extract(cohort) == 0
    before = files(cohort)
    path = cohort / read_index(f"{cohort}/volumes.parquet").accepted.to_pylist()[0]["path"]
    data = bytearray(path.read_bytes())
    data[-2000:] = bytes(2000)
    path.write_bytes(data)
    os.utime(path, (1, 1))
    assert extract(cohort) == 0
    assert [row["status"] for row in report(cohort)] == ["ok", "skipped", "skipped", "skipped"]
    changed = [name for name, data in files(cohort).items() if before[name] != data]
    assert len(changed) == 1 and path.stem in changed[0]
    table = read_table(f"{cohort}/out/a/features.parquet")
    np.testing.assert_allclose(
        table.features[0], tokens_of(cohort, "a", path.relative_to(cohort))[0].mean(0), atol=1e-5
    )
    before = files(cohort)
    assert extract(cohort, encoders=("a", "b")) == 0
    assert [row["status"] for row in report(cohort)] == ["ok"] * 4
    assert len(read_table(f"{cohort}/out/b/features.parquet").features) == 4
    assert {name: data for name, data in files(cohort).items() if name.startswith("a/")} == before


def test_volumes_that_the_index_excludes_are_counted_and_left_alone(here, cohort):
    index = read_index(f"{cohort}/volumes.parquet")
    rows = index.table.to_pylist()
    rows[0]["exclusion"] = "en_face"
    write_index(make_index(f"{cohort}/volumes.parquet", index.root, rows))
    assert extract(cohort) == 0
    assert len(report(cohort)) == 3
    assert "| excluded by the index: en_face | 1 |" in (cohort / "out/summary.md").read_text()


def test_a_dry_run_looks_at_the_files_and_writes_nothing(cohort, capsys, caplog):
    caplog.set_level("INFO")
    assert extract(cohort, "--dry-run") == 0
    assert "4 volumes to do" in caplog.text and not (cohort / "out").exists()
    (cohort / read_index(f"{cohort}/volumes.parquet").accepted.to_pylist()[3]["path"]).unlink()
    assert extract(cohort, "--dry-run") == 2
    assert "1 of 4 volumes failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("tile_px=32",), "tile_px does not apply to volumes"),
        (("resize=true",), "resize does not apply to volumes"),
        (("slides=slides.csv",), "set one of slides, images and volumes"),
        (("token_pool=[1,0,1]",), "token_pool"),
        (("token_pool=[1,2,2]",), "token_pool needs tokens=true"),
        (("pooling=cls",), "no class token"),
    ],
)
def test_keys_that_cannot_hold_for_volumes_are_refused(cohort, capsys, words, said):
    assert extract(cohort, *words) == 2
    assert said in capsys.readouterr().err and not (cohort / "out").exists()


def test_encoders_of_the_other_kind_are_refused_with_what_to_use(cohort, capsys):
    write_encoder(cohort / "tiles")
    assert extract(cohort, encoders=("tiles",)) == 2
    assert "not an encoder of OCT volumes" in capsys.readouterr().err
    argv = [f"encoders=[{cohort}/a]", f"images={cohort}", f"output={cohort}/out"]
    assert run_job(extract_features.main, extract_features.ExtractConfig, argv, extract_features.CONFIGS_DIR) == 2
    assert "volumes=…" in capsys.readouterr().err
    import pathray

    with pytest.raises(UserError, match=r"not an encoder of RGB images.*oct\.encoding\.encoder\.load_encoder"):
        pathray.load_encoder(cohort / "a")


def test_a_notebook_embeds_a_volume_as_the_job_does(here, cohort):
    assert extract(cohort, "tokens=true") == 0
    row = read_index(f"{cohort}/volumes.parquet").accepted.to_pylist()[1]
    features = load_encoder(cohort / "b").embed(cohort / row["path"])
    expected = tokens_of(cohort, "b", row["path"])[0]
    np.testing.assert_allclose(features.pooled, expected.mean(0).numpy(), atol=1e-6)
    assert features.tokens.shape == (1, 2, 6, expected.shape[1])
    np.testing.assert_allclose(features.tokens.reshape(12, -1), expected.numpy(), atol=1e-6)
    assert features.token_mm == pytest.approx((1.6, 0.32, 0.24)) and features.header.laterality == "L"
    with pytest.raises(UserError, match="unknown pooling"):
        load_encoder(cohort / "a", pooling="max")


@pytest.mark.ray
def test_actors_give_the_same_bags_as_one_process(cohort, ray_cluster, monkeypatch):
    assert extract(cohort, "actors=2", encoders=("a",)) == 0
    through_ray = files(cohort)
    assert len(through_ray) == 4 and [row["status"] for row in report(cohort)] == ["ok"] * 4
    monkeypatch.setattr(extraction, "ActorMap", OneByOne)
    monkeypatch.setattr(extraction, "ray_session", lambda *a, **k: contextlib.nullcontext(Session(True, {"CPU": 2.0})))
    assert extract(cohort, "overwrite=true") == 0
    assert files(cohort) == through_ray
