"""Files of sweeps: what is wrong in one is told in one line, and the shipped ones fit the shipped params.yaml."""

from pathlib import Path

import pytest
from sweep_project import RATES, write_sweep
from toy_project import ROOT

from flows.sweep_definition import Range, check_values, read_sweep
from lightning_modules.errors import PipelineError

RANGE, RATE = "{low: 1.0e-3, high: 0.04, log: true}", "rates.yaml:10: space.pretrain.learning_rate"


def test_numbers_are_tried_as_they_can_be_written() -> None:
    scale = Range(low=0.00123446, high=0.9, log=True)
    assert scale.rounded(0.0345678) == 0.03457
    assert scale.rounded(0.001234461) == 0.00123446  # not below the lowest
    assert Range(low=1, high=9).rounded(3) == 3


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("stage: pretrain", "stage: pretrain\nsampler: tpe"), "rates.yaml:3: sampler: unknown key"),
        (("trials: 4", "trials: 0"), "rates.yaml:4: trials: got 0"),
        (("metric: validation_loss", "metric: test_bleu"), "rates.yaml:3: metric: got 'test_bleu'"),
        ((RANGE, "{min: 0.1, max: 1}"), f"{RATE}.min: unknown key; known are low, high, log (1 more after this)"),
        ((RANGE, "{low: 0.1, high: 1, logg: true}"), f"{RATE}.logg: unknown key; did you mean log?"),
        ((RANGE, "{low: 0.1}"), f"{RATE}.high: this key is missing: add it"),
        ((RANGE, "{low: 0.1, high: 0.01}"), f"{RATE}: got {{'low': 0.1, 'high': 0.01}}, low must be below high"),
        ((RANGE, "{low: a, high: 2}"), f"{RATE}.low: got 'a', must be a number"),
        ((RANGE, "{low: 1, high: 2, log: 3}"), f"{RATE}.log: got 3, must be true or false"),
        ((RANGE, "[0.1]"), f"{RATE}: got [0.1], must have at least 2 items, not 1"),
        ((RANGE, "[]"), f"{RATE}: got [], must have at least 2 items, not 0"),
        ((RANGE, "[0.1, [1]]"), f"{RATE}[1]: got [1], must be true, false, a number or text"),
        ((RANGE, "0.1"), f"{RATE}: got 0.1, must be a mapping {{low: …, high: …, log: …}} or a list"),
        (("space:", "space: {}\nfixed2:"), "fixed2: unknown key; did you mean fixed?"),
        (("side_by_side: 1", "side_by_side: 0"), ": side_by_side: got 0, must be auto or a whole number, at least 1"),
        (("prune_after: never", "prune_after: 0"), ": prune_after: got 0, must be never or a whole number, at least 1"),
        (("pretrain.sequence_length: 64", "pretrain.learning_rate: 0.1"), "fixed.pretrain.learning_rate: stands in"),
        (("learning_rate:", "lerning_rate:"), "no key 'pretrain.lerning_rate'; did you mean pretrain.learning_rate?"),
        (("low: 1.0e-3, high: 0.04, log: true", "low: -1.0, high: 0.04"), "space.pretrain.learning_rate: -1.0: "),
        (("metric: validation_loss", "metric: validation_score"), "has finetune.choose_by: score"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, change: tuple[str, str], told: str) -> None:
    file = tmp_path / write_sweep(tmp_path, "rates", RATES)
    file.write_text(file.read_text().replace(*change))
    with pytest.raises(PipelineError) as caught:
        check_values(read_sweep(file), file, ROOT / "params.yaml", tmp_path / "scratch.yaml")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "scratch.yaml").exists()


@pytest.mark.parametrize("file", sorted((ROOT / "recipes/sweeps").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_shipped_sweeps_fit_the_shipped_params(file: Path, tmp_path: Path) -> None:
    check_values(read_sweep(file), file, ROOT / "params.yaml", tmp_path / "scratch.yaml")
