"""A fine-tuned model answering through CTranslate2 instead of PyTorch: the same texts in and out, several times faster.

Opening costs an export with its comparison (`interop.ctranslate2`: some hundred steps of decoding), in a temporary
folder that goes with the engine. With 8-bit weights most texts stay the same, not all
(`python -m benchmarks.decoding`); with float32 all but those where rounding decides.
"""

import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning_modules.errors import PipelineError
from lightning_modules.model_folder import load_tokenizer, read_config
from lightning_modules.search.options import Decoding
from lightning_modules.text_to_text import read_usage
from lightning_modules.windows import kept

CHUNK = 1024  # texts between two reports of progress
Options = dict[str, Any]


class CTranslate2Engine:
    """Writes a text for each text it is given."""

    def __init__(self, folder: Path, quantization: str = "int8", threads: int = 0) -> None:
        """`threads` that each write a batch: 0 for as many as PyTorch has.

        Raises PipelineError where `folder` is no fine-tuned model, its architecture has no counterpart there (the line
        names the part), its 8-bit weights differ too much, or CTranslate2 is not installed.
        """
        import torch

        try:
            import ctranslate2
        except ImportError as error:
            raise PipelineError(f"CTranslate2 cannot be imported ({error}): pip install ctranslate2") from error
        from lightning_modules.interop.ctranslate2 import export
        from lightning_modules.interop.ctranslate2_parity import read_vocabulary

        usage, shape = read_usage(folder), read_config(folder)["transformer"]
        if shape["architecture"] == "encoder":
            raise PipelineError(f"{folder} holds an encoder: CTranslate2 is for models that write")
        self.prompts = shape["architecture"] == "decoder"
        self.bos, self.eos = shape["bos_id"], shape["eos_id"]
        self.max_source, self.keep_end, self.decoding = usage.max_source, usage.keep_end, usage.decoding
        self.tokenizer, self.library = load_tokenizer(folder), ctranslate2
        place = Path(tempfile.mkdtemp())
        weakref.finalize(self, shutil.rmtree, place, ignore_errors=True)
        self.exported = place / "exported"
        export(folder, self.exported, "int8" if quantization == "int8" else "float32")
        self.names = read_vocabulary(self.exported)
        self.threads = threads or torch.get_num_threads()
        # A thread for each batch is faster than all on one: the matrices of a step are small.
        self.network = self._opened(self.threads, 1)
        self.ids = {name: number for number, name in enumerate(self.names)}

    def generate(
        self,
        texts: Sequence[str],
        decoding: Decoding | None = None,
        done: Callable[[int], object] = lambda count: None,
        batch_tokens: int = 8192,
    ) -> list[str]:
        """The best answer to each of `texts`, in their order; `done(count)` is called as they are finished.

        Without `decoding` the model's own. CTranslate2 ends a beam search as soon as `beams` texts are finished,
        whatever `decoding.stop` says, never lets a decoder's beams end at once, and does not count <s> as written. What
        it draws, `decoding.seed` and all of `texts` decide together. Raises PipelineError for what it cannot do.
        """
        decoding = decoding or self.decoding
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        rows = [encoding.ids for encoding in encodings]
        sources = [[*ids[kept(len(ids), self.max_source, self.keep_end)], self.eos] for ids in rows]
        order = sorted(range(len(sources)), key=lambda i: len(sources[i]), reverse=True)
        outputs = [""] * len(sources)
        network = self._drawing(decoding.seed) if decoding.sample else self.network
        for start in range(0, len(order), CHUNK):
            chunk = order[start : start + CHUNK]
            ids = self._written(network, [sources[i] for i in chunk], decoding, batch_tokens)
            for i, text in zip(chunk, self.tokenizer.decode_batch(ids), strict=True):
                outputs[i] = text.strip()
            done(len(chunk))
        return outputs

    def _opened(self, inter_threads: int, intra_threads: int) -> Any:
        opened = self.library.Generator if self.prompts else self.library.Translator
        return opened(str(self.exported), device="cpu", inter_threads=inter_threads, intra_threads=intra_threads)

    def _drawing(self, seed: int) -> Any:
        """A network whose draws begin with those of the seed.

        CTranslate2 seeds the generator of each of its threads when that first draws, and never again. So there is one
        new thread: of several, whichever is free takes the next batch.
        """
        self.library.set_random_seed(seed % 2**32)
        return self._opened(1, self.threads)

    def _written(
        self, network: Any, sources: list[list[int]], decoding: Decoding, batch_tokens: int
    ) -> list[list[int]]:
        if not decoding.sample:  # draws hang on what else is in a batch, which threads are not to decide
            share = -(-sum(map(len, sources)) // self.threads)  # of a thread, where there is little to write
            batch_tokens = min(batch_tokens, share)
        options = options_of(decoding, self.prompts) | {"max_batch_size": batch_tokens, "batch_type": "tokens"}
        if self.prompts:
            prompts = [[self.names[token] for token in (*source, self.bos)] for source in sources]
            results = network.generate_batch(prompts, **options)
            written = [result.sequences_ids[0] for result in results]
        else:
            tokens = [[self.names[token] for token in source] for source in sources]
            results = network.translate_batch(tokens, **options)
            written = [[self.ids[token] for token in result.hypotheses[0]] for result in results]
        return [ids[:-1] if ids and ids[-1] == self.eos else ids for ids in written]


def options_of(decoding: Decoding, prompts: bool) -> Options:
    """`decoding` in the words of `generate_batch`, which takes prompts, or of `translate_batch`.

    </s> is asked for, so that it counts as one of a text's tokens there too. `stop` has no word there. Raises
    PipelineError for what would change the answers: `min_p`.
    """
    if decoding.min_p:
        raise PipelineError("min_p is unknown to CTranslate2: set it to 0, or let PyTorch decode")
    options: Options = {
        "beam_size": decoding.beams,
        "length_penalty": decoding.length_penalty,
        "num_hypotheses": decoding.answers,
        "repetition_penalty": decoding.repetition_penalty,
        "no_repeat_ngram_size": decoding.no_repeat_ngram,
        "return_end_token": True,
    }
    if decoding.sample:
        options |= {"sampling_topk": decoding.top_k, "sampling_topp": decoding.top_p}
        options["sampling_temperature"] = decoding.temperature
    if prompts:
        return options | {"max_length": decoding.max_tokens, "include_prompt_in_result": False}
    return options | {"max_decoding_length": decoding.max_tokens, "min_decoding_length": 0, "max_input_length": 0}
