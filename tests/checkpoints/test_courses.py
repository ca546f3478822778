"""Weights as courses save them: their classes, rebuilt from the published shapes, and their logits.

Each class here has the names, shapes and computation of the program that it stands for, in our own
words and as short as possible.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import hub_state, write_hub
from torch import Tensor, nn

from gpt2kit.checkpoints.courses import LLMS_FROM_SCRATCH
from gpt2kit.checkpoints.load import build_model, load, open_checkpoint, write_checkpoint
from gpt2kit.checkpoints.unsaid import Unsaid
from gpt2kit.config import SIZES
from gpt2kit.errors import (
    CheckpointFormatError,
    CheckpointMismatchError,
    ConfigError,
    Gpt2KitWarning,
)
from gpt2kit.model import GPT2

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
V, T, C, H = 65, 16, 32, 4  # characters, positions, width, heads


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return causal attention of (B, …, T, D) queries, keys and values."""
    later = torch.ones(q.shape[-2], q.shape[-2]).triu(1).bool()
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    return scores.masked_fill(later, -torch.inf).softmax(-1) @ v


def heads(x: Tensor, n: int) -> Tensor:
    """Cut (B, T, C) into heads, (B, n, T, D)."""
    return x.view(*x.shape[:2], n, -1).transpose(1, 2)


def positions(ids: Tensor) -> Tensor:
    return torch.arange(ids.shape[1])


