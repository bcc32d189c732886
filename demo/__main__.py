"""The main job in one go: slides → index → anchors → I-JEPATH pretraining through Ray → pictures → summary.

    python -m demo                                    a generated cohort of two hospitals
    python -m demo slides=folder [mpp=0.5]            your slides (or slides=manifest.csv)
    python -m demo output=demo_output samples=4       the output folder, and the number of samples to draw
    python -m demo optimization.total_images_budget=500   keys with a dot are passed to pretraining

It runs and prints the same commands that you would type. Run it again to resume.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from demo import summary
from demo.cohort import CohortSettings, generate
from demo.slides import manifest_of
from pathray.errors import UserError
from pathray.run.layout import ANCHOR_CATALOG, CONFIG


@dataclass
class Arguments:
    slides: str = ""
    mpp: float | None = None
    output: str = "demo_output"
    samples: int = 4
    training: list[str] = field(default_factory=list)


class Failed(Exception):
    """A command ended with a nonzero exit code and has reported why."""

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(str(code))


def parse(argv: Sequence[str]) -> Arguments:
    """Parse `key=value` arguments. UserError for an unknown key or a value that is not a number."""
    arguments = Arguments()
    for word in argv:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError("arguments must be key=value", found=word, expected="such as slides=folder")
        if "." in key:
            arguments.training.append(word)
        elif key in ("slides", "output"):
            setattr(arguments, key, value)
        elif key in ("mpp", "samples"):
            setattr(arguments, key, _number(key, value))
        else:
            raise UserError(
                "unknown key", key=key, expected="slides, mpp, output, samples, or a training key with a dot"
            )
    return arguments


def _number(key: str, value: str) -> float | int:
    try:
        number = int(value) if key == "samples" else float(value)
    except ValueError as error:
        raise UserError("not a number", key=key, found=value) from error
    if number <= 0:
        raise UserError(f"{key} must be > 0", key=key, found=value)
    return number


def main(argv: Sequence[str]) -> None:
    if {"-h", "--help"} & set(argv):
        print(__doc__)
        return
    arguments, started = parse(argv), time.monotonic()
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    run, pictures = output / "run", output / "pictures"
    manifest = _slides(arguments, output)
    commands = [
        [
            "pretrain_ijepath",
            "--config",
            "demo",
            f"data.slide_manifest_csv={manifest}",
            f"output={run}",
            *_robustness(manifest),
            *arguments.training,
        ],
        [
            "preview_ijepath",
            "--config",
            f"{run / CONFIG}",
            f"anchor_catalog={run / ANCHOR_CATALOG}",
            f"output_dir={pictures}",
            f"num_samples={arguments.samples}",
            "num_overlays=12",
        ],
        ["plot_training", f"run={run}", f"output={pictures / 'curves.png'}", "title=I-JEPATH pretraining"],
    ]
    steps = ("index, anchors and pretraining", "pictures of samples and slides", "training curves")
    seconds = []
    for i, (step, command) in enumerate(zip(steps, commands, strict=True)):
        seconds.append(_run(f"{i + 2}/5  {step}", command))
    _say("5/5  summary")
    facts = summary.gather(output, manifest, seconds[0], time.monotonic() - started)
    page = summary.write_page(output, facts)
    print(summary.text(facts, page))


def _slides(arguments: Arguments, output: Path) -> Path:
    if arguments.slides:
        _say(f"1/5  slides of {arguments.slides}")
        return manifest_of(Path(arguments.slides), output / "slides.csv", arguments.mpp)
    if arguments.mpp is not None:
        raise UserError("mpp can be set only with slides", key="mpp", expected="slides=folder mpp=0.5")
    settings = CohortSettings()
    count = 2 * settings.slides_per_hospital
    _say(f"1/5  a cohort of {count} slides of two hospitals, painted (under a minute, once)")
    return generate(output / "cohort", settings)


def _robustness(manifest: Path) -> list[str]:
    """Arguments for evaluations during training, if there are labelled patches (those of the generated cohort)."""
    patches = manifest.with_name("patches.csv")
    if not patches.is_file():
        return []
    where = "datasets.hospitals.manifest_csv"
    return ["--config", "demo_robustness", *(f"tuning.plugins[{i}].{where}={patches}" for i in range(2))]


def _run(title: str, command: list[str]) -> float:
    """Run one job in its own process, with its log on this terminal; returns the seconds it took. Raises Failed."""
    words = [f"ray_jobs.{command[0]}", *command[1:]]
    _say(title)
    print("     python -m " + shlex.join(words), flush=True)
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", *words], env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"})
    try:
        code = process.wait()
    except KeyboardInterrupt:  # the terminal also sent it to the job, which now saves a checkpoint
        code = process.wait()
    if code:
        raise Failed(128 - code if code < 0 else code)
    return time.monotonic() - started


def _say(line: str) -> None:
    print(f"\n── {line}", flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        raise SystemExit(2) from None
    except Failed as e:
        print("the demo stopped here; run the same command again to resume", file=sys.stderr)
        raise SystemExit(e.code) from None
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
