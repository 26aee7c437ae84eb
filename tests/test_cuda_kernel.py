"""The CUDA kernel's own source, run on the CPU with one fibre for each thread, does what the op's definition says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_on_cpu import BACKWARDS, COMPILER, FORWARDS, SHUFFLED, OnCpu, core_on_cpu
from typer.testing import CliRunner

from corrflow.bench.cli import app as bench
from corrflow.bench.op import cuda_kernel as kernel
from corrflow.bench.op.cuda_kernel import CASES, NAMED_CASES, TOLERANCE, Case, planned
from corrflow.plugins.local_soft_copy import cpu
from corrflow.plugins.local_soft_copy.cuda.launch import Storage
from corrflow.plugins.local_soft_copy.spec import MOST_MOVED, Attributes, SearchWindow
from corrflow.runtime.backends.cuda_device import CudaDevice

SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fsanitize-sections=shared_memory")
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}

pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"no {COMPILER} here")


def inputs(case: Case, storage: Storage, integers: bool, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of small integers make exact ties; others make none."""
    generator = np.random.default_rng(seed)
    shapes = [(case.B, case.C, case.H, case.W), (case.B, case.K, case.C, case.H, case.W)]
    query, keys = (
        generator.integers(-1, 2, shape) if integers else generator.standard_normal(shape) for shape in shapes
    )
    values = generator.random((case.B, case.K, case.N, case.H, case.W))
    dtype = DTYPES[storage]
    return query.astype(dtype), keys.astype(dtype), values.astype(dtype)


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> OnCpu:
    return OnCpu(tmp_path_factory.mktemp("kernels"))


def expected_of(case: Case, tensors: tuple[np.ndarray, ...], oracle: Callable[..., np.ndarray]) -> np.ndarray:
    attributes, used = case.attributes, [each for each in case.rows if each.picture >= 0]
    windows = [attributes.windows(each.window + 1)[-1] for each in used]
    places = [(each.picture, each.down, each.right) for each in used]
    return oracle(*tensors, windows, attributes.top_k, attributes.temperature, places)


def difference(got: np.ndarray, expected: np.ndarray) -> float:
    """The largest one, infinite where a number is missing."""
    apart = np.abs(got.astype(np.float64) - expected).max()
    return float(apart) if np.isfinite(apart) else float("inf")


# On the CPU, bfloat16 differs from float16 in how numbers are read and written, and in nothing else.
IN_BFLOAT16 = ("batch and references", "top_k", "window per reference, top_k", "several slices of channels", "named")
ALL_CASES = CASES | NAMED_CASES
IN_STORAGES = [(name, storage) for storage in ("float32", "float16") for name in ALL_CASES]
IN_STORAGES += [(name, "bfloat16") for name in IN_BFLOAT16]


@pytest.mark.parametrize("integers", [False, True], ids=["no ties", "ties"])
@pytest.mark.parametrize(("name", "storage"), IN_STORAGES)
def test_the_kernel_matches_the_oracle(name: str, storage: Storage, integers: bool, on_cpu: OnCpu, oracle) -> None:
    case = ALL_CASES[name]
    tensors = inputs(case, storage, integers)
    expected = expected_of(case, tensors, oracle)
    for order in (FORWARDS, SHUFFLED):
        got = on_cpu.run(planned(case, storage), tensors, case.rows, order)
        assert difference(got, expected) < TOLERANCE[storage]


@pytest.mark.parametrize("order", [BACKWARDS, SHUFFLED], ids=["backwards", "shuffled"])
def test_the_order_of_threads_changes_no_bit(order: int, on_cpu: OnCpu) -> None:
    case = CASES["batch and references"]
    for storage in ("float32", "float16"):
        tensors = inputs(case, storage, False)
        expected = on_cpu.run(planned(case, storage), tensors, case.rows, FORWARDS)
        np.testing.assert_array_equal(on_cpu.run(planned(case, storage), tensors, case.rows, order), expected)


BARRIERS = re.findall(
    r"__sync\w+\(\);  // (.*)",
    planned(CASES["one reference"], "float16").source,
)


def test_every_barrier_says_what_it_is_for() -> None:
    source = re.sub(r"//.*", "", planned(CASES["one reference"], "float16").source)
    assert len(BARRIERS) == len(set(BARRIERS)) == len(re.findall(r"__sync(?:threads|warp)\(", source)) == 4


