"""The published pathology encoders that are known: one row each, of what their weights hold and their images look like.

Figures are those of the model cards and of public code that loads the models; `unverified` names the fields for which
neither was found. Another model is a row here. Not here: names of parameters (pathray.features.published.names).
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pathray.errors import UserError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
H_OPTIMUS = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
NON_COMMERCIAL = "CC-BY-NC-ND 4.0: no commercial use; ask for access at the hub"
APACHE = "Apache-2.0"
HIDDEN = {"gelu": 4.0, "swiglu": 4.0}  # of a plain MLP, from which the width of a gated one follows (nn.blocks.SwiGLU)


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published encoder. Sizes in pixels of one side, `mpp` in µm per pixel.

    layout: whose parameter names it has. mlp: gelu, or swiglu with gate and value packed in one layer. registers:
    tokens after the class token. prefix_positions: rows of the table of positions that belong to tokens before the
    patches: 0, 1 (class token), or 1 + registers. pool: the arguments of an attention pooling, where it has one.
    pooling: what its authors take as the feature. mean, std: of pixels in 0 … 1.
    """

    name: str
    hub: str
    licence: str
    dim: int
    depth: int
    heads: int
    patch: int
    size: int = 224
    layout: str = "timm"
    mlp: str = "gelu"
    layer_scale: bool = True
    registers: int = 0
    prefix_positions: int = 1
    pool: dict[str, int] | None = None
    pooling: str = "cls"
    mean: tuple[float, float, float] = IMAGENET[0]
    std: tuple[float, float, float] = IMAGENET[1]
    interpolation: str = "bicubic"
    mpp: float = 0.5
    unverified: tuple[str, ...] = ()

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.size // self.patch

    def vit(self) -> dict[str, Any]:
        """The fields of `pathray.nn.vit.ViTConfig`."""
        return {
            "img_size": (self.size, self.size),
            "patch_size": (self.patch, self.patch),
            "dim": self.dim,
            "depth": self.depth,
            "heads": self.heads,
            "mlp": self.mlp,
            "mlp_ratio": HIDDEN[self.mlp],
            "positions": "learned",
            "registers": self.registers,
            "cls_token": True,
            "layer_scale": 1e-5 if self.layer_scale else None,
        }


_GIANT: dict[str, Any] = {"dim": 1536, "heads": 24, "mlp": "swiglu"}
_OPTIMUS: dict[str, Any] = {
    **_GIANT,
    "depth": 40,
    "patch": 14,
    "registers": 4,
    "prefix_positions": 0,
    "unverified": ("interpolation",),
}
_VIRCHOW: dict[str, Any] = {"dim": 1280, "depth": 32, "heads": 16, "patch": 14, "mlp": "swiglu", "pooling": "cls+mean"}

MODELS = (
    Published(
        name="uni", hub="MahmoodLab/UNI", licence=NON_COMMERCIAL,
        dim=1024, depth=24, heads=16, patch=16, interpolation="bilinear",
    ),
    Published(
        name="uni2h", hub="MahmoodLab/UNI2-h", licence=NON_COMMERCIAL,
        **_GIANT, depth=24, patch=14, registers=8, prefix_positions=0,
        interpolation="bilinear", unverified=("interpolation",),
    ),
    Published(name="virchow", hub="paige-ai/Virchow", licence=APACHE, **_VIRCHOW),
    Published(
        name="virchow2", hub="paige-ai/Virchow2", licence=NON_COMMERCIAL,
        **_VIRCHOW, registers=4, prefix_positions=5,
    ),
    Published(
        name="h_optimus_0", hub="bioptimus/H-optimus-0", licence=APACHE,
        **_OPTIMUS, mean=H_OPTIMUS[0], std=H_OPTIMUS[1],
    ),
    Published(
        name="h_optimus_1", hub="bioptimus/H-optimus-1", licence=NON_COMMERCIAL,
        **_OPTIMUS, mean=H_OPTIMUS[0], std=H_OPTIMUS[1],
    ),
    Published(
        name="h0_mini", hub="bioptimus/H0-mini", licence=NON_COMMERCIAL,
        dim=768, depth=12, heads=12, patch=14, mlp="swiglu", registers=4, prefix_positions=0,
        mean=H_OPTIMUS[0], std=H_OPTIMUS[1], unverified=("interpolation",),
    ),
    Published(
        name="phikon_v2", hub="owkin/phikon-v2", licence="Owkin's non-commercial licence", layout="dinov2",
        dim=1024, depth=24, heads=16, patch=16, unverified=("interpolation", "size"),
    ),
    Published(
        name="gigapath", hub="prov-gigapath/prov-gigapath", licence="Prov-GigaPath's terms at the hub: research only",
        **_GIANT, depth=40, patch=16,
    ),
    Published(
        name="conch", hub="MahmoodLab/CONCH", licence=NON_COMMERCIAL, layout="conch",
        dim=768, depth=12, heads=12, patch=16, size=448, layer_scale=False,
        pool={"dim": 512, "heads": 8, "queries": 1}, pooling="attention", unverified=("mpp",),
    ),
)  # fmt: skip
ALIASES = {"univ1": "uni", "univ2": "uni2h", "uni2-h": "uni2h", "phikon-v2": "phikon_v2"}


def model_names() -> list[str]:
    return [model.name for model in MODELS]


def model_of(name: str) -> Published:
    """The row of that name, or of an alias of it. UserError, with the nearest name, for one that is not known."""
    known = {model.name: model for model in MODELS}
    wanted = name.lower().replace("-", "_")
    found = ALIASES.get(name.lower(), ALIASES.get(wanted, wanted))
    if found not in known:
        near = get_close_matches(wanted, known, 1)
        expected = near[0] if near else ", ".join(known)
        raise UserError("no such published model", key="model", found=name, expected=expected)
    return known[found]
