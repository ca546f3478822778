"""Sparse autoencoders: activations as a few features each, read, changed and put back.

    sae = load_sae("gpt2-small-res-jb/blocks.8.hook_resid_pre").for_model(model)
    features = sae.encode(activations(model, ids, sae.hook))   # (B, T, N), most of them 0

A feature is a direction in the activations of one part of the model. The autoencoder says how
strongly each is present at each position, and makes the activations again from that, up to an
error.

    B batch, T tokens, C width of what is read, N features
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2kit.checkpoints.sparse import SparseFile, open_sparse
from gpt2kit.errors import ConfigError
from gpt2kit.fields import shortened
from gpt2kit.inspection.hooks import zero_of_z
from gpt2kit.inspection.places import find_place
from gpt2kit.inspection.running import run
from gpt2kit.model import GPT2
from gpt2kit.store.integrity import check_files
from gpt2kit.store.lookup import find_sae

# What an SAE may read, by TransformerLens's names.
HOOKS = (
    *("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out"),
    *("attn.hook_z", "mlp.hook_post"),
)
_HOOK = re.compile(rf"blocks\.(\d+)\.({'|'.join(map(re.escape, HOOKS))})")
_EPSILON = 1e-5  # added to the standard deviation, by SAELens and OpenAI alike


@dataclass(frozen=True, eq=False)
class SAE:
    """A sparse autoencoder in memory.

    hook          what it reads, blocks.8.hook_resid_pre; None if the file does not say
    kind          "standard", "topk", "jumprelu" or "gated"
    """

    hook: str | None
    kind: str
    encoder: Tensor  # (C, N)
    decoder: Tensor  # (N, C)
    encoder_bias: Tensor  # (N,) of gated: that of the magnitudes
    decoder_bias: Tensor  # (C,)
    k: int = 0
    is_rectified: bool = True
    threshold: Tensor | None = None  # (N,) of jumprelu
    gate_bias: Tensor | None = None  # (N,) of gated
    magnitude: Tensor | None = None  # (N,) of gated: factors of the magnitudes
    subtracts_bias: bool = True
    normalization: str = "none"
    input_scale: float = 1.0
    is_centered: bool = False
    is_folded: bool = False
    shift: Tensor | None = None  # (C,) subtracted from z before anything else; see for_model

    @property
    def n_features(self) -> int:
        return self.decoder.shape[0]

    @property
    def width(self) -> int:
        return self.decoder.shape[1]

    @property
    def layer(self) -> int:
        """The block that it reads in, from 0."""
        return split_hook(self.hook)[0]

    def encode(self, x: Tensor) -> Tensor:
        """Return how strongly each feature is present: (…, C) -> (…, N), 0 for most of them.

        z is given with its heads side by side, (…, H * D).
        """
        mean, scale, _ = self._statistics(x)
        x = (self._as_read(x) - mean) / scale  # (…, C)
        if self.subtracts_bias:
            x = x - self.decoder_bias
        found = x @ self.encoder  # (…, N)
        if self.gate_bias is not None and self.magnitude is not None:
            sizes = (found * self.magnitude + self.encoder_bias).relu()
            return sizes * (found + self.gate_bias > 0)
        found = found + self.encoder_bias
        if self.kind == "topk":
            values, indices = found.topk(self.k, dim=-1)
            values = values.relu() if self.is_rectified else values
            return torch.zeros_like(found).scatter_(-1, indices, values)
        if self.threshold is not None:
            return found.relu() * (found > self.threshold)
        return found.relu()

    def decode(self, features: Tensor, like: Tensor) -> Tensor:
        """Return the activations that features stand for: (…, N) -> (…, C).

        `like` is what was encoded, (…, C): what the SAE leaves out, such as the mean of a centered
        stream or the scale of a normalized one, is put back from it.
        """
        mean, _, scale = self._statistics(like)
        out = (features @ self.decoder + self.decoder_bias) * scale + mean  # (…, C)
        return out if self.shift is None else out + self.shift

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return what is left of activations after encoding and decoding: (…, C) -> (…, C)."""
        return self.decode(self.encode(x), x)

    def error(self, x: Tensor) -> Tensor:
        """Return what the features do not explain, x - reconstruct(x): (…, C) -> (…, C)."""
        return self._as_read(x, shifted=False) - self.reconstruct(x)

    def direction(self, feature: int) -> Tensor:
        """Return what one unit of a feature adds to the activations, (C,).

        If the SAE normalizes each position, `unit` is what it is multiplied by there. Raises
        ConfigError for a feature that the SAE does not have.
        """
        self.check_feature(feature)
        return self.decoder[feature] / self.input_scale

    @property
    def normalizes(self) -> bool:
        """Whether each position is scaled by itself before it is encoded."""
        return self.normalization in ("layer_norm", "constant_norm_rescale")

    def unit(self, x: Tensor) -> Tensor:
        """Return how large one unit of a feature's direction is in activations: (…, C) -> (…, 1).

        It is 1 unless the SAE normalizes each position: then features are in units of its scale.
        """
        return self._statistics(x)[2] if self.normalizes else x.new_ones((*x.shape[:-1], 1))

    def check_feature(self, feature: int) -> None:
        """Raise ConfigError for a feature that the SAE does not have."""
        if not 0 <= feature < self.n_features:
            raise ConfigError(
                f"there is no feature {feature}: the SAE has {self.n_features:,}, from 0 to "
                f"{self.n_features - 1}"
            )

    def for_model(self, model: GPT2) -> SAE:
        """Return the SAE on the model's device, and fitted to the model's own activations.

        An SAE that was trained on TransformerLens's folded z gets the value bias, which is in the
        model's z but not in the folded one. Raises ConfigError if it reads a part that the model
        does not have, or one of another width.
        """
        layer, part = check_hook(model, self.hook)
        config = model.config
        width = config.inner_size if part == "mlp.hook_post" else config.n_embd
        if self.width != width:
            raise ConfigError(
                f"the SAE reads {self.width} numbers at {self.hook}, and the model has {width} "
                "there: is it for another model?"
            )
        moved: dict[str, Any] = {
            name: value.to(model.device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        shift = None
        if part == "attn.hook_z" and self.is_folded:
            # The weights of attention sum to 1: a constant in every value is the same one in z.
            shift = zero_of_z(model, layer).flatten().to(self.decoder.dtype)  # (C,)
        return replace(self, **{**moved, "shift": shift})

    def _as_read(self, x: Tensor, *, shifted: bool = True) -> Tensor:
        """Return activations in the SAE's dtype, without the part that folding takes away."""
        x = x.to(self.decoder.dtype)
        return x if self.shift is None or not shifted else x - self.shift

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean to subtract, the scale to divide by, and that to multiply by afterwards.

        Each is (…, 1), or a single number.
        """
        x = self._as_read(x)
        nothing, one = x.new_zeros(()), x.new_ones(())
        centered = self.is_centered or self.normalization == "layer_norm"
        mean = x.mean(-1, keepdim=True) if centered else nothing
        if self.normalization == "layer_norm":
            deviation = x.std(-1, keepdim=True)  # with n - 1
            return mean, deviation + _EPSILON, deviation
        if self.normalization == "constant_norm_rescale":
            scale = (x - mean).norm(dim=-1, keepdim=True) / self.width**0.5
            return mean, scale, scale
        return mean, one / self.input_scale, one / self.input_scale


def split_hook(hook: str | None) -> tuple[int, str]:
    """Return the block and the part of a hook's name: blocks.8.hook_resid_pre -> 8, hook_resid_pre.

    Raises ConfigError, which says what to give, for a name that no SAE reads at, and for None.
    """
    example = "such as blocks.8.hook_resid_pre"
    if hook is None:
        raise ConfigError(f"the file does not say where the SAE reads; give it: --at, {example}")
    found = _HOOK.fullmatch(hook)
    if found is None:
        raise ConfigError(
            f"{shortened(hook)} is not supported here; expected a name {example}, with one of "
            f"{', '.join(HOOKS)}"
        )
    return int(found[1]), found[2]


def load_sae(
    path: str | Path,
    *,
    at: str | None = None,
    is_centered: bool | None = None,
    input_scale: float | None = None,
) -> SAE:
    """Load a sparse autoencoder from a SAELens folder, an OpenAI .pt or an attention SAE's .pt.

    A SAELens folder or .pt of the Hub that was downloaded is found by its name, org/name/FOLDER.
    `at` says what it reads, such as blocks.8.hook_resid_post, for a file that does not (OpenAI's).
    `is_centered` says whether it reads the stream without its mean, if the file is wrong about it.
    `input_scale` is what activations are multiplied by first, for files that need it
    (normalize_activations: expected_average_only_in). All numbers become float32. Raises
    CheckpointError for files that cannot be used, ConfigError for an invalid `at` or scale.
    """
    found = find_sae(path)
    check_files(found if found.is_dir() else found.parent)  # if it is a download
    file = open_sparse(found)
    if file.hook is not None and at not in (None, file.hook):
        raise ConfigError(f"{path} reads {file.hook}, not {at}; leave out --at")
    hook = file.hook or at
    if hook is not None:
        split_hook(hook)
    needs_scale = file.normalization == "expected_average_only_in"
    if needs_scale and input_scale is None:
        raise ConfigError(
            f"{path} was trained on activations times a factor that its files do not have; give "
            "it: --input_scale, the norm_scaling_factor in SAELens's list"
        )
    if input_scale is not None and not (needs_scale and 0 < input_scale < 1e6):
        expected = "a number above 0" if needs_scale else "none: its files say no factor is needed"
        raise ConfigError(f"input_scale is {input_scale}, expected {expected}")
    centered = file.is_centered if is_centered is None else is_centered
    # Only the residual stream and what is added to it have a mean that LayerNorm never sees.
    in_stream = not (hook or "").endswith(("attn.hook_z", "mlp.hook_post"))
    return _made(file, hook, centered and in_stream, input_scale or 1.0)


def _made(file: SparseFile, hook: str | None, is_centered: bool, input_scale: float) -> SAE:
    """Read the tensors; factors that only rescale features become part of the matrices."""
    tensors = {name: stored.read().float() for name, stored in file.tensors.items()}
    encoder, decoder = tensors["W_enc"], tensors["W_dec"]
    bias = tensors["b_mag" if file.kind == "gated" else "b_enc"]
    if file.by_decoder_norm:
        norms = decoder.norm(dim=-1)  # (N,)
        encoder, bias, decoder = encoder * norms, bias * norms, decoder / norms[:, None]
    if (scale := tensors.get("scaling_factor")) is not None:
        decoder = decoder * scale[:, None]
    return SAE(
        hook=hook,
        kind=file.kind,
        encoder=encoder.contiguous(),
        decoder=decoder.contiguous(),
        encoder_bias=bias,
        decoder_bias=tensors["b_dec"],
        k=file.k,
        is_rectified=file.is_rectified,
        threshold=tensors.get("threshold"),
        gate_bias=tensors.get("b_gate"),
        magnitude=tensors["r_mag"].exp() if "r_mag" in tensors else None,
        subtracts_bias=file.subtracts_bias,
        normalization=file.normalization,
        input_scale=input_scale,
        is_centered=is_centered,
        is_folded=file.is_folded,
    )


@torch.no_grad()
def activations(model: GPT2, ids: Tensor, hook: str) -> Tensor:
    """Read (B, T) ids and return the activations at a hook, (B, T, C).

    z has its heads side by side. Raises ConfigError for a name that no SAE reads at, or a part that
    the model does not have.
    """
    _, part = check_hook(model, hook)
    found = run(model, ids, record=[hook])[hook]
    return found.flatten(2) if part == "attn.hook_z" else found  # (B, T, H * D) or (B, T, C)


def check_hook(model: GPT2, hook: str | None) -> tuple[int, str]:
    """Return block and part as `split_hook` does; raises ConfigError if the model lacks them."""
    layer, part = split_hook(hook)
    n = model.config.n_layer
    if layer >= n:
        there_are = f"{n}, from 0 to {n - 1}" if n else "none"
        raise ConfigError(f"there is no block {layer}: the model has {there_are}")
    if missing := find_place(str(hook)).place.missing_in(model.config):
        raise ConfigError(f"{hook}: {missing}")
    return layer, part
