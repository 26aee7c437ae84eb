"""Every form of LocalSoftCopy matches an oracle of its definition, for all shapes and at all edges."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import torch
from helpers.oracle import oracle
from hypothesis import given, settings
from hypothesis import strategies as st

from corrflow.bench.op.cuda_kernel import CASES as EDGES
from corrflow.bench.op.cuda_kernel import Case
from corrflow.errors import InputError
from corrflow.export.propagate_graph import Sizes, propagate_model
from corrflow.plugins.local_soft_copy import cpu, torch_blocked, torch_reference
from corrflow.plugins.local_soft_copy.spec import MAX_OFFSET, UNUSED, Attributes, SearchWindow, output_shape

TOLERANCE = 1e-5  # fp32 against float64, for sums of at most a few thousand terms of size one


CASES = EDGES | {
    "top_k in one frame": Case(1, 2, 8, 3, 10, 9, Attributes((2,), top_k=5)),
    "more references than windows": Case(1, 4, 8, 2, 17, 11, Attributes((3,), (1, 2), top_k=5)),
    "fewer references than windows": Case(1, 1, 8, 2, 17, 11, Attributes((3, 1, 2), (1, 2, 4))),
}


def local_soft_copy_of(form, query, keys, values, attributes: Attributes, *references) -> np.ndarray:
    """Run a PyTorch form on NumPy arrays."""
    tensors = (torch.from_numpy(array) for array in (query, keys, values))
    return form.local_soft_copy(*tensors, attributes, *references).numpy()


def run_reference(query: np.ndarray, keys: np.ndarray, values: np.ndarray, attributes: Attributes) -> np.ndarray:
    return local_soft_copy_of(torch_reference, query, keys, values, attributes)


def run_blocked(query: np.ndarray, keys: np.ndarray, values: np.ndarray, attributes: Attributes) -> np.ndarray:
    return local_soft_copy_of(torch_blocked, query, keys, values, attributes)


def run_onnx(
    query: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    attributes: Attributes,
    references: list[SearchWindow] | None = None,
    loop: bool = True,
) -> np.ndarray:
    indexed = references is not None
    sizes = Sizes(keys.shape[1], values.shape[2], (query.shape[2], query.shape[3]), len(references or []))
    half = query.dtype == np.float16
    model = propagate_model(attributes, query.shape[1], None if loop else sizes, half, indexed_references=indexed)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rows = {"references": np.array(references, np.int32)} if indexed else {}
    batches = ({"query": query[[b]], "keys": keys[[b]], "values": values[[b]]} | rows for b in range(len(query)))
    return np.concatenate([np.asarray(session.run(None, batch)[0]) for batch in batches])


def fused(kernel: str) -> Callable[..., np.ndarray]:
    """Return the compiled form with one of its kernels, on two threads."""

    def run(query: np.ndarray, keys: np.ndarray, values: np.ndarray, attributes: Attributes) -> np.ndarray:
        return cpu.local_soft_copy(query, keys, values, attributes, threads=2, kernel=kernel)

    return run


FUSED = {f"cpu {kernel}": fused(kernel) for kernel in cpu.kernels()}
FORMS: dict[str, Callable[..., np.ndarray]] = {
    "torch_reference": run_reference,
    "torch_blocked": run_blocked,
    "onnx_function": run_onnx,
    "onnx_function, unrolled": functools.partial(run_onnx, loop=False),
    **FUSED,
}


def inputs(case: Case, seed: int = 0, integers: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make query, keys and values. integers: features are small integers, which give equal scores."""
    generator = np.random.default_rng(seed)
    shapes = [(case.B, case.C, case.H, case.W), (case.B, case.K, case.C, case.H, case.W)]
    query, keys = (
        generator.integers(-1, 2, shape) if integers else generator.standard_normal(shape) for shape in shapes
    )
    values = generator.random((case.B, case.K, case.N, case.H, case.W))
    return query.astype(np.float32), keys.astype(np.float32), values.astype(np.float32)


