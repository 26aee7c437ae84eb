"""Results to ROS 2, tested with a fake of ROS; ROS itself has not been run."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from helpers import fake_ros
from PIL import Image

from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.commands.track_cli import app
from corrflow.runtime.formats.jsonl import frame_record
from corrflow.runtime.live.outputs.ros2 import RosSink, Topics, check_ros, parse_ros
from corrflow.runtime.live.outputs.worker import SinkWorker
from corrflow.runtime.types import Frame, FrameResult, LiveTiming, ObjectResult


@pytest.fixture
def ros(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    return lambda **options: fake_ros.Ros(monkeypatch, **options)


def result() -> FrameResult:
    mask = np.zeros((66, 97), np.uint8)
    mask[10:20, 30:45] = 3
    cat = ObjectResult(3, "cat", np.float32(0.75), True, (30, 10, 45, 20))  # pyright: ignore[reportArgumentType]
    nose = ObjectResult(5, "", 0.8, True, None, np.array([[4.0, 5.5]], np.float32), ("nose",))
    frame = Frame(np.full((66, 97, 3), 90, np.uint8), 8, 0.5, "00008")
    return FrameResult(mask, (cat, nose), frame, LiveTiming(4, 1.7e9 + 0.25, 0.025))


def test_a_frame_is_a_mask_a_line_and_boxes_stamped_with_its_capture(ros) -> None:
    state = ros()
    given = result()
    with RosSink(Topics("/lab", "camera_optical")) as sink:
        sink.write(given)
    assert [topic for topic, _ in state.published] == ["/lab/mask", "/lab/tracks", "/lab/detections"]
    image = state.last("/lab/mask")
    assert (image.height, image.width, image.step, image.encoding) == (66, 97, 97, "mono8")
    assert np.array_equal(np.frombuffer(image.data, np.uint8).reshape(66, 97), given.mask)
    found = state.last("/lab/detections")
    for header in (image.header, found.header, found.detections[0].header):
        assert (header.stamp.sec, header.stamp.nanosec) == (1_700_000_000, 250_000_000)
        assert header.frame_id == "camera_optical"
    assert json.loads(state.last("/lab/tracks").data) == json.loads(json.dumps(frame_record(given)))
    (cat,) = found.detections
    box = cat.bbox
    assert (box.center.position.x, box.center.position.y, box.size_x, box.size_y) == (37.5, 15.0, 15.0, 10.0)
    assert (cat.id, cat.results[0].hypothesis.class_id, cat.results[0].hypothesis.score) == ("3", "cat", 0.75)
    assert state.nodes[0].destroyed and state.contexts[0].state == "shut down"


def test_the_overlay_is_encoded_while_somebody_listens(ros) -> None:
    state = ros()
    with RosSink(Topics("/lab")) as sink:
        sink.write(result())
        assert "/lab/overlay/compressed" not in [topic for topic, _ in state.published]
        state.listeners.add("/lab/overlay/compressed")
        sink.write(result())
    message = state.last("/lab/overlay/compressed")
    image = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR)
    assert message.format == "jpeg" and image is not None and image.shape == (66, 97, 3)


def test_without_vision_msgs_there_are_no_boxes_and_all_the_rest(ros) -> None:
    state = ros(vision=False)
    with RosSink(Topics("/lab")) as sink:
        sink.write(result())
    assert [topic for topic, _ in state.published] == ["/lab/mask", "/lab/tracks"]


def test_a_ros_that_does_not_start_or_ends_is_one_sentence(ros) -> None:
    state = ros()
    state.refusal = RuntimeError("failed to initialize rcl")
    with pytest.raises(CorrflowError, match=r"ROS does not start .*failed to initialize rcl"):
        RosSink(Topics("/lab"))
    assert state.contexts[0].state == "shut down"
    state.refusal = None
    sink = RosSink(Topics("/lab"))
    state.contexts[-1].state = "shut down"
    with pytest.raises(CorrflowError, match="was shut down"):
        sink.write(result())


def test_a_ros_that_was_shut_down_is_started_again_by_its_output(ros) -> None:
    state = ros()
    output = SinkWorker("ros:/lab", lambda: RosSink(Topics("/lab")), first_wait=0.05)
    end = time.monotonic() + 20
    while len(state.contexts) < 2 or not state.published:
        output.put(result())
        time.sleep(0.02)
        if len(state.contexts) == 1 and state.published:
            state.contexts[0].state = "shut down"
            state.published.clear()
        assert time.monotonic() < end
    output.close(5)
    assert output.failures == 1 and state.contexts[1].state == "shut down"


def test_where_ros_is_missing_that_is_said_in_one_sentence(monkeypatch, tmp_path, capfd, moving_square) -> None:
    if importlib.util.find_spec("rclpy") is not None:
        pytest.skip("ROS 2 is installed here")
    with pytest.raises(InputError, match=r"source its setup\.bash"):
        check_ros()
    monkeypatch.chdir(tmp_path)
    Image.fromarray(moving_square[1][0].astype(np.uint8)).save("mask.png")
    with pytest.raises(SystemExit) as stopped:
        app(["--camera", "0", "--init", "mask.png", "--ros", "/corrflow"])
    error = capfd.readouterr().err
    assert stopped.value.code == 2 and error.startswith("error: expected ROS 2's") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "topics"),
    [
        ("/corrflow", Topics("/corrflow")),
        ("robot1/arm_camera", Topics("robot1/arm_camera")),
        ("/lab?", Topics("/lab")),
        ("/lab?frame=camera_optical", Topics("/lab", "camera_optical")),
    ],
)
def test_names_of_topics(text: str, topics: Topics) -> None:
    assert parse_ros(text) == topics


@pytest.mark.parametrize("text", ["", "/", "/a/", "a//b", "/1a", "a b", "/a?frame=", "/a?x=1", "ros://a"])
def test_other_names_are_one_sentence(text: str) -> None:
    with pytest.raises(InputError, match="expected --ros with the beginning of topic names"):
        parse_ros(text)


def test_the_fake_has_the_fields_of_ros() -> None:
    """Compare with the message definitions of rosbags."""
    typesys = pytest.importorskip("rosbags.typesys", reason="rosbags, which knows ROS's messages, is not installed")
    fields = typesys.get_typestore(typesys.Stores.ROS2_HUMBLE).fielddefs
    checked = 0
    for name, ours in fake_ros.FIELDS.items():
        package, kind = name.split("/")
        theirs = fields.get(f"{package}/msg/{kind}")
        if theirs is None:
            assert package == "vision_msgs"  # not among the packages that it knows
            continue
        assert list(ours) == [field for field, _ in theirs[1]], name
        for field, (node, content) in theirs[1]:
            inner = content[0][1] if node.name == "SEQUENCE" else content
            written = inner.replace("/msg/", "/") if isinstance(inner, str) else inner[0]
            assert ours[field] == written + "[]" * (node.name == "SEQUENCE"), (name, field)
        checked += 1
    assert checked == 5


def test_what_is_published_can_be_put_on_the_wire(ros) -> None:
    typesys = pytest.importorskip("rosbags.typesys", reason="rosbags, which knows ROS's messages, is not installed")
    store = typesys.get_typestore(typesys.Stores.ROS2_HUMBLE)
    state = ros(vision=False)
    with RosSink(Topics("/lab")) as sink:
        sink.write(result())

    def rebuilt(message: Any) -> Any:
        name = next(name for name, kind in fake_ros.MESSAGES.items() if kind is type(message))
        values = {field: getattr(message, field) for field in message.fields}
        for field, value in values.items():
            if isinstance(value, fake_ros.Message):
                values[field] = rebuilt(value)
            elif message.fields[field] == "uint8[]":
                values[field] = np.frombuffer(value, np.uint8)
        return store.types[name.replace("/", "/msg/")](**values)

    for topic, kind in (("/lab/mask", "sensor_msgs/msg/Image"), ("/lab/tracks", "std_msgs/msg/String")):
        message = rebuilt(state.last(topic))
        again = store.deserialize_cdr(store.serialize_cdr(message, kind), kind)
        assert np.array_equal(again.data, message.data)
