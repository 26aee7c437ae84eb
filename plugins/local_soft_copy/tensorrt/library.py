"""libcorrflow_trt.so from Python: where it is, and which kernels it has.

CORRFLOW_TRT_LIBRARY names another file than the one beside this module; "off" leaves the library unused.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

from corrflow.errors import InputError
from corrflow.plugins.local_soft_copy.tensorrt.variants import DATA_TYPES, Variant, kernel_hash

FILE_NAME = "libcorrflow_trt.so"
VARIABLE = "CORRFLOW_TRT_LIBRARY"
_REMEDY = "build it again (docs/tensorrt.md)"


class PluginLibrary:
    """The plugin library, loaded but not registered."""

    def __init__(self, path: Path) -> None:
        """Load the library. Raises InputError if it cannot be loaded, or has kernels of another version."""
        self.path = path
        try:
            self._library = ctypes.CDLL(str(path))
            self._library.corrflow_trt_kernel_hash.restype = ctypes.c_char_p
            self._library.corrflow_trt_deregister()  # loading registers the plugin where TensorRT is loaded
            kernel = self._library.corrflow_trt_kernel_hash().decode()
        except (OSError, AttributeError) as error:
            raise InputError(f"expected {path} to be the plugin library, got {error}; {_REMEDY}") from error
        if kernel != kernel_hash():
            raise InputError(f"{path}: expected the kernels of this corrflow, got those of another version; {_REMEDY}")

    @property
    def tensorrt_major(self) -> int:
        """Major version of TensorRT whose headers the library was built with."""
        return self._library.corrflow_trt_major()

    def has_kernel(self, variant: Variant, num_windows: int) -> bool:
        """Return True if the library has the kernel of engines with this number of windows."""
        attributes = variant.attributes

        def array(values: Sequence[int]) -> tuple[ctypes.Array[ctypes.c_int32], int]:
            return (ctypes.c_int32 * len(values))(*values), len(values)

        return bool(
            self._library.corrflow_trt_has_kernel(
                variant.channels,
                variant.classes,
                num_windows,
                *array(attributes.radius),
                *array(attributes.dilation),
                attributes.top_k,
                ctypes.c_float(attributes.temperature),
                DATA_TYPES[variant.dtype],
            )
        )


def find_library() -> PluginLibrary | None:
    """Load the library if it is there. Raises InputError for an unusable file, or a missing one that is named."""
    named = os.environ.get(VARIABLE, "")
    if named == "off":
        return None
    path = Path(named) if named else Path(__file__).with_name(FILE_NAME)
    if path.is_file():
        return PluginLibrary(path.resolve())
    if named:
        raise InputError(f"expected the plugin library {path} of {VARIABLE}, found none; correct it, or unset it")
    return None


def require_library() -> PluginLibrary:
    """Load the library that engines were built with. Raises InputError if it is missing."""
    library = find_library()
    if library is None:
        raise InputError(
            f"expected {FILE_NAME}, with which these engines were built, found none; name it in {VARIABLE}, or build"
            " the engines again with corrflow-export engine"
        )
    return library
