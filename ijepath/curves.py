"""The panels of an I-JEPATH run's training curves, in this order."""

from __future__ import annotations

from pathray.draw.charts import Panel
from pathray.reports.curves import GRADIENT_NORM, LEARNING_RATE, LOSS, SPEED

CURVES = (
    LOSS,
    Panel(
        "Collapse: RankMe of the targets",
        (("target_rankme", "teacher features"),),
        "effective dimensions",
        from_zero=True,
    ),
    Panel(
        "Collapse: feature deviation",
        (
            ("target_std", "targets, per batch"),
            ("target_feature_std", "targets, newest"),
            ("prediction_std", "predictions"),
        ),
        from_zero=True,
    ),
    Panel("Teacher behind student", (("teacher_student_drift", "drift"),), "relative distance"),
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
