"""The propagation of an artifact: one custom node and its function body. No PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from corrflow.plugins.local_soft_copy import onnx_function
from corrflow.plugins.local_soft_copy.spec import Attributes
from corrflow.runtime.artifacts.artifact import REFERENCES

IR_VERSION = 9  # the newest that TensorRT 10.3 and older ONNX runtimes read


@dataclass(frozen=True)
class Sizes:
    """What a graph for TensorRT is fixed to.

    pictures, labels, cells: K, N, and (height, width) in cells
    rows: M, of `references`, for a graph that takes them
    """

    pictures: int
    labels: int
    cells: tuple[int, int]
    rows: int = 0


def propagate_model(
    attributes: Attributes,
    channels: int,
    sizes: Sizes | None = None,
    half: bool = False,
    aot: bool = False,
    body: bool = True,
    named: bool = False,
) -> onnx.ModelProto:
    """query [1, C, h, w], keys [1, K, C, h, w], values [1, K, N, h, w] -> labels [1, N, h, w].

    One LocalSoftCopy node and its function body. All sizes but C are free, unless `sizes` fixes them; the body then has
    no loop, as TensorRT wants it.

    half: these four are float16 and not float32
    aot:  see onnx_function.node
    body: False leaves the function out: the parser of TensorRT 10.3 prefers it to a plugin
    named: there is a fourth input, references [M, 4] int32
    """
    number = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    K, N, h, w, M = "pictures", "classes", "h", "w", "rows"
    if sizes is not None:
        K, N, (h, w), M = sizes.pictures, sizes.labels, sizes.cells, sizes.rows
    inputs = [
        helper.make_tensor_value_info("query", number, [1, channels, h, w]),
        helper.make_tensor_value_info("keys", number, [1, K, channels, h, w]),
        helper.make_tensor_value_info("values", number, [1, K, N, h, w]),
    ]
    if named:
        inputs.append(helper.make_tensor_value_info(REFERENCES, TensorProto.INT32, [M, 4]))
    graph = helper.make_graph(
        [
            onnx_function.node(
                "query", "keys", "values", "labels", attributes, aot, references=REFERENCES if named else None
            )
        ],
        "propagate",
        inputs,
        [helper.make_tensor_value_info("labels", number, [1, N, h, w])],
    )
    return finished(graph, attributes, sizes, half, body, named)


def finished(
    graph: onnx.GraphProto,
    attributes: Attributes,
    sizes: Sizes | None,
    half: bool,
    body: bool,
    named: bool = False,
) -> onnx.ModelProto:
    """A model of a graph that holds the node, with the function body or without it; checked where it can be."""
    height = None if sizes is None else sizes.cells[0]
    functions = [onnx_function.function(attributes, height, half, named)] if body else []
    model = helper.make_model(
        graph,
        opset_imports=onnx_function.opset_imports(),
        functions=functions,
        ir_version=IR_VERSION,
        producer_name="corrflow",
    )
    if body:
        onnx.checker.check_model(model, full_check=True)
    return model
