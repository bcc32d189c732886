"""``model_card.md``: what an exported model predicts, from what, how well, its limits, and how to call it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mil.export.description import DESCRIPTION, SLIDE_ENCODER
from mil.judging.page import in_words, name_of
from mil.judging.scores import headline
from pathray.errors import UserError
from pathray.store.records import parse_record
from pathray.store.storage import Storage

REMEDY = "metrics.json of train_mil or evaluate_mil"


def model_card(record: Mapping[str, Any], counts: tuple[int, ...], scores: Mapping[str, Any] | None) -> str:
    """Markdown for the content of ``export.json``. counts: training slides per class; scores: a training's
    ``metrics.json``."""
    parts = (
        _title(record),
        _inputs(record),
        _training(record, counts),
        _scores(scores),
        _limits(record),
        _call(record),
    )
    return "\n\n".join(parts) + "\n"


def read_scores(path: str) -> dict[str, Any]:
    """A ``metrics.json`` of train_mil or evaluate_mil. MissingFile; UserError if it is not one."""
    folder, _, name = path.rpartition("/")
    found = parse_record(Storage.of(folder or ".").read_bytes(name), path, "file of scores", REMEDY)
    try:
        _scores(found)
    except (KeyError, TypeError, AttributeError, ValueError) as e:
        raise UserError("no scores in this file", file=path, key="scores", expected=REMEDY) from e
    return found


def _title(record: Mapping[str, Any]) -> str:
    names = sorted({one["name"] for one in record["model"]["architectures"]})
    several = len(record["model"]["architectures"])
    what = f"the mean of {several} models ({', '.join(names)})" if several > 1 else f"a model of the kind {names[0]}"
    if record["kind"] == SLIDE_ENCODER:
        return f"# Slide encoder\n\nAn embedding of a slide from its tiles, by {what}. It predicts nothing."
    of = f": {', '.join(record['classes'])}" if record["classes"] else ""
    return f"# {record['label']}\n\nPredicts `{record['label']}` of a slide ({record['task']}{of}), by {what}."


def _inputs(record: Mapping[str, Any]) -> str:
    lines = ["## Inputs and outputs", "", "| name | type | shape | |", "|---|---|---|---|"]
    for one in (*record["inputs"], *record["outputs"]):
        note = one.get("meaning") or ", ".join(one.get("columns", []))
        lines.append(f"| `{one['name']}` | {one['dtype']} | {_shape(one['shape'])} | {note} |")
    encoder = f"with weights of SHA-256 `{record['encoder']}`" if record["encoder"] else "that the training used"
    return "\n".join(lines) + f"\n\nB slides of N tiles. Features must be those of the encoder {encoder}."


def _training(record: Mapping[str, Any], counts: tuple[int, ...]) -> str:
    provenance = record["provenance"]
    members, lines = provenance.get("members"), ["## Training", ""]
    if counts:
        slides = f"{sum(counts)} slides" + (" (the first member)" if members else "")
        per_class = zip(record["classes"], counts, strict=False)
        lines.append(f"- Trained on {slides}: {', '.join(f'{name} {count}' for name, count in per_class)}.")
    else:
        lines.append("- The number of training slides is not recorded.")
    if members:
        lines.append(f"- Members: {', '.join(sorted(members))}.")
    for key, text in (("split", "Split"), ("chosen_by", "Chosen by"), ("checkpoint", "Checkpoint")):
        if key in provenance:
            lines.append(f"- {text}: {provenance[key]}.")
    return "\n".join([*lines, f"- The whole configuration is in `{DESCRIPTION}` under `provenance`."])


def _scores(scores: Mapping[str, Any] | None) -> str:
    if scores is None:
        return "## Scores\n\nNone were given to the export."
    lines = [f"- {name_of(name)}: {in_words(score)}" for name, score in headline(dict(scores)).items()]
    counts = [f"{scores[key]} {key}" for key in ("slides", "patients") if key in scores]
    about = f"Of {' of '.join(counts)}, with 95% intervals over patients. They are of the training's test slides, each"
    about += " predicted by a model that had not seen it, and not of this model."
    return "\n".join(["## Scores", "", about, "", *lines])


def _limits(record: Mapping[str, Any]) -> str:
    lines = [
        "- Research use. It is not a medical device, and nobody has validated it for diagnosis.",
        "- Scores hold for slides like those it was trained on: scanner, stain, organ and tile size included.",
        "- A slide without a real tile gives NaN. Features must be finite; the files do not check it.",
    ]
    names = {one["name"] for one in record["model"]["architectures"]}
    if "vit_alibi" in names:
        lines.append("- Memory grows with the square of N (heads × N² × 4 bytes, a few times).")
    licence = "Licence: the weights inherit the terms of the slides, of their labels and of the encoder; check them."
    return "\n".join(["## Limits", "", *lines, "", licence])


def _call(record: Mapping[str, Any]) -> str:
    first, width = record["outputs"][0]["name"], record["feature_width"]
    if "onnx" in record["files"]:
        lines = [
            "import numpy, onnxruntime",
            'session = onnxruntime.InferenceSession("model.onnx")',
            f"features = numpy.zeros((1, 500, {width}), numpy.float32)  # of one slide's tiles",
            "mask = numpy.ones((1, 500), bool)",
            "coords = numpy.zeros((1, 500, 2), numpy.float32)  # corner / side of a tile",
            f'{first}, *_ = session.run(None, {{"features": features, "mask": mask, "coords": coords}})',
        ]
    else:
        how = 'torch.jit.load("model.ts")' if "ts" in record["files"] else 'torch.export.load("model.pt2").module()'
        lines = [
            "import torch",
            f"model = {how}",
            f"features = torch.zeros(1, 500, {width})  # of one slide's tiles",
            "mask = torch.ones(1, 500, dtype=torch.bool)",
            "coords = torch.zeros(1, 500, 2)  # corner / side of a tile",
            f"{first}, *_ = model(features, mask, coords)",
        ]
    return "\n".join(["## How to call it", "", "```python", *lines, "```"])


def _shape(shape: list[str | int]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
