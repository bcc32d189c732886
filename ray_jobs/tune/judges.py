"""The judge of a run's evaluators, with what reads the datasets of other sciences than slides and images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathray.evaluation.judge import Judge
    from pathray.evaluation.settings import PluginConfig


def judge_of(plugins: Sequence[PluginConfig], run_dir: str) -> Judge:
    """A judge for these plugins; `run_dir` gets the embeddings for the report."""
    from pathray.evaluation.judge import Judge

    if not any(dataset.volumes for plugin in plugins for dataset in plugin.datasets.values()):
        return Judge(plugins, run_dir)
    from oct.encoding.judged import JudgedVolumes

    return Judge(plugins, run_dir, JudgedVolumes())
