"""nvg/cluster.py without Ray: what importing it costs, threads, devices, bars, and a warning."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from nvg.cluster import (
    device_of,
    environment_variables,
    set_threads,
    warn_of_no_room_beside,
    warn_of_too_few_cpus,
)
from nvg.config import ClusterConfig

ROOT = Path(__file__).parents[1]


def test_importing_it_imports_neither_ray_nor_torch():
    code = "import nvg.cluster, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"ray", "torch"} & set(done.stdout.split())


def test_threads_are_as_many_as_asked_for_or_as_cpus():
    before = torch.get_num_threads()
    try:
        for settings, threads in (
            ({"threads_per_worker": 3}, 3),
            ({"cpus_per_worker": 2.4}, 2),
            ({"cpus_per_worker": 0.2}, 1),
        ):
            set_threads(ClusterConfig(**settings))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_the_device_follows_use_gpu():
    assert [device_of(ClusterConfig(use_gpu=gpu)).type for gpu in (False, True)] == ["cpu", "cuda"]


def test_workers_that_leave_no_cpu_to_read_are_announced(capsys):
    cluster = ClusterConfig(num_workers=2)
    warn_of_too_few_cpus(3.0, cluster)
    assert capsys.readouterr().out == ""
    warn_of_too_few_cpus(2.0, cluster)
    assert "need 3 CPUs, the cluster has 2" in capsys.readouterr().out


def test_evaluations_that_must_wait_for_the_end_of_the_training_are_announced(capsys):
    cluster = ClusterConfig(num_workers=2, cpus_per_worker=0.5, cpus_per_reader=0.25, use_gpu=True)
    warn_of_no_room_beside({"CPU": 2.0, "GPU": 3.0}, cluster)
    assert capsys.readouterr().out == ""
    warn_of_no_room_beside({"CPU": 1.75, "GPU": 2.0}, cluster)
    said = capsys.readouterr().out
    assert "need 2 CPU, the cluster has 1.75" in said and "need 3 GPU, the cluster has 2" in said


def test_a_hanging_collective_fails_a_group_of_gpus_unless_it_is_set_otherwise(monkeypatch):
    from ray.train.v2._internal.callbacks.nccl_ras import NCCLRASCallback

    from nvg.training.ray_train import end_hanging_collectives

    for name in ("RAY_TRAIN_ENABLE_NCCL_HANG_DETECTOR", "RAY_TRAIN_NCCL_RAS_ACTION"):
        monkeypatch.delenv(name, raising=False)
    end_hanging_collectives()
    assert os.environ["RAY_TRAIN_ENABLE_NCCL_HANG_DETECTOR"] == "1"
    assert NCCLRASCallback()._action == "fail"  # Ray's own reading of the variable
    monkeypatch.setenv("RAY_TRAIN_NCCL_RAS_ACTION", "observe")
    end_hanging_collectives()
    assert NCCLRASCallback()._action == "observe"


def test_the_tracking_server_of_the_driver_is_that_of_every_node(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert "MLFLOW_TRACKING_URI" not in environment_variables()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert environment_variables()["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs.db")
    assert environment_variables()["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/runs.db"
