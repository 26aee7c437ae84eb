"""Multiply-adds per cycle of the CPU kernels' inner loops, by llvm-mca's models of processors.

    python -m corrflow.bench.op.cpu_cycles [TARGET]...

A model, not a measurement: it has no caches, so key rows that cross cache lines cost nothing. Needs llvm-mca and, for
ARM, g++-aarch64-linux-gnu; a target whose compiler is missing is left out with the reason.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from corrflow.errors import InputError

SOURCES = Path(__file__).parents[2] / "plugins" / "local_soft_copy" / "cpu"
OPTIONS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-Wno-psabi", "-S", "-o", "-")
ITERATIONS = 200
LEAST_PRODUCTS = 12  # in the loop of four query rows and the fewest offsets of any kernel
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw")


@dataclass(frozen=True)
class Target:
    """Kernel on a processor that llvm-mca has a model of.

    products: of each form the pattern of its product instruction, and the multiply-adds of one such instruction
    """

    processor: str
    triple: str
    compiler: str
    kernel: str
    flags: tuple[str, ...]
    products: dict[str, tuple[str, int]]
    attributes: str = ""


TARGETS = {
    "neoverse-n1": Target(
        "neoverse-n1",
        "aarch64-linux-gnu",
        "aarch64-linux-gnu-g++",
        "neon_dotprod",
        ("-march=armv8.2-a+dotprod",),
        {"8 bits": (r"sdot", 16), "16 bits": (r"smlal2?", 4)},
    ),
    "icelake-server": Target(
        "icelake-server",
        "x86_64-linux-gnu",
        "g++",
        "avx512_vnni",
        (*AVX512, "-mavx512vnni"),
        {"8 bits": (r"vpdpbusd", 64), "16 bits": (r"vpdpwssd", 32), "float32": (r"vfmadd\d+ps", 16)},
    ),
    "alderlake": Target(
        "alderlake",
        "x86_64-linux-gnu",
        "g++",
        "avx_vnni",
        (*AVX2, "-mavxvnni"),
        {"8 bits": (r"vpdpbusd", 32), "16 bits": (r"vpdpwssd", 16), "float32": (r"vfmadd\d+ps", 8)},
    ),
}


def loops(assembly: str) -> list[list[str]]:
    """Return the instructions of all loops without inner labels."""
    found: list[list[str]] = []
    label, body = "", []
    for line in assembly.splitlines():
        if match := re.match(r"(\.L\w+):", line):
            label, body = match[1], []
        elif re.match(r"\s+[{a-z]", line):
            body.append(line)
            if label and re.search(rf"\s{re.escape(label)}$", line):
                found.append(body)
                label = ""
    return found


def densest_loop(assembly: str, pattern: str) -> list[str]:
    """Return the loop with the largest share of instructions that match. Raises InputError if there is none."""

    def count(loop: list[str]) -> int:
        return sum(_is(line, pattern) for line in loop)

    large = [loop for loop in loops(assembly) if count(loop) >= LEAST_PRODUCTS]
    if not large:
        raise InputError(f"expected a loop with {pattern} in the compiler's output, got none; use GCC 11 or later")
    return max(large, key=lambda loop: count(loop) / len(loop))


def _is(line: str, pattern: str) -> bool:
    return re.match(rf"\s+(\{{vex\}}\s+)?{pattern}\s", line) is not None


def cycles(loop: list[str], target: Target) -> float:
    """Return the cycles of one pass through a loop in llvm-mca's model."""
    command = ["llvm-mca", f"-mtriple={target.triple}", f"-mcpu={target.processor}", f"-iterations={ITERATIONS}"]
    command += [f"-mattr={target.attributes}"] if target.attributes else []
    done = subprocess.run(command, input="\n".join(loop) + "\n", capture_output=True, text=True)
    total = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    if total is None:
        raise InputError(f"expected cycles from llvm-mca, got '{done.stderr.strip()[:200]}'; use LLVM 14 or later")
    return int(total[1]) / ITERATIONS


def missing(target: Target) -> str:
    """Return the reason why a target cannot be modelled here, or ""."""
    absent = [program for program in ("llvm-mca", target.compiler) if shutil.which(program) is None]
    return f"no {' and no '.join(absent)}" if absent else ""


def multiply_adds_per_cycle(target: Target) -> dict[str, float]:
    """Return the rate of each form's inner loop."""
    command = [target.compiler, *OPTIONS, *target.flags, f"-I{SOURCES}", f"{SOURCES}/kernel_{target.kernel}.cpp"]
    assembly = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rates = {}
    for form, (pattern, size) in target.products.items():
        loop = densest_loop(assembly, pattern)
        rates[form] = size * sum(_is(line, pattern) for line in loop) / cycles(loop, target)
    return rates


def main(names: list[str]) -> None:
    """Print a Markdown table."""
    if unknown := set(names) - set(TARGETS):
        raise InputError(f"expected targets of {', '.join(TARGETS)}, got {', '.join(sorted(unknown))}")
    print("| model of llvm-mca | kernel | form | multiply-adds per cycle |\n|---|---|---|---|")
    for name in names or TARGETS:
        target = TARGETS[name]
        if reason := missing(target):
            print(f"| {name} | {target.kernel} | {reason} | |")
            continue
        for form, rate in multiply_adds_per_cycle(target).items():
            print(f"| {name} | {target.kernel} | {form} | {rate:.1f} |")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(f"error: {error}")
