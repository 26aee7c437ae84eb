"""Propagation passes: the masks or points of a target, tracked from one annotation in one direction, in a file.

A pass depends only on the video, the model and that annotation; a pass of points depends on all labels of those
points. Later runs with the same of these reuse the pass.
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
from corrflow.runtime.batch.frame_cache import Offsets
from corrflow.runtime.batch.targets import Target
from corrflow.runtime.types import AbsentObject, KeypointsObject, MaskObject

FOLDER = ".passes"
"""Folder in the results of an item."""

_VERSION = 3
_LENGTH = struct.Struct("<I")


def round_to_float16(soft: np.ndarray) -> np.ndarray:
    """Round soft masks, float32, to the precision of a stored pass."""
    return soft.astype(np.float16).astype(np.float32)


class PropagationPass:
    """What is tracked on the frames away from an annotation, the nearest frame first.

    That is a soft mask [1, h, w], or x, y and confidence of points [P, 3], both float32.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        """Open or create the file. Raises OSError.

        shape: (1, h, w) or (P, 3)
        """
        self.path, self._shape = path, shape
        self._dtype = "<f2" if len(shape) == 3 else "<f4"
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._offsets, size = Offsets(path.parent), os.path.getsize(path)
        offset = 0
        while offset + _LENGTH.size <= size:
            self._offsets.append(offset)
            self._file.seek(offset)
            offset += _LENGTH.size + _LENGTH.unpack(self._file.read(_LENGTH.size))[0]

    def __len__(self) -> int:
        return len(self._offsets)

    def append(self, tracked: np.ndarray) -> None:
        """Add the next frame. Raises OSError where the disk is full."""
        self._offsets.append(self._file.seek(0, os.SEEK_END))
        packed = zlib.compress(tracked.astype(self._dtype).tobytes(), 1)
        self._file.write(_LENGTH.pack(len(packed)) + packed)

    def __getitem__(self, index: int) -> np.ndarray:
        """Return what is tracked at a distance of `index` + 1 frames. Raises CorrflowError for a damaged file."""
        try:
            self._file.seek(self._offsets[index])
            packed = self._file.read(_LENGTH.unpack(self._file.read(_LENGTH.size))[0])
            return np.frombuffer(zlib.decompress(packed), self._dtype).reshape(self._shape).astype(np.float32)
        except (IndexError, ValueError, zlib.error, struct.error) as error:
            raise CorrflowError(
                f"expected tracked frames in {self.path}, got a damaged file; remove its folder and run again"
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._offsets.close()
        self._file.close()


class PassFolder:
    """Passes of one video: those of an earlier run and new ones. At most one file of a target and direction is open.

    A pass is identified by its target, the frame of its annotation, and its direction: 1 forward, -1 backward.
    """

    def __init__(self, input_digest: str, earlier: Path, folder: Path, cells: tuple[int, int], keep: bool) -> None:
        """Create the folder of the new passes.

        input_digest: digest of the video and the model
        earlier:      folder of the earlier passes, which may be missing
        cells:        (h, w) of the soft masks
        keep:         True to keep the passes for a later run
        """
        self._input_digest, self._folder, self._cells = input_digest, folder, cells
        self.keep = keep
        folder.mkdir(parents=True, exist_ok=True)
        self._earlier: dict[str, list[Path]] = {}
        for path in sorted(earlier.iterdir()) if earlier.is_dir() else []:
            self._earlier.setdefault(path.name.partition("-")[0], []).append(path)
        self._paths: dict[tuple[int, int, int], Path] = {}
        self._open: dict[tuple[int, int], tuple[int, PropagationPass]] = {}

    def reuse(self, target: Target, frame: int, direction: int, length: int | None) -> bool:
        """Take over an earlier pass of at least this length, None: to the video's end. Return False without one."""
        for path in self._earlier.get(self._key(target, frame, direction), []):
            earlier_length = path.name.rpartition("-")[2]
            is_long = length is not None and earlier_length.isdecimal() and int(earlier_length) >= length
            if earlier_length == "end" or is_long:
                linked = self._folder / path.name
                try:
                    os.link(path, linked)
                except OSError:  # file systems without hard links
                    shutil.copyfile(path, linked)
                self._paths[target.number, frame, direction] = linked
                return True
        return False

    def create(self, target: Target, frame: int, direction: int, length: int | None) -> PropagationPass:
        """Return a new pass, to be filled to this length; None: to the end of the video."""
        name = f"{self._key(target, frame, direction)}-{'end' if length is None else length}"
        self._paths[target.number, frame, direction] = self._folder / name
        return self.open(target, frame, direction)

    def open(self, target: Target, frame: int, direction: int) -> PropagationPass:
        """Return an existing pass, and close that of another frame, for the same target and direction."""
        open_frame, opened = self._open.get((target.number, direction), (None, None))
        if opened is None or open_frame != frame:
            if opened is not None:
                opened.close()
            prompt = target.prompt
            path = self._paths[target.number, frame, direction]
            shape = (1, *self._cells) if isinstance(prompt, MaskObject) else (len(prompt.points), 3)
            opened = PropagationPass(path, shape)
            self._open[target.number, direction] = frame, opened
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

    def _key(self, target: Target, frame: int, direction: int) -> str:
        packed = target.annotations[frame]
        prompt = packed.prompt
        assert not isinstance(prompt, AbsentObject), "no pass begins where the object is absent"
        if isinstance(prompt, MaskObject):
            assert packed.mask is not None, "masks of annotations are packed"
            content, names = packed.mask.content(), ()
        else:
            labels = [(one, label.prompt) for one, label in target.body.items()]
            points = [(one, label) for one, label in labels if isinstance(label, KeypointsObject)]
            content = b"".join(np.asarray(label.points, "<f4").tobytes() for _, label in points)
            names = (prompt.point_names, *((one, label.point_names) for one, label in points))
        # Equal annotations of two objects have equal passes, but each object has its own file.
        key = (_VERSION, self._input_digest, frame, direction, packed.shape, names, prompt.id)
        return hashlib.sha256(repr(key).encode() + content).hexdigest()[:32]


def blend_masks(earlier: np.ndarray, later: np.ndarray, position: float) -> np.ndarray:
    """Blend the soft masks [1, h, w] float32 of a frame between two annotations, from the passes of both.

    position: 0..1, from the earlier to the later annotation

    A pass is weighted by nearness in time and by its confidence: the mean soft mask on its mask.
    """
    weights = _weights(np.array([[_mean_inside(soft)] for soft in (earlier, later)]), position)
    return (earlier * weights[0] + later * weights[1]).astype(np.float32)


def blend_points(earlier: np.ndarray, later: np.ndarray, position: float, near: float) -> np.ndarray:
    """Blend tracked points [P, 3] float32 of a frame between two annotations, from the passes of both.

    position: 0..1, from the earlier to the later annotation
    near:     pixels up to which two places of a point agree

    A pass is weighted by nearness in time and by its confidence. Places that agree are averaged, and are likelier than
    each alone. Of others the one with more weight counts: their mean would lie on neither.
    """
    weights = _weights(np.stack([earlier[:, 2], later[:, 2]]).astype(np.float64), position)
    agrees = np.linalg.norm(earlier[:, :2] - later[:, :2], axis=1) <= near
    first = (weights[0] >= weights[1])[:, None]
    mean = earlier[:, :2] * weights[0][:, None] + later[:, :2] * weights[1][:, None]
    points = np.where(agrees[:, None], mean, np.where(first, earlier[:, :2], later[:, :2]))
    alone = np.where(first[:, 0], earlier[:, 2], later[:, 2]) * weights.max(0)
    # Places that agree are wrong only where both are.
    confidence = np.where(agrees, 1 - (1 - earlier[:, 2]) * (1 - later[:, 2]), alone)
    return np.column_stack([points, confidence]).astype(np.float32)


def _weights(confidence: np.ndarray, position: float) -> np.ndarray:
    """Return weights [2, n] that sum to 1, from the confidence [2, n] of both passes."""
    nearness = np.array([[1 - position], [position]])
    weights = nearness * confidence
    weights = np.where(weights.sum(0) > 0, weights, nearness)
    return weights / weights.sum(0)


def _mean_inside(soft_mask: np.ndarray) -> float:
    inside = soft_mask > 0.5
    return float(np.where(inside, soft_mask, 0).sum(dtype=np.float64) / max(np.count_nonzero(inside), 1))