@pytest.mark.parametrize("integers", [False, True], ids=["no ties", "ties"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_every_form_matches_the_oracle(form, case: Case, integers: bool) -> None:
    query, keys, values = inputs(case, integers=integers)
    attributes = case.attributes
    expected = oracle(query, keys, values, attributes.windows(case.K), attributes.top_k, attributes.temperature)
    got = form(query, keys, values, attributes)
    assert got.shape == output_shape(query.shape, keys.shape, values.shape)
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)


@st.composite
def any_case(draw: st.DrawFn) -> Case:
    K = draw(st.integers(1, 3))
    shared = draw(st.booleans())
    count = 1 if shared else K
    radius = tuple(draw(st.integers(0, 4)) for _ in range(count))
    dilation = tuple(draw(st.integers(1, 3)) for _ in range(count))
    # Division by these temperatures is exact, so equal scores stay equal in any order of the arithmetic.
    attributes = Attributes(radius, dilation, draw(st.integers(0, 12)), draw(st.sampled_from([0.0625, 1.0, 4.0])))
    sizes = (draw(st.integers(1, high)) for high in (2, 6, 5, 19, 19))
    B, C, N, H, W = sizes
    return Case(B, K, C, N, H, W, attributes)


@settings(max_examples=60, deadline=None)
@given(case=any_case(), seed=st.integers(0, 2**31), integers=st.booleans())
def test_torch_forms_match_the_oracle_for_any_shape(case: Case, seed: int, integers: bool) -> None:
    query, keys, values = inputs(case, seed, integers)
    attributes = case.attributes
    expected = oracle(query, keys, values, attributes.windows(case.K), attributes.top_k, attributes.temperature)
    for form in (run_reference, run_blocked, *FUSED.values()):
        # Temperature 1/16 gives scores up to 100, whose last bits change the exponent by 1e-5.
        np.testing.assert_allclose(form(query, keys, values, attributes), expected, rtol=0, atol=1e-4)


def packed(integers: np.ndarray, bits: int) -> cpu.PackedFeatures:
    """Pack integers [..., C, H, W] without scaling."""
    share = 32 // bits
    padding = [(0, 0)] * (integers.ndim - 3) + [(0, -integers.shape[-3] % share), (0, 0), (0, 0)]
    numbers = np.pad(integers.astype(np.int64), padding) + (0 if bits == 16 else 128)
    parts = np.stack([numbers[..., i::share, :, :] % 2**bits << i * bits for i in range(share)])
    return cpu.PackedFeatures(
        parts.sum(0).astype(np.uint32).view(np.int32), np.ones(integers.shape[:-3], np.float32), bits
    )


def unpacked(features: cpu.PackedFeatures, channels: int) -> np.ndarray:
    """Unpack features [D, H, W] to integers [C, H, W] as float64, without division by the scale."""
    words, bits = features.words.view(np.uint32).astype(np.int64), features.bits
    parts = [words >> i * bits & 2**bits - 1 for i in range(32 // bits)]
    numbers = np.stack(parts, 1).reshape(-1, *words.shape[1:])[:channels]
    return (numbers - 128 if bits == 8 else np.where(numbers >= 2**15, numbers - 2**16, numbers)).astype(np.float64)


@pytest.mark.parametrize("top_k", [0, 4])
@pytest.mark.parametrize("kernel", cpu.kernels())
def test_the_number_of_threads_does_not_change_the_result(kernel: str, top_k: int) -> None:
    """The frame has several panels of columns and parts of rows, divided differently for 1 and 16 threads."""
    attributes = Attributes((2, 3), (1, 2), top_k)
    query, keys, values = inputs(Case(1, 2, 3, 2, 70, 150, attributes))
    expected = run_blocked(query, keys, values, attributes)
    for threads in (1, 16):
        got = cpu.local_soft_copy(query, keys, values, attributes, threads, kernel)
        np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("kernel", cpu.kernels())
@settings(max_examples=60, deadline=None)
@given(case=any_case(), seed=st.integers(0, 2**31))
def test_packed_features_are_searched_exactly_for_any_shape(kernel, bits: int, case: Case, seed: int) -> None:
    query, keys, values = inputs(case, seed, integers=True)
    attributes = case.attributes
    expected = oracle(query, keys, values, attributes.windows(case.K), attributes.top_k, attributes.temperature)
    for b in range(case.B):
        got = cpu.packed_soft_copy(packed(query[b], bits), packed(keys[b], bits), values[b], attributes, 2, kernel)
        np.testing.assert_allclose(got, expected[b], rtol=0, atol=1e-4)


def indexed_oracle(oracle, tensors, attributes: Attributes, references: list[SearchWindow]) -> np.ndarray:
    """Compute the op with rows of `references` by the oracle."""
    used = [each for each in references if each.frame >= 0]
    windows = [attributes.windows(each.window + 1)[-1] for each in used]
    places = [(each.frame, each.dy, each.dx) for each in used]
    return oracle(*tensors, windows, attributes.top_k, attributes.temperature, places)


@st.composite
def indexed_case(draw: st.DrawFn) -> tuple[Case, list[SearchWindow]]:
    """Frames with several rows or none, windows beyond the edges of the frame, and unused rows."""
    case = draw(any_case())
    frames, offsets = st.integers(0, case.K - 1), st.one_of(st.integers(-25, 25), st.sampled_from([-900, 900]))
    window = st.builds(SearchWindow, frames, st.integers(0, 3), offsets, offsets)
    rows = draw(st.lists(st.one_of(window, window, st.just(UNUSED)), max_size=4))
    rows.insert(draw(st.integers(0, len(rows))), draw(window))
    return case, rows


@settings(max_examples=100, deadline=None)
@given(indexed=indexed_case(), seed=st.integers(0, 2**31))
def test_indexed_references_match_the_oracle_for_any_offsets(indexed, seed: int) -> None:
    case, references = indexed
    query, keys, values = inputs(case, seed, integers=True)
    attributes = case.attributes
    expected = indexed_oracle(oracle, (query, keys, values), attributes, references)
    results = [local_soft_copy_of(torch_reference, query, keys, values, attributes, references)]
    for kernel in cpu.kernels():
        results.append(cpu.local_soft_copy(query, keys, values, attributes, 2, kernel, references))
        for bits in (16, 8):
            parts = [
                cpu.packed_soft_copy(packed(a, bits), packed(b, bits), c, attributes, 2, kernel, references)
                for a, b, c in zip(query, keys, values, strict=True)
            ]
            results.append(np.stack(parts))
    for got in results:
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


def fill_unused_frames(keys: np.ndarray, values: np.ndarray, references: list[SearchWindow]) -> None:
    """Set frames without a row to NaN, as unwritten memory."""
    for frame in set(range(keys.shape[1])) - {each.frame for each in references}:
        keys[:, frame] = values[:, frame] = np.nan


@settings(max_examples=40, deadline=None)
@given(indexed=indexed_case(), seed=st.integers(0, 2**31), loop=st.booleans())
def test_the_onnx_functions_references_match_the_oracle_for_any_offsets(indexed, seed: int, loop: bool) -> None:
    case, references = indexed
    query, keys, values = inputs(case, seed, integers=True)
    fill_unused_frames(keys, values, references)
    expected = indexed_oracle(oracle, (query, keys, values), case.attributes, references)
    # A frame index of K: Python refuses the row, a graph treats it as unused.
    for rows in (references, [*references, SearchWindow(case.K)]):
        got = run_onnx(query, keys, values, case.attributes, rows, loop)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("loop", [True, False], ids=["loop", "unrolled"])
def test_half_precision_of_the_onnx_functions_references_matches_the_oracle(loop: bool) -> None:
    case = CASES["window per reference, top_k"]
    query, keys, values = (array.astype(np.float16) for array in inputs(case))
    references = [SearchWindow(1, 0, 3, -4), UNUSED, SearchWindow(0, 1), SearchWindow(1, 1, -20, 0)]
    got = run_onnx(query, keys, values, case.attributes, references, loop)
    assert got.dtype == np.float16
    expected = indexed_oracle(oracle, (query, keys, values), case.attributes, references)
    assert np.abs(got - expected).max() < 2e-3


@pytest.mark.parametrize("form", ["onnx_function", *cpu.kernels()])
@pytest.mark.parametrize("top_k", [0, 3])
def test_queries_without_any_position_get_zeros(form: str, top_k: int) -> None:
    """The window lies outside the frame for the lower rows, and inside for the upper rows."""
    attributes = Attributes((1,), top_k=top_k)
    query, keys, values = inputs(Case(1, 1, 4, 2, 9, 9, attributes))
    values += 1
    references = [SearchWindow(0, 0, 5, 0), UNUSED]
    if form == "onnx_function":
        got = run_onnx(query, keys, values, attributes, references)
    else:
        got = cpu.local_soft_copy(query, keys, values, attributes, 1, form, references)
    assert (got[:, :, :5] >= 1 - 1e-6).all() and (got[:, :, 5:] == 0).all()


@pytest.mark.parametrize("top_k", [0, 4])
@pytest.mark.parametrize("kernel", cpu.kernels())
@pytest.mark.parametrize("offset", [(0, 67), (-41, 0), (33, -70), (80, 0), (0, -151)])
def test_windows_with_offsets_across_several_panels(kernel: str, top_k: int, offset: tuple[int, int]) -> None:
    attributes = Attributes((1, 2), (1, 2), top_k)
    query, keys, values = inputs(Case(1, 2, 3, 2, 70, 150, attributes))
    references = [SearchWindow(0), SearchWindow(1, 1, *offset)]
    expected = local_soft_copy_of(torch_reference, query, keys, values, attributes, references)
    for threads in (1, 16):
        got = cpu.local_soft_copy(query, keys, values, attributes, threads, kernel, references)
        np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "references",
    [
        [],
        [UNUSED],
        [SearchWindow(1)],
        [SearchWindow(0, -1)],
        [SearchWindow(0, 0, MAX_OFFSET + 1)],
        [SearchWindow(0, 0, 0, -MAX_OFFSET - 1)],
    ],
)
def test_references_out_of_range_are_refused(references: list[SearchWindow]) -> None:
    query, keys, values = inputs(Case(1, 1, 4, 2, 5, 6, Attributes((1,))))
    with pytest.raises(InputError, match="LocalSoftCopy: expected"):
        cpu.local_soft_copy(query, keys, values, Attributes((1,)), references=references)


@pytest.mark.parametrize("bits", [16, 8])
@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 9), st.integers(1, 9)),
    size=st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e4, 1e30]),
    seed=st.integers(0, 2**31),
)
def test_packing_rounds_by_at_most_half_a_step(bits: int, shape: tuple[int, int, int], size: float, seed: int) -> None:
    features = (np.random.default_rng(seed).standard_normal(shape) * size).astype(np.float32)
    got = cpu.pack(features, bits, threads=2)
    numbers = unpacked(got, shape[0])
    assert np.abs(numbers - features.astype(np.float64) * float(got.scales)).max() < 0.51
    # Sums of products of two cells fit an int32 in any order.
    assert np.abs(numbers).max() <= (32767 if bits == 16 else 127)
    assert (numbers**2).sum(0).max() < 2**31


