"""Weights in whatever format, in and out: open a checkpoint, build the model, write a directory that runs everywhere."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn

from gpt2kit import store
from gpt2kit.checkpoints import huggingface, nanogpt, openai, pickled
from gpt2kit.checkpoints.int8 import build_int8_model
from gpt2kit.checkpoints.stored import (
    FLOAT_DTYPES,
    Checkpoint,
    StoredTensor,
    as_bytes,
    empty_tensors,
)
from gpt2kit.config import GPT2Config
from gpt2kit.errors import (
    CheckpointError,
    CheckpointFormatError,
    CheckpointNotFoundError,
    ConfigError,
    TokenizerError,
)
from gpt2kit.files import read_start
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import Tokenizer, load_tokenizer

__all__ = [
    "Checkpoint",
    "StoredTensor",
    "build_model",
    "load",
    "load_vocabulary",
    "open_checkpoint",
    "pick_device",
    "pick_dtype",
    "pick_numbers",
    "read_checked",
    "write_checkpoint",
    "write_model",
]


_SCRATCH = (
    2**26
)  # bytes that a thread keeps for tensors on their way; larger ones get memory of their own, once


def load(
    model: str | Path = "124M",
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str | None = None,
    verify: bool = True,
) -> tuple[GPT2, Tokenizer | None]:
    """Load a model that is on this machine, ready to run, and its tokenizer (None where the directory has no vocabulary).

    `model` is a size (`124M`), a directory, a checkpoint file or prefix, or the Hub id of a model downloaded before. `device`
    is `auto`, `cpu`, `cuda`, `mps`, …; `dtype` is `float32`, `bfloat16`, `float16`, `float64`, or `auto`: float32, on CUDA
    bfloat16. `quantize="int8"` keeps the matrices in eight bits, on the CPU. With `verify`, a downloaded file is compared with its
    recorded hash, once for each version of the file. Raises CheckpointError or ConfigError where that
    cannot be; what it returns has been checked, name by name and number by number.
    """
    place, number = pick_numbers(device, dtype, quantize)
    checkpoint = open_checkpoint(store.find(model), verify=verify)
    with ThreadPoolExecutor(
        1
    ) as pool:  # while the weights are read, Python has time for the vocabulary
        tokenizer = pool.submit(load_vocabulary, checkpoint)
        if quantize is not None:
            return build_int8_model(
                checkpoint, lambda name: read_checked(checkpoint, name)
            ), tokenizer.result()
        return build_model(checkpoint, device=place, dtype=number), tokenizer.result()


def pick_numbers(device: str, dtype: str, quantize: str | None) -> tuple[torch.device, torch.dtype]:
    """Return where and in what dtype to run; raise ConfigError for a wish, or a combination of wishes, that cannot be."""
    if quantize is None:
        place = pick_device(device)
        return place, pick_dtype(dtype, place)
    if quantize != "int8":
        raise ConfigError(f"quantize is {quantize!r}, expected int8")
    if device not in ("auto", "cpu") or dtype not in ("auto", "float32"):
        raise ConfigError(
            f"int8 weights run on the CPU, with the rest in float32; found device {device!r} and dtype {dtype!r}: leave them out"
        )
    return torch.device("cpu"), torch.float32


def load_vocabulary(checkpoint: Checkpoint) -> Tokenizer | None:
    """Return the tokenizer beside a checkpoint's weights, or None; raises TokenizerError where it is another model's."""
    tokenizer = load_tokenizer(checkpoint.folder)
    if tokenizer is not None and tokenizer.n_vocab > checkpoint.config.n_vocab:
        detail = f"the vocabulary has {tokenizer.n_vocab:,} tokens, but the model only {checkpoint.config.n_vocab:,}"
        raise TokenizerError(
            f"{checkpoint.folder}: {detail}; put the model's own vocab.json and merges.txt there"
        )
    return tokenizer


def open_checkpoint(path: Path, *, verify: bool = True) -> Checkpoint:
    """Open a directory, a file or the prefix of a TensorFlow checkpoint; what they hold decides the format, not the names.

    Only headers are read, but with `verify` downloaded files are compared with their recorded hashes if that was not done since they
    changed. Raises CheckpointNotFoundError where there are no weights, CheckpointFormatError for damage,
    CheckpointMismatchError where the tensors are not those of the configuration.
    """
    if verify:
        store.check_files(path if path.is_dir() else path.parent)
    if path.is_dir():
        return _open_directory(path)
    prefix = path.with_name(path.name.removesuffix(".index"))
    if path.suffix != ".safetensors" and prefix.with_name(prefix.name + ".index").exists():
        return openai.open_directory(prefix.parent, prefix)
    if (
        pickled.is_pickled(read_start(path, error=CheckpointError))
        and not (path.parent / huggingface.CONFIG_FILE).exists()
    ):
        return nanogpt.open_file(path)
    if not (path.parent / huggingface.CONFIG_FILE).exists():
        message = f"{path}: weights without a configuration; expected {huggingface.CONFIG_FILE} beside them"
        raise CheckpointNotFoundError(message, path=path, missing=[huggingface.CONFIG_FILE])
    return huggingface.open_file(
        path, huggingface.read_config(path.parent / huggingface.CONFIG_FILE)
    )


def _open_directory(path: Path) -> Checkpoint:
    if (path / huggingface.CONFIG_FILE).exists():
        return huggingface.open_directory(path)
    if (path / openai.HPARAMS_FILE).exists() or any(path.glob("*.index")):
        return openai.open_directory(path)
    saved = sorted(
        file for file in path.iterdir() if file.suffix in (".pt", ".pth") and file.is_file()
    )
    if len(saved) == 1:
        return nanogpt.open_file(saved[0])
    expected = "expected config.json with model.safetensors, hparams.json with model.ckpt.index, or one nanoGPT ckpt.pt"
    message = store.adapters_alone(path) or f"{path}: no model; {expected}"
    raise CheckpointNotFoundError(message, path=path, missing=[huggingface.CONFIG_FILE])


def build_model(
    checkpoint: Checkpoint,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> GPT2:
    """Read a checkpoint's tensors into a model of that dtype, in evaluation mode.

    The memory needed is the model's own and that of the largest tensor. A tensor that holds a NaN or an infinity is a
    CheckpointFormatError.
    """
    with torch.device("meta"):
        model = GPT2(checkpoint.config)
    # All parameters get their place before the first tensor is read: what is freed in between then leaves no holes. They are
    # filled by other threads, which a caller's inference mode does not reach.
    with torch.inference_mode(False):
        state = empty_tensors(
            {name: (shape, dtype) for name, shape in checkpoint.config.shapes().items()}, device
        )
    _check_tied_copy(checkpoint)

    local = threading.local()  # one thread's memory for tensors that must be turned or converted; small ones stay in its cache

    def fill(name: str) -> None:
        stored, final = checkpoint.tensors[name], state[name]
        if not stored.transposed and (stored.dtype, "cpu") == (final.dtype, final.device.type):
            buffer = as_bytes(final)
        elif stored.nbytes > _SCRATCH:
            buffer = empty_tensors({name: ((stored.nbytes,), torch.uint8)})[name]
        else:
            if not hasattr(local, "scratch"):
                local.scratch = empty_tensors({name: ((_SCRATCH,), torch.uint8)})[name]
            buffer = local.scratch
        tensor = stored.read(buffer)
        _check_finite(checkpoint.path, name, tensor)
        if tensor.data_ptr() != final.data_ptr():
            # Torch is quick to turn matrices, and to convert them, but not to do both at once.
            final.copy_(tensor.to(final.dtype) if stored.transposed else tensor)

    # Reading and transposing are the kernel's and torch's work: two threads keep both cores of a small machine busy, and more
    # would only hold more tensors at once.
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            # The largest come first, while most of the model's own memory is not touched yet.
            list(
                pool.map(
                    fill,
                    sorted(checkpoint.tensors, key=lambda name: -checkpoint.tensors[name].nbytes),
                )
            )
    finally:
        torch.set_num_threads(threads)
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def read_checked(checkpoint: Checkpoint, name: str) -> Tensor:
    """Read a tensor for another purpose than `build_model`'s, with all of its checks."""
    if name == "wte.weight":
        _check_tied_copy(checkpoint)
    tensor = checkpoint.tensors[name].read()
    _check_finite(checkpoint.path, name, tensor)
    return tensor


