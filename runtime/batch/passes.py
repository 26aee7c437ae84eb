"""Passes: a strand tracked from one of its labels in one direction, as soft labels in a file.

A pass depends on the video, the model and that one label alone, so that it serves every later run that has these.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np

from corrflow.errors import CorrflowError
from corrflow.runtime.batch.frame_cache import Starts
from corrflow.runtime.batch.targets import Strand
from corrflow.runtime.types import MaskObject

FOLDER = ".passes"
"""Within the results of an item."""

_VERSION = 1
_LENGTH = struct.Struct("<I")


def rounded(soft: np.ndarray) -> np.ndarray:
    """Soft labels float32 as a pass gives them back: with the 11 bits of a half."""
    return soft.astype(np.float16).astype(np.float32)


class Pass:
    """Soft labels [n, h, w] float32 of the frames away from a label, the nearest first; read in any order."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.path, self._shape = path, shape
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._starts, size = Starts(path.parent), os.path.getsize(path)
        place = 0
        while place + _LENGTH.size <= size:
            self._starts.append(place)
            self._file.seek(place)
            place += _LENGTH.size + _LENGTH.unpack(self._file.read(_LENGTH.size))[0]

    def __len__(self) -> int:
        return len(self._starts)

    def append(self, soft: np.ndarray) -> None:
        """Raises OSError where the disk is full."""
        self._starts.append(self._file.seek(0, os.SEEK_END))
        packed = zlib.compress(soft.astype("<f2").tobytes(), 1)
        self._file.write(_LENGTH.pack(len(packed)) + packed)

    def __getitem__(self, index: int) -> np.ndarray:
        """Raises CorrflowError where the file is damaged."""
        try:
            self._file.seek(self._starts[index])
            packed = self._file.read(_LENGTH.unpack(self._file.read(_LENGTH.size))[0])
            return np.frombuffer(zlib.decompress(packed), "<f2").reshape(self._shape).astype(np.float32)
        except (IndexError, ValueError, zlib.error, struct.error) as error:
            raise CorrflowError(
                f"expected soft labels in {self.path}, got a damaged file; remove its folder and run again"
            ) from error

    def close(self) -> None:
        self._starts.close()
        self._file.close()


class PassFolder:
    """The passes of one video: those of an earlier result, and those that are made now.

    made_from: the source and the model in words; earlier: may be missing; keep: for a later run
    Few files are open at a time: one for each strand and direction.
    """

    def __init__(self, made_from: str, earlier: Path, folder: Path, cells: tuple[int, int], keep: bool) -> None:
        self._made_from, self._folder, self._cells = made_from, folder, cells
        self.keep = keep
        folder.mkdir(parents=True, exist_ok=True)
        self._earlier: dict[str, list[Path]] = {}
        for path in sorted(earlier.iterdir()) if earlier.is_dir() else []:
            self._earlier.setdefault(path.name.partition("-")[0], []).append(path)
        self._paths: dict[tuple[int, int, int], Path] = {}
        self._open: dict[tuple[int, int], tuple[int, Pass]] = {}

    def exists(self, strand: Strand, label: int, direction: int, length: int | None) -> bool:
        """Whether an earlier run has a pass of at least this length, which is used then; None: to the video's end."""
        for path in self._earlier.get(self._key(strand, label, direction), []):
            its = path.name.rpartition("-")[2]
            if its == "end" or (length is not None and its.isdecimal() and int(its) >= length):
                linked = self._folder / path.name
                try:
                    os.link(path, linked)
                except OSError:  # disks without hard links
                    shutil.copyfile(path, linked)
                self._paths[strand.number, label, direction] = linked
                return True
        return False

    def new(self, strand: Strand, label: int, direction: int, length: int | None) -> Pass:
        """An empty one, which will have this length; None: to the end of the video."""
        name = f"{self._key(strand, label, direction)}-{'end' if length is None else length}"
        self._paths[strand.number, label, direction] = self._folder / name
        return self.of(strand, label, direction)

    def of(self, strand: Strand, label: int, direction: int) -> Pass:
        """The pass from that label, which is there already. The one asked for before, of another label, is closed."""
        label_open, opened = self._open.get((strand.number, direction), (None, None))
        if opened is None or label_open != label:
            if opened is not None:
                opened.close()
            given = strand.given[label].prompt
            channels = 1 if isinstance(given, MaskObject) else len(given.points)
            opened = Pass(self._paths[strand.number, label, direction], (channels, *self._cells))
            self._open[strand.number, direction] = label, opened
        return opened

    def close(self) -> None:
        """Close the files, and remove them unless they are kept."""
        for _, opened in self._open.values():
            opened.close()
        if not self.keep:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> PassFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _key(self, strand: Strand, label: int, direction: int) -> str:
        packed = strand.given[label]
        given = packed.prompt
        content = given.mask if isinstance(given, MaskObject) else np.asarray(given.points, "<f4")
        named = () if isinstance(given, MaskObject) else given.point_names
        digest = hashlib.sha256(repr((_VERSION, self._made_from, label, direction, packed.shape, named)).encode())
        digest.update(content.tobytes())
        # Two objects of the same shape are the same pass, but each has its file.
        digest.update(str(strand.object_id).encode())
        return digest.hexdigest()[:32]


def blended(earlier: np.ndarray, later: np.ndarray, share: float, is_mask: bool) -> np.ndarray:
    """Soft labels of a frame between two labels, [n, h, w] float32, out of the passes from either.

    share: 0..1, how far the frame is on the way to the later label. Each channel is weighted by nearness in time and
    by the confidence of its pass there: the mean soft label on a mask, the height of a point.
    """
    own = np.array([[1 - share], [share]]) * np.stack([_confidence(part, is_mask) for part in (earlier, later)])
    weights = np.where(own.sum(0) > 0, own, [[1 - share], [share]])
    weights = (weights / weights.sum(0)).astype(np.float32)
    return earlier * weights[0][:, None, None] + later * weights[1][:, None, None]


def _confidence(soft: np.ndarray, is_mask: bool) -> np.ndarray:
    """[n] of [n, h, w]."""
    if not is_mask:
        return soft.max((1, 2)).astype(np.float64)
    inside = soft > 0.5
    return np.where(inside, soft, 0).sum((1, 2), dtype=np.float64) / np.maximum(inside.sum((1, 2)), 1)
