from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pathray.config.load import load_config
from pathray.errors import UserError
from ray_jobs.checks import accelerators as accelerator_checks
from ray_jobs.checks import nodes as node_checks
from ray_jobs.checks.nodes import FAIL, OK, WARN, Check, run_check
from ray_jobs.doctor import DoctorConfig, NodeReport, compare_versions, main, table
from tests.builders.jobs import ROOT, job_environment, run_job_process


def statuses(checks):
    return [check.status for check in checks]


# ---- packages


def test_a_package_out_of_range_and_a_missing_one_fail_with_the_command_that_mends_it():
    checks = node_checks.packages(["numpy>=1.0", "ray>=99", "surely-not-there>=1"], tested={})
    assert statuses(checks) == [OK, FAIL, FAIL]
    assert checks[0].found == "1 of 3 within the declared ranges"
    assert checks[1].name == "package ray" and "'ray>=99'" in checks[1].advice
    assert checks[2].found == "missing" and "on every host" in checks[2].advice


def test_a_version_other_than_the_tested_one_is_a_warning_that_names_both():
    import numpy

    checks = node_checks.packages(["numpy"], tested={"numpy": "1.0.0"})
    assert statuses(checks) == [OK, WARN]
    assert checks[1].found == f"numpy {numpy.__version__} (tested 1.0.0)"


def test_the_declared_requirements_hold_in_the_tested_environment():
    requirements = node_checks.declared_requirements()
    assert any(r.startswith("ray[") for r in requirements)
    assert FAIL not in statuses(node_checks.packages(requirements))


def test_the_pins_lie_within_the_ranges_that_the_project_declares():
    from packaging.requirements import Requirement

    pins = node_checks.tested_versions(ROOT)
    wanted = [Requirement(r) for r in node_checks.declared_requirements()]
    assert {r.name for r in wanted if not r.specifier.contains(pins.get(r.name, "0"))} == set()


# ---- the machine


def test_a_small_dev_shm_says_how_to_enlarge_it(tmp_path):
    checks = node_checks.shared_memory(str(tmp_path), least=1 << 60)
    assert statuses(checks) == [WARN]
    assert "--shm-size=" in checks[0].advice
    assert statuses(node_checks.shared_memory(str(tmp_path / "no"), least=1)) == [WARN]


@pytest.mark.parametrize(("soft", "status"), [(256, FAIL), (1024, WARN), (65536, OK)])
def test_the_limit_of_open_files_is_judged(monkeypatch, soft, status):
    monkeypatch.setattr(node_checks.resource, "getrlimit", lambda kind: (soft, 1 << 20))
    (check,) = node_checks.limits()
    assert (check.status, "ulimit -n" in check.advice) == (status, status != OK)


def test_the_disk_of_a_folder_that_is_yet_to_be_made_is_that_of_its_parent(tmp_path):
    here, deeper = node_checks.disk([str(tmp_path), str(tmp_path / "a" / "b")])
    assert here.found.startswith(f"{tmp_path}: ") and deeper.found.startswith(f"{tmp_path}/a/b: ")
    assert here.found.split()[-2:] == deeper.found.split()[-2:] == ["GiB", "free"]


def test_a_check_that_breaks_is_itself_a_finding():
    def broken():
        raise RuntimeError("no such bus")

    (check,) = run_check("bus", broken)
    assert check.status == FAIL
    assert "no such bus (test_doctor.py:" in check.found


def test_every_codec_of_real_slides_decodes_here():
    assert [row for row in node_checks.slide_readers() if row.status == FAIL] == []
    assert statuses(node_checks.dicom_readers()) == [OK]


def test_decoders_of_an_extra_that_are_missing_are_a_warning_with_the_command(monkeypatch):
    class Decoder:
        is_available = False

    monkeypatch.setattr("pydicom.pixels.decoders.base.get_decoder", lambda uid: Decoder())
    (check,) = node_checks.dicom_readers()
    assert check.status == WARN and "JPEG lossless" in check.found and "pip install 'pathray[oct]'" in check.advice


def test_a_codec_that_loses_pixels_is_found(monkeypatch):
    import imagecodecs

    real = imagecodecs.jpeg_decode
    monkeypatch.setattr(imagecodecs, "jpeg_decode", lambda data: 255 - real(data))
    (check,) = node_checks.decoder("jpeg")()
    assert check.status == FAIL and "grey levels" in check.found


# ---- storage and slides


