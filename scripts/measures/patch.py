"""patch: seconds of patching the residual stream at every layer and position, each by itself."""

from __future__ import annotations

import resource
from collections.abc import Callable

from measures.timing import Figures, Task, load_hf, load_kit, prompt, seconds

_SWEEPS = 3  # of which the quickest counts


def prompts(task: Task) -> tuple[list[int], list[int]]:
    """Return a clean and a corrupted prompt of one length, which share their first token."""
    clean = prompt(task)
    return clean, [clean[0], *((token + 7919) % task["n_vocab"] for token in clean[1:])]


def measure(sweep: Callable[[], object]) -> Figures:
    """Return the seconds of the quickest sweep, and the processor time of one on average."""
    sweep()
    before = resource.getrusage(resource.RUSAGE_SELF)
    taken = min(seconds(sweep) for _ in range(_SWEEPS))
    after = resource.getrusage(resource.RUSAGE_SELF)
    spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return {"seconds": taken, "processor_s": spent / _SWEEPS}


def kit(kind: str, task: Task) -> Figures:
    """`gpt2kit.inspection.patch`."""
    from gpt2kit.inspection import Pair, patch

    model, _ = load_kit(kind, task["model"], task["threads"])
    pair = Pair(*prompts(task), 1, 2)
    return measure(lambda: patch(model, pair))


def tl(kind: str, task: Task) -> Figures:
    """A run with one hook for each layer and position, as TransformerLens's patching has it."""
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    loaded = load_hf(kind, task["model"], task["threads"])
    tokenizer = AutoTokenizer.from_pretrained(task["model"])
    model = TransformerBridge.boot_transformers("gpt2", hf_model=loaded, tokenizer=tokenizer)
    clean, corrupted = (torch.tensor([ids]) for ids in prompts(task))
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.cfg.n_layers)]
    with torch.inference_mode():
        _, cache = model.run_with_cache(clean, names_filter=names)

    def one(name: str, position: int) -> None:
        def put(x: torch.Tensor, hook: object) -> torch.Tensor:
            x = x.clone()
            x[:, position] = cache[name][:, position]
            return x

        logits = model.run_with_hooks(corrupted, fwd_hooks=[(name, put)])
        float(logits[0, -1, 1] - logits[0, -1, 2])

    def sweep() -> None:
        with torch.inference_mode():
            for name in names:
                for position in range(clean.shape[1]):
                    one(name, position)

    return measure(sweep)
