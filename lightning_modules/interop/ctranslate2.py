"""Export a model folder to CTranslate2, which translates and writes fast on CPUs and GPUs without PyTorch.

    python -m lightning_modules.interop.ctranslate2 models/translation exported/translation --quantization int8

The folder holds CTranslate2's files and tokenizer.json. Inputs are tokens; </s> ends a source, as in training:

    translator = ctranslate2.Translator("exported/translation")
    source = [*tokenizers.Tokenizer.from_file(...).encode(text).tokens, "</s>"]
    target = translator.translate_batch([source], min_decoding_length=0)[0].hypotheses[0]

The command ends by printing the options (beams, lengths) by which the pipeline writes: CTranslate2's own are others.
A decoder is a ctranslate2.Generator (source, </s>, <s> are its prompt), an encoder a ctranslate2.Encoder (hidden
vectors). Sinusoidal positions become a table of max_length rows, but 1,024 at least: texts end there. A Translator
answers </s> alone with nothing. The export is kept only if both write the same on 64 inputs or more; with 8-bit
weights, if the probabilities of tokens differ by at most 0.1 nats on average.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from lightning_modules.errors import PipelineError
from lightning_modules.interop.command import exit_status
from lightning_modules.interop.ctranslate2_engine import options_of
from lightning_modules.interop.ctranslate2_parity import compare, longest_source
from lightning_modules.interop.ctranslate2_spec import make_spec, refusals
from lightning_modules.interop.folders import new_folder
from lightning_modules.interop.samples import read_sample, sample_rows
from lightning_modules.model_folder import load_model, load_tokenizer, read_config
from lightning_modules.text_to_text import read_usage
from lightning_modules.transformer.heads import Classifier, SpanReader
from lightning_modules.transformer.model import Decoder, Encoder, EncoderDecoder

Quantization = Literal["float32", "int8"]
# Measured with oneDNN held to AVX2: 0.23 nats a token instead of 0.02. Whoever uses the folder needs the variable too.
OVERFLOW = (
    ". Where a processor has no VNNI instructions, 8-bit products overflow in CTranslate2's default library: there set "
    "CT2_USE_MKL=1, also for whatever opens the folder, or keep --quantization float32"
)


def export(model_folder: Path, output: Path, quantization: Quantization = "float32", texts: Sequence[str] = ()) -> None:
    """Writes `output`, which CTranslate2 opens; `texts` are compared first, drawn ones make them 64 at least.

    Raises PipelineError, and leaves nothing, where CTranslate2 has no counterpart of a part, or writes otherwise.
    """
    model, tokenizer = load_model(model_folder).eval(), load_tokenizer(model_folder)
    if isinstance(model, SpanReader | Classifier):
        raise PipelineError(
            f"{model_folder} writes nothing, and CTranslate2 is for models that do: export it to ONNX instead"
        )
    reasons = refusals(model.config)
    if reasons:
        raise PipelineError(f"{model_folder} has no counterpart in CTranslate2: {'; '.join(reasons)}")
    config = model.config
    rows = sample_rows(tokenizer, texts, longest_source(config.max_length), config.eos_id)
    with new_folder(output) as folder:
        _write(model, tokenizer, folder, quantization)
        shutil.copyfile(model_folder / "tokenizer.json", folder / "tokenizer.json")
        agreement = compare(model, folder, rows)
        if not agreement.good_enough(quantization):
            hint = OVERFLOW if quantization == "int8" else ""
            raise PipelineError(f"{model_folder} in CTranslate2 ({quantization}): {agreement}; nothing was kept{hint}")
    print(f"{output}: {quantization}, {agreement}")


def _write(model: Encoder | Decoder | EncoderDecoder, tokenizer: Tokenizer, folder: Path, quantization: str) -> None:
    spec, names, config = make_spec(model), vocabulary(tokenizer, model.config.vocab_size), model.config
    if isinstance(model, EncoderDecoder):
        spec.register_source_vocabulary(names)
        spec.register_target_vocabulary(names)
        spec.config.decoder_start_token = names[config.bos_id]
        spec.config.add_source_bos = spec.config.add_source_eos = False
    else:
        spec.register_vocabulary(names)
    spec.config.bos_token, spec.config.eos_token = names[config.bos_id], names[config.eos_id]
    # A string that is no token is read as <unk>; a tokenizer without one never gives such a string.
    spec.config.unk_token = "<unk>" if "<unk>" in names else names[config.pad_id]
    spec.validate()
    spec.optimize(None if quantization == "float32" else quantization)
    spec.save(str(folder))


def vocabulary(tokenizer: Tokenizer, size: int) -> list[str]:
    """The tokens by id; ids that the tokenizer does not know get names that no token has."""
    taken = set(tokenizer.get_vocab())
    names = []
    for number in range(size):
        name = tokenizer.id_to_token(number) or f"<unused_{number}>"
        while tokenizer.id_to_token(number) is None and name in taken:
            name += "_"
        names.append(name)
    return names


def how_it_writes(model_folder: Path) -> str:
    """A line with the options by which CTranslate2 writes as the pipeline does: an exported folder cannot hold them.

    "" for a model that was not fine-tuned. Raises PipelineError where config.json lacks a limit, or its `decoding` is
    impossible.
    """
    config = read_config(model_folder)
    if not config.get("limits"):
        return ""
    prompts, decoding = config["transformer"]["architecture"] == "decoder", read_usage(model_folder).decoding
    try:
        options = options_of(decoding, prompts)
    except PipelineError as error:
        return f"note: {error}"
    told = ", ".join(f"{name}={value!r}" for name, value in options.items())
    return f"to write as the pipeline does: {'generate_batch' if prompts else 'translate_batch'}(…, {told})"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: 0 done, 1 a wrong input with one line on stderr, 2 wrong usage."""
    parser: Any = argparse.ArgumentParser(
        prog="python -m lightning_modules.interop.ctranslate2",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model_folder", type=Path, metavar="MODEL_FOLDER", help="a folder that training wrote")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the folder to write; must not be there yet")
    parser.add_argument("--quantization", choices=["float32", "int8"], default="float32", help="of the matrices")
    parser.add_argument("--sample", type=Path, metavar="FILE", help="texts to compare on, one a line")
    chosen = parser.parse_args(arguments)

    def work() -> None:
        texts = read_sample(chosen.sample) if chosen.sample else ()
        how = how_it_writes(chosen.model_folder)
        export(chosen.model_folder, chosen.output, chosen.quantization, texts)
        if how:
            print(how)

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
