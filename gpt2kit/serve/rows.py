"""From what a client asks to rows that the engine can continue."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from gpt2kit.errors import ConfigError, TokenizerError
from gpt2kit.generation.constraints.constraint import (
    Constraint,
    Constraints,
    Progress,
    constraints_for,
)
from gpt2kit.generation.request import Request, Sampling
from gpt2kit.generation.row import Row
from gpt2kit.generation.shaping.forbidding import limits_for
from gpt2kit.generation.text import TextOfRow
from gpt2kit.serve.answers import EncodedPrompt, token_name
from gpt2kit.serve.completions import CompletionRequest, Prompt
from gpt2kit.serve.errors import Refusal, too_long
from gpt2kit.serve.models import Loaded
from gpt2kit.serve.settings import REPEATED_BYTES
from gpt2kit.serve.worker import Job


def encode(loaded: Loaded, asked: CompletionRequest) -> list[EncodedPrompt]:
    """Return the prompts of a request with their ids; raises Refusal for one that cannot be read.

    An empty text begins a new one, after the end marker.
    """
    try:
        asked.request.sampling.check_vocabulary(loaded.n_vocab)
    except ConfigError as error:
        raise Refusal(400, str(error), param="logit_bias") from None
    n_ctx = loaded.model.config.n_ctx
    for given in asked.prompt:  # what is surely too long is not encoded: a megabyte takes a while
        is_exact = not isinstance(given, str)
        _check_length(asked, n_ctx, _fewest_tokens(loaded, given), is_exact=is_exact)
    prompts = [_encoded(loaded, prompt, special=asked.special) for prompt in asked.prompt]
    for prompt in prompts:
        _check_length(asked, n_ctx, len(prompt.ids), is_exact=True)
    _check_repeated(asked, prompts)
    return prompts


def _check_repeated(asked: CompletionRequest, prompts: Sequence[EncodedPrompt]) -> None:
    """Raise Refusal if the prompts that each choice of the answer repeats are too large."""
    text = sum(len(each.text.encode()) for each in prompts) if asked.echo else 0
    ids = sum(8 * len(each.ids) for each in prompts) if asked.return_token_ids else 0
    if (repeated := asked.n * (text + ids)) > REPEATED_BYTES:
        raise Refusal(
            400,
            f"the answer would repeat {repeated:,} bytes of prompts, but at most "
            f"{REPEATED_BYTES:,} are sent; lower n, or leave out echo and return_token_ids",
            param="n" if asked.n > 1 else "prompt",
        )


def _check_length(asked: CompletionRequest, n_ctx: int, n: int, *, is_exact: bool) -> None:
    """Raise Refusal if a prompt of n tokens, or of n at least, is too long for what is asked."""
    needs_room = asked.overflow == "error" and n + asked.max_tokens > n_ctx
    is_read_whole = asked.overflow == "stop" or asked.scores_prompts
    if needs_room or (is_read_whole and n > n_ctx):
        raise too_long(n_ctx, n, asked.max_tokens, is_exact=is_exact)


def _fewest_tokens(loaded: Loaded, prompt: Prompt) -> int:
    """Return how many tokens a prompt has at least, without encoding it."""
    if not isinstance(prompt, str):
        return len(prompt)
    return len(prompt.encode()) // loaded.longest_token if loaded.longest_token else 0


def _encoded(loaded: Loaded, prompt: Prompt, *, special: bool) -> EncodedPrompt:
    tokenizer = loaded.tokenizer
    if isinstance(prompt, str):
        ids = encode_text(loaded, prompt, special=special)
        if ids:
            return EncodedPrompt(prompt, tuple(ids))
        if tokenizer.stop_id is None:
            raise Refusal(
                400,
                "the prompt is empty, and the vocabulary has no <|endoftext|> to start a new text "
                "from; send a prompt",
                param="prompt",
            )
        return EncodedPrompt(prompt, (tokenizer.stop_id,))
    check_ids(loaded, prompt, "prompt")
    return EncodedPrompt(tokenizer.decode(list(prompt)), prompt)


def encode_text(loaded: Loaded, text: str, *, special: bool) -> list[int]:
    """Return the ids of a text; raises Refusal if the vocabulary cannot express it."""
    try:
        return loaded.tokenizer.encode(text, special=special)
    except TokenizerError as error:
        # A client has no command line, so no option of it is named.
        raise Refusal(400, str(error), param="prompt") from None


def check_ids(loaded: Loaded, ids: Sequence[int], param: str) -> None:
    """Raise Refusal for an id that the vocabulary does not have."""
    for token in ids:
        if not 0 <= token < loaded.n_vocab:
            raise Refusal(
                400,
                f"the id {token} is not in the vocabulary of {loaded.n_vocab:,}, expected ids "
                f"from 0 to {loaded.n_vocab - 1:,}",
                param=param,
            )


def add_rows(
    job: Job,
    loaded: Loaded,
    asked: CompletionRequest,
    prompts: Sequence[EncodedPrompt],
    hold: Callable[[Constraint], None],
) -> None:
    """Add a row to a job for each sample of each prompt, with the random streams of `complete`.

    Of the samples of a prompt, only the first also gives the probabilities of the prompt's tokens.
    `hold` is told of each constraint, and raises Refusal if there are too many.
    """
    if asked.max_tokens == 0 and asked.echo and not asked.scores_prompts:
        return  # there is nothing to compute
    config, tokenizer = loaded.model.config, loaded.tokenizer
    stop_id = None if asked.ignore_eos else tokenizer.stop_id
    limits = limits_for(asked.request, tokenizer, stop_id)
    constraints = _constraints(loaded, asked, stop_id)
    for index, prompt in enumerate(prompts):
        is_full = asked.overflow == "stop" and len(prompt.ids) == config.n_ctx
        only_reads = is_full or asked.max_tokens == 0
        request = reading_only(asked.request) if only_reads else asked.request
        progress = None if only_reads else _progress(constraints, prompt)
        if progress is not None:
            hold(progress.constraint)
        scoring = dataclasses.replace(request, prompt_logprobs=asked.scores_prompts)
        for sample in range(asked.samples):
            row = Row(
                prompt.ids[-config.n_ctx :],
                request if sample else scoring,
                config,
                sample=sample,
                stop_id=stop_id,
                limits=() if only_reads else limits,
                progress=progress,
            )
            text = TextOfRow(len(job.samples), row, tokenizer)
            job.add(row, text, prompt=index, only_reads=only_reads)


def _constraints(
    loaded: Loaded, asked: CompletionRequest, stop_id: int | None
) -> Constraints | None:
    """Return the constraints of a request; raises Refusal if no text meets them."""
    try:
        return constraints_for(asked.request, loaded.tokenizer, loaded.n_vocab, stop_id)
    except ConfigError as error:
        raise Refusal(400, str(error), param=asked.request.constraints.split()[0]) from None


def _progress(constraints: Constraints | None, prompt: EncodedPrompt) -> Progress | None:
    """Return where the constraints begin after a prompt; raises Refusal if no text meets them."""
    try:
        return None if constraints is None else constraints.after(prompt.ids)
    except ConfigError as error:
        assert constraints is not None
        raise Refusal(400, str(error), param=constraints.names.split()[0]) from None


def reading_only(request: Request) -> Request:
    """Return a request whose rows are read; the one token that they choose is to be dropped."""
    return dataclasses.replace(
        request,
        max_tokens=1,
        min_tokens=0,
        overflow="slide",
        stop=(),
        ban=(),
        regex=None,
        allow=None,
        forbid=None,
        valid_utf8=False,
        sampling=Sampling(temperature=0),
    )


def tokens_needed(
    loaded: Loaded, asked: CompletionRequest, prompts: Sequence[EncodedPrompt]
) -> int:
    """Return how many tokens a request needs at most, once its prompts are encoded."""
    new = asked.rows * asked.most_new_tokens(loaded.model.config.n_ctx)
    return sum(len(prompt.ids) for prompt in prompts) * asked.samples + new


def names(loaded: Loaded, ids: Sequence[int]) -> list[str]:
    """Return the text of each token, as log-probabilities have it."""
    return [token_name(loaded.tokenizer.token_bytes(token)) for token in ids]
