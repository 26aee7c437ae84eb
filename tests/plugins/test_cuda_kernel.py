"""The CUDA kernel's source, run on the CPU with one fibre per thread, matches the definition of the op."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from helpers import fakes
from helpers.kernels_on_cpu import BACKWARDS, COMPILER, FORWARDS, SHUFFLED, OnCpu, core_on_cpu
from helpers.oracle import oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from corrflow.bench.cli import app as bench
from corrflow.bench.op import cuda_kernel as kernel
from corrflow.bench.op.cuda_kernel import CASES, INDEXED_CASES, TOLERANCE, Case, planned
from corrflow.plugins.local_soft_copy import cpu
from corrflow.plugins.local_soft_copy.cuda.launch import Dtype
from corrflow.plugins.local_soft_copy.spec import MAX_OFFSET, Attributes, SearchWindow
from corrflow.runtime.backends.cuda_device import CudaDevice

SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fsanitize-sections=shared_memory")
NUMPY_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}

pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"needs {COMPILER}")


def inputs(case: Case, dtype: Dtype, integers: bool, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make query, keys and values in the dtype. integers: features are small integers, which give equal scores."""
    generator = np.random.default_rng(seed)
    shapes = [(case.B, case.C, case.H, case.W), (case.B, case.K, case.C, case.H, case.W)]
    query, keys = (
        generator.integers(-1, 2, shape) if integers else generator.standard_normal(shape) for shape in shapes
    )
    values = generator.random((case.B, case.K, case.N, case.H, case.W))
    number = NUMPY_DTYPES[dtype]
    return query.astype(number), keys.astype(number), values.astype(number)


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> OnCpu:
    return OnCpu(tmp_path_factory.mktemp("kernels"))


def expected_of(case: Case, tensors: tuple[np.ndarray, ...], oracle: Callable[..., np.ndarray]) -> np.ndarray:
    """Compute a case with the oracle."""
    attributes, used = case.attributes, [each for each in case.windows if each.frame >= 0]
    windows = [attributes.windows(each.window + 1)[-1] for each in used]
    places = [(each.frame, each.dy, each.dx) for each in used]
    return oracle(*tensors, windows, attributes.top_k, attributes.temperature, places)


