"""Hugging Face's models under its Trainer, as it trains them by default; two in a plain loop as well.

Defaults are kept, so the optimiser is adamw_torch_fused. Rows come from a `datasets.Dataset`. What only costs time is
off: logging, evaluating, saving, progress bars. Attention is fused (sdpa), the default of all these models.
"""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from benchmarks.peer_ours import length_batches
from benchmarks.peer_tools import (
    BOS,
    EOS,
    FIRST_REGULAR,
    MASKED_SHARE,
    PAD,
    Clock,
    Contestant,
    Work,
    pairs,
    plain_loop,
    rows,
)

Collator = Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]
IGNORED = -100
_IDS = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
_TRAINER = ("accelerate",)


def make_llama(work: Work) -> nn.Module:
    """Llama."""
    shape = LlamaConfig(
        vocab_size=work.vocab_size,
        hidden_size=work.d_model,
        intermediate_size=work.gated_d_ff,
        num_hidden_layers=work.layers,
        num_attention_heads=work.heads,
        max_position_embeddings=work.length,
        tie_word_embeddings=True,
        **_IDS,
    )
    return LlamaForCausalLM(shape)


def make_gpt2(work: Work) -> nn.Module:
    """GPT-2."""
    shape = GPT2Config(
        vocab_size=work.vocab_size,
        n_positions=work.length,
        n_embd=work.d_model,
        n_layer=work.layers,
        n_head=work.heads,
        n_inner=work.d_ff,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **_IDS,
    )
    return GPT2LMHeadModel(shape)


def make_bert(work: Work) -> nn.Module:
    """BERT."""
    shape = BertConfig(
        vocab_size=work.vocab_size,
        hidden_size=work.d_model,
        num_hidden_layers=work.layers,
        num_attention_heads=work.heads,
        intermediate_size=work.d_ff,
        max_position_embeddings=work.length,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **_IDS,
    )
    return BertForMaskedLM(shape)


def make_modernbert(work: Work) -> nn.Module:
    """ModernBERT that scores the vocabulary at masked positions only."""
    shape = ModernBertConfig(
        vocab_size=work.vocab_size,
        hidden_size=work.d_model,
        num_hidden_layers=work.layers,
        num_attention_heads=work.heads,
        intermediate_size=work.gated_d_ff,
        max_position_embeddings=work.length,
        cls_token_id=BOS,
        sep_token_id=EOS,
        sparse_prediction=True,
        **_IDS,
    )
    return ModernBertForMaskedLM(shape)


def _make_pairs(config: type, model: type, work: Work) -> nn.Module:
    shape = config(
        vocab_size=work.vocab_size,
        d_model=work.d_model,
        encoder_layers=work.layers,
        decoder_layers=work.layers,
        encoder_attention_heads=work.heads,
        decoder_attention_heads=work.heads,
        encoder_ffn_dim=work.d_ff,
        decoder_ffn_dim=work.d_ff,
        max_position_embeddings=work.length,
        activation_function="relu",
        scale_embedding=True,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        decoder_start_token_id=BOS,
        forced_eos_token_id=None,
        **_IDS,
    )
    made: nn.Module = model(shape)
    return made


make_marian = partial(_make_pairs, MarianConfig, MarianMTModel)
make_bart = partial(_make_pairs, BartConfig, BartForConditionalGeneration)


class _Ticks(TrainerCallback):  # type: ignore[misc]
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.clock.tick()


def _tokenizer(work: Work) -> PreTrainedTokenizerFast:
    """For its collators, which ask it what pads and masks."""
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    special["mask_token"] = "<mask>"  # noqa: S105
    words = [*special.values(), *(f"t{number}" for number in range(FIRST_REGULAR, work.vocab_size))]
    vocabulary = {word: number for number, word in enumerate(words)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, "<unk>")), **special)


