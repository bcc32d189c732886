"""Every aggregator in every format: a file that is loaded again predicts as the model, for any number of tiles."""

from pathlib import Path

import pytest
import torch

from mil.aggregators import aggregator_names
from mil.export.description import read_export
from mil.export.output import export_model
from mil.export.parity import random_bags
from mil.target import Target
from tests.builders.slide_models import WIDTH, write_slide_model

FAST_IN_ONNX = ("abmil", "dtfd", "static")  # with and without attention, with and without an order of tiles
SLOW = [pytest.param(name, "onnx", marks=pytest.mark.heavy) for name in aggregator_names() if name not in FAST_IN_ONNX]
OTHERS = [(name, format_) for name in aggregator_names() for format_ in ("ts", "pt2")]
UNSEEN = ((3,), (90,), (700,), (64, 1, 33, 17))  # lengths with which the export has neither traced nor checked


@pytest.mark.parametrize(("name", "format_"), [*OTHERS, *((name, "onnx") for name in FAST_IN_ONNX), *SLOW])
def test_a_file_predicts_as_the_model_for_any_number_of_tiles_and_slides(name, format_, tmp_path):
    model = write_slide_model(tmp_path / "model", name)
    export_model(model, str(tmp_path / "export"), [format_])
    run, net = read_export(str(tmp_path / "export")).open(format_), model.net
    for lengths in UNSEEN:
        bags = random_bags(lengths, WIDTH)
        with torch.no_grad():
            out = net(*bags, True)
            wanted = torch.stack(list(net.head.predict(out.logits).values()), dim=1)
            found = run(*bags)
        torch.testing.assert_close(found[0], wanted, atol=1e-5, rtol=0)
        torch.testing.assert_close(found[1], out.slide_embedding, atol=1e-4, rtol=1e-4)
        if net.aggregator.attention_rows:
            torch.testing.assert_close(found[2], out.extras["attention_probs"], atol=1e-5, rtol=0)
        assert len(found) == 2 + bool(net.aggregator.attention_rows)


@pytest.mark.parametrize(
    ("task", "output", "shape"),
    [("regression", "predicted", (2,)), ("survival", "risk", (2,)), ("ordinal", "probabilities", (2, 3))],
)
def test_other_tasks_have_outputs_of_their_own(task, output, shape, tmp_path):
    grades = ("low", "mid", "high") if task == "ordinal" else ()
    target = Target(WIDTH, "score", task, grades, scale=(20.0, 4.0))
    model = write_slide_model(tmp_path / "model", target=target)
    export_model(model, str(tmp_path / "export"), ["ts"])
    export, bags = read_export(str(tmp_path / "export")), random_bags((5, 9), WIDTH)
    assert export.description["outputs"][0]["name"] == output
    found = export.open("ts")(*bags)[0]
    assert tuple(found.shape) == shape
    wanted = torch.stack(list(model.net.head.predict(model.net(*bags).logits).values()), dim=1)
    torch.testing.assert_close(found.reshape(wanted.shape), wanted)


def test_onnx_runs_without_torch_by_named_inputs_and_axes(tmp_path):
    import numpy as np
    import onnx
    import onnxruntime

    model = write_slide_model(tmp_path / "model")
    export_model(model, str(tmp_path / "export"), ["onnx"])
    file = str(tmp_path / "export" / "model.onnx")
    onnx.checker.check_model(file, full_check=True)
    session = onnxruntime.InferenceSession(file)
    assert [(i.name, i.shape) for i in session.get_inputs()] == [
        ("features", ["B", "N", WIDTH]), ("mask", ["B", "N"]), ("coords", ["B", "N", 2]),
    ]  # fmt: skip
    assert [(o.name, o.shape) for o in session.get_outputs()] == [
        ("probabilities", ["B", 3]), ("slide_embedding", ["B", 16]), ("attention_probs", ["B", 1, "N"]),
    ]  # fmt: skip
    features = np.ones((2, 4, WIDTH), np.float32)
    mask, coords = np.array([[True] * 4, [False] * 4]), np.zeros((2, 4, 2), np.float32)
    probabilities = session.run(["probabilities"], {"features": features, "mask": mask, "coords": coords})[0]
    assert probabilities[0].sum() == pytest.approx(1.0, abs=1e-6)
    assert np.isnan(probabilities[1]).all(), "a slide without tiles is no prediction"


def test_the_call_in_the_card_runs(tmp_path: Path, monkeypatch):
    for formats in (["ts"], ["pt2"], ["ts", "onnx"]):
        folder = tmp_path / formats[-1]
        export_model(write_slide_model(tmp_path / "model"), str(folder), formats)
        monkeypatch.chdir(folder)
        code = (folder / "model_card.md").read_text().split("```python\n")[1].split("```")[0]
        assert len(code.strip().splitlines()) == 6
        names: dict = {}
        exec(code, names)
        assert float(names["probabilities"].sum()) == pytest.approx(1.0, abs=1e-6)
