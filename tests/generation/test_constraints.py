"""A constrained text is always one that is allowed, and every allowed text can come out."""

from __future__ import annotations

import gc
import itertools
import random
import re
import time
import tracemalloc
import weakref
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_model
from token_builders import END, Pieces

from gpt2kit.config import GPT2Config
from gpt2kit.errors import ConfigError, GenerationError
from gpt2kit.generation.constraints import constraint as module
from gpt2kit.generation.constraints.constraint import Progress, constraints_for
from gpt2kit.generation.constraints.regular import regular
from gpt2kit.generation.request import Request, Sampling
from gpt2kit.generation.row import Row, choose, distributions
from gpt2kit.generation.shaping.processors import RowView
from gpt2kit.generation.text import complete, generate_tokens, stream
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import BPETokenizer, CharTokenizer, Tokenizer, WordTokenizer

# Parts of characters, tokens that end or begin inside one, and a piece that spans several parts of
# a pattern; and a vocabulary in which "b" comes only after "a", and "é" only in pairs.
SMALL = Pieces(
    b"a", b"b", b"\xc3", b"\xa9", b"ab", b"a\xc3", b"\xa9\xc3", b"\xa9b", b"aab", b"\xff"
)
POOR = Pieces(b"a", b"ab", b"\n", "éé".encode(), b"aba")


def begin(tokenizer: Tokenizer, prompt: Sequence[int] = (), **asked: Any) -> Progress:
    """Return where a text with these constraints begins."""
    constraints = constraints_for(Request(**asked), tokenizer, tokenizer.n_vocab, tokenizer.stop_id)
    assert constraints
    return constraints.after(prompt)


def allowed(progress: Progress) -> list[int]:
    if progress.must_end:
        return []
    logits = torch.zeros(progress.constraint.forbidden(progress.state).shape)
    progress.forbid(logits, RowView((), 0, 0, {}))
    return torch.nonzero(logits == 0)[:, 0].tolist()


def written(tokenizer: Tokenizer, begin: Progress, size: int) -> set[bytes]:
    """Return every text of at most `size` bytes that can come out, by trying all tokens.

    On the way, check that no token leads where nothing can be completed, and that the end marker
    is allowed exactly where a text may end.
    """
    found, seen, waiting = set(), {(b"", begin.state)}, [(b"", begin)]
    while waiting:
        text, progress = waiting.pop()
        tokens = allowed(progress)
        assert tokens or progress.may_end
        if tokens and tokenizer.stop_id is not None:
            assert (tokenizer.stop_id in tokens) == progress.may_end
        if progress.may_end:
            found.add(text)
        for token in tokens:
            longer = text + tokenizer.token_bytes(token)
            after = progress.after(token)
            key = (longer, after.state)
            if token != tokenizer.stop_id and len(longer) <= size and key not in seen:
                seen.add(key)
                waiting.append((longer, after))
    return found


def written_or_none(tokenizer: Tokenizer, size: int, **asked: Any) -> set[bytes]:
    """Return what can be written; nothing if it is an error that only the empty text can be."""
    try:
        start = begin(tokenizer, **asked)
    except ConfigError:
        return set()
    found = written(tokenizer, start, size)
    return found if found != {b""} else set()


def every_text(alphabet: str, size: int, tokenizer: Tokenizer) -> list[str]:
    """Return every text of at most `size` bytes that the vocabulary can write."""
    texts = (
        "".join(letters)
        for count in range(size + 1)
        for letters in itertools.product(alphabet, repeat=count)
    )
    return [
        text for text in texts if len(text.encode()) <= size and can_write(tokenizer, text.encode())
    ]


def can_write(tokenizer: Tokenizer, text: bytes) -> bool:
    pieces = [tokenizer.token_bytes(token) for token in range(1, tokenizer.n_vocab)]
    reached = {0}
    for start in range(len(text)):
        if start in reached:
            reached |= {start + len(piece) for piece in pieces if text.startswith(piece, start)}
    return len(text) in reached


def random_pattern(draw: random.Random, depth: int = 2) -> str:
    """Return a pattern over the alphabet, of every kind of part that is supported."""
    if depth == 0:
        return draw.choice(["a", "b", "é", ".", "[ab]", "[^a]", r"\w", r"\S", "[b-é]", "(?i:É)"])
    parts = [random_pattern(draw, depth - 1) for _ in range(draw.randint(1, 3))]
    group = f"({'|'.join(parts)})" if draw.random() < 0.5 else f"(?:{''.join(parts)})"
    return group + draw.choice(["", "", "*", "+?", "?", "{2}", "{1,2}", "{,2}", "{1,}"])


