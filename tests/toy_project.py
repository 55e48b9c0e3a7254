"""A small pipeline with real DVC stages, for the tests of flows/: quick, parallel, and bad on request."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from flows.process_tree import end_survivors
from flows.run_stage import child_environment

ROOT = Path(__file__).parents[1]
_STARTED: list[tuple["subprocess.Popen[str]", Path]] = []

DVC_YAML = """
stages:
  prepare:
    desc: Make the texts
    cmd: python work.py prepare
    deps: [work.py]
    params: [prepare.min_characters]
    outs: [out/prepare]
    meta: {retries: 0, timeout_minutes: 5, devices: all}
  finetune:
    foreach: ${tasks}
    do:
      desc: Fine-tune for ${key}
      cmd: python work.py ${key}
      deps: [out/prepare, mode]
      params: ["tasks.${key}.steps"]
      outs: ["out/${key}"]
      meta: {retries: 1, timeout_minutes: 5, devices: 1}
  report:
    cmd: python work.py report
    deps: [out/translation, out/summarization]
    outs: [out/report]
"""

# `mode` says how the translation stage behaves.
WORK = """
import json, os, pathlib, signal, subprocess, sys, time
from tqdm import tqdm

name = sys.argv[1]
mode = pathlib.Path("mode").read_text().strip() if name == "translation" else ""
pathlib.Path("out").mkdir(exist_ok=True)
print(f"hello from {name}", flush=True)
def tell_pids(*pids):  # whole, as soon as there is such a file
    pathlib.Path("pids.unfinished").write_text(" ".join(map(str, pids)))
    pathlib.Path("pids.unfinished").rename("pids")
if mode == "wrong input":
    sys.exit("error: params.yaml, line 3: tasks.translation.steps is wrong")
if mode == "crash":
    raise ValueError("no such luck")
if mode == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
checkpoint = pathlib.Path("checkpoint")
resumes = mode == "hangs once" and checkpoint.exists()
if resumes:
    print(f"goes on from {checkpoint.read_text()}", flush=True)
    checkpoint.unlink()
if mode == "waits":
    print("at work", flush=True)
    tell_pids(os.getpid())
    while not pathlib.Path("go").exists():
        time.sleep(0.1)
if mode in ("stubborn", "checkpoints", "saves slowly") or (mode == "hangs once" and not resumes):
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN);" if mode == "stubborn" else ""
    code = f"import signal, time; {deaf} print('up', flush=True); time.sleep(600)"
    grandchild = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
    grandchild.stdout.readline()
    def stop(*_):
        if mode == "saves slowly":
            checkpoint.write_text("not yet")
            while not pathlib.Path("go").exists():
                time.sleep(0.1)
        checkpoint.write_text("saved")
        sys.exit(143)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if mode == "stubborn" else stop)
    tell_pids(os.getpid(), grandchild.pid)
    print("at work", flush=True)
    time.sleep(600)
for _ in tqdm(range(4), desc=name, mininterval=0):
    time.sleep(0.05)
run = os.environ.get("PIPELINE_RUN")
if run:
    folder = pathlib.Path(".pipeline/runs") / run
    folder.mkdir(parents=True, exist_ok=True)
    link = {"stage": os.environ["DVC_STAGE"], "run_id": "1", "experiment_id": "0", "url": f"http://127.0.0.1:5000/#/{name}"}
    (folder / f"{os.environ['DVC_STAGE']}.json").write_text(json.dumps(link))
pathlib.Path("out", name).write_text(name)
"""


def make_project(folder: Path, mode: str = "") -> Path:
    """Writes the project into `folder`; `mode` is how its translation stage behaves."""
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (folder / "work.py").write_text(WORK)
    shutil.copy(ROOT / "params.yaml", folder)
    set_mode(folder, mode)
    return folder


def set_mode(folder: Path, mode: str) -> None:
    (folder / "mode").write_text(mode + "\n")


def reproduce(folder: Path) -> None:
    """Runs the stages with DVC alone."""
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], cwd=folder, env=child_environment({}), check=True)


def write_metrics(root: Path, task: str = "translation") -> None:
    """What the evaluation of a task would leave, and a report of it alone."""
    interval = {"score": 12.34, "low": 11.0, "high": 13.5}
    systems = dict.fromkeys(("pretrained", "scratch", "baseline", "difference", "over_baseline"), interval)
    metrics = {"chrf": systems, "bleu": systems}
    report = {"task": task, "records": 500, "metrics": metrics, "primary": "bleu", "baseline_name": "copy the source"}
    folder = root / "reports" / "tasks" / task
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(report | {"signatures": dict.fromkeys(metrics, "")}))
    (root / "reports" / "metrics.json").write_text(json.dumps({task: {}, "pretraining": {}}))


def start_flows(folder: Path, *arguments: str, module: str = "flows", **environment: str) -> "subprocess.Popen[str]":
    """Starts `python -m flows` in the project, as a person would in a terminal; what is left of it is ended after the
    test."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=_interruptible,
    )
    _STARTED.append((process, folder))
    return process


def end_started() -> None:
    """Kills what a test that failed has left at work of the flows it started, servers and stages among it."""
    while _STARTED:
        process, folder = _STARTED.pop()
        if process.poll() is None:
            leader = psutil.Process(process.pid)
            for member in (*leader.children(recursive=True), leader):
                with suppress(psutil.Error):
                    member.kill()
            process.wait()
        end_survivors(folder, 0.0)


def run_flows(folder: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """Runs `python -m flows` to its end; gives exit status and output."""
    process = start_flows(folder, *arguments, **environment)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def _interruptible() -> None:
    """A background job ignores SIGINT, and its children inherit that: undone, so that a test can press Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
