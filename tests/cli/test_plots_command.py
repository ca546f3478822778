"""gpt2kit plot, as a user types it: files, messages, and what is refused before work starts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from builders import add_vocabulary, write_hub
from conftest import make_model
from typer.testing import CliRunner, Result

import gpt2kit
from gpt2kit import plots
from gpt2kit.cli import app
from gpt2kit.config import GPT2Config

KINDS = {  # kind -> the function that draws it
    "tokens": "tokens",
    "positions": "positions",
    "norms": "norms",
    "embeddings": "embeddings",
    "attention": "attention",
    "attention-bars": "attention_bars",
    "updates": "updates",
    "mlp": "mlp",
    "residual": "residual",
    "lens": "lens",
    "temperature": "temperature",
    "scores": "scores",
    "stream": "stream",
    "layernorm": "layernorm",
    "activation": "activation",
    "mlp-in-out": "mlp_in_out",
    "neurons": "neurons",
    "gradients": "gradients",
}
TEXT = "the end of the end"


@pytest.fixture
def model(tmp_path: Path) -> str:
    small = make_model(GPT2Config(n_vocab=512, n_ctx=32, n_embd=16, n_head=2, n_layer=2))
    return str(add_vocabulary(write_hub(tmp_path / "model", small)))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: object, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(app, ["plot", *map(str, arguments)], input=stdin)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Note what every drawing function is given, and draw nothing but the title."""
    noted: list[tuple[Any, ...]] = []
    for name in [*KINDS.values(), "losses", "gradients_of_runs"]:

        def draw(*arguments: Any, name: str = name, **options: Any) -> Any:
            noted.append((name, arguments, options))
            return plots.canvas.new_figure("a title", 2)

        monkeypatch.setattr(plots, name, draw)
    return noted


