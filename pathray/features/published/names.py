"""Parameter names of published encoders → names of Pathray's networks, by layout: timm, dinov2 (Hugging Face), conch.

A `Rule` makes one tensor of ours out of one or more of theirs, whose shapes follow from the row of the model. Not here:
checking a file against the rules (pathray.features.published.convert).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pathray.features.published.models import Published

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Rule:
    """`make` gives our tensor `target` of theirs, in the order of `sources` (name, shape)."""

    target: str
    sources: tuple[tuple[str, Shape], ...]
    make: Callable[..., Tensor]


@dataclass(frozen=True)
class Names:
    """How a layout calls what all ViTs have. `block` and what follows it are names within a block; `qkv` are one
    name, or three whose tensors are stacked. `ignored`: beginnings of names that extraction does not need."""

    cls: str
    register: str
    positions: str
    patch: str
    block: str
    qkv: tuple[str, ...]
    proj: str
    scales: tuple[str, str]
    mlp: tuple[str, str]
    norm: str
    ignored: tuple[str, ...] = ()


TIMM = Names(
    cls="cls_token", register="reg_token", positions="pos_embed", patch="patch_embed.proj", block="blocks.{}.",
    qkv=("attn.qkv",), proj="attn.proj", scales=("ls1.gamma", "ls2.gamma"), mlp=("mlp.fc1", "mlp.fc2"), norm="norm",
)  # fmt: skip
DINOV2 = Names(
    cls="embeddings.cls_token", register="embeddings.register_tokens", positions="embeddings.position_embeddings",
    patch="embeddings.patch_embeddings.projection", block="encoder.layer.{}.",
    qkv=tuple(f"attention.attention.{part}" for part in ("query", "key", "value")), proj="attention.output.dense",
    scales=("layer_scale1.lambda1", "layer_scale2.lambda1"), mlp=("mlp.fc1", "mlp.fc2"), norm="layernorm",
    ignored=("embeddings.mask_token",),
)  # fmt: skip
TRUNK = "visual.trunk."
CAPTIONING = ("visual.attn_pool_caption.", "visual.ln_caption.", "visual.proj_contrast")
LAYOUTS = {"timm": TIMM, "dinov2": DINOV2, "conch": TIMM}
IGNORED = {
    "timm": (),
    "dinov2": DINOV2.ignored,
    "conch": ("text.", "text_decoder.", "logit_scale", *CAPTIONING),  # the other half of an image-and-text model
}


def rules_of(model: Published) -> list[Rule]:
    """Everything that the network of `model` needs of its file."""
    if model.layout != "conch":
        return list(_vit(model, LAYOUTS[model.layout], "", ""))
    return [*_vit(model, TIMM, TRUNK, "vit."), *_pool(model)]


def _vit(model: Published, names: Names, theirs: str, ours: str) -> Iterator[Rule]:
    D, hidden = model.dim, hidden_width(model)
    first, second = ((2 * hidden, D), (D, hidden)) if model.mlp == "swiglu" else ((hidden, D), (D, hidden))
    yield from _embedding(model, names, theirs, ours)
    for i in range(model.depth):
        at, to = theirs + names.block.format(i), f"{ours}blocks.{i}."
        for n, scale in enumerate(names.scales, 1):
            yield from _layer(f"{at}norm{n}", f"{to}norm{n}", (D,))
            if model.layer_scale:
                yield Rule(f"{to}scale{n}.gamma", ((at + scale, (D,)),), _same)
        part = 3 // len(names.qkv) * D
        for kind, shape in (("weight", (part, D)), ("bias", (part,))):
            yield Rule(f"{to}attn.qkv.{kind}", tuple((f"{at}{n}.{kind}", shape) for n in names.qkv), _stack)
        yield from _layer(at + names.proj, f"{to}attn.proj", (D, D))
        yield from _layer(at + names.mlp[0], f"{to}mlp.fc1", first)
        yield from _layer(at + names.mlp[1], f"{to}mlp.fc2", second)
    yield from _layer(theirs + names.norm, f"{ours}norm", (D,))


def _embedding(model: Published, names: Names, theirs: str, ours: str) -> Iterator[Rule]:
    """Patches, positions and the tokens before the patches, to which the file's own positions are added once."""
    D, p, own = model.dim, model.patch, model.prefix_positions
    positions = (theirs + names.positions, (1, own + model.grid**2, D))
    tokens = [(theirs + names.cls, (1, 1, D))]
    if model.registers:
        tokens.append((theirs + names.register, (1, model.registers, D)))

    def prefix(*given: Tensor) -> Tensor:
        import torch

        *parts, table = given
        out = torch.cat(parts, dim=1)
        out[:, :own] += table[:, :own]
        return out

    yield Rule(f"{ours}patch_embed.proj.weight", ((f"{theirs}{names.patch}.weight", (D, 3, p, p)),), _flat)
    yield Rule(f"{ours}patch_embed.proj.bias", ((f"{theirs}{names.patch}.bias", (D,)),), _same)
    yield Rule(f"{ours}prefix_tokens", (*tokens, positions), prefix)
    yield Rule(f"{ours}pos_embed", (positions,), lambda table: table[0, own:])


def _pool(model: Published) -> Iterator[Rule]:
    """The contrastive pooling of CONCH: torch's MultiheadAttention with keys of another width."""
    assert model.pool is not None
    E, C, at = model.pool["dim"], model.dim, "visual.attn_pool_contrast."
    bias = (f"{at}attn.in_proj_bias", (3 * E,))
    yield Rule("pool.query", ((f"{at}query", (model.pool["queries"], E)),), _same)
    yield from _layer(f"{at}ln_q", "pool.norm_q", (E,))
    yield from _layer(f"{at}ln_k", "pool.norm_k", (C,))
    for i, (name, width) in enumerate((("q", E), ("k", C), ("v", C))):
        yield Rule(f"pool.{name}.weight", ((f"{at}attn.{name}_proj_weight", (E, width)),), _same)
        yield Rule(f"pool.{name}.bias", (bias,), lambda whole, i=i: whole.chunk(3)[i])
    yield from _layer(f"{at}attn.out_proj", "pool.proj", (E, E))
    yield from _layer("visual.ln_contrast", "pool.norm", (E,))


def _layer(source: str, target: str, shape: Shape) -> Iterator[Rule]:
    """A weight of that shape and a bias."""
    yield Rule(f"{target}.weight", ((f"{source}.weight", shape),), _same)
    yield Rule(f"{target}.bias", ((f"{source}.bias", shape[:1]),), _same)


def hidden_width(model: Published) -> int:
    """The width between the two layers of an MLP; of a gated one, that of the gate."""
    from pathray.nn.blocks import swiglu_width

    hidden = int(model.dim * model.vit()["mlp_ratio"])
    return swiglu_width(hidden) if model.mlp == "swiglu" else hidden


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _flat(tensor: Tensor) -> Tensor:
    return tensor.flatten(1)


def _stack(*tensors: Tensor) -> Tensor:
    import torch

    return torch.cat(tensors)
