"""The estimate: shapes as the data module makes them, verdicts, proportions, and the command in a real process."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from ruamel.yaml import YAML

from lightning_modules.errors import PipelineError
from lightning_modules.flops import Shape, batch_bytes, optimizer_flops, parameters, state_bytes
from lightning_modules.named_objectives import make_objective
from lightning_modules.transformer.config import OBJECTIVES
from stages.estimate import Data, asked_prices, clock, estimate, pretraining_data, short
from stages.estimate_devices import (
    CPU_HALF_SHARE,
    CPU_SHARE,
    GPU_SHARE,
    GPUS,
    LAUNCH,
    Device,
    devices,
    measured_peak,
)
from stages.estimate_trainings import Training, trainings
from stages.params import load_params

REPOSITORY = Path(__file__).parents[1]
PARTS = {"embeddings": 500_000, "encoder": 300_000, "decoder": 200_000, "head": 0}
SMALL = Path(__file__).with_name("params.yaml")


def written(folder: Path, **changes: dict[str, Any]) -> Path:
    """The tests' params.yaml with other values for some keys of its sections."""
    yaml = YAML()
    values = yaml.load(SMALL.read_text())
    for section, own in changes.items():
        values[section].update(own)
    path = folder / "params.yaml"
    yaml.dump(values, path)
    return path


def planned(folder: Path, **changes: dict[str, Any]) -> list[Training]:
    return trainings(load_params(written(folder, **changes)))


def gpu(**changes: Any) -> Device:
    made = Device("a GPU", True, 1, 1e12, 0.5, 2.0, lambda half, section: 1e9)  # slow: starting kernels hides nothing
    return replace(made, **changes)


@pytest.mark.parametrize(
    ("on_gpu", "half", "known"),
    [(True, True, GPU_SHARE), (True, False, GPU_SHARE), (False, True, CPU_HALF_SHARE), (False, False, CPU_SHARE)],
)
def test_the_share_of_the_peak_is_what_such_devices_reach_unless_told(on_gpu: bool, half: bool, known: float) -> None:
    assert gpu(gpu=on_gpu, share=None).reached(half) == known
    assert gpu(gpu=on_gpu, share=0.2).reached(half) == 0.2


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stages.estimate", *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_shapes_are_those_that_the_objective_makes_of_real_rows(tmp_path: Path, name: str) -> None:
    architecture = "encoder" if name == "masked_lm" else "encoder_decoder"
    architecture = "decoder" if name == "causal_lm" else architecture
    path = written(tmp_path, model={"architecture": architecture}, pretrain={"objective": name})
    values = YAML().load(path.read_text())
    if architecture == "encoder":
        for task in ("translation", "summarization"):
            del values["tasks"][task], values["data"][task]
        YAML().dump(values, path)
    params = load_params(path)
    section = params.pretrain
    objective = make_objective(
        section.objective,
        corruption_rate=section.corruption_rate,
        mean_span_length=section.mean_span_length,
        whole_words=False,
        tokenizer=tiny.tokenizer(),
    )
    rng, found = np.random.default_rng(5), []
    for _ in range(300):
        rows = rng.integers(69, tiny.VOCAB_SIZE, (section.batch_size, section.sequence_length))
        source, target = objective(rows, rng)
        found.append((source.shape[1], target.shape[1], (target != 0).sum()))
    pretraining = trainings(params)[0]
    assert sum(weight for weight, _ in pretraining.shapes) == pytest.approx(1)
    for number, real in enumerate(np.mean(found, axis=0)):
        expected = sum(
            weight * (shape.source, shape.target, shape.predicted)[number] for weight, shape in pretraining.shapes
        )
        assert expected == pytest.approx(real, rel=0.1), number
    assert pretraining.largest.rows == section.batch_size


def test_a_mixture_costs_the_weighted_mean_of_its_parts(tmp_path: Path) -> None:
    one, other, mixed = (
        planned(tmp_path, pretrain={"objective": objective})[0].flops
        for objective in ("span_corruption", "denoising", {"span_corruption": 3.0, "denoising": 1.0})
    )
    assert mixed == pytest.approx(0.75 * one + 0.25 * other, rel=0.01)


