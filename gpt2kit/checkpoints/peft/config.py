"""adapter_config.json of PEFT: which modules have LoRA adapters, and of which rank and scale.

A module is called as in transformers' GPT-2: transformer.h.0.attn.c_attn, lm_head.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regex

from gpt2kit.errors import CheckpointError, CheckpointFormatError, ConfigError, Gpt2KitWarning
from gpt2kit.files import read_json
from gpt2kit.store import PEFT_FILE

_LARGEST = 2**22  # bytes of the file
_SECONDS = 0.25  # of the processor, that all regular expressions of a file may take together
_ALL_LINEAR = "all-linear"  # PEFT's word for every matrix but the head

# Fields that do not change what the adapters compute, and those that are read below.
_NO_EFFECT = {
    name
    for group in (
        "auto_mapping base_model_name_or_path bias fan_in_fan_out inference_mode lora_dropout",
        "peft_type peft_version revision runtime_config task_type megatron_core eva_config",
        "qalora_group_size corda_config lora_ga_config loftq_config init_lora_weights r",
        "lora_alpha use_rslora target_modules exclude_modules layers_to_transform layers_pattern",
        "rank_pattern alpha_pattern modules_to_save ensure_weight_tying",
    )
    for name in group.split()
}
# Fields that change it in a way that is not supported, unless they are empty or false.
_UNSUPPORTED = {
    name
    for group in (
        "use_dora use_qalora lora_bias layer_replication target_parameters megatron_config",
        "trainable_token_indices alora_invocation_tokens use_bdlora arrow_config kasa_config",
        "velora_config monteclora_config",
    )
    for name in group.split()
}
# How adapters began, if that left the base model's own weights as they were.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
_TASKS = (None, "CAUSAL_LM", "FEATURE_EXTRACTION")
_BIASES = ("none", "all", "lora_only")


@dataclass
class PeftConfig:
    """What adapter_config.json says, checked."""

    path: Path  # of the file
    base: str  # the model that the adapters were trained on: a name of the Hub, or a path
    rank: int
    alpha: float
    is_rank_stabilized: bool
    targets: str | tuple[str, ...]
    excluded: str | tuple[str, ...]
    layers: tuple[int, ...]  # to which `targets` is limited; none: all
    layers_patterns: tuple[str, ...]
    ranks: Mapping[str, int]  # by pattern
    alphas: Mapping[str, float]  # by pattern
    saved: tuple[str, ...]  # ends of the names of modules that were trained whole
    keeps_tied: bool  # whether a tied head follows the embedding
    _left: float = _SECONDS  # of the time for regular expressions

    def is_target(self, module: str) -> bool:
        """Whether a module has an adapter, by PEFT's rules.

        Raises CheckpointFormatError for a regular expression that is none, or that takes too long.
        """
        if self._is_excluded(module) or self.is_saved(module):
            return False
        if self.targets == _ALL_LINEAR:
            return module.rpartition(".")[2] in ("c_attn", "c_proj", "c_fc")
        if isinstance(self.targets, str):
            return self._match(self.targets, module) is not None
        if module in self.targets:
            return True
        return _ends(module, self.targets) and (not self.layers or self._layer(module))

    def is_saved(self, module: str) -> bool:
        """Whether the whole module was trained, and is in the file."""
        parts = module.split(".")
        whole = (".".join(parts[: n + 1]) for n in range(len(parts)))  # the module and its parents
        return any(each.endswith(self.saved) for each in whole)

    def rank_of(self, module: str) -> int:
        """Return the rank of a module's adapter."""
        return self.ranks.get(self._pattern(self.ranks, module), self.rank)

    def scale_of(self, module: str) -> float:
        """Return what the product of the two matrices is multiplied by."""
        alpha = self.alphas.get(self._pattern(self.alphas, module), self.alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.is_rank_stabilized else rank)

    def _is_excluded(self, module: str) -> bool:
        if isinstance(self.excluded, str):
            return bool(self.excluded) and self._match(self.excluded, module) is not None
        return module in self.excluded or _ends(module, self.excluded)

    def _layer(self, module: str) -> bool:
        """Whether a module is in one of the layers to which the targets are limited."""
        for pattern in self.layers_patterns or (r"[^.]*",):
            if found := self._match(rf"(?:.*?\.)?(?:{pattern})\.(?P<layer>\d+)\..*", module):
                return int(found["layer"]) in self.layers
        return False

    def _pattern(self, patterns: Iterable[str], module: str) -> str:
        """Return the first pattern that the end of a module's name matches; "" if none does."""
        return next((each for each in patterns if self._match(rf"(?:.*\.)?(?:{each})", module)), "")

    def _match(self, pattern: str, module: str) -> Any:
        """Return the match of a pattern with a module's whole name, or None."""
        started = time.thread_time()
        try:
            return regex.fullmatch(pattern, module, timeout=max(self._left, 1e-3))
        except TimeoutError:
            detail = "its regular expressions take too long; list the target_modules by name"
            raise CheckpointFormatError(self.path, detail) from None
        except (regex.error, RecursionError, OverflowError, MemoryError) as error:
            detail = f"{pattern[:80]!r} is no regular expression: {error}"
            raise CheckpointFormatError(self.path, detail) from None
        finally:
            self._left -= time.thread_time() - started


