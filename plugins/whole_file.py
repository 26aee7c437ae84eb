"""Files that appear whole or not at all. In the lowest package, because every stage writes some."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write what is to appear at `path`: a hidden neighbour, since a rename is atomic only within one disk.

    It takes the file's name where the block ends without an error, and is removed where not. The process's number is in
    its name, so that two processes that write the same file do not write into each other's. Raises OSError.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):  # the first error is the one to tell
            part.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file, text in UTF-8: it is the old one or the whole new one, never a part. Raises OSError."""
    with whole_file(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
