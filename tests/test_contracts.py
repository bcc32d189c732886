"""The house rules that a program can check: import directions, the pins, the jobs and their files."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import runpy
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from ray_jobs.__main__ import jobs
from tests.builders.jobs import ROOT, job_environment, run_job_process

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SCIENCES = [name for name in ("ijepath", "adios", "oct", "mil", "regression") if (ROOT / name).is_dir()]
PACKAGES = ["pathray", *SCIENCES, "ray_jobs"]


def modules(*packages: str) -> list[Path]:
    return [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """All nodes of a module's source, the module itself first."""
    return tuple(ast.walk(ast.parse(path.read_text())))


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def test_make_test_checks_the_import_contracts_first():
    """`make lint` runs the linter over the tree, so no test does it again."""
    makefile = (ROOT / "Makefile").read_text()
    assert "\ntest: lint\n" in makefile and "\t$(BIN)/lint-imports\n" in makefile.partition("\nlint:")[2]


def test_types_of_every_package_are_checked_strictly():
    config = PROJECT["tool"]["mypy"]
    assert sorted(config["files"]) == sorted(PACKAGES) and config["strict"]
    assert "\t$(BIN)/mypy\n" in (ROOT / "Makefile").read_text(), "without arguments: all of them, in one run"


def test_the_import_contracts_cover_every_package():
    config = PROJECT["tool"]["importlinter"]
    assert sorted(config["root_packages"]) == sorted(PACKAGES)
    for contract in config["contracts"]:
        if contract["type"] == "forbidden":
            assert sorted(contract["source_modules"]) == sorted(["pathray", *SCIENCES]), contract["name"]


FORBIDDEN = (
    ("ijepath/model.py", "import ray", "ijepath.model -> ray (l.1)"),
    ("ijepath/data.py", "from ray.data import Datasource", "ijepath.data -> ray (l.1)"),
    ("ijepath/run.py", "import ray_jobs.shell.cli", "ijepath.run -> ray_jobs.shell.cli (l.1)"),
    ("ijepath/loss.py", "import mil", "ijepath.loss -> mil (l.1)"),
    ("pathray/store/plan.py", "import pathray.run.layout", "pathray.store.plan -> pathray.run.layout (l.1)"),
    ("pathray/wsi/order.py", "import pathray.data", "pathray.wsi.order -> pathray.data (l.1)"),
)


@pytest.fixture(scope="module")
def broken_contracts(tmp_path_factory):
    """What the linter says of a tree of empty packages in which every module of `FORBIDDEN` breaks a contract."""
    folder = tmp_path_factory.mktemp("broken")
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    layers = next(c["layers"] for c in contracts if c.get("containers") == ["pathray"])
    groups = [f"pathray/{group.strip()}" for layer in layers for group in layer.split("|")]
    for package in (*PACKAGES, "mil", "ray_jobs/shell", *groups):
        (folder / package).mkdir(exist_ok=True)
        (folder / package / "__init__.py").write_text("")
    (folder / "ray_jobs" / "shell" / "cli.py").write_text("")
    (folder / "pathray" / "run" / "layout.py").write_text("")
    for module, line, _ in FORBIDDEN:
        (folder / module).write_text(f"{line}\n")
    text = (ROOT / "pyproject.toml").read_text().replace('"ijepath"', '"ijepath", "mil"')
    text = text[text.index("[tool.importlinter]") :].replace('"mil", "mil"', '"mil"')
    (folder / "pyproject.toml").write_text(text)
    linter = str(Path(sys.executable).parent / "lint-imports")
    environment = {**job_environment(), "PYTHONPATH": str(folder)}
    run = subprocess.run([linter, "--no-cache"], cwd=folder, env=environment, capture_output=True, text=True)
    assert run.returncode == 1, run.stdout + run.stderr
    return run.stdout


@pytest.mark.parametrize(("module", "line", "said"), FORBIDDEN)
def test_a_module_that_breaks_a_contract_is_caught(broken_contracts, module, line, said):
    assert said in broken_contracts, f"{module}: {line}"


def test_nothing_else_breaks_a_contract(broken_contracts):
    found = set(re.findall(r"\S+ -> \S+ \(l\.\d+\)", broken_contracts))
    assert found == {said for *_, said in FORBIDDEN}


def test_files_that_start_first_exist():
    from tests.conftest import START_FIRST

    assert [name for name in START_FIRST if not (ROOT / name).is_file()] == []


def test_ray_stands_within_the_range_that_was_tested():
    (pin,) = [r for r in map(Requirement, PROJECT["project"]["dependencies"]) if r.name == "ray"]
    assert str(pin.specifier) == "<2.61,>=2.58"
    assert pin.extras == {"data", "default", "train", "tune"}
    assert pin.specifier.contains(Version(importlib.metadata.version("ray")))


