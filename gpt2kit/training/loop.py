"""The training loop, as a stream of reports.

    for report in train(model, corpus, TrainConfig(block_size=256, max_steps=1000)):
        print(report.step, report.train_loss, report.val_loss)

One loop for every start: published weights, adapters, or nothing. It prints nothing; what it saves is the work of
`gpt2kit.checkpoints.training`, and how weights move that of `gpt2kit.optim`.

    B windows of a batch, T = block_size tokens to predict, C width, V vocabulary
"""

from __future__ import annotations

import functools
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from itertools import islice
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpt2kit.data.corpus import Corpus
from gpt2kit.errors import ConfigError, Gpt2KitWarning, TrainingError
from gpt2kit.memory import keep_freed_memory
from gpt2kit.model import GPT2
from gpt2kit.training.distributed import Ranks
from gpt2kit.training.optim import (
    OptimizerName,
    Schedule,
    build_optimizers,
    clip_gradients,
    learning_rate,
    set_learning_rate,
)
from gpt2kit.training.run import Progress, Run
from gpt2kit.training.sharding import let_go_without_backward, shard

Dtype = Literal["float32", "bfloat16"]
FinishReason = Literal["steps", "patience", "stopped"]

FEW_LOGITS = 2**22  # beyond this many, the loss writes their gradient into their place,
LOGITS_AT_ONCE = 2**25  # and has at most so many in memory at a time
_LOGITS_IN_CACHE = 2**19
_ROWS_AT_ONCE = 2**13  # of the head's gradient, before they are added up in float32
_NARROW = 128  # widths below are not faster in bfloat16


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train; the defaults are for a small model from scratch. Raises ConfigError for a value that cannot be."""

    max_steps: int
    block_size: int = 256  # tokens that a window predicts
    batch_size: int = 16  # windows of a step, in all processes together
    accumulate: int = (
        1  # parts that a process cuts its share of a batch into, one at a time in memory
    )
    optimizer: OptimizerName = (
        "muon"  # muon moves the matrices of the blocks, adamw the rest; or adamw moves all
    )
    lr: float = 3e-3  # the highest learning rate
    schedule: Schedule = "linear"  # how it falls after the warm-up
    warmup: int = 50  # steps in which it rises
    weight_decay: float = 0.01  # of matrices and embeddings
    beta1: float = 0.9  # AdamW's averages: of the gradient,
    beta2: float = 0.95  # and of its square
    clip: float = 1.0  # largest norm of the gradient; 0 leaves it as it is
    dtype: Dtype = "float32"  # of matrix products; weights and optimizer are float32
    checkpointing: bool = False  # compute each block twice instead of remembering what is in it
    compile: bool = False  # let torch compile the model, where it can
    eval_every: int = 100  # steps between validations
    eval_tokens: int = 2**18  # of the validation text to use, at most
    save_every: int = 100  # steps between saved states
    patience: int = 0  # validations without a better one before stopping; 0 goes on
    seed: int = 0  # of the order of the windows and of dropout

    def __post_init__(self) -> None:
        def require(name: str, holds: bool, expected: str) -> None:
            if not holds:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, expected {expected}")

        for field in fields(self):
            value, declared = getattr(self, field.name), str(field.type)
            if declared == "int":
                lowest = 0 if field.name in ("warmup", "patience", "seed") else 1
                require(
                    field.name,
                    type(value) is int and lowest <= value < 2**63,
                    f"a whole number, {lowest} or more",
                )
            elif declared == "float":
                require(
                    field.name,
                    type(value) in (int, float) and 0 <= value < math.inf,
                    "a number, 0 or more",
                )
            elif declared == "bool":
                require(field.name, type(value) is bool, "true or false")
        for name, choices in (
            ("optimizer", OptimizerName),
            ("schedule", Schedule),
            ("dtype", Dtype),
        ):
            require(
                name,
                getattr(self, name) in get_args(choices),
                f"one of {', '.join(get_args(choices))}",
            )
        require("lr", self.lr > 0, "more than 0")
        require("beta1", self.beta1 < 1, "less than 1")
        require("beta2", self.beta2 < 1, "less than 1")
        require(
            "warmup", self.warmup < self.max_steps, f"less than the {self.max_steps} steps in all"
        )
        require(
            "accumulate",
            self.batch_size % self.accumulate == 0,
            f"a divisor of the {self.batch_size} windows of a batch",
        )


@dataclass(frozen=True)
class StepReport:
    """What one step did; the first report of a run, step 0, only measures."""

    step: int  # steps done
    train_loss: float | None  # of the step's batch, in nats per token
    val_loss: float | None  # where it was measured
    lr: float
    gradient_norm: float | None  # before clipping
    tokens: int  # read since the start
    epoch: float
    tokens_per_second: float | None
    is_best: bool = False  # no validation before was better
    finish_reason: FinishReason | None = None  # in the last report: why it ended


def train(
    model: GPT2,
    corpus: Corpus,
    config: TrainConfig,
    *,
    run: Run | None = None,
    ranks: Ranks | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[StepReport]:
    """Train the model's trainable parameters and report every step, the state before the first one too.

    With a `run`, its last saved state is gone on from, bit for bit as if there had been no interruption, and states, the best
    weights and the reports are saved in it. `stop` is asked after every step; it and closing the iterator save, too. Torch's
    global random stream is set anew at every step, from seed and step. Raises TrainingError for a loss that is not finite.
    """
    ranks = ranks or Ranks()
    module, optimizers, step_loss = prepare(model, corpus, config, ranks)
    progress = Progress() if run is None else run.restore(model, optimizers)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def measure() -> tuple[float | None, bool]:
        val_loss = evaluate_loss(module, corpus, config, ranks)
        val_loss = val_loss and ranks.mean(val_loss)  # so that all decide alike
        return val_loss, val_loss is None or progress.note(
            val_loss
        )  # with nothing to tell by, the latest is the best

    if run is None or run.last_step is None:
        val_loss, is_best = measure()
        report = StepReport(0, None, val_loss, 0.0, None, 0, 0.0, None, is_best)
        _save(run, report, model, optimizers, progress)
        yield report
    while progress.step < config.max_steps and not progress.finished:
        started = time.perf_counter()
        lr = learning_rate(
            progress.step,
            lr=config.lr,
            max_steps=config.max_steps,
            warmup=config.warmup,
            schedule=config.schedule,
        )
        set_learning_rate(optimizers, lr)
        module.train()
        train_loss = step_loss(progress.step)
        norm = clip_gradients(parameters, config.clip)
        _check_finite(progress.step, train_loss, norm, run)
        for optimizer in optimizers:
            optimizer.step()
        module.eval()  # so that it can be used between the steps
        seconds = time.perf_counter() - started
        progress.step += 1
        done = progress.step == config.max_steps
        stopped = ranks.any(stop())
        val_loss, is_best = (
            measure() if done or progress.step % config.eval_every == 0 else (None, False)
        )
        impatient = 0 < config.patience <= progress.since_best
        reason: FinishReason | None = (
            "steps" if done else "patience" if impatient else "stopped" if stopped else None
        )
        progress.finished = done or impatient
        tokens = config.batch_size * config.block_size
        epoch = progress.step * tokens / len(corpus.train_ids)
        report = StepReport(
            progress.step,
            train_loss,
            val_loss,
            lr,
            norm,
            progress.step * tokens,
            epoch,
            tokens / seconds,
            is_best,
            reason,
        )
        due = progress.step % config.save_every == 0
        _save(run, report, model, optimizers, progress, state=due or reason is not None)
        try:
            yield report
        except GeneratorExit:  # closed between two steps, where the state is whole
            if (
                not ranks.sharded
            ):  # a state in shards takes all processes, and the others may not be here
                _save(run, None, model, optimizers, progress)
            raise
        if reason is not None:
            return


# --- a step ----------------------------------------------------------------------------------------------------------


class NextTokenLoss(nn.Module):
    """The mean loss of a model over (B, T + 1) ids, each but the first predicted from those before it."""

    def __init__(self, model: GPT2, dtype: Dtype = "float32", checkpointing: bool = False) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype
        self.checkpointing = checkpointing

    def forward(self, ids: Tensor) -> Tensor:
        targets = ids[:, 1:].flatten()  # (B * T,)
        with (
            autocast(ids.device, self.dtype),
            _checkpointed(self.model, self.checkpointing and self.training),
        ):
            hidden = self.model.hidden(ids[:, :-1]).flatten(0, 1)  # (B * T, C)
            weight = self.model.head_weight  # (V, C)
            if len(targets) * len(weight) > FEW_LOGITS:
                return _PiecewiseLoss.apply(hidden, weight, targets, self.dtype)  # type: ignore[no-any-return, no-untyped-call]
            logits = F.linear(hidden, weight)  # (B * T, V)
        return F.cross_entropy(logits.float(), targets)


class _PiecewiseLoss(torch.autograd.Function):
    """Cross entropy after a linear layer, with the logits in memory once, in the working precision, and not all if they are many.

    The gradients are made in the forward pass, while the logits are at hand. torch's F.linear_cross_entropy can do this too; on a
    CPU it took four times as long.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: Dtype) -> Tensor:
        working = torch.bfloat16 if dtype == "bfloat16" else hidden.dtype
        h, w, n = hidden.to(working), weight.to(working), len(targets)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        hidden_grad = torch.empty_like(h) if wants_hidden else None
        weight_grad = torch.zeros_like(weight) if wants_weight else None
        total = torch.zeros((), device=h.device)
        rows = max(1, LOGITS_AT_ONCE // len(w))
        for start in range(0, n, rows):
            piece = slice(start, start + rows)
            logits = h[piece] @ w.T  # (rows, V)
            total += _cross_entropy_(
                logits, targets[piece], n, with_gradient=wants_hidden or wants_weight
            )
            if hidden_grad is not None:
                hidden_grad[piece] = logits @ w
            if weight_grad is not None:
                parts = weight_grad.split(_ROWS_AT_ONCE)  # type: ignore[no-untyped-call]
                logits_parts = logits.split(_ROWS_AT_ONCE, dim=1)  # type: ignore[no-untyped-call]
                for part, logits_part in zip(parts, logits_parts, strict=True):
                    part += logits_part.T @ h[piece]  # (rows, C)
        ctx.grads = hidden_grad, weight_grad
        ctx.hidden_dtype = hidden.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, weight_grad = ctx.grads
        del ctx.grads  # they are scaled where they are, once: here memory is at its highest
        scale = output_grads[0]
        return (
            None if hidden_grad is None else (hidden_grad * scale).to(ctx.hidden_dtype),
            None if weight_grad is None else weight_grad.mul_(scale),
            None,
            None,
        )


def _cross_entropy_(logits: Tensor, targets: Tensor, n: int, *, with_gradient: bool) -> Tensor:
    """Return the sum of the cross entropies of some rows over n, and on wish leave its gradient in place of the logits: (rows, V), (rows,).

    A few rows at a time, which a processor's cache holds while float32 goes over them again and again.
    """
    total = torch.zeros((), device=logits.device)
    rows = (
        max(1, _LOGITS_IN_CACHE // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    )
    for piece, target in zip(logits.split(rows), targets[:, None].split(rows), strict=True):  # type: ignore[no-untyped-call]
        logprobs = torch.log_softmax(
            piece, dim=-1, dtype=torch.promote_types(piece.dtype, torch.float32)
        )
        total -= logprobs.gather(1, target).sum()
        if not with_gradient:
            continue
        gradient = logprobs.exp_().div_(n)  # the probabilities, less one at the target
        gradient.scatter_add_(1, target, gradient.new_full(target.shape, -1 / n))
        piece.copy_(gradient)
    return total / n


def autocast(device: torch.device, dtype: Dtype) -> torch.autocast | nullcontext[None]:
    """Return the context in which matrix products have that dtype."""
    return torch.autocast(device.type, torch.bfloat16) if dtype == "bfloat16" else nullcontext()


def best_dtype(device: torch.device, n_embd: int) -> Dtype:
    """Return bfloat16 where the device multiplies it faster than float32, and the matrices are large enough to show it."""
    if n_embd < _NARROW:
        return "float32"
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    fast = device.type == "cpu" and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )
    return "bfloat16" if fast else "float32"


@contextmanager
def _checkpointed(model: GPT2, wanted: bool) -> Iterator[None]:
    """Let the blocks forget what they computed, and compute it again in the backward pass."""
    blocks: list[Any] = list(model.h) if wanted else []
    try:
        for block in blocks:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
        yield
    finally:
        for block in blocks:
            del block.forward  # the class's own is behind it


def prepare(
    model: GPT2, corpus: Corpus, config: TrainConfig, ranks: Ranks
) -> tuple[nn.Module, list[torch.optim.Optimizer], Callable[[int], float]]:
    """Return the module that computes a loss, the optimizers, and what computes the loss and the gradients of a step."""
    if model.dtype != torch.float32:
        found = str(model.dtype).removeprefix("torch.")
        raise ConfigError(
            f"the weights are {found}, expected float32; the configuration's dtype is that of matrix products"
        )
    if model.device.type == "cpu":
        keep_freed_memory()
    module: nn.Module = NextTokenLoss(model, config.dtype, config.checkpointing)
    if ranks.sharded:
        if config.compile:
            raise ConfigError(
                "--compile does not work on a model in shards; leave out --compile or --shard"
            )
        shard(model, ranks)
        let_go_without_backward(module, model)
    else:
        module = ranks.wrap(module)
    optimizers = build_optimizers(
        model,
        optimizer=config.optimizer,
        weight_decay=config.weight_decay,
        betas=(config.beta1, config.beta2),
    )
    if config.batch_size % ranks.world_size:
        raise ConfigError(
            f"batch_size is {config.batch_size}, expected a multiple of the {ranks.world_size} processes that share it"
        )
    n_parts = math.gcd(
        config.accumulate, config.batch_size // ranks.world_size
    )  # fewer windows cannot be cut into as many parts

    def batch(step: int) -> Tensor:
        options = {
            "block_size": config.block_size,
            "batch_size": config.batch_size,
            "seed": config.seed,
        }
        return corpus.batch(
            "train", step, **options, rank=ranks.rank, world_size=ranks.world_size
        ).to(model.device)

    compute = _compiled(module, batch(0).chunk(n_parts)[0]) if config.compile else module

    def step_loss(step: int) -> float:
        key = (step, ranks.rank)
        torch.manual_seed(
            int(np.random.SeedSequence(config.seed, spawn_key=key).generate_state(1, np.uint64)[0])
        )
        model.zero_grad(set_to_none=True)
        total = torch.zeros((), device=model.device)
        for part, ids in enumerate(parts := batch(step).chunk(n_parts)):
            with ranks.gradients_together(module, part == len(parts) - 1):
                loss = compute(ids) / len(parts)
                loss.backward()
            total += loss.detach()
        return ranks.mean(float(total))

    return module, optimizers, step_loss


def _compiled(module: nn.Module, ids: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the compiled module, or with a warning the module itself where this machine cannot compile it."""
    compiled: Callable[[Tensor], Tensor] = torch.compile(module)
    try:
        module.train()
        compiled(ids).backward()  # type: ignore[no-untyped-call]
    except (
        Exception
    ) as error:  # whatever is missing: a compiler, its headers, support for this processor
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        warnings.warn(
            f"torch cannot compile here ({reason}): training goes on without",
            Gpt2KitWarning,
            stacklevel=2,
        )
        return module
    return compiled


def _check_finite(step: int, loss: float, norm: float, run: Run | None) -> None:
    """Raise TrainingError before a loss or gradient that is not finite can reach the weights."""
    if math.isfinite(loss) and math.isfinite(norm):
        return
    what = (
        f"the loss is {loss}"
        if not math.isfinite(loss)
        else f"the gradient's norm is {norm}, though the loss is {loss:.4f}"
    )
    kept = "" if run is None else f"; the state of step {run.last_step} is in {run.folder}"
    raise TrainingError(
        f"step {step + 1}: {what}{kept}. Try a lower --lr or a longer --warmup", step=step + 1
    )


def _save(
    run: Run | None,
    report: StepReport | None,
    model: GPT2,
    optimizers: list[torch.optim.Optimizer],
    progress: Progress,
    *,
    state: bool = True,
) -> None:
    """Record a report, and save the best weights and the state where that is due."""
    if run is None:
        return
    if report is not None:
        if report.is_best:
            run.write_best(model)
        run.record({name: value for name, value in asdict(report).items() if value is not None})
    if state:
        run.save(model, optimizers, progress)


# --- measuring -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def evaluate_loss(
    module: nn.Module, corpus: Corpus, config: TrainConfig, ranks: Ranks | None = None
) -> float | None:
    """Return the mean loss per token of the validation text in adjacent windows, or None where there is no such text.

    Of a text longer than eval_tokens, evenly spaced batches of windows are taken, always the same ones. No random numbers are drawn.
    """
    ranks = ranks or Ranks()
    was_training = module.training
    module.eval()
    per_batch = max(1, config.batch_size // config.accumulate // ranks.world_size)
    every = max(1, math.ceil(len(corpus.val_ids) / config.eval_tokens))
    device = next(module.parameters()).device
    total, count = 0.0, 0
    for ids in islice(corpus.val_windows(config.block_size, batch_size=per_batch), 0, None, every):
        tokens = ids[:, 1:].numel()
        total += float(module(ids.to(device))) * tokens
        count += tokens
    module.train(was_training)
    return total / count if count else None
