"""The CUDA kernel compiles for all supported GPUs without spills and takes the parameters that launch.py documents."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers.paths import HELPERS
from hypothesis import given
from hypothesis import strategies as st

from corrflow.errors import InputError
from corrflow.plugins.local_soft_copy.cuda.compiler import compile_kernel
from corrflow.plugins.local_soft_copy.cuda.launch import MAX_TOP_K, SHARED_LIMIT, Dtype, Launch, plan
from corrflow.plugins.local_soft_copy.spec import Attributes
from corrflow.runtime.artifacts.artifact import load_artifact
from corrflow.runtime.artifacts.bundled import resolve_model

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_110", "sm_120")
JETPACK_6 = ("compute_75", "compute_87", "compute_90")  # the newest that CUDA 12.6 supports
# Pointers are 64-bit, sizes 32-bit; the order is launch.py's.
PARAMETERS = ["u64", "u64", "u64", "u64", "u32", "u32", "u32", "u32", "u64"]


def kernel(
    channels: int = 91,
    classes: int = 8,
    radius: tuple[int, ...] = (12,),
    top_k: int = 10,
    dtype: Dtype = "float16",
    num_windows: int = 6,
    height: int = 120,
    width: int = 214,
    dilation: tuple[int, ...] = (1,),
) -> Launch:
    return plan(
        channels=channels,
        classes=classes,
        num_windows=num_windows,
        height=height,
        width=width,
        attributes=Attributes(radius, dilation, top_k, 0.07),
        dtype=dtype,
    )


def bundled(dtype: Dtype) -> Launch:
    """Plan the kernel of the engines of the default model."""
    artifact = load_artifact(resolve_model(None))
    return plan(
        channels=artifact.channels,
        classes=8,
        num_windows=artifact.settings.num_reference_frames,
        height=120,
        width=214,
        attributes=artifact.settings.attributes,
        dtype=dtype,
    )


KERNELS = {
    "float16, bundled model": bundled("float16"),
    "float32, bundled model": bundled("float32"),
    "float16, top 10": kernel(),
    "float16, all scores": kernel(top_k=0),
    "bfloat16, top 10, two window shapes": kernel(radius=(24, 12), dtype="bfloat16"),
    "bfloat16, all scores, 16 classes": kernel(classes=16, top_k=0, dtype="bfloat16"),
    "float32, top 10": kernel(dtype="float32"),
    "float32, all scores, 32 classes": kernel(classes=32, top_k=0, dtype="float32"),
}
# Registers that leave room for 16 warps on a multiprocessor with lists of 5 scores; 12 in float32, with lists of 10 or
# with the sums of 8 classes; 8 with both of these.
MAX_REGISTERS = {name: 255 if "classes" in name or name == "float32, top 10" else 168 for name in KERNELS}
MAX_REGISTERS["float16, bundled model"] = 128
# Compiled for two GPUs only, to save time.
LONGEST_LIST = {"float16, top 32, 128 channels": kernel(channels=128, top_k=MAX_TOP_K)}


def parameters(ptx: str) -> list[str]:
    """Return the types of the kernel's parameters in their order."""
    entry = re.search(r"\.entry corrflow_local_soft_copy\((.*?)\)", ptx, re.S)
    assert entry, "expected the entry point in the PTX, found none"
    return re.findall(r"\.param \.(\w+)", entry[1])


@pytest.fixture(scope="module")
def nvcc() -> str:
    path = shutil.which("nvcc")
    if path is None:
        pytest.skip("needs nvcc")
    return path


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvcc_compiles_every_kernel_without_spills(architecture: str, nvcc: str, tmp_path: Path) -> None:
    supported = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    if architecture not in supported.split():
        pytest.skip(f"needs an nvcc that supports {architecture}")
    kernels = KERNELS | (LONGEST_LIST if architecture in ("sm_87", "sm_120") else {})
    with ThreadPoolExecutor(2) as pool:
        reports = list(
            pool.map(lambda item: cubin_report(nvcc, item[0], item[1], architecture, tmp_path), kernels.items())
        )
    for (name, launch), report in zip(kernels.items(), reports, strict=True):
        assert f"entry function '{launch.entry_point}' for '{architecture}'" in report
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in report, name
        shared = re.search(r"(\d+) bytes smem", report)
        assert shared and int(shared[1]) == launch.shared_bytes <= SHARED_LIMIT, name
        registers = registers_of(report)
        assert registers <= MAX_REGISTERS.get(name, 255), name
        assert registers * launch.block[0] <= 65536, f"{name}: a block needs more registers than a multiprocessor has"
        used = instructions(cubin_of(tmp_path, name).read_bytes())
        assert used["local memory"] == 0, name
        on_tensor_cores = not name.startswith("float32") and (architecture != "sm_75" or name.startswith("float16"))
        assert (used["HMMA"] > 0) == on_tensor_cores, name
        # 16 queries are loaded once for all groups of 16 keys, and each of these takes one load.
        groups = int(re.search(r"CORRFLOW_GROUPS (\d+)", launch.source)[1])  # type: ignore[index]
        products = 4 if architecture == "sm_75" else 2  # instructions of 16 queries, keys and channels
        assert used["LDSM"] * groups * products == used["HMMA"] * (groups + 1), name
        if on_tensor_cores:
            assert used["PRMT"] <= (48 if name == "float16, bundled model" else MAX_PERMUTATIONS), name


