"""A fine-tuned model in use: texts in, texts out."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from lightning_modules.batching import pad
from lightning_modules.decoding import greedy
from lightning_modules.errors import PipelineError
from lightning_modules.model_folder import load_model, load_tokenizer, read_config


class TextToText:
    """Loads a model folder and writes a text for each text it is given."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        """Raises PipelineError where `folder` is no fine-tuned model."""
        limits = read_config(folder).get("limits")
        if not limits:
            raise PipelineError(f"{folder} holds no fine-tuned model: fine-tune it for a task first")
        self.max_source, self.max_target = limits["max_source_tokens"], limits["max_target_tokens"]
        self.model = load_model(folder).to(device).eval()
        self.tokenizer = load_tokenizer(folder)
        self.device = device

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> "TextToText":
        """The model in `folder`, ready on `device`."""
        return cls(folder, device)

    def generate(
        self, texts: Sequence[str], batch_tokens: int = 8192, done: Callable[[int], object] = lambda count: None
    ) -> list[str]:
        """A text for each of `texts`, in their order; `done(count)` is called as they are finished.

        Sources are decoded in batches of similar length; one longer than the model was trained for is cut.
        """
        eos = self.model.config.eos_id
        sources = [[*e.ids[: self.max_source - 1], eos] for e in self.tokenizer.encode_batch_fast(list(texts))]
        order = sorted(range(len(sources)), key=lambda i: len(sources[i]), reverse=True)
        outputs = [""] * len(sources)
        while order:
            count = max(1, batch_tokens // len(sources[order[0]]))
            batch, order = order[:count], order[count:]
            source_BS = torch.from_numpy(pad([sources[i] for i in batch], self.model.config.pad_id)).to(self.device)
            real_BS = source_BS != self.model.config.pad_id
            ids = greedy(self.model, source_BS, real_BS[:, None, None, :], self.max_target)
            for i, text in zip(batch, self.tokenizer.decode_batch(ids), strict=True):
                outputs[i] = text.strip()
            done(len(batch))
        return outputs
