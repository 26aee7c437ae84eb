"""Frames on disk in any order of access, because the frames before an annotation are tracked backward.

Memory does not grow with the number of frames: their file offsets are on disk as well.
"""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path

import cv2
import numpy as np

from corrflow.runtime.types import Frame

_OFFSET = struct.Struct("<Q")


class Offsets:
    """Offset of each entry of a growing file, 8 bytes each in an unnamed file."""

    def __init__(self, folder: Path) -> None:
        """Create the unnamed file. Raises OSError where nothing can be written to the folder."""
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115, open until close()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, offset: int) -> None:
        """Add an offset. Raises OSError where the disk is full."""
        self._file.seek(self._count * _OFFSET.size)
        self._file.write(_OFFSET.pack(offset))
        self._count += 1

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < self._count:
            raise IndexError(index)
        self._file.seek(index * _OFFSET.size)
        return _OFFSET.unpack(self._file.read(_OFFSET.size))[0]

    def close(self) -> None:
        """Close and delete the file."""
        self._file.close()


class FrameCache:
    """Frames without loss in one file, each with a JSON header; they are counted as in their source."""

    def __init__(self, path: Path) -> None:
        """Create the file. Raises OSError."""
        self._file = path.open("w+b")
        self._first = 0
        self._offsets = Offsets(path.parent)

    def __len__(self) -> int:
        return len(self._offsets)

    @property
    def indices(self) -> range:
        """Indices of the frames; a beginning that cannot be decoded is left out."""
        return range(self._first, self._first + len(self))

    def append(self, frame: Frame) -> None:
        """Add a frame. Raises OSError where the disk is full."""
        if not len(self._offsets):
            self._first = frame.index
        self._offsets.append(self._file.seek(0, 2))
        encoded = cv2.imencode(".png", frame.image, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
        names = {"name": frame.name, "file_name": frame.file_name}
        header = {"index": frame.index, "time": frame.time, **names, "bytes": len(encoded)}
        self._file.write(json.dumps(header).encode() + b"\n" + encoded)

    def __getitem__(self, index: int) -> Frame:
        self._file.seek(self._offsets[index - self._first])
        header = json.loads(self._file.readline())
        image = cv2.imdecode(np.frombuffer(self._file.read(header.pop("bytes")), np.uint8), cv2.IMREAD_UNCHANGED)
        assert image is not None  # written by `append`
        return Frame(np.asarray(image, np.uint8), **header)

    def close(self) -> None:
        """Close and delete the file."""
        self._offsets.close()
        self._file.close()
        Path(self._file.name).unlink(missing_ok=True)

    def __enter__(self) -> FrameCache:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