# --- exhaustively ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_exactly_the_texts_that_match_a_random_pattern_can_be_written(seed: int) -> None:
    pattern = random_pattern(random.Random(seed))
    for tokenizer, alphabet in ((SMALL, "abé"), (POOR, "abé\n")):
        texts = every_text(alphabet, 7, tokenizer)
        expected = {text.encode() for text in texts if re.fullmatch(pattern, text)}
        assert written_or_none(tokenizer, 7, regex=pattern) == (expected - {b""} and expected)


@pytest.mark.parametrize("seed", range(20))
def test_exactly_the_lines_of_a_random_list_can_be_written(seed: int) -> None:
    draw = random.Random(seed)
    texts = [text for text in every_text("abé", 7, SMALL) if text]
    lines = draw.sample(texts, draw.choice([1, 3, 30]))
    assert written(SMALL, begin(SMALL, allow=lines), 7) == {line.encode() for line in lines}
    writable = {line.encode() for line in lines if can_write(POOR, line.encode())}
    if writable:
        assert written(POOR, begin(POOR, allow=lines), 7) == writable


@pytest.mark.parametrize("seed", range(20))
def test_exactly_the_texts_without_the_lines_of_a_random_list_can_be_written(seed: int) -> None:
    draw = random.Random(seed)
    short = [text for text in every_text("abé", 4, POOR) if text]
    lines = draw.sample(short, draw.choice([1, 3, len(short)]))
    texts = every_text("aé\nb", 6, POOR)
    expected = {text.encode() for text in texts if not {*text.split("\n")} & {*lines}}
    assert written(POOR, begin(POOR, forbid=lines), 6) == expected


@pytest.mark.parametrize("seed", range(20))
def test_constraints_together_allow_what_each_allows(seed: int) -> None:
    draw = random.Random(seed)
    texts = every_text("abé", 6, SMALL)
    pattern = random_pattern(draw)
    lines, others = draw.sample(texts, 60), draw.sample([*filter(None, texts)], 40)
    asked = {"regex": pattern, "forbid": others, "valid_utf8": True}
    expected = {text for text in texts if re.fullmatch(pattern, text) and text not in others}
    for more in ({}, {"allow": lines}):
        if more:
            expected &= {*filter(None, lines)}
        bytes_ = {text.encode() for text in expected}
        assert written_or_none(SMALL, 6, **asked, **more) == (bytes_ - {b""} and bytes_)


