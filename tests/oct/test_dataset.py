"""The notebook's dataset: the seed's call, its samples, and what happens to files that are no volumes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from oct.dataset import OCTDICOMDataset, collate_fn
from oct.volume import Grid
from pathray.errors import UserError

GRID = Grid((8, 48, 48), (0.1, 0.04, 0.15))


def folder_of(shared_data: Path) -> Path:
    return shared_data / "oct" / "retinal_oct"


def test_samples_of_real_volumes_are_z_scored_over_their_own_voxels(shared_data: Path) -> None:
    data = OCTDICOMDataset(str(folder_of(shared_data) / "manifest.tsv"), grid=GRID)
    sample = data[0]
    assert sample["image"].shape == (1, 8, 48, 48) and sample["image"].dtype == torch.float32
    box = tuple(slice(*bounds) for bounds in sample["meta"]["inside"])
    inside = sample["image"][0][box].double().numpy()
    assert abs(inside.mean()) < 1e-4 and abs(inside.std() - 1) < 1e-3
    outside = sample["image"][0].clone()
    outside[box] = 0
    assert not outside.any()
    assert sample["meta"]["person"] == "2001" and sample["meta"]["device"] == "bioptigen_sdois"
    assert sample["spacing"] == pytest.approx(GRID.spacing_mm)


def test_a_file_that_is_no_volume_is_replaced_and_counted(shared_data: Path) -> None:
    data = OCTDICOMDataset(str(folder_of(shared_data) / "manifest.tsv"), grid=GRID)
    paths = [row.path for row in data.rows]
    circle = next(i for i, path in enumerate(paths) if "circle_2" in path)
    batch = collate_fn([data[circle], data[circle], data[0]])
    assert batch["image"].shape[0] == 3 and batch["spacing"].shape == (3, 3)
    assert batch["meta"][0]["instead_of"] == paths[circle]
    assert data.unreadable == {"single_frame": 2}  # the file itself, and the one after it


def test_a_file_list_chooses_and_orders(shared_data: Path) -> None:
    manifest = str(folder_of(shared_data) / "manifest.tsv")
    paths = [row.path for row in OCTDICOMDataset(manifest).rows]
    data = OCTDICOMDataset(manifest, file_list=["/" + paths[3], "/dataset/" + paths[1]])
    assert [row.path for row in data.rows] == [paths[3], paths[1]]
    with pytest.raises(UserError, match="nowhere.dcm"):
        OCTDICOMDataset(manifest, file_list=["nowhere.dcm"])


def test_copies_are_kept_where_the_environment_says(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA_CACHE_DIR", str(tmp_path))
    manifest = str(folder_of(shared_data) / "manifest.tsv")
    first = OCTDICOMDataset(manifest, use_cache=True, grid=GRID)[0]
    assert len(list(tmp_path.iterdir())) == 1
    again = OCTDICOMDataset(manifest, use_cache=True, grid=GRID)[0]
    np.testing.assert_array_equal(first["image"], again["image"])


def test_transforms_see_whole_samples(shared_data: Path) -> None:
    manifest = str(folder_of(shared_data) / "manifest.tsv")
    data = OCTDICOMDataset(manifest, transforms=lambda sample: {**sample, "image": -sample["image"]}, grid=GRID)
    plain = OCTDICOMDataset(manifest, grid=GRID)
    assert torch.equal(data[1]["image"], -plain[1]["image"])


def test_a_manifest_without_any_volume_is_an_error_and_no_endless_search(shared_data: Path, tmp_path: Path) -> None:
    lines = (folder_of(shared_data) / "manifest.tsv").read_text().splitlines()
    rows = [line for line in lines if "heidelberg" in line]
    (tmp_path / "manifest.tsv").write_text("\n".join([lines[0], *rows]) + "\n")
    for row in rows:
        name = row.split("\t")[12].split("/", 2)[2]
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder_of(shared_data) / name, tmp_path / name)
    data = OCTDICOMDataset(str(tmp_path / "manifest.tsv"), str(tmp_path), grid=GRID)
    with pytest.raises(UserError, match="no volume"):
        data[0]
