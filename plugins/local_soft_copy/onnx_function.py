"""LocalSoftCopy as an ONNX function of standard ops, so that any ONNX runtime runs a graph that holds the node.

An ONNX function cannot unroll over its attributes, so `function` writes one for given attributes; the node carries
the same attributes for those who have a kernel of their own. One band of tiles is computed at a time (Scan), which
keeps the memory to one band's scores. The tiles are those of torch_blocked.py; a dilated window is cut out of the
undilated patch by the bias, which keeps the function short and makes dilation slow here.

B, C, K, N, H and W stay free. TensorRT has no use for a loop, so the bands can be written out one after another
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
# Far below any score, and finite: minus infinity would make NaN of the queries that pad the last tiles.
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


def function(attributes: Attributes, height: int | None = None, half: bool = False) -> onnx.FunctionProto:
    """The function body for these attributes: (query, keys, values) -> copied, shapes as in spec.py.

    height: H in cells, where the bands are to be written out and not looped over
    half:   inputs and output are float16 and not float32; it computes in float32 either way
    """
    add = _Nodes("o")
    query_in, keys_in, values_in = (
        add("Cast", name, to=TensorProto.FLOAT) if half else name for name in ("query", "keys", "values")
    )
    halo = max(radius * dilation for radius, dilation in attributes.distinct_windows)
    T = TILE

    H, width = add.size("query", 2), add.size("query", 3)
    tile = add.constant([T])
    one = add.constant([1])
    rows = add("Div", add("Add", H, add.constant([T - 1])), tile)
    columns = add("Div", add("Add", width, add.constant([T - 1])), tile)
    down = add("Sub", add("Mul", rows, tile), H)
    right = add("Sub", add("Mul", columns, tile), width)
    zero, around = add.constant([0]), add.constant([halo])

    def padded(tensor: str, before: int, after: int, margin: str) -> str:
        """Zeros around height and width, which have `before` axes before them and `after` behind."""
        lower = [zero] * before + [margin, margin] + [zero] * after
        upper = [zero] * before + [add("Add", down, margin), add("Add", right, margin)] + [zero] * after
        return add("Pad", tensor, add("Concat", *lower, *upper, axis=0))

    scaled = add("Div", query_in, add.constant(np.float32(attributes.temperature)))
    frame = add("Expand", add.constant(np.ones((1, 1), np.float32)), add("Concat", H, width, axis=0))
    outer = {
        "query": padded(scaled, 2, 0, zero),
        # Channels last: what is gathered below is then a run of channels, not single numbers.
        "keys": padded(add("Transpose", keys_in, perm=[0, 1, 3, 4, 2]), 2, 1, around),
        "values": padded(add("Transpose", values_in, perm=[0, 1, 3, 4, 2]), 2, 1, around),
        "frame": padded(frame, 0, 0, around),
        "columns": columns,
        "batch": add.size("query", 0),
        "channels": add.size("query", 1),
        "classes": add.size("values", 2),
        "near": _near(add, attributes, halo),
    }
    first_column = add("Mul", add("Range", *_scalars(add, 0, columns, 1)), add.constant(T))
    outer["first_column"] = add("Unsqueeze", first_column, one)  # [columns, 1]
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
        ["query", "keys", "values"],
        ["copied"],
        add.nodes,
        [helper.make_opsetid("", OPSET)],
        # Declared so that the node may carry them; the body has them built in.
        ["radius", "dilation", "top_k", "temperature", *PLUGIN_ATTRIBUTES, "aot"],
    )


def node(query: str, keys: str, values: str, copied: str, attributes: Attributes, aot: bool = False) -> onnx.NodeProto:
    """The custom node; its attributes are for kernels, the function beside it has them built in.

    aot: TensorRT is to compile the plugin's kernel into the engine, which it can do from 10.9 on
    """
    plugin: dict[str, Any] = PLUGIN_ATTRIBUTES | {"aot": 1} if aot else PLUGIN_ATTRIBUTES
    return helper.make_node(
        NAME,
        [query, keys, values],
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
    patch_columns = add("Add", outer["first_column"], add.constant(np.arange(P)))  # [columns, P]

    def patches(tensor: str, axis: int) -> str:
        """Rows of the band with their halo, each tile's columns with theirs: [.., P, columns, P, ..]."""
        band = add.slice(tensor, axis, row, add("Add", row, add.constant([P])))
        return add("Gather", band, patch_columns, axis=axis + 1)

    query = add.slice(outer["query"], 2, row, add("Add", row, add.constant([T])))  # [B, C, T, columns * T]
    query = add("Reshape", query, add.shape(outer["batch"], outer["channels"], T, outer["columns"], T))
    query = add("Transpose", query, perm=[0, 3, 2, 4, 1])
    query = add("Reshape", query, add.shape(outer["batch"], outer["columns"], T * T, outer["channels"]))
    keys = add("Transpose", patches(outer["keys"], 2), perm=[0, 3, 1, 2, 4, 5])  # [B, columns, K, P, P, C]
    keys = add("Reshape", keys, add.shape(outer["batch"], outer["columns"], -1, outer["channels"]))
    values = add("Transpose", patches(outer["values"], 2), perm=[0, 3, 1, 2, 4, 5])  # [B, columns, K, P, P, N]
    values = add("Reshape", values, add.shape(outer["batch"], outer["columns"], -1, outer["classes"]))

    inside = add("Transpose", patches(outer["frame"], 0), perm=[1, 0, 2])  # [columns, P, P]
    inside = add("Reshape", inside, add.shape(outer["columns"], 1, 1, P * P))
    outside = add("Less", add("Mul", inside, outer["near"]), add.constant(np.float32(0.5)))
    bias = add("Where", outside, add.constant(np.float32(EXCLUDED)), add.constant(np.float32(0)))

    score = add("MatMul", query, add("Transpose", keys, perm=[0, 1, 3, 2]))  # [B, columns, T * T, K * P * P]
    by_reference = add.shape(outer["batch"], outer["columns"], T * T, -1, P * P)
    score = add("Add", add("Reshape", score, by_reference), bias)
    score = add("Reshape", score, add.shape(outer["batch"], outer["columns"], T * T, -1))
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
        return add("Squeeze", add("MatMul", weight, add("Reshape", chosen, by_query)), add.constant([3]))
    return add("MatMul", add("Softmax", score, axis=3), values)


def _near(add: _Nodes, attributes: Attributes, halo: int) -> str:
    """[T * T, 1 or K, P * P] float32: 1 where a patch position belongs to a query's window, 0 elsewhere.

    A window is as wide as it is high, so what the file holds is one side of each, [T, windows, P].
    """
    T, P = TILE, TILE + 2 * halo
    offset = np.arange(P)[None, :] - halo - np.arange(T)[:, None]  # [T, P]
    sides = np.stack(
        [
            (abs(offset) <= radius * dilation) & (offset % dilation == 0)
            for radius, dilation in attributes.distinct_windows
        ],
        axis=1,
    ).astype(np.float32)
    side = add.constant(sides)
    if not attributes.uniform:
        last = add.constant(sides.shape[1] - 1)
        own = add("Min", add("Range", *_scalars(add, 0, add.size("keys", 1), 1)), last)
        side = add("Gather", side, own, axis=1)  # [T, K, P]
    vertical = add("Unsqueeze", side, add.constant([1, 4]))  # [T, 1, K, P, 1]
    horizontal = add("Unsqueeze", side, add.constant([0, 3]))  # [1, T, K, 1, P]
    return add("Reshape", add("Mul", vertical, horizontal), add.constant([T * T, -1, P * P]))
