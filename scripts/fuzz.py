#!/usr/bin/env python3
"""Fuzz a reader, guided by the lines of gpt2kit that an input reaches (needs atheris).

    python scripts/fuzz.py "GGUF: blind" --seconds 600 --findings found

The targets are those of the campaign of hostile files; their damaged files are what it starts from.
In an index of TensorFlow all checksums are put right before it is read, because an input that they
refuse reaches nothing behind them. It ends at the first error that is not one of gpt2kit's, and
leaves the input in the folder of findings.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
SEEDS = 60


def main() -> int:
    """Fuzz the target that the command line names."""
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("target", help="of tests/campaigns/hostile_files.py")
    options.add_argument("--seconds", type=int, default=60)
    options.add_argument("--findings", type=Path, default=Path())
    given = options.parse_args()
    try:
        atheris: Any = importlib.import_module("atheris")
    except ImportError:
        options.error("atheris is not installed; run: pip install atheris")
    with atheris.instrument_imports(include=["gpt2kit"]):
        from campaigns.hostile_files import CAMPAIGN
    fuzz(atheris, {each.name: each for each in CAMPAIGN.targets}[given.target], given)
    return 0


def fuzz(atheris: Any, target: Any, given: argparse.Namespace) -> None:
    """Read one input after another, and end the process."""
    from tf_bundle_writer import block_positions, repair

    from gpt2kit.errors import Gpt2KitError

    warnings.simplefilter("ignore")
    home = Path(tempfile.mkdtemp(prefix="gpt2kit-fuzz-"))
    cases = target.prepare(home / "case")
    corpus = home / "corpus"
    corpus.mkdir()
    for seed in range(SEEDS):
        (corpus / str(seed)).write_bytes(cases.describe(seed)[1])
    path = home / "case" / target.damaged[0]
    positions = block_positions(path.read_bytes()) if path.suffix == ".index" else []

    def read(data: bytes) -> None:
        if positions:
            with contextlib.suppress(Exception):  # too short for its blocks
                data = repair(data, positions)
        path.unlink(missing_ok=True)  # what was read before may still be mapped into memory
        path.write_bytes(data)
        with contextlib.suppress(Gpt2KitError):
            target.read(cases.path)

    given.findings.mkdir(parents=True, exist_ok=True)
    limits = ["-timeout=5", "-rss_limit_mb=1500", f"-max_total_time={given.seconds}"]
    findings = f"-artifact_prefix={given.findings.absolute()}{os.sep}"
    atheris.Setup([sys.argv[0], str(corpus), *limits, findings], read)
    atheris.Fuzz()


if __name__ == "__main__":
    raise SystemExit(main())
