"""The folder of an output: parts and their receipts."""

from __future__ import annotations

import json
from pathlib import Path

from gpt2kit.bulk.folder import Folder


def test_a_worker_whose_part_was_taken_over_leaves_the_receipt_of_the_other(tmp_path: Path) -> None:
    """It wrote its own receipt beside the other's part, which was then called damaged."""
    folder = Folder(tmp_path)
    folder.make()
    written = folder.part_file(0)
    digest = folder.write(0, [b"theirs\n"])
    folder.commit(0, written, {"sha256": digest})  # after it swept the part of this worker away
    folder.commit(0, written, {"sha256": "ours"})
    assert json.loads(folder.receipt(0).read_text()) == {"sha256": digest}
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == [
        "00000.json",
        "00000.jsonl",
    ]