def test_a_writable_folder_is_written_read_and_left_as_it_was(tmp_path):
    (check,) = node_checks.storage(str(tmp_path))
    assert check.status == OK, check
    assert list(tmp_path.rglob("doctor-*")) == []


def test_a_folder_below_a_file_cannot_be_storage(tmp_path):
    (tmp_path / "file").write_text("")
    (check,) = node_checks.storage(str(tmp_path / "file" / "run"))
    assert check.status == FAIL
    assert "writable" in check.advice


@pytest.mark.parametrize(
    ("url", "error", "advice"),
    [
        ("gs://b/x", ImportError("gcsfs"), "pathray[gcs]"),
        ("gs://b/x", PermissionError(), "application-default login"),
        ("s3://b/x", PermissionError(), "s3:PutObject"),
    ],
)
def test_storage_advice_fits_the_scheme_and_the_failure(url, error, advice):
    assert advice.replace("s3:", "") in node_checks._storage_advice(url, error)


def test_a_slide_shows_backend_levels_and_where_its_resolution_comes_from(shared_data):
    (good,) = node_checks.slide(str(shared_data / "wsi/CMU-1-Small-Region.svs"))
    assert good.status == OK and "2220×2967, 1 levels" in good.found and "mpp 0.499" in good.found
    (without,) = node_checks.slide(str(shared_data / "wsi/TCGA-CR-7395-01A-01-TS1.svs"))
    assert without.status == WARN and "no mpp" in without.found and "manifest" in without.advice


def test_a_slide_that_is_not_there_fails(tmp_path):
    (check,) = run_check("slide", lambda: node_checks.slide(str(tmp_path / "no.svs")))
    assert check.status == FAIL


# ---- accelerators


@pytest.fixture
def chips(monkeypatch):
    monkeypatch.setattr(accelerator_checks.glob, "glob", lambda pattern: ["/dev/accel0"] if "accel" in pattern else [])


PERMISSION = "RuntimeError: TPU initialization failed: open(/dev/accel1): Operation not permitted"


def starts(*results):
    """A stand-in for starting the XLA runtime: these results in turn; remembers with how many workers."""
    calls = []

    def start(environment):
        calls.append("one" if "TPU_VISIBLE_CHIPS" in environment else "all")
        return results[len(calls) - 1]

    return start, calls


def test_a_tpu_that_starts_is_asked_once(chips):
    start, calls = starts((0, "started TPU 4"))
    assert accelerator_checks.tpu(False, start) == [Check("tpu", OK, "started TPU 4")]
    assert calls == ["all"]


def test_tpu_initialisation_is_retried_once(chips):
    start, calls = starts((1, PERMISSION), (0, "started TPU 4"))
    (check,) = accelerator_checks.tpu(False, start)
    assert (check.status, check.found, calls) == (WARN, "started TPU 4 at the second attempt", ["all", "all"])


def test_tpu_initialisation_is_then_tried_with_one_worker(chips):
    start, calls = starts((1, PERMISSION), (1, PERMISSION), (0, "started TPU 1"))
    (check,) = accelerator_checks.tpu(False, start)
    assert calls == ["all", "all", "one"]
    assert check.status == FAIL
    assert check.advice.startswith("it starts with one worker") and "tpu-vm stop" in check.advice


def test_a_closed_tpu_device_says_to_restart_the_tpu(chips):
    start, _ = starts(*[(1, PERMISSION)] * 3)
    (check,) = accelerator_checks.tpu(False, start)
    assert check.found == PERMISSION
    assert check.advice.startswith("this user may not open the device: gcloud compute tpus tpu-vm stop")


def test_a_dependency_missing_on_one_host_says_to_install_on_all_and_is_not_retried_with_fewer(chips):
    start, calls = starts(*[(1, "ModuleNotFoundError: No module named 'torch_xla'")] * 2)
    (check,) = accelerator_checks.tpu(False, start)
    assert calls == ["all", "all"]
    assert "on all hosts" in check.advice and "--worker=all" in check.advice


def test_no_accelerator_is_fine_unless_one_is_asked_for(monkeypatch):
    monkeypatch.setattr(accelerator_checks.glob, "glob", lambda pattern: [])
    monkeypatch.setattr(accelerator_checks.shutil, "which", lambda name: None)
    monkeypatch.delenv("PJRT_DEVICE", raising=False)
    assert accelerator_checks.cuda(False) == accelerator_checks.tpu(False) == []
    assert statuses(accelerator_checks.cuda(True)) == [FAIL]