# --- LLMs-from-scratch ----------------------------------------------------------------------------


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = (nn.Parameter(torch.rand(width) + 0.5) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        var = x.var(-1, keepdim=True, unbiased=False)
        return self.scale * (x - x.mean(-1, keepdim=True)) / torch.sqrt(var + 1e-5) + self.shift


class TanhGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


class ScratchAttention(nn.Module):
    def __init__(self, width: int, n_ctx: int, n: int, bias: bool) -> None:
        super().__init__()
        self.n = n
        self.W_query = nn.Linear(width, width, bias=bias)
        self.W_key = nn.Linear(width, width, bias=bias)
        self.W_value = nn.Linear(width, width, bias=bias)
        self.out_proj = nn.Linear(width, width)
        self.register_buffer("mask", torch.ones(n_ctx, n_ctx).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads(f(x), self.n) for f in (self.W_query, self.W_key, self.W_value))
        return self.out_proj(attend(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class ScratchFeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 4 * width), TanhGELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


class ScratchBlock(nn.Module):
    def __init__(self, width: int, n_ctx: int, n: int, bias: bool) -> None:
        super().__init__()
        self.att = ScratchAttention(width, n_ctx, n, bias)
        self.ff = ScratchFeedForward(width)
        self.norm1, self.norm2 = Norm(width), Norm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.att(self.norm1(x))
        return x + self.ff(self.norm2(x))  # type: ignore[no-any-return]


class Scratch(nn.Module):
    """GPTModel of the book: separate queries, keys and values, and a head without a bias."""

    def __init__(
        self, n_vocab: int = V, width: int = C, n: int = H, layers: int = 2, bias: bool = False
    ) -> None:
        super().__init__()
        self.tok_emb, self.pos_emb = nn.Embedding(n_vocab, width), nn.Embedding(T, width)
        self.trf_blocks = nn.Sequential(*(ScratchBlock(width, T, n, bias) for _ in range(layers)))
        self.final_norm = Norm(width)
        self.out_head = nn.Linear(width, n_vocab, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.trf_blocks(self.tok_emb(ids) + self.pos_emb(positions(ids)))
        return self.out_head(self.final_norm(x))  # type: ignore[no-any-return]


# --- minGPT ---------------------------------------------------------------------------------------


class MinAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.register_buffer("bias", torch.ones(T, T).tril().view(1, 1, T, T))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads(part, H) for part in self.c_attn(x).split(C, 2))
        return self.c_proj(attend(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class MinBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(C), MinAttention(), nn.LayerNorm(C)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(C, 4 * C), "c_proj": nn.Linear(4 * C, C), "act": TanhGELU()}
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        mlp = self.mlp
        return x + mlp["c_proj"](mlp["act"](mlp["c_fc"](self.ln_2(x))))  # type: ignore[no-any-return]


class MinGPT(nn.Module):
    """minGPT's GPT: Hugging Face's names, nn.Linear's matrices, a head of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(V, C),
                "wpe": nn.Embedding(T, C),
                "h": nn.ModuleList(MinBlock() for _ in range(2)),
                "ln_f": nn.LayerNorm(C),
            }
        )
        self.lm_head = nn.Linear(C, V, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        part = self.transformer
        x = part["wte"](ids) + part["wpe"](positions(ids))
        for block in part["h"]:  # type: ignore[attr-defined]
            x = block(x)
        return self.lm_head(part["ln_f"](x))  # type: ignore[no-any-return]


# --- the lecture, and a ToyGPT --------------------------------------------------------------------


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.key, self.query, self.value = (nn.Linear(C, C // H, bias=False) for _ in range(3))
        self.register_buffer("tril", torch.ones(T, T).tril())

    def forward(self, x: Tensor) -> Tensor:
        return attend(self.query(x), self.key(x), self.value(x))


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head() for _ in range(H))
        self.proj = nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(torch.cat([head(x) for head in self.heads], -1))  # type: ignore[no-any-return]


class LectureFeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(C, 4 * C), nn.ReLU(), nn.Linear(4 * C, C), nn.Dropout(0.2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]


class LectureBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sa, self.ffwd = Heads(), LectureFeedForward()
        self.ln1, self.ln2 = nn.LayerNorm(C), nn.LayerNorm(C)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.sa(self.ln1(x))
        return x + self.ffwd(self.ln2(x))  # type: ignore[no-any-return]


class Lecture(nn.Module):
    """The last model of the lecture: matrices for each head, ReLU, a head with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.token_embedding_table = nn.Embedding(V, C)
        self.position_embedding_table = nn.Embedding(T, C)
        self.blocks = nn.Sequential(*(LectureBlock() for _ in range(2)))
        self.ln_f, self.lm_head = nn.LayerNorm(C), nn.Linear(C, V)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token_embedding_table(ids) + self.position_embedding_table(positions(ids))
        return self.lm_head(self.ln_f(self.blocks(x)))  # type: ignore[no-any-return]


class ToyAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(C, C, bias=False) for _ in range(3))
        self.proj = nn.Linear(C, C)
        self.register_buffer("mask", torch.ones(T, T).tril())

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads(f(x), H) for f in (self.query, self.key, self.value))
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class ToyBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = ToyAttention()
        self.ffn = nn.Sequential(
            nn.Linear(C, 4 * C), nn.ReLU(), nn.Linear(4 * C, C), nn.Dropout(0.3)
        )
        self.ln1, self.ln2 = nn.LayerNorm(C), nn.LayerNorm(C)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.ffn(self.ln2(x))  # type: ignore[no-any-return]


class Toy(nn.Module):
    """ToyGPT: as the lecture's, but all heads in one matrix; its three layers have four heads."""

    def __init__(self) -> None:
        super().__init__()
        self.token_embedding, self.position_embedding = nn.Embedding(V, C), nn.Embedding(T, C)
        self.blocks = nn.Sequential(*(ToyBlock() for _ in range(3)))
        self.ln_f, self.head = nn.LayerNorm(C), nn.Linear(C, V)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token_embedding(ids) + self.position_embedding(positions(ids))
        return self.head(self.ln_f(self.blocks(x)))  # type: ignore[no-any-return]


# --- equal logits ---------------------------------------------------------------------------------

COURSES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "LLMs-from-scratch": (Scratch, "LLMs-from-scratch"),
    "LLMs-from-scratch with biases": (lambda: Scratch(bias=True), "LLMs-from-scratch"),
    "minGPT": (MinGPT, "minGPT"),
    "the lecture": (Lecture, "Let's build GPT"),
    "ToyGPT": (Toy, "ToyGPT"),
}
UNSAID = Unsaid(n_head=H)


