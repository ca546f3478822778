"""Sparse autoencoders of the Hub: fetched by name, and found by it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from features_builders import SAES, matrices
from servers import FakeHub
from typer.testing import CliRunner, Result

from gpt2kit.cli import app
from gpt2kit.errors import CheckpointFormatError, CheckpointNotFoundError, DownloadError
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


def test_models_lists_saes_and_rm_removes_them(hub: FakeHub, weights: Path) -> None:
    """A downloaded SAE was not listed, and could be removed by hand alone."""

    def typed(*arguments: str) -> Result:
        return CliRunner().invoke(app, [*arguments])

    names = [f"{NAME}/blocks.1.hook_resid_mid", "kk/attn/L5.pt"]
    folders = [download(name).name for name in names]
    rows = [json.loads(line) for line in typed("models", "--json").stdout.splitlines()]
    listed = {row["name"]: (row["source"], row["format"]) for row in rows}
    assert listed[folders[0]] == (names[0], "SAE (SAELens)")
    assert listed[folders[1]] == (names[1], "SAE (attention)")
    for folder, typed_name in zip(folders, (names[0], folders[1]), strict=True):
        assert load_sae(folder).n_features  # also by the name that is listed
        assert typed("rm", typed_name, "--yes").exit_code == 0
        assert not (weights / folder).exists()
    assert f"there is no model '{names[0]}'" in typed("rm", names[0], "--yes").stderr


def test_an_sae_that_is_not_what_the_hub_describes_is_refused(hub: FakeHub, weights: Path) -> None:
    name = f"{NAME}/blocks.1.hook_resid_pre"
    hub.lies["blocks.1.hook_resid_pre/cfg.json"] = {"blobId": "1" * 40}
    with pytest.raises(DownloadError, match=r"cfg\.json"):
        download(name)
    hub.lies.clear()
    hub.lies["blocks.1.hook_resid_pre/sae_weights.safetensors"] = {
        "lfs": {"sha256": "1" * 64, "size": 1112, "pointerSize": 134}
    }
    with pytest.raises(DownloadError, match="sae_weights"):
        download(name)


def test_an_sae_that_changed_since_it_was_downloaded_is_refused(
    hub: FakeHub, weights: Path
) -> None:
    """It was used as if it were the published one."""
    name = f"{NAME}/blocks.1.hook_resid_pre"
    path = download(name) / "sae_weights.safetensors"
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)
    with pytest.raises(CheckpointFormatError, match=f"gpt2kit download {name} --force"):
        load_sae(name)


def test_a_pt_comes_with_the_file_that_describes_it(hub: FakeHub) -> None:
    download("kk/attn/L5.pt")
    assert load_sae("kk/attn/L5.pt").hook == "blocks.5.attn.hook_z"


def test_a_folder_that_is_not_there_is_one_line_with_those_that_are(hub: FakeHub) -> None:
    with pytest.raises(DownloadError) as caught:
        download(f"{NAME}/blocks.9.hook_resid_pre")
    assert "it has blocks.1.hook_resid_mid, blocks.1.hook_resid_pre" in str(caught.value)
    with pytest.raises(DownloadError, match=r"kk/attn has no L6\.pt; it has L5\.pt"):
        download("kk/attn/L6.pt")  # the names of such files were left out for a while


def test_every_name_that_is_downloaded_can_be_read_again(hub: FakeHub) -> None:
    """A file with a + in its name was downloaded, and then refused as a damaged download."""
    hub.add("kk/plus", {"L5+relu.pt": hub.repositories["kk/attn"]["L5.pt"]})
    download("kk/plus/L5+relu.pt")
    assert load_sae("kk/plus/L5+relu.pt").n_features == 24
    with pytest.raises(DownloadError, match="A Hub id is org/name"):
        download("kk/plus/L5é.pt")  # a name that the manifest would refuse, too
