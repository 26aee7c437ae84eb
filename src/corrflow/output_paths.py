"""Outputs that spare users' files: apart from every input, and replaced only where this package made them.

A folder of results has a completion record: a JSON file with the name and the size of every file in it. A folder is
replaced as a whole, if all its files are those of its record, and none is newer. Anything else belongs to the user.
The record of a folder `masks` is `.masks.corrflow.json` beside it, because other tools read every file of a folder; a
batch has its own, `item.json`.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from corrflow.atomic_files import clipped, write_file
from corrflow.errors import InputError
from corrflow.special_files import is_special

_LONGEST_NAME = 250  # bytes of 255, because a taken name gets a number
_TIME_TOLERANCE = 5.0  # seconds, because network disks round times
_OF_THE_SYSTEM = {".DS_Store", "Thumbs.db", "desktop.ini"}  # files that a file manager adds


def check_apart(
    inputs: Iterable[str | os.PathLike[str] | None],
    files: Iterable[Path] = (),
    folders: Iterable[Path] = (),
    trees: Iterable[Path] = (),
) -> None:
    """Raise InputError where an output is an input, would replace one, would mix with some, or is another output.

    inputs:  files, folders and glob patterns that are read; None is left out
    files:   output files
    folders: output folders, each replaced as a whole
    trees:   input folders that are read with everything below them, so that no output may be inside

    Links, `..` and names of other case are resolved.
    """
    files, folders, trees = list(files), list(folders), list(trees)
    given = [os.path.expanduser(one) for one in inputs if one is not None]
    patterns = [one for one in given if not os.path.exists(one) and glob.has_magic(one)]
    read = [match for one in given for match in (glob.iglob(one, recursive=True) if one in patterns else [one])]
    identities = {_identity(one): one for one in read if os.path.exists(one)}
    # Folders whose contents a pattern matches at several depths.
    trees += [Path(_fixed_part(one)) for one in patterns if glob.has_magic(os.path.dirname(one))]
    outputs = [*files, *folders]
    for output in outputs:
        if output.exists() and (same := identities.get(_identity(output))) is not None:
            raise InputError(
                f"expected results apart from the inputs, got {_for_both(same, output)}; name another place"
            )
        for tree in trees:
            if (output in folders or output.parent != tree) and is_within(output, tree):
                raise InputError(
                    f"expected results outside the folder {str(tree)!r}, which is read as a whole, got {str(output)!r};"
                    " name another place"
                )
    for folder in folders:
        # A folder of a hundred thousand images has one parent.
        for parent in {os.path.dirname(os.path.abspath(one)): one for one in read}.values():
            if folder.exists() and is_within(parent, folder):
                raise InputError(
                    f"expected results apart from the inputs, got the folder {str(folder)!r}, which contains "
                    f"{str(parent)!r} and would be replaced; name another place"
                )
    for index, output in enumerate(outputs):
        for other in outputs[:index]:
            if _same(output, other) and os.fspath(output) == os.devnull:
                continue
            if _same(output, other) or any(
                outer in folders and is_within(inner, outer) for inner, outer in ((output, other), (other, output))
            ):
                raise InputError(
                    f"expected outputs apart from each other, got {str(other)!r} and {str(output)!r}; name other places"
                )


def record_path(folder: Path) -> Path:
    """Return the path of a folder's completion record."""
    return folder.with_name(fitting(f".{folder.name}", ".corrflow.json"))


def fitting(name: str, ending: str) -> str:
    """Return a file's name from a name and an ending. Too long a name is clipped, and keeps apart from others."""
    most = _LONGEST_NAME - len(os.fsencode(ending))
    if len(os.fsencode(name)) <= most:
        return name + ending
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
    return f"{clipped(name, most - 9)}-{digest}{ending}"


