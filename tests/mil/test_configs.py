"""The shipped configs: every model of the registry has one, and builds from it."""

from pathlib import Path

import pytest
import torch

from mil.aggregators.registry import aggregator_names
from mil.config import RunConfig
from mil.model.build import build_net
from mil.sections import CONFIGS_DIR, GROUPS
from mil.target import Target
from pathray.config.load import load_config

MODELS = sorted(path.stem for path in (CONFIGS_DIR / "model").glob("*.yaml"))


def test_every_model_of_the_registry_has_a_config():
    assert sorted(aggregator_names()) == MODELS


@pytest.mark.parametrize("name", MODELS)
def test_a_model_builds_from_its_config_and_predicts_a_bag(name):
    config = load_config(RunConfig, (f"model={name}",), configs_dir=CONFIGS_DIR, groups=GROUPS).config
    net = build_net(config, Target(12, "label", classes=("a", "b", "c"), counts=(2, 2, 2))).eval()
    coords = torch.stack(torch.meshgrid(torch.arange(5.0), torch.arange(4.0), indexing="ij"), -1).reshape(1, 20, 2)
    with torch.no_grad():
        out = net(torch.randn(1, 20, 12), None, coords)
    assert out.logits.shape == (1, 3) and torch.isfinite(out.logits).all()
    assert abs(float(sum(net.head.predict(out.logits).values())) - 1) < 1e-5


@pytest.mark.parametrize(
    "path", sorted(CONFIGS_DIR.rglob("*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_a_config_opens_with_what_it_is_and_its_command(path: Path):
    first, second = path.read_text().splitlines()[:2]
    assert first.startswith("# ") and second.startswith("#   python -m ray_jobs.")
