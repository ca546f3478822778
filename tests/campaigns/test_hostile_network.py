"""Hostile clients and hostile servers: refused by name or answered right, and nothing is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from campaigns import client_cases, client_framing, client_requests, store_troubles
from campaigns.cases import Result
from campaigns.client_cases import ClientCases, ClientTarget, WrongError
from campaigns.hostile_network import CAMPAIGN, CLIENTS, DOWNLOADS
from campaigns.planted_network import Stub, naive_client
from campaigns.store_cases import StoreCases, StoreTarget, Trouble
from campaigns.wire import HalfError, NotHttpError, read_answers

SCRIPT = Path(__file__).parents[2] / "scripts" / "campaign.py"
FEW = 2  # cases of a target in the default run
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks into processes as Linux lets it")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClientCases]:
    """One server for the clients of all kinds; at the end it must have lost nothing."""
    cases = CLIENTS[0].prepare(tmp_path_factory.mktemp("server"))
    yield cases
    cases.close()


@LINUX
@pytest.mark.parametrize("target", CLIENTS, ids=lambda target: target.name)
def test_a_hostile_client_is_refused_and_an_honest_one_is_answered(
    server: ClientCases, target: ClientTarget
) -> None:
    server.target = target
    found = {seed: server.run(seed) for seed in range(FEW)}
    assert {seed: each.why for seed, each in found.items() if each.outcome == "failed"} == {}


@pytest.mark.parametrize("target", DOWNLOADS, ids=lambda target: target.name)
def test_a_download_from_a_hostile_server_is_right_or_refused(
    tmp_path: Path, target: StoreTarget
) -> None:
    cases = target.prepare(tmp_path)
    try:
        found = {seed: cases.run(seed) for seed in range(FEW)}
    finally:
        cases.close()
    assert {seed: each.why for seed, each in found.items() if each.outcome == "failed"} == {}


# --- planted faults -------------------------------------------------------------------------------


def _on_stub(fault: str, attack: client_cases.Attack, cases: int) -> list[str]:
    """Return what was found wrong with a stub."""
    stub = Stub()
    found = ClientCases(ClientTarget(f"planted: {fault}", attack), stub)
    stub.fault = fault
    try:
        results = [found.run(seed) for seed in range(cases)]
    finally:
        try:
            found.close()
        except WrongError as error:
            results.append(Result("failed", str(error)))
    return [result.why for result in results if result.outcome == "failed"]


@LINUX
@pytest.mark.parametrize("attack", [client_framing.half_others, client_requests.liar])
def test_a_server_without_a_fault_fails_no_case(attack: client_cases.Attack) -> None:
    assert _on_stub("", attack, 8) == []


@LINUX
@pytest.mark.parametrize(
    ("fault", "attack", "why"),
    [
        ("failing", client_requests.liar, "status 500"),
        ("waiting", client_framing.half_others, "no answer, and no end"),
        ("leaking", client_framing.pipeline, "descriptors are open"),
        ("forgetful", client_framing.half_others, "after their clients have left"),
        ("confused", client_framing.slow_writer, "another text"),
        ("sloppy", client_framing.slow_writer, "no HTTP"),
    ],
)
def test_a_planted_fault_of_a_server_is_found(
    monkeypatch: pytest.MonkeyPatch, fault: str, attack: client_cases.Attack, why: str
) -> None:
    monkeypatch.setattr(client_cases, "HONEST_SECONDS", 0.3)
    monkeypatch.setattr(client_cases, "LEAVE_SECONDS", 0.3)
    found = _on_stub(fault, attack, 3 if fault == "waiting" else 10)
    assert any(why in each for each in found), found


@pytest.mark.parametrize(
    ("trouble", "why"),
    [
        (store_troubles.large_cut, "is wrong"),
        (store_troubles.redirect, "the token was sent elsewhere"),
        (store_troubles.failing, "is left after"),
    ],
)
def test_a_planted_fault_of_a_downloader_is_found(
    tmp_path: Path, trouble: Trouble, why: str
) -> None:
    cases = StoreCases(StoreTarget("planted", trouble, naive_client), tmp_path)
    try:
        found = [cases.run(seed) for seed in range(60)]
    finally:
        cases.close()
    assert any(why in each.why for each in found if each.outcome == "failed"), found


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\n\r\nabc",
        b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\na",
        b"HTTP/1.1 200 OK\r\nX: \x00\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
        b"oops",
    ],
)
def test_answers_that_are_not_well_formed_are_noticed(data: bytes) -> None:
    with pytest.raises(NotHttpError):
        read_answers(data)


def test_answers_are_read_one_after_the_other() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
    empty = b"HTTP/1.1 404 \r\nContent-Length: 9\r\n\r\n"
    found = read_answers(chunked + empty + chunked, ["POST", "HEAD", "GET"])
    assert [(each.status, each.body) for each in found] == [
        (200, b"abc"),
        (404, b""),
        (200, b"abc"),
    ]
    with pytest.raises(HalfError):
        read_answers(chunked[:-1])


@pytest.mark.campaign
def test_ten_thousand_sessions_fail_no_case(tmp_path: Path) -> None:
    assert CAMPAIGN.full * len(CAMPAIGN.targets) >= 10_000
    results = Path(os.environ.get("GPT2KIT_CAMPAIGN", tmp_path / "campaign.jsonl"))
    command = [sys.executable, str(SCRIPT), "hostile_network", "--results", str(results)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
