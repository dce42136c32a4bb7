"""Safe output of text from files, which may contain control sequences for the terminal."""

import re

_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters except tab and newline
    r"\u200e\u200f\u202a-\u202e\u2066-\u2069"  # changes of the writing direction
    r"\ud800-\udfff]"  # undecodable bytes of file names, which streams cannot write
)


def printable(text: str) -> str:
    """Escape control characters; lines are kept.

    >>> printable("a\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def printable_line(text: str) -> str:
    """Escape control characters, newlines and tabs, for a cell of a table or a message.

    >>> printable_line("a\nb")
    'a\\\\nb'
    """
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def counted(n: int, noun: str) -> str:
    """A number and its noun, in the singular or with an s.

    >>> counted(1, "shard"), counted(2_000, "shard")
    ('1 shard', '2,000 shards')
    """
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def size(n_bytes: float) -> str:
    """A number of bytes with a unit.

    >>> size(3_048_000)
    '3.0 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"
