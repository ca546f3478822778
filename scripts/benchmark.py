#!/usr/bin/env python3
"""Speed of gpt2kit beside transformers, CTranslate2 and llama.cpp, in one run.

    python scripts/benchmark.py decode  [--against hf,ct2,llama]   tokens/s of one text, after a prompt of 16 tokens
    python scripts/benchmark.py batch   [--against hf,ct2]         the same for several texts at once
    python scripts/benchmark.py prefill [--against hf,llama]       tokens/s at which a prompt of 1,000 tokens is read
    python scripts/benchmark.py load    [--against hf]             seconds to load a model, and the memory that took
    python scripts/benchmark.py cold    [--against hf]             seconds of a whole process that writes 20 tokens
    python scripts/benchmark.py evaluate [--against hf]            tokens/s of a text that are scored, in batches of 4 windows that overlap
                                                                   by half; the peer is the loop of transformers' documentation
    python scripts/benchmark.py train   [--against hf]             tokens/s and memory of training on batches of 4 x 256, in
                                                                   bfloat16; the peer is the plain loop that everyone writes

Every engine runs in a process of its own, and the engines take turns: a machine with other work slows all of them down alike.
The medians of the rounds are printed, with their ratios to the first engine, and what they are of the limit: for `decode`
the bandwidth of memory, measured in every round, over the bytes of weights that one token reads. The last line is JSON.

The model is any that gpt2kit finds, with its vocabulary. For the peers it is converted once, into the folder --work.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

KINDS = {
    "kit": ("float32", "bfloat16", "int8"),
    "hf": ("float32", "bfloat16"),
    "ct2": ("float32", "int8_float32"),
    "llama": ("f32", "bf16", "q8_0"),
}
BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int8_float32": 1.0, "f32": 4.0, "bf16": 2.0, "q8_0": 34 / 32}  # of a weight
SEED_TOKEN = 1000  # prompts are this id and those after it
PREFILL = 1000


# --- one engine, in its own process ----------------------------------------------------------------------------------


def decode_rate(go: Callable[[int], None], tokens: int, batch: int) -> float:
    """Return new tokens per second of a function that continues a prompt by n tokens, without the reading of the prompt."""
    go(8)
    return batch * (tokens - 1) / (seconds(go, tokens) - seconds(go, 1))


def seconds(function: Callable[..., object], *arguments: object) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def prompt(task: dict[str, Any]) -> list[int]:
    length = PREFILL if task["what"] == "prefill" else 16
    return list(range(SEED_TOKEN, SEED_TOKEN + length))


def rate(task: dict[str, Any], go: Callable[[int], None]) -> float:
    """Return what the task asks for: tokens per second of reading a prompt, or of writing."""
    if task["what"] == "prefill":
        go(1)
        return PREFILL / statistics.median(seconds(go, 1) for _ in range(3))
    return decode_rate(go, task["tokens"], task["batch"])


def run_kit(kind: str, task: dict[str, Any]) -> float:
    import torch

    import gpt2kit

    torch.set_num_threads(task["threads"])
    options: dict[str, Any] = {"quantize": kind} if kind == "int8" else {"dtype": kind}
    model, _ = gpt2kit.load(Path(task["model"]), device="cpu", **options)
    prompts = [prompt(task)] * task["batch"]
    if task["what"] == "batch":
        prompts = [[row, *tokens] for row, tokens in enumerate(prompts)]  # different ones, or they would be read once

    def go(n: int) -> None:
        for _ in gpt2kit.generate_tokens(model, prompts, max_tokens=n, sampling=gpt2kit.Sampling(temperature=0)):
            pass

    return rate(task, go)


def run_hf(kind: str, task: dict[str, Any]) -> float:
    import torch
    from transformers import GPT2LMHeadModel

    torch.set_num_threads(task["threads"])
    model: Any = GPT2LMHeadModel.from_pretrained(task["model"], dtype=getattr(torch, kind))
    model.eval()
    ids = torch.tensor([prompt(task)] * task["batch"])

    def go(n: int) -> None:
        with torch.inference_mode():
            model.generate(ids, max_new_tokens=n, min_new_tokens=n, do_sample=False, pad_token_id=0)

    return rate(task, go)


def run_ct2(kind: str, task: dict[str, Any]) -> float:
    import ctranslate2

    folder = Path(task["work"]) / f"ct2-{kind}"
    if not folder.exists():
        ctranslate2.converters.TransformersConverter(task["model"]).convert(str(folder), quantization=kind)
    generator = ctranslate2.Generator(str(folder), device="cpu", intra_threads=task["threads"], compute_type=kind)
    length = len(prompt(task))
    start = [["Hello"] * length] * task["batch"]

    def go(n: int) -> None:
        generator.generate_batch(start, max_length=length + n, min_length=length + n, sampling_topk=1, include_prompt_in_result=False)

    return rate(task, go)


def run_llama(kind: str, task: dict[str, Any]) -> float:
    from llama_cpp import Llama

    file = Path(task["work"]) / f"gpt2-{kind}.gguf"
    if not file.exists():
        write_gguf(Path(task["model"]), file, kind)
    model = Llama(str(file), n_ctx=1024, n_batch=1024, n_threads=task["threads"], n_threads_batch=task["threads"], verbose=False)

    def go(n: int) -> None:
        model.reset()
        model.eval(prompt(task))
        for _ in range(n - 1):
            model.eval([model.sample(temp=0.0)])

    return rate(task, go)


def write_gguf(model: Path, out: Path, kind: str) -> None:
    """Write a model as llama.cpp reads it."""
    import gguf
    import torch

    from gpt2kit.checkpoints import open_checkpoint

    checkpoint = open_checkpoint(model)
    config = checkpoint.config
    stored = {"f32": None, "bf16": gguf.GGMLQuantizationType.BF16, "q8_0": gguf.GGMLQuantizationType.Q8_0}[kind]
    writer = gguf.GGUFWriter(str(out.with_suffix(".part")), "gpt2")
    writer.add_context_length(config.n_ctx)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.inner_size)
    writer.add_block_count(config.n_layer)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    vocabulary = json.loads((checkpoint.folder / "vocab.json").read_text(encoding="utf-8"))
    merges = (checkpoint.folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.__getitem__))
    writer.add_token_types([1] * (config.n_vocab - 1) + [3])
    writer.add_token_merges([line for line in merges if line and not line.startswith("#version")])
    names = {
        "wte": "token_embd",
        "wpe": "position_embd",
        "ln_f": "output_norm",
        "ln_1": "attn_norm",
        "ln_2": "ffn_norm",
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    }

    def add(name: str, tensor: torch.Tensor) -> None:
        array = tensor.float().contiguous().numpy()
        if array.ndim == 2 and stored is not None and name != "position_embd.weight":
            writer.add_tensor(name, gguf.quants.quantize(array, stored), raw_dtype=stored)
        else:
            writer.add_tensor(name, array)

    for name, tensor in checkpoint.tensors.items():
        module, kind_of_tensor = name.rsplit(".", 1)
        if module.startswith("h."):
            _, layer, inside = module.split(".", 2)
            add(f"blk.{layer}.{names[inside]}.{kind_of_tensor}", tensor.read())
        else:
            add(f"{names[module]}.{kind_of_tensor}", tensor.read())
    add("output.weight", checkpoint.tensors["wte.weight"].read())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(out.with_suffix(".part"), out)


# --- evaluation ------------------------------------------------------------------------------------------------------

EVALUATE_BATCH = 4


def evaluate_text(task: dict[str, Any]) -> tuple[list[int], int]:
    """Return ids that whole windows cover, and their stride."""
    from gpt2kit import store
    from gpt2kit.checkpoints import open_checkpoint

    config = open_checkpoint(store.find(Path(task["model"]))).config
    stride = config.n_ctx // 2
    n = config.n_ctx + stride * max(1, task["tokens"] // stride - 2) + 1
    return [(SEED_TOKEN + 7 * place) % config.n_vocab for place in range(n)], stride


def evaluate_kit(kind: str, task: dict[str, Any]) -> float:
    """`gpt2kit.evaluate` without the cutting of the text into tokens."""
    import numpy as np

    import gpt2kit
    from gpt2kit.evaluate import token_surprisals

    ids, stride = evaluate_text(task)
    options: dict[str, Any] = {"quantize": kind} if kind == "int8" else {"dtype": kind}
    model, _ = gpt2kit.load(Path(task["model"]), device="cpu", **options)
    token_surprisals(model, np.array(ids[:65]), stride=stride)
    return (len(ids) - 1) / seconds(lambda: token_surprisals(model, np.array(ids), stride=stride, batch_size=EVALUATE_BATCH))


def evaluate_hf(kind: str, task: dict[str, Any]) -> float:
    """The loop of transformers' page on perplexity, several windows at once."""
    import torch
    from transformers import GPT2LMHeadModel

    ids, stride = evaluate_text(task)
    model: Any = GPT2LMHeadModel.from_pretrained(task["model"], dtype=getattr(torch, kind))
    model.eval()
    n_ctx = model.config.n_positions
    starts = range(0, len(ids) - n_ctx, stride)

    def go() -> None:
        for first in range(0, len(starts), EVALUATE_BATCH):
            read = torch.tensor([ids[start : start + n_ctx] for start in starts[first : first + EVALUATE_BATCH]])
            labels = read.clone()
            labels[0 if first else 1 :, : n_ctx - stride] = -100
            with torch.inference_mode():
                float(model(read, labels=labels).loss)

    with torch.inference_mode():
        model(torch.tensor([ids[:64]]))
    return (len(ids) - 1) / seconds(go)


