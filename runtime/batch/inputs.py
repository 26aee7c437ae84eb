"""What a batch consists of: one item for each video file or folder of pictures."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from corrflow.errors import InputError
from corrflow.runtime.video.image_sequence import is_picture, natural_order

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".wmv", ".flv", ".h264", ".3gp"}
)


_TAKEN = re.compile(r"\.staging.*|\.lock.*|\.?manifest(-\d+-of-\d+)?\.json(\.part)?|\.{0,2}")
"""What else lies in the folder of results, in small letters."""


@dataclass(frozen=True)
class Item:
    """One video to track through.

    name:   what its labels and its results are called: a file's name without its suffix, a folder's name
    source: the file, or the folder of pictures
    """

    name: str
    source: Path


def find_items(sources: Sequence[str]) -> list[Item]:
    """The items that the user named, in natural order.

    sources: video files, folders of pictures, folders of either, glob patterns of either, and lists: text files (.txt)
             with one of these a line, relative to the list

    Raises InputError where one is missing or empty, two items share one name, or one is called as a file of the batch.
    """
    paths: list[Path] = []
    for source in sources:
        paths += _paths(source)
    items: dict[str, Item] = {}
    for path in sorted(dict.fromkeys(path.absolute() for path in paths), key=natural_order):
        name = path.name if path.is_dir() else path.stem
        if _TAKEN.fullmatch(name.casefold()):
            raise InputError(
                f"expected videos with names of their own, got {str(path)!r}, whose results would be called as a file "
                f"of the batch is ({name}); rename it"
            )
        # Names of one spelling but another case are one name on the disks of macOS and Windows.
        other = items.setdefault(name.casefold(), Item(name, path))
        if other.source != path:
            raise InputError(
                f"expected videos with different names, got {str(other.source)!r} and {str(path)!r}; "
                "results are stored by name: rename one, or run them apart with another --out"
            )
    return list(items.values())


def shard_of(items: Sequence[Item], shard: str) -> list[Item]:
    """Every n-th item, from the i-th on, of the shard "i/n", i from 1 to n. Raises InputError for another text."""
    index, total = shard_numbers(shard)
    return list(items[index - 1 :: total])


def shard_numbers(shard: str) -> tuple[int, int]:
    """(i, n) of "i/n"; raises InputError unless 1 <= i <= n."""
    first, _, second = shard.partition("/")
    if not (first.isascii() and first.isdigit() and second.isascii() and second.isdigit()):
        raise InputError(f"expected --shard i/n such as 1/4, got {shard!r}")
    if not 1 <= int(first) <= int(second):
        raise InputError(f"expected --shard i/n with i from 1 to n, got {shard!r}")
    return int(first), int(second)


def _paths(source: str) -> list[Path]:
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        found = _items_of_folder(path)
    elif path.suffix.lower() == ".txt" and path.is_file():
        found = _items_of_list(path)
    elif path.exists():
        found = [path]
    elif glob.has_magic(source):
        found = [Path(match) for match in glob.iglob(str(path), recursive=True)]
    else:
        raise InputError(f"expected a video, a folder, a pattern or a list, got {source!r}, which does not exist")
    if not found:
        raise InputError(f"expected videos in {source!r}, got none; name files, or folders of pictures or videos")
    return found


def _items_of_folder(folder: Path) -> list[Path]:
    """The folder itself where it holds pictures, else the videos and the folders of pictures in it."""
    children = [child for child in folder.iterdir() if not child.name.startswith(".")]
    if any(is_picture(child) for child in children):
        return [folder]
    return [
        child
        for child in children
        if (child.suffix.lower() in VIDEO_SUFFIXES and child.is_file())
        or (child.is_dir() and any(is_picture(inner) for inner in child.iterdir()))
    ]


def _items_of_list(path: Path) -> list[Path]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"expected a list of videos in {str(path)!r}, got a file that cannot be read") from error
    found: list[Path] = []
    for line in lines:
        if line and not line.startswith("#"):
            named = path.parent / line
            # What a list names and is not there fails as an item, so that the others are done.
            found += _items_of_folder(named) or [named] if named.is_dir() else [named]
    return found
