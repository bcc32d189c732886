"""The checks of the data, lines 1 to 6: storage, files, manifest, devices, DICOM, the dataset class.

Not here: transforms, masks, pictures and training (oct.checklist.training_lines).
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from oct.checklist.lines import Check, Fault, NotPossible, Seen
from oct.config import RunConfig
from oct.indexing.devices import KNOWN, UNKNOWN
from oct.indexing.index_file import read_index
from oct.indexing.manifest import read_manifest
from oct.pictures.samples import Origin, find_origins, shuffle
from pathray.errors import MissingFile, UnreadableUnit, UserError
from pathray.store.storage import Storage, file_state
from pathray.urls import public
from pathray.wsi.backends.source import open_source

LOOKED_AT, OPENED, SHOWN, THREADS = 200, 8, 4, 16
TRIES = 8  # files per wanted volume
DICOM_AT, DICOM = 128, b"DICM"
ZIP = b"PK\x03\x04"
EXPAND = "expand the archives into single files first: python -m ray_jobs.expand_oct"


def look_at_storage(seen: Seen) -> str:
    """Line 1: the root can be listed."""
    root = root_of(seen.config)
    store = Storage.of(root).without_retries()
    if not store.exists():
        raise Fault(f"{public(root)} is not there")
    names = sorted(store.list())
    if not names:
        raise Fault(f"{public(root)} is empty")
    return f"{public(root)}: {len(names):,} entries: {_some(names)}"


def root_of(config: RunConfig) -> str:
    """Where the files are: data.gcs_root, else what index or manifest say, else the manifest's folder."""
    data = config.data
    if data.gcs_root:
        return data.gcs_root
    try:
        if data.index:
            return read_index(data.index).root
        return read_manifest(str(data.manifest)).root
    except UserError:  # line 3 says so
        return posixpath.dirname(str(data.index or data.manifest)) or "."


