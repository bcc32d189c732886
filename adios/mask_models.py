"""The networks that propose masks: images -> a softmax over N masks per pixel, `[B, N, H, W]`.

`adios` is the U-Net of the paper (Shi et al., arXiv 2201.13100; with an MLP at its bottom, as in Engelcke et al.,
arXiv 1907.13052), `vit_unet` a small ViT with the up-path of CellViT (Hörst et al., arXiv 2306.15350). Both normalise
by groups, never by batches, so a mask depends on its image alone.

Not here: the use of masks (adios.loss), and their storage (adios.artifact).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2

import torch
from torch import Tensor, nn

from pathray.errors import UserError
from pathray.nn.vit import ViT, ViTConfig

KINDS = ("vit_unet", "adios")
NORM_GROUPS = 8
PATCH = 16  # of vit_unet: its up-path doubles four times


@dataclass(frozen=True, kw_only=True)
class MaskModelConfig:
    """`image_size` is the side of training images. `adios` uses `channels`, `vit_unet` uses all from `dim` on."""

    kind: str = "vit_unet"
    num_masks: int = 3
    image_size: int = 224
    channels: int = 32  # of the U-Net's first level
    dim: int = 192
    depth: int = 12
    heads: int = 3
    drop_path: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError("unknown mask model", key="mask_model_type", found=self.kind, expected=" or ".join(KINDS))
        if self.num_masks < 2:
            message = "a single mask would cover everything"
            raise UserError(message, key="num_masks", found=self.num_masks, expected="at least 2")
        if self.channels % NORM_GROUPS:
            message = "channels do not divide into groups"
            raise UserError(
                message, key="mask_model.channels", found=self.channels, expected=f"a multiple of {NORM_GROUPS}"
            )
        if self.depth % 4:
            message = "the depth does not divide into quarters"
            raise UserError(message, key="mask_model.depth", found=self.depth, expected="a multiple of 4")
        step = 2 ** (levels(self.image_size) - 1) if self.kind == "adios" else PATCH
        if self.image_size < 16 or self.image_size % step:
            raise UserError(
                f"the mask model {self.kind} needs whole images",
                key="data.image_size",
                found=self.image_size,
                expected=f"a multiple of {step}",
            )


class MaskModel(nn.Module):
    """The configured network. Call `masks`; `forward` returns logits."""

    def __init__(self, config: MaskModelConfig) -> None:
        super().__init__()
        self.config = config
        self.net: nn.Module = UNet(config) if config.kind == "adios" else ViTUNet(config)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images `[B, 3, H, W]` -> logits `[B, N, H, W]`."""
        logits: Tensor = self.net(images)
        return logits

    def masks(self, images: Tensor) -> Tensor:
        """Normalised images `[B, 3, H, W]` -> masks `[B, N, H, W]` float32 in 0…1 that add up to 1 at every pixel.

        UserError for an unsupported image size: `adios` takes `image_size` alone, `vit_unet` any number of whole
        patches.
        """
        logits = self(images)
        masks: Tensor = (logits if logits.dtype == torch.float64 else logits.float()).softmax(dim=1)
        return masks


