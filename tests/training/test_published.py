"""What is known of a published model that is not on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2kit import store
from gpt2kit.checkpoints.load import write_model
from gpt2kit.checkpoints.vocabularies import gpt2_vocabulary
from gpt2kit.config import SIZES, GPT2Config
from gpt2kit.errors import CheckpointNotFoundError, TokenizerError
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import Tokenizer, identity
from gpt2kit.tokenizers.learn import learn_bpe
from gpt2kit.training.published import RoughTokenizer, is_here, published_config


def test_a_size_and_its_aliases_have_the_published_shape() -> None:
    assert published_config("gpt2-xl") == published_config("1558M") == SIZES["1558M"]
    assert published_config("somebody/elses-model") is None


def test_a_rough_tokenizer_gives_as_many_ids_as_english_would_have() -> None:
    rough = RoughTokenizer()
    assert isinstance(rough, Tokenizer)
    assert len(rough.encode("x" * 4400)) == 1000
    assert rough.n_vocab == GPT2Config().n_vocab
    assert identity(rough)
    with pytest.raises(TokenizerError, match="only an estimate"):
        rough.save(Path("anywhere"))


def test_a_vocabulary_of_another_size_is_not_taken_for_gpt2s() -> None:
    assert gpt2_vocabulary() is None
    folder = store.weights_dir() / "small"
    folder.mkdir(parents=True)
    tokenizer = learn_bpe(["some text, some more text"], 260)
    write_model(folder, GPT2(GPT2Config(n_vocab=260, n_embd=8, n_head=1, n_layer=1)), tokenizer)
    assert gpt2_vocabulary() is None


def test_a_published_model_may_be_elsewhere_and_others_must_be_here() -> None:
    assert not is_here("355M")
    with pytest.raises(CheckpointNotFoundError, match="no-such-model"):
        is_here("no-such-model")