def _check_finite(path: Path, name: str, tensor: Tensor, what: str = "") -> None:
    if tensor.numel():
        low, high = torch.aminmax(
            tensor
        )  # carries a NaN through, and is twenty times as fast as isfinite
        if not (torch.isfinite(low) and torch.isfinite(high)):
            count = int((~torch.isfinite(tensor)).sum())
            advice = (
                "take a wider --dtype, if the weights are not damaged"
                if what
                else "the weights are damaged: get them again"
            )
            raise CheckpointFormatError(
                path, f"{name} holds {count:,} numbers that are NaN or infinite{what}; {advice}"
            )


def _check_tied_copy(checkpoint: Checkpoint) -> None:
    """Raise CheckpointFormatError where a model with a tied head brings another head."""
    if checkpoint.tied_copy is not None and not torch.equal(
        checkpoint.tied_copy.read(), checkpoint.tensors["wte.weight"].read()
    ):
        detail = 'lm_head.weight differs from wte.weight, but the head is tied; if it is meant to, set "tie_word_embeddings": false'
        raise CheckpointFormatError(checkpoint.path, detail)


def write_model(folder: Path, model: GPT2, tokenizer: Tokenizer | None = None) -> None:
    """Write a model and its vocabulary into an existing folder, as a directory that transformers loads."""
    state: Mapping[str, Tensor] = dict(nn.Module.named_parameters(model))
    _write(
        folder,
        model.config,
        {name: StoredTensor.of(tensor) for name, tensor in state.items()},
        model.dtype,
        tokenizer,
    )


