"""decode, batch, prefill and scale: tokens per second of generating, or of reading a prompt."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

from measures.gguf_file import write_gguf
from measures.timing import Figures, Task, load_hf, load_kit, prompt, seconds


def rate(task: Task, go: Callable[[int], None]) -> Figures:
    """Return the tokens per second of a function that continues the prompt by n tokens.

    For prefill, of reading the prompt; otherwise of generating, without the time to read it.
    """
    if task["what"] == "prefill":
        go(1)
        return {
            "tokens_per_second": task["prompt_tokens"]
            / statistics.median(seconds(go, 1) for _ in range(3))
        }
    go(8)
    return {
        "tokens_per_second": task["batch"]
        * (task["tokens"] - 1)
        / (seconds(go, task["tokens"]) - seconds(go, 1))
    }


def kit(kind: str, task: Task) -> Figures:
    import gpt2kit

    compiled = kind.endswith("-compiled")
    model, _ = load_kit(
        kind.removesuffix("-compiled"), task["model"], task["threads"], task["device"]
    )
    prompts = [prompt(task)] * task["batch"]
    if task["what"] == "batch":
        # Equal prompts would be read only once.
        prompts = [[row, *tokens] for row, tokens in enumerate(prompts)]

    def go(n: int) -> None:
        greedy = gpt2kit.Sampling(temperature=0)
        for _ in gpt2kit.generate_tokens(
            model, prompts, max_tokens=n, sampling=greedy, compile=compiled
        ):
            pass

    if compiled or task["device"] != "cpu":
        go(task["tokens"])  # compiles, or captures graphs, for texts of this length
    return rate(task, go)


def hf(kind: str, task: Task) -> Figures:
    import torch

    model = load_hf(kind, task["model"], task["threads"], task["device"])
    ids = torch.tensor([prompt(task)] * task["batch"], device=task["device"])

    def go(n: int) -> None:
        with torch.inference_mode():
            model.generate(
                ids, max_new_tokens=n, min_new_tokens=n, do_sample=False, pad_token_id=0
            ).tolist()

    return rate(task, go)


def ct2(kind: str, task: Task) -> Figures:
    import ctranslate2

    folder = Path(task["work"]) / f"ct2-{kind}"
    if not folder.exists():
        ctranslate2.converters.TransformersConverter(task["model"]).convert(
            str(folder), quantization=kind
        )
    generator = ctranslate2.Generator(
        str(folder), device="cpu", intra_threads=task["threads"], compute_type=kind
    )
    length = len(prompt(task))
    start = [["Hello"] * length] * task["batch"]

    def go(n: int) -> None:
        generator.generate_batch(
            start,
            max_length=length + n,
            min_length=length + n,
            sampling_topk=1,
            include_prompt_in_result=False,
        )

    return rate(task, go)


def llama(kind: str, task: Task) -> Figures:
    from llama_cpp import Llama

    file = Path(task["work"]) / f"gpt2-{kind}.gguf"
    if not file.exists():
        write_gguf(Path(task["model"]), file, kind)
    model = Llama(
        str(file),
        n_ctx=1024,
        n_batch=1024,
        n_threads=task["threads"],
        n_threads_batch=task["threads"],
        verbose=False,
    )

    def go(n: int) -> None:
        model.reset()
        model.eval(prompt(task))
        for _ in range(n - 1):
            model.eval([model.sample(temp=0.0)])

    return rate(task, go)
