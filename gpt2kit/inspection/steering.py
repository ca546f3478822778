"""Steering: a vector added to the residual stream while a model writes.

    with steered(model, [steering_of("Love - Hate @6 *5", model, tokenizer)]):
        text = gpt2kit.generate(model, tokenizer, "I hate you because")

A vector comes from two prompts (ActAdd), from two sets of texts, or from a feature of a sparse
autoencoder. What is added at every position is added to a bias of the model meanwhile, which is
the same sum: it costs nothing, and whoever computes the steps does so as before. What is added at
the first positions only is added by a hook.

    C width, P positions that something is added to
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from gpt2kit.data.texts import read_texts
from gpt2kit.errors import ConfigError
from gpt2kit.fields import shortened
from gpt2kit.inspection.edits import Edit
from gpt2kit.inspection.features import SAE, activations, check_hook, load_sae, split_hook
from gpt2kit.inspection.running import editing
from gpt2kit.lora import weight_of
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import Tokenizer, require_tokenizer
from gpt2kit.tokenizers.listed import start_of_text

SYNTAX = (
    "'TEXT - TEXT @LAYER *STRENGTH', 'file:FILE - file:FILE @LAYER *STRENGTH' or "
    "'sae:FOLDER#FEATURE *STRENGTH'"
)
_PARTS = re.compile(
    r"(?P<what>.*?)(?:\s?@\s*(?P<at>[\w.]+))?(?:\s*\*\s*(?P<by>[-+]?[\w.]+))?\s*", re.DOTALL
)
_LARGEST = 1e6  # of a strength


@dataclass(frozen=True)
class Recipe:
    """What was typed after --steer, in parts.

    kind      "prompts", "texts" or "feature"
    sources   two prompts, two files, or the SAE's folder and its feature
    hook      where the vector is added: blocks.6.hook_resid_pre; None where the SAE's file says it
    strength  what the vector is multiplied by
    """

    kind: str
    sources: tuple[str, str]
    hook: str | None
    strength: float


@dataclass(frozen=True, eq=False)
class Steering:
    """A vector that is added to activations.

    name      what it is called: what was typed, for example
    hook      where it is added: blocks.6.hook_resid_pre
    vectors   (P, C) for the first P positions, or (1, C) for every position
    everywhere  whether it is added at every position
    unit        what it is multiplied by at each position, (…, C) -> (…, 1), a function of the
                activations there; None: by nothing
    """

    name: str
    hook: str
    vectors: Tensor
    everywhere: bool
    unit: Callable[[Tensor], Tensor] | None = None

    @property
    def norm(self) -> float:
        """The norm of what is added at a position, the largest of them, before `unit`."""
        return float(self.vectors.norm(dim=-1).max())


def parse(typed: str) -> Recipe:
    """Return what was typed after --steer in parts; raises ConfigError, which shows the syntax."""
    found = _PARTS.fullmatch(typed)
    assert found is not None  # every part of the pattern may be empty
    what = found["what"]
    try:
        strength = 1.0 if found["by"] is None else float(found["by"])
    except ValueError:
        raise _not_understood(typed, f"{found['by']} is not a number") from None
    if math.isnan(strength):
        raise _not_understood(typed, f"{found['by']} is not a number")
    if abs(strength) > _LARGEST:
        raise _not_understood(typed, f"a strength of {strength:g} is too large")
    hook = found["at"]
    if hook is not None and hook.isdecimal():
        hook = f"blocks.{int(hook)}.hook_resid_pre"
    if hook is not None:
        split_hook(hook)
    if what.startswith("sae:"):
        folder, _, feature = what.removeprefix("sae:").rpartition("#")
        if not folder or not feature.strip().isdecimal():
            raise _not_understood(typed, "there is no #FEATURE")
        return Recipe("feature", (folder, feature.strip()), hook, strength)
    first, minus, second = what.partition(" - ")
    if not minus or " - " in second:
        raise _not_understood(typed, "expected one ' - ' between two texts")
    if hook is None:
        raise _not_understood(typed, "there is no @LAYER")
    files = [each.strip().removeprefix("file:") for each in (first, second)]
    named = [each.strip().startswith("file:") for each in (first, second)]
    if any(named):
        if not all(named) or not all(files):
            raise _not_understood(typed, "expected two files")
        return Recipe("texts", (files[0], files[1]), hook, strength)
    if not (first or second):
        raise _not_understood(typed, "both texts are empty")
    return Recipe("prompts", (first, second), hook, strength)


def _not_understood(typed: str, why: str) -> ConfigError:
    return ConfigError(f"steer is {shortened(typed)}: {why}; expected {SYNTAX}")


def steering_of(typed: str, model: GPT2, tokenizer: Tokenizer | None) -> Steering:
    """Return the steering that a text like 'Love - Hate @6 *5' asks for.

    Raises ConfigError for what is not understood or does not fit the model, CorpusError and
    CheckpointError for files that cannot be used.
    """
    recipe = parse(typed)
    if recipe.kind == "feature":
        folder, feature = recipe.sources
        sae = load_sae(folder, at=recipe.hook).for_model(model)
        return from_feature(sae, int(feature), strength=recipe.strength, name=typed)
    assert recipe.hook is not None
    tokenizer = require_tokenizer(tokenizer, "the model")
    if recipe.kind == "prompts":
        return from_prompts(
            model, tokenizer, *recipe.sources, at=recipe.hook, strength=recipe.strength, name=typed
        )
    texts = [texts_of(Path(file)) for file in recipe.sources]
    return from_texts(
        model, tokenizer, *texts, at=recipe.hook, strength=recipe.strength, name=typed
    )


def texts_of(path: Path) -> list[str]:
    """Return the texts of a file, one on each line; of a .jsonl file, each object's text.

    Raises CorpusError as `gpt2kit.data.texts.read_texts` does.
    """
    documents = read_texts(path).documents
    if path.suffix == ".jsonl":
        return [*documents]
    lines = [line for document in documents for line in document.splitlines()]
    return [line for line in lines if line.strip()]


# --- where vectors come from ----------------------------------------------------------------------


def from_prompts(
    model: GPT2,
    tokenizer: Tokenizer,
    positive: str,
    negative: str,
    *,
    at: str,
    strength: float = 1.0,
    name: str = "",
) -> Steering:
    """Return the difference of two prompts at each of their positions (ActAdd).

    Turner et al. 2023, "Activation Addition": both prompts are read after <|endoftext|>, the
    shorter one with spaces after it until it is as long; strength times the difference of their
    activations is added to the first positions of the text. Position 0 is <|endoftext|> in both,
    so nothing is added there: begin the text with <|endoftext|> to have what the paper has.
    """
    start = start_of_text(tokenizer)
    sides = [tokenizer.encode(text) for text in (positive, negative)]
    P = max(map(len, sides))
    padding = tokenizer.encode(" ")
    if len(padding) != 1 and len({*map(len, sides)}) > 1:
        raise ConfigError(
            f"{positive!r} has {len(sides[0])} tokens and {negative!r} {len(sides[1])}, and the "
            "vocabulary has no token for a space to make them equal"
        )
    ids = torch.tensor([start + side + padding * (P - len(side)) for side in sides])  # (2, P)
    _check_room(model, ids.shape[1])
    found = activations(model, ids, at)  # (2, P, C)
    return Steering(name or f"{positive} - {negative}", at, strength * (found[0] - found[1]), False)


def from_texts(
    model: GPT2,
    tokenizer: Tokenizer,
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    at: str,
    strength: float = 1.0,
    name: str = "",
) -> Steering:
    """Return the mean activation of some texts minus that of others, for every position.

    Each text is read after <|endoftext|>, and counts as the mean over its own tokens, whatever
    their number. A text longer than the model's window is cut to it.
    """
    if not positive or not negative:
        raise ConfigError("expected one text at least on each side")
    means = [_mean(model, tokenizer, texts, at) for texts in (positive, negative)]  # (C,) each
    vectors = strength * (means[0] - means[1])[None]  # (1, C)
    return Steering(name or "difference of means", at, vectors, True)


def _mean(model: GPT2, tokenizer: Tokenizer, texts: Sequence[str], at: str) -> Tensor:
    """Return the mean over texts of each text's mean activation, (C,)."""
    start = start_of_text(tokenizer)
    total = torch.zeros((), device=model.device)
    for text in texts:
        ids = (start + tokenizer.encode(text))[: model.config.n_ctx]
        if len(ids) == len(start):
            raise ConfigError(f"the text {shortened(text)} has no tokens")
        found = activations(model, torch.tensor([ids]), at)[0]  # (T, C)
        total = total + found[len(start) :].float().mean(0)
    return total / len(texts)


