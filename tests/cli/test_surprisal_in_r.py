"""gpt2kit surprisal as R reads it: through a pipe, or from a file."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from builders import add_vocabulary
from conftest import GOLDEN

ROOT = Path(__file__).parents[2]
R = shutil.which("Rscript")


@pytest.mark.slow
@pytest.mark.skipif(R is None, reason="needs R: apt-get install r-base-core")
def test_r_reads_the_table_from_a_pipe(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "hf/safetensors", tmp_path / "model")
    add_vocabulary(tmp_path / "model")
    table = 'item,n,word,rt\n1,2,"old, ""man""",402\n1,1,The,310\n1,3,,280\n2,1,boat\u00e9,NA\n'
    (tmp_path / "reading.csv").write_text(table, encoding="utf-8")
    command = (
        f"{sys.executable} -m gpt2kit surprisal reading.csv --words word --by item --order n "
        "--model ./model --device cpu"
    )
    program = f"""
        d <- read.csv(pipe("{command}"), encoding = "UTF-8")
        stopifnot(nrow(d) == 4, identical(d$n, c(2L, 1L, 3L, 1L)))
        stopifnot(identical(d$word[1], 'old, "man"'), is.na(d$rt[4]))
        stopifnot(is.numeric(d$surprisal), is.numeric(d$surprisal_corrected))
        stopifnot(identical(is.na(d$surprisal), c(FALSE, FALSE, TRUE, FALSE)))
        stopifnot(is.numeric(d$rank), d$flag[3] == "empty", all(is.na(d$error)))
        m <- lm(rt ~ surprisal, d)
        cat(sum(d$surprisal, na.rm = TRUE))
    """
    assert R is not None
    done = subprocess.run(
        [R, "-e", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 1


def has_lme4() -> bool:
    if R is None:
        return False
    program = "quit(status = !requireNamespace('lme4', quietly = TRUE))"
    return subprocess.run([R, "-e", program], capture_output=True).returncode == 0


@pytest.mark.slow
def test_the_page_fits_reading_times_with_lme4(tmp_path: Path) -> None:
    if R is None or not has_lme4():
        pytest.skip("needs R and lme4: apt-get install r-cran-lme4")
    model = tmp_path / "weights/124M"
    shutil.copytree(GOLDEN / "hf/safetensors", model)
    add_vocabulary(model)
    shim = tmp_path / "bin/gpt2kit"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m gpt2kit "$@"\n')
    shim.chmod(0o755)
    draw = random.Random(1)
    texts = ("The old man the boat.", "A dog barks at the cat.", "So it goes, they say.")
    rows = [
        f'{subject},{item},{n},"{word}",{300 + 10 * len(word) + 9 * subject + draw.gauss(0, 9):.0f}'
        for subject in range(12)
        for item, text in enumerate(texts)
        for n, word in enumerate(text.split(), 1)
    ]
    draw.shuffle(rows)
    (tmp_path / "spr.csv").write_text("\n".join(["subject,item,position,word,rt", *rows]) + "\n")
    page = (ROOT / "docs/surprisal.md").read_text(encoding="utf-8")
    program = "\n".join(re.findall(r"^```r\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    checks = f"""
        stopifnot(nrow(d) == {len(rows)}, sum(is.na(d$previous)) == 36, !anyNA(d$surprisal))
        stopifnot(length(fixef(m)) == 5, nobs(m) == {len(rows) - 36}, fixef(m)["nchar(word)"] > 5)
    """
    done = subprocess.run(
        [R, "-e", program + checks],
        cwd=tmp_path,
        env=os.environ
        | {
            "PYTHONPATH": str(ROOT),
            "PATH": f"{shim.parent}:{os.environ['PATH']}",
            "GPT2KIT_WEIGHTS": "weights",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "surprisal_corrected" in done.stdout  # the summary of the model
