"""Make a small sparse autoencoder for a model, from texts that the model writes itself.

    python scripts/make_sae.py weights/dante-sae

It is for trying `gpt2kit sae` and for learning what an SAE is: its features are few and were
trained for seconds. The folder is in SAELens's format. The same seed gives the same numbers on the
same machine.

    P positions, C width, N features
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from gpt2kit import store
from gpt2kit.checkpoints.load import load
from gpt2kit.checkpoints.safetensors_files import write_safetensors
from gpt2kit.checkpoints.sparse import CONFIG_FILE, WEIGHTS_FILE
from gpt2kit.checkpoints.stored import StoredTensor
from gpt2kit.files import new_directory
from gpt2kit.generation.text import complete
from gpt2kit.inspection.features import activations
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import Tokenizer, require_tokenizer

BATCH = 256  # positions of a step
LEARNING_RATE = 4e-3
SPARSITY = 2.0  # weight of the features' sum beside the squared error, at unit scale


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--model", default="dante")
    parser.add_argument("--hook", default="blocks.4.hook_resid_pre", help="what to read")
    parser.add_argument("--prompt", default="Nel mezzo", help="how every text begins")
    parser.add_argument("--texts", type=int, default=16, help="texts that the model writes")
    parser.add_argument("--features", type=int, default=384)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def written(model: GPT2, tokenizer: Tokenizer, options: argparse.Namespace) -> Tensor:
    """Return texts that the model writes, (texts, T) ids, each as long as its window."""
    start = tokenizer.encode(options.prompt)
    found = complete(
        model,
        tokenizer,
        options.prompt,
        num_samples=options.texts,
        max_tokens=model.config.n_ctx - len(start),
        ignore_eos=True,
        overflow="stop",
        seed=options.seed,
        temperature=1.0,
        top_k=0,
    )
    return torch.tensor([start + each.tokens for each in found])


def train(x: Tensor, n: int, steps: int, seed: int) -> dict[str, Tensor]:
    """Return the tensors of an SAE for activations, (P, C), by SAELens's names.

    It minimizes the squared error and the sum of the features, with decoder rows of norm 1. The
    activations are scaled to a mean square of 1 meanwhile.
    """
    generator = torch.Generator().manual_seed(seed)
    scale = float((x - x.mean(0)).square().mean().sqrt())
    x = x / scale
    C = x.shape[1]
    decoder = torch.randn(n, C, generator=generator)
    decoder = decoder / decoder.norm(dim=1, keepdim=True)
    tensors = {
        "W_enc": decoder.t().clone(),
        "b_enc": torch.zeros(n),
        "W_dec": decoder,
        "b_dec": x.mean(0),
    }
    for tensor in tensors.values():
        tensor.requires_grad_()
    optimizer = torch.optim.Adam([*tensors.values()], lr=LEARNING_RATE)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, 5 * (1 - step / steps))
        batch = x[torch.randint(len(x), (BATCH,), generator=generator)]  # (BATCH, C)
        centered = batch - tensors["b_dec"]
        features = (centered @ tensors["W_enc"] + tensors["b_enc"]).relu()  # (BATCH, N)
        made = features @ tensors["W_dec"] + tensors["b_dec"]
        loss = (made - batch).square().sum(1).mean() + SPARSITY * features.sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            tensors["W_dec"].div_(tensors["W_dec"].norm(dim=1, keepdim=True))
    # Back to the model's own scale: features count what is added to the stream.
    tensors["b_enc"], tensors["b_dec"] = tensors["b_enc"] * scale, tensors["b_dec"] * scale
    return {name: tensor.detach() for name, tensor in tensors.items()}


def main() -> None:
    options = read_options()
    model, vocabulary = load(store.find(options.model), device="cpu", dtype="float32")
    tokenizer = require_tokenizer(vocabulary, options.model)
    ids = written(model, tokenizer, options)
    x = torch.cat([activations(model, row[None], options.hook)[0, 1:] for row in ids])  # (P, C)
    tensors = train(x, options.features, options.steps, options.seed)
    config = {
        "architecture": "standard",
        "d_in": x.shape[1],
        "d_sae": options.features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.0.0",
            "model_name": options.model,
            "hook_name": options.hook,
            "prepend_bos": tokenizer.stop_id is not None,
            "context_size": model.config.n_ctx,
        },
    }
    with new_directory(options.out) as folder:
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
        with (folder / WEIGHTS_FILE).open("wb") as file:
            stored = {name: StoredTensor.of(tensor) for name, tensor in tensors.items()}
            write_safetensors(file, stored)
    features = (x - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]
    l0 = (features > 0).sum(1).float().mean()
    print(f"{options.out}: {options.features} features, {l0:.1f} active at a position")


if __name__ == "__main__":
    main()
