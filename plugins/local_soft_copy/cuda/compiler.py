"""Compiles a planned kernel through cuda-core; the compiler (NVRTC) needs no driver, no GPU and no CUDA headers."""

from __future__ import annotations

from typing import Any, Literal

from corrflow.plugins.errors import CorrflowError, InputError
from corrflow.plugins.local_soft_copy.cuda.launch import OPTIONS, Launch

INSTALL = "pip install 'corrflow[tensorrt]', and cuda-core[cu12] or cuda-core[cu13] for the CUDA that the driver knows"


def compile_kernel(launch: Launch, architecture: str, target: Literal["cubin", "ptx"] = "cubin") -> Any:
    """The kernel as cuda-core's ObjectCode: `.code` has the bytes, `.get_kernel(launch.entry_point)` loads it.

    architecture: "sm_87" and the like. Raises InputError where cuda-core or NVRTC is missing, CorrflowError where the
    compiler refuses.
    """
    try:
        from cuda.core import Program, ProgramOptions  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(f"expected cuda-core to compile the kernel with, found none ({error}); {INSTALL}") from error
    standard = OPTIONS[0].partition("=")[2]
    try:
        program = Program(launch.source, "c++", ProgramOptions(std=standard, arch=architecture))
        return program.compile(target)
    except Exception as error:  # cuda-core has no common type for what its compilers raise
        if "nvrtc" in str(error).lower() and "not be found" in str(error).lower():
            raise InputError(f"expected NVRTC to compile the kernel with, found none ({error}); {INSTALL}") from error
        raise CorrflowError(f"the kernel did not compile for {architecture}: {error}") from error


def device_architecture() -> str:
    """ "sm_87" and the like of the current device. Raises InputError where there is no driver or no device."""
    try:
        from cuda.core import Device  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(f"expected cuda-core to ask for the device, found none ({error}); {INSTALL}") from error
    try:
        device = Device()
        device.set_current()
        return f"sm_{device.arch}"
    except Exception as error:  # as above: driver missing, no device and broken installations look all different
        raise InputError(
            f"expected an NVIDIA GPU and its driver, found none ({error}); run this on the device"
        ) from error
