"""Every format that is read, each as a target of damage."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import importlib.util
import io
import json
import os
import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from builders import add_vocabulary, hub_state, write_hub, write_layout, write_nanogpt
from conftest import GOLDEN, make_model
from features_builders import SAES, write_sae
from gguf_builders import characters
from peft_builders import adapted

from campaigns.cases import Campaign
from campaigns.damage import (
    Damage,
    absurd,
    absurd_header,
    blind,
    bomb,
    inside_gzip,
    json_values,
    pickle_program,
    protobuf_fields,
    safetensors_header,
    sizes,
    table_text,
    tf_index,
    zip_entries,
)
from campaigns.file_cases import FileTarget
from gpt2kit.bulk import plan as plans
from gpt2kit.bulk.sources import Input, Part
from gpt2kit.checkpoints.adapters import load_adapters, read_adapters, save_adapters
from gpt2kit.checkpoints.courses import TOY
from gpt2kit.checkpoints.exports import export_gguf, export_llmc
from gpt2kit.checkpoints.load import load, open_checkpoint, write_model
from gpt2kit.config import GPT2Config
from gpt2kit.data.ids import read_ids
from gpt2kit.data.streams import read_batches, write_batches
from gpt2kit.data.tables import Table
from gpt2kit.evaluation.detection import Detector
from gpt2kit.evaluation.suites import read_suites
from gpt2kit.files import read_json
from gpt2kit.generation.receipts.replaying import check_receipt, request_of
from gpt2kit.inspection.features import load_sae
from gpt2kit.lora import add_adapters
from gpt2kit.model import GPT2
from gpt2kit.store import INT8_SUFFIX
from gpt2kit.tokenizers import Tokenizer, bpe_files, load_tokenizer
from gpt2kit.training.distributed import Ranks
from gpt2kit.training.optim import build_optimizers
from gpt2kit.training.settings import Settings
from gpt2kit.training.states import LoopState, States

TINY = GPT2Config(n_vocab=24, n_ctx=8, n_embd=32, n_head=2, n_layer=1)
CUT = (blind, sizes)


def digest(*parts: object) -> str:
    """Return a digest of what was read."""
    return digest_in_turn(parts)


def digest_in_turn(parts: Iterable[object]) -> str:
    """Return a digest of what was read, which need not be in memory as a whole."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part if isinstance(part, bytes) else repr(part).encode("utf-8", "replace"))
        found.update(b"\0")
    return found.hexdigest()


# --- models ---------------------------------------------------------------------------------------


def read_model(path: Path) -> str:
    """Load a model with its vocabulary."""
    model, tokenizer = load(path, device="cpu", dtype="float32")
    return digest_of(model, tokenizer)


def read_int8(path: Path) -> str:
    """Load a model with the int8 weights that an earlier load wrote."""
    model, tokenizer = load(path, device="cpu", quantize="int8")
    return digest_of(model, tokenizer)


def digest_of(model: GPT2, tokenizer: Tokenizer | None) -> str:
    """Return a digest of every number and token of a model."""
    state = model.state_dict()
    tensors = [(name, bytes(state[name].numpy().tobytes())) for name in sorted(state)]
    return digest(model.config, tensors, vocabulary(tokenizer))


def vocabulary(tokenizer: Tokenizer | None) -> object:
    """Return everything that a tokenizer was made of."""
    if tokenizer is None:
        return None
    tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.n_vocab)]
    return tokens, tokenizer.stop_id, tokenizer.encode(tokenizer.decode([1, 2, 3, 4, 5]))


def tiny_model() -> GPT2:
    return make_model(TINY)


def ours(folder: Path) -> Path:
    """A folder as gpt2kit writes it."""
    write_model(folder, tiny_model(), characters(TINY.n_vocab))
    return folder


def with_int8(folder: Path) -> Path:
    """A training run with int8 weights: they are kept in it if it is in the folder of models."""
    os.environ["GPT2KIT_WEIGHTS"] = str(folder.parent)
    ours(folder)
    (folder / "run.json").write_text("{}")
    load(folder, device="cpu", quantize="int8")
    return folder


def hub(folder: Path, weights: str = "model.safetensors") -> Path:
    """A folder of transformers."""
    return write_hub(folder, tiny_model(), weights=weights)


def old_pickle(folder: Path) -> Path:
    """A folder whose weights are a pickle as torch wrote it before 1.6."""
    hub(folder)
    (folder / "model.safetensors").unlink()
    state = hub_state(tiny_model())
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    return folder


