"""A run put together from real archives: it trains without Ray, leaves artifacts others can load, draws its masks."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from adios import artifact
from adios.assembly import assemble, pictures
from adios.patches.index import archives_of
from adios.patches.index_writer import index_patches
from adios.pictures import MaskPictures
from adios.plan import build_plan
from adios.recipe import AdiosRecipe
from pathray.data.share import Lookup, rank_rows
from pathray.data.stream import stream_batches
from pathray.device import Device
from pathray.features.encoder import EncoderSpec, load_encoder
from pathray.store import checkpoint
from pathray.store.artifact import EncoderArtifact
from pathray.train.loop import Tick, run
from pathray.train.state import TrainState
from tests.builders.runs.adios_run import config
from tests.builders.zips import write_folder

CPU = Device.of("cpu")


def trained(tmp: Path, **changes):
    write_folder(tmp / "zips", archives=2, patches=5)
    root, archives = archives_of(str(tmp / "zips"))
    index_patches(root, archives, str(tmp / "index.parquet"), max_corrupt_fraction=0.0)
    plan = build_plan(str(tmp / "index.parquet"), str(tmp / "plan"), patch_size=32)
    made = config(output=str(tmp / "run"), **changes)
    parts = assemble(made, plan, 1)
    settings, lookup = parts.settings, Lookup(plan, parts.order)

    def batches(start):
        total, batch = settings.total_images, settings.global_batch
        return stream_batches(rank_rows(lookup, start, total, batch, 0, 1, batch), parts.reader, lookup)

    state = TrainState(parts.recipe, settings, CPU)
    for tick in run(parts.recipe, batches, settings, device=CPU, state=state):
        if parts.watch is not None:
            assert parts.watch.observe(tick) == {}
    return parts, state


def test_the_student_and_the_mask_model_are_exported_side_by_side(tmp_path):
    parts, state = trained(tmp_path)
    parts.export(parts.recipe, str(tmp_path / "run" / "encoder"), {"images_seen": state.images_seen})
    vit, about = EncoderArtifact.load(str(tmp_path / "run" / "encoder"))
    own = parts.recipe.student.vit.state_dict()
    assert own.keys() == vit.state_dict().keys() and all(torch.equal(own[k], v) for k, v in vit.state_dict().items())
    assert about["science"] == "adios" and about["preprocessing"]["mean"] == [0.6816, 0.5640, 0.7232]
    spec = EncoderSpec.of("adios", str(tmp_path / "run" / "encoder"))
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    for pooling, width in (("cls", 32), ("mean", 32), ("cls+mean", 64)):
        assert load_encoder(spec, CPU, pooling=pooling)(pixels).shape == (2, width)
    loaded = artifact.load(str(tmp_path / "run" / "mask_model"))
    parts.recipe.mask_model.eval()
    expected = artifact.TrainedMaskModel(parts.recipe.mask_model, loaded.mean, loaded.std, {}).masks(pixels)
    assert torch.equal(loaded.masks(pixels), expected) and loaded.facts["images_seen"] == 24


def test_the_mask_model_of_any_checkpoint_can_be_loaded(tmp_path):
    parts, state = trained(tmp_path)
    meta = {**state.meta(), "identity": parts.identity, "science": parts.science}
    saved = checkpoint.save(str(tmp_path / "checkpoints"), "adios-latest", state.tensors(), meta)
    loaded = artifact.load(saved.path)
    own = parts.recipe.mask_model.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in loaded.model.state_dict().items())
    assert (loaded.facts["images_seen"], loaded.facts["step"]) == (24, 6) and loaded.mean == (0.6816, 0.564, 0.7232)


def test_pictures_come_on_cadence_of_the_same_patches_and_change_nothing(tmp_path):
    drawn, drawn_state = trained(tmp_path / "a", viz_freq=4)
    plain, plain_state = trained(tmp_path / "b", viz_freq=0)
    names = sorted(p.name for p in (tmp_path / "a" / "run" / "visualizations" / "masks").glob("*.png"))
    assert names == ["iter_00000004.png", "iter_00000006.png"] and plain.watch is None
    tensors = plain_state.tensors()
    assert all(torch.equal(tensors[name], t) for name, t in drawn_state.tensors().items())


def test_a_picture_draws_no_random_number_and_is_the_same_twice(tmp_path):
    recipe = AdiosRecipe(config(mask_model_type="vit_unet"))
    patches = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    drawing, bytes_of = MaskPictures(recipe, lambda count: patches, 1, str(tmp_path)), []
    before = random.getstate(), np.random.get_state()[1].copy(), torch.random.get_rng_state()
    for _ in range(2):
        recipe.mask_model.train()  # as a step leaves it: it would drop paths
        drawing._draw(9, last=False)
        bytes_of.append((tmp_path / "iter_00000009.png").read_bytes())
    assert bytes_of[0] == bytes_of[1]
    assert before[0] == random.getstate() and np.array_equal(before[1], np.random.get_state()[1])
    assert torch.equal(before[2], torch.random.get_rng_state())


@pytest.mark.parametrize(("kind", "read"), [("cpu", [True, False]), ("cuda", [True, False]), ("xla", [True, True])])
def test_only_the_process_that_writes_pictures_reads_patches_but_for_xla_whose_hosts_run_one_program(
    tmp_path, kind, read
):
    recipe, asked = AdiosRecipe(config()), []

    def images(count):
        asked.append(count)
        return np.zeros((count, 32, 32, 3), np.uint8)

    for rank, reads in enumerate(read):
        made = config(viz_freq=1, output=str(tmp_path / f"rank{rank}"))
        watch = pictures(made, recipe, images, Device(kind, torch.device("cpu"), rank, 2))
        asked.clear()
        if watch is not None:
            assert watch.observe(Tick(1, 4, None, False, False, None, None)) == {}
        assert asked == ([8] if reads else [])
        assert (tmp_path / f"rank{rank}").exists() == (rank == 0)


def test_a_picture_that_cannot_be_written_ends_no_run(tmp_path, caplog):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "visualizations").write_text("in the way")
    parts, state = trained(tmp_path, viz_freq=6)
    assert state.images_seen == 24 and "no picture of the masks of iteration 6" in caplog.text


def test_a_pass_is_every_patch_once(tmp_path):
    parts, _ = trained(tmp_path)
    for first in (0, 10):
        assert sorted(parts.order.rows(np.arange(first, first + 10))) == list(range(10))
