from __future__ import annotations

LONGEST = 800  # characters; what is cut is the middle, so that the advice at the end stays


class KleinError(ValueError):
    """One sentence for the user: what was found, what was expected, what to load or change instead.

    Any text makes one printable line of 800 characters at most: names in files may hold line breaks or lone surrogates,
    and one that cannot be encoded stops the host's logger, and with it its queue.
    """

    def __init__(self, text: str):
        line = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
        if len(line) > LONGEST:
            half = (LONGEST - 5) // 2
            line = f"{line[:half]} ... {line[-half:]}"
        super().__init__(line)


# The host tells an error by its module and name, which some frontends show before the sentence: as with Python's own
# errors, the name alone says it.
KleinError.__module__ = "builtins"


def half_character(text: str) -> str | None:
    """The first half of a character (lone surrogate) in a text, which no encoding can write down; None where all can be."""
    return next((character for character in text if "\ud800" <= character <= "\udfff"), None)
