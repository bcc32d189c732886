"""Files of a published foundation model → an encoder artifact for extraction, evaluation and notebooks.

    python -m ray_jobs.import_encoder weights=downloads/UNI2-h model=uni2h output=encoders/uni2h
    python -m ray_jobs.import_encoder weights=hf:MahmoodLab/UNI2-h output=encoders/uni2h
    python -m ray_jobs.import_encoder weights=net.onnx output=encoders/net \\
        size_px=224 mean=[.5,.5,.5] std=[.5,.5,.5] mpp=0.5

weights is a file (.safetensors, .bin, .pth), a folder as it comes from a hub (also with shards), or hf:OWNER/NAME or
timm:NAME where huggingface_hub or timm is installed. Known models: uni, uni2h, virchow, virchow2, h_optimus_0,
h_optimus_1, h0_mini, phikon_v2, gigapath, conch; without `model` the one is taken that has these parameters. Each
brings its own preprocessing and pooling. Every parameter must be there, and none may be left over. A TorchScript (.pt,
.ts) or ONNX program needs size_px, mean, std and mpp. Files with code are refused, except the operations of a program.
Needs no Ray. Licences are the models' own: most forbid commercial use.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from pathray.config.checks import check_one_of, check_positive, check_rgb
from pathray.config.load import MISSING, Loaded
from pathray.errors import UserError
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.dry_run import tell

log = logging.getLogger(__name__)
CONFIGS_DIR = Path(__file__).parent / "configs"
HUBS = ("hf:", "timm:")


@dataclass
class ImportConfig:
    weights: str = MISSING  # a file or folder, or a URL of one; hf:OWNER/NAME or timm:NAME
    output: str = MISSING  # folder or URL of the artifact; one that is there is replaced
    model: str | None = None  # a known model; null: the one that has these parameters
    size_px: int | None = None  # side of the images; null: the model's own
    mean: list[float] | None = None  # per channel, of pixels in 0 … 1; null: the model's own
    std: list[float] | None = None
    mpp: float | None = None  # µm per pixel of the images; null: the model's own
    interpolation: str | None = None  # area, bilinear or bicubic, of images that are resized; null: the model's own
    licence: str | None = None  # a note on its terms; null: the model's own
    source: str | None = None  # a note on where it is from; null: `weights`

    def __post_init__(self) -> None:
        check_positive(self, "", "size_px", "mpp")
        if self.interpolation is not None:
            check_one_of(self, "", interpolation=("area", "bilinear", "bicubic"))
        check_rgb(self, "")


def main(loaded: Loaded[ImportConfig]) -> Outputs | None:
    from pathray.features.kinds import Kind
    from pathray.features.published.importing import Given, read_encoder

    config = loaded.config
    _check_output(config)
    if loaded.dry_run and config.weights.startswith(HUBS):
        return tell((1, "encoders to fetch"))
    given = Given(**{key: getattr(config, key) for key in Given.__dataclass_fields__})
    found = read_encoder(config.weights, given)
    kind = Kind.of(found.facts)
    about = f"{found.provenance['model']}: {kind.widths[kind.own]} numbers per image ({kind.own})"
    log.info("%s; licence: %s", about, found.provenance["licence"])
    if loaded.dry_run:
        return tell((1, f"encoders ({about})"))
    found.save(config.output)
    return Outputs({"encoder": config.output})


def _check_output(config: ImportConfig) -> None:
    """UserError if the artifact would land among its own files."""
    from pathray.store.storage import Storage

    weights, output = config.weights, Storage.of(config.output).url.rstrip("/")
    if not weights.startswith(HUBS) and Storage.of(weights).url.rstrip("/") == output:
        raise UserError(
            "the output is the folder of the weights", key="output", found=output, expected="another folder"
        )


if __name__ == "__main__":
    job(main, ImportConfig, CONFIGS_DIR)
