"""Life cycle of the plugin on TensorRT's real Python bindings with stub libraries, in a separate process.

    python tests/helpers/on_stub_bindings.py BINDINGS STUBS SCENARIO

prints observations as JSON. BINDINGS: folder of the bindings, STUBS: folder of the stub libraries. This module fakes
what needs a GPU or a real library: the plugin registry, symbolic sizes, and cuda-core's launch. Classes, fields,
decorators and signature checks are TensorRT's.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from corrflow.plugins.local_soft_copy import tensorrt_plugin
from corrflow.plugins.local_soft_copy.cuda.launch import Launch
from corrflow.plugins.local_soft_copy.spec import Attributes

ARCHITECTURE = "sm_87"
SIZES = {"B": 1, "K": 3, "C": 91, "N": 4, "H": 60, "W": 107, "M": 5, "4": 4}
ATTRIBUTES = Attributes((5,), (2,), 7, 0.25)


class Registry:
    """Plugin registry without the library."""

    def __init__(self) -> None:
        self.creators: dict[tuple[str, str, str], Any] = {}

    def register_creator(self, creator: Any, namespace: str) -> bool:
        key = (creator.name, creator.plugin_version, namespace)
        assert key not in self.creators, f"{key} registered twice"
        self.creators[key] = creator
        return True

    def get_creator(self, name: str, version: str, namespace: str) -> Any:
        return self.creators[name, version, namespace]


class Size:
    """Symbolic size: a number, or an expression of free sizes."""

    def __init__(self, value: int, text: str = "") -> None:
        self.value, self.text = value, text

    def is_constant(self) -> bool:
        return not self.text

    def get_constant_value(self) -> int:
        return self.value

    def __str__(self) -> str:
        return self.text or str(self.value)


class Builder:
    """Builder of expressions with their values for SIZES."""

    def constant(self, value: int) -> Size:
        return Size(value)

    def operation(self, kind: Any, first: Size, second: Size) -> Size:
        a, b = first.value, second.value
        value = {"SUM": a + b, "PROD": a * b, "CEIL_DIV": -(-a // max(b, 1)), "FLOOR_DIV": a // max(b, 1)}[kind.name]
        return Size(value, f"{kind.name}({first}, {second})" if first.text or second.text else "")


class Sizes(list):
    """Replacement of DimsExprs, which only accepts objects of the library."""

    def __init__(self, length: int) -> None:
        super().__init__([None] * length)


class Extras(dict):
    """Replacement of the container for the kernel's integer arguments."""

    nbSymExprs = 0


def load(bindings: str, stubs: str) -> Any:
    """Load the bindings as the module `tensorrt`."""
    for library in sorted(Path(stubs).glob("*.so.*")):
        ctypes.CDLL(str(library), mode=os.RTLD_LOCAL)
    sys.path.insert(0, bindings)
    trt: Any = importlib.import_module("tensorrt_bindings")
    sys.modules["tensorrt"] = trt
    registry = Registry()
    trt.get_plugin_registry = lambda: registry
    return trt


def shapes(free: str = "") -> list[list[Size]]:
    """Return sizes of query, keys, values, references and copied; letters in `free` are symbolic."""
    size = {name: Size(value, name if name in free else "") for name, value in SIZES.items()}
    return [[size[axis] for axis in axes] for axes in ("BCHW", "BKCHW", "BKNHW", "M4", "BNHW")]


def description(trt: Any, shape: list[Size], kind: Any) -> Any:
    """Describe a tensor as the builder does while sizes are free."""
    described = trt.DynamicPluginTensorDesc()
    described.desc.dims = tuple(-1 if size.text else size.value for size in shape)
    described.desc.type, described.desc.format = kind, trt.TensorFormat.LINEAR
    described.min = described.opt = described.max = tuple(size.value for size in shape)
    return described


def parsed_fields(trt: Any, creator: Any) -> Any:
    """Make fields as the parser does, with its types instead of the types that the creator declared."""
    parsed_fields.arrays = {  # must outlive the fields
        "radius": (np.array(ATTRIBUTES.radius, np.int64), trt.PluginFieldType.INT64),
        "dilation": (np.array(ATTRIBUTES.dilation, np.int64), trt.PluginFieldType.INT64),
        "top_k": (np.array([ATTRIBUTES.top_k], np.int64), trt.PluginFieldType.INT64),
        "temperature": (np.array([ATTRIBUTES.temperature], np.float32), trt.PluginFieldType.FLOAT32),
    }
    names = [field.name for field in creator.field_names]
    return trt.PluginFieldCollection([trt.PluginField(name, *parsed_fields.arrays[name]) for name in names])


