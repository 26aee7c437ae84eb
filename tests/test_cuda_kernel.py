"""The CUDA kernel's own source, run on the CPU with one fibre for each thread, does what the op's definition says."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corrflow.plugins.local_soft_copy.cuda.launch import Launch, Storage, plan
from corrflow.plugins.local_soft_copy.spec import Attributes

NATIVE = Path(__file__).parent / "native"
COMPILER = os.environ.get("CXX", "g++")
OPTIONS = ["-std=c++17", "-O1", "-pipe", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-fno-strict-aliasing"]
FORWARDS, BACKWARDS, SHUFFLED = 0, 1, 7
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fsanitize-sections=shared_memory")
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
# What the op promises; bfloat16 has half a step of 2^-9 for values up to one.
TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 4e-3}

pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"no {COMPILER} here")


@dataclass(frozen=True)
class Case:
    B: int
    K: int
    C: int
    N: int
    H: int
    W: int
    attributes: Attributes


CASES = {
    "one reference": Case(1, 1, 8, 2, 12, 17, Attributes((3,))),
    "batch and references": Case(2, 3, 8, 3, 9, 11, Attributes((2,), temperature=0.5)),
    "top_k": Case(2, 2, 8, 3, 10, 9, Attributes((2,), top_k=5)),
    "top_k beyond the window": Case(1, 1, 4, 2, 5, 4, Attributes((1,), top_k=100)),
    "longest list": Case(1, 2, 4, 2, 9, 9, Attributes((3,), top_k=32)),
    "radius beyond the frame": Case(1, 2, 4, 2, 5, 4, Attributes((9,), top_k=10)),
    "radius zero": Case(1, 1, 4, 1, 3, 3, Attributes((0,))),
    "one cell": Case(1, 1, 4, 1, 1, 1, Attributes((2,), top_k=3)),
    "one row": Case(1, 1, 4, 2, 1, 19, Attributes((2,))),
    "dilation": Case(1, 2, 8, 2, 13, 8, Attributes((2,), (3,))),
    "dilation beyond the frame": Case(1, 1, 4, 2, 4, 5, Attributes((2,), (7,))),
    "several chunks of columns": Case(1, 1, 5, 2, 3, 70, Attributes((12,), (2,), top_k=6)),
    "window per reference": Case(1, 3, 8, 2, 17, 11, Attributes((3, 1, 2), (1, 2, 4))),
    "window per reference, top_k": Case(2, 2, 8, 2, 9, 11, Attributes((3, 1), (1, 3), top_k=4)),
    "last window for all further references": Case(1, 4, 8, 2, 9, 11, Attributes((3, 1), (1, 2))),
    "last window for all further references, top_k": Case(1, 3, 8, 2, 9, 11, Attributes((1,), (3, 1), top_k=4)),
    "more windows than references": Case(1, 1, 8, 2, 9, 11, Attributes((1, 4), (2, 1), top_k=4)),
    "channels and windows of the bundled model": Case(1, 3, 155, 2, 9, 18, Attributes((12,), (1, 2), 5, 4.0)),
    "several slices of channels": Case(1, 1, 128, 2, 9, 17, Attributes((12,), temperature=8.0)),
    "many classes": Case(1, 1, 8, 21, 8, 16, Attributes((2,))),
    "classes of several blocks": Case(2, 1, 8, 35, 5, 6, Attributes((1,))),
    "classes of several blocks, top_k": Case(2, 1, 8, 35, 5, 6, Attributes((1,), top_k=4)),
}


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


def planned(case: Case, storage: Storage) -> Launch:
    return plan(
        channels=case.C,
        classes=case.N,
        references=case.K,
        height=case.H,
        width=case.W,
        batch=case.B,
        attributes=case.attributes,
        storage=storage,
    )


class OnCpu:
    """Compiles a planned kernel for the CPU, once for each source, and runs it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def build(self, source: str, flags: tuple[str, ...] = ()) -> Path:
        program = self.folder / hashlib.sha256("\n".join((source, *flags)).encode()).hexdigest()[:16]
        if program.exists():
            return program
        kernel = program.with_suffix(".cu")
        kernel.write_text(source)
        threads = self.folder / f"threads{'-'.join(('', *flags)).replace('/', '')}.o"
        if not threads.exists():  # what every kernel shares, and takes longest to compile
            self.compile("-c", str(NATIVE / "threads_on_cpu.cpp"), "-o", str(threads), *flags)
        definition = f'-DKERNEL="{kernel}"'
        self.compile(definition, *flags, str(NATIVE / "kernel_on_cpu.cpp"), str(threads), "-o", str(program))
        return program

    def compile(self, *words: str) -> None:
        done = subprocess.run([COMPILER, *OPTIONS, f"-I{NATIVE}", *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]

    def run(
        self,
        launch: Launch,
        tensors: tuple[np.ndarray, np.ndarray, np.ndarray],
        order: int = FORWARDS,
        flags: tuple[str, ...] = (),
    ) -> np.ndarray:
        """[B, N, H, W] in the tensors' dtype; raises RuntimeError with what the program said where it gave up."""
        query, keys, values = tensors
        work = self.folder / "tensors"
        work.mkdir(exist_ok=True)
        for name, tensor in zip(("query", "keys", "values"), tensors, strict=True):
            tensor.tofile(work / name)
        B, _, H, W = query.shape
        numbers = (order, B, H, W, keys.shape[1], *launch.grid, launch.block[0])
        program = self.build(launch.source, flags)
        done = subprocess.run([str(program), *map(str, numbers), str(work)], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(done.stderr[-3000:])
        return np.fromfile(work / "copied", query.dtype).reshape(B, values.shape[2], H, W)


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> OnCpu:
    return OnCpu(tmp_path_factory.mktemp("kernels"))


def expected_of(case: Case, tensors: tuple[np.ndarray, ...], oracle: Callable[..., np.ndarray]) -> np.ndarray:
    attributes = case.attributes
    return oracle(*tensors, attributes.windows(case.K), attributes.top_k, attributes.temperature)


def difference(got: np.ndarray, expected: np.ndarray) -> float:
    """The largest one, infinite where a number is missing."""
    apart = np.abs(got.astype(np.float64) - expected).max()
    return float(apart) if np.isfinite(apart) else float("inf")


# On the CPU, bfloat16 differs from float16 in how numbers are read and written, and in nothing else.
IN_BFLOAT16 = ("batch and references", "top_k", "window per reference, top_k", "several slices of channels")
IN_STORAGES = [(name, storage) for storage in ("float32", "float16") for name in CASES]
IN_STORAGES += [(name, "bfloat16") for name in IN_BFLOAT16]


@pytest.mark.parametrize("integers", [False, True], ids=["no ties", "ties"])
@pytest.mark.parametrize(("name", "storage"), IN_STORAGES)
def test_the_kernel_matches_the_oracle(name: str, storage: Storage, integers: bool, on_cpu: OnCpu, oracle) -> None:
    case = CASES[name]
    tensors = inputs(case, storage, integers)
    expected = expected_of(case, tensors, oracle)
    for order in (FORWARDS, SHUFFLED):
        got = on_cpu.run(planned(case, storage), tensors, order)
        assert difference(got, expected) < TOLERANCE[storage]


@pytest.mark.parametrize("order", [BACKWARDS, SHUFFLED], ids=["backwards", "shuffled"])
def test_the_order_of_threads_changes_no_bit(order: int, on_cpu: OnCpu) -> None:
    case = CASES["batch and references"]
    for storage in ("float32", "float16"):
        tensors = inputs(case, storage, False)
        expected = on_cpu.run(planned(case, storage), tensors, FORWARDS)
        np.testing.assert_array_equal(on_cpu.run(planned(case, storage), tensors, order), expected)


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
    assert difference(on_cpu.run(whole, tensors), expected) < TOLERANCE[storage]
    planted = replace(whole, source=re.sub(rf"__sync\w+\(\);  // {re.escape(purpose)}", ";", whole.source))
    assert planted.source != whole.source

    def caught(order: int) -> bool:
        try:
            return not difference(on_cpu.run(planted, tensors, order), expected) < TOLERANCE[storage]
        except RuntimeError:
            return True  # the CPU's threads noticed themselves

    assert any(caught(order) for order in (FORWARDS, BACKWARDS, SHUFFLED))


@pytest.mark.parametrize("purpose", BARRIERS[:1])
def test_a_barrier_that_only_some_threads_reach_is_caught(purpose: str, on_cpu: OnCpu) -> None:
    case = CASES["one reference"]
    whole = planned(case, "float32")
    partial = re.sub(rf"(__sync\w+\(\);)  // {re.escape(purpose)}", r"if (warp == 0) \1", whole.source)
    with pytest.raises(RuntimeError, match="different barriers"):
        on_cpu.run(replace(whole, source=partial), inputs(case, "float32", False))


@pytest.mark.parametrize("storage", ["float32", "float16"])
@pytest.mark.parametrize(
    "name", ["batch and references", "window per reference, top_k", "several slices of channels", "one row"]
)
def test_the_kernel_is_clean_under_the_sanitizers(name: str, storage: Storage, on_cpu: OnCpu, oracle) -> None:
    if reason := missing_sanitizers(on_cpu.folder):
        pytest.skip(reason)
    case = CASES[name]
    tensors = inputs(case, storage, False)
    got = on_cpu.run(planned(case, storage), tensors, SHUFFLED, SANITIZERS)
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
        on_cpu.run(broken, inputs(case, "float32", False), flags=SANITIZERS)


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
    got = on_cpu.run(planned(case, "bfloat16"), tensors, flags=("-DCORRFLOW_WITHOUT_TENSOR_CORES",))
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
    got = on_cpu.run(planned(case, storage), tensors, order)
    # Scores of up to 100 after a temperature of 1/4: their last bits are 1e-5 of the exponent.
    assert difference(got, expected_of(case, tensors, oracle)) < max(1e-4, TOLERANCE[storage])
