"""The drawn cases of the native step, with its library compiled to look for errors itself.

    python tests/campaigns/sanitized.py address,undefined 30
    python tests/campaigns/sanitized.py thread 30

compiles the C code with these sanitizers of gcc, and does that many cases of each target that reads
with the native step, in a process of its own: an interpreter has to start with the sanitizer's
library. Prints what was found, and does not end with 0 if it is anything.

The native step has threads of its own, which ThreadSanitizer understands. Torch has OpenMP's, which
it does not: reports from torch's own code are left out. The arrays within the scratch memory of a
step have no gaps between them: AddressSanitizer sees a step that leaves the whole of it, not one.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

TESTS = Path(__file__).parents[1]
NATIVE = TESTS.parent / "gpt2kit" / "engine" / "native"
PRELOADED = {"address": ("libasan.so", "libstdc++.so"), "thread": ("libtsan.so",)}
SUPPRESSIONS = "race:libtorch_cpu.so\nrace:libgomp\n"
TARGETS = ("logits", "caches", "trees", "shortlist")


def build(folder: Path, sanitizers: str, sources: Path = NATIVE) -> Path:
    """Compile the C code of a folder with sanitizers into a library, and return it."""
    library = folder / "sanitized.so"
    command = ["gcc", "-std=gnu11", "-O1", "-g", "-Wno-psabi", "-pthread", "-shared", "-fPIC"]
    command += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    files = sorted(map(str, sources.glob("*.c")))
    subprocess.run([*command, *files, "-o", str(library), "-lm"], check=True)
    return library


def run(sanitizers: str, cases: int, sources: Path = NATIVE) -> subprocess.CompletedProcess[str]:
    """Compile, and do the cases in another process; its output has what was found."""
    with tempfile.TemporaryDirectory() as folder:
        library = build(Path(folder), sanitizers, sources)
        suppressions = Path(folder) / "suppressions"
        suppressions.write_text(SUPPRESSIONS)
        environment = {
            **os.environ,
            "LD_PRELOAD": " ".join(map(_found, PRELOADED[sanitizers.partition(",")[0]])),
            "ASAN_OPTIONS": "detect_leaks=0",  # Python and torch keep memory to the end
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "TSAN_OPTIONS": f"exitcode=66:suppressions={suppressions}",
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
            "OMP_NUM_THREADS": "1",
        }
        # Without random addresses, which leave ThreadSanitizer no room on new kernels.
        command = ["setarch", "-R", sys.executable, __file__, "--inside", str(library), str(cases)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def _found(name: str) -> str:
    """Return where gcc has a library."""
    asked = ["gcc", f"-print-file-name={name}"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def inside(library: Path, cases: int) -> int:
    """Do the cases with a sanitized library in this process; return how many failed."""
    from gpt2kit.engine.native import library as real

    opened = ctypes.CDLL(str(library))
    with mock.patch.object(ctypes, "CDLL", return_value=opened):
        assert real.load() is opened  # and is kept: what is imported next gets it
    from campaigns.drawn_numbers import CAMPAIGN

    comparisons = failed = 0
    for target in CAMPAIGN.targets:
        if target.name.partition(":")[0] not in TARGETS:
            continue
        made = target.prepare(Path())
        for seed in range(cases):
            found = made.run(seed)
            comparisons += found.comparisons
            if found.outcome == "failed":
                failed += 1
                print(f"FAILED {target.name} {seed}: {found.why}")
    print(f"{comparisons:,} comparisons, {failed} failed")
    return failed


def main() -> int:
    """Read the arguments, and do what they say."""
    if sys.argv[1] == "--inside":
        return int(inside(Path(sys.argv[2]), int(sys.argv[3])) > 0)
    done = run(sys.argv[1], int(sys.argv[2]))
    print(done.stdout + done.stderr, end="")
    return done.returncode


if __name__ == "__main__":
    raise SystemExit(main())
