"""What reaches a terminal: exact in a pipe, harmless on a screen, one line for one message."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt2kit.cli import output

# What terminals obey: title, colors, backspace, carriage return, C1, bidi overrides and isolates,
# line separators, half surrogates.
HOSTILE = "a\x1b]0;owned\x07b\x1b[31mc\rd\be\x9b2Jf\u202eg\u2066h\u2028i\x85j\x00k\x7fl\udcff"
RAW = set("\x1b\x07\r\b\x9b\u202e\u2066\u2028\x85\x00\x7f\udcff")


Streams = Callable[[bool], tuple[io.StringIO, io.StringIO]]


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    def replace(terminal: bool) -> tuple[io.StringIO, io.StringIO]:
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("NO_COLOR", raising=False)
        both = (Screen(), Screen()) if terminal else (io.StringIO(), io.StringIO())
        monkeypatch.setattr(sys, "stdout", both[0])
        monkeypatch.setattr(sys, "stderr", both[1])
        return both

    return replace


def test_a_pipe_gets_the_exact_text_of_a_result(streams: Streams) -> None:
    out, err = streams(False)
    output.result(HOSTILE, Path("folder"), output.style("x", "red"), end="")
    assert out.getvalue() == f"{HOSTILE}folderx"
    assert err.getvalue() == ""


def test_a_terminal_is_shown_control_characters_and_never_obeys_them(streams: Streams) -> None:
    out, err = streams(True)
    output.result(HOSTILE)
    output.note(HOSTILE)
    for shown in (out.getvalue(), err.getvalue()):
        assert not RAW & set(shown)
        assert "a\\x1b]0;owned\\x07b\\x1b[31mc\\rd\\x08e\\x9b2Jf\\u202eg" in shown


def test_standard_error_is_harmless_in_a_log_too(streams: Streams) -> None:
    _, err = streams(False)
    output.note(HOSTILE)
    output.warn(HOSTILE)
    output.error(HOSTILE)
    assert not RAW & set(err.getvalue())


def test_an_error_or_warning_is_one_line(streams: Streams) -> None:
    _, err = streams(False)
    output.error("one\ntwo\tthree")
    output.warn(UserWarning("one\ntwo"))
    assert err.getvalue() == "error: one\\ntwo\\tthree\nwarning: one\\ntwo\n"


def test_texts_keep_their_lines_tabs_spaces_and_joined_characters(streams: Streams) -> None:
    out, _ = streams(True)
    text = "a\n\tb\u00a0c\u3000d 👩\u200d👧 é"
    output.result(text)
    assert out.getvalue() == f"{text}\n"


def test_our_own_colors_survive_and_stop_at_line_ends(streams: Streams) -> None:
    out, err = streams(True)
    output.result("plain ", output.style("a\x1b\nb", "green"))
    assert out.getvalue() == "plain \x1b[32ma\\x1b\x1b[0m\n\x1b[32mb\x1b[0m\n"
    output.error("x")
    assert err.getvalue() == "\x1b[31merror: x\x1b[0m\n"
    output.note("y", dim=True)
    assert err.getvalue().endswith("\x1b[2my\x1b[0m\n")


def test_colors_can_be_forced_and_forbidden(
    streams: Streams,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, _ = streams(False)
    output.result(output.style("a\x1b", "red"), color=True)
    assert out.getvalue() == "\x1b[31ma\\x1b\x1b[0m\n"
    out, _ = streams(True)
    monkeypatch.setenv("NO_COLOR", "1")
    output.result(output.style("a", "red"))
    assert out.getvalue() == "a\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_json_is_harmless_and_means_the_same(streams: Streams, terminal: bool) -> None:
    out, _ = streams(terminal)
    output.print_json({HOSTILE: f"{HOSTILE}\né日本😀\U000e0041"})
    line = out.getvalue()
    assert not RAW & set(line)
    assert line.count("\n") == 1
    assert "é日本😀" in line
    assert json.loads(line) == {HOSTILE: f"{HOSTILE}\né日本😀\U000e0041"}


def test_a_log_that_cannot_be_written_does_not_stop_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    output.note("x")
    output.error("y")
    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(OSError, match="No space left"):
        output.result("z")


def test_a_progress_bar_is_harmless(streams: Streams) -> None:
    from rich.progress import Progress, TextColumn

    _, err = streams(True)
    output.console.cache_clear()
    with Progress(TextColumn("{task.description}"), console=output.console()) as bar:
        bar.add_task(f"\x1b]0;owned\x07 {HOSTILE}", total=3)
        bar.console.print(f"a file \x1b]0;owned\x07 [red]{HOSTILE}")
    output.console.cache_clear()
    shown = err.getvalue()
    assert "\x1b]0;" not in shown
    assert not {"\x07", "\x9b", "\u202e", "\udcff"} & set(shown)
    assert "\\x1b]0;owned" in shown
    assert "[red]" in shown


def test_a_question_is_harmless_and_anything_but_yes_means_no(
    streams: Streams,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for typed, agreed in (
        ("y\n", True),
        ("YES\n", True),
        ("\n", False),
        ("no\n", False),
        ("", False),
    ):
        out, err = streams(True)
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        assert output.confirm(f"Remove {HOSTILE}?") is agreed
        assert out.getvalue() == ""
        assert not RAW & set(err.getvalue())


def test_a_status_is_for_terminals_alone(streams: Streams) -> None:
    _, err = streams(False)
    output.status("reading")
    assert err.getvalue() == ""
    _, err = streams(True)
    output.status(f"1 of 2 {HOSTILE}")
    output.status()
    assert err.getvalue().count("\x1b") == 2  # our own, to clear what is left of the line


def test_a_byte_of_a_name_that_is_not_utf8_goes_through_a_pipe(tmp_path: Path) -> None:
    program = (
        "from gpt2kit.cli import output; output.prepare_streams(); "
        "output.result('a\\udcffb\\ud800é')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUTF8": "1"},
    )
    assert done.stdout == b"a\xffb?\xc3\xa9\n"


def test_columns_line_up_whatever_is_in_them() -> None:
    rows = [("name", "size"), ("日本", 5), ("a\nb\x1b", 1234)]
    assert output.table(rows, right=[1]) == [
        "name      size",
        "日本         5",
        "a\\nb\\x1b  1234",
    ]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(45.2, "45 s"), (89, "89 s"), (720, "12 min"), (12_000, "3 h 20 min")],
)
def test_a_duration_is_written_as_people_say_it(seconds: float, shown: str) -> None:
    assert output.human_time(seconds) == shown
