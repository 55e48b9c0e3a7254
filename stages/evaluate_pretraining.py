"""How well the pre-trained model does what it was trained for, on held-out text: reports/pretraining.json.

Reads data/tokens/pretraining/test, which no training saw and no weights were chosen by, and models/pretrained. With
causal language modelling the numbers are those of the text; with other objectives of what was hidden, which compares
tokenizers and sizes but not objectives. Takes some seconds: at most 32 batches, forward only,
smaller ones than the training's where the text is short.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from stages.analysis import bits_per_byte, perplexity
from stages.bootstrap import scored
from stages.console import progress, run_stage, stage_parser
from stages.outputs import whole_file
from stages.params import Params, load_params
from stages.report_table import NAMES, unknown_words

BATCHES = 32
MEASURES = ("perplexity", "bits_per_byte")
TOKENS, MODEL, REPORT = (
    Path("data/tokens/pretraining/test"),
    Path("models/pretrained"),
    Path("reports/pretraining.json"),
)


def evaluate_pretraining(params: Params) -> dict[str, Any]:
    """{"objective", "batches", "tokens", "unknown_share", "perplexity", "bits_per_byte"}: of <unk> in the predicted
    tokens; the last two with intervals over batches.

    Only the objective where the model was not trained by it here (pretrain.steps: 0), or where the test split does not
    fill a row. Raises PipelineError where a stage before has not run.
    """
    import numpy as np
    import torch

    from lightning_modules.loss import batch_loss
    from lightning_modules.model_folder import load_model, load_tokenizer
    from lightning_modules.named_objectives import make_objective
    from lightning_modules.text_rows import TextRows
    from lightning_modules.token_store import TokenStore

    section, store, found = params.pretrain, TokenStore(TOKENS), {"objective": params.pretrain.objective}
    full = store.joined_length // section.sequence_length
    if not section.steps or not full:
        return found
    rows = min(section.batch_size, max(1, full // BATCHES))  # the fewer units, the less the intervals say
    torch.set_num_threads(params.evaluate.threads)
    model = load_model(MODEL).eval()
    hide = {name: getattr(section, name) for name in ("corruption_rate", "mean_span_length", "whole_words")}
    tokenizer = load_tokenizer(MODEL)
    objective = make_objective(section.objective, **hide, tokenizer=tokenizer)
    unknown_id, unknown = tokenizer.get_vocab().get("<unk>", -1), 0
    shape = section.sequence_length, rows, BATCHES, params.seed, section.packing
    test, statistics = TextRows(store, model.config, objective, *shape), []
    assert test.bytes_per_target is not None
    with torch.inference_mode():
        for batch in progress(test.validation_batches(0, 1), total=test.validation_count, name="test", unit="batch"):
            nats, count = batch_loss(model, batch, 0.0)
            statistics.append((float(nats), float(count), float(count) * test.bytes_per_target))
            unknown += int((batch.target_BT == unknown_id).sum())
    chance = np.array(statistics), params.evaluate.bootstrap_samples, params.seed
    tokens = int(sum(count for _, count, _ in statistics))
    return found | {
        "batches": len(statistics),
        "tokens": tokens,
        "unknown_share": unknown / tokens,
        "perplexity": scored(perplexity, *chance),
        "bits_per_byte": scored(bits_per_byte, *chance),
    }


def main(_: argparse.Namespace) -> None:
    """Runs the stage."""
    from stages.tracking import stage_run

    params = load_params()
    with stage_run("evaluate_pretraining", params=params.evaluate.model_dump(), inputs=[TOKENS, MODEL]) as run:
        found = evaluate_pretraining(params)
        with whole_file(REPORT) as path:
            path.write_text(json.dumps(found, indent=2) + "\n")
        run.log_metrics({f"test_{name}": found[name]["score"] for name in MEASURES if name in found})
    for name in MEASURES:
        if name in found:
            print(f"pre-training, test split: {NAMES[name]} {found[name]['score']:.2f}")
    if share := found.get("unknown_share"):
        print(f"pre-training, test split: {unknown_words(share)}")


if __name__ == "__main__":
    run_stage(main, stage_parser(__doc__))
