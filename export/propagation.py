"""The propagation of an artifact: one custom node and its function body. No PyTorch."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from corrflow.plugins.local_soft_copy import onnx_function
from corrflow.plugins.local_soft_copy.spec import Attributes

IR_VERSION = 9  # the newest that TensorRT 10.3 and older ONNX runtimes read


def propagate_model(attributes: Attributes, channels: int) -> onnx.ModelProto:
    """query [1, C, h, w], keys [1, K, C, h, w], values [1, K, N, h, w] -> labels [1, N, h, w], all float32.

    One LocalSoftCopy node and its function body; all but C is free.
    """
    number = TensorProto.FLOAT
    graph = helper.make_graph(
        [onnx_function.node("query", "keys", "values", "labels", attributes)],
        "propagate",
        [
            helper.make_tensor_value_info("query", number, [1, channels, "h", "w"]),
            helper.make_tensor_value_info("keys", number, [1, "references", channels, "h", "w"]),
            helper.make_tensor_value_info("values", number, [1, "references", "classes", "h", "w"]),
        ],
        [helper.make_tensor_value_info("labels", number, [1, "classes", "h", "w"])],
    )
    model = helper.make_model(
        graph,
        opset_imports=onnx_function.opset_imports(),
        functions=[onnx_function.function(attributes)],
        ir_version=IR_VERSION,
        producer_name="corrflow",
    )
    onnx.checker.check_model(model, full_check=True)
    return model
