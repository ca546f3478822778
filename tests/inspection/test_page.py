"""The page: whole, harmless whatever the text is, and in a browser alive."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_model

from gpt2kit.config import SIZES, GPT2Config
from gpt2kit.inspection import ExplainOptions, explain, trace
from gpt2kit.inspection.page import entries_to_keep, write_page
from gpt2kit.inspection.switching import switch_heads
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import BPETokenizer

NASTY = "Hello </script><b>x</b> <!-- & \"é\" '日' 🙂\n\tthere {{data}} \u2028 &amp;"


class Parts(HTMLParser):
    """What a browser would see: the elements, and the text in each kind of them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        self._open = dict(attributes).get("id") or tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        self.text[self._open] = self.text.get(self._open, "") + data


def make_page(model: GPT2, bpe: BPETokenizer, text: str, **wish: Any) -> str:
    ids = bpe.encode(text)
    found = explain(model, ids, ExplainOptions(strongest=entries_to_keep(model, len(ids)), **wish))
    return write_page(found, bpe.token_bytes, model='<a "model"> & more')


def data_of(page: str) -> dict[str, Any]:
    data = json.loads(Parts(page).text["data"])
    assert isinstance(data, dict)
    return data


def test_a_page_carries_what_was_found(tiny_model: GPT2, small_bpe: BPETokenizer) -> None:
    text = "Hello there"
    ids = small_bpe.encode(text)
    data = data_of(make_page(tiny_model, small_bpe, text, top=4, lens=True, attribution=True))
    found = explain(tiny_model, ids, ExplainOptions(top=4))
    assert data["ids"] == ids
    assert "".join(data["pieces"]) == text
    assert data["surprisal"][1:-1] == pytest.approx(
        [each.surprisal for each in found.expectations[1:-1]], rel=1e-3
    )
    assert data["surprisal"][0] is data["surprisal"][-1] is None
    for shown, expected in zip(data["alternatives"], found.expectations, strict=True):
        assert [token for token, _ in shown] == [each.token for each in expected.alternatives]
    assert data["names"][str(ids[0])] == small_bpe.decode(ids[:1])
    assert len(data["lens"]["tokens"]) == len(ids)
    assert len(data["lens"]["tokens"][0]) == 3
    assert sum(value for _, value in data["attribution"]["parts"]) == pytest.approx(
        data["attribution"]["total"], abs=1e-2
    )


def test_the_attention_on_a_page_is_the_models(tiny_model: GPT2, small_bpe: BPETokenizer) -> None:
    ids = small_bpe.encode("Hello there")
    attention = data_of(make_page(tiny_model, small_bpe, "Hello there"))["attention"]
    shape = (len(ids), 2, 2, attention["n"])
    distances = np.frombuffer(base64.b64decode(attention["distances"]), "<u2").reshape(shape)
    weights = (
        np.frombuffer(base64.b64decode(attention["weights"]), np.uint8).reshape(shape) / 255
    ) ** 2
    for layer, seen in enumerate(trace(tiny_model, torch.tensor([ids])).layers):
        whole = np.zeros((len(ids), 2, len(ids)))  # (T, H, T)
        for position, head, entry in np.ndindex(len(ids), 2, attention["n"]):
            whole[position, head, position - distances[position, layer, head, entry]] += weights[
                position, layer, head, entry
            ]
        np.testing.assert_allclose(whole, seen.weights[0].transpose(0, 1), atol=4e-3)


def test_no_text_gets_out_of_its_place(tiny_model: GPT2, small_bpe: BPETokenizer) -> None:
    tiny_model = make_model(GPT2Config(n_vocab=512, n_ctx=128, n_embd=16, n_head=2, n_layer=2))
    plain, nasty = (
        Parts(make_page(tiny_model, small_bpe, "Hello")),
        Parts(make_page(tiny_model, small_bpe, NASTY)),
    )
    assert nasty.elements == plain.elements
    assert nasty.text["title"] == '<a "model"> & more: what it makes of a text'
    data = json.loads(nasty.text["data"])
    assert "".join(data["pieces"]) == NASTY
    assert "" in data["pieces"]  # half a character


def test_a_page_needs_nothing_from_anywhere(tiny_model: GPT2, small_bpe: BPETokenizer) -> None:
    parts = Parts(make_page(tiny_model, small_bpe, "Hello"))
    assert not [
        tag
        for tag, attributes in parts.elements
        if {"src", "href"} & attributes.keys() or tag in ("link", "img", "iframe")
    ]
    policy = next(
        attributes["content"] for tag, attributes in parts.elements if attributes.get("http-equiv")
    )
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def test_a_model_without_layers_and_a_single_token_have_pages(
    tiny_config: GPT2Config, small_bpe: BPETokenizer
) -> None:
    data = data_of(
        make_page(
            make_model(replace(tiny_config, n_layer=0)), small_bpe, "H", lens=True, attribution=True
        )
    )
    assert "attention" not in data
    assert data["bits"] is None


@pytest.mark.parametrize(
    ("size", "n", "most"),
    [("124M", 1024, 16), ("124M", 20, 16), ("1558M", 1024, 3), ("124M", 100_000, 2)],
)
def test_long_texts_keep_fewer_entries(size: str, n: int, most: int) -> None:
    with torch.device("meta"):
        assert entries_to_keep(GPT2(SIZES[size]), n) == most


# --- in a browser ---------------------------------------------------------------------------------


