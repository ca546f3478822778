"""The logits that onnxruntime computes from a file."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from gpt2kit.config import GPT2Config

_ELEMENT = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def onnx_logits(path: Path, config: GPT2Config, ids: Tensor) -> Tensor:
    """Return the float32 logits of (1, T) ids, (1, T, V), read in two pieces with the cache.

    Weights in a second file are mapped, and nothing is copied from them but a tensor to turn
    or to widen it.
    """
    options = onnxruntime.SessionOptions()
    # Optimizing and packing would hold all weights in memory once more.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.enable_cpu_mem_arena = False
    # Weights in float16 are widened just before they are used; otherwise all at the beginning.
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    past = {
        each.name: np.zeros((1, config.n_head, 0, config.head_size), _ELEMENT[each.type])
        for each in session.get_inputs()
        if each.name.startswith("past_key_values")
    }
    tokens, found = ids.numpy(), []
    for start, end in itertools.pairwise(sorted({0, -(-ids.shape[1] // 2), ids.shape[1]})):
        feed: dict[str, Any] = {
            "input_ids": tokens[:, start:end],
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(start, end)[None],
            **past,
        }
        logits, *present = session.run(None, feed)
        found.append(torch.from_numpy(logits))
        past = dict(zip(past, present, strict=True))
    return torch.cat(found, dim=1)