def build_mask_model(config: MaskModelConfig, seed: int) -> MaskModel:
    """Initialised from the seed; torch's global random state does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MaskModel(config)


# --- the paper's U-Net ------------------------------------------------------------------------------------------------


def levels(image_size: int) -> int:
    """⌊log₂ size − 1⌋: the number of resolutions of the U-Net; 6 for 224 pixels."""
    return int(log2(max(image_size, 4)) - 1)


class UNet(nn.Module):
    """Levels halve the resolution by dropping every other pixel and double it by repeating; half of them have c
    channels, the deeper ones 2c. At the bottom an MLP -> 128 -> 128 -> sees the whole image at once."""

    def __init__(self, config: MaskModelConfig) -> None:
        super().__init__()
        self.size, count, c = config.image_size, levels(config.image_size), config.channels
        self.bottom = config.image_size // 2 ** (count - 1)
        widths = [c] * (count // 2) + [2 * c] * (count - count // 2)
        self.down = nn.ModuleList(_conv(a, b) for a, b in zip([3, *widths], widths, strict=False))
        outs = widths[:-1][::-1] + [c]  # a level up has the output width of the level above
        ins = [widths[-1], *outs[:-1]]
        self.up = nn.ModuleList(_conv(a + skip, b) for a, skip, b in zip(ins, widths[::-1], outs, strict=True))
        flat = widths[-1] * self.bottom**2
        self.mlp = nn.Sequential(
            nn.Linear(flat, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, flat), nn.ReLU()
        )
        self.head = nn.Conv2d(c, config.num_masks, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (self.size, self.size):
            expected = f"{self.size} x {self.size}, the size of its training"
            raise UserError("the mask model adios takes one size", found=tuple(x.shape[-2:]), expected=expected)
        skips: list[Tensor] = []
        for block in self.down:
            x = block(x if not skips else x[..., ::2, ::2])
            skips.append(x)
        x = self.mlp(x.flatten(1)).view_as(x)
        for number, block in enumerate(self.up):
            if number:
                x = _repeat_pixels(x)
            x = block(torch.cat([x, skips[-1 - number]], dim=1))
        out: Tensor = self.head(x)
        return out


# --- a ViT with CellViT's up-path -------------------------------------------------------------------------------------


def skip_widths(dim: int) -> tuple[int, int, int]:
    """Channels of the skips (first of the long ones, second, bottom) for a ViT of width `dim`."""
    return (256, 128, 256) if dim < 512 else (512, 256, 512) if dim < 1024 else (768, 384, 768)


class ViTUNet(nn.Module):
    """Features after L/4, L/2, 3L/4 and L blocks z₁ … z₄ at 1/16; each joins the up-path at its own resolution:
    z₄ and z₃ at 1/8, z₂ at 1/4, z₁ at 1/2, the image itself (3 -> 32 -> 64) at the end."""

    def __init__(self, config: MaskModelConfig) -> None:
        super().__init__()
        d, depth = config.dim, config.depth
        first, second, bottom = skip_widths(d)
        self.layers = [depth // 4 * i for i in (1, 2, 3, 4)]
        self.vit = ViT(
            ViTConfig(
                img_size=(config.image_size, config.image_size),
                patch_size=(PATCH, PATCH),
                dim=d,
                depth=depth,
                heads=config.heads,
                positions="learned",
                drop_path=config.drop_path,
            )
        )
        self.image = nn.Sequential(_conv(3, 32), _conv(32, 64))
        self.skip1 = nn.Sequential(_double(d, first), _double(first, second), _double(second, 128))
        self.skip2 = nn.Sequential(_double(d, first), _double(first, 256))
        self.skip3 = _double(d, bottom)
        self.bottom = nn.ConvTranspose2d(d, bottom, 2, stride=2)
        self.up3 = _up(2 * bottom, bottom, 256)
        self.up2 = _up(2 * 256, 256, 128)
        self.up1 = _up(2 * 128, 128, 64)
        self.head = nn.Sequential(_conv(2 * 64, 64), _conv(64, 64), nn.Conv2d(64, config.num_masks, 1))

    def forward(self, x: Tensor) -> Tensor:
        z1, z2, z3, z4 = (self._plane(t, x) for t in self.vit.intermediate(x, self.layers))
        b = self.up3(torch.cat([self.skip3(z3), self.bottom(z4)], dim=1))
        b = self.up2(torch.cat([self.skip2(z2), b], dim=1))
        b = self.up1(torch.cat([self.skip1(z1), b], dim=1))
        out: Tensor = self.head(torch.cat([self.image(x), b], dim=1))
        return out

    def _plane(self, tokens: Tensor, images: Tensor) -> Tensor:
        """`[B, N, D]` -> `[B, D, H/16, W/16]`, after the ViT's last norm."""
        normed: Tensor = self.vit.norm(tokens)
        plane: Tensor = normed.transpose(1, 2).unflatten(2, self.vit.grid(images.shape[2:]))
        return plane


def _conv(before: int, after: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False), nn.GroupNorm(NORM_GROUPS, after), nn.ReLU()
    )


def _repeat_pixels(x: Tensor) -> Tensor:
    """Every pixel four times, `[B, C, 2H, 2W]`. Used instead of nearest-neighbour interpolation, whose gradient XLA
    would compute on the host."""
    return x[..., :, None, :, None].expand(-1, -1, -1, 2, -1, 2).flatten(4, 5).flatten(2, 3)


def _double(before: int, after: int) -> nn.Module:
    """Doubles the resolution."""
    return nn.Sequential(nn.ConvTranspose2d(before, after, 2, stride=2), _conv(after, after))


def _up(before: int, between: int, after: int) -> nn.Module:
    """Mixes the joined features and doubles their resolution."""
    return nn.Sequential(
        _conv(before, between), _conv(between, between), nn.ConvTranspose2d(between, after, 2, stride=2)
    )
