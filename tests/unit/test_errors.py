"""Whatever text an error is made from, it is one printable line."""

import pytest

from klein.errors import LONGEST, KleinError


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a sentence: do this.", "a sentence: do this."),
        ("a\nb\r\n  c\td", "a b c d"),
        ("format \ud800 is unknown", r"format \ud800 is unknown"),
        ("bell \x07 and null \x00", r"bell \x07 and null \x00"),
        ("Prüfung 画像 stays", "Prüfung 画像 stays"),
    ],
)
def test_text_becomes_one_line_that_can_be_encoded(text, line):
    assert str(KleinError(text)) == line
    str(KleinError(text)).encode()


def test_long_text_keeps_its_beginning_and_its_advice():
    line = str(KleinError("found " + "x" * 40_000 + ": load another file."))
    assert len(line) <= LONGEST and line.startswith("found xx") and line.endswith("xx: load another file.")
