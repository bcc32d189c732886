"""ResNets: sizes and names of the published ones, weight files, and batch norms under the loop's bookkeeping."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pathray.device import Device
from pathray.errors import MissingFile, UserError
from pathray.nn.resnet import ResNet, load_weights
from pathray.train.batchnorm import RunningStatistics


@pytest.mark.parametrize(("name", "count", "dim"), [("resnet18", 11_689_512, 512), ("resnet50", 25_557_032, 2048)])
def test_sizes_are_the_published_ones(name, count, dim):
    with torch.device("meta"):
        model = ResNet(name, 1000)
        assert sum(p.numel() for p in model.parameters()) == count and model.dim == dim
        assert model(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
        assert model.features(torch.empty(2, 3, 224, 224)).shape == (2, dim, 7, 7)
        assert ResNet(name)(torch.empty(1, 3, 64, 96)).shape == (1, dim)


def test_names_and_strides_are_those_of_the_common_weights():
    with torch.device("meta"):
        small, large = ResNet("resnet18", 1000), ResNet("resnet50", 1000)
    shapes = {k: tuple(v.shape) for k, v in large.state_dict().items()}
    assert len(shapes) == 320 and len(small.state_dict()) == 122
    assert shapes["conv1.weight"] == (64, 3, 7, 7) and shapes["fc.weight"] == (1000, 2048)
    assert shapes["layer1.0.downsample.0.weight"] == (256, 64, 1, 1) and "layer1.1.downsample.0.weight" not in shapes
    assert shapes["layer4.2.conv3.weight"] == (2048, 512, 1, 1) and "layer4.2.bn3.running_var" in shapes
    assert "layer1.0.downsample.0.weight" not in small.state_dict()
    assert {"layer2.0.downsample.1.running_mean", "layer4.1.bn2.bias", "bn1.num_batches_tracked"} <= set(
        small.state_dict()
    )
    first = large.get_submodule("layer3.0")
    assert (first.conv1.stride, first.conv2.stride, first.downsample[0].stride) == ((1, 1), (2, 2), (2, 2))


def test_a_block_is_what_the_paper_says():
    """One bottleneck in float64, written out with functional calls."""
    torch.manual_seed(0)
    block = ResNet("resnet50").get_submodule("layer2.0").double().eval()
    for m in block.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(), m.running_var.uniform_(0.5, 2)

    def norm(x, m):
        shape = (1, -1, 1, 1)
        z = (x - m.running_mean.view(shape)) / (m.running_var.view(shape) + 1e-5).sqrt()
        return z * m.weight.view(shape) + m.bias.view(shape)

    conv = nn.functional.conv2d
    x = torch.randn(2, 256, 8, 8, dtype=torch.float64)
    y = norm(conv(x, block.conv1.weight), block.bn1).clamp(min=0)
    y = norm(conv(y, block.conv2.weight, stride=2, padding=1), block.bn2).clamp(min=0)
    y = norm(conv(y, block.conv3.weight), block.bn3)
    y = (y + norm(conv(x, block.downsample[0].weight, stride=2), block.downsample[1])).clamp(min=0)
    assert torch.allclose(block(x), y, atol=1e-10)


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_weights_of_a_classifier_serve_the_backbone(tmp_path, kind):
    source, path = ResNet("resnet18", 10), str(tmp_path / f"w.{kind}")
    tensors = {k: v for k, v in source.state_dict().items() if "num_batches" not in k}  # as old files have it
    save_file(tensors, path) if kind == "safetensors" else torch.save(tensors, path)
    model = ResNet("resnet18")
    load_weights(model, path)
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in model.state_dict().items())
    with pytest.raises(UserError, match="fc.weight: .*10"):
        load_weights(ResNet("resnet18", 7), path)


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path):
    tensors = ResNet("resnet18").state_dict()
    tensors["layer9.conv"] = tensors.pop("layer1.0.conv1.weight")
    torch.save(tensors, tmp_path / "w.pth")
    with pytest.raises(UserError, match="layer1.0.conv1.weight: missing; layer9.conv: unexpected"):
        load_weights(ResNet("resnet18"), str(tmp_path / "w.pth"))
    torch.save(nn.Linear(2, 2), tmp_path / "code.pth")
    with pytest.raises(UserError, match="more than tensors"):
        load_weights(ResNet("resnet18"), str(tmp_path / "code.pth"))
    (tmp_path / "w.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="not a weights file"):
        load_weights(ResNet("resnet18"), str(tmp_path / "w.safetensors"))
    with pytest.raises(MissingFile):
        load_weights(ResNet("resnet18"), str(tmp_path / "none.pth"))


@pytest.mark.parametrize("shape", [(0, 3, 64, 64), (1, 3, 31, 64), (1, 4, 64, 64), (3, 64, 64)])
def test_what_is_no_batch_of_images_is_refused(shape):
    with pytest.raises(UserError, match="invalid batch of images"):
        ResNet("resnet18")(torch.zeros(shape))


def test_running_statistics_are_taken_back_after_a_bad_step():
    torch.manual_seed(0)
    model = ResNet("resnet18").train()
    kept = RunningStatistics(model, Device.of("cpu"))
    assert len(kept.layers) == 20
    before = model.bn1.running_mean.clone()
    kept.begin()
    model(torch.randn(2, 3, 32, 32))
    kept.end(torch.tensor(0.0))
    assert torch.equal(model.bn1.running_mean, before)
    kept.begin()
    model(torch.randn(2, 3, 32, 32))
    kept.end(torch.tensor(1.0))
    assert not torch.equal(model.bn1.running_mean, before)
