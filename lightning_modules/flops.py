"""What a training step costs, told before it runs: parameters, floating-point operations (FLOPs), bytes of memory.

Arithmetic on the configuration and a batch's shape; only counting parameters makes the model, without memory for its
weights. Milliseconds, also for a model of billions. tests/test_flops.py counts real steps.

A FLOP is an addition or a multiplication in a product of matrices, as in Kaplan et al. 2020 (arXiv:2001.08361, table 1)
and Chowdhery et al. 2022 (PaLM, arXiv:2204.02311, appendix B): what norms, activations and the optimiser do is left
out, and the share of a device's peak that a training reaches in these FLOPs is PaLM's "model FLOPs utilisation".
"""

from dataclasses import dataclass, replace
from functools import cache

from lightning_modules.transformer.config import GATED, TransformerConfig

AVERAGES = {"adamw": (8, 8), "muon": (4, 8), "adafactor": (0, 0)}  # bytes a parameter in the blocks, and elsewhere
ORTHOGONAL_STEPS = 5  # of Newton and Schulz in a step of Muon


@dataclass(frozen=True)
class Shape:
    """A batch: `rows` of `source` and `target` tokens, and over all rows `predicted` positions with a vocabulary head.

    An encoder has a source alone, and predicts nothing where a head reads all of its columns; a decoder reads source
    and target as one sequence.
    """

    rows: int
    source: int
    target: int
    predicted: int

    def stacks(self, config: TransformerConfig) -> list["StackShape"]:
        """What each stack of the model does."""
        sources, targets = self.rows * self.source, self.rows * self.target
        match config.architecture:
            case "encoder":
                asked = min(self.predicted, sources) or sources
                return [StackShape(config.encoder_layers, self.rows, self.source, 0, asked)]
            case "decoder":
                asked = targets or sources
                return [StackShape(config.decoder_layers, self.rows, self.source + self.target, 0, asked)]
            case _:
                return [
                    StackShape(config.encoder_layers, self.rows, self.source, 0, sources),
                    StackShape(config.decoder_layers, self.rows, self.target, self.source, targets),
                ]


@dataclass(frozen=True)
class StackShape:
    """Layers, rows, tokens in each, tokens in a row of the memory that they attend to; and `asked`, of how many tokens
    over all rows the last layer computes more than keys and values.
    """

    layers: int
    rows: int
    length: int
    memory: int
    asked: int


def parameters(config: TransformerConfig) -> dict[str, int]:
    """Parameters by part, each tied one once: embeddings (of tokens, positions, segments), encoder, decoder, head."""
    import torch

    from lightning_modules.transformer.model import make_model

    with torch.device("meta"):
        model = make_model(config)
    counts = dict.fromkeys(("embeddings", "encoder", "decoder", "head"), 0)
    for name, parameter in model.named_parameters():
        part = name.split(".")[0]
        counts[part if part in counts and ".positions." not in name else "embeddings"] += parameter.numel()
    return counts


def step_flops(config: TransformerConfig, shape: Shape) -> int:
    """FLOPs of one training step: the forward pass, and twice that for the gradients of inputs and of weights.

    Attention counts every score, also those that a mask or the causal order hides (PaLM's count; kernels that skip
    hidden blocks do less), and nothing that a kernel computes twice. The vocabulary head counts at the predicted
    positions only, where it runs. Looking up an embedding costs nothing; composing one from characters counts for each
    token of the batch as if all were distinct, up to the vocabulary: the most it can be.
    """
    forward = sum(_stack_flops(config, stack) for stack in shape.stacks(config))
    head = config.vocab_size + (config.d_model if config.output_transform else 0)
    forward += 2 * shape.predicted * config.d_model * head
    if config.embeddings == "characters":
        forward += 2 * _distinct(config, shape) * sum(_character_sizes(config)[:2])
    return 3 * forward


def _stack_flops(config: TransformerConfig, stack: StackShape) -> int:
    width, heads = config.d_model, config.heads * config.width_of_heads  # of the residual, of all queries
    keys_values = 2 * config.groups * config.width_of_heads
    read = stack.rows * width * keys_values * (stack.length + stack.memory)
    asked = 2 * width * heads + width * config.d_ff * (3 if config.activation in GATED else 2)
    asked += 2 * stack.length * heads  # scores, then values
    if stack.memory:
        asked += 2 * width * heads + 2 * stack.memory * heads
    return 2 * (stack.layers * read + _asked(stack) * asked)


