"""Pre-trains the Transformer on unlabelled text. Takes nearly all of the pipeline's time.

Reads data/tokens/pretraining and data/tokenizer; writes models/pretrained. Killed or stopped, the same command goes on
from the newest checkpoint.
"""

import argparse
from pathlib import Path

from lightning_modules.datamodule import TextRows
from lightning_modules.decoding import greedy
from lightning_modules.model_folder import load_tokenizer, new_model, special_id
from lightning_modules.objectives import SpanCorruption
from lightning_modules.token_store import TokenStore
from lightning_modules.transformer.config import TransformerConfig
from stages.console import run_stage, stage_parser
from stages.params import Params, load_params
from stages.training import Job, recipe, run_training

TOKENS, TOKENIZER, OUTPUT = Path("data/tokens/pretraining"), Path("data/tokenizer"), Path("models/pretrained")
SENTINELS = 64


def pretrain(params: Params) -> None:
    """Trains `models/pretrained` as `params` say. Raises PipelineError, or Interrupted after saving a checkpoint."""
    section, seed = params.pretrain, params.seed
    tokenizer = load_tokenizer(TOKENIZER)
    model = new_model(model_config(params, tokenizer.get_vocab_size()), seed)
    objective = SpanCorruption(
        section.corruption_rate,
        section.mean_span_length,
        special_id(tokenizer, "<extra_id_0>"),
        SENTINELS,
        model.config.eos_id,
    )
    train, validation = (
        TextRows(
            TokenStore(TOKENS / split),
            objective,
            section.sequence_length,
            section.batch_size,
            section.validation_batches,
            seed,
        )
        for split in ("train", "validation")
    )
    job = Job(
        name="pretrain",
        output=OUTPUT,
        section=section,
        recipe=recipe(section, section.steps, section.learning_rate, label_smoothing=0.0, seed=seed),
        settings={"seed": seed, "model": params.model.model_dump(), "pretrain": section.model_dump()},
        tokens=TOKENS,
        inputs=[TOKENS, TOKENIZER],
        limits={},
        tokenizer_file=TOKENIZER / "tokenizer.json",
        cut={},
    )

    def sample() -> str:
        batch = next(iter(validation.validation_batches(0, 1)))
        guesses = greedy(model.cpu(), batch.source_BS[:4], None, batch.target_BT.shape[1])
        lines = []
        for source, target, guess in zip(batch.source_BS, batch.target_BT, guesses, strict=False):
            for name, ids in (("read", source.tolist()), ("hidden", target.tolist()), ("guessed", guess)):
                lines.append(f"{name}: {tokenizer.decode(ids, skip_special_tokens=False)}")
            lines.append("")
        return "\n".join(lines)

    run_training(job, model, train, validation, sample)


def model_config(params: Params, vocab_size: int) -> TransformerConfig:
    """The model that `params.model` describes, for a tokenizer of `vocab_size` entries."""
    return TransformerConfig(vocab_size=vocab_size, **params.model.model_dump())


def main(arguments: argparse.Namespace) -> None:
    """Runs the stage."""
    pretrain(load_params())


if __name__ == "__main__":
    run_stage(main, stage_parser(__doc__))