def write_checkpoint(
    folder: Path, checkpoint: Checkpoint, dtype: torch.dtype, tokenizer: Tokenizer | None = None
) -> None:
    """Write a checkpoint and a vocabulary into an existing folder, as a directory that transformers loads, one tensor at a time.

    What `build_model` would refuse is refused, and numbers that the dtype is too narrow for are.
    """
    _check_tied_copy(checkpoint)

    def checked(name: str, stored: StoredTensor) -> StoredTensor:
        def read(_: Tensor | None) -> Tensor:
            tensor = stored.read().to(dtype)
            _check_finite(checkpoint.path, name, tensor, f" as {str(dtype).removeprefix('torch.')}")
            return tensor

        return StoredTensor(stored.shape, dtype, read)

    _write(
        folder,
        checkpoint.config,
        {name: checked(name, stored) for name, stored in checkpoint.tensors.items()},
        dtype,
        tokenizer,
    )


def _write(
    folder: Path,
    config: GPT2Config,
    tensors: Mapping[str, StoredTensor],
    dtype: torch.dtype,
    tokenizer: Tokenizer | None,
) -> None:
    huggingface.write_directory(
        folder, config, tensors, dtype=dtype, stop_id=tokenizer.stop_id if tokenizer else None
    )
    if tokenizer is not None:
        tokenizer.save(folder)


def pick_device(name: str) -> torch.device:
    """Return the device of that name; `auto` is the best one here. Raises ConfigError for one that is not."""
    if name == "auto":
        return torch.device(
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device is {name!r}, expected auto, cpu, cuda, cuda:1, mps, …") from None
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not present.get(device.type, False) or (
        device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    ):
        here = ", ".join(kind for kind, is_here in present.items() if is_here)
        raise ConfigError(
            f"device is {name!r}, which this machine or this build of torch does not have; it has {here}"
        )
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of that name; `auto` is float32, on CUDA bfloat16. Raises ConfigError for one that cannot be."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    known = {str(dtype).removeprefix("torch."): dtype for dtype in FLOAT_DTYPES}
    if name not in known:
        raise ConfigError(f"dtype is {name!r}, expected auto, {', '.join(known)}")
    return known[name]
