"""Trainings on two machines, of which one is killed, evicted or loses its network: real agents, real stages.

Each machine is an agent with its processes, in the last test also with a network of its own. What comes out is to the
bit what two processes make that nobody disturbs.
"""

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import free_port
from ruamel.yaml import YAML
from stage_runs import PRETRAIN, assert_same_result, checkpoints, finish, workspace
from test_parallel_training import slurm

REPOSITORY = Path(__file__).parents[1]
SETTINGS: dict[str, Any] = {
    "model": {"dropout": 0.1},
    "pretrain": {
        "steps": 220,  # the last of them long after the last disturbance, however slow this test is to act
        "warmup_steps": 20,
        "checkpoint_every": 10,
        "validate_every": 50,
        "ema_decay": 0.9,
        "num_nodes": 2,
        "strategy": "ddp",
    },
}
SECONDS = 240.0  # to wait for anything, on a machine that does other things besides
C10D = ("--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=test", "--max-restarts=3")


class Machines:
    """Two machines that share a workspace; all that runs on one dies with it."""

    def __init__(self, root: Path, command: Callable[[int], list[str]], **environment: str) -> None:
        self.root, self.command = root, command
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("PIPELINE_", "DVC_"))} | {
            "PYTHONPATH": str(REPOSITORY),
            "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        self.agents: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, *numbers: int, folder: Path | None = None, **environment: str) -> None:
        for number in numbers:
            with (self.root / f"log-{number}.txt").open("a") as log:
                self.agents[number] = subprocess.Popen(
                    self.command(number),
                    cwd=folder or self.root,
                    env=self.environment | environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )

    def kill(self, number: int) -> None:
        for process in self.processes(number):
            process.kill()
        self.agents[number].wait()

    def processes(self, number: int) -> list[psutil.Process]:
        """The agent, and the processes of the training that it started."""
        try:
            agent = psutil.Process(self.agents[number].pid)
            return [agent, *agent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def ends(self) -> list[int]:
        """The exit statuses of both."""
        return [until(agent.poll) for agent in self.agents.values()]

    def await_step(self, step: int) -> None:
        """Waits for a checkpoint of that step or a later one."""
        until(lambda: any(int(path.stem.removeprefix("step-")) >= step for path in checkpoints(self.root)), self.fine)

    def fine(self) -> None:
        ended = [number for number, agent in self.agents.items() if agent.poll() is not None]
        assert not ended, "".join(self.log(number) for number in ended)

    def log(self, number: int) -> str:
        return (self.root / f"log-{number}.txt").read_text(errors="replace")


def until(get: Callable[[], Any], check: Callable[[], None] = lambda: None) -> Any:
    deadline = time.monotonic() + SECONDS
    while (value := get()) is None or value is False:
        check()
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)
    return value


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Callable[..., Machines]]:
    """Makes machines; whatever runs on them at the end is killed."""
    made: list[Machines] = []

    def make(command: Callable[[int], list[str]], **environment: str) -> Machines:
        made.append(Machines(workspace(tmp_path / "shared", **SETTINGS), command, **environment))
        return made[-1]

    yield make
    for some in made:
        for number in some.agents:
            some.kill(number)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes of one machine make that nobody disturbs."""
    one = SETTINGS | {"pretrain": SETTINGS["pretrain"] | {"num_nodes": 1, "devices": 2}}
    root = workspace(tmp_path_factory.mktemp("whole") / "workspace", **one)
    finish(root, PRETRAIN)
    return root / "models/pretrained"


def static(address: str, port: int) -> Callable[[int], list[str]]:
    """torchrun told which machine is which."""
    where = ["--nnodes=2", "--nproc-per-node=1", f"--master-addr={address}", f"--master-port={port}"]
    return lambda number: torchrun(*where, f"--node-rank={number}", "-m", *PRETRAIN)


def torchrun(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *arguments]


def kubeflow(number: int, port: int) -> dict[str, str]:
    """What the training operator tells the pods of a PyTorchJob, a master and a worker with a process each."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torchrun = {f"PET_{name}": value for name, value in address.items()}
    torchrun |= {"PET_NNODES": "2", "PET_NODE_RANK": str(number), "PET_NPROC_PER_NODE": "1"}
    return address | torchrun | {"WORLD_SIZE": "2", "RANK": str(number)}


def test_a_killed_process_and_a_killed_machine_that_comes_back(
    machines: Callable[..., Machines], undisturbed: Path
) -> None:
    """The first is mended by torchrun alone; the second needs nothing but its agent."""
    where, share = f"--rdzv-endpoint=127.0.0.1:{free_port()}", {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    both = machines(lambda n: torchrun(*C10D, where, f"--rdzv-conf=is_host={int(not n)}", "-m", *PRETRAIN), **share)
    both.start(0, 1)
    both.await_step(30)
    both.processes(1)[-1].kill()
    until(lambda: "going on from step" in both.log(0) + both.log(1), both.fine)
    machine = both.processes(1)
    both.await_step(60)
    for process in machine:
        process.kill()
    both.agents[1].wait()
    both.start(1)
    assert both.ends() == [0, 0], both.log(0)
    assert_same_result(both.root / "models/pretrained", undisturbed)


def test_an_evicted_pod_is_started_again_and_goes_on(machines: Callable[..., Machines], undisturbed: Path) -> None:
    """The command of the manifest, told by the operator's variables; a pod that fails is started again."""
    job = YAML(typ="safe").load(REPOSITORY / "deploy/kubernetes/pytorchjob.yaml")
    program, *arguments = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]["command"]
    assert program == "torchrun"
    pods, port = machines(lambda _: torchrun(*arguments)), free_port()
    for number in range(2):
        pods.start(number, **kubeflow(number, port))
    pods.await_step(30)
    pods.agents[1].terminate()  # as a node that is drained does
    assert 0 not in pods.ends(), "a pod that ends with 0 is not started again"
    assert "stopped: checkpoint of step" in pods.log(0)
    for number in range(2):
        pods.start(number, **kubeflow(number, port))
    assert pods.ends() == [0, 0], pods.log(0)
    assert_same_result(pods.root / "models/pretrained", undisturbed)


