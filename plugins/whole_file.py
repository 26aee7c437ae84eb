"""Files that appear whole or not at all. In the lowest package, because every stage writes some."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole_file(path: Path, only_writer: bool = False) -> Iterator[Path]:
    """Where to write what is to appear at `path`: a hidden neighbour, since a rename is atomic only within one disk.

    It takes the file's name where the block ends without an error, and is removed where not. Raises OSError.

    only_writer: whether a lock keeps others from writing this file. Then the next one writes over what a killed process
        has left; otherwise each process has a neighbour of its own, so that none writes into another's.
    """
    part = path.with_name(f".{path.name}.part" if only_writer else f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):  # the first error is the one to tell
            part.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: bytes | str, only_writer: bool = False) -> None:
    """Write a file, text in UTF-8: it is the old one or the whole new one, never a part. See `whole_file`."""
    with whole_file(path, only_writer) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
