"""Sparse autoencoders of the Hub: fetched by name, and found by it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from features_builders import SAES, matrices
from servers import FakeHub

from gpt2kit.errors import CheckpointNotFoundError, DownloadError
from gpt2kit.inspection.features import load_sae
from gpt2kit.store.download import download

NAME = "jbloom/GPT2-Small-SAEs-Reformatted"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, weights: Path) -> Iterator[FakeHub]:
    """A Hub with a repository of two folders, and one of a .pt with its configuration."""
    hub = FakeHub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    folders = {"blocks.1.hook_resid_pre": "standard", "blocks.1.hook_resid_mid": "gated"}
    hub.add(
        NAME,
        {"README.md": b"x"}
        | {
            f"{folder}/{path.name}": path.read_bytes()
            for folder, own in folders.items()
            for path in (SAES / own).iterdir()
        },
    )
    torch.save(matrices(16, 24), tmp_path / "L5.pt")
    about = b'{"act_name": "blocks.5.attn.hook_z"}'
    hub.add("kk/attn", {"L5.pt": (tmp_path / "L5.pt").read_bytes(), "L5_cfg.json": about})
    (tmp_path / "L5.pt").unlink()
    yield hub
    hub.close()


def test_one_folder_of_a_repository_is_fetched_and_found_by_its_name(
    hub: FakeHub, weights: Path
) -> None:
    name = f"{NAME}/blocks.1.hook_resid_mid"
    with pytest.raises(CheckpointNotFoundError, match=f"Run: gpt2kit download {name}"):
        load_sae(name)
    folder = download(name)
    assert folder == weights / "jbloom--GPT2-Small-SAEs-Reformatted--blocks.1.hook_resid_mid"
    found = {path.name for path in folder.iterdir()}
    assert {"cfg.json", "sae_weights.safetensors", "gpt2kit.json"} <= found
    sae = load_sae(name)
    assert (sae.kind, sae.hook) == ("gated", "blocks.1.hook_resid_mid")
    assert torch.equal(sae.encoder, load_sae(SAES / "gated").encoder)
    hub.close()
    assert download(name) == folder  # without the network


def test_a_pt_comes_with_the_file_that_describes_it(hub: FakeHub) -> None:
    download("kk/attn/L5.pt")
    assert load_sae("kk/attn/L5.pt").hook == "blocks.5.attn.hook_z"


def test_a_folder_that_is_not_there_is_one_line_with_those_that_are(hub: FakeHub) -> None:
    with pytest.raises(DownloadError) as caught:
        download(f"{NAME}/blocks.9.hook_resid_pre")
    assert "it has blocks.1.hook_resid_mid, blocks.1.hook_resid_pre" in str(caught.value)
