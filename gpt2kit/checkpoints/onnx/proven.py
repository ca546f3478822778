"""An ONNX graph written into a folder, and what onnxruntime computes from it beside the model."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

from gpt2kit.checkpoints.onnx.folder import FILES, FOLDER
from gpt2kit.checkpoints.onnx.graph import model_without_weights
from gpt2kit.checkpoints.onnx.runtime import onnx_logits
from gpt2kit.checkpoints.onnx.weights import INT8_ERROR, NUMBERS, weights
from gpt2kit.checkpoints.onnx.writing import write_onnx
from gpt2kit.checkpoints.stored import Checkpoint
from gpt2kit.checkpoints.written import TOLERANCE, Comparison, compare_written

# The largest difference of the logits, relative to the largest one, if no weight was rounded.
_TOLERANCES = {"f32": TOLERANCE, "f16": 0.05, "int8": math.inf}


def write_proven(folder: Path, checkpoint: Checkpoint, dtype: str) -> Comparison:
    """Write the graph of a checkpoint, whose tensors and logits are then compared.

    One tensor is in memory at a time, and in the end those that onnxruntime loads: all of a file
    with the weights in it, none of two files. Raises CheckpointFormatError if the file differs from
    the checkpoint, CheckpointError for a number that the dtype cannot hold.
    """
    config = checkpoint.config
    path = folder / FOLDER / FILES[dtype]
    path.parent.mkdir()
    parts = list(weights(config, checkpoint.tensors, dtype))
    stored = write_onnx(path, model_without_weights(config, dtype), parts)
    found = replace(
        checkpoint,
        path=path,
        tensors={name: stored[name] for name in checkpoint.tensors},
        tied_copy=None,
    )
    error = INT8_ERROR if dtype == "int8" else NUMBERS[dtype].error
    return compare_written(
        checkpoint,
        checkpoint.tensors,
        found,
        dict.fromkeys(checkpoint.tensors, error),
        compute=partial(onnx_logits, path, config),
        tolerance=_TOLERANCES[dtype],
    )
