"""Exports a trained model: files in every format, their check against the model, a description and a card.

Everything is written to a temporary folder and checked there. Only then does it appear in the output; the description
comes last, so that a folder without one is no export.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mil.artifact import Trained
from mil.export.description import CARD, DESCRIPTION, SLIDE_ENCODER, describe
from mil.export.formats import FILES, write_formats
from mil.export.model_card import model_card, read_scores
from mil.export.parity import check_parity
from mil.export.predictor import SlidePredictor
from pathray.store.described import publish_with_description
from pathray.store.records import text
from pathray.store.storage import Storage

log = logging.getLogger(__name__)


def export_model(
    trained: Trained, output: str, formats: Sequence[str], *, kind: str = "mil", scores: str | None = None
) -> dict[str, object]:
    """Write the export into `output` (path or URL), replacing an older one; returns its files by name.

    UserError, and nothing is written, if a format fails or predicts otherwise than the model. kind: `slide_encoder`
    leaves the head out. scores: a ``metrics.json`` for the card.
    """
    judged = None if scores is None else read_scores(scores)
    predictor = SlidePredictor(trained.net, trained.target, with_head=kind != SLIDE_ENCODER).eval()
    store = Storage.of(output)
    with tempfile.TemporaryDirectory(prefix="pathray-") as temporary:
        folder, width = Path(temporary), trained.target.dim
        write_formats(predictor, width, folder, formats)
        differences = check_parity(predictor, width, folder, formats)
        for name, found in differences.items():
            log.info("%s: differs by at most %s", FILES[name], ", ".join(f"{k} {v:.1e}" for k, v in found.items()))
        record = describe(predictor, trained, folder, differences)
        (folder / CARD).write_text(model_card(record, trained.target.counts, judged))
        files = {name: folder / name for name in (*(FILES[f] for f in formats), CARD)}
        publish_with_description(store, files, DESCRIPTION, text(record))
    for name in set(FILES.values()) - files.keys():
        store.remove(name)  # of an older export with more formats
    return {"export": store.join(DESCRIPTION), "card": store.join(CARD)}
