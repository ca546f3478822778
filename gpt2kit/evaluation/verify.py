"""Known answers and cross-checks: are these weights right on this machine?

Each check is independent of the code that it checks: published hashes, a second model written in
NumPy, and texts that other programs generated from the real weights.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gpt2kit import reference, store
from gpt2kit.checkpoints.int8 import check_int8_file
from gpt2kit.checkpoints.load import build_model, load_vocabulary, open_checkpoint
from gpt2kit.checkpoints.stored import Checkpoint
from gpt2kit.checkpoints.unsaid import Unsaid
from gpt2kit.checkpoints.written import TOLERANCE
from gpt2kit.config import SIZES
from gpt2kit.errors import Gpt2KitError
from gpt2kit.generation.text import generate
from gpt2kit.model import GPT2
from gpt2kit.store import catalogue
from gpt2kit.tokenizers import Tokenizer


@dataclass(frozen=True)
class Check:
    """The outcome of one check, with figure or reason; `passed` is None if it does not apply."""

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True)
class KnownAnswer:
    """A greedy continuation that another program computed from the real weights."""

    prompt: str
    continuation: str
    source: str


@dataclass(frozen=True)
class KnownModel:
    """What is published about a model's behavior."""

    fingerprint: tuple[float, float]  # wte[0, 0] and wte[0, 1]
    answers: tuple[KnownAnswer, ...] = ()
    # A text, read after <|endoftext|>, and its mean loss in nats
    loss: tuple[str, float] | None = None


_TRANSFORMERS = "transformers, test_modeling_gpt2.py"
KNOWN: dict[str, KnownModel] = {
    "124M": KnownModel(
        fingerprint=(-0.11010301, -0.03926672),
        answers=(
            KnownAnswer(
                "The dog",
                " was found in a field near the intersection of West and West Streets.\n\nThe dog",
                _TRANSFORMERS,
            ),
            KnownAnswer(
                "Hello, my dog is a little",
                " bit of a mess. I'm not sure if he's going",
                _TRANSFORMERS,
            ),
            KnownAnswer(
                "Today, I", "'m going to be doing a lot of research on this. I", _TRANSFORMERS
            ),
            KnownAnswer(
                "", "\nThe first time I saw the new version of", "CTranslate2, test_transformers.py"
            ),
            KnownAnswer(
                "Alan Turing theorized that computers would one day become",
                " the most powerful machines on the planet.\n\nThe computer is a machine that can "
                "perform complex calculations, and it can perform these calculations in a way that "
                "is very similar to the human brain.",
                "picoGPT, README",
            ),
        ),
        loss=("Hello world!", 5.331855773925781),  # TransformerLens, test_hooked_transformer.py
    ),
}


def verify(
    path: Path, *, device: torch.device | str = "cpu", unsaid: Unsaid | None = None
) -> Iterator[Check]:
    """Check a model's files, tensors and arithmetic; a failure does not stop the other checks.

    `unsaid` is what a file of weights alone does not say.
    """
    path = Path(os.path.abspath(path))
    yield from _guarded("files", lambda: check_files(path))
    try:
        checkpoint = open_checkpoint(path, verify=False, unsaid=unsaid)
        model = build_model(checkpoint)
        tokenizer = load_vocabulary(checkpoint)
    except Gpt2KitError as error:
        yield Check("tensors", False, str(error))
        return
    shapes = checkpoint.config.shapes()
    yield Check(
        "tensors",
        True,
        f"{len(shapes)} of the right shape, {checkpoint.config.n_params:,} finite numbers "
        f"({checkpoint.format})",
    )
    ids = torch.from_numpy(
        np.random.default_rng(0).integers(
            0, checkpoint.config.n_vocab, min(16, checkpoint.config.n_ctx)
        )
    )[None]
    yield _guarded_one("reference", lambda: check_reference(model, ids))
    yield _guarded_one("cache", lambda: check_cache(model, ids))
    yield _guarded_one("device", lambda: check_device(checkpoint, model, ids, torch.device(device)))
    yield from _guarded("known answers", lambda: check_known_answers(path, model, tokenizer))
    yield _guarded_one("other source", lambda: check_other_source(path, checkpoint))
    yield from _guarded("int8 weights", lambda: check_int8_weights(checkpoint))


