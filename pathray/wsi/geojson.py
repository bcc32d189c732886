"""Regions as GeoJSON for QuPath, written one by one, so that a slide's 10⁵ tiles are never in memory together.

Coordinates are level-0 pixels, y downwards, as in QuPath. Not here: tracing masks (pathray.wsi.contours).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from pathray.store.atomic import publish_file

Point = tuple[float, float]
Colour = tuple[int, int, int]


class GeoJsonWriter:
    """Writes a FeatureCollection to the file `path`. The file appears only if the block ends without an error.

    >>> with GeoJsonWriter("anchors.geojson") as out:
    ...     out.box(0, 0, 512, 512, name="anchor 7", classification="Context", colour=(200, 0, 0))
    """

    def __init__(self, path: str | os.PathLike[str], *, object_type: str = "annotation") -> None:
        self.path, self.object_type, self.count = os.fspath(path), object_type, 0
        self._file: TextIO | None = None

    def __enter__(self) -> GeoJsonWriter:
        os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
        self._file = open(self._partial, "w", encoding="utf-8")
        self._file.write('{"type": "FeatureCollection", "features": [')
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._file.write("\n]}\n")
        self._file.close()
        self._file = None
        if kind is None:
            publish_file(Path(self._partial), Path(self.path))
        else:
            os.remove(self._partial)

    def box(self, x: float, y: float, width: float, height: float, **properties: Any) -> None:
        """A rectangle; `properties` as for `polygon`."""
        self.polygon([(x, y), (x + width, y), (x + width, y + height), (x, y + height)], **properties)

    def polygon(self, ring: Sequence[Point], holes: Sequence[Sequence[Point]] = (), **properties: Any) -> None:
        """A polygon with holes; rings are closed here. `properties`: name, classification, colour (r, g, b),
        measurements (a mapping of numbers), object_type."""
        self.feature("Polygon", [_close_ring(r) for r in (ring, *holes)], **properties)

    def point(self, x: float, y: float, **properties: Any) -> None:
        self.feature("Point", [x, y], **properties)

    def points(self, points: Sequence[Point], **properties: Any) -> None:
        self.feature("MultiPoint", [[x, y] for x, y in points], **properties)

    def feature(
        self,
        geometry: str,
        coordinates: object,
        *,
        name: str | None = None,
        classification: str | None = None,
        colour: Colour | None = None,
        measurements: Mapping[str, float] | None = None,
        object_type: str | None = None,
    ) -> None:
        """Write any geometry; `object_type` applies to this feature only. ValueError if coordinates or measurements
        are not finite, which JSON cannot express."""
        properties: dict[str, object] = {"objectType": object_type or self.object_type}
        if name is not None:
            properties["name"] = name
        if classification is not None:
            properties["classification"] = {"name": classification} | ({"color": list(colour)} if colour else {})
        elif colour is not None:
            properties["color"] = list(colour)
        if measurements:
            properties["measurements"] = {k: float(v) for k, v in measurements.items()}
        feature = {
            "type": "Feature",
            "geometry": {"type": geometry, "coordinates": coordinates},
            "properties": properties,
        }
        assert self._file is not None, "use the writer in a with block"
        self._file.write((",\n" if self.count else "\n") + json.dumps(feature, allow_nan=False))
        self.count += 1

    @property
    def _partial(self) -> str:
        return f"{self.path}.{os.getpid()}.part"


def _close_ring(ring: Sequence[Point]) -> list[list[float]]:
    assert len(ring) >= 3, "a ring has at least three corners"
    points = [[float(x), float(y)] for x, y in ring]
    return points if points[0] == points[-1] else [*points, points[0]]
