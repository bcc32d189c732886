"""What ray_jobs/train/backends.py takes of Ray Train's developer API, seen to hold; what a worker is given and asked
for."""

import concurrent.futures as futures
import inspect
import multiprocessing
import os

import pytest
from ray.train.backend import Backend, BackendConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from pathray.errors import UserError
from ray_jobs.train import backends
from ray_jobs.train.backends import XlaConfig, backend_config, scaling_config
from ray_jobs.train.resources import check_resources, resolve_accelerator, worker_resources


@pytest.fixture(autouse=True)
def no_pjrt(monkeypatch):
    for name in ("PJRT_DEVICE", "CPU_NUM_DEVICES"):
        monkeypatch.delenv(name, raising=False)


# --- Ray's side -----------------------------------------------------------------------------------------------------


def test_ray_calls_a_backend_with_its_worker_group_and_config():
    for name in ("on_start", "on_training_start", "on_shutdown"):
        assert list(inspect.signature(getattr(Backend, name)).parameters) == ["self", "worker_group", "backend_config"]
    assert Backend.share_cuda_visible_devices is False
    assert isinstance(BackendConfig.backend_cls, property) and BackendConfig().backend_cls is Backend
    assert issubclass(XlaConfig().backend_cls, Backend)
    assert XlaConfig().framework is None and XlaConfig().to_dict() == {}


def test_the_trainer_takes_what_we_give_it():
    wanted = {"train_loop_config", "backend_config", "scaling_config", "run_config"}
    assert wanted <= set(inspect.signature(DataParallelTrainer.__init__).parameters)


def what_a_worker_sees(config):
    import sys

    names = ("PJRT_DEVICE", "CPU_NUM_DEVICES", "WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")
    return {name: os.environ.get(name) for name in names} | {"imported": "torch_xla" in sys.modules}


@pytest.mark.ray
def test_workers_have_their_environment_before_the_train_function_begins(ray_cluster, tmp_path):
    from ray.train import RunConfig

    result = DataParallelTrainer(
        what_a_worker_sees,
        train_loop_config={},
        backend_config=XlaConfig(pjrt_device="CPU", virtual_devices=3),
        scaling_config=scaling_config(2, {"CPU": 0.5}, "xla"),
        run_config=RunConfig(storage_path=str(tmp_path)),
    ).fit()
    seen = result.return_value
    assert (seen["PJRT_DEVICE"], seen["CPU_NUM_DEVICES"]) == ("CPU", "3")
    assert (seen["WORLD_SIZE"], seen["RANK"]) == ("2", "0") and not seen["imported"]
    assert seen["MASTER_ADDR"] and int(seen["MASTER_PORT"]) > 0


# --- hosts of XLA ---------------------------------------------------------------------------------------------------


class Group:
    """A worker group of processes, with the calls that the backend makes."""

    def __init__(self, size):
        spawn = multiprocessing.get_context("spawn")
        self.workers = [futures.ProcessPoolExecutor(1, mp_context=spawn) for _ in range(size)]

    def __len__(self):
        return len(self.workers)

    def start(self, rank, function, *args):
        return self.workers[rank].submit(function, *args)

    def execute_single(self, rank, function, *args):
        return self.start(rank, function, *args).result(timeout=120)


def meet(host, hosts):
    """Join as XLA's host `host`, and hear what host 0 says."""
    import torch

    from pathray.device import Device, join_hosts

    join_hosts(host, hosts)
    device = Device("xla", torch.device("cpu"), host, hosts)
    return device.broadcast_object(f"from host {host}"), device.gather_objects(os.environ["RANK"])


def test_hosts_agree_by_xlas_numbering_even_where_rays_is_another():
    group = Group(2)
    try:
        XlaConfig().backend_cls().on_start(group, XlaConfig(pjrt_device="CPU", virtual_devices=2))
        joined = [group.start(rank, meet, 1 - rank, 2) for rank in range(2)]  # Ray's rank 1 is XLA's host 0
        found = [j.result(timeout=120) for j in joined]
    finally:
        for worker in group.workers:
            worker.shutdown()
    assert found == [("from host 0", ["1", "0"])] * 2


def test_workers_that_xla_does_not_know_of_are_refused(monkeypatch):
    """Two processes with PJRT on the CPU: each would be rank 0 of 1 and train everything."""
    from pathray.device import join_hosts

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="number of hosts") as error:
        join_hosts(0, 1)
    assert (error.value.where["key"], error.value.where["found"], error.value.where["expected"]) == (
        "scaling.workers",
        2,
        1,
    )
    monkeypatch.setenv("WORLD_SIZE", "1")
    join_hosts(0, 1)


def test_a_torch_xla_imported_too_early_is_noticed(monkeypatch):
    import sys

    class Here:
        def __len__(self):
            return 1

        def execute_single(self, rank, function, *args):
            return function(*args)

    for name in ("PJRT_DEVICE", "WORLD_SIZE", "RANK"):  # so that what is set here is taken back
        monkeypatch.setenv(name, "")
    monkeypatch.setitem(sys.modules, "torch_xla", sys)
    with pytest.raises(AssertionError, match="imported before"):
        XlaConfig().backend_cls().on_start(Here(), XlaConfig())


# --- resources ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cluster", "kind"),
    [({"CPU": 8.0}, "cpu"), ({"CPU": 8.0, "GPU": 1.0}, "cuda"), ({"TPU": 4.0}, "xla"), ({"GPU": 0.5}, "cpu")],
)
def test_auto_is_the_best_that_the_cluster_has(monkeypatch, cluster, kind):
    monkeypatch.setattr("ray_jobs.train.resources.is_ray_running", lambda: True)
    monkeypatch.setattr("ray.cluster_resources", lambda: cluster)
    assert resolve_accelerator("auto") == kind
    assert resolve_accelerator("cpu") == "cpu", "a named one is taken at its word"