def test_a_constraint_for_valid_utf8_allows_all_of_it_and_nothing_else() -> None:
    single = Pieces(*(bytes([byte]) for byte in range(256)), stop_id=None)
    progress = begin(single, valid_utf8=True)
    # All texts of two bytes, and all texts of one character of three or four bytes.
    pairs = {bytes(pair) for pair in itertools.product(range(256), repeat=2)}
    found = {pair for pair in pairs if survives(progress, pair)}
    assert found == {pair for pair in pairs if is_utf8(pair)}
    for code in (0x7FF, 0x800, 0xFFF, 0xD7FF, 0xE000, 0xFFFD, 0xFFFF, 0x10000, 0x3FFFF, 0x10FFFF):
        assert survives(progress, chr(code).encode())
    for wrong in (b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe0\x80\x80", b"\xf0\x80\x80\x80"):
        assert not survives(progress, wrong)


def survives(progress: Progress, text: bytes) -> bool:
    """Return whether the single bytes of a text are allowed, and the text is complete then."""
    for byte in text:
        if byte + 1 not in allowed(progress):
            return False
        progress = progress.after(byte + 1)
    return progress.may_end


def is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        (r"\d\d", ["17", "٣٤"], ["1", "1a"]),
        (r"(?a)\d\d", ["17"], ["٣٤"]),
        (r"(?i)straße|ΣΑΣ", ["STRAßE", "σας", "ΣΑΣ"], ["STRASSE"]),
        ("(?i)ſtK-漢", ["ſtk-漢", "STK-漢", "stk-漢"], ["st-漢"]),
        (r"(?s).|..", ["\n", "🙂", "ab"], ["", "abc"]),
        (r".", ["a", "é", "🙂"], ["\n"]),
        (r"^(?P<word>\w+)\Z", ["perché", "è1_"], ["a b", ""]),
        (r"a{2}|b{,1}c|d{1,}e{}", ["aa", "c", "bc", "dde{}"], ["a", "bbc", "e{}"]),
        (r"[]a\-\]]+[^]b]", ["]a-c", "--a"], ["]]", "c"]),
        (r"\x41\u00e9\U0001F642\N{BULLET}\101\0\t\.", ["Aé🙂•A\0\t."], ["Aé🙂•A\0\t!"]),
        (r"a(?#a comment)b(?:)", ["ab"], ["a"]),
        (r"(a*)*b", ["b", "aab"], ["a"]),
        (r"((a|b)*c)*", ["abcc", ""], ["ab"]),
        (r"(?i:a)b(?-i:c)", ["Abc"], ["ABc"]),
        (r"[一-龥]{2}", ["漢字"], ["漢a"]),
    ],
)
def test_patterns_mean_what_they_mean_to_python(
    pattern: str, yes: list[str], no: list[str]
) -> None:
    single = Pieces(*(bytes([byte]) for byte in range(256)))
    progress = begin(single, regex=pattern)
    for text in yes:
        assert re.fullmatch(pattern, text)
        assert survives(progress, text.encode())
    for text in no:
        assert not re.fullmatch(pattern, text)
        assert not survives(progress, text.encode())


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"(a)\1", r"the backreference \\1 at offset 3"),
        (r"(?P<x>a)(?P=x)", "the backreference"),
        ("a(?=b)", "lookahead"),
        ("(?!b)a", "lookahead"),
        ("(?<=b)a", "lookbehind"),
        (r"\bword", "the word boundary"),
        ("(?>a*)b", "the atomic group"),
        ("a*+b", "the possessive quantifier"),
        ("(a)?(?(1)b|c)", "the condition"),
        ("a^b", "an anchor"),
        ("(a$)", "an anchor"),
        ("(?x) a b", "the flag x"),
        ("(", "missing \\), unterminated subpattern at position 0"),
        ("a{2,1}", "min repeat greater than max repeat"),
        ("a{1,100000}", "too many states"),
        ("(a|b)*a(a|b){40}", "too many states"),
        ("((a{0,99}){0,99}){0,99}", "too many states"),
        ("[^\\s\\S]", "no text is allowed by regex"),
        ("x" * 3000 + "y*" * 3000, "too many states"),
        ("x" * 40_000, "40,000 characters, expected at most 32,768"),
        ("".join(f"[{chr(i)}]" for i in range(0x4E00, 0x5000)), "512 different classes"),
        ("|".join(map(chr, range(0x4E00, 0x7000))), "too many states"),
        ("", "only the empty text is allowed by regex"),
        ("(" * 99 + "a" + ")" * 99 + "c", "the vocabulary cannot write any text"),
    ],
)
def test_a_pattern_that_cannot_be_a_constraint_is_one_clear_error(
    pattern: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        begin(SMALL, regex=pattern)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("flags", "end"), [("", 0x5300), ("(?i)", 0x5000)])
def test_many_different_characters_do_not_make_a_pattern_slow(flags: str, end: int) -> None:
    """The time grew with the cube of their number, or was that of a search for each of them."""
    regular("(?i)aé")  # what is made once
    began = time.thread_time()
    regular(flags + "".join(map(chr, range(0x4E00, end))))
    assert time.thread_time() - began < 1.5


