"""The training loop, as a stream of reports.

    for report in train(model, corpus, TrainConfig(block_size=256, max_steps=1000)):
        print(report.step, report.train_loss, report.val_loss)

Fine-tuning, adapters and training from scratch all use this loop; they differ in the model that
they give it. It prints nothing. Around it, `trainer` makes a model ready to train, `loss` computes
the loss, `optim` the learning rate and the updates, and `run` saves what happened.

    B windows in a batch, T = block_size tokens to predict
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from gpt2kit.data.batches import Batches
from gpt2kit.data.corpus import Split
from gpt2kit.errors import TrainingError
from gpt2kit.model import GPT2
from gpt2kit.training.config import TrainConfig
from gpt2kit.training.distributed import Ranks
from gpt2kit.training.optim import clip_gradients, learning_rate, set_learning_rate
from gpt2kit.training.readings import n_predicted
from gpt2kit.training.records import FinishReason, StepReport
from gpt2kit.training.run import Run
from gpt2kit.training.states import LoopState
from gpt2kit.training.trainer import Trainer


def train(
    model: GPT2,
    corpus: Batches,
    config: TrainConfig,
    *,
    run: Run | None = None,
    ranks: Ranks | None = None,
    stop: Callable[[], bool] = lambda: False,
    begin: Callable[[Sequence[Optimizer]], None] = lambda _: None,
) -> Iterator[StepReport]:
    """Train a model's trainable parameters; yield a report before the first step and after each.

    With a `run`, training continues from its newest saved state, bit for bit as if there had been
    no interruption, and saves states, the best weights and the reports there: a step's state once
    its report was taken and the next one is asked for. `stop` is asked after every step; True, or
    closing the iterator, saves and ends training. `begin` is given the optimizers before the first
    step of a new run, to set what they keep. Every step seeds torch's global random stream from
    seed and step. Raises TrainingError if the loss is not finite.
    """
    trainer = Trainer(model, corpus, config, ranks or Ranks())
    state = None if run is None else run.restore(model, trainer.optimizers)
    if run is not None:
        if state is None or not is_finished(state, config):
            run.rewind_records(-1 if state is None else state.step)
        else:  # it is saved; if a kill left older states beside it, they are deleted
            run.save(model, trainer.optimizers, state, is_last=True)

    if state is None:  # a new run begins with a measurement
        begin(trainer.optimizers)
        state = LoopState()
        losses = _evaluate(trainer)
        is_best = state.note(losses["val_loss"])
        report = StepReport(step=0, is_best=is_best, **losses)
        yield from _reported(trainer, state, run, report)
    yield from _steps(trainer, state, run, stop)


def _steps(
    trainer: Trainer, state: LoopState, run: Run | None, stop: Callable[[], bool]
) -> Iterator[StepReport]:
    """Do the steps that are left: the loop itself."""
    model, corpus, config, ranks = trainer.model, trainer.corpus, trainer.config, trainer.ranks
    tokens = config.batch_size * config.block_size  # in a step
    epoch_tokens = corpus.epoch_tokens(config.block_size)
    stopped = False
    while not (stopped or is_finished(state, config)):
        started = time.perf_counter()

        # Forward and backward, a part of the batch at a time: the gradients add up
        trainer.module.train()
        model.zero_grad(set_to_none=True)
        total = torch.zeros((), device=model.device)
        for loss in trainer.losses(state.step):
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        train_loss = ranks.mean(float(total))

        # Clip the gradient; a loss that is not finite never reaches the weights
        norm, norms = clip_gradients(trainer.parameters, config.clip)
        _check_finite(state.step, train_loss, norm, run)

        # Update the weights
        lr = learning_rate(state.step, config)
        set_learning_rate(trainer.optimizers, lr)
        for optimizer in trainer.optimizers:
            optimizer.step()
        state.step += 1
        trainer.module.eval()  # so that the model can be used between the steps
        seconds = time.perf_counter() - started

        # Validate
        is_due = state.step == config.max_steps or state.step % config.eval_every == 0
        losses = _evaluate(trainer) if is_due else {}
        is_best = is_due and state.note(losses["val_loss"])

        # Report and save
        stopped = ranks.any(stop())
        report = StepReport(
            step=state.step,
            train_loss=train_loss,
            **losses,
            lr=lr,
            gradient_norm=norm,
            gradient_norms=norms,
            tokens_seen=state.step * tokens,
            epoch=state.step * tokens / epoch_tokens,
            tokens_per_second=tokens / seconds,
            is_best=is_best,
            finish_reason=_finish_reason(state, config, stopped),
        )
        yield from _reported(trainer, state, run, report)


def is_finished(state: LoopState, config: TrainConfig) -> bool:
    """Return whether a run has done all its steps, or is out of patience."""
    return state.step >= config.max_steps or 0 < config.patience <= state.since_best


def _finish_reason(state: LoopState, config: TrainConfig, stopped: bool) -> FinishReason | None:
    if is_finished(state, config):
        return "steps" if state.step >= config.max_steps else "patience"
    return "stopped" if stopped else None


def _check_finite(step: int, loss: float, norm: float, run: Run | None) -> None:
    """Raise TrainingError before a loss or gradient that is not finite can reach the weights."""
    if math.isfinite(loss) and math.isfinite(norm):
        return
    found = f"the loss is {loss}"
    if math.isfinite(loss):
        found = f"the gradient's norm is {norm}, though the loss is {loss:.4f}"
    saved = "" if run is None else f"; the state of step {run.last_step} is in {run.folder}"
    raise TrainingError(
        f"step {step + 1}: {found}{saved}. Try a lower --lr or a longer --warmup", step=step + 1
    )


def _reported(
    trainer: Trainer, state: LoopState, run: Run | None, report: StepReport
) -> Iterator[StepReport]:
    """Record and yield a report, then save the state if it is due or the stream was closed.

    What the reader makes of a report, such as a sample, is made again after a kill on the way: the
    saved state is still that of an earlier step.
    """
    if run is None:
        yield report
        return
    if report.is_best:
        run.write_best(trainer.model)
    run.record(report)
    closed: GeneratorExit | None = None
    try:
        yield report
    except GeneratorExit as error:
        closed = error
    config = trainer.config
    # An extension of the run is exact from before the learning rate falls.
    falls = config.warmdown > 0 and state.step == config.max_steps - config.warmdown
    is_due = state.step % config.save_every == 0 or falls or report.finish_reason is not None
    is_alone = closed is not None and trainer.ranks.sharded  # the other processes may not be here
    if (is_due or closed) and not is_alone:
        run.save(trainer.model, trainer.optimizers, state, is_last=is_finished(state, config))
    if closed:
        raise closed


def _evaluate(trainer: Trainer) -> dict[str, Any]:
    """Measure the loss of the validation text, and if asked to, that of the training text."""
    splits: dict[str, Split] = {"val_loss": "val"}
    if trainer.config.eval_train:
        splits["eval_train_loss"] = "train"
    what = trainer.module, trainer.corpus, trainer.config, trainer.ranks
    return {name: evaluate_loss(*what, split=split) for name, split in splits.items()}


@torch.no_grad()
def evaluate_loss(
    module: nn.Module,
    corpus: Batches,
    config: TrainConfig,
    ranks: Ranks | None = None,
    *,
    split: Split = "val",
) -> float | None:
    """Return a split's mean loss in nats per token or label; None without anything to validate.

    It is measured without dropout on the corpus's `eval_windows`, at most eval_tokens of them, and
    draws no random numbers. With several processes all must call this, and all get the same number.
    """
    ranks = ranks or Ranks()
    was_training = module.training
    module.eval()
    per_batch = max(1, config.batch_size // config.accumulate // ranks.world_size)
    device = next(module.parameters()).device
    total, count = 0.0, 0
    for batch in corpus.eval_windows(
        split, config.block_size, batch_size=per_batch, most_tokens=config.eval_tokens
    ):
        predicted = n_predicted(batch)
        total += float(module(batch.to(device))) * predicted
        count += predicted
    module.train(was_training)
    return ranks.mean(total / count) if count else None
