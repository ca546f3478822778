#!/usr/bin/env python3
"""Try by the thousand what must never go wrong, and count what came of it.

    python scripts/campaign.py hostile_files [--cases 1000] [--workers 2] [--only GGUF]
        that many cases of every target, or the full dose; prints a table, and each case that
        failed with its seed
    python scripts/campaign.py hostile_files --case "GGUF: sizes" 1234 [--keep FILE]
        one case again; with --keep the file that it gives to the program is written

A campaign is a module of tests/campaigns, which says what its cases are allowed to come to. A case
is known by its target and seed, and is the same on every machine.

Results are added to a file, --results; the command given again goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def campaign(name: str) -> Any:
    """Return the campaign of a module of tests/campaigns."""
    return importlib.import_module(f"campaigns.{name}").CAMPAIGN


def target_of(module: str, name: str) -> Any:
    """Return a target of a campaign by its name."""
    for target in campaign(module).targets:
        if target.name == name:
            return target
    raise SystemExit(f"{module} has no target {name!r}")


def work(module: str, name: str, start: int, end: int, folder: Path) -> None:
    """Do some cases in this process; print what came of them, and each failed one at once."""
    from campaigns.cases import limit_memory

    target = target_of(module, name)
    cases = target.prepare(folder / "case")
    if target.limits_memory:
        limit_memory()
    counts: collections.Counter[str] = collections.Counter()
    for seed in range(start, end):
        (folder / "progress").write_text(json.dumps({"seed": seed, "counts": counts}))
        faulthandler.dump_traceback_later(target.stuck, exit=True)
        result = cases.run(seed)
        faulthandler.cancel_dump_traceback_later()
        counts[result.outcome] += 1
        counts["comparisons"] += result.comparisons
        if result.outcome == "failed":
            print(json.dumps({"seed": seed, "why": result.why}), flush=True)
    cases.close()
    print(json.dumps({"counts": counts}), flush=True)


def chunk(module: str, name: str, start: int, end: int) -> dict[str, Any]:
    """Do some cases in a process, and in another one after a case that ended it."""
    counts: collections.Counter[str] = collections.Counter()
    failures: list[dict[str, Any]] = []
    begun = time.monotonic()
    first = start
    while first < end:
        with tempfile.TemporaryDirectory(dir=_memory()) as folder:
            command = [sys.executable, __file__, module]
            part = ["--work", name, str(first), str(end), folder]
            environment = {
                **os.environ,
                "OMP_NUM_THREADS": "1",  # torch's, which need not be imported for that
                **dict.fromkeys(("GPT2KIT_WEIGHTS", "GPT2KIT_DATA", "XDG_CACHE_HOME"), folder),
            }
            done = subprocess.run(
                [*command, *part], capture_output=True, text=True, env=environment, check=False
            )
            if done.returncode == -signal.SIGINT:  # Ctrl-C, and no failure
                raise KeyboardInterrupt
            lines = [json.loads(line) for line in done.stdout.splitlines()]
            failures += [line for line in lines if "seed" in line]
            if lines and "counts" in lines[-1]:
                counts.update(lines[-1]["counts"])
                break
            if not (progress := Path(folder) / "progress").exists():
                raise SystemExit(f"{name}: no case could be made:\n{done.stderr}")
            found = json.loads(progress.read_text())
        ended = f"the process ended with {done.returncode}: {done.stderr.strip()[-200:]}"
        failures.append({"seed": found["seed"], "why": ended})
        counts.update({**found["counts"], "failed": found["counts"].get("failed", 0) + 1})
        first = found["seed"] + 1
    return {
        "target": name,
        "start": start,
        "end": end,
        "seconds": round(time.monotonic() - begun, 1),
        "counts": counts,
        "failures": failures,
    }


def _memory() -> str | None:
    """Return a folder in memory, if there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def run(module: str, cases: int, results: Path, workers: int, only: Sequence[str] = ("",)) -> int:
    """Do all cases that the file of results lacks, and print the table; return how many failed."""

    def is_wanted(name: str) -> bool:
        return any(text in name for text in only)

    done: dict[str, int] = {}  # the cases of each target that were done, which are its first
    for line in _read(results):
        done[line["target"]] = max(line["end"], done.get(line["target"], 0))
    all_of = campaign(module)
    todo = [
        (start, min(start + all_of.chunk, wanted), target.name)
        for target in all_of.targets
        if is_wanted(target.name)
        for wanted in [all_of.cases_of(target, cases)]
        for start in range(done.get(target.name, 0), wanted, all_of.chunk)
    ]
    pool = ThreadPoolExecutor(workers)
    parts = pool.map(
        lambda part: chunk(module, part[2], part[0], part[1]),
        sorted(todo, key=lambda part: part[0]),  # a chunk of every target before the next ones
    )
    try:
        with results.open("a") as file:
            for found in parts:
                file.write(json.dumps(found) + "\n")
                file.flush()
                for failure in found["failures"]:
                    print(f"FAILED {found['target']} {failure['seed']}: {failure['why']}")
    finally:  # Ctrl-C ends what has not begun
        pool.shutdown(cancel_futures=True)
    return show([line for line in _read(results) if is_wanted(line["target"])])


