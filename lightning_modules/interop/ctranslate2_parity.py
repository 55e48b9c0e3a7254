"""The gate of a CTranslate2 export: the same inputs through our network and through the folder that was written.

Two things are compared: what both write, greedily from their caches, token by token; and the logarithm of the
probability that each gives to every token of what ours wrote, read at once. Identical outputs show that a float32
export is right, but say little about 8-bit weights, where one close choice changes the rest of a text: of two small
trained models 82–100 % of outputs stayed the same, of random ones of width 32 8–100 %. Their probabilities moved by
0.002–0.035 and 0.003–0.094 nats a token: that decides, and 0.1 nats are a tenth of perplexity. Costs some hundred steps
of decoding.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_modules.batching import pad, source_tensors
from lightning_modules.decoding import greedy
from lightning_modules.transformer.model import Decoder, Encoder, EncoderDecoder

BATCH = 16
MOST_WRITTEN = 32  # tokens of an output
TIE = 1e-3  # nats between two tokens that rounding alone may order
LARGEST_DIFFERENCE = {"float32": 1e-3, "int8": 0.1}  # mean nats a token; of an encoder: share of a vector's length


@dataclass(frozen=True)
class Agreement:
    """How far two networks agree. `identical` is the share of outputs that are equal, or part at a TIE; None for an
    encoder, which writes none."""

    inputs: int
    identical: float | None
    difference: float  # in the unit of LARGEST_DIFFERENCE

    def good_enough(self, quantization: str) -> bool:
        """Whether the export may be kept: float32 must write the same everywhere."""
        same = quantization != "float32" or self.identical in (None, 1.0)
        return same and self.difference <= LARGEST_DIFFERENCE[quantization]  # NaN is not

    def __str__(self) -> str:
        if self.identical is None:
            return f"hidden vectors of {self.inputs} inputs differ by {self.difference:.1e} of their length"
        same = f"{self.identical:.1%} of {self.inputs} outputs are identical"
        return f"{same}, probabilities of tokens differ by {self.difference:.1e} nats on average"


def longest_source(max_length: int) -> int:
    """Tokens of a source, </s> included, that leave room for what is written."""
    return max(2, max_length - 1 - _most_written(max_length))


@torch.inference_mode()
def compare(model: Encoder | Decoder | EncoderDecoder, folder: Path, rows: list[list[int]]) -> Agreement:
    """Our model and CTranslate2's in `folder`, on the ids of some sources."""
    if isinstance(model, Encoder):
        return _compare_encoders(model, folder, rows)
    most = _most_written(model.config.max_length)
    written: list[list[int]] = []
    for start in range(0, len(rows), BATCH):
        ids_BS = pad(rows[start : start + BATCH], model.config.pad_id)
        written += greedy(model, *source_tensors(ids_BS, model.config.pad_id, isinstance(model, Decoder)), most)
    theirs = _Theirs(model, folder)
    same, scores = theirs.written(rows, most), theirs.scores(rows, written)
    differences, identical = [], 0
    for row, ours, other, score_T in zip(rows, written, same, scores, strict=True):
        score_TV = _log_probabilities(model, row, ours)
        expected_T = score_TV.gather(1, torch.tensor([*ours, model.config.eos_id])[:, None])[:, 0]
        differences.append((expected_T - torch.tensor(score_T)).abs())
        identical += ours == other or _tied(score_TV, ours, other, model.config.eos_id)
    return Agreement(len(rows), identical / len(rows), float(torch.cat(differences).mean()))


