"""The panels of an OCT pretraining's curves, in this order."""

from __future__ import annotations

from pathray.draw.charts import Panel
from pathray.reports.curves import (
    DEVIATION,
    EXPLAINED,
    GRADIENT_NORM,
    LEARNING_RATE,
    LOSS,
    RANKME,
    SPEED,
    TEACHER_DRIFT,
)

CURVES = (
    LOSS,
    Panel("Held-out volumes", (("val/loss", "loss"),)),
    EXPLAINED,
    RANKME,
    DEVIATION,
    TEACHER_DRIFT,
    LEARNING_RATE,
    GRADIENT_NORM,
    SPEED,
)
