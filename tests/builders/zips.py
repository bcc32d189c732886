"""Small zip archives of patches: `patch_001_32_x100_y200.png`, each picture different and known by its name."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 32


def picture(name: str, size: int = SIZE) -> np.ndarray:
    """Pixels [size, size, 3] that only this name has."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    smooth = np.kron(rng.integers(0, 256, (size // 8, size // 8, 3)), np.ones((8, 8, 1)))
    return np.clip(smooth + rng.integers(-8, 9, (size, size, 3)), 0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str = "png", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def patch_name(number: int, size: int = SIZE, x: int = 100, y: int = 200) -> str:
    return f"patch_{number:03d}_{size}_x{x}_y{y}.png"


def write_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return str(path)


def write_archive(
    path: Path, patches: int, size: int = SIZE, method: int = zipfile.ZIP_STORED
) -> dict[str, np.ndarray]:
    """An archive of `patches` patches; name → pixels."""
    names = [patch_name(i, size, 100 * i, 7 * i) for i in range(patches)]
    pictures = {name: picture(f"{path.stem}/{name}", size) for name in names}
    write_zip(path, {name: encoded(pixels) for name, pixels in pictures.items()}, method)
    return pictures


def write_folder(folder: Path, archives: int = 3, patches: int = 6) -> dict[tuple[str, str], np.ndarray]:
    """Archives s0.zip, s1.zip …, every second one deflated; (archive, name) → pixels."""
    found = {}
    for i in range(archives):
        method = zipfile.ZIP_DEFLATED if i % 2 else zipfile.ZIP_STORED
        pictures = write_archive(folder / f"s{i}.zip", patches, method=method)
        found |= {(f"s{i}.zip", name): pixels for name, pixels in pictures.items()}
    return found
