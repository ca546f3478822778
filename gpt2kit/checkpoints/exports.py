"""Files for other programs: GGUF for llama.cpp, .bin for llm.c, ONNX; each is proven when written.

A file is written beside its final name, read back, compared with the model that it was made of, and
only then renamed.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from gpt2kit.checkpoints import llmc
from gpt2kit.checkpoints.classifiers import WORDS_FILE, LabelWords
from gpt2kit.checkpoints.gguf import header, reading
from gpt2kit.checkpoints.gguf.numbers import BF16, F16, F32, Q4_0, Q8_0
from gpt2kit.checkpoints.gguf.vocabulary import Written, written
from gpt2kit.checkpoints.gguf.writing import number_types, write_gguf
from gpt2kit.checkpoints.load import checked
from gpt2kit.checkpoints.onnx import require_packages
from gpt2kit.checkpoints.plain import plain_gpt2
from gpt2kit.checkpoints.stored import Checkpoint
from gpt2kit.checkpoints.vocabularies import none_found, where_to_look
from gpt2kit.checkpoints.written import Comparison, compare_written, logits
from gpt2kit.errors import CheckpointError, ConfigError, TokenizerError
from gpt2kit.files import new_directory, new_file, read_start, write_whole
from gpt2kit.tokenizers import CharTokenizer, Tokenizer
from gpt2kit.tokenizers.listed import ListedTokenizer

GGUF_TYPES = {"f32": F32, "f16": F16, "bf16": BF16, "q8_0": Q8_0, "q4_0": Q4_0}
LLMC_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
# torch's names of the dtypes that GGUF has short names for
SHORT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
LONG = {short: name for name, short in SHORT.items()}

_STAND_IN = "the model has no end token, and {program} must have one: a rare token stands in for it"
_CONTEXTS = 512  # tokens after which the others are measured at once
_LLAMA_CONTEXT = 256  # tokens: llama.cpp rounds the size of a context up to a multiple


@dataclass(frozen=True)
class Export:
    """What was written, and how the other program is called."""

    path: Path
    comparison: Comparison
    command: str  # the line to type
    warnings: tuple[str, ...] = ()


def export_gguf(
    to: Path,
    checkpoint: Checkpoint,
    tokenizer: Tokenizer | None,
    *,
    dtype: str = "auto",
    untie: bool = False,
    replace: bool = False,
) -> Export:
    """Write a GGUF file for llama.cpp, with its vocabulary.

    - `dtype`: f32, f16, bf16, q8_0, q4_0, or `auto`: as the weights are stored
    - `untie`: write a tied head once more, for llama.cpp before March 2025
    - `replace`: replace an existing GGUF file

    Raises ConfigError for a model that llama.cpp's gpt2 cannot compute, TokenizerError for a
    vocabulary that it cannot read, and CheckpointError if the file cannot be written.
    """
    chosen = GGUF_TYPES[_chosen(dtype, checkpoint, tuple(GGUF_TYPES), "GGUF")]
    checkpoint = checked(checkpoint)
    config, tensors = plain_gpt2(checkpoint, "llama.cpp's gpt2")
    vocabulary = written(_required(tokenizer, checkpoint), config.n_vocab)
    stand_in = -1 if vocabulary.stop_id is not None else rarest(checkpoint, tokenizer)
    keys = vocabulary.keys(stand_in)
    errors = {name: kind.error for name, kind in number_types(config, chosen).items()}
    with _new_file(to, replace, header.MAGIC) as (file, part):
        name = "".join(filter(str.isprintable, to.stem))  # a file's name may have any bytes
        write_gguf(file, config, tensors, keys, name=name, chosen=chosen, untie=untie)
        file.flush()
        found = reading.open_file(part)
        comparison = compare_written(checkpoint, tensors, found, errors)
    command, warnings = _llama_command(to, checkpoint, vocabulary, tokenizer)
    return Export(to, comparison, command, warnings + _labels_left_out(checkpoint))


def export_llmc(
    to: Path,
    checkpoint: Checkpoint,
    tokenizer: Tokenizer | None,
    *,
    dtype: str = "auto",
    replace: bool = False,
) -> Export:
    """Write a file of llm.c, and its vocabulary as gpt2_tokenizer.bin beside it.

    - `dtype`: f32, bf16, or `auto`: as the weights are stored
    - `replace`: replace existing files of llm.c

    Raises ConfigError for a model that llm.c cannot compute, TokenizerError for a vocabulary that
    it cannot read, and CheckpointError if a file cannot be written.
    """
    chosen = LLMC_DTYPES[_chosen(dtype, checkpoint, tuple(LLMC_DTYPES), "llm.c")]
    checkpoint = checked(checkpoint)
    config, tensors = plain_gpt2(checkpoint, "llm.c", **llmc.NEEDED)
    vocabulary = llmc.tokenizer_file(_required(tokenizer, checkpoint))
    if to.name == llmc.TOKENIZER_FILE:
        raise CheckpointError(
            f"{to} is the name of llm.c's vocabulary, which is written beside the model; "
            "name another file"
        )
    beside = to.with_name(llmc.TOKENIZER_FILE)
    if not replace and beside.exists() and beside.read_bytes() != vocabulary:
        raise CheckpointError(
            f"{beside} already exists, for another vocabulary; name a file in another folder, or "
            "add --force to replace it"
        )
    errors = dict.fromkeys(tensors, llmc.NUMBERS[chosen].error)
    with _new_file(to, replace, llmc.MAGIC) as (file, part):
        llmc.write_llmc(file, config, tensors, chosen)
        file.flush()
        found = llmc.open_file(part)
        comparison = compare_written(checkpoint, tensors, found, errors)
        write_whole(beside, vocabulary)
    command = f"./train_gpt2cu -e {shlex.quote(str(to))}"
    return Export(to, comparison, command, _labels_left_out(checkpoint))


def export_onnx(
    to: Path,
    checkpoint: Checkpoint,
    tokenizer: Tokenizer | None,
    *,
    dtype: str = "auto",
    replace: bool = False,
) -> Export:
    """Write a folder with an ONNX graph, for transformers.js, optimum and onnxruntime-genai.

    - `dtype`: f32, f16, int8 (matrices in 8 bits), or `auto`: as the weights are stored
    - `replace`: replace an existing folder of this kind

    Any model that writes can be written. Raises ConfigError for one with a head for labels,
    MissingDependencyError without onnx or onnxruntime, and CheckpointError if the folder cannot be
    written.
    """
    require_packages()
    from gpt2kit.checkpoints.onnx import folder as files
    from gpt2kit.checkpoints.onnx.proven import write_proven

    chosen = _chosen(dtype, checkpoint, tuple(files.FILES), "ONNX")
    _check_folder(to, replace, files.is_ours)
    if checkpoint.class_head is not None:
        raise ConfigError(
            f"{checkpoint.path}: the graph cannot express a head for labels; --format hf writes it"
        )
    checkpoint = checked(checkpoint)
    with new_directory(to, replace=replace, error=CheckpointError) as folder:
        comparison = write_proven(folder, checkpoint, chosen)
        warnings: tuple[str, ...] = (none_found(checkpoint),)
        if tokenizer is not None:
            warnings = files.write_vocabulary(folder, checkpoint.config, tokenizer)
        stop_id = end = tokenizer.stop_id if tokenizer else None
        if end is None:
            end = rarest(checkpoint, tokenizer)
            warnings += (_STAND_IN.format(program="onnxruntime-genai"),)
        files.write_configs(folder, checkpoint.config, chosen, stop_id, end)
        if (words := LabelWords.read(checkpoint.folder)) is not None:
            words.write(folder)
        reads_text = (folder / "tokenizer.json").exists()
    n = min(200, checkpoint.config.n_ctx // 2)
    prompt = _prompt(tokenizer) if reads_text else None
    return Export(to, comparison, files.command(to, prompt, n), warnings)


def _labels_left_out(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return a warning if a model labels texts with words: such a file does not hold them."""
    words = LabelWords.read(checkpoint.folder)
    if words is None:
        return ()
    listed = ", ".join(map(repr, words.labels))
    return (
        f"the file has no {WORDS_FILE}: in the other program, the label is the likeliest of "
        f"{listed} behind a text and {words.separator!r}",
    )


