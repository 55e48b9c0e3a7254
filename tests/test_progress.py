import subprocess
import sys

from flows.progress import Progress, ProgressThinner, parse_progress

TQDM = """
from tqdm import tqdm
bar = tqdm(total=40, desc="pretrain", unit="step", mininterval=0, ascii={ascii})
for loss in range(4):
    bar.set_postfix(loss=loss)
    bar.update(10)
bar.close()
for _ in tqdm(iter([1, 2]), desc="read", mininterval=0, unit="row"):
    pass
"""


def test_what_tqdm_writes_is_understood() -> None:
    for ascii_only in (True, False):
        code = TQDM.format(ascii=ascii_only)
        written = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
        states = [parse_progress(line.strip()) for line in written.replace("\r", "\n").split("\n") if line.strip()]
        assert None not in states
        known = [state for state in states if state is not None and state.name == "pretrain"]
        assert known[0].share == 0.0
        assert known[-1].share == 1.0
        assert known[-1].text.startswith("40/40, ")
        assert "loss=3" in known[-1].text
        assert any(state is not None and state.name == "read" and state.share is None for state in states)


def test_other_lines_are_no_progress() -> None:
    for line in ("kept 50% of 10 records", "error: params.yaml: 3/4", "", "Running stage 'prepare':", "step 3: [1, 2]"):
        assert parse_progress(line) is None


def test_few_states_pass() -> None:
    now = 0.0
    thinner = ProgressThinner(step=0.1, seconds=15.0, clock=lambda: now)
    passed = [share for share in range(101) if thinner.passes(Progress("a", share / 100, ""))]
    assert passed == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100]


def test_a_slow_bar_passes_by_time_and_a_new_bar_at_once() -> None:
    now = 0.0
    thinner = ProgressThinner(step=0.1, seconds=15.0, clock=lambda: now)
    assert thinner.passes(Progress("a", 0.5, ""))
    assert not thinner.passes(Progress("a", 0.51, ""))
    assert thinner.passes(Progress("b", 0.0, ""))
    assert not thinner.passes(Progress("b", None, ""))
    now = 15.0
    assert thinner.passes(Progress("b", 0.01, ""))
