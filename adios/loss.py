"""The contrastive loss of two views, and the penalty that keeps masks from covering everything or nothing.

ADIOS (Shi et al., ICML 2022, arXiv 2201.13100, equations 4 to 7) with SimCLR's loss (Chen et al., arXiv 2002.05709,
equation 1). The student minimises Σ_k L_k over the views k; the mask model minimises −Σ_k L_k + α P. Formulas only.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PENALTIES = ("inverse_sin", "sinh_squared")
EPSILON = 1e-10
LEAST_SHARE = 1e-20  # of a mask: for targets below one half the slope of the warp is infinite at 0


def contrast(
    a: Tensor, b: Tensor, all_a: Tensor, all_b: Tensor, temperature: Tensor, first: int = 0
) -> Tensor:  # fmt: skip
    """SimCLR's loss of image i's view a with each of its views b_v, `[V, B]`.

    a `[B, D]` and b `[V, B, D]` are unit vectors of B images, which start at index `first` of the G images of the whole
    batch, all_a `[G, D]` and all_b `[V, G, D]`. With the 2G vectors {a_j, b_j} of one v and s(x, y) = x·y / τ:
        ℓ(x, y) = −s(x, y) + log Σ_{w ≠ x} exp s(x, w),   L_v,i = (ℓ(a_i, b_i) + ℓ(b_i, a_i)) / 2.
    In float32 or float64, also under autocast. `temperature` τ is a scalar tensor.
    """
    with torch.autocast(a.device.type, enabled=False):
        own = torch.arange(len(a), device=a.device) + first
        itself = own[:, None] == torch.arange(len(all_a), device=a.device)[None]
        aa = (a @ all_a.T / temperature).masked_fill(itself, -math.inf)
        bb = (b @ all_b.mT / temperature).masked_fill(itself, -math.inf)
        ab, ba = a @ all_b.mT / temperature, b @ all_a.T / temperature
        positive = (a * b).sum(dim=-1) / temperature
        forward = torch.cat([aa.expand(len(b), -1, -1), ab], dim=-1).logsumexp(dim=-1)
        backward = torch.cat([ba, bb], dim=-1).logsumexp(dim=-1)
        return (forward + backward) / 2 - positive


def penalty(masks: Tensor, kind: str, target: float | None = None) -> Tensor:
    """P of the masks of each image, `[B]`, from masks `[B, N, H, W]` that are a softmax over N.

    With m_n the mean activation of mask n over the image:
        inverse_sin   Σ_n 1 / (sin(π m_n) + 1e-10)        sinh_squared   Σ_n sinh²(π |m_n − ½|)
    For one mask alone P is least at ½; as the N of them add up to 1, P is least where all are 1/N. A `target` t moves
    the minimum of one mask alone to t by m ← m^(ln ½ / ln t), which keeps 0 and 1.
    In float32 or float64, also under autocast: half precision is too coarse near the poles.
    """
    assert kind in PENALTIES, kind
    with torch.autocast(masks.device.type, enabled=False):
        share = (masks if masks.dtype == torch.float64 else masks.float()).mean(dim=(2, 3))
        if target is not None:
            share = share.clamp(min=LEAST_SHARE) ** (math.log(0.5) / math.log(target))
        if kind == "inverse_sin":
            sine = torch.sin(math.pi * share).clamp(min=0)  # float32's π is too large: −9e-8 at a share of 1
            return (1 / (sine + EPSILON)).sum(dim=1)
        return (torch.sinh(math.pi * (share - 0.5).abs()) ** 2).sum(dim=1)


def mask_statistics(masks: Tensor) -> dict[str, Tensor]:
    """Statistics of masks `[B, N, H, W]`, as scalars over the batch.

    mask_mean/n: mean activation of mask n. mask_spread: deviation over the pixels of an image (0: uniform grey).
    mask_entropy: of the softmax at a pixel over ln N (1: undecided). mask_overlap: Σ m_i m_j / Σ (m_i + m_j − m_i m_j)
    over the pixels of an image, mean over pairs of masks (0: they share nothing, also if they are empty).
    In float32, also under autocast: sums over the pixels of a large image exceed half precision.
    """
    flat = masks.detach().float().flatten(2)
    count = flat.shape[1]
    with torch.autocast(masks.device.type, enabled=False):
        total, product = flat.sum(dim=2), flat @ flat.mT
    union = total[:, :, None] + total[:, None, :] - product
    shared = product / union.clamp(min=1e-12)
    apart = shared.sum(dim=(1, 2)) - shared.diagonal(dim1=1, dim2=2).sum(dim=1)  # each pair twice
    entropy = -(flat * flat.clamp(min=1e-12).log()).sum(dim=1).mean() / math.log(count)
    return {
        **{f"mask_mean/{n}": flat[:, n].mean() for n in range(count)},
        "mask_spread": flat.std(dim=2, correction=0).mean(),
        "mask_entropy": entropy,
        "mask_overlap": apart.mean() / (count * (count - 1)),
    }
