"""The doctor's checks of one machine: packages, memory, limits, disk, decoders, storage. Without accelerators and Ray.

Every check is a function that returns rows and never raises: a check that fails to run is itself a finding.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import resource
import shutil
import tempfile
import tomllib
import traceback
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

OK, WARN, FAIL = "ok", "warn", "FAIL"
ROOT = Path(__file__).resolve().parents[2]
GIB = 1 << 30


@dataclass(frozen=True)
class Check:
    """One row of the report. `advice` says what to do; empty if nothing."""

    name: str
    status: str
    found: str
    advice: str = ""


def run_check(name: str, check: Callable[[], Iterable[Check]]) -> list[Check]:
    """The rows of a check; an exception becomes a FAIL row."""
    try:
        return list(check())
    except Exception as e:
        where = traceback.extract_tb(e.__traceback__)[-1]
        found = f"{type(e).__name__}: {e} ({Path(where.filename).name}:{where.lineno})"
        return [Check(name, FAIL, found, "the check itself failed; fix what it names, or report it")]


def python_version() -> list[Check]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if platform.system() == "Windows":
        return [Check("python", FAIL, found, "Windows is not supported; use Linux, or WSL")]
    return [Check("python", OK, found)]


def declared_requirements(root: Path = ROOT) -> list[str]:
    """The base requirements: from the checkout's pyproject.toml, or from the installed package."""
    if (root / "pyproject.toml").is_file():
        project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
        return list(project["dependencies"])
    return [r for r in importlib.metadata.requires("pathray") or [] if "extra ==" not in r]


def tested_versions(root: Path = ROOT) -> dict[str, str]:
    """Package -> pinned version in this environment's constraints file; empty outside a checkout."""
    path = root / ("constraints-xla.txt" if _version("torch_xla") else "constraints.txt")
    lines = path.read_text().splitlines() if path.is_file() else []
    pairs = [line.split("#")[0].split("==") for line in lines]
    return {name.strip(): version.strip() for name, version in (p for p in pairs if len(p) == 2)}


def packages(requirements: Sequence[str] | None = None, tested: dict[str, str] | None = None) -> list[Check]:
    from packaging.requirements import Requirement
    from packaging.version import Version

    wanted = [Requirement(r) for r in (declared_requirements() if requirements is None else requirements)]
    pins = tested_versions() if tested is None else tested
    rows, inside, untested = [], 0, []
    for r in wanted:
        found = _version(r.name)
        if found is None or not r.specifier.contains(Version(found).public, prereleases=True):
            advice = f"pip install -c constraints.txt '{r.name}{r.specifier}' — on every host"
            rows.append(Check(f"package {r.name}", FAIL, found or "missing", advice))
            continue
        inside += 1
        if r.name in pins and Version(found).public != Version(pins[r.name]).public:
            untested.append(f"{r.name} {found} (tested {pins[r.name]})")
    rows.insert(0, Check("packages", OK, f"{inside} of {len(wanted)} within the declared ranges"))
    if untested:
        rows.append(
            Check("tested set", WARN, ", ".join(untested), "within the ranges; constraints.txt has the tested set")
        )
    return rows


def versions(names: Sequence[str]) -> dict[str, str]:
    """Versions that must be equal on all nodes of a cluster."""
    found = {name: platform.python_version() if name == "python" else _version(name) for name in names}
    return {name: version for name, version in found.items() if version}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processors() -> list[Check]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_cpus()
    found = f"{usable} usable" + (f", limited to {quota:g} by the container" if quota else "")
    advice = f"set runtime.num_cpus={max(1, int(quota))}: more threads would only wait" if quota else ""
    return [Check("cpus", WARN if quota and quota < usable else OK, found, advice)]


def _cgroup_cpus() -> float | None:
    path = Path("/sys/fs/cgroup/cpu.max")
    quota, _, period = path.read_text().strip().partition(" ") if path.is_file() else ("max", "", "")
    return None if quota == "max" else int(quota) / int(period)


def memory() -> list[Check]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    total = min(total, int(text)) if text != "max" else total
    status = OK if total >= 6 * GIB else WARN
    advice = "" if status == OK else "enough for a smoke run; for larger runs lower scaling.workers and cache sizes"
    return [Check("memory", status, f"{total / GIB:.1f} GiB", advice)]


