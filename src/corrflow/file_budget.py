"""Budget of memory and time for the content of a file, because a small file may ask for any amount of both.

Every reader draws from the budget of its file before it takes memory, and in its loops for time. Limits grow with the
size of the file, up to an absolute cap. No reader takes a gigabyte or half a minute for a file under 10 MB.
"""

from __future__ import annotations

import io
import json
import os
import stat
import time
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from corrflow.errors import InputError

FREE_MEMORY, MEMORY_PER_BYTE, MOST_MEMORY = 768 << 20, 64, 8 << 30
"""Bytes for a small file, for each byte of a larger one, and for any file. Masks of 8K need the first."""
FREE_SECONDS, SECONDS_PER_BYTE, MOST_SECONDS = 20.0, 2e-6, 3600.0
"""Seconds of the processor, likewise."""
MAX_BYTES = 4 << 30
"""Size of the largest file that is read as a whole."""
MAX_YAML_BYTES = 1_000_000

YAML_NESTING = 64
_OF_ELEMENT, _OF_OBJECT = 64, 168  # bytes of an element of JSON in Python, and what an object takes in addition
_KINDS = ((stat.S_ISDIR, "folder"), (stat.S_ISFIFO, "pipe"), (stat.S_ISSOCK, "socket"))


class BudgetExceeded(InputError):
    """File whose content needs more memory or time than a file of its size may take."""


class FileBudget:
    """Memory and time that are left for one file.

    path: path of the file, for messages
    size: bytes of the file, which the limits are in proportion to
    """

    def __init__(self, path: str | PathLike[str] = "", size: int = 0) -> None:
        self.path = os.fspath(path)
        self.memory = self._granted = min(max(FREE_MEMORY, MEMORY_PER_BYTE * size), MOST_MEMORY)
        self.seconds = self._seconds = min(max(FREE_SECONDS, SECONDS_PER_BYTE * size), MOST_SECONDS)
        # The time of this thread, so that a busy machine does not refuse a file. The budget is used by one thread.
        self._start = time.thread_time()

    @classmethod
    def of(cls, path: Path) -> FileBudget:
        """Return the budget of a file. Raises InputError for a path that is no regular file."""
        return cls(path, regular_size(path))

    def take(self, count: float, what: str) -> None:
        """Draw bytes before they are allocated, and check the time. Raises BudgetExceeded.

        what: what needs the bytes, such as "its masks"
        """
        self.memory -= count
        if not self.memory >= 0:  # NaN as well
            raise BudgetExceeded(
                f"expected at most {self._granted >> 20} MB of memory for the content of {self.path}, got a file whose"
                f" {what} need more; split the file, or make it again if its numbers are wrong"
            )
        self.check_time()

    def take_arrays(self, path: Path, bytes_per_byte: float) -> None:
        """Draw memory for the arrays of an .npz file, by their sizes in its directory. Raises BudgetExceeded.

        bytes_per_byte: bytes in memory for each byte of the arrays

        A file that is no archive raises zipfile.BadZipFile.
        """
        import zipfile

        with zipfile.ZipFile(path) as archive:
            self.take(bytes_per_byte * sum(entry.file_size for entry in archive.infolist()), "arrays")

    def give_back(self, count: float) -> None:
        """Return bytes that are free again."""
        self.memory += count

    def take_time(self, seconds: float) -> None:
        """Reserve time for work that is done later. Raises BudgetExceeded."""
        self.seconds -= seconds
        self.check_time()

    def check_time(self) -> None:
        """Raise BudgetExceeded where the time is used up."""
        if time.thread_time() - self._start > self.seconds:
            raise BudgetExceeded(
                f"expected to read {self.path} within {self._seconds:.0f} s, got a file that takes longer; split it, or"
                " make it again if its numbers are wrong"
            )


def regular_size(path: Path) -> int:
    """Return the bytes of a regular file. Raises InputError for a device, pipe or folder, and OSError for no file."""
    status = os.stat(path)
    _check_regular(path, status.st_mode)
    return status.st_size


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises InputError for a device, pipe or folder, and OSError."""
    _check_regular(path, os.stat(path).st_mode)  # to open some devices has an effect
    # The path may lead elsewhere by now. A pipe would wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _check_regular(path, os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        with suppress(OSError):
            os.close(descriptor)
        raise


def open_text(path: Path) -> TextIO:
    """Open a regular file of UTF-8 for the csv module. Raises as `open_regular`."""
    return io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="")


def _check_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "device")
        raise InputError(f"expected a regular file at {os.fspath(path)}, got a {kind}; copy its content to a file")


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Return the content of a regular file. Raises InputError for another one, or more than `limit` bytes; OSError."""
    with open_regular(path) as file:
        # Python takes memory for all bytes that are asked for.
        content = file.read(min(os.fstat(file.fileno()).st_size, limit) + 1)
    if len(content) > limit:
        raise InputError(f"expected a file of at most {limit} bytes at {os.fspath(path)}, got a larger one; split it")
    return content


def read_text(path: Path, limit: int = MAX_BYTES) -> str:
    """Return the text of a regular file in UTF-8. Raises InputError as `read_bytes`, OSError and UnicodeDecodeError."""
    return read_bytes(path, limit).decode("utf-8-sig")


def read_json(path: Path, budget: FileBudget | None = None, limit: int = MAX_BYTES) -> Any:
    """Return the JSON of a regular file; see `parsed_json`."""
    content = read_bytes(path, limit)
    return parsed_json(content, budget or FileBudget(path, len(content)))


def parsed_json(content: bytes, budget: FileBudget, is_strict: bool = False) -> Any:
    """Parse JSON in UTF-8.

    is_strict: True to refuse Infinity and NaN, which are no JSON; files of labels may have them as missing values

    Raises BudgetExceeded, ValueError and RecursionError.
    """
    objects = content.count(b"{")
    elements = content.count(b",") + content.count(b"[") + 2 * objects + 1
    budget.take(len(content) + _OF_ELEMENT * elements + _OF_OBJECT * objects, "values of JSON")
    return json.loads(content.decode("utf-8-sig"), parse_constant=_refused if is_strict else None)


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant}, which is no number of JSON")


def read_yaml(path: Path) -> Any:
    """Return the YAML of a regular file without aliases; see `parsed_yaml`. Raises InputError and OSError as well."""
    return parsed_yaml(read_text(path, MAX_YAML_BYTES), FileBudget(path))


def parsed_yaml(text: str, budget: FileBudget) -> Any:
    """Parse YAML of plain values, without aliases: a short text may stand for billions of values by these.

    Raises BudgetExceeded, yaml.YAMLError, and plain errors of PyYAML's constructors.
    """
    import yaml  # 30 ms, which most commands do not need

    # A megabyte takes PyYAML's own parser two minutes, and libyaml's a second.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        budget.check_time()
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"the alias *{event.anchor}; write the value out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > YAML_NESTING:
            raise yaml.YAMLError(f"values nested more than {YAML_NESTING} deep")
    return yaml.load(text, Loader=loader)  # a safe one
