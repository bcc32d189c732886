"""An encoder artifact as a function from pixels to features: its preprocessing, the ViT, pooling.

`EncoderSpec` holds the description only, for plans and fingerprints; `FeatureEncoder` holds the weights on a device.
Not here: where pixels come from, where features go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pathray.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from pathray.device import Device
    from pathray.nn.vit import ViT

POOLINGS = ("mean", "cls", "cls+mean")
PRECISIONS = ("fp32", "bf16", "fp16")
VOLUMES = "; for OCT volumes: ray_jobs.extract_features volumes=…, or oct.encoding.encoder.load_encoder"
UNDERSTOOD = ("mean", "std", "size", "mpp", "layout")  # the preprocessing that this module implements


@dataclass(frozen=True)
class EncoderSpec:
    """An encoder artifact with its description and a name (the folder of its features)."""

    name: str
    path: str
    description: Mapping[str, Any]

    @classmethod
    def of(cls, name: str, path: str) -> EncoderSpec:
        """Read the description. Raises what `pathray.store.artifact.describe` raises, and UserError for an encoder that
        is not for RGB images or needs unsupported preprocessing, which is never skipped silently."""
        from pathray.store.artifact import describe

        spec = cls(name, path, describe(path))
        spec._check()
        return spec

    @property
    def size_px(self) -> int:
        """Side of the images that the encoder was trained on, in pixels."""
        size = self.preprocessing["size"]
        return int(size if isinstance(size, int | float) else size[0])

    @property
    def mpp(self) -> float | None:
        value = self.preprocessing["mpp"]
        return None if value is None else float(value)

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.description["preprocessing"]
        return found

    def dim(self, pooling: str) -> int:
        """The length of one feature vector. UserError if the pooling needs a class token that the encoder lacks."""
        vit = self.description["vit"]
        if "cls" in pooling and not vit["cls_token"]:
            raise UserError(
                "the encoder has no class token", file=self.path, key="pooling", found=pooling, expected="mean"
            )
        return int(vit["dim"]) * (2 if pooling == "cls+mean" else 1)

    def input_px(self, width: int, height: int, *, resize: bool) -> tuple[int, int]:
        """The input size (width, height) for an image of this size: unchanged, or with `resize` the encoder's own.

        UserError if the size is not a multiple of the patch size, or if a non-square image would be resized.
        """
        patch = tuple(self.description["vit"]["patch_size"])
        if resize and width != height:
            found = f"{width} x {height}"
            raise UserError("resize needs square images", file=self.path, key="resize", found=found)
        size = (self.size_px, self.size_px) if resize else (width, height)
        if size[1] % patch[0] or size[0] % patch[1]:
            raise UserError(
                f"{self.name}: the image size is not a multiple of the patch size",
                file=self.path,
                found=f"{size[0]} x {size[1]} pixels",
                expected=f"a multiple of {patch[0]}, or resize=true for {self.size_px} pixels",
            )
        return size

    def identity(self) -> dict[str, Any]:
        """Everything that features depend on: weights, architecture, preprocessing. Not the name, path or history."""
        return {k: self.description[k] for k in ("sha256", "architecture", "vit", "preprocessing", "science")}

    def _check(self) -> None:
        vit, given = self.description["vit"], self.preprocessing
        axes, layout = len(vit["patch_size"]), given.get("layout", "NCHW")
        if axes != 2 or vit["in_channels"] != 3 or layout != "NCHW":
            found = f"{vit['in_channels']} channels in {axes}-D, layout {layout}"
            expected = f"3 channels, NCHW{VOLUMES if axes == 3 else ''}"
            raise UserError("not an encoder of RGB images", file=self.path, found=found, expected=expected)
        others = {k: v for k, v in given.items() if k not in UNDERSTOOD and v not in (None, False, 0)}
        if others:
            message = "the encoder needs preprocessing that extraction does not support"
            raise UserError(message, file=self.path, key="preprocessing", found=others, expected=UNDERSTOOD)
        size = given["size"]
        if not isinstance(size, int | float) and len(set(size)) != 1:
            raise UserError("the encoder's images are not square", file=self.path, key="preprocessing.size", found=size)


class FeatureEncoder:
    """Maps uint8 tiles to float32 features. Holds the ViT on a device, in evaluation mode, without gradients."""

    def __init__(
        self, vit: ViT, preprocessing: Mapping[str, Any], device: Device, *, pooling: str, precision: str
    ) -> None:
        import torch

        assert pooling in POOLINGS, pooling
        self.vit = vit.requires_grad_(False).eval().to(device.torch_device)
        self.device, self.pooling, self.precision = device, pooling, precision
        row = (1, 3, 1, 1)
        self._mean = torch.tensor(preprocessing["mean"], dtype=torch.float32, device=device.torch_device).view(row)
        self._std = torch.tensor(preprocessing["std"], dtype=torch.float32, device=device.torch_device).view(row)

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 ``[B, h, w, 3]`` on the device → float32 ``[B, D]`` on the device.

        In fp32 a row is independent of B and of the other rows up to 1e-5; in bf16 and fp16 up to their rounding.
        """
        import torch

        with torch.inference_mode(), self.device.autocast(self.precision):
            images = (pixels.movedim(-1, 1).to(torch.float32) / 255.0 - self._mean) / self._std
            return self.pool(self.vit(images).float())

    def pool(self, tokens: Tensor) -> Tensor:
        """``[B, P+N, D]`` → ``[B, D]`` or, for ``cls+mean``, ``[B, 2D]`` (class token first), without registers."""
        import torch

        patches = tokens[:, self.vit.num_prefix :].mean(dim=1)
        if self.pooling == "mean":
            return patches
        return tokens[:, 0] if self.pooling == "cls" else torch.cat([tokens[:, 0], patches], dim=1)


def load_encoder(
    spec: EncoderSpec, device: Device, *, pooling: str = "mean", precision: str = "fp32"
) -> FeatureEncoder:
    """The encoder of a spec on `device`. Raises what `EncoderArtifact.load` raises, and UserError if the artifact was
    replaced since the spec was read, or if the pooling needs a class token that it lacks."""
    from pathray.store.artifact import EncoderArtifact

    vit, description = EncoderArtifact.load(spec.path)
    check_same(spec, description)
    spec.dim(pooling)
    return FeatureEncoder(vit, spec.preprocessing, device, pooling=pooling, precision=precision)


def check_same(spec: EncoderSpec, description: Mapping[str, Any]) -> None:
    """UserError if the artifact with this description was written after the spec was read."""
    if description["sha256"] != spec.description["sha256"]:
        found, expected = description["sha256"], spec.description["sha256"]
        raise UserError("the encoder was replaced during the run", file=spec.path, found=found, expected=expected)
