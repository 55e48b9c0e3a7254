"""The one LightningModule: pre-training and fine-tuning differ in objective and data only."""

from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_modules.batching import Batch
from lightning_modules.loss import batch_loss
from lightning_modules.model_folder import Model
from lightning_modules.optim import OPTIMIZERS, learning_rate_share


@dataclass(frozen=True)
class Recipe:
    """How to train: steps, optimiser, the highest learning rate and its schedule, regularisation, seed."""

    steps: int
    optimizer: str
    learning_rate: float
    schedule: str
    warmup_steps: int
    weight_decay: float
    label_smoothing: float
    seed: int


class TransformerModule(pl.LightningModule):
    """Trains a model on batches of (source, target).

    The loss of a step is the sum over real target tokens of all ranks divided by their number, so that it does not
    depend on how records fall into ranks.
    """

    def __init__(self, model: Model, recipe: Recipe) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe
        self.train_loss = torch.zeros(())  # nats per target token of the last step, this rank's share of the sum
        self._validation = torch.zeros(2)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seeds dropout by (seed, step, rank): a resumed run draws what the uninterrupted one would have."""
        recipe = self.recipe
        torch.manual_seed(((recipe.seed * 1_000_003 + self.global_step) * 4_099 + self.global_rank) % 2**63)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Batch → loss in nats per target token."""
        loss, tokens = batch_loss(self.model, batch, self.recipe.label_smoothing)
        all_tokens = self._sum_over_ranks(tokens)
        # DDP averages gradients over ranks; times their number makes it the sum again.
        loss = loss * self.trainer.world_size / all_tokens
        self.train_loss = loss.detach()
        return loss

    def on_validation_epoch_start(self) -> None:
        """Starts the sums of a validation."""
        self._validation = torch.zeros(2, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to (sum of nats, target tokens), without label smoothing."""
        loss, tokens = batch_loss(self.model, batch, 0.0)
        self._validation += torch.stack([loss.float(), tokens.float()])

    def on_validation_epoch_end(self) -> None:
        """Logs `validation_loss`: nats per target token over the whole validation set and all ranks."""
        nats, tokens = self._sum_over_ranks(self._validation)
        self.log("validation_loss", nats / tokens, rank_zero_only=False)

    def configure_optimizers(self) -> Any:
        """The optimiser, its learning rate set anew each step by the schedule."""
        recipe = self.recipe
        optimizer = OPTIMIZERS[recipe.optimizer](self.model, recipe.learning_rate, recipe.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_share(recipe.schedule, step, recipe.warmup_steps, recipe.steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _sum_over_ranks(self, value: Tensor) -> Tensor:
        if self.trainer.world_size == 1:
            return value
        return self.trainer.strategy.reduce(value.clone(), reduce_op="sum")  # type: ignore[return-value]
