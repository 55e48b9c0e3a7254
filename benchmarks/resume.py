"""What a kill costs, from the outside: `python -m benchmarks.resume`. Real processes, some four minutes.

The default model pre-trains on stores of 1 MB and of 5 GB (zeros that take no space, with a true index), is killed and
started again. Told are the seconds from the start of the process to its first step, those from starting again to the
first new step, and what a step with a checkpoint takes. A kill costs the second, and the steps since a checkpoint.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ruamel.yaml import YAML
from tokenizers import Tokenizer, models, pre_tokenizers

from benchmarks.startup import STORES, sparse_store
from lightning_modules.model_folder import sha256
from stages.tokenizer_kinds import SPECIAL_TOKENS

REPOSITORY = Path(__file__).parents[1]
ROUNDS = 3


def workspace(root: Path, tokens: int) -> None:
    """The shipped params.yaml with a checkpoint each step, a vocabulary of numbers, and stores of zeros."""
    yaml = YAML()
    params = yaml.load((REPOSITORY / "params.yaml").read_text())
    params["pretrain"] |= {"steps": 100_000, "checkpoint_every": 1, "validate_every": 100_000}
    root.mkdir()
    with (root / "params.yaml").open("w") as file:
        yaml.dump(params, file)
    names = [*SPECIAL_TOKENS, *map(str, range(params["tokenizer"]["vocab_size"] - len(SPECIAL_TOKENS)))]
    tokenizer = Tokenizer(models.WordLevel({name: n for n, name in enumerate(names)}, unk_token="<unk>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    (root / "data/tokenizer").mkdir(parents=True)
    tokenizer.save(str(root / "data/tokenizer/tokenizer.json"))
    (root / "data/tokens/pretraining").mkdir(parents=True)
    for split in ("train", "validation"):
        folder = root / "data/tokens/pretraining" / split
        sparse_store(folder, tokens if split == "train" else min(STORES.values()))
        meta = json.loads((folder / "meta.json").read_text())
        meta["tokenizer_sha256"] = sha256(root / "data/tokenizer/tokenizer.json")
        (folder / "meta.json").write_text(json.dumps(meta))


def seconds_to_step(root: Path, wanted: int) -> tuple[float, float]:
    """Seconds from a process's start to its checkpoint of step `wanted`, and to the next one; then a kill."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "stages.pretrain"],
        cwd=root,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        times: list[float] = []
        while len(times) < 2:
            if process.poll() is not None:
                raise RuntimeError(f"pre-training ended with status {process.returncode}: run it in {root}")
            if _newest(root) >= wanted + len(times):
                times.append(time.perf_counter() - began)
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
    return times[0], times[1] - times[0]


def _newest(root: Path) -> int:
    return max((int(path.stem[5:]) for path in root.glob(".pipeline/checkpoints/*/step-*.ckpt")), default=0)


def main() -> None:
    """Prints the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in STORES}
    with tempfile.TemporaryDirectory() as temporary:
        for name, tokens in STORES.items():
            workspace(Path(temporary, name.replace(" ", "")), tokens)
        for _ in range(ROUNDS):
            for name in STORES:
                root = Path(temporary, name.replace(" ", ""))
                shutil.rmtree(root / ".pipeline", ignore_errors=True)
                first, step = seconds_to_step(root, 1)
                again, _ = seconds_to_step(root, _newest(root) + 1)
                found[name].append((first, again, step))
    print(f"median of {ROUNDS}: seconds to the first step, to the first one after a kill, of a step and its checkpoint")
    for name, rounds in found.items():
        first, again, step = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(f"{name}: {first:.1f} s, {again:.1f} s, {step:.2f} s")


if __name__ == "__main__":
    main()
