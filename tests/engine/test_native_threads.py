"""The native step's threads, when several callers use them with different thread counts."""

from __future__ import annotations

import shutil
import subprocess
import threading
from pathlib import Path

import pytest
import torch
from conftest import compiled

from gpt2kit.engine import native
from gpt2kit.engine.decoder import Decoder
from gpt2kit.model import GPT2

SOURCES = Path(native.__file__).parent
CALLERS = [["2", "3"], ["2", "3", "4"], ["3", "2", "4", "2"]]  # the thread count of each caller

# A thread that has arrived at a meeting waits before it looks whether it is the last one.
WIDENED = """
static inline void linger(void) {
    static __thread unsigned state = 1;
    state = state * 1664525u + 1013904223u;
    for (volatile unsigned i = 0; i < state >> 15; i++) {}
}
#define __atomic_add_fetch(place, by, order) \
    ({ int after = __atomic_add_fetch(place, by, order); linger(); after; })
"""

needs_gcc = pytest.mark.skipif(not shutil.which("gcc"), reason="no gcc here")


def build(folder: Path, *flags: str) -> Path:
    """Compile the native step and native_threads.c into one program."""
    program = folder / "native_threads"
    sources = [str(path) for path in (*SOURCES.glob("*.c"), Path(__file__).with_suffix(".c"))]
    command = ["gcc", "-std=gnu11", "-O1", "-g", "-Wno-psabi", "-pthread", f"-I{SOURCES}"]
    subprocess.run([*command, *flags, *sources, "-o", str(program), "-lm"], check=True)
    return program


@pytest.mark.slow
@needs_gcc
def test_thread_sanitizer_finds_no_race(tmp_path: Path) -> None:
    """A thread that was slow to leave a meeting read the thread count of the next run."""
    program = build(tmp_path, "-fsanitize=thread")
    for callers in CALLERS:
        done = subprocess.run(
            [str(program), "3", *callers], capture_output=True, text=True, timeout=120, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@needs_gcc
def test_threads_that_are_slow_to_leave_a_meeting_do_not_hang_the_next_run(tmp_path: Path) -> None:
    """With this wait, two callers of 3 and 2 threads stopped for good within seconds."""
    (tmp_path / "widened.h").write_text(WIDENED)
    program = build(tmp_path, "-include", str(tmp_path / "widened.h"))
    for callers in CALLERS:
        subprocess.run([str(program), "4", *callers], timeout=60, check=True)


@compiled
def test_callers_with_different_thread_counts_get_the_logits_of_one_thread(
    tiny_model: GPT2,
) -> None:
    wrong: list[int] = []
    with torch.inference_mode():
        expected = Decoder(tiny_model).read([[1, 2, 3]], tiny_model.new_cache())

    def decode(threads: int) -> None:
        torch.set_num_threads(threads)  # of this thread alone
        with torch.inference_mode():
            decoder = Decoder(tiny_model)
            for _ in range(100):
                found = decoder.read([[1, 2, 3]], tiny_model.new_cache())
                if not torch.equal(found, expected):
                    wrong.append(threads)

    callers = [threading.Thread(target=decode, args=(n,), daemon=True) for n in (2, 3, 4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
    assert not any(caller.is_alive() for caller in callers)
    assert not wrong
