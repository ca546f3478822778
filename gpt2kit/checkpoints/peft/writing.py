"""Write adapters of ours as PEFT saves them: adapter_config.json, adapter_model.safetensors."""

from __future__ import annotations

import json
from pathlib import Path

from gpt2kit.checkpoints import adapters
from gpt2kit.checkpoints.peft.reading import LAYERS, PREFIX, WEIGHTS_FILES
from gpt2kit.checkpoints.safetensors_files import read_safetensors, write_safetensors
from gpt2kit.store import PEFT_FILE

_PARTS = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}


def write_peft(folder: Path, ours: Path, base: str) -> None:
    """Write the adapters in the folder `ours` into another one, number for number.

    `base` is the name or path of their model for transformers. Raises CheckpointError if they are
    damaged.
    """
    about = adapters.read_adapters(ours)
    tensors = {}
    for name, stored in read_safetensors(ours / adapters.WEIGHTS_FILE).items():
        module, _, part = name.rpartition(".")
        tensors[f"{PREFIX}transformer.{module}.{_PARTS[part]}"] = stored
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": about["rank"],
        "lora_alpha": about["alpha"],
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": True,  # transformers' GPT-2 holds its matrices as (in, out)
        "target_modules": list(LAYERS),
    }
    with (folder / WEIGHTS_FILES[0]).open("wb") as file:
        write_safetensors(file, tensors)
    (folder / PEFT_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
