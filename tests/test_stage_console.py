"""How a stage's command ends."""

import sys
from argparse import Namespace

import pytest

from lightning_modules.errors import Interrupted
from stages.console import EXIT_STOPPED, run_stage, stage_parser


@pytest.mark.parametrize(("stop", "told"), [(KeyboardInterrupt(), "interrupted"), (Interrupted("saved"), "saved")])
def test_a_stage_that_is_stopped_says_so(
    stop: BaseException, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(_: Namespace) -> None:
        raise stop

    monkeypatch.setattr(sys, "argv", ["stage"])
    with pytest.raises(SystemExit) as ended:
        run_stage(main, stage_parser(None))
    assert ended.value.code == EXIT_STOPPED
    assert capsys.readouterr().err == f"stopped: {told}\n"
