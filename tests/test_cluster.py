"""The data stages on a Dask cluster of real processes: the same bytes as alone, whatever dies, or one clear line."""

import hashlib
import importlib
import io
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from cluster_jobs import (
    count_and_wait_to_be_seen,
    die_always,
    die_the_first_time,
    fail_beside_a_long_job,
    raise_unpicklable,
    square,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from dask import config as dask_config
from dask_processes import scheduler, worker
from processes import eventually, still_works
from ruamel.yaml import YAML
from stage_runs import finish, running
from tiny import sentences, write_tokenizer
from tqdm import tqdm

from lightning_modules.errors import PipelineError
from stages import cluster
from stages.cluster_worker import versions
from stages.leakage import measure
from stages.parallel import ordered_results
from stages.params import load_params
from stages.prepare import prepare
from stages.tokenize import tokenize

ROOT = Path(__file__).parents[1]
FILES, RECORDS = 6, 900


@dataclass
class Dask:
    address: str
    workers: list[psutil.Popen]
    hidden: Path  # a folder that the workers do not see


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dask]:
    folder, hidden = tmp_path_factory.mktemp("dask"), tmp_path_factory.mktemp("hidden")
    with ExitStack() as stack:
        address, _ = stack.enter_context(scheduler(folder))
        workers = [stack.enter_context(worker(folder, address, f"worker-{n}", hidden)) for n in range(2)]
        yield Dask(address, workers, hidden)


