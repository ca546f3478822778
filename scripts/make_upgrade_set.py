#!/usr/bin/env python3
"""Write a small one of every file that gpt2kit reads again, for the tests of later versions.

    python scripts/make_upgrade_set.py tests/golden/written/0.1.0

It is run once for each version that is marked as one, from a clean commit; the folder must be new.
The set has a training run with its states and records, adapters, a receipt, a job of several parts,
a calibration and vocabularies, and in expected.json what this version makes of them. The weights in
eight bits that are kept beside a model are not in it: they are made anew wherever they came from.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
VERSES = """Nel mezzo del cammin di nostra vita
mi ritrovai per una selva oscura,
ché la diritta via era smarrita.
Ahi quanto a dir qual era è cosa dura
esta selva selvaggia e aspra e forte
che nel pensier rinova la paura!
"""
TINY = ["--n_layer", "1", "--n_head", "1", "--n_embd", "8", "--block_size", "8", "--device", "cpu"]
STEPS = [
    "--batch_size",
    "2",
    "--max_steps",
    "6",
    "--eval_every",
    "3",
    "--save_every",
    "3",
    "--sample_tokens",
    "5",
]
PROMPT = "Nel"


def gpt2kit(*arguments: str) -> None:
    """Run a command of the program in the current folder."""
    subprocess.run([sys.executable, "-m", "gpt2kit", *arguments], check=True)


def write(folder: Path) -> None:
    """Write all files of the set into the current folder, which is `folder`."""
    from gpt2kit.tokenizers import CharTokenizer, WordTokenizer
    from gpt2kit.tokenizers.learn import learn_bpe

    Path("verses.txt").write_text(VERSES, encoding="utf-8")
    lines = VERSES.splitlines()
    for name, some in (("human", lines), ("machine", [line[::-1] for line in lines])):
        rows = [json.dumps({"text": line * 2}, ensure_ascii=False) + "\n" for line in some]
        Path(f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
    seed = ["--seed", "1"]
    gpt2kit("train", "verses.txt", "--tokenizer", "char", *TINY, *STEPS, *seed, "--out", "run")
    rank = ["--lora_rank", "1", "--block_size", "8", "--device", "cpu"]
    gpt2kit("finetune", "verses.txt", "--model", "run", *rank, *STEPS, *seed, "--out", "adapted")
    greedy = ["--temperature", "0", "--max_tokens", "8", *seed, "--device", "cpu"]
    receipt = ["--receipt", "receipt.json", "--receipt_text"]
    gpt2kit("generate", PROMPT, "--model", "run", *greedy, *receipt)
    parts = ["--out", "scored", "--part_rows", "2", "--device", "cpu"]
    gpt2kit("score", "human.jsonl", "--model", "run", *parts)
    gpt2kit("parts", "scored", "--merge", "scored.jsonl")
    calibrate = ["--calibrate", "human.jsonl", "machine.jsonl", "--criteria", "perplexity"]
    gpt2kit("detect", *calibrate, "--model", "run", "--out", "calibration.json")
    vocabularies: dict[str, Any] = {
        "char": CharTokenizer.from_text(VERSES),
        "word": WordTokenizer.from_text(VERSES),
        "bpe": learn_bpe([VERSES], n_vocab=270),
    }
    for name, tokenizer in vocabularies.items():
        (folder / "vocabularies" / name).mkdir(parents=True)
        tokenizer.save(folder / "vocabularies" / name)


def what_is_read(folder: Path) -> dict[str, Any]:
    """Return what the current version makes of a set."""
    import torch

    import gpt2kit
    from gpt2kit.checkpoints.adapters import load_adapters, read_adapters
    from gpt2kit.checkpoints.load import load
    from gpt2kit.evaluation.detection import Detector
    from gpt2kit.lora import add_adapters
    from gpt2kit.tokenizers import load_tokenizer
    from gpt2kit.training.distributed import Ranks
    from gpt2kit.training.optim import build_optimizers
    from gpt2kit.training.settings import Settings
    from gpt2kit.training.states import States

    def numbers(tensors: dict[str, torch.Tensor]) -> str:
        found = hashlib.sha256()
        for name in sorted(tensors):
            found.update(name.encode() + tensors[name].contiguous().numpy().tobytes())
        return found.hexdigest()

    found: dict[str, Any] = {}
    for name in ("run", "adapted"):
        model, tokenizer = load(folder / "run", device="cpu", dtype="float32")
        assert tokenizer is not None
        if name == "adapted":
            about = read_adapters(folder / name)
            add_adapters(model, about["rank"], alpha=about["alpha"])
            load_adapters(folder / name, model)
        ids = torch.tensor([tokenizer.encode(VERSES)[:8]])
        with torch.no_grad():
            loss = torch.nn.functional.cross_entropy(model(ids)[0, :-1], ids[0, 1:])
        text = gpt2kit.generate(model, tokenizer, PROMPT, max_tokens=8, temperature=0)
        found[name] = {
            "settings": Settings.read(folder / name).command,
            "records": len((folder / name / "metrics.jsonl").read_text().splitlines()),
            "loss": round(float(loss), 4),
            "text": text,
            "weights": numbers(dict(model.state_dict())),
        }
    model, _ = load(folder / "run", device="cpu", dtype="float32")
    optimizers = build_optimizers(model, optimizer="adamw", weight_decay=0.1)
    state = States(folder / "run" / "states", Ranks()).load_newest(model, optimizers)
    assert state is not None
    averages = {
        f"{which} {number} {key}": value
        for which, optimizer in enumerate(optimizers)
        for number, each in enumerate(optimizer.state.values())
        for key, value in each.items()
        if isinstance(value, torch.Tensor)
    }
    found["state"] = {"step": state.step, "averages": numbers(averages)}
    detector = Detector.read(folder / "calibration.json")
    found["detector"] = list(detector.criteria["perplexity"].human)
    for path in sorted((folder / "vocabularies").iterdir()):
        vocabulary = load_tokenizer(path)
        assert vocabulary is not None
        found[path.name] = vocabulary.encode(VERSES[: VERSES.index("\n")])
    return found


def main() -> int:
    """Write the set that the command line names."""
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("folder", type=Path)
    folder = options.parse_args().folder.absolute()
    folder.mkdir(parents=True)
    os.environ.update(PYTHONPATH=str(ROOT), GPT2KIT_WEIGHTS=str(folder))
    os.chdir(folder)
    write(folder)
    for path in (*folder.rglob("*.png"), *folder.rglob(".lock")):
        path.unlink()
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    import gpt2kit as package

    about = {
        "gpt2kit": package.__version__,
        "commit": subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip(),
        "read": what_is_read(folder),
    }
    (folder / "expected.json").write_text(
        json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
