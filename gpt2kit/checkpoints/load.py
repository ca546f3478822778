"""Weights in every format, in and out: open a checkpoint, build the model, write a folder."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from gpt2kit import store
from gpt2kit.checkpoints import huggingface, llmc, openai, pickled, torch_files
from gpt2kit.checkpoints.classifiers import LabelWords, class_head, labels_of_head
from gpt2kit.checkpoints.config_json import CONFIG_FILE, read_config
from gpt2kit.checkpoints.device import (
    resolve_device,
    resolve_device_and_dtype,
    resolve_dtype,
)
from gpt2kit.checkpoints.gguf import reading as gguf
from gpt2kit.checkpoints.int8 import build_int8_model
from gpt2kit.checkpoints.names import CLASS_HEAD
from gpt2kit.checkpoints.peft import reading as peft
from gpt2kit.checkpoints.stored import (
    Checkpoint,
    StoredTensor,
    as_bytes,
    check_finite,
    empty_tensors,
)
from gpt2kit.checkpoints.unsaid import Unsaid
from gpt2kit.checkpoints.vocabularies import find_vocabulary, load_vocabulary, where_to_look
from gpt2kit.errors import (
    CheckpointError,
    CheckpointFormatError,
    CheckpointNotFoundError,
    ConfigError,
    Gpt2KitWarning,
)
from gpt2kit.files import read_start
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import Tokenizer

__all__ = [
    "Checkpoint",
    "StoredTensor",
    "build_model",
    "load",
    "load_vocabulary",
    "open_checkpoint",
    "read_checked",
    "resolve_device",
    "resolve_device_and_dtype",
    "resolve_dtype",
    "write_checkpoint",
    "write_model",
]

# Bytes of the buffer that a thread keeps for tensors to transpose or convert. Larger tensors, of
# which there are one or two, get memory of their own.
_BUFFER = 2**26
# Names of files that are a model by themselves, if a folder has only one of them
_SUFFIXES = (".pt", ".pth", gguf.SUFFIX)


def load(
    model: str | Path = "124M",
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str | None = None,
    verify: bool = True,
    write_cache: bool = True,
    on_write: Callable[[Path], object] | None = None,
    vocabulary: str | Path | None = None,
    n_head: int | None = None,
    fetch_vocabulary: Callable[[], Path] | None = None,
    base: str | Path | None = None,
) -> tuple[GPT2, Tokenizer | None]:
    """Load a model that is on this machine, ready to run, and its tokenizer if it has one.

    - `model`: a size (`124M`), a folder, a checkpoint's file or prefix, or a Hub id
    - `device`: `cpu`, `cuda`, `cuda:1`, `mps`, … or `auto`: the fastest one that is here
    - `dtype`: `float32`, `bfloat16`, `float16`, `float64` or `auto`: bfloat16 on CUDA, else float32
    - `quantize`: `int8` holds the matrices in eight bits, on the CPU
    - `verify`: compare downloaded files with their recorded hashes, once for each version of a file
    - `write_cache`: keep what the next load can use (int8 weights, which hashes were right) in the
      model's folder if it is a download or a training run, else in the user's cache directory
    - `on_write`: is called with the path of the int8 weights if they were written
    - `vocabulary`: a model or file to take it from, such as nanoGPT's meta.pkl or the text that the
      model was trained on; by default the one beside the weights
    - `n_head`: attention heads, for a file of weights alone that does not say them
    - `fetch_vocabulary`: gives the folder of GPT-2's vocabulary if it is needed and not here
    - `base`: the model below a folder of PEFT's adapters, in place of the one that they name

    Every tensor's name, shape and numbers have been checked. Raises CheckpointError, TokenizerError
    or ConfigError.
    """
    torch_device, torch_dtype = resolve_device_and_dtype(device, dtype, quantize)
    checkpoint = open_checkpoint(
        store.find(model),
        verify=verify,
        write_cache=write_cache,
        unsaid=Unsaid(n_head=n_head),
        base=base,
    )
    source = None if vocabulary is None else find_vocabulary(vocabulary)
    # Reading weights is mostly the kernel's work: Python has time for the vocabulary meanwhile.
    with ThreadPoolExecutor(1) as pool:
        tokenizer = pool.submit(load_vocabulary, checkpoint, source, fetch=fetch_vocabulary)
        loaded: GPT2
        if quantize is None:
            loaded = build_model(checkpoint, device=torch_device, dtype=torch_dtype)
        else:
            loaded = build_int8_model(
                checkpoint,
                lambda name: read_checked(checkpoint, name),
                write=write_cache,
                on_write=on_write,
            )
        if tokenizer.result() is None and (advice := where_to_look(checkpoint)):
            warnings.warn(f"{checkpoint.path}: {advice}", Gpt2KitWarning, stacklevel=2)
        return loaded, tokenizer.result()


# --- opening --------------------------------------------------------------------------------------


def open_checkpoint(
    path: Path,
    *,
    verify: bool = True,
    write_cache: bool = True,
    unsaid: Unsaid | None = None,
    base: str | Path | None = None,
) -> Checkpoint:
    """Open a folder, a file or the prefix of a TensorFlow checkpoint.

    The contents decide the format, not the names.

    Only headers are read, except that `verify` compares files of a download with their recorded
    hashes unless that was done since they changed; `write_cache` records that it was done.
    `unsaid` is what a file of weights alone does not say, `base` the model below a folder of PEFT's
    adapters, in place of the one that they name. Raises CheckpointNotFoundError if there
    are no weights, CheckpointFormatError for damage, CheckpointMismatchError if the tensors are not
    those of the configuration, and ConfigError if `unsaid` lacks something or contradicts the file.
    """
    unsaid = unsaid or Unsaid()
    if verify:
        store.check_files(path if path.is_dir() else path.parent, record=write_cache)
    if is_peft(path):
        unsaid.refuse(path)
        return _open_adapted(path, base, verify, write_cache)
    if base is not None:
        raise ConfigError(f"{path} is a model, and not adapters over {base}")
    if alone := _alone(path):
        return _open_alone(alone, unsaid)
    unsaid.refuse(path)
    if path.is_dir():
        return _open_folder(path)
    prefix = path.with_name(path.name.removesuffix(".index"))
    if path.suffix != ".safetensors" and prefix.with_name(prefix.name + ".index").exists():
        return openai.open_directory(prefix.parent, prefix)
    config_file = path.parent / CONFIG_FILE
    if config_file.exists():
        return huggingface.open_file(path, read_config(config_file))
    raise CheckpointNotFoundError(f"{path}: {_lacking(path)}", path=path, missing=[CONFIG_FILE])


def _lacking(path: Path) -> str:
    """Say why a file by itself is no model."""
    if path.suffix == ".safetensors":
        return f"weights without a configuration; expected {CONFIG_FILE} beside them"
    if (path.parent / openai.HPARAMS_FILE).exists():
        return f"a part of a TensorFlow checkpoint; give its folder instead: {path.parent}"
    return (
        "not a model; expected a folder with config.json or hparams.json, or a file of "
        "PyTorch, GGUF or llm.c"
    )


def is_peft(path: Path) -> bool:
    """Whether a folder holds PEFT's adapters and no whole model."""
    # TRL saves its value head beside adapters under the name of a model's weights.
    is_whole = (path / CONFIG_FILE).exists() and huggingface.weights_in(path)
    return (path / store.PEFT_FILE).is_file() and not is_whole


