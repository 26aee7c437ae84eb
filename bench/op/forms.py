"""Forms of LocalSoftCopy that the benchmark compares, and other implementations of the same search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from corrflow.plugins.local_soft_copy import cpu, torch_blocked, torch_reference
from corrflow.plugins.local_soft_copy.spec import Attributes

Call = Callable[[], np.ndarray]
UNFOLD, DENSE, BLOCKED, ONNX, SAMPLER = "unfold", "dense", "torch_blocked", "onnx function", "sampler"
# The processor's fastest kernel that is faster with 8 bits than with 16, or the usual one of other processors.
BYTES_KERNEL = next((kernel for kernel in cpu.kernels() if kernel in cpu.BYTE_KERNELS), cpu.BYTE_KERNELS[0])
TEMPERATURE = 0.07


class Unavailable(Exception):
    """Raised for a form that cannot run on this machine; the message is the reason."""


@dataclass(frozen=True)
class Case:
    """Size of the op: cells, feature channels, value channels, reference frames, window radius, top_k (0: all)."""

    rows: int = 120
    columns: int = 214
    channels: int = 64
    classes: int = 8
    references: int = 1
    radius: int = 6
    top_k: int = 0

    @property
    def attributes(self) -> Attributes:
        """Attributes of the op."""
        return Attributes((self.radius,), top_k=self.top_k, temperature=TEMPERATURE)

    @property
    def scores(self) -> int:
        """Number of window positions inside the frame, over all queries and reference frames."""

        def pairs(length: int) -> int:
            return sum(min(length - 1, at + self.radius) - max(0, at - self.radius) + 1 for at in range(length))

        return self.references * pairs(self.rows) * pairs(self.columns)

    @property
    def operations(self) -> int:
        """Number of multiplications and additions of the definition, without exponentials and comparisons."""
        queries = self.rows * self.columns
        copied = self.scores if self.top_k == 0 else min(self.scores, queries * self.top_k)
        return 2 * self.channels * self.scores + 2 * self.classes * copied

    @property
    def title(self) -> str:
        """Title of the case in tables."""
        scores = f"top {self.top_k}" if self.top_k else "all scores"
        references = f"{self.references} reference{'s' if self.references > 1 else ''}"
        return (
            f"{self.rows}x{self.columns} cells, C = {self.channels}, N = {self.classes}, {references},"
            f" radius {self.radius}, {scores}"
        )

    def description(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {**asdict(self), "scores": self.scores, "operations": self.operations}


def inputs(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make query, keys and values as in spec.py, float32, with B = 1.

    Features are smooth and of unit length, like an encoder's. Each reference frame is shifted by one or two cells, so
    that scores vary within the window as in a video.
    """
    generator = np.random.default_rng(0)
    margin = 2 * case.references
    shape = (case.channels, case.rows + margin, case.columns + margin)
    scene = generator.standard_normal(shape).astype(np.float32)
    scene = np.stack([cv2.GaussianBlur(channel, (0, 0), 1.5) for channel in scene])
    scene /= np.sqrt(np.square(scene).mean())

    def view(k: int) -> np.ndarray:
        shifted = scene[:, k : k + case.rows, 2 * k : 2 * k + case.columns]
        features = shifted + 0.3 * generator.standard_normal(shifted.shape).astype(np.float32)
        return features / np.linalg.norm(features, axis=0, keepdims=True)

    query, *keys = (view(k) for k in range(case.references + 1))
    values = generator.random((1, case.references, case.classes, case.rows, case.columns), np.float32)
    return query[None], np.stack(keys)[None], values


def forms() -> dict[str, Callable[[Case, int], Call]]:
    """Return the functions that prepare each form for a case and a number of threads; they may raise Unavailable."""
    prepare: dict[str, Callable[[Case, int], Call]] = {
        UNFOLD: lambda case, threads: _torch_call(torch_reference.local_soft_copy, case),
        DENSE: lambda case, threads: _torch_call(dense_attention, case),
        SAMPLER: lambda case, threads: _torch_call(_sampler(case), case),
        BLOCKED: lambda case, threads: _torch_call(torch_blocked.local_soft_copy, case),
        ONNX: _onnx_call,
    }
    for kernel in reversed(cpu.kernels()):
        prepare[fused_name(kernel)] = _fused(kernel, np.float32)
        prepare[f"{fused_name(kernel)} fp16"] = _fused(kernel, np.float16)
        prepare[packed_name(kernel, 16)] = _packed(kernel, 16)
    if cpu.kernels():
        prepare[packed_name(BYTES_KERNEL, 8)] = _packed(BYTES_KERNEL, 8)
    else:
        prepare["fused"] = _not_built
    return prepare


def fused_name(kernel: str) -> str:
    """Return the name of a fused form."""
    return f"fused {kernel}"


def packed_name(kernel: str, bits: int) -> str:
    """Return the name of the form with packed query and keys, which tracking uses."""
    return f"{fused_name(kernel)} {bits} bits"


def bytes_needed(name: str, case: Case) -> int:
    """Return a lower bound of a form's memory, to refuse cases that do not fit."""
    window, queries = (2 * case.radius + 1) ** 2, case.rows * case.columns
    if name == UNFOLD:  # windows, and their products with the query
        return 4 * queries * window * 2 * case.channels
    return 0