# --- training --------------------------------------------------------------------------------------------------------

TRAIN_BATCH, TRAIN_BLOCK = 4, 256


def train_hf(task: dict[str, Any]) -> float:
    """The plain loop: autocast, all logits in float32, clipping, fused AdamW; transformers' GPT-2 is the model."""
    import torch
    import torch.nn.functional as F
    from transformers import GPT2LMHeadModel

    model: Any = GPT2LMHeadModel.from_pretrained(task["model"], dtype=torch.float32)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-5, fused=True)

    def step() -> None:
        ids = torch.randint(0, model.config.vocab_size, (TRAIN_BATCH, TRAIN_BLOCK + 1))
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids[:, :-1]).logits
            loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return TRAIN_BATCH * TRAIN_BLOCK / statistics.median([seconds(step) for _ in range(task["tokens"])][1:])


def train_kit(task: dict[str, Any]) -> float:
    """`gpt2kit.train` as `gpt2kit finetune` calls it, without a run to save."""
    import numpy as np

    import gpt2kit
    from gpt2kit.corpus import Corpus, CorpusReport

    model, _ = gpt2kit.load(Path(task["model"]), device="cpu", dtype="float32")
    ids = np.random.default_rng(0).integers(0, model.config.n_vocab, 100_000).astype(np.uint16)
    report = CorpusReport([], 1, 0, 0, None, None, len(ids), 0, None)
    config = gpt2kit.TrainConfig(
        max_steps=task["tokens"],
        block_size=TRAIN_BLOCK,
        batch_size=TRAIN_BATCH,
        optimizer="adamw",
        lr=3e-5,
        dtype="bfloat16",
        warmup=1,
    )
    reports = gpt2kit.train(model, Corpus(ids, ids[:0], report, ""), config)
    return statistics.median([report.tokens_per_second for report in reports if report.tokens_per_second][1:])


