"""What a training will need, before it starts: memory by part, what fits, and what needs less."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from gpt2kit.config import SIZES, GPT2Config
from gpt2kit.training.config import TrainConfig
from gpt2kit.training.distributed import Ranks
from gpt2kit.training.outline import Outline
from gpt2kit.training.rehearsal import Memory, rehearse

Verdict = Literal["fits", "fits with LoRA", "does not fit"]

LORA_RANK = 8  # that is suggested, and in the comparison of sizes
_MARGIN = 0.9  # share of the free memory that may be planned for
_MEMINFO = Path("/proc/meminfo")
_STATUS = Path("/proc/self/status")
CONTAINER = Path("/sys/fs/cgroup")


def memory(
    outline: Outline, config: TrainConfig, device: torch.device, ranks: Ranks | None = None
) -> Memory:
    """Return the memory that a training needs at its peak, in each process.

    On a CPU it is the largest resident set of the process, on other devices their own memory.
    """
    ranks = ranks or Ranks()
    windows, _ = batch_parts(config, ranks)
    needed = rehearse(outline, config, windows, device)
    trained = _n_params(outline, outline.trained)
    if ranks.world_size == 1:
        return needed
    if not ranks.sharded:  # DistributedDataParallel copies the gradients to exchange them
        return replace(needed, gradients=needed.gradients + 4 * trained)
    # Every process has a share of each tensor, and whole tensors of two blocks and outside them.
    whole = _n_params(outline, _parameters(outline, most_blocks=2))
    return replace(
        needed,
        weights=needed.weights // ranks.world_size + 4 * whole,
        gradients=needed.gradients // ranks.world_size + 4 * min(trained, whole),
        optimizer=needed.optimizer // ranks.world_size,
    )


def batch_parts(config: TrainConfig, ranks: Ranks) -> tuple[int, int]:
    """Return how many windows a process computes at once, and how many times in a step."""
    share = max(1, config.batch_size // ranks.world_size)
    parts = math.gcd(config.accumulate, share)
    return share // parts, parts


def _parameters(outline: Outline, most_blocks: int) -> Collection[str]:
    """Return the names of the parameters of a model with fewer blocks."""
    return outline.with_blocks(min(outline.config.n_layer, most_blocks)).config.shapes()


def _n_params(outline: Outline, names: Collection[str]) -> int:
    """Return how many weights the named parameters have, adapters included."""
    with torch.device("meta"):
        parameters = dict(outline.build().named_parameters())
    return sum(parameters[name].numel() for name in names if name in parameters)


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that this process can have on a device, or None if the system does not tell.

    What the process has already is included, and a limit on the memory of a container counts.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    try:
        available = _kilobytes(_MEMINFO, "MemAvailable")
        own = _kilobytes(_STATUS, "RssAnon")
    except (OSError, KeyError, ValueError):
        return None
    left = _left_in_container()
    return own + (available if left is None else min(available, left))


def _kilobytes(path: Path, name: str) -> int:
    """Return a value of a file with lines such as `MemAvailable:  1234 kB`, in bytes."""
    lines = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    return int(lines[name].split()[0]) * 1024


def _left_in_container() -> int | None:
    """Return the bytes left up to a container's limit, or None without a limit."""
    try:
        limit = int((CONTAINER / "memory.max").read_text())  # "max" is no limit
        used = dict(line.split() for line in (CONTAINER / "memory.stat").read_text().splitlines())
        return max(0, limit - int(used["anon"]))  # pages of files are dropped if need be
    except (OSError, KeyError, ValueError):
        return None


# --- what fits ---


def fits(needed: Memory, free: int) -> bool:
    """Return whether a training fits into memory, with a margin."""
    return needed.total <= _MARGIN * free


def fit(
    outline: Outline,
    config: TrainConfig,
    device: torch.device,
    free: int,
    *,
    fixed: Collection[str] = (),
    ranks: Ranks | None = None,
) -> TrainConfig:
    """Return the configuration, changed to need less if it would not fit into `free` bytes.

    A batch is cut into more parts, or else blocks are checkpointed, if need be in parts as well:
    both change what a step costs and not what it computes. Fields in `fixed` stay as they are. If
    nothing fits, the result is what needs the least.
    """
    ranks = ranks or Ranks()
    ways = _ways(config, fixed, ranks)
    if _least(outline, config, ranks) > _MARGIN * free:
        return ways[-1]

    def needed(way: TrainConfig) -> Memory:
        return memory(outline, way, device, ranks)

    fitting = (way for way in ways if fits(needed(way), free))
    return next(fitting, None) or min(ways, key=lambda way: needed(way).total)


