"""The panels of an I-JEPATH run's training curves, in this order."""

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
    EXPLAINED,
    RANKME,
    DEVIATION,
    TEACHER_DRIFT,
    LEARNING_RATE,
    Panel(
        "Tokens",
        (("context_keep_tokens", "context, seen"), ("target_predict_tokens", "per target, predicted")),
        from_zero=True,
        smooth=False,
    ),
    GRADIENT_NORM,
    SPEED,
)
