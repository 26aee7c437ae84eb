"""Inputs of a batch: one item for each video file or folder of images."""

from __future__ import annotations

import glob
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from corrflow.errors import InputError
from corrflow.runtime.video.image_sequence import find_images, is_image, natural_order
from corrflow.runtime.video.suffixes import VIDEO_SUFFIXES

_RESERVED_NAMES = re.compile(r"\.staging.*|\.lock.*|\.?manifest(-\d+-of-\d+)?\.json(\.part)?|\.{0,2}")
"""Names of other files in the folder of results, in lower case."""


@dataclass(frozen=True)
class Item:
    """One video to track through.

    name:   name of its annotations and results: a file's name without its suffix, or a folder's name
    source: video file, or folder of images
    labels: folder or file of its labels; None for that of the batch
    label_folder: folder with the labels of this item alone; None for the folder of its name in the place of labels
    """

    name: str
    source: Path
    labels: Path | None = None
    label_folder: Path | None = None

    def images(self) -> list[Path]:
        """Return the images of a folder in the order of the frames. Raises InputError for an unreadable folder."""
        return find_images(os.path.join(glob.escape(str(self.source)), "*"), f"folder {str(self.source)!r}")


def find_items(sources: Sequence[str], passed_over: list[str] | None = None) -> list[Item]:
    """Return the items of sources in natural order.

    sources:     video files, folders of images, folders of either, glob patterns of either, or lists: text files (.txt)
                 with one source a line, relative to the list
    passed_over: receives a line for each folder with something that is no item, or cannot be read

    Raises InputError for a missing or empty source, for two items of one name, and for a reserved name.
    """
    lines = [] if passed_over is None else passed_over
    paths: list[Path] = []
    for source in sources:
        paths += _paths(source, lines)
    items: dict[str, Item] = {}
    for path in sorted(dict.fromkeys(map(_plain, paths)), key=natural_order):
        name = path.name if path.is_dir() else path.stem
        # File systems of macOS and Windows ignore the case of names, and macOS the composition of letters.
        key = unicodedata.normalize("NFC", name).casefold()
        if _RESERVED_NAMES.fullmatch(key):
            raise InputError(
                f"expected videos with names of their own, got {str(path)!r}, whose results would be called as a file "
                f"of the batch is ({name}); rename it"
            )
        other = items.setdefault(key, Item(name, path))
        if other.source != path:
            raise InputError(
                f"expected videos with different names, got {str(other.source)!r} and {str(path)!r}; "
                "results are stored by name: rename one, or run them apart with another --out"
            )
    return list(items.values())


def _plain(path: Path) -> Path:
    """Return an absolute path without `..`; a link keeps its own name."""
    if path.name in ("", ".", ".."):
        return path.resolve()
    try:
        return path.parent.resolve() / path.name
    except (OSError, RuntimeError):  # a circle of links
        return path.absolute()


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


def _paths(source: str, passed_over: list[str]) -> list[Path]:
    """Return the videos and folders of images of one source. Raises InputError without any."""
    path = Path(os.path.expanduser(source))
    before = len(passed_over)
    if path.is_dir():
        paths = _items_of_folder(path, passed_over)
    elif path.suffix.lower() == ".txt" and path.is_file():
        paths = _items_of_list(path, passed_over)
    elif _exists(path):
        paths = [path]
    elif glob.has_magic(source):
        paths = [Path(match) for match in glob.iglob(str(path), recursive=True)]
    else:
        raise InputError(f"expected a video, a folder, a pattern or a list, got {source!r}, which does not exist")
    if not paths:
        reason = f" ({'; '.join(passed_over[before:])})" if passed_over[before:] else ""
        raise InputError(f"expected videos in {source!r}, got none{reason}; name files, or folders of images or videos")
    return paths


def _exists(path: Path) -> bool:
    """Return True for a path that exists. Raises InputError where that cannot be known."""
    try:
        return path.exists()
    except OSError as error:
        raise InputError(
            f"expected a source that can be read, got {str(path)!r} ({error.strerror}); check its access rights"
        ) from None


def _items_of_folder(folder: Path, passed_over: list[str]) -> list[Path]:
    """Return the folder itself if it has images and no video, else its videos and folders of images.

    passed_over: receives a line with what is left out: images beside videos, and what cannot be read
    """
    images, items, left_out = [], [], []
    try:
        children = sorted(os.scandir(folder), key=lambda child: child.name)
    except OSError as error:
        passed_over.append(f"passed over {str(folder)!r} ({error.strerror})")
        return []
    for child in children:
        path = Path(child.path)
        if child.name.startswith("."):
            continue
        try:
            if child.is_dir():
                if any(is_image(Path(inner)) and not inner.startswith(".") for inner in os.listdir(path)):
                    items.append(path)
            elif path.suffix.lower() in VIDEO_SUFFIXES:
                if child.is_file():
                    items.append(path)
                else:
                    left_out.append(f"{child.name} (a broken link, or no file)")
            elif is_image(path):
                images.append(child.name)
        except OSError as error:
            left_out.append(f"{child.name} ({error.strerror})")
    if images and not any(path.suffix.lower() in VIDEO_SUFFIXES and path.is_file() for path in items):
        items, images = [folder], []
    if images:
        more = f" and {len(images) - 1} more images" if len(images) > 1 else ""
        left_out.append(f"{images[0]}{more} beside videos")
    if left_out:
        passed_over.append(f"passed over in {str(folder)!r}: {', '.join(left_out)}")
    return items


def _items_of_list(path: Path, passed_over: list[str]) -> list[Path]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()]
    except OSError as error:
        raise InputError(f"expected a list of videos in {str(path)!r}, got a file that cannot be read") from error
    paths: list[Path] = []
    for line in lines:
        if line and not line.startswith("#"):
            listed = path.parent / line
            # A missing file of a list fails as an item, so that the other items are processed.
            paths += _items_of_folder(listed, passed_over) or [listed] if listed.is_dir() else [listed]
    return paths