def registers_of(report: str) -> int:
    return int(re.search(r"Used (\d+) registers", report)[1])  # type: ignore[index]


# Bytes moved between registers: those of pairs whose two keys are loaded one by one, and few else.
MAX_PERMUTATIONS = 120
# The low nine bits of an instruction of 16 bytes, the same for sm_75 to sm_120; the next three select its operands.
OPCODES = {0x03C: "HMMA", 0x03B: "LDSM", 0x016: "PRMT", 0x183: "local memory", 0x187: "local memory"}


def instructions(cubin: bytes) -> Counter[str]:
    """Count the instructions of OPCODES in the kernel's machine code, a 64-bit ELF file."""
    (table,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names_index = struct.unpack_from("<HHH", cubin, 58)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(count)]
    names = sections[names_index][4]
    for name, _, _, _, offset, length in sections:
        start = names + name
        if cubin[start : cubin.index(b"\0", start)] == b".text.corrflow_local_soft_copy":
            found = Counter(
                OPCODES.get(code & 0x1FF) for code, _ in struct.iter_unpack("<QQ", cubin[offset : offset + length])
            )
            return Counter({name: found[name] for name in set(OPCODES.values())})
    raise AssertionError("expected the kernel's machine code in the cubin, found none")


def cubin_of(folder: Path, name: str) -> Path:
    return (folder / re.sub(r"\W+", "-", name)).with_suffix(".cubin")


