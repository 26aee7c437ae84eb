"""TAP-Vid's arrays of points as .npz, with the names of its data sets."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from corrflow.atomic_files import AtomicFile, check_writable, write_errors
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.types import MIN_POINT_CONFIDENCE, FrameResult

_BLOCK = 1024  # frames in memory at a time


class TapVidSink(Sink):
    """Writer of the point arrays of all frames. Without points no file appears.

    points:   [N, T, 2] float32, (x, y) from 0 to 1 over the sides of the image; x = (pixel + 0.5) / width
    occluded: [N, T] bool
    names:    [N] text, "object/point"

    The rows of all frames stay in a temporary file until the end, 12 bytes for each point and frame.
    """

    def __init__(self, path: str | Path) -> None:
        """Create the file. Raises InputError where the path cannot be written to."""
        self._path = Path(path)
        check_writable(self._path)
        self._output = AtomicFile(self._path)
        self._rows_output = AtomicFile(f"{self._path}.rows")
        self._rows = open(self._rows_output.part, "wb")  # noqa: SIM115, open until close()
        self._names: list[str] = []
        self._frames = 0

    def write(self, result: FrameResult) -> None:
        keypoints = [obj for obj in result.objects if obj.points is not None]
        self._names = [f"{obj.name or obj.id}/{name}" for obj in keypoints for name in obj.point_names]
        height, width = result.mask.shape
        for obj in keypoints:
            assert obj.points is not None and obj.point_confidence is not None
            row = np.empty((len(obj.points), 3), np.float32)
            row[:, :2] = (obj.points.astype(np.float64) + 0.5) / (width, height)
            row[:, 2] = obj.point_confidence
            with write_errors(self._path):
                self._rows.write(row.tobytes())
        self._frames += 1

    def close(self) -> None:
        if self._rows.closed:
            return
        with write_errors(self._path), ExitStack() as stack:
            stack.callback(self._rows_output.finish, keep=False)
            self._rows.close()
            if self._names:
                with self._output as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
                    self._save(archive, "points", "<f4", (2,), lambda column: column[:, :2])
                    self._save(archive, "occluded", "|b1", (), lambda column: column[:, 2] <= MIN_POINT_CONFIDENCE)
                    with archive.open("names.npy", "w") as file:
                        np.lib.format.write_array(file, np.array(self._names, np.str_))

    def _save(
        self, archive: zipfile.ZipFile, name: str, kind: str, shape: tuple[int, ...],
        values: Callable[[np.ndarray], np.ndarray],
    ) -> None:  # fmt: skip
        """Write an array [N, T, *shape] in pieces, because np.savez would need all of it in memory."""
        header = {"descr": kind, "fortran_order": False, "shape": (len(self._names), self._frames, *shape)}
        with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for point in range(len(self._names)):
                for column in self._column(point):
                    file.write(values(column).astype(kind).tobytes())

    def _column(self, point: int) -> Iterator[np.ndarray]:
        """Yield x, y and confidence of a point in blocks of successive frames, [n, 3] float32."""
        with open(self._rows_output.part, "rb") as file:
            while len(block := np.fromfile(file, np.float32, _BLOCK * len(self._names) * 3)):
                yield block.reshape(-1, len(self._names), 3)[:, point]