def _ways(config: TrainConfig, fixed: Collection[str], ranks: Ranks) -> list[TrainConfig]:
    """Return a configuration and those of the same steps that may need less, the quickest first.

    Two parts may need more than one, since the second finds the gradients of the first.
    """
    parts, checkpointing = [config.accumulate], [config.checkpointing]
    if "accumulate" not in fixed:
        more = range(config.accumulate + 1, config.batch_size // ranks.world_size + 1)
        parts += [n for n in more if config.batch_size % (n * ranks.world_size) == 0]
    if not ("checkpointing" in fixed or config.checkpointing):
        checkpointing.append(True)
    return [
        replace(config, accumulate=n, checkpointing=twice) for twice in checkpointing for n in parts
    ]


def _least(outline: Outline, config: TrainConfig, ranks: Ranks) -> int:
    """Return the bytes of weights, gradients and averages, which are needed for any batch."""
    trained = _n_params(outline, outline.trained)
    averages = 1 if config.optimizer == "muon" else 2  # at the least, for each parameter
    least = 4 * outline.config.n_params + 4 * trained * (1 + averages)
    return least // ranks.world_size if ranks.sharded else least


def alternatives(
    outline: Outline,
    config: TrainConfig,
    device: torch.device,
    ranks: Ranks | None = None,
    *,
    can_adapt: bool = True,
) -> dict[str, Memory]:
    """Return options that may make a training need less, and the memory that it needs with each.

    `can_adapt` says whether the command has --lora_rank.
    """
    ranks = ranks or Ranks()
    changed: dict[str, tuple[Outline, TrainConfig]] = {}
    most_parts = config.batch_size // ranks.world_size
    if config.accumulate < most_parts:
        changed[f"--accumulate {most_parts}"] = outline, replace(config, accumulate=most_parts)
    if not config.checkpointing:
        changed["--checkpointing"] = outline, replace(config, checkpointing=True)
    if can_adapt and not outline.lora_rank:
        changed[f"--lora_rank {LORA_RANK}"] = with_adapters(outline), config
    return {
        option: memory(candidate, candidate_config, device, ranks)
        for option, (candidate, candidate_config) in changed.items()
    }


def savings(found: Mapping[str, Memory], needed: Memory) -> dict[str, Memory]:
    """Return those of the alternatives that need less than `needed`, the least first."""
    ordered = sorted(found.items(), key=lambda each: each[1].total)
    return {option: each for option, each in ordered if each.total < needed.total}


def with_adapters(outline: Outline) -> Outline:
    """Return the outline of the same model with adapters, which alone are trained."""
    with torch.device("meta"):
        model = replace(outline, lora_rank=LORA_RANK, trained=frozenset()).build()
    names = (name for name, _ in model.named_parameters() if ".lora_" in name)
    return replace(outline, lora_rank=LORA_RANK, trained=frozenset(names))


def advice(needed: Memory, free: int | None, less: Mapping[str, Memory]) -> str:
    """Say what a training needs by part, what is free, and which options need less."""
    parts = ", ".join(f"{name} {in_gb(size)}" for name, size in vars(needed).items() if size)
    found = "" if free is None else f", and {in_gb(free)} are free"
    return (
        f"this training needs about {in_gb(needed.total)}{found}: {parts}. {advice_on_less(less)}"
    )


def advice_on_less(less: Mapping[str, Memory]) -> str:
    """Say which options need less memory."""
    options = [f"{option} ({in_gb(each.total)})" for option, each in less.items()]
    options += ["a smaller --batch_size or --block_size", "a smaller --model"]
    return f"These need less: {', '.join(options)}"


def in_gb(n_bytes: int) -> str:
    """Return a number of bytes in GB, or a small one in MB or kB."""
    if n_bytes >= 1e8:
        return f"{n_bytes / 1e9:.1f} GB"
    return f"{n_bytes / 1e6:.0f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:.0f} kB"


# --- all sizes ---


@dataclass(frozen=True)
class SizePlan:
    """What fine-tuning a model of one size needs, in three ways."""

    model: str
    parameters: int
    full: Memory
    checkpointing: Memory
    lora: Memory
    verdict: Verdict | None  # None if the free memory is not known


def compare_sizes(
    config: TrainConfig, device: torch.device, predicted: int | None = None
) -> Iterator[SizePlan]:
    """Yield what fine-tuning of each published model needs; `predicted` is that of an outline.

    A model fits if it does with all that `finetune` resorts to by itself: a batch cut into parts,
    and checkpointing.
    """
    free = free_memory(device)
    config = replace(config, accumulate=1, checkpointing=False)
    for name, shape in SIZES.items():
        outline = replace(whole_model(shape), predicted=predicted)
        adapted = with_adapters(outline)
        yield SizePlan(
            model=name,
            parameters=shape.n_params,
            full=memory(outline, config, device),
            checkpointing=memory(outline, replace(config, checkpointing=True), device),
            lora=memory(adapted, config, device),
            verdict=None if free is None else _verdict(outline, adapted, config, device, free),
        )


def _verdict(
    outline: Outline, adapted: Outline, config: TrainConfig, device: torch.device, free: int
) -> Verdict:
    twice = replace(config, checkpointing=True)
    # Those of the `_ways` that need the least: a rehearsal of every one would take minutes.
    ways = config, twice, replace(twice, accumulate=config.batch_size)

    def some_fit(candidate: Outline) -> bool:
        if _least(candidate, config, Ranks()) > _MARGIN * free:
            return False
        return any(fits(memory(candidate, each, device), free) for each in ways)

    if some_fit(outline):
        return "fits"
    return "fits with LoRA" if some_fit(adapted) else "does not fit"


def whole_model(config: GPT2Config) -> Outline:
    """Return the outline of a model of which every parameter is trained."""
    return Outline(config, 0, frozenset(config.shapes()))
