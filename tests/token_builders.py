"""A vocabulary of any pieces, for tests of what may be written next."""

from __future__ import annotations

from pathlib import Path

END = 0


class Pieces:
    """A vocabulary of any pieces of bytes; id 0 is the end marker, unless there is none."""

    def __init__(self, *pieces: bytes, stop_id: int | None = END) -> None:
        self._bytes = [b"<|endoftext|>", *pieces]
        self.n_vocab, self.stop_id = len(self._bytes), stop_id

    def token_bytes(self, token: int) -> bytes:
        return self._bytes[token]

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        raise NotImplementedError

    def decode(self, ids: list[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    def files(self) -> dict[str, bytes]:
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        raise NotImplementedError
