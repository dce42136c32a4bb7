"""Find images that two data sets share, by the content of their pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from stages.data.source import ImageSource, read_each
from stages.errors import InputError

_BLOCK_ROWS = 1024


def check_apart(inside: ImageSource, outsides: Sequence[ImageSource]) -> None:
    """Check that out-of-distribution sets contain no in-distribution image, after resizing.

    Rows that cannot be read are ignored.

    Raises:
        InputError: one does; the message has the number of such images and names the first.
    """
    names = dict(_hashed(inside))
    for outside in outsides:
        found = [(name, names[digest]) for digest, name in _hashed(outside) if digest in names]
        if found:
            first, original = found[0]
            raise InputError(
                f"{outside.name} {outside.split}: {len(found):,} of its {outside.n_rows:,} images "
                f"are also images of {inside.name} {inside.split} (first: {first} is {original}), "
                "expected none: remove them, or compare with another set"
            )


def _hashed(source: ImageSource) -> Iterator[tuple[bytes, str]]:
    """A hash of the pixels of each row, and the row's name."""
    for start in range(0, source.n_rows, _BLOCK_ROWS):
        rows = read_each(source, start, min(start + _BLOCK_ROWS, source.n_rows))
        for row, (image, name) in enumerate(
            zip(rows.images, rows.columns["sample_id"], strict=True)
        ):
            if row not in rows.failed:
                yield hashlib.blake2b(image.tobytes(), digest_size=16).digest(), str(name)
