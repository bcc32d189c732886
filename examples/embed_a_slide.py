"""Features of one slide: open it, find its tissue, embed its tiles, keep features and places.

    python examples/embed_a_slide.py --slide slide.svs --encoder outputs/run/encoder --output features.npz

Without arguments a small slide and an encoder that nobody has trained are generated.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

import generated
import pathray


def main(slide_path: str, encoder_path: str, output: str) -> None:
    encoder = pathray.load_encoder(encoder_path)  # a folder or a URL; device="cuda" for a GPU
    with pathray.open_slide(slide_path) as slide:  # mpp=0.5 where the file does not say its pixel size
        print(slide)

        # Tissue is a mask over the whole slide, and how many µm a pixel of it has.
        mask, mpp = pathray.tissue(slide)
        print(f"tissue: {mask.sum() * (mpp / 1000) ** 2:.2f} mm²")

        # Tiles are cut where the tissue is, at the spacing that the encoder was trained at. What is in `bag` is what
        # `ray_jobs.extract_features` writes for this slide: features [N, D], and corners [N, 2] in level-0 pixels.
        bag = encoder.embed(slide, tiles=encoder.tile_spec(min_tissue_fraction=0.5))
        print(f"{len(bag.features)} tiles of {bag.tile['tile_um']:g} µm, {bag.features.shape[1]} numbers each")

        # The tile whose features are farthest from the mean, as pixels: its centre is half a tile from its corner.
        odd = int(np.linalg.norm(bag.features - bag.features.mean(axis=0), axis=1).argmax())
        centre = bag.coords[odd] + bag.tile["patch_size_level0"] // 2
        tile = slide.read_region(centre, mpp=encoder.mpp or slide.mpp, size=encoder.size_px)
        print(f"the oddest tile is at {tuple(centre.tolist())}, of mean colour {tile.mean(axis=(0, 1)).round()}")

        # The same tile as an array gives the same features: [1, H, W, 3] of NumPy or torch.
        assert np.allclose(encoder.embed(tile[None])[0], bag.features[odd], atol=1e-4)
    np.savez(output, features=bag.features, coords=bag.coords)
    print(f"written: {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slide", help="a slide file or URL")
    parser.add_argument("--encoder", help="an encoder's folder or URL")
    parser.add_argument("--output", default="features.npz")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        main(
            given.slide or str(generated.slide(Path(folder, "slide.tiff"))),
            given.encoder or str(generated.encoder(Path(folder, "encoder"))),
            given.output,
        )
