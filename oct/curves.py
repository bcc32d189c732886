"""The panels of an OCT pretraining's curves, in this order."""

from __future__ import annotations

from pathray.draw.charts import Panel
from pathray.reports.curves import GRADIENT_NORM, LEARNING_RATE, LOSS, SPEED

CURVES = (
    LOSS,
    Panel("Held-out volumes", (("val/loss", "loss"),)),
    Panel("Explained by the prediction", (("explained", "targets' variance"),), "share, 0: the mean", low=-1.0),
    Panel(
        "Collapse: RankMe",
        (("target_rankme", "targets"), ("prediction_rankme", "predictions"), ("student_rankme", "context")),
        "effective dimensions",
        from_zero=True,
    ),
    Panel(
        "Collapse: feature deviation",
        (
            ("target_std", "targets, per batch"),
            ("target_feature_std", "targets, newest"),
            ("prediction_std", "predictions"),
            ("student_std", "context"),
        ),
        from_zero=True,
    ),
    Panel("Teacher behind student", (("teacher_student_drift", "drift"),), "relative distance"),
    LEARNING_RATE,
    GRADIENT_NORM,
    SPEED,
)
