"""step.onnx: a tracker's whole step in one graph, for those who track without this package. No PyTorch.

The memory goes in and comes out again with the newest frame in it. It begins as the first frame alone (its features
from encode.onnx, and its labels) and grows by one reference a step until it is full. Windows stay where they are: what
would move them is the tracker's knowledge of where the objects were.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from corrflow.errors import InputError
from corrflow.export.propagate_graph import IR_VERSION, Sizes, finished, propagate_model
from corrflow.plugins.local_soft_copy import onnx_function
from corrflow.plugins.local_soft_copy.spec import named_references
from corrflow.runtime.artifacts.artifact import PROPAGATE, REFERENCES, STEP
from corrflow.runtime.settings import STRIDE, TrackingSettings

_END = np.iinfo(np.int64).max


def no_step(settings: TrackingSettings) -> str:
    """Why these settings have no step.onnx; empty where they have one.

    A graph does not count frames, so its memory is the first frame, or none for ever, and an unbroken run of last ones.
    """
    if settings.permanent_frames not in ((), (0,)) or settings.recent_offsets != tuple(
        range(1, len(settings.recent_offsets) + 1)
    ):
        return f"permanent_frames {list(settings.permanent_frames)} and recent_offsets {list(settings.recent_offsets)} are not the first frame and the last few"
    return "windows that widen with age are not in the graph" if settings.dilate_past_age else ""


def graphs_of_settings(encode: bytes, settings: TrackingSettings, channels: int) -> dict[str, bytes]:
    """The files of an artifact that follow from its settings: propagate.onnx, and step.onnx where there is one."""
    files = {PROPAGATE: propagate_model(settings.attributes, channels, named=settings.move_windows).SerializeToString()}
    if not no_step(settings):
        files[STEP] = step_model(encode, settings, channels).SerializeToString()
    return files


def step_model(
    encode: bytes,
    settings: TrackingSettings,
    channels: int,
    labels: int | None = None,
    frame: tuple[int, int] | None = None,
    half: bool = False,
    aot: bool = False,
    body: bool = True,
) -> onnx.ModelProto:
    """frame [1, H, W, 3] uint8 BGR, keys [1, K, C, h, w], values [1, K, N, h, w]
    -> labels [1, N, h, w], next_keys, next_values.

    labels, frame: N and (H, W) to fix the graph to, with a full memory, for TensorRT; both or neither
    half: features and labels are float16, as encode.onnx of that precision makes them
    The rest is propagate_model's. With settings.hard_labels every channel is remembered as a mask.
    Raises InputError where the settings have no such graph.
    """
    if reason := no_step(settings):
        raise InputError(f"expected settings that one graph can hold, got others: {reason}; use encode and propagate")
    number = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    model = onnx.load_model_from_string(encode)
    sizes = None
    H, W, K, N, h, w = "height", "width", "references", "classes", "h", "w"
    if frame is not None and labels is not None:
        (H, W), N, K = frame, labels, settings.references
        h, w = -(-H // STRIDE), -(-W // STRIDE)
        sizes = Sizes(K, N, (h, w), rows=K)
    nodes = list(_prefixed(model.graph))
    references = None
    if sizes is not None:  # the plugin has all of its inputs
        references = REFERENCES
        nodes.append(_constant(REFERENCES, np.array(named_references(None, settings.references), np.int32)))
    nodes.append(onnx_function.node("features", "keys", "values", "labels", settings.attributes, aot, references))
    remembered = "labels"
    if settings.hard_labels:
        nodes.append(_constant("half", np.array(0.5, np.float16 if half else np.float32)))
        nodes.append(helper.make_node("Greater", ["labels", "half"], ["above"]))
        nodes.append(helper.make_node("Cast", ["above"], ["hard"], to=number))
        remembered = "hard"
    one = _constant("axis", np.array([1]))
    permanent_frames, recent = len(settings.permanent_frames), len(settings.recent_offsets)
    nodes += [
        one,
        *_advance("keys", "features", permanent_frames, recent),
        *_advance("values", remembered, permanent_frames, recent),
    ]

    def described(name: str, *shape: str | int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, number, shape)

    after = K if sizes else "next_references"
    graph = helper.make_graph(
        nodes,
        "step",
        [
            helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, H, W, 3]),
            described("keys", 1, K, channels, h, w),
            described("values", 1, K, N, h, w),
        ],
        [
            described("labels", 1, N, h, w),
            described("next_keys", 1, after, channels, h, w),
            described("next_values", 1, after, N, h, w),
        ],
        [_renamed_tensor(tensor) for tensor in model.graph.initializer],
    )
    return finished(graph, settings.attributes, sizes, half, body, named=sizes is not None)


def fixed_encode(encode: bytes, frame: tuple[int, int]) -> onnx.ModelProto:
    """An encoder's graph for frames of one size (H, W)."""
    model = onnx.load_model_from_string(encode)
    model.ir_version = min(model.ir_version, IR_VERSION)
    for value, (height, width), at in (
        (model.graph.input[0], frame, 1),
        (model.graph.output[0], (-(-frame[0] // STRIDE), -(-frame[1] // STRIDE)), 2),
    ):
        for axis, size in ((at, height), (at + 1, width)):
            value.type.tensor_type.shape.dim[axis].dim_value = size
    del model.graph.value_info[:]  # in terms of sizes that are free no longer
    onnx.checker.check_model(model, full_check=True)
    return model


def _advance(memory: str, newest: str, permanent_frames: int, recent: int) -> list[onnx.NodeProto]:
    """Nodes that make next_<memory>: the anchor stays, the newest frame joins, the oldest leaves once it is full."""
    name = f"{memory}_"
    if not recent:
        return [helper.make_node("Identity", [memory], [f"next_{memory}"])]
    nodes = [
        helper.make_node("Unsqueeze", [newest, "axis"], [name + "newest"]),
        _constant(name + "permanent_frames", np.array([permanent_frames])),
        _constant(name + "end", np.array([_END])),
        _constant(name + "kept", np.array([-recent])),
        helper.make_node("Slice", [memory, name + "permanent_frames", name + "end", "axis"], [name + "recent"]),
        helper.make_node("Concat", [name + "recent", name + "newest"], [name + "all"], axis=1),
    ]
    last = name + "last" if permanent_frames else f"next_{memory}"
    nodes.append(helper.make_node("Slice", [name + "all", name + "kept", name + "end", "axis"], [last]))
    if permanent_frames:
        nodes += [
            _constant(name + "start", np.array([0])),
            helper.make_node("Slice", [memory, name + "start", name + "permanent_frames", "axis"], [name + "anchor"]),
            helper.make_node("Concat", [name + "anchor", last], [f"next_{memory}"], axis=1),
        ]
    return nodes


def _constant(name: str, value: np.ndarray) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))


def _own(name: str) -> str:
    """A name of the encoder's graph inside the step's."""
    return name if name in ("", "frame", "features") else f"encode_{name}"


def _prefixed(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    nodes = []
    for source in graph.node:
        node = onnx.NodeProto()
        node.CopyFrom(source)
        node.name = _own(node.name)
        node.input[:] = [_own(name) for name in source.input]
        node.output[:] = [_own(name) for name in source.output]
        nodes.append(node)
    return nodes


def _renamed_tensor(tensor: onnx.TensorProto) -> onnx.TensorProto:
    own = onnx.TensorProto()
    own.CopyFrom(tensor)
    own.name = _own(tensor.name)
    return own
