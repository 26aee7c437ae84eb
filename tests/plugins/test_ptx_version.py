"""PTX declares the lowest version that its target and its instructions need, as ptxas finds."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import HELPERS

from corrflow.plugins.local_soft_copy.cuda.launch import Dtype, plan
from corrflow.plugins.local_soft_copy.cuda.ptx_version import needed_version, with_lowest_version
from corrflow.plugins.local_soft_copy.spec import Attributes

HEADER = ".version 9.5\n.target sm_87\n.address_size 64\n"
KERNEL = """.visible .entry kernel(.param .u64 out) // comment: tcgen05.mma
{{
    .reg .b32 %r<9>;
    .shared .align 16 .b8 tile[1024];
    {body}
    ret;
}}
"""


@pytest.fixture(scope="module")
def ptxas() -> str:
    path = shutil.which("ptxas")
    if path is None:
        pytest.skip("needs ptxas")
    return path


def accepted(ptxas: str, ptx: str, target: str, folder: Path) -> bool:
    """Assemble PTX; ptxas refuses instructions and targets that are younger than the declared version."""
    source = folder / "kernel.ptx"
    source.write_text(ptx)
    command = [ptxas, f"-arch={target}", "-o", str(folder / "kernel.cubin"), str(source)]
    return subprocess.run(command, capture_output=True).returncode == 0


def newest_nvrtc(source: str, architecture: str) -> str:
    """Compile to PTX with the newest NVRTC of the test environment."""
    pathfinder = pytest.importorskip("cuda.pathfinder", reason="needs cuda-core")
    try:
        library = pathfinder.load_nvidia_dynamic_lib("nvrtc").abs_path
    except RuntimeError:  # of which the package's own error is one
        pytest.skip("needs NVRTC")
    command = [sys.executable, str(HELPERS / "nvrtc_alone.py"), library, "--std=c++17"]
    done = subprocess.run(
        [*command, f"--gpu-architecture={architecture}"], input=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize(
    ("dtype", "target", "major"), [("float16", "sm_75", 6), ("bfloat16", "sm_87", 7), ("float16", "sm_120", 8)]
)
def test_the_kernel_declares_the_lowest_version(
    dtype: Dtype, target: str, major: int, ptxas: str, tmp_path: Path
) -> None:
    attributes = Attributes((4,), (1,), 5, 0.07)
    launch = plan(channels=32, classes=8, num_windows=2, height=9, width=9, attributes=attributes, dtype=dtype)
    ptx = newest_nvrtc(launch.source, target.replace("sm", "compute"))
    lowest, version = with_lowest_version(ptx), needed_version(ptx)
    assert version is not None and version[0] == major
    declared, below = (f".version {major}.{minor}\n" for minor in (version[1], version[1] - 1))
    assert declared in lowest and len(lowest.splitlines()) == len(ptx.splitlines())
    assert accepted(ptxas, lowest, target, tmp_path)
    assert not accepted(ptxas, lowest.replace(declared, below), target, tmp_path)


@pytest.mark.parametrize(
    ("body", "version"),
    [
        ("shfl.sync.idx.b32 %r1, %r2, 0, 31, -1;", (6, 3)),
        ("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [tile];", (6, 5)),
    ],
)
def test_an_instruction_needs_the_version_that_ptxas_needs(
    body: str, version: tuple[int, int], ptxas: str, tmp_path: Path
) -> None:
    ptx = HEADER.replace("87", "75") + KERNEL.format(body=body)
    assert needed_version(ptx) == version
    assert accepted(ptxas, with_lowest_version(ptx), "sm_75", tmp_path)
    below = with_lowest_version(ptx).replace(f".version 6.{version[1]}", f".version 6.{version[1] - 1}")
    assert not accepted(ptxas, below, "sm_75", tmp_path)


@pytest.mark.parametrize(
    "body",
    [
        "tcgen05.mma.cta_group::1 %r1;",
        "call.uni other;",
        "ld.global.v8.b32 %r1;",
        "@%p1 max.f32 %r1, %r2, %r3, %r4;",
        "max.f16 %h1, %h2, %h3;",
        "ld.global.v4.b64 {%rd1, %rd2, %rd3, %rd4}, [%rd5];",
        "add.bf16 %h1, %h2, %h3;",
    ],
)
def test_text_with_an_unknown_instruction_is_left_alone(body: str) -> None:
    ptx = HEADER + KERNEL.format(body=body)
    assert needed_version(ptx) is None and with_lowest_version(ptx) == ptx


def test_an_unknown_target_or_directive_is_left_alone_and_an_old_version_is_not_raised() -> None:
    kernel = KERNEL.format(body="bar.sync 0;")
    assert needed_version(HEADER + kernel) == (7, 4)
    assert needed_version(HEADER.replace("sm_87", "sm_100a") + kernel) is None
    assert needed_version(HEADER + ".func other();\n" + kernel) is None
    old = HEADER.replace("9.5", "7.1") + kernel
    assert with_lowest_version(old) == old
