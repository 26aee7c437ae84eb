"""A stand-in for ROS 2: rclpy as far as a publisher needs it, and messages as strict as the generated ones.

Generated messages take keyword arguments that are fields, refuse other attributes, and check types: a float64 is a
float and no int, a uint32 is an int of Python's and no NumPy number, uint8[] becomes array('B').
"""

from __future__ import annotations

import sys
from array import array
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, ClassVar

import pytest

# Fields as the .msg files of ROS 2 Humble list them; [] marks a sequence.
FIELDS: dict[str, dict[str, str]] = {
    "builtin_interfaces/Time": {"sec": "int32", "nanosec": "uint32"},
    "std_msgs/Header": {"stamp": "builtin_interfaces/Time", "frame_id": "string"},
    "std_msgs/String": {"data": "string"},
    "sensor_msgs/Image": {
        "header": "std_msgs/Header", "height": "uint32", "width": "uint32", "encoding": "string",
        "is_bigendian": "uint8", "step": "uint32", "data": "uint8[]",
    },
    "sensor_msgs/CompressedImage": {"header": "std_msgs/Header", "format": "string", "data": "uint8[]"},
    "vision_msgs/Point2D": {"x": "float64", "y": "float64"},
    "vision_msgs/Pose2D": {"position": "vision_msgs/Point2D", "theta": "float64"},
    "vision_msgs/BoundingBox2D": {"center": "vision_msgs/Pose2D", "size_x": "float64", "size_y": "float64"},
    "vision_msgs/ObjectHypothesis": {"class_id": "string", "score": "float64"},
    "vision_msgs/ObjectHypothesisWithPose": {"hypothesis": "vision_msgs/ObjectHypothesis"},
    "vision_msgs/Detection2D": {
        "header": "std_msgs/Header", "results": "vision_msgs/ObjectHypothesisWithPose[]",
        "bbox": "vision_msgs/BoundingBox2D", "id": "string",
    },
    "vision_msgs/Detection2DArray": {"header": "std_msgs/Header", "detections": "vision_msgs/Detection2D[]"},
}  # fmt: skip
_RANGES = {"uint8": (0, 2**8), "uint32": (0, 2**32), "int32": (-(2**31), 2**31)}


class Message:
    """The base of all messages; `fields` maps names to types."""

    fields: ClassVar[dict[str, str]] = {}

    def __init__(self, **values: Any) -> None:
        assert values.keys() <= self.fields.keys(), f"{sorted(values)} are not all fields of {type(self).__name__}"
        for name, kind in self.fields.items():
            setattr(self, name, values.get(name, _default(kind)))

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.fields:
            raise AttributeError(f"{type(self).__name__} has no field {name}")
        object.__setattr__(self, name, _checked(name, self.fields[name], value))


MESSAGES: dict[str, type[Message]] = {
    name: type(name.split("/")[1], (Message,), {"fields": fields}) for name, fields in FIELDS.items()
}


def _default(kind: str) -> Any:
    if kind.endswith("[]"):
        return array("B") if kind == "uint8[]" else []
    return MESSAGES[kind]() if kind in MESSAGES else {"string": "", "float64": 0.0}.get(kind, 0)


def _checked(name: str, kind: str, value: Any) -> Any:
    if kind == "uint8[]":
        assert isinstance(value, array) and value.typecode == "B", f"{name} is checked number by number, which is slow"
    elif kind.endswith("[]"):
        assert all(isinstance(one, MESSAGES[kind[:-2]]) for one in value), f"{name} holds something else"
    elif kind in MESSAGES:
        assert isinstance(value, MESSAGES[kind]), f"{name} is a sub message of type {kind}"
    elif kind in _RANGES:
        low, high = _RANGES[kind]
        assert isinstance(value, int) and low <= value < high, f"{name} is {kind}, got {value!r}"
    else:
        assert isinstance(value, {"string": str, "float64": float}[kind]), f"{name} is {kind}, got {value!r}"
    return value


class Ros:
    """The state of the stand-in.

    published: (topic, message) in order
    listeners: topics that somebody listens to
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, vision: bool = True) -> None:
        self.published: list[tuple[str, Message]] = []
        self.listeners: set[str] = set()
        self.refusal: Exception | None = None
        self.contexts: list[Any] = []
        self.nodes: list[Any] = []
        ros = self

        class Context:
            def __init__(self) -> None:
                self.state = "new"
                ros.contexts.append(self)

            def ok(self) -> bool:
                return self.state == "initialised"

            def try_shutdown(self) -> None:
                self.state = "shut down"

        class Publisher:
            def __init__(self, kind: type, topic: str) -> None:
                self.kind, self.topic = kind, topic

            def publish(self, message: Message) -> None:
                assert type(message) is self.kind, f"{self.topic} is of another type"
                ros.published.append((self.topic, message))

            def get_subscription_count(self) -> int:
                return int(self.topic in ros.listeners)

        class Node:
            def __init__(self, context: Context) -> None:
                self.context, self.destroyed = context, False
                ros.nodes.append(self)

            def create_publisher(self, msg_type: type, topic: str, qos_profile: int) -> Publisher:
                assert qos_profile > 0
                return Publisher(msg_type, topic)

            def destroy_node(self) -> None:
                assert self.context.ok(), "it is destroyed before its context"
                self.destroyed = True

        def init(*, args: list[str] | None = None, context: Context | None = None) -> None:
            assert args == [] and context is not None, "the default context would take our command line and signals"
            if ros.refusal is not None:
                raise ros.refusal
            context.state = "initialised"

        def create_node(
            node_name: str, *, context: Context, enable_rosout: bool = True, start_parameter_services: bool = True
        ) -> Node:
            assert not start_parameter_services, "nobody would answer"
            return Node(context)

        self._install(monkeypatch, "rclpy", init=init, create_node=create_node)
        self._install(monkeypatch, "rclpy.context", Context=Context)
        for package in ("builtin_interfaces", "std_msgs", "sensor_msgs", *(["vision_msgs"] if vision else [])):
            kinds = {name.split("/")[1]: kind for name, kind in MESSAGES.items() if name.startswith(f"{package}/")}
            msg = self._install(monkeypatch, f"{package}.msg", **kinds)
            self._install(monkeypatch, package, msg=msg)

    def _install(self, monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> ModuleType:
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.__path__ = []
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    def last(self, topic: str) -> Any:
        return [message for name, message in self.published if name == topic][-1]
