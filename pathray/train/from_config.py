"""Builds the loop's settings and the parts of a run from the sections that all run configs share.

A science adds its recipe, order, reader, optimizer and cadences. Not here: the sections (pathray.config.sections), the
parts (pathray.train.assembly).
"""

from __future__ import annotations

from typing import Any

from pathray.config.sections import RunSections, StepConfig
from pathray.data.stream import DecodeSettings
from pathray.device import Device
from pathray.evaluation.settings import TuningConfig, poll_every_steps
from pathray.fingerprint import fingerprint
from pathray.train.budget import resolve_cadence, whole_steps
from pathray.train.settings import LoopSettings, PhaseOptim

POLL_EVERY_STEPS = 10  # for accelerators, where polling waits for the device; a CPU polls at every step
XLA_STEP_TIMEOUT_S = 900.0  # XLA may hang where others fail; only its first steps take minutes, and get more
RECENT_WINDOWS = 16  # one unreadable source may dominate one window, but not this many


def device_of(config: RunSections) -> Device:
    """This process's device, according to `scaling.accelerator`."""
    return Device.of(config.scaling.accelerator)


def loop_settings(
    config: RunSections,
    steps: StepConfig,
    world: int,
    *,
    seed: int,
    global_batch: int,
    micro_batch: int,
    total_images: int,
    optim: dict[str, PhaseOptim],
    precision: str,
    log_every: int,
    snapshots: Any = 0,
    tuning: TuningConfig | None = None,
    window: int = 0,
    whole_batch: str = "",
) -> LoopSettings:
    """The loop's settings; batch, budget and `log_every` must be resolved into images.

    `precision` applies to accelerators; a CPU uses fp32, which is faster there and exact. `snapshots` is the cadence of
    snapshots without evaluators, `window` the number of units in a shuffled window,
    `whole_batch` what in the loss needs the whole global batch at once. UserError if the batch cannot be
    divided among `world` workers.
    """
    evaluated = tuning if tuning is not None and tuning.enable else None
    polls = poll_every_steps(evaluated, global_batch) if evaluated else POLL_EVERY_STEPS
    kind = device_of(config).kind
    on_cpu, step_timeout_s = kind == "cpu", config.scaling.step_timeout_s
    loop = LoopSettings(
        seed=seed,
        global_batch=global_batch,
        micro_batch=micro_batch,
        total_images=whole_steps(total_images, global_batch),
        optim=optim,
        precision="fp32" if on_cpu else precision,
        log_every=log_every,
        save_every=resolve_cadence(config.checkpoint.latest_every, global_batch=global_batch),
        snapshot_every=resolve_cadence(evaluated.tune_every if evaluated else snapshots, global_batch=global_batch),
        poll_every_steps=1 if on_cpu else polls,
        max_bad_steps=steps.max_bad_steps,
        max_corrupt_fraction=config.data.max_corrupt_fraction,
        judge_recent=max(LoopSettings.judge_recent, RECENT_WINDOWS * window),
        grad_sync=steps.grad_sync,
        deterministic=steps.deterministic,
        whole_batch=whole_batch,
        step_timeout_s=(XLA_STEP_TIMEOUT_S if kind == "xla" else 0.0) if step_timeout_s is None else step_timeout_s,
    )
    loop.micros_per_step(world)
    return loop


def shared_parts(config: RunSections, chunk: int) -> dict[str, Any]:
    """The fields of an Assembly from the shared sections; `chunk` rows of the plan are sent together."""
    data, checkpoint = config.data, config.checkpoint
    return {
        "tag": config.logging.write_tag,
        "placement": fingerprint(config, placement=True),
        "decode_on": data.decode_on,
        "decode": DecodeSettings(
            data.threads, data.ahead, data.ahead_mb << 20, data.read_timeout_s, data.max_stalled_reads
        ),
        "decode_tasks": data.threads,
        "chunk": chunk,
        "latest_minutes": checkpoint.latest_minutes,
        "keep_last_n": checkpoint.keep_last_n,
    }


def run_identity(config: RunSections, science: str, plan: str, **more: str) -> dict[str, Any]:
    """The fingerprint that a resumed run must match: the config's identity fields, the science, `plan` (the digest of
    the plan's units), and `more` from the science, such as its initial weights."""
    return fingerprint({**fingerprint(config)["values"], "science": science, "plan": plan, **more})


def run_provenance(config: RunSections, **more: str) -> dict[str, Any]:
    """The provenance of a run's exports: all identity fields of its config, and `more` from the science."""
    return {"config": fingerprint(config)["values"], **more}
