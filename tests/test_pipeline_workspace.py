"""Where a stage runs: in this process if one worker does the work, otherwise on Ray."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.cpus import n_cpus
from pipeline.errors import ResourceError
from pipeline.executors import LocalExecutor
from pipeline.ray_executor import RayExecutor
from pipeline.workspace import Execution, Workspace
from store.catalog import FeatureStore


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def workspace(folder: Path, **options: Any) -> Workspace:
    return Workspace(FeatureStore(str(folder)), execution=Execution(**options))


@pytest.mark.parametrize(
    ("options", "gpus", "device"),
    [
        ({}, "", "cpu"),
        ({"workers": 1}, "", "cpu"),
        ({"workers": 1}, "0,1", "cpu"),
        ({}, "0", "cuda"),
        ({"gpus": 1}, "0,1", "cuda"),
        ({"gpus": 0}, "0,1", "cpu"),
        ({"executor": "local"}, "0", "cuda"),
        ({"executor": "local", "workers": 1}, "", "cpu"),
    ],
)
def test_one_worker_runs_in_this_process(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    gpus: str,
    device: str,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    executor, found = workspace(tmp_path, **options).workers()
    assert (executor, found) == (LocalExecutor(), device)


@pytest.mark.parametrize(
    ("options", "environment", "n_gpus"),
    [
        ({"workers": 2}, {}, 0),
        ({}, {"CUDA_VISIBLE_DEVICES": "0,1"}, 2),
        ({"gpus": 2}, {}, 2),
        ({"executor": "ray"}, {}, 0),
        ({"workers": 1, "address": "127.0.0.1:1"}, {}, 0),
        ({"workers": 1}, {"RAY_ADDRESS": "127.0.0.1:1"}, 0),
    ],
)
def test_several_workers_and_clusters_need_ray(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    environment: dict[str, str],
    n_gpus: int,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    executor, _ = workspace(tmp_path, **options).workers()
    assert isinstance(executor, RayExecutor)
    assert executor.n_gpus == n_gpus


def test_a_program_that_is_connected_to_ray_uses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: True))  # type: ignore[arg-type]  # a fake
    executor, _ = workspace(tmp_path, gpus=0).workers()
    assert isinstance(executor, RayExecutor)


@pytest.mark.parametrize(("n_tasks", "n_workers"), [(1, 1), (19, min(19, n_cpus() - 1))])
def test_single_threaded_tasks_use_other_cores_on_ray(
    tmp_path: Path, n_tasks: int, n_workers: int
) -> None:
    executor, _ = workspace(tmp_path).workers(n_single_threaded=n_tasks)
    assert isinstance(executor, RayExecutor if n_workers > 1 else LocalExecutor)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"executor": "local", "workers": 2}, "one worker in this process: leave out --address"),
        ({"executor": "local", "gpus": 2}, "one worker in this process"),
        ({"executor": "local", "address": "auto"}, "one worker in this process"),
        ({"gpus": 1}, "requested 1 GPU, this machine has 0: use --gpus 0"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, options: dict[str, Any], why: str) -> None:
    with pytest.raises(ResourceError, match=why):
        workspace(tmp_path, **options).workers()