@pytest.mark.parametrize("channels", [3, 64, 155, 1024])
@pytest.mark.parametrize("kernel", cpu.kernels())
def test_the_largest_sums_of_packed_features_do_not_overflow(kernel: str, channels: int) -> None:
    """Equal channels give the largest possible scores."""
    features = np.full((channels, 3, 5), channels**-0.5, np.float32)
    features[:, 1, 2] *= -1
    values = (features[:1] > 0).astype(np.float32)
    for bits in (16, 8):
        query = cpu.pack(features, bits)
        keys = cpu.PackedFeatures(query.words[None], query.scales[None], bits)
        got = cpu.packed_soft_copy(query, keys, values[None], Attributes((2,), temperature=0.05), 1, kernel)
        np.testing.assert_allclose(got, values, atol=1e-6)


@pytest.mark.parametrize("top_k", [0, 5])
def test_packed_features_of_unit_length_change_the_result_little(top_k: int) -> None:
    generator = np.random.default_rng(3)
    query, keys, values = inputs(Case(1, 3, 155, 4, 20, 33, Attributes((3,))))
    query, keys = (array / np.linalg.norm(array, axis=-3, keepdims=True) for array in (query, keys))
    # Cells of the next frame are cells of this frame with little noise, as in a video.
    query += 0.02 * generator.standard_normal(query.shape).astype(np.float32)
    keys[:, 0] = query
    attributes = Attributes((3,), (1, 2), top_k, 0.07)
    expected = cpu.local_soft_copy(query, keys, values, attributes)[0]
    for bits, allowed in ((16, 2e-3), (8, 0.05)):
        parts = [cpu.pack(each, bits) for each in keys[0]]
        stacked = cpu.PackedFeatures(
            np.stack([each.words for each in parts]), np.stack([each.scales for each in parts]), bits
        )
        got = cpu.packed_soft_copy(cpu.pack(query[0], bits), stacked, values[0], attributes)
        assert np.abs(got - expected).max() < allowed


