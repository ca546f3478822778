"""Commands that are killed or hindered: whole files, one clear error, and a next run that works."""

from __future__ import annotations

import faulthandler
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from campaigns import luck_planted as planted
from campaigns.bad_luck import CAMPAIGN
from campaigns.cases import limited_time
from campaigns.luck_cases import Luck, LuckCases, Undisturbed
from campaigns.luck_commands import COMMANDS, Command

SCRIPT = Path(__file__).parents[2] / "scripts" / "campaign.py"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and looks into /proc")


QUICK = {
    *("convert to GGUF", "download", "keep int8 weights", "surprisal", "remove"),
    *("score by the pile", "merge parts"),
}


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(each, id=each.name, marks=[] if each.name in QUICK else pytest.mark.slow)
        for each in COMMANDS
    ],
)
def test_a_command_may_be_killed_or_hindered_at_any_moment(
    tmp_path: Path, command: Command
) -> None:
    """One kind of bad luck for each command; the campaign does all of them."""
    targets = [target for target in CAMPAIGN.targets if target.command is command]
    target = targets[COMMANDS.index(command) % len(targets)]
    undisturbed = Undisturbed(command, tmp_path / "case")
    cases = LuckCases(target, undisturbed)
    try:
        found = cases.run(0)
    finally:
        cases.close()
    assert found.outcome != "failed", (target.name, found.why)


@pytest.mark.parametrize(
    ("body", "luck", "why"),
    [
        (planted.in_place, "killed at a change", "not whole"),
        (planted.in_place, "full disk", "Traceback"),
        (planted.littering, "killed at a change", "is left over"),
        (planted.forgetful, "killed at a change", "made/file lacks"),
        (planted.silent, "refused by the system", "ended well, but made/file lacks"),
        (planted.mapping, "input cut short", "ended with -7"),
        (planted.unchecked, "input cut short", "made/file differs"),
    ],
)
def test_a_planted_fault_is_found(
    tmp_path: Path, body: Callable[[], None], luck: Luck, why: str
) -> None:
    cases = planted.target(body, luck).prepare(tmp_path / "case")
    found = map(cases.run, range(20))
    assert any(each.outcome == "failed" and why in each.why for each in found)


@pytest.mark.parametrize(
    ("body", "luck"),
    [
        (planted.sound, "killed at a change"),
        (planted.sound, "killed at an instant"),
        (planted.sound, "two at once"),
        (planted.sound, "clock that jumps"),
        (planted.sound, "vanishing folder"),
        (planted.checked, "input cut short"),
    ],
)
def test_a_command_without_a_fault_fails_no_case(
    tmp_path: Path, body: Callable[[], None], luck: Luck
) -> None:
    cases = planted.target(body, luck).prepare(tmp_path / "case")
    found = [cases.run(seed) for seed in range(4)]
    failed = [each.why for each in found if each.outcome == "failed"]
    # At SIGINT a function, unlike the command line, ends with a traceback; this is its last word.
    assert [why for why in failed if not why.endswith("KeyboardInterrupt")] == []


def test_a_watchdog_of_this_process_does_not_hold_up_what_it_forks(tmp_path: Path) -> None:
    """A fork waited for ever for the thread of the watchdog, which it does not have."""
    cases = planted.target(planted.sound, "killed at a change").prepare(tmp_path / "case")
    faulthandler.dump_traceback_later(60)
    try:
        with limited_time(20):
            assert cases.run(0).outcome in ("same", "refused")
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.mark.campaign
def test_a_thousand_kills_fail_no_case(tmp_path: Path) -> None:
    results = Path(os.environ.get("GPT2KIT_CAMPAIGN", tmp_path / "campaign.jsonl"))
    command = [sys.executable, str(SCRIPT), "bad_luck", "--results", str(results)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
