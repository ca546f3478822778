"""Make the pictures of docs/images: one of each kind, and the page of `explain`.

    python scripts/make_images.py

They show the demo model and two small trainings, on a text that the demo model generates. If
chromium is installed, it takes the picture of the page. The same versions of torch and matplotlib
give the same pictures.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image

import gpt2kit
from gpt2kit import plots
from gpt2kit.files import write_whole
from gpt2kit.inspection import Trace, trace
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import CharTokenizer, Tokenizer

PROMPT = "Nel mezzo del cammin di nostra vita"
WIDTH = 900  # pixels
COLORS = 256  # in the palette of a picture, which makes its file a third of the size
TEXT_TOKENS = 8000  # in the text that the runs are trained on
FEW = 9  # tokens in the picture of single numbers
STEPS = 300
PRESSES = 13  # of the arrow key, to select the token that the page's picture shows


def main() -> None:
    """Draw every kind and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parent.parent / "docs" / "images",
        help="the folder to write to",
    )
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = gpt2kit.load("dante", device="cpu")
    assert tokenizer is not None
    figures = of_a_text(model, tokenizer) | of_runs(train_two(model, tokenizer))
    for kind, figure in figures.items():
        path = out / f"{kind}.png"
        write_small(figure, path)
        print(f"{path}: {path.stat().st_size:,} bytes")
    write_explanation(out)


def of_a_text(model: GPT2, tokenizer: Tokenizer) -> dict[str, Figure]:
    """Return a picture of each kind that shows a text."""
    ids = tokenizer.encode(PROMPT)
    seen, tokens = (
        trace(model, torch.tensor([ids])),
        [tokenizer.token_bytes(token) for token in ids],
    )
    return {
        "tokens": plots.tokens(seen, tokens),
        "positions": plots.positions(seen, tokens),
        "norms": plots.norms(seen, tokens),
        "embeddings": plots.embeddings(seen, tokens),
        "attention": plots.attention(seen, tokens, layer=3, head=1),
        "attention-layer": plots.attention(seen, tokens, layer=3),
        "attention-all": plots.attention(seen, tokens),
        "attention-bars": plots.attention_bars(seen, tokens, layer=5, head=1),
        "updates": plots.updates(seen, tokens),
        "updates-layer": plots.updates(seen, tokens, layer=3),
        "layernorm": plots.layernorm(seen, tokens, layer=3),
        "scores": plots.scores(seen, tokens),
        "mlp": plots.mlp(seen, tokens),
        "activation": plots.activation(seen, tokens),
        "mlp-in-out": plots.mlp_in_out(*first_word(seen, tokens), layer=3),
        "neurons": plots.neurons(seen, tokens),
        "residual": plots.residual(seen, tokens),
        "stream": plots.stream(*first_word(seen, tokens)),
        "gradients": plots.gradients(seen, tokens),
        "lens": plots.lens(seen, tokens, tokenizer),
        "temperature": plots.temperature(seen.logits[0, -1], tokenizer),
    }


def first_word(seen: Trace, tokens: list[bytes]) -> tuple[Trace, list[bytes]]:
    """Return the beginning of a text and its trace, in which single numbers have room."""
    return trace(seen.model, seen.ids[:, :FEW]), tokens[:FEW]


def of_runs(runs: dict[str, Sequence[dict[str, Any]]]) -> dict[str, Figure]:
    """Return a picture of each kind that shows runs."""
    with_dropout = dict([next(iter(runs.items()))])
    return {
        "losses": plots.losses(runs),
        "losses-apart": plots.losses(runs, apart=True),
        "gradients-run": plots.gradients_of_runs(with_dropout),
    }


def train_two(model: GPT2, tokenizer: Tokenizer) -> dict[str, Sequence[dict[str, Any]]]:
    """Generate a text with the model, train two small models on it, and return their reports.

    One is trained with dropout, one without.
    """
    (written,) = gpt2kit.complete(
        model, tokenizer, PROMPT, max_tokens=TEXT_TOKENS, temperature=0.8, seed=1
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        path.write_text(PROMPT + written.text, encoding="utf-8")
        learned = CharTokenizer.from_text(PROMPT + written.text)
        corpus = gpt2kit.load_corpus(path, learned)
    runs: dict[str, Sequence[dict[str, Any]]] = {}
    for name, dropout in (("dropout 0.2", 0.2), ("no dropout", 0.0)):
        shape = gpt2kit.GPT2Config(
            n_vocab=learned.n_vocab,
            n_ctx=64,
            n_embd=64,
            n_head=2,
            n_layer=2,
            embd_pdrop=dropout,
            attn_pdrop=0.0,
            resid_pdrop=dropout,
        )
        small = gpt2kit.GPT2(shape)
        small.init_weights(torch.Generator().manual_seed(0))
        config = gpt2kit.TrainConfig(
            max_steps=STEPS, block_size=64, batch_size=16, eval_every=STEPS // 12, patience=0
        )
        runs[name] = [vars(report) for report in gpt2kit.train(small, corpus, config)]
    return runs


def write_small(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG with a palette, 900 pixels wide at most."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=min(100, WIDTH / figure.get_figwidth()))
    compress(Image.open(content), path)


def write_explanation(out: Path) -> None:
    """Write the page of `explain --html` and, if chromium is installed, a picture of it."""
    page = out / "explain.html"
    options = ["--lens", "--attribution", "--attention", "3.1", "--html", str(page)]
    subprocess.run(
        [sys.executable, "-m", "gpt2kit", "explain", "dante", PROMPT, *options], check=True
    )
    if chromium := shutil.which("chromium"):
        photograph(chromium, page, out / "explain.png")


def photograph(chromium: str, page: Path, path: Path) -> None:
    """Write a picture of a web page after the arrow key was pressed a few times."""
    with tempfile.TemporaryDirectory() as folder:
        copy, shot = Path(folder) / "page.html", Path(folder) / "shot.png"
        press = (
            "document.body.dispatchEvent("
            "new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}));"
        )
        script = f"<script>{PRESSES * press}</script></body>"
        copy.write_text(
            page.read_text(encoding="utf-8").replace("</body>", script), encoding="utf-8"
        )
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--window-size={WIDTH},800",
        ]
        command = [
            chromium,
            *options,
            f"--user-data-dir={folder}/profile",
            f"--screenshot={shot}",
            copy.as_uri(),
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        compress(Image.open(shot), path)


def compress(picture: Image.Image, path: Path) -> None:
    """Write a picture as a PNG with a palette."""
    picture = picture.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)
    smaller = io.BytesIO()
    picture.save(smaller, format="png", optimize=True)
    write_whole(path, smaller.getvalue())


if __name__ == "__main__":
    main()
