"""An ensemble is exported as one model that gives the mean of its members."""

import pytest
import torch

from mil import artifact
from mil.export.description import read_export
from mil.export.finding import DEFAULT, find_model
from mil.export.output import export_model
from mil.export.parity import random_bags
from tests.builders.slide_models import WIDTH, write_slide_model

pytest.importorskip("mil.model.ensemble", reason="no ensembles in this version")


def test_an_export_of_a_training_is_the_mean_of_its_members(tmp_path):
    members = {f"m{i}": write_slide_model(tmp_path / f"m{i}", "static", seed=i) for i in range(3)}
    artifact.save_ensemble(str(tmp_path / DEFAULT), members)
    export_model(find_model(str(tmp_path)).trained, str(tmp_path / "export"), ["ts", "pt2", "onnx"])
    bags, export = random_bags((33, 7), WIDTH), read_export(str(tmp_path / "export"))
    nets = [member.net for member in members.values()]
    each = [torch.stack(list(net.head.predict(net(*bags).logits).values()), dim=1) for net in nets]
    for name in ("ts", "pt2", "onnx"):
        torch.testing.assert_close(export.open(name)(*bags)[0], torch.stack(each).mean(dim=0), atol=1e-5, rtol=0)
    assert export.description["outputs"][1] == {
        "name": "slide_embedding", "dtype": "float32", "shape": ["B", 48], "dynamic_axes": {"0": "B"},
    }  # fmt: skip
    assert "the mean of 3 models" in (tmp_path / "export" / "model_card.md").read_text()