def write_run(folder: Path, *losses: float) -> Path:
    folder.mkdir()
    lines = [
        json.dumps({"step": step, "train_loss": loss}) for step, loss in enumerate(losses, start=1)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_a_text_writes_its_picture(model: str, kind: str) -> None:
    result = run(kind, "--model", model, "--prompt", TEXT, "--device", "cpu", "--dpi", 40)
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    assert result.stderr == f"wrote {kind}.png\n"
    assert Path(f"{kind}.png").read_bytes().startswith(b"\x89PNG")


def test_the_text_that_is_drawn_is_the_prompt(model: str, calls: list[tuple[Any, ...]]) -> None:
    tokenizer = gpt2kit.load(model, device="cpu")[1]
    assert tokenizer is not None
    expected = tokenizer.encode(TEXT)
    for prompt, stdin in ((TEXT, None), ("-", TEXT + "\n")):
        assert run("tokens", "--model", model, "--prompt", prompt, stdin=stdin).exit_code == 0
        _, (trace, tokens), _ = calls.pop()
        assert trace.ids.tolist() == [expected]
        assert tokens == [tokenizer.token_bytes(token) for token in expected]


def test_options_of_a_kind_reach_it(model: str, calls: list[tuple[Any, ...]]) -> None:
    def given(kind: str, *arguments: object) -> tuple[Any, ...]:
        assert run(kind, "--model", model, "--prompt", TEXT, *arguments).exit_code == 0
        return calls[-1]

    assert given("attention")[1][2:] == (None, None)
    assert given("attention", "--layer", 1, "--head", 0)[1][2:] == (1, 0)
    assert given("attention_bars", "--layer", 1)[1][2:] == (1, 0)
    assert given("mlp", "--layer", 1)[1][2:] == (1,)
    assert given("updates", "--layer", 1)[1][2:] == (1,)
    assert given("stream")[1][2:] == (None, None, 8)
    assert given("stream", "--position", 2, "--dimensions", 3)[1][2:] == (None, 2, 3)
    assert given("layernorm", "--layer", 1)[1][2:] == (1,)
    assert given("activation", "--layer", 1)[1][2:] == (1,)
    assert given("mlp_in_out", "--layer", 1, "--position", 0)[1][2:] == (1, 0)
    assert given("neurons")[1][2:] == (None,)
    assert given("lens", "--last", 3)[1][3:] == (3,)
    assert given("temperature")[1:][1] == {"top_k": 40, "top_p": 0.9}
    name, arguments, filters = given(
        "temperature", "--temperature", 0.7, "--temperature", 2, "--top-k", 5, "--top_p", 0.5
    )
    assert (name, arguments[2], filters) == ("temperature", [0.7, 2.0], {"top_k": 5, "top_p": 0.5})


def test_the_distribution_is_that_after_the_last_token(
    model: str, calls: list[tuple[Any, ...]]
) -> None:
    import torch

    assert run("temperature", "--model", model, "--prompt", TEXT, "--device", "cpu").exit_code == 0
    gpt2, tokenizer = gpt2kit.load(model, device="cpu")
    assert tokenizer is not None
    torch.testing.assert_close(
        calls[-1][1][0], gpt2(torch.tensor([tokenizer.encode(TEXT)]))[0, -1].detach()
    )


def test_numbers_and_markers_are_as_asked(model: str, calls: list[tuple[Any, ...]]) -> None:
    assert (
        run("norms", "--model", model, "--prompt", "a<|endoftext|>", "--dtype", "float64").exit_code
        == 0
    )
    plain = calls[-1][1][0]
    assert str(plain.embeddings.dtype) == "torch.float64"
    assert run("norms", "--model", model, "--prompt", "a<|endoftext|>", "--special").exit_code == 0
    assert calls[-1][1][0].ids.shape[1] == 2 < plain.ids.shape[1]


def test_what_the_vocabulary_lacks_is_refused_or_skipped() -> None:
    refused = run("tokens", "--model", "dante", "--prompt", "Nel 日", "--dpi", 30)
    assert refused.exit_code == 1
    assert "--unknown skip" in refused.stderr
    assert (
        run(
            "tokens", "--model", "dante", "--prompt", "Nel 日", "--unknown", "skip", "--dpi", 30
        ).exit_code
        == 0
    )


@pytest.mark.filterwarnings("always::gpt2kit.errors.Gpt2KitWarning")
def test_a_text_longer_than_the_window_follows_overflow(
    model: str, calls: list[tuple[Any, ...]]
) -> None:
    tokenizer = gpt2kit.load(model, device="cpu")[1]
    assert tokenizer is not None
    text = " ".join(str(number) for number in range(60))
    ids = tokenizer.encode(text)
    for overflow, expected, said in (
        (None, ids[-32:], "the first"),
        ("slide", ids[-32:], "the first"),
        ("stop", ids[:32], "the last"),
    ):
        result = run(
            "tokens",
            "--model",
            model,
            "--prompt",
            text,
            *(["--overflow", overflow] if overflow else []),
        )
        assert result.exit_code == 0
        warning = f"warning: the text has {len(ids)} tokens, but the model reads at most 32: "
        assert f"{warning}{said} {len(ids) - 32} are left out" in result.stderr
        assert calls[-1][1][0].ids.tolist() == [expected]
    result = run("tokens", "--model", model, "--prompt", text, "--overflow", "error")
    assert result.exit_code == 1
    assert "--overflow slide" in result.stderr


def test_title_and_format_are_as_asked(model: str, calls: list[tuple[Any, ...]]) -> None:
    assert run("tokens", "--model", model, "--prompt", TEXT, "--out", "x.svg").exit_code == 0
    assert "<!-- a title -->" in Path("x.svg").read_text()
    assert (
        run(
            "tokens", "--model", model, "--prompt", TEXT, "--out", "x.svg", "--title", "Mine & $x"
        ).exit_code
        == 0
    )
    assert "<!-- Mine &amp; $x -->" in Path("x.svg").read_text()
    assert run("tokens", "--model", model, "--prompt", TEXT, "--out", "x.pdf").exit_code == 0
    assert Path("x.pdf").read_bytes().startswith(b"%PDF")
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["tokens", "--prompt", "x", "--out", "x.jpg"],
            "x.jpg: expected a name that ends in .png, .svg or .pdf",
        ),
        (["tokens", "--prompt", "x", "--out", "none/x.png"], "there is no folder none"),
        (["temperature", "--prompt", "x", "--top_p", "2"], "top_p is 2.0"),
        (
            ["losses", "--run", "none"],
            "none: no metrics.jsonl; expected the folder of a training run",
        ),
        (
            ["losses", "--run", ".", "--average", "median:2"],
            "average 'median', expected simple:STEPS",
        ),
    ],
)
def test_what_cannot_be_is_one_line_before_work_starts(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: Any, **__: Any) -> None:
        raise AssertionError("work has started")

    monkeypatch.setattr("gpt2kit.checkpoints.load.load", work)
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_layer_that_is_not_there_and_an_empty_text_are_refused(model: str) -> None:
    result = run("mlp", "--model", model, "--prompt", TEXT, "--layer", 2)
    assert (result.exit_code, result.stderr) == (1, "error: layer is 2, expected 0 to 1\n")
    result = run("lens", "--model", model, "--prompt", "")
    assert (result.exit_code, result.stderr) == (
        1,
        "error: the text has no tokens, expected at least one\n",
    )
    assert not list(Path().glob("*.png"))


