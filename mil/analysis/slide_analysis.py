"""Analyses one slide: its attention, its picture, its GeoJSON; what is missing becomes a note, what fails a row.

Not here: which slides (.choosing), the page (.output).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from mil.analysis.attention import EVEN, Attention, attend_slide, check_same
from mil.analysis.heatmap import View, draw_heatmap, rows_to_draw
from mil.analysis.places import Tiles, place_tiles
from mil.analysis.slide_files import SlideFile
from mil.analysis.slide_view import Ints, most_attended, view_blank, view_slide
from mil.analysis.tiles_geojson import write_geojson
from mil.analysis.trained_run import JudgedSlide, TrainedRun
from mil.artifact import Trained
from mil.store.reading import Store
from pathray.errors import UnreadableUnit, UserError
from pathray.reports.units import describe
from pathray.store.storage import Storage
from pathray.wsi.reader import SlideReader, open_slide

HEATMAPS, GEOJSON = "heatmaps", "geojson"
COLUMNS = (
    "slide_id", "status", "error", "notes", "chosen", "split", "true", "predicted", "tiles", "heatmap", "geojson",
)  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """What is made of a slide. `mpp`: for slides without a spacing of their own."""

    top_tiles: int = 8
    longest: int = 1200
    mpp: float | None = None
    geojson: bool = True
    object_type: str = "tile"


@dataclass
class Row:
    """A slide of the report; `error` says why there is no picture."""

    slide: JudgedSlide
    chosen: str
    error: str = ""
    notes: list[str] = field(default_factory=list)
    tiles: int = 0
    heatmap: str = ""
    geojson: str = ""
    difference: float = 0.0

    def cells(self) -> dict[str, object]:
        return {
            "slide_id": self.slide.slide_id, "status": "failed" if self.error else "ok", "error": self.error,
            "notes": "; ".join(self.notes), "chosen": self.chosen, "split": self.slide.split,
            "true": self.slide.truth, "predicted": self.slide.predicted, **self.slide.values, "tiles": self.tiles,
            "heatmap": self.heatmap, "geojson": self.geojson,
        }  # fmt: skip


class SlideAnalyst:
    """Analyses slides of a run, each with the model that tested it, and writes into `out`."""

    def __init__(
        self, run: TrainedRun, store: Store, files: Mapping[str, SlideFile], out: Storage, wanted: Wanted
    ) -> None:
        self.run, self.store, self.files, self.out, self.wanted = run, store, files, out, wanted
        self._model = cache(run.model)

    def analyse(self, slide: JudgedSlide, chosen: str) -> Row:
        """The slide's row. What the user or the data is to blame for is in it; nothing half-written is left."""
        row = Row(slide, chosen)
        try:
            self._write(slide, row)
        except (UserError, UnreadableUnit, OSError) as e:
            row.error = describe(e)
        return row

    def _write(self, slide: JudgedSlide, row: Row) -> None:
        attention, index = self._attend(slide, row)
        drawn = rows_to_draw(attention, slide)[0]
        tiles, view = self._view(slide, attention, index, drawn, row)
        row.tiles = len(tiles)
        row.notes += tiles.notes
        if (spread := attention.spread(drawn)) > EVEN:
            row.notes.append(
                f"the attention is nearly even, spread over {spread:.0%} of the tiles: the map says little"
            )
        name = f"{HEATMAPS}/{slide.slide_id}.png"
        self.out.write_bytes(name, _png(draw_heatmap(slide, attention, tiles, view)))
        row.heatmap = name
        if self.wanted.geojson:
            self._write_geojson(slide, tiles, attention, drawn, row)

    def _attend(self, slide: JudgedSlide, row: Row) -> tuple[Attention, int]:
        if slide.slide_id not in self.store.index:
            expected = f"the store of the training; it has {len(self.store)} slides"
            raise UserError("the slide is not in the store", file=self.store.path, expected=expected)
        index = self.store.index[slide.slide_id]
        trained: Trained = self._model(slide.split)
        if trained.target.dim != self.store.dim:
            message, expected = "features of another width", f"{trained.target.dim}, as in the training"
            raise UserError(message, file=self.store.path, found=self.store.dim, expected=expected)
        attention = attend_slide(trained, self.store, index)
        row.difference = check_same(attention.values, slide.said or slide.values, slide.slide_id)
        if slide.others:
            said = ", ".join(f"{key} {value:.6f}" for key, value in slide.said.items())
            shown = f"the map is of one of them, {slide.split}, which says {said}"
            row.notes.append(f"the prediction is the mean of {len(slide.others) + 1} models; {shown}")
        return attention, index

    def _view(
        self, slide: JudgedSlide, attention: Attention, index: int, drawn: int, row: Row
    ) -> tuple[Tiles, View]:  # fmt: skip
        """Tiles and what is under them; a slide file that is missing, unreadable or another one is a note."""
        top = most_attended(attention, drawn, self.wanted.top_tiles)
        file, mpp = self.files.get(slide.slide_id), self.wanted.mpp
        if file is None:
            row.notes.append("no slide file: drawn on a blank canvas")
        else:
            mpp = file.mpp or mpp
            try:
                reader = open_slide(file.path)
                try:
                    return self._on_slide(reader, file, slide, index, top)
                finally:
                    reader.close()
            except (UserError, UnreadableUnit, OSError) as e:
                row.notes.append(f"drawn on a blank canvas: {describe(e)}")
        tiles = place_tiles(self.store, index, mpp)
        return tiles, view_blank(tiles, top, longest=self.wanted.longest, mpp=mpp)

    def _on_slide(
        self, reader: SlideReader, file: SlideFile, slide: JudgedSlide, index: int, top: Ints
    ) -> tuple[Tiles, View]:
        mpp = file.mpp or reader.mpp or self.wanted.mpp
        tiles = place_tiles(self.store, index, mpp)
        if tiles.unit != "px":
            raise UserError("positions are in µm and the slide has no spacing", file=file.path, expected="mpp=…")
        view = view_slide(reader, tiles, top, longest=self.wanted.longest, mpp=mpp, slide_id=slide.slide_id)
        return tiles, view

    def _write_geojson(self, slide: JudgedSlide, tiles: Tiles, attention: Attention, drawn: int, row: Row) -> None:
        name = f"{GEOJSON}/{slide.slide_id}.geojson"
        try:
            write_geojson(self.out, name, tiles, attention, drawn, object_type=self.wanted.object_type)
            row.geojson = name
        except UserError as e:
            row.notes.append(f"no GeoJSON: {describe(e)}")


def _png(picture: object) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(picture).save(out, "png")  # type: ignore[arg-type]
    return out.getvalue()