def golden(name: str) -> Callable[[Path], Path]:
    """Return what copies a fixture; its reference answers stay where they are."""

    def make(folder: Path) -> Path:
        without = shutil.ignore_patterns("reference.npz", "tensors.json")
        shutil.copytree(GOLDEN / name, folder, dirs_exist_ok=True, ignore=without)
        return folder

    return make


def nanogpt(folder: Path) -> Path:
    """nanoGPT's checkpoint."""
    return write_nanogpt(folder / "ckpt.pt", tiny_model())


def course(folder: Path) -> Path:
    """The weights of a course."""
    shape = dataclasses.replace(
        TINY, n_embd=64, n_head=1, qkv_bias=False, tie_word_embeddings=False, head_bias=True
    )
    return write_layout(folder / "toy.pth", TOY, shape)


def exported(folder: Path, name: str, export: Callable[..., Any]) -> Path:
    """A file in the format of another program."""
    source = folder / "source"
    source.mkdir()
    tokenizer = characters(TINY.n_vocab)
    write_model(source, tiny_model(), tokenizer)
    export(folder / name, open_checkpoint(source), tokenizer)
    shutil.rmtree(source)
    return folder / name


def own_adapters(folder: Path) -> Path:
    """Adapters of ours."""
    model = tiny_model()
    add_adapters(model, 2)
    save_adapters(folder, model, base="base", base_sha256="")
    return folder


def read_own_adapters(folder: Path) -> str:
    """Set a model's adapters to those of a folder."""
    about = read_adapters(folder)
    model = tiny_model()
    add_adapters(model, about["rank"], alpha=about["alpha"])
    load_adapters(folder, model)
    return digest(about, digest_of(model, None))


def read_sparse(path: Path) -> str:
    """Load a sparse autoencoder."""
    found = load_sae(path)
    values = {each.name: getattr(found, each.name) for each in dataclasses.fields(found)}
    return digest(
        *(
            (name, value.numpy().tobytes() if isinstance(value, torch.Tensor) else value)
            for name, value in sorted(values.items())
        )
    )


# --- vocabularies, ids, states --------------------------------------------------------------------


def bpe(folder: Path) -> Path:
    """vocab.json and merges.txt."""
    return add_vocabulary(folder)


def read_tokens(folder: Path) -> str:
    """Read a vocabulary."""
    return digest(vocabulary(load_tokenizer(folder)))


def ids(folder: Path, name: str) -> Path:
    """A file of token ids."""
    numbers = (np.arange(300) * 7 % 50).astype(np.uint16)
    if name.endswith(".npy"):
        np.save(folder / name, numbers)
    else:
        numbers.tofile(folder / name)
    return folder / name


def read_numbers(path: Path) -> str:
    """Read token ids."""
    return digest(np.asarray(read_ids(path, 50)).tobytes())


def state(folder: Path) -> Path:
    """A saved state of a training."""
    model = tiny_model()
    optimizers = build_optimizers(model, optimizer="adamw", weight_decay=0.1)
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    States(folder, Ranks()).save(model, optimizers, LoopState(step=3, best_val_loss=2.5))
    return folder


def read_state(folder: Path) -> str:
    """Go on from a saved state."""
    model = tiny_model()
    optimizers = build_optimizers(model, optimizer="adamw", weight_decay=0.1)
    loop = States(folder, Ranks()).load_newest(model, optimizers)
    averages = [
        (name, value.numpy().tobytes() if isinstance(value, torch.Tensor) else value)
        for optimizer in optimizers
        for each in optimizer.state.values()
        for name, value in sorted(each.items())
    ]
    return digest(loop, averages, digest_of(model, None))


def tokenizer_json(folder: Path) -> Path:
    """A vocabulary in one file, as the library tokenizers writes it."""
    vocab = json.loads((GOLDEN / "bpe/small/vocab.json").read_text())
    merges = (GOLDEN / "bpe/small/merges.txt").read_text().splitlines()[1:]
    content = bpe_files.tokenizer_json(vocab, merges, {"<|endoftext|>": len(vocab) - 1})
    (folder / "tokenizer.json").write_bytes(content)
    return folder


def sentencepiece(folder: Path, model: str) -> Path:
    """A vocabulary that is a model of SentencePiece alone."""
    shutil.copy(GOLDEN / "sentencepiece" / f"{model}.model", folder / "spiece.model")
    return folder


