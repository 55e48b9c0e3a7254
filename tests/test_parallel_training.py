"""A model on several processes, sharded or split, learns what it does on one; each training is real processes."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from forked import Forked
from hypothesis import given
from hypothesis import strategies as st
from processes import end_group, eventually, free_port, still_works
from rank_work import work
from safetensors.torch import load_file
from stage_runs import PRETRAIN, checkpoints, environment_of, finish, running, workspace
from tiny import config, hardware, read_json

from lightning_modules.errors import PipelineError
from lightning_modules.hardware import choose
from lightning_modules.launch import require_launched
from lightning_modules.parallel import require_possible
from lightning_modules.tensor_parallel import Split
from lightning_modules.trainer import build_trainer

LLAMA = {
    "architecture": "decoder",
    "positions": "rotary",
    "key_value_heads": 2,
    "qk_norm": True,
    "activation": "swiglu",
    "norm_type": "rms",
    "bias": False,
    "tied_output": False,
    "dropout": 0.1,
}
T5 = {
    "positions": "relative",
    "activation": "geglu",
    "norm_type": "rms",
    "bias": False,
    "initialization": "t5",
    "scale_attention": False,
    "scale_logits": True,
    "vocab_size": 601,
}
BERT = {"architecture": "encoder", "positions": "learned", "output_transform": True, "output_bias": True}
CHARACTERS = {"embeddings": "characters", "tied_output": False, "positions": "alibi"}
AVERAGED = {"ema_decay": 0.9, "accumulate": 2}
Result = tuple[list[list[float]], dict[str, torch.Tensor]]


def train(folder: Path, strategy: str = "auto", nodes: int = 1, **changes: Any) -> Result:
    """A training of 8 steps; of one process in this one; on two nodes in processes told what torchrun tells them."""
    plan = {"strategy": strategy, "devices": 1 if strategy == "auto" else 2, "num_nodes": nodes} | changes
    plan = {"steps": 8, "accumulate": 1, "ema_decay": 0.0, "model": {}, "listen": False} | plan
    folder.mkdir(exist_ok=True)
    if strategy == "auto":
        work(folder, plan)
        return result(folder)
    port, log = str(free_port()), folder / "log.txt"
    processes = [Forked(folder, environment_of(told), log, work, folder, plan) for told in launched(nodes, port)]
    try:
        assert {process.wait(timeout=300) for process in processes} == {0}, log.read_text()
    finally:
        for process in processes:
            end_group(process.pid)
    return result(folder)


def launched(nodes: int, port: str) -> list[dict[str, str]]:
    """What each of two processes a node is told: on one node by Lightning, on several by torchrun."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    if nodes == 1:
        return [address | {"LOCAL_RANK": str(rank)} for rank in range(2)]
    address |= {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": str(2 * nodes), "LOCAL_WORLD_SIZE": "2"}
    return [
        address | {"RANK": str(rank), "GROUP_RANK": str(rank // 2), "LOCAL_RANK": str(rank % 2)}
        for rank in range(2 * nodes)
    ]


def result(folder: Path) -> Result:
    return json.loads((folder / "losses.json").read_text()), load_file(folder / "weights.safetensors")


def assert_same(got: Result, expected: Result) -> None:
    """The same losses and gradient's lengths at every step; the same weights but for what AdamW makes of rounding."""
    for row, other in zip(got[0], expected[0], strict=True):
        assert row == pytest.approx(other, rel=1e-4)
    assert {name: tensor.shape for name, tensor in got[1].items()} == {n: t.shape for n, t in expected[1].items()}
    for name, tensor in expected[1].items():
        if "bias" not in name:  # what a softmax does not see of them has nothing but rounding for a gradient
            difference = (got[1][name] - tensor).float().norm() / tensor.float().norm().clamp(min=1e-9)
            assert difference < 0.02, f"{name}: {difference}"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Result]:
    """What one process makes of some settings, the same for all tests."""
    made: dict[str, Result] = {}

    def make(**settings: Any) -> Result:
        key = json.dumps(settings)
        if key not in made:
            made[key] = train(tmp_path_factory.mktemp("one") / "one", **settings)
        return made[key]

    return make


@pytest.mark.parametrize(
    ("strategy", "settings"),
    [
        ("ddp", AVERAGED),
        ("fsdp", AVERAGED),
        ("fsdp", {"model": BERT}),
        ("fsdp", {"model": CHARACTERS}),
        ("tensor_parallel", {"model": LLAMA}),
        ("tensor_parallel", {"model": T5} | AVERAGED),
        ("tensor_parallel", {"model": BERT}),
        ("tensor_parallel", {"model": CHARACTERS}),
    ],
)
def test_two_processes_learn_what_one_does(
    tmp_path: Path, alone: Callable[..., Result], strategy: str, settings: dict[str, Any]
) -> None:
    """Ranks of `ddp` and `fsdp` read different numbers of target tokens; those that split a model read the same."""
    assert_same(train(tmp_path / "two", strategy, **settings), alone(**settings))


def test_logits_stay_where_they_are_made(tmp_path: Path) -> None:
    """With a vocabulary so large that all else that is sent is smaller than a share of them."""
    large = {"model": {"vocab_size": 4000}, "steps": 2}
    train(tmp_path / "two", "tensor_parallel", listen=True, **large)
    rows = json.loads((tmp_path / "two/wire.json").read_text())
    assert len(rows) == 2
    assert all(0 < largest < logits for largest, logits in rows)


def test_split_on_each_of_two_nodes_and_sharded_over_them(tmp_path: Path) -> None:
    assert_same(train(tmp_path / "four", "tensor_parallel", nodes=2), train(tmp_path / "one"))


def test_a_checkpoint_is_whole_and_others_go_on_from_it(tmp_path: Path, alone: Callable[..., Result]) -> None:
    whole = alone(**AVERAGED)
    rows: list[list[float]] = []
    # The seventh step is saved because it is the last.
    for steps, strategy in ((2, "fsdp"), (4, "tensor_parallel"), (6, "fsdp"), (7, "auto"), (8, "tensor_parallel")):
        got, weights = train(tmp_path / "many", strategy, steps=steps, **AVERAGED)
        rows += got
        saved = torch.load(tmp_path / f"many/step-{steps:09d}.ckpt", weights_only=True)
        shapes = {name.removeprefix("model."): tensor.shape for name, tensor in saved["state_dict"].items()}
        assert shapes == {name: tensor.shape for name, tensor in whole[1].items()}
    assert_same((rows, weights), whole)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(0, 1))
def test_shares_are_each_part_dealt_out_by_itself(ranks: int, parts: int, size: int, dim: int) -> None:
    shape = [3, 3]
    shape[dim] = parts * size * ranks
    whole = torch.arange(9 * size * ranks * parts)[: shape[0] * shape[1]].view(shape)
    shares = [Split(dim, parts).share(whole, rank, ranks) for rank in range(ranks)]
    for part, expected in enumerate(whole.split(size * ranks, dim)):
        assert torch.equal(torch.cat([share.split(size, dim)[part] for share in shares], dim), expected)


SHORT = {"steps": 12, "warmup_steps": 4, "validate_every": 6, "checkpoint_every": 5, "learning_rate": 1e-3}


def slurm(task: int) -> dict[str, str]:
    """What SLURM tells one of two tasks on two nodes."""
    return {
        "SLURM_JOB_ID": str(free_port()),  # Lightning makes its port of the last four digits
        "SLURM_JOB_NAME": "pretrain",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_NNODES": "2",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NODEID": str(task),
        "SLURM_PROCID": str(task),
        "SLURM_LOCALID": "0",
    }


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which one process has pre-trained."""
    root = workspace(tmp_path_factory.mktemp("short") / "one", pretrain=SHORT)
    finish(root, PRETRAIN)
    return root


@pytest.mark.parametrize("strategy", ["fsdp", "tensor_parallel"])
def test_a_stage_leaves_the_whole_model(one: Path, tmp_path: Path, strategy: str) -> None:
    two = workspace(tmp_path / "two", pretrain=SHORT | {"devices": 2, "strategy": strategy})
    finish(two, PRETRAIN)
    told, weights = [], []
    for root in (one, two):
        told.append(read_json(root / "models/pretrained/training.json"))
        weights.append(load_file(root / "models/pretrained/model.safetensors"))
    assert told[1]["validation_loss"] == pytest.approx(told[0]["validation_loss"], rel=1e-4)
    assert told[1]["tokens"] == told[0]["tokens"]
    assert 2 * told[1]["flops"] == pytest.approx(told[0]["flops"], rel=1e-3)  # of one of two devices
    assert_same(([], weights[1]), ([], weights[0]))


@pytest.mark.parametrize(("strategy", "killed"), [("ddp", 0), ("fsdp", 1)])
def test_no_process_waits_for_one_that_was_killed(tmp_path: Path, strategy: str, killed: int) -> None:
    settings = {"devices": 2, "strategy": strategy, "steps": 5000, "checkpoint_every": 5}
    root = workspace(tmp_path / "killed", pretrain=settings)
    with running(root, PRETRAIN) as first:
        eventually(lambda: checkpoints(root) or first.poll() is not None, every=0.02)
        ranks = [first.pid, *(child.pid for child in psutil.Process(first.pid).children())]
        assert len(ranks) == 2, (root / "log.txt").read_text()
        os.kill(ranks[killed], signal.SIGKILL)
        try:
            eventually(lambda: not any(map(still_works, ranks)))
        finally:
            end_group(first.pid)
        assert first.wait(timeout=10) != 0
    log = (root / "log.txt").read_text()
    assert "Traceback" not in log
    assert ("another process is gone" if killed else "the other processes are gone") in log


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (
            {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"},
            "torchrun started 4 processes, 2 of",
        ),
        (slurm(0), "SLURM started 2 processes, 1 of them on this node, but devices × num_nodes is 2 × 2"),
        ({}, "num_nodes is 2, but nothing started this process as one of several"),
    ],
)
def test_other_processes_than_asked_for_are_one_line(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], words: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    devices = 1 if "WORLD_SIZE" in variables else 2
    with pytest.raises(PipelineError, match=words):
        require_launched(devices, 2)


def test_what_launchers_started_as_asked_for_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    require_launched(8, 1)
    for name, value in slurm(1).items():
        monkeypatch.setenv(name, value)
    require_launched(1, 2)


def test_what_cannot_be_split_is_one_line() -> None:
    used = hardware(devices=2, strategy="tensor_parallel")
    trainer = build_trainer(used, choose(used, 32, True), 1, 1, 1, 1.0, [])
    require_possible(trainer, config(), "adamw")
    with pytest.raises(PipelineError, match=r"2 devices do not divide model.key_value_heads \(1\)"):
        require_possible(trainer, config(key_value_heads=1), "adamw")
    with pytest.raises(PipelineError, match=r"strategy tensor_parallel .* muon needs whole ones"):
        require_possible(trainer, config(), "muon")
