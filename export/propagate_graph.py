"""propagate.onnx of an artifact: one LocalSoftCopy node and its function body; needs no PyTorch."""

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
    """Fixed sizes of a graph for TensorRT.

    num_frames, num_channels, cells: K, N, and (height, width) in cells
    num_windows: M, rows of `references`, for a graph with this input
    """

    num_frames: int
    num_channels: int
    cells: tuple[int, int]
    num_windows: int = 0


def propagate_model(
    attributes: Attributes,
    channels: int,
    sizes: Sizes | None = None,
    half: bool = False,
    aot: bool = False,
    body: bool = True,
    indexed_references: bool = False,
) -> onnx.ModelProto:
    """Build query [1, C, h, w], keys [1, K, C, h, w], values [1, K, N, h, w] -> labels [1, N, h, w].

    All sizes but C are free, unless `sizes` fixes them; then the function body has no loop, as TensorRT needs.

    half: the four tensors are float16 instead of float32
    aot:  see onnx_function.node
    body: False omits the function body, which the parser of TensorRT 10.3 prefers to a plugin
    indexed_references: add the fourth input, references [M, 4] int32
    """
    dtype = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    K, N, h, w, M = "pictures", "classes", "h", "w", "rows"
    if sizes is not None:
        K, N, (h, w), M = sizes.num_frames, sizes.num_channels, sizes.cells, sizes.num_windows
    inputs = [
        helper.make_tensor_value_info("query", dtype, [1, channels, h, w]),
        helper.make_tensor_value_info("keys", dtype, [1, K, channels, h, w]),
        helper.make_tensor_value_info("values", dtype, [1, K, N, h, w]),
    ]
    if indexed_references:
        inputs.append(helper.make_tensor_value_info(REFERENCES, TensorProto.INT32, [M, 4]))
    references = REFERENCES if indexed_references else None
    graph = helper.make_graph(
        [onnx_function.node("query", "keys", "values", "labels", attributes, aot, references)],
        "propagate",
        inputs,
        [helper.make_tensor_value_info("labels", dtype, [1, N, h, w])],
    )
    return model_of(graph, attributes, sizes, half, body, indexed_references)


def model_of(
    graph: onnx.GraphProto,
    attributes: Attributes,
    sizes: Sizes | None,
    half: bool,
    body: bool,
    indexed_references: bool = False,
) -> onnx.ModelProto:
    """Make the model of a graph with the node, with or without the function body; with the body, check the model."""
    height = None if sizes is None else sizes.cells[0]
    functions = [onnx_function.function(attributes, height, half, indexed_references)] if body else []
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
