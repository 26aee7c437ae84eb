"""Sources of the kernels that libcorrflow_trt.so embeds: CMakeLists.txt calls this module.

    python -m corrflow.plugins.local_soft_copy.tensorrt.variants write FOLDER --model MODEL --architecture 87
    python -m corrflow.plugins.local_soft_copy.tensorrt.variants lower KERNEL.ptx

`write` plans one kernel per model, precision and number of classes. It writes kernel_*.cu, the table kernels.cpp, and
images.S, which embeds the compiled files. `lower` rewrites PTX in place, with the lowest version that it needs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from corrflow.errors import InputError
from corrflow.plugins.local_soft_copy.cuda.launch import ENTRY_POINT, Dtype, Launch, plan
from corrflow.plugins.local_soft_copy.cuda.ptx_version import with_lowest_version
from corrflow.plugins.local_soft_copy.spec import Attributes

DATA_TYPES: dict[Dtype, int] = {"float32": 0, "float16": 1, "bfloat16": 7}
"""Number of each type in nvinfer1::DataType."""
PTX = 0
"""Architecture number of an image that is PTX."""
_DTYPES: dict[str, Dtype] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_MANY = 4096  # rows of references, so that top_k never covers all scores unless it is 0


@dataclass(frozen=True)
class Variant:
    """Key of a kernel: everything that its source depends on."""

    channels: int
    classes: int
    attributes: Attributes
    dtype: Dtype

    def launch(self, num_windows: int = _MANY) -> Launch:
        """Plan the kernel for a small frame; its source serves all frames."""
        return plan(
            channels=self.channels,
            classes=self.classes,
            num_windows=num_windows,
            height=16,
            width=16,
            attributes=self.attributes,
            dtype=self.dtype,
        )

    @property
    def min_windows(self) -> int:
        """Smallest number of windows that this kernel serves: with fewer, top_k covers all scores."""
        source = self.launch().source
        return next(count for count in range(1, _MANY + 1) if self.launch(count).source == source)


def kernel_hash() -> str:
    """Return the SHA-256 of the CUDA kernel's source in this package."""
    kernel = files("corrflow.plugins.local_soft_copy.cuda").joinpath("local_soft_copy.cu")
    return hashlib.sha256(kernel.read_bytes()).hexdigest()


def variant_of(model: Path, precision: str, classes: int) -> Variant:
    """Return the kernel of a model's engines. Raises InputError for a folder without a readable artifact.json."""
    path = model / "artifact.json"
    try:
        artifact = json.loads(path.read_text(encoding="utf-8"))
        tracking = artifact["tracking"]
        radius, dilation = tuple(map(int, tracking["radius"])), tuple(map(int, tracking["dilation"]))
        attributes = Attributes(radius, dilation, int(tracking["top_k"]), float(tracking["temperature"]))
        return Variant(int(artifact["channels"]), classes, attributes, _DTYPES[precision])
    except OSError as error:
        raise InputError(f"expected the model's {path}, which cannot be read ({error.strerror}); give a folder") from (
            error
        )
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected an artifact of corrflow-export, got {error!r}; export it again") from error


def write(folder: Path, variants: Sequence[Variant], architectures: Sequence[int]) -> None:
    """Write the sources of the kernels, their table, and the assembly that embeds their images."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, variant in enumerate(variants):
        _write_if_changed(folder / f"kernel_{index}.cu", variant.launch().source)
    _write_if_changed(folder / "kernels.cpp", _table(variants, architectures))
    _write_if_changed(folder / "images.S", _assembly(len(variants), architectures))


def _table(variants: Sequence[Variant], architectures: Sequence[int]) -> str:
    lines = ["// Written by variants.py.", '#include "kernels.h"', ""]
    for index in range(len(variants)):
        lines += [f'extern "C" const unsigned char {_symbol(index, number)}[];' for number in architectures]
    lines += ["", "namespace corrflow {", ""]
    rows = []
    for index, variant in enumerate(variants):
        launch, windows = variant.launch(), variant.attributes.distinct_windows
        shapes = ", ".join(f"{{{radius}, {dilation}}}" for radius, dilation in windows)
        images = ", ".join(f"{{{number}, {_symbol(index, number)}}}" for number in architectures)
        lines.append(f"static const Window windows_{index}[] = {{{shapes}}};")
        lines.append(f"static const Image images_{index}[] = {{{images}}};")
        top_k, temperature = variant.attributes.top_k, f"{variant.attributes.temperature:.9e}f"
        key = [variant.channels, variant.classes, DATA_TYPES[variant.dtype], top_k, temperature, variant.min_windows]
        shape = [len(windows), f"windows_{index}", *launch.tile, launch.class_blocks, launch.block[0]]
        rows.append(f"    {{{', '.join(map(str, [*key, *shape, len(architectures), f'images_{index}']))}}},")
    lines += ["", "const Kernel KERNELS[] = {", *rows, "};", f"const int32_t NUM_KERNELS = {len(variants)};"]
    lines.append(f'const char ENTRY_POINT[] = "{ENTRY_POINT}";')
    lines.append(f'const char KERNEL_HASH[] = "{kernel_hash()}";')
    return "\n".join([*lines, "", "}  // namespace corrflow", ""])


def _assembly(num_kernels: int, architectures: Iterable[int]) -> str:
    lines = ["// Written by variants.py.", '.section .rodata, "a"']
    for index in range(num_kernels):
        for number in architectures:
            file = f"kernel_{index}.ptx" if number == PTX else f"kernel_{index}_sm_{number}.cubin"
            symbol = _symbol(index, number)
            lines += [".balign 64", f".global {symbol}", f".hidden {symbol}", f"{symbol}:", f'.incbin "{file}"']
            lines.append(".byte 0")  # the driver reads PTX as a string
    return "\n".join([*lines, '.section .note.GNU-stack, "", %progbits', ""])


def _symbol(index: int, architecture: int) -> str:
    return f"corrflow_image_{index}_{architecture}"


def _write_if_changed(path: Path, content: str) -> None:
    """Leave the time of an equal file alone, so that CMake compiles nothing again."""
    if not path.is_file() or path.read_text(encoding="utf-8") != content:
        path.write_text(content, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    parser = argparse.ArgumentParser(prog="variants")
    commands = parser.add_subparsers(dest="command", required=True)
    writer = commands.add_parser("write")
    writer.add_argument("folder", type=Path)
    writer.add_argument("--model", type=Path, action="append", required=True)
    writer.add_argument("--precision", choices=sorted(_DTYPES), action="append", required=True)
    writer.add_argument("--classes", type=int, action="append", required=True)
    writer.add_argument("--architecture", type=int, action="append", required=True)
    lowerer = commands.add_parser("lower")
    lowerer.add_argument("ptx", type=Path)
    options = parser.parse_args(arguments)
    try:
        if options.command == "lower":
            options.ptx.write_text(with_lowest_version(options.ptx.read_text()))
            return 0
        variants = dict.fromkeys(
            variant_of(model, precision, classes)
            for model in options.model
            for precision in options.precision
            for classes in options.classes
        )
        write(options.folder, list(variants), options.architecture)
        print(len(variants))
    except InputError as error:
        print(f"variants: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