def difference(got: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest absolute difference; infinite for NaN."""
    largest = np.abs(got.astype(np.float64) - expected).max()
    return float(largest) if np.isfinite(largest) else float("inf")


# On the CPU, bfloat16 differs from float16 only in the conversion of numbers.
IN_BFLOAT16 = ("batch and references", "top_k", "window per reference, top_k", "several slices of channels", "indexed")
ALL_CASES = CASES | INDEXED_CASES
CASES_BY_DTYPE = [(name, dtype) for dtype in ("float32", "float16") for name in ALL_CASES]
CASES_BY_DTYPE += [(name, "bfloat16") for name in IN_BFLOAT16]


@pytest.mark.parametrize("integers", [False, True], ids=["no ties", "ties"])
@pytest.mark.parametrize(("name", "dtype"), CASES_BY_DTYPE)
def test_the_kernel_matches_the_oracle(name: str, dtype: Dtype, integers: bool, on_cpu: OnCpu) -> None:
    case = ALL_CASES[name]
    tensors = inputs(case, dtype, integers)
    expected = expected_of(case, tensors, oracle)
    for order in (FORWARDS, SHUFFLED):
        got = on_cpu.run(planned(case, dtype), tensors, case.windows, order)
        assert difference(got, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("order", [BACKWARDS, SHUFFLED], ids=["backwards", "shuffled"])
def test_the_order_of_threads_changes_no_bit(order: int, on_cpu: OnCpu) -> None:
    case = CASES["batch and references"]
    for dtype in ("float32", "float16"):
        tensors = inputs(case, dtype, False)
        expected = on_cpu.run(planned(case, dtype), tensors, case.windows, FORWARDS)
        np.testing.assert_array_equal(on_cpu.run(planned(case, dtype), tensors, case.windows, order), expected)


BARRIERS = re.findall(
    r"__sync\w+\(\);  // (.*)",
    planned(CASES["one reference"], "float16").source,
)


def test_every_barrier_has_a_comment_on_its_purpose() -> None:
    source = re.sub(r"//.*", "", planned(CASES["one reference"], "float16").source)
    assert len(BARRIERS) == len(set(BARRIERS)) == len(re.findall(r"__sync(?:threads|warp)\(", source)) == 2


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("purpose", BARRIERS)
def test_a_missing_barrier_is_caught(purpose: str, dtype: Dtype, on_cpu: OnCpu) -> None:
    # Several slices of channels, groups of keys and rows of queries exercise every barrier.
    case = Case(1, 1, 128, 2, 9, 18, Attributes((12,), temperature=8.0))
    original = planned(case, dtype)
    tensors = inputs(case, dtype, False)
    expected = expected_of(case, tensors, oracle)
    assert difference(on_cpu.run(original, tensors, case.windows), expected) < TOLERANCE[dtype]
    broken = replace(original, source=re.sub(rf"__sync\w+\(\);  // {re.escape(purpose)}", ";", original.source))
    assert broken.source != original.source

    def caught(order: int) -> bool:
        try:
            return not difference(on_cpu.run(broken, tensors, case.windows, order), expected) < TOLERANCE[dtype]
        except RuntimeError:
            return True  # the scheduler of the fibres detected it

    assert any(caught(order) for order in (FORWARDS, BACKWARDS, SHUFFLED))


@pytest.mark.parametrize("purpose", BARRIERS[:1])
def test_a_barrier_that_only_some_threads_reach_is_caught(purpose: str, on_cpu: OnCpu) -> None:
    case = CASES["one reference"]
    original = planned(case, "float32")
    partial = re.sub(rf"(__sync\w+\(\);)  // {re.escape(purpose)}", r"if (warp == 0) \1", original.source)
    with pytest.raises(RuntimeError, match="different barriers"):
        on_cpu.run(replace(original, source=partial), inputs(case, "float32", False), case.windows)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    "name",
    [
        "batch and references",
        "window per reference, top_k",
        "several slices of channels",
        "one row",
        "indexed",
        "indexed, top_k",
        "indexed, outside the frame for some, top_k",
    ],
)
def test_the_kernel_is_clean_under_the_sanitizers(name: str, dtype: Dtype, on_cpu: OnCpu) -> None:
    if reason := missing_sanitizers(on_cpu.folder):
        pytest.skip(reason)
    case = ALL_CASES[name]
    tensors = inputs(case, dtype, False)
    got = on_cpu.run(planned(case, dtype), tensors, case.windows, SHUFFLED, SANITIZERS)
    assert difference(got, expected_of(case, tensors, oracle)) < TOLERANCE[dtype]


@pytest.mark.parametrize(
    "mutation",
    [("shared_queries[DEPTH * QUERY_PITCH]", "shared_queries[DEPTH * QUERY_PITCH - 1 - PAD]"), ("x < width;", "true;")],
    ids=["shared memory", "global memory"],
)
def test_the_sanitizers_detect_an_access_beyond_an_array(mutation: tuple[str, str], on_cpu: OnCpu) -> None:
    if reason := missing_sanitizers(on_cpu.folder):
        pytest.skip(reason)
    case = CASES["one cell"]
    original = planned(case, "float32")
    broken = replace(original, source=original.source.replace(*mutation))
    assert broken.source != original.source
    with pytest.raises(RuntimeError, match=r"AddressSanitizer: \w+-buffer-overflow|out of bounds"):
        on_cpu.run(broken, inputs(case, "float32", False), case.windows, flags=SANITIZERS)


@cache
def missing_sanitizers(folder: Path) -> str:
    """Return the reason why the sanitizers cannot be used, or ""; -fsanitize-sections needs GCC."""
    program = folder / "empty.cpp"
    program.write_text("int main() { return 0; }\n")
    built = subprocess.run(
        [COMPILER, *SANITIZERS, str(program), "-o", str(folder / "empty")], capture_output=True, text=True
    )
    ran = built.returncode == 0 and subprocess.run([str(folder / "empty")], capture_output=True).returncode == 0
    return "" if ran else f"needs a {COMPILER} with sanitizers"


def test_bfloat16_without_tensor_cores_matches_the_oracle(on_cpu: OnCpu) -> None:
    """On sm_75, which has tensor cores for float16 only."""
    case = CASES["batch and references"]
    tensors = inputs(case, "bfloat16", False)
    got = on_cpu.run(planned(case, "bfloat16"), tensors, case.windows, flags=("-DCORRFLOW_WITHOUT_TENSOR_CORES",))
    assert difference(got, expected_of(case, tensors, oracle)) < TOLERANCE["bfloat16"]


@st.composite
def any_case(draw: st.DrawFn) -> Case:
    K = draw(st.integers(1, 3))
    count = 1 if draw(st.booleans()) else K
    radius = tuple(draw(st.integers(0, 4)) for _ in range(count))
    dilation = tuple(draw(st.integers(1, 3)) for _ in range(count))
    # Division by these temperatures is exact, so equal scores stay equal in any order of the arithmetic.
    attributes = Attributes(radius, dilation, draw(st.integers(0, 12)), draw(st.sampled_from([0.25, 1.0, 4.0])))
    B, C, N, H, W = (draw(st.integers(1, high)) for high in (2, 20, 5, 19, 19))
    return Case(B, K, C, N, H, W, attributes)


@settings(max_examples=12, deadline=None)
@given(
    case=any_case(),
    dtype=st.sampled_from(["float32", "float16"]),
    seed=st.integers(0, 2**31),
    order=st.integers(0, 100),
    integers=st.booleans(),
)
def test_the_kernel_matches_the_oracle_for_any_shape(
    on_cpu: OnCpu, case: Case, dtype: Dtype, seed: int, order: int, integers: bool
) -> None:
    tensors = inputs(case, dtype, integers, seed)
    got = on_cpu.run(planned(case, dtype), tensors, case.windows, order)
    # Temperature 1/4 gives scores up to 100, whose last bits change the exponent by 1e-5.
    assert difference(got, expected_of(case, tensors, oracle)) < max(1e-4, TOLERANCE[dtype])


@st.composite
def indexed_case(draw: st.DrawFn) -> Case:
    """Frames with several rows or none, offsets within the frame and beyond, unused rows; few different kernels."""
    K, H, W = draw(st.integers(1, 3)), draw(st.integers(1, 19)), draw(st.integers(1, 35))
    offset = st.one_of(st.integers(-20, 20), st.integers(-40, 40), st.sampled_from([-MAX_OFFSET, MAX_OFFSET]))
    # A frame index of K makes the row unused as well.
    row = st.builds(SearchWindow, st.integers(-1, K), st.integers(0, 3), offset, offset)
    rows = draw(st.lists(row, max_size=5))
    used = SearchWindow(draw(st.integers(0, K - 1)), 0, draw(offset), draw(offset))
    rows.insert(draw(st.integers(0, len(rows))), used)
    attributes = draw(
        st.sampled_from([Attributes((2, 1), (1, 3)), Attributes((3,), (2, 1), 7), Attributes((9, 2), (2, 1), 3)])
    )
    return Case(draw(st.integers(1, 2)), K, 9, 3, H, W, attributes, tuple(rows))


@settings(max_examples=100, deadline=None)
@given(
    case=indexed_case(),
    dtype=st.sampled_from(["float32", "float16"]),
    seed=st.integers(0, 2**31),
    order=st.integers(0, 100),
)
def test_the_kernel_searches_named_references_as_the_oracle_does(
    on_cpu: OnCpu, case: Case, dtype: Dtype, seed: int, order: int
) -> None:
    query, keys, values = inputs(case, dtype, True, seed)
    for frame in set(range(case.K)) - {each.frame for each in case.references}:
        keys[:, frame] = values[:, frame] = np.nan  # as unwritten memory
    got = on_cpu.run(planned(case, dtype), (query, keys, values), case.windows, order)
    valid = replace(case, references=tuple(each for each in case.references if each.frame < case.K))
    assert difference(got, expected_of(valid, (query, keys, values), oracle)) < max(1e-4, TOLERANCE[dtype])


@pytest.fixture
def gpu(on_cpu: OnCpu) -> kernel.OnGpu:
    """Simulated GPU: memory in NumPy arrays, launches as runs of the kernel's source on the CPU."""
    cuda = fakes.Cuda()
    return kernel.OnGpu(CudaDevice(cuda, core_on_cpu(fakes, cuda, on_cpu.folder)))


@pytest.mark.parametrize("ties", [False, True], ids=["no ties", "ties"])
@pytest.mark.parametrize("dtype", kernel.DTYPES)
@pytest.mark.parametrize("name", ["window per reference, top_k", "batch and references", "indexed, top_k"])
def test_the_comparison_on_a_gpu_accepts_the_kernel(
    name: str, dtype: Dtype, ties: bool, gpu: kernel.OnGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    for with_fused in (True, False):
        if not with_fused:
            monkeypatch.setattr(cpu, "unavailable", lambda: "not built")
        agreement = kernel.compare(gpu, ALL_CASES[name], dtype, ties)
        assert agreement.holds and agreement.largest < TOLERANCE[dtype]


def test_the_command_for_the_gpu_prints_times_and_fails_for_a_wrong_kernel(
    gpu: kernel.OnGpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(kernel, "OnGpu", lambda: gpu)
    monkeypatch.setattr(kernel, "CASES", {name: CASES[name] for name in ("top_k", "one cell")})
    monkeypatch.setattr(kernel, "INDEXED_CASES", {"indexed": INDEXED_CASES["indexed"]})
    monkeypatch.setattr(kernel, "TIMED", {"top_k": CASES["top_k"]})
    on_cpu = kernel.on_cpu
    for error, code in ((0.0, 0), (0.01, 1)):
        monkeypatch.setattr(kernel, "on_cpu", lambda *arguments, error=error: on_cpu(*arguments) + error)
        done = CliRunner().invoke(bench, ["kernel", "--runs", "1", "--json", str(tmp_path / "kernel.json")])
        assert done.exit_code == code, done.output
        report = json.loads((tmp_path / "kernel.json").read_text())
        assert all(each["holds"] == (not code) for each in report["agreement"])
        assert [each["dtype"] for each in report["times"]] == list(kernel.DTYPES)
        assert "ms per launch: top_k, float16" in done.output
        gpu.device._stream, gpu.device.stream = 77, 77  # the command has closed the device
