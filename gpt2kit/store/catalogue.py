"""The published GPT-2s: what they are called, where they are and what their files must be.

A size or hash is given here if it was published, computed from the file, or follows exactly from
the shape of the model; None means that what the server declares is used. Hashes hold for the
default revision of a Hub repository: another revision may differ.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from gpt2kit.config import SIZES

# Names that people type. OpenAI first announced slightly wrong counts of parameters: 117M, 345M,
# 762M and 1542M are the same models.
ALIASES = {
    "gpt2": "124M",
    "gpt2-small": "124M",
    "openai-community/gpt2": "124M",
    "117M": "124M",
    "small": "124M",
    "gpt2-medium": "355M",
    "openai-community/gpt2-medium": "355M",
    "345M": "355M",
    "medium": "355M",
    "gpt2-large": "774M",
    "openai-community/gpt2-large": "774M",
    "762M": "774M",
    "large": "774M",
    "gpt2-xl": "1558M",
    "openai-community/gpt2-xl": "1558M",
    "1542M": "1558M",
    "1.5B": "1558M",
    "xl": "1558M",
    "distilbert/distilgpt2": "distilgpt2",
}
_NAMES = {size.lower(): size for size in SIZES}
_NAMES |= {alias.lower(): size for alias, size in ALIASES.items()}

_NEAR = 0.3  # how far a mistyped parameter count may be from a published one, as a share


def canonical_size(name: str) -> str | None:
    """Return the key of SIZES that a name or alias stands for, in any case, or None.

    >>> canonical_size("GPT2-XL"), canonical_size("1.5b"), canonical_size("gpt3")
    ('1558M', '1558M', None)
    """
    return _NAMES.get(name.lower())


def nearest_size(name: str) -> str | None:
    """Return the published size that a mistyped name most likely means, or None.

    >>> nearest_size("125M"), nearest_size("gpt2-mediun"), nearest_size("llama")
    ('124M', '355M', None)
    """
    if number := re.fullmatch(r"(\d+(?:\.\d+)?)([mb]?)", name.lower()):
        count = float(number[1]) * (1e9 if number[2] == "b" else 1e6)
        sizes = [size for size in SIZES if size != "distilgpt2"]
        nearest = min(sizes, key=lambda size: abs(SIZES[size].n_params - count))
        return nearest if abs(SIZES[nearest].n_params - count) <= _NEAR * count else None
    close = difflib.get_close_matches(name.lower(), _NAMES, n=1, cutoff=0.7)
    return _NAMES[close[0]] if close else None


@dataclass(frozen=True)
class PublishedFile:
    """A file that a model needs, and what is known about it before it is fetched."""

    name: str
    size: int | None = None  # in bytes
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Publication:
    """Where one size was published, and the files to fetch from there."""

    repository: str  # on the Hugging Face Hub
    hub_files: tuple[PublishedFile, ...]
    openai_directory: str | None  # below OpenAI's base URL; None if OpenAI did not publish it
    openai_files: tuple[PublishedFile, ...] = ()


# GPT-2 has one vocabulary: OpenAI's two files and the Hub's are the same bytes under other names.
_VOCABULARY = (1_042_301, "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783")
MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
_MERGES = (456_318, MERGES_SHA256)

_HUB_NAMES = (
    "config.json",
    "generation_config.json",
    "vocab.json",
    "merges.txt",
    "model.safetensors",
)
_OPENAI_NAMES = (
    "checkpoint",
    "encoder.json",
    "hparams.json",
    "model.ckpt.index",
    "vocab.bpe",
    "model.ckpt.data-00000-of-00001",
)

_Known = Mapping[str, tuple[int | None, str | None]]


def _files(names: tuple[str, ...], known: _Known) -> tuple[PublishedFile, ...]:
    """Return the files of these names with what is known about each."""
    return tuple(PublishedFile(name, *known.get(name, (None, None))) for name in names)


def _openai(size: str, known: _Known) -> tuple[PublishedFile, ...]:
    """Return OpenAI's files of a size, given what is known beside what all sizes share."""
    same_for_all: _Known = {
        "checkpoint": (77, "dd1b025d2e155283f5e300ce95bf6d5b6bc0f7fe010db73daa6975eb896ab9cb"),
        "encoder.json": _VOCABULARY,
        "vocab.bpe": _MERGES,
        # It consists of the float32 numbers alone, without header or padding.
        "model.ckpt.data-00000-of-00001": (4 * SIZES[size].n_params, None),
    }
    return _files(_OPENAI_NAMES, {**same_for_all, **known})


