"""TAP-Vid's arrays of points as .npz, named as its data sets name them."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from corrflow.atomic_files import finish, part_of, prepare_place, write_failed
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.types import MIN_POINT_PEAK, FrameResult

_BLOCK = 1024  # frames in memory at a time


class TapVidSink(Sink):
    """points [N, T, 2] float32, (x, y) from 0 to 1 over the picture's sides; occluded [N, T] bool; names [N].

    A pixel's centre lies half a pixel inside: x = (pixel + 0.5) / width. Names are "object/point". Rows wait in a file
    until the end, 12 bytes for each point and frame. Without points no file appears.
    """

    def __init__(self, path: str | Path) -> None:
        """Raises InputError where the path cannot be written to."""
        self._path = Path(path)
        prepare_place(self._path)
        self._rows_path = part_of(self._path.with_name(f"{self._path.name}.rows"))
        self._rows = self._rows_path.open("wb")
        self._names: list[str] = []
        self._frames = 0

    def write(self, result: FrameResult) -> None:
        tracked = [track for track in result.objects if track.points is not None]
        self._names = [f"{track.name or track.id}/{name}" for track in tracked for name in track.point_names]
        height, width = result.mask.shape
        for track in tracked:
            assert track.points is not None and track.point_confidence is not None
            row = np.empty((len(track.points), 3), np.float32)
            row[:, :2] = (track.points.astype(np.float64) + 0.5) / (width, height)
            row[:, 2] = track.point_confidence
            try:
                self._rows.write(row.tobytes())
            except OSError as error:
                raise write_failed(self._path, error) from None
        self._frames += 1

    def close(self) -> None:
        if self._rows.closed:
            return
        try:
            self._rows.close()
            if self._names:
                with zipfile.ZipFile(part_of(self._path), "w", zipfile.ZIP_DEFLATED) as archive:
                    self._save(archive, "points", "<f4", (2,), lambda column: column[:, :2])
                    self._save(archive, "occluded", "|b1", (), lambda column: column[:, 2] <= MIN_POINT_PEAK)
                    with archive.open("names.npy", "w") as file:
                        np.lib.format.write_array(file, np.array(self._names, np.str_))
                finish(self._path)
        except OSError as error:
            raise write_failed(self._path, error) from None
        finally:
            self._rows_path.unlink(missing_ok=True)

    def _save(
        self, archive: zipfile.ZipFile, name: str, kind: str, shape: tuple[int, ...],
        values: Callable[[np.ndarray], np.ndarray],
    ) -> None:  # fmt: skip
        """An array [N, T, *shape], written piece by piece: np.savez would need all of it."""
        header = {"descr": kind, "fortran_order": False, "shape": (len(self._names), self._frames, *shape)}
        with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for point in range(len(self._names)):
                for column in self._column(point):
                    file.write(values(column).astype(kind).tobytes())

    def _column(self, point: int) -> Iterator[np.ndarray]:
        """x, y and confidence of a point, [n, 3] float32 of successive frames."""
        with self._rows_path.open("rb") as file:
            while len(block := np.fromfile(file, np.float32, _BLOCK * len(self._names) * 3)):
                yield block.reshape(-1, len(self._names), 3)[:, point]