def only_creator(trt: Any) -> Any:
    """Return the only registered creator."""
    (((name, version, namespace), creator),) = trt.get_plugin_registry().creators.items()
    assert (name, version, namespace) == ("LocalSoftCopy", "1", "corrflow")
    return creator


def life_of_v3(trt: Any) -> dict[str, Any]:
    """Register, create from a node, query shapes, serialise, create again, clone and launch."""
    for _ in range(2):
        tensorrt_plugin._register_v3(trt)
    creator = only_creator(trt)
    observed: dict[str, Any] = {"fields": [field.name for field in creator.field_names]}
    plugin = creator.create_plugin("node", parsed_fields(trt, creator), trt.TensorRTPhase.BUILD)
    observed["parsed"] = plugin.attributes == ATTRIBUTES
    empty = creator.create_plugin("node", trt.PluginFieldCollection([]), trt.TensorRTPhase.BUILD)
    observed["default"] = empty.attributes == Attributes()

    # Fields must not refer to freed arrays, so read them after memory was reused.
    wrong = 0
    for _ in range(200):
        fields = plugin.get_fields_to_serialize()
        gc.collect()
        _ = [np.full(size, 99, np.int32) for size in (1, 2, 3, 4) * 20]
        again = creator.create_plugin("node", fields, trt.TensorRTPhase.RUNTIME)
        wrong += again.attributes != ATTRIBUTES
    observed["corrupted"] = wrong
    copy = plugin.clone()
    observed["cloned"] = copy.attributes == ATTRIBUTES and copy is not plugin and copy.kernels is plugin.kernels
    observed["identity"] = [copy.plugin_name, copy.plugin_version, copy.plugin_namespace, copy.num_outputs]
    observed["interfaces"] = all(
        plugin.get_capability_interface(kind) is plugin for kind in trt.PluginCapabilityType.__members__.values()
    )

    FLOAT, HALF, INT8, INT32 = (getattr(trt.DataType, name) for name in ("FLOAT", "HALF", "INT8", "INT32"))
    observed["output type"] = [kind.name for kind in plugin.get_output_data_types([HALF, HALF, HALF, INT32])]
    trt.DimsExprs = Sizes
    (copied,) = plugin.get_output_shapes(shapes("BKNHWM")[:4], [], None)
    observed["output shape"] = [str(size) for size in copied]

    def supported(position: int, *kinds: Any, layout: Any = trt.TensorFormat.LINEAR) -> bool:
        described = [description(trt, shape, kind) for shape, kind in zip(shapes(), kinds, strict=True)]
        described[position].desc.format = layout
        return plugin.supports_format_combination(position, described, 4)

    observed["supported"] = {
        "half": all(supported(i, HALF, HALF, HALF, INT32, HALF) for i in range(5)),
        "float": all(supported(i, FLOAT, FLOAT, FLOAT, INT32, FLOAT) for i in range(5)),
        "mixed": supported(1, HALF, FLOAT, HALF, INT32, HALF),
        "int8": supported(0, INT8, INT8, INT8, INT32, INT8),
        "references in half": supported(3, HALF, HALF, HALF, HALF, HALF),
        "other layout": supported(0, HALF, HALF, HALF, INT32, HALF, layout=trt.TensorFormat.CHW32),
    }

    launched: list[Any] = []
    compiled = tensorrt_plugin.compile_kernel
    tensorrt_plugin.device_architecture = lambda: ARCHITECTURE
    tensorrt_plugin.compile_kernel = lambda launch, architecture: SimpleNamespace(
        get_kernel=lambda name: (name, len(compiled(launch, architecture).code) > 0)
    )
    tensorrt_plugin.cuda_core = lambda: SimpleNamespace(
        LaunchConfig=lambda grid, block: (grid, block),
        Stream=SimpleNamespace(from_handle=lambda handle: ("stream", handle)),
        launch=lambda *arguments: launched.append(arguments),
    )
    in_context = plugin.attach_to_context(None)
    for shift in (0, 1):  # another frame size, the same kernel
        tensors = []
        for shape in shapes():
            described = trt.PluginTensorDesc()
            described.dims = tuple(size.value for size in shape)
            if len(shape) > 2:
                described.dims = (*tuple(described.dims)[:-2], SIZES["H"] + 8 * shift, SIZES["W"])
            described.type, described.format = HALF if len(shape) > 2 else INT32, trt.TensorFormat.LINEAR
            tensors.append(described)
        in_context.on_shape_change(tensors[:4], tensors[4:])
        in_context.enqueue(tensors[:4], tensors[4:], [11, 22, 33, 44], [66], 0, 55)
    observed["launched"] = [
        {
            "stream": stream,
            "grid": grid,
            "block": block,
            "kernel": kernel,
            "arguments": [argument if isinstance(argument, int) else argument.value for argument in arguments],
            "32-bit": [isinstance(argument, ctypes.c_int32) for argument in arguments],
        }
        for stream, (grid, block), kernel, *arguments in launched
    ]
    observed["kernels"] = len(plugin.kernels)
    return observed