def from_feature(sae: SAE, feature: int, *, strength: float = 1.0, name: str = "") -> Steering:
    """Return a feature's direction times `strength`, in the units of its activations.

    The feature's activation rises by `strength` at every position. If the SAE normalizes each
    position, what is added has the scale of the position.
    """
    vectors = strength * sae.direction(feature)[None]  # (1, C)
    hook = sae.hook
    split_hook(hook)
    assert hook is not None
    unit = sae.unit if sae.normalizes else None
    return Steering(name or f"feature {feature}", hook, vectors, True, unit)


def _check_room(model: GPT2, n: int) -> None:
    if n > model.config.n_ctx:
        raise ConfigError(
            f"the texts have {n:,} tokens, and the model reads at most {model.config.n_ctx:,}"
        )


# --- how they are added ---------------------------------------------------------------------------


@contextlib.contextmanager
def steered(model: GPT2, steerings: Sequence[Steering]) -> Iterator[None]:
    """Add vectors to the model's activations meanwhile.

    Raises ConfigError for a vector of another width, or of a layer that the model does not have.
    """
    with contextlib.ExitStack() as stack:
        for each in steerings:
            stack.callback(steer(model, each))
        yield


def strength_of(model: GPT2, given: Steering, ids: Tensor) -> tuple[float, float]:
    """Return the norm of what is added, and the mean norm of what it is added to.

    Both are measured on (B, T) ids from position 1 on, as position 0 has an exceptional norm.
    """
    found = activations(model, ids, given.hook).float()  # (B, T, C)
    found = found[:, 1:] if found.shape[1] > 1 else found
    factor = 1.0 if given.unit is None else float(given.unit(found).mean())
    return given.norm * factor, float(found.norm(dim=-1).mean())