def _open_adapted(
    path: Path, base: str | Path | None, verify: bool, write_cache: bool
) -> Checkpoint:
    """Open a folder of PEFT's adapters, over their model or over other such adapters."""
    folders = [path]
    while is_peft(below := _below(folders[-1], base)):
        if below.resolve() in [each.resolve() for each in folders]:
            raise CheckpointError(f"{below}: its adapters lie over themselves")
        folders.append(below)
        base = None
    checkpoint = open_checkpoint(below, verify=verify, write_cache=write_cache)
    for folder in reversed(folders):
        checkpoint = peft.open_adapters(folder, checkpoint)
    return checkpoint


def _below(folder: Path, base: str | Path | None) -> Path:
    """Return the path of the model below a folder of adapters."""
    name = base or peft.base_of(folder)
    try:
        if not name:
            raise CheckpointNotFoundError("it has no base_model_name_or_path")
        return store.find(name)
    except CheckpointNotFoundError as error:
        advice = f"if that is elsewhere, run: gpt2kit merge {folder} --model MODEL --out DIR"
        message = f"{folder}: the model below these adapters: {error}; {advice}"
        raise CheckpointNotFoundError(message, path=folder) from error


def _alone(path: Path) -> Path | None:
    """Return the file that is a model by itself: the path, or the only one in a folder.

    These are files of torch.save, GGUF files and those of llm.c.
    """
    if not path.is_dir():
        return path if path.is_file() and _is_whole(path, _start(path)) else None
    if (path / openai.HPARAMS_FILE).exists() or huggingface.weights_in(path):
        return None
    saved = [each for each in sorted(path.iterdir()) if each.suffix in _SUFFIXES]
    return saved[0] if len(saved) == 1 and saved[0].is_file() else None


