"""step.onnx: one graph for a whole tracking step, for use without this package; needs no PyTorch.

The memory is an input and, with the newest frame added, an output. It starts with the first frame (features of
encode.onnx and its label channels) and grows by one frame per step until it is full. Search windows have no offsets:
these would need the object positions that only the tracker has.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from corrflow.errors import InputError
from corrflow.export.propagate_graph import IR_VERSION, Sizes, model_of, propagate_model
from corrflow.plugins.local_soft_copy import onnx_function
from corrflow.plugins.local_soft_copy.spec import used_references
from corrflow.runtime.artifacts.artifact import PROPAGATE, REFERENCES, STEP
from corrflow.runtime.settings import STRIDE, TrackingSettings, last_frames

_END = np.iinfo(np.int64).max


def no_step(settings: TrackingSettings) -> str:
    """Return the reason why these settings have no step.onnx; empty if they have one.

    A graph does not count frames, so its memory is at most the first frame and an unbroken run of the last frames.
    """
    permanent_frames, recent_offsets = settings.permanent_frames, settings.recent_offsets
    if permanent_frames not in ((), (0,)) or recent_offsets != last_frames(len(recent_offsets)):
        return (
            f"permanent_frames {list(permanent_frames)} and recent_offsets {list(recent_offsets)} are not the first"
            " frame and the last few"
        )
    return "windows that widen with age are not in the graph" if settings.dilate_past_age else ""


def graphs_of_settings(encode: bytes, settings: TrackingSettings, channels: int) -> dict[str, bytes]:
    """Build the files of an artifact that depend on its settings: propagate.onnx, and step.onnx if possible."""
    propagate = propagate_model(settings.attributes, channels, indexed_references=settings.move_windows)
    files = {PROPAGATE: propagate.SerializeToString()}
    if not no_step(settings):
        files[STEP] = step_model(encode, settings, channels).SerializeToString()
    return files


def step_model(
    encode: bytes,
    settings: TrackingSettings,
    channels: int,
    num_channels: int | None = None,
    frame: tuple[int, int] | None = None,
    half: bool = False,
    aot: bool = False,
    body: bool = True,
) -> onnx.ModelProto:
    """Build frame [1, H, W, 3] uint8 BGR, keys [1, K, C, h, w], values [1, K, N, h, w]
    -> labels [1, N, h, w], next_keys, next_values.

    num_channels, frame: N and (H, W) to fix the graph to, with a full memory, for TensorRT; both or neither
    half: features and label channels are float16, as in encode.onnx of that precision
    aot, body: see propagate_model
    With settings.hard_labels the memory stores binary label channels. Raises InputError for settings without a graph.
    """
    if reason := no_step(settings):
        raise InputError(f"expected settings that one graph can hold, got others: {reason}; use encode and propagate")
    dtype = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    model = onnx.load_model_from_string(encode)
    sizes = None
    H, W, K, N, h, w = "height", "width", "references", "classes", "h", "w"
    if frame is not None and num_channels is not None:
        (H, W), N, K = frame, num_channels, settings.num_reference_frames
        h, w = -(-H // STRIDE), -(-W // STRIDE)
        sizes = Sizes(K, N, (h, w), num_windows=K)
    nodes = list(_prefixed(model.graph))
    references = None
    if sizes is not None:  # the plugin needs all four inputs
        references = REFERENCES
        nodes.append(_constant(REFERENCES, np.array(used_references(None, settings.num_reference_frames), np.int32)))
    nodes.append(onnx_function.node("features", "keys", "values", "labels", settings.attributes, aot, references))
    stored = "labels"
    if settings.hard_labels:
        nodes.append(_constant("half", np.array(0.5, np.float16 if half else np.float32)))
        nodes.append(helper.make_node("Greater", ["labels", "half"], ["above"]))
        nodes.append(helper.make_node("Cast", ["above"], ["hard"], to=dtype))
        stored = "hard"
    one = _constant("axis", np.array([1]))
    permanent, recent = len(settings.permanent_frames), len(settings.recent_offsets)
    nodes += [one, *_advance("keys", "features", permanent, recent), *_advance("values", stored, permanent, recent)]

    def tensor(name: str, *shape: str | int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, dtype, shape)

    after = K if sizes else "next_references"
    graph = helper.make_graph(
        nodes,
        "step",
        [
            helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, H, W, 3]),
            tensor("keys", 1, K, channels, h, w),
            tensor("values", 1, K, N, h, w),
        ],
        [
            tensor("labels", 1, N, h, w),
            tensor("next_keys", 1, after, channels, h, w),
            tensor("next_values", 1, after, N, h, w),
        ],
        [_prefixed_tensor(initializer) for initializer in model.graph.initializer],
    )
    return model_of(graph, settings.attributes, sizes, half, body, indexed_references=sizes is not None)


def fixed_encode(encode: bytes, frame: tuple[int, int]) -> onnx.ModelProto:
    """Fix the graph of an encoder to one frame size (H, W)."""
    model = onnx.load_model_from_string(encode)
    model.ir_version = min(model.ir_version, IR_VERSION)
    for value, (height, width), at in (
        (model.graph.input[0], frame, 1),
        (model.graph.output[0], (-(-frame[0] // STRIDE), -(-frame[1] // STRIDE)), 2),
    ):
        for axis, size in ((at, height), (at + 1, width)):
            value.type.tensor_type.shape.dim[axis].dim_value = size
    del model.graph.value_info[:]  # intermediate shapes, in terms of free sizes
    onnx.checker.check_model(model, full_check=True)
    return model


def _advance(memory: str, newest: str, permanent: int, recent: int) -> list[onnx.NodeProto]:
    """Make the nodes of next_<memory>: append the newest frame, and drop the oldest recent frame of a full memory."""
    name = f"{memory}_"
    if not recent:
        return [helper.make_node("Identity", [memory], [f"next_{memory}"])]
    nodes = [
        helper.make_node("Unsqueeze", [newest, "axis"], [name + "newest"]),
        _constant(name + "anchors", np.array([permanent])),
        _constant(name + "end", np.array([_END])),
        _constant(name + "kept", np.array([-recent])),
        helper.make_node("Slice", [memory, name + "anchors", name + "end", "axis"], [name + "recent"]),
        helper.make_node("Concat", [name + "recent", name + "newest"], [name + "all"], axis=1),
    ]
    last = name + "last" if permanent else f"next_{memory}"
    nodes.append(helper.make_node("Slice", [name + "all", name + "kept", name + "end", "axis"], [last]))
    if permanent:
        nodes += [
            _constant(name + "start", np.array([0])),
            helper.make_node("Slice", [memory, name + "start", name + "anchors", "axis"], [name + "anchor"]),
            helper.make_node("Concat", [name + "anchor", last], [f"next_{memory}"], axis=1),
        ]
    return nodes


def _constant(name: str, value: np.ndarray) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))


def _prefix(name: str) -> str:
    """Return the name of an encoder tensor or node inside the step graph."""
    return name if name in ("", "frame", "features") else f"encode_{name}"


def _prefixed(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    nodes = []
    for source in graph.node:
        node = onnx.NodeProto()
        node.CopyFrom(source)
        node.name = _prefix(node.name)
        node.input[:] = [_prefix(name) for name in source.input]
        node.output[:] = [_prefix(name) for name in source.output]
        nodes.append(node)
    return nodes


def _prefixed_tensor(tensor: onnx.TensorProto) -> onnx.TensorProto:
    prefixed = onnx.TensorProto()
    prefixed.CopyFrom(tensor)
    prefixed.name = _prefix(tensor.name)
    return prefixed