@pytest.mark.parametrize("storage", ["float32", "float16"])
@pytest.mark.parametrize("purpose", BARRIERS)
def test_a_missing_barrier_is_caught(purpose: str, storage: Storage, on_cpu: OnCpu, oracle) -> None:
    # Several slices of channels, groups of keys and rows of queries: whatever a barrier is for happens here.
    case = Case(1, 1, 128, 2, 9, 18, Attributes((12,), temperature=8.0))
    whole = planned(case, storage)
    tensors = inputs(case, storage, False)
    expected = expected_of(case, tensors, oracle)
    assert difference(on_cpu.run(whole, tensors, case.rows), expected) < TOLERANCE[storage]
    planted = replace(whole, source=re.sub(rf"__sync\w+\(\);  // {re.escape(purpose)}", ";", whole.source))
    assert planted.source != whole.source

    def caught(order: int) -> bool:
        try:
            return not difference(on_cpu.run(planted, tensors, case.rows, order), expected) < TOLERANCE[storage]
        except RuntimeError:
            return True  # the CPU's threads noticed themselves

    assert any(caught(order) for order in (FORWARDS, BACKWARDS, SHUFFLED))


@pytest.mark.parametrize("purpose", BARRIERS[:1])
def test_a_barrier_that_only_some_threads_reach_is_caught(purpose: str, on_cpu: OnCpu) -> None:
    case = CASES["one reference"]
    whole = planned(case, "float32")
    partial = re.sub(rf"(__sync\w+\(\);)  // {re.escape(purpose)}", r"if (warp == 0) \1", whole.source)
    with pytest.raises(RuntimeError, match="different barriers"):
        on_cpu.run(replace(whole, source=partial), inputs(case, "float32", False), case.rows)


@pytest.mark.parametrize("storage", ["float32", "float16"])
@pytest.mark.parametrize(
    "name",
    [
        "batch and references",
        "window per reference, top_k",
        "several slices of channels",
        "one row",
        "named",
        "named, top_k",
        "named, beyond it for some, top_k",
    ],
)
def test_the_kernel_is_clean_under_the_sanitizers(name: str, storage: Storage, on_cpu: OnCpu, oracle) -> None:
    if reason := missing_sanitizers(on_cpu.folder):
        pytest.skip(reason)
    case = ALL_CASES[name]
    tensors = inputs(case, storage, False)
    got = on_cpu.run(planned(case, storage), tensors, case.rows, SHUFFLED, SANITIZERS)
    assert difference(got, expected_of(case, tensors, oracle)) < TOLERANCE[storage]


@pytest.mark.parametrize(
    "planted",
    [("queries_here[DEPTH * QUERY_PITCH]", "queries_here[DEPTH * QUERY_PITCH - 1 - PAD]"), ("x < width;", "true;")],
    ids=["shared memory", "global memory"],
)
def test_the_sanitizers_see_an_access_beyond_an_array(planted: tuple[str, str], on_cpu: OnCpu) -> None:
    if reason := missing_sanitizers(on_cpu.folder):
        pytest.skip(reason)
    case = CASES["one cell"]
    whole = planned(case, "float32")
    broken = replace(whole, source=whole.source.replace(*planted))
    assert broken.source != whole.source
    with pytest.raises(RuntimeError, match=r"AddressSanitizer: \w+-buffer-overflow|out of bounds"):
        on_cpu.run(broken, inputs(case, "float32", False), case.rows, flags=SANITIZERS)


@cache
def missing_sanitizers(folder: Path) -> str:
    """Why the sanitizers cannot be used here, or ""; -fsanitize-sections is GCC's."""
    program = folder / "empty.cpp"
    program.write_text("int main() { return 0; }\n")
    built = subprocess.run(
        [COMPILER, *SANITIZERS, str(program), "-o", str(folder / "empty")], capture_output=True, text=True
    )
    ran = built.returncode == 0 and subprocess.run([str(folder / "empty")], capture_output=True).returncode == 0
    return "" if ran else f"{COMPILER} has no such sanitizers here"


def test_bfloat16_without_tensor_cores_matches_the_oracle(on_cpu: OnCpu, oracle) -> None:
    """What sm_75 does, which has them for float16 only."""
    case = CASES["batch and references"]
    tensors = inputs(case, "bfloat16", False)
    got = on_cpu.run(planned(case, "bfloat16"), tensors, case.rows, flags=("-DCORRFLOW_WITHOUT_TENSOR_CORES",))
    assert difference(got, expected_of(case, tensors, oracle)) < TOLERANCE["bfloat16"]


@st.composite
def any_case(draw: st.DrawFn) -> Case:
    K = draw(st.integers(1, 3))
    count = 1 if draw(st.booleans()) else K
    radius = tuple(draw(st.integers(0, 4)) for _ in range(count))
    dilation = tuple(draw(st.integers(1, 3)) for _ in range(count))
    # Temperatures that divide without rounding: ties are then ties in every order of the arithmetic.
    attributes = Attributes(radius, dilation, draw(st.integers(0, 12)), draw(st.sampled_from([0.25, 1.0, 4.0])))
    B, C, N, H, W = (draw(st.integers(1, high)) for high in (2, 20, 5, 19, 19))
    return Case(B, K, C, N, H, W, attributes)


