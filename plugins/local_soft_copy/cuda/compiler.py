"""Kernel compilation with cuda-core; its compiler NVRTC needs no driver, no GPU and no CUDA headers."""

from __future__ import annotations

import ctypes
import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from corrflow.errors import CorrflowError, InputError
from corrflow.plugins.local_soft_copy.cuda.launch import OPTIONS, Launch

Target = Literal["cubin", "ptx"]
REMEDY = "pip install 'corrflow[cu12]', or [cu13], whichever CUDA the driver knows, or [jetson6] on JetPack 6"


def cuda_core() -> Any:
    """Import cuda.core. Raises InputError if it is missing."""
    try:
        return importlib.import_module("cuda.core")
    except ImportError as error:
        raise InputError(f"expected cuda-core to compile and launch the kernel, found none ({error}); {REMEDY}") from (
            error
        )


def compile_kernel(launch: Launch, architecture: str, target: Target = "cubin") -> Any:
    """Compile a planned kernel with `compile_source`; `.get_kernel(launch.entry_point)` loads the kernel."""
    return compile_source(launch.source, architecture, target)


def compile_source(source: str, architecture: str, target: Target = "cubin", core: Any = None) -> Any:
    """Compile CUDA C++ to cuda-core's ObjectCode: `.code` holds the bytes, `.get_kernel(name)` loads a kernel.

    architecture: for example "sm_87"; core: replacement for cuda.core in tests. Raises InputError if cuda-core or NVRTC
    is missing, CorrflowError if compilation fails.
    """
    cuda = core or cuda_core()
    standard = OPTIONS[0].partition("=")[2]
    try:
        program = cuda.Program(source, "c++", cuda.ProgramOptions(std=standard, arch=architecture))
        return program.compile(target)
    except Exception as error:  # cuda-core has no common base class for compiler errors
        if type(error).__name__ == "DynamicLibNotFoundError":
            reason = next(iter(str(error).splitlines()), "")
            raise InputError(f"expected NVRTC to compile the kernel, found none ({reason}); {REMEDY}") from error
        raise CorrflowError(f"the kernel did not compile for {architecture}: {error}") from error


def device_architecture() -> str:
    """Return the architecture of the current device, such as "sm_87". Raises InputError without driver or device."""
    cuda = cuda_core()
    try:
        device = cuda.Device()
        device.set_current()
        return f"sm_{device.arch}"
    except Exception as error:  # a missing driver, no device and a broken installation raise different types
        if older := older_driver():
            raise InputError(older) from error
        raise InputError(f"expected an NVIDIA GPU and its driver, found none ({error}); run this on the GPU") from error


def older_driver() -> str:
    """Return a sentence if the driver is older than the CUDA of the installed bindings; empty otherwise."""
    try:
        installed = int(version("cuda-bindings").partition(".")[0])
        driver = ctypes.CDLL("libcuda.so.1")
        number = ctypes.c_int()
        if driver.cuDriverGetVersion(ctypes.byref(number)):
            return ""
    except (PackageNotFoundError, OSError, AttributeError, ValueError):
        return ""
    major, minor = number.value // 1000, number.value % 1000 // 10
    if major >= installed:
        return ""
    extra = f"use corrflow[cu{major}]" if major >= 12 else "update the driver"
    return f"expected a driver for CUDA {installed}, as the bindings are, got one for {major}.{minor}; {extra}"