def check_own_folder(folder: Path, record: Path | None = None) -> None:
    """Raise InputError unless the folder is missing, is empty, or holds what its record lists and nothing else.

    record: path of the record, `record_path` by default
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"expected a folder for results, got the file {str(folder)!r}; name another place")
        if not folder.exists() or not _files_of(folder):
            return
        remedy = "move that away, or name another place"
        record = record or record_path(folder)
        try:
            own = dict(json.loads(record.read_text())["files"])
            written = record.stat().st_mtime
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(
                f"expected a new or empty folder, or earlier results to replace, got {str(folder)!r} with other "
                f"files ({next(iter(_files_of(folder)))}); name another place"
            ) from None
        for name, path in _files_of(folder).items():
            if Path(path) == record:
                continue
            if name not in own:
                raise InputError(
                    f"expected earlier results alone in {str(folder)!r}, got {name!r} beside them; {remedy}"
                )
            status = os.lstat(path)
            if status.st_size != own[name] or status.st_mtime > written + _TIME_TOLERANCE:
                raise InputError(
                    f"expected earlier results as they were written in {str(folder)!r}, got {name!r} changed since; "
                    f"{remedy}"
                )
    except OSError as error:
        raise InputError(
            f"expected a folder of results in {str(folder)!r}, got an error ({error.strerror}); name another place"
        ) from None


def check_folder_of(folder: Path, *marks: str) -> None:
    """Raise InputError unless a folder is missing, is empty, or has one of the entries that its command makes first.

    marks: names of those entries

    For commands that add to a folder, or go on with what is in it.
    """
    if folder.is_file():
        raise InputError(f"expected a folder to write to, got the file {str(folder)!r}; name another")
    try:
        present = [name for name in (os.listdir(folder) if folder.exists() else []) if not name.startswith(".")]
    except OSError as error:
        raise InputError(
            f"expected a folder to write to, got {str(folder)!r} ({error.strerror}); name another"
        ) from None
    if present and not set(present) & set(marks):
        raise InputError(
            f"expected a new or empty folder, or one that this command made ({' or '.join(marks)} in it), got "
            f"{str(folder)!r} with other files ({min(present)}); name another"
        )


def check_beginning(path: Path, kind: str, *beginnings: bytes) -> None:
    """Raise InputError where a file exists that does not begin as results of a kind do. An empty file may be replaced.

    beginnings: in lower case
    """
    if is_special(path):
        return
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"expected a file for {kind}, got {str(path)!r}, which is none; name another")
        if not path.exists() or not path.stat().st_size:
            return
        with path.open("rb") as file:
            start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    except OSError as error:
        raise InputError(
            f"expected to write to {str(path)!r}, got an error ({error.strerror}); name another place"
        ) from None
    if not start.startswith(beginnings):
        raise another_file(path, kind)


def another_file(path: Path, kind: str) -> InputError:
    """Return the error for a file that is no earlier result."""
    return InputError(
        f"expected a free name or an earlier result to replace for {kind}, got {str(path)!r}, which is another file; "
        "name another, or remove it"
    )


def file_sizes(folder: Path) -> dict[str, int]:
    """Return the size of every file in a complete folder by its name: `files` of its record. Raises OSError."""
    return {name: os.lstat(path).st_size for name, path in sorted(_files_of(folder).items())}


def write_record(folder: Path, sizes: Mapping[str, int]) -> None:
    """Write the record of a folder at its place, after the folder; sizes: as of `file_sizes`. Raises CorrflowError."""
    write_file(record_path(folder), json.dumps({"files": sizes}) + "\n")


def unique_path(path: Path) -> Path:
    """Create an empty file at the path, or at the first free one of `name-2.suffix`, `name-3.suffix`, ...

    Raises OSError.
    """
    number = 1
    while True:
        free = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        try:
            os.close(os.open(free, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            return free
        except FileExistsError:
            number += 1


def unique_folder(path: Path) -> Path:
    """Make a folder at the path, or at the first free one of `name-2`, `name-3`, ... Raises OSError."""
    number = 1
    while True:
        free = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            free.mkdir(parents=True)
            return free
        except FileExistsError:
            number += 1


def _files_of(folder: Path) -> dict[str, str]:
    """Return the paths of all files in a folder by their name relative to it, with links, without folders."""

    def fail(error: OSError) -> None:
        raise error

    files = {}
    for parent, folders, names in os.walk(folder, onerror=fail):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in [*names, *links]:
            if name not in _OF_THE_SYSTEM and not name.startswith("._"):
                path = os.path.join(parent, name)
                files[os.path.relpath(path, folder)] = path
    return files


def _identity(path: str | os.PathLike[str]) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _same(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> bool:
    if os.path.exists(first) and os.path.exists(second):
        return _identity(first) == _identity(second)
    return os.path.realpath(first) == os.path.realpath(second)


def is_within(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> bool:
    """Return True if the path is the folder or is inside it, also where it does not exist yet."""
    if not os.path.exists(folder):
        return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
    outer = _identity(folder)
    place = Path(os.path.realpath(path))
    return any(one.exists() and _identity(one) == outer for one in (place, *place.parents))


def _fixed_part(pattern: str) -> str:
    """Return the folder of a pattern before its first wildcard."""
    while glob.has_magic(pattern):
        pattern = os.path.dirname(pattern)
    return pattern or "."


def _for_both(same: str, output: Path) -> str:
    if os.path.realpath(same) == os.path.abspath(output):
        return f"{str(output)!r} for both"
    return f"{str(output)!r} and the input {same!r}, which are both the same"
