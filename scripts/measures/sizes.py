"""Models of GPT-2's published sizes with random weights, for measures that depend on size alone."""

from __future__ import annotations

from pathlib import Path


def make(size: str, work: Path) -> Path:
    """Return the folder of a model of this size; write it if it does not exist."""
    folder = work / f"random-{size}"
    if not folder.exists():
        import torch

        from gpt2kit import GPT2, SIZES
        from gpt2kit.checkpoints.load import write_model
        from gpt2kit.files import new_directory

        torch.manual_seed(0)
        with new_directory(folder) as building:
            write_model(building, GPT2(SIZES[size]))
    return folder
