"""Places of results outside a batch: earlier results are replaced as a whole, and a user's files never."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from corrflow.atomic_files import AtomicFile, check_writable, write_errors
from corrflow.output_paths import another_file, check_beginning, check_own_folder, file_sizes, fitting, write_record
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.formats.registry import FORMATS
from corrflow.runtime.types import FrameResult
from corrflow.special_files import is_special

# What files of a format begin with, in lower case.
_BEGINNINGS = {
    "csv": (b"frame,",),
    "boxes": (b"frame,",),
    "deeplabcut": (b"scorer,", b"individuals,"),
    "jsonl": (b'{"frame"', b'{"index"'),
    "coco": (b"{",),
    "cvat": (b"<?xml", b"<annotations"),
    "deeplabcut-h5": (b"\x89hdf",),
    "sleap": (b"\x89hdf",),
    "tapvid": (b"pk",),
    "report": (b"<!doctype html",),
}


def is_folder(name: str) -> bool:
    """Return True for a format whose results are a folder of files."""
    return not Path(FORMATS[name].result).suffix


def check_place(name: str, path: Path) -> None:
    """Raise InputError where a format would replace what is no result of that format."""
    if is_folder(name):
        check_own_folder(path)
    elif is_special(path):
        return
    elif name != "overlay":
        check_beginning(path, f"the format {name}", *_BEGINNINGS.get(name, ()))
    elif path.exists() and not (path.is_file() and (not path.stat().st_size or _is_overlay(path))):
        raise another_file(path, "the overlay video")


class ResultFolderSink(Sink):
    """Sink whose folder appears as a whole at the end, with a completion record, in place of an earlier one."""

    def __init__(self, path: Path, open: Callable[[Path], Sink]) -> None:
        """Open the sink in a hidden neighbour of the folder.

        open: returns the sink that writes to a folder

        Raises InputError where the folder is not to be replaced, or nothing can be written there.
        """
        self._path = Path(path).resolve()  # a link stays, and the folder that it names is replaced
        check_own_folder(self._path)
        check_writable(self._path.with_name(fitting(self._path.name, ".check")))
        self._output: AtomicFile | None = AtomicFile(self._path, folder=True)
        self._part = Path(self._output.part)
        self._sink = open(self._part)
        self._frames = 0

    def write(self, result: FrameResult) -> None:
        self._sink.write(result)
        self._frames += 1

    def close(self) -> None:
        output, self._output = self._output, None
        if output is None:
            return
        try:
            self._sink.close()
            if self._frames:
                check_own_folder(self._path)  # a user may have added a file since
                with write_errors(self._path):
                    sizes = file_sizes(self._part)
                    output.finish()
                    write_record(self._path, sizes)
        finally:
            output.finish(keep=False)


def _is_overlay(path: Path) -> bool:
    import av
    from av.error import FFmpegError

    from corrflow.runtime.formats.overlay_video import COMMENT

    try:
        with av.open(str(path.absolute())) as container:
            values = {key.lower(): value for key, value in container.metadata.items()}
        return values.get("comment") == COMMENT
    except (FFmpegError, OSError, ValueError):
        return False
