"""The files for running intro-pipe on Kubernetes and Slurm."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import yaml
from ray.scripts.scripts import start as ray_start

from cli.app import commands

REPOSITORY = Path(__file__).parents[1]
JOB = yaml.safe_load((REPOSITORY / "docs" / "kuberay-rayjob.yaml").read_text())
CLUSTER = JOB["spec"]["rayClusterSpec"]
HEAD = CLUSTER["headGroupSpec"]
(WORKERS,) = CLUSTER["workerGroupSpecs"]
PODS = [group["template"]["spec"] for group in (HEAD, WORKERS)]
EXTRACT = commands()["extract"]

# What Slurm gives: programs that know the hosts, and run a command on one of them.
SLURM = {
    "scontrol": "tr , '\\n' <<< \"$3\"",
    "hostname": "echo 127.0.0.1 10.0.0.1",
    "srun": """
while [[ $1 == --* ]]; do
  if [[ $1 == --nodelist=* ]]; then export NODE=${1#*=}; fi
  shift
done
echo "$NODE: $*" >> ran
exec "$@"
""",
}

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


def test_the_ray_job_runs_intro_pipe_with_as_many_gpus_as_it_requests() -> None:
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


def run_in_slurm(folder: Path, programs: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """The script as a job on the nodes one and two, which are this machine."""
    (folder / "bin").mkdir()
    for name, lines in (SLURM | programs).items():
        program = folder / "bin" / name
        program.write_text(f"#!/usr/bin/env bash\n{lines}\n")
        program.chmod(0o755)
    environment = {
        **os.environ,
        "INTRO_PIPE_ENV": str(folder),  # its `bin` comes first
        **{"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "one,two"},
        **{"SLURM_CPUS_PER_TASK": "16", "SLURM_GPUS_ON_NODE": "4"},
    }
    # Its output ends when all processes that it started have ended, since they inherit it.
    return subprocess.run(
        ["bash", str(REPOSITORY / "docs" / "slurm.sh"), "--dataset", "cifar10c"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_the_slurm_script_starts_a_head_and_then_a_worker_and_our_command(tmp_path: Path) -> None:
    listen = "import signal, socket, sys; s = socket.create_server(('127.0.0.1', int(sys.argv[1])))"
    programs = {
        "ray": f"""
for word; do if [[ $word == --port=* ]]; then port=${{word#*=}}; fi; done
exec {shlex.quote(sys.executable)} -c "{listen}; signal.pause()" "${{port:-0}}"
""",
        "intro-pipe": "until grep --quiet two: ran; do sleep 0.1; done",
    }

    ended = run_in_slurm(tmp_path, programs)

    assert ended.returncode == 0, ended.stderr
    asked, first, *others = (tmp_path / "ran").read_text().splitlines()
    extract, second = sorted(others)
    assert asked == "one: hostname --ip-address"
    head = options_of("one: ray start", first)
    worker = options_of("two: ray start", second)
    address = f"127.0.0.1:{head['port']}"
    assert head["head"]
    assert (head["node_ip_address"], head["num_gpus"]) == ("127.0.0.1", 4)
    assert (worker["address"], worker["num_gpus"]) == (address, 4)
    options = parsed(words_of_extract(extract.removeprefix("one: ")))
    assert (options["address"], options["gpus"], options["dataset"]) == (address, 8, "cifar10c")


def options_of(ray: str, line: str) -> dict[str, object]:
    """The options of `ray start` as Ray's own command line reads them."""
    assert line.startswith(ray)
    return ray_start.make_context("start", shlex.split(line.removeprefix(ray))).params


def test_the_slurm_script_ends_with_its_head(tmp_path: Path) -> None:
    ended = run_in_slurm(tmp_path, {"ray": "exit 3"})

    assert ended.returncode != 0
    assert "intro-pipe" not in (tmp_path / "ran").read_text()
