"""Signs that a text was damaged: counted, with a sentence on each."""

from __future__ import annotations

import pytest

from gpt2kit.data.oddities import examine

ITALIAN = "Così è la virtù: perché no? «Città» più l’amor.\n"


def test_a_text_that_is_as_it_should_be_has_no_notes() -> None:
    assert examine([ITALIAN, "Ñandú «È» – “É” ü\tß\n"]).notes == []


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("a\r\nb\r\n", r"2 lines end with \r\n"),
        (
            ITALIAN.encode().decode("cp1252", "ignore"),
            "9 characters were decoded wrongly before, UTF-8 as another encoding",
        ),
        ("città".encode().decode("latin-1"), "(Ã\xa0 for à)"),
        ("l’amor".encode().decode("cp1252"), "(â€™ for ’)"),
        ("a\ufffdb\ufffd", "2 characters are U+FFFD"),
        ("cittA\u0300", "not in Unicode's composed form"),
        ("a\x00\x00\x0c", "3 control characters: U+0000 (2), U+000C (1)"),
    ],
)
def test_what_is_odd_is_noted(text: str, note: str) -> None:
    notes = examine([text]).notes
    assert len(notes) >= 1
    assert any(note in line for line in notes)
