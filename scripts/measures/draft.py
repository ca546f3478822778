"""draft: tokens per second of generating with a draft and without."""

from __future__ import annotations

import statistics
import time
from typing import Any, NamedTuple

from measures.timing import Figures, Task, load_kit, prompt, seconds

# The prompts: a text that repeats itself, code, and prose that does not repeat.
TEXTS = {
    "list": """\
Anna: present, then absent
Bruno: present, then absent
Carla: present, then absent
Dora: present, then""",
    "code": """\
def area(width, height):
    return width * height


def volume(width, height, depth):
    return width * height * depth


""",
    "prose": (
        "The road went down to the river, and there the old man stopped and looked back "
        "at the house where he was born. "
    ),
}
TURNS = 3
AT_ONCE = 8  # tokens read in one step with the usual number of proposals


def kit(kind: str, task: Task) -> Figures:
    from gpt2kit.tokenizers.listed import ListedTokenizer

    model, tokenizer = load_kit(kind, task["model"], task["threads"])
    draft: Any = (
        task["draft"]
        if task["draft"] == "lookup"
        else load_kit(kind, task["draft"], task["threads"])[0]
    )
    if isinstance(tokenizer, ListedTokenizer):
        tokenizer.unknown = "skip"
    write(model, tokenizer, task, draft, tokens=8)
    turns = [
        (write(model, tokenizer, task, None), write(model, tokenizer, task, draft))
        for _ in range(TURNS)
    ]
    without, with_draft = (
        statistics.median(rates)
        for rates in zip(*((one.rate, other.rate) for one, other in turns), strict=True)
    )
    last = turns[-1][1]
    return {
        "tokens_per_second": with_draft,
        "without": without,
        "gain": with_draft / without,
        "accepted": last.accepted,
        "per_step": last.per_step,
        f"cost_of_{AT_ONCE}": cost_of_several(model, task),
    }


class Written(NamedTuple):
    """Figures of one generated text."""

    rate: float  # tokens per second, without the time to read the prompt
    accepted: float  # share of the proposed tokens
    per_step: float  # tokens, including the model's own


def write(model: Any, tokenizer: Any, task: Task, draft: Any, tokens: int | None = None) -> Written:
    import gpt2kit

    n_new, warmth = tokens or task["tokens"], task["temperature"]
    pieces = gpt2kit.stream(
        model,
        tokenizer,
        TEXTS[task["text"]],
        max_tokens=n_new,
        temperature=warmth,
        top_k=40,
        seed=1,
        ignore_eos=True,
        draft=draft,
    )
    next(pieces)  # reads the prompt
    start, n, steps, proposed, accepted = time.perf_counter(), 0, 0, 0, 0
    for piece in pieces:
        n += 1
        if piece.checked is not None:
            steps, proposed, accepted = (
                steps + 1,
                proposed + piece.checked.proposed,
                accepted + piece.checked.accepted,
            )
    return Written(
        n / (time.perf_counter() - start), accepted / max(proposed, 1), n / max(steps, 1)
    )


def cost_of_several(model: Any, task: Task) -> float:
    """Return the time to read several tokens at once divided by the time to read one."""
    import torch

    from gpt2kit.engine.decoder import Decoder

    decoder, cache = Decoder(model), model.new_cache()
    ids = prompt(task, AT_ONCE)
    taken: dict[int, list[float]] = {1: [], AT_ONCE: []}
    with torch.inference_mode():
        for _ in range(12):
            for n, found in taken.items():
                found.append(seconds(decoder.read_each, [ids[:n]], cache))
                cache.truncate([0])
    one, several = (statistics.median(found) for found in taken.values())
    return several / one
