"""Files of sparse autoencoders: SAELens folders, OpenAI's .pt and attention SAEs.

All three hold the same few matrices under different names and in different orientations. They are
given here under SAELens's names. Nothing in a file is run, and only headers are read at first.

    folder   cfg.json and sae_weights.safetensors             SAELens, such as gpt2-small-res-jb
    FILE.pt  pre_bias, encoder.weight, latent_bias, decoder…  OpenAI's sparse_autoencoder
    FILE.pt  W_enc, b_enc, W_dec, b_dec; beside it FILE_cfg.json, with act_name   attention SAEs

    C width of what is read, N features
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2kit.checkpoints import pickled
from gpt2kit.checkpoints.pickled import TorchFile
from gpt2kit.checkpoints.safetensors_files import read_safetensors
from gpt2kit.checkpoints.stored import StoredTensor, check_tensors
from gpt2kit.errors import CheckpointError, CheckpointFormatError, CheckpointNotFoundError
from gpt2kit.fields import shortened
from gpt2kit.files import read_json
from gpt2kit.store.folders import SAE_WEIGHTS

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = SAE_WEIGHTS

# The kinds of encoders, and the vectors of N numbers that each has beside the four common tensors.
_VECTORS = {
    "standard": ("b_enc",),
    "topk": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "b_mag", "r_mag"),
}
_NORMALIZATIONS = ("none", "layer_norm", "constant_norm_rescale", "expected_average_only_in")

# OpenAI's names, and whether the file holds the matrix the other way round.
_OPENAI = {
    "pre_bias": ("b_dec", False),
    "encoder.weight": ("W_enc", True),
    "latent_bias": ("b_enc", False),
    "decoder.weight": ("W_dec", True),
    "decoder.linear.weight": ("W_dec", False),  # the encoder's own matrix: a tied decoder
}
# What else is in such a file; those with a dot say the same again in files of newer versions.
_OPENAI_OTHERS = (
    *("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square"),
    *("activation", "activation_state_dict", "activation.k", "activation.postact_fn"),
)


@dataclass(frozen=True)
class SparseFile:
    """A sparse autoencoder that is still in files.

    path             the folder or file
    layout           "SAELens", "OpenAI" or "attention": who wrote it
    kind             "standard" (ReLU), "topk", "jumprelu" or "gated"
    tensors          W_enc (C, N), W_dec (N, C), b_dec (C), and by kind b_enc, threshold, b_gate,
                     b_mag, r_mag (N), and scaling_factor (N) if the features were rescaled
    hook             TransformerLens's name of what it reads, blocks.8.hook_resid_pre; None if the
                     file does not say
    k                of topk: how many features may be active at a position
    is_rectified     of topk: whether negative values among the k become 0
    subtracts_bias   whether b_dec is subtracted from what is encoded
    normalization    of each position before it is encoded: "none", "layer_norm",
                     "constant_norm_rescale", or "expected_average_only_in"
    by_decoder_norm  of topk: whether features are chosen by their size times the decoder's norm
    is_centered      whether it was trained on a residual stream without its mean over C
    is_folded        whether it was trained on z without the value bias, as TransformerLens folds it
    """

    path: Path
    layout: str
    kind: str
    tensors: Mapping[str, StoredTensor]
    hook: str | None = None
    k: int = 0
    is_rectified: bool = True
    subtracts_bias: bool = True
    normalization: str = "none"
    by_decoder_norm: bool = False
    is_centered: bool = False
    is_folded: bool = False

    def __post_init__(self) -> None:
        encoder = self.tensors.get("W_enc")
        if encoder is None or len(encoder.shape) != 2:
            found = "no W_enc" if encoder is None else f"a W_enc of shape {list(encoder.shape)}"
            detail = f"expected the matrix of an encoder, found {found}; is this an SAE?"
            raise CheckpointFormatError(self.path, detail)
        width, n = encoder.shape
        expected: dict[str, tuple[int, ...]] = {"W_enc": (width, n), "W_dec": (n, width)}
        expected |= {"b_dec": (width,)} | dict.fromkeys(_VECTORS[self.kind], (n,))
        if "scaling_factor" in self.tensors:
            expected["scaling_factor"] = (n,)
        advice = f"Expected the tensors of a {self.kind} SAE"
        check_tensors(self.path, expected, self.tensors, advice=advice)
        if self.kind == "topk" and not 0 < self.k <= n:
            detail = f"k is {self.k}, expected from 1 to {n:,}, the number of features"
            raise CheckpointFormatError(self.path, detail)


def open_sparse(path: Path) -> SparseFile:
    """Open a sparse autoencoder; its contents tell which of the three layouts it has.

    Raises CheckpointNotFoundError if there is none, CheckpointFormatError for anything damaged or
    of another kind, CheckpointMismatchError, which lists them, for missing or misshapen tensors.
    """
    if path.is_dir():
        return _open_saelens(path)
    if path.name == WEIGHTS_FILE:
        return _open_saelens(path.parent)
    file = pickled.open_file(path)
    if "encoder.weight" in file.content:
        return _open_openai(file)
    return _open_attention(file)


# --- SAELens --------------------------------------------------------------------------------------


def _open_saelens(folder: Path) -> SparseFile:
    """Open a folder that SAELens wrote, of any version: cfg.json had other keys before 6.0."""
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]
    if missing:
        inner = _folders_of_saes(folder)
        advice = f"; it has {inner}: name one of these" if inner else ""
        message = f"{folder}: no SAE: {' and '.join(missing)} missing{advice}"
        raise CheckpointNotFoundError(message, path=folder, missing=missing)
    path = folder / CONFIG_FILE
    config = read_json(path, error=CheckpointError)
    about = config.get("metadata")
    about = {**config, **(about if isinstance(about, dict) else {})}
    hook = about.get("hook_name", about.get("hook_point"))
    if not isinstance(hook, str) and hook is not None:
        raise CheckpointFormatError(path, f"hook_name is {shortened(hook)}, expected a name")
    if about.get("hook_head_index", about.get("hook_point_head_index")) is not None:
        raise CheckpointFormatError(path, "it reads a single head, which gpt2kit does not support")
    loading = about.get("model_from_pretrained_kwargs")
    loading = loading if isinstance(loading, dict) else {}
    # The first versions always trained on TransformerLens's centered and folded activations, and
    # wrote hook_point; res-jb is of these.
    is_old = "hook_point" in config
    return SparseFile(
        path=folder,
        layout="SAELens",
        kind=_kind(path, config),
        tensors=_saelens_tensors(folder / WEIGHTS_FILE),
        hook=hook,
        k=_k(path, config),
        subtracts_bias=bool(config.get("apply_b_dec_to_input", True)),
        normalization=_normalization(path, config.get("normalize_activations")),
        by_decoder_norm=bool(config.get("rescale_acts_by_decoder_norm", False)),
        is_centered=bool(loading.get("center_writing_weights", is_old)),
        is_folded=bool(loading.get("fold_value_biases", is_old)),
    )


def _folders_of_saes(folder: Path) -> str:
    """Return the names of some folders in a folder that each hold an SAE."""
    if not folder.is_dir():
        return ""
    found = sorted(each.parent.name for each in folder.glob(f"*/{CONFIG_FILE}"))
    return ", ".join(found[:4]) + (", …" if len(found) > 4 else "")


def _kind(path: Path, config: Mapping[str, Any]) -> str:
    """Return the kind of a configuration; raise CheckpointFormatError for one not supported."""
    activation = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    kind = config.get("architecture", "standard")
    if kind == "standard" and activation == "topk":  # before SAELens 6.0
        kind = "topk"
    elif activation not in ("relu", "topk"):
        detail = f"its activation function is {shortened(activation)}, expected relu or topk"
        raise CheckpointFormatError(path, detail)
    if not isinstance(kind, str) or kind not in _VECTORS:
        detail = f"architecture is {shortened(kind)}; gpt2kit reads {', '.join(_VECTORS)}"
        raise CheckpointFormatError(path, detail)
    return kind


def _k(path: Path, config: Mapping[str, Any]) -> int:
    """Return k of a topk configuration, 0 if there is none."""
    arguments = config.get("activation_fn_kwargs")
    k = config.get("k", arguments.get("k") if isinstance(arguments, dict) else None)
    if type(k) not in (int, type(None)):
        raise CheckpointFormatError(path, f"k is {shortened(k)}, expected a whole number")
    return k or 0


def _normalization(path: Path, named: Any) -> str:
    """Return what is done with each position before it is encoded."""
    if named is None or named is False:
        return "none"
    name = "expected_average_only_in" if named is True else named
    if name not in _NORMALIZATIONS:
        detail = f"normalize_activations is {shortened(name)}; gpt2kit reads "
        raise CheckpointFormatError(path, detail + ", ".join(_NORMALIZATIONS))
    return str(name)


def _saelens_tensors(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors, without a scaling factor that is 1 for every feature."""
    tensors = read_safetensors(path)
    for name in ("scaling_factor", "finetuning_scaling_factor"):
        scale = tensors.pop(name, None)
        if scale is not None and not bool((scale.read() == 1).all()):
            tensors["scaling_factor"] = scale
    return tensors