def _is_whole(path: Path, start: bytes) -> bool:
    return pickled.is_pickled(start) or gguf.is_gguf(path, start) or llmc.is_llmc(start)


def _open_alone(path: Path, unsaid: Unsaid) -> Checkpoint:
    """Open a file that is a model by itself."""
    start = _start(path)
    is_gguf = gguf.is_gguf(path, start)
    if not is_gguf and not llmc.is_llmc(start):
        return torch_files.open_file(path, unsaid)
    unsaid.refuse(path)
    return gguf.open_file(path) if is_gguf else llmc.open_file(path)


def _start(path: Path) -> bytes:
    return read_start(path, error=CheckpointError)


def _open_folder(path: Path) -> Checkpoint:
    """Open a folder by the configuration in it."""
    if (path / CONFIG_FILE).exists():
        return huggingface.open_directory(path)
    if (path / openai.HPARAMS_FILE).exists() or any(path.glob("*.index")):
        return openai.open_directory(path)
    expected = (
        "config.json with model.safetensors, hparams.json with model.ckpt.index, or one .pt, .pth "
        "or .gguf"
    )
    message = store.adapters_alone(path) or f"{path}: no model; expected {expected}"
    raise CheckpointNotFoundError(message, path=path, missing=[CONFIG_FILE])


# --- reading --------------------------------------------------------------------------------------


def build_model(
    checkpoint: Checkpoint,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> GPT2:
    """Read a checkpoint's tensors into a model of that dtype, in evaluation mode.

    It takes the memory of the model and of the largest tensor. Raises CheckpointFormatError for
    damage, also for a tensor that holds a NaN or an infinity, or a number too large for the dtype.
    """
    with torch.device("meta"):
        model = GPT2(checkpoint.config)
    # The parameters' memory is allocated before the first tensor is read, so that what is freed
    # meanwhile leaves no holes. Other threads fill it, and a caller's inference mode does not reach
    # those.
    with torch.inference_mode(False):
        shapes = checkpoint.config.shapes()
        state = empty_tensors({name: (shape, dtype) for name, shape in shapes.items()}, device)
    _check_tied_copy(checkpoint)
    local = threading.local()

    def fill(name: str) -> None:
        stored, final = checkpoint.tensors[name], state[name]
        if not stored.transposed and (stored.dtype, "cpu") == (final.dtype, final.device.type):
            buffer = as_bytes(final)
        elif stored.nbytes > _BUFFER:
            buffer = _bytes(stored.nbytes)
        else:
            if not hasattr(local, "buffer"):
                local.buffer = _bytes(_BUFFER)
            buffer = local.buffer
        tensor = stored.read(buffer)
        converted = None if tensor.dtype == final.dtype else final.dtype
        check_finite(checkpoint.path, name, tensor, dtype=converted)
        if tensor.data_ptr() != final.data_ptr():
            # torch transposes fast, and converts fast, but not both at once.
            final.copy_(tensor.to(final.dtype) if stored.transposed else tensor)

    _in_two_threads(fill, checkpoint)
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def _in_two_threads(fill: Callable[[str], None], checkpoint: Checkpoint) -> None:
    """Call `fill` with the name of every tensor, in two threads that use one core each.

    Reading is the kernel's work and transposing is torch's: two threads keep a small machine busy,
    and more would hold more tensors at once.
    """
    # The largest tensors come first, while most of the model's own memory is still untouched.
    names = sorted(checkpoint.tensors, key=lambda name: -checkpoint.tensors[name].nbytes)
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(fill, names))
    finally:
        torch.set_num_threads(threads)


