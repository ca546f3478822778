"""How much memory a model's weights will take, guessed before they are loaded."""

from __future__ import annotations

import json
from pathlib import Path

from gpt2kit.store.folders import int8_file

_DTYPES = {"float64": "F64", "bfloat16": "BF16", "float16": "F16"}  # anything else is float32


def memory_needed(path: Path, dtype: str = "float32", quantize: str | None = None) -> int:
    """Return about how many bytes a model's weights take in memory; 0 if the file does not tell.

    It is a guess, made before anything is checked, and never more than the size of the file.
    Weights that will be converted to another dtype tell nothing.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    if quantize is not None:
        kept = int8_file(path)
        return kept.stat().st_size if kept.is_file() else 0
    if file.suffix != ".safetensors" or not file.is_file():
        return 0
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = opened.read(min(length, 2**24))
    try:
        entries = [entry for entry in json.loads(header).values() if "dtype" in entry]
        # Attention masks, which are not weights, have four dimensions.
        weights = [entry for entry in entries if len(entry["shape"]) <= 2]
        n = sum(int(entry["data_offsets"][1]) - int(entry["data_offsets"][0]) for entry in weights)
        stored = {entry["dtype"] for entry in weights}
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError):
        return 0
    is_stored_so = stored == {_DTYPES.get(dtype, "F32")}
    return n if is_stored_so and 0 < n <= file.stat().st_size else 0
