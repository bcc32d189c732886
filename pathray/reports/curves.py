"""Panels of training curves that sciences share. What only one science measures is in its own `curves.CURVES`."""

from __future__ import annotations

from pathray.draw.charts import Panel

LOSS = Panel("Loss", (("loss", "mean"),), band=("loss_min", "loss_max"))
LEARNING_RATE = Panel("Learning rate", (("lr", "learning rate"),), from_zero=True, smooth=False)
GRADIENT_NORM = Panel("Gradient norm", (("grad_norm", "before clipping"),))
SPEED = Panel("Speed", (("images_per_s", "images/s"),), "images/s", from_zero=True)

# Of a science that predicts a teacher's features: is there learning, or collapse?
EXPLAINED = Panel("Explained by the prediction", (("explained", "targets' variance"),), "share, 0: the mean", low=-1.0)
RANKME = Panel(
    "Collapse: RankMe",
    (("target_rankme", "targets"), ("prediction_rankme", "predictions"), ("student_rankme", "context")),
    "effective dimensions",
    from_zero=True,
)
DEVIATION = Panel(
    "Collapse: feature deviation",
    (
        ("target_std", "targets, per batch"),
        ("target_feature_std", "targets, newest"),
        ("prediction_std", "predictions"),
        ("student_std", "context"),
    ),
    from_zero=True,
)
TEACHER_DRIFT = Panel("Teacher behind student", (("teacher_student_drift", "drift"),), "relative distance")
