"""What a terminal shows: names and messages come from files, and may hold orders to a terminal."""

import re

_ORDERS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but for tab and newline: escape sequences
    r"\u200e\u200f\u202a-\u202e\u2066-\u2069"  # what turns the direction of writing around
    r"\ud800-\udfff]"  # bytes of a file name that are no text, which no stream takes
)


def printable(text: str) -> str:
    """The text with what is not meant for eyes spelled out; its lines stay lines.

    >>> printable("a\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    return _ORDERS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def printable_line(text: str) -> str:
    """The same in one line, for a cell of a table or a message.

    >>> printable_line("a\nb")
    'a\\\\nb'
    """
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")
