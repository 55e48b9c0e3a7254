"""Who is asked again to stop, in a process of its own: the signals are meant for it."""

import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAM = """
import concurrent.futures, os, signal, threading, types
from prefect.exceptions import TerminationSignal
from flows.stopping import wait_until_stopped

def terminated(*_):
    print("SIGTERM", flush=True)
    raise TerminationSignal(signal.SIGTERM)

signal.signal(signal.SIGTERM, terminated)
signal.signal(signal.SIGINT, signal.default_int_handler)
for seconds, asked in ((1.0, signal.SIGTERM), (3.0, signal.SIGINT)):
    threading.Timer(seconds, os.kill, (os.getpid(), asked)).start()
never = types.SimpleNamespace(wrapped_future=concurrent.futures.Future())
wait_until_stopped([never], lambda: print("killed", flush=True))
"""


# The server is silent while it is asked why the first SIGTERM came.
TWICE = """
import os, signal, socket, threading, types
silent = socket.create_server(("127.0.0.1", 0))
os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
os.environ["PREFECT__FLOW_RUN_ID"] = "5c2b3a9e-3b0a-4d43-9d5e-0c4f6a2f1e77"
from prefect.exceptions import TerminationSignal
from flows import pipeline
from flows.events import Listener

def terminated(*_):
    raise TerminationSignal(signal.SIGTERM)

signal.signal(signal.SIGTERM, terminated)
pipeline._wait = terminated
threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
runner = types.SimpleNamespace(stop=lambda: print("asked to stop"), kill=lambda: print("killed"))
plan = types.SimpleNamespace(stages={})
print(pipeline._run_all(types.SimpleNamespace(plan=plan, runner=runner, watcher=Listener())))
"""


def test_a_second_sigterm_does_not_end_a_run_that_asks_why_it_got_the_first() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TWICE], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["asked to stop", "asked to stop", "SIGTERM"]


def test_ctrl_c_pressed_again_takes_the_time_of_grace_that_is_left_and_sigterm_does_not() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == -signal.SIGINT, done.stderr
    assert done.stdout.split() == ["SIGTERM", "killed"]
