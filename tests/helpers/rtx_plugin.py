"""Load a plugin library by tensorrt-rtx's registry, and parse an ONNX model that needs it: rtx_plugin.py LIBRARY MODEL

Prints name, version, namespace and fields of the plugin, then the parser's log. The process is aborted when the parser
adds the plugin to the network, because tensorrt-rtx has no plugin layers.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

trt: Any = importlib.import_module("tensorrt_rtx_bindings")


class Log(trt.ILogger):
    """Logger that writes to standard output at once."""

    def log(self, severity: Any, text: str) -> None:
        print(text, flush=True)


logger = Log()
registry = trt.get_plugin_registry()
if registry.load_library(sys.argv[1]) is None:
    sys.exit("the registry refused the library")
creator = registry.get_creator("LocalSoftCopy", "1", "corrflow")
fields = [field.name for field in creator.field_names]
print(creator.name, creator.plugin_version, creator.plugin_namespace, *fields, flush=True)
builder = trt.Builder(logger)
network = builder.create_network(0)
parser = trt.OnnxParser(network, logger)
parser.parse(Path(sys.argv[2]).read_bytes())
