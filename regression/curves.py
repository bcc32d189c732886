"""The panels of a regression's training curves, in this order."""

from __future__ import annotations

from pathray.draw.charts import Panel
from pathray.reports.curves import GRADIENT_NORM, LEARNING_RATE, LOSS, SPEED

CURVES = (
    LOSS,
    Panel("Validation", (("val/spearman", "Spearman ρ"), ("val/pearson", "Pearson r"))),
    LEARNING_RATE,
    GRADIENT_NORM,
    SPEED,
)
