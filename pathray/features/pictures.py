"""Pictures for checking an extraction: a thumbnail with tissue and tiles, and both as GeoJSON for QuPath.

There is one per slide, for all encoders. A picture contains a digest of its inputs, so that a current one is not made
again; it is written after the GeoJSON. Not here: the bags (pathray.features.slides).
"""

from __future__ import annotations

import io
import re
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pathray.draw.canvas import INK, MUTED, Canvas, Picture
from pathray.errors import MissingFile, UserError
from pathray.features.publish import replacing
from pathray.fingerprint import fingerprint
from pathray.store.storage import Storage, write_atomic
from pathray.wsi.contours import COLOUR, dim_glass, tissue_polygons
from pathray.wsi.geojson import GeoJsonWriter
from pathray.wsi.reader import SlideReader
from pathray.wsi.thumbnail import thumbnail
from pathray.wsi.tiling import Tiles, TileSpec

VERSION = 1  # raise it when the pictures change
THUMBNAILS, QUPATH = "thumbnails", "qupath"  # subfolders of the output
SIDE, FOOTER, NARROWEST = 1280, 62, 560  # in pixels
TILE_COLOUR, FADED = (0, 110, 60), (0, 110, 60, 55)  # green, a colour that no stain has
WIDE, FINE = 40.0, 5.0  # tile side in pixels: below WIDE lines are thinner, below FINE tiles are tinted instead
HEAD = 512  # the digest is within this many bytes
_DIGEST = re.compile(rb"pathray\x00([0-9a-f]{64})")


@dataclass(frozen=True)
class PicturePaths:
    """The paths or URLs of a slide's pictures, and the digest of their inputs."""

    png: str
    geojson: str
    digest: str

    @classmethod
    def of(cls, output: str, slide_id: str, slide: dict[str, Any], tiles: TileSpec) -> PicturePaths:
        """`slide`: everything about the slide that its pictures depend on."""
        store = Storage.of(output)
        made_of = {"slide": slide, "tiles": asdict(tiles), "version": VERSION}
        digest = str(fingerprint(made_of)["hash"])
        return cls(store.join(THUMBNAILS, f"{slide_id}.png"), store.join(QUPATH, f"{slide_id}.geojson"), digest)

    def current(self) -> bool:
        """Whether the pictures exist and were made from the same inputs."""
        folder, _, name = self.png.rpartition("/")
        try:
            with Storage.of(folder).open(name) as file:
                found = _DIGEST.search(file.read(HEAD))
        except MissingFile:
            return False
        except UserError:  # unreadable: writing it again reports what is wrong
            return False
        return found is not None and found[1].decode() == self.digest


def write_pictures(
    paths: PicturePaths,
    title: str,
    reader: SlideReader,
    tissue: npt.NDArray[Any],
    tiles: Tiles,
    mpp0: float,
    spec: TileSpec,
) -> None:
    """Write both files. Raises what reading the slide raises, and StorageError for the output."""
    picture = draw_tiles(title, reader, tissue, tiles, mpp0, spec)
    write_geojson(paths.geojson, tissue, tiles, reader.level_shapes[0])
    write_atomic(paths.png, _png(picture, paths.digest))


def draw_tiles(
    title: str, reader: SlideReader, tissue: npt.NDArray[Any], tiles: Tiles, mpp0: float, spec: TileSpec
) -> Picture:
    """The slide, at most SIDE pixels wide and high, with the outline of its tissue, its tiles and a legend."""
    picture = dim_glass(thumbnail(reader, SIDE), tissue)
    height, width = picture.shape[:2]
    unit = width / reader.level_shapes[0][0]
    canvas = Canvas(max(width, NARROWEST), height + FOOTER)
    canvas.picture(picture, 0, 0, width, height)
    side = tiles.size * unit
    style: dict[str, Any] = {"outline": TILE_COLOUR, "line": 1.0 if side >= WIDE else 0.5}
    style = style if side >= FINE else {"fill": FADED}
    for x, y in (tiles.coords * unit).tolist():
        canvas.rect(x, y, min(side, width - x), min(side, height - y), **style)
    for ring, holes in tissue_polygons(tissue, *reader.level_shapes[0]):
        for line in (ring, *holes):
            canvas.line((line * unit).tolist(), COLOUR, 2.5)
    canvas.scale_bar(8, height - 8, mpp0 / unit, 0.25 * width, size=12)
    share = 100 * float((tissue > 0).mean())
    canvas.text(10, height + 8, _shorten_title(canvas, title, 14), 14, INK, bold=True)
    what = f"{len(tiles):,} tiles of {spec.size_px} px at {spec.mpp:g} µm per pixel ({spec.size_um:g} µm)"
    canvas.rect(10, height + 35, 14, 14, outline=TILE_COLOUR, line=2, fill=style.get("fill"))
    canvas.text(32, height + 42, what, 12, MUTED, anchor="lm")
    right = 32 + canvas.text_width(what, 12) + 20
    canvas.line([(right, height + 42), (right + 22, height + 42)], COLOUR, 3)
    canvas.text(right + 30, height + 42, f"tissue, {share:.0f}% of the slide", 12, MUTED, anchor="lm")
    return canvas.to_picture()


def write_geojson(path: str, tissue: npt.NDArray[Any], tiles: Tiles, size: tuple[int, int]) -> None:
    """Write tissue as annotations and tiles as QuPath tiles, in level-0 pixels. A tile's name is its row in the bag."""
    with replacing(path) as partial, GeoJsonWriter(partial) as out:
        for number, (ring, holes) in enumerate(tissue_polygons(tissue, *size), start=1):
            about: dict[str, Any] = {"name": f"tissue {number}", "classification": "Tissue", "colour": COLOUR}
            out.polygon(ring.tolist(), [hole.tolist() for hole in holes], **about)
        for row, ((x, y), share) in enumerate(zip(tiles.coords.tolist(), tiles.tissue.tolist(), strict=True)):
            measured = {"Tissue fraction": round(share, 4)}
            about = {"name": f"tile {row}", "object_type": "tile", "classification": "Tile", "colour": TILE_COLOUR}
            out.box(x, y, tiles.size, tiles.size, measurements=measured, **about)


def _shorten_title(canvas: Canvas, title: str, size: float) -> str:
    """The title, shortened in the middle if it is wider than the picture."""
    if canvas.text_width(title, size, bold=True) <= canvas.width - 20:
        return title
    half = len(title) // 2
    while half > 1 and canvas.text_width(f"{title[:half]}…{title[-half:]}", size, bold=True) > canvas.width - 20:
        half -= 1
    return f"{title[:half]}…{title[-half:]}"


def _png(picture: npt.NDArray[np.uint8], digest: str) -> bytes:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    about, out = PngInfo(), io.BytesIO()
    about.add_text("pathray", digest)  # before the pixels
    Image.fromarray(picture).save(out, "PNG", compress_level=6, pnginfo=about)
    return out.getvalue()
