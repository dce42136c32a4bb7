"""The files that bring intro-pipe to Kubernetes and Slurm."""

import re
import shlex
import subprocess
from pathlib import Path

import typer.main
import yaml

from cli.app import app

REPOSITORY = Path(__file__).parents[1]
JOB = yaml.safe_load((REPOSITORY / "docs" / "kuberay-rayjob.yaml").read_text())
CLUSTER = JOB["spec"]["rayClusterSpec"]
HEAD = CLUSTER["headGroupSpec"]
(WORKERS,) = CLUSTER["workerGroupSpecs"]
PODS = [group["template"]["spec"] for group in (HEAD, WORKERS)]
EXTRACT = typer.main.get_command(app).commands["extract"]

# ray.io/v1, https://ray-project.github.io/kuberay/reference/api/
JOB_FIELDS = {"entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit"}
JOB_FIELDS |= {"submissionMode", "submitterPodTemplate", "rayClusterSpec"}
HEAD_FIELDS = {"rayStartParams", "template"}
WORKER_FIELDS = HEAD_FIELDS | {"groupName", "replicas", "minReplicas", "maxReplicas"}


def words_of_extract(text: str) -> list[str]:
    """What follows `intro-pipe extract` in a command."""
    words = shlex.split(text)
    at = next(i for i, word in enumerate(words) if word.endswith("intro-pipe"))
    assert words[at + 1] == "extract"
    return words[at + 2 :]


def parsed(words: list[str]) -> dict[str, object]:
    """The options as our own command line reads them; raises where it does not know one."""
    return EXTRACT.make_context("extract", words).params


def test_the_ray_job_has_only_fields_that_kuberay_knows() -> None:
    assert (JOB["apiVersion"], JOB["kind"]) == ("ray.io/v1", "RayJob")
    assert JOB["spec"].keys() <= JOB_FIELDS
    assert CLUSTER.keys() == {"rayVersion", "headGroupSpec", "workerGroupSpecs"}
    assert HEAD.keys() <= HEAD_FIELDS
    assert WORKERS.keys() <= WORKER_FIELDS
    params = [group["rayStartParams"] for group in (HEAD, WORKERS)]
    assert all(isinstance(value, str) for each in params for value in each.values())


def test_the_ray_job_runs_a_command_of_ours_with_as_many_gpus_as_it_starts() -> None:
    options = parsed(words_of_extract(JOB["spec"]["entrypoint"]))
    (container,) = WORKERS["template"]["spec"]["containers"]
    gpus = int(container["resources"]["limits"]["nvidia.com/gpu"])
    assert options["gpus"] == WORKERS["replicas"] * gpus == 8
    assert options["address"] == "auto"
    assert WORKERS["minReplicas"] <= WORKERS["replicas"] <= WORKERS["maxReplicas"]


def test_every_container_of_the_ray_job_has_the_tested_ray_resources_and_the_token() -> None:
    version = re.search(r"^ray==(.+)$", (REPOSITORY / "constraints.txt").read_text(), re.M)
    assert version is not None
    assert CLUSTER["rayVersion"] == version[1]
    submitter = JOB["spec"]["submitterPodTemplate"]["spec"]["containers"]
    containers = [*submitter, *(each for pod in PODS for each in pod["containers"])]
    for container in [*containers, *PODS[0]["initContainers"]]:
        assert container["image"].startswith(f"rayproject/ray:{version[1]}-")
        assert container["resources"].keys() == {"limits", "requests"}
    for container in containers:
        environment = {each["name"]: each for each in container["env"]}
        assert environment["RAY_AUTH_MODE"]["value"] == "token"
        secret = environment["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
        assert secret == {"name": "intro-pipe-token", "key": "token"}


def test_every_node_of_the_ray_job_sees_the_shared_volume_that_the_command_names() -> None:
    options = parsed(words_of_extract(JOB["spec"]["entrypoint"]))
    for pod in PODS:
        assert pod["volumes"] == [
            {"name": "shared", "persistentVolumeClaim": {"claimName": "intro-pipe"}}
        ]
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert container["volumeMounts"] == [{"name": "shared", "mountPath": "/shared"}]
    assert str(options["store"]).startswith("/shared/")
    assert str(options["data_root"]).startswith("/shared/")


def test_the_ray_job_installs_the_wheel_with_the_tested_pair_of_torch() -> None:
    (install,) = PODS[0]["initContainers"]
    (script,) = install["args"]
    checked = subprocess.run(["bash", "-n", "-c", script], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert "torch torchvision /shared/install/intro_pipe-*.whl" in script
    assert "--constraint /shared/install/constraints.txt" in script
