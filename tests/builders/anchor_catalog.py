"""A real little catalog on disk, made from painted slides without Ray: what training and its pictures read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from demo.cohort import CohortSettings, generate
from ijepath.assembly import order_of
from ijepath.config import DataConfig, OptimizationConfig, RunConfig
from ijepath.data import AnchorReader, ReaderConfig
from ijepath.indexing.anchors import anchors_of
from ijepath.indexing.catalog import Catalog
from ijepath.indexing.catalog_writer import write_catalog
from ijepath.indexing.index import COLUMNS, SlideIndex, index_slides, write_index
from ijepath.indexing.manifest import read_manifest
from ijepath.plan import build_plan
from ijepath.profile import Profile
from pathray.data.plan import Plan
from pathray.data.share import Lookup


@dataclass
class Built:
    """`folder` holds manifest.csv, index.parquet, catalog.json and plan/."""

    folder: Path
    catalog: Catalog
    plan: Plan
    profile: Profile

    def config(self, **data: object) -> RunConfig:
        values = self.profile.as_dict() | data
        return RunConfig(data=DataConfig(**values), optimization=OptimizationConfig(1, global_batch=4, micro_batch=4))

    def lookup(self, config: RunConfig) -> Lookup:
        return Lookup(self.plan, order_of(config, self.plan))

    def reader(self, config: RunConfig) -> AnchorReader:
        sources = {name: self.plan.sources[name].to_pylist() for name in self.plan.sources.column_names}
        return AnchorReader(ReaderConfig.of(config), sources)


def painted_catalog(folder: Path, size_um: float = 560.0) -> Built:
    """Two slides of two hospitals, one with a mask and one without; contexts of 128 µm."""
    manifest = generate(folder, CohortSettings(slides_per_hospital=1, size_um=size_um, patches_per_label=0), workers=1)
    profile = Profile(profile_id="small", context_fov_um=128.0, target_fov_um=32.0, target_margin_um=4.0)
    plan = planned(folder, str(manifest), profile)
    return Built(folder, Catalog.open(str(folder / "catalog.json")), plan, profile)


def planned(folder: Path, manifest: str, profile: Profile) -> Plan:
    """The plan of a manifest whose slides are all good, and in `folder` index.parquet, catalog.json and plan/."""
    found = read_manifest(manifest, reserved=COLUMNS)
    slides = SlideIndex(tuple(index_slides(found)), found.metadata_columns)
    assert not slides.failed_rows, slides.failed_rows
    index, catalog = str(folder / "index.parquet"), str(folder / "catalog.json")
    write_index(index, slides)
    anchors = anchors_of(slides.rows, profile)
    write_catalog(catalog, profile, anchors, slide_index=index, metadata_columns=found.metadata_columns)
    return build_plan(catalog, str(folder / "plan"))