def look_at_files(seen: Seen) -> str:
    """Line 2: the listed files are there, one by one, and are DICOM. Without a list: what is below the root."""
    try:
        origins = find_origins(seen.config)
    except UserError:  # line 3 says so
        return _look_below_root(seen)
    archives = [origin.path for origin in origins if origin.path.lower().endswith(".zip")]
    if archives:
        raise Fault(f"{len(archives):,} of {len(origins):,} listed files are archives: {_some(archives)}", EXPAND)
    some = [origins[int(i)] for i in np.linspace(0, len(origins) - 1, min(LOOKED_AT, len(origins)))]
    with ThreadPoolExecutor(THREADS) as pool:
        there = list(pool.map(_is_there, some))
    lost = [origin.path for origin, is_there in zip(some, there, strict=True) if not is_there]
    if lost:
        zips = [name for name in Storage.of(root_of(seen.config)).list() if name.lower().endswith(".zip")]
        found = f"{len(lost):,} of {len(some):,} files are not there: {_some(lost)}"
        raise Fault(found + (f"; the root has {_some(zips)}" if zips else ""), EXPAND if zips else "")
    opened = some[:: max(1, len(some) // OPENED)]
    _check_magic(opened)
    return f"{len(some):,} of {len(some):,} looked at are there; {len(opened)} opened: DICOM, none is an archive"


def _look_below_root(seen: Seen) -> str:
    names = Storage.of(root_of(seen.config)).files()
    kinds = Counter(posixpath.splitext(name)[1].lower() for name in names)
    if kinds[".zip"] and not kinds[".dcm"]:
        raise Fault(f"{kinds['.zip']:,} archives and no .dcm below the root", EXPAND)
    if not kinds[".dcm"]:
        raise Fault(f"no .dcm among {len(names):,} files below the root")
    return f"{kinds['.dcm']:,} .dcm below the root; without a manifest nobody knows whether that is all"


def _is_there(origin: Origin) -> bool:
    try:
        file_state(origin.url)
    except MissingFile:
        return False
    return True


def _check_magic(origins: Sequence[Origin]) -> None:
    for origin in origins:
        source = open_source(origin.url)
        try:
            head = source.read_many([(0, min(source.size, DICOM_AT + len(DICOM)))])[0]
        finally:
            source.close()
        if head.startswith(ZIP):
            raise Fault(f"{origin.path} is a ZIP archive", EXPAND)
        if head[DICOM_AT:] != DICOM:
            raise Fault(f"{origin.path} is no DICOM file: it has no DICM at byte {DICOM_AT}")


def look_at_manifest(seen: Seen) -> str:
    """Line 3: manifest or index can be read; keeps its files."""
    seen.origins = find_origins(seen.config)
    persons, eyes = len({o.person for o in seen.origins}), Counter(o.laterality or "?" for o in seen.origins)
    told = ", ".join(f"{count:,} {eye}" for eye, count in sorted(eyes.items()))
    source = str(seen.config.data.index or seen.config.data.manifest)
    return f"{public(source)}: {len(seen.origins):,} files of {persons:,} persons; eyes {told}"


def look_at_devices(seen: Seen) -> str:
    """Line 4: every file has a device."""
    counts = Counter(origin.device for origin in seen.need_origins())
    told = ", ".join(f"{name} {count:,}" for name, count in counts.most_common())
    if counts[UNKNOWN]:
        raise Fault(f"{counts[UNKNOWN]:,} files of an unknown device: {told}")
    others = len(set(counts) - set(KNOWN))
    return told + (f" ({others} named by their folder, not of AI-READI)" if others else "")


def look_at_dicom(seen: Seen) -> str:
    """Line 5: volumes can be decoded onto the grid, and what their headers say; keeps them."""
    from oct.dicom.resample import CENTRE, read_volume

    left_out = Counter[str]()
    for origin in shuffle(seen.need_origins(), seen.seed)[: TRIES * seen.samples]:
        if len(seen.volumes) == seen.samples:
            break
        try:
            sampled, header = read_volume(origin.url, seen.config.data.grid, CENTRE, origin.spacing_mm)
        except UnreadableUnit as e:
            left_out[e.reason] += 1
            continue
        seen.volumes.append((origin, header, sampled))
    why = "; left out: " + ", ".join(f"{n} {reason}" for reason, n in left_out.items()) if left_out else ""
    if not seen.volumes:
        raise Fault(f"none of {sum(left_out.values())} files could be read{why}")
    _, header, _ = seen.volumes[0]
    mm = zip(header.geometry.spacing_mm, header.geometry.sources, strict=True)
    spacing = ", ".join("assumed" if of == "assumed" else f"{value:.4g} ({of})" for value, of in mm)
    size = f"{header.frames}×{header.rows}×{header.columns}"
    assumed = sum("assumed" in header.geometry.sources for _, header, _ in seen.volumes)
    more = f"; {assumed} with an assumed spacing" if assumed else ""
    return f"{len(seen.volumes)} volumes; the first {size}, spacing {spacing} mm{more}{why}"


def look_at_dataset(seen: Seen) -> str:
    """Line 6: the dataset class gives samples, and its collate_fn a batch."""
    from oct.dataset import OCTDICOMDataset, collate_fn

    data, volumes = seen.config.data, seen.need_volumes()[:2]
    if not data.manifest:
        raise NotPossible("OCTDICOMDataset needs data.manifest; an index is given")
    names = [origin.path for origin, _, _ in volumes]
    dataset = OCTDICOMDataset(data.manifest, data.gcs_root, names, grid=data.grid)
    batch = collate_fn([dataset[i] for i in range(len(dataset))])
    image, expected = batch["image"], (len(names), 1, *data.image_size)
    if tuple(image.shape) != expected or not bool(image.isfinite().all()):
        raise Fault(f"a batch of {tuple(image.shape)}, expected {expected} of finite values")
    if batch["meta"][0]["path"] != names[0]:
        raise Fault(f"{names[0]} was replaced by {batch['meta'][0]['path']}: {dict(dataset.unreadable)}")
    return f"OCTDICOMDataset: {len(dataset)} samples, a batch of {'×'.join(map(str, image.shape))}, z-scored"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")


DATA_CHECKS = (
    Check("storage reachable", look_at_storage, "set data.gcs_root to the folder or bucket of the data; check logins"),
    Check("individual DICOM files", look_at_files, "set data.gcs_root to where the manifest's paths begin"),
    Check("manifest parsed", look_at_manifest, "correct the row or key that it names; data.manifest or data.index"),
    Check("devices detected", look_at_devices, "name manufacturer and model in the manifest, or use device folders"),
    Check("DICOM with metadata", look_at_dicom, "see the reasons with ray_jobs.index_oct; pip install pathray[oct]"),
    Check("dataset class", look_at_dataset, "compare data.image_size and data.spacing_mm with the volumes"),
)