@torch.no_grad()
def bias_of(model: GPT2, given: Steering) -> tuple[nn.Parameter, Tensor] | None:
    """Return a parameter and what to add to it, so that a vector is added at every position.

    None if there is no such parameter: the vector is for some positions only or not the same at
    each, or the model has no bias there, or normalizes the stream itself.
    """
    config = model.config
    layer, part = split_hook(given.hook)
    if not given.everywhere or given.unit is not None or not config.norm_first:
        return None
    vector = given.vectors[0].to(model.device)  # (C,)
    if part == "hook_resid_pre" and layer == 0:
        return (cast(Any, model.wpe).weight, vector) if config.positions == "learned" else None
    if part == "hook_resid_pre":
        layer, part = layer - 1, "hook_resid_post"
    block: Any = model.h[layer]
    if part == "attn.hook_z":
        home, C = block.attn.c_attn.bias, config.n_embd
        # Weights of attention sum to 1: what is in every value is in z.
        vector = torch.cat([vector.new_zeros(2 * C), vector])  # (3 C,)
    elif part in ("hook_resid_mid", "hook_attn_out") or config.mlp == "none":
        home = block.attn.c_proj.bias
    else:
        home = block.mlp.c_proj.bias
    if home is None or (part == "mlp.hook_post" and model.is_quantized):  # its input is rounded
        return None
    if part == "mlp.hook_post":
        vector = weight_of(block.mlp.c_proj) @ vector.to(model.dtype)  # (C,)
    return home, vector


def steer(model: GPT2, given: Steering) -> Callable[[], None]:
    """Add a vector to the model's activations until the function that is returned is called.

    Raises ConfigError for a vector of another width, or of a part that the model does not have.
    """
    _, part = check_hook(model, given.hook)
    width = model.config.inner_size if part == "mlp.hook_post" else model.config.n_embd
    if given.vectors.shape[-1] != width:
        raise ConfigError(
            f"the vector of {given.name!r} has {given.vectors.shape[-1]} numbers, and {given.hook} "
            f"of this model has {width}"
        )
    if home := bias_of(model, given):
        parameter, vector = home
        before = parameter.detach().clone()
        parameter.data.add_(vector.to(parameter.dtype))

        def undo() -> None:
            parameter.data.copy_(before)

        return undo
    stack = contextlib.ExitStack()
    stack.enter_context(editing(model, [edit_of(model, given)]))
    # The model keeps it: Python would end the edit if nobody had it any longer.
    vars(model).setdefault("_steering", []).append(stack)

    def end() -> None:
        vars(model)["_steering"].remove(stack)
        stack.close()

    return end


def edit_of(model: GPT2, given: Steering) -> Edit:
    """Return the edit that adds a vector to the model's activations."""
    value = given.vectors  # (P, C), or (1, C)
    P = len(value)
    if (unit := given.unit) is not None:

        def scaled(x: Tensor) -> Tensor:
            return (value.to(x.device) * unit(x.flatten(2))).to(x.dtype).view_as(x)

        return Edit(given.hook, value=scaled, add=True)
    if given.hook.endswith("attn.hook_z"):
        value = value.view(P, model.config.n_head, model.config.head_size)  # (P, H, D)
    if given.everywhere:
        return Edit(given.hook, value=value[0], add=True)
    return Edit(given.hook, value=value, position=range(P), add=True)


def check_texts(
    steerings: Sequence[Steering],
    lengths: Sequence[int],
    *,
    max_tokens: int,
    overflow: str,
    n_ctx: int,
) -> None:
    """Raise ConfigError if what is added at the first positions would reach other tokens.

    `lengths` are those of the prompts in tokens. A vector for the first P positions needs a prompt
    that has them. If the text outgrows the window, another part of it would take its first
    positions.
    """
    for each in steerings:
        if each.everywhere or not lengths:
            continue
        P = len(each.vectors)
        if min(lengths) < P:
            raise ConfigError(
                f"{each.name!r} is added to the first {P} positions, and the prompt has only "
                f"{min(lengths)} tokens; write a longer prompt"
            )
        if overflow == "slide" and max(lengths) + max_tokens > n_ctx:
            raise ConfigError(
                f"{each.name!r} is added to the first {P} positions, which the text would leave "
                f"behind when it outgrows the model's {n_ctx:,} tokens; lower max_tokens, or use "
                "--overflow stop"
            )