def _guarded(name: str, checks: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    try:
        yield from checks()
    except Gpt2KitError as error:
        yield Check(name, False, str(error))


def _guarded_one(name: str, check: Callable[[], Check]) -> Check:
    return next(_guarded(name, lambda: iter([check()])))


# --- files ----------------------------------------------------------------------------------------


def check_files(path: Path) -> Iterator[Check]:
    """Compare every file with the record of its download, and with the published hash if known."""
    manifest = store.Manifest.read(path) if path.is_dir() else None
    if manifest is None:
        yield Check(
            "files", None, f"no {store.MANIFEST}: these files were not downloaded by gpt2kit"
        )
        return
    for name, (size, sha256) in manifest.files.items():
        file = path / name
        if not file.is_file():
            yield Check(f"file {name}", False, "missing")
        elif file.stat().st_size != size:
            yield Check(f"file {name}", False, f"{file.stat().st_size:,} bytes, expected {size:,}")
        else:
            with file.open("rb") as content:
                found = hashlib.file_digest(content, "sha256").hexdigest()
            pin = _pin(manifest, name)
            if found != sha256:
                yield Check(
                    f"file {name}", False, f"sha256 is {found}, at download it was {sha256}"
                )
            elif pin not in (None, found):
                yield Check(f"file {name}", False, f"sha256 is {found}, the published one is {pin}")
            else:
                yield Check(
                    f"file {name}", True, "sha256 as published" if pin else "sha256 as downloaded"
                )


def _pin(manifest: store.Manifest, name: str) -> str | None:
    """Return the published hash of a file of this manifest, or None if there is none."""
    for publication in catalogue.PUBLICATIONS.values():
        if manifest.source == "openai":
            ours = manifest.repository.rstrip("/").endswith(f"/{publication.openai_directory}")
            files = publication.openai_files
        else:
            ours = manifest.repository == publication.repository
            files = publication.hub_files
        if ours:
            return next((file.sha256 for file in files if file.name == name), None)
    return None


# --- arithmetic -----------------------------------------------------------------------------------


def check_reference(model: GPT2, ids: Tensor) -> Check:
    """Compare the model's logits of (1, T) ids with those of the NumPy float64 model."""
    weights = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    expected = torch.from_numpy(reference.logits(model.config, weights, ids[0].tolist()))
    with torch.inference_mode():
        return _compare("reference", model(ids)[0], expected, "from NumPy float64")


def check_cache(model: GPT2, ids: Tensor) -> Check:
    """Compare reading (1, T) ids at once with reading half at once and the rest one by one."""
    half = ids.shape[1] // 2
    cache = model.new_cache(capacity=ids.shape[1])
    with torch.inference_mode():
        parts = [model(ids[:, :half], cache)] if half else []
        parts += [model(ids[:, at : at + 1], cache) for at in range(half, ids.shape[1])]
        return _compare("cache", torch.cat(parts, dim=1), model(ids), "cached from uncached")


def check_device(checkpoint: Checkpoint, model: GPT2, ids: Tensor, device: torch.device) -> Check:
    """Compare a device's float32 logits with the CPU's."""
    if device.type == "cpu":
        return Check("device", None, "the CPU is the only device asked for")
    with torch.inference_mode():
        found = build_model(checkpoint, device=device)(ids.to(device)).cpu()
        return _compare("device", found, model(ids), f"{device} from cpu")


def _compare(name: str, found: Tensor, expected: Tensor, what: str) -> Check:
    scale = max(1.0, float(expected.abs().max()))
    difference = float((found.double() - expected.double()).abs().max())
    return Check(
        name,
        difference <= TOLERANCE * scale,
        f"logits of up to {scale:.3g} differ by at most {difference:.1e} {what}",
    )


# --- known answers --------------------------------------------------------------------------------


def check_known_answers(path: Path, model: GPT2, tokenizer: Tokenizer | None) -> Iterator[Check]:
    """Compare greedy texts and a loss of the real weights with those that others published."""
    size = _published_size(path, model)
    if size is None or tokenizer is None:
        yield Check(
            "known answers", None, "published for OpenAI's 124M weights only; these are others"
        )
        return
    known = KNOWN[size]
    found = tuple(round(value, 8) for value in model.wte.weight[0, :2].tolist())
    yield Check(
        "fingerprint",
        np.allclose(found, known.fingerprint, rtol=0, atol=1e-7),
        f"wte[0, :2] is {found}, published: {known.fingerprint}",
    )
    for answer in known.answers:
        n = len(tokenizer.encode(answer.continuation))
        text = generate(model, tokenizer, answer.prompt, max_tokens=n, temperature=0)
        detail = (
            answer.source
            if text == answer.continuation
            else f"expected {answer.continuation!r}, found {text!r} ({answer.source})"
        )
        yield Check(f"greedy {answer.prompt!r}", text == answer.continuation, detail)
    if known.loss is not None and tokenizer.stop_id is not None:
        text, expected = known.loss
        ids = torch.tensor([[tokenizer.stop_id, *tokenizer.encode(text)]])
        with torch.inference_mode():
            loss = float(torch.nn.functional.cross_entropy(model(ids)[0, :-1], ids[0, 1:]))
        yield Check(
            f"loss of {text!r}",
            abs(loss - expected) < 1e-4,
            f"{loss:.6f}, published: {expected:.6f}",
        )


def _published_size(path: Path, model: GPT2) -> str | None:
    """Return the size whose published weights these are, by their manifest or first two numbers."""
    manifest = store.Manifest.read(path) if path.is_dir() else None
    for size, known in KNOWN.items():
        if model.config.shapes() != SIZES[size].shapes():
            continue
        downloaded = manifest is not None and (
            manifest.source == "openai"
            or manifest.repository == catalogue.PUBLICATIONS[size].repository
        )
        if downloaded or np.allclose(
            model.wte.weight[0, :2].detach().numpy(), known.fingerprint, rtol=0, atol=1e-6
        ):
            return size
    return None


def check_other_source(path: Path, checkpoint: Checkpoint) -> Check:
    """Compare every tensor with the same model from the other source, if that is here."""
    other = path.with_name(
        path.name.removesuffix("-openai")
        if path.name.endswith("-openai")
        else f"{path.name}-openai"
    )
    if not other.is_dir() or not path.is_dir():
        return Check("other source", None, f"there is no {other.name} beside it")
    theirs = open_checkpoint(other, verify=False).tensors
    different = [
        name
        for name, stored in checkpoint.tensors.items()
        if name not in theirs or not torch.equal(stored.read(), theirs[name].read())
    ]
    detail = (
        f"{', '.join(different[:5])} differ from {other.name}"
        if different
        else f"all {len(theirs)} tensors equal those of {other.name}"
    )
    return Check("other source", not different, detail)


def check_int8_weights(checkpoint: Checkpoint) -> Iterator[Check]:
    """Check the file of a model's int8 weights against its checksum, if there is such a file."""
    is_used = check_int8_file(checkpoint)
    if is_used is not None:
        detail = "the file matches its checksum" if is_used else "made of other weights: not used"
        yield Check("int8 weights", is_used or None, detail)