@pytest.mark.parametrize(
    ("names", "file"),
    [
        (("Datasource", "ReadTask"), "ray_jobs/train/rank_source.py"),
        (("Backend", "BackendConfig"), "ray_jobs/train/backends.py"),
        (("Searcher",), "ray_jobs/tune/searchers.py"),
    ],
)
def test_rays_developer_interfaces_stand_in_one_file_each(names, file):
    users = set()
    for path in modules("pathray", *SCIENCES, "ray_jobs"):
        for node in nodes(path):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ray":
                if {alias.name for alias in node.names} & set(names):
                    users.add(path.relative_to(ROOT).as_posix())
    assert users <= {file}


def distributions_of(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(one).name) for one in requirements}


def third_party(*packages: str) -> dict[str, set[str]]:
    """Modules at the top level that the packages import from elsewhere, with the distributions that install them."""
    names = {name.partition(".")[0] for path in modules(*packages) for name in imported(path)}
    installed = importlib.metadata.packages_distributions()
    known = {*sys.stdlib_module_names, *PACKAGES}
    absent = {"umap": ["umap-learn"]}  # an extra whose module has another name; the others are called what they import
    return {n: {canonicalize_name(d) for d in installed.get(n) or absent.get(n, [n])} for n in names - known}


def test_every_base_dependency_is_imported():
    used = set.union(*third_party(*PACKAGES).values())
    assert distributions_of(PROJECT["project"]["dependencies"]) - used == set()


def test_every_import_is_a_dependency_or_in_an_extra():
    extras = PROJECT["project"]["optional-dependencies"]
    every = [one for group in [PROJECT["project"]["dependencies"], *extras.values()] for one in group]
    declared = distributions_of([one for one in every if one not in extras["dev"]])
    assert {name: by for name, by in third_party(*PACKAGES).items() if not by & declared} == {}


def test_no_constraint_names_an_index_a_path_or_a_local_build():
    for name in ("constraints.txt", "constraints-xla.txt"):
        lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
        assert (
            lines and [line for line in lines if "://" in line or "@" in line or "+" in line or line[0] in "-/"] == []
        )


def test_torchvision_and_timm_are_not_used():
    users = [p for p in modules(*PACKAGES) if {n.split(".")[0] for n in imported(p)} & {"torchvision", "timm"}]
    assert users == []


def test_every_module_says_what_it_is_for():
    silent = [p.relative_to(ROOT) for p in modules(*PACKAGES) if not ast.get_docstring(nodes(p)[0])]
    assert [p for p in silent if p.name != "__init__.py"] == []


TRACED = {
    "exception",
    "format_exc",
    "format_exception",
    "explain",
}  # they take the trace along, or know when a text will do
LOGS_TEXT_ONLY = {
    "pathray/store/storage.py": 1,  # what is tried again; the last one is raised with its trace
}


def logs_without_trace(nodes: Iterable[ast.AST]) -> list[int]:
    """Lines of log calls that say of any exception whatever only its text: it may be a mistake of ours, and the text of
    an AssertionError is empty."""
    found = []
    for handler in (node for node in nodes if isinstance(node, ast.ExceptHandler)):
        caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
        if not any(kind is None or ast.unparse(kind) in ("Exception", "BaseException") for kind in caught):
            continue
        calls = [node for node in ast.walk(handler) if isinstance(node, ast.Call)]
        traced = {ast.unparse(call.func).rpartition(".")[2] for call in calls} & TRACED
        for call in calls:
            if ast.unparse(call.func).startswith("log.") and not traced:
                found += [] if "exc_info" in {keyword.arg for keyword in call.keywords} else [call.lineno]
    return found


def test_no_unexpected_exception_is_logged_without_its_trace():
    found = {p.relative_to(ROOT).as_posix(): logs_without_trace(nodes(p)) for p in modules(*PACKAGES)}
    assert {name: len(lines) for name, lines in found.items() if lines} == LOGS_TEXT_ONLY, found


@pytest.mark.parametrize(
    ("handler", "bad"),
    [
        ("except Exception as e:\n    log.warning('no: %s', e)", True),
        ("except:\n    log.error('no')", True),
        ("except (KeyError, BaseException) as e:\n    if e:\n        log.debug(str(e))", True),
        ("except Exception as e:\n    log.warning('no: %s', explain(e))", False),
        ("except Exception as e:\n    log.warning('no', exc_info=not isinstance(e, UserError))", False),
        ("except Exception:\n    log.error('no:\\n%s', traceback.format_exc())", False),
        ("except OSError as e:\n    log.warning('no: %s', e)", False),
    ],
)
def test_a_log_without_its_trace_is_caught(handler, bad):
    assert bool(logs_without_trace(ast.walk(ast.parse(f"try:\n    act()\n{handler}")))) == bad


