"""LocalSoftCopy (top-k local cross-attention) as a TensorRT plugin, in the form that suits the TensorRT version.

    "aot"   10.16 and later, 11: quickly deployable plugin, compiled ahead of time. The engine contains the kernel and
            runs without Python and without this package.
    "v3"    10.3 to 10.15 (JetPack 6.2, 7.0 and 7.1): IPluginV3. `enqueue` launches the kernel on TensorRT's stream,
            so the plugin must also be registered before an engine is loaded.
    "library"   10.3 and later, where libcorrflow_trt.so (tensorrt/) is there and has the kernel: the same plugin in
            C++. It must be registered before an engine is loaded, for which no Python is needed.
    "none"  other versions: use the ONNX function (--plugin off).

All forms launch cuda/local_soft_copy.cu. The node must have all four inputs: a plugin that is registered ahead of time
has a fixed number of inputs.

The caller passes the TensorRT module; this module never imports it. TensorRT reads the annotations at run time, so
`from __future__ import annotations` is not possible here.
"""

import ctypes
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from corrflow.errors import CorrflowError, InputError
from corrflow.plugins.local_soft_copy import spec
from corrflow.plugins.local_soft_copy.cuda.compiler import compile_kernel, cuda_core, device_architecture
from corrflow.plugins.local_soft_copy.cuda.launch import Dtype, Launch, plan
from corrflow.plugins.local_soft_copy.cuda.ptx_version import with_lowest_version
from corrflow.plugins.local_soft_copy.spec import Attributes, output_shape
from corrflow.plugins.local_soft_copy.tensorrt.library import VARIABLE, PluginLibrary

PLUGIN_NAME = spec.NAME
PLUGIN_NAMESPACE = spec.DOMAIN
PLUGIN_VERSION = str(spec.VERSION)  # "1" is the only version of quickly deployable plugins
PLUGIN_ID = f"{PLUGIN_NAMESPACE}::{PLUGIN_NAME}"

Form = Literal["library", "aot", "v3", "none"]
_DTYPES: dict[str, Dtype] = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
_creators: list[Any] = []
_libraries: set[Path] = set()


def form_for(version: str) -> Form:
    """Return the form of the plugin for a TensorRT version such as "10.3.0" or "11.4.0.106"."""
    found = re.match(r"(\d+)\.(\d+)", version)
    if not found or (number := (int(found[1]), int(found[2]))) < (10, 3):
        return "none"
    return "aot" if number >= (10, 16) else "v3"


def register(trt: Any, library: PluginLibrary | None = None) -> Form:
    """Register the plugin with a TensorRT module, once per process, and return its form.

    library: use this library instead of the form that suits the version
    Raises InputError for a version without a form, or a library for another version.
    """
    if library is not None:
        _register_library(trt, library)
        return "library"
    form = form_for(trt.__version__)
    if form == "none":
        raise InputError(
            f"expected TensorRT 10.3 or later for the plugin, got {trt.__version__}; install a later one or build"
            " from the function (--plugin off)"
        )
    if form == "aot":
        _register_aot(trt)
    else:
        _register_v3(trt)
    return form


def dtype_of(data_type: Any) -> Dtype | None:
    """Return the kernel's dtype for a TensorRT data type, or None if the kernel does not support it."""
    return _DTYPES.get(data_type.name)


