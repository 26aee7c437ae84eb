"""LocalSoftCopy as an ONNX function of standard ops, so that any ONNX runtime runs a graph that holds the node.

An ONNX function cannot unroll over its attributes, so `function` writes one for given attributes; the node carries
the same attributes for those who have a kernel of their own. One band of tiles is computed at a time (Scan), which
keeps the memory to one band's scores. The tiles are those of torch_blocked.py; a dilated window is cut out of the
undilated patch by a mask, which keeps the function short and makes dilation slow here. Patches are gathered from where
each reference's window is moved to, their indices clipped to the frame and what lies outside left out by position.

B, C, K, M, N, H and W stay free. TensorRT has no use for a loop, so the bands can be written out one after another
instead, for a height that is known.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from corrflow.plugins.local_soft_copy.spec import DOMAIN, NAME, VERSION, Attributes

OPSET = 18
TILE = 8
# Far below any score, and finite: minus infinity would make NaN of queries that see no position at all.
EXCLUDED = -1e30
# By these TensorRT's parser finds a plugin for the node, where one is registered; nobody else reads them.
PLUGIN_ATTRIBUTES: dict[str, Any] = {"plugin_namespace": DOMAIN, "plugin_version": "1"}


class _Nodes:
    """Collects nodes; each call adds one and returns its output's name."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []

    def __call__(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        names = [f"{self.prefix}{len(self.nodes)}_{op.lower()}{'' if i == 0 else f'_{i}'}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, **attributes))
        return names[-1] if op == "TopK" else names[0]

    def constant(self, value: np.ndarray | np.generic | list[int] | int) -> str:
        """A constant: Python integers become int64, NumPy values keep their dtype."""
        array = np.asarray(value) if isinstance(value, np.ndarray | np.generic) else np.array(value, np.int64)
        return self("Constant", value=numpy_helper.from_array(array.copy(order="C")))

    def size(self, tensor: str, axis: int) -> str:
        """[1] int64: the length of one axis."""
        return self("Shape", tensor, start=axis, end=axis + 1)

    def shape(self, *parts: str | int) -> str:
        """A shape from sizes known now (int) and at run time (name of a [1] int64)."""
        return self("Concat", *[self.constant([part]) if isinstance(part, int) else part for part in parts], axis=0)

    def slice(self, tensor: str, axis: int, start: str, end: str) -> str:
        return self("Slice", tensor, start, end, self.constant([axis]))


def function(
    attributes: Attributes, height: int | None = None, half: bool = False, named: bool = False
) -> onnx.FunctionProto:
    """The function body for these attributes: (query, keys, values) -> copied, shapes as in spec.py.

    height: H in cells, where the bands are to be written out and not looped over
    half:   query, keys, values and output are float16 and not float32; it computes in float32 either way
    named:  there is a fourth input, references [M, 4] int32
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
    down = add("Sub", add("Mul", rows, tile), H)
    right = add("Sub", add("Mul", columns, tile), width)
    scaled = add("Div", query_in, add.constant(np.float32(attributes.temperature)))
    outer = {
        "query": add("Pad", scaled, add("Concat", *[zero] * 6, down, right, axis=0)),
        "H": H,
        "width": width,
        "columns": columns,
        "batch": add.size("query", 0),
        "channels": add.size("query", 1),
        "classes": add.size("values", 2),
    }
    for name, tensor, length in (("keys", keys_in, "channels"), ("values", values_in, "classes")):
        # Channels last: what is gathered below is then a run of channels, not single numbers.
        last = add("Transpose", tensor, perm=[0, 1, 3, 4, 2])
        outer[name] = add("Reshape", last, add.shape(outer["batch"], -1, outer[length]))  # [B, K * H * W, ..]
    outer |= _references(add, attributes, halo, named)
    first_column = add("Mul", add("Range", *_scalars(add, 0, columns, 1)), add.constant(T))
    seen = add("Add", add("Unsqueeze", first_column, one), add.constant(np.arange(P) - halo))  # [columns, P]
    at, inside = _moved(add, add("Unsqueeze", seen, one), outer["right"], width)
    outer["column"] = at  # [columns, M, P]
    # A query's part of a window in x, 1 where a column of the patch belongs to it and 0 elsewhere: [columns, T, M, P]
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
    whole = add.shape(outer["batch"], outer["classes"], add("Mul", rows, tile), add("Mul", columns, tile))
    image = add.slice(add.slice(add("Reshape", image, whole), 2, zero, H), 3, zero, width)
    number = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    add.nodes.append(helper.make_node("Cast", [image], ["copied"], to=number))
    return helper.make_function(
        DOMAIN,
        NAME,
        ["query", "keys", "values", *(["references"] if named else [])],
        ["copied"],
        add.nodes,
        [helper.make_opsetid("", OPSET)],
        # Declared so that the node may carry them; the body has them built in.
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
    """The custom node; its attributes are for kernels, the function beside it has them built in.

    aot: TensorRT is to compile the plugin's kernel into the engine, which it can do from 10.9 on
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
    """The opsets of a model that holds the node."""
    return [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)]


def _scalars(add: _Nodes, start: int, stop: str, step: int) -> tuple[str, str, str]:
    """Range wants scalars where the sizes at hand are [1]."""
    return add.constant(start), add("Squeeze", stop), add.constant(step)


def _looped_band(attributes: Attributes, outer: dict[str, str], halo: int) -> onnx.GraphProto:
    """The body of the loop over bands: first row [] int64 -> copied [B, columns, T * T, N]."""
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
    """One band of tiles: its first row [1] int64 -> copied [B, columns, T * T, N]. Reads what `outer` names."""
    T, P = TILE, TILE + 2 * halo
    query = add.slice(outer["query"], 2, row, add("Add", row, add.constant([T])))  # [B, C, T, columns * T]
    query = add("Reshape", query, add.shape(outer["batch"], outer["channels"], T, outer["columns"], T))
    query = add("Transpose", query, perm=[0, 3, 2, 4, 1])
    query = add("Reshape", query, add.shape(outer["batch"], outer["columns"], T * T, outer["channels"]))

    seen = add("Add", row, add.constant(np.arange(P) - halo))  # [P]
    at, inside = _moved(add, seen, outer["down"], outer["H"])  # [M, P]
    vertical = add("Mul", outer["side"], add("Mul", inside, outer["used"]))  # [T, M, P], as outer["horizontal"]
    # Which cell of all pictures each position of a patch is: [columns, M * P * P], positions in the order of ties.
    first = add("Mul", add("Add", outer["first_row"], at), outer["width"])
    cells = add("Add", add("Unsqueeze", first, add.constant([2])), add("Unsqueeze", outer["column"], add.constant([2])))
    cells = add("Reshape", cells, add.shape(outer["columns"], -1))
    keys = add("Gather", outer["keys"], cells, axis=1)  # [B, columns, M * P * P, C]
    values = add("Gather", outer["values"], cells, axis=1)

    score = add("MatMul", query, add("Transpose", keys, perm=[0, 1, 3, 2]))  # [B, columns, T * T, M * P * P]
    ends = add.constant([1, 4])
    down, across = (
        add("Greater", add("Unsqueeze", side, ends), add.constant(np.float32(0.5)))
        for side in (vertical, outer["horizontal"])
    )  # [T, 1, M, P, 1] and [columns, 1, T, M, 1, P]
    near = add("Reshape", add("And", down, across), add.shape(outer["columns"], T * T, -1))
    score = add("Where", near, score, add.constant(np.float32(EXCLUDED)))
    if attributes.top_k:
        kept = add("Min", add.constant([attributes.top_k]), add.size(score, 3))
        index = add("TopK", score, kept, axis=3, outputs=2)  # ties to the lower index, as the rule wants
        best = add.nodes[-1].output[0]
        flat = add("Reshape", index, add.shape(outer["batch"], outer["columns"], -1, 1))
        chosen = add("GatherND", values, flat, batch_dims=2)  # [B, columns, T * T * kept, N]
        by_query = add(
            "Concat", outer["batch"], outer["columns"], add.constant([T * T]), kept, outer["classes"], axis=0
        )
        weight = add("Unsqueeze", add("Softmax", best, axis=3), add.constant([3]))  # [B, columns, T * T, 1, kept]
        copied = add("Squeeze", add("MatMul", weight, add("Reshape", chosen, by_query)), add.constant([3]))
    else:
        copied = add("MatMul", add("Softmax", score, axis=3), values)
    # How many positions each query sees, [columns, T * T, 1]: zeros are copied where that is none.
    rows = add("ReduceSum", vertical, add.constant([2]), keepdims=0)  # [T, M]
    columns = add("ReduceSum", outer["horizontal"], add.constant([3]), keepdims=0)  # [columns, T, M]
    count = add("MatMul", rows, add("Transpose", columns, perm=[0, 2, 1]))  # [columns, T, T]
    some = add("Min", add("Reshape", count, add.shape(outer["columns"], T * T, 1)), add.constant(np.float32(1)))
    return add("Mul", copied, some)


def _references(add: _Nodes, attributes: Attributes, halo: int, named: bool) -> dict[str, str]:
    """What is known of the M references before their windows are placed, by name.

    used:      [M, 1] float32, 0 where a row is left out
    down, right: [M, 1] int64
    first_row: [M, 1] int64, where their pictures begin among the rows of all pictures
    side:      [T, M, P] float32, 1 where a position of the patch belongs to a query's window, 0 elsewhere. A window is
               as wide as it is high, so one side says it all; a mask of all positions would make a large file.
    """
    one, zero, pictures = add.constant([1]), add.constant([0]), add.size("keys", 1)
    if named:
        rows = add("Cast", "references", to=TensorProto.INT64)
        picture, window, down, right = (add("Gather", rows, add.constant(i), axis=1) for i in range(4))
    else:
        picture = window = add("Range", *_scalars(add, 0, pictures, 1))
        down = right = zero
    used = add("And", add("GreaterOrEqual", picture, zero), add("Less", picture, pictures))
    # A row that is left out reads a picture that another one names: what was never written may be no number, which no
    # weight makes a zero of.
    highest = add("ReduceMax", add("Where", used, picture, zero), zero, keepdims=1)
    picture = add("Where", used, picture, highest)
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
        "down": add("Unsqueeze", down, one),
        "right": add("Unsqueeze", right, one),
        "first_row": add("Unsqueeze", add("Mul", picture, add.size("query", 2)), one),
        "side": add("Gather", add.constant(sides), _clipped(add, window, add.constant([sides.shape[1]])), axis=1),
    }


def _moved(add: _Nodes, places: str, move: str, length: str) -> tuple[str, str]:
    """Places along an axis of this length, moved and clipped, and float32: 1 where they were inside, 0 elsewhere."""
    moved = add("Add", places, move)
    inside = add("And", add("GreaterOrEqual", moved, add.constant([0])), add("Less", moved, length))
    return _clipped(add, moved, length), add("Cast", inside, to=TensorProto.FLOAT)


def _clipped(add: _Nodes, index: str, length: str) -> str:
    """An index to 0 .. length - 1."""
    return add("Max", add("Min", index, add("Sub", length, add.constant([1]))), add.constant([0]))