# As SLURM's own: an srun that gets SIGTERM kills its tasks; scancel sends a signal to them, not to the batch script.
SRUN = """#!/usr/bin/env python3
import os, signal, subprocess, sys, time

assert sys.argv[1] == "--kill-on-bad-exit=1"
places = [{"SLURM_PROCID": str(n), "SLURM_NODEID": str(n), "SLURM_LOCALID": "0"} for n in range(2)]
tasks = [subprocess.Popen(sys.argv[2:], env=os.environ | place) for place in places]
signal.signal(signal.SIGTERM, lambda *_: [task.kill() for task in tasks])
with open("tasks", "w") as file:
    print(*(task.pid for task in tasks), file=file)
while any(task.poll() is None for task in tasks):
    if any(task.poll() for task in tasks):
        [task.kill() for task in tasks]
    time.sleep(0.05)
sys.exit(max(task.returncode if task.returncode >= 0 else 128 - task.returncode for task in tasks))
"""
SCANCEL = '#!/bin/sh\n[ "$*" = "--signal=TERM $SLURM_JOB_ID" ] && kill -TERM $(cat tasks)\n'


def test_a_slurm_job_that_is_told_to_end_queues_again_and_tells_dvc(
    machines: Callable[..., Machines], undisturbed: Path, tmp_path: Path
) -> None:
    """The batch script, with an `srun` that starts two tasks here and an `scontrol` that notes what it is asked."""
    commands = tmp_path / "commands"
    commands.mkdir()
    (commands / "srun").write_text(SRUN)
    (commands / "scancel").write_text(SCANCEL)
    (commands / "scontrol").write_text('#!/bin/sh\necho "$@" >> asked\n')
    for command in commands.iterdir():
        command.chmod(0o755)
    path = os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ["PATH"]])
    script = REPOSITORY / "deploy/slurm/train.sbatch"
    job = machines(lambda _: ["bash", str(script), "pretrain"], **slurm(0) | {"PATH": path})
    (job.root / "dvc.yaml").write_text(dvc_yaml())
    dvc(job.root, "init", "--no-scm", "--quiet")
    job.start(0)
    job.await_step(30)
    job.agents[0].terminate()  # what #SBATCH --signal=B:TERM@120 has sent to the script alone
    (status,) = job.ends()
    assert status == 143, job.log(0)
    assert (job.root / "asked").read_text().split() == ["requeue", job.environment["SLURM_JOB_ID"]]
    assert not (job.root / "dvc.lock").exists()
    job.start(0)
    assert job.ends() == [0], job.log(0)
    assert_same_result(job.root / "models/pretrained", undisturbed)
    assert "Data and pipelines are up to date" in dvc(job.root, "status", "pretrain")
    assert "didn't change, skipping" in dvc(job.root, "repro", "--single-item", "pretrain")
    (job.root / "models/pretrained/config.json").write_text("{}")
    assert "modified" in dvc(job.root, "status", "pretrain")


def dvc_yaml() -> str:
    """The pipeline's stage `pretrain`, without the code that it depends on."""
    yaml = YAML()
    stage = yaml.load(REPOSITORY / "dvc.yaml")["stages"]["pretrain"]
    stage["deps"] = [path for path in stage["deps"] if path.startswith("data/")]
    written = io.StringIO()
    yaml.dump({"stages": {"pretrain": stage}}, written)
    return written.getvalue()


def dvc(root: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def networks() -> Iterator[list[str]]:
    """Two networks with a cable between them: 10.231.0.1 and 10.231.0.2."""
    names = [f"pipeline-{os.getpid()}-{number}" for number in range(2)]
    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for number, name in enumerate(names, start=1):
            ip("-n", name, "address", "add", f"10.231.0.{number}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no networks can be made here: {error}")
    else:
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def test_a_cut_cable_ends_both_in_bounded_time_and_they_go_on(
    machines: Callable[..., Machines], undisturbed: Path, networks: list[str]
) -> None:
    run = static("10.231.0.1", 29500)
    both = machines(
        lambda n: ["ip", "netns", "exec", networks[n], *run(n)], GLOO_SOCKET_IFNAME="cable", PIPELINE_PEER_TIMEOUT="10"
    )
    both.start(0, 1)
    both.await_step(30)
    ip("-n", networks[0], "link", "set", "cable", "down")
    assert 0 not in both.ends()
    ip("-n", networks[0], "link", "set", "cable", "up")
    both.start(0, 1)
    assert both.ends() == [0, 0], both.log(0)
    assert_same_result(both.root / "models/pretrained", undisturbed)
