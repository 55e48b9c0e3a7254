"""What a sweep tries: its file (recipes/sweeps/*.yaml), read and checked before any work. Costs 0.3 s.

A sweep chooses by validations only, never by a score on the test split: what was chosen by that would no longer be
measured by it.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from flows.overrides import overridden
from lightning_modules.errors import PipelineError
from stages.outputs import whole_file
from stages.params import load_params
from stages.params_data import Section
from stages.params_file import read_params_file
from stages.params_schema import AutoOrCount, Count, word_or_count

Value = bool | int | float | str
_SIGNIFICANT = 4  # digits of a number that is tried: what is printed is what was tried


class Range(Section):
    """Numbers from `low` to `high`, both included; whole ones where both are."""

    low: int | float
    high: int | float
    log: bool = False  # as many below as above the geometric mean, not the arithmetic one

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if not self.low < self.high:
            raise ValueError("low must be below high")
        if self.log and self.low <= 0:
            raise ValueError("log needs a low above 0")
        return self

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are tried."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def rounded(self, value: float) -> int | float:
        """The number that is tried in place of `value`: one that can be written down."""
        return int(value) if self.whole else min(max(float(f"{value:.{_SIGNIFICANT}g}"), self.low), self.high)


class Sweep(Section):
    """The file. Each key has its comment in recipes/sweeps/pretraining.yaml."""

    stage: str
    metric: Literal["validation_loss", "validation_bits_per_byte", "validation_score"]
    trials: Count
    side_by_side: AutoOrCount
    prune_after: Annotated[int | Literal["never"], word_or_count("never")]
    seed: Annotated[int, Field(ge=0)]
    fixed: dict[str, Any]
    space: Annotated[dict[str, Range | Annotated[list[Value], Field(min_length=2)]], Field(min_length=1)]

    @property
    def maximise(self) -> bool:
        """Whether more of the metric is better."""
        return self.metric == "validation_score"

    def better(self, values: list[float]) -> float:
        """The best of a training's validations, whose weights it keeps."""
        return max(values) if self.maximise else min(values)


def read_sweep(file: Path) -> Sweep:
    """Reads and checks the file of a sweep. Raises PipelineError: file, line, key, and what to do."""
    written = read_params_file(file)
    try:
        sweep = Sweep.model_validate(written.values)
    except ValidationError as error:
        raise written.schema_error(error, Sweep) from None
    for key in sweep.space:
        if key in sweep.fixed:
            raise written.error(("fixed", key), "stands in space, too: remove one")
    return sweep


def check_values(sweep: Sweep, file: Path, params: Path, scratch: Path) -> None:
    """Raises PipelineError where a key of the sweep is none of `params`, or an end of a range is no value for it.

    `scratch` is a file to try them in. What is wrong only together is told by the trial that meets it.
    """
    before = params.read_text(encoding="utf-8")
    tried: list[tuple[str, dict[str, Any]]] = [("fixed", {})]
    for key, what in sweep.space.items():
        ends = [what.low, what.high] if isinstance(what, Range) else what
        tried += [(f"space.{key}: {end}", {key: end}) for end in ends]
    for name, values in tried:
        try:
            with whole_file(scratch) as path:
                path.write_text(overridden(before, {**sweep.fixed, **values}), encoding="utf-8")
            load_params(scratch)
        except PipelineError as error:
            raise PipelineError(f"{file}: {name}: {str(error).replace(str(scratch), params.name)}") from None
        finally:
            scratch.unlink(missing_ok=True)
    chosen_by = load_params(params).finetune.choose_by
    if sweep.maximise and sweep.fixed.get("finetune.choose_by", chosen_by) != "score":
        raise PipelineError(f"{file}: metric: a validation_score is taken where fixed has finetune.choose_by: score")
