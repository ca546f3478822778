"""Which worker has a part in hand, and when it has lost it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gpt2kit.bulk import claims


def test_one_of_many_threads_gets_a_claim(tmp_path: Path) -> None:
    found: list[claims.Claim | None] = []
    barrier = threading.Barrier(8)

    def take() -> None:
        barrier.wait()
        found.append(claims.take(tmp_path / "00001", claims.new_token()))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(claim is not None for claim in found) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["00001"]


def test_a_released_claim_can_be_taken_again(tmp_path: Path) -> None:
    claim = claims.take(tmp_path / "1", claims.new_token())
    assert claim is not None
    claim.release()
    assert not claim.path.exists()
    assert claims.take(tmp_path / "1", claims.new_token()) is not None


def test_the_claim_of_a_process_that_has_died_is_stale_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from gpt2kit.bulk import claims\n"
        "assert claims.take(Path(sys.argv[1]), 'theirs')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "1")], check=True)
    assert claims.is_stale(tmp_path / "1")
    assert claims.take(tmp_path / "1", "mine") == claims.Claim(tmp_path / "1", "mine")


def test_a_claim_from_another_host_is_stale_when_nobody_touched_it(tmp_path: Path) -> None:
    claim = claims.take(tmp_path / "1", "theirs")
    assert claim is not None
    found = claims.owner(claim.path)
    claim.path.write_text(json.dumps({**found, "host": "elsewhere", "pid": 1}))
    assert not claims.is_stale(claim.path)
    old = claim.path.stat().st_mtime - claims.STALE - 5
    os.utime(claim.path, (old, old))
    assert claims.is_stale(claim.path)
    claim.touch()
    assert not claims.is_stale(claim.path)


def test_a_worker_whose_claim_was_taken_over_does_not_delete_the_new_one(tmp_path: Path) -> None:
    mine = claims.take(tmp_path / "1", "mine")
    assert mine is not None
    mine.path.unlink()
    assert claims.take(mine.path, "theirs") is not None
    mine.release()
    assert claims.owner(mine.path)["token"] == "theirs"


def test_a_worker_whose_claim_was_taken_over_does_not_touch_the_new_one(tmp_path: Path) -> None:
    """The worker that had lost it kept it alive: when the new one died, nobody took the part."""
    mine = claims.take(tmp_path / "1", "mine")
    assert mine is not None
    mine.path.unlink()
    assert claims.take(mine.path, "theirs") is not None
    os.utime(mine.path, (1, 1))
    mine.touch()
    assert mine.path.stat().st_mtime == 1


def test_a_claim_that_is_half_written_is_not_stale(tmp_path: Path) -> None:
    (tmp_path / "1").write_text("")
    assert not claims.is_stale(tmp_path / "1")
    assert claims.take(tmp_path / "1", "mine") is None


def test_the_heartbeat_touches_the_claim_in_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "TOUCHED", 0.0)
    monkeypatch.setattr(claims, "_BEAT", 0.01)
    claim = claims.take(tmp_path / "1", "mine")
    assert claim is not None
    os.utime(claim.path, (1, 1))
    touched = threading.Event()
    monkeypatch.setattr(claims.Claim, "touch", lambda _: touched.set())
    with claims.Heartbeat() as heartbeat:
        heartbeat.hold(claim)
        assert touched.wait(10)
