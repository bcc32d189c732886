"""ResNet-18 and ResNet-50 (He et al. 2015, arXiv 1512.03385), with the parameter names of the common weight files.

ResNet-50's blocks have their stride in the 3×3 convolution instead of the first 1×1 ("v1.5"), as those weights expect.
Batch norms keep running statistics, which pathray.train.batchnorm averages over ranks. Not here: preprocessing beyond
the mean and std of pretrained weights, training on the features.
"""

from __future__ import annotations

import posixpath
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathray.errors import UserError
from pathray.store.checkpoint import check_tensors
from pathray.store.storage import Storage

# Normalisation of the common weights, for values in 0…1, per colour.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALLEST_SIDE = 32  # five halvings leave one pixel
WIDTHS = (64, 128, 256, 512)
DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut (the paper's figure 5, left)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3), nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions and a shortcut (the paper's figure 5, right)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1, self.bn1 = _conv(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _conv(width, outputs, 1), nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """`[B, 3, H, W]` → class scores `[B, classes]`, or, without classes, features `[B, dim]` (512 or 2048)."""

    def __init__(self, name: str, classes: int = 0) -> None:
        super().__init__()
        if name not in DEPTHS:
            raise UserError("no such ResNet", key="model.backbone", found=name, expected=sorted(DEPTHS))
        block = BasicBlock if name == "resnet18" else Bottleneck
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64)
        inputs = 64
        for i, (width, depth) in enumerate(zip(WIDTHS, DEPTHS[name], strict=True), 1):
            blocks = []
            for j in range(depth):
                blocks.append(block(inputs, width, 2 if i > 1 and j == 0 else 1))
                inputs = width * block.expansion
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
        self.dim = inputs
        self.fc = nn.Linear(inputs, classes) if classes else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x).mean(dim=(2, 3))
        out: Tensor = features if self.fc is None else self.fc(features)
        return out

    def features(self, x: Tensor) -> Tensor:
        """The last feature map `[B, dim, H/32, W/32]`. UserError for an empty batch or images below SMALLEST_SIDE."""
        if x.ndim != 4 or x.shape[0] == 0 or x.shape[1] != 3 or min(x.shape[2:]) < SMALLEST_SIDE:
            expected = f"[B > 0, 3, H, W], sides of at least {SMALLEST_SIDE}"
            raise UserError("invalid batch of images", found=list(x.shape), expected=expected)
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        for i in range(1, 5):
            x = self.get_submodule(f"layer{i}")(x)
        return x


def load_weights(model: nn.Module, path: str) -> None:
    """Load a weights file (.safetensors, or .pth / .pt without pickled code) into `model`.

    Names and shapes must match exactly, except for a classifier `fc` that the model does not have and batch-norm
    counters that old files lack. Raises MissingFile, and UserError naming what does not match.
    """
    folder, name = posixpath.split(path)
    found = Storage.of(folder or ".").read_local(name, lambda local: _tensors(local, path))
    own = model.state_dict()
    if not any(key.startswith("fc.") for key in own):
        found = {key: value for key, value in found.items() if not key.startswith("fc.")}
    counters = {key: value for key, value in own.items() if key.endswith("num_batches_tracked") and key not in found}
    check_tensors(found | counters, own, source=path)
    model.load_state_dict(found | counters)


def _tensors(file: Path, path: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        loaded = load_file(file) if path.endswith(".safetensors") else torch.load(file, "cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, KeyError, ValueError, OSError) as e:
        raise UserError("not a weights file, or damaged", file=path, found=str(e)[:200]) from e
    except Exception as e:  # raised by pickle for what weights_only refuses
        expected = "tensors by name: save model.state_dict(), or convert to .safetensors"
        raise UserError("the weights file contains more than tensors", file=path, expected=expected) from e
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise UserError("not a state dict", file=path, found=type(loaded).__name__, expected="tensors by name")
    return loaded


def _conv(inputs: int, outputs: int, side: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, side, stride=stride, padding=side // 2, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
