"""gpt2kit surprisal as R reads it: through a pipe, or from a file."""

from __future__ import annotations

import os
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
