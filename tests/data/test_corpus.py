"""Corpora: the split, batches that depend on seed and step alone, and files of ids."""

from __future__ import annotations

import itertools
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_builders import byte_tokenizer

from gpt2kit.data.corpus import Corpus, CorpusReport, Split, load_corpus
from gpt2kit.data.texts import read_texts, split_documents
from gpt2kit.errors import ConfigError, CorpusError
from gpt2kit.tokenizers import CharTokenizer, Tokenizer, WordTokenizer, load_tokenizer

SPLITS: tuple[Split, Split] = ("val", "train")
TEXT = "".join(f"verso numero {n} è scritto qui\n" for n in range(60))


def load(
    tmp_path: Path, text: str = TEXT, tokenizer: Tokenizer | None = None, **options: Any
) -> Corpus:
    (tmp_path / "book.txt").write_bytes(text.encode())
    return load_corpus(tmp_path / "book.txt", tokenizer or CharTokenizer.from_text(text), **options)


# --- the split ------------------------------------------------------------------------------------


def test_both_parts_together_are_the_text(tmp_path: Path) -> None:
    tokenizer = CharTokenizer.from_text(TEXT)
    corpus = load(tmp_path)
    train, val = (
        tokenizer.decode(corpus.train_ids.tolist()),
        tokenizer.decode(corpus.val_ids.tolist()),
    )
    assert train + val == TEXT
    assert train.endswith("\n")
    assert 0.07 < len(val) / len(TEXT) <= 0.1
    assert corpus.train_ids.dtype == np.uint16


def test_every_tokenizer_has_the_same_text_held_out(tmp_path: Path) -> None:
    tokenizers: list[Tokenizer] = [
        CharTokenizer.from_text(TEXT),
        WordTokenizer.from_text(TEXT),
        byte_tokenizer(),
    ]
    held_out = {
        tokenizer.decode(load(tmp_path, tokenizer=tokenizer).val_ids.tolist())
        for tokenizer in tokenizers
    }
    assert len(held_out) == 1


@pytest.mark.parametrize(
    ("documents", "fraction", "expected"),
    [
        (["a\n" * 50], 0.25, (["a\n" * 38], ["a\n" * 12])),  # the end of a line
        (
            ["abcde " * 20],
            0.25,
            (["abcde " * 15 + "abcde"], [" abcde" * 4 + " "]),
        ),  # the end of a word
        (["a" * 100], 0.25, (["a" * 75], ["a" * 25])),
        (
            ["a" * 40, "b" * 42, "c" * 18],
            0.2,
            (["a" * 40, "b" * 42], ["c" * 18]),
        ),  # the end of a document
        (["a" * 50, "b" * 50], 0.5, (["a" * 50], ["b" * 50])),
        (["abc"], 0.0, (["abc"], [])),
    ],
)
def test_the_cut_is_at_a_good_place(
    documents: list[str], fraction: float, expected: tuple[list[str], list[str]]
) -> None:
    assert split_documents(documents, fraction) == expected


def test_no_character_is_lost_wherever_the_cut_falls() -> None:
    generator = random.Random(0)
    for _ in range(300):
        documents = [
            "".join(generator.choice("ab \n") for _ in range(generator.randint(1, 40)))
            for _ in range(generator.randint(1, 4))
        ]
        fraction = generator.random()
        train, val = split_documents(documents, fraction)
        assert "".join(train + val) == "".join(documents)
        assert (
            0.7 * fraction * len("".join(documents)) - 1
            <= len("".join(val))
            <= fraction * len("".join(documents)) + 1
        )


