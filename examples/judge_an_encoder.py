"""Does an encoder see the tissue, or the hospital? Probes and PathoROB's metrics on labelled patches.

    python examples/judge_an_encoder.py --patches patches.csv --encoder outputs/run/encoder

The manifest has the columns image_path, label, medical_center and slide_id. Without arguments small patches of two
classes and two centres are generated, and an encoder that nobody has trained.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

import generated
import pathray
from pathray.evaluation.datasets import open_dataset
from pathray.evaluation.plugins import evaluate
from pathray.features.images import read_image


def main(manifest: str, encoder_path: str) -> None:
    dataset = open_dataset("patches", manifest)  # checks the manifest: names the file, row and column that is wrong
    print(f"{len(dataset.images)} patches")

    # Metrics take features [N, D] in the order of the dataset's images, from wherever they come: here from an encoder,
    # and, for comparison, each patch's mean colours and their deviations. An encoder should beat these.
    encoder = pathray.load_encoder(encoder_path)
    pixels = [read_image(path).reshape(-1, 3).astype(np.float32) for path in dataset.images]
    features = {
        "encoder": encoder.embed(list(dataset.images), resize=True),
        "colours": np.array([np.concatenate([p.mean(axis=0), p.std(axis=0)]) for p in pixels]),
    }

    # `linear_id` and `knn_id` are balanced accuracies on slides that did not train. The robustness index, `ri`, is 1
    # where the neighbours of a patch share its class, and 0 where they share its centre.
    found, notes = {}, []
    for name, x in features.items():
        probe, robustness = evaluate("probe", dataset, x), evaluate("pathorob", dataset, x, due=["ri", "clustering"])
        found[name] = {**probe.metrics, **robustness.metrics}
        notes += [f"{name}: {note}" for note in (*probe.notes, *robustness.notes)]
    print(f"{'':38}", *(f"{name:>9}" for name in features))
    for key in found["encoder"]:
        print(f"{key:38}", *(f"{found[name].get(key, np.nan):9.3f}" for name in features))
    print("\n".join(notes))  # what the dataset is too small for


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", help="a manifest of labelled patches (CSV)")
    parser.add_argument("--encoder", help="an encoder's folder or URL")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        patches = given.patches or str(generated.patches(Path(folder)))
        main(patches, given.encoder or str(generated.encoder(Path(folder, "encoder"))))