def _bytes(n: int) -> Tensor:
    return empty_tensors({"": ((n,), torch.uint8)})[""]


def read_checked(checkpoint: Checkpoint, name: str) -> Tensor:
    """Return one tensor of a checkpoint, after all the checks of `build_model`."""
    if name == "wte.weight":
        _check_tied_copy(checkpoint)
    tensor = checkpoint.tensors[name].read()
    check_finite(checkpoint.path, name, tensor)
    return tensor


def checked(checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> Checkpoint:
    """Return a checkpoint with its tensors in a dtype; reading one does what `build_model` checks.

    Raises CheckpointFormatError for a head that differs from the embedding although it is tied.
    """
    _check_tied_copy(checkpoint)

    def one(name: str, stored: StoredTensor) -> StoredTensor:
        def finite(tensor: Tensor) -> Tensor:
            check_finite(checkpoint.path, name, tensor, dtype=dtype)
            return tensor

        wanted, some = dtype or stored.dtype, None if stored.transposed else stored.rows
        return StoredTensor(
            stored.shape,
            wanted,
            lambda _: finite(stored.read_as(wanted)),
            rows=None if some is None else lambda *rows: finite(some(*rows).to(wanted)),
        )

    tensors = {name: one(name, stored) for name, stored in checkpoint.tensors.items()}
    head = checkpoint.class_head
    return replace(
        checkpoint, tensors=tensors, class_head=None if head is None else one(CLASS_HEAD, head)
    )


def _check_tied_copy(checkpoint: Checkpoint) -> None:
    """Raise CheckpointFormatError if a model with a tied head has another head in the file."""
    copy = checkpoint.tied_copy
    if copy is not None and not torch.equal(copy.read(), checkpoint.tensors["wte.weight"].read()):
        detail = "lm_head.weight differs from wte.weight, but the head is tied"
        advice = 'if it is meant to differ, set "tie_word_embeddings": false in config.json'
        raise CheckpointFormatError(checkpoint.path, f"{detail}; {advice}")


# --- writing --------------------------------------------------------------------------------------


def write_model(folder: Path, model: GPT2, tokenizer: Tokenizer | None = None) -> None:
    """Write a model and its vocabulary into an existing folder, as transformers reads them."""
    parameters = nn.Module.named_parameters(model)
    tensors = {name: StoredTensor.of(tensor) for name, tensor in parameters}
    stop_id = tokenizer.stop_id if tokenizer else None
    head = class_head(model)
    huggingface.write_directory(
        folder,
        model.config,
        tensors,
        dtype=model.dtype,
        stop_id=stop_id,
        labels=head.labels if head else (),
    )
    if tokenizer is not None:
        tokenizer.save(folder)


def write_checkpoint(
    folder: Path, checkpoint: Checkpoint, dtype: torch.dtype, tokenizer: Tokenizer | None = None
) -> None:
    """Write a checkpoint and a vocabulary into an existing folder, as transformers reads them.

    Words by which the model labels texts go with it. Only one tensor is in memory at a time. Raises
    what `build_model` raises, and CheckpointFormatError for a number that is too large for the
    dtype.
    """
    whole = checked(checkpoint, dtype)
    tensors = {**whole.tensors}
    if whole.class_head is not None:
        tensors[CLASS_HEAD] = whole.class_head
    huggingface.write_directory(
        folder,
        checkpoint.config,
        tensors,
        dtype=dtype,
        stop_id=tokenizer.stop_id if tokenizer else None,
        labels=labels_of_head(checkpoint),
    )
    if tokenizer is not None:
        tokenizer.save(folder)
    if (words := LabelWords.read(checkpoint.folder)) is not None:
        words.write(folder)