def _read(results: Path) -> Iterator[dict[str, Any]]:
    if results.exists():
        yield from (json.loads(line) for line in results.read_text().splitlines())


def show(lines: Sequence[dict[str, Any]]) -> int:
    """Print a table with a row for each format; return how many cases failed."""
    from campaigns.cases import OUTCOMES

    rows: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for line in lines:
        for name in (line["target"].partition(":")[0], "all"):
            rows[name].update(line["counts"])
    columns: list[str] = [*OUTCOMES]
    if any(counts["comparisons"] > _cases(counts) for counts in rows.values()):
        columns.insert(0, "comparisons")
    print("| what | cases | " + " | ".join(columns) + " |")
    print("|---|" + "--:|" * (1 + len(columns)))
    for name, counts in [*((n, c) for n, c in rows.items() if n != "all"), ("all", rows["all"])]:
        cells = [_cases(counts), *(counts[column] for column in columns)]
        print(f"| {name} | " + " | ".join(f"{cell:,}" for cell in cells) + " |")
    return rows["all"]["failed"]


def _cases(counts: collections.Counter[str]) -> int:
    """Return how many cases were done."""
    return sum(number for name, number in counts.items() if name != "comparisons")


def one(module: str, name: str, seed: int, keep: Path | None) -> int:
    """Do one case, and print what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        cases = target_of(module, name).prepare(Path(folder) / "case")
        what, content = cases.describe(seed)
        if keep is not None:
            keep.write_bytes(content)
        result = cases.run(seed)
        cases.close()
    print(f"{name} {seed}, {what}: {result.outcome} {result.why}")
    return int(result.outcome == "failed")


def main() -> int:
    """Read the options and do what they say; return 1 if a case failed."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("campaign", help="a module of tests/campaigns, such as hostile_files")
    options.add_argument("--cases", type=int, help="of each target (the full dose)")
    options.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options.add_argument(
        "--only",
        action="append",
        metavar="TEXT",
        help="targets with this in the name; may be given several times",
    )
    options.add_argument("--results", type=Path, help="file of results (campaign-NAME.jsonl)")
    options.add_argument("--case", nargs=2, metavar=("TARGET", "SEED"))
    options.add_argument("--keep", type=Path, metavar="FILE")
    options.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.work:
        name, start, end, folder = given.work
        work(given.campaign, name, int(start), int(end), Path(folder))
        return 0
    if given.case:
        return one(given.campaign, given.case[0], int(given.case[1]), given.keep)
    cases = given.cases or campaign(given.campaign).full
    results = given.results or Path(f"campaign-{given.campaign}.jsonl")
    return int(run(given.campaign, cases, results, given.workers, given.only or [""]) > 0)


if __name__ == "__main__":
    raise SystemExit(main())
