"""Draws pictures of masks during a run. It observes ticks and does not affect training.

Always the same patches, without augmentation, with the mask model in evaluation mode: no random number is drawn. Not
here: how a picture looks (adios.visualise).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from adios.artifact import TrainedMaskModel
from adios.recipe import AdiosRecipe
from pathray.errors import UserError
from pathray.train.loop import Tick

log = logging.getLogger(__name__)
SHOWN = 8  # patches


class MaskPictures:
    """Observes every tick; `every` is in steps. `folder` (path or URL) is None on an XLA host that only takes part in
    the common program: it computes the masks and writes nothing.

    `images(n)` reads the patches, uint8 `[n, S, S, 3]`, when the first picture is due. An error in a picture is logged
    and does not end the run.
    """

    def __init__(
        self, recipe: AdiosRecipe, images: Callable[[int], npt.NDArray[np.uint8]], every: int, folder: str | None
    ) -> None:
        self.recipe, self.images, self.every, self.folder = recipe, images, every, folder
        self._shown: npt.NDArray[np.uint8] | None = None

    def observe(self, tick: Tick) -> dict[str, float]:
        """Draw a picture when one is due, and a film of all at the end. Returns no metrics."""
        if tick.step % self.every and tick.end is None:
            return {}
        try:
            self._draw(tick.step, last=tick.end is not None)
        except (OSError, UserError) as e:
            log.warning("no picture of the masks of iteration %d: %s", tick.step, e)
        return {}

    def _draw(self, step: int, last: bool) -> None:
        if self._shown is None:
            self._shown = self.images(SHOWN)
        data = self.recipe.config.data
        network = TrainedMaskModel(self.recipe.mask_model, data.mean, data.std, {}).eval()
        masks = network.masks(torch.from_numpy(self._shown)).cpu().numpy()
        if self.folder is not None:
            from adios.visualise import write_film, write_masks

            write_masks(self.folder, step, self._shown, masks, data.mean)
            if last:
                write_film(self.folder)
