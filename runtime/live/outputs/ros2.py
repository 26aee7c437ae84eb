"""ROS 2 output through rclpy. The tests use a replacement of rclpy; this module has never run with ROS."""

from __future__ import annotations

import re
from array import array
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any
from urllib.parse import parse_qsl

import cv2

from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.formats.jsonl import frame_record, json_line
from corrflow.runtime.types import FrameResult, ObjectResult
from corrflow.runtime.video.overlay import draw_overlay

_QUEUE_SIZE = 5  # messages that ROS keeps for a slow subscriber
_JPEG_QUALITY = 80


@dataclass(frozen=True)
class Topics:
    """Names of topics.

    prefix: common prefix
    frame:  coordinate frame in headers; "" for none
    """

    prefix: str
    frame: str = ""


def parse_ros(text: str) -> Topics:
    """Parse /PREFIX, or /PREFIX?frame=camera_optical with the camera's coordinate frame. Raises InputError."""
    prefix, _, query = text.partition("?")
    values = dict(parse_qsl(query, keep_blank_values=True))
    frame = values.pop("frame", "")
    word = r"[A-Za-z][A-Za-z0-9_]*"
    if not re.fullmatch(rf"/?{word}(/{word})*", prefix) or values or (query and not frame) or not frame.isprintable():
        raise InputError(
            f"expected --ros with the beginning of topic names, got {text!r}; write /corrflow, or"
            " /corrflow?frame=camera_optical"
        )
    return Topics(prefix, frame)


def check_ros() -> None:
    """Raise InputError where rclpy is not installed."""
    for package in ("rclpy", "sensor_msgs", "std_msgs"):
        if find_spec(package) is None:
            raise InputError(
                f"expected ROS 2's Python package {package} for --ros, got none; source its setup.bash first, and"
                " install corrflow for the Python that it comes with"
            )


class RosSink(Sink):
    """Publisher of each frame, with its time of capture.

    PREFIX/mask:                sensor_msgs/Image, mono8: 0 for background, else the object's id
    PREFIX/tracks:              std_msgs/String: the JSON line of `frame_record`
    PREFIX/detections:          vision_msgs/Detection2DArray of the boxes, where vision_msgs (4 or later) is installed
    PREFIX/overlay/compressed:  sensor_msgs/CompressedImage, JPEG, while the topic has a subscriber
    """

    def __init__(self, topics: Topics) -> None:
        """Start a node. Raises CorrflowError where ROS does not start."""
        import rclpy  # pyright: ignore[reportMissingImports]
        from rclpy.context import Context  # pyright: ignore[reportMissingImports]
        from sensor_msgs.msg import CompressedImage, Image  # pyright: ignore[reportMissingImports]
        from std_msgs.msg import Header, String  # pyright: ignore[reportMissingImports]

        self._topics = topics
        self._header, self._image, self._string, self._jpeg = Header, Image, String, CompressedImage
        self._vision: Any = None
        if find_spec("vision_msgs") is not None:
            import vision_msgs.msg  # pyright: ignore[reportMissingImports]

            self._vision = vision_msgs.msg
        self._context = Context()
        try:
            # A separate context has no signal handlers, because corrflow-track handles signals.
            rclpy.init(args=[], context=self._context)
            # The node does not spin, so that its services would never answer.
            self._node = rclpy.create_node(
                "corrflow", context=self._context, enable_rosout=False, start_parameter_services=False
            )
            self._mask_topic = self._publisher(Image, "mask")
            self._tracks_topic = self._publisher(String, "tracks")
            self._overlay_topic = self._publisher(CompressedImage, "overlay/compressed")
            if self._vision is not None:
                self._detections_topic = self._publisher(self._vision.Detection2DArray, "detections")
        except Exception as error:  # rclpy has no common base class
            self._context.try_shutdown()
            raise CorrflowError(f"ROS does not start ({type(error).__name__}: {error})") from None

    def _publisher(self, kind: type, name: str) -> Any:
        return self._node.create_publisher(kind, f"{self._topics.prefix}/{name}", _QUEUE_SIZE)

    def write(self, result: FrameResult) -> None:
        if not self._context.ok():
            raise CorrflowError("ROS was shut down")
        mask = result.mask
        height, width = mask.shape
        image = self._image(header=self._stamped(result), height=height, width=width, encoding="mono8", step=width)
        image.data = array("B", mask.tobytes())  # any other type is checked element by element
        self._mask_topic.publish(image)
        self._tracks_topic.publish(self._string(data=json_line(frame_record(result)).decode().rstrip("\n")))
        if self._vision is not None:
            boxed = [obj for obj in result.objects if obj.box is not None]
            detections = [self._detection(result, obj) for obj in boxed]
            message = self._vision.Detection2DArray(header=self._stamped(result), detections=detections)
            self._detections_topic.publish(message)
        if self._overlay_topic.get_subscription_count():
            data = cv2.imencode(".jpg", draw_overlay(result), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
            message = self._jpeg(header=self._stamped(result), format="jpeg")
            message.data = array("B", data.tobytes())
            self._overlay_topic.publish(message)

    def close(self) -> None:
        self._node.destroy_node()
        self._context.try_shutdown()

    def _stamped(self, result: FrameResult) -> Any:
        """Return a header with the time of capture by this machine's clock."""
        header = self._header(frame_id=self._topics.frame)
        time = result.live.captured if result.live else result.frame.time
        seconds, microseconds = divmod(round(time * 1e6), 10**6)  # float64 has no more digits
        header.stamp.sec, header.stamp.nanosec = seconds, 1000 * microseconds
        return header

    def _detection(self, result: FrameResult, obj: ObjectResult) -> Any:
        """Return the box of an object; (0, 0) is the corner of the image."""
        assert obj.box is not None
        x0, y0, x1, y1 = map(float, obj.box)
        detection = self._vision.Detection2D(header=self._stamped(result), id=str(obj.id))
        detection.bbox.center.position.x, detection.bbox.center.position.y = (x0 + x1) / 2, (y0 + y1) / 2
        detection.bbox.size_x, detection.bbox.size_y = x1 - x0, y1 - y0
        hypothesis = self._vision.ObjectHypothesisWithPose()
        hypothesis.hypothesis.class_id = obj.name or str(obj.id)
        hypothesis.hypothesis.score = float(obj.confidence)
        detection.results.append(hypothesis)
        return detection
