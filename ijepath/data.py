"""The reader: one plan row → the pixels and tokens of one sample, uint8. Everything random follows from the position.

An AnchorReader is picklable and thread-safe; its handles and caches belong to the process and are bounded. Not here:
which row is at which position (pathray.data.order), replacement of unreadable units (pathray.data.units),
normalisation and augmentation, which run on the device (ijepath.augment).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ijepath.config import MaskConfig, RunConfig
from ijepath.footprints import (
    Counts,
    Footprints,
    TooFewTokens,
    sample_footprints,
    teacher_cells,
    to_predictor_grid,
    token_counts,
)
from ijepath.geometry import Boxes, BoxRules, Geometry, NoBoxes, draw_boxes
from ijepath.indexing.tissue import CELLS_PER_TARGET, TissueCache
from ijepath.scales import Kind, available_factors, kind_of_step, kinds
from pathray.data.order import rng
from pathray.errors import MissingFile, UnreadableUnit, UserError
from pathray.wsi.handles import HandleCache
from pathray.wsi.reader import SlideReader
from pathray.wsi.regions import level_box, resize, round_half_up
from pathray.wsi.spacing import axis_downsamples, choose_level, level_mpps

BOX_TRIES = 8  # sets of boxes to draw before a unit with too few context tokens is rejected
AVOID_ATTEMPTS = 8  # number of replacements for which skip_slide requires another slide
DRAWS = 16  # uniforms per image for the augmentation on the device
REMEMBERED = 4096

Pixels = npt.NDArray[np.uint8]
Sample = dict[str, Any]


@dataclass(frozen=True)
class ReaderConfig:
    """The values of a run's config that a sample depends on, and the limits of the caches."""

    seed: int
    global_batch: int
    kinds: tuple[Kind, ...]
    counts: tuple[Counts, ...]  # per kind
    mask: MaskConfig
    rules: BoxRules
    factors: tuple[float, ...] = (1.0,)
    tolerance: float = 0.05
    target_fov_um: float = 128.0
    cells: bool = False  # teacher cells for `model.loss: tokens`
    max_open: int = 32
    tile_cache_bytes: int = 256 << 20
    tissue_cache_bytes: int = 64 << 20

    @classmethod
    def of(cls, config: RunConfig) -> ReaderConfig:
        """From a run config whose global batch is resolved. UserError when its targets leave no context."""
        batch, data, made = config.optimization.global_batch, config.data, kinds(config)
        assert batch is not None, "resolve_global_batch first"
        return cls(
            seed=data.seed,
            global_batch=batch,
            kinds=made,
            counts=tuple(token_counts(k.geometry, config.mask, data.align_targets_to_patch_grid) for k in made),
            mask=config.mask,
            rules=BoxRules.of(data),
            factors=tuple(config.scales.factors),
            tolerance=data.spacing_tolerance,
            target_fov_um=data.target_fov_um,
            cells=config.model.loss == "tokens",
            max_open=data.max_open_slides,
            tile_cache_bytes=data.tile_cache_mb << 20,
            tissue_cache_bytes=data.tissue_cache_mb << 20,
        )


