"""A trained slide model → TorchScript, torch.export and ONNX files that predict the same, with a model card. No Ray.

    python -m ray_jobs.export_mil model=outputs/mil output=exports/mil
    python -m ray_jobs.export_mil model=outputs/mil/fold_0/encoder output=exports/fold_0 formats=[onnx]
    python -m ray_jobs.export_mil model=outputs/mil kind=slide_encoder output=exports/slide_encoder

`model` is an artifact, a fold, a checkpoint of a fold, or the output of train_mil, of which its ensemble is exported.
Every file is loaded again and compared with the model on bags of 1 to 5,000 tiles; if one differs, nothing is written.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from mil.sections import CONFIGS_DIR
from pathray.config.checks import check_one_of
from pathray.config.load import MISSING, Loaded
from pathray.errors import UserError
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.dry_run import tell
from ray_jobs.train.training_jobs import check_output, with_absolute_paths

log = logging.getLogger(__name__)


@dataclass
class ExportMILConfig:
    model: str = MISSING  # a folder or URL: an artifact, a fold, a checkpoint, or the output of train_mil
    output: str = MISSING  # a folder or URL
    formats: list[str] = field(default_factory=lambda: ["ts", "pt2", "onnx"])
    kind: str = "mil"  # | slide_encoder: embeddings alone, without the head
    scores: str | None = None  # metrics.json for the card; null: that of the training in `model`

    def __post_init__(self) -> None:
        check_one_of(self, "", kind=("mil", "slide_encoder"))


def main(loaded: Loaded[ExportMILConfig]) -> Outputs | None:
    from mil.export.finding import find_model
    from mil.export.formats import check_formats
    from mil.export.output import export_model

    config = with_absolute_paths(loaded.config, "model", "output", "scores")
    check_output(config.output)
    if config.output.rstrip("/") == config.model.rstrip("/"):
        raise UserError("an export needs a folder of its own", key="output", found=config.output)
    check_formats(config.formats)
    found = find_model(config.model)
    log.info("%s%s", found.folder, f" ({found.name} of {config.model})" if found.name else "")
    if loaded.dry_run:
        return tell((len(config.formats), "formats"))
    scores = config.scores or found.scores
    return Outputs(export_model(found.trained, config.output, config.formats, kind=config.kind, scores=scores))


if __name__ == "__main__":
    job(main, ExportMILConfig, CONFIGS_DIR)
