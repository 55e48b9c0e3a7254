"""Export a model folder to ONNX, which many runtimes compute without PyTorch; the weights stay in float32.

    python -m lightning_modules.interop.onnx models/translation exported/translation-onnx

An encoder becomes model.onnx (input_ids, attention_mask → logits; one that points at spans: scores, (B, 2, L); one
that names classes: classes, their scores), a
decoder model.onnx (input_ids, attention_mask → logits, all computed anew each time), an encoder–decoder encoder.onnx
(input_ids, attention_mask → memory) and decoder.onnx (input_ids of the target, memory, attention_mask of the source →
logits). Ids and masks (1 where a token is real, 0 at padding) are int64; batch and lengths are free. A decoder's
padding may stand at either end. tokenizer.json stands beside. No graph searches for a text: how the pipeline does is in
the model folder's config.json (`limits`, `decoding`). Nothing is kept unless onnxruntime's numbers are ours within 1e-4
on inputs of several lengths, alone and padded together.
"""

import argparse
import logging
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from lightning_modules.batching import pad, source_tensors
from lightning_modules.errors import PipelineError
from lightning_modules.interop.command import exit_status
from lightning_modules.interop.folders import new_folder
from lightning_modules.interop.samples import sample_rows
from lightning_modules.model_folder import Model, load_model, load_tokenizer
from lightning_modules.transformer.config import TransformerConfig
from lightning_modules.transformer.heads import Classifier, SpanReader
from lightning_modules.transformer.masks import Visibility
from lightning_modules.transformer.model import Decoder, Encoder, EncoderDecoder, shift_right

OPSET = 20  # version of the operators; the first with GELU among them
LARGEST_DIFFERENCE = 1e-4
_LARGEST_FILE = 1_500_000_000  # bytes of weights within a .onnx file, a format that ends at 2 GiB; more stand beside it
_ROWS, _LONGEST = 12, 256  # inputs that are compared, and tokens of the longest
_HIDDEN = -1e30  # a hidden score instead of -∞, of which a query that sees nothing would make NaN


class _Logits(nn.Module):
    """An encoder or a decoder, from ids to logits; one with a head of its own, to its scores."""

    def __init__(self, model: Encoder | Decoder | SpanReader | Classifier) -> None:
        super().__init__()
        outputs = {SpanReader: "scores", Classifier: "classes"}
        self.model, self.output = model, outputs.get(type(model), "logits")

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L) each → (B, L, V), (B, 2, L), or (B, classes)."""
        real_BL = attention_mask.bool()
        if isinstance(self.model, SpanReader | Classifier):
            return self.model(input_ids, real_BL)
        if isinstance(self.model, Decoder):  # whose forward takes a mask of the source alone
            return self.model.logits(self.model.decoder(self.model.embed(input_ids), real_BS=real_BL))
        return self.model.logits(self.model(input_ids, real_BL))


class _Encode(nn.Module):
    """The encoder of an encoder–decoder."""

    output = "memory"

    def __init__(self, model: EncoderDecoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, S) each → (B, S, D)."""
        return self.model.encode(input_ids, attention_mask.bool())


class _Decode(nn.Module):
    """The decoder of an encoder–decoder."""

    output = "logits"

    def __init__(self, model: EncoderDecoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, memory: Tensor, attention_mask: Tensor) -> Tensor:
        """Target ids (B, T), memory (B, S, D), its mask (B, S) → (B, T, V)."""
        hidden_BTD = self.model.decoder(
            self.model.embed(input_ids),
            memory_BSD=memory,
            memory_visibility=Visibility(attention_mask.bool()[:, None, None, :]),
        )
        return self.model.logits(hidden_BTD)


Graph = _Logits | _Encode | _Decode