def test_a_loop_of_many_alternatives_takes_little_memory() -> None:
    """Each had a set of its own of all that may follow: gigabytes for some thousand of them."""
    tracemalloc.start()
    regular("(?:" + "|".join("a" * 1200) + ")*b")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60_000_000


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"allow": []}, "allow has no lines"),
        ({"forbid": ["", ""]}, "forbid has no lines"),
        ({"allow": "ab"}, "expected a list of lines"),
        ({"forbid": ["a", 1]}, "expected a list of lines"),
        ({"allow": ["a\nb"]}, "a line with a line end in it"),
        ({"allow": ["a\ud800"]}, "half of a surrogate pair"),
        ({"allow": ["a"], "forbid": ["a"]}, "no text is allowed by allow and forbid"),
        ({"allow": ["xyz"]}, "cannot write any text that is allowed by allow"),
        ({"regex": 1}, "expected text"),
        ({"valid_utf8": 1}, "expected true or false"),
    ],
)
def test_lists_that_allow_nothing_are_one_clear_error(asked: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        begin(SMALL, **asked)


# --- where a text begins --------------------------------------------------------------------------


def test_a_forbidden_line_may_begin_in_the_prompt() -> None:
    a, b, newline = 1, 2, 3
    tokenizer = Pieces(b"a", b"b", b"\n")
    prompt = [b, newline, a]
    assert newline not in allowed(begin(tokenizer, prompt, forbid=["ab"]).after(b))
    assert newline in allowed(begin(tokenizer, prompt, forbid=["b", "a b"]).after(b))
    # A marker in the prompt begins a new text, and with it a new line.
    assert newline in allowed(begin(tokenizer, [a, END], forbid=["ab"]).after(b))
    both = {"forbid": ["ab"], "regex": r"b\n?"}
    assert allowed(begin(tokenizer, [newline], **both).after(b)) == [END, newline]
    with pytest.raises(ConfigError, match="no text is allowed by regex and forbid"):
        begin(tokenizer, prompt, **both)


@pytest.mark.parametrize("asked", [{"valid_utf8": True}, {"forbid": ["aé"]}])
def test_a_character_that_the_prompt_began_may_be_completed(asked: Any) -> None:
    a, b, first, second = 1, 2, 3, 4
    assert allowed(begin(SMALL, [a, first], **asked)) == [second, 7, 8]
    after = begin(SMALL, [a, 10, first], **asked).after(second)  # 10 is no UTF-8
    assert {END, a, b} <= {*allowed(after)}
    assert {END, a, b} <= {*allowed(begin(SMALL, [second, 10], **asked))}


def test_a_forbidden_line_whose_last_character_the_prompt_began_is_found() -> None:
    after = begin(SMALL, [1, 3], forbid=["aé"]).after(4)
    assert END not in allowed(after)
    assert not after.may_end


# --- texts of a model -----------------------------------------------------------------------------

PATTERNS = [
    r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])",
    r'\{"name": "[^"\\\n]{1,20}", "age": ([1-9]\d?|null)\}',
    "(🙂|👩🏽‍🚀|[à-ù]{2}){1,5}!",
    r"( [A-Za-zàèéìòù']{1,9}){2,5}\.",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_is_written_matches_all_of_the_pattern(
    small_bpe: BPETokenizer, tiny_model: GPT2, pattern: str
) -> None:
    found = complete(
        tiny_model, small_bpe, "a", regex=pattern, num_samples=8, max_tokens=120, seed=1
    )
    assert all(one.matches for one in found)
    assert all(re.fullmatch(pattern, one.text) for one in found)
    assert {one.finish_reason for one in found} <= {"constraint", "end_of_text"}


def test_with_valid_utf8_no_token_breaks_a_character(
    small_bpe: BPETokenizer, tiny_model: GPT2
) -> None:
    options: Any = {"num_samples": 6, "max_tokens": 40, "seed": 1, "top_k": 0}
    free = complete(tiny_model, small_bpe, "è", **options)
    assert all("\ufffd" in one.text for one in free)
    for one in complete(tiny_model, small_bpe, "è", valid_utf8=True, **options):
        assert "\ufffd" not in one.text[:-1]
        assert one.text.endswith("\ufffd") == (not one.matches)  # max_tokens may cut a character


def test_over_gpt2s_vocabulary_every_output_matches(test_data: Path) -> None:
    tokenizer = BPETokenizer.from_folder(test_data / "bpe")
    assert tokenizer is not None
    model = make_model(GPT2Config(n_vocab=50304, n_ctx=64, n_embd=8, n_head=1, n_layer=1))
    lines = (test_data / "corpora/names.txt").read_text().split()[:2000]
    options: Any = {"num_samples": 6, "max_tokens": 60, "seed": 1, "top_k": 0}
    for pattern in (*PATTERNS, *(random_pattern(random.Random(seed)) + "!" for seed in range(5))):
        for one in complete(model, tokenizer, "x", regex=pattern, **options):
            assert not one.matches or re.fullmatch(pattern, one.text)
            assert one.matches or one.finish_reason == "max_tokens"
            assert one.matches or "{20}" not in pattern
    assert {one.text for one in complete(model, tokenizer, "x", allow=lines, **options)} <= {*lines}
    for one in complete(model, tokenizer, "x\n", regex="[a-z]{2,4}", forbid=lines, **options):
        assert re.fullmatch("[a-z]{2,4}", one.text)
        assert one.text not in lines
    utf8 = complete(model, tokenizer, "x", valid_utf8=True, **options)
    for one in utf8:
        whole = b"".join(map(tokenizer.token_bytes, one.tokens))
        assert whole.decode(errors="ignore") == one.text.rstrip("\ufffd")
        assert one.matches == ("\ufffd" not in one.text)


