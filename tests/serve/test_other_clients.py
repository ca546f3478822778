"""Programs that speak OpenAI's completions: `llm` and langchain-openai."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from serve_builders import running

pytestmark = pytest.mark.slow


def missing(package: str) -> pytest.MarkDecorator:
    """Skip a test without a package, which is no dependency of the tests: it brings many others."""
    found = importlib.util.find_spec(package) is not None
    return pytest.mark.skipif(not found, reason=f"{package} is not installed")


@pytest.fixture
def url() -> Iterator[str]:
    with running() as found:
        yield found


@missing("llm")
@pytest.mark.parametrize("options", [[], ["--no-stream"]])
def test_llm_writes_with_the_file_that_the_page_shows(
    url: str, tmp_path: Path, options: list[str]
) -> None:
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: novel\n  model_name: model\n  api_base: {url}/v1\n  completion: true\n"
    )
    command = [sys.executable, "-m", "llm", "-m", "novel", "The dog", "-o", "seed", "1", *options]
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "any"}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 5


@missing("langchain_openai")
def test_langchain_asks_for_several_texts_and_streams(url: str) -> None:
    from langchain_openai import OpenAI  # type: ignore[import-not-found,unused-ignore]

    client = OpenAI(base_url=f"{url}/v1", api_key="any", model="model", max_tokens=8, seed=1)
    first, second = client.batch(["The dog", "A cat"])
    assert client.invoke("The dog") == first
    assert "".join(client.stream("The dog")) == first
    assert first != second
    generated = client.generate(["The dog", "A cat"])
    assert [texts[0].text for texts in generated.generations] == [first, second]
