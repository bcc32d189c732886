"""The panels of an ADIOS run's training curves, in this order."""

from __future__ import annotations

from pathray.draw.charts import Panel
from pathray.reports.curves import LOSS, SPEED

MASKS = 6  # masks with curves

CURVES = (
    LOSS,
    Panel("Student: contrast", (("loss_whole", "whole views"), ("loss_crops", "crops"))),
    Panel("Mask model", (("loss/mask", "loss"), ("loss_adversarial", "student's contrast"))),
    Panel("Masks: penalty", (("sparsity_penalty", "penalty"),)),
    Panel(
        "Masks: mean activation", tuple((f"mask_mean/{n}", f"mask {n + 1}") for n in range(MASKS)), "share of the image"
    ),
    Panel(
        "Masks: shape",
        (("mask_spread", "spread"), ("mask_entropy", "entropy"), ("mask_overlap", "overlap")),
        from_zero=True,
    ),
    Panel("Temperature", (("temperature", "temperature"),), from_zero=True, smooth=False),
    Panel("Whole views explained by masked ones", (("explained", "variance"),), "share, 0: the mean", low=-1.0),
    Panel(
        "Collapse: RankMe",
        (("feature_rankme", "whole views"), ("masked_rankme", "masked views")),
        "effective dimensions",
        from_zero=True,
    ),
    Panel("Collapse: deviation", (("feature_std", "whole views"), ("masked_std", "masked views")), from_zero=True),
    Panel("Learning rate", (("lr", "learning rate"), ("lr/mask", "mask model")), from_zero=True, smooth=False),
    Panel("Gradient norm", (("grad_norm", "before clipping"), ("grad_norm/mask", "mask model"))),
    SPEED,
)
