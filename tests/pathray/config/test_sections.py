from dataclasses import dataclass
from pathlib import Path

import pytest

from pathray.config.help import help_text
from pathray.config.load import placement
from pathray.config.sections import LoggingConfig, ScalingConfig, StepConfig, StreamConfig
from pathray.errors import UserError


@dataclass
class OwnData(StreamConfig):
    slides: str = placement("")  # where they are
    read_timeout_s: float = placement(120.0)


@dataclass
class OwnConfig:
    data: OwnData = placement(default_factory=OwnData)
    steps: StepConfig = placement(default_factory=StepConfig)


@pytest.mark.parametrize(
    ("build", "key"),
    [
        (lambda: OwnData(threads=0), "data.threads"),
        (lambda: OwnData(decode_on="moon"), "data.decode_on"),
        (lambda: OwnData(max_corrupt_fraction=1.5), "data.max_corrupt_fraction"),
        (lambda: OwnData(stream_batch_size=0), "data.stream_batch_size"),
        (lambda: OwnData(read_timeout_s=0), "data.read_timeout_s"),
        (lambda: OwnData(max_stalled_reads=-1), "data.max_stalled_reads"),
        (lambda: LoggingConfig(write_tag="a/b"), "logging.write_tag"),
        (lambda: ScalingConfig(workers=-1), "scaling.workers"),
        (lambda: ScalingConfig(accelerator="abacus"), "scaling.accelerator"),
        (lambda: StepConfig(grad_sync="ring").check_steps("train"), "train.grad_sync"),
        (lambda: StepConfig(max_bad_steps=0).check_steps("train"), "train.max_bad_steps"),
    ],
)
def test_a_senseless_value_is_refused_by_its_key(build, key):
    with pytest.raises(UserError) as error:
        build()
    assert error.value.where["key"] == key


def test_help_shows_a_sections_own_keys_before_those_that_it_inherits():
    lines = help_text(OwnConfig, Path(__file__).parent, ()).splitlines()
    keys = [line.split(":")[0].strip("* ") for line in lines if " data." in line]
    assert keys[0] == "data.slides" and keys.index("data.threads") > 0
    assert "  * data.read_timeout_s: float = 120.0" in lines, "the section's own default"
    assert "  * steps.max_bad_steps: int = 10   # steps in a row with NaN or Inf" in lines
