"""The sections that MIL configs are made of: where a cohort is, its encoder, its store. Plain dataclasses.

Fields made with `placement` may change when a run is resumed. Not here: the config of a training (mil.config).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mil.store.cap import STRATEGIES, STRATIFIED
from mil.store.format import CHUNK_BYTES, DTYPES
from pathray.config.checks import check_one_of, check_positive
from pathray.config.load import Group, placement

CONFIGS_DIR = Path(__file__).parent / "configs"
GROUPS = tuple(Group(name, name) for name in ("data", "encoder", "model", "splits", "storage"))


@dataclass
class CohortPlaces:
    """Where the slides of a cohort, their labels and their features are."""

    name: str = placement("cohort")
    csv: str | None = placement(None)  # a row per slide: its id, its patient, labels
    features: str | None = placement(None)  # folder of bags, SLIDE_ID.h5, at any depth
    store: str | None = placement(None)  # folder of the feature store
    slides: str | None = placement(None)  # folder of whole-slide images, for extraction and heatmaps
    slide_column: str = "slide_id"
    patient_column: str = "patient_id"  # slides of one patient are never on two sides of a split; "": each its own


@dataclass
class EncoderNames:
    """The encoder whose features a cohort has; paths may refer to ${encoder.name}."""

    name: str = placement("encoder")
    dim: int | None = placement(None)  # of its features; null: as the store says
    artifact: str | None = placement(None)  # folder of the encoder, for extraction
    mpp: float = placement(0.5)  # of its tiles; 0.5 is 20x
    tile_px: int = placement(224)

    def __post_init__(self) -> None:
        check_positive(self, "encoder", "dim", "mpp", "tile_px")


@dataclass
class StorageConfig:
    """How bags become a store."""

    dtype: str = "float16"  # | float32; a value that float16 cannot hold is refused
    max_instances: int | None = 16384  # tiles of a slide that are kept; null: all
    cap_strategy: str = STRATIFIED  # spatial_stratified: spread over a grid | random
    cap_grid_size: int = 32
    seed: int = 42
    filter_by_csv: bool = False  # only the slides of data.csv
    save_coverage_thumbnails: bool = placement(False)  # a picture of kept and discarded tiles per capped slide
    chunk_gb: float = placement(CHUNK_BYTES / 1e9)

    def __post_init__(self) -> None:
        check_one_of(self, "storage", dtype=DTYPES, cap_strategy=STRATEGIES)
        check_positive(self, "storage", "max_instances", "cap_grid_size", "chunk_gb")


@dataclass
class CohortConfig:
    """The sections that every MIL job has."""

    data: CohortPlaces = field(default_factory=CohortPlaces)
    encoder: EncoderNames = placement(default_factory=EncoderNames)
