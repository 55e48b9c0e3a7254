"""Training speed beside peers that do the same work: `python -m benchmarks.peers decoder`, `… masked`, `… pairs`.

Some six minutes each. Every contestant trains in a process of its own, first with the C allocator as it is, then with
memory kept (lightning_modules/allocator.py), and they take turns, A B C A B C …: a busy moment meets all.
Ratios are of runs of the same round, the table gives their medians. `peer_tools.WORKS` says what the work is: same
batches in tokens, parameters within 2 %, AdamW, fp32 or (`--bf16`) autocast for all, as many threads.

Peers need `pip install accelerate x-transformers` beside this project's packages; those that are missing are skipped.
"""

import argparse
import importlib
import importlib.util
import json
import statistics
import subprocess
import sys
from dataclasses import replace
from typing import Any

from benchmarks.peer_tools import WORKS, Clock, Contestant, Work, parameters

ROUNDS, THREADS = 3, 2
JOEYNMT = "peer_joeynmt.JOEYNMT"
# Ours with the parts of peers, and these: the same arithmetic, where Llama's parts have more of it.
SAME_PARTS = (
    ("peer_ours.OURS_GPT", "peer_huggingface.GPT2", "peer_torch.TORCH_DECODER"),
    ("peer_ours.OURS_NANOGPT", "peer_torch.NANOGPT"),
)
_OURS = ("peer_ours.OURS", "peer_ours.OURS_BARE")
# In modules that import what they need, so that only a contestant's own process does. Ours is what all are divided by.
ENTRIES = {
    "decoder": (
        *_OURS,
        "peer_ours.OURS_JOINED",
        "peer_ours.OURS_BY_HARDWARE",
        "peer_huggingface.LLAMA",
        *SAME_PARTS[0],
        *SAME_PARTS[1],
        "peer_torch.X_DECODER",
    ),
    "masked": (
        *_OURS,
        "peer_ours.OURS_JOINED",
        "peer_ours.OURS_BY_HARDWARE",
        "peer_huggingface.BERT",
        "peer_huggingface.MODERNBERT",
        "peer_huggingface.MODERNBERT_PLAIN",
        "peer_torch.X_MASKED",
    ),
    "pairs": (
        *_OURS,
        "peer_ours.OURS_BY_HARDWARE",
        "peer_huggingface.MARIAN",
        "peer_huggingface.MARIAN_GROUPED",
        "peer_huggingface.BART_PLAIN",
        "peer_torch.TORCH_PAIRS",
        "peer_opennmt.OPENNMT",
        JOEYNMT,
    ),
}
Rates = dict[str, list[tuple[float, float]]]  # entry → a round's tokens/s, allocator as it is and memory kept


def contestant(entry: str) -> Contestant:
    """The one that `MODULE.NAME` stands for."""
    module, name = entry.split(".")
    found: Contestant = getattr(importlib.import_module(f"benchmarks.{module}"), name)
    return found


def measure(entry: str, work: Work, threads: int) -> dict[str, Any]:
    """What a contestant's process finds: its name, parameters, tokens/s."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(work.seed)
    runner, clock = contestant(entry), Clock(work)
    model = runner.make(work)
    runner.train(model, work, clock)
    rates = clock.tokens_per_second()
    share = share_of_peak(work, max(rates)) if entry == "peer_ours.OURS" else None
    return {"name": runner.name, "parameters": parameters(model), "rates": rates, "share": share}


def share_of_peak(work: Work, rate: float) -> float | None:
    """What `rate` tokens/s of our model take of a matrix product's FLOP/s, measured here and now; None of pairs."""
    import torch

    from benchmarks.peer_ours import flops_per_token
    from lightning_modules.peak import matmul_peak

    dtype = torch.bfloat16 if work.bf16 else torch.float32
    return None if work.kind == "pairs" else rate * flops_per_token(work) / matmul_peak(torch.device("cpu"), dtype)