def life_of_aot(trt: Any) -> dict[str, Any]:
    """Register, create as the parser does, and build as TensorRT's template does."""
    for _ in range(2):
        tensorrt_plugin.register(trt)
    creator = only_creator(trt)
    template: Any = importlib.import_module("tensorrt.plugin._tensor")
    observed: dict[str, Any] = {"fields": [field.name for field in creator.field_names]}
    plugin = creator.create_plugin(
        "LocalSoftCopy",
        "corrflow",
        parsed_fields(trt, creator),
        trt.TensorRTPhase.BUILD,
        trt.QuickPluginCreationRequest.STRICT_AOT,
    )
    observed["class"] = type(plugin).__name__
    observed["parsed"] = tensorrt_plugin.attributes_from(plugin.attrs) == ATTRIBUTES

    # Sizes are C++ objects that only a builder creates.
    trt.IDimensionExpr, trt.DimsExprs = Size, Sizes
    template.SymExprImpl = lambda symbol: symbol._expr
    HALF, INT32 = trt.DataType.HALF, trt.DataType.INT32
    compiled = tensorrt_plugin.compile_kernel

    def compile_kernel(launch: Launch, architecture: str, target: str) -> SimpleNamespace:
        observed["compiled"] = [architecture, target, len(compiled(launch, architecture).code) > 0]
        return SimpleNamespace(code=b".version 9.5\n.target sm_87\nret;\n")  # cuda-core needs the driver for PTX

    tensorrt_plugin.device_architecture = lambda: ARCHITECTURE
    tensorrt_plugin.compile_kernel = compile_kernel
    observed["output type"] = [
        kind.name for kind in plugin.get_output_data_types([HALF, HALF, HALF, INT32], [4, 5, 5, 2])
    ]
    free = "BKHWM"
    (copied,) = plugin.get_output_shapes(shapes(free)[:4], [], Builder())
    observed["output shape"] = [str(size) for size in copied]
    tensors = [description(trt, shape, HALF if len(shape) > 2 else INT32) for shape in shapes(free)]
    offered = plugin.get_supported_format_combinations(tensors, 4)
    observed["combinations"] = [[described.type.name, described.format.name] for described in offered]
    plugin.configure_plugin(tensors[:4], tensors[4:])
    observed["tactics"] = plugin.get_valid_tactics()
    plugin.set_tactic(observed["tactics"][0])
    launch, extras = SimpleNamespace(), Extras()
    plugin.get_launch_params(shapes(free)[:4], tensors, 4, launch, extras, Builder())
    observed["launch"] = {name: str(value) for name, value in vars(launch).items()}
    observed["values"] = {name: value.value for name, value in vars(launch).items()}
    observed["extras"] = [str(extras[i]) for i in range(extras.nbSymExprs)]
    name, code = plugin.get_kernel([tensor.desc for tensor in tensors[:4]], [tensor.desc for tensor in tensors[4:]])
    observed["kernel"], observed["code"] = name, code.decode()
    return observed


def signature_checks(trt: Any) -> dict[str, Any]:
    """Register implementations with a wrong signature, which TensorRT must refuse."""
    tensorrt_plugin.register(trt)
    qdp = importlib.import_module("tensorrt.plugin")
    refused = {}

    def without_tactic(query, keys, values, references, radius, dilation, top_k, temperature, outputs):
        raise AssertionError

    def other_order(query, keys, values, references, dilation, radius, top_k, temperature, outputs, tactic):
        raise AssertionError

    for name, function in (("without tactic", without_tactic), ("other order", other_order)):
        try:
            qdp.aot_impl(tensorrt_plugin.PLUGIN_ID)(function)
        except ValueError as error:
            refused[name] = str(error)
    return refused


def form(trt: Any) -> dict[str, Any]:
    """Register twice and report the form."""
    registered = tensorrt_plugin.register(trt)
    return {"version": trt.__version__, "form": registered, "again": tensorrt_plugin.register(trt)}


if __name__ == "__main__":
    scenario = {"v3": life_of_v3, "aot": life_of_aot, "signatures": signature_checks, "form": form}[sys.argv[3]]
    print(json.dumps(scenario(load(sys.argv[1], sys.argv[2]))))
