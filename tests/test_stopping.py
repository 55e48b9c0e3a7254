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


def test_ctrl_c_pressed_again_takes_the_time_of_grace_that_is_left_and_sigterm_does_not() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == -signal.SIGINT, done.stderr
    assert done.stdout.split() == ["SIGTERM", "killed"]
