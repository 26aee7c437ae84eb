"""The CUDA kernel compiles for every GPU we name, without spills, and takes the arguments that launch.py promises."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corrflow.errors import InputError
from corrflow.plugins.local_soft_copy.cuda.compiler import compile_kernel
from corrflow.plugins.local_soft_copy.cuda.launch import MOST_KEPT, SHARED_LIMIT, Launch, Storage, plan
from corrflow.plugins.local_soft_copy.spec import Attributes
from corrflow.runtime.artifacts.artifact import load_artifact
from corrflow.runtime.artifacts.bundled import resolve_model

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_110", "sm_120")
JETPACK_6 = ("compute_75", "compute_87", "compute_90")  # CUDA 12.6 knows nothing newer
# Pointers are 64-bit, sizes 32-bit; the order is launch.py's.
PARAMETERS = ["u64", "u64", "u64", "u64", "u32", "u32", "u32", "u32", "u64"]


def kernel(
    channels: int = 91,
    classes: int = 8,
    radius: tuple[int, ...] = (12,),
    top_k: int = 10,
    storage: Storage = "float16",
    references: int = 6,
    height: int = 120,
    width: int = 214,
    dilation: tuple[int, ...] = (1,),
) -> Launch:
    return plan(
        channels=channels,
        classes=classes,
        references=references,
        height=height,
        width=width,
        attributes=Attributes(radius, dilation, top_k, 0.07),
        storage=storage,
    )


def bundled(storage: Storage) -> Launch:
    """The kernel of the engines that corrflow-export engine builds of the model in the package."""
    artifact = load_artifact(resolve_model(None))
    return plan(
        channels=artifact.channels,
        classes=8,
        references=artifact.settings.references,
        height=120,
        width=214,
        attributes=artifact.settings.attributes,
        storage=storage,
    )


KERNELS = {
    "float16, the bundled model": bundled("float16"),
    "float32, the bundled model": bundled("float32"),
    "float16, top 10": kernel(),
    "float16, all scores": kernel(top_k=0),
    "bfloat16, top 10, a window of its own for the first reference": kernel(radius=(24, 12), storage="bfloat16"),
    "bfloat16, all scores, 16 classes": kernel(classes=16, top_k=0, storage="bfloat16"),
    "float32, top 10": kernel(storage="float32"),
    "float32, all scores, 32 classes": kernel(classes=32, top_k=0, storage="float32"),
}
LONGEST_LIST = {"float16, top 32, 128 channels": kernel(channels=128, top_k=MOST_KEPT)}  # on two of the GPUs, for time


def parameters(ptx: str) -> list[str]:
    """Types of the entry point's parameters in their order."""
    entry = re.search(r"\.entry corrflow_local_soft_copy\((.*?)\)", ptx, re.S)
    assert entry, "no entry point of that name"
    return re.findall(r"\.param \.(\w+)", entry[1])


@pytest.fixture(scope="module")
def nvcc() -> str:
    found = shutil.which("nvcc")
    if found is None:
        pytest.skip("no nvcc here")
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvcc_compiles_every_kernel_without_spills(architecture: str, nvcc: str, tmp_path: Path) -> None:
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    if architecture not in known.split():
        pytest.skip(f"this nvcc does not know {architecture}")
    kernels = KERNELS | (LONGEST_LIST if architecture in ("sm_87", "sm_120") else {})
    with ThreadPoolExecutor(2) as pool:
        reports = list(
            pool.map(lambda item: cubin_report(nvcc, item[0], item[1], architecture, tmp_path), kernels.items())
        )
    for (name, launch), report in zip(kernels.items(), reports, strict=True):
        assert f"entry function '{launch.entry_point}' for '{architecture}'" in report
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in report, name
        assert int(re.search(r"(\d+) bytes smem", report)[1]) == launch.shared_bytes <= SHARED_LIMIT, name  # type: ignore[index]
        registers = int(re.search(r"Used (\d+) registers", report)[1])  # type: ignore[index]
        assert registers * launch.block[0] <= 65536, f"{name}: a multiprocessor has no room for one block"


