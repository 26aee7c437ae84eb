"""List the packages and build the one compiled part, the fused CPU kernel; the rest stands in pyproject.toml.

The package `corrflow` lies in src/, so that the root of a clone never shadows an installed package. Every folder of
Python code beside it is a subpackage: runtime/ is `corrflow.runtime`.

The extension is optional: without a C++ compiler the package installs all the same, and says so when it tracks.
"""

from __future__ import annotations

import platform
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext

CPU = Path("plugins/local_soft_copy/cpu")
COMMON = ["-O3", "-ffp-contract=fast", "-fvisibility=hidden", "-Wno-psabi"]
# Each kernel is one file with its own instruction set; the binding picks among them when it runs.
X86_FLAGS = {
    "kernel_avx2.cpp": ["-mavx2", "-mfma", "-mf16c"],
    "kernel_avx512.cpp": ["-mavx512f", "-mavx512bw", "-mavx2", "-mfma", "-mf16c"],
    "kernel_avx512_vnni.cpp": ["-mavx512f", "-mavx512bw", "-mavx512vnni", "-mavx2", "-mfma", "-mf16c"],
}
ROOMS = ("plugins", "runtime", "train", "export", "evaluate", "bench")
FOLDERS = {"corrflow": "src/corrflow"} | {
    "corrflow." + ".".join(path.parts[:-1]): path.parent.as_posix()
    for room in ROOMS
    for path in sorted(Path(room).rglob("__init__.py"))
}
ON_X86 = platform.machine().lower() in ("x86_64", "amd64")


class BuildKernels(build_ext):
    """Compiles the kernels with their own flags, then lets setuptools build and link the rest."""

    def build_extension(self, ext) -> None:
        flags = [*COMMON, *ext.extra_compile_args]
        sources = {"kernel_portable.cpp": []} | (X86_FLAGS if ON_X86 else {})
        for name, own in sources.items():
            ext.extra_objects += self.compiler.compile(
                [str(CPU / name)],
                output_dir=self.build_temp,
                include_dirs=ext.include_dirs,
                extra_postargs=[*flags, *own],
                depends=[str(CPU / "kernel.h"), str(CPU / "kernel_body.h")],
            )
        super().build_extension(ext)


setup(
    packages=list(FOLDERS),
    package_dir=FOLDERS,
    ext_modules=[
        Pybind11Extension(
            "corrflow.plugins.local_soft_copy.cpu._fused",
            [str(CPU / "module.cpp")],
            cxx_std=17,
            define_macros=[("CORRFLOW_X86_KERNELS", "1")] if ON_X86 else [],
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernels},
)
