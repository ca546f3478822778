"""Surprisal: which tokens a window scores, and that batches, padding and pieces change nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN, make_model

from gpt2kit.checkpoints.load import load
from gpt2kit.config import GPT2Config
from gpt2kit.engine.decoder import Decoder
from gpt2kit.errors import ConfigError, ContextLengthError, GenerationError
from gpt2kit.evaluation import surprisal
from gpt2kit.evaluation.surprisal import Window, by_length, surprisals, windows
from gpt2kit.model import GPT2


def random_ids(n: int, *, seed: int = 0) -> list[int]:
    return torch.randint(0, 512, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def plain(model: GPT2, window: Window) -> torch.Tensor:
    """Return the surprisals of a window's scored tokens as one would write them down."""
    with torch.inference_mode():
        logprobs = model(torch.tensor([window.ids])[:, :-1])[0].double().log_softmax(-1)
    return torch.tensor([-logprobs[place, token] for place, token in enumerate(window.ids[1:])])[
        -window.scored :
    ]


@pytest.mark.parametrize("n", [2, 3, 9, 10, 11, 40, 41])
@pytest.mark.parametrize("stride", [1, 3, 5, 10])
def test_windows_score_every_token_but_the_first_once(n: int, stride: int) -> None:
    ids = list(range(n))
    cut = list(windows(ids, n_ctx=10, stride=stride))
    assert [token for window in cut for token in window.ids[-window.scored :]] == ids[1:]
    assert all(len(window.ids) <= 11 for window in cut)
    for window in cut[1:]:
        assert window.ids[0] % stride == 0
        assert (
            len(window.ids) - window.scored == 10 - stride + 1
        )  # so many tokens before the first that is scored


def test_one_token_or_none_has_no_windows() -> None:
    assert list(windows([7], n_ctx=10, stride=5)) == list(windows([], n_ctx=10, stride=5)) == []


@pytest.mark.parametrize("stride", [0, 11])
def test_a_stride_must_be_within_the_window(stride: int) -> None:
    with pytest.raises(
        ConfigError, match=f"stride is {stride}, expected from 1 to 10, the model's positions"
    ):
        list(windows([1, 2, 3], n_ctx=10, stride=stride))


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_batches_of_unequal_windows_give_what_each_gives_alone(
    tiny_model: GPT2, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        surprisal, "LOGITS_AT_ONCE", 5 * 512
    )  # five tokens at once, so that pieces end inside of windows
    work = [
        Window(random_ids(n, seed=n), scored)
        for n, scored in ((33, 32), (2, 1), (20, 3), (33, 1), (7, 6), (12, 12 - 1))
    ]
    for window, found, sorted_too in zip(
        work,
        surprisals(tiny_model, work, batch_size=batch_size),
        by_length(tiny_model, work, batch_size=batch_size),
        strict=True,
    ):
        assert torch.allclose(found.nats.double(), plain(tiny_model, window), atol=1e-5)
        assert torch.allclose(found.nats, sorted_too.nats, atol=1e-5)


def test_greedy_says_whether_the_token_is_the_likeliest(tiny_model: GPT2) -> None:
    ids = random_ids(10)
    with torch.inference_mode():
        best = int(tiny_model(torch.tensor([ids]))[0, -1].argmax())
    for token in (best, (best + 1) % 512):
        (found,) = surprisals(tiny_model, [Window([*ids, token], 1)])
        assert found.greedy.tolist() == [token == best]


def test_the_model_says_its_dtype_in_the_numbers() -> None:
    model = make_model(
        GPT2Config(n_vocab=512, n_ctx=32, n_embd=16, n_head=2, n_layer=2), dtype=torch.float64
    )
    (found,) = surprisals(model, [window := Window(random_ids(9), 8)])
    assert found.nats.dtype == torch.float64
    assert torch.allclose(found.nats, plain(model, window), atol=1e-12)


@pytest.fixture
def int8_model(tmp_path: Path) -> GPT2:
    """The golden model in int8, from a copy: int8 weights are kept beside the others."""
    return load(shutil.copytree(GOLDEN / "hf/safetensors", tmp_path / "model"), quantize="int8")[0]


def test_int8_weights_are_measured_as_they_generate(int8_model: GPT2) -> None:
    model = int8_model
    decoder = Decoder(model)
    if not decoder.scores_natively():
        pytest.skip("the native step was not compiled here")
    work = [
        Window(random_ids(n, seed=n), scored)
        for n, scored in ((25, 24), (2, 1), (20, 3), (25, 25 - 1))
    ]
    together = list(surprisals(model, work, batch_size=4))
    for window, found, alone in zip(
        work, together, surprisals(model, work, batch_size=1), strict=True
    ):
        assert torch.equal(found.nats, alone.nats)
        cache = model.new_cache()
        with torch.inference_mode():
            logits = torch.cat(
                [decoder.read(torch.tensor([[token]]), cache) for token in window.ids[:-1]]
            )
        expected = torch.nn.functional.cross_entropy(
            logits, torch.tensor(window.ids[1:]), reduction="none"
        )[-window.scored :]
        assert torch.allclose(found.nats, expected, atol=1e-5)


def test_int8_weights_are_measured_in_torch_too(
    int8_model: GPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = int8_model
    work = [Window(random_ids(20), 19), Window(random_ids(8), 3)]
    native = torch.cat([found.nats for found in surprisals(model, work)])
    monkeypatch.setenv("GPT2KIT_NATIVE", "0")
    assert not Decoder(model).scores_natively()
    # The step keeps keys and values in bfloat16, so the two are near each other, not equal.
    assert torch.allclose(
        torch.cat([found.nats for found in surprisals(model, work)]), native, atol=0.1
    )


def test_what_cannot_be_read_is_refused(tiny_model: GPT2) -> None:
    with pytest.raises(
        ContextLengthError,
        match="a window has 34 tokens; the model reads 32, so expected at most 33",
    ):
        list(surprisals(tiny_model, [Window(random_ids(34), 1)]))
    with pytest.raises(ConfigError, match="a window of 5 tokens scores 5; expected from 1 to 4"):
        list(surprisals(tiny_model, [Window(random_ids(5), 5)]))
    with pytest.raises(ConfigError, match="batch_size is 0"):
        list(surprisals(tiny_model, [Window(random_ids(5), 4)], batch_size=0))


def test_logits_that_are_no_numbers_are_an_error(tiny_model: GPT2) -> None:
    with torch.no_grad():
        tiny_model.ln_f.weight[0] = float("nan")  # type: ignore[operator]
    with pytest.raises(GenerationError, match="not finite"):
        list(surprisals(tiny_model, [Window(random_ids(5), 4)]))