def cubin_report(nvcc: str, name: str, launch: Launch, architecture: str, folder: Path) -> str:
    """What ptxas says of registers, spills and shared memory."""
    name = re.sub(r"\W+", "-", name)
    source = folder / f"{name}.cu"
    source.write_text(launch.source)
    command = [nvcc, *launch.options, f"-arch={architecture}", "-cubin", "-Xptxas=-v", "-o", f"{name}.cubin"]
    done = subprocess.run([*command, source.name], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, f"{name}: {done.stderr[-2000:]}"
    return done.stdout + done.stderr


@pytest.mark.parametrize("storage", ["float32", "float16", "bfloat16"])
def test_the_parameters_are_in_the_promised_order(storage: Storage, nvcc: str, tmp_path: Path) -> None:
    launch = kernel(storage=storage)
    (tmp_path / "kernel.cu").write_text(launch.source)
    command = [nvcc, *launch.options, "-arch=compute_87", "-ptx", "-o", "kernel.ptx", "kernel.cu"]
    subprocess.run(command, check=True, cwd=tmp_path)
    ptx = (tmp_path / "kernel.ptx").read_text()
    assert parameters(ptx) == PARAMETERS
    # The tensor cores' instructions, in bfloat16 as in float16, and none of them where sums would lose bits.
    assert ("wmma.mma.sync" in ptx) == (storage != "float32")
    # Nothing is written but the result: one store a class for each of the two lanes of a query.
    assert 0 < len(re.findall(r"st\.global", ptx)) <= 8


@pytest.mark.parametrize("storage", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("architecture", JETPACK_6)
def test_the_compiler_of_jetpack_6_takes_it_without_headers(
    storage: Storage, architecture: str, gpu_wheels: Callable[[str], Path]
) -> None:
    launch = kernel(storage=storage)
    ptx = nvrtc(gpu_wheels("nvrtc-12.6"), launch, architecture).stdout
    assert parameters(ptx) == PARAMETERS
    assert re.search(r"Cuda compilation tools, release 12\.6", ptx)
    assert f".target sm_{architecture.partition('_')[2]}" in ptx


@pytest.mark.parametrize("name", KERNELS)
def test_the_compiler_of_jetpack_6_spills_nothing_for_orin(name: str, gpu_wheels: Callable[[str], Path]) -> None:
    """It is the one that compiles on such a device; nvcc is another, newer one."""
    launch = KERNELS[name]
    report = nvrtc(gpu_wheels("nvrtc-12.6"), launch, "sm_87", "--ptxas-options=-v").stderr
    assert f"entry function '{launch.entry_point}' for 'sm_87'" in report
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in report
    assert int(re.search(r"(\d+) bytes smem", report)[1]) == launch.shared_bytes <= SHARED_LIMIT  # type: ignore[index]


def nvrtc(folder: Path, launch: Launch, architecture: str, *more: str) -> subprocess.CompletedProcess[str]:
    """PTX and log by the NVRTC of a wheel: no include path, no CUDA installation, a process that has no other NVRTC."""
    if sys.platform != "linux":
        pytest.skip("the wheel is for Linux")
    library = folder / "nvidia/cuda_nvrtc/lib/libnvrtc.so.12"
    options = (*launch.options, f"--gpu-architecture={architecture}", *more)
    command = [sys.executable, str(Path(__file__).with_name("nvrtc_alone.py")), str(library), *options]
    done = subprocess.run(command, input=launch.source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


@pytest.mark.parametrize("architecture", ["sm_87", "sm_120"])
def test_cuda_core_compiles_it_without_a_driver(architecture: str) -> None:
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    assert compile_kernel(kernel(), architecture).code[:4] == b"\x7fELF"


def test_one_source_serves_all_frame_sizes_and_batches() -> None:
    small, large = kernel(height=9, width=11), kernel(height=270, width=480)
    assert small.source == large.source
    assert large.grid == (30, 34, 1) and small.grid == (1, 2, 1)
    assert kernel(references=1).source == kernel(references=9).source


def test_any_reference_may_name_any_window() -> None:
    """However few there are: key columns are loaded as the widest needs, and all scores kept where they may be few."""
    assert "#define CORRFLOW_GROUPS 2" in kernel(radius=(3,), references=1).source
    assert "#define CORRFLOW_GROUPS 4" in kernel(radius=(3, 20), references=1).source
    assert "#define CORRFLOW_TOP_K 0" in kernel(radius=(1, 2), references=1, top_k=25).source
    assert "#define CORRFLOW_TOP_K 25" in kernel(radius=(1, 2), references=2, top_k=25).source


@pytest.mark.parametrize(("dilation", "spread"), [((1,), 1), ((1, 2), 2), ((2, 1), 1), ((6,), 3), ((4,), 4), ((5,), 1)])
def test_rows_of_a_tile_are_as_far_apart_as_most_windows_want_them(dilation: tuple[int, ...], spread: int) -> None:
    launch = kernel(dilation=dilation)
    assert f"#define CORRFLOW_SPREAD {spread}\n" in launch.source
    assert launch.grid == kernel(dilation=(1,)).grid


def test_more_classes_than_a_block_copies_go_to_more_blocks() -> None:
    many = kernel(classes=70)
    assert many.class_blocks == 3 and many.grid[2] == 3
    assert "#define CORRFLOW_OWN_CLASSES 24" in many.source


@given(
    channels=st.integers(1, 160),
    classes=st.integers(1, 100),
    radius=st.integers(0, 20),
    dilation=st.integers(1, 4),
    top_k=st.integers(0, MOST_KEPT),
    storage=st.sampled_from(["float32", "float16", "bfloat16"]),
)
def test_every_plan_fits_into_static_shared_memory(
    channels: int, classes: int, radius: int, dilation: int, top_k: int, storage: Storage
) -> None:
    launch = plan(
        channels=channels,
        classes=classes,
        references=2,
        height=50,
        width=70,
        attributes=Attributes((radius,), (dilation,), top_k, 0.1),
        storage=storage,
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
        ({"storage": "int8"}, "expected storage float32 or float16 or bfloat16, got int8"),
        ({"height": 50000, "width": 50000}, r"fewer than 2\^31 positions"),
        ({"height": 2**24, "width": 1}, "at most 65535 tiles down"),
    ],
    ids=["channels", "top_k", "width", "storage", "positions", "grid"],
)
def test_what_the_kernel_cannot_do_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        kernel(**wrong)


def test_the_channel_limit_in_the_message_is_the_real_one() -> None:
    with pytest.raises(InputError) as refused:
        kernel(channels=5000)
    most = int(re.search(r"at most (\d+) channels", str(refused.value))[1])  # type: ignore[index]
    assert kernel(channels=most).shared_bytes <= SHARED_LIMIT
    with pytest.raises(InputError):
        kernel(channels=most + 1)


def test_a_temperature_beyond_single_precision_is_refused() -> None:
    with pytest.raises(InputError, match="temperature between"):
        plan(
            channels=8,
            classes=1,
            references=1,
            height=4,
            width=4,
            attributes=Attributes((1,), temperature=1e-38),
            storage="float32",
        )