@pytest.fixture
def here(dask: Dask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the cluster in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", dask.address)
    return tmp_path


def results(function: Any, jobs: Any, bar: "tqdm[Any] | None" = None) -> list[Any]:
    return list(ordered_results(function, jobs, 1, tqdm(disable=True) if bar is None else bar))


def test_results_are_in_order_and_counted_and_come_from_processes_in_this_folder(here: Path) -> None:
    bar: tqdm[Any] = tqdm(file=io.StringIO())
    found = results(square, range(20), bar)
    assert [one for one, _, _ in found] == [number**2 for number in range(20)]
    assert bar.n == 3 * sum(range(20))
    assert {folder for _, folder, _ in found} == {str(here)}
    pids = {pid for _, _, pid in found}
    assert len(pids) == 2
    assert os.getpid() not in pids
    eventually(lambda: not any(still_works(pid) for pid in pids))


class Watched(tqdm):  # type: ignore[type-arg]
    """A bar that notes when it has moved."""

    def update(self, n: float | None = 1) -> bool | None:
        moved = super().update(n)
        if self.n == 5:
            Path("seen").touch()
        return moved


def test_the_bar_moves_while_jobs_are_at_work(here: Path) -> None:
    assert results(count_and_wait_to_be_seen, [0], Watched(file=io.StringIO())) == [None]


def test_code_that_is_edited_between_two_runs_counts_at_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(here)
    for answer in (1, 2):
        (here / "edited.py").write_text(f"def work(number):\n    return {answer * ' '}number, {answer}\n")
        importlib.invalidate_caches()
        sys.modules.pop("edited", None)
        assert results(importlib.import_module("edited").work, [7]) == [(7, answer)]
    sys.modules.pop("edited")


def test_a_failure_comes_out_as_itself_and_ends_the_other_jobs(here: Path) -> None:
    with pytest.raises(PipelineError, match=r"^job 1 is wrong"):
        results(fail_beside_a_long_job, range(2))
    assert not still_works(int(Path("0.pid").read_text()))


def test_a_failure_that_cannot_travel_is_told_with_its_traceback(here: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)raise_unpicklable.*UnpicklableError: 7 of 2"):
        results(raise_unpicklable, [7])


def test_a_job_whose_process_is_killed_is_done_again_but_not_forever(here: Path) -> None:
    assert results(die_the_first_time, range(6)) == list(range(6))
    with pytest.raises(PipelineError, match=r"a job was killed on every worker that tried it, .*: 4711$"):
        results(die_always, [4711])
    assert Path("tries").read_text() == "xxx"


def test_a_worker_that_sees_another_file_system_is_named(
    dask: Dask, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = dask.hidden / "folder"
    elsewhere.mkdir()
    if all(seen_by(one, elsewhere) for one in dask.workers):
        pytest.skip("no user namespaces here: the workers see all that the test sees")
    monkeypatch.chdir(elsewhere)
    with pytest.raises(PipelineError, match=rf"the Dask worker tcp://.* does not see {elsewhere}: all machines must"):
        results(square, range(2))


def seen_by(one: psutil.Popen, folder: Path) -> bool:
    return Path(f"/proc/{one.pid}/root", *folder.parts[1:]).exists()


def test_a_worker_with_other_versions_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "versions", lambda: {**versions(), "pyarrow": "0.1"})
    with pytest.raises(PipelineError, match=r"the Dask worker .* has pyarrow \S+, not 0\.1: install"):
        results(square, range(2))


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("tcp://127.0.0.1:9", "Timed out trying to connect"),
        ("somewhere", "missing port number"),
        ("tls://127.0.0.1:9", "TLS"),
    ],
)
def test_no_scheduler_is_one_clear_line(address: str, reason: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", address)
    monkeypatch.setattr(cluster, "_ANSWER_SECONDS", 2)
    with pytest.raises(
        PipelineError, match=rf"DASK_SCHEDULER_ADDRESS={address}: no scheduler can be reached .*{reason}"
    ):
        results(square, range(2))


def test_no_worker_and_a_scheduler_that_dies_are_told_and_a_worker_that_joins_later_is_used(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scheduler(here) as (address, process), ExitStack() as stack:
        monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", address)
        monkeypatch.setattr(cluster, "_WORKER_SECONDS", 0.5)
        monkeypatch.setattr(cluster, "_THREADS_SECONDS", 0.2)
        with pytest.raises(PipelineError, match=rf"{address} has had no worker for .*: start some with `dask worker"):
            results(square, range(2))
        monkeypatch.setattr(cluster, "_WORKER_SECONDS", 600)
        assert [one for one, _, _ in results(square, adding_a_worker(stack, here, address))] == [1, 4]
        with pytest.raises(PipelineError, match=rf"the scheduler at {address} is gone"):
            results(square, killing(process))


def adding_a_worker(stack: ExitStack, folder: Path, address: str) -> Iterator[int]:
    yield 1
    (folder / "hidden").mkdir()
    stack.enter_context(worker(folder, address, "late", folder / "hidden"))
    yield 2


def killing(process: psutil.Popen) -> Iterator[int]:
    yield 1
    process.kill()
    yield 2


def test_certificates_are_taken_from_dasks_own_configuration(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = write_certificate(here)
    tls = {"CA_FILE": certificate, "SCHEDULER__CERT": certificate, "SCHEDULER__KEY": key}
    environment = {f"DASK_DISTRIBUTED__COMM__TLS__{name}": value for name, value in tls.items()}
    monkeypatch.setattr(cluster, "_WORKER_SECONDS", 0.0)
    monkeypatch.setattr(cluster, "_THREADS_SECONDS", 0.0)
    with scheduler(here, "--protocol", "tls", **environment) as (address, _):
        monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", address)
        with pytest.raises(PipelineError, match=r"no scheduler can be reached \(TLS expects .*check your TLS config"):
            results(square, range(2))
        tls = {"ca-file": certificate, "client.cert": certificate, "client.key": key}
        ours = {f"distributed.comm.tls.{name}": value for name, value in tls.items()}
        with dask_config.set(ours), pytest.raises(PipelineError, match="has had no worker"):
            results(square, range(2))


def write_certificate(folder: Path) -> tuple[str, str]:
    """A certificate that has signed itself, and its key."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return str(folder / "cert.pem"), str(folder / "key.pem")


PROGRAM = """
import os, signal, time
from pathlib import Path
from tqdm import tqdm
from stages.parallel import ordered_results
def work(number):
    Path(f"{number}.pid").write_text(str(os.getpid()))
    time.sleep(600)
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a shell's background
    list(ordered_results(work, range(2), 2, tqdm(disable=True)))
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_jobs_end_with_their_sender(how: signal.Signals, here: Path) -> None:
    (here / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "program.py"], env=environment, stderr=subprocess.DEVNULL) as sender:
        pids = [here / "0.pid", here / "1.pid"]
        eventually(lambda: all(path.exists() and path.read_text() for path in pids))
        sender.send_signal(how)
        sender.wait(timeout=300)  # the jobs take ten minutes
    eventually(lambda: not any(still_works(int(path.read_text())) for path in pids))


def make_world(root: Path) -> Path:
    """Raw texts and pairs in several files, some broken or twice, and a params.yaml that reads them."""
    draw, words = random.Random(1), [word for sentence in sentences() for word in sentence.split()]
    (root / "data/raw/texts").mkdir(parents=True)
    (root / "data/raw/pairs").mkdir()
    for number in range(FILES):
        texts = [" ".join(draw.choices(words, k=draw.randint(1, 120))) for _ in range(RECORDS)]
        lines = [json.dumps({"text": text}) for text in [*texts, *texts[:50]]]
        lines[7] = "no json"
        (root / f"data/raw/texts/{number}.jsonl").write_text("\n".join(lines) + "\n")
        pairs = [{"source": text[:80], "target": text[10:40]} for text in texts[:300]]
        (root / f"data/raw/pairs/{number}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    params = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    params["data"] = {
        "pretraining": [{"source": "texts", "reader": "table", "columns": {"text": "text"}}],
        "translation": [{"source": "pairs", "reader": "table", "columns": {"source": "source", "target": "target"}}],
    }
    params["sources"] = {"remote": {}, "local": {name: {"path": f"{name}.jsonl"} for name in ("texts", "pairs")}}
    params["tasks"] = {"translation": params["tasks"]["translation"]}
    params["leakage"]["max_share"] = 1.0
    with (root / "params.yaml").open("w") as file:
        YAML(typ="safe").dump(params, file)
    write_tokenizer(root / "data/tokenizer")
    return root


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The world, and what the stages make of it in one process."""
    root = make_world(tmp_path_factory.mktemp("alone"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        params, prepared = load_params(), Path("data/prepared")
        prepare(params, Path("data/raw"), prepared, Path("reports/prepare.json"), workers=1)
        report, pairs = measure(params, prepared, workers=1)
        tokenize(prepared, Path("data/tokenizer/tokenizer.json"), Path("data/tokens"), workers=1)
    Path(root, "reports/leakage.json").write_text(json.dumps(report, indent=2) + "\n")
    lines = [json.dumps(pair, ensure_ascii=False) + "\n" for found in pairs.values() for pair in found]
    Path(root, "reports/leakage.jsonl").write_text("".join(lines))
    return root, digests(root)


def digests(root: Path) -> dict[str, str]:
    """Of what the stages write."""
    files = [path for folder in ("data/prepared", "data/tokens") for path in (root / folder).rglob("*")]
    files += [root / f"reports/{name}" for name in ("prepare.json", "leakage.json", "leakage.jsonl")]
    found = (path for path in files if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@pytest.fixture
def world(alone: tuple[Path, dict[str, str]], tmp_path: Path) -> Path:
    """The same raw texts in a folder of their own."""
    return make_world(tmp_path / "world")


def children(worker: psutil.Popen) -> list[psutil.Process]:
    """The processes in which a Dask worker has jobs done."""
    return [one for one in worker.children(recursive=True) if "stages.cluster_worker" in one.cmdline()]


def test_the_stages_write_the_same_bytes_as_alone_though_a_worker_is_killed(
    dask: Dask, alone: tuple[Path, dict[str, str]], world: Path
) -> None:
    environment = {"DASK_SCHEDULER_ADDRESS": dask.address, "TMPDIR": str(dask.hidden)}
    with running(world, ("stages.prepare",), **environment) as process:
        begun = world / "data/.prepared.unfinished/runs"
        eventually(lambda: children(dask.workers[0]) and list(begun.glob("*")), every=0.02)
        [child] = children(dask.workers[0])
        dask_worker = child.parent()  # its nanny starts another
        assert dask_worker
        child.suspend()
        assert process.poll() is None
        dask_worker.kill()
        child.resume()
        assert process.wait(timeout=300) == 0, (world / "log.txt").read_text()
    eventually(lambda: not still_works(child.pid))
    finish(world, ("stages.leakage",), **environment)
    finish(world, ("stages.tokenize",), **environment)
    _, expected = alone
    assert len(expected) > 15
    assert digests(world) == expected
