"""What every science's config becomes: a config of the shared sections alone stands for any of them."""

from dataclasses import dataclass, field, replace

import pytest

from pathray.config.load import fingerprint, list_differences, placement
from pathray.config.sections import CheckpointConfig, LoggingConfig, ScalingConfig, StepConfig, StreamConfig
from pathray.data.stream import DecodeSettings
from pathray.errors import UserError
from pathray.evaluation.settings import ExecutionConfig, TuningConfig
from pathray.train.from_config import loop_settings, run_identity, shared_parts
from pathray.train.settings import PhaseOptim


@dataclass
class SmallConfig:
    output: str | None = placement(None)
    lr: float = 0.1
    data: StreamConfig = field(default_factory=StreamConfig)
    steps: StepConfig = field(default_factory=StepConfig)
    logging: LoggingConfig = placement(default_factory=LoggingConfig)
    checkpoint: CheckpointConfig = placement(default_factory=CheckpointConfig)
    scaling: ScalingConfig = placement(default_factory=lambda: ScalingConfig(accelerator="cpu"))


def settings(config=None, world=2, **changes):
    config = config or SmallConfig()
    values = {"seed": 3, "global_batch": 8, "micro_batch": 2, "total_images": 20, "log_every": 8, "precision": "bf16"}
    return loop_settings(config, config.steps, world, optim={"model": PhaseOptim()}, **{**values, **changes})


def test_the_budget_is_whole_steps_and_a_cpu_computes_in_fp32_and_looks_at_every_step():
    loop = settings()
    assert (loop.total_images, loop.precision, loop.poll_every_steps) == (24, "fp32", 1)
    assert (loop.save_every, loop.snapshot_every, loop.judge_recent) == (0, 0, 4096)


def test_the_sections_say_when_it_saves_and_what_it_bears():
    config = SmallConfig(
        data=StreamConfig(max_corrupt_fraction=0.2),
        steps=StepConfig(max_bad_steps=4, grad_sync="overlap", deterministic=True),
        checkpoint=CheckpointConfig(latest_every=13),
    )
    loop = settings(config, window=1000)
    assert (loop.save_every, loop.max_corrupt_fraction, loop.max_bad_steps) == (16, 0.2, 4)
    assert (loop.grad_sync, loop.deterministic, loop.judge_recent) == ("overlap", True, 16_000)


def test_snapshots_follow_the_evaluators_where_there_are_some():
    off, on = TuningConfig(tune_every=40), TuningConfig(tune_every=40, plugins=[], execution=ExecutionConfig())
    on.enable = True
    assert settings(snapshots={"iterations": 2}, tuning=off).snapshot_every == 16
    assert settings(snapshots={"iterations": 2}, tuning=on).snapshot_every == 40


def test_workers_that_cannot_share_a_step_are_refused():
    with pytest.raises(UserError, match="must divide"):
        settings(world=3)


def test_the_parts_of_a_run_follow_from_its_sections():
    config = SmallConfig(
        data=StreamConfig(threads=3, ahead=5, ahead_mb=2, read_timeout_s=7.0, max_stalled_reads=9, decode_on="cluster"),
        logging=LoggingConfig(write_tag="mine"),
        checkpoint=CheckpointConfig(latest_minutes=1.5, keep_last_n=4),
    )
    parts = shared_parts(config, 99)
    assert (parts["tag"], parts["chunk"], parts["decode_on"], parts["decode_tasks"]) == ("mine", 99, "cluster", 3)
    assert (parts["latest_minutes"], parts["keep_last_n"]) == (1.5, 4)
    decode = parts["decode"]
    assert decode == DecodeSettings(3, 5, 2 << 20, 7.0, 9)
    assert parts["placement"]["values"]["logging.write_tag"] == "mine" and "lr" not in parts["placement"]["values"]


def test_an_identity_knows_science_plan_and_more_and_no_placement():
    config = SmallConfig()
    own = run_identity(config, "small", "digest", initial="random")
    assert own["values"] == {"lr": 0.1, "science": "small", "plan": "digest", "initial": "random"}
    moved = replace(config, output="elsewhere", scaling=ScalingConfig(workers=3), data=StreamConfig(threads=8))
    assert run_identity(moved, "small", "digest", initial="random") == own
    assert [key for key, _, _ in list_differences(own, run_identity(config, "small", "another", initial="random"))] == [
        "plan"
    ]
    assert fingerprint(config)["values"] == {"lr": 0.1}, "every key of the shared sections may change on resume"
