"""The published sizes agree with the arithmetic and with each other."""

from __future__ import annotations

import hashlib
import re

import pytest

from gpt2kit.config import SIZES
from gpt2kit.store.catalogue import (
    ALIASES,
    PUBLICATIONS,
    PublishedFile,
    canonical_size,
    nearest_size,
)


def _by_name(files: tuple[PublishedFile, ...]) -> dict[str, PublishedFile]:
    return {file.name: file for file in files}


def test_every_size_has_a_publication_and_its_repository_is_an_alias_of_it() -> None:
    assert list(PUBLICATIONS) == list(SIZES)
    assert all(
        canonical_size(publication.repository) == size for size, publication in PUBLICATIONS.items()
    )


@pytest.mark.parametrize("size", [size for size in SIZES if size != "distilgpt2"])
def test_openais_data_file_holds_four_bytes_a_parameter(size: str) -> None:
    files = _by_name(PUBLICATIONS[size].openai_files)
    assert files["model.ckpt.data-00000-of-00001"].size == 4 * SIZES[size].n_params
    assert set(files) == {
        "checkpoint",
        "encoder.json",
        "hparams.json",
        "model.ckpt.data-00000-of-00001",
        "model.ckpt.index",
        "vocab.bpe",
    }


@pytest.mark.parametrize("size", SIZES)
def test_the_hubs_files_are_the_five_that_are_needed_and_hold_at_least_the_parameters(
    size: str,
) -> None:
    files = _by_name(PUBLICATIONS[size].hub_files)
    assert set(files) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "vocab.json",
        "merges.txt",
    }
    weights = files["model.safetensors"].size
    if weights is not None:
        # Beside the parameters, the files hold each block's causal mask as float32, and a header
        # of a few kilobytes.
        masks = SIZES[size].n_layer * 1024**2
        assert 8 < weights - 4 * (SIZES[size].n_params + masks) < 60_000


def test_sizes_and_hashes_are_well_formed() -> None:
    for publication in PUBLICATIONS.values():
        for file in publication.hub_files + publication.openai_files:
            assert file.size is None or file.size > 0
            assert file.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", file.sha256), file


@pytest.mark.parametrize("size", ["124M", "355M"])
def test_the_hashes_of_openais_small_files_are_those_of_their_known_contents(size: str) -> None:
    config = SIZES[size]
    fields = ",\n  ".join(
        f'"{name}": {getattr(config, name)}'
        for name in ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer")
    )
    contents = {
        "hparams.json": f"{{\n  {fields}\n}}\n",
        "checkpoint": 'model_checkpoint_path: "model.ckpt"\n'
        'all_model_checkpoint_paths: "model.ckpt"\n',
    }
    files = _by_name(PUBLICATIONS[size].openai_files)
    for name, text in contents.items():
        assert (files[name].size, files[name].sha256) == (
            len(text),
            hashlib.sha256(text.encode()).hexdigest(),
        )


def test_a_model_that_openai_did_not_publish_has_no_openai_directory() -> None:
    assert [
        size for size, publication in PUBLICATIONS.items() if publication.openai_directory is None
    ] == ["distilgpt2"]
    assert PUBLICATIONS["distilgpt2"].openai_files == ()


def test_aliases_lead_to_sizes_in_any_case() -> None:
    assert set(ALIASES.values()) <= SIZES.keys()
    assert canonical_size("GPT2-XL") == canonical_size("1.5b") == canonical_size("1558m") == "1558M"
    assert canonical_size("gpt3") is None


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("125M", "124M"),
        ("350M", "355M"),
        ("770M", "774M"),
        ("1500M", "1558M"),
        ("gpt2-mediun", "355M"),
        ("distilgpt", "distilgpt2"),
        ("1.6B", "1558M"),
        ("124", "124M"),
        ("7B", None),
        ("llama", None),
        ("my-novel", None),
        ("0", None),
        ("run-2024", None),  # it has digits, and was taken for a number of parameters
    ],
)
def test_a_mistyped_size_leads_to_the_nearest_and_another_name_to_none(
    typed: str, meant: str | None
) -> None:
    assert canonical_size(typed) is None
    assert nearest_size(typed) == meant