PUBLICATIONS: Mapping[str, Publication] = MappingProxyType(
    {
        "distilgpt2": Publication(
            repository="distilbert/distilgpt2",
            hub_files=_files(
                _HUB_NAMES,
                {
                    "config.json": (
                        762,
                        "4ec5947c1d59fee6212cdf3b0ec1a53eac02092554c5ff0a733488cbd2c64f3a",
                    ),
                    "model.safetensors": (
                        352_824_413,
                        "e1ff18884359fe8beb795a5f414feb85a6ce3d929ad019c0d958c039d2b94a1b",
                    ),
                },
            ),
            openai_directory=None,
        ),
        "124M": Publication(
            repository="openai-community/gpt2",
            hub_files=_files(
                _HUB_NAMES,
                {
                    "config.json": (
                        665,
                        "0daed7749b4f02b8f76240d5444551d7b08712dab4d0adb8239c56ba823bb7b4",
                    ),
                    "generation_config.json": (
                        None,
                        "ed0b32ac72c0f5f44a719abb2d7786ea5146c871f83717b7f2018065954de02b",
                    ),
                    "vocab.json": _VOCABULARY,
                    "merges.txt": _MERGES,
                    "model.safetensors": (
                        548_105_171,
                        "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
                    ),
                },
            ),
            openai_directory="124M",
            openai_files=_openai(
                "124M",
                {
                    "hparams.json": (
                        90,
                        "d9d56e4121c427164e0c55c6f03c08e1daf9002b9b672825112d19097b680318",
                    ),
                    "model.ckpt.index": (
                        5_215,
                        "71916f763f9746f9b2a06b12d91996cf1084ae008d0424543d39391c5f2dc687",
                    ),
                    "model.ckpt.data-00000-of-00001": (
                        497_759_232,
                        "2060c885360cc0cf41d7a6dbc4d24b5127aae20260c8b5ae521b5a6578407118",
                    ),
                },
            ),
        ),
        "355M": Publication(
            repository="openai-community/gpt2-medium",
            hub_files=_files(_HUB_NAMES, {"model.safetensors": (1_519_984_962, None)}),
            openai_directory="355M",
            openai_files=_openai(
                "355M",
                {
                    "hparams.json": (
                        91,
                        "310dfdb1f0c786b79d93459eaa470f3978d873bdc3e1f9fed1cad24d9dd0b1f6",
                    ),
                    "model.ckpt.index": (10_399, None),
                },
            ),
        ),
        "774M": Publication(
            repository="openai-community/gpt2-large",
            hub_files=_files(_HUB_NAMES, {"model.safetensors": (3_247_159_078, None)}),
            openai_directory="774M",
            openai_files=_openai("774M", {}),
        ),
        "1558M": Publication(
            repository="openai-community/gpt2-xl",
            hub_files=_files(
                _HUB_NAMES,
                {
                    "config.json": (
                        689,
                        "be48115d52314bc27327e160bf10197760db02ea689d10adb24db4102edf7a8a",
                    ),
                    "generation_config.json": (
                        None,
                        "b90eadacf585a743a30ea51e8b5c88b8d282a2a34dc0c7e556d0987cdbd68805",
                    ),
                    "model.safetensors": (
                        None,
                        "0f8b28eb05a8075f48b61b6f35332978c74fc7763fa9fb4051a1c30511736a6a",
                    ),
                },
            ),
            openai_directory="1558M",
            openai_files=_openai("1558M", {}),
        ),
    }
)
