"""The page to write in: in Chromium, before a server whose texts are known."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import random
import re
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx2
import pytest
from chromium import Chromium
from serve_builders import connected, running

from gpt2kit.serve.page import page
from gpt2kit.serve.settings import Settings

TEXTS = [
    " the sea was <script>alert(1)</script> &amp; calm 🙂👩‍🚀, and nobody spoke.\nThen",
    " rain came over the hills, and the old house",
    ' "Nothing," she said 🇮🇹 naïve. It was late',
    " of all the lamps in the street only one was lit; under it",
]
N_CTX = 1024


class Model:
    """A stand-in for a server with a model: writes known texts, and remembers what it was asked."""

    def __init__(self) -> None:
        self.vocabulary: list[bytes] = []
        self.asked: list[dict[str, Any]] = []
        self.key: str | None = None
        self.authorizations: list[str | None] = []
        self.seconds = 0.0  # between two tokens
        self.gone = threading.Event()  # a client left before its stream had ended

    def id_of(self, token: bytes) -> int:
        if token not in self.vocabulary:
            self.vocabulary.append(token)
        return self.vocabulary.index(token)

    def encode(self, text: str) -> list[int]:
        """Cut a text into words, and into single bytes those that are not ASCII."""
        ids = []
        for word in re.findall(r" ?[!-~]+|.", text, re.DOTALL):
            parts = [word.encode()] if word.isascii() else [bytes([b]) for b in word.encode()]
            ids += [self.id_of(part) for part in parts]
        return ids

    def decode(self, ids: list[int]) -> str:
        return b"".join(self.vocabulary[token] for token in ids).decode(errors="replace")

    def choices(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield what a stream brings, one token of every branch after the other."""
        n = body["n"]
        written = [
            self.encode(TEXTS[(body["seed"] + i) % len(TEXTS)])[: body["max_tokens"]]
            for i in range(n)
        ]
        for position in range(max(map(len, written))):
            for index in range(n):
                if position < len(written[index]):
                    yield self._choice(index, written[index], position)

    def scored(self, ids: list[int]) -> dict[str, Any]:
        """Return a prompt with the probability of each token, 0.4, but of the first."""
        names = [name_of(self.vocabulary[token]) for token in ids]
        return {
            "finish_reason": "length",
            "token_ids": [],
            "logprobs": {
                "tokens": names,
                "token_logprobs": [None, *[math.log(0.4) for _ in names[1:]]],
                "top_logprobs": [None, *[{name: math.log(0.4)} for name in names[1:]]],
            },
        }

    def _choice(self, index: int, ids: list[int], position: int) -> dict[str, Any]:
        rng = random.Random(f"{ids}{position}")
        p = rng.choice([0.9, 0.5, 0.2, 0.05, 0.004, 0.0001])
        token = self.vocabulary[ids[position]]
        likely = {name_of(token): math.log(p), " and": math.log(0.04), "bytes:\\xf0": -6.0}
        numbers = {name_of(token): ids[position], " and": self.id_of(b" and")}
        return {
            "index": index,
            "text": "",
            "logprobs": {
                "tokens": [name_of(token)],
                "token_logprobs": [math.log(p)],
                "top_logprobs": [likely],
                "top_token_ids": [numbers | {"bytes:\\xf0": self.id_of(b"\xf0")}],
                "text_offset": [0],
            },
            "finish_reason": "length" if position == len(ids) - 1 else None,
            "token_ids": [ids[position]],
        }


def name_of(token: bytes) -> str:
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


