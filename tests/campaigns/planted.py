"""Readers with a fault each, to see that a campaign finds it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from campaigns.cases import Campaign
from campaigns.damage import blind
from campaigns.file_cases import FileTarget
from gpt2kit.errors import CorpusError

CONTENT = bytes(range(64))


def make(folder: Path) -> Path:
    (folder / "file").write_bytes(CONTENT)
    return folder / "file"


def checked(path: Path) -> bytes:
    """A reader without a fault: it takes the whole file only."""
    if (data := path.read_bytes()) != CONTENT:
        raise CorpusError(f"{path}: damaged", path=path)
    return data


def crashing(path: Path) -> str:
    data = path.read_bytes()
    return str(data[len(CONTENT) - 1])  # IndexError for a file that was cut short


def gullible(path: Path) -> str:
    return str(path.read_bytes()[:8])  # never looks at the rest


def endless(path: Path) -> str:
    if path.read_bytes() != CONTENT:
        time.sleep(60)
    return ""


def greedy(path: Path) -> str:
    if path.read_bytes() != CONTENT:
        bytearray(10**9)
    return ""


def fatal(path: Path) -> str:
    if len(path.read_bytes()) < len(CONTENT):
        os.abort()
    return str(checked(path))


CAMPAIGN = Campaign(
    [
        FileTarget("sound", make, ["file"], lambda path: str(checked(path)), blind, finds_all=True),
        FileTarget("crashing", make, ["file"], crashing, blind),
        FileTarget("gullible", make, ["file"], gullible, blind, finds_all=True),
        FileTarget("endless", make, ["file"], endless, blind),
        FileTarget("dying: memory", make, ["file"], greedy, blind),
        FileTarget("dying: abort", make, ["file"], fatal, blind),
    ],
    full=3,
    chunk=2,
)
