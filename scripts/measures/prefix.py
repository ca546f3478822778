"""prefix: the time to read several prompts, relative to one.

The prompts are equal, share all but their ends, or share nothing.
"""

from __future__ import annotations

from measures.timing import Figures, Task, load_kit, prompt, seconds

OWN = 16  # tokens at the end of each prompt that differ, if the rest is shared


def kit(kind: str, task: Task) -> Figures:
    import gpt2kit

    model, _ = load_kit(kind, task["model"], task["threads"])
    rows, one = range(task["batch"]), prompt(task)
    kinds = {
        "one": [one],
        "equal": [one for _ in rows],
        "shared": [[*one[:-OWN], *[row] * OWN] for row in rows],
        "different": [[row, *one[1:]] for row in rows],
    }

    def read(prompts: list[list[int]]) -> None:
        next(
            iter(
                gpt2kit.generate_tokens(
                    model, prompts, max_tokens=1, sampling=gpt2kit.Sampling(temperature=0)
                )
            )
        )

    read([one])
    found = {name: seconds(read, prompts) for name, prompts in kinds.items()}
    return {
        "seconds": found["one"],
        **{name: found[name] / found["one"] for name in ("equal", "shared", "different")},
    }
