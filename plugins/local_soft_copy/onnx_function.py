"""LocalSoftCopy (top-k local cross-attention) as an ONNX function of standard ops, for any ONNX runtime.

An ONNX function cannot unroll over its attributes, so `function` writes the body for given attributes. The node has
the same attributes, for runtimes with a kernel. Scan computes one band of tiles at a time, so memory holds one band of
scores. Tiles are those of torch_blocked.py. Patches are gathered at the offset of each search window; indices are
clipped to the frame, and positions outside are excluded. A mask cuts a dilated window out of the undilated patch: the
function stays short, but dilation is slow.

B, C, K, M, N, H and W stay free. TensorRT does not benefit from a loop, so bands can be unrolled for a fixed height.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from corrflow.plugins.local_soft_copy.spec import DOMAIN, NAME, VERSION, Attributes

OPSET = 18
TILE = 8
# Far below any score, but finite: minus infinity would give NaN for queries without any position.
EXCLUDED = -1e30
# TensorRT's parser finds a registered plugin by these; other runtimes ignore them.
PLUGIN_ATTRIBUTES: dict[str, Any] = {"plugin_namespace": DOMAIN, "plugin_version": "1"}


class _Nodes:
    """Node list; each call appends a node and returns the name of its output."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []

    def __call__(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        names = [f"{self.prefix}{len(self.nodes)}_{op.lower()}{'' if i == 0 else f'_{i}'}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, **attributes))
        return names[-1] if op == "TopK" else names[0]

    def constant(self, value: np.ndarray | np.generic | list[int] | int) -> str:
        """Add a constant: Python integers become int64, NumPy values keep their dtype."""
        array = np.asarray(value) if isinstance(value, np.ndarray | np.generic) else np.array(value, np.int64)
        return self("Constant", value=numpy_helper.from_array(array.copy(order="C")))

    def size(self, tensor: str, axis: int) -> str:
        """Add the length of an axis, [1] int64."""
        return self("Shape", tensor, start=axis, end=axis + 1)

    def shape(self, *parts: str | int) -> str:
        """Add a shape of sizes that are fixed (int) or known at run time (name of a [1] int64)."""
        return self("Concat", *[self.constant([part]) if isinstance(part, int) else part for part in parts], axis=0)

    def slice(self, tensor: str, axis: int, start: str, end: str) -> str:
        """Add start .. end of an axis."""
        return self("Slice", tensor, start, end, self.constant([axis]))


def function(
    attributes: Attributes, height: int | None = None, half: bool = False, indexed_references: bool = False
) -> onnx.FunctionProto:
    """Write the function body for these attributes: (query, keys, values) -> copied, shapes as in spec.py.

    height: H in cells to unroll the bands for; None for a loop
    half:   inputs and output are float16 instead of float32; sums are float32 in both cases
    indexed_references: add the fourth input, references [M, 4] int32
    """
    add = _Nodes("o")
    query_in, keys_in, values_in = (
        add("Cast", name, to=TensorProto.FLOAT) if half else name for name in ("query", "keys", "values")
    )
    halo = max(radius * dilation for radius, dilation in attributes.distinct_windows)
    T, P = TILE, TILE + 2 * halo

    H, width = add.size("query", 2), add.size("query", 3)
    tile = add.constant([T])
    one, zero = add.constant([1]), add.constant([0])
    rows = add("Div", add("Add", H, add.constant([T - 1])), tile)
    columns = add("Div", add("Add", width, add.constant([T - 1])), tile)
    padding_down = add("Sub", add("Mul", rows, tile), H)
    padding_right = add("Sub", add("Mul", columns, tile), width)
    scaled = add("Div", query_in, add.constant(np.float32(attributes.temperature)))
    outer = {
        "query": add("Pad", scaled, add("Concat", *[zero] * 6, padding_down, padding_right, axis=0)),
        "H": H,
        "width": width,
        "columns": columns,
        "batch": add.size("query", 0),
        "channels": add.size("query", 1),
        "classes": add.size("values", 2),
    }
    for name, tensor, length in (("keys", keys_in, "channels"), ("values", values_in, "classes")):
        # Channels last, so that Gather copies runs of channels, not single numbers.
        last = add("Transpose", tensor, perm=[0, 1, 3, 4, 2])
        outer[name] = add("Reshape", last, add.shape(outer["batch"], -1, outer[length]))  # [B, K * H * W, ..]
    outer |= _references(add, attributes, halo, indexed_references)
    first_column = add("Mul", add("Range", *_scalars(add, 0, columns, 1)), add.constant(T))
    patch = add("Add", add("Unsqueeze", first_column, one), add.constant(np.arange(P) - halo))  # [columns, P]
    index, inside = _shifted(add, add("Unsqueeze", patch, one), outer["dx"], width)
    outer["column"] = index  # [columns, M, P]
    # Horizontal part of a query's window, 1 if a column of the patch belongs to the window: [columns, T, M, P]
    outer["horizontal"] = add("Mul", outer["side"], add("Unsqueeze", inside, one))
    if height is None:
        first_rows = add("Mul", add("Range", *_scalars(add, 0, rows, 1)), add.constant(T))
        bands = add("Scan", first_rows, body=_looped_band(attributes, outer, halo), num_scan_inputs=1)
    else:
        leading = add.constant([0])
        parts = [
            add("Unsqueeze", _band(add, attributes, outer, halo, add.constant([first])), leading)
            for first in range(0, height, T)
        ]
        bands = add("Concat", *parts, axis=0) if len(parts) > 1 else parts[0]
    # bands: [rows, B, columns, T * T, N]
    split = add.shape(rows, outer["batch"], columns, T, T, outer["classes"])
    image = add("Transpose", add("Reshape", bands, split), perm=[1, 5, 0, 3, 2, 4])  # [B, N, rows, T, columns, T]
    padded = add.shape(outer["batch"], outer["classes"], add("Mul", rows, tile), add("Mul", columns, tile))
    image = add.slice(add.slice(add("Reshape", image, padded), 2, zero, H), 3, zero, width)
    dtype = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    add.nodes.append(helper.make_node("Cast", [image], ["copied"], to=dtype))
    return helper.make_function(
        DOMAIN,
        NAME,
        ["query", "keys", "values", *(["references"] if indexed_references else [])],
        ["copied"],
        add.nodes,
        [helper.make_opsetid("", OPSET)],
        # Declared for the node; the body has their values built in.
        ["radius", "dilation", "top_k", "temperature", *PLUGIN_ATTRIBUTES, "aot"],
    )


def node(
    query: str,
    keys: str,
    values: str,
    copied: str,
    attributes: Attributes,
    aot: bool = False,
    references: str | None = None,
) -> onnx.NodeProto:
    """Make the custom node. Its attributes are for kernels; the function has their values built in.

    aot: TensorRT compiles the plugin's kernel into the engine, possible from 10.9 on
    """
    plugin: dict[str, Any] = PLUGIN_ATTRIBUTES | {"aot": 1} if aot else PLUGIN_ATTRIBUTES
    return helper.make_node(
        NAME,
        [query, keys, values, *([] if references is None else [references])],
        [copied],
        domain=DOMAIN,
        radius=list(attributes.radius),
        dilation=list(attributes.dilation),
        top_k=attributes.top_k,
        temperature=float(attributes.temperature),
        **plugin,
    )


def opset_imports() -> list[onnx.OperatorSetIdProto]:
    """Return the opsets of a model with the node."""
    return [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)]


def _scalars(add: _Nodes, start: int, stop: str, step: int) -> tuple[str, str, str]:
    """Return the inputs of Range, which takes scalars instead of [1] tensors."""
    return add.constant(start), add("Squeeze", stop), add.constant(step)


def _looped_band(attributes: Attributes, outer: dict[str, str], halo: int) -> onnx.GraphProto:
    """Build the loop body over bands: first row [] int64 -> copied [B, columns, T * T, N]."""
    add = _Nodes("b")
    band = _band(add, attributes, outer, halo, add("Unsqueeze", "first_row", add.constant([0])))
    add.nodes.append(helper.make_node("Identity", [band], ["band"]))
    return helper.make_graph(
        add.nodes,
        "band",
        [helper.make_tensor_value_info("first_row", TensorProto.INT64, [])],
        [helper.make_tensor_value_info("band", TensorProto.FLOAT, [None, None, None, None])],
    )


def _band(add: _Nodes, attributes: Attributes, outer: dict[str, str], halo: int, row: str) -> str:
    """Add one band of tiles: first row [1] int64 -> copied [B, columns, T * T, N]. outer: tensors by name."""
    T, P = TILE, TILE + 2 * halo
    query = add.slice(outer["query"], 2, row, add("Add", row, add.constant([T])))  # [B, C, T, columns * T]
    query = add("Reshape", query, add.shape(outer["batch"], outer["channels"], T, outer["columns"], T))
    query = add("Transpose", query, perm=[0, 3, 2, 4, 1])
    query = add("Reshape", query, add.shape(outer["batch"], outer["columns"], T * T, outer["channels"]))

    patch = add("Add", row, add.constant(np.arange(P) - halo))  # [P]
    index, inside = _shifted(add, patch, outer["dy"], outer["H"])  # [M, P]
    vertical = add("Mul", outer["side"], add("Mul", inside, outer["used"]))  # [T, M, P], like outer["horizontal"]
    # Cell index over all frames of each patch position: [columns, M * P * P], in the order of the tie rule.
    first = add("Mul", add("Add", outer["first_row"], index), outer["width"])
    cells = add("Add", add("Unsqueeze", first, add.constant([2])), add("Unsqueeze", outer["column"], add.constant([2])))
    cells = add("Reshape", cells, add.shape(outer["columns"], -1))
    keys = add("Gather", outer["keys"], cells, axis=1)  # [B, columns, M * P * P, C]
    values = add("Gather", outer["values"], cells, axis=1)

    score = add("MatMul", query, add("Transpose", keys, perm=[0, 1, 3, 2]))  # [B, columns, T * T, M * P * P]
    ends = add.constant([1, 4])
    near_rows, near_columns = (
        add("Greater", add("Unsqueeze", side, ends), add.constant(np.float32(0.5)))
        for side in (vertical, outer["horizontal"])
    )  # [T, 1, M, P, 1] and [columns, 1, T, M, 1, P]
    near = add("Reshape", add("And", near_rows, near_columns), add.shape(outer["columns"], T * T, -1))
    score = add("Where", near, score, add.constant(np.float32(EXCLUDED)))
    if attributes.top_k:
        count = add("Min", add.constant([attributes.top_k]), add.size(score, 3))
        order = add("TopK", score, count, axis=3, outputs=2)  # ties to the lower index, as the tie rule
        best = add.nodes[-1].output[0]
        flat = add("Reshape", order, add.shape(outer["batch"], outer["columns"], -1, 1))
        chosen = add("GatherND", values, flat, batch_dims=2)  # [B, columns, T * T * count, N]
        by_query = add(
            "Concat", outer["batch"], outer["columns"], add.constant([T * T]), count, outer["classes"], axis=0
        )
        weight = add("Unsqueeze", add("Softmax", best, axis=3), add.constant([3]))  # [B, columns, T * T, 1, count]
        copied = add("Squeeze", add("MatMul", weight, add("Reshape", chosen, by_query)), add.constant([3]))
    else:
        copied = add("MatMul", add("Softmax", score, axis=3), values)
    # Number of positions of each query, [columns, T * T, 1]: queries without any get zeros.
    rows = add("ReduceSum", vertical, add.constant([2]), keepdims=0)  # [T, M]
    columns = add("ReduceSum", outer["horizontal"], add.constant([3]), keepdims=0)  # [columns, T, M]
    count = add("MatMul", rows, add("Transpose", columns, perm=[0, 2, 1]))  # [columns, T, T]
    any_position = add("Min", add("Reshape", count, add.shape(outer["columns"], T * T, 1)), add.constant(np.float32(1)))
    return add("Mul", copied, any_position)


def _references(add: _Nodes, attributes: Attributes, halo: int, indexed_references: bool) -> dict[str, str]:
    """Add the tensors of the M search windows that are the same for all bands, and return their names.

    used:      [M, 1] float32, 0 for unused rows
    dy, dx:    [M, 1] int64
    first_row: [M, 1] int64, first row of the window's frame among the rows of all frames
    side:      [T, M, P] float32, 1 if a position of the patch belongs to a query's window, in one direction. Windows
               are square, so one side is enough; a mask of all positions would make a large file.
    """
    one, zero, num_frames = add.constant([1]), add.constant([0]), add.size("keys", 1)
    if indexed_references:
        rows = add("Cast", "references", to=TensorProto.INT64)
        frame, window, dy, dx = (add("Gather", rows, add.constant(i), axis=1) for i in range(4))
    else:
        frame = window = add("Range", *_scalars(add, 0, num_frames, 1))
        dy = dx = zero
    used = add("And", add("GreaterOrEqual", frame, zero), add("Less", frame, num_frames))
    # An unused row reads a frame of another row: unwritten memory may hold NaN, which no weight turns into zero.
    highest = add("ReduceMax", add("Where", used, frame, zero), zero, keepdims=1)
    frame = add("Where", used, frame, highest)
    T, P = TILE, TILE + 2 * halo
    offset = np.arange(P)[None, :] - halo - np.arange(T)[:, None]  # [T, P]
    sides = np.stack(
        [
            (abs(offset) <= radius * dilation) & (offset % dilation == 0)
            for radius, dilation in attributes.distinct_windows
        ],
        axis=1,
    ).astype(np.float32)
    return {
        "used": add("Unsqueeze", add("Cast", used, to=TensorProto.FLOAT), one),
        "dy": add("Unsqueeze", dy, one),
        "dx": add("Unsqueeze", dx, one),
        "first_row": add("Unsqueeze", add("Mul", frame, add.size("query", 2)), one),
        "side": add("Gather", add.constant(sides), _clipped(add, window, add.constant([sides.shape[1]])), axis=1),
    }


def _shifted(add: _Nodes, index: str, offset: str, length: str) -> tuple[str, str]:
    """Add the shifted index along an axis, clipped to its length, and float32: 1 inside the frame, 0 outside."""
    shifted = add("Add", index, offset)
    inside = add("And", add("GreaterOrEqual", shifted, add.constant([0])), add("Less", shifted, length))
    return _clipped(add, shifted, length), add("Cast", inside, to=TensorProto.FLOAT)


def _clipped(add: _Nodes, index: str, length: str) -> str:
    """Add an index clipped to 0 .. length - 1."""
    return add("Max", add("Min", index, add("Sub", length, add.constant([1]))), add.constant([0]))