def cubin_report(nvcc: str, name: str, launch: Launch, architecture: str, folder: Path) -> str:
    """Return the report of ptxas on registers, spills and shared memory."""
    cubin = cubin_of(folder, name)
    source = cubin.with_suffix(".cu")
    source.write_text(launch.source)
    command = [nvcc, *launch.options, f"-arch={architecture}", "-cubin", "-Xptxas=-v", "-o", cubin.name]
    done = subprocess.run([*command, source.name], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, f"{name}: {done.stderr[-2000:]}"
    return done.stdout + done.stderr


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_parameters_are_in_the_documented_order(dtype: Dtype, nvcc: str, tmp_path: Path) -> None:
    launch = kernel(dtype=dtype)
    (tmp_path / "kernel.cu").write_text(launch.source)
    command = [nvcc, *launch.options, "-arch=compute_87", "-ptx", "-o", "kernel.ptx", "kernel.cu"]
    subprocess.run(command, check=True, cwd=tmp_path)
    ptx = (tmp_path / "kernel.ptx").read_text()
    assert parameters(ptx) == PARAMETERS
    # float16 and bfloat16 use tensor cores; float32 does not, because its products would lose bits.
    assert ("mma.sync" in ptx) == (dtype != "float32")
    # Only the result is written: one store per class and lane of a query.
    assert 0 < len(re.findall(r"st\.global", ptx)) <= 8


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("architecture", JETPACK_6)
def test_the_compiler_of_jetpack_6_needs_no_headers(
    dtype: Dtype, architecture: str, gpu_wheels: Callable[[str], Path]
) -> None:
    launch = kernel(dtype=dtype)
    ptx = nvrtc(gpu_wheels("nvrtc-12.6"), launch, architecture).stdout
    assert parameters(ptx) == PARAMETERS
    assert re.search(r"Cuda compilation tools, release 12\.6", ptx)
    assert f".target sm_{architecture.partition('_')[2]}" in ptx


@pytest.mark.parametrize("name", KERNELS)
def test_the_compiler_of_jetpack_6_spills_nothing_for_orin(name: str, gpu_wheels: Callable[[str], Path]) -> None:
    """Orin devices compile with this NVRTC, which is older than nvcc here."""
    launch = KERNELS[name]
    report = nvrtc(gpu_wheels("nvrtc-12.6"), launch, "sm_87", "--ptxas-options=-v").stderr
    assert f"entry function '{launch.entry_point}' for 'sm_87'" in report
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in report
    assert int(re.search(r"(\d+) bytes smem", report)[1]) == launch.shared_bytes <= SHARED_LIMIT  # type: ignore[index]
    assert registers_of(report) <= MAX_REGISTERS[name]


def nvrtc(folder: Path, launch: Launch, architecture: str, *more: str) -> subprocess.CompletedProcess[str]:
    """Compile with the NVRTC of a wheel: no include path, no CUDA installation, no other NVRTC in the process."""
    if sys.platform != "linux":
        pytest.skip("needs Linux, as the wheel does")
    library = folder / "nvidia/cuda_nvrtc/lib/libnvrtc.so.12"
    options = (*launch.options, f"--gpu-architecture={architecture}", *more)
    command = [sys.executable, str(HELPERS / "nvrtc_alone.py"), str(library), *options]
    done = subprocess.run(command, input=launch.source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


@pytest.mark.parametrize("architecture", ["sm_87", "sm_120"])
def test_cuda_core_compiles_without_a_driver(architecture: str) -> None:
    pytest.importorskip("cuda.core", reason="needs cuda-core")
    assert compile_kernel(kernel(), architecture).code[:4] == b"\x7fELF"


def test_one_source_serves_all_frame_sizes_and_batches() -> None:
    small, large = kernel(height=9, width=11), kernel(height=270, width=480)
    assert small.source == large.source
    assert large.grid == (30, 68, 1) and small.grid == (1, 3, 1)
    assert kernel(num_windows=1).source == kernel(num_windows=9).source


def test_any_row_may_use_any_window_shape() -> None:
    """Key columns cover the widest shape even for one row; top_k is dropped only if it covers the largest shape."""
    assert "#define CORRFLOW_GROUPS 2" in kernel(radius=(3,), num_windows=1).source
    assert "#define CORRFLOW_GROUPS 4" in kernel(radius=(3, 20), num_windows=1).source
    assert "#define CORRFLOW_TOP_K 0" in kernel(radius=(1, 2), num_windows=1, top_k=25).source
    assert "#define CORRFLOW_TOP_K 25" in kernel(radius=(1, 2), num_windows=2, top_k=25).source


@pytest.mark.parametrize(("dilation", "spread"), [((1,), 1), ((1, 2), 2), ((2, 1), 1), ((6,), 3), ((4,), 4), ((5,), 1)])
def test_the_row_distance_of_a_tile_divides_the_last_dilation(dilation: tuple[int, ...], spread: int) -> None:
    launch = kernel(dilation=dilation)
    assert f"#define CORRFLOW_SPREAD {spread}\n" in launch.source
    assert launch.grid == kernel(dilation=(1,)).grid


@pytest.mark.parametrize(("radius", "dilation", "groups"), [(12, 1, 3), (12, 2, 3), (12, 3, 3), (6, 4, 2), (9, 2, 3)])
def test_a_dilated_window_loads_only_the_columns_that_are_searched(radius: int, dilation: int, groups: int) -> None:
    """16 queries that are a dilation apart search 16 + 2 * radius columns in common."""
    launch = kernel(radius=(radius,), dilation=(dilation,))
    assert groups == -(-(16 + 2 * radius) // 16)
    assert f"#define CORRFLOW_GROUPS {groups}\n" in launch.source


def test_many_classes_are_divided_among_blocks() -> None:
    many = kernel(classes=70)
    assert many.class_blocks == 3 and many.grid[2] == 3
    assert "#define CORRFLOW_OWN_CLASSES 24" in many.source


@given(
    channels=st.integers(1, 160),
    classes=st.integers(1, 100),
    radius=st.integers(0, 20),
    dilation=st.integers(1, 4),
    top_k=st.integers(0, MAX_TOP_K),
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
)
def test_every_plan_fits_static_shared_memory(
    channels: int, classes: int, radius: int, dilation: int, top_k: int, dtype: Dtype
) -> None:
    launch = plan(
        channels=channels,
        classes=classes,
        num_windows=2,
        height=50,
        width=70,
        attributes=Attributes((radius,), (dilation,), top_k, 0.1),
        dtype=dtype,
    )
    assert launch.shared_bytes <= SHARED_LIMIT
    assert launch.grid[0] * launch.tile[0] >= 70 and launch.grid[1] * launch.tile[1] >= 50
    assert launch.block[0] == 32 * launch.tile[1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"channels": 2000}, r"at most \d+ channels of 2 bytes, got 2000; export an encoder with fewer"),
        ({"top_k": 33}, "top_k up to 32, or 0 for all 3750 scores, got 33"),
        ({"width": 0}, "expected width >= 1, got 0"),
        ({"dtype": "int8"}, "expected dtype float32 or float16 or bfloat16, got int8"),
        ({"height": 50000, "width": 50000}, r"fewer than 2\^31 positions"),
        ({"height": 2**24, "width": 1}, "at most 65535 tiles down"),
    ],
    ids=["channels", "top_k", "width", "dtype", "positions", "grid"],
)
def test_unsupported_sizes_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        kernel(**wrong)


def test_the_channel_limit_in_the_message_is_exact() -> None:
    with pytest.raises(InputError) as refused:
        kernel(channels=5000)
    limit = int(re.search(r"at most (\d+) channels", str(refused.value))[1])  # type: ignore[index]
    assert kernel(channels=limit).shared_bytes <= SHARED_LIMIT
    with pytest.raises(InputError):
        kernel(channels=limit + 1)


def test_a_temperature_beyond_single_precision_is_refused() -> None:
    with pytest.raises(InputError, match="temperature between"):
        plan(
            channels=8,
            classes=1,
            num_windows=1,
            height=4,
            width=4,
            attributes=Attributes((1,), temperature=1e-38),
            dtype="float32",
        )
