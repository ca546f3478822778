"""Examples packed into rows, and the rows of each step."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from training_builders import TOKENIZER

from gpt2kit.data.example_rows import NOTHING, ExampleCorpus, load_examples, pack
from gpt2kit.data.examples import Example, Examples
from gpt2kit.errors import CorpusError
from gpt2kit.tokenizers import BPETokenizer, Tokenizer

PAIRS = [Example(f"nel {word} ", word[::-1]) for word in ("mezzo", "vita", "selva", "via", "cosa")]


def corpus(
    pairs: list[Example],
    *,
    val: int = 1,
    labels: tuple[str, ...] = (),
    tokenizer: Tokenizer = TOKENIZER,
    **how: Any,
) -> ExampleCorpus:
    examples = Examples(tuple(pairs), " ", labels, (Path("pairs.jsonl"),), 0)
    return load_examples(examples, tokenizer, (pairs[val:], pairs[:val]), **how)


def test_a_completion_is_predicted_to_its_end_and_its_prompt_is_not(
    small_bpe: BPETokenizer,
) -> None:
    (encoded,) = corpus([Example("ab ", "cd")], val=0, tokenizer=small_bpe).train
    prompt, completion = small_bpe.encode("ab "), [*small_bpe.encode("cd"), small_bpe.stop_id]
    assert encoded.ids.tolist() == (prompt + completion)[:-1]
    assert encoded.targets.tolist() == [NOTHING] * (len(prompt) - 1) + completion
    assert encoded.n_predicted == len(completion)


def test_without_a_mark_of_the_end_a_completion_ends_with_a_newline() -> None:
    (encoded,) = corpus([Example("nel ", "via")], val=0).train
    assert encoded.targets[-4:].tolist() == TOKENIZER.encode("via\n")


def test_an_empty_prompt_begins_as_a_new_text_does(small_bpe: BPETokenizer) -> None:
    (encoded,) = corpus([Example("", "cd")], val=0, tokenizer=small_bpe).train
    assert encoded.ids[0] == small_bpe.stop_id
    with pytest.raises(CorpusError, match="a prompt is empty, and the vocabulary has no mark"):
        corpus([Example("", "via")], val=0)


def test_rows_hold_whole_examples_each_from_position_0() -> None:
    some = corpus(PAIRS, val=0)
    n_rows = some.epoch_tokens(32) // 32
    assert n_rows == 3  # of 15, 13, 15, 11 and 13 tokens, any two fit into a row, and no three
    rows = some.batch("train", 0, block_size=32, batch_size=n_rows, seed=0, shuffle=False)
    assert rows.shape == (3, 3, 32)
    found = []
    for ids, targets, positions in rows:
        starts = [*(positions == 0).nonzero().flatten().tolist(), 32]
        for start, end in pairwise(starts):
            if (targets[start:end] != NOTHING).any():  # the others fill up the row
                assert positions[start:end].tolist() == [*range(end - start)]
                found.append((ids[start:end].tolist(), targets[start:end].tolist()))
    assert sorted(found) == sorted(
        (each.ids.tolist(), each.targets.tolist()) for each in some.train
    )


def test_packing_fills_the_row_with_the_least_room() -> None:
    assert pack({0: 5, 1: 8, 2: 2, 3: 5, 4: 3}, 10) == [[0, 3], [1, 2], [4]]


def test_what_a_row_predicts_is_the_mean_over_all_rows() -> None:
    some = corpus([*PAIRS, Example("nel mezzo del cammin di nostra ", "via")], val=0)
    n_rows = some.epoch_tokens(40) // 40
    rows = some.batch("train", 0, block_size=40, batch_size=n_rows, seed=0)
    mean = int((rows[:, 1] != NOTHING).sum()) / len(rows)
    assert mean <= some.predicted_in_row(40) < mean + 1


def test_a_pass_has_every_row_once_in_another_order_for_each_seed_and_pass() -> None:
    some = corpus([Example(f"nel {'o' * n} ", "via") for n in range(1, 12)], val=0)
    n_rows = some.epoch_tokens(24) // 24
    assert n_rows > 6

    def rows(first: int, seed: int) -> list[list[int]]:
        steps = [
            some.batch("train", step, block_size=24, batch_size=1, seed=seed)
            for step in range(first, first + n_rows)
        ]
        return [batch[0, 0].tolist() for batch in steps]

    first, second, other = rows(0, 0), rows(n_rows, 0), rows(0, 1)
    assert sorted(first) == sorted(second) == sorted(other)
    assert first != second
    assert first != other
    assert rows(0, 0) == first


def test_processes_share_the_rows_of_a_step() -> None:
    some = corpus(PAIRS)
    how: dict[str, Any] = {"block_size": 16, "batch_size": 4, "seed": 3}
    whole = some.batch("train", 5, **how)
    parts = [some.batch("train", 5, **how, rank=rank, world_size=2) for rank in (0, 1)]
    assert torch.equal(torch.stack(parts, 1).flatten(0, 1), whole)


def test_an_example_that_is_too_long_loses_the_beginning_of_its_prompt() -> None:
    some = corpus([Example("nel mezzo del cammin ", "via")], val=0)
    assert (some.shortened(8), some.left_out(8), some.shortened(64)) == (1, 0, 0)
    ids, targets, _ = some.batch("train", 0, block_size=8, batch_size=1, seed=0)[0].tolist()
    assert TOKENIZER.decode(ids) == "mmin via"
    assert targets == [NOTHING] * 4 + TOKENIZER.encode("via\n")


def test_an_example_whose_completion_is_too_long_is_left_out() -> None:
    some = corpus([Example("nel ", "via"), Example("nel ", "mezzo del cammin")], val=0)
    assert (some.left_out(8), some.shortened(8)) == (1, 0)
    assert some.epoch_tokens(8) == 8
    with pytest.raises(CorpusError, match="no example of the train split .* larger --block_size"):
        some.epoch_tokens(3)


def test_all_validation_rows_are_measured_or_evenly_spaced_ones() -> None:
    some = corpus(PAIRS * 4, val=8)
    every = torch.cat([*some.eval_windows("val", 16, batch_size=3)])
    assert len(every) == 8
    few = torch.cat([*some.eval_windows("val", 16, batch_size=3, most_tokens=64)])
    assert torch.equal(few, every[::2])
    assert len(torch.cat([*some.eval_windows("train", 16, most_tokens=64)])) == 4
    assert [*corpus(PAIRS, val=0).eval_windows("train", 16)] == []


def test_a_head_predicts_the_label_after_the_last_token_of_the_text() -> None:
    pairs = [Example("nel mezzo", "b"), Example("via", "a")]
    some = corpus(pairs, val=0, labels=("a", "b"), with_head=True)
    assert [each.targets.tolist() for each in some.train] == [[NOTHING] * 8 + [1], [-100] * 2 + [0]]
    assert [TOKENIZER.decode(each.ids.tolist()) for each in some.train] == ["nel mezzo", "via"]


def test_a_label_of_the_validation_table_alone_is_refused() -> None:
    examples = Examples((Example("via", "a"),), "", ("a",), (Path("a.csv"),), 0)
    other = Examples((Example("via", "c"),), "", ("c",), (Path("b.csv"),), 0)
    parts = [*examples.examples], [*other.examples]
    with pytest.raises(CorpusError, match=r"b.csv: the label 'c' is not in a.csv"):
        load_examples(examples, TOKENIZER, parts, val=other, with_head=True)


def test_the_hash_tells_prompt_and_completion_labels_and_split_apart() -> None:
    one = corpus([Example("nel via", "via"), Example("via", "via")])
    others = [
        corpus([Example("nel ", "viavia"), Example("via", "via")]),
        corpus([Example("nel via", "via"), Example("via", "via")], val=0),
        corpus([Example("nel via", "via"), Example("via", "via")], labels=("via",), with_head=True),
    ]
    assert len({each.sha256 for each in (one, *others)}) == 4


def test_by_default_rows_hold_every_example_and_steps_have_about_eight() -> None:
    some = corpus([Example("nel mezzo del cammin ", "via")] * 64, val=0)
    assert some.usual_block_size(16) == 24
    assert some.usual_block_size(256) == 256
    assert some.usual_batch_size(256, 8) == 1
    assert some.usual_batch_size(24, 8) == 8
