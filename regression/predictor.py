"""Predicts expression from images with a trained regression; `pathray.load_model` returns it.

Not here: predictions for the rows of a plan, shared among workers (regression.evaluate).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from pathray.device import Device
from pathray.errors import UnreadableUnit, UserError
from pathray.wsi.resize import resize
from regression import artifact
from regression.data import Pixels, read_square
from regression.recipe import to_inputs


class Predictor:
    """A trained network on a device, in evaluation mode, with its genes and their scale."""

    def __init__(self, trained: artifact.Trained, device: Device) -> None:
        self.net, self.device = trained.net.to(device.torch_device), device.torch_device
        self.preprocessing, self.normaliser = trained.preprocessing, trained.normaliser

    @property
    def genes(self) -> tuple[str, ...]:
        """Names of the columns of a prediction."""
        return self.normaliser.genes

    def read(self, path: str) -> Pixels:
        """An image file as uint8 `[S, S, 3]`. UserError for one that cannot be read or is not square."""
        try:
            return read_square(path, self.preprocessing.size)
        except UnreadableUnit as e:
            raise UserError("the image cannot be read", file=e.path, found=f"{e.reason} {e.detail}".strip()) from e

    def fit(self, image: Pixels) -> Pixels:
        """An image `[H, W, 3]` as `[S, S, 3]`. UserError for one that is not square."""
        height, width = image.shape[:2]
        if height != width:
            raise UserError("not a square image", found=f"{width} x {height} pixels", expected="a square")
        return resize(image, self.preprocessing.size, self.preprocessing.size)

    def predict(self, pixels: Pixels) -> npt.NDArray[np.float64]:
        """uint8 `[B, S, S, 3]` → float64 `[B, K]` in the genes' own units."""
        with torch.no_grad():
            images = to_inputs(torch.from_numpy(pixels).to(self.device), self.preprocessing)
            predicted = self.net(images).float().cpu().numpy()
        return self.normaliser.invert(predicted)


def load_predictor(folder: str, device: Device) -> Predictor:
    """The predictor of an exported model. Raises what `regression.artifact.load` raises."""
    return Predictor(artifact.load(folder), device)
