"""The files around an ONNX graph: for transformers.js and optimum, and for onnxruntime-genai.

config.json, generation_config.json      the shape, as transformers.js reads it
genai_config.json                        the same for onnxruntime-genai
tokenizer.json, tokenizer_config.json    the vocabulary
onnx/model.onnx                          the graph in float32
onnx/model_fp16.onnx                     in float16
onnx/model_quantized.onnx                with matrices in 8 bits
"""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gpt2kit.checkpoints.config_json import CONFIG_FILE, config_dict
from gpt2kit.checkpoints.gguf.vocabulary import CONTROL, UNUSED, Written, written
from gpt2kit.checkpoints.onnx.writing import DATA
from gpt2kit.config import VARIED, GPT2Config
from gpt2kit.errors import TokenizerError
from gpt2kit.files import read_json
from gpt2kit.store import TEXT_FILES
from gpt2kit.tokenizers import Tokenizer
from gpt2kit.tokenizers.bpe import byte_characters
from gpt2kit.tokenizers.bpe_files import tokenizer_json

GENAI_FILE = "genai_config.json"
# The dtypes of files -> their names, and what transformers.js calls them
FILES = {"f32": "model.onnx", "f16": "model_fp16.onnx", "int8": "model_quantized.onnx"}
DTYPES = {"f32": "fp32", "f16": "fp16", "int8": "q8"}
FOLDER = "onnx"

_NO_TOKENIZER = "there is no tokenizer.json for this vocabulary: other programs must be given ids"
_UNKNOWN = "other programs end with an error at a character that the model does not know"


def is_ours(path: Path) -> bool:
    """Whether a folder is one that was written here, with nothing else beside it."""
    graphs = {name + end for name in FILES.values() for end in ("", DATA)}
    return (
        (path / GENAI_FILE).is_file()
        and (path / FOLDER).is_dir()
        and {each.name for each in path.iterdir()} <= {GENAI_FILE, FOLDER, *TEXT_FILES}
        and {each.name for each in (path / FOLDER).iterdir()} <= graphs
    )


def write_configs(
    folder: Path, config: GPT2Config, dtype: str, stop_id: int | None, end: int
) -> None:
    """Write the files that describe the graph of a dtype, which is already in the folder.

    `end` is the end token of onnxruntime-genai, which must have one.
    """
    # A graph says by itself what it computes, so it is a GPT-2's whatever it is made of.
    fields: dict[str, Any] = {**VARIED}
    plain = replace(config, **fields)
    about = config_dict(plain, dtype=torch.float32, stop_id=stop_id)
    theirs: dict[str, Any] = {"dtype": DTYPES[dtype], "kv_cache_dtype": {"fp16": "float16"}}
    if len([*(folder / FOLDER).iterdir()]) > 1:  # the weights are in a second file
        theirs["use_external_data_format"] = {FILES[dtype]: 1}
    _write(folder / CONFIG_FILE, {**about, "transformers.js_config": theirs})
    ids = {"bos_token_id": stop_id, "eos_token_id": stop_id}
    _write(folder / "generation_config.json", ids)
    _write(folder / GENAI_FILE, _genai(config, dtype, end))


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def command(to: Path, prompt: str | None, n: int) -> str:
    """Return a line that writes n tokens behind a prompt: in Node, with transformers.js.

    Without a prompt it writes ids, with onnxruntime-genai.
    """
    if prompt is None:
        script = (
            f"import onnxruntime_genai as og; model = og.Model({str(to)!r}); "
            "text = og.Generator(model, og.GeneratorParams(model)); text.append_tokens([0]); "
            f"[text.generate_next_token() for _ in range({n})]; print(text.get_sequence(0))"
        )
        return shlex.join(["python", "-c", script])
    # A name without ./ would be a model of the Hub.
    path = str(to) if to.is_absolute() else f"./{to}"
    script = (
        f'import("@huggingface/transformers")'
        f'.then(t => t.pipeline("text-generation", {json.dumps(path)}))'
        f".then(write => write({json.dumps(prompt)}, {{max_new_tokens: {n}, do_sample: true}}))"
        f".then(texts => console.log(texts[0].generated_text))"
    )
    return shlex.join(["node", "-e", script])


def _genai(config: GPT2Config, dtype: str, end: int) -> dict[str, Any]:
    """Return genai_config.json. Type gpt2 would be another graph, with one tensor for the cache."""
    same = {name: name for name in ("input_ids", "attention_mask", "position_ids")}
    past = {f"past_{kind}_names": f"past_key_values.%d.{kind}" for kind in ("key", "value")}
    present = {f"present_{kind}_names": f"present.%d.{kind}" for kind in ("key", "value")}
    return {
        "model": {
            "type": "decoder",
            "bos_token_id": end,
            "eos_token_id": end,
            "pad_token_id": end,
            "vocab_size": config.n_vocab,
            "context_length": config.n_ctx,
            "decoder": {
                "filename": f"{FOLDER}/{FILES[dtype]}",
                "head_size": config.head_size,
                "hidden_size": config.n_embd,
                "num_attention_heads": config.n_head,
                "num_key_value_heads": config.n_head,
                "num_hidden_layers": config.n_layer,
                "session_options": {"provider_options": []},
                "inputs": {**same, **past},
                "outputs": {"logits": "logits", **present},
            },
        },
        "search": {"max_length": config.n_ctx},
    }


def write_vocabulary(folder: Path, config: GPT2Config, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Write the vocabulary as other programs read it; return a warning if they read less."""
    tokenizer.save(folder)
    warnings: tuple[str, ...] = ()
    if not (folder / "tokenizer.json").exists():
        try:
            vocabulary = written(tokenizer, config.n_vocab)
        except TokenizerError:
            return (_NO_TOKENIZER,)
        (folder / "tokenizer.json").write_bytes(_of_bytes(vocabulary))
        warnings = (_UNKNOWN,)
    path = folder / "tokenizer_config.json"
    about = read_json(path, error=TokenizerError) if path.exists() else _gpt2s(tokenizer)
    lengths = {"model_max_length": config.n_ctx, "clean_up_tokenization_spaces": False}
    _write(path, {**about, **lengths})
    return warnings


def _gpt2s(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return how other programs read a byte-level BPE, whose files do not say it."""
    stop_id = tokenizer.stop_id
    end = None if stop_id is None else tokenizer.token_bytes(stop_id).decode()
    return {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        **dict.fromkeys(("bos_token", "eos_token", "unk_token") if end else (), end),
    }


def _of_bytes(vocabulary: Written) -> bytes:
    """Return tokenizer.json for characters: a byte-level BPE with the same ids, as in GGUF.

    What is not a token, such as half a character, has an id that the model does not have: an
    unknown character of a prompt is an error, and not left out.
    """
    numbered = list(zip(vocabulary.tokens, vocabulary.types, strict=True))
    ids = {token: n for n, (token, kind) in enumerate(numbered) if kind != UNUSED}
    markers = {token: n for n, (token, kind) in enumerate(numbered) if kind == CONTROL}
    merged = [merge.replace(" ", "") for merge in vocabulary.merges]
    others = dict.fromkeys(
        each for each in (*byte_characters().values(), *merged) if each not in ids
    )
    ids |= {piece: len(numbered) + n for n, piece in enumerate(others)}
    return tokenizer_json(ids, vocabulary.merges, markers)