def dense_attention(query: Tensor, keys: Tensor, values: Tensor, attributes: Attributes) -> Tensor:
    """Compute attention of all positions to all others, masked outside the window: shapes as in spec.py, B = 1.

    One row of queries is computed at a time, because the scores of a whole frame of 120x214 cells need 2.6 GB. Without
    top_k it is PyTorch's fused attention, which is fast only if values are padded to the width of the features.
    """
    _, C, H, W = query.shape
    K, N = values.shape[1:3]
    (radius,), (dilation,) = attributes.radius, attributes.dilation
    all_keys = keys[0].permute(0, 2, 3, 1).flatten(0, 2).contiguous()  # [K * H * W, C]
    all_values = F.pad(values[0].permute(0, 2, 3, 1).flatten(0, 2), (0, max(0, C - N)))  # [K * H * W, at least C]
    rows, columns = torch.arange(H), torch.arange(W)
    copied = torch.empty(N, H, W)
    for y in range(H):
        row = query[0, :, y].T.contiguous()  # [W, C]
        down, across = rows - y, columns[None] - columns[:, None]
        near_rows = (down.abs() <= radius * dilation) & (down % dilation == 0)
        near_columns = (across.abs() <= radius * dilation) & (across % dilation == 0)
        near = (near_rows[None, :, None] & near_columns[:, None, :]).repeat(1, K, 1).reshape(W, K * H * W)
        if attributes.top_k:
            score = (row @ all_keys.T / attributes.temperature).masked_fill_(~near, float("-inf"))
            score, index = score.topk(min(attributes.top_k, score.shape[1]), 1)
            copied[:, y] = (score.softmax(1)[..., None] * all_values[index, :N]).sum(1).T
        else:
            batch = (tensor[None, None] for tensor in (row, all_keys, all_values))
            result = F.scaled_dot_product_attention(*batch, attn_mask=near, scale=1 / attributes.temperature)
            copied[:, y] = result[0, 0, :, :N].T
    return copied[None]


def _torch_call(form: Callable[[Tensor, Tensor, Tensor, Attributes], Tensor], case: Case) -> Call:
    query, keys, values = (torch.from_numpy(array) for array in inputs(case))

    def call() -> np.ndarray:
        with torch.inference_mode():
            return form(query, keys, values, case.attributes).numpy()

    return call


def _sampler(case: Case) -> Callable[[Tensor, Tensor, Tensor, Attributes], Tensor]:
    try:
        from spatial_correlation_sampler import spatial_correlation_sample  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise Unavailable(f"{error.name or 'spatial_correlation_sampler'} is not installed") from None

    def copy(query: Tensor, keys: Tensor, values: Tensor, attributes: Attributes) -> Tensor:
        _, K, N, H, W = values.shape
        size = 2 * attributes.radius[0] + 1
        inside = F.unfold(torch.ones(1, 1, H, W), size, padding=size // 2).reshape(size * size, H, W) > 0
        scores = [
            spatial_correlation_sample(query, keys[:, k].contiguous(), kernel_size=1, patch_size=size)
            .reshape(size * size, H, W)
            .masked_fill(~inside, float("-inf"))
            for k in range(K)
        ]
        score = torch.cat(scores) / attributes.temperature
        windows = [F.unfold(values[:, k], size, padding=size // 2).reshape(N, -1, H, W) for k in range(K)]
        value = torch.cat(windows, 1)  # [N, positions, H, W]
        if attributes.top_k:
            score, order = score.topk(min(attributes.top_k, len(score)), 0)
            value = value.gather(1, order[None].expand(N, -1, -1, -1))
        return (score.softmax(0)[None] * value).sum(1)[None]

    return copy


def _onnx_call(case: Case, threads: int) -> Call:
    try:
        import onnxruntime

        from corrflow.export.propagate_graph import propagate_model
    except ImportError as error:
        raise Unavailable(f"{error.name} is not installed") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    model = propagate_model(case.attributes, case.channels).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    query, keys, values = inputs(case)
    return lambda: np.asarray(session.run(None, {"query": query, "keys": keys, "values": values})[0])


def _fused(kernel: str, keys_type: type[np.floating]) -> Callable[[Case, int], Call]:
    def prepare(case: Case, threads: int) -> Call:
        query, keys, values = inputs(case)
        keys = keys.astype(keys_type)
        return lambda: cpu.local_soft_copy(query, keys, values, case.attributes, threads, kernel)

    return prepare


def _packed(kernel: str, bits: int) -> Callable[[Case, int], Call]:
    """Prepare as tracking does: keys are packed when a frame is added, the query is packed in the call."""

    def prepare(case: Case, threads: int) -> Call:
        if kernel not in cpu.kernels():
            raise Unavailable(f"this processor does not multiply bytes ({kernel}); tracking uses 16 bits")
        query, keys, values = inputs(case)
        packed = [cpu.pack(features, bits) for features in keys[0]]
        stacked = cpu.PackedFeatures(
            np.stack([each.words for each in packed]), np.stack([each.scales for each in packed]), bits
        )

        def call() -> np.ndarray:
            packed_query = cpu.pack(query[0], bits, threads)
            return cpu.packed_soft_copy(packed_query, stacked, values[0], case.attributes, threads, kernel)[None]

        return call

    return prepare


def _not_built(case: Case, threads: int) -> Call:
    raise Unavailable(cpu.unavailable())
