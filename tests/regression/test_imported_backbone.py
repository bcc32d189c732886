"""Imported encoders as backbones: a ViT is trained further, what can only be used as it is is refused by name."""

import dataclasses

import pytest
from safetensors.torch import save_file

from pathray.errors import UserError
from pathray.features.published.importing import Given, read_encoder
from pathray.nn.vit import ViT
from regression.model import build_net, preprocessing
from tests.builders.expression import run_config
from tests.builders.published import random_weights, shrink, tiny_row


def config_on(tmp_path, name):
    row = tiny_row(name)
    save_file(random_weights(row), tmp_path / "model.safetensors")
    read_encoder(str(tmp_path / "model.safetensors"), Given(model=name)).save(str(tmp_path / "encoder"))
    config = run_config()
    model = dataclasses.replace(config.model, backbone="artifact", artifact=str(tmp_path / "encoder"))
    data = dataclasses.replace(config.data, image_size=row.size)
    return row, dataclasses.replace(config, model=model, data=data)


def test_a_published_vit_is_a_backbone_with_its_own_preprocessing(monkeypatch, tmp_path):
    shrink(monkeypatch)
    row, config = config_on(tmp_path, "h_optimus_0")
    given = preprocessing(config)
    assert (given.mean, given.std, given.mpp) == (row.mean, row.std, 0.5)
    backbone = build_net(config).backbone
    assert isinstance(backbone, ViT) and backbone.config.registers == 4


def test_one_with_its_own_pooling_is_refused_by_name(monkeypatch, tmp_path):
    shrink(monkeypatch)
    _, config = config_on(tmp_path, "conch")
    for use in (preprocessing, build_net):
        with pytest.raises(UserError, match=r"only be used as it is.*found: 'vit\+attention'"):
            use(config)