def test_auto_is_refused_where_the_accelerators_are_yet_to_come(monkeypatch):
    monkeypatch.setattr("ray_jobs.train.resources.is_ray_running", lambda: True)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 4.0})
    with pytest.raises(UserError, match="name the accelerator") as error:
        resolve_accelerator("auto", autoscaling=True)
    assert error.value.where["key"] == "scaling.accelerator"
    assert resolve_accelerator("cpu", autoscaling=True) == "cpu"
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 4.0, "GPU": 2.0})
    assert resolve_accelerator("auto", autoscaling=True) == "cuda", "a cluster that has some shows what it is"


def test_backends_of_the_accelerators(monkeypatch):
    several = backend_config("cpu", 60, 2)
    assert (several.backend, several.timeout_s) == ("gloo", 60)
    assert type(backend_config("cpu", 60, 1)) is BackendConfig, "one process meets nobody"
    assert backend_config("cuda", 60, 1).backend == "nccl"
    assert backend_config("xla", 60, 1) == XlaConfig(pjrt_device="TPU", virtual_devices=0)
    monkeypatch.setenv("PJRT_DEVICE", "CPU")
    assert backend_config("xla", 60, 1) == XlaConfig(pjrt_device="CPU", virtual_devices=4)
    monkeypatch.setenv("CPU_NUM_DEVICES", "2")
    assert backend_config("xla", 60, 1).virtual_devices == 2


def test_resources_of_a_worker(monkeypatch):
    assert worker_resources("cpu", 2.0, 1.0, {}) == {"CPU": 2.0}
    assert worker_resources("cuda", 4.0, 0.5, {"big": 1.0}) == {"CPU": 4.0, "GPU": 0.5, "big": 1.0}
    assert worker_resources("xla", 1.0, 1.0, {}) == {"CPU": 1.0, "TPU": 4.0}, "a host's four chips"
    assert worker_resources("xla", 1.0, 1.0, {"TPU": 8.0})["TPU"] == 8.0
    monkeypatch.setenv("PJRT_DEVICE", "CPU")
    assert worker_resources("xla", 1.0, 1.0, {}) == {"CPU": 1.0}


def test_ray_accepts_the_scaling_of_every_accelerator():
    assert scaling_config(3, {"CPU": 1.0}, "cpu").num_workers == 3
    assert scaling_config(2, {"CPU": 1.0, "GPU": 1.0}, "cuda").use_gpu
    one = scaling_config(1, {"CPU": 1.0, "TPU": 4.0}, "xla")
    assert one.use_tpu and one.num_tpus_per_worker == 4
    slice_ = scaling_config(2, {"CPU": 1.0, "TPU": 4.0}, "xla", tpu_type="TPU-V5P", tpu_topology="2x2x2")
    assert (slice_.topology, slice_.accelerator_type) == ("2x2x2", "TPU-V5P")
    with pytest.raises(UserError) as error:
        scaling_config(2, {"CPU": 1.0, "TPU": 4.0}, "xla", tpu_type="TPU-V5P")
    assert error.value.where["key"] == "scaling.tpu_topology"


def test_workers_that_never_fit_are_refused_with_both_figures():
    check_resources(2, {"CPU": 1.0}, {"CPU": 2.5}, autoscaling=False)
    with pytest.raises(UserError, match="too little CPU") as error:
        check_resources(2, {"CPU": 1.0}, {"CPU": 2.0}, autoscaling=False)
    assert (error.value.where["found"], error.value.where["expected"]) == ("CPU: 2", "CPU: 2.5")
    with pytest.raises(UserError, match="too little GPU"):
        check_resources(1, {"CPU": 1.0, "GPU": 1.0}, {"CPU": 8.0}, autoscaling=False)
    check_resources(64, {"GPU": 8.0}, {"CPU": 1.0}, autoscaling=True)


def test_a_cluster_that_decodes_needs_a_cpu_beside_those_of_the_workers():
    check_resources(2, {"CPU": 1.0}, {"CPU": 3.0}, autoscaling=False, decode_tasks=4)
    with pytest.raises(UserError, match="too little CPU") as error:
        check_resources(2, {"CPU": 1.0}, {"CPU": 2.5}, autoscaling=False, decode_tasks=4)
    assert (error.value.where["found"], error.value.where["expected"]) == ("CPU: 2.5", "CPU: 3")


def test_the_developer_api_is_touched_in_one_file_only():
    from pathlib import Path

    sources = Path(backends.__file__).parents[1].rglob("*.py")
    users = {path.name for path in sources if "ray.train.backend" in path.read_text()}
    assert users == {"backends.py"}


def test_rays_controller_gets_the_job_packed_and_imports_no_science_for_it(monkeypatch, tmp_path):
    import pickle

    from pathray.config.sections import ScalingConfig
    from pathray.store.storage import Storage
    from ray_jobs.train.attempts import ray_trainer
    from ray_jobs.train.job import TrainJob

    given = {}
    name = "ray.train.v2.api.data_parallel_trainer.DataParallelTrainer"
    monkeypatch.setattr(name, lambda function, **keys: given.update(keys))
    job = TrainJob(print, {"lr": 1.0}, "plan", str(tmp_path), ScalingConfig(), accelerator="cpu")
    ray_trainer(job, Storage.of(tmp_path))
    packed = given["train_loop_config"]["job"]
    assert isinstance(packed, bytes) and pickle.loads(packed) == job
