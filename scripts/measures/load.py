"""load: seconds to load a model and read each of its weights once, without the imports."""

from __future__ import annotations

from measures.timing import Figures, Task, load_hf, load_kit, seconds


def kit(kind: str, task: Task) -> Figures:
    import gpt2kit.checkpoints  # noqa: F401

    return {
        "seconds": seconds(
            lambda: sum(
                p.sum() for p in load_kit(kind, task["model"], task["threads"])[0].parameters()
            )
        )
    }


def hf(kind: str, task: Task) -> Figures:
    from transformers import GPT2LMHeadModel  # noqa: F401

    return {
        "seconds": seconds(
            lambda: sum(p.sum() for p in load_hf(kind, task["model"], task["threads"]).parameters())
        )
    }
