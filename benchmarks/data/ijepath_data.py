"""Speed of I-JEPATH's data path: samples per second, against a torch DataLoader over tiffslide, in one run.

    python benchmarks/data/ijepath_data.py                                     # generated slides, mode=load
    python benchmarks/data/ijepath_data.py masks=none slides=24 tissue_cache_mb=2
    python benchmarks/data/ijepath_data.py mode=load manifest=slides.csv       # your own slides
    python benchmarks/data/ijepath_data.py mode=index manifest=slides.csv
    python benchmarks/data/ijepath_data.py mode=train manifest=slides.csv model=vit_tiny batch=2

A sample is a 512² context at 1.0 mpp and four 256² targets at 0.5 mpp: boxes and tokens drawn, collated, uint8.
Generated slides are those of the specification: 8192² at 0.5 mpp, JPEG quality 85 in tiles of 256², levels of 0.5 and
1.0 mpp, a mask of 4 mpp. `load` decodes in `processes` processes with one thread each. Its rounds alternate with the
DataLoader's (the same number of workers); the best of each counts, since other load only slows. With `masks=none` the
masks are computed, of round sections on glass, and the DataLoader is left out: 24 masks of 512² fill 2 MB as those of
24 slides of 100,000 x 80,000 at 0.25 mpp fill 64 MB. `index` times the slide index and the anchors. `train` times
steps of forward, backward, AdamW and EMA without any reading. Two cores: two minutes. Bar of `load`: 150 samples/s.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
from omegaconf import OmegaConf

from ijepath.config import DataConfig, ModelConfig, OptimizationConfig, RunConfig, resolve_global_batch
from ijepath.data import AnchorReader, ReaderConfig
from ijepath.plan import build_plan, strata
from ijepath.profile import Profile
from pathray.data.order import stratified_order
from pathray.data.plan import Plan
from pathray.data.share import Lookup, rank_rows
from pathray.data.stream import DecodeSettings, decode, stream_batches

SIDE, TILE, FIELD = 8192, 256, 2048


@dataclass
class Settings:
    """Settings of the benchmark."""

    mode: str = "load"  # load | index | train
    manifest: str | None = None  # None: generated slides
    processes: int = 2
    slides: int = 4  # generated ones
    masks: str = "files"  # of generated slides: files | none (they are computed)
    tissue_cache_mb: int = 64
    samples: int = 768  # per round
    rounds: int = 3
    batch: int = 8
    model: str = "vit_tiny"
    steps: int = 3
    threads: int = 2  # of torch, in mode=train


def main() -> None:
    given = OmegaConf.merge(OmegaConf.structured(Settings), OmegaConf.from_dotlist(sys.argv[1:]))
    settings: Any = OmegaConf.to_object(given)
    if settings.mode == "train":
        return train(settings)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PATHRAY_CACHE_DIR"] = f"{folder}/cache"  # every run begins with a cold one
        manifest = settings.manifest or generate(Path(folder), settings.slides, masks=settings.masks == "files")
        plan = index(manifest, folder, settings)
        if settings.mode == "load":
            load(plan, settings)


def index(manifest: str, folder: str, settings: Settings) -> Plan:
    """Index, anchors and plan of a manifest, timed."""
    from ijepath.indexing.anchors import anchors_of
    from ijepath.indexing.catalog_writer import write_catalog
    from ijepath.indexing.index import SlideIndex, index_slides, write_index
    from ijepath.indexing.manifest import read_manifest

    read = read_manifest(manifest)
    with multiprocessing.get_context("fork").Pool(settings.processes) as pool:
        over = partial(pool.imap, chunksize=4)
        start = time.perf_counter()
        slides = SlideIndex(tuple(index_slides(read, map=over)), read.metadata_columns)
        between = time.perf_counter()
        found = list(anchors_of(slides.rows, Profile(), map=over))
        end = time.perf_counter()
    anchors, path = sum(len(f) for f in found), f"{folder}/slides.parquet"
    print(f"index    {len(slides.rows) / (between - start):8.0f} slides/s  ({len(slides.failed_rows)} failed)")
    print(f"anchors  {anchors / (end - between):8.0f} anchors/s ({anchors / len(found):.0f} a slide)", flush=True)
    write_index(path, slides)
    catalog = f"{folder}/anchor_catalog_manifest.json"
    write_catalog(catalog, Profile(), found, slide_index=path, metadata_columns=read.metadata_columns)
    return build_plan(catalog, f"{folder}/plan")


def load(plan: Plan, settings: Settings) -> None:
    """Samples per second of the reader in processes and of the DataLoader, in turns."""
    config = run_config(settings)
    lookup = Lookup(plan, stratified_order(strata(plan), 0))
    reader = AnchorReader(ReaderConfig.of(config), plan.sources.to_pydict())
    processor_time(lookup, reader, settings)
    ours, theirs = [], []
    for turn in range(settings.rounds):
        ours.append(in_processes(lookup, reader, settings, turn))
        print(f"  reader       {ours[-1]:7.1f} samples/s", flush=True)
        if settings.manifest is None and settings.masks == "files":  # it knows the levels of the generated slides
            theirs.append(data_loader(lookup, reader, settings, turn))
            print(f"  DataLoader   {theirs[-1]:7.1f} samples/s", flush=True)
    print(f"load     {max(ours):8.1f} samples/s in {settings.processes} processes (bar 150)")
    if theirs:
        print(f"         {max(ours) / max(theirs):8.2f} x a DataLoader over tiffslide")


def processor_time(lookup: Lookup, reader: AnchorReader, settings: Settings) -> None:
    """Milliseconds of one core per sample, in this process: the figure that other load changes least."""
    positions = list(range(10**6, 10**6 + 96))

    def ours(position: int) -> None:
        decode(reader, lookup([position]), lookup)

    ways = {"reader": ours}
    if settings.manifest is None and settings.masks == "files":
        ways["tiffslide"] = Slides(lookup, reader, positions).at
    for name, read in ways.items():
        for position in positions[:16]:
            read(position)
        start = time.process_time()
        for position in positions[16:]:
            read(position)
        print(f"  {name:<12} {(time.process_time() - start) / 80 * 1e3:7.1f} ms of one core a sample", flush=True)


def run_config(settings: Settings) -> RunConfig:
    batch = settings.batch * settings.processes
    optimization = OptimizationConfig(total_images_budget=1, global_batch=batch, micro_batch=settings.batch)
    return resolve_global_batch(
        RunConfig(data=DataConfig(tissue_cache_mb=settings.tissue_cache_mb), optimization=optimization),
        settings.processes,
    )


def in_processes(lookup: Lookup, reader: AnchorReader, settings: Settings, turn: int) -> float:
    """Samples per second of `processes` processes, from the moment when all have delivered a first batch."""
    context = multiprocessing.get_context("spawn")
    barrier, times = context.Barrier(settings.processes + 1), context.Queue()
    arguments = (lookup, reader, settings, turn, barrier, times)
    workers = [context.Process(target=work, args=(rank, *arguments)) for rank in range(settings.processes)]
    for worker in workers:
        worker.start()
    barrier.wait()
    start = time.perf_counter()
    done = [times.get() for _ in workers]
    seconds = time.perf_counter() - start
    for worker in workers:
        worker.join()
    return sum(done) / seconds


def work(
    rank: int, lookup: Lookup, reader: AnchorReader, settings: Settings, turn: int, barrier: Barrier, times: Any
) -> None:
    G = settings.batch * settings.processes
    first = turn * settings.samples // G * G
    stop = first + G + settings.samples // G * G
    rows = rank_rows(lookup, first, stop, G, rank, settings.processes, settings.batch)
    batches = stream_batches(rows, reader, lookup, DecodeSettings(threads=1, ahead=1))
    next(batches)
    barrier.wait()
    times.put(sum(batch["context"].shape[0] for batch in batches))


class Slides:
    """The same samples through tiffslide, one read per picture, as a torch dataset."""

    def __init__(self, lookup: Lookup, reader: AnchorReader, positions: Sequence[int]) -> None:
        self.lookup, self.reader, self.positions = lookup, reader, list(positions)
        self.open: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        return self.at(self.positions[i])

    def at(self, position: int) -> tuple[Any, Any]:
        import tiffslide
        import torch

        unit = {name: values[0] for name, values in self.lookup([position]).items()}
        path = str(self.reader.sources["wsi_path"][int(unit["source"])])
        slide = self.open.get(path) or self.open.setdefault(path, tiffslide.TiffSlide(path))
        x0, y0 = int(unit["x"]) - 512, int(unit["y"]) - 512
        context = slide.read_region((x0, y0), 1, (512, 512), as_array=True)
        corners = np.random.default_rng(position).integers(0, 385, (4, 2)) * 2
        targets = [slide.read_region((x0 + x, y0 + y), 0, (256, 256), as_array=True) for x, y in corners.tolist()]
        return torch.from_numpy(np.ascontiguousarray(context)), torch.from_numpy(np.stack(targets))


def data_loader(lookup: Lookup, reader: AnchorReader, settings: Settings, turn: int) -> float:
    from torch.utils.data import DataLoader

    count = max(settings.samples // 2, 2 * settings.batch)
    first = turn * count
    dataset: Any = Slides(lookup, reader, range(first, first + count))
    batches = iter(DataLoader(dataset, settings.batch, num_workers=settings.processes))
    next(batches)
    start = time.perf_counter()
    done = sum(batch[0].shape[0] for batch in batches)
    return done / (time.perf_counter() - start)


def train(settings: Settings) -> None:
    """Seconds per step on fixed random pixels: the computation alone."""
    import torch

    from ijepath.recipe import IJepathRecipe
    from pathray.train.recipe import Progress

    torch.set_num_threads(settings.threads)
    config = resolve_global_batch(
        RunConfig(model=ModelConfig(name=settings.model), optimization=OptimizationConfig(10**6, settings.batch)), 1
    )
    recipe = IJepathRecipe(config)
    parameters = [p for _, p in recipe.params["model"]]
    optimizer = torch.optim.AdamW(parameters)
    micro, seconds = random_batch(config, settings.batch), []
    for step in range(settings.steps + 1):
        start = time.perf_counter()
        progress = Progress(step, 10**6, settings.batch)
        loss = recipe.loss("model", recipe.prepare(micro, progress), progress)
        optimizer.zero_grad()
        (loss.sum / loss.weight).backward(inputs=parameters)
        optimizer.step()
        recipe.after_step(progress)
        seconds.append(time.perf_counter() - start)
    best = min(seconds[1:])
    print(f"train    {best:8.2f} s a step of {settings.batch} ({settings.model}), {settings.batch / best:.2f} images/s")


def random_batch(config: RunConfig, batch: int) -> dict[str, Any]:
    """Noise instead of pixels, with real boxes and tokens."""
    import torch

    from ijepath.footprints import sample_footprints
    from ijepath.geometry import draw_boxes
    from pathray.data.order import rng

    reader = ReaderConfig.of(config)
    geometry, samples = reader.kinds[0].geometry, []
    for position in range(batch):
        generator = rng(0, "boxes", position)
        boxes, _ = draw_boxes(generator, geometry, reader.rules)
        tokens = sample_footprints(generator, boxes, geometry, reader.mask, reader.counts[0])
        samples.append(
            {
                "context": generator.integers(0, 255, (geometry.context_px, geometry.context_px, 3), np.uint8),
                "targets": generator.integers(0, 255, (geometry.targets, *geometry.crop, 3), np.uint8),
                "draws": generator.random((2, 16), np.float32),
                "context_keep": tokens.keep,
                "context_index": tokens.keep,
                "target_predict": tokens.predict,
            }
        )
    return {k: torch.from_numpy(np.stack([s[k] for s in samples])) for k in samples[0]}


def generate(folder: Path, slides: int, *, masks: bool = True) -> str:
    """Slides of H&E-like texture with masks of 4 mpp, or of round sections without masks, and their manifest."""
    lines = ["slide_id,wsi_path,mask_path"]
    for i in range(slides):
        field = texture(np.random.default_rng(i))
        write_pyramid(folder / f"{i}.tiff", field, section=not masks)
        if masks:
            write_mask(folder / f"{i}_mask.tiff")
        lines.append(f"s{i},{i}.tiff,{f'{i}_mask.tiff' if masks else ''}")
    (folder / "slides.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "slides.csv")


def texture(rng: np.random.Generator) -> np.ndarray:
    """A field [FIELD, FIELD, 3] uint8 of fibres, nuclei and fine grain in the colours of H&E."""
    from scipy.ndimage import gaussian_filter

    def noise(sigma: float | tuple[float, float]) -> np.ndarray:
        smooth = gaussian_filter(rng.standard_normal((FIELD, FIELD), np.float32), sigma, mode="wrap")
        return (smooth / smooth.std())[..., None]

    eosin = np.array([224, 160, 196]) + noise((1.5, 6.0)) * [8, 18, 12]
    haematoxylin = np.array([96, 70, 140]) + noise(1.2) * 14
    nuclei = np.clip(noise(4.5) * 2 - 1.6, 0, 1)
    field: np.ndarray = np.clip(eosin * (1 - nuclei) + haematoxylin * nuclei + noise(0.6) * 2, 0, 255).astype(np.uint8)
    return field


def write_pyramid(path: Path, field: np.ndarray, *, section: bool = False) -> None:
    """Levels of 0.5 and 1.0 mpp, the field repeated over SIDE² pixels; a `section` is round, with glass around it."""
    import imagecodecs
    import tifffile

    glass = imagecodecs.jpeg_encode(np.full((TILE, TILE, 3), 243, np.uint8), level=85)
    half = field.reshape(FIELD // 2, 2, FIELD // 2, 2, 3).mean((1, 3)).astype(np.uint8)
    with tifffile.TiffWriter(path) as writer:
        for level, (tile_field, side) in enumerate(((field, SIDE), (half, SIDE // 2))):
            encoded = [
                [
                    imagecodecs.jpeg_encode(np.ascontiguousarray(tile), level=85)
                    for tile in np.split(row, row.shape[1] // TILE, 1)
                ]
                for row in np.split(tile_field, tile_field.shape[0] // TILE, 0)
            ]

            def tiles(encoded: list[list[bytes]] = encoded, side: int = side) -> Iterator[bytes]:
                n, across = len(encoded), side // TILE
                for r, c in np.ndindex(across, across):
                    outside = section and np.hypot(r + 0.5 - across / 2, c + 0.5 - across / 2) > 0.4 * across
                    yield glass if outside else encoded[r % n][c % n]

            density = (1e4 / (0.5 * 2**level),) * 2
            kind = {"subfiletype": 1} if level else {}
            writer.write(
                tiles(), shape=(side, side, 3), dtype=np.uint8, tile=(TILE, TILE), compression="jpeg",
                photometric="ycbcr", subsampling=(2, 2), resolution=density, resolutionunit="CENTIMETER", **kind,
            )  # fmt: skip


def write_mask(path: Path) -> None:
    """Tissue everywhere but in a few round holes, at 4 mpp."""
    import tifffile

    n = SIDE // 8
    y, x = np.mgrid[:n, :n]
    mask = np.full((n, n), 255, np.uint8)
    for cy, cx in ((200, 300), (700, 650), (450, 900)):
        mask[(y - cy) ** 2 + (x - cx) ** 2 < 70**2] = 0
    tifffile.imwrite(path, mask, tile=(256, 256), compression="deflate")


if __name__ == "__main__":
    main()