def shared_memory(path: str = "/dev/shm", least: int = GIB // 2) -> list[Check]:
    if not os.path.isdir(path):
        status = OK if platform.system() == "Darwin" else WARN
        return [Check(path, status, "missing", "" if status == OK else "Ray will use slower files instead")]
    free = shutil.disk_usage(path).free
    if free < least:
        advice = f"start the container with --shm-size={2 * least // GIB + 1}g, or mount a larger tmpfs at {path}"
        return [Check(path, WARN, f"{free / GIB:.2f} GiB free", advice)]
    return [Check(path, OK, f"{free / GIB:.1f} GiB free")]


def limits() -> list[Check]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = soft == resource.RLIM_INFINITY
    status = OK if unlimited or soft >= 4096 else FAIL if soft < 512 else WARN
    advice = "" if status == OK else f"ulimit -n 65536 before Ray starts (the hard limit is {hard}), on every host"
    return [Check("limit of open files", status, "unlimited" if unlimited else str(soft), advice)]


def disk(folders: Sequence[str]) -> list[Check]:
    rows = []
    for folder in dict.fromkeys(folders):
        there = Path(folder)
        while not there.exists():
            there = there.parent
        free = shutil.disk_usage(there).free
        status = FAIL if free < GIB else WARN if free < 10 * GIB else OK
        advice = (
            "" if status == OK else "Ray spills and logs to its temporary folder; checkpoints go to the run's folder"
        )
        rows.append(Check("disk", status, f"{folder}: {free / GIB:.1f} GiB free", advice))
    return rows


def slide_readers() -> list[Check]:
    """Decode a tile of each kind found in real slides, then name the available backends."""
    rows = [row for name in ("jpeg", "jpeg2k", "lzw", "deflate") for row in run_check(f"decoder {name}", decoder(name))]
    found, missing = [f"tiffslide {_version('tiffslide')}"], []
    for package, module in (("openslide-python", "openslide"), ("fastslide", "fastslide")):
        try:
            importlib.import_module(module)
            found.append(f"{module} {_version(package)}")
        except (ImportError, OSError) as e:  # OSError: the package is installed without its native library
            missing.append(f"no {module} ({type(e).__name__})")
    advice = "pip install 'pathray[openslide,fastslide]' for MRXS, DICOM, CZI, iSyntax and some NDPI" if missing else ""
    return [*rows, Check("slide readers", WARN if missing else OK, ", ".join(found + missing), advice)]


def decoder(name: str) -> Callable[[], list[Check]]:
    """A check that runs a round trip through one codec of imagecodecs; returns a row only if it fails."""

    def check() -> list[Check]:
        import imagecodecs
        import numpy as np

        tile = np.tile(np.arange(64, dtype=np.uint8)[:, None, None], (1, 64, 3))
        coded = getattr(imagecodecs, f"{name}_encode")(tile if name.startswith("jpeg") else tile.tobytes())
        back = getattr(imagecodecs, f"{name}_decode")(coded)
        pixels = back if isinstance(back, np.ndarray) else np.frombuffer(back, np.uint8).reshape(tile.shape)
        off = int(np.abs(pixels.astype(int) - tile).max())
        return [Check(f"decoder {name}", FAIL, f"off by {off} grey levels", "reinstall imagecodecs")] if off > 8 else []

    return check


def dicom_readers() -> list[Check]:
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, JPEGLosslessSV1, RLELossless

    kinds = {"JPEG": JPEGBaseline8Bit, "JPEG lossless": JPEGLosslessSV1, "JPEG 2000": JPEG2000Lossless}
    without = [name for name, uid in {**kinds, "RLE": RLELossless}.items() if not get_decoder(uid).is_available]
    if without:
        advice = "pip install 'pathray[oct]' for OCT volumes; slides do not need these decoders"
        return [Check("DICOM decoders", WARN, f"none for {', '.join(without)}", advice)]
    return [Check("DICOM decoders", OK, ", ".join([*kinds, "RLE"]))]


def slide(path: str) -> list[Check]:
    """Open a slide, report the source of its resolution, and decode a region from its middle."""
    from pathray.wsi.reader import open_slide

    try:
        reader = open_slide(path)
    except (ValueError, OSError) as e:
        return [Check("slide", FAIL, str(e), "see docs/formats.md")]
    width, height = reader.level_shapes[0]
    side = min(256, width, height)
    region = reader.read_level(0, (width - side) // 2, (height - side) // 2, side, side)
    found = f"{path}: {reader.backend}, {width}×{height}, {len(reader.level_shapes)} levels, grey {region.mean():.0f}, "
    found += f"mpp {reader.mpp:g} from {reader.mpp_source}" if reader.mpp else "no mpp"
    reader.close()
    advice = "" if reader.mpp else "add an mpp column to the manifest"
    return [Check("slide", OK if reader.mpp else WARN, found, advice)]


def storage(url: str) -> list[Check]:
    """Write, read back and remove one small object."""
    from pathray.store.storage import Storage

    name, content = f"doctor-{uuid.uuid4().hex[:8]}", os.urandom(1024)
    try:
        store = Storage.of(url)
        store.write_bytes(name, content)
        same = store.read_bytes(name) == content
        store.remove(name)
    except Exception as e:
        first = str(e).splitlines()[0] if str(e) else ""
        return [Check("storage", FAIL, f"{url}: {type(e).__name__}: {first}", _storage_advice(url, e))]
    if not same:
        return [Check("storage", FAIL, f"{url}: read back different bytes", "check for a cache or proxy in between")]
    return [Check("storage", OK, f"{url}: written, read and removed")]


def _storage_advice(url: str, error: Exception) -> str:
    scheme = url.partition("://")[0] if "://" in url else ""
    if isinstance(error, ImportError):
        return f"pip install 'pathray[{'gcs' if scheme == 'gs' else scheme}]' on every host"
    if scheme == "gs":
        return "gcloud auth application-default login, or give the node's service account objectAdmin on the bucket"
    if scheme == "s3":
        return "give the node's role s3:GetObject, PutObject, DeleteObject and ListBucket on the bucket"
    return "the folder must exist and be writable by this user on every node (or use a bucket)"


def run_all_checks(folders: Sequence[str], urls: Sequence[str], slides: Sequence[str]) -> list[Check]:
    """The rows of all checks of this module, in report order."""
    checks: list[tuple[str, Callable[[], Iterable[Check]]]] = [
        ("python", python_version),
        ("packages", packages),
        ("cpus", processors),
        ("memory", memory),
        ("/dev/shm", shared_memory),
        ("limits", limits),
        ("disk", lambda: disk([tempfile.gettempdir(), *folders])),
        ("slide readers", slide_readers),
        ("DICOM decoders", dicom_readers),
        *(("slide", lambda path=path: slide(path)) for path in slides),
        *(("storage", lambda url=url: storage(url)) for url in urls),
    ]
    return [row for name, check in checks for row in run_check(name, check)]
