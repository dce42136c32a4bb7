import copy
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

REPOSITORY = Path(__file__).parents[1]
CLUSTER = yaml.safe_load((REPOSITORY / "ray_cluster.yaml").read_text())


def prepared(cluster):
    """The file as `ray up` completes it, before it speaks to the cloud."""
    return prepare_config(copy.deepcopy(cluster))


def commands(cluster):
    return [
        command for key, value in cluster.items() if key.endswith("_commands") for command in value
    ]


def test_ray_accepts_the_cluster_file():
    validate_config(prepared(CLUSTER))


def test_ray_refuses_a_key_that_it_does_not_know():
    with pytest.raises(jsonschema.ValidationError, match="gpu_worker_count"):
        validate_config(prepared(CLUSTER | {"gpu_worker_count": 8}))


def test_ray_refuses_a_node_type_without_its_machine():
    broken = copy.deepcopy(CLUSTER)
    del broken["available_node_types"]["gpu_worker"]["node_config"]

    with pytest.raises(jsonschema.ValidationError, match="node_config"):
        validate_config(prepared(broken))


def test_the_cluster_starts_gpu_workers_beyond_the_head():
    cluster = prepared(CLUSTER)
    workers = [
        node
        for name, node in cluster["available_node_types"].items()
        if name != cluster["head_node_type"]
    ]

    assert sum(node["min_workers"] * node["resources"].get("GPU", 0) for node in workers) >= 8
    assert sum(node["max_workers"] for node in workers) <= cluster["max_workers"]


def test_torch_and_torchvision_are_installed_in_one_call_at_the_tested_pair():
    installs = [command for command in commands(CLUSTER) if " torch" in command]

    assert len(installs) == 1
    assert {"torch", "torchvision"} <= set(installs[0].split())
    assert "--constraint ~/intro-pipe/constraints.txt" in installs[0]
    assert (REPOSITORY / CLUSTER["file_mounts"]["~/intro-pipe/constraints.txt"]).is_file()


def test_the_nodes_speak_with_a_token():
    assert any("RAY_AUTH_MODE=token" in command for command in CLUSTER["setup_commands"])
    assert "~/.ray/auth_token" in CLUSTER["file_mounts"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize("command", commands(CLUSTER))
def test_every_command_is_one_that_bash_can_read(command):
    checked = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)

    assert checked.returncode == 0, checked.stderr
