"""TorchScript and ONNX programs, and names at hubs."""

import sys
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

import pathray
from pathray.errors import UserError
from pathray.features.encoder import EncoderSpec
from pathray.features.published.importing import Given, read_encoder
from tests.builders.published import random_weights, shrink, tiny_row

MEAN, STD = [0.7, 0.5, 0.6], [0.2, 0.25, 0.3]
LOOKS = {"size_px": 32, "mean": MEAN, "std": STD, "mpp": 0.5}
MATRIX = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)


class Means(torch.nn.Module):
    """Mean colour times a matrix: `[B, 3, H, W]` -> `[B, 5]`."""

    def __init__(self):
        super().__init__()
        self.register_buffer("matrix", torch.from_numpy(MATRIX))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3)) @ self.matrix


class Tokens(Means):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2)


def torchscript(path, module):
    torch.jit.script(module).save(str(path))


def onnx_means(path, nodes=None):
    matrix = numpy_helper.from_array(MATRIX, "m")
    nodes = nodes or [
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 3, 32, 32])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [y], [matrix])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.mark.parametrize("kind", ["torchscript", "onnx"])
def test_a_program_is_an_encoder_like_any(tmp_path, kind):
    path = tmp_path / ("net.pt" if kind == "torchscript" else "net.onnx")
    torchscript(path, Means()) if kind == "torchscript" else onnx_means(path)
    read_encoder(str(path), Given(**LOOKS)).save(str(tmp_path / "encoder"))
    encoder = pathray.load_encoder(tmp_path / "encoder")
    assert (encoder.dim, encoder.size_px, encoder.mpp) == (5, 32, 0.5)
    images = np.random.default_rng(1).integers(0, 256, (7, 32, 32, 3), np.uint8)
    expected = ((images.astype(np.float64) / 255 - MEAN) / STD).mean(axis=(1, 2)) @ MATRIX.astype(np.float64)
    np.testing.assert_allclose(encoder.embed(images, batch_size=3), expected, atol=1e-5)
    spec = EncoderSpec.of("e", str(tmp_path / "encoder"))
    assert spec.identity()["network"] == {"format": kind, "bytes": path.stat().st_size, "dim": 5}
    with pytest.raises(UserError, match="its own size only.*48 x 48.*32 x 32, or resize=true"):
        spec.input_px(48, 48, resize=False)
    with pytest.raises(UserError, match="cannot be pooled like this.*found: 'cls'.*expected: 'output'"):
        pathray.load_encoder(tmp_path / "encoder", pooling="cls")


@pytest.mark.parametrize("key", LOOKS)
def test_a_program_needs_to_be_told_how_images_look(tmp_path, key):
    onnx_means(tmp_path / "net.onnx")
    with pytest.raises(UserError, match=f"does not say how its images look.*net.onnx.*key: {key}"):
        read_encoder(str(tmp_path / "net.onnx"), Given(**{**LOOKS, key: None}))


def test_a_program_that_gives_no_features_is_refused(tmp_path):
    torchscript(tmp_path / "net.ts", Tokens())
    with pytest.raises(UserError, match=r"output is no features.*net\.ts.*\[1, 3, 1024\].*\[B, E\]"):
        read_encoder(str(tmp_path / "net.ts"), Given(**LOOKS))
    onnx_means(tmp_path / "net.onnx", [helper.make_node("GlobalAveragePool", ["x"], ["y"])])
    with pytest.raises(UserError, match=r"output is no features.*net\.onnx.*\[1, 3, 1, 1\]"):
        read_encoder(str(tmp_path / "net.onnx"), Given(**LOOKS))


def test_a_program_of_another_image_size_is_refused(tmp_path):
    onnx_means(tmp_path / "net.onnx")
    with pytest.raises(UserError, match=r"fails on an image.*net\.onnx.*\[B, 3, 64, 64\]"):
        read_encoder(str(tmp_path / "net.onnx"), Given(**{**LOOKS, "size_px": 64}))


def test_a_damaged_program_is_named(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"not an ONNX program.*net\.onnx"):
        read_encoder(str(tmp_path / "net.onnx"), Given(**LOOKS))


def test_without_onnx_runtime_the_command_that_installs_it_is_named(tmp_path, monkeypatch):
    onnx_means(tmp_path / "net.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"need the package onnxruntime.*pip install 'pathray\[onnx\]'"):
        read_encoder(str(tmp_path / "net.onnx"), Given(**LOOKS))


@pytest.mark.parametrize(("name", "package"), [("timm:vit", "timm"), ("hf:a/b", "huggingface-hub")])
def test_a_name_at_a_hub_needs_its_package(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)
    with pytest.raises(UserError, match=rf"needs the package.*not installed.*pip install {package}"):
        read_encoder(name, Given())


def test_a_folder_of_a_hub_and_a_model_of_timm_are_read_like_files(monkeypatch, tmp_path):
    shrink(monkeypatch)
    weights = random_weights(tiny_row("h_optimus_1"))
    save_file(weights, tmp_path / "model.safetensors")
    hub, timm = ModuleType("huggingface_hub"), ModuleType("timm")
    hub.snapshot_download = lambda name, allow_patterns: str(tmp_path)
    timm.create_model = lambda name, pretrained, num_classes: type("Net", (), {"state_dict": lambda self: weights})()
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(sys.modules, "timm", timm)
    one = read_encoder("hf:bioptimus/H-optimus-1", Given())
    two = read_encoder("timm:hf-hub:bioptimus/H-optimus-1", Given())
    assert one.provenance["model"] == two.provenance["model"] == "h_optimus_1"
    assert one.provenance["source"] == "hf:bioptimus/H-optimus-1"
    assert all(torch.equal(a, b) for a, b in zip(one.network.parameters(), two.network.parameters(), strict=True))
    (digest,) = two.provenance["files"].values()
    weights["norm.bias"][0] += 1
    assert read_encoder("timm:hf-hub:bioptimus/H-optimus-1", Given()).provenance["files"] != {"timm": digest}


def test_what_a_hub_refuses_is_told_without_its_text(monkeypatch):
    hub = ModuleType("huggingface_hub")

    def refuse(*args, **kwargs):
        raise RuntimeError("401 for token hf_secret")

    hub.snapshot_download = refuse
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(UserError, match="the hub does not give these weights.*hf:a/b: RuntimeError") as error:
        read_encoder("hf:a/b", Given())
    assert "hf_secret" not in str(error.value)
