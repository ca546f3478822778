"""How a process starts and ends: torch is imported once, and nothing is lost at the end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def python(program: str, *arguments: str, **options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(
        command, env=os.environ | ONE_THREAD | options, capture_output=True, text=True, check=False
    )


# Runs the command line as `gpt2kit` does; tells at which of its ends the process came past.
RUN = """
import atexit, sys
from gpt2kit.cli import main
class Last:
    def __del__(self): print("taken apart")
last = Last()
atexit.register(lambda: print("atexit"))
{more}
main()
"""


def test_all_is_written_and_atexit_runs_but_the_interpreter_is_not_taken_apart() -> None:
    done = python(RUN.format(more=""), "--version")
    assert done.stdout.startswith("gpt2kit ")
    assert done.stdout.endswith("atexit\n")
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["rm", "nothing-of-that-name"], 1), (["nonsense"], 2), (["models", "--help"], 0)],
)
def test_the_exit_code_stays(arguments: list[str], code: int) -> None:
    assert python(RUN.format(more=""), *arguments).returncode == code


def test_a_thread_that_has_work_to_do_may_finish() -> None:
    work = "lambda: (time.sleep(0.3), print('thread'))"
    working = f"import threading, time; threading.Thread(target={work}).start()"
    done = python(RUN.format(more=working), "--version")
    assert "thread\n" in done.stdout
    assert done.stdout.endswith("taken apart\n")


def test_a_profiler_reports() -> None:
    command = [sys.executable, "-m", "cProfile", "-m", "gpt2kit", "--version"]
    done = subprocess.run(
        command, env=os.environ | ONE_THREAD, capture_output=True, text=True, check=True
    )
    assert "function calls" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
def test_a_full_disk_at_the_end_is_not_taken_for_success() -> None:
    program = RUN.format(
        more="sys.stdout = open('/dev/full', 'w'); print('a line that waits to be written')"
    )
    assert python(program, "rm", "nothing-of-that-name").returncode != 0
    done = python(
        program.replace("main()", "from gpt2kit.cli import process; process.end_at_once(0)")
    )
    assert done.returncode != 0
    assert "No space left" in done.stderr


def test_the_quick_exit_can_be_turned_off() -> None:
    done = python(RUN.format(more=""), "--version", GPT2KIT_QUICK_EXIT="0")
    assert done.stdout.endswith("atexit\ntaken apart\n")
    assert done.returncode == 0


IMPORT = """
import gc, sys
from gpt2kit.cli import process
process.import_torch()
print("torch" in sys.modules, gc.isenabled(), gc.get_freeze_count() > 50_000)
gc.unfreeze()
process.import_torch()
print(gc.get_freeze_count())
"""


def test_torch_is_imported_once_and_its_objects_are_not_searched_for_garbage() -> None:
    assert python(IMPORT).stdout == "True True True\n0\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
@pytest.mark.parametrize(
    "arguments",
    [
        ["--version"],
        ["--help"],
        ["generate", "--help"],
        ["models"],
        ["tokenize", "Nel", "--model", "dante"],
    ],
)
def test_a_full_disk_is_one_line(arguments: list[str]) -> None:
    # What typer prints by itself, such as the help and the version, was a traceback.
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gpt2kit", *arguments],
            env=os.environ | ONE_THREAD,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.stderr == "error: No space left on device\n"
    assert done.returncode == 1


# Sends Ctrl-C to itself when a module is imported for the first time.
INTERRUPT = """
import os, signal, sys
class Hook:
    def find_spec(self, name, path=None, target=None):
        if name == "{module}":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
hook = Hook()
sys.meta_path.insert(0, hook)
from gpt2kit.__main__ import main
main()
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
@pytest.mark.parametrize("module", ["typer", "gpt2kit.cli.generation", "torch", "numpy"])
def test_an_interrupt_while_modules_are_imported_is_no_traceback(module: str) -> None:
    # Until the commands ran, Ctrl-C was Python's own traceback.
    program = INTERRUPT.format(module=module)
    done = python(program, "generate", "Nel", "--model", "dante", "--max_tokens", "3")
    assert done.stderr == ""
    assert done.returncode == 130


@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
def test_an_interrupt_that_the_caller_ignores_stays_ignored() -> None:
    # A shell that starts a command in the background ignores Ctrl-C for it.
    ignore = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    assert python(ignore + INTERRUPT.format(module="typer"), "--version").returncode == 0
