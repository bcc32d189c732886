"""What an export says of itself, and that a bad one does not appear."""

import json
from typing import NamedTuple

import pytest
import torch
from torch import nn

from mil.artifact import Trained
from mil.export import formats, parity
from mil.export.description import read_export
from mil.export.formats import check_formats
from mil.export.output import export_model
from mil.export.parity import random_bags
from mil.target import Target
from pathray.errors import MissingFile, UserError
from pathray.store.storage import digest_of
from tests.builders.slide_models import CLASSES, WIDTH, write_slide_model


class Answer(NamedTuple):
    values: torch.Tensor
    embedding: torch.Tensor
    attention: None = None


class FrozenMean(nn.Module):
    """Neither a slide model nor right: a trace keeps the number of tiles of the example."""

    attention_names, uses_coords = (), False

    def predict(self, features, mask, coords, return_attention):
        total = features.masked_fill(~mask[..., None], 0.0).sum(dim=1) / float(features.shape[1])
        return Answer(total[:, :2].softmax(dim=1), total)


def trained(net):
    description = {"model": {"name": "mean"}, "sha256": "0" * 64, "encoder": "", "provenance": {}}
    return Trained(net, Target(WIDTH, "label", classes=("a", "b")), description)


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_slide_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "out"
    export_model(model, str(folder), ["ts", "pt2"])
    return folder


@pytest.mark.parametrize("earlier", (False, True))
def test_a_file_that_predicts_otherwise_is_not_published(earlier, model, tmp_path):
    if earlier:
        export_model(model, str(tmp_path / "out"), ["ts"])
    before = snapshot(tmp_path / "out") if earlier else None
    with pytest.raises(UserError, match=r"probabilities differ.*model\.ts.*ts, N=1;.*found: \d") as caught:
        export_model(trained(FrozenMean()), str(tmp_path / "out"), ["ts"])
    assert caught.value.where["found"] > 1e-5
    assert snapshot(tmp_path / "out") == before if earlier else not (tmp_path / "out").exists()


def test_a_format_that_fails_is_named_with_its_reason(model, tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(formats, "_write_pt2", fail)
    with pytest.raises(UserError, match="key: pt2.*RuntimeError: no such operator.*formats without pt2"):
        export_model(model, str(tmp_path / "out"), ["ts", "pt2"])
    assert not (tmp_path / "out").exists()


def test_a_difference_only_in_long_bags_is_found(model, tmp_path, monkeypatch):
    opened = parity.open_format

    def wrong_when_long(name, file):
        run = opened(name, file)
        return lambda *bags: [out + 2e-5 * (bags[0].shape[1] > 4096) for out in run(*bags)]

    monkeypatch.setattr(parity, "open_format", wrong_when_long)
    with pytest.raises(UserError, match="N=5000"):
        export_model(model, str(tmp_path / "out"), ["ts"])


def test_classes_keep_the_order_of_training(exported, model):
    export = read_export(str(exported))
    assert export.description["classes"] == list(CLASSES) != sorted(CLASSES)
    bags = random_bags((20,), WIDTH)
    by_name = model.net.head.predict(model.net(*bags).logits)
    columns = export.description["outputs"][0]["columns"]
    for name, column in zip(columns, export.open("pt2")(*bags)[0].unbind(1), strict=True):
        torch.testing.assert_close(column, by_name[name])


def test_the_description_says_what_goes_in_and_out(exported, model):
    found = json.loads((exported / "export.json").read_text())
    assert [(one["name"], one["dtype"], one["dynamic_axes"]) for one in found["inputs"]] == [
        ("features", "float32", {"0": "B", "1": "N"}),
        ("mask", "bool", {"0": "B", "1": "N"}),
        ("coords", "float32", {"0": "B", "1": "N"}),
    ]
    assert [(one["name"], one["shape"]) for one in found["outputs"]] == [
        ("probabilities", ["B", 3]), ("slide_embedding", ["B", 16]), ("attention_probs", ["B", 1, "N"]),
    ]  # fmt: skip
    assert (found["kind"], found["label"], found["feature_width"], found["encoder"]) == ("mil", "label", 8, "e" * 64)
    assert found["model"]["weights_sha256"] == model.description["sha256"]
    for entry in found["files"].values():
        assert entry["sha256"] == digest_of(exported / entry["file"])
    assert {5000, 257, 1} <= {lengths[0] for lengths in found["parity"]["tiles"]}
    assert max(found["parity"]["largest"]["ts"].values()) <= 1e-4


def test_the_card_says_what_it_was_trained_on(exported):
    card = (exported / "model_card.md").read_text()
    assert "12 slides: tumor 5, normal 4, adenoma 3" in card and "not a medical device" in card and "e" * 64 in card


def test_a_slide_encoder_gives_no_probabilities(model, tmp_path):
    export_model(model, str(tmp_path), ["ts"], kind="slide_encoder")
    export, bags = read_export(str(tmp_path)), random_bags((9, 4), WIDTH)
    assert export.description["kind"] == "slide_encoder" and export.description["classes"] == []
    assert [one["name"] for one in export.description["outputs"]] == ["slide_embedding", "attention_probs"]
    torch.testing.assert_close(export.open("ts")(*bags)[0], model.net(*bags).slide_embedding)


def test_files_of_an_older_export_go(model, tmp_path):
    export_model(model, str(tmp_path), ["ts", "pt2"])
    export_model(model, str(tmp_path), ["ts"])
    assert {path.name for path in tmp_path.iterdir()} == {"model.ts", "model_card.md", "export.json"}


def test_an_altered_export_is_refused(model, tmp_path):
    export_model(model, str(tmp_path), ["ts"])
    with pytest.raises(UserError, match="not exported.*found: 'onnx'"):
        read_export(str(tmp_path)).open("onnx")
    data = bytearray((tmp_path / "model.ts").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "model.ts").write_bytes(data)
    with pytest.raises(UserError, match="the file was altered"):
        read_export(str(tmp_path)).open("ts")
    text = (tmp_path / "export.json").read_text().replace('"tumor"', '"tumour"')
    (tmp_path / "export.json").write_text(text)
    with pytest.raises(UserError, match=r"export\.json"):
        read_export(str(tmp_path))
    with pytest.raises(MissingFile, match="no exported model"):
        read_export(str(tmp_path / "nothing"))


def test_scores_that_are_none_are_refused_before_anything_is_exported(model, tmp_path):
    for content in ("[1]", "{", "{}"):
        (tmp_path / "scores.json").write_text(content)
        with pytest.raises(UserError, match=r"scores\.json"):
            export_model(model, str(tmp_path / "out"), ["ts"], scores=str(tmp_path / "scores.json"))
    assert not (tmp_path / "out").exists()


def test_onnx_without_its_packages_says_what_to_install(monkeypatch):
    find = formats.importlib.util.find_spec
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    check_formats(["ts", "pt2"])
    with pytest.raises(UserError, match=r"no onnxscript.*pip install 'pathray\[export\]'"):
        check_formats(["ts", "onnx"])


@pytest.mark.parametrize("given", ([], ["ts", "ts"], ["torchscript"]))
def test_formats_are_known_and_named_once(given):
    with pytest.raises(UserError, match="key: formats"):
        check_formats(given)
