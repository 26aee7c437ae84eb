"""Atomic files: each appears at its path complete or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from corrflow.errors import CorrflowError, InputError


class AtomicFile:
    """File that is written to a hidden neighbour, `part`, and renamed to its path by `finish`.

    part:      path to write to, in the folder of the file, because a rename is atomic only within one disk
    exclusive: True if no other process writes this file; a later run then overwrites the part of a killed process.
               False gives each process a part of its own.

    As a context, an AtomicFile yields `part` and finishes at the end; an error in the block removes the part.
    """

    def __init__(self, path: str | Path, exclusive: bool = False) -> None:
        # Text, because Python 3.12's pathlib keeps every name for ever, and a video may have many thousand files.
        folder, name = os.path.split(path)
        self._path = path
        self.part = os.path.join(folder, f".{name}.part" if exclusive else f".{name}.{os.getpid()}.part")

    def finish(self, keep: bool = True) -> None:
        """Rename the part to the path, or remove the part. Raises OSError where the part cannot be renamed."""
        try:
            if keep:
                os.replace(self.part, self._path)
        finally:
            with suppress(OSError):
                os.unlink(self.part)

    def __enter__(self) -> str:
        return self.part

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self.finish(keep=kind is None)


def write_file(path: str | Path, content: bytes | str, exclusive: bool = False) -> None:
    """Write a file atomically, text in UTF-8, and create its folder. Raises CorrflowError.

    exclusive: as for `AtomicFile`
    """
    with write_errors(path):
        if folder := os.path.dirname(path):
            os.makedirs(folder, exist_ok=True)
        with AtomicFile(path, exclusive) as part, open(part, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)


def check_writable(path: Path) -> None:
    """Create the folder of a file, and raise InputError unless the file can be written. Use before long work."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        file = AtomicFile(path, exclusive=True)
        Path(file.part).touch()
        file.finish(keep=False)
    except OSError as error:
        raise InputError(
            f"expected to write to {str(path)!r}, got an error ({error.strerror}); choose another place"
        ) from None


@contextmanager
def write_errors(path: str | Path, *kinds: type[Exception]) -> Iterator[None]:
    """Turn an OSError, or an error of the given kinds, into a CorrflowError that names the path."""
    try:
        yield
    except (OSError, *kinds) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise CorrflowError(
            f"expected to write {str(path)!r}, got an error ({reason}); free some space or choose another place"
        ) from None
