"""Direct path patching: what one part of the model tells another, and nothing in between.

The sender's output of one run is put into the other run as the receiver alone sees it; every part
between them keeps what it had (Wang et al. 2022, section 3.1; Goldowsky-Dill et al. 2023, of length
one). Then the model computes on from the receiver.

    T tokens, C width, V vocabulary, N senders
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from torch import Tensor

from gpt2kit.errors import ConfigError
from gpt2kit.inspection.edits import Edit
from gpt2kit.inspection.hooks import Observer, by_spot, observing, spots_of
from gpt2kit.inspection.measures import has_mlp
from gpt2kit.inspection.patching import Pair, recovered
from gpt2kit.inspection.running import Run, run
from gpt2kit.model import GPT2

_INPUTS = {"q": "queries", "k": "keys", "v": "values"}
_AT_ONCE = 4096  # tokens that are read at once


@dataclass(frozen=True)
class Sender:
    """What writes into the residual stream: a head, an MLP, or both embeddings together."""

    layer: int | None  # None: the embeddings
    head: int | None = None  # None: the MLP

    @property
    def name(self) -> str:
        """9.6, mlp.3 or embeddings."""
        if self.layer is None:
            return "embeddings"
        return f"mlp.{self.layer}" if self.head is None else f"{self.layer}.{self.head}"


@dataclass(frozen=True)
class Receiver:
    """What reads the stream: queries, keys or values of a head, an MLP, or the logits."""

    layer: int | None  # None: the logits
    head: int | None = None  # None: the MLP
    input: str = ""  # q, k or v of the head

    @property
    def name(self) -> str:
        """9.9.q, mlp.10 or logits."""
        if self.layer is None:
            return "logits"
        return (
            f"mlp.{self.layer}" if self.head is None else f"{self.layer}.{self.head}.{self.input}"
        )


@dataclass(frozen=True)
class Path:
    """What patching the path from one sender did."""

    sender: Sender
    logit_diff: float
    recovered: float | None  # 1 is the clean prompt's, 0 the corrupted one's; None if both agree


@dataclass(frozen=True)
class PathPatching:
    """Every path into one receiver."""

    receiver: Receiver
    clean: float  # differences of the logits without any patch
    corrupted: float
    direction: str
    paths: tuple[Path, ...]


def parse_receiver(text: str) -> Receiver:
    """Return the receiver that a text names: 9.9.q, mlp.10 or logits; raises ConfigError."""
    if text == "logits":
        return Receiver(None)
    if found := re.fullmatch(r"mlp\.(\d{1,4})", text):
        return Receiver(int(found[1]))
    if found := re.fullmatch(r"(\d{1,4})\.(\d{1,4})\.([qkv])", text):
        return Receiver(int(found[1]), int(found[2]), found[3])
    raise ConfigError(
        f"{text!r} names no receiver; expected queries, keys or values of a head (9.6.q), an MLP "
        "(mlp.10) or logits"
    )


def parse_sender(text: str) -> Sender:
    """Return the sender that a text names: 9.6, mlp.3 or embeddings; raises ConfigError."""
    if text == "embeddings":
        return Sender(None)
    if found := re.fullmatch(r"mlp\.(\d{1,4})", text):
        return Sender(int(found[1]))
    if found := re.fullmatch(r"(\d{1,4})\.(\d{1,4})", text):
        return Sender(int(found[1]), int(found[2]))
    raise ConfigError(
        f"{text!r} names no sender; expected a head (9.6), an MLP (mlp.3) or embeddings"
    )


def path_patch(
    model: GPT2,
    pair: Pair,
    receiver: Receiver,
    senders: Sequence[Sender] | None = None,
    *,
    direction: str = "denoise",
) -> PathPatching:
    """Patch the direct path from each sender to a receiver; without `senders`, from all of them.

    `direction` is that of `patch`. Raises ConfigError for a part that the model does not have, a
    sender that comes after the receiver, and a model whose residual stream is not a sum.
    """
    _check_model(model)
    possible = _before(model, receiver)
    for each in senders or ():
        if each not in possible:
            raise ConfigError(
                f"{each.name} does not send to {receiver.name}: it comes later, or the model does "
                "not have it"
            )
    parts = ["head_updates", "before", "final"]
    parts += ["mlp_update", "middle"] if has_mlp(model) else []
    base, other = (run(model, ids, record=parts) for ids in pair.prompts(direction))
    found = pair.unpatched(direction, base, other)
    chosen = [*(senders or possible)]
    rows = max(1, _AT_ONCE // len(pair.clean))
    paths = []
    for start in range(0, len(chosen), rows):
        part = chosen[start : start + rows]
        changes = torch.cat([_sent(other, each) - _sent(base, each) for each in part])  # (N, T, C)
        values = pair.difference(_logits(base, receiver, changes)).tolist()
        paths += [
            Path(sender, value, recovered(value, **found))
            for sender, value in zip(part, values, strict=True)
        ]
    return PathPatching(receiver, found["clean"], found["corrupted"], direction, tuple(paths))


def mean_paths(found: Sequence[PathPatching]) -> PathPatching:
    """Return the mean over several pairs, with the same senders and receiver."""
    clean, corrupted = (
        fmean(each.clean for each in found),
        fmean(each.corrupted for each in found),
    )
    paths = []
    for same in zip(*(each.paths for each in found), strict=True):
        value = fmean(path.logit_diff for path in same)
        paths.append(Path(same[0].sender, value, recovered(value, clean, corrupted)))
    return replace(found[0], clean=clean, corrupted=corrupted, paths=tuple(paths))


def _check_model(model: GPT2) -> None:
    if not model.config.residual or not (model.config.norm_first or model.config.norm == "none"):
        raise ConfigError(
            "path patching needs a model whose residual stream is the sum of what its parts add"
        )


def _before(model: GPT2, receiver: Receiver) -> list[Sender]:
    """Return all parts that write what the receiver reads, in forward order."""
    config = model.config
    end = config.n_layer if receiver.layer is None else receiver.layer
    own = Sender(end, receiver.head)
    is_mlp = receiver.layer is not None and receiver.head is None
    if end > config.n_layer - (receiver.layer is not None) or (receiver.head or 0) >= config.n_head:
        raise ConfigError(
            f"{receiver.name}: the model has {config.n_layer} layers of {config.n_head} heads, "
            "which count from 0"
        )
    if is_mlp and not has_mlp(model):
        raise ConfigError(f"{receiver.name}: this model has no MLP")
    found = [Sender(None)]
    for layer in range(end):
        found += [Sender(layer, head) for head in range(config.n_head)]
        found += [Sender(layer)] if has_mlp(model) else []
    # An MLP reads the heads of its own layer, too.
    return found + [Sender(own.layer, head) for head in range(config.n_head) if is_mlp]


def _sent(found: Run, sender: Sender) -> Tensor:
    """Return what a part adds to the stream: (1, T, C)."""
    if sender.layer is None:
        return found["before", 0] if found.model.config.n_layer else found["final"]
    if sender.head is None:
        return found["mlp_update", sender.layer]
    return found["head_updates", sender.layer][:, sender.head]


def _logits(base: Run, receiver: Receiver, changes: Tensor) -> Tensor:
    """Return the logits after the last token, (N, V), of a receiver that sees changes (N, T, C)."""
    model = base.model
    layer = receiver.layer
    with torch.no_grad():
        if layer is None:
            return model.head(model.ln_f(base["final"][:, -1] + changes[:, -1]))
        if receiver.head is None:
            # The stream after attention is set, so it does not matter what enters the layer.
            stream = base["before", layer].expand_as(changes)
            middle = Edit(f"layers.{layer}.middle", value=base["middle", layer] + changes)
            name = f"layers.{layer}.mlp_update"
            edit = Edit(name, value=_read(model, layer, stream, name, [middle]))
        else:
            name = f"layers.{layer}.{_INPUTS[receiver.input]}"
            seen = _read(model, layer, base["before", layer] + changes, name)  # (N, T, H, D)
            edit = Edit(name, head=receiver.head, value=seen.transpose(1, 2)[:, receiver.head])
        ids = base.ids.expand(len(changes), -1)
        return run(model, ids, [edit]).logits[:, -1]


def _read(model: GPT2, layer: int, stream: Tensor, name: str, edits: Sequence[Edit] = ()) -> Tensor:
    """Return an activation of a layer that reads another stream, in TransformerLens's order."""
    (spot,) = spots_of(model, [name])
    observer = Observer(model, by_spot(model, edits), [spot], length=stream.shape[1])
    with observing(observer):
        model.h[layer](stream, None, None)
    return observer.recorded[spot]
