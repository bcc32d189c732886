"""Panels of training curves that every science has. What only one science measures is in its own `curves.CURVES`."""

from __future__ import annotations

from pathray.draw.charts import Panel

LOSS = Panel("Loss", (("loss", "mean"),), band=("loss_min", "loss_max"))
LEARNING_RATE = Panel("Learning rate", (("lr", "learning rate"),), from_zero=True, smooth=False)
GRADIENT_NORM = Panel("Gradient norm", (("grad_norm", "before clipping"),))
SPEED = Panel("Speed", (("images_per_s", "images/s"),), "images/s", from_zero=True)
