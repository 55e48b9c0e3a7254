"""A short training that writes nothing, to find out something about the long one that params.yaml describes.

The same model, batches, optimiser, precision and devices' kind; on one device, without dropout. Takes about as long as
so many steps of the training itself.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from tqdm import tqdm

from lightning_modules.batching import Batch
from lightning_modules.callbacks import step_done
from lightning_modules.datamodule import Batches, TextDataModule
from lightning_modules.hardware import Hardware, choose
from lightning_modules.lightning import pl
from lightning_modules.model_folder import Model
from lightning_modules.module import Recipe, TransformerModule
from lightning_modules.trainer import build_trainer
from stages import finetune, pretrain
from stages.console import progress
from stages.params import Params
from stages.params_schema import Training
from stages.training import recipe


@dataclass(frozen=True)
class Trial:
    """What a stage would train, and how."""

    name: str  # pretrain, or a task
    model: Model
    train: Batches
    section: Training
    recipe: Recipe
    learning_rate_key: str  # where params.yaml has it


def trial(params: Params, name: str) -> Trial:
    """What `pretrain`, or the fine-tuning of the task `name` from the pre-trained model, would train.

    Raises PipelineError where the stages that make its inputs have not run.
    """
    if name == "pretrain":
        model, rows, _ = pretrain.materials(params)
        section = params.pretrain
        how = recipe(section, section.steps, section.learning_rate, label_smoothing=0.0, seed=params.seed)
        return Trial(name, model, rows, section, how, "pretrain.learning_rate")
    model, pairs, _ = finetune.materials(params, name, from_scratch=False)
    own = params.tasks[name]
    how = recipe(params.finetune, own.steps, own.learning_rate, params.finetune.label_smoothing, params.seed)
    return Trial(name, model, pairs, params.finetune, how, f"tasks.{name}.learning_rate")


def run_trial(
    trial: Trial,
    recipe: Recipe,
    batches: Batches,
    seen: Callable[[int, float], bool],
    rate: Callable[[int], float] | None = None,
) -> None:
    """Trains for `recipe.steps`, or until `seen(step, loss)` says that it has seen enough.

    Steps count from 1; the loss is of the batch before the step, in nats per target token. `rate(step)` is the learning
    rate to use instead of the recipe's.
    """
    section = trial.section
    hardware = Hardware(**{key: getattr(section, key) for key in Hardware.__dataclass_fields__})
    hardware = replace(hardware, devices=1, num_nodes=1, strategy="auto", compile=False)
    bar = progress(total=recipe.steps, name=trial.name, unit="step")
    trainer = build_trainer(
        hardware,
        choose(hardware, trial.model.config.d_model, same_shapes=False),
        recipe.steps,
        section.accumulate,
        recipe.steps,
        section.gradient_clip,
        [_Watch(bar, seen, rate)],
    )
    trainer.limit_val_batches = 0
    # Lightning's own would end a process told to stop with status 0.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    with bar:
        trainer.fit(TransformerModule(trial.model, recipe), TextDataModule(batches, batches))


class _Watch(pl.Callback):
    def __init__(
        self, bar: "tqdm[Any]", seen: Callable[[int, float], bool], rate: Callable[[int], float] | None
    ) -> None:
        self.bar, self.seen, self.rate = bar, seen, rate

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.eval()  # nothing in the models but dropout knows the difference

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if self.rate is not None:
            for group in trainer.optimizers[0].param_groups:
                group["lr"] = self.rate(trainer.global_step + 1)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if step_done(trainer, batch_idx):
            assert isinstance(pl_module, TransformerModule)
            loss = float(pl_module.train_loss)
            self.bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            self.bar.update()
            if self.seen(trainer.global_step, loss):
                trainer.should_stop = True


class OneBatch:
    """Nothing but the first batch of `batches`, again and again."""

    def __init__(self, batches: Batches) -> None:
        self.batches, self.batches_per_epoch, self.bytes_per_target = batches, 1, batches.bytes_per_target

    def training_batch(self, number: int, part: int, parts: int) -> Batch:
        """A share of it."""
        return self.batches.training_batch(0, part, parts)

    def validation_batches(self, part: int, parts: int) -> Iterator[Batch]:
        """None."""
        return iter(())
