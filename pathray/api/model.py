"""A trained model for notebooks and scripts: images in, predictions out.

A model belongs to a science, which this library must not import: the file that describes a model in its folder says
which one, and the science's loader is imported by name when a model is loaded (`LOADERS`).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np
import numpy.typing as npt

from pathray.api.pixels import Path, array_in, match_input, paths_in
from pathray.device import Device
from pathray.errors import MissingFile, UserError
from pathray.store import artifact
from pathray.store.storage import Storage

if TYPE_CHECKING:
    from torch import Tensor

LOADERS = {"regression.json": "regression.predictor:load_predictor"}  # description in the folder → module:function

Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]


class Predictor(Protocol):
    """What a science's loader gives for a folder and a `Device`."""

    @property
    def genes(self) -> tuple[str, ...]:
        """Names of the columns of a prediction."""
        ...

    def read(self, path: str) -> Pixels:
        """An image file as uint8 ``[S, S, 3]``. UserError for one that cannot be read."""
        ...

    def fit(self, image: Pixels) -> Pixels:
        """An image uint8 ``[H, W, 3]`` as ``[S, S, 3]``. UserError for one that will not do."""
        ...

    def predict(self, pixels: Pixels) -> Floats:
        """uint8 ``[B, S, S, 3]`` → float64 ``[B, genes]`` in the genes' own units."""
        ...


class Model:
    """A trained regression. Made by `load_model`; `genes` names the columns of what `predict` gives, ``[N, genes]``."""

    def __init__(self, path: str, predictor: Predictor) -> None:
        self.path, self.genes, self._predictor = path, predictor.genes, predictor

    @overload
    def predict(self, images: Path | Sequence[Path] | Pixels, *, batch_size: int = ...) -> Floats: ...

    @overload
    def predict(self, images: Tensor, *, batch_size: int = ...) -> Tensor: ...

    def predict(self, images: Path | Sequence[Path] | Pixels | Tensor, *, batch_size: int = 32) -> Floats | Tensor:
        """Predictions float64 ``[N, genes]``, in the genes' own units, of image files or of uint8 ``[N, H, W, 3]``.

        The numbers are those of `ray_jobs.evaluate_regression`. Square images of another size than the model's are
        resized. A tensor gives a tensor on its device. Raises UserError naming an image that cannot be read or is not
        square.
        """
        paths = paths_in(images)
        given: Sequence[Any] | Pixels = paths if paths is not None else array_in(images)
        ready = self._predictor.read if paths is not None else self._predictor.fit
        out = np.zeros((len(given), len(self.genes)), np.float64)
        for first in range(0, len(given), batch_size):
            batch = np.stack([ready(image) for image in given[first : first + batch_size]])
            out[first : first + batch_size] = self._predictor.predict(batch)
        return match_input(out, images)

    def __repr__(self) -> str:
        return f"Model({self.path!r}, {len(self.genes)} genes)"


def load_model(folder: str | os.PathLike[str], *, device: str = "auto") -> Model:
    """The trained regression in a folder or at a URL, as a run exports it (`RUN/encoder`); it predicts ``[N, genes]``.

    device: auto | cpu | cuda. Raises MissingFile where there is none, UserError for one that is damaged or from a newer
    version, and for an encoder, which predicts nothing.
    """
    store = Storage.of(os.fspath(folder))
    for name, loader in LOADERS.items():
        if store.exists(name):
            module, _, function = loader.partition(":")
            load = getattr(importlib.import_module(module), function)
            return Model(store.url, load(store.url, Device.of(device)))
    if store.exists(artifact.DESCRIPTION):
        raise UserError("this is an encoder, not a model", file=store.url, expected="load_encoder(folder)")
    expected = f"a folder with {' or '.join(LOADERS)}, as a run exports it (RUN/encoder)"
    raise MissingFile("no model here", file=store.url, expected=expected)