RUN: dict[str, Callable[[str, dict[str, Any]], float]] = {"kit": run_kit, "hf": run_hf, "ct2": run_ct2, "llama": run_llama}


def load_seconds(engine: str, task: dict[str, Any]) -> float:
    """Load a model and read every one of its weights once, the import not counted."""
    family, kind = engine.split("-", 1)
    import torch

    if family == "hf":
        from transformers import GPT2LMHeadModel

        return seconds(
            lambda: sum(p.sum() for p in GPT2LMHeadModel.from_pretrained(task["model"], dtype=getattr(torch, kind)).parameters())
        )
    from gpt2kit.checkpoints import load

    options: dict[str, Any] = {"quantize": kind} if kind == "int8" else {"dtype": kind}
    return seconds(lambda: sum(p.sum() for p in load(Path(task["model"]), device="cpu", **options)[0].parameters()))


def in_this_process(engine: str, task: dict[str, Any]) -> None:
    """Print the engine's figure, and the most memory that the process has had."""
    import resource

    family, kind = engine.split("-", 1)
    if task["what"] == "train":
        import torch

        torch.set_num_threads(task["threads"])
        value = train_kit(task) if family == "kit" else train_hf(task)
    elif task["what"] == "evaluate":
        import torch

        torch.set_num_threads(task["threads"])
        value = (evaluate_kit if family == "kit" else evaluate_hf)(kind, task)
    else:
        value = load_seconds(engine, task) if task["what"] == "load" else RUN[family](kind, task)
    print(json.dumps([value, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))


# --- the comparison --------------------------------------------------------------------------------------------------


def in_its_own_process(engine: str, task: dict[str, Any]) -> tuple[float, float]:
    """Return the engine's figure and its peak of memory; NaN where it fails, saying so."""
    command = [sys.executable, __file__, "engine", engine, json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{engine}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}", file=sys.stderr)
        return float("nan"), float("nan")
    value, peak = json.loads(done.stdout.splitlines()[-1])
    return value, peak


def cold_seconds(engine: str, task: dict[str, Any]) -> tuple[float, float]:
    """Return the seconds of a whole process that loads the model and writes 20 greedy tokens; `kit-help` only prints the help."""
    family, kind = engine.split("-", 1)
    kit = [sys.executable, "-m", "gpt2kit"]
    generate = [*kit, "generate", "Every effort moves you", "--model", task["model"], "--max_tokens", "20", "--temperature", "0"]
    program = (
        "import torch; from transformers import GPT2LMHeadModel; ids = torch.tensor([[6109, 3626, 6100, 345]]); "
        f"model = GPT2LMHeadModel.from_pretrained({task['model']!r}, dtype=torch.{kind}).eval(); "
        "print(model.generate(ids, max_new_tokens=20, min_new_tokens=20, do_sample=False, pad_token_id=0))"
    )
    command = {
        "kit": [*kit, "--help"] if kind == "help" else [*generate, *(["--quantize", "int8"] if kind == "int8" else ["--dtype", kind])],
        "hf": [sys.executable, "-c", program],
    }[family]
    return seconds(lambda: subprocess.run(command, capture_output=True, check=True)), float("nan")


def bandwidth(threads: int) -> float:
    """Return the bytes per second that this machine reads from memory, the best of five sums over 512 MiB."""
    import torch

    torch.set_num_threads(threads)
    block = torch.ones(128 * 1024 * 1024)
    return max(block.nbytes / seconds(block.sum) for _ in range(5))


def matrix_weights(model: str) -> int:
    """Return how many weights one token reads."""
    from gpt2kit.checkpoints import open_checkpoint

    config = open_checkpoint(Path(model)).config
    shapes = {name: shape for name, shape in config.shapes().items() if len(shape) == 2 and name != "wpe.weight"}
    if not config.tie_word_embeddings:
        del shapes["wte.weight"]
    return sum(rows * columns for rows, columns in shapes.values())


def engines_of(what: str, against: str) -> list[str]:
    if what == "train":
        return [f"{family}-bfloat16" for family in [*("hf" for family in against.split(",") if family == "hf"), "kit"]]
    able = {"decode": "hf ct2 llama", "batch": "hf ct2", "prefill": "hf ct2 llama", "load": "hf", "cold": "hf", "evaluate": "hf"}[
        what
    ].split()
    families = [family for family in against.split(",") if family]
    if unknown := set(families) - KINDS.keys():
        raise SystemExit(f"--against knows hf, ct2 and llama, not {', '.join(sorted(unknown))}")
    engines = [f"{family}-{kind}" for family in families if family in able for kind in KINDS[family]]
    return engines + [f"kit-{kind}" for kind in KINDS["kit"]] + (["kit-help"] if what == "cold" else [])


def compare(task: dict[str, Any], engines: list[str], rounds: int) -> dict[str, Any]:
    """Run every engine in every round and return the medians."""
    measure = cold_seconds if task["what"] == "cold" else in_its_own_process
    speed = task["what"] in ("decode", "batch", "prefill", "train", "evaluate")
    found: dict[str, list[tuple[float, float]]] = {engine: [] for engine in engines}
    bandwidths = []
    for _ in range(rounds):
        if speed:
            bandwidths.append(bandwidth(task["threads"]))
        for engine in engines:
            found[engine].append(measure(engine, task))
    base = statistics.median(value for value, _ in found[engines[0]])
    weights = matrix_weights(task["model"])
    result: dict[str, Any] = {"task": task, "rounds": rounds, "first": engines[0], "engines": {}}
    if bandwidths:
        result["bandwidth_GBps"] = round(statistics.median(bandwidths) / 1e9, 1)
    for engine in engines:
        value, peak = (statistics.median(column) for column in zip(*found[engine], strict=True))
        row: dict[str, Any] = {"tokens_per_second" if speed else "seconds": round(value, 3), "ratio": round(value / base, 2)}
        if task["what"] in ("decode", "batch"):
            limit = statistics.median(bandwidths) / (weights * BYTES[engine.split("-", 1)[1]]) * task["batch"]
            row["of_bandwidth"] = round(value / limit, 2)
        if peak == peak:
            row["peak_GB"] = round(peak / 1e9, 2)
        result["engines"][engine] = row
    return result


def show(result: dict[str, Any]) -> None:
    task = result["task"]
    speed = "" if "bandwidth_GBps" not in result else f", memory reads {result['bandwidth_GBps']} GB/s"
    print(
        f"{task['what']}: batch {task['batch']}, {task['tokens']} tokens, {task['threads']} threads, medians of {result['rounds']}{speed}"
    )
    keys = list(dict.fromkeys(key for row in result["engines"].values() for key in row))
    print(f"{'':<18}" + "".join(f"{key:>20}" for key in keys))
    for engine, row in result["engines"].items():
        print(f"{engine:<18}" + "".join(f"{row.get(key, ''):>20}" for key in keys))
    print(json.dumps(result))


def main() -> None:
    if len(sys.argv) == 4 and sys.argv[1] == "engine":
        in_this_process(sys.argv[2], json.loads(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["decode", "batch", "prefill", "load", "cold", "evaluate", "train"])
    parser.add_argument("--against", default="", metavar="hf,ct2,llama", help="peers that are installed; none by default")
    parser.add_argument("--engines", help="exactly these, such as hf-float32,kit-int8; the first is what the ratios are to")
    parser.add_argument("--model", default="124M", help="a size, a folder, or a Hub id")
    parser.add_argument("--work", type=Path, default=Path("weights/benchmark"), help="where the peers' converted weights are kept")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, help="new ones, 128 by default; for evaluate, to score, 2560; for train, steps, 6")
    parser.add_argument("--batch_size", type=int, default=8, help="for batch")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()

    from gpt2kit import store

    task = {
        "what": options.what,
        "model": str(store.find(options.model)),
        "work": str(options.work),
        "tokens": options.tokens or {"train": 6, "evaluate": 2560}.get(options.what, 128),
        "batch": {"batch": options.batch_size, "evaluate": EVALUATE_BATCH}.get(options.what, 1),
        "threads": options.threads,
    }
    options.work.mkdir(parents=True, exist_ok=True)
    engines = options.engines.split(",") if options.engines else engines_of(options.what, options.against)
    show(compare(task, engines, options.rounds))


if __name__ == "__main__":
    main()