def _ends(module: str, names: Iterable[str]) -> bool:
    return any(module.endswith(f".{name}") for name in names)


def read_peft_config(folder: Path) -> PeftConfig:
    """Read adapter_config.json in a folder.

    Raises ConfigError for adapters of another kind than LoRA and for a field that changes them in
    a way that is not supported, by its name, and CheckpointError for damage. Unknown fields that
    are not empty are named in one Gpt2KitWarning.
    """
    path = folder / PEFT_FILE
    raw = read_json(path, largest=_LARGEST, error=CheckpointError)
    kind = raw.get("peft_type", "LORA")
    if kind != "LORA":
        raise ConfigError(f"{path}: peft_type is {_shown(kind)}; gpt2kit reads LORA")
    for name in sorted(_UNSUPPORTED & raw.keys()):
        if raw[name]:
            raise ConfigError(
                f"{path}: {name} is {_shown(raw[name])}, which gpt2kit does not support; in PEFT, "
                "merge_and_unload() makes a whole model of it"
            )
    for name, known in (
        ("init_lora_weights", _PLAIN_STARTS),
        ("task_type", _TASKS),
        ("bias", (None, *_BIASES)),
    ):
        if not any(raw.get(name) == value for value in known):
            raise ConfigError(
                f"{path}: {name} is {_shown(raw[name])}, which gpt2kit does not support"
            )
    unknown = [name for name in raw if name not in _NO_EFFECT | _UNSUPPORTED and raw[name]]
    if unknown:
        listed = ", ".join(ascii(name[:40]) for name in unknown[:8])
        warnings.warn(f"{path}: unknown fields ignored: {listed}", Gpt2KitWarning, stacklevel=2)
    return _checked(path, raw)


def _checked(path: Path, raw: Mapping[str, Any]) -> PeftConfig:
    """Return the fields of the file in one form; raise CheckpointFormatError for a wrong type."""

    def texts(name: str) -> tuple[str, ...]:
        value = raw.get(name) or ()
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
            raise CheckpointFormatError(
                path, f"{name} is {_shown(value)}, expected a list of names"
            )
        return tuple(value)

    def number(name: str, value: Any, *, whole: bool) -> Any:
        kinds = (int,) if whole else (int, float)
        if type(value) not in kinds or not 0 < value < 1e9:
            raise CheckpointFormatError(path, f"{name} is {_shown(value)}, expected more than 0")
        return value

    def by_pattern(name: str, *, whole: bool) -> dict[str, Any]:
        table = raw.get(name) or {}
        if not isinstance(table, dict):
            detail = f"{name} is {_shown(table)}, expected an object from patterns to numbers"
            raise CheckpointFormatError(path, detail)
        return {key: number(name, value, whole=whole) for key, value in table.items()}

    def names(name: str, default: tuple[str, ...]) -> str | tuple[str, ...]:
        value = raw.get(name)
        return value if isinstance(value, str) else texts(name) or default

    layers = raw.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers or []
    if not isinstance(layers, list) or not all(type(each) is int for each in layers):
        detail = f"layers_to_transform is {_shown(layers)}, expected a list of layers"
        raise CheckpointFormatError(path, detail)
    base = raw.get("base_model_name_or_path") or ""
    if not isinstance(base, str) or "\0" in base:
        detail = f"base_model_name_or_path is {_shown(base)}, expected a name or path"
        raise CheckpointFormatError(path, detail)
    return PeftConfig(
        path,
        base,
        rank=number("r", raw.get("r", 8), whole=True),
        alpha=number("lora_alpha", raw.get("lora_alpha", 8), whole=False),
        is_rank_stabilized=bool(raw.get("use_rslora")),
        targets=names("target_modules", ("c_attn",)),  # PEFT's default for GPT-2
        excluded=names("exclude_modules", ()),
        layers=tuple(layers),
        layers_patterns=texts("layers_pattern"),
        ranks=by_pattern("rank_pattern", whole=True),
        alphas=by_pattern("alpha_pattern", whole=False),
        saved=texts("modules_to_save"),
        keeps_tied=bool(raw.get("ensure_weight_tying")),
    )


def _shown(value: Any) -> str:
    """Return a value of the file for a message, not too long."""
    return ascii(value)[:80]
