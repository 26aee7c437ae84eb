"""Inputs of a batch: one item for each video file or folder of images."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from corrflow.errors import InputError
from corrflow.runtime.video.image_sequence import is_image, natural_order

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".wmv", ".flv", ".h264", ".3gp"}
)


_RESERVED_NAMES = re.compile(r"\.staging.*|\.lock.*|\.?manifest(-\d+-of-\d+)?\.json(\.part)?|\.{0,2}")
"""Names of other files in the folder of results, in lower case."""


@dataclass(frozen=True)
class Item:
    """One video to track through.

    name:   name of its annotations and results: a file's name without its suffix, or a folder's name
    source: video file, or folder of images
    """

    name: str
    source: Path


def find_items(sources: Sequence[str]) -> list[Item]:
    """Return the items of sources in natural order.

    sources: video files, folders of images, folders of either, glob patterns of either, or lists: text files (.txt)
             with one source a line, relative to the list

    Raises InputError for a missing or empty source, for two items of one name, and for a reserved name.
    """
    paths: list[Path] = []
    for source in sources:
        paths += _paths(source)
    items: dict[str, Item] = {}
    for path in sorted(dict.fromkeys(path.absolute() for path in paths), key=natural_order):
        name = path.name if path.is_dir() else path.stem
        if _RESERVED_NAMES.fullmatch(name.casefold()):
            raise InputError(
                f"expected videos with names of their own, got {str(path)!r}, whose results would be called as a file "
                f"of the batch is ({name}); rename it"
            )
        # File systems of macOS and Windows ignore the case of names.
        other = items.setdefault(name.casefold(), Item(name, path))
        if other.source != path:
            raise InputError(
                f"expected videos with different names, got {str(other.source)!r} and {str(path)!r}; "
                "results are stored by name: rename one, or run them apart with another --out"
            )
    return list(items.values())


def shard_of(items: Sequence[Item], shard: str) -> list[Item]:
    """Return every n-th item, from the i-th on, of the shard "i/n". Raises InputError unless 1 <= i <= n."""
    index, total = shard_numbers(shard)
    return list(items[index - 1 :: total])


def shard_numbers(shard: str) -> tuple[int, int]:
    """Parse "i/n" to (i, n). Raises InputError unless 1 <= i <= n."""
    first, _, second = shard.partition("/")
    if not (first.isascii() and first.isdigit() and second.isascii() and second.isdigit()):
        raise InputError(f"expected --shard i/n such as 1/4, got {shard!r}")
    if not 1 <= int(first) <= int(second):
        raise InputError(f"expected --shard i/n with i from 1 to n, got {shard!r}")
    return int(first), int(second)


def _paths(source: str) -> list[Path]:
    """Return the videos and folders of images of one source. Raises InputError without any."""
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        paths = _items_of_folder(path)
    elif path.suffix.lower() == ".txt" and path.is_file():
        paths = _items_of_list(path)
    elif path.exists():
        paths = [path]
    elif glob.has_magic(source):
        paths = [Path(match) for match in glob.iglob(str(path), recursive=True)]
    else:
        raise InputError(f"expected a video, a folder, a pattern or a list, got {source!r}, which does not exist")
    if not paths:
        raise InputError(f"expected videos in {source!r}, got none; name files, or folders of images or videos")
    return paths


def _items_of_folder(folder: Path) -> list[Path]:
    """Return the folder itself if it contains images, else its videos and folders of images."""
    children = [child for child in folder.iterdir() if not child.name.startswith(".")]
    if any(is_image(child) for child in children):
        return [folder]
    return [
        child
        for child in children
        if (child.suffix.lower() in VIDEO_SUFFIXES and child.is_file())
        or (child.is_dir() and any(is_image(inner) for inner in child.iterdir()))
    ]


def _items_of_list(path: Path) -> list[Path]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"expected a list of videos in {str(path)!r}, got a file that cannot be read") from error
    paths: list[Path] = []
    for line in lines:
        if line and not line.startswith("#"):
            listed = path.parent / line
            # A missing file of a list fails as an item, so that the other items are processed.
            paths += _items_of_folder(listed) or [listed] if listed.is_dir() else [listed]
    return paths