@dataclass(frozen=True)
class Place:
    """A sample's context on its slide, in level-0 pixels: left, top, side; `scale`: level-0 per context pixel."""

    left: int
    top: int
    side: int
    scale: float

    def level0(self, boxes: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Boxes `[N, 4]` in context pixels → level-0 pixels, not rounded."""
        offset = np.array([self.left, self.top, self.left, self.top], np.float64)
        return np.asarray(boxes, np.float64) * self.scale + offset


class AnchorReader:
    """Reads anchors. `sources` are the columns of the plan's slide table, as lists: `wsi_path`, `mask_path`,
    `wsi_level0_spacing_mpp`, and optionally `wsi_state` (of the file when it was indexed) and `site` (a number per
    slide, −1 unknown)."""

    benign_reasons = frozenset({"tissue", "no_boxes", "few_context_tokens", "scale", "same_slide"})

    def __init__(self, config: ReaderConfig, sources: Mapping[str, Sequence[Any]]) -> None:
        self.config, self.sources = config, {name: list(values) for name, values in sources.items()}
        self.handles = HandleCache(config.max_open, config.tile_cache_bytes)
        self.tissue = TissueCache(config.target_fov_um / CELLS_PER_TARGET, config.tissue_cache_bytes, config.max_open)
        self._lock = threading.Lock()
        self._poor: OrderedDict[int, set[int]] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return AnchorReader, (self.config, self.sources)

    def read(self, unit: Mapping[str, Any], position: int, attempt: int) -> Sample:
        """One sample: a function of (seed, position, attempt) and the plan row `unit` (`source`, `x`, `y`).

        context uint8 [S, S, 3] · targets uint8 [K, h, w, 3] · boxes int32 [K, 4] (x0, y0, x1, y1 in context pixels) ·
        footprints int32 [K, 4] (R, in context tokens) · context_keep int64 [C] · context_index int64 [C] (the same in
        the predictor's grid) · target_predict int64 [K, M] · draws float32 [2, DRAWS] uniforms for context and targets
        · kind, source, site int64 · context_mpp, target_mpp, tissue_threshold float32 · cells int64 [K, G] (only for
        `loss: tokens`).

        Raises UnreadableUnit: missing, truncated, decode … for unreadable data, one of `benign_reasons` for a unit
        without a legal sample.
        """
        source = int(unit["source"])
        path = str(self.sources["wsi_path"][source])
        self._avoid_poor_slide(source, path, position, attempt)
        try:
            sample = self._sample(unit, source, position, attempt)
        except UnreadableUnit as error:
            if error.reason == "tissue" and self.config.rules.policy == "skip_slide":
                self._remember_poor_slide(source, position)
            raise
        except MissingFile as error:
            raise UnreadableUnit("missing", str(error.where["file"] or path)) from error
        except UserError as error:
            raise UnreadableUnit("unsupported", path, str(error)) from error
        return sample

    def collate(self, units: Sequence[Sample]) -> dict[str, Any]:
        """A batch: every array of the samples with a leading axis."""
        return {name: np.stack([unit[name] for unit in units]) for name in units[0]}

    def kind(self, position: int) -> int:
        """Index of the kind of the step that a position belongs to."""
        config = self.config
        return config.kinds.index(kind_of_step(config.kinds, config.seed, position // config.global_batch))

    def _sample(self, unit: Mapping[str, Any], source: int, position: int, attempt: int) -> Sample:
        config, kind = self.config, self.kind(position)
        geometry = config.kinds[kind].geometry
        path, mpp0 = str(self.sources["wsi_path"][source]), float(self.sources["wsi_level0_spacing_mpp"][source])
        states = self.sources.get("wsi_state")
        slide = self.handles.get(path, str(states[source] or "") if states else "")
        generator = rng(config.seed, "boxes", position, attempt)
        factor = self._factor(slide, geometry, mpp0, path, unit, generator)
        place = locate(int(unit["x"]), int(unit["y"]), geometry, factor, mpp0)
        boxes, threshold, tokens = self._targets(slide, source, place, kind, mpp0, generator)
        context, targets = read_pixels(slide, place, boxes, geometry, factor, mpp0, config.tolerance)
        sample = {
            "context": context,
            "targets": targets,
            "boxes": boxes,
            "footprints": tokens.spans,
            "context_keep": tokens.keep,
            "context_index": to_predictor_grid(tokens.keep, geometry),
            "target_predict": tokens.predict,
            "draws": rng(config.seed, "augment", position, attempt).random((2, DRAWS), np.float32),
            "kind": np.int64(kind),
            "source": np.int64(source),
            "site": np.int64(self.sources["site"][source] if "site" in self.sources else -1),
            "context_mpp": np.float32(geometry.context_mpp * factor),
            "target_mpp": np.float32(geometry.target_mpp * factor),
            "tissue_threshold": np.float32(threshold),
        }
        if config.cells:
            sample["cells"] = teacher_cells(boxes, tokens.predict, geometry)
        return sample

    def _factor(
        self,
        slide: SlideReader,
        geometry: Geometry,
        mpp0: float,
        path: str,
        unit: Mapping[str, Any],
        generator: np.random.Generator,
    ) -> float:
        """The absolute scale of this unit: uniform among those that the slide has and whose context fits on it."""
        if self.config.factors == (1.0,):
            return 1.0
        fit = [
            f
            for f in available_factors(self.config.factors, geometry, mpp0, self.config.tolerance)
            if f <= 1.0 or _inside(locate(int(unit["x"]), int(unit["y"]), geometry, f, mpp0), slide.level_shapes[0])
        ]
        if not fit:
            raise UnreadableUnit("scale", path, f"none of the factors {self.config.factors} at {mpp0} mpp")
        return fit[int(generator.integers(len(fit)))]

    def _targets(
        self, slide: SlideReader, source: int, place: Place, kind: int, mpp0: float, generator: np.random.Generator
    ) -> tuple[Boxes, float, Footprints]:
        config, geometry = self.config, self.config.kinds[kind].geometry
        reach = geometry.margin * geometry.patch
        rim = [[-reach, -reach, geometry.context_px + reach, geometry.context_px + reach]]
        x0, y0, x1, y1 = place.level0(rim)[0].tolist()
        window = self.tissue.window(slide, str(self.sources["mask_path"][source] or ""), mpp0, (x0, y0, x1, y1))
        try:
            for _ in range(BOX_TRIES):
                boxes, threshold = draw_boxes(
                    generator, geometry, config.rules, lambda boxes: window.share(place.level0(boxes))
                )
                try:
                    tokens = sample_footprints(generator, boxes, geometry, config.mask, config.counts[kind])
                    return boxes, threshold, tokens
                except TooFewTokens as error:
                    few = error
        except NoBoxes as error:
            reason = "tissue" if error.reason == "tissue" else "no_boxes"
            raise UnreadableUnit(reason, slide.path, "no legal set of targets") from error
        raise UnreadableUnit("few_context_tokens", slide.path, str(few))

    def _avoid_poor_slide(self, source: int, path: str, position: int, attempt: int) -> None:
        """With skip_slide a replacement comes from a slide that has not failed at this position."""
        if self.config.rules.policy != "skip_slide":
            return
        with self._lock:
            if attempt == 0:
                self._poor.pop(position, None)
            poor = source in self._poor.get(position, ())
        if poor and attempt < AVOID_ATTEMPTS:
            raise UnreadableUnit("same_slide", path, "another anchor of this slide had too little tissue")

    def _remember_poor_slide(self, source: int, position: int) -> None:
        with self._lock:
            self._poor.setdefault(position, set()).add(source)
            while len(self._poor) > REMEMBERED:
                self._poor.popitem(last=False)


def locate(x: int, y: int, geometry: Geometry, factor: float, mpp0: float) -> Place:
    """The context around centre (x, y): size0 = ⌊S · mpp / mpp0⌉, left = x − size0 // 2."""
    side = round_half_up(geometry.context_px * geometry.context_mpp * factor / mpp0)
    return Place(x - side // 2, y - side // 2, side, side / geometry.context_px)


def read_pixels(
    slide: SlideReader, place: Place, boxes: Boxes, geometry: Geometry, factor: float, mpp0: float, tolerance: float
) -> tuple[Pixels, Pixels]:
    """Context `[S, S, 3]` and targets `[K, h, w, 3]`. Where both come from one level, that level is read once.

    A target shows exactly its box of the context, up to half a pixel of rounding in the levels read, so that no part of
    it is in a token that the context may see.
    """
    spacings = level_mpps(slide, mpp0)
    context_level = choose_level(spacings, geometry.context_mpp * factor, tolerance).level
    target_level = choose_level(spacings, geometry.target_mpp * factor, tolerance).level
    side, downs = geometry.context_px, axis_downsamples(slide)
    wide = _level_box(place.left, place.top, (place.side, place.side), downs[context_level])
    corners = place.level0(boxes)
    size0 = tuple(round_half_up(extent * place.scale) for extent in geometry.footprint)
    down = downs[target_level]
    crops = [
        _level_box(round_half_up(x), round_half_up(y), (size0[1], size0[0]), down) for x, y, _, _ in corners.tolist()
    ]
    if context_level == target_level:
        pieces = _read_boxes(slide, context_level, [wide, *crops])
        big, small = pieces[0], pieces[1:]
    else:
        big, small = _read_boxes(slide, context_level, [wide])[0], _read_boxes(slide, target_level, crops)
    height, width = geometry.crop
    return resize(big, side, side), np.stack([resize(piece, width, height) for piece in small])


def _level_box(
    left: int, top: int, size0: tuple[int, int], downsample: tuple[float, float]
) -> tuple[int, int, int, int]:
    return level_box(left + size0[0] // 2, top + size0[1] // 2, size0, 1.0, downsample)


def _read_boxes(slide: SlideReader, level: int, boxes: Sequence[tuple[int, int, int, int]]) -> list[Pixels]:
    """Boxes of one level: each tile decoded once where the reader can do that, else one read that covers them all."""
    together = getattr(slide, "read_boxes", None)
    if together is not None:
        pieces: list[Pixels] = together(level, boxes)
        return pieces
    x0, y0 = min(b[0] for b in boxes), min(b[1] for b in boxes)
    x1, y1 = max(b[0] + b[2] for b in boxes), max(b[1] + b[3] for b in boxes)
    if (x1 - x0) * (y1 - y0) > sum(b[2] * b[3] for b in boxes):
        return [slide.read_level(level, *box) for box in boxes]
    whole = slide.read_level(level, x0, y0, x1 - x0, y1 - y0)
    return [whole[y - y0 : y - y0 + h, x - x0 : x - x0 + w] for x, y, w, h in boxes]


def _inside(place: Place, shape: tuple[int, int]) -> bool:
    return (
        min(place.left, place.top) >= 0 and place.left + place.side <= shape[0] and place.top + place.side <= shape[1]
    )
