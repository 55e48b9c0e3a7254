"""What pre-training and fine-tuning share: fit, resume, stop, and the model folder that is left behind.

Rerunning a killed training goes on from its newest checkpoint. Checkpoints live outside DVC's outputs, in a folder
named by a fingerprint of all that decides the result, so a changed parameter or text never resumes another run.
"""

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from tokenizers import Tokenizer

from lightning_modules.callbacks import Checkpoints, StopOnSignal, Telling, newest_checkpoint
from lightning_modules.datamodule import Batches, TextDataModule
from lightning_modules.errors import Interrupted, PipelineError
from lightning_modules.model_folder import Model, new_model, save_model, sha256
from lightning_modules.module import Recipe, TransformerModule
from lightning_modules.token_store import TokenStore
from lightning_modules.trainer import Hardware, build_trainer
from lightning_modules.transformer.config import TransformerConfig
from lightning_modules.transformer.embeddings import CharacterEmbedding
from lightning_modules.transformer.model import Decoder, Encoder, EncoderDecoder, count_parameters
from lightning_modules.vocabulary import token_bytes
from stages.console import progress
from stages.outputs import whole_directory
from stages.params import Params
from stages.params_schema import Training

CHECKPOINTS = Path(".pipeline/checkpoints")
CURVE_COLUMNS = ("step", "train_loss", "validation_loss", "learning_rate", "tokens_per_second")
CURVE_POINTS = 100  # rows in a learning curve, besides validations


@dataclass(frozen=True)
class Job:
    """One training: what to train on what, how, and where the result goes."""

    name: str  # the DVC stage
    output: Path
    section: Training
    recipe: Recipe
    settings: dict[str, Any]  # the parameters that decide the result
    tokens: Path  # the token stores that it reads
    inputs: list[Path]  # these, the tokenizer, the model that it starts from
    limits: dict[str, int]  # longest source and target of a task
    tokenizer_file: Path
    cut: dict[str, int]  # training texts longer than the limits

    @cached_property
    def checkpoints(self) -> Path:
        """Where to resume from: a folder for each combination of settings and inputs."""
        return CHECKPOINTS / f"{self.name}-{_fingerprint(self.settings, self.inputs)}"


def recipe(section: Training, steps: int, learning_rate: float, label_smoothing: float, seed: int) -> Recipe:
    """How to train: what a section of params.yaml says for all its trainings, and what is this one's own."""
    return Recipe(
        steps=steps,
        optimizer=section.optimizer,
        learning_rate=learning_rate,
        schedule=section.schedule,
        warmup_steps=section.warmup_steps,
        weight_decay=section.weight_decay,
        label_smoothing=label_smoothing,
        seed=seed,
    )


def first_model(params: Params, tokenizer: Tokenizer, config: TransformerConfig) -> Encoder | Decoder | EncoderDecoder:
    """A model of that shape with random weights."""
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise PipelineError(
            f"the tokenizer has {tokenizer.get_vocab_size()} entries, the model {config.vocab_size}: they do not "
            "belong together"
        )
    model = new_model(config, params.seed)
    if isinstance(model.embedding, CharacterEmbedding):
        model.embedding.spell(token_bytes(tokenizer))
    return model


def _fingerprint(settings: dict[str, Any], inputs: list[Path]) -> str:
    """A short digest of settings and inputs: of each file its name, size and first mebibyte."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in sorted(file for folder in inputs for file in folder.rglob("*") if file.is_file()):
        digest.update(f"{path}:{path.stat().st_size}".encode())
        with path.open("rb") as opened:
            digest.update(opened.read(2**20))
    return digest.hexdigest()[:16]


def run_training(job: Job, model: Model, train: Batches, validation: Batches, sample: Callable[[], str]) -> None:
    """Trains `model` and writes its folder; `sample()` describes what the trained model does, for the eye.

    Raises Interrupted when asked to stop: a checkpoint is saved and the same command goes on from there.
    """
    if not _is_main_process():
        # Lightning kills the main process, which may still be saving, where another one ends with a status but 0.
        with suppress(Interrupted):
            _fit(job, model, train, validation, log=None)
        return
    from stages.tracking import stage_run

    tokenizer = sha256(job.tokenizer_file)
    for meta in job.tokens.rglob("meta.json"):
        TokenStore(meta.parent).require_tokenizer(tokenizer)
    with stage_run(
        job.name, params=job.settings, inputs=job.inputs, resume_from=job.checkpoints, system_metrics=True
    ) as run:
        telling, checkpoints, resumed_from = _fit(job, model, train, validation, log=run.log_metrics)
        if (best := job.checkpoints / "best.safetensors").exists():
            model.load_state_dict(load_file(best))
        training = {
            "steps": job.recipe.steps,
            "best_step": checkpoints.best_step,
            "validation_loss": checkpoints.best_loss,  # nats per target token
            "parameters": count_parameters(model),
            "tokens": telling.tokens,  # positions of both stacks, padding included
            "seconds": telling.seconds,
            "tokens_per_second": telling.tokens / max(telling.seconds, 1e-9),
            "resumed_from": resumed_from,
            "cut": job.cut,
            "mlflow_run_id": run.run_id,
        }
        with whole_directory(job.output) as folder:
            save_model(folder, model, job.tokenizer_file, job.limits)
            (folder / "training.json").write_text(json.dumps(training, indent=2) + "\n")
            write_curve(folder / "curve.csv", telling.rows)
        model.eval()
        run.log_text(sample(), "samples.txt")
        run.log_artifact(job.output / "curve.csv")
    shutil.rmtree(job.checkpoints, ignore_errors=True)


def _fit(
    job: Job,
    model: Model,
    train: Batches,
    validation: Batches,
    log: Callable[[dict[str, float], int], None] | None,
) -> tuple[Telling, Checkpoints, int]:
    section = job.section
    folder = job.checkpoints
    checkpoints = Checkpoints(folder, section.checkpoint_every, section.early_stopping_patience)
    telling = Telling(job.name, job.recipe.steps, max(job.recipe.steps // CURVE_POINTS, 1), progress, log)
    stop = StopOnSignal(folder)
    trainer = build_trainer(
        Hardware(**{key: getattr(section, key) for key in Hardware.__dataclass_fields__}),
        job.recipe.steps,
        section.validate_every,
        section.gradient_clip,
        [telling, checkpoints, stop],
    )
    start = newest_checkpoint(folder)
    resumed_from = 0
    if start:
        resumed_from = int(start.stem.removeprefix("step-"))
        print(f"{job.name}: going on from step {resumed_from} ({start})", flush=True)
    print(
        f"{job.name}: {count_parameters(model):,} parameters on {trainer.world_size} × {trainer.accelerator.name()}, "
        f"precision {trainer.precision}",
        flush=True,
    )
    module, data = TransformerModule(model, job.recipe), TextDataModule(train, validation)
    trainer.fit(module, data, ckpt_path=start, weights_only=True)
    if stop.stopped:
        raise Interrupted(f"checkpoint of step {trainer.global_step} saved; the same command goes on from there")
    if not telling.validated(trainer.global_step):  # the last step need not be a multiple of validate_every
        trainer.validate(module, data, verbose=False)
    return telling, checkpoints, resumed_from


def write_curve(path: Path, rows: list[dict[str, float]]) -> None:
    """A learning curve, a line a row."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, CURVE_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def _is_main_process() -> bool:
    """False in the processes that Lightning, torchrun or SLURM started for the other ranks."""
    return not any(int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