class Handler(BaseHTTPRequestHandler):
    model: Model
    protocol_version = "HTTP/1.0"

    def log_message(self, *_: Any) -> None:
        pass

    def answer(
        self, value: Any, status: int = 200, headers: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"content-type": "application/json", **headers}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, status: int, message: str) -> None:
        self.answer({"error": {"message": message}}, status)

    def is_refused(self) -> bool:
        self.model.authorizations.append(self.headers["authorization"])
        if self.model.key and self.headers["authorization"] != f"Bearer {self.model.key}":
            self.refuse(401, "the API key is missing or wrong")
            return True
        return False

    def do_GET(self) -> None:
        if self.path == "/":
            data, policy = page()
            named = {"content-type": "text/html; charset=utf-8", "Content-Security-Policy": policy}
            self.answer(data, headers=named)
        elif not self.is_refused():
            self.answer({"data": [{"id": "stand-in"}, {"id": "other"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.is_refused():
            return
        if self.path == "/tokenize":
            ids = self.model.encode(body["prompt"])
            self.answer({"count": len(ids), "max_model_len": N_CTX, "tokens": ids})
            return
        self.model.asked.append(body)
        if body.get("temperature", 1) > 2:
            self.refuse(400, "temperature is 3, expected <at most> 2")
            return
        if body.get("echo"):
            self.answer({"choices": [self.model.scored(body["prompt"])]})
            return
        self.stream(body)

    def stream(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.end_headers()
        try:
            for choice in self.model.choices(body):
                self.event({"choices": [choice], "usage": None})
                if self.model.seconds:
                    threading.Event().wait(self.model.seconds)
            self.event({"choices": [], "usage": {"completion_tokens": 1}})
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.model.gone.set()

    def event(self, value: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n")
        self.wfile.flush()


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def url(model: Model) -> Iterator[str]:
    handler = type("Own", (Handler,), {"model": model})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def browser(tmp_path: Path, url: str) -> Iterator[Chromium]:
    with Chromium(tmp_path / "profile") as browser:
        browser.look()
        browser.open(url)
        browser.until("at('model').value")
        yield browser


TEXT = "at('text').value"
CARDS = "[...document.querySelectorAll('.card')]"
FINISHED = f"!run && {CARDS}.length"


def write(browser: Chromium, text: str, **settings: Any) -> None:
    """Type a text and let the branches be written."""
    for name, value in settings.items():
        browser.run(f"at('{name}').value = {value}")
    if "seed" in settings:
        browser.run("at('keep').checked = true")
    browser.type(text)
    browser.press("Control+Enter")


# --- without a browser ----------------------------------------------------------------------------


def test_the_policy_allows_the_pages_own_script_and_style_and_nothing_from_elsewhere() -> None:
    data, policy = page()
    directives = dict(part.split(" ", 1) for part in policy.split("; "))
    for element in ("script", "style"):
        inner = data.decode().split(f"<{element}>")[1].split(f"</{element}>")[0]
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert directives[f"{element}-src"] == f"'sha256-{digest}'"
    assert directives["default-src"] == "'none'"
    assert directives["connect-src"] == "'self'"
    html = data.decode().split("<script>")[0]
    assert not re.search(r"\s(style|on\w+)=|https?:|//", html.replace("/*", ""))
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", data.decode()
    )


def test_the_server_sends_the_page_with_its_policy_also_to_those_without_a_key() -> None:
    with connected(settings=Settings(api_key=("secret",))) as client:
        answer = client.get("/")
    assert (answer.status_code, answer.content) == (200, page()[0])
    assert answer.headers["content-security-policy"] == page()[1]
    assert answer.headers["content-type"] == "text/html; charset=utf-8"


# --- in a browser ---------------------------------------------------------------------------------


@pytest.mark.browser
def test_three_branches_are_written_side_by_side_and_one_is_taken(
    browser: Chromium, model: Model
) -> None:
    write(browser, "At night", seed=0, n=3)
    browser.until(FINISHED)
    shown = browser.run(f"{CARDS}.map(card => card.querySelector('.text').textContent)")
    assert shown == TEXTS[:3]
    lefts = browser.run(f"{CARDS}.map(card => card.getBoundingClientRect().left)")
    assert len(set(lefts)) == 3
    browser.press("Alt+2")
    assert browser.run(TEXT) == "At night" + TEXTS[1]
    assert browser.run(f"{CARDS}.length") == 0
    (asked,) = model.asked
    assert model.decode(asked["prompt"]) == "At night"
    assert (asked["seed"], asked["n"], asked["logprobs"], asked["stream"]) == (0, 3, 5, True)
    assert browser.complaints == []


@pytest.mark.browser
def test_markup_and_split_characters_are_shown_as_the_text_that_they_are(
    browser: Chromium,
) -> None:
    write(browser, "<script>alert(2)</script> 🙂", seed=0, n=1)
    browser.until(f"{TEXT}.endsWith('Then')")
    assert browser.run(TEXT) == "<script>alert(2)</script> 🙂" + TEXTS[0]
    assert browser.run("document.querySelectorAll('script').length") == 1
    # An emoji of several characters and many bytes is one piece, with all of its tokens.
    pieces = browser.run("paper.pieces.list.map(piece => [piece.text, piece.tokens.length])")
    assert ["👩‍🚀", 11] in pieces
    assert browser.run("at('mirror').textContent") == browser.run(TEXT)
    assert browser.complaints == []


@pytest.mark.browser
def test_the_colors_lie_behind_their_letters(browser: Chromium) -> None:
    # The textarea has no boxes of its letters, but both wrap at the same places if they are equally
    # high at every width.
    write(browser, "One\ttwo  three ﬁ AV To\n" * 3, seed=0, n=1)
    browser.until(f"{TEXT}.endsWith('Then')")
    for width in range(300, 800, 23):
        browser.look(width=width)
        heights = browser.run(
            """(() => {
              at('mirror').style.minHeight = at('text').style.minHeight = 0;
              const copy = at('text').cloneNode();
              copy.value = at('text').value;
              copy.style.cssText = 'min-height: 0; height: 0; position: absolute';
              copy.style.width = at('text').offsetWidth + 'px';
              at('paper').append(copy);
              const found = [copy.scrollHeight, at('mirror').scrollHeight];
              copy.remove();
              return found;
            })()"""
        )
        assert heights[0] == heights[1], width


@pytest.mark.browser
def test_an_alternative_is_chosen_with_the_pointer_and_the_text_goes_on_from_there(
    browser: Chromium, model: Model
) -> None:
    write(browser, "At night", seed=1, n=1)
    browser.until(f"{TEXT}.endsWith('house')")
    browser.run("at('n').value = 2")
    browser.point("paper.spans.find(span => span.textContent === ' over')")
    browser.until("!at('popup').hidden")
    names = browser.run("[...at('popup').querySelectorAll('.name')].map(each => each.textContent)")
    assert set(names) == {"␣over", "␣and", "bytes:\\xf0"}
    browser.point(
        "[...at('popup').querySelectorAll('button')].find(b => b.textContent.includes('and'))",
        click=True,
    )
    browser.until(FINISHED)
    assert browser.run(TEXT) == "At night rain came and"
    assert model.decode(model.asked[1]["prompt"]) == "At night rain came and"
    browser.press("Alt+1")
    browser.press("Alt+ArrowUp")
    browser.press("Alt+ArrowUp")
    assert browser.run(TEXT) == "At night" + TEXTS[1]
    # Half a character, too, is a token to go on from.
    first = "paper.pieces.list[1].tokens[0]"
    browser.run(f"goFrom(current(), 1, {first}.top.at(-1), {first})")
    browser.until(FINISHED)
    assert model.vocabulary[model.asked[2]["prompt"][-1]] == b"\xf0"
    assert browser.complaints == []


@pytest.mark.browser
def test_an_alternative_in_a_branch_that_is_being_written_stops_it_and_goes_on_from_there(
    browser: Chromium, model: Model
) -> None:
    # It was counted from the beginning of the branch, so the text before it was cut.
    model.seconds = 0.05
    write(browser, "At night", seed=0, n=3)
    browser.until(f"{CARDS}[1]?.textContent.includes('hills')")
    browser.point(f"{CARDS}[1].querySelectorAll('.piece')[2]")
    browser.until("!at('popup').hidden")
    browser.point(
        "[...at('popup').querySelectorAll('button')].find(b => b.textContent.includes('and'))",
        click=True,
    )
    assert model.gone.wait(10)
    model.seconds = 0
    browser.until(f"state.current > 1 && {FINISHED}")
    assert browser.run(TEXT) == "At night rain came and"
    assert model.decode(model.asked[1]["prompt"]) == "At night rain came and"


@pytest.mark.browser
def test_a_text_of_one_model_is_read_as_text_by_another(browser: Chromium, model: Model) -> None:
    # The ids of one vocabulary were sent to the other model, to which they mean other tokens.
    write(browser, "At night", seed=1, n=1)
    browser.until(f"{TEXT}.endsWith('house')")
    browser.run("at('model').value = 'other'")
    browser.run("tokenize = async text => [text.length]")
    browser.press("Control+Enter")
    browser.until("!run")
    assert model.asked[1]["prompt"] == [len("At night" + TEXTS[1])]
    assert model.asked[1]["model"] == "other"


@pytest.mark.browser
def test_a_long_typed_text_that_is_deleted_stays_among_the_versions(browser: Chromium) -> None:
    browser.type("A text that somebody typed, and then deleted as a whole.")
    browser.run("at('text').select()")
    browser.press("Backspace")
    browser.type("New")
    assert browser.run(TEXT) == "New"
    browser.press("Alt+ArrowUp")
    assert browser.run(TEXT).startswith("A text that somebody typed")


@pytest.mark.browser
def test_alternatives_are_reached_and_chosen_by_keyboard(browser: Chromium) -> None:
    write(browser, "At night", seed=1, n=1)
    browser.until(f"{TEXT}.endsWith('house')")
    browser.press("Alt+A")
    focused = "document.activeElement.textContent"
    assert "house" in browser.run(focused)
    browser.press("ArrowLeft")
    assert "old" in browser.run(focused)
    for _ in range(3):
        browser.press("ArrowDown")
        if "and" in browser.run(focused):
            break
    browser.press("Escape")
    assert browser.run("document.activeElement.id") == "text"
    assert browser.run("at('popup').hidden")
    browser.press("Alt+A")
    while "and" not in browser.run(focused):
        browser.press("ArrowDown")
    browser.press("Enter")
    browser.until(f"{TEXT}.includes('the old and')")


@pytest.mark.browser
def test_what_was_typed_has_colors_and_alternatives_after_the_model_has_read_it(
    browser: Chromium,
) -> None:
    browser.type("one two 🙂 three")
    browser.press("Alt+R")
    browser.until("paper.pieces.list.length > 1")
    shown = "paper.pieces.list.map(piece => [piece.text, bitsOf(piece.tokens)])"
    assert browser.run(shown) == [
        ["one", 0],
        [" two", pytest.approx(1.32, abs=0.01)],
        [" ", pytest.approx(1.32, abs=0.01)],
        ["🙂", pytest.approx(5.29, abs=0.01)],  # four tokens
        [" three", pytest.approx(1.32, abs=0.01)],
    ]
    assert browser.run("paper.spans[3].className") == "piece heat2"
    browser.press("Alt+A")
    assert browser.run("document.activeElement.textContent") == "␣three40%"
    assert browser.run(TEXT) == "one two 🙂 three"
    assert browser.complaints == []


@pytest.mark.browser
def test_what_is_typed_into_the_middle_begins_a_version_and_the_old_one_stays(
    browser: Chromium, model: Model
) -> None:
    write(browser, "At night", seed=1, n=1)
    browser.until(f"{TEXT}.endsWith('house')")
    browser.run("at('text').setSelectionRange(12, 13)")
    browser.type("X")
    assert browser.run(TEXT) == "At night raiX came over the hills, and the old house"
    colored = "paper.pieces.list.filter(piece => piece.tokens[0].typed === undefined).length"
    assert browser.run(colored) == 0  # what came after the change was written after another text
    browser.run("at('text').setSelectionRange(12, 13)")
    browser.type("n")
    assert browser.run(TEXT) == "At night" + TEXTS[1]
    assert browser.run(colored) == 9  # nothing is changed any longer
    assert browser.run("state.versions.length") == 3
    browser.run("at('text').setSelectionRange(999, 999)")
    browser.type("s are gone")
    browser.press("Control+Enter")
    browser.until("!run && paper.pieces.list.length > 12")
    assert model.decode(model.asked[1]["prompt"]) == f"At night{TEXTS[1]}s are gone"
    # A word of which the model wrote the beginning is read as one word.
    assert b" houses" in [model.vocabulary[token] for token in model.asked[1]["prompt"]]
    assert browser.complaints == []


@pytest.mark.browser
def test_versions_and_settings_outlive_the_page(browser: Chromium, url: str) -> None:
    write(browser, "At night", seed=0, n=3, temperature=0.5)
    browser.until(FINISHED)
    browser.press("Alt+3")
    before = browser.run("state.versions.length")
    browser.open(url)
    browser.until("at('model').value")
    assert browser.run(TEXT) == "At night" + TEXTS[2]
    assert browser.run("state.versions.length") == before
    assert browser.run("[at('temperature').value, at('seed').value, at('keep').checked]") == [
        "0.5",
        "0",
        True,
    ]
    rows = "[...document.querySelectorAll('#tree button')]"
    browser.until(f"{rows}.length === {before}")
    browser.point(f"{rows}[3]", click=True)
    assert browser.run(TEXT) == "At night" + TEXTS[1]


@pytest.mark.browser
def test_the_same_seed_is_sent_again_only_if_it_is_kept(browser: Chromium, model: Model) -> None:
    browser.run("at('n').value = 1")
    for _ in range(2):
        browser.press("Control+Enter")
        browser.until("!run")
    browser.press("Alt+S")
    for _ in range(2):
        browser.press("Control+Enter")
        browser.until("!run")
    seeds = [asked["seed"] for asked in model.asked]
    assert len(set(seeds)) == 2
    assert seeds[1] == seeds[2] == seeds[3] == int(browser.run("at('seed').value"))


@pytest.mark.browser
def test_escape_stops_the_writing_and_keeps_what_is_there(browser: Chromium, model: Model) -> None:
    model.seconds = 0.05
    write(browser, "At night", seed=0, n=2)
    browser.until(f"{CARDS}[1]?.textContent.includes('rain')")
    browser.press("Escape")
    browser.until(FINISHED)
    assert model.gone.wait(10)
    browser.press("Alt+2")
    assert browser.run(TEXT).startswith("At night rain")
    assert len(browser.run(TEXT)) < len("At night" + TEXTS[1])


@pytest.mark.browser
def test_a_refusal_is_shown_in_the_servers_own_words(browser: Chromium) -> None:
    write(browser, "At night", temperature=3)
    browser.until("!at('message').hidden")
    shown = browser.run("at('message').textContent")
    assert shown == "temperature is 3, expected <at most> 2"


@pytest.mark.browser
def test_a_server_that_is_gone_is_said_in_a_sentence(browser: Chromium) -> None:
    browser.run("window.fetch = () => Promise.reject(new TypeError('Failed to fetch'))")
    write(browser, "At night")
    browser.until("!at('message').hidden")
    assert "does not answer" in browser.run("at('message').textContent")


@pytest.mark.browser
def test_a_key_is_asked_for_when_the_server_wants_one(
    tmp_path: Path, model: Model, url: str
) -> None:
    model.key = "secret"
    with Chromium(tmp_path / "profile") as browser:
        browser.open(url)
        browser.until("!at('access').hidden")
        browser.run("at('key').focus()")
        browser.type("secret")
        browser.press("Enter")
        browser.until("at('model').value && at('access').hidden && at('message').hidden")
    assert model.authorizations[-1] == "Bearer secret"


@pytest.mark.browser
def test_without_a_key_none_is_sent(browser: Chromium, model: Model) -> None:
    # A method of the browser's storage was taken for the key, and Firefox sent no request at all.
    write(browser, "At night", seed=0, n=1)
    browser.until(f"{TEXT}.endsWith('Then')")
    assert set(model.authorizations) == {None}


@pytest.mark.browser
def test_tokens_are_counted_against_the_window(browser: Chromium) -> None:
    browser.type("one two three")
    browser.until("at('count').textContent === '3 of 1,024 tokens'")
    browser.type(" four" * 1100)
    browser.until(
        "at('count').textContent.startsWith('1,103 of 1,024 tokens; the model reads only')"
    )


@pytest.mark.browser
def test_nothing_is_wider_than_a_telephone_and_all_can_be_reached(browser: Chromium) -> None:
    browser.look(width=360, height=740)
    write(browser, "At night " + "unbreakable" * 20, seed=0, n=3)
    browser.until(FINISHED)
    assert browser.run("document.documentElement.scrollWidth") == 360
    right = f"[...{CARDS}[0].querySelectorAll('.piece')].find(piece => piece.offsetLeft > 180)"
    browser.run(f"{CARDS}[0].scrollIntoView({{block: 'center'}})")
    browser.point(right)
    browser.until("!at('popup').hidden")
    assert browser.run("at('popup').getBoundingClientRect().right") <= 360
    browser.press("F1")
    assert browser.run("at('help').open")


# --- with the server itself -----------------------------------------------------------------------


@pytest.mark.browser
def test_the_page_shows_what_the_server_writes_and_goes_on_from_any_byte(tmp_path: Path) -> None:
    # The tiny model is random, so most of what it writes is halves of characters.
    with running() as url, Chromium(tmp_path / "profile") as browser:
        browser.open(url)
        browser.until("at('model').value")
        write(browser, "The <b>dog</b> é", seed=3, n=3, max_tokens=20, temperature=1)
        browser.until(FINISHED)
        shown = browser.run("state.versions.slice(-3).map(each => each.add.map(token => token.id))")
        with httpx2.Client(base_url=url) as client:
            body = {"prompt": "The <b>dog</b> é", "seed": 3, "n": 3, "max_tokens": 20, "top_k": 40}
            asked = client.post("/v1/completions", json={**body, "return_token_ids": True})
        choices = asked.json()["choices"]
        end = 511  # <|endoftext|> is no part of the text
        assert shown == [[i for i in choice["token_ids"] if i != end] for choice in choices]
        texts = browser.run(f"{CARDS}.map(card => card.querySelector('.text').textContent)")
        assert texts == [choice["text"].replace("\r", "") for choice in choices]
        browser.press("Alt+1")
        before = browser.run("current().add.map(token => token.logprob)")
        browser.press(
            "Alt+R"
        )  # as a prompt, the text has the probabilities that it was written with
        browser.until("current().kind === 'read'")
        after = browser.run("current().add.map(token => token.logprob)")[-len(before) :]
        assert after == pytest.approx(before, abs=2e-4)
        other = "tokensOf(current()).at(-5)"
        expected = browser.run(f"{other}.top.at(-1)[2]")
        ids = browser.run("tokensOf(current()).slice(0, -5).map(token => token.id)")
        browser.run(f"goFrom(current(), {len(ids)}, {other}.top.at(-1), {other})")
        browser.until(FINISHED)
        assert browser.run("idsOf(tokensOf(current()))") == [*ids, expected]
        assert browser.complaints == []