@pytest.mark.parametrize(
    ("machine", "kernels", "coarse", "fine"),
    [
        ("x86_64", ("avx2", "portable"), 16, 16),
        ("x86_64", ("avx-vnni", "avx2", "portable"), 8, 16),
        ("aarch64", ("neon-dotprod", "portable"), 8, 32),
        ("arm64", ("portable",), 32, 32),
    ],
)
def test_the_fastest_bits_are_those_of_the_processor(
    monkeypatch: pytest.MonkeyPatch, machine: str, kernels: tuple[str, ...], coarse: int, fine: int
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(cpu, "kernels", lambda: kernels)
    assert (cpu.fastest_bits(coarse=True), cpu.fastest_bits(coarse=False)) == (coarse, fine)


def test_packed_features_that_do_not_agree_are_refused() -> None:
    features = np.zeros((4, 3, 5), np.float32)
    for wrong, bits in ((features[0], 16), (features.astype(np.float64), 16), (features, 4), (features[:, :0], 8)):
        with pytest.raises(InputError, match=r"expected features \[C, H, W\] float32 to pack into 8 or 16 bits, got"):
            cpu.pack(wrong, bits)
    sixteen, eight = cpu.pack(features, 16), cpu.pack(features, 8)
    keys = cpu.PackedFeatures(sixteen.words[None], sixteen.scales[None], 16)
    with pytest.raises(InputError):
        cpu.packed_soft_copy(eight, keys, features[None, :1], Attributes((1,)))
    with pytest.raises(InputError, match="packed alike"):
        cpu.packed_soft_copy(
            cpu.PackedFeatures(sixteen.words, sixteen.scales, 8), keys, features[None, :1], Attributes((1,))
        )


@settings(max_examples=12, deadline=None)
@given(case=any_case(), seed=st.integers(0, 2**31))
def test_onnx_function_matches_the_reference_for_any_shape(case: Case, seed: int) -> None:
    query, keys, values = inputs(case, seed)
    expected = run_reference(query, keys, values, case.attributes)
    np.testing.assert_allclose(run_onnx(query, keys, values, case.attributes), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", [torch_reference, torch_blocked], ids=["torch_reference", "torch_blocked"])
def test_half_precision_accumulates_in_single(form, dtype: torch.dtype) -> None:
    tensors = [torch.from_numpy(array).to(dtype) for array in inputs(CASES["batch and references"])]
    attributes = CASES["batch and references"].attributes
    query, keys, values = tensors
    got = form.local_soft_copy(query, keys, values, attributes)
    expected = torch_reference.local_soft_copy(query.double(), keys.double(), values.double(), attributes)
    assert got.dtype == dtype
    # Only the result is rounded: half a step of values up to 1 is 2^-12 or 2^-9.
    assert (got.double() - expected).abs().max() < (2e-3 if dtype == torch.float16 else 4e-3)


@pytest.mark.parametrize("loop", [True, False], ids=["loop", "unrolled"])
def test_half_precision_of_the_onnx_function_matches_the_oracle(loop: bool) -> None:
    case = CASES["top_k"]
    query, keys, values = (array.astype(np.float16) for array in inputs(case))
    got = run_onnx(query, keys, values, case.attributes, loop=loop)
    windows = list(case.attributes.windows(case.K))
    expected = oracle(query, keys, values, windows, case.attributes.top_k, case.attributes.temperature)
    assert got.dtype == np.float16
    assert np.abs(got - expected).max() < 2e-3


@pytest.mark.parametrize(
    "attributes",
    [
        Attributes((2,)),
        Attributes((1, 2), (2, 1)),
        Attributes((2,), top_k=4),
        Attributes((2,), (3,), temperature=0.5),
        Attributes((8,)),
        Attributes((1,), (6,)),
    ],
    ids=["softmax", "window per reference", "top_k", "dilation", "whole frame", "dilation past the frame"],
)
def test_blocked_gradients_match_finite_differences(attributes: Attributes) -> None:
    torch.manual_seed(0)
    query = torch.randn(1, 3, 5, 9, dtype=torch.float64, requires_grad=True)
    keys = torch.randn(1, 2, 3, 5, 9, dtype=torch.float64, requires_grad=True)
    values = torch.rand(1, 2, 2, 5, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda q, k, v: torch_blocked.local_soft_copy(q, k, v, attributes), (query, keys, values)
    )


def test_copy_of_constant_values_is_constant() -> None:
    """The weights sum to one everywhere, including corners."""
    query, keys, _ = inputs(CASES["window per reference"])
    values = np.full((1, 3, 1, 17, 11), 0.25, np.float32)
    got = run_blocked(query, keys, values, CASES["window per reference"].attributes)
    np.testing.assert_allclose(got, 0.25, atol=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        {"radius": (-1,)},
        {"radius": ()},
        {"dilation": (0,)},
        {"top_k": -1},
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"radius": (1, 2), "dilation": (1, 2, 3)},
    ],
    ids=str,
)
def test_attributes_out_of_range_are_refused(arguments: dict) -> None:
    with pytest.raises(InputError, match="expected"):
        Attributes(**arguments)


def test_the_last_window_shape_repeats_for_all_further_windows() -> None:
    attributes = Attributes((3, 2), (1, 2))
    assert attributes.windows(1) == ((3, 1),)
    assert attributes.windows(4) == ((3, 1), (2, 2), (2, 2), (2, 2))
    assert Attributes((3,), (1, 2)).windows(3) == ((3, 1), (3, 2), (3, 2))


@pytest.mark.parametrize("form", [torch_reference, torch_blocked], ids=["torch_reference", "torch_blocked"])
def test_shapes_that_do_not_agree_are_refused(form) -> None:
    with pytest.raises(InputError, match="that agree"):
        form.local_soft_copy(
            torch.zeros(1, 4, 5, 5), torch.zeros(1, 1, 4, 5, 6), torch.zeros(1, 1, 2, 5, 5), Attributes()
        )
