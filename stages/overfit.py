"""Can the model learn one batch by heart? If not, something is broken: labels, masks, the learning rate.

Trains the first batch alone for up to 300 steps, as params.yaml says but without dropout and with a constant learning
rate after a short warm-up. `pretrain` starts from first weights, a task from models/pretrained. Reads data/tokens and
data/tokenizer; writes nothing. Ends with status 1 where the loss does not fall to nearly nothing.
"""

import argparse
from dataclasses import replace
from math import isfinite

from lightning_modules.errors import PipelineError
from stages.console import run_stage, stage_parser
from stages.params import Params, load_params
from stages.trial import OneBatch, run_trial, trial

STEPS, WARMUP = 300, 20
SHARE, NATS = 0.05, 0.1  # of the first loss; or per target token: either is nearly nothing


def overfit(params: Params, name: str) -> None:
    """Trains one batch and tells what became of its loss. Raises PipelineError where it was not learnt by heart."""
    tried = trial(params, name)
    losses: list[float] = []

    def learnt(step: int, loss: float) -> bool:
        losses.append(loss)
        return loss < max(SHARE * losses[0], NATS) or not isfinite(loss)

    recipe = replace(
        tried.recipe, steps=STEPS, schedule="constant", warmup_steps=WARMUP, label_smoothing=0.0, ema_decay=0.0
    )
    run_trial(tried, recipe, OneBatch(tried.train), learnt)
    fell = f"from {losses[0]:.3f} to {losses[-1]:.3f} nats per target token in {len(losses)} steps"
    if losses[-1] < max(SHARE * losses[0], NATS):
        print(f"{name}: learnt one batch by heart: the loss fell {fell}")
        return
    key = tried.learning_rate_key
    advice = (
        f"lower {key} (now {recipe.learning_rate:g})"
        if not isfinite(losses[-1]) or min(losses) < losses[-1] / 2 or losses[-1] > losses[0]
        else f"a higher {key} (now {recipe.learning_rate:g}) may do; if it does not, look at labels and masks"
    )
    raise PipelineError(
        f"{name}: one batch was not learnt by heart: the loss went {fell} (lowest {min(losses):.3f}), and should fall "
        f"below {max(SHARE * losses[0], NATS):.3f}: {advice}; python -m stages.find_learning_rate {name} finds a rate"
    )


def main(arguments: argparse.Namespace) -> None:
    """Runs the check."""
    overfit(load_params(), arguments.what)


if __name__ == "__main__":
    parser = stage_parser(__doc__)
    parser.add_argument("what", nargs="?", default="pretrain", help="pretrain (the default), or a task of params.yaml")
    run_stage(main, parser)
