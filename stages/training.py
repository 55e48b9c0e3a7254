"""What pre-training and fine-tuning share: train, resume, stop, and the model folder that is left behind.

Rerunning a killed training goes on from its newest checkpoint.
"""

import csv
import json
import os
import platform
import resource
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer

from lightning_modules.callbacks import Checkpoints
from lightning_modules.datamodule import Batches
from lightning_modules.disk import flush, writing
from lightning_modules.errors import Interrupted, PipelineError
from lightning_modules.guards import TrainingFailed
from lightning_modules.launch import losing_the_others
from lightning_modules.model_folder import Model, new_model, save_model, sha256
from lightning_modules.module import Recipe
from lightning_modules.telling import Telling
from lightning_modules.token_store import TokenStore
from lightning_modules.transformer.config import TransformerConfig
from lightning_modules.transformer.embeddings import CharacterEmbedding
from lightning_modules.transformer.model import Decoder, Encoder, EncoderDecoder, count_parameters
from lightning_modules.vocabulary import token_bytes
from stages.fitting import fit
from stages.outputs import whole_directory
from stages.params import Params
from stages.params_schema import Training
from stages.ranks import is_main_process, started_by_torchrun
from stages.training_job import Job

CURVE_COLUMNS = (
    "step",
    "train_loss",
    "validation_loss",
    "validation_loss_ema",
    "validation_loss_mean",
    "validation_score",
    "validation_score_ema",
    "validation_score_mean",
    "train_bits_per_byte",
    "validation_bits_per_byte",
    "gradient_norm",
    "learning_rate",
    "tokens_per_second",
    "share_of_peak",
    "padding_share",
)


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
        ema_decay=section.ema_decay,
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


def run_training(
    job: Job,
    model: Model,
    train: Batches,
    validation: Batches,
    sample: Callable[[], str],
    usage: Callable[[], dict[str, Any]] = dict,
) -> None:
    """Trains `model` and writes its folder; `sample()` describes what the trained model does, for the eye.

    `usage()` is asked before the folder is written, with the best weights in `model`: what config.json is to say of how
    the model is used.

    Raises Interrupted when asked to stop: a checkpoint is saved and the same command goes on from there.
    """
    if not is_main_process():
        # Lightning and srun kill the main process, which may still be saving, where another one ends with a status but
        # 0. An agent of torchrun on another machine takes 0 for the end of the training, and would not start it again.
        unheard = nullcontext() if started_by_torchrun() else suppress(Interrupted, TrainingFailed)
        with unheard, losing_the_others(f"{job.name}: the other processes are gone: the first one says why"):
            fit(job, model, train, validation, log=None)
        return
    tokenizer = sha256(job.tokenizer_file)
    for meta in job.tokens.rglob("meta.json"):
        TokenStore(meta.parent).require_tokenizer(tokenizer)
    with job.alone():
        _train_and_write(job, model, train, validation, sample, usage)
        _forget(job.checkpoints)


def _train_and_write(
    job: Job,
    model: Model,
    train: Batches,
    validation: Batches,
    sample: Callable[[], str],
    usage: Callable[[], dict[str, Any]],
) -> None:
    from stages.tracking import stage_run

    with stage_run(
        job.name, params=job.settings, inputs=job.inputs, resume_from=job.checkpoints, system_metrics=True
    ) as run:
        with losing_the_others(
            f"{job.name}: another process is gone, and says why unless it was killed (for want of memory, say): the "
            "same command goes on from the last checkpoint"
        ):
            telling, checkpoints, resumed_from = fit(job, model, train, validation, log=run.log_metrics)
        model.load_state_dict(_best_weights(job.checkpoints))
        training = _told(job, model, telling, checkpoints) | {"resumed_from": resumed_from, "mlflow_run_id": run.run_id}
        how = usage()
        with writing(job.output), whole_directory(job.output) as folder:
            save_model(folder, model, job.tokenizer_file, job.limits, how)
            (folder / "training.json").write_text(json.dumps(training, indent=2) + "\n")
            write_curve(folder / "curve.csv", telling.rows)
            flush(folder)  # a machine that crashes now must not lose both this and the checkpoints
        model.eval()
        run.log_text(sample(), "samples.txt")
        run.log_artifact(job.output / "curve.csv")


def _told(job: Job, model: Model, telling: Telling, checkpoints: Checkpoints) -> dict[str, Any]:
    """What training.json says of a training: how it went, and on what."""
    return {
        "steps": job.recipe.steps,
        "best_step": checkpoints.best_step,
        "validation_loss": checkpoints.best_loss,  # nats per target token
        **({} if job.score is None else {"validation_score": -checkpoints.least_fault}),
        "weights": checkpoints.best_weights,  # raw, ema or mean (of the last checkpoints): which of them were best
        "parameters": count_parameters(model),
        **telling.counts,
        "seconds": telling.seconds,
        "tokens_per_second": telling.counts["tokens"] / max(telling.seconds, 1e-9),
        "on_gpu": telling.on_gpu,
        "devices": telling.devices,
        "machine": _machine(telling.devices, telling.on_gpu),
        "precision": telling.precision,
        "peak_flops": telling.peak,
        "share_of_peak": telling.share_of_peak,
        "peak_memory": _peak_memory(),
        "cut": job.cut,
        "missing": job.missing,
    }


def _best_weights(checkpoints: Path) -> dict[str, torch.Tensor]:
    """Those of the best validation. Raises PipelineError where somebody has removed them."""
    try:
        return load_file(checkpoints / "best.safetensors")
    except (OSError, SafetensorError) as error:
        raise PipelineError(
            f"the best weights of this training cannot be read ({error}): remove {checkpoints} and train anew"
        ) from error


def _forget(checkpoints: Path) -> None:
    """Removes them, for a rerun all at once: killed in between, it would go on from what is left of them.

    And what trainings killed just here have left.
    """
    for left in checkpoints.parent.glob("*.removed"):
        shutil.rmtree(left, ignore_errors=True)
    removed = checkpoints.with_name(f"{checkpoints.name}.removed")
    with suppress(FileNotFoundError):
        checkpoints.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


def _peak_memory() -> int:
    """Bytes: of the GPU's memory where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _machine(devices: int, on_gpu: bool) -> str:
    """What trained, in words: the GPUs or the processor, the cores beside them, the system."""
    if on_gpu and torch.cuda.is_available():
        name = f"{devices} × " * (devices > 1) + torch.cuda.get_device_name()
    else:
        name = _processor()
    return f"{name}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"


def _processor() -> str:
    """The CPU's name as Linux has it, else as Python does."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_curve(path: Path, rows: list[dict[str, float]]) -> None:
    """A learning curve, a line a row."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, CURVE_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
