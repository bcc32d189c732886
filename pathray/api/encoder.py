"""An encoder for notebooks and scripts: slides, image files or arrays in, features out.

The numbers are those of `ray_jobs.extract_features`: the same preprocessing, tiles, resampling and pooling. Not here:
features of many slides on several machines, which that job makes, and their files (`pathray.features`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from pathray.api.pixels import Path, array_in, match_input, paths_in
from pathray.api.slide import Slide
from pathray.api.tissue import TissueMask
from pathray.device import Device
from pathray.errors import UserError
from pathray.features import encoder as encoders
from pathray.features.bags import check_finite
from pathray.features.encoder import EncoderSpec, FeatureEncoder
from pathray.features.images import ImageJob, ImageSettings, extract_images
from pathray.features.inference import PixelBatch, encode_batches
from pathray.features.kinds import AUTO, POOLINGS
from pathray.features.read_bags import Bag
from pathray.features.slides import SlideJob, SlideSettings, tile_attributes, tile_batches
from pathray.features.tables import read_table
from pathray.urls import public
from pathray.wsi.resize import resize as resized
from pathray.wsi.spacing import level_mpps, too_coarse
from pathray.wsi.tiling import Tiles, TileSpec, tiles_of, tissue_of

if TYPE_CHECKING:
    from torch import Tensor

Features = npt.NDArray[np.float32]
Mask = Path | TissueMask | npt.NDArray[Any]


class Encoder:
    """An encoder on a device. Made by `load_encoder`; `embed` gives features float32 ``[N, D]``, D = `dim`.

    `mpp` (µm per pixel; None where the artifact does not say) and `size_px` are those of the images that it was trained
    on.
    """

    def __init__(self, spec: EncoderSpec, model: FeatureEncoder) -> None:
        self.spec, self.model = spec, model
        self.mpp, self.size_px, self.dim = spec.mpp, spec.size_px, spec.dim(model.pooling)

    def tile_spec(
        self,
        *,
        mpp: float | None = None,
        size_px: int | None = None,
        overlap_px: int = 0,
        min_tissue_fraction: float = 0.2,
        edges: bool = False,
    ) -> TileSpec:
        """Which tiles of a slide are embedded: by default the encoder's own size in pixels and spacing in µm per pixel.

        UserError where neither `mpp` nor the artifact says a spacing.
        """
        spacing = mpp if mpp is not None else self.mpp
        if spacing is None:
            message = "the encoder does not say the spacing that it was trained at"
            raise UserError(message, file=self.spec.path, key="mpp", expected="tile_spec(mpp=…), µm per pixel")
        return TileSpec(size_px or self.size_px, spacing, overlap_px, min_tissue_fraction, edges)

    @overload
    def embed(
        self,
        source: Slide,
        *,
        tiles: TileSpec | None = ...,
        mask: Mask | None = ...,
        resize: bool = ...,
        batch_size: int = ...,
    ) -> Bag: ...

    @overload
    def embed(
        self, source: Path | Sequence[Path] | npt.NDArray[np.uint8], *, resize: bool = ..., batch_size: int = ...
    ) -> Features: ...

    @overload
    def embed(self, source: Tensor, *, resize: bool = ..., batch_size: int = ...) -> Tensor: ...

    def embed(
        self,
        source: Slide | Path | Sequence[Path] | npt.NDArray[np.uint8] | Tensor,
        *,
        tiles: TileSpec | None = None,
        mask: Mask | None = None,
        resize: bool = False,
        batch_size: int = 64,
    ) -> Bag | Features | Tensor:
        """Features float32 ``[N, D]`` of a slide's tiles, of image files, or of images uint8 ``[N, H, W, 3]``.

        A slide gives a `Bag`: `features` ``[N, D]`` and `coords` int64 ``[N, 2]``, the upper left corner (x, y) of each
        tile in level-0 pixels, in raster order. Paths and arrays give the features alone, in their order; a tensor
        gives a tensor on its device.
        tiles: which tiles of the slide, by default `tile_spec()`. mask: a mask file or a mask ``[h, w]`` over the whole
        slide, by default the tissue that is found. resize: bring images to the encoder's own size first; without it
        their sides must be whole patches.
        Raises UserError for what cannot be embedded (naming the file), a slide that is too coarse, and a slide without
        a tile of tissue; UnreadableUnit where a slide is damaged.
        """
        if isinstance(source, Slide):
            return self._slide(source, tiles or self.tile_spec(), mask, resize, batch_size)
        if tiles is not None or mask is not None:
            key = "tiles" if tiles is not None else "mask"
            raise UserError("only a slide has tiles and a mask", key=key, found=type(source).__name__, expected="Slide")
        if (paths := paths_in(source)) is not None:
            return self._files(paths, resize, batch_size)
        return match_input(self._array(array_in(source), resize, batch_size), source)

    def _slide(self, slide: Slide, spec: TileSpec, mask: Mask | None, resize: bool, batch_size: int) -> Bag:
        pooling, precision = self.model.pooling, self.model.precision
        settings = SlideSettings(spec, resize=resize, pooling=pooling, precision=precision, batch_size=batch_size)
        size = self.spec.input_px(spec.size_px, spec.size_px, resize=resize)
        if coarse := too_coarse(level_mpps(slide.reader, slide.mpp), spec.mpp, settings.max_enlargement):
            raise UserError(f"the slide is too coarse: {coarse}", file=public(slide.path), key="tiles.mpp")
        tiles = _tiles(slide, spec, mask)
        batches = tile_batches(slide.reader, tiles, slide.mpp, settings, {self.spec.name: size})
        features = self._encode(batches, len(tiles), slide.path)
        job = SlideJob(slide.name, slide.path)
        about = tile_attributes(job, self.spec, settings, slide.reader, tiles, slide.mpp)
        return Bag(features, tiles.coords, about, {})

    def _files(self, paths: Sequence[str], resize: bool, batch_size: int) -> Features:
        if not paths:
            return np.zeros((0, self.dim), np.float32)
        name = self.spec.name
        pooling, precision = self.model.pooling, self.model.precision
        settings = ImageSettings(resize, pooling, precision, batch_size=batch_size)
        with tempfile.TemporaryDirectory(prefix="pathray-") as folder:
            table = f"{folder}/features.parquet"
            job = ImageJob(tuple(paths), tuple(paths), ("",) * len(paths), tables=((name, table),))
            errors = extract_images(job, {name: self.spec}, {name: self.model}, settings, self.model.device).errors
            if errors:
                first, why = next(iter(errors.items()))
                found = f"{len(errors)} of {len(paths)} images fail; the first: {why}"
                raise UserError("images cannot be embedded", file=public(paths[first]), row=first, found=found)
            return np.asarray(read_table(table).features, np.float32)

    def _array(self, images: npt.NDArray[np.uint8], resize: bool, batch_size: int) -> Features:
        count, height, width = images.shape[:3]
        size = self.spec.input_px(width, height, resize=resize)

        def batches() -> Iterator[PixelBatch]:
            for first in range(0, count, batch_size):
                part = images[first : first + batch_size]
                pixels = np.stack([resized(image, *size) for image in part])
                yield PixelBatch(np.arange(first, first + len(part)), {size: pixels}, {self.spec.name: size})

        return self._encode(batches(), count, "the array")

    def _encode(self, batches: Iterator[PixelBatch], count: int, source: str) -> Features:
        """Features of all batches, by row. UserError where they are not finite."""
        features = np.zeros((count, self.dim), np.float32)
        for rows, values in encode_batches(batches, {self.spec.name: self.model}, self.model.device):
            features[rows] = values[self.spec.name]
        check_finite(features, features, public(source))
        return features

    def __repr__(self) -> str:
        spacing = "an unknown spacing" if self.mpp is None else f"{self.mpp:g} µm per pixel"
        return f"Encoder({public(self.spec.path)!r}, {self.size_px} pixels at {spacing} to {self.dim} numbers)"


def load_encoder(
    folder: str | os.PathLike[str], *, device: str = "auto", pooling: str = "auto", precision: str = "fp32"
) -> Encoder:
    """The encoder in a folder or at a URL, as a run exports it (`RUN/encoder`) or ray_jobs.import_encoder writes it; it
    gives features float32 ``[N, D]``.

    device: auto | cpu | cuda. pooling: auto (an imported encoder's own, otherwise mean) | mean (of the patch tokens) |
    cls | cls+mean. precision: fp32 | bf16 | fp16, of its arithmetic.
    Raises MissingFile where there is none; UserError for one that is damaged, from a newer version, of anything but RGB
    images, or without what `pooling` wants.
    """
    for key, found, allowed in (
        ("pooling", pooling, (AUTO, *POOLINGS)),
        ("precision", precision, encoders.PRECISIONS),
    ):
        if found not in allowed:
            raise UserError(f"unknown {key}", key=key, found=found, expected=" or ".join(allowed))
    path = os.fspath(folder)
    spec = EncoderSpec.of(path.rstrip("/").rpartition("/")[2] or "encoder", path)
    model = encoders.load_encoder(spec, Device.of(device), pooling=pooling, precision=precision)
    return Encoder(spec, model)


def _tiles(slide: Slide, spec: TileSpec, mask: Mask | None) -> Tiles:
    """The tiles that hold enough tissue. UserError where there is none."""
    if mask is None or isinstance(mask, str | os.PathLike):
        found = tissue_of(slide.reader, slide.mpp, os.fspath(mask or ""), spec)
    else:
        found = np.asarray(mask.mask if isinstance(mask, TissueMask) else mask)
        if found.ndim != 2:
            raise UserError("not a mask", key="mask", found=list(found.shape), expected="[h, w] over the whole slide")
    tiles = tiles_of(found, *slide.size, slide.mpp, spec)
    if not len(tiles):
        expected = f"a tile of {spec.size_um:g} µm with {spec.min_tissue_fraction:.0%} tissue, or a mask"
        raise UserError("no tile holds enough tissue", file=public(slide.path), expected=expected)
    return tiles
