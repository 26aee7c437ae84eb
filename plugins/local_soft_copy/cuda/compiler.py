"""Compiles kernels through cuda-core; the compiler (NVRTC) needs no driver, no GPU and no CUDA headers."""

from __future__ import annotations

import importlib
from typing import Any, Literal

from corrflow.errors import CorrflowError, InputError
from corrflow.plugins.local_soft_copy.cuda.launch import OPTIONS, Launch

Target = Literal["cubin", "ptx"]
_REMEDY = "pip install 'cuda-core[cu12]', or [cu13], whichever CUDA the driver knows"


def cuda_core() -> Any:
    """The module; raises InputError where it is missing."""
    try:
        return importlib.import_module("cuda.core")
    except ImportError as error:
        raise InputError(f"expected cuda-core to compile and launch the kernel, found none ({error}); {_REMEDY}") from (
            error
        )


def compile_kernel(launch: Launch, architecture: str, target: Target = "cubin") -> Any:
    """The planned kernel, as `compile_source` has it; `.get_kernel(launch.entry_point)` loads it."""
    return compile_source(launch.source, architecture, target)


def compile_source(source: str, architecture: str, target: Target = "cubin", core: Any = None) -> Any:
    """CUDA C++ as cuda-core's ObjectCode: `.code` has the bytes, `.get_kernel(name)` loads a kernel.

    architecture: "sm_87" and the like; core: what stands in for cuda-core. Raises InputError where cuda-core or NVRTC
    is missing, CorrflowError where the compiler refuses.
    """
    cuda = core or cuda_core()
    standard = OPTIONS[0].partition("=")[2]
    try:
        program = cuda.Program(source, "c++", cuda.ProgramOptions(std=standard, arch=architecture))
        return program.compile(target)
    except Exception as error:  # cuda-core has no common type for what its compilers raise
        if type(error).__name__ == "DynamicLibNotFoundError":
            found = next(iter(str(error).splitlines()), "")
            raise InputError(f"expected NVRTC to compile the kernel, found none ({found}); {_REMEDY}") from error
        raise CorrflowError(f"the kernel did not compile for {architecture}: {error}") from error


def device_architecture() -> str:
    """ "sm_87" and the like of the current device. Raises InputError where there is no driver or no device."""
    cuda = cuda_core()
    try:
        device = cuda.Device()
        device.set_current()
        return f"sm_{device.arch}"
    except Exception as error:  # as above: a missing driver, no device and a broken installation all look different
        raise InputError(f"expected an NVIDIA GPU and its driver, found none ({error}); run this on the GPU") from error