def openai_sae(folder: Path) -> Path:
    """A sparse autoencoder as OpenAI published theirs."""
    return Path(shutil.copy(SAES / "openai-topk.pt", folder))


# --- documents ------------------------------------------------------------------------------------


def document(content: object) -> Callable[[Path], Path]:
    """Return what writes a JSON document."""

    def make(folder: Path) -> Path:
        path = folder / "document.json"
        path.write_text(json.dumps(content))
        return path

    return make


RECEIPT = {
    "receipt": 1,
    "gpt2kit": "1",
    "source": {"model": "124M"},
    "weights": "ab" * 32,
    "config": {"n_embd": 32},
    "tokenizer": "cd" * 32,
    "options": {"seed": 1, "max_tokens": 3, "temperature": 0.8},
    "draft": None,
    "processors": [],
    "computed": {"by": "native", "threads": 2},
    "versions": {"torch": "2.13.0"},
    "prompts": [{"sha256": "ef" * 32, "text": "The dog"}],
    "texts": [{"prompt": 0, "sample": 0, "sha256": "00" * 32, "marks": "abcd" * 3, "text": " ran"}],
}


def read_receipt(path: Path) -> str:
    """Check a receipt, and make the request that it is of."""
    found = read_json(path)
    check_receipt(found)
    return digest(sorted(found.items(), key=repr), request_of(found))


def plan(folder: Path) -> Path:
    """The plan of a job of many parts."""
    inputs = (Input("a.jsonl", 120, 1, "ab" * 32), Input("b.jsonl", 60, 2, "cd" * 32))
    parts = (
        Part(0, "a.jsonl", "bytes", 0, 120, 1, 10, "", 120),
        Part(1, "b.jsonl", "bytes", 0, 60, 11, 5, "", 60),
    )
    made = plans.Plan({"model": "124M", "stride": 512}, ("text",), "filter", inputs, parts)
    plans.publish(folder / "plan.json", made)
    return folder / "plan.json"


def detector(folder: Path) -> Path:
    """A calibration of detect."""
    human = [{"tokens": 9 + n, "error": None, "log_rank": 3.0 + n / 7} for n in range(20)]
    machine = [{"tokens": 9 + n, "error": None, "log_rank": 2.0 + n / 9} for n in range(20)]
    Detector.calibrated({"model": "124M"}, human, machine, seed=1).save(folder / "detector.json")
    return folder / "detector.json"


def settings(folder: Path) -> Path:
    """run.json of a training."""
    shutil.copy(GOLDEN / "runs" / "train.json", folder / "run.json")
    return folder


def suite(folder: Path) -> Path:
    """A suite of SyntaxGym."""
    regions = [
        {"region_number": n, "content": text} for n, text in enumerate(("a dog", "ran", "off"), 1)
    ]
    content = {
        "meta": {"name": "tiny", "metric": "sum"},
        "predictions": [{"type": "formula", "formula": "((2;%a%) < (2;%b%)) & ((3;%a%) > 0)"}],
        "items": [
            {
                "item_number": 1,
                "conditions": [
                    {"condition_name": "a", "regions": regions},
                    {"condition_name": "b", "regions": regions},
                ],
            }
        ],
    }
    (folder / "suite.json").write_text(json.dumps(content))
    return folder / "suite.json"


def read_items(path: Path) -> str:
    """Read a suite."""
    return digest(*((each.name, len(each.formulas), each.items) for each in read_suites(path)))


# --- tables ---------------------------------------------------------------------------------------

ROWS: list[list[Any]] = [
    [1, "The dog ran.", "é\u2028x"], [2, 'She said "no", and\nleft', ""], [3, "a,b;c\td", "🙂"],
    [4, "  ", "NaN"],
]  # fmt: skip


def table(name: str) -> Callable[[Path], Path]:
    """Return what writes a small table in a format."""

    def make(folder: Path) -> Path:
        rows = (
            ROWS if not name.startswith("lines") else [[row[1].partition("\n")[0]] for row in ROWS]
        )
        if name.startswith("lines"):
            content = "\n".join(row[0] for row in rows).encode()
            content = gzip.compress(content) if name.endswith(".gz") else content
            (folder / name).write_bytes(content)
        else:
            write_batches(folder / name, [Table(("id", "text", "note"), rows, Path(name))])
        return folder / name

    return make


