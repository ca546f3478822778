"""Tables with surprisals: in batches, in any order of rows, with damaged rows, in little memory."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import make_model

from gpt2kit.config import GPT2Config
from gpt2kit.data.streams import read_batches
from gpt2kit.data.tables import Table
from gpt2kit.errors import CorpusError, TokenizerError
from gpt2kit.evaluation.scored_tables import Tally, scored
from gpt2kit.evaluation.word_options import TableOptions, WordOptions
from gpt2kit.evaluation.words import Meter, words
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import BPETokenizer, CharTokenizer

PATH = Path("t.csv")
TEXTS = ["The old man", "the boat.", "", "中文 e\u0301 👩‍🚀", "barn fell"]


def cut(table: Table, n: int) -> list[Table]:
    """Return a table in batches of n rows."""
    return [
        Table(table.columns, table.rows[start : start + n], PATH, first=start + 1)
        for start in range(0, len(table.rows), n)
    ]


def run(
    model: GPT2, tokenizer: Any, tables: Sequence[Table], how: TableOptions, **options: Any
) -> tuple[list[dict[str, Any]], Tally]:
    measured = WordOptions(**options)
    tally = Tally()
    meters = {"m": Meter(model, tokenizer, measured)}
    found = list(scored(lambda: iter(tables), meters, how, measured, tally=tally))
    rows = [dict(zip(table.columns, row, strict=True)) for table in found for row in table.rows]
    return rows, tally


def words_table(seed: int) -> Table:
    """A table with a word in each row, shuffled; some cells are blank."""
    rows = [
        [str(item), str(n), word, f"rt {item} {n}"]
        for item, text in enumerate(TEXTS * 3)
        for n, word in enumerate(f"{text}  ".split(" "))
    ]
    random.Random(seed).shuffle(rows)
    return Table(("item", "n", "word", "rt"), rows, PATH)


@pytest.mark.parametrize("unit", ["word", "token"])
def test_words_in_any_order_and_batches_of_any_size_have_the_figures_of_their_texts(
    unit: Any, tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    how = TableOptions(words="word", by="item", order="n", unit=unit)
    table = words_table(1)
    rows, tally = run(tiny_model, small_bpe, cut(table, 7), how, top=2)
    assert [
        [row[name] for name in table.columns] for row in rows if row.get("token_n", 1) == 1
    ] == [row for row in table.rows if unit == "word" or row[2].strip()] or unit == "token"
    expected = {
        (str(item), str(n)): word
        for item, text in enumerate(TEXTS * 3)
        for n, word in zip(
            [n for n, cell in enumerate(text.split(" ")) if cell],
            words(tiny_model, small_bpe, text, options=WordOptions(top=2))[0],
            strict=True,
        )
    }
    assert tally.rows == len(table.rows)
    assert tally.texts == 12
    measured = [row for row in rows if row.get("flag") != "empty" and row["surprisal"] is not None]
    if unit == "word":
        assert len(rows) == len(table.rows)
        assert tally.units == len(expected) == len(measured)
    for row in measured:
        word = expected[row["item"], row["n"]]
        figure: Any = word if unit == "word" else word.tokens[row["token_n"] - 1]
        assert row["surprisal"] == pytest.approx(figure.surprisal, rel=1e-5)
        assert row["rank"] in range(figure.rank - 1, figure.rank + 2)
        token: Any = word.tokens[0] if unit == "word" else figure
        assert row["top_2"] == token.top[1][0]
        assert row["top_2_p"] == pytest.approx(token.top[1][1], rel=1e-4)


def test_a_table_is_read_scored_and_given_on_a_batch_at_a_time(
    tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    # The whole table and all results were in memory: a million rows took gigabytes.
    given = 0

    def endless() -> Iterator[Table]:
        nonlocal given
        while True:
            yield Table(("id", "t"), [[n, "The old"] for n in range(50)], PATH, first=given + 1)
            given += 50

    measured = WordOptions()
    how = TableOptions(text="t", unit="text")
    tables = scored(endless, {"m": Meter(tiny_model, small_bpe, measured)}, how, measured)
    for number in range(1, 6):
        assert len(next(tables).rows) == 50
        assert given == 50 * (number - 1)


def test_a_row_that_cannot_be_measured_gets_an_error_and_stops_no_other(
    letters: tuple[GPT2, CharTokenizer],
) -> None:
    model, tokenizer = letters
    lines = ['{"t": "abc"}', "nothing", '{"t": ["x"]}', '{"t": "a?b"}', '{"u": 1}', '{"t": "cab"}']
    data = "\n".join(lines).encode()

    def read(strict: bool = False) -> list[Table]:
        return list(read_batches(PATH, file=io.BytesIO(data), format="jsonl", strict=strict))

    rows, tally = run(model, tokenizer, read(), TableOptions(text="t", unit="text"))
    assert [row["n_tokens"] for row in rows] == [3, None, None, None, None, 3]
    errors = [row["error"] for row in rows]
    assert errors[1].startswith("line 2 is not valid JSON")
    assert errors[2] == '["x"] is no text'
    assert "'?'" in errors[3]
    assert rows[4]["flag"] == "empty"
    assert (tally.errors, tally.texts, tally.rows) == (3, 2, 6)
    rows, _ = run(model, tokenizer, read(), TableOptions(text="t"))  # of words
    assert [row["word"] for row in rows] == ["abc", None, None, "a?b", "cab"]

    stop = TableOptions(text="t", unit="text", on_error="stop")
    with pytest.raises(CorpusError, match=r"row 1: \[1\] is no text"):
        run(model, tokenizer, [Table(("t",), [[[1]], ["a"]], PATH)], stop)
    with pytest.raises(TokenizerError, match=r"row 1: .*'\?'"):
        run(model, tokenizer, [Table(("t",), [["a?"]], PATH)], stop)
    assert "error" not in run(model, tokenizer, [Table(("t",), [["a"]], PATH)], stop)[0][0]


def test_a_word_that_cannot_be_spelled_leaves_its_text_without_figures(
    letters: tuple[GPT2, CharTokenizer],
) -> None:
    bad = [["ab", "1", "1"], ["?", "2", "1"], ["c", "2", "2"], ["c", "1", "x"], ["b", "1", "2"]]
    good = [["ab", "3", "1"], ["b", "3", "2"]]
    table = Table(("w", "i", "n"), bad + good, PATH)
    how = TableOptions(words="w", by="i", order="n")
    rows, tally = run(*letters, cut(table, 2), how)
    assert all(row["surprisal"] is None and row["error"] for row in rows[:5])
    assert [row["flag"] for row in rows[:5]] == [None, "unknown", None, None, None]
    assert rows[3]["error"] == "n is 'x', expected a number"
    assert not any(row["error"] for row in rows[5:])
    assert rows[5]["flag"] == "no-context"  # this vocabulary has no mark before a text
    assert rows[6]["surprisal"] > 0
    assert (tally.errors, tally.texts) == (5, 1)


def of_letters(text: str) -> tuple[GPT2, CharTokenizer]:
    """A model whose vocabulary is the characters of a text."""
    tokenizer = CharTokenizer.from_text(text)
    config = GPT2Config(n_vocab=tokenizer.n_vocab, n_ctx=16, n_embd=8, n_head=2, n_layer=1)
    return make_model(config), tokenizer


@pytest.fixture(scope="module")
def letters() -> tuple[GPT2, CharTokenizer]:
    return of_letters("abc ")


UNITS: list[tuple[dict[str, Any], tuple[str, ...], list[Any]]] = [
    ({"text": "t", "unit": "text"}, ("a a?b c",), ["unknown"]),
    ({"text": "t"}, ("a a?b c",), [None, "unknown", None]),
    ({"context": "t", "target": "u"}, ("a", "?b"), ["unknown"]),
    ({"context": "t", "target": "u"}, ("?", "ab"), [None]),
]


@pytest.mark.parametrize(("how", "row", "flags"), UNITS)
def test_a_word_with_what_the_vocabulary_lacks_is_flagged(
    how: dict[str, Any], row: Sequence[str], flags: list[Any], letters: tuple[GPT2, CharTokenizer]
) -> None:
    # There was an error for the whole text alone, and one row in place of one for each word.
    rows, _ = run(*letters, [Table(("t", "u")[: len(row)], [row], PATH)], TableOptions(**how))
    assert [each["flag"] for each in rows] == flags
    assert all("'?'" in each["error"] and each["n_tokens"] is None for each in rows)


@pytest.mark.parametrize("unit", ["word", "token", "text"])
def test_a_text_that_one_model_cannot_spell_has_the_figures_of_the_others(
    unit: Any, letters: tuple[GPT2, CharTokenizer]
) -> None:
    # No model had figures then, and the message did not say which one could not spell it.
    more = of_letters("abc ?")
    measured = WordOptions(top=1)
    meters = {name: Meter(*each, measured) for name, each in (("few", letters), ("more", more))}
    how = TableOptions(text="t", unit=unit)
    texts = ["ab", "ab a?"] if unit != "token" else ["ab a?"]  # tokens have other ids there
    table = Table(("t",), [[text] for text in texts], PATH)
    (found,) = scored(lambda: iter([table]), meters, how, measured)
    rows = [dict(zip(found.columns, row, strict=True)) for row in found.rows]
    alone, _ = run(*more, [table], how, top=1)
    assert [row["surprisal_more"] for row in rows] == [row["surprisal"] for row in alone]
    assert [row["top_1_more"] for row in rows] == [row["top_1"] for row in alone]
    bad = [row for row in rows if row["error"]]
    assert [row["surprisal_few"] for row in bad] == [None] * len(bad)
    assert len(bad) == {"word": 2, "token": 5, "text": 1}[unit]
    assert all(row["error"].startswith("few: the character '?'") for row in bad)
    if unit != "token":
        assert bad[-1]["flag_few"] == "unknown"
        assert bad[-1]["flag_more"] in (None, "no-context")
    with pytest.raises(TokenizerError, match=r"row \d: few: the character"):
        list(scored(lambda: iter([table]), meters, TableOptions(**vars(how) | STOP), measured))


STOP = {"on_error": "stop"}


class Counting(CharTokenizer):
    """Counts the texts that it encodes."""

    encoded = 0

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        self.encoded += 1
        return super().encode(text, special=special)


def test_a_text_that_many_subjects_have_read_is_measured_once(
    letters: tuple[GPT2, CharTokenizer],
) -> None:
    # Each subject's copy was measured: with a hundred subjects, a hundred times the work.
    tokenizer = Counting(letters[1].tokens)
    rows = [
        [str(subject), text, str(n), word]
        for subject in range(350)
        for text in ("ab ca b", "c ba cab")
        for n, word in enumerate(text.split())
    ]
    random.Random(1).shuffle(rows)
    table = Table(("subject", "item", "n", "word"), rows, PATH)
    how = TableOptions(words="word", by="subject, item", order="n")
    found, tally = run(letters[0], tokenizer, cut(table, 900), how)
    assert tokenizer.encoded <= 3  # 4,096 rows are measured together
    assert tally.texts == 700
    figures = {(row["item"], row["n"], round(row["surprisal"] or 0, 4)) for row in found}
    assert len(figures) == 6


def test_a_key_that_only_the_first_rows_have_is_an_empty_text_later(
    tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    data = "".join(json.dumps(row) + "\n" for row in [{"t": "The"}, {"t": "old"}, {"id": 3}])
    tables = list(read_batches(PATH, file=io.BytesIO(data.encode()), format="jsonl", rows=2))
    rows, _ = run(tiny_model, small_bpe, tables, TableOptions(text="t", unit="text"))
    assert [row["flag"] for row in rows] == [None, None, "empty"]
    assert [row.get("id") for row in rows] == [None, None, 3]
    with pytest.raises(CorpusError, match="no column 'text'"):
        run(tiny_model, small_bpe, tables, TableOptions(text="text"))


def test_a_thousand_texts_of_all_lengths_have_the_figures_that_each_has_alone(
    tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    draw = random.Random(3)
    alphabet = ["The ", "old ", "é", "e\u0301", "中文", "👩‍🚀", " ", "  ", ".", '"', "\t", "\u00a0"]
    texts = ["".join(draw.choices(alphabet, k=draw.randint(0, 12))) for _ in range(300)]
    texts += [" \t ", "old " * 300]
    table = Table(("t",), [[text] for text in texts], PATH)
    rows, tally = run(tiny_model, small_bpe, cut(table, 64), TableOptions(text="t"))
    some = [0, 7, 150, 299, 300, 301]
    for number in some:
        own = [row for row in rows if row["text_n"] == number + 1]
        alone = words(tiny_model, small_bpe, texts[number])[0]
        assert [row["word"] for row in own] == [word.text for word in alone]
        assert [row["surprisal"] for row in own] == pytest.approx(
            [word.surprisal for word in alone], rel=1e-4
        )
    assert tally.units == sum(len(text.split(" ")) > 0 and row_count(text) for text in texts)


def row_count(text: str) -> int:
    """Return how many words a text has: white space that is ASCII separates them."""
    return len([word for word in text.replace("\t", " ").split(" ") if word])
