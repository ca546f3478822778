"""Bad luck: every command that writes, stopped or hindered at any moment."""

from __future__ import annotations

from campaigns.cases import Campaign
from campaigns.luck_cases import Luck, LuckTarget
from campaigns.luck_commands import COMMANDS

_ALWAYS: tuple[Luck, ...] = (
    "killed at an instant",
    "killed at a change",
    "full disk",
    "refused by the system",
)


def _targets() -> list[LuckTarget]:
    """Return a target for every command and kind of bad luck that it can have."""
    found = [LuckTarget(luck, command) for luck in _ALWAYS for command in COMMANDS]
    rest: tuple[Luck, ...] = ("vanishing folder", "two at once", "little memory")
    for luck in rest:
        found += [LuckTarget(luck, command) for command in COMMANDS]
    dateless = [command for command in COMMANDS if not command.dated]
    found += [LuckTarget("clock that jumps", command) for command in dateless]
    cut = [command for command in COMMANDS if command.inputs or command.texts]
    return found + [LuckTarget("input cut short", command) for command in cut]


CAMPAIGN = Campaign(_targets(), full=25, chunk=25)