def test_vocabularies_of_characters_and_words_can_be_constrained() -> None:
    chars = CharTokenizer.from_text("abc é\n")
    words = WordTokenizer.from_text("tre donne intorno al cor mi son venute\n")
    for tokenizer, pattern in ((chars, "[a-z]{2}é*\n"), (words, r"( (tre|donne|cor)){3}\n")):
        model = make_model(
            GPT2Config(n_vocab=tokenizer.n_vocab + 3, n_ctx=64, n_embd=16, n_head=2, n_layer=1)
        )
        if tokenizer is words:
            pattern = r"( (donne|cor|al)){3}\n"
        found = complete(
            model, tokenizer, "\n", regex=pattern, num_samples=9, seed=1, max_tokens=40
        )
        assert all(re.fullmatch(pattern, one.text) for one in found)
        assert {one.finish_reason for one in found} == {"constraint"}


def test_the_distribution_is_the_models_own_renormalized(
    small_bpe: BPETokenizer, tiny_config: GPT2Config
) -> None:
    asked: Any = {"regex": r"\w{1,3}", "sampling": Sampling(top_k=0, temperature=0.7), "seed": 2}
    request = Request(**asked)
    start = begin(small_bpe, **asked)
    logits = torch.randn(1, 512, generator=torch.Generator().manual_seed(3)) * 2
    weights = (logits[0] / 0.7).double().exp().numpy()
    expected = np.zeros(512)
    expected[allowed(start)] = weights[allowed(start)] / weights[allowed(start)].sum()

    rows = [
        Row([1], request, tiny_config, sample=number, stop_id=511, progress=start)
        for number in range(4000)
    ]
    assert np.allclose(distributions(rows[:1], logits)[0], expected, rtol=1e-5, atol=0)
    counts = Counter(choose(rows, logits.expand(len(rows), -1)))
    assert {*counts} <= {*allowed(start)}
    likely = np.flatnonzero(expected * len(rows) >= 5).tolist()
    rest = len(rows) - sum(counts[token] for token in likely)
    observed = np.array([*(counts[token] for token in likely), rest])
    means = np.array([*(expected[likely]), 1 - expected[likely].sum()]) * len(rows)
    chi_square = ((observed - means) ** 2 / means).sum()
    assert chi_square < len(likely) + 4 * np.sqrt(2 * len(likely))


def test_log_probabilities_and_alternatives_stay_the_models_own(
    small_bpe: BPETokenizer, tiny_model: GPT2
) -> None:
    options: Any = {"max_tokens": 6, "logprobs": True, "top_logprobs": 3, "seed": 1}
    (found,) = complete(tiny_model, small_bpe, "ab", regex=r"\d+", **options)
    ids = [*small_bpe.encode("ab"), *found.tokens]
    with torch.no_grad():
        own = tiny_model(torch.tensor([ids]))[0].log_softmax(dim=-1)
    n = len(found.tokens)
    expected = own[-n - 1 : -1].gather(1, torch.tensor(found.tokens)[:, None])[:, 0]
    assert found.logprobs == pytest.approx(expected.tolist(), abs=1e-4)
    assert found.top_logprobs is not None
    best = own[-n - 1 : -1].argmax(dim=1).tolist()
    assert [alternatives[0][0] for alternatives in found.top_logprobs] == best


def test_alone_in_a_batch_and_with_a_draft_a_text_is_the_same(
    small_bpe: BPETokenizer, tiny_model: GPT2
) -> None:
    pattern = r"(\d{1,3}, ){3}\d."
    options: Any = {"regex": pattern, "max_tokens": 40, "seed": 5}
    together = complete(tiny_model, small_bpe, ["ab", "the end"], num_samples=3, **options)
    alone = [
        complete(tiny_model, small_bpe, prompt, first_sample=sample, **options)[0]
        for prompt in ("ab", "the end")
        for sample in range(3)
    ]
    assert together == alone
    looked_up = complete(
        tiny_model, small_bpe, ["ab", "the end"], num_samples=3, draft="lookup", **options
    )
    assert looked_up == together
    drafted = complete(
        tiny_model,
        small_bpe,
        "ab",
        num_samples=9,
        draft=make_model(tiny_model.config, seed=1),
        **options,
    )
    greedy = complete(tiny_model, small_bpe, "ab", temperature=0, **options)
    small = make_model(tiny_model.config, seed=1)
    assert complete(tiny_model, small_bpe, "ab", temperature=0, draft=small, **options) == greedy
    assert all(re.fullmatch(pattern, one.text) for one in [*together, *drafted, *greedy])


