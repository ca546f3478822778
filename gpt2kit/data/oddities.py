"""Signs that a text was damaged before it came here: counted, never changed."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
# How the first bytes of UTF-8 characters look if they are read as cp1252.
_MOJIBAKE = re.compile(r"(?=([ÂÃÄÅÐÑâ][^\x00-\x7f]{1,2}))")


@dataclass(frozen=True)
class Oddities:
    """Counts of signs that something went wrong with a text; all zero for most texts."""

    crlf: int  # lines that end as on Windows: the \r costs a token each, and is learned
    mojibake: int  # characters that are UTF-8 read as another encoding: Ã¨ for è
    mojibake_example: str | None
    replacements: int  # U+FFFD, which a program wrote for bytes that it could not decode
    not_nfc: int  # documents with letters and accents apart: one word is spelled in two ways
    controls: dict[str, int]  # such as U+0000 and U+000C: all but tab, \n and \r

    @property
    def notes(self) -> list[str]:
        """Return a sentence on each thing that is odd."""
        found = []
        if self.crlf:
            found.append(
                f"{self.crlf:,} lines end with \\r\\n; the model will learn the \\r too "
                "(tr -d '\\r' removes it)"
            )
        if self.mojibake:
            found.append(
                f"{self.mojibake:,} characters were decoded wrongly before, UTF-8 as another "
                f"encoding ({self.mojibake_example}); correct the text first"
            )
        if self.replacements:
            found.append(
                f"{self.replacements:,} characters are U+FFFD: an earlier program could not decode "
                "what was there"
            )
        if self.not_nfc:
            found.append(
                f"{self.not_nfc:,} documents are not in Unicode's composed form (NFC): letters and "
                "their accents may be separate characters"
            )
        if self.controls:
            shown = ", ".join(
                f"{name} ({count:,})" for name, count in sorted(self.controls.items())[:5]
            )
            found.append(f"{sum(self.controls.values()):,} control characters: {shown}")
        return found


def examine(documents: Sequence[str]) -> Oddities:
    """Count what is odd in some documents."""
    controls: Counter[str] = Counter()
    mended: Counter[str] = Counter()
    for document in documents:
        controls.update(_CONTROL.findall(document))
        mended.update(fix for found in _MOJIBAKE.findall(document) if (fix := _mend(found)))
    return Oddities(
        crlf=sum(document.count("\r\n") for document in documents),
        mojibake=mended.total(),
        mojibake_example=mended.most_common(1)[0][0] if mended else None,
        replacements=sum(document.count("\ufffd") for document in documents),
        not_nfc=sum(not unicodedata.is_normalized("NFC", document) for document in documents),
        controls={f"U+{ord(character):04X}": count for character, count in controls.items()},
    )


def _mend(found: str) -> str | None:
    """Return "Ã¨ for è" if characters are UTF-8 read as cp1252, else None."""
    for length in (3, 2):
        try:
            right = b"".join(map(_cp1252, found[:length])).decode("utf-8")
        except UnicodeError:
            continue
        if len(right) == 1:
            return f"{found[:length]} for {right}"
    return None


def _cp1252(character: str) -> bytes:
    """Return a character's byte in cp1252, or in latin-1 for the five bytes that cp1252 lacks."""
    try:
        return character.encode("cp1252")
    except UnicodeEncodeError:
        return character.encode("latin-1")
