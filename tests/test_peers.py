"""The contestants of benchmarks/peers.py do the same work: as many parameters, and they learn."""

import math
from dataclasses import replace

import pytest
import torch

from benchmarks import gpu
from benchmarks.peer_ours import split
from benchmarks.peer_tools import EOS, WORKS, Clock, Work, pairs, parameters, rows
from benchmarks.peers import ENTRIES, JOEYNMT, contestant, table

ALL = [(kind, entry) for kind, entries in ENTRIES.items() for entry in entries]
PEERS = [(kind, entry) for kind, entry in ALL if not entry.startswith("peer_ours")]
MODULES = {"x-transformers": "x_transformers"}


def found(entry: str):
    if entry == JOEYNMT:
        pytest.importorskip("joeynmt")
    runner = contestant(entry)
    for package in runner.needs:
        pytest.importorskip(MODULES.get(package, package))
    return runner


def tiny(kind: str) -> Work:
    shape = {"layers": 1, "d_model": 32, "heads": 2, "d_ff": 64, "gated_d_ff": 43, "length": 32, "vocab_size": 256}
    return replace(
        WORKS[kind],
        **shape,
        rows=16,
        batch_tokens=512,
        warm_steps=1,
        steps=9,
        tokens=2**13,
        learning_rate=1e-2,
    )


@pytest.mark.parametrize(("kind", "entry"), PEERS)
def test_has_as_many_parameters_as_ours(kind: str, entry: str) -> None:
    work = WORKS[kind]
    if entry == JOEYNMT:
        work = replace(work, tokens=2**10)
    ours = parameters(contestant("peer_ours.OURS").make(work))
    assert parameters(found(entry).make(work)) == pytest.approx(ours, rel=0.02)


@pytest.mark.parametrize(("kind", "entry"), ALL)
def test_learns(kind: str, entry: str) -> None:
    """From knowing nothing, in a few steps, to more; and it keeps the clock."""
    torch.manual_seed(1)
    runner, work = found(entry), tiny(kind)
    clock = Clock(work, losses=[])
    runner.train(runner.make(work), work, clock)
    assert clock.losses is not None
    assert len(clock.losses) == clock.total
    assert clock.losses[0] == pytest.approx(math.log(work.vocab_size), rel=0.25)
    assert sum(clock.losses[-3:]) / 3 < clock.losses[0] - 0.3
    assert min(clock.tokens_per_second()) > 0


def test_rows_and_pairs_are_the_same_every_time_and_of_regular_ids() -> None:
    work = tiny("pairs")
    assert (rows(work) == rows(work)).all()
    assert rows(work).shape[1] == work.length
    assert (rows(work) == EOS).any()
    source, target = pairs(work)
    assert len(source) == len(target)
    assert max(map(len, [*source, *target])) < work.length
    assert max(ids.max() for ids in target) < work.vocab_size


def test_our_batches_of_pairs_hold_as_many_as_those_of_peers(tmp_path) -> None:
    work = WORKS["pairs"]
    batches = split(work, tmp_path)
    assert len(pairs(work)[0]) / batches.batches_per_epoch == pytest.approx(work.rows, rel=0.1)


def test_ratios_are_medians_over_rounds_of_ours_by_theirs() -> None:
    rates = {"peer_ours.OURS": [(100.0, 200.0), (300.0, 300.0), (50.0, 60.0)], "peer": [(50.0, 100.0)] * 3}
    last = table({entry: entry for entry in rates}, dict.fromkeys(rates, 10**6), rates).splitlines()[-1]
    assert last.split() == ["peer", "1.00", "50", "100", "2.00", "2.00", "4.00"]


def test_on_a_gpu_too_everyone_has_as_many_parameters_and_flops_are_nanogpts() -> None:
    """6 a parameter and token, positions left out, and attention's 12 a layer, width and token (PaLM's appendix B)."""
    decoders = [one for one in gpu.contestants() if one.work is gpu.DECODER]
    with torch.device("meta"):
        sizes = {one.size_and_parts: parameters(one.make(one.work)) for one in decoders}
    assert all(size == pytest.approx(124e6, rel=0.02) for size in sizes.values())
    work, nanogpt = gpu.DECODER, next(one for one in decoders if one.make is gpu.Scored)
    positions = work.length * work.d_model
    expected = 6 * (sizes[nanogpt.size_and_parts] - positions) + 12 * work.layers * work.d_model * work.length
    flops, size = gpu.told_before(nanogpt)
    assert flops == pytest.approx(expected, rel=1e-3)
    assert size > 124e6 * 18  # weights, gradients, two averages in fp32, and a copy in bf16