def run(entry: str, kind: str, number: int, threads: int, bf16: bool, python: str) -> dict[str, Any]:
    """The same from a process of its own. Raises CalledProcessError, its stderr shown, where it fails."""
    command = [python, "-m", "benchmarks.peers", kind, "--one", entry, "--round", str(number)]
    command += ["--threads", str(threads), *(["--bf16"] if bf16 else [])]
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        print(done.stderr, file=sys.stderr)
    done.check_returncode()
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def present(entries: tuple[str, ...], joeynmt_python: str | None) -> list[str]:
    """Those whose packages are installed; says of the others how to get them."""
    missing = {
        "peer_huggingface": [] if importlib.util.find_spec("transformers") else ["transformers"],
        "peer_opennmt": [] if importlib.util.find_spec("onmt") else ["--no-deps OpenNMT-py==3.0.4 (see its file)"],
        "peer_torch.X": [] if importlib.util.find_spec("x_transformers") else ["x-transformers"],
    }
    if not importlib.util.find_spec("accelerate"):
        missing["peer_huggingface"].append("accelerate")
    kept = []
    for entry in entries:
        packages = [package for start, lacking in missing.items() if entry.startswith(start) for package in lacking]
        if entry == JOEYNMT and not joeynmt_python:
            print(f"{entry} skipped: give --joeynmt-python (benchmarks/peer_joeynmt.py says of what environment)")
        elif packages:
            print(f"{entry} skipped: pip install {' '.join(packages)}")
        else:
            kept.append(entry)
    return kept


def table(names: dict[str, str], sizes: dict[str, int], rates: Rates) -> str:
    """Medians of tokens/s, and of the first ÷ theirs: both as they are, both with memory kept, each as it comes."""
    lines = [
        f"{'':36}{'million':>9}{'tokens/s':>10}{'memory':>9}{'ours ÷ it:':>12}{'both':>7}{'each by its':>13}",
        f"{'':36}{'params':>9}{'as it is':>10}{'kept':>9}{'both as is':>12}{'kept':>7}{'defaults':>13}",
    ]
    ours = rates[next(iter(rates))]
    for entry, runs in rates.items():
        plain, kept = (statistics.median(column) for column in zip(*runs, strict=True))
        both = [(a[0] / b[0], a[1] / b[1], a[1] / b[0]) for a, b in zip(ours, runs, strict=True)]
        ratios = [statistics.median(column) for column in zip(*both, strict=True)]
        by_default = f"{ratios[2]:>13.2f}" if not entry.startswith("peer_ours") else ""
        lines.append(
            f"{names[entry]:36}{sizes[entry] / 1e6:>9.2f}{plain:>10,.0f}{kept:>9,.0f}"
            f"{ratios[0]:>12.2f}{ratios[1]:>7.2f}{by_default}"
        )
    return "\n".join(lines)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=ENTRIES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--bf16", action="store_true", help="autocast for all, on CPUs that have matrix units for it")
    parser.add_argument("--only", nargs="+", default=[], help="words in the names of entries: ours and these")
    parser.add_argument("--joeynmt-python", help="interpreter of an environment that has JoeyNMT")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--round", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    work = replace(WORKS[arguments.kind], seed=1 + arguments.round, bf16=arguments.bf16)
    if arguments.one:
        print(json.dumps(measure(arguments.one, work, arguments.threads)))
        return
    entries = present(ENTRIES[arguments.kind], arguments.joeynmt_python)
    wanted = [word.lower() for word in arguments.only]
    if wanted:
        entries = [e for e in entries if e.startswith("peer_ours") or any(word in e.lower() for word in wanted)]
    if arguments.bf16:  # where the hardware's choice is the work's own, and JoeyNMT has fp32 alone on CPUs
        entries = [e for e in entries if e not in ("peer_ours.OURS_BY_HARDWARE", JOEYNMT)]
    names: dict[str, str] = {}
    sizes: dict[str, int] = {}
    shares: list[float] = []
    rates: Rates = {entry: [] for entry in entries}
    for number in range(arguments.rounds):
        for entry in entries:
            python = arguments.joeynmt_python if entry == JOEYNMT else sys.executable
            found = run(entry, arguments.kind, number, arguments.threads, arguments.bf16, python)
            names[entry], sizes[entry] = found["name"], found["parameters"]
            as_is, kept = found["rates"]
            rates[entry].append((as_is, kept))
            shares += [found["share"]] if found["share"] else []
            print(f"round {number + 1}: {names[entry]}: {as_is:,.0f}, memory kept {kept:,.0f} tokens/s", flush=True)
    print(f"\n{work}\n{arguments.rounds} rounds, {arguments.threads} threads\n")
    print(table(names, sizes, rates))
    if shares:
        print(f"\nours, the faster way: {statistics.median(shares):.2f} of the peak of a matrix product")
    for ours, *theirs in SAME_PARTS:
        if beside := [entry for entry in theirs if entry in rates]:
            print("\nwith the same parts\n")
            print(table(names, sizes, {entry: rates[entry] for entry in (ours, *beside)}))


if __name__ == "__main__":
    main()