def test_another_file_can_be_the_validation_text(tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("verso nuovo")
    tokenizer = CharTokenizer.from_text(TEXT)
    corpus = load(tmp_path, val=tmp_path / "val.txt")
    assert tokenizer.decode(corpus.train_ids.tolist()) == TEXT
    assert tokenizer.decode(corpus.val_ids.tolist()) == "verso nuovo"
    assert corpus.report.val_characters == 11


def test_a_text_too_short_to_hold_anything_out_is_trained_on_whole(tmp_path: Path) -> None:
    corpus = load(tmp_path, "abcdef")
    assert (len(corpus.train_ids), len(corpus.val_ids)) == (6, 0)
    assert list(corpus.eval_windows("val", 4)) == []


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_share_that_cannot_be_held_out_is_refused(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(ConfigError, match="val_fraction"):
        load(tmp_path, val_fraction=fraction)


# --- batches --------------------------------------------------------------------------------------


def counting(n: int, n_val: int = 0) -> Corpus:
    """A corpus whose ids are their positions."""
    ids = np.arange(n + n_val, dtype=np.uint16)
    report = CorpusReport([], 1, n, n_val, n, n_val, n, n_val, None)
    return Corpus(ids[:n], ids[n:], report, "")


def windows(corpus: Corpus, steps: range, **options: Any) -> list[list[int]]:
    defaults: dict[str, Any] = {"block_size": 10, "batch_size": 4, "seed": 1}
    return [
        row
        for step in steps
        for row in corpus.batch("train", step, **(defaults | options)).tolist()
    ]


def test_a_batch_is_whole_windows_of_the_text() -> None:
    corpus = counting(105)
    batch = corpus.batch("train", 0, block_size=10, batch_size=6, seed=0)
    assert (batch.shape, batch.dtype) == ((6, 11), torch.int64)
    for row in batch.tolist():
        assert row == list(range(row[0], row[0] + 11))


@pytest.mark.parametrize("n", [21, 22, 100, 101, 105, 110, 111])
def test_each_token_is_predicted_once_in_an_epoch_and_more_often_only_at_the_edges(n: int) -> None:
    corpus = counting(n)
    per_epoch = -(-(n - 1) // 10) + 1
    for epoch in range(20):
        rows = windows(corpus, range(epoch * per_epoch, (epoch + 1) * per_epoch), batch_size=1)
        predicted = Counter(token for row in rows for token in row[1:])
        assert set(predicted) == set(range(1, n))
        assert max(predicted.values()) <= 3
        assert all(predicted[token] == 1 for token in range(11, n - 20))


def test_epochs_are_cut_and_shuffled_anew() -> None:
    rows = windows(counting(1001), range(404), batch_size=1)
    epochs = [tuple(row[0] for row in rows[start : start + 101]) for start in range(0, 404, 101)]
    assert len({frozenset(starts) for starts in epochs}) > 1
    assert all(list(starts) != sorted(starts) for starts in epochs)


def test_the_order_depends_on_seed_and_step_alone() -> None:
    corpus = counting(500)
    expected = windows(corpus, range(30))
    assert windows(counting(500), range(20, 30)) == expected[80:]
    assert windows(corpus, range(20, 30)) == expected[80:]
    assert windows(corpus, range(30), seed=2) != expected
    assert windows(corpus, range(15), batch_size=8) == expected


def test_the_order_is_the_one_of_earlier_versions() -> None:
    """A change of it would let runs go on with other batches than they would have had."""
    assert [row[0] for row in windows(counting(200), range(6))][:12] == [
        81,
        151,
        11,
        171,
        181,
        131,
        31,
        111,
        161,
        61,
        41,
        141,
    ]


@pytest.mark.parametrize("n", [21, 100, 101, 105])
@pytest.mark.parametrize("stride", [None, 4])
@pytest.mark.parametrize("world_size", [1, 2])
def test_without_shuffling_the_windows_are_the_slices_of_the_text_in_order(
    n: int, stride: int | None, world_size: int
) -> None:
    text = list(range(n))
    slices = [text[start : start + 11] for start in range(0, n - 10, stride or 10)]
    if slices[-1][-1] != n - 1:
        slices.append(text[-11:])  # the end of the text is read, too
    found = [
        row
        for step in range(3 * len(slices))
        for pair in zip(
            *(
                windows(
                    counting(n),
                    range(step, step + 1),
                    shuffle=False,
                    stride=stride,
                    rank=rank,
                    world_size=world_size,
                )
                for rank in range(world_size)
            ),
            strict=True,
        )
        for row in pair
    ]
    assert found == slices * 12  # four windows a step


@pytest.mark.parametrize("stride", [1, 3, 10])
def test_shuffled_windows_with_a_stride_begin_that_far_apart(stride: int) -> None:
    corpus = counting(101)
    per_epoch = -(-90 // stride) + 2
    for epoch in range(5):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        starts = [row[0] for row in windows(corpus, steps, batch_size=1, stride=stride)]
        assert starts != sorted(starts)
        assert {b - a for a, b in itertools.pairwise(sorted(starts)[1:-2])} == {stride}
        assert (min(starts), max(starts)) == (0, 90)


@pytest.mark.parametrize("stride", [0, 11, -1])
def test_a_stride_that_would_leave_tokens_out_is_refused(stride: int) -> None:
    with pytest.raises(ConfigError, match=rf"stride is {stride}, expected from 1 to 10"):
        windows(counting(100), range(1), stride=stride)


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_a_batch_without_overlap(world_size: int) -> None:
    corpus = counting(300)
    for step in range(10):
        shares = [
            windows(corpus, range(step, step + 1), rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        assert sorted(itertools.chain(*shares)) == sorted(windows(corpus, range(step, step + 1)))


@pytest.mark.parametrize(("rank", "world_size"), [(0, 3), (2, 2), (-1, 2)])
def test_a_batch_that_cannot_be_shared_is_refused(rank: int, world_size: int) -> None:
    with pytest.raises(ConfigError, match="shared evenly"):
        windows(counting(300), range(1), rank=rank, world_size=world_size)


@pytest.mark.parametrize(
    ("n", "block_size", "fitted"),
    [(100, 10, 10), (21, 10, 10), (20, 10, 9), (5, 1024, 2), (2, 8, 1)],
)
def test_a_short_text_shrinks_the_window_to_two_of_them(
    n: int, block_size: int, fitted: int
) -> None:
    corpus = counting(n)
    assert corpus.fit_block_size(block_size) == fitted
    assert corpus.batch("train", 7, block_size=fitted, batch_size=2, seed=0).shape == (
        2,
        fitted + 1,
    )


def test_a_window_that_does_not_fit_is_an_error_that_says_which_does() -> None:
    with pytest.raises(
        CorpusError, match=r"train split has 10 tokens, .*--block_size of 4 or less"
    ):
        windows(counting(10), range(1))
    with pytest.raises(ConfigError, match="block_size is 0"):
        windows(counting(10), range(1), block_size=0)


@pytest.mark.parametrize("n_val", [2, 10, 11, 12, 31, 35])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_validation_windows_predict_each_token_once_and_in_order(
    n_val: int, batch_size: int
) -> None:
    corpus = counting(50, n_val)
    batches = list(corpus.eval_windows("val", 10, batch_size=batch_size))
    assert [token for batch in batches for row in batch.tolist() for token in row[1:]] == list(
        range(51, 50 + n_val)
    )
    assert [token for batch in batches for row in batch.tolist() for token in row[:-1]] == list(
        range(50, 49 + n_val)
    )
    assert all(len(batch) <= batch_size for batch in batches)


@pytest.mark.parametrize("n_train", [12, 30, 36, 200])
@pytest.mark.parametrize("most_tokens", [None, 20])
def test_the_training_text_is_measured_on_as_many_windows_of_the_same_lengths(
    n_train: int, most_tokens: int | None
) -> None:
    corpus = counting(n_train, 36)
    val, train = (
        list(corpus.eval_windows(split, 10, batch_size=2, most_tokens=most_tokens))
        for split in SPLITS
    )
    assert [batch.shape for batch in train] == [batch.shape for batch in val]
    rows = [row for batch in train for row in batch.tolist()]
    assert all(row == list(range(row[0], row[0] + len(row))) for row in rows)
    assert rows[0][0] == 0
    # Windows that began anywhere cut the lines that a text of equal lines has: a model that reads
    # it in order seemed to get worse on its training text.
    assert all(row[0] % 10 == 0 for row in rows)
    assert rows[-1][0] == (n_train - len(rows[-1])) // 10 * 10
    if most_tokens is None and n_train == 36:  # as long as the other: adjacent windows, too
        assert [row[0] for row in rows] == [0, 10, 20, 30]
    if most_tokens is None and n_train == 200:  # the last one predicts 5 tokens
        assert [row[0] for row in rows] == [0, 60, 120, 190]


# --- encoding -------------------------------------------------------------------------------------


def test_documents_are_separated_by_the_stop_id(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    corpus = load(tmp_path, "he<|endoftext|>ab", tokenizer, val_fraction=0)
    assert corpus.train_ids.tolist() == [256, 257, 97, 98]
    assert corpus.report.documents == 2


def test_the_marker_is_a_token_of_a_character_vocabulary_made_of_the_text(tmp_path: Path) -> None:
    text = read_texts([*(_written(tmp_path / f"{n}.txt", f"testo {n}") for n in range(3))])
    corpus = load_corpus(text, CharTokenizer.from_text(text.joined), val_fraction=0)
    assert np.count_nonzero(corpus.train_ids == len(set("testo 012"))) == 2


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_the_report_counts_what_was_read(tmp_path: Path) -> None:
    report = load(tmp_path, "a\r\nè\n" * 20, val_fraction=0.5).report
    assert (report.characters, report.bytes, report.tokens, report.documents) == (100, 120, 100, 1)
    assert (report.val_characters, report.val_bytes) == (report.val_tokens, 60)
    assert report.characters_per_token == 1
    assert report.oddities is not None
    assert report.oddities.crlf == 20


def test_sha256_changes_with_text_split_and_tokenizer(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    corpora = [
        load(tmp_path, tokenizer=tokenizer),
        load(tmp_path, TEXT + ".", tokenizer),
        load(tmp_path, tokenizer=tokenizer, val_fraction=0.2),
        load(tmp_path),
    ]
    assert len({corpus.sha256 for corpus in corpora}) == 4
    assert load(tmp_path, tokenizer=byte_tokenizer()).sha256 == corpora[0].sha256


def test_a_single_token_is_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"book\.txt: 1 token, expected at least two"):
        load(tmp_path, "a")


# --- the cache ------------------------------------------------------------------------------------


class Counted(CharTokenizer):
    """A tokenizer that counts what it encodes."""

    encoded = 0

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        type(self).encoded += len(text)
        return super().encode(text, special=special)


def test_a_cached_text_is_encoded_once(tmp_path: Path) -> None:
    tokenizer = Counted(CharTokenizer.from_text(TEXT).tokens)
    first = load(tmp_path, tokenizer=tokenizer, cache=tmp_path / "cache")
    done = Counted.encoded
    second = load(tmp_path, tokenizer=tokenizer, cache=tmp_path / "cache")
    assert Counted.encoded == done == len(TEXT)
    assert isinstance(second.train_ids, np.memmap)
    assert (
        first.train_ids.tolist() + first.val_ids.tolist()
        == second.train_ids.tolist() + second.val_ids.tolist()
    )
    assert first.sha256 == second.sha256 == load(tmp_path, tokenizer=tokenizer).sha256
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".npy", ".npy"]


def test_a_damaged_cache_is_made_again(tmp_path: Path) -> None:
    expected = load(tmp_path, cache=tmp_path / "cache").train_ids.tolist()
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    assert load(tmp_path, cache=tmp_path / "cache").train_ids.tolist() == expected


def test_a_cache_that_cannot_be_written_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(CorpusError, match="cannot write the encoded text: No space left on device"):
        load(tmp_path, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


# --- files of ids ---------------------------------------------------------------------------------


def test_files_of_ids_are_mapped_and_split(tmp_path: Path) -> None:
    ids = np.arange(200, dtype=np.uint16) % 250
    ids[[50, 100]] = 257
    np.save(tmp_path / "ids.npy", ids)
    (tmp_path / "ids.bin").write_bytes(ids.astype("<u2").tobytes())
    for name in ("ids.npy", "ids.bin"):
        corpus = load_corpus(tmp_path / name, byte_tokenizer())
        assert isinstance(corpus.train_ids, np.memmap)
        assert (corpus.train_ids.tolist(), corpus.val_ids.tolist()) == (
            ids[:180].tolist(),
            ids[180:].tolist(),
        )
        assert (corpus.report.documents, corpus.report.bytes, corpus.report.characters) == (
            3,
            198,
            None,
        )
    corpus = load_corpus(tmp_path / "ids.npy", byte_tokenizer(), val=tmp_path / "ids.bin")
    assert (len(corpus.train_ids), len(corpus.val_ids)) == (200, 200)


@pytest.mark.parametrize("kept", [0, 10, 200])
def test_a_file_that_is_cut_off_while_it_is_used_is_an_error(tmp_path: Path, kept: int) -> None:
    # Reading beyond the new end killed the process with signal 7, and what another program wrote
    # into the file was trained on.
    path = tmp_path / "a.bin"
    path.write_bytes(b"\1\0" * 100_000)
    corpus = load_corpus(path, byte_tokenizer())
    corpus.batch("train", 0, block_size=10, batch_size=2, seed=0)
    with path.open("r+b") as file:
        file.truncate(kept)
    with pytest.raises(CorpusError, match="another program has changed this file"):
        corpus.batch("train", 1, block_size=10, batch_size=2, seed=0)
    with pytest.raises(CorpusError, match="another program has changed this file"):
        list(corpus.eval_windows("val", 10))


def test_a_file_that_is_replaced_or_deleted_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"\1\0" * 1000)
    corpus = load_corpus(path, byte_tokenizer())
    (tmp_path / "new").write_bytes(b"\2\0" * 10)
    (tmp_path / "new").replace(path)
    assert set(
        corpus.batch("train", 0, block_size=10, batch_size=2, seed=0).flatten().tolist()
    ) == {1}
    path.unlink()
    assert set(
        corpus.batch("train", 1, block_size=10, batch_size=2, seed=0).flatten().tolist()
    ) == {1}


def test_a_file_of_ids_cannot_be_validated_with_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\1\0" * 10)
    with pytest.raises(CorpusError, match=r"book\.txt: expected a \.npy or \.bin"):
        load_corpus(tmp_path / "a.bin", byte_tokenizer(), val=tmp_path / "book.txt")


# --- the real ones --------------------------------------------------------------------------------


@pytest.mark.skipif(
    "GPT2KIT_TEST_DATA" not in os.environ, reason="needs the corpora in $GPT2KIT_TEST_DATA"
)
@pytest.mark.parametrize(
    ("name", "n_tokens"),
    [("dante-commedia", 226_297), ("tinyshakespeare", 338_025), ("the-verdict", 5_145)],
)
def test_a_real_book_has_the_tokens_of_openai_s_encoder(name: str, n_tokens: int) -> None:
    data = Path(os.environ["GPT2KIT_TEST_DATA"])
    tokenizer = load_tokenizer(data / "bpe")
    assert tokenizer is not None
    corpus = load_corpus(data / f"corpora/{name}.txt", tokenizer)
    assert corpus.report.tokens == n_tokens
    assert corpus.report.oddities is not None
    assert corpus.report.oddities.notes == []
