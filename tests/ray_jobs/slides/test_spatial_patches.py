"""Section images, spots and counts become patches and a table that the training's own checks accept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from ray_jobs import spatial_patches
from ray_jobs.shell.cli import run_job
from regression.config import CONFIGS_DIR
from regression.tables.table import read_table


def made(folder: Path, spots: int = 12) -> list[str]:
    """Two sections of three patients: gene `a` varies in p0 and p1 only, `b` less but everywhere, `c` in p2."""
    g = np.random.default_rng(0)
    lines, counts = ["spot_id,patient,section,pixel_x,pixel_y,all"], ["spot,a,b,c"]
    for i in range(spots):
        patient, section = f"p{i % 3}", f"S{i % 2}"
        a = 0 if patient == "p2" else int(g.integers(0, 60))
        c = int(g.integers(0, 90)) if patient == "p2" else 0
        lines.append(f"s{i},{patient},{section},{10 + 3 * i},{20 + i},500")
        counts.append(f"s{i},{a},{40 + i % 4},{c}")
    (folder / "spots.csv").write_text("\n".join(lines) + "\n")
    (folder / "counts.csv").write_text("\n".join(counts) + "\n")
    for section in ("S0", "S1"):
        pixels = np.random.default_rng(int(section[1])).integers(0, 255, (64, 64, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{section}.png")
    return [
        f"spots={folder}/spots.csv", f"counts={folder}/counts.csv", f"images={folder}/{{section}}.png", "totals=all",
        "image_mpp=1.0", "mpp=1.0", "patch_px=8", "top_genes=1", "spot_um=10", f"output={folder}/out",
    ]  # fmt: skip


def run(words: list[str], *more: str) -> int:
    schema = spatial_patches.SpatialPatchesConfig
    return run_job(spatial_patches.main, schema, [*words, *more], CONFIGS_DIR)


def test_patches_targets_and_places_belong_to_the_same_spot(tmp_path):
    assert run(made(tmp_path), "held_out=[]", "top_genes=2") == 0
    genes = yaml.safe_load((tmp_path / "out" / "genes.yaml").read_text())["data"]
    assert genes["target_dim"] == 2
    table = read_table(str(tmp_path / "out" / "table.csv"), genes=genes["genes"])
    assert len(table) == 12 and table.unit == "ln(1 + CP10k)" and set(table.places.radius_px) == {5.0}
    counts = np.genfromtxt(tmp_path / "counts.csv", delimiter=",", names=True, dtype=None, encoding=None)
    for i, (path, x, y) in enumerate(zip(table.paths, table.places.x, table.places.y, strict=True)):
        section = np.asarray(Image.open(table.places.image[i]))
        assert table.places.section[i] == f"S{i % 2}" and path.endswith(f"out/patches/S{i % 2}/s{i}.png")
        box = section[int(y) - 4 : int(y) + 4, int(x) - 4 : int(x) + 4]
        assert np.array_equal(np.asarray(Image.open(path)), box)
        expected = [np.log1p(1e4 * counts[gene][i] / 500) for gene in genes["genes"]]
        assert table.targets[i] == pytest.approx(expected, abs=1e-9)


def test_genes_are_chosen_on_the_groups_that_train(tmp_path):
    words = made(tmp_path)
    (tmp_path / "split.csv").write_text("path,group_id,split\nx,p2,test\ny,p0,train\nz,p1,val\n")
    chosen = {}
    for held_out in ("held_out=[]", "held_out=[p2]", "held_out=[p0,p1]", f"split={tmp_path}/split.csv"):
        assert run(words, held_out) == 0
        chosen[held_out] = yaml.safe_load((tmp_path / "out" / "genes.yaml").read_text())["data"]["genes"]
    assert chosen["held_out=[p2]"] == ["a"] and chosen["held_out=[p0,p1]"] == ["c"]
    assert chosen[f"split={tmp_path}/split.csv"] == ["a"]
    assert run(words, "genes=[b]") == 0 and "b" in (tmp_path / "out" / "genes.yaml").read_text()


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        ((), "held_out"),
        (("held_out=[p9]",), "unknown group"),
        (("held_out=[p0,p1,p2]",), "leaves no group"),
        (("genes=[z]",), "genes without counts"),
        (("held_out=[]", "sections=[S9]"), "section has no spots"),
        (("held_out=[]", "totals=none"), "no such column"),
        (("held_out=[]", "patch_px=0"), "patch_px"),
        (("held_out=[]", "image_mpp=null"), "pixel size"),
        (("held_out=[]", "images=gone/{section}.png"), "gone/S0.png"),
    ],
)
def test_what_cannot_be_cut_is_refused_before_anything_is_written(tmp_path, capsys, argv, word):
    assert run(made(tmp_path), *argv) == 2
    assert word in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_faults_of_the_files_are_named_by_row(tmp_path, capsys):
    words = made(tmp_path)
    text = (tmp_path / "spots.csv").read_text()
    for old, new, word in (
        ("s4,p1,S0,22", "s4,p1,S0,", "row: 6; key: pixel_x"),
        ("s3,p0", "s2,p0", "row: 5"),
        ("s3,p0,S1", "s3,,S1", "row: 5; key: patient"),
        ("s3,p0,S1", "s3,p0,../S1", "cannot be used as a folder name"),
        ("s3,p0", "s3x,p0", "have different spots"),
    ):
        (tmp_path / "spots.csv").write_text(text.replace(old, new))
        assert run(words, "held_out=[]", "totals=null") == 2
        assert word in capsys.readouterr().err, (old, new)


def test_a_real_section_becomes_a_table_that_trains(shared_data, tmp_path):
    folder = shared_data / "regression" / "her2st"
    if not (folder / "raw" / "B4.jpg").is_file():
        pytest.skip(f"no section image at {folder}")
    words = [f"spots={folder}/spots.tsv", f"counts={folder}/counts_top250.tsv.gz", "totals=total_counts"]
    words += [f"images={folder}/raw/{{section}}.jpg", "sections=[B4]", "image_mpp=0.69", "mpp=2.0", "patch_px=64"]
    assert run(words, "held_out=[]", f"output={tmp_path}") == 0
    genes = yaml.safe_load((tmp_path / "genes.yaml").read_text())["data"]["genes"]
    table = read_table(str(tmp_path / "table.csv"), genes=genes, target_dim=50)
    assert len(table) == 283 and set(table.groups) == {"B"} and set(table.places.section) == {"B4"}