def _asked(stack: StackShape) -> int:
    """Tokens over all rows and layers of which more than keys and values is computed."""
    return (stack.layers - 1) * stack.rows * stack.length + stack.asked if stack.layers else 0


def recomputed_flops(config: TransformerConfig, shape: Shape) -> int:
    """FLOPs that `recompute_activations` adds to a step: the stacks' forward pass but each layer's last product, of
    which nothing is kept."""
    stacks = shape.stacks(config)
    last = sum(map(_asked, stacks)) * config.d_model * config.d_ff
    return sum(_stack_flops(config, stack) for stack in stacks) - 2 * last


def optimizer_flops(config: TransformerConfig, optimizer: str) -> int:
    """FLOPs of the optimiser's products of matrices in a step, on each device: Muon's, which makes those of the blocks
    orthogonal (Jordan et al. 2024); no other has any worth counting."""
    if optimizer != "muon":
        return 0
    width, heads, groups = config.d_model, config.heads * config.width_of_heads, config.groups * config.width_of_heads
    attention = [(width, heads), (width, groups), (width, groups), (width, heads)]
    feed_forward = [(width, config.d_ff)] * (3 if config.activation in GATED else 2)
    encoder = attention + feed_forward
    decoder = encoder + (attention if config.architecture == "encoder_decoder" else [])
    matrices = config.encoder_layers * encoder if config.architecture != "decoder" else []
    matrices += config.decoder_layers * decoder if config.architecture != "encoder" else []
    sides = [(min(sides), max(sides)) for sides in matrices]
    return ORTHOGONAL_STEPS * sum(2 * short**2 * (2 * long + short) for short, long in sides)


def state_bytes(counts: dict[str, int], optimizer: str, half: bool, processes: int) -> int:
    """Bytes on each device of parameters by part, their gradients, and the optimiser's averages, all fp32.

    Adafactor's sums of rows and columns are left out. `half` is bf16 autocast, which keeps a copy of the weights for
    the step; several processes (DDP) exchange gradients through buckets of the same size.
    """
    blocks, elsewhere = AVERAGES[optimizer]
    count = sum(counts.values())
    inside = counts["encoder"] + counts["decoder"]
    kept = inside * blocks + (count - inside) * elsewhere
    return count * (8 + (2 if half else 0) + (4 if processes > 1 else 0)) + kept


def activation_bytes(config: TransformerConfig, shape: Shape, half: bool, gpu: bool, recompute: bool = False) -> int:
    """Bytes that a forward pass keeps for the backward pass, the logits aside; with `recompute` of each layer its input
    alone, and all of the one layer that is being computed again.

    After Korthikanti et al. 2022 (arXiv:2205.05198, section 4.1), with this model's parts: fused attention keeps
    queries, keys, values and its output; scores only where T5's learned bias needs them for its gradient, and where
    attention drops some on a CPU, which has no fused kernel for that. `half` is bf16 autocast: what enters a product
    has 2 bytes, what enters a normalisation 4; a CPU keeps of attention what fp32 would, or its weights, whichever is
    more. Not counted: masks (at most a few bytes a pair of tokens and head, once for all layers), rows that are filled
    up, and what kernels need for moments.
    """
    small = 2 if half else 4
    total = 0
    for stack in shape.stacks(config):
        inputs = stack.layers - 1 if recompute and stack.layers else 0
        total += stack.rows * inputs * stack.length * 4 * config.d_model
        total += _stack_bytes(config, replace(stack, layers=stack.layers - inputs), half, gpu)
    if config.embeddings == "characters":
        total += small * _distinct(config, shape) * _character_sizes(config)[2]
    return total + shape.predicted * config.d_model * (small + (small + 8 if config.output_transform else 0))


def batch_bytes(config: TransformerConfig, shape: Shape, half: bool, gpu: bool, recompute: bool = False) -> int:
    """Bytes that a batch needs at the peak: what is kept for the backward pass, and the logits."""
    return activation_bytes(config, shape, half, gpu, recompute) + logit_bytes(config, shape, half, gpu)


