"""Build an engine of the ONNX model on standard input with tensorrt-rtx, and print its size or the parser's errors.

In a process of its own: the library stays in memory, and remembers the first logger of a process beyond its end.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

trt: Any = importlib.import_module("tensorrt_rtx_bindings")
logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
builder = trt.Builder(logger)
network = builder.create_network(0)
parser = trt.OnnxParser(network, logger)
if not parser.parse(sys.stdin.buffer.read()):
    sys.exit("\n".join(parser.get_error(index).desc() for index in range(parser.num_errors)))
config = builder.create_builder_config()
config.num_compute_capabilities = 1
config.set_compute_capability(trt.ComputeCapability.SM86, 0)
engine = builder.build_serialized_network(network, config)
print(0 if engine is None else engine.nbytes)
