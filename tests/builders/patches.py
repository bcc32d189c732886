"""Small patches of two classes from two centres, as PNG files with a manifest, and `tuning` that judges them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

CLASSES, CENTERS = ("gland", "stroma"), ("north", "south")


def write_patches(folder: Path, *, slides: int = 3, patches: int = 3, px: int = 48, seed: int = 0) -> str:
    """`slides` slides of `patches` patches in every cell; the class is a texture, the centre a tint. The manifest."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    g = np.random.default_rng(seed)
    y, x = np.mgrid[:px, :px]
    lines = ["image_path,label,medical_center,slide_id"]
    for c, center in enumerate(CENTERS):
        for k, name in enumerate(CLASSES):
            for s in range(slides):
                for p in range(patches):
                    wave = np.sin((x if k else x + y) / (2.5 + 2 * k) + g.uniform(0, 6))
                    grey = 150 + 40 * wave + g.normal(0, 12, (px, px))
                    tint = np.array([1.0, 0.8 + 0.1 * c, 0.95 - 0.1 * c])
                    image = np.clip(grey[..., None] * tint, 0, 255).astype(np.uint8)
                    file = f"{center}_{name}_{s}_{p}.png"
                    Image.fromarray(image).save(folder / file)
                    lines.append(f"{file},{name},{center},{center}-{name}-{s}")
    (folder / "patches.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "patches.csv")


def write_tuning(path: Path, manifest: str, *, every: int = 8, more: str = "", execution: str = "") -> str:
    """A config file with a `tuning` section for the patches of `manifest`; `more` and `execution` are YAML flow."""
    path.write_text(
        f"""
tuning:
  enable: true
  tune_every: {every}
  execution: {{device: cpu, cpus: 0.5, {execution}}}
  plugins:
    - name: pathorob
      datasets: {{hospitals: {{manifest_csv: "{manifest}", neighbours: 3}}}}
      ri: {{every_n_evals: 1}}
      apd: {{every_n_evals: 0}}
      clustering: {{every_n_evals: 2}}
  {more}
"""
    )
    return str(path)
