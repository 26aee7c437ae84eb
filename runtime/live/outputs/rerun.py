"""Results for Rerun's viewer: pictures, masks, boxes, points and numbers over time, in a file or a running viewer."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from corrflow.atomic_files import write_failed
from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.live.outputs.recorders import check_recording, unique_path
from corrflow.runtime.types import FrameResult
from corrflow.runtime.video.overlay import fill_colours

_JPEG_QUALITY = 80


def check_rerun(target: str) -> None:
    """Raise InputError for what is neither a file .rrd nor a viewer's address, and where Rerun is not installed."""
    if not re.match(r"rerun(\+https?)?://", target):
        check_recording(Path(target), (".rrd",))
    if find_spec("rerun") is None:
        raise InputError("expected the package rerun-sdk for --rerun, got none; pip install 'corrflow[rerun]'")


class RerunSink(Sink):
    """Logs each frame as the entities `camera/image`, `camera/mask`, `camera/objects`, `camera/points/NAME`,
    `latency_ms` and `confidence/NAME` on the timelines `frame` and `captured`.

    target: a file that ends in .rrd, which never replaces an earlier one, or a viewer as rerun+http://HOST:9876/proxy
    """

    def __init__(self, target: str) -> None:
        """Raises CorrflowError where the file cannot be made."""
        import rerun  # pyright: ignore[reportMissingImports]

        self._rerun, self._target = rerun, target
        self._stream = rerun.RecordingStream("corrflow")  # pyright: ignore[reportAttributeAccessIssue]
        if "://" in target:
            self._stream.connect_grpc(target)
        else:
            try:
                self._stream.save(unique_path(Path(target)))
            except OSError as error:
                raise write_failed(Path(target), error) from None
        self._described: dict[int, str] = {}

    def write(self, result: FrameResult) -> None:
        rerun, stream = self._rerun, self._stream
        stream.set_time("frame", sequence=result.frame.index)
        if result.live is None:
            stream.set_time("time", duration=result.frame.time)
        else:
            stream.set_time("captured", timestamp=result.live.captured)
            stream.log("latency_ms", rerun.Scalars(1000 * result.live.latency))
        names = {track.id: track.name or str(track.id) for track in result.objects}
        if names != self._described:
            self._described = names
            colours = fill_colours()[:, ::-1]  # RGB
            described = [(number, name, colours[number].tolist()) for number, name in names.items()]
            stream.log("camera", rerun.AnnotationContext(described), static=True)
        jpeg = cv2.imencode(".jpg", result.frame.image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
        stream.log("camera/image", rerun.EncodedImage(contents=jpeg.tobytes(), media_type="image/jpeg"))
        stream.log("camera/mask", rerun.SegmentationImage(result.mask))
        boxed = [track for track in result.objects if track.box is not None]
        stream.log(
            "camera/objects",
            rerun.Boxes2D(
                array=np.array([track.box for track in boxed], np.float32).reshape(-1, 4),
                array_format=rerun.Box2DFormat.XYXY,
                class_ids=[track.id for track in boxed],
                labels=[names[track.id] for track in boxed],
            ),
        )
        for track in result.objects:
            name = rerun.escape_entity_path_part(names[track.id])
            stream.log(f"confidence/{name}", rerun.Scalars(track.confidence))
            if track.points is not None:
                # Rerun's pixel begins at its corner, ours has its centre there.
                points = rerun.Points2D(track.points + 0.5, labels=list(track.point_names), class_ids=track.id)
                stream.log(f"camera/points/{name}", points)
        try:
            stream.flush(timeout_sec=2.0)
        except (RuntimeError, ValueError) as error:
            raise CorrflowError(f"{self._target} takes no data ({error})") from None

    def close(self) -> None:
        self._stream.disconnect()