def test_python_m_ray_jobs_lists_every_job_with_its_description():
    run = run_job_process(ROOT, "ray_jobs")
    assert run.returncode == 0, run.stderr
    found = jobs()
    assert "ray_jobs.doctor" in found
    for name, description in found.items():
        assert description, f"{name} has no docstring"
        assert f"python -m {name} " in run.stdout and description in run.stdout


def test_a_job_is_known_by_its_main_and_its_last_lines(tmp_path):
    package = tmp_path / "ray_jobs"
    (package / "serving").mkdir(parents=True)
    ending = "\n\nif __name__ == '__main__':\n    job(main, Config, DIR)\n"
    (package / "train.py").write_text(f'"""Trains."""\ndef main(loaded): ...\n{ending}')
    (package / "serving" / "serve.py").write_text(f'"""Serves.\n\nMore."""\ndef main(loaded): ...\n{ending}')
    (package / "part.py").write_text('"""Helps."""\ndef main(loaded): ...\n')
    (package / "cli.py").write_text('"""Shell."""\ndef job(main): ...\n')
    assert jobs(package) == {"ray_jobs.serving.serve": "Serves.", "ray_jobs.train": "Trains."}


def test_a_job_named_without_its_package_is_told_the_command():
    run = run_job_process(ROOT, "ray_jobs", "doctor")
    assert (run.returncode, "python -m ray_jobs.doctor" in run.stderr) == (2, True)


HELP = """
import contextlib, io, json, runpy, sys
said = {}
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            said[name] = [end.code, out.getvalue()]
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def helps(tmp_path_factory):
    """Exit code and text of `--help` of every job, from one interpreter in which neither Ray nor torch can be
    imported."""
    traps = tmp_path_factory.mktemp("traps")
    for package in ("ray", "torch"):
        (traps / package).mkdir()
        (traps / package / "__init__.py").write_text("raise SystemError('imported for --help')")
    words = [sys.executable, "-W", "ignore::RuntimeWarning", "-c", HELP, *sorted(jobs())]
    run = subprocess.run(words, cwd=ROOT, env=job_environment(traps), capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("name", sorted(jobs()))
def test_help_of_every_job_imports_neither_ray_nor_torch(name, helps):
    code, said = helps[name]
    assert code == 0 and f"usage: python -m {name} " in said


@pytest.mark.parametrize("name", sorted(jobs()))
def test_a_misspelt_key_of_every_job_ends_with_exit_code_2_and_no_trace(name, monkeypatch, capfd):
    """The module's last lines run, as `python -m` does."""
    monkeypatch.setattr(sys, "argv", [name, "surely_no_such_key=1"])
    with pytest.raises(SystemExit) as end, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the module is imported already
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    said = capfd.readouterr().err
    assert (end.value.code, "Traceback" in said) == (2, False), said
    assert said.startswith("error: unknown key")


def test_every_job_named_in_a_shipped_file_exists():
    named = set()
    texts = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md"), *(ROOT / "cluster").glob("**/*")]
    texts += [p for science in SCIENCES for p in (ROOT / science).rglob("*") if p.suffix in (".md", ".yaml")]
    for path in texts:
        if path.is_file():
            named |= set(re.findall(r"python -m (ray_jobs\.[a-z_.]+[a-z])", path.read_text(errors="replace")))
    assert named <= set(jobs()), named - set(jobs())


def test_the_runtime_environment_of_submitted_jobs_is_one_that_ray_accepts():
    import yaml
    from ray.runtime_env import RuntimeEnv

    content = yaml.safe_load((ROOT / "cluster/runtime_env.yaml").read_text())
    environment = RuntimeEnv(**content)
    assert environment.env_vars()["OMP_NUM_THREADS"] == "1"
    assert {".venv/", ".git/"} <= set(content["excludes"])


def test_the_wheel_holds_the_library_the_sciences_the_jobs_and_their_files():
    """As setuptools finds them: no package of a common name (tests, demo, core) is installed, and no file is left out
    of a package's folder."""
    tool = PROJECT["tool"]["setuptools"]
    packages = setuptools.find_namespace_packages(str(ROOT), include=tool["packages"]["find"]["include"])
    assert {name.partition(".")[0] for name in packages} == set(PACKAGES)
    shipped = {
        path.relative_to(ROOT)
        for package in packages
        for pattern in ["*.py", *tool["package-data"]["*"]]
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    needed = {".py", ".yaml", ".j2"}  # the others are for readers of the repository
    files = {path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*")}
    files = {path for path in files if path.suffix in needed}
    assert {path.suffix for path in files} == needed and files - shipped == set()
