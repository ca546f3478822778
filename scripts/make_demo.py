"""Make the demo model that comes with gpt2kit: train it on the Comedy, and write it with a card.

    python scripts/make_demo.py corpora/dante-commedia.txt

The weights are written in bfloat16. Takes about an hour on two cores. After an interruption, the
same command continues where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from pathlib import Path

import torch

from gpt2kit.checkpoints.load import build_model, load_vocabulary, open_checkpoint, write_model
from gpt2kit.cli.training_summary import loss_figures
from gpt2kit.data.corpus import Corpus, load_corpus
from gpt2kit.data.texts import read_texts, split_documents
from gpt2kit.evaluation.originality import baseline, measure_text
from gpt2kit.files import new_directory
from gpt2kit.generation.text import complete
from gpt2kit.model import GPT2
from gpt2kit.store import BUNDLED
from gpt2kit.tokenizers import Tokenizer
from gpt2kit.training.config import TrainConfig
from gpt2kit.training.loop import evaluate_loss
from gpt2kit.training.loss import NextTokenLoss
from gpt2kit.training.settings import Settings

LARGEST = 10_000_000  # bytes of the finished folder
PROMPT = "Nel mezzo del cammin di nostra vita"
SAMPLES, SAMPLE_TOKENS = 8, 1500  # whose originality is measured

CARD = """\
# dante

A GPT of {params:,} parameters that was trained on Dante's Comedy alone, letter by letter. It comes
with gpt2kit:

    gpt2kit generate "{prompt}" --model dante

`python scripts/make_demo.py` made it with the recipe `demo`: {steps:,} steps of {batch} windows of
{block} characters, on the first 90% of the text. The sha256 of the text:

    {sha256}

| on the last 10%, {val_characters:,} characters | |
|---|---|
| loss | {val_loss:.4f} nats per character |
| bits per character | {bits:.3f} |
| perplexity | {perplexity:.3f} |

In {n_samples} samples of {sample_tokens:,} characters each, {copied:.1%} of the words are in runs
of 5 or more words that are in the training text; in the last 10% of the poem, {usual:.1%} are. The
longest such run has {longest} words.

A sample (seed 1, temperature 0.8):

{sample}

The text is in the public domain; the weights are under the project's license.
"""


def main() -> None:
    """Train, unless the run is finished, then write the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("corpus", type=Path, help="the Comedy, as a .txt in UTF-8")
    parser.add_argument(
        "--run", type=Path, default=Path("weights/demo-run"), help="the folder to train in"
    )
    parser.add_argument(
        "--out", type=Path, default=BUNDLED / "dante", help="the folder to write the model to"
    )
    parser.add_argument(
        "--max_steps",
        type=int,
        help="steps instead of the recipe's; a few are enough to test this script",
    )
    arguments = parser.parse_args()
    if arguments.max_steps is not None and arguments.out == BUNDLED / "dante":
        parser.error(
            "--max_steps makes another model than the bundled one: name another folder with --out"
        )
    sha256 = hashlib.sha256(arguments.corpus.read_bytes()).hexdigest()
    print(f"{arguments.corpus}: sha256 {sha256}", file=sys.stderr)
    command = [
        sys.executable,
        "-m",
        "gpt2kit",
        "train",
        str(arguments.corpus),
        "--recipe",
        "demo",
        "--out",
        str(arguments.run),
    ]
    if (arguments.run / "run.json").exists():
        command += ["--resume"]
    elif arguments.max_steps is not None:
        command += ["--max_steps", str(arguments.max_steps)]
    subprocess.run(command, check=True)
    write(arguments.corpus, arguments.run, arguments.out, sha256)


def write(source: Path, run: Path, out: Path, sha256: str) -> None:
    """Write the best weights of a run in bfloat16; the figures of the card are measured on them."""
    checkpoint = open_checkpoint(run)
    tokenizer = load_vocabulary(checkpoint)
    assert tokenizer is not None
    model = build_model(checkpoint, dtype=torch.bfloat16)
    # The figures of the card are computed in float32 with the weights rounded to bfloat16.
    rounded = build_model(checkpoint, dtype=torch.bfloat16).float()
    corpus = load_corpus(source, tokenizer)
    card = describe(rounded, tokenizer, corpus, Settings.read(run).training, source, sha256)
    with new_directory(out, replace=True) as folder:
        write_model(folder, model, tokenizer)
        (folder / "README.md").write_text(card, encoding="utf-8")
        size = sum(path.stat().st_size for path in folder.iterdir())
        if size > LARGEST:
            raise SystemExit(f"{size:,} bytes, expected at most {LARGEST:,}")
    print(f"{out}: {size:,} bytes\n\n{card}", file=sys.stderr)


def describe(
    model: GPT2,
    tokenizer: Tokenizer,
    corpus: Corpus,
    config: TrainConfig,
    source: Path,
    sha256: str,
) -> str:
    """Return the model's card."""
    loss = evaluate_loss(NextTokenLoss(model), corpus, config)
    assert loss is not None
    figures = loss_figures(
        loss, corpus.report.val_tokens, corpus.report.val_bytes, corpus.report.val_characters
    )
    documents = read_texts(source).documents
    samples = complete(
        model,
        tokenizer,
        PROMPT,
        max_tokens=SAMPLE_TOKENS,
        num_samples=SAMPLES,
        temperature=0.8,
        seed=1,
    )
    found = measure_text(
        "\n".join(sample.text for sample in samples), split_documents(documents, 0.1)[0]
    )
    usual = baseline(documents)
    verses = (PROMPT + samples[0].text).split("\n")[:13]
    return CARD.format(
        params=model.config.n_params,
        prompt=PROMPT,
        steps=config.max_steps,
        batch=config.batch_size,
        block=config.block_size,
        sha256=sha256,
        val_characters=corpus.report.val_characters,
        val_loss=loss,
        bits=figures["bits_per_character"],
        perplexity=figures["perplexity"],
        n_samples=SAMPLES,
        sample_tokens=SAMPLE_TOKENS,
        copied=found.copied,
        usual=usual.copied if usual else 0.0,
        longest=found.longest,
        sample="\n".join("    " + line for line in verses),
    )


if __name__ == "__main__":
    main()
