"""Fit, from the newest checkpoint to the last step: what run_training does between reading and writing models."""

import copy
from collections.abc import Callable
from pathlib import Path

from lightning_modules.advice import GapWarning
from lightning_modules.averaging import mean_of_files
from lightning_modules.callbacks import Checkpoints, PastEpochs, StopOnSignal, UnevenEpochs, stopped_at
from lightning_modules.checkpoint_files import newest_checkpoint
from lightning_modules.datamodule import Batches, TextDataModule
from lightning_modules.errors import Interrupted
from lightning_modules.guards import StepGuard
from lightning_modules.hardware import Choice, Hardware, choose
from lightning_modules.lightning import pl
from lightning_modules.model_folder import Model
from lightning_modules.module import TransformerModule
from lightning_modules.parallel import is_sharded, own_shares, require_possible, whole_state
from lightning_modules.roll_back import RollBack, Skipping, left_out
from lightning_modules.telling import StepsApart, StepTimes, Telling
from lightning_modules.trainer import build_trainer
from lightning_modules.transformer.attention import expect_same_shapes
from lightning_modules.transformer.model import count_parameters
from lightning_modules.transformer.stack import recompute_activations
from stages.console import progress
from stages.training_job import Job

CURVE_POINTS = 100  # rows in a learning curve, besides validations
Log = Callable[[dict[str, float], int], None]


def fit(
    job: Job, model: Model, train: Batches, validation: Batches, log: Log | None
) -> tuple[Telling, Checkpoints, int]:
    """Trains `model` in place; returns what was told of it, its checkpoints, and the step that it went on from.

    Raises Interrupted when asked to stop, TrainingFailed where numbers are not finite any more. `log` takes (metrics,
    step); None on ranks other than the first.
    """
    stop = StopOnSignal(job.checkpoints, job.section.keep_checkpoints)
    with stop.listening():
        while True:
            try:
                return _try(job, model, train, validation, stop, log)
            except RollBack as back:
                if log is not None:
                    print(f"{job.name}: {back}", flush=True)


def _try(
    job: Job, model: Model, train: Batches, validation: Batches, stop: StopOnSignal, log: Log | None
) -> tuple[Telling, Checkpoints, int]:
    section = job.section
    folder = job.checkpoints
    every = max(job.recipe.steps // CURVE_POINTS, 1)
    checkpoints = Checkpoints(
        folder,
        section.checkpoint_every,
        section.keep_checkpoints,
        section.average_checkpoints,
        section.early_stopping_patience,
    )
    telling = Telling(job.name, job.recipe.steps, every, progress, log)
    guard = StepGuard(job.name, folder, section.on_loss_spike, section.checkpoint_every, section.keep_checkpoints, log)
    hardware = Hardware(**{key: getattr(section, key) for key in Hardware.__dataclass_fields__})
    choice = choose(hardware, model.config.d_model, job.same_shapes)
    callbacks: list[pl.Callback] = [guard, GapWarning(guard), telling, checkpoints, stop]
    if isinstance(train, UnevenEpochs):
        callbacks.append(PastEpochs(train))
    if section.step_times and log is not None:
        times = StepTimes(every, log)
        callbacks = [times, *callbacks, StepsApart(times)]
    trainer = build_trainer(
        hardware,
        choice,
        job.recipe.steps,
        section.accumulate,
        section.validate_every,
        section.gradient_clip,
        callbacks,
    )
    recompute_activations(model, section.recompute_activations)
    expect_same_shapes(model, job.same_shapes)
    require_possible(trainer, model.config, job.recipe.optimizer)
    trained = copy.deepcopy(model) if is_sharded(trainer) else model  # the one saved and sampled from stays whole
    if choice.compiled:
        trained.compile()  # in place: names and saved weights stay as they are
    start = newest_checkpoint(folder, trainer.is_global_zero)
    resumed_from = 0
    if start:
        resumed_from = int(start.stem.removeprefix("step-"))
        print(f"{job.name}: going on from step {resumed_from} ({start})", flush=True)
    elif log is not None and job.others:
        told = ", ".join(map(str, job.others))
        print(f"{job.name}: begins anew; checkpoints of it with other settings or data are in {told}", flush=True)
    _tell_choice(job.name, model, trainer, choice)
    module = TransformerModule(trained, job.recipe, job.score)
    data = TextDataModule(Skipping(train, left_out(folder)), validation)
    trainer.fit(module, data, ckpt_path=start, weights_only=True)
    if stop.stopped:
        raise Interrupted(stopped_at(trainer))
    if not telling.validated(trainer.global_step):  # the last step need not be a multiple of validate_every
        trainer.validate(module, data, verbose=False)
    if section.average_checkpoints:
        try_mean(trainer, module, data, folder)
    if trained is not model and (whole := whole_state(trained)):
        model.load_state_dict(whole)
    return telling, checkpoints, resumed_from


def _tell_choice(name: str, model: Model, trainer: pl.Trainer, choice: Choice) -> None:
    print(
        f"{name}: {count_parameters(model):,} parameters on {trainer.world_size} × {trainer.accelerator.name()}; "
        f"{choice.precision}: {choice.precision_reason}; "
        f"{'compiled' if choice.compiled else 'not compiled'}: {choice.compile_reason}",
        flush=True,
    )


def try_mean(trainer: pl.Trainer, module: TransformerModule, data: TextDataModule, folder: Path) -> None:
    """Validates the mean of the last checkpoints' weights; where it is the best so far, it is kept as such."""
    trainer.strategy.barrier()  # the first process writes them
    saved = sorted(folder.glob("weights-*.safetensors"))
    if saved:
        module.model.load_state_dict(own_shares(module.model, mean_of_files(saved)))
        module.average, module.weights = None, "mean"
        trainer.validate(module, data, verbose=False)