def export(model_folder: Path, output: Path) -> None:
    """Writes `output`: the model's graphs, and its tokenizer.json.

    Raises PipelineError, and leaves nothing, where a graph cannot say what the model computes or gives other numbers.
    """
    model = load_model(model_folder).eval().requires_grad_(False)  # with gradients torch traces other kernels
    config = model.config
    if config.bidirectional_prefix:
        raise PipelineError(f"{model_folder} has bidirectional_prefix: a graph is not told where the prefix ends")
    longest = min(_LONGEST, config.max_length)
    rows = sample_rows(load_tokenizer(model_folder), (), longest, config.eos_id)[: _ROWS - 1]
    rows.append([token for row in rows for token in row][:longest])
    differences = {}
    with new_folder(output) as folder:
        for name, graph in _graphs(model).items():
            batches = [rows, rows[:3], rows[-1:], [rows[0][:1]]]
            cases = [_inputs(graph, batch, config, left) for batch in batches for left in (False, True)]
            _write(graph, cases[0], config, folder / name)
            differences[name] = _largest_difference(graph, cases, folder / name)
            if not differences[name] <= LARGEST_DIFFERENCE:
                raise PipelineError(
                    f"{model_folder} as {name}: {graph.output} differ by up to {differences[name]:.2g}, more than "
                    f"{LARGEST_DIFFERENCE:g}; nothing was kept"
                )
        shutil.copyfile(model_folder / "tokenizer.json", folder / "tokenizer.json")
    for name, difference in differences.items():
        print(f"{output}/{name}: numbers within {difference:.1e} of those of {model_folder}")


def _graphs(model: Model) -> dict[str, Graph]:
    if isinstance(model, EncoderDecoder):
        return {"encoder.onnx": _Encode(model), "decoder.onnx": _Decode(model)}
    return {"model.onnx": _Logits(model)}


def _inputs(graph: Graph, rows: list[list[int]], config: TransformerConfig, left: bool) -> tuple[Tensor, ...]:
    """The rows as a padded batch, as the graph takes it; `left` is heard by decoders, whose padding may stand there."""
    source_BL, real_BL = source_tensors(
        pad(rows, config.pad_id), config.pad_id, pad_left=left and config.architecture == "decoder"
    )
    mask_BL = torch.ones_like(source_BL) if real_BL is None else real_BL.long()
    if not isinstance(graph, _Decode):
        return source_BL, mask_BL
    target_BT = torch.from_numpy(pad([row[: len(row) // 2 + 1] for row in rows], config.pad_id))
    return shift_right(target_BT, config.bos_id), graph.model.encode(source_BL, mask_BL.bool()), mask_BL


def _write(graph: Graph, example: tuple[Tensor, ...], config: TransformerConfig, path: Path) -> None:
    shapes = {"input_ids": {0: "batch", 1: "length"}, "attention_mask": {0: "batch", 1: "length"}}
    if isinstance(graph, _Decode):
        source = {0: "batch", 1: "source_length"}
        shapes = {"input_ids": shapes["input_ids"], "memory": source, "attention_mask": source}
    limit = config.max_length if config.positions == "learned" else None
    sizes = {"batch": Dim("batch"), "length": Dim("length", max=limit), "source_length": Dim("source_length")}
    dimensions = {name: {axis: sizes[size] for axis, size in axes.items()} for name, axes in shapes.items()}
    program = torch.export.export(graph, example, dynamic_shapes=dimensions)
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.masked_fill.Scalar and node.args[2] == float("-inf"):
            node.update_arg(2, _HIDDEN)
    torch.onnx.export(
        program,
        f=path,
        dynamo=True,
        opset_version=OPSET,
        input_names=list(shapes),
        output_names=[graph.output],
        dynamic_shapes=shapes,  # for the names alone: the program has them already
        external_data=sum(weight.nbytes for weight in graph.parameters()) > _LARGEST_FILE,
        verbose=False,
    )


@torch.inference_mode()
def _largest_difference(graph: Graph, cases: Sequence[tuple[Tensor, ...]], path: Path) -> float:
    """Between our numbers and onnxruntime's, where tokens are real."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    largest = []
    for case in cases:
        (theirs,) = session.run(None, {name: given.numpy() for name, given in zip(names, case, strict=True)})
        difference = graph(*case) - torch.from_numpy(theirs)
        if graph.output == "scores":
            difference = difference.mT  # columns before the two scores, as elsewhere before the vocabulary
        real_BL = torch.ones_like(case[0]) if isinstance(graph, _Decode) else case[1]
        here = difference if graph.output == "classes" else difference[real_BL.bool()]
        largest.append(here.abs().max())
    return float(torch.stack(largest).max())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: 0 done, 1 a wrong input with one line on stderr, 2 wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m lightning_modules.interop.onnx",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model_folder", type=Path, metavar="MODEL_FOLDER", help="a folder that training wrote")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the folder to write; must not be there yet")
    chosen = parser.parse_args(arguments)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which nothing here needs
    warnings.simplefilter("ignore")  # torch's own, about its inner workings
    return exit_status(lambda: export(chosen.model_folder, chosen.output))


if __name__ == "__main__":
    sys.exit(main())