def test_why_a_constrained_text_ended_is_told(small_bpe: BPETokenizer, tiny_model: GPT2) -> None:
    def ended(**options: Any) -> tuple[str, bool | None]:
        (found,) = complete(tiny_model, small_bpe, "a", seed=1, **options)
        return found.finish_reason, found.matches

    assert ended(regex="abc") == ("constraint", True)
    assert ended(regex="abc", max_tokens=1) == ("max_tokens", False)
    assert ended(regex="a|ab|b", max_tokens=1)[1] is True
    assert ended(regex="(abc)*d*", max_tokens=60, logit_bias={511: 100}) == ("end_of_text", True)
    assert ended(regex="[a-z ]*x", stop="a", max_tokens=90)[0] == "stop_text"
    assert ended(max_tokens=3) == ("max_tokens", None)


def test_a_ban_that_leaves_nothing_of_a_pattern_is_an_error_with_both_names(
    small_bpe: BPETokenizer, tiny_model: GPT2
) -> None:
    with pytest.raises(GenerationError, match="regex and ban leave no token"):
        complete(tiny_model, small_bpe, "a", regex="[0-9]{2}x", ban="x", seed=1)


def test_after_the_end_marker_is_ignored_it_is_text_like_any_other(
    small_bpe: BPETokenizer, tiny_model: GPT2
) -> None:
    options: Any = {"regex": r"(<\|endoftext\|>)+x", "ignore_eos": True, "logit_bias": {511: 100}}
    (found,) = complete(tiny_model, small_bpe, "a", max_tokens=5, seed=1, **options)
    assert found.text.startswith("<|endoftext|>" * 3)


def test_ids_without_a_vocabulary_cannot_be_constrained(tiny_model: GPT2) -> None:
    with pytest.raises(ConfigError, match="regex needs a vocabulary"):
        Row([1], Request(regex="a"), tiny_model.config)
    with pytest.raises(TypeError, match="regex"):
        next(generate_tokens(tiny_model, [[1]], regex="a"))  # type: ignore[call-arg]


def test_a_constraint_that_nothing_meets_raises_before_the_first_piece(
    small_bpe: BPETokenizer, tiny_model: GPT2
) -> None:
    with pytest.raises(ConfigError, match="no text is allowed"):
        stream(tiny_model, small_bpe, "a", regex="[^\\s\\S]")


def test_the_tables_that_are_kept_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight were kept, of any size, and one for each prompt: a server grew by gigabytes."""
    tokenizer = CharTokenizer.from_text("ab\n")
    monkeypatch.setattr(module, "_KEPT_BYTES", 3 * 4 * 0x110000)  # of two lists, not of three
    first = begin(tokenizer, forbid=("ab",))
    assert begin(tokenizer, forbid=("ab",)).constraint is first.constraint
    begin(tokenizer, forbid=("ba",))
    assert begin(tokenizer, forbid=("ab",)).constraint is first.constraint
    begin(tokenizer, forbid=("bb",))
    begin(tokenizer, forbid=("aa",))
    again = begin(tokenizer, forbid=("ab",))
    assert again.constraint is not first.constraint
    assert allowed(again) == allowed(first)


def test_of_many_prompts_the_tables_of_the_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = CharTokenizer.from_text("ab\n")
    request = Request(regex="[ab]{1,3}", forbid=("abab", "bb"))
    constraints = module.Constraints(request, tokenizer, tokenizer.n_vocab, None)
    prompts = [tokenizer.encode(text) for text in ("", "a", "ab", "b")]
    found = [constraints.after(prompt) for prompt in prompts]
    assert len(constraints._made) == len(prompts)
    monkeypatch.setattr(module, "_KEPT_BYTES", constraints.nbytes - 1)
    constraints.after(tokenizer.encode("aba"))
    assert len(constraints._made) == len(prompts)  # one more, and the first one no more
    again = [constraints.after(prompt) for prompt in prompts]
    assert [allowed(each) for each in again] == [allowed(each) for each in found]


def test_no_more_tokenizers_are_kept_than_constraints() -> None:
    """Each tokenizer that was used with a constraint was kept for ever, with its tables."""
    tokenizers = [CharTokenizer.from_text("ab") for _ in range(20)]
    for tokenizer in tokenizers:
        begin(tokenizer, regex="a+")
    left = [weakref.ref(tokenizer) for tokenizer in tokenizers]
    del tokenizer, tokenizers
    gc.collect()
    assert sum(each() is not None for each in left) <= 8
