"""Atomic files and folders: each appears at its path complete or not at all.

Special outputs, as pipes and devices, are written through, see `special_files`.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from corrflow.errors import CorrflowError, InputError
from corrflow.special_files import is_special, is_writable, open_special

try:
    import fcntl
except ImportError:  # Windows, which removes no open file
    fcntl = None


class AtomicFile:
    """File or folder that is written as a hidden neighbour, `part`, and renamed to its path by `finish`.

    Each has a part of its own, which is locked, so that two runs never share one. The first use of a folder by a
    process removes the parts that killed runs left there. As a context, an AtomicFile yields `part` and finishes at the
    end; an error in the block removes the part. The part of a special output is a temporary file, which is copied.
    """

    def __init__(self, path: str | Path, folder: bool = False) -> None:
        """Prepare to write; nothing is created before `part` is used. folder: True for a folder in place of a file."""
        self._path, self._folder = path, folder
        self._part, self._lock = "", -1

    @property
    def part(self) -> str:
        """Path to write to, in the folder of the path, because a rename is atomic only within one disk.

        The first use creates it, empty. Raises OSError.
        """
        if self._part:
            return self._part
        # Text, because Python 3.12's pathlib keeps every name for ever, and a video may have many thousand files.
        parent, name = os.path.split(self._path)
        if is_special(self._path):
            parent = tempfile.gettempdir()
        else:
            remove_leftovers(parent or ".")
        while True:
            part = os.path.join(parent, f".{clipped(name, 160)}.{os.urandom(8).hex()}.part")
            if self._folder:
                os.mkdir(part)
            opened = os.open(part, os.O_RDONLY if self._folder else os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
            if _lock(opened) and os.path.exists(part):
                self._part, self._lock = part, opened
                return part
            os.close(opened)  # another run took the part for a leftover before it was locked

    def finish(self, keep: bool = True) -> None:
        """Rename the part to the path, or remove the part. Raises OSError where the part cannot be renamed."""
        part, self._part = self._part, ""
        if not part:
            return
        try:
            if os.name == "nt":  # renames no open file
                self._unlock()
            if keep and self._folder:
                _replace_folder(part, self._path)
            elif keep and is_special(self._path):
                with open(part, "rb") as file, open_special(self._path) as output:
                    shutil.copyfileobj(file, output)
            elif keep:
                os.replace(part, self._path)
        finally:
            _remove(part)
            self._unlock()

    def _unlock(self) -> None:
        opened, self._lock = self._lock, -1
        if opened >= 0:
            os.close(opened)

    def __enter__(self) -> str:
        return self.part

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self.finish(keep=kind is None)


def clipped(name: str, most: int) -> str:
    """Return the beginning of a name that has at most this number of bytes. File systems take 255 bytes."""
    return os.fsencode(name)[:most].decode(errors="ignore") if len(os.fsencode(name)) > most else name


def _replace_folder(part: str, path: str | Path) -> None:
    """Rename a folder to a path, and remove the folder that was there.

    The latter keeps its name in a hidden folder meanwhile, from which the next run restores it after a kill.
    """
    old = f"{part.removesuffix('.part')}.old"
    if os.path.lexists(path):
        os.mkdir(old)
        os.rename(path, os.path.join(old, os.path.basename(path)))
    os.rename(part, path)
    shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(folder: str) -> None:
    """Remove, once for each folder, the parts of processes that were killed; those of others at work are locked."""
    if folder in _tidied:
        return
    _tidied.add(folder)
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if is_old := bool(_OLD.fullmatch(entry.name)):
                for name in os.listdir(entry.path):
                    if not os.path.lexists(os.path.join(folder, name)):  # killed between the two renames
                        os.rename(os.path.join(entry.path, name), os.path.join(folder, name))
            if _PART.fullmatch(entry.name) or is_old:
                with suppress(OSError):
                    opened = os.open(entry.path, os.O_RDONLY)
                    try:
                        if _lock(opened):
                            _remove(entry.path)
                    finally:
                        os.close(opened)


_PART = re.compile(r"\..*\.[0-9a-f]{16}\.part")
_OLD = re.compile(r"\..*\.[0-9a-f]{16}\.old")
_tidied: set[str] = set()


def _lock(opened: int) -> bool:
    """Lock an open file or folder until it is closed; return False if another holds it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def _remove(path: str) -> None:
    with suppress(OSError):
        if os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)


def write_file(path: str | Path, content: bytes | str) -> None:
    """Write a file atomically, text as of `encoded`, and create its folder. Raises CorrflowError."""
    with write_errors(path):
        if folder := os.path.dirname(path):
            os.makedirs(folder, exist_ok=True)
        with AtomicFile(path) as part, open(part, "wb") as file:
            file.write(encoded(content) if isinstance(content, str) else content)


def encoded(text: str) -> bytes:
    """Return text in UTF-8; bytes of a file's name that are none become escapes, which JSON has as well."""
    return text.encode(errors="backslashreplace")


def check_writable(path: Path) -> None:
    """Create the folder of a file, and raise InputError unless the file can be written. Use before long work."""
    if is_special(path):
        if not is_writable(path):
            raise InputError(f"expected to write to {str(path)!r}, got a closed one, or no right to; name another")
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        output = AtomicFile(path)
        os.stat(output.part)  # the first use creates it
        output.finish(keep=False)
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