def drawn(page: str, folder: Path, script: str) -> str:
    """Let chromium run a page and then a script, and return the document that comes of it."""
    chromium = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    assert chromium, "chromium is not installed"
    file = folder / "page.html"
    file.write_text(page.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
    ]
    command = [
        chromium,
        *options,
        f"--user-data-dir={folder / 'profile'}",
        "--dump-dom",
        file.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.browser
def test_pointing_at_a_token_shows_what_was_expected_and_what_it_looks_at(
    small_bpe: BPETokenizer, tmp_path: Path
) -> None:
    model = make_model(GPT2Config(n_vocab=512, n_ctx=128, n_embd=16, n_head=2, n_layer=2))
    page = make_page(model, small_bpe, NASTY, lens=True)
    data = data_of(page)
    point = (
        "const on = new PointerEvent('pointerover', {bubbles: true}); "
        "document.querySelector('[data-place=\"3\"]').dispatchEvent(on);"
    )
    before = Parts(
        drawn(page, tmp_path, "document.title = document.getElementById('text').innerText")
    )
    assert before.text["title"].replace("·", "").split() == [*NASTY.split(), "…"]
    after = drawn(
        page,
        tmp_path,
        point + "document.title = document.getElementById('about').innerText.replace(/\\s+/g, ' ')",
    )
    shown = Parts(after).text["title"]
    assert f"rank {data['ranks'][3]:,}" in shown
    assert "Expected here" in shown
    assert "by the number of layers asked" in shown
    assert "Looks at, in head 0.0" in shown
    assert after.count("--seen") > 1
    other = (
        point
        + "layer.value = 1; layer.onchange(); "
        + "document.title = document.getElementById('about').innerText"
    )
    assert "Looks at, in head 1.0" in Parts(drawn(page, tmp_path, other)).text["title"]
    press = (
        "document.body.dispatchEvent("
        "new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}));"
    )
    pressed = 3 * press + "document.title = document.querySelector('.chosen').dataset.place"
    assert Parts(drawn(page, tmp_path, pressed)).text["title"] == "2"


@pytest.mark.browser
def test_colors_can_be_those_of_gltr_and_a_line_below_tells_them_apart_too(
    small_bpe: BPETokenizer, tmp_path: Path
) -> None:
    model = make_model(GPT2Config(n_vocab=512, n_ctx=128, n_embd=16, n_head=2, n_layer=2))
    page = make_page(model, small_bpe, "One two three four five six. " * 3)
    ranks = [rank for rank in data_of(page)["ranks"] if rank is not None]
    script = (
        "{ coloring.value = 'rank'; coloring.onchange();"
        "const looks = [...document.querySelectorAll('#scale .token')].map(each => {"
        "  const style = getComputedStyle(each);"
        "  return [each.innerText, style.backgroundColor,"
        "    style.textDecorationLine + ' ' + style.textDecorationStyle]; });"
        "const own = [...document.querySelectorAll('#text [data-rank]')].map(e => e.dataset.rank);"
        "coloring.value = 'surprisal'; coloring.onchange();"
        "document.title = JSON.stringify([looks, own, document.body.className,"
        "  document.getElementById('scale').innerText]); }"
    )
    looks, own, left, scale = json.loads(Parts(drawn(page, tmp_path, script)).text["title"])
    buckets = [0 if rank <= 10 else 1 if rank <= 100 else 2 for rank in ranks]
    assert [int(each) for each in own] == buckets
    shares = [round(100 * buckets.count(bucket) / len(buckets)) for bucket in range(4)]
    assert [int(text.split()[-1].rstrip("%")) for text, _, _ in looks] == pytest.approx(
        shares, abs=1
    )
    assert len({background for _, background, _ in looks}) == 4
    assert len({line for _, _, line in looks}) == 4
    assert left == ""
    assert "16+" in scale


@pytest.mark.browser
def test_a_head_can_be_switched_off_and_on_again(small_bpe: BPETokenizer, tmp_path: Path) -> None:
    model = make_model(GPT2Config(n_vocab=512, n_ctx=128, n_embd=16, n_head=2, n_layer=2))
    ids = small_bpe.encode("One two three four five six.")
    found = explain(model, ids, ExplainOptions())
    switched = switch_heads(model, ids)
    page = write_page(found, small_bpe.token_bytes, model="tiny", switched=switched)
    text = "document.getElementById('about').innerText.replace(/\\s+/g, ' ')"
    point = (
        "document.querySelector('#text [data-place=\"{}\"]').dispatchEvent("
        "new PointerEvent('pointerover', {{bubbles: true}}));"
    )
    script = (
        "{ switches.open = true; const button = document.querySelector('[data-head=\"1.0\"]');"
        f"button.click(); {point.format(3)} const token = {text};"
        f"{point.format(len(ids))} const next = {text}; const on = document.body.className;"
        f"button.click(); {point.format(3)}"
        f"document.title = JSON.stringify([token, next, on, {text}, document.body.className,"
        "  [...document.querySelectorAll('#switches button')].map(each => each.innerText)]); }"
    )
    token, following, on, token_again, off, numbers = json.loads(
        Parts(drawn(page, tmp_path, script)).text["title"]
    )
    before, after = found.expectations[3].surprisal, float(switched.surprisal[1, 0, 3])
    assert before is not None
    sign = "−" if after < before else "+"
    assert f"without head 1.0: {after:.2f} bits ({sign}{abs(after - before):.2f})" in token
    assert "Expected here without head 1.0" in following
    assert on == "switched"
    assert off == ""
    assert "without head" not in token_again
    total = sum(each.surprisal or 0 for each in found.expectations[1:-1])
    wanted = (switched.surprisal.sum(dim=-1) - total) / (len(ids) - 1)
    shown = [float(each.replace("−", "-")) for each in numbers]
    assert shown == pytest.approx(wanted.flatten().tolist(), abs=6e-3)
