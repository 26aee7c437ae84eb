"""Files that appear whole or not at all. In the lowest package, because every stage writes some."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from corrflow.errors import CorrflowError, InputError


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


def part_of(path: Path) -> Path:
    """Where a file is written before it is whole: beside its path, since a rename is atomic only within one disk."""
    return path.with_name(f".{path.name}.part")


def finish(path: Path, keep: bool = True) -> None:
    """Give what was written beside the path its name, or remove it where it is not worth keeping. Raises OSError."""
    if keep:
        os.replace(part_of(path), path)
    else:
        part_of(path).unlink()


def save_whole(path: str | Path, content: bytes) -> None:
    """Write a file that appears with all its content or not at all; raises CorrflowError where that fails.

    The path of one of a video's many files is text: Python 3.12's pathlib keeps every name that it has met for ever.
    """
    folder, name = os.path.split(path)
    part = os.path.join(folder, f".{name}.part")
    try:
        with open(part, "wb") as file:
            file.write(content)
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):
            os.unlink(part)
        raise write_failed(path, error) from None


def prepare_place(path: Path) -> None:
    """Make the path's folder and prove that a file can be written there, before any work is spent."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        part_of(path).touch()
        part_of(path).unlink()
    except OSError as error:
        raise InputError(
            f"expected to write to {str(path)!r}, got an error ({error.strerror}); choose another place"
        ) from None


def write_failed(path: str | Path, error: Exception) -> CorrflowError:
    reason = getattr(error, "strerror", None) or type(error).__name__
    return CorrflowError(
        f"expected to write {str(path)!r}, got an error ({reason}); free some space or choose another place"
    )