def _check_folder(to: Path, replace: bool, is_ours: Callable[[Path], bool]) -> None:
    """Raise CheckpointError for a folder that cannot be written, or must not be replaced."""
    try:
        os.path.abspath(to).encode()
    except UnicodeEncodeError:
        raise CheckpointError(
            f"{to}: onnxruntime opens no file whose name is not UTF-8; name another folder"
        ) from None
    if replace and to.exists() and not is_ours(to):
        raise CheckpointError(
            f"{to} exists and is no folder of this kind, so it is not replaced; name another one"
        )


def _chosen(dtype: str, checkpoint: Checkpoint, known: tuple[str, ...], what: str) -> str:
    """Return the short name of the dtype to write; `auto` is the stored one."""
    name = str(checkpoint.dtype).removeprefix("torch.") if dtype == "auto" else dtype
    name = SHORT.get(name, name)
    if dtype == "auto":  # float16 for llm.c, and float64, become float32, which holds more or most
        return name if name in known else "f32"
    if name not in known:
        raise ConfigError(f"dtype is {dtype!r}; {what} has {', '.join(known)}")
    return name


def _required(tokenizer: Tokenizer | None, checkpoint: Checkpoint) -> Tokenizer:
    if tokenizer is not None:
        return tokenizer
    advice = where_to_look(checkpoint) or "add --vocabulary MODEL, which takes another model's"
    raise TokenizerError(f"{checkpoint.path}: no vocabulary, which the file must have; {advice}")