@settings(max_examples=12, deadline=None)
@given(
    case=any_case(),
    storage=st.sampled_from(["float32", "float16"]),
    seed=st.integers(0, 2**31),
    order=st.integers(0, 100),
    integers=st.booleans(),
)
def test_the_kernel_matches_the_oracle_for_any_shape(
    on_cpu: OnCpu, oracle, case: Case, storage: Storage, seed: int, order: int, integers: bool
) -> None:
    tensors = inputs(case, storage, integers, seed)
    got = on_cpu.run(planned(case, storage), tensors, case.rows, order)
    # Scores of up to 100 after a temperature of 1/4: their last bits are 1e-5 of the exponent.
    assert difference(got, expected_of(case, tensors, oracle)) < max(1e-4, TOLERANCE[storage])


@st.composite
def named_case(draw: st.DrawFn) -> Case:
    """Pictures named several times or never, moves within the frame and out of it, unused rows; of few kernels."""
    K, H, W = draw(st.integers(1, 3)), draw(st.integers(1, 19)), draw(st.integers(1, 35))
    move = st.one_of(st.integers(-20, 20), st.integers(-40, 40), st.sampled_from([-MOST_MOVED, MOST_MOVED]))
    # A picture that there is not is left out as well.
    row = st.builds(SearchWindow, st.integers(-1, K), st.integers(0, 3), move, move)
    rows = draw(st.lists(row, max_size=5))
    rows.insert(draw(st.integers(0, len(rows))), SearchWindow(draw(st.integers(0, K - 1)), 0, draw(move), draw(move)))
    attributes = draw(
        st.sampled_from([Attributes((2, 1), (1, 3)), Attributes((3,), (2, 1), 7), Attributes((9, 2), (2, 1), 3)])
    )
    return Case(draw(st.integers(1, 2)), K, 9, 3, H, W, attributes, tuple(rows))


@settings(max_examples=100, deadline=None)
@given(
    case=named_case(),
    storage=st.sampled_from(["float32", "float16"]),
    seed=st.integers(0, 2**31),
    order=st.integers(0, 100),
)
def test_the_kernel_searches_named_references_as_the_oracle_does(
    on_cpu: OnCpu, oracle, case: Case, storage: Storage, seed: int, order: int
) -> None:
    query, keys, values = inputs(case, storage, True, seed)
    for picture in set(range(case.K)) - {each.picture for each in case.named}:
        keys[:, picture] = values[:, picture] = np.nan  # what a memory has not been given yet
    got = on_cpu.run(planned(case, storage), (query, keys, values), case.rows, order)
    there = replace(case, named=tuple(each for each in case.named if each.picture < case.K))
    assert difference(got, expected_of(there, (query, keys, values), oracle)) < max(1e-4, TOLERANCE[storage])


@pytest.fixture
def gpu(on_cpu: OnCpu, fakes: ModuleType) -> kernel.OnGpu:
    """A GPU whose memory is NumPy arrays and whose launches are runs of the kernel's source on the CPU."""
    cuda = fakes.Cuda()
    return kernel.OnGpu(CudaDevice(cuda, core_on_cpu(fakes, cuda, on_cpu.folder)))


@pytest.mark.parametrize("ties", [False, True], ids=["no ties", "ties"])
@pytest.mark.parametrize("storage", kernel.STORAGES)
@pytest.mark.parametrize("name", ["window per reference, top_k", "batch and references", "named, top_k"])
def test_what_a_gpu_is_held_against_finds_the_kernel_right(
    name: str, storage: Storage, ties: bool, gpu: kernel.OnGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    for with_fused in (True, False):
        if not with_fused:
            monkeypatch.setattr(cpu, "unavailable", lambda: "not built")
        seen = kernel.compare(gpu, ALL_CASES[name], storage, ties)
        assert seen.holds and seen.largest < TOLERANCE[storage]


def test_the_command_for_the_gpu_prints_times_and_fails_for_a_wrong_kernel(
    gpu: kernel.OnGpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(kernel, "OnGpu", lambda: gpu)
    monkeypatch.setattr(kernel, "CASES", {name: CASES[name] for name in ("top_k", "one cell")})
    monkeypatch.setattr(kernel, "NAMED_CASES", {"named": NAMED_CASES["named"]})
    monkeypatch.setattr(kernel, "TIMED", {"top_k": CASES["top_k"]})
    right = kernel.on_cpu
    for wrong, code in ((0.0, 0), (0.01, 1)):
        monkeypatch.setattr(kernel, "on_cpu", lambda *given, wrong=wrong: right(*given) + wrong)
        done = CliRunner().invoke(bench, ["kernel", "--runs", "1", "--json", str(tmp_path / "kernel.json")])
        assert done.exit_code == code, done.output
        report = json.loads((tmp_path / "kernel.json").read_text())
        assert all(one["holds"] == (not code) for one in report["agreement"])
        assert [one["storage"] for one in report["times"]] == list(kernel.STORAGES)
        assert "ms a launch: top_k, float16" in done.output
        gpu.device._stream, gpu.device.stream = 77, 77  # which the command has given back
