"""Spatial transcriptomics → the data of a regression: a patch around every spot, and a table of their expression.

    python -m ray_jobs.spatial_patches spots=spots.tsv counts=counts.tsv.gz images=raw/{section}.jpg image_mpp=0.69 \\
        held_out='[C2]' output=outputs/spatial

`images` is the path of a section's image (a slide or a plain image), with `{section}` in place of its name. The genes
are those in `genes`, or the `top_genes` that vary most over the training groups: all groups but `held_out`, or the
train groups of a `split`. It writes `table.csv`, `patches/SECTION/SPOT.png` and `genes.yaml` (for `--config` of the
jobs that train and evaluate). Needs no Ray.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pathray
from pathray.config.load import MISSING, Loaded, is_set
from pathray.errors import MissingFile, UserError
from pathray.wsi.spacing import MAX_ENLARGEMENT
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.dry_run import tell

if TYPE_CHECKING:
    from regression.tables.spatial import Counts, SectionImage, Spots

log = logging.getLogger(__name__)


@dataclass
class SpatialPatchesConfig:
    spots: str = (
        MISSING  # CSV or TSV with columns spot_id, pixel_x, pixel_y (in the section's image), group and section
    )
    counts: str = MISSING  # CSV or TSV (also .gz): spot ids, and a column of counts per gene
    images: str = MISSING  # path or URL of a section's image: raw/{section}.jpg
    output: str = MISSING  # folder or URL
    group: str = "patient"  # column of `spots`: groups that a split must keep together
    section: str = "section"  # column of `spots`
    totals: str | None = None  # column of `spots` with counts over all genes, if `counts` has only some genes
    sections: list[str] | None = None  # null: all
    genes: list[str] | None = None  # null: the top_genes over the training groups
    top_genes: int = 50
    held_out: list[str] | None = None  # groups that must not influence the choice of genes; []: none
    split: str | None = None  # instead: a split (path,group_id,split), whose train groups choose the genes
    patch_px: int = 224
    mpp: float = 0.5  # µm per pixel of the patches
    max_enlargement: float = MAX_ENLARGEMENT  # of an image's pixels; a section that needs more is rejected
    image_mpp: float | None = None  # µm per pixel of images without a spacing
    spot_um: float | None = None  # diameter of a spot, for maps (100 of ST, 55 of Visium)

    def __post_init__(self) -> None:
        for key in ("top_genes", "patch_px", "mpp", "image_mpp", "spot_um"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise UserError(f"{key} must be > 0", key=key, found=value, expected="> 0")
        if not self.max_enlargement >= 1:
            message = "max_enlargement must be >= 1"
            raise UserError(message, key="max_enlargement", found=self.max_enlargement, expected="at least 1")
        known = [key for key in ("genes", "held_out", "split") if getattr(self, key) is not None]
        if is_set(self.spots) and len(known) != 1:
            expected = "one of genes=[…], held_out=[groups] (or []), split=FILE"
            message = "set exactly one of genes, held_out and split: test groups must not choose the genes"
            raise UserError(message, key="held_out", found=known, expected=expected)


def main(loaded: Loaded[SpatialPatchesConfig]) -> Outputs | None:
    from pathray.store.storage import Storage, write_atomic
    from regression.tables.spatial import cut_patches, write_table

    config = loaded.config
    spots, counts = read(config)
    genes = choose_genes(config, spots, counts)
    sections = dict.fromkeys(spots.sections)
    images = {section: section_image(config, section) for section in sections}
    if loaded.dry_run:
        return tell((len(spots.ids), "spots"), (len(images), "sections"), (len(genes), "genes"))
    store, patches = Storage.of(config.output), dict[str, str]()
    for section, image in images.items():
        folder = f"patches/{section}"
        own = spots.only([section])
        size: dict[str, Any] = {"size_px": config.patch_px, "mpp": config.mpp, "image_mpp": image.mpp}
        size["max_enlargement"] = config.max_enlargement
        names = cut_patches(image.path, own, store.join(folder), **size)
        patches |= {spot: f"{folder}/{name}" for spot, name in zip(own.ids, names, strict=True)}
        log.info("%s: %d patches", section, len(names))
    target = store.join("table.csv")
    write_table(target, spots, [patches[spot] for spot in spots.ids], counts.of(spots.ids, genes), images)
    lines = f"data:\n  target_dim: {len(genes)}\n  genes: {json.dumps(genes)}\n"
    write_atomic(store.join("genes.yaml"), lines.encode())
    return Outputs({"table": target, "genes": store.join("genes.yaml")})


def read(config: SpatialPatchesConfig) -> tuple[Spots, Counts]:
    """The spots of the requested sections, and their counts. The complete files are checked against each other."""
    from regression.tables.spatial import check_same_spots, read_counts, read_spots, totals_of

    spots = read_spots(config.spots, group=config.group, section=config.section)
    totals = None if config.totals is None else totals_of(spots, config.totals)
    counts = read_counts(config.counts, totals)
    check_same_spots(spots, counts)
    for section in config.sections or ():
        if section not in spots.sections:
            found = sorted(set(spots.sections))
            raise UserError("the section has no spots", file=config.spots, key=section, found=found)
    for name in set(spots.sections):
        if "/" in name or "\\" in name or name in (".", ".."):
            message = "the section cannot be used as a folder name"
            raise UserError(message, file=config.spots, key=config.section, found=name)
    if config.sections is not None:
        spots = spots.only(config.sections)
    return spots, counts.of(spots.ids)


def choose_genes(config: SpatialPatchesConfig, spots: Spots, counts: Counts) -> list[str]:
    """The genes in the config, or those that vary most over the training groups."""
    import numpy as np

    from pathray.data.split_files import groups_that_train
    from regression.tables.spatial import log1p_cp10k, select_genes

    if config.genes is not None:
        if missing := [gene for gene in config.genes if gene not in counts.genes]:
            raise UserError("genes without counts", file=config.counts, key=missing[0], found=missing[:8])
        return list(config.genes)
    groups = set(spots.groups)
    if config.split is not None:
        trains = groups_that_train(config.split)
        if not trains & groups:
            raise UserError("no spot belongs to a training group", file=config.split, found=sorted(trains)[:8])
    else:
        held_out = set(config.held_out or ())
        if unknown := sorted(held_out - groups):
            raise UserError("unknown group", file=config.spots, key="held_out", found=unknown, expected=sorted(groups))
        trains = groups - held_out
        if not trains:
            raise UserError("held_out leaves no group to choose genes", key="held_out", found=sorted(held_out))
    rows = np.array([group in trains for group in spots.groups])
    return select_genes(log1p_cp10k(counts), counts.genes, rows, config.top_genes)


def section_image(config: SpatialPatchesConfig, section: str) -> SectionImage:
    """The path and spacing of a section's image. MissingFile and UserError name it."""
    import posixpath

    from pathray.store.storage import Storage
    from regression.tables.spatial import SectionImage, open_section, spacing_of

    path = config.images.replace("{section}", section)
    store = Storage.of(posixpath.dirname(path) or ".")
    path = store.join(posixpath.basename(path))
    if not store.exists(posixpath.basename(path)):
        expected = f"the image of section {section}; use sections=[…] to select sections"
        raise MissingFile("no such image", file=path, key="images", expected=expected)
    mpp = config.image_mpp
    if mpp is None:
        reader = open_section(path)
        try:
            mpp = spacing_of(reader, None)
        finally:
            reader.close()
    return SectionImage(path, mpp, None if config.spot_um is None else config.spot_um / 2 / mpp)


if __name__ == "__main__":
    job(main, SpatialPatchesConfig, Path(pathray.__file__).parent)