def attributes_from(fields: dict[str, Any]) -> Attributes:
    """Build attributes from the fields of a node, arrays of any number type; missing fields have defaults."""
    default = Attributes()
    values = {name: np.asarray(value).ravel() for name, value in fields.items()}

    def integers(name: str, otherwise: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(int(value) for value in values[name]) if name in values else otherwise

    return Attributes(
        radius=integers("radius", default.radius),
        dilation=integers("dilation", default.dilation),
        top_k=integers("top_k", (default.top_k,))[0],
        temperature=float(values["temperature"][0]) if "temperature" in values else default.temperature,
    )


def _register_library(trt: Any, library: PluginLibrary) -> None:
    if library.path in _libraries:
        return
    if (major := int(trt.__version__.partition(".")[0])) != library.tensorrt_major:
        raise InputError(
            f"{library.path}: expected the library for TensorRT {major}, got the one for {library.tensorrt_major};"
            " build it with this version's headers"
        )
    if trt.get_plugin_registry().load_library(str(library.path)) is None:
        raise CorrflowError(
            f"TensorRT {trt.__version__} refused {library.path}, its reason is above; set {VARIABLE}=off to do without"
        )
    _libraries.add(library.path)


def _register_aot(trt: Any) -> None:
    import tensorrt.plugin as qdp  # pyright: ignore[reportMissingImports]

    if hasattr(qdp.op, PLUGIN_NAMESPACE) and hasattr(getattr(qdp.op, PLUGIN_NAMESPACE), PLUGIN_NAME):
        return

    @qdp.register(PLUGIN_ID)
    def describe(
        query: qdp.TensorDesc,
        keys: qdp.TensorDesc,
        values: qdp.TensorDesc,
        references: qdp.TensorDesc,
        radius: NDArray[np.int64],
        dilation: NDArray[np.int64],
        top_k: NDArray[np.int64],  # array of length one: 10.16 cannot convert the parser's field to a number
        temperature: NDArray[np.float32],
    ) -> qdp.TensorDesc:
        batch, _, height, width = query.shape_expr
        return qdp.from_shape_expr((batch, values.shape_expr[2], height, width), values.dtype)

    @qdp.autotune(PLUGIN_ID)
    def combinations(query, keys, values, references, outputs):
        _check_types(query, keys, values, references)
        # Networks are strongly typed, so there is no choice: one type, linear layout, one tactic.
        name = {"FLOAT": "FP32", "HALF": "FP16", "BF16": "BF16"}[query.dtype.name]
        return [qdp.AutoTuneCombination(", ".join([name, name, name, "INT32", name]), "LINEAR", [1])]

    @qdp.aot_impl(PLUGIN_ID)
    def implement(
        query, keys, values, references, radius, dilation, top_k, temperature, outputs, tactic
    ) -> tuple[str, str, qdp.KernelLaunchParams, qdp.SymIntExprs]:
        fields = {"radius": radius, "dilation": dilation, "top_k": top_k, "temperature": temperature}
        launch = _largest_launch(query, keys, values, references, attributes_from(fields))
        code = compile_kernel(launch, device_architecture(), "ptx").code
        ptx = with_lowest_version(code.decode() if isinstance(code, bytes) else code)
        # Free sizes are expressions here; launch.py has the same formulas for numbers.
        batch, _, height, width = query.shape_expr
        parameters = qdp.KernelLaunchParams()
        parameters.grid_x = qdp.cdiv(width, launch.tile[0])
        parameters.grid_y = qdp.cdiv(height, launch.tile[1])
        parameters.grid_z = batch * launch.class_blocks
        parameters.block_x = launch.block[0]
        integers = qdp.SymIntExprs(4)
        for index, size in enumerate((height, width, keys.shape_expr[1], references.shape_expr[0])):
            integers[index] = qdp.SymInt32(size)
        return launch.entry_point, ptx, parameters, integers


def _largest_launch(query: Any, keys: Any, values: Any, references: Any, attributes: Attributes) -> Launch:
    """Plan the launch for the largest sizes of an engine. Raises InputError unless channels and classes are fixed."""
    dtype = _check_types(query, keys, values, references)

    def largest(tensor: Any, axis: int) -> int:
        size = int(tensor.shape[axis])
        return size if size >= 0 else int(tensor.shape.max[axis])

    for name, tensor, axis in (("channels", query, 1), ("classes", values, 2)):
        if int(tensor.shape[axis]) < 0:
            raise InputError(
                f"the plugin is compiled for a given number of {name}, got a free one; build the engine for one"
            )
    return plan(
        channels=largest(query, 1),
        classes=largest(values, 2),
        num_windows=largest(references, 0),
        height=largest(query, 2),
        width=largest(query, 3),
        batch=largest(query, 0),
        attributes=attributes,
        dtype=dtype,
    )


def _check_types(query: Any, keys: Any, values: Any, references: Any) -> Dtype:
    """Return the dtype of the tensors. Raises CorrflowError for types that the kernel does not support."""
    types = [tensor.dtype for tensor in (query, keys, values, references)]
    dtype = dtype_of(types[0])
    if dtype is None or not types[0] == types[1] == types[2] or types[3].name != "INT32":
        names = ", ".join(kind.name for kind in types)
        raise CorrflowError(
            "LocalSoftCopy: expected query, keys and values all FLOAT, all HALF or all BF16 and references INT32, got"
            f" {names}; add casts"
        )
    return dtype


def _register_v3(trt: Any) -> None:
    if _creators:
        return
    probe = np.array([1, 2], np.int32)
    if list(trt.PluginField("probe", probe, trt.PluginFieldType.INT32).data) != [1, 2]:
        raise InputError(
            f"the Python bindings of TensorRT {trt.__version__} misread the arrays of NumPy {np.__version__}: expected"
            " NumPy before 2.0; pip install 'numpy<2' 'opencv-python<4.12', on a Jetson 'corrflow[jetson6]'"
        )
    creator = _v3_creator(trt)
    if not trt.get_plugin_registry().register_creator(creator, PLUGIN_NAMESPACE):
        raise CorrflowError(f"TensorRT {trt.__version__} refused to register the plugin {PLUGIN_ID}")
    _creators.append(creator)


def _v3_creator(trt: Any) -> Any:
    """Create an instance of the creator class, whose base classes come from the TensorRT module."""

    class Plugin(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):
        def __init__(self, attributes: Attributes) -> None:
            trt.IPluginV3.__init__(self)
            trt.IPluginV3OneCore.__init__(self)
            trt.IPluginV3OneBuild.__init__(self)
            trt.IPluginV3OneRuntime.__init__(self)
            self.num_outputs = 1
            self.plugin_name = PLUGIN_NAME
            self.plugin_version = PLUGIN_VERSION
            self.plugin_namespace = PLUGIN_NAMESPACE
            self.attributes = attributes
            self.fields = _Fields(trt, attributes)
            self.kernels: dict[str, Any] = {}  # by source; clones share it
            self.launch: Launch | None = None
            _never_free(self)

        def get_capability_interface(self, kind):
            return self

        def clone(self):
            copy = Plugin(self.attributes)
            copy.kernels = self.kernels
            return copy

        def attach_to_context(self, context):
            return self.clone()

        def get_fields_to_serialize(self):
            return self.fields.collection

        def get_output_data_types(self, types):
            return [types[2]]

        def get_output_shapes(self, inputs, shape_inputs, builder):
            query, _, values, _ = inputs
            shape = trt.DimsExprs(4)
            for axis, size in enumerate((query[0], values[2], query[2], query[3])):
                shape[axis] = size
            return [shape]

        def supports_format_combination(self, position, descriptions, inputs):
            tensor, first = descriptions[position].desc, descriptions[0].desc
            if tensor.format != trt.TensorFormat.LINEAR:
                return False
            if position == 3:  # references
                return tensor.type == trt.DataType.INT32
            return tensor.type == first.type and dtype_of(tensor.type) is not None

        def configure_plugin(self, inputs, outputs):
            pass  # sizes may still be free

        def set_tactic(self, tactic):
            pass

        def on_shape_change(self, inputs, outputs):
            query, keys, values, references = (tuple(description.dims) for description in inputs)
            output_shape(query, keys, values)
            dtype = dtype_of(inputs[0].type)
            assert dtype is not None, "TensorRT chose a combination that supports_format_combination refused"
            self.launch = plan(
                channels=query[1],
                classes=values[2],
                num_windows=references[0],
                height=query[2],
                width=query[3],
                batch=query[0],
                attributes=self.attributes,
                dtype=dtype,
            )
            self.arguments = tuple(ctypes.c_int32(size) for size in (query[2], query[3], keys[1], references[0]))

        def enqueue(self, input_desc, output_desc, inputs, outputs, workspace, stream):
            assert self.launch is not None, "TensorRT calls on_shape_change before enqueue"
            cuda = cuda_core()
            config = cuda.LaunchConfig(grid=self.launch.grid, block=self.launch.block)
            cuda_stream = cuda.Stream.from_handle(stream)
            cuda.launch(cuda_stream, config, self.kernel(self.launch), *inputs, *self.arguments, *outputs)

        def kernel(self, planned: Launch):
            if planned.source not in self.kernels:
                compiled = compile_kernel(planned, device_architecture())
                self.kernels[planned.source] = compiled.get_kernel(planned.entry_point)
            return self.kernels[planned.source]

    class Creator(trt.IPluginCreatorV3One):
        def __init__(self) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name = PLUGIN_NAME
            self.plugin_namespace = PLUGIN_NAMESPACE
            self.plugin_version = PLUGIN_VERSION
            self.fields = _Fields(trt, Attributes())
            self.field_names = self.fields.collection
            _never_free(self)

        def create_plugin(self, name, fields, phase):
            # Fields are read by name and with any type: the parser passes 64-bit integers, the engine 32-bit integers.
            return Plugin(attributes_from({field.name: field.data for field in fields}))

    return Creator()


class _Fields:
    """Attributes as a field collection of TensorRT, with everything that the collection points to.

    TensorRT reads names and data after the call that passes them, and its bindings keep neither alive. A collection of
    the C++ class needs no conversion, which is impossible where C++ calls Python.
    """

    def __init__(self, trt: Any, attributes: Attributes) -> None:
        kinds = {"i": trt.PluginFieldType.INT32, "f": trt.PluginFieldType.FLOAT32}
        self.arrays = {
            "radius": np.array(attributes.radius, np.int32),
            "dilation": np.array(attributes.dilation, np.int32),
            "top_k": np.array([attributes.top_k], np.int32),
            "temperature": np.array([attributes.temperature], np.float32),
        }
        self.fields = [trt.PluginField(name, array, kinds[array.dtype.kind]) for name, array in self.arrays.items()]
        self.vector = trt.PluginFieldCollection(self.fields)
        self.collection = trt.PluginFieldCollection_(self.vector)


def _never_free(instance: object) -> None:
    """Add a reference that is never returned.

    TensorRT deletes plugins through C++, and keeps bare pointers to creators. Python would free the same memory again,
    at the latest when the process ends.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(instance))
