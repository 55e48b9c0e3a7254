"""How probable a model finds texts: references that it is given, and its own answers.

One forward pass over sources and targets, in batches of similar length: far less than decoding them costs.
"""

from collections.abc import Sequence
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from lightning_modules.batching import make_batch, pad
from lightning_modules.text_to_text import Done, TextToText
from lightning_modules.transformer.heads import Classifier, SpanReader
from lightning_modules.transformer.model import Decoder, EncoderDecoder, shift_right

_TOKENS = 4096  # of sources and targets in a batch: bounds the scores over the vocabulary


class Likelihoods(NamedTuple):
    """Of N texts, each with its </s>: nats, tokens predicted, UTF-8 bytes of the text that these spell.

    `unknown` of the tokens are <unk>: what the tokenizer does not know costs little then, however long it is.
    """

    nats_N: npt.NDArray[np.float64]
    tokens_N: npt.NDArray[np.float64]
    bytes_N: npt.NDArray[np.float64]
    unknown_N: npt.NDArray[np.float64]


def confident_answers(answering: TextToText, texts: Sequence[str], done: Done) -> list[tuple[str, float]]:
    """What `generate` answers to each text, and how probable the model finds that answer.

    Of a model that points that is the product of the probabilities of both ends in their window, of one that writes the
    product of those of all tokens up to </s>, of what the answer's text is encoded as.
    """
    if isinstance(answering.model, SpanReader):
        return [(answer.text, answer.probability) for answer in answering.spans(texts, done=done)]
    if isinstance(answering.model, Classifier):
        best = (max(scores.items(), key=itemgetter(1)) for scores in answering.scores(texts, done=done))
        return list(best)
    answers = answering.generate(texts, done=done)
    return list(zip(answers, written_probabilities(answering, texts, answers), strict=True))


def written_probabilities(answering: TextToText, texts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """How probable a model that writes finds these answers, whoever wrote them."""
    probabilities: list[float] = np.exp(-target_likelihoods(answering, texts, answers).nats_N).tolist()
    return probabilities


def target_likelihoods(answering: TextToText, sources: Sequence[str], targets: Sequence[str]) -> Likelihoods:
    """-ln p(target </s> | source) of each pair, for a model that writes.

    Targets are not cut to what the model was trained for, so that models with different tokenizers are measured on the
    same text: only where learned positions end, the text does too. exp(nats / tokens) is the perplexity, which depends
    on the tokenizer; nats / (bytes · ln 2) are bits per byte, which do not where no token is <unk>.
    """
    model, eos = answering.model, answering.model.config.eos_id
    assert isinstance(model, Decoder | EncoderDecoder)
    read = answering.source_ids(sources)
    written = [
        encoding.ids for encoding in answering.tokenizer.encode_batch_fast(list(targets), add_special_tokens=False)
    ]
    sizes = [len(text.encode()) for text in targets]
    if model.config.positions == "learned":
        for number, ids in enumerate(written):
            room = model.config.max_length - 1 - (len(read[number]) if isinstance(model, Decoder) else 0)
            if len(ids) > room:
                written[number] = ids[:room]
                sizes[number] = len(answering.tokenizer.decode(ids[:room]).encode())
    pairs = [(source, [*target, eos]) for source, target in zip(read, written, strict=True)]
    nats = np.zeros(len(pairs))
    lengths = [len(source) + len(target) for source, target in pairs]
    order = sorted(range(len(pairs)), key=lengths.__getitem__, reverse=True)
    while order:
        count = max(1, _TOKENS // lengths[order[0]])
        batch, order = order[:count], order[count:]
        nats[batch] = _nats(answering, [pairs[n] for n in batch]).double().cpu().numpy()
    unknown = answering.tokenizer.get_vocab().get("<unk>", -1)
    counts = ([len(target) for _, target in pairs], sizes, [ids.count(unknown) for ids in written])
    return Likelihoods(nats, *(np.array(one, dtype=np.float64) for one in counts))


@torch.inference_mode()
def _nats(answering: TextToText, pairs: Sequence[tuple[list[int], list[int]]]) -> Tensor:
    """(B,): of each target."""
    model: Decoder | EncoderDecoder = answering.model  # type: ignore[assignment]
    config = model.config
    sources, targets = zip(*pairs, strict=True)
    batch = make_batch(pad(sources, config.pad_id), pad(targets, config.pad_id), config)
    target_BT = batch.target_BT.to(answering.device)
    real_BS = None if batch.real_BS is None else batch.real_BS.to(answering.device)
    hidden_BTD = model(batch.source_BS.to(answering.device), shift_right(target_BT, config.bos_id), real_BS)
    there_BT = target_BT != config.pad_id
    nats_N = functional.cross_entropy(model.logits(hidden_BTD[there_BT]).float(), target_BT[there_BT], reduction="none")
    return torch.zeros(target_BT.shape, device=answering.device).masked_scatter(there_BT, nats_N).sum(dim=1)
