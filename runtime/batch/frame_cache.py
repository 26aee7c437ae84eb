"""Frames on disk, to be read again in any order: what lies before a label is tracked backward.

Nothing in memory grows with them: even where each of them begins is kept in a file.
"""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from corrflow.runtime.types import Frame

_START = struct.Struct("<Q")


class Starts:
    """Where each entry of a growing file begins, 8 bytes for each in a file without a name."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError where nothing can be written into the folder."""
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115, as long as the object
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, place: int) -> None:
        """Raises OSError where the disk is full."""
        self._file.seek(self._count * _START.size)
        self._file.write(_START.pack(place))
        self._count += 1

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < self._count:
            raise IndexError(index)
        self._file.seek(index * _START.size)
        return _START.unpack(self._file.read(_START.size))[0]

    def close(self) -> None:
        self._file.close()


class Spool:
    """Pictures without loss, each with a JSON header, in one file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b")
        self._starts = Starts(path.parent)

    def __len__(self) -> int:
        return len(self._starts)

    def append(self, picture: np.ndarray, header: dict[str, Any]) -> None:
        """picture: [H, W] or [H, W, 3] uint8. Raises OSError where the disk is full."""
        self._starts.append(self._file.seek(0, 2))
        encoded = cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
        line = json.dumps(header | {"bytes": len(encoded)}).encode() + b"\n"
        self._file.write(line + encoded)

    def __getitem__(self, index: int) -> tuple[np.ndarray, dict[str, Any]]:
        self._file.seek(self._starts[index])
        header = json.loads(self._file.readline())
        encoded = np.frombuffer(self._file.read(header.pop("bytes")), np.uint8)
        picture = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
        assert picture is not None  # written above
        return np.asarray(picture, np.uint8), header

    def close(self) -> None:
        self._starts.close()
        self._file.close()
        Path(self._file.name).unlink(missing_ok=True)

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def put_frame(spool: Spool, frame: Frame) -> None:
    spool.append(frame.image, {"index": frame.index, "time": frame.time, "name": frame.name})


def get_frame(spool: Spool, index: int) -> Frame:
    image, header = spool[index]
    return Frame(image, **header)
