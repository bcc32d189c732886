"""Extracts features of many image files into tables, part by part, without Ray.

A part is a range of images of one list. Images may differ in size; each is used as it is, or resized to the encoder's
own size. Memory is bounded by a part's features and a few batches of pixels. Not here: listing images
(pathray.features.inputs).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pathray.errors import UnreachableUnit, UnreadableUnit, UserError
from pathray.features.bags import check_finite
from pathray.features.encoder import EncoderSpec
from pathray.features.identity import fingerprint, identity_of
from pathray.features.inference import PixelBatch, Size, encode_batches, read_ahead
from pathray.features.tables import FEATURES, feature_column, feature_type, write_table
from pathray.files.images import ImageError, open_image, rgb_of
from pathray.store.storage import StorageError
from pathray.urls import public
from pathray.wsi.backends.source import read_source
from pathray.wsi.resize import resize

if TYPE_CHECKING:
    from pathray.device import Device
    from pathray.features.encoder import FeatureEncoder

COLUMNS = ("path", "width", "height", FEATURES)

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ImageSettings:
    """How images become features. The first four fields determine the features, the others only how they are made."""

    resize: bool = False
    pooling: str = "auto"
    precision: str = "fp32"
    dtype: str = "float32"

    batch_size: int = 64
    read_threads: int = 2
    read_ahead: int = 2  # images per thread
    read_timeout_s: float = 120.0


@dataclass(frozen=True)
class ImageJob:
    """A part of a list of images: `names` as the user wrote them, `paths`, file `states` (which change with the files)
    and `metadata` columns. `tables` maps the requested encoders to the paths of the part's tables."""

    names: tuple[str, ...]
    paths: tuple[str, ...]
    states: tuple[str, ...]
    metadata: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)
    tables: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class ImageOutcome:
    """`errors` by image number within the part; images without an error are in the tables, if `written`."""

    errors: Mapping[int, str]
    written: bool = True


def part_fingerprint(job: ImageJob, spec: EncoderSpec, settings: ImageSettings) -> str:
    """The fingerprint of everything that a part's content depends on."""
    images = [list(pair) for pair in zip(job.names, job.states, strict=True)]
    metadata = {name: list(values) for name, values in job.metadata.items()}
    return fingerprint(identity_of({"images": images, "metadata": metadata}, spec, settings))


def extract_images(
    job: ImageJob,
    specs: Mapping[str, EncoderSpec],
    encoders: Mapping[str, FeatureEncoder],
    settings: ImageSettings,
    device: Device,
    *,
    raise_unreachable: bool = False,
) -> ImageOutcome:
    """Write the tables of one part. Images that cannot be read or stored become `errors`. Raises StorageError for the
    output, and EncodingError.

    raise_unreachable: raise a passing StorageError for an image whose storage cannot be reached now.
    """
    errors: dict[int, str] = {}
    wanted = {name: specs[name] for name, _ in job.tables}
    shapes = np.zeros((len(job.paths), 2), np.int64)
    features = {n: np.zeros((len(job.paths), s.dim(settings.pooling)), settings.dtype) for n, s in wanted.items()}
    batches = _batches(job, wanted, settings, shapes, errors, raise_unreachable)
    for rows, found in encode_batches(batches, encoders, device):
        for name, values in found.items():
            _store(features[name], rows, values, job, errors)
    kept = np.array([i for i in range(len(job.paths)) if i not in errors], np.int64)
    for name, path in job.tables:
        meta = {
            "fingerprint": part_fingerprint(job, specs[name], settings),
            "failed": [[i, error] for i, error in sorted(errors.items())],
        }
        write_table(path, _table(job, kept, shapes, features[name]), meta)
    return ImageOutcome(dict(sorted(errors.items())))


def read_image(path: str) -> Pixels:
    """An image file (path or URL) as uint8 ``[h, w, 3]``; transparent parts become white, grey is repeated, orientation
    tags are ignored. Raises MissingFile, UserError, UnreadableUnit (``decode``), UnreachableUnit."""
    data = read_source(path)
    try:
        with open_image(data) as image:
            return rgb_of(image)
    except ImageError as e:
        raise UnreadableUnit("decode", public(path), str(e)) from e


def _batches(
    job: ImageJob,
    specs: Mapping[str, EncoderSpec],
    settings: ImageSettings,
    shapes: npt.NDArray[np.int64],
    errors: dict[int, str],
    raise_unreachable: bool,
) -> Iterator[PixelBatch]:
    """Batches of images of equal size; at most four batches' worth of images are held. Fills `shapes` and `errors`."""

    def read(i: int) -> tuple[Pixels | None, str]:
        try:
            pixels = read_image(job.paths[i])
            for spec in specs.values():
                spec.input_px(pixels.shape[1], pixels.shape[0], resize=settings.resize)
        except (UserError, UnreadableUnit) as e:
            if raise_unreachable and isinstance(e, UnreachableUnit):
                message = "the storage of the images cannot be reached"
                raise StorageError.temporary(message, file=e.path, found=e.detail) from e
            return None, " ".join(str(e).split())
        return pixels, ""

    waiting: dict[Size, list[tuple[int, Pixels]]] = {}
    results = read_ahead(
        read,
        range(len(job.paths)),
        threads=settings.read_threads,
        timeout_s=settings.read_timeout_s,
        per_thread=settings.read_ahead,
        name=lambda i: public(job.paths[i]),
    )
    for i, (pixels, error) in enumerate(results):
        if pixels is None:
            errors[i] = error
            continue
        size: Size = (pixels.shape[1], pixels.shape[0])
        shapes[i] = size
        waiting.setdefault(size, []).append((i, pixels))
        full = len(waiting[size]) == settings.batch_size
        if full or sum(map(len, waiting.values())) >= 4 * settings.batch_size:
            largest = size if full else max(waiting, key=lambda s: len(waiting[s]))
            yield _batch(waiting.pop(largest), largest, specs, settings)
    for size, images in waiting.items():
        yield _batch(images, size, specs, settings)


def _batch(
    images: Sequence[tuple[int, Pixels]], size: Size, specs: Mapping[str, EncoderSpec], settings: ImageSettings
) -> PixelBatch:
    width, height = size[:2]
    sizes = {name: spec.input_px(width, height, resize=settings.resize) for name, spec in specs.items()}
    pixels = {to: np.stack([resize(image, *to) for _, image in images]) for to in sorted(set(sizes.values()))}
    return PixelBatch(np.array([i for i, _ in images], np.int64), pixels, sizes)


def _store(
    into: npt.NDArray[Any],
    rows: npt.NDArray[np.int64],
    values: npt.NDArray[np.float32],
    job: ImageJob,
    errors: dict[int, str],
) -> None:
    with np.errstate(over="ignore"):
        into[rows] = values
    for row, value in zip(rows, values, strict=True):
        try:
            check_finite(value, into[row], job.names[row])
        except UserError as e:
            errors[int(row)] = str(e)


def _table(
    job: ImageJob, kept: npt.NDArray[np.int64], shapes: npt.NDArray[np.int64], features: npt.NDArray[Any]
) -> pa.Table:
    """A table of the images `kept`, in order."""
    columns = {"path": pa.array([job.names[i] for i in kept], pa.string())}
    columns |= {"width": pa.array(shapes[kept, 0], pa.int32()), "height": pa.array(shapes[kept, 1], pa.int32())}
    columns |= {name: pa.array([values[i] for i in kept], pa.string()) for name, values in job.metadata.items()}
    kind = feature_type(features.shape[1], features.dtype.str)
    return pa.table(columns | {FEATURES: feature_column(features[kept]).cast(kind)})
