"""The tasks of `evaluate` that have groups of items: minimal pairs and test suites."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2kit.cli import output

if TYPE_CHECKING:
    from gpt2kit.evaluation.pairs import Pair, Protocol
    from gpt2kit.evaluation.suites import Suite

TASKS = ("blimp", "pairs", "syntaxgym")


@dataclass(frozen=True)
class Measured:
    """What a model got right."""

    figures: dict[str, Any]  # overall, and under "groups" by group and by group within it
    rows: list[dict[str, Any]]  # one for each item


Measure = Callable[..., Measured]  # of a model and its tokenizer, batch_size and progress


def read(task: str, path: Path, protocol: Protocol) -> Measure:
    """Read a task's items, and return what measures a model on them."""
    if task == "syntaxgym":
        from gpt2kit.evaluation.suites import read_suites

        suites = read_suites(path)
        return lambda *model, **how: _on_suites(suites, *model, **how)
    from gpt2kit.evaluation.pairs import read_blimp, read_pairs

    pairs = (read_blimp if task == "blimp" else read_pairs)(path)
    return lambda *model, **how: _on_pairs(pairs, protocol, *model, **how)


def _on_pairs(
    pairs: Sequence[Pair], protocol: Protocol, model: Any, tokenizer: Any, **how: Any
) -> Measured:
    from gpt2kit.evaluation.pairs import score_pairs

    scored = score_pairs(model, tokenizer, pairs, protocol=protocol, **how)
    rows = [
        {
            "phenomenon": each.pair.phenomenon,
            "paradigm": each.pair.paradigm,
            "item": each.pair.item,
            "good": each.pair.good,
            "bad": each.pair.bad,
            "logprob_good": each.logprob_good,
            "logprob_bad": each.logprob_bad,
            "tokens_good": each.tokens_good,
            "tokens_bad": each.tokens_bad,
            "correct": each.correct,
            "error": each.error,
        }
        for each in scored
    ]
    errors = sum(each.error is not None for each in scored)
    groups = _groups(rows, "phenomenon", "paradigm")
    figures = {"as": protocol, **_accuracy(rows), "errors": errors, "groups": groups}
    return Measured(figures, rows)


def _on_suites(suites: Sequence[Suite], model: Any, tokenizer: Any, **how: Any) -> Measured:
    from gpt2kit.evaluation.suites import score_suites

    rows = [asdict(each) for each in score_suites(model, tokenizer, suites, **how)]
    groups = _groups(rows, "suite", "prediction")
    mean = sum(group["accuracy"] for group in groups) / len(groups)
    return Measured({**_accuracy(rows), "mean_of_suites": mean, "groups": groups}, rows)


def _accuracy(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the accuracy over the rows that could be scored."""
    from gpt2kit.evaluation.accuracy import accuracy

    return asdict(accuracy([row["correct"] for row in rows if row["correct"] is not None]))


def _groups(rows: Sequence[dict[str, Any]], key: str, *within: str) -> list[dict[str, Any]]:
    """Return the accuracy of the rows with each value under a key, and of groups within these."""
    found: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row[key], []).append(row)
    return [
        {key: value, **_accuracy(some)} | ({"groups": _groups(some, *within)} if within else {})
        for value, some in found.items()
    ]


# --- what is shown --------------------------------------------------------------------------------


def warn_of_errors(name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Say how many items a model could not score, and why the first one."""
    if errors := [row["error"] for row in rows if row.get("error")]:
        output.warn(f"{name}: {output.count(len(errors), 'pair')} left out; the first: {errors[0]}")


def print_table(found: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    """Print a column of accuracies for each model, with a line for each group of items."""
    lines = [["", *names], ["items", *(f"{row['items']:,}" for row in found)]]
    if "as" in found[0]:
        lines.append(["as", *(row["as"] for row in found)])
    if any(row.get("errors") for row in found):
        lines.append(["left out", *(f"{row['errors']:,}" for row in found)])
    lines.append(["accuracy", *map(_shown, found)])
    if "mean_of_suites" in found[0]:
        lines.append(["mean of suites", *(f"{row['mean_of_suites']:.4f}" for row in found)])
    lines += _group_lines([row["groups"] for row in found], "")
    output.result("\n".join(output.table(lines, right=range(1, len(names) + 1))))


def _group_lines(models: Sequence[list[dict[str, Any]]], indent: str) -> list[list[str]]:
    """Return a line for each group, and below it one for each group within it, if several."""
    lines = []
    for same in zip(*models, strict=True):  # the same group of each model
        key, value = next(iter(same[0].items()))
        name = f"{key} {value}" if isinstance(value, int) else value
        lines.append([indent + name, *map(_shown, same)])
        within = [group.get("groups", []) for group in same]
        if len(within[0]) > 1 or any(each.get("paradigm", name) != name for each in within[0]):
            lines += _group_lines(within, f"{indent}  ")
    return lines


def _shown(group: dict[str, Any]) -> str:
    if group["accuracy"] is None:
        return "-"
    error = group["accuracy_standard_error"]
    return f"{group['accuracy']:.4f}" + ("" if error is None else f" ± {error:.4f}")