def test_a_batch_too_large_to_draw_is_scaled_up(tmp_path: Path) -> None:
    small, large = (planned(tmp_path, pretrain={"batch_size": rows})[0] for rows in (32, 3200))
    assert large.flops == pytest.approx(100 * small.flops)
    assert large.tokens == 100 * small.tokens


def test_tasks_have_texts_as_long_as_the_stores_once_there_are_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {one.name: one for one in planned(tmp_path)}["translation"]
    assert before.shapes == [(1.0, Shape(4096 // 256, 128, 128, 4096 // 256 * 128))]
    tiny.write_data(tmp_path)
    after = {one.name: one for one in planned(tmp_path)}["translation"]
    (_, shape), lengths = after.shapes[0], [len(ids) + 1 for ids in tiny.encoded(tiny.sentences()[:300])]
    assert shape.source == pytest.approx(np.mean(lengths), abs=1)
    assert shape.target == 6  # five words' tokens and </s>
    assert shape.rows * (shape.source + shape.target) <= 4096
    assert after.largest == before.largest
    assert after.runs == 2


def test_an_encoders_tasks_run_no_vocabulary_head(tmp_path: Path) -> None:
    path = written(tmp_path, model={"architecture": "encoder"}, pretrain={"objective": "masked_lm"})
    values = YAML().load(path.read_text())
    for task in ("translation", "summarization"):
        del values["tasks"][task], values["data"][task]
    YAML().dump(values, path)
    masked, reading = trainings(load_params(path))
    assert masked.largest.predicted > 0
    assert reading.largest == Shape(4096 // 258, 256, 2, 0)


def test_more_sentinels_than_the_tokenizer_has_are_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="needs 77 sentinels"):
        planned(tmp_path, pretrain={"corruption_rate": 0.3, "mean_span_length": 1.0})


def test_hours_and_cost_are_proportional_to_steps_and_shared_by_devices(tmp_path: Path) -> None:
    pretraining = planned(tmp_path)[0]
    one = estimate(gpu(), [pretraining], PARTS)
    assert one.hours["pretrain"] == pytest.approx(pretraining.steps * pretraining.flops / (0.5 * 1e9) / 3600)
    assert one.cost == pytest.approx(2.0 * one.total)
    longer = estimate(gpu(), [replace(pretraining, steps=3 * pretraining.steps)], PARTS)
    assert longer.total == pytest.approx(3 * one.total)
    assert longer.memory_needed == one.memory_needed
    four = estimate(gpu(count=4), [pretraining], PARTS)
    assert (four.devices, four.total) == (4, pytest.approx(one.total / 4))
    assert four.cost == pytest.approx(one.cost)
    assert estimate(gpu(share=1.0), [pretraining], PARTS).total == pytest.approx(one.total / 2)
    assert estimate(gpu(price=None), [pretraining], PARTS).cost is None


def test_a_fine_tuning_and_its_control_count_both(tmp_path: Path) -> None:
    task = planned(tmp_path)[1]
    found = estimate(gpu(), [task], PARTS)
    assert found.hours[task.name] == pytest.approx(2 * task.steps * task.flops / (0.5 * 1e9) / 3600)


def test_a_gpus_step_is_no_shorter_than_starting_its_kernels(tmp_path: Path) -> None:
    pretraining = planned(tmp_path)[0]
    found = estimate(gpu(peak=lambda half, section: 1e18), [pretraining], PARTS)
    assert found.total == pytest.approx(pretraining.steps * 6 * LAUNCH / 3600)  # 3 + 3 layers


def test_what_the_optimiser_multiplies_takes_time_on_every_device(tmp_path: Path) -> None:
    pretraining = planned(tmp_path, pretrain={"optimizer": "muon"})[0]
    for count in (1, 4):
        flops = pretraining.flops / count + optimizer_flops(pretraining.config, "muon")
        hours = pretraining.steps * flops / (0.5 * 1e9) / 3600
        assert estimate(gpu(count=count), [pretraining], PARTS).total == pytest.approx(hours)


def test_memory_grows_with_the_batch_and_is_shared_by_devices(tmp_path: Path) -> None:
    small, large = (planned(tmp_path, pretrain={"batch_size": rows})[0] for rows in (32, 64))
    needed = [estimate(gpu(), [one], PARTS).memory_needed for one in (small, large)]
    held = state_bytes(PARTS, "adamw", half=True, processes=1)
    # Of scores no more than a piece is there at a time.
    assert needed[1] - held == pytest.approx(2 * (needed[0] - held), rel=0.05)
    shared = estimate(gpu(count=2), [large], PARTS).memory_needed
    assert shared - state_bytes(PARTS, "adamw", True, 2) == needed[0] - held


def test_memory_is_that_of_one_of_accumulated_parts_and_of_a_share_of_a_sharded_model(tmp_path: Path) -> None:
    half, accumulated, sharded = (
        planned(tmp_path, pretrain=changes)[0]
        for changes in ({"batch_size": 32}, {"batch_size": 64, "accumulate": 2}, {"strategy": "fsdp", "batch_size": 64})
    )
    held = state_bytes(PARTS, "adamw", half=True, processes=1)
    needed = estimate(gpu(), [half], PARTS).memory_needed
    assert estimate(gpu(), [accumulated], PARTS).memory_needed == needed
    assert estimate(gpu(count=2), [sharded], PARTS).memory_needed == needed - held + held // 2


def test_memory_is_the_most_that_any_training_needs(tmp_path: Path) -> None:
    found = planned(tmp_path)
    needed = [
        state_bytes(PARTS, "adamw", True, 1) + batch_bytes(one.config, one.largest, half=True, gpu=True)
        for one in found
    ]
    assert estimate(gpu(), found, PARTS).memory_needed == max(needed)


@pytest.mark.parametrize(
    ("precision", "on_gpu", "half"),
    [
        ("auto", True, True),
        ("auto", False, False),
        ("32-true", True, False),
        ("bf16-mixed", False, True),
    ],
)
def test_precision_decides_the_peak(
    tmp_path: Path, precision: str, on_gpu: bool, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    section = planned(tmp_path, pretrain={"precision": precision})[0].section
    assert gpu(gpu=on_gpu).half(section, 128) is half
    named = devices("cpu", None, {"l4": 0.123})
    prices = {one.name: one.price for one in named}
    assert prices.pop("NVIDIA L4") == 0.123
    assert prices.pop("here: CPU") is None
    assert prices == {sheet.name: sheet.price for key, sheet in GPUS.items() if key != "l4"}
    assert {one.peak(True, section) for one in named[1:]} == {1e12 * sheet.bf16 for sheet in GPUS.values()}
    assert {one.peak(False, section) for one in named[1:]} == {1e12 * sheet.tf32 for sheet in GPUS.values()}


def test_processes_of_one_cpu_are_one_device(tmp_path: Path) -> None:
    section = planned(tmp_path, pretrain={"devices": 2, "num_nodes": 3})[0].section
    assert gpu(gpu=False).processes(section) == 3
    assert gpu().processes(section) == 6


def test_the_peak_is_measured_and_threads_are_left_as_they_were() -> None:
    import torch

    threads = torch.get_num_threads()
    assert 1e8 < measured_peak(gpu=False, half=False, threads=1) < 1e14
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("available", "read", "said"),
    [
        (None, 100, ["known once tokenize has run", "20 M"]),
        (10**8, 2 * 10**7, ["Text: enough", "Steps: enough"]),
        (10**7, 10**6, ["too little", "2 times too large", "unless it is read 4 times", "200 would do"]),
        (10**6, 10**7, ["20 times too large for it.", "10 passes", "ever less"]),
    ],
)
def test_the_verdict_says_whether_text_and_steps_suffice(available: int | None, read: int, said: list[str]) -> None:
    data = Data(parameters=10**6, available=available, read=read, step=10**5)
    assert data.wanted == 20 * 10**6
    sentences = f"{data.text_verdict()} {data.steps_verdict()}"
    for part in said:
        assert part in sentences


def test_the_text_is_counted_with_the_ends_of_its_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write_data(tmp_path)
    found = planned(tmp_path)
    data = pretraining_data(found, 1000)
    assert data is not None
    assert data.available == sum(len(ids) + 1 for ids in tiny.encoded(tiny.sentences()[:300]))
    assert data.read == 1200 * 32 * 256
    assert pretraining_data(found[1:], 1000) is None


@pytest.mark.parametrize("text", ["h1000=2", "h100", "h100=cheap", "h100=-1", "h100=nan", "=2"])
def test_a_wrong_price_is_one_clear_line(text: str) -> None:
    with pytest.raises(PipelineError, match=r"^--price [^\n]*(known are this, l4|as in h100=2\.5)[^\n]*$"):
        asked_prices([text])


def test_numbers_are_short() -> None:
    assert [short(n) for n in (0, 999, 1000, 999_600, 1_974_784, 2.5e15)] == [
        "0",
        "999",
        "1 k",
        "1 M",
        "1.97 M",
        "2.5 P",
    ]
    assert [clock(hours) for hours in (0.001, 0.5, 2.25, 1234)] == ["3.6 s", "30.0 min", "2.2 h", "1,234 h"]


def test_the_command_prints_for_programs_and_writes_nothing(tmp_path: Path) -> None:
    written(tmp_path, pretrain={"accelerator": "cpu", "threads": 1})
    done = command(tmp_path, "--json", "--price", "h100=2.5", "--share", "0.25")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    params = load_params(tmp_path / "params.yaml")
    assert told["parameters"]["all"] == sum(parameters(params.model.config(vocab_size=8192)).values())
    assert list(told["trainings"]) == ["pretrain", *params.tasks]
    assert told["trainings"]["pretrain"]["tokens"] == 1200 * 32 * 256 == told["data"]["read"]
    assert told["data"]["available"] is None
    here, *named = told["devices"]
    assert here["device"] == "here: CPU"
    assert len(named) == len(GPUS)
    for row in told["devices"]:
        assert row["share"] == 0.25
        assert row["all_hours"] == pytest.approx(sum(row["hours"].values()))
        assert min(row["hours"].values()) > 0
    assert [here["price"], here["cost"]] == [None, None]
    prices = [sheet.price for sheet in GPUS.values()]
    prices[list(GPUS).index("h100")] = 2.5
    assert [row["price"] for row in named] == prices
    for row in named:
        assert row["cost"] == (row["price"] and pytest.approx(row["price"] * row["all_hours"]))
    seconds = told["trainings"]["pretrain"]["flops"] / (0.25 * here["peak_flops"])
    assert here["hours"]["pretrain"] == pytest.approx(seconds / 3600)
    assert [path.name for path in tmp_path.rglob("*")] == ["params.yaml"]


def test_the_command_prints_for_people_also_for_a_billion_parameters(tmp_path: Path) -> None:
    shape = {"preset": "modern", "d_model": 2048, "heads": 16, "d_ff": 8192, "decoder_layers": 24}
    values = YAML().load(written(tmp_path, pretrain={"objective": "causal_lm"}).read_text())
    values["model"] = {"start_from": None, **shape}
    YAML().dump(values, tmp_path / "params.yaml")
    done = command(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "decoder, 1,476,501,504 parameters" in done.stdout
    assert "too small" in done.stdout  # 16 bytes each are more than an L4 has
    for part in ("FLOPs a token", "here:", *(sheet.name for sheet in GPUS.values()), "Chinchilla asks for 20"):
        assert part in done.stdout
    assert "--price NAME=PRICE sets yours" in done.stdout
    [h100] = [line for line in done.stdout.splitlines() if line.startswith("NVIDIA H100")]
    assert f" {GPUS['h100'].price:.2f} " in h100


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--help"], 0, "python -m stages.estimate"),
        (["--price", "b17=2"], 1, "error: --price b17=2: no device 'b17'; known are this, l4"),
        (["--share", "1.5"], 1, "error: --share 1.5: must be above 0 and at most 1"),
        ([], 1, "error: params.yaml does not exist"),
    ],
)
def test_a_wrong_command_is_one_clear_line(tmp_path: Path, arguments: list[str], status: int, said: str) -> None:
    done = command(tmp_path, *arguments)
    assert done.returncode == status
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