def logit_bytes(config: TransformerConfig, shape: Shape, half: bool, gpu: bool) -> int:
    """Bytes of the predictions at their peak: a piece of the scores (on a GPU: and of their gradient; on a CPU in bf16:
    also as products take them), and the gradients of hidden vectors and matrix, which are there until the backward
    pass."""
    from lightning_modules.transformer.cross_entropy import GPU_PIECE, PIECE

    if gpu:
        piece = min(shape.predicted, GPU_PIECE) * config.vocab_size * 2 * (2 if half else 4)
    else:
        piece = min(shape.predicted, PIECE) * config.vocab_size * (6 if half else 4)
    return piece + 4 * config.d_model * (shape.predicted + config.vocab_size)


def _stack_bytes(config: TransformerConfig, stack: StackShape, half: bool, gpu: bool) -> int:
    from lightning_modules.transformer.plain_attention import MOST_PAIRS

    small = 2 if half else 4  # bytes of a number that enters a product
    width, heads, groups = config.d_model, config.heads * config.width_of_heads, config.groups * config.width_of_heads
    norm, dropped = 4 * width, width if config.dropout else 0  # its input; a byte an element that may be dropped
    pre, scores = config.norm == "pre", 4 * config.heads
    kept = 3 if config.attention_dropout and not gpu else 0  # matrices of scores
    exact = half and not gpu  # a CPU attends in fp32, or by the plain formula: what needs more
    attended = 4 if exact else small

    def found(keys: int) -> int:
        """Queries and outputs; the plain formula's weights."""
        if not exact:
            return 2 * small * heads
        weights = 2 * config.heads * keys if keys**2 <= MOST_PAIRS else 0
        return max(10 * heads, 4 * heads + weights)

    inner = 4 if config.activation in GATED else 1 if config.activation == "relu" else 2
    # Of each token that is seen: what keys and values are made of, and they.
    seen = norm * pre + small * width + attended * 2 * groups
    seen += small * groups if (config.positions == "rotary" or config.qk_norm) and not exact else 0
    seen += 4 * groups if config.qk_norm else 0
    # Of each that sees: queries, output, feed-forward. Autocast makes a copy of its own of what queries are made of.
    asked = norm * (1 if pre else 2) + 2 * dropped + small * (width + inner * config.d_ff) + found(stack.length)
    asked += (small * width if half else 0) + (8 * heads if config.qk_norm else 0)
    asked += scores * stack.length * (kept or config.positions == "relative")
    if stack.memory:
        asked += norm + dropped + small * width + found(stack.memory) + (8 * heads if config.qk_norm else 0)
        asked += scores * stack.memory * kept
    memory = 2 * attended * groups + (small * width if half else 0) + (8 * groups if config.qk_norm else 0)
    tokens = stack.rows * stack.length
    total = stack.layers * (tokens * seen + stack.rows * stack.memory * memory) + _asked(stack) * asked
    if stack.asked < tokens and not half:
        total += stack.asked * small * width  # picked out of what keys and values are made of
    return total + tokens * (norm * config.embedding_norm + dropped) + stack.asked * norm * pre


def _distinct(config: TransformerConfig, shape: Shape) -> int:
    """The most distinct tokens that the embedding can meet, summed over its calls."""
    return sum(min(stack.rows * stack.length, config.vocab_size) for stack in shape.stacks(config))


@cache
def _character_sizes(config: TransformerConfig) -> tuple[int, int, int]:
    """Of composing one token from characters: multiplications of the filters, those behind them, numbers kept."""
    import torch

    from lightning_modules.transformer.embeddings import CharacterEmbedding

    with torch.device("meta"):
        made = CharacterEmbedding(config.vocab_size, config.token_characters, config.d_model)
    filters = kept = 0
    for layer in made.filters:
        outputs, _, width = layer.weight.shape  # type: ignore[misc, union-attr]
        places = config.token_characters + width - 1  # so many that each character meets each place of the filter
        filters += layer.weight.numel() * places  # type: ignore[operator, union-attr]
        kept += outputs * places
    found = made.projection.in_features
    return filters, made.highway.weight.numel() + made.projection.weight.numel(), kept + 6 * found
