"""Rerun output: images, masks, boxes, points and curves, to a file or a running viewer."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from corrflow.atomic_files import write_errors
from corrflow.errors import CorrflowError, InputError
from corrflow.output_paths import unique_path
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.live.outputs.recorders import check_recording
from corrflow.runtime.types import FrameResult
from corrflow.runtime.video.overlay import fill_colours

_JPEG_QUALITY = 80


def check_rerun(target: str) -> None:
    """Raise InputError for a target that is neither a .rrd file nor an address of a viewer, and without Rerun."""
    if not re.match(r"rerun(\+https?)?://", target):
        check_recording(Path(target), (".rrd",))
    if find_spec("rerun") is None:
        raise InputError("expected the package rerun-sdk for --rerun, got none; pip install 'corrflow[rerun]'")


class RerunSink(Sink):
    """Logger of each frame as entities of Rerun.

    Entities:  camera/image, camera/mask, camera/objects, camera/points/NAME, latency_ms, confidence/NAME
    Timelines: frame, and captured (live) or time (files)
    """

    def __init__(self, target: str) -> None:
        """Open the target: a new .rrd file, or a viewer as rerun+http://HOST:9876/proxy. Raises CorrflowError."""
        import rerun  # pyright: ignore[reportMissingImports]

        self._rerun, self._target = rerun, target
        self._stream = rerun.RecordingStream("corrflow")  # pyright: ignore[reportAttributeAccessIssue]
        if "://" in target:
            self._stream.connect_grpc(target)
        else:
            with write_errors(target):
                self._stream.save(unique_path(Path(target)))
        self._names: dict[int, str] = {}

    def write(self, result: FrameResult) -> None:
        rerun, stream = self._rerun, self._stream
        stream.set_time("frame", sequence=result.frame.index)
        if result.live is None:
            stream.set_time("time", duration=result.frame.time)
        else:
            stream.set_time("captured", timestamp=result.live.captured)
            stream.log("latency_ms", rerun.Scalars(1000 * result.live.latency))
        names = {obj.id: obj.name or str(obj.id) for obj in result.objects}
        if names != self._names:
            self._names = names
            colours = fill_colours()[:, ::-1]  # RGB
            classes = [(number, name, colours[number].tolist()) for number, name in names.items()]
            stream.log("camera", rerun.AnnotationContext(classes), static=True)
        jpeg = cv2.imencode(".jpg", result.frame.image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
        stream.log("camera/image", rerun.EncodedImage(contents=jpeg.tobytes(), media_type="image/jpeg"))
        stream.log("camera/mask", rerun.SegmentationImage(result.mask))
        boxed = [obj for obj in result.objects if obj.box is not None]
        stream.log(
            "camera/objects",
            rerun.Boxes2D(
                array=np.array([obj.box for obj in boxed], np.float32).reshape(-1, 4),
                array_format=rerun.Box2DFormat.XYXY,
                class_ids=[obj.id for obj in boxed],
                labels=[names[obj.id] for obj in boxed],
            ),
        )
        for obj in result.objects:
            name = rerun.escape_entity_path_part(names[obj.id])
            stream.log(f"confidence/{name}", rerun.Scalars(obj.confidence))
            if obj.points is not None:
                # In Rerun, (0, 0) is the corner of the top-left pixel, here the centre.
                points = rerun.Points2D(obj.points + 0.5, labels=list(obj.point_names), class_ids=obj.id)
                stream.log(f"camera/points/{name}", points)
        try:
            stream.flush(timeout_sec=2.0)
        except (RuntimeError, ValueError) as error:
            raise CorrflowError(f"{self._target} takes no data ({error})") from None

    def close(self) -> None:
        self._stream.disconnect()
