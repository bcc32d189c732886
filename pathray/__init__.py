"""Slides, encoders, trained models and training for computational pathology and OCT, in Python and without Ray.

    import pathray

    with pathray.open_slide("slide.svs") as slide:
        tile = slide.read_region(center=(4096, 4096), mpp=0.5, size=256)  # uint8 [256, 256, 3]
        bag = pathray.load_encoder("outputs/run/encoder").embed(slide)  # bag.features [N, D], bag.coords [N, 2]

    expression = pathray.load_model("outputs/regression/encoder").predict(["patch.png"])  # [1, genes]
    outcome = pathray.train(assembly, plan, "outputs/run", Device.of("auto"))  # see pathray.run.train

A name is imported when it is first used: `import pathray` loads neither torch nor a reader of slides. What is not here
is in the groups below (`pathray.wsi`, `pathray.features`, …); jobs and everything with Ray are in `ray_jobs`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathray.api.encoder import Encoder, load_encoder
    from pathray.api.model import Model, load_model
    from pathray.api.slide import Slide, open_slide
    from pathray.api.tissue import TissueMask, tissue
    from pathray.errors import UserError
    from pathray.features.read_bags import Bag, read_bag
    from pathray.wsi.tiling import TileSpec

    __version__: str

__all__ = [
    "Bag",
    "Encoder",
    "Model",
    "Slide",
    "TileSpec",
    "TissueMask",
    "UserError",
    "__version__",
    "load_encoder",
    "load_model",
    "open_slide",
    "read_bag",
    "tissue",
    "train",
]

_MODULES = {
    "Bag": "pathray.features.read_bags",
    "Encoder": "pathray.api.encoder",
    "Model": "pathray.api.model",
    "Slide": "pathray.api.slide",
    "TileSpec": "pathray.wsi.tiling",
    "TissueMask": "pathray.api.tissue",
    "UserError": "pathray.errors",
    "load_encoder": "pathray.api.encoder",
    "load_model": "pathray.api.model",
    "open_slide": "pathray.api.slide",
    "read_bag": "pathray.features.read_bags",
    "tissue": "pathray.api.tissue",
}


def __getattr__(name: str) -> Any:
    """A public name, imported on its first use and kept."""
    if name == "__version__":
        value: Any = _version()
    elif name == "train":
        value = importlib.import_module("pathray.train")  # a package that can be called
    elif name in _MODULES:
        value = getattr(importlib.import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("pathray")
    except PackageNotFoundError:  # a checkout on the path that nobody has installed
        return "0+unknown"
