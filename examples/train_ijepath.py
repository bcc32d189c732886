"""I-JEPATH from a manifest to an encoder, step by step in one process, as in a notebook. No Ray.

    python examples/train_ijepath.py --slides slides.csv --output outputs/run

The job `ray_jobs.pretrain_ijepath` does the same on any number of workers. Without arguments two small slides are
generated, and a small model sees few images: it shows the way, not a result.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import generated
import pathray
from ijepath.assembly import assemble
from ijepath.config import CONFIGS_DIR, GROUPS, RunConfig, resolve_global_batch
from ijepath.indexing.anchors import anchors_of
from ijepath.indexing.catalog_writer import write_catalog
from ijepath.indexing.index import COLUMNS, SlideIndex, index_slides, write_index
from ijepath.indexing.manifest import read_manifest
from ijepath.plan import build_plan
from ijepath.profile import Profile
from pathray.config.load import load_config
from pathray.device import Device

SMALL = (  # the keys of the job; smoke.yaml has more of the kind
    "data.context_fov_um=96", "data.target_fov_um=32", "data.targets_per_context=2", "data.target_margin_um=4",
    "mask.min_keep=4", "model.name=vit_tiny", "model.pred_depth=1", "model.pred_emb_dim=48",
    "optimization.total_images_budget=48", "optimization.global_batch=8", "training.log_every=16",
)  # fmt: skip


def main(manifest: str, output: Path, keys: tuple[str, ...]) -> None:
    config = load_config(RunConfig, keys, configs_dir=CONFIGS_DIR, groups=GROUPS).config
    config = resolve_global_batch(config, workers=1)
    profile = Profile(**{key: getattr(config.data, key) for key in Profile.__dataclass_fields__})

    # Manifest → index (one row per slide) → anchors (where contexts may lie) → plan (the units of the training).
    listed = read_manifest(manifest, reserved=COLUMNS)
    index = SlideIndex(tuple(index_slides(listed)), listed.metadata_columns)
    write_index(str(output / "index.parquet"), index)
    where = {"slide_index": str(output / "index.parquet"), "metadata_columns": listed.metadata_columns}
    write_catalog(str(output / "catalog.json"), profile, anchors_of(index.rows, profile), **where)
    plan = build_plan(str(output / "catalog.json"), str(output / "plan"))
    print(f"{plan.rows} anchors on {len(index.rows)} slides")

    # Run this again after an interruption, and it resumes from the newest checkpoint in the folder.
    outcome = pathray.train(assemble(config, plan, world=1), plan, str(output), Device.of("auto"))
    print(f"{outcome.end} after {outcome.images_seen} images; metrics are in {output}/metrics.jsonl")
    print(pathray.load_encoder(outcome.artifact))  # what every other job and example takes


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", help="a manifest: slide_id,wsi_path,mask_path,organ")
    parser.add_argument("--output", default="outputs/ijepath", type=Path)
    given, words = parser.parse_known_args()
    main(given.slides or str(generated.slides(given.output)), given.output, (*SMALL, *words))