@contextlib.contextmanager
def _new_file(to: Path, replace: bool, magic: bytes) -> Iterator[tuple[BinaryIO, Path]]:
    """Give a file to write, and the name that it has until the block ends.

    Only a file that begins with `magic` may be replaced.
    """
    if not to.name or to.is_dir():
        raise CheckpointError(f"{str(to)!r} is a folder, expected the name of a new file")
    if to.exists() and not replace:
        raise CheckpointError(
            f"{to} already exists; name another file, or add --force to replace it"
        )
    if to.exists() and not read_start(to).startswith(magic):
        raise CheckpointError(
            f"{to} exists and is no file of this format, so it is not replaced; name another file"
        )
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with new_file(to) as file:
            yield file, Path(file.name)
    except OSError as failure:
        raise CheckpointError(f"cannot write {to}: {failure.strerror or failure}") from failure


def rarest(checkpoint: Checkpoint, tokenizer: Tokenizer | None) -> int:
    """Return the id of a token that the model hardly ever writes, to stand in for an end token.

    Merges are learned in the order of their frequency, so it is the last one of a byte-level BPE.
    For characters and words it is <PAD>, which no text has, else the one that comes least often in
    a text in which the model chooses each from the one before alone.
    """
    if not isinstance(tokenizer, ListedTokenizer):
        return checkpoint.config.n_vocab - 1 if tokenizer is None else tokenizer.n_vocab - 1
    if "<PAD>" in tokenizer.special:
        return tokenizer.special["<PAD>"]
    n = tokenizer.n_vocab
    share = torch.full((n,), 1 / n)
    for _ in range(8):
        # The k likeliest are nearly all of a text; a row for each token would need n * n numbers.
        before = share.topk(min(n, _CONTEXTS))
        after = logits(checkpoint, before.indices[:, None])[:, 0, :n].softmax(-1)  # (k, n)
        share = before.values @ after / before.values.sum()
    return int(share.argmin())


def _prompt(tokenizer: Tokenizer | None) -> str:
    """Return a prompt that the model can read, for the line to type."""
    prompt = "The"
    if isinstance(tokenizer, CharTokenizer) and any(
        each not in tokenizer.tokens for each in prompt
    ):
        prompt = next((each for each in tokenizer.tokens if each.isalnum()), tokenizer.tokens[0])
    return prompt


def _llama_command(
    to: Path, checkpoint: Checkpoint, vocabulary: Written, tokenizer: Tokenizer | None
) -> tuple[str, tuple[str, ...]]:
    """Return the line that runs a file in llama.cpp, and what its users must know."""
    n_ctx, warnings = checkpoint.config.n_ctx, []
    words = ["llama-completion", "-m", str(to), "-c", str(n_ctx), "-n", str(min(200, n_ctx // 2))]
    words += ["-p", _prompt(tokenizer)]
    if vocabulary.stop_id is None:
        words.append("--ignore-eos")
        warnings.append(
            _STAND_IN.format(program="llama.cpp")
            + ", and --ignore-eos lets the text go on behind it"
        )
    if n_ctx < _LLAMA_CONTEXT:
        warnings.append(
            f"the model reads {n_ctx} tokens, and llama.cpp makes room for {_LLAMA_CONTEXT}: it "
            f"ends with an error if prompt and text together have more than {n_ctx}"
        )
    return shlex.join(words), tuple(warnings)
