"""The one LightningModule: pre-training and fine-tuning differ in objective and data only."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_modules.averaging import MovingAverage
from lightning_modules.batching import Batch
from lightning_modules.lightning import pl
from lightning_modules.loss import batch_loss
from lightning_modules.model_folder import Model
from lightning_modules.optim import OPTIMIZERS, learning_rate_share
from lightning_modules.parallel import clip_gradient, data_rank, own_shares, parallelise, whole_tensors


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
    ema_decay: float  # of the weights' moving average; 0: none
    seed: int


class TransformerModule(pl.LightningModule):
    """Trains a model on batches of (source, target).

    The loss of a step is the sum over real target tokens of all ranks divided by their number, so that it does not
    depend on how records fall into ranks.
    """

    def __init__(self, model: Model, recipe: Recipe, score: Callable[[Model], float] | None = None) -> None:
        """`score` judges the weights at each validation, the higher the better; without it the loss does.

        Every rank calls it, so that none waits for another: it must give the same on all.
        """
        super().__init__()
        self.model, self.recipe = model, recipe
        self.train_loss = torch.zeros(())  # nats per target token of the last step, this rank's share of the sum
        self.gradient_norm = torch.zeros(())  # of the last step, before it was clipped
        self.average: MovingAverage | None = None
        self.weights = "raw"  # or what else the model's weights are now
        self.validation_losses: dict[str, float] = {}  # of the last validation, by weights: raw (or what they are), ema
        self.score, self.validation_scores = score, dict[str, float]()  # these by weights, too
        self._restored: dict[str, Tensor] | None = None
        self._validation = torch.zeros(2, 2)

    def configure_model(self) -> None:
        """Shards or splits the model where the trainer's strategy does."""
        parallelise(self, self.model)

    def on_train_start(self) -> None:
        """Begins the average of the weights, or takes up that of the checkpoint."""
        if self.recipe.ema_decay:
            self.average = MovingAverage(self.model, self.recipe.ema_decay)
            if self._restored is not None:
                self.average.load_state_dict(own_shares(self.model, self._restored))
                self._restored = None

    def on_validation_start(self) -> None:
        """Does so here where the checkpoint was of the last step, and nothing is trained any more."""
        if self._restored is not None and self.weights == "raw":
            self.on_train_start()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the averaged weights."""
        if self.average is not None:
            checkpoint["average"] = whole_tensors(self.model, self.average.state_dict())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps them until training starts."""
        self._restored = checkpoint.get("average")

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seeds dropout by (seed, step, part, rank): a resumed run draws what the uninterrupted one would have."""
        recipe, parts = self.recipe, self.trainer.accumulate_grad_batches
        part = self.global_step * parts + batch_idx % parts
        seed = ((recipe.seed * 1_000_003 + part) * 4_099 + data_rank(self.trainer)[0]) % 2**63
        torch.default_generator.manual_seed(seed)  # torch.manual_seed also looks for absent devices: 0.2 ms a step
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Batch → loss in nats per target token."""
        loss, _ = batch_loss(self.model, batch, self.recipe.label_smoothing)
        # DDP averages gradients over ranks, Lightning over accumulated parts: times their number they are sums.
        loss = loss * (data_rank(self.trainer)[1] / batch.targets)
        parts = self.trainer.accumulate_grad_batches
        first = batch_idx % parts == 0
        self.train_loss = loss.detach() if first else self.train_loss + loss.detach()
        return loss * parts

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Shortens a gradient longer than `gradient_clip_val`, and remembers its length."""
        longest = float("inf") if gradient_clip_val is None else gradient_clip_val
        self.gradient_norm = clip_gradient(self.model, longest)

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        """Steps, and averages the weights."""
        super().optimizer_step(*arguments, **named)
        if self.average is not None:
            self.average.update(self.global_step + 1)  # the trainer counts the step when this returns

    def on_validation_epoch_start(self) -> None:
        """Starts the sums of a validation."""
        self._validation = torch.zeros(2, 2, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to (sum of nats, target tokens), without label smoothing; so too with the averaged weights."""
        loss, tokens = batch_loss(self.model, batch, 0.0)
        self._validation[0] += torch.stack([loss.float(), tokens.float()])
        if self.average is not None:
            with self.average.in_place():
                loss, tokens = batch_loss(self.model, batch, 0.0)
            self._validation[1] += torch.stack([loss.float(), tokens.float()])

    def on_validation_epoch_end(self) -> None:
        """Sets `validation_losses`: nats per target token over the whole validation set and all ranks."""
        raw, ema = ((nats / tokens).item() for nats, tokens in self._sum_over_ranks(self._validation))
        self.validation_losses = {self.weights: raw} | ({} if self.average is None else {"ema": ema})
        if self.score is not None:
            self.validation_scores = {self.weights: self.score(self.model)}
            if self.average is not None:
                with self.average.in_place():
                    self.validation_scores["ema"] = self.score(self.model)
            # Ranks decide by it when to end: a tie of two tokens may be broken otherwise on another device.
            self.validation_scores = self.trainer.strategy.broadcast(self.validation_scores)

    @property
    def faults(self) -> dict[str, float]:
        """Of the last validation, what the best weights have the least of: the losses, or the scores with a minus."""
        return {weights: -score for weights, score in self.validation_scores.items()} or self.validation_losses

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
