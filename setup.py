"""List the packages and build the one compiled part, the fused CPU kernel; the rest stands in pyproject.toml.

The package `corrflow` lies in src/, so that the root of a clone never shadows an installed package. Every folder of
Python code beside it is a subpackage: runtime/ is `corrflow.runtime`.

The extension is optional: without a C++ compiler the package installs all the same, and says so when it tracks.
"""

from __future__ import annotations

import os
import platform
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

CPU = Path("plugins/local_soft_copy/cpu")
COMMON = ["-O3", "-ffp-contract=fast", "-fvisibility=hidden", "-Wno-psabi"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw"]
# Each kernel is one file with its own instruction set; kernels.cpp picks among them at run time.
KERNELS = {
    "x86": {
        "avx2": AVX2,
        "avx_vnni": [*AVX2, "-mavxvnni"],
        "avx512": AVX512,
        "avx512_vnni": [*AVX512, "-mavx512vnni"],
    },
    "arm": {"neon_dotprod": ["-march=armv8.2-a+dotprod"]},
}
MACHINES = {"x86_64": "x86", "amd64": "x86", "aarch64": "arm", "arm64": "arm"}
ROOMS = ("plugins", "runtime", "train", "export", "evaluate", "bench")
FOLDERS = {"corrflow": "src/corrflow"} | {
    "corrflow." + ".".join(path.parts[:-1]): path.parent.as_posix()
    for room in ROOMS
    for path in sorted(Path(room).rglob("__init__.py"))
}


class BuildKernels(build_ext):
    """Compiles the kernels with their own flags, then lets setuptools build and link the rest."""

    def build_extension(self, ext) -> None:
        flags = [*COMMON, *ext.extra_compile_args]
        kernels = {"portable": []} | KERNELS.get(MACHINES.get(platform.machine().lower(), ""), {})
        accepted = {name: own for name, own in kernels.items() if self.accepts(own)}
        for name in kernels.keys() - accepted.keys():
            print(f"kernel_{name}.cpp is left out: the compiler does not accept {' '.join(kernels[name])}")
        ext.define_macros += [(f"CORRFLOW_{name.upper()}", "1") for name in accepted]

        def compiled(name: str, own: list[str]) -> list[str]:
            return self.compiler.compile(
                [str(CPU / f"kernel_{name}.cpp")],
                output_dir=self.build_temp,
                include_dirs=ext.include_dirs,
                extra_postargs=[*flags, *own],
                depends=[str(CPU / "kernel.h"), str(CPU / "kernel_body.h")],
            )

        # Side by side, because each takes up to half a minute.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for objects in pool.map(compiled, accepted, accepted.values()):
                ext.extra_objects += objects
        super().build_extension(ext)

    def accepts(self, flags: list[str]) -> bool:
        """Return True if the compiler has these flags; GCC 10 has no -mavxvnni, for example."""
        if not flags:
            return True
        with tempfile.TemporaryDirectory() as scratch:
            empty = Path(scratch, "empty.cpp")
            empty.write_text("int main() { return 0; }\n")
            try:
                self.compiler.compile([str(empty)], output_dir=scratch, extra_postargs=flags)
            except CompileError:
                return False
        return True


setup(
    packages=list(FOLDERS),
    package_dir=FOLDERS,
    ext_modules=[
        Pybind11Extension(
            "corrflow.plugins.local_soft_copy.cpu._fused",
            [str(CPU / "module.cpp"), str(CPU / "kernels.cpp")],
            cxx_std=17,
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernels},
)