# --- OpenAI ---------------------------------------------------------------------------------------


def _open_openai(file: TorchFile) -> SparseFile:
    """Open a state_dict of OpenAI's sparse_autoencoder; its TopK normalizes what it reads."""
    activation = file.content.get("activation", "ReLU")
    options = file.content.get("activation_state_dict", {})
    options = options if isinstance(options, dict) else {}
    if activation not in ("ReLU", "TopK"):
        detail = f"activation is {shortened(activation)}, expected ReLU or TopK"
        raise CheckpointFormatError(file.path, detail)
    after = options.get("postact_fn", "ReLU")
    if after not in ("ReLU", "Identity"):
        detail = f"postact_fn is {shortened(after)}, expected ReLU or Identity"
        raise CheckpointFormatError(file.path, detail)
    tensors: dict[str, StoredTensor] = {}
    for name, value in file.content.items():
        if name in _OPENAI_OTHERS:
            continue
        ours, turned = _OPENAI.get(str(name), (str(name), False))
        stored = file.tensor(str(name), value)
        tensors[ours] = _turned(stored) if turned else stored
    if "W_enc" in tensors and "decoder.linear.weight" in file.content:
        # The tied decoder's rows are the encoder's columns, which is how the file has them.
        tensors["W_dec"] = _turned(tensors["W_enc"])
    is_topk = activation == "TopK"
    return SparseFile(
        path=file.path,
        layout="OpenAI",
        kind="topk" if is_topk else "standard",
        tensors=tensors,
        k=_k(file.path, options) if is_topk else 0,
        is_rectified=after == "ReLU",
        normalization="layer_norm" if is_topk else "none",
    )