def _most_written(max_length: int) -> int:
    return max(1, min(MOST_WRITTEN, max_length // 2))


def _log_probabilities(model: Decoder | EncoderDecoder, source: list[int], written: list[int]) -> Tensor:
    """(T + 1, V): of every token after <s> and after each token of `written`."""
    target_1T = torch.tensor([[model.config.bos_id, *written]])
    return model.logits(model(torch.tensor([source]), target_1T))[0].log_softmax(dim=-1)


def _tied(score_TV: Tensor, ours: list[int], theirs: list[int], eos_id: int) -> bool:
    """Whether two outputs part where our network gives both tokens the same probability, but for rounding."""
    ends = [*ours, eos_id], [*theirs, eos_id]
    parting = next(t for t, (one, other) in enumerate(zip(*ends, strict=False)) if one != other)
    one, other = ends[0][parting], ends[1][parting]
    return bool(score_TV[parting, one] - score_TV[parting, other] < TIE)


class _Theirs:
    """CTranslate2's network, spoken to in ids."""

    def __init__(self, model: Decoder | EncoderDecoder, folder: Path) -> None:
        import ctranslate2

        self.config, self.prompts = model.config, isinstance(model, Decoder)
        opened = ctranslate2.Generator if self.prompts else ctranslate2.Translator
        self.network = opened(str(folder), device="cpu", inter_threads=1, intra_threads=torch.get_num_threads())
        self.names = read_vocabulary(folder)
        self.ids = {name: number for number, name in enumerate(self.names)}

    def written(self, rows: list[list[int]], most: int) -> list[list[int]]:
        """The most probable token at each step, at most so many."""
        plain: dict[str, Any] = {"beam_size": 1, "max_batch_size": BATCH}
        if self.prompts:
            prompts = [self._tokens([*row, self.config.bos_id]) for row in rows]
            results = self.network.generate_batch(prompts, max_length=most, include_prompt_in_result=False, **plain)
            return [result.sequences_ids[0] for result in results]
        results = self.network.translate_batch(
            [self._tokens(row) for row in rows],
            max_decoding_length=most,
            min_decoding_length=0,
            max_input_length=0,
            **plain,
        )
        return [[self.ids[token] for token in result.hypotheses[0]] for result in results]

    def scores(self, rows: list[list[int]], written: list[list[int]]) -> list[list[float]]:
        """Logarithms of the probabilities of each written token and of </s> after them."""
        bos, eos = self.config.bos_id, self.config.eos_id
        if self.prompts:
            pairs = zip(rows, written, strict=True)
            whole = [self._tokens([*row, bos, *target, eos]) for row, target in pairs]
            results = self.network.score_batch(whole, max_batch_size=BATCH, max_input_length=0)
            return [r.log_probs[-len(target) - 1 :] for r, target in zip(results, written, strict=True)]
        sources, targets = [self._tokens(row) for row in rows], [self._tokens(target) for target in written]
        results = self.network.score_batch(sources, targets, max_batch_size=BATCH, max_input_length=0)
        return [result.log_probs for result in results]

    def _tokens(self, ids: list[int]) -> list[str]:
        return [self.names[number] for number in ids]


def read_vocabulary(folder: Path) -> list[str]:
    """The names of the tokens that CTranslate2 reads and writes, by id."""
    file = next(path for path in (folder / "shared_vocabulary.json", folder / "vocabulary.json") if path.exists())
    names: list[str] = json.loads(file.read_text(encoding="utf-8"))
    return names


def _compare_encoders(model: Encoder, folder: Path, rows: list[list[int]]) -> Agreement:
    import ctranslate2

    theirs = ctranslate2.Encoder(str(folder), device="cpu", inter_threads=1, intra_threads=torch.get_num_threads())
    shares = []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        source_BS, real_BS = source_tensors(pad(batch, model.config.pad_id), model.config.pad_id, pad_left=False)
        ours_BSD = model(source_BS, real_BS)
        other_BSD = torch.from_numpy(np.array(theirs.forward_batch(batch).last_hidden_state))
        share_BS = (ours_BSD - other_BSD).norm(dim=-1) / ours_BSD.norm(dim=-1)
        shares.append(share_BS.flatten() if real_BS is None else share_BS[real_BS])
    return Agreement(len(rows), None, float(torch.cat(shares).mean()))