def made(course: str) -> nn.Module:
    """Return a model of a course whose weights are large enough that its tokens differ."""
    torch.manual_seed(1)
    model = COURSES[course][0]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def save(path: Path, content: Any, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def assert_same_logits(found: GPT2, expected: nn.Module) -> None:
    ids = torch.randint(0, V, (2, T), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(found(ids), expected(ids), rtol=0, atol=1e-5)


@FORMATS
@pytest.mark.parametrize("course", COURSES)
def test_the_logits_are_those_of_the_course(tmp_path: Path, course: str, zipped: bool) -> None:
    theirs = made(course)
    path = save(tmp_path / "some.name", theirs.state_dict(), zipped)
    checkpoint = open_checkpoint(path, unsaid=UNSAID)
    assert checkpoint.format == COURSES[course][1]
    assert_same_logits(build_model(checkpoint), theirs)


@pytest.mark.parametrize("course", COURSES)
def test_the_folder_that_it_is_converted_to_is_the_same_model(tmp_path: Path, course: str) -> None:
    theirs = made(course)
    checkpoint = open_checkpoint(save(tmp_path / "w.pth", theirs.state_dict()), unsaid=UNSAID)
    folder = tmp_path / "converted"
    folder.mkdir()
    write_checkpoint(folder, checkpoint, torch.float32)
    assert_same_logits(build_model(open_checkpoint(folder)), theirs)


# --- what the file does not say -------------------------------------------------------------------


def test_a_published_shape_has_its_published_heads(tmp_path: Path) -> None:
    # 12 layers of width 768 have 12 heads: no option, and no warning.
    config = replace(SIZES["124M"], n_vocab=2, n_ctx=4)
    zeros = torch.zeros(4 * 768 * 768)  # one storage for all tensors keeps the file small
    state = {
        name: zeros[: math.prod(shape)].view(shape)
        for name, (_, shape) in LLMS_FROM_SCRATCH.expected(config).items()
    }
    assert open_checkpoint(save(tmp_path / "w.pth", state)).config == config


def test_other_widths_that_64_divides_have_heads_of_64_with_a_warning(tmp_path: Path) -> None:
    path = save(tmp_path / "w.pth", Scratch(width=128, n=2).state_dict())
    with pytest.warns(Gpt2KitWarning, match="2 of width 64 assumed, --n_head N"):
        assert open_checkpoint(path).config.n_head == 2


def test_a_width_that_64_does_not_divide_asks_for_the_heads(tmp_path: Path) -> None:
    path = save(tmp_path / "w.pth", Scratch().state_dict())
    with pytest.raises(ConfigError, match=r"width, 32, is no multiple of 64; add --n_head N"):
        open_checkpoint(path)


@pytest.mark.filterwarnings("ignore::gpt2kit.errors.Gpt2KitWarning")
def test_heads_that_the_file_says_cannot_be_given_differently(
    tmp_path: Path, tiny_model: GPT2
) -> None:
    path = save(tmp_path / "w.pth", Lecture().state_dict())
    assert open_checkpoint(path).config.n_head == H
    with pytest.raises(ConfigError, match="n_head is 2, but the file has 4 heads"):
        open_checkpoint(path, unsaid=Unsaid(n_head=2))
    with pytest.raises(ConfigError, match="n_head cannot be given"):
        open_checkpoint(write_hub(tmp_path / "hub", tiny_model), unsaid=Unsaid(n_head=2))
    with pytest.raises(ConfigError, match="n_head"):
        load(path, n_head=5)


def test_toygpts_own_shape_has_four_heads(tmp_path: Path) -> None:
    theirs = made("ToyGPT")
    found, tokenizer = load(alphabet_beside(tmp_path, theirs), device="cpu")
    assert_same_logits(found, theirs)
    assert tokenizer is not None
    assert tokenizer.n_vocab == V


def alphabet_beside(folder: Path, model: nn.Module) -> Path:
    """Save a model with a vocabulary of V characters beside it."""
    tokens = [chr(ord("0") + index) for index in range(V)]
    content = json.dumps({"kind": "char", "tokens": tokens})
    (folder / "gpt2kit_tokenizer.json").write_text(content)
    return save(folder / "toy_gpt_model.pth", model.state_dict())


@pytest.mark.parametrize(
    ("model", "n_head"),
    [({"model_type": "gpt-mini", "n_head": None}, 6), ({"model_type": None, "n_head": 8}, 8)],
)
def test_the_config_that_mingpts_projects_write_gives_the_heads(
    tmp_path: Path, model: dict[str, Any], n_head: int
) -> None:
    state = widened(MinGPT().state_dict(), 96)
    (tmp_path / "config.json").write_text(json.dumps({"system": {}, "model": model}))
    save(tmp_path / "model.pt", state)
    assert open_checkpoint(tmp_path).config.n_head == n_head
    assert open_checkpoint(tmp_path / "model.pt").format == "minGPT"


def widened(state: dict[str, Tensor], width: int) -> dict[str, Tensor]:
    """Return tensors of zeros for a width instead of C."""
    factor = width // C
    return {
        name: torch.zeros([size * factor if size % C == 0 else size for size in tensor.shape])
        for name, tensor in state.items()
    }


def test_another_activation_and_norm_may_be_given(tmp_path: Path) -> None:
    path = save(tmp_path / "w.pth", made("minGPT").state_dict())
    unsaid = Unsaid(n_head=H, activation_function="relu", norm_first=False)
    config = open_checkpoint(path, unsaid=unsaid).config
    assert (config.activation_function, config.norm_first) == ("relu", False)


# --- what is in the file --------------------------------------------------------------------------


@FORMATS
@pytest.mark.parametrize("shared", [True, False], ids=["one storage", "two storages"])
def test_a_head_with_the_embeddings_numbers_is_tied(
    tmp_path: Path, shared: bool, zipped: bool
) -> None:
    theirs = made("LLMs-from-scratch with biases")
    assert isinstance(theirs, Scratch)
    weight = theirs.tok_emb.weight
    theirs.out_head.weight = weight if shared else nn.Parameter(weight.detach().clone())
    path = save(tmp_path / "w.pth", theirs.state_dict(), zipped)
    checkpoint = open_checkpoint(path, unsaid=UNSAID)
    assert checkpoint.config.tie_word_embeddings
    assert checkpoint.config.is_gpt2
    assert_same_logits(build_model(checkpoint), theirs)


@pytest.mark.parametrize("key", ["model_state_dict", "state_dict", "model"])
def test_weights_beside_an_optimizers_state_are_found(tmp_path: Path, key: str) -> None:
    theirs = made("LLMs-from-scratch")
    content = {key: theirs.state_dict(), "optimizer_state_dict": {"state": {}}}
    checkpoint = open_checkpoint(save(tmp_path / "w.pth", content), unsaid=UNSAID)
    assert "optimizer_state_dict" in checkpoint.skipped
    assert "trf_blocks.0.att.mask" in checkpoint.skipped
    assert_same_logits(build_model(checkpoint), theirs)


def test_prefixes_of_compiled_and_parallel_models_are_left_out(tmp_path: Path) -> None:
    theirs = made("LLMs-from-scratch")
    state = {f"module._orig_mod.{name}": tensor for name, tensor in theirs.state_dict().items()}
    checkpoint = open_checkpoint(save(tmp_path / "w.pth", state), unsaid=UNSAID)
    assert_same_logits(build_model(checkpoint), theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_queries_keys_and_values_are_joined_in_any_dtype(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    theirs = made("LLMs-from-scratch").to(dtype)
    checkpoint = open_checkpoint(save(tmp_path / "w.pth", theirs.state_dict()), unsaid=UNSAID)
    assert checkpoint.dtype == dtype
    assert_same_logits(build_model(checkpoint), theirs.float())


def test_every_missing_unexpected_and_misshapen_tensor_is_in_one_error(tmp_path: Path) -> None:
    state = made("LLMs-from-scratch").state_dict()
    del state["trf_blocks.1.att.W_key.weight"]
    state["trf_blocks.0.att.qkv.weight"] = torch.zeros(3 * C, C)
    state["trf_blocks.1.ff.layers.2.weight"] = torch.zeros(C, 2 * C)
    with pytest.raises(CheckpointMismatchError, match="saved by LLMs-from-scratch") as caught:
        open_checkpoint(save(tmp_path / "w.pth", state), unsaid=UNSAID)
    assert caught.value.missing == ["trf_blocks.1.att.W_key.weight"]
    assert caught.value.unexpected == ["trf_blocks.0.att.qkv.weight"]
    assert caught.value.misshapen == {
        "trf_blocks.1.ff.layers.2.weight": ((C, 4 * C), (C, 2 * C)),
    }


def test_a_block_that_does_not_exist_is_no_reason_to_count_to_it(tmp_path: Path) -> None:
    state = made("the lecture").state_dict()
    state["blocks.999.sa.heads.9999.query.weight"] = torch.zeros(1, 1)
    with pytest.raises(CheckpointMismatchError, match=r"blocks.*9999"):
        open_checkpoint(save(tmp_path / "w.pth", state))


def test_weights_of_an_unknown_program_are_refused_with_those_that_are_known(
    tmp_path: Path,
) -> None:
    path = save(tmp_path / "w.pth", nn.Linear(2, 2).state_dict())
    with pytest.raises(CheckpointFormatError, match=r"ToyGPT or a GPT-2 .*; found weight, bias"):
        open_checkpoint(path)


def test_blocks_of_torchs_own_encoder_are_refused_with_the_reason(tmp_path: Path) -> None:
    layer = nn.TransformerEncoderLayer(C, H)
    model = nn.ModuleDict(
        {"embedding": nn.Embedding(V, C), "encoder": nn.TransformerEncoder(layer, 2)}
    )
    path = save(tmp_path / "w.pth", model.state_dict())
    with pytest.raises(
        CheckpointFormatError, match="the order of norms.* not in a file of weights"
    ):
        open_checkpoint(path)


def test_the_lectures_bigram_table_is_the_logits(tmp_path: Path) -> None:
    table = nn.Embedding(V, V)
    state = {f"token_embedding_table.{name}": value for name, value in table.state_dict().items()}
    checkpoint = open_checkpoint(save(tmp_path / "w.pth", state))
    assert checkpoint.config.n_params == V * V
    assert_same_logits(build_model(checkpoint), table)


@FORMATS
def test_a_pickle_that_calls_something_is_refused_and_calls_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    state: dict[str, Any] = dict(made("ToyGPT").state_dict())
    state["blocks.0.attn.mask"] = Evil()
    path = save(tmp_path / "toy_gpt_model.pth", state, zipped)
    with pytest.raises(CheckpointFormatError, match="it refers to"):
        open_checkpoint(path)
    assert not Path("called").exists()


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("called"),))


# --- GPT-2's own names ----------------------------------------------------------------------------


def test_a_state_dict_of_transformers_needs_no_configuration(
    tmp_path: Path, tiny_model: GPT2
) -> None:
    path = save(tmp_path / "w.pth", hub_state(tiny_model))
    checkpoint = open_checkpoint(path, unsaid=Unsaid(n_head=2))
    assert checkpoint.format == "Hugging Face state_dict"
    assert checkpoint.config == tiny_model.config
    assert all(
        torch.equal(tensor, tiny_model.state_dict()[name])
        for name, tensor in build_model(checkpoint).state_dict().items()
    )


def test_nanogpts_weights_without_its_checkpoint_have_the_exact_gelu(
    tmp_path: Path, tiny_model: GPT2
) -> None:
    state = {f"transformer.{name}": tensor for name, tensor in tiny_model.state_dict().items()}
    state["lm_head.weight"] = state["transformer.wte.weight"]
    checkpoint = open_checkpoint(save(tmp_path / "w.pth", state), unsaid=Unsaid(n_head=2))
    assert checkpoint.format == "nanoGPT state_dict"
    assert checkpoint.config.activation_function == "gelu"


def test_a_folder_of_transformers_with_matrices_of_nn_linear_is_read_as_they_are(
    tmp_path: Path, tiny_model: GPT2
) -> None:
    folder = write_hub(tmp_path, tiny_model, state=dict(tiny_model.state_dict()))
    checkpoint = open_checkpoint(folder)
    assert checkpoint.format == "safetensors, matrices of nn.Linear"
    ids = torch.arange(9)[None]
    with torch.no_grad():
        torch.testing.assert_close(build_model(checkpoint)(ids), tiny_model(ids))


def test_one_matrix_that_is_transposed_is_called_that(tmp_path: Path, tiny_model: GPT2) -> None:
    state = hub_state(tiny_model)
    state["transformer.h.0.mlp.c_fc.weight"] = tiny_model.state_dict()[
        "h.0.mlp.c_fc.weight"
    ].clone()
    with pytest.raises(CheckpointMismatchError, match=r"transposed: is this minGPT's"):
        open_checkpoint(write_hub(tmp_path, tiny_model, state=state))