def test_options_that_a_kind_has_no_use_for_are_refused(model: str) -> None:
    for arguments in (
        ["tokens", "--layer", "1"],
        ["lens", "--head", "1"],
        ["mlp", "--top_k", "2"],
        ["attention", "--head", "1"],
    ):
        result = run(*arguments, "--model", model, "--prompt", TEXT)
        assert result.exit_code == 2
    assert run("losses", "--prompt", "x", "--run", "y").exit_code == 2
    assert run("tokens", "--model", model).exit_code == 2


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run("tokens", "--prompt", "x")
    assert result.exit_code == 1
    assert "pip install 'gpt2kit[plots]'" in result.stderr


# --- losses ---------------------------------------------------------------------------------------


def test_runs_are_named_by_their_folders(tmp_path: Path, calls: list[tuple[Any, ...]]) -> None:
    first, second = write_run(tmp_path / "first", 3.0, 2.0), write_run(tmp_path / "second", 4.0)
    (tmp_path / "other").mkdir()
    third = write_run(tmp_path / "other" / "first", 5.0)
    assert (
        run("losses", "--run", first, "--run", second / "metrics.jsonl", "--run", third).exit_code
        == 0
    )
    _, (runs, averages), _ = calls.pop()
    assert {name: [line["train_loss"] for line in lines] for name, lines in runs.items()} == {
        "first": [3.0, 2.0],
        "second": [4.0],
        str(third): [5.0],
    }
    assert averages == [plots.Average("simple", 20)]


def test_averages_are_as_asked(tmp_path: Path, calls: list[tuple[Any, ...]]) -> None:
    folder = write_run(tmp_path / "run", 3.0, 2.0)
    assert (
        run(
            "losses", "--run", folder, "--average", "simple:5", "--average", "exponential:0.9"
        ).exit_code
        == 0
    )
    assert calls[-1][1][1] == [plots.Average("simple", 5), plots.Average("exponential", 0.9)]
    assert run("losses", "--run", folder, "--average", "none").exit_code == 0
    assert calls[-1][1][1] == []


def test_losses_are_written(tmp_path: Path) -> None:
    result = run("losses", "--run", write_run(tmp_path / "run", 3.0, 2.0), "--out", "both.pdf")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "wrote both.pdf\n")
    assert Path("both.pdf").read_bytes().startswith(b"%PDF")


def test_losses_are_by_tokens_if_asked(tmp_path: Path, calls: list[tuple[Any, ...]]) -> None:
    folder = write_run(tmp_path / "run", 3.0, 2.0)
    assert run("losses", "--run", folder).exit_code == 0
    assert run("losses", "--run", folder, "--by", "tokens").exit_code == 0
    assert [how["by"] for _, _, how in calls] == ["step", "tokens"]


def test_losses_are_apart_if_asked(tmp_path: Path, calls: list[tuple[Any, ...]]) -> None:
    folder = write_run(tmp_path / "run", 3.0, 2.0)
    assert run("losses", "--run", folder).exit_code == 0
    assert run("losses", "--run", folder, "--apart").exit_code == 0
    assert [options["apart"] for _, _, options in calls] == [False, True]


def test_gradients_are_those_of_a_text_or_of_runs() -> None:
    result = run("gradients")
    assert result.exit_code == 2
    assert "Missing option '--prompt' or '--run'" in result.output


def test_gradients_of_a_run_are_written(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 3.0, 2.0)
    refused = run("gradients", "--run", folder)
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert "run: no norms of gradients" in refused.stderr
    with (folder / "metrics.jsonl").open("a") as file:
        for step in (3, 4):
            line = {"step": step, "gradient_norm": 2.0, "gradient_norms": {"h.0": 1.0}}
            file.write(json.dumps(line) + "\n")
    result = run("gradients", "--run", folder, "--out", "norms.svg")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "wrote norms.svg\n")
    assert b"layer 0" in Path("norms.svg").read_bytes()


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n", b'{"step": 1}\n'])
def test_a_file_without_losses_is_named(content: bytes) -> None:
    # The folder was named instead, and what is no text was a traceback.
    Path("other.jsonl").write_bytes(content)
    result = run("losses", "--run", "other.jsonl")
    assert result.exit_code == 1
    assert (
        result.stderr
        == "error: other.jsonl: no losses; expected lines of JSON with step and train_loss "
        "or val_loss\n"
    )