def test_a_gpu_beside_a_cpu_build_of_torch_is_named(monkeypatch):
    import torch

    monkeypatch.setattr(accelerator_checks.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(torch.version, "cuda", None)
    (check,) = accelerator_checks.cuda(False)
    assert check.status == FAIL and "CPU build" in check.advice


def test_a_device_that_hangs_is_given_up():
    code, output = accelerator_checks._run("import time; time.sleep(60)", {}, timeout=0.2)
    assert code == 124 and "timed out" in output


def test_settings_that_xla_removed_or_that_change_numbers_are_named(monkeypatch):
    for name in ("XLA_FLAGS", "XLA_USE_BF16"):
        monkeypatch.delenv(name, raising=False)
    assert accelerator_checks.environment() == []
    monkeypatch.setenv("XLA_USE_BF16", "0")
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/tmp/x")
    assert accelerator_checks.environment() == []
    monkeypatch.setenv("XLA_USE_BF16", "1")
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/tmp/x --xla_gpu_enable_triton_softmax_fusion=true")
    flags, bf16 = accelerator_checks.environment()
    assert statuses([flags, bf16]) == [WARN, WARN] and "--xla_gpu_enable_triton_softmax_fusion" in flags.advice
    assert "optimization.precision=bf16" in bf16.advice
    assert "environment" in dict(accelerator_checks.list_checks("auto"))


# ---- the report


def test_versions_that_differ_between_nodes_fail_on_the_odd_one():
    reports = compare_versions([
        NodeReport("a", {"ray": "2.58.0"}, []), NodeReport("b", {"ray": "2.60.0"}, []), NodeReport("c", {}, [])
    ])  # fmt: skip
    assert [statuses(r.checks) for r in reports] == [[], [FAIL], []]
    assert reports[1].checks[0].found == "2.60.0, elsewhere 2.58.0"


def test_the_table_puts_advice_below_its_row_and_keeps_to_the_width():
    report = NodeReport("n1", {}, [Check("memory", WARN, "1 GiB", "buy " * 40), Check("cpus", OK, "2")])
    lines = table([report], 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == ["warn", "memory", "1", "GiB"]
    assert lines[2].strip().startswith("→ buy")
    assert lines[-1].split() == ["ok", "cpus", "2"]


def test_an_unknown_accelerator_is_refused():
    with pytest.raises(UserError, match="auto, cpu, cuda or xla"):
        load_config(DoctorConfig, ["accelerator=gpu"], configs_dir=Path("none"))


@pytest.mark.ray
def test_every_node_of_a_cluster_is_examined_there(ray_cluster, tmp_path, capsys):
    argv = [f"storage={tmp_path}", "runtime.address=local"]
    outputs = main(load_config(DoctorConfig, argv, configs_dir=Path("none")))
    text = " ".join(capsys.readouterr().out.split())  # long paths are wrapped
    assert outputs.exit_code == 0, text
    assert "(driver)" in text and "1 alive" in text and "written, read and removed" in text


@pytest.mark.ray
def test_fewer_nodes_than_the_slice_has_hosts_is_a_failure(ray_cluster, capsys):
    assert main(load_config(DoctorConfig, ["nodes=4"], configs_dir=Path("none"))).exit_code == 1
    assert "1 alive of 4" in capsys.readouterr().out


def test_the_doctor_on_this_machine_alone_ends_with_a_count_and_an_exit_code(tmp_path):
    run = run_job_process(ROOT, "ray_jobs.doctor", "ray=false", f"storage={tmp_path / 'no'},/proc/none")
    assert run.returncode == 1, run.stdout + run.stderr
    assert "failed," in run.stdout
    assert "/proc/none: " in run.stdout


def test_examining_does_not_import_ray():
    code = "import sys; from ray_jobs.doctor import examine; examine('auto', [], []); print('ray' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], env=job_environment(), capture_output=True, text=True)
    assert run.stdout.strip() == "False", run.stderr


def test_slides_may_be_a_manifest(tmp_path):
    from ray_jobs.doctor import _slides

    (tmp_path / "m.csv").write_text("slide_id,wsi_path,mask_path\na,a.svs,\nb,/data/b.svs,\n")
    assert _slides(f"{tmp_path}/m.csv, c.svs") == [f"{tmp_path}/a.svs", "/data/b.svs", "c.svs"]
    (tmp_path / "bad.csv").write_text("slide_id,wsi_path,mask_path\na,,\n")
    with pytest.raises(UserError, match="no wsi_path"):
        _slides(str(tmp_path / "bad.csv"))