def shared_texts(data: bytes, draw: random.Random) -> bytes:
    """Write another Parquet file: its rows share a text, which is short in the file only."""
    import pyarrow
    import pyarrow.parquet

    text = pyarrow.array(["x" * draw.choice((2**10, 2**18, 2**20, 2**24, 2**24 + 1))])
    rows, each = draw.choice((1, 3, 1000)), draw.choice((1, 1000))
    if (most := 2**27 // len(text[0].as_py())) < rows * each:  # to read more takes its time
        rows, each = draw.choice(((1, most), (most, 1)))
    column = pyarrow.DictionaryArray.from_arrays(np.zeros(rows * each, np.int32), text)
    if draw.random() < 0.5:
        column = pyarrow.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32) * each, column)
    out = io.BytesIO()
    made = pyarrow.table({"text": column})
    pyarrow.parquet.write_table(made, out, compression="zstd", store_schema=draw.random() < 0.5)
    return out.getvalue()


def zstd(data: bytes) -> bytes:
    """Return data as Zstandard has them."""
    import pyarrow

    return bytes(pyarrow.compress(data, "zstd", asbytes=True))


def unzstd(data: bytes) -> bytes:
    """Return what a file of Zstandard holds."""
    import pyarrow

    return bytes(pyarrow.input_stream(io.BytesIO(data), compression="zstd").read())


def read_rows(path: Path) -> str:
    """Read a table as commands do that go on after a bad row."""
    found = ""
    for batch in read_batches(path, strict=False):
        found = digest_in_turn(chain([found, dict(batch.errors)], _pieces(batch.columns)))
        for row in batch.rows:
            found = digest_in_turn(chain([found], _pieces(row)))
    return found


def _pieces(cells: Sequence[object]) -> Iterator[object]:
    """Yield a row in pieces: of millions of cells or characters, the repr may take gigabytes."""
    most = 2**16
    for start in range(0, len(cells), most):
        some = cells[start : start + most]
        if sum(len(cell) for cell in some if isinstance(cell, str)) < most:
            yield some
            continue
        for cell in some:
            text = cell if isinstance(cell, str) else repr(cell)
            yield from (text[at : at + most] for at in range(0, len(text) + 1, most))


