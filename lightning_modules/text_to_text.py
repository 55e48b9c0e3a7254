"""A fine-tuned model in use: texts in, texts out."""

from collections.abc import Callable, Sequence
from pathlib import Path

from lightning_modules.batching import pad, source_tensors
from lightning_modules.decoding import best_spans, greedy
from lightning_modules.errors import PipelineError
from lightning_modules.model_folder import load_model, load_tokenizer, read_config
from lightning_modules.transformer.heads import SpanReader
from lightning_modules.transformer.model import Encoder


class TextToText:
    """Loads a model folder and writes a text for each text it is given."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        """Raises PipelineError where `folder` is no fine-tuned model."""
        limits = read_config(folder).get("limits")
        if not limits:
            raise PipelineError(f"{folder} holds no fine-tuned model: fine-tune it for a task first")
        self.max_source, self.max_target = limits["max_source_tokens"], limits["max_target_tokens"]
        model = load_model(folder)
        if isinstance(model, Encoder):
            raise PipelineError(f"{folder} holds an encoder that was not fine-tuned: it answers nothing yet")
        self.model = model.to(device).eval()
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
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        sources = [[*encoding.ids[: self.max_source - 1], eos] for encoding in encodings]
        order = sorted(range(len(sources)), key=lambda i: len(sources[i]), reverse=True)
        outputs = [""] * len(sources)
        while order:
            count = max(1, batch_tokens // len(sources[order[0]]))
            batch, order = order[:count], order[count:]
            ids = self._answer([sources[i] for i in batch])
            for i, text in zip(batch, self.tokenizer.decode_batch(ids), strict=True):
                outputs[i] = text.strip()
            done(len(batch))
        return outputs

    def _answer(self, sources: Sequence[Sequence[int]]) -> list[list[int]]:
        config = self.model.config
        ids_BS = pad(sources, config.pad_id)
        source_BS, real_BS = source_tensors(ids_BS, config.pad_id, pad_left=config.architecture == "decoder")
        source_BS, real_BS = source_BS.to(self.device), None if real_BS is None else real_BS.to(self.device)
        if isinstance(self.model, SpanReader):
            return best_spans(self.model, source_BS, real_BS, self.max_target)
        return greedy(self.model, source_BS, real_BS, self.max_target)
