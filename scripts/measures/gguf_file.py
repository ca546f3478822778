"""Write a model in the format of llama.cpp."""

from __future__ import annotations

from pathlib import Path


def write_gguf(model: Path, out: Path, kind: str) -> None:
    """Write a model as a GGUF file, with its vocabulary."""
    from gpt2kit.checkpoints.exports import export_gguf
    from gpt2kit.checkpoints.load import load_vocabulary, open_checkpoint

    checkpoint = open_checkpoint(model)
    # Versions of llama.cpp from before March 2025 need the head as a tensor of its own.
    export_gguf(out, checkpoint, load_vocabulary(checkpoint), dtype=kind, untie=True)
