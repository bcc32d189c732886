"""What extraction adds to its encoder, and how it compares with a plain loop over tiffslide, in one process.

    python benchmarks/data/extract.py                                  # a generated slide, vit_tiny, the CPU
    python benchmarks/data/extract.py --slide x.svs --model vit_large --precision bf16 --batch 256 --threads 8   # a GPU

Prints tiles/s, best of `--rounds`, of (1) the encoder alone on pixels in memory, (2) `extract_slide` from file to bag,
(3) a plain loop (tiffslide at level 0, one read per tile, no resampling; the same encoder and batches). It repeats (2)
and (3) with an encoder that costs nothing, which gives the speed of the data path. Ratios of one run; no Ray.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from pathray.device import Device
from pathray.features.encoder import EncoderSpec, FeatureEncoder, load_encoder
from pathray.features.slides import SlideJob, SlideSettings, extract_slide
from pathray.nn.vit import ViT, vit_config
from pathray.store.artifact import EncoderArtifact
from pathray.wsi.reader import open_slide
from pathray.wsi.tiling import TileSpec, tiles_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slide", help="a slide that says its spacing; without it one is generated")
    parser.add_argument("--side", type=int, default=4096, help="of the generated slide, at 0.5 mpp")
    parser.add_argument("--model", default="vit_tiny")
    parser.add_argument("--tile", type=int, default=224)
    parser.add_argument("--mpp", type=float, default=0.5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2, help="that read")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        slide = args.slide or generate(Path(folder), args.side)
        measure(args, slide, folder)


def measure(args: argparse.Namespace, slide: str, folder: str) -> None:
    device = Device.of("auto")
    spec = artifact(f"{folder}/encoder", args.model, args.tile, args.mpp)
    encoder = load_encoder(spec, device, precision=args.precision)
    free = Free(spec.dim("mean"))
    reader = open_slide(slide)
    mpp0 = float(reader.mpp or args.mpp)
    tiles = tiles_of(np.ones((1, 1)), *reader.level_shapes[0], mpp0, TileSpec(args.tile, args.mpp))
    print(f"{len(tiles)} tiles of {args.tile} px at {args.mpp} mpp, {args.model} on {device.describe()}")
    pixels = np.random.default_rng(0).integers(0, 256, (args.batch, args.tile, args.tile, 3), np.uint8)

    def alone() -> int:
        for _ in range(0, len(tiles), args.batch):
            encoder(device.to_device({"x": pixels})["x"]).cpu()
        return -(-len(tiles) // args.batch) * args.batch

    def ours(with_encoder: Any) -> Callable[[], int]:
        settings = SlideSettings(
            TileSpec(args.tile, args.mpp, min_tissue_fraction=0.0), batch_size=args.batch, read_threads=args.threads
        )
        job = SlideJob("s", slide, fallback_mpp=args.mpp, bags=(("e", f"{folder}/s.h5"),))
        return lambda: extract_slide(job, {"e": spec}, {"e": with_encoder}, settings, device).tiles

    def plain(with_encoder: Any) -> Callable[[], int]:
        return lambda: plain_loop(slide, tiles, args, with_encoder, device)

    base = report("encoder alone", alone, args.rounds)
    report("extract_slide", ours(encoder), args.rounds, base)
    report("plain loop over tiffslide", plain(encoder), args.rounds, base)
    path = report("extract_slide, free encoder", ours(free), args.rounds)
    report("plain loop, free encoder", plain(free), args.rounds, path)


class Free:
    """An encoder that costs nothing."""

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(pixels), self.dim)


def plain_loop(slide: str, tiles: Any, args: argparse.Namespace, encoder: FeatureEncoder, device: Device) -> int:
    import tiffslide

    opened, features = tiffslide.TiffSlide(slide), []
    for start in range(0, len(tiles), args.batch):
        part = [
            np.asarray(opened.read_region((int(x), int(y)), 0, (tiles.size, tiles.size)).convert("RGB"))
            for x, y in tiles.coords[start : start + args.batch]
        ]
        features.append(encoder(device.to_device({"x": np.stack(part)})["x"]).cpu().numpy())
    with tempfile.TemporaryFile() as file:
        np.save(file, np.concatenate(features))
    return len(tiles)


def report(name: str, run: Callable[[], int], rounds: int, base: float | None = None) -> float:
    best = 0.0
    for _ in range(rounds):
        started = time.perf_counter()
        count = run()
        best = max(best, count / (time.perf_counter() - started))
    ratio = f"   {best / base:5.2f} of the first" if base else ""
    print(f"{name:30} {best:9.1f} tiles/s{ratio}", flush=True)
    return best


def artifact(folder: str, model: str, tile: int, mpp: float) -> EncoderSpec:
    vit = ViT(vit_config(model, img_size=(tile, tile)))
    preprocessing = {"mean": [0.5] * 3, "std": [0.25] * 3, "size": tile, "mpp": mpp, "layout": "NCHW"}
    EncoderArtifact.save(folder, vit, preprocessing=preprocessing, science="benchmark", provenance={})
    return EncoderSpec.of("e", folder)


def generate(folder: Path, side: int) -> str:
    from tests.builders.slides import tissue_image, write_slide

    small = tissue_image(1024, 1024)
    image = np.tile(small, (-(-side // 1024), -(-side // 1024), 1))[:side, :side]
    return str(write_slide(folder / "slide.tiff", image=image, downsamples=(1, 4)))


if __name__ == "__main__":
    main()