def _targets() -> list[FileTarget]:
    """Return a target for every format and kind of damage."""
    found: list[FileTarget] = []

    def add(
        name: str,
        make: Callable[[Path], Path],
        damaged: str | Sequence[str],
        read: Callable[[Path], str],
        *damages: Damage,
        finds_all: bool = False,
    ) -> None:
        files = [damaged] if isinstance(damaged, str) else damaged
        for damage in damages:
            kind = damage.__name__.replace("_", " ")
            found.append(FileTarget(f"{name}: {kind}", make, files, read, damage, finds_all))

    weights = "model.safetensors"
    add("safetensors", hub, weights, read_model, *CUT, safetensors_header, absurd_header)
    add("config.json", ours, "config.json", read_model, blind, json_values, absurd)
    add("characters", ours, "gpt2kit_tokenizer.json", read_model, blind, json_values, absurd)
    sharded = golden("hf/safetensors-sharded")
    add("shards", sharded, "model-00002-of-00003.safetensors", read_model, *CUT, safetensors_header)
    add(
        "index of shards",
        sharded,
        "model.safetensors.index.json",
        read_model,
        blind,
        json_values,
        absurd,
    )
    zipped = lambda folder: hub(folder, "pytorch_model.bin")  # noqa: E731
    add("torch", zipped, "pytorch_model.bin", read_model, *CUT, pickle_program, zip_entries)
    add("old torch", old_pickle, "pytorch_model.bin", read_model, *CUT)
    add("nanoGPT", nanogpt, "ckpt.pt", read_model, *CUT, pickle_program, zip_entries)
    add("course", course, "toy.pth", read_model, *CUT, pickle_program, zip_entries)
    for name in ("micro-simple", "micro-sharded", "micro-partitioned"):
        tf = golden(f"tf/{name}")
        index = "model.ckpt.index" if name != "micro-simple" else "model-20.index"
        add(f"TensorFlow {name}", tf, index, read_model, *CUT, finds_all=True)
        add(f"TensorFlow {name}", tf, index, read_model, tf_index)
    data = [f"model.ckpt.data-0000{n}-of-00003" for n in range(3)]
    sharded = golden("tf/micro-sharded")
    add("TensorFlow's data", sharded, data, read_model, *CUT, finds_all=True)
    add("hparams.json", sharded, "hparams.json", read_model, blind, json_values, absurd)
    gguf = lambda folder: exported(folder, "model.gguf", export_gguf)  # noqa: E731
    add("GGUF", gguf, "model.gguf", read_model, *CUT)
    llmc = lambda folder: exported(folder, "model.bin", export_llmc)  # noqa: E731
    add("llm.c", llmc, "model.bin", read_model, *CUT)
    peft = lambda folder: adapted(folder, tiny_model())  # noqa: E731
    add("PEFT", peft, "peft/adapter_model.safetensors", read_model, *CUT, safetensors_header)
    add("PEFT's config", peft, "peft/adapter_config.json", read_model, blind, json_values, absurd)
    adapters = "adapter.safetensors"
    add("adapters", own_adapters, adapters, read_own_adapters, *CUT, safetensors_header)
    add("adapter.json", own_adapters, "adapter.json", read_own_adapters, blind, json_values, absurd)
    add(
        "int8",
        with_int8,
        f"model{INT8_SUFFIX}",
        read_int8,
        *CUT,
        safetensors_header,
        finds_all=True,
    )
    sae = "sae_weights.safetensors"
    add("SAELens", write_sae, sae, read_sparse, *CUT, safetensors_header)
    add("SAELens's config", write_sae, "cfg.json", read_sparse, blind, json_values, absurd)
    add(
        "OpenAI's SAE", openai_sae, "openai-topk.pt", read_sparse, *CUT, pickle_program, zip_entries
    )
    add("vocab.json", bpe, "vocab.json", read_tokens, blind, json_values, absurd)
    add("merges.txt", bpe, "merges.txt", read_tokens, blind, table_text)
    add("tokenizer.json", tokenizer_json, "tokenizer.json", read_tokens, blind, json_values, absurd)
    for model in ("unigram", "bpe-bytes"):
        pieces = partial(sentencepiece, model=model)
        add(f"SentencePiece {model}", pieces, "spiece.model", read_tokens, *CUT, protobuf_fields)
    add("ids .bin", lambda folder: ids(folder, "ids.bin"), "ids.bin", read_numbers, *CUT)
    add("ids .npy", lambda folder: ids(folder, "ids.npy"), "ids.npy", read_numbers, *CUT)
    states = [f"step-00000003/{name}" for name in ("weights.safetensors", "state.json",
              "optimizer.safetensors", "manifest.json")]  # fmt: skip
    add("state", state, states, read_state, *CUT, json_values, finds_all=True)
    add("run.json", settings, "run.json", lambda folder: digest(Settings.read(folder)), blind,
        json_values, absurd)  # fmt: skip
    add("receipt", document(RECEIPT), "document.json", read_receipt, blind, json_values, absurd)
    add("plan", plan, "plan.json", lambda path: digest(plans.read(path)), blind, json_values,
        absurd)  # fmt: skip
    add("calibration", detector, "detector.json", lambda path: digest(Detector.read(path)), blind,
        json_values, absurd)  # fmt: skip
    add("suite", suite, "suite.json", read_items, blind, json_values, absurd)
    for name in ("rows.csv", "rows.tsv", "rows.jsonl", "lines.txt"):
        add(name, table(name), name, read_rows, blind, table_text)
    add("rows.csv.gz", table("rows.csv.gz"), "rows.csv.gz", read_rows, blind)
    for name in ("rows.csv.gz", "rows.jsonl.gz"):
        add(name, table(name), name, read_rows, inside_gzip(table_text))
    for name in ("rows.csv.gz", "rows.jsonl.gz", "lines.txt.gz"):
        add(name, table(name), name, read_rows, bomb(gzip.compress, gzip.decompress))
    if importlib.util.find_spec("pyarrow"):
        packed = bomb(zstd, unzstd)
        add("rows.jsonl.zst", table("rows.jsonl.zst"), "rows.jsonl.zst", read_rows, *CUT, packed)
        add("rows.tsv.zst", table("rows.tsv.zst"), "rows.tsv.zst", read_rows, packed)
        add("rows.parquet", table("rows.parquet"), "rows.parquet", read_rows, *CUT, shared_texts)
    return found


CAMPAIGN = Campaign(_targets(), full=10_200, chunk=5_000, slow=(": bomb",))