def _data(work: Work, model: nn.Module) -> tuple[Dataset, Collator]:
    """Records and what makes batches of them."""
    if work.kind == "pairs":
        source, target = ([[*ids.tolist(), EOS] for ids in side] for side in pairs(work))
        return Dataset.from_dict({"input_ids": source, "labels": target}), DataCollatorForSeq2Seq(
            _tokenizer(work), model=model
        )
    ids = rows(work).tolist()
    if work.kind == "decoder":
        return Dataset.from_dict({"input_ids": ids, "labels": ids}), default_data_collator
    return Dataset.from_dict({"input_ids": ids}), DataCollatorForLanguageModeling(
        _tokenizer(work), mlm_probability=MASKED_SHARE
    )


def _real_tokens(batch: dict[str, torch.Tensor], work: Work) -> int:
    return int((batch["labels"] != IGNORED).sum()) if work.kind == "pairs" else batch["input_ids"].numel()


def train(model: nn.Module, work: Work, clock: Clock, **arguments: Any) -> None:
    """Under the Trainer."""
    data, collator = _data(work, model)

    def counted(records: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = collator(records)
        clock.batch(_real_tokens(batch, work))
        return batch

    of_pairs = work.kind == "pairs"
    with tempfile.TemporaryDirectory() as folder:
        settings = (Seq2SeqTrainingArguments if of_pairs else TrainingArguments)(
            output_dir=folder,
            max_steps=clock.total,
            per_device_train_batch_size=work.rows,
            learning_rate=work.learning_rate,
            seed=work.seed,
            use_cpu=True,
            bf16=work.bf16,
            logging_strategy="no" if clock.losses is None else "steps",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            **arguments,
        )
        trainer = (Seq2SeqTrainer if of_pairs else Trainer)(
            model=model, args=settings, train_dataset=data, data_collator=counted, callbacks=[_Ticks(clock)]
        )
        trainer.train()
    if clock.losses is not None:
        clock.losses += [row["loss"] for row in trainer.state.log_history if "loss" in row]


def _collated(work: Work, model: nn.Module) -> Iterator[tuple[dict[str, torch.Tensor], int]]:
    data, collator = _data(work, model)
    loader = DataLoader(data, work.rows, shuffle=True, drop_last=True, collate_fn=collator)  # type: ignore[arg-type]
    while True:
        for batch in loader:
            yield batch, _real_tokens(batch, work)


def train_plainly(model: nn.Module, work: Work, clock: Clock) -> None:
    """The same batches in a plain loop."""
    plain_loop(model, work, clock, _collated(work, model), lambda batch: model(**batch).loss)


def train_on_our_batches(model: nn.Module, work: Work, clock: Clock) -> None:
    """Batches of similar length, in a plain loop."""

    def loss(batch: Any) -> torch.Tensor:
        labels_BT = batch.target_BT.masked_fill(batch.target_BT == PAD, IGNORED)
        real = None if batch.real_BS is None else batch.real_BS.long()
        return model(input_ids=batch.source_BS, attention_mask=real, labels=labels_BT).loss

    plain_loop(model, work, clock, length_batches(work), loss)


LLAMA = Contestant("Llama, Trainer", make_llama, train, _TRAINER)
GPT2 = Contestant("GPT-2, Trainer", make_gpt2, train, _TRAINER)
BERT = Contestant("BERT, Trainer", make_bert, train, _TRAINER)
MODERNBERT = Contestant("ModernBERT sparse, Trainer", make_modernbert, train, _TRAINER)
MODERNBERT_PLAIN = Contestant("ModernBERT sparse, plain loop", make_modernbert, train_plainly)
MARIAN = Contestant("Marian, Seq2SeqTrainer", make_marian, train, _TRAINER)
MARIAN_GROUPED = Contestant(
    "Marian, Seq2SeqTrainer, grouped", make_marian, partial(train, train_sampling_strategy="group_by_length"), _TRAINER
)
BART_PLAIN = Contestant("BART, plain loop, our batches", make_bart, train_on_our_batches)
