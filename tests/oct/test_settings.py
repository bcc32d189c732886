"""From config to loop: schedules that keep the configured warm-up and floor, weight decay, and the artifact."""

import pytest
import torch

from oct.assembly import build
from oct.recipe import OctRecipe
from oct.sections import AugmentConfig, ModelConfig
from oct.settings import encoder_of, loop_settings, phase_optim, preprocessing
from pathray.errors import UserError
from pathray.features.encoder import EncoderSpec
from pathray.optim.groups import decay_groups
from pathray.store.artifact import EncoderArtifact
from tests.builders.oct.volumes import PATCH, SmallReader, micro, small_budget, small_config, write_plan


def test_the_learning_rate_rises_for_the_configured_length_and_falls_to_its_floor():
    """120 epochs of 100 volumes in steps of 4: 3,000 steps, of which 10 epochs are 250."""
    budget = small_budget(
        total_images=None, warmup={"epochs": 10}, lr=1.5e-3, start_lr=0.0, final_lr=1e-6, total_epochs=120
    )
    config = small_config(rows=100, optimization=budget)
    lr, total = phase_optim(config).lr, loop_settings(config, 1).total_steps
    assert total == 3000
    assert [lr(step, total) for step in (0, 125, 250, 2999)] == pytest.approx([0, 0.75e-3, 1.5e-3, 1e-6])
    assert lr((250 + 2999) // 2, total) == pytest.approx(0.75e-3, rel=2e-3)  # half of the cosine
    without = small_config(rows=100, optimization=small_budget(warmup=0, lr=1e-3))
    assert phase_optim(without).lr(0, 8) == 1e-3


def test_weight_decay_is_constant_and_not_on_biases_norms_tokens_and_positions():
    config = small_config(model=ModelConfig(name="vit_micro", patch_size=PATCH, pred_dim=48, positions="learned"))
    decay = phase_optim(config).weight_decay
    assert {decay(step, 8) for step in range(8)} == {0.05}
    with_decay, without = decay_groups(OctRecipe(config).params["model"])
    assert all(p.ndim > 1 for _, p in with_decay)
    names = {name for name, _ in without}
    assert {"student.pos_embed", "predictor.mask_token", "student.norm.weight", "predictor.proj.bias"} <= names


def test_loop_settings_are_those_of_the_config_and_the_workers():
    loop = loop_settings(small_config(workers=2), 2)
    assert (loop.global_batch, loop.micro_batch, loop.total_images) == (4, 2, 32)
    assert loop.micros_per_step(2) == 1 and loop_settings(small_config(), 1).micros_per_step(1) == 2
    assert loop.precision == "fp32" and loop.seed == 42  # a CPU computes in float32
    with pytest.raises(UserError, match="global_batch"):
        loop_settings(small_config(), 3)


def test_the_exported_encoder_is_the_teacher_and_says_how_to_repeat_its_inputs(tmp_path):
    config = small_config()
    recipe = OctRecipe(config)
    with torch.no_grad():
        recipe.encoder.norm.bias.add_(1.0)
    encoder_of(recipe).save(str(tmp_path), {"images_seen": 32})
    vit, description = EncoderArtifact.load(str(tmp_path))
    x = recipe.volumes(*(micro(config, range(2))[name] for name in ("image", "inside")))
    with torch.no_grad():
        assert torch.equal(vit(x), recipe.encoder(x))
    given = description["preprocessing"]
    assert given == preprocessing(config) | {"layout": "NCDHW"}
    assert (given["size"], given["spacing_mm"], given["mpp"]) == ([8, 32, 32], [0.05, 0.02, 0.02], None)
    assert (given["normalise"], given["mean"], given["std"]) == ("volume_inside", [0.0], [1.0])
    assert description["vit"]["in_channels"] == 1 and description["provenance"]["config"]["mask.ratio"] == 0.6


def test_extraction_from_images_refuses_an_encoder_of_volumes(tmp_path):
    encoder_of(OctRecipe(small_config())).save(str(tmp_path), {})
    with pytest.raises(UserError, match="3-D"):
        EncoderSpec.of("oct", str(tmp_path))


def test_another_augmentation_is_another_run_and_another_place_is_not(tmp_path):
    plan = write_plan(tmp_path / "plan")

    def identity(**sections):
        config = small_config(**sections)
        return build(config, plan, 1, SmallReader(config), SmallReader(config), "digest").identity["hash"]

    assert identity() == identity(optimization=small_budget(micro_batch=1))
    assert identity() != identity(augment=AugmentConfig(noise=0.1))
