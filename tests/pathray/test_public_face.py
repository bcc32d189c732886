"""`import pathray` is light, every public name is there, and says its shapes or units."""

import importlib.metadata
import inspect
import re
import subprocess
import sys

import pytest

import pathray
from tests.builders.jobs import ROOT, job_environment

HEAVY = ("ray", "mlflow", "pandas", "matplotlib", "sklearn", "torch", "numpy", "scipy", "pyarrow", "h5py")
UNITS = re.compile(r"\[N|\[h, w|\[P|µm|pixels|units")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=job_environment(), capture_output=True, text=True, check=True
    )


def imported(report: str) -> set[str]:
    """Packages in the report of `-X importtime`."""
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in report.splitlines() if "|" in line}


def test_importing_the_library_imports_nothing_heavy():
    found = imported(run("-X", "importtime", "-c", "import pathray").stderr)
    assert "pathray" in found and found & set(HEAVY) == set()


@pytest.mark.parametrize(
    ("use", "spared"),
    [
        ("pathray.open_slide, pathray.tissue", {"ray", "mlflow", "pandas", "matplotlib", "sklearn", "torch"}),
        ("pathray.read_bag", {"ray", "mlflow", "pandas", "matplotlib", "sklearn", "torch"}),
        ("pathray.load_encoder, pathray.load_model", {"ray", "mlflow", "pandas", "matplotlib", "sklearn"}),
    ],
)
def test_a_name_imports_what_it_needs_and_no_more(use, spared):
    found = imported(run("-X", "importtime", "-c", f"import pathray; {use}").stderr)
    assert "pathray" in found and found & spared == set()


def test_loading_a_model_is_what_imports_its_science():
    code = "import pathray, sys; pathray.load_model; print([m for m in sys.modules if m.startswith('regression')])"
    assert run("-c", code).stdout.strip() == "[]"


@pytest.mark.parametrize("name", [n for n in pathray.__all__ if n != "__version__"])
def test_every_public_name_resolves_and_says_shapes_or_units(name):
    value = getattr(pathray, name)
    text = inspect.getdoc(value)
    assert text and name in dir(pathray)
    if name != "UserError":
        assert UNITS.search(text), f"pathray.{name} says neither shapes nor units"


@pytest.mark.parametrize("name", ["Slide", "Encoder", "Model"])
def test_every_public_method_is_documented(name):
    kind = getattr(pathray, name)
    methods = [m for m in vars(kind) if not m.startswith("_")]
    assert methods and [m for m in methods if not inspect.getdoc(getattr(kind, m))] == []


def test_a_public_name_is_what_its_module_has():
    from pathray.api.slide import open_slide

    assert pathray.open_slide is open_slide
    assert set(pathray._MODULES) | {"__version__", "train"} == set(pathray.__all__)


FIRST = ("pathray.train", "import pathray.train.loop", "from pathray.train import loop")
TRAIN = """
import sys
for first in sys.argv[1:]:
    for name in [m for m in sys.modules if m.partition(".")[0] == "pathray"]:
        del sys.modules[name]  # as if in a new interpreter
    import pathray
    exec(first)
    import pathray.run, pathray.train.loop
    pathray.run.train = lambda *arguments, **keywords: (arguments, keywords)
    from pathray import train
    print(first, pathray.train(1, 2, settings=3), pathray.train.loop.run.__name__, train is pathray.train)
"""


def test_train_trains_and_holds_the_loop_whichever_is_used_first():
    said = run("-c", TRAIN, *FIRST).stdout.splitlines()
    assert said == [f"{first} ((1, 2), {{'settings': 3}}) run True" for first in FIRST]


def test_train_travels_with_a_notebooks_functions():
    from ray import cloudpickle

    assert cloudpickle.loads(cloudpickle.dumps(pathray.train)) is pathray.train


def test_the_version_is_the_installed_one():
    assert pathray.__version__ == importlib.metadata.version("pathray")


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="opn_slide"):
        pathray.opn_slide  # noqa: B018
