"""An encoder artifact as a function from pixels to features: its preprocessing, the network, pooling.

`EncoderSpec` holds the description only, for plans and fingerprints; `FeatureEncoder` holds the weights on a device.
Not here: kinds of encoders (pathray.features.kinds), where pixels come from, where features go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pathray.errors import UserError
from pathray.features.kinds import AUTO, OWN_POOLINGS, POOLINGS, Kind, pool

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pathray.device import Device

PRECISIONS = ("fp32", "bf16", "fp16")
VOLUMES = "; for OCT volumes: ray_jobs.extract_features volumes=…, or oct.encoding.encoder.load_encoder"
UNDERSTOOD = ("mean", "std", "size", "mpp", "layout", "interpolation", "range", "pooling")  # what is implemented here
INTERPOLATIONS = ("area", "bilinear", "bicubic")  # of images that are brought to the encoder's own size
UNIT_RANGE = (0, 1)  # of pixels, before mean and std


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

    @property
    def kind(self) -> Kind:
        return Kind.of(self.description)

    def pooling(self, asked: str) -> str:
        """The pooling that is meant: `auto` is the encoder's own, which for those of Pathray is mean."""
        return self.kind.pooling(asked)

    def dim(self, pooling: str) -> int:
        """The length of one feature vector. UserError if the encoder cannot give it: it lacks a class token, or only
        its own output is known."""
        kind, asked = self.kind, self.pooling(pooling)
        if asked not in kind.widths:
            lacks = kind.vit is not None and "cls" in asked
            message = "the encoder has no class token" if lacks else "the encoder cannot be pooled like this"
            expected = " or ".join(kind.widths)
            raise UserError(message, file=self.path, key="pooling", found=asked, expected=expected)
        return kind.widths[asked]

    def input_px(self, width: int, height: int, *, resize: bool) -> tuple[int, int] | tuple[int, int, str]:
        """The input size (width, height) for an image of this size: unchanged, or with `resize` the encoder's own,
        and then the interpolation where the encoder wants one that is not Pathray's.

        UserError if the encoder cannot take the size, or if a non-square image would be resized.
        """
        if resize and width != height:
            found = f"{width} x {height}"
            raise UserError("resize needs square images", file=self.path, key="resize", found=found)
        size = (self.size_px, self.size_px) if resize else (width, height)
        self._check_size(*size)
        how = str(self.preprocessing.get("interpolation") or "area")
        return size if how == "area" or size == (width, height) else (*size, how)

    def _check_size(self, width: int, height: int) -> None:
        vit, found = self.kind.vit, f"{width} x {height} pixels"
        if vit is None and (width, height) != (self.size_px, self.size_px):
            message = f"{self.name}: a program takes images of its own size only"
            expected = f"{self.size_px} x {self.size_px}, or resize=true"
            raise UserError(message, file=self.path, found=found, expected=expected)
        patch = tuple(vit["patch_size"]) if vit is not None else (1, 1)
        if height % patch[0] or width % patch[1]:
            raise UserError(
                f"{self.name}: the image size is not a multiple of the patch size",
                file=self.path,
                found=found,
                expected=f"a multiple of {patch[0]}, or resize=true for {self.size_px} pixels",
            )

    def identity(self) -> dict[str, Any]:
        """Everything that features depend on: weights, architecture, preprocessing. Not the name, path or history."""
        network = "vit" if "vit" in self.description else "network"
        return {k: self.description[k] for k in ("sha256", "architecture", network, "preprocessing", "science")}

    def _check(self) -> None:
        vit, given = self.kind.vit, self.preprocessing
        axes, channels = (len(vit["patch_size"]), vit["in_channels"]) if vit is not None else (2, 3)
        layout = given.get("layout", "NCHW")
        if axes != 2 or channels != 3 or layout != "NCHW":
            found = f"{channels} channels in {axes}-D, layout {layout}"
            expected = f"3 channels, NCHW{VOLUMES if axes == 3 else ''}"
            raise UserError("not an encoder of RGB images", file=self.path, found=found, expected=expected)
        others = {k: v for k, v in given.items() if k not in UNDERSTOOD and v not in (None, False, 0)}
        others |= {k: given[k] for k, known in self._known_values().items() if given.get(k) not in (None, *known)}
        if others:
            message = "the encoder needs preprocessing that extraction does not support"
            raise UserError(message, file=self.path, key="preprocessing", found=others, expected=UNDERSTOOD)
        size = given["size"]
        if not isinstance(size, int | float) and len(set(size)) != 1:
            raise UserError("the encoder's images are not square", file=self.path, key="preprocessing.size", found=size)

    def _known_values(self) -> dict[str, tuple[Any, ...]]:
        poolings = (*POOLINGS, *OWN_POOLINGS.values())
        return {"interpolation": INTERPOLATIONS, "range": (list(UNIT_RANGE), UNIT_RANGE), "pooling": poolings}


class FeatureEncoder:
    """Maps uint8 tiles to float32 features. Holds a network on a device, in evaluation mode, without gradients."""

    def __init__(
        self, vit: nn.Module, preprocessing: Mapping[str, Any], device: Device, *, pooling: str, precision: str
    ) -> None:
        import torch

        assert pooling in (*POOLINGS, *OWN_POOLINGS.values()), pooling
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
        """What the network gave → ``[B, E]``; see `pathray.features.kinds.pool`."""
        return pool(self.vit, tokens, self.pooling)


def load_encoder(spec: EncoderSpec, device: Device, *, pooling: str = AUTO, precision: str = "fp32") -> FeatureEncoder:
    """The encoder of a spec on `device`. Raises what `load_network` raises, and UserError if the artifact was
    replaced since the spec was read, or if the encoder cannot give this pooling."""
    from pathray.store.artifact import load_network

    network, description = load_network(spec.path)
    check_same(spec, description)
    spec.dim(pooling)
    return FeatureEncoder(network, spec.preprocessing, device, pooling=spec.pooling(pooling), precision=precision)


def check_same(spec: EncoderSpec, description: Mapping[str, Any]) -> None:
    """UserError if the artifact with this description was written after the spec was read."""
    if description["sha256"] != spec.description["sha256"]:
        found, expected = description["sha256"], spec.description["sha256"]
        raise UserError("the encoder was replaced during the run", file=spec.path, found=found, expected=expected)