def _turned(stored: StoredTensor) -> StoredTensor:
    """Return a matrix with its axes exchanged; anything else is left for the check of shapes."""
    return stored.turned() if len(stored.shape) == 2 else stored


# --- attention ------------------------------------------------------------------------------------


def _open_attention(file: TorchFile) -> SparseFile:
    """Open an SAE that reads z of all heads side by side; what it reads is said beside it."""
    path = file.path.with_name(f"{file.path.stem}_cfg.json")
    if "W_enc" not in file.content:
        names = ", ".join(str(name)[:40] for name in list(file.content)[:4])
        detail = f"not an SAE: expected encoder.weight or W_enc, found {shortened(names)}"
        raise CheckpointFormatError(file.path, detail)
    hook = None
    if path.exists():
        hook = read_json(path, error=CheckpointError).get("act_name")
        if not isinstance(hook, str):
            raise CheckpointFormatError(path, f"act_name is {shortened(hook)}, expected a name")
    tensors = {str(name): file.tensor(str(name), value) for name, value in file.content.items()}
    reads_z = hook is not None and re.fullmatch(r"blocks\.\d+\.attn\.hook_z", hook) is not None
    return SparseFile(
        path=file.path,
        layout="attention",
        kind="standard",
        tensors=tensors,
        hook=hook,
        is_centered=not reads_z,
        is_folded=True,
    )
