"""Plain PyTorch tracker for comparison: neither unfold nor tiles, but dense windows by gather.

Encoder, memory, window, top_k and temperature are those of the model, so the masks are nearly the same. Search windows
do not move. A few rows of queries are processed at a time, because the gathered windows of a frame do not fit memory.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx.numpy_helper
import torch
import torch.nn.functional as F
from torch import Tensor

from corrflow.errors import InputError
from corrflow.runtime.artifacts.artifact import ENCODE, Artifact
from corrflow.runtime.settings import TrackingSettings, last_frames
from corrflow.runtime.tracking.geometry import Geometry, indexed_mask
from corrflow.runtime.tracking.parts import CHANNEL_BLOCK

_WINDOW_BYTES = 64 * 2**20  # per gather


class GatherTracker:
    """Tracker of one mask; `start` and `step` take frames [H, W, 3] uint8, BGR, and return masks [H, W] uint8."""

    def __init__(self, artifact: Artifact, settings: TrackingSettings) -> None:
        permanent_frames, recent_offsets = settings.permanent_frames, settings.recent_offsets
        if permanent_frames != (0,) or not recent_offsets or recent_offsets != last_frames(len(recent_offsets)):
            raise InputError(
                f"expected the first frame and the last few as references, got permanent_frames {permanent_frames} and"
                f" recent_offsets {recent_offsets}; benchmark a model exported with --memory-frames"
            )
        self._encode = torch_encoder(artifact)
        self._settings = settings

    def start(self, frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Start with a frame and its mask [H, W] bool."""
        height, width = frame.shape[:2]
        self._geometry = Geometry.of((height, width), self._settings.short_side)
        self._upsample = self._geometry.upsampler()
        labels = torch.zeros(CHANNEL_BLOCK, *self._geometry.cells)
        labels[0] = torch.from_numpy(self._geometry.mask_to_cells(mask))
        self._memory = [(self._features(frame), labels)]
        return mask.astype(np.uint8)

    def step(self, frame: np.ndarray) -> np.ndarray:
        """Track the mask to the next frame."""
        query = self._features(frame)
        keys, values = (torch.stack(part) for part in zip(*self._memory, strict=True))
        labels = gathered_soft_copy(query, keys, values, self._settings)
        first = len(self._settings.permanent_frames)
        recent = [*self._memory[first:], (query, labels)]
        self._memory = self._memory[:first] + recent[-len(self._settings.recent_offsets) :]
        return indexed_mask([1], self._upsample(labels[:1].numpy()))

    def _features(self, frame: np.ndarray) -> Tensor:
        with torch.inference_mode():
            return self._encode(torch.from_numpy(self._geometry.resize(frame))[None])[0]


def gathered_soft_copy(query: Tensor, keys: Tensor, values: Tensor, settings: TrackingSettings) -> Tensor:
    """Compute the op without offsets: query [C, H, W], keys [K, C, H, W], values [K, N, H, W] -> [N, H, W]."""
    C, H, W = query.shape
    K, N = values.shape[:2]
    windows = []  # (frame, dy, dx) of each window position
    for k, (radius, dilation) in enumerate(settings.attributes.windows(K)):
        offsets = torch.arange(-radius, radius + 1) * dilation
        grid = torch.cartesian_prod(offsets, offsets)
        windows.append(torch.cat([torch.full((len(grid), 1), k), grid], 1))
    frame, dy, dx = torch.cat(windows).T
    all_keys = keys.permute(0, 2, 3, 1).reshape(K * H * W, C)
    all_values = values.permute(0, 2, 3, 1).reshape(K * H * W, N)
    queries = query.permute(1, 2, 0).reshape(H * W, C)
    copied = torch.empty(H * W, N)
    step = max(1, _WINDOW_BYTES // (4 * C * len(dy)))
    for first in range(0, H * W, step):
        at = torch.arange(first, min(first + step, H * W))
        y, x = at[:, None] // W + dy, at[:, None] % W + dx  # [queries, window]
        inside = (y >= 0) & (y < H) & (x >= 0) & (x < W)
        place = frame * (H * W) + y.clamp(0, H - 1) * W + x.clamp(0, W - 1)
        window = all_keys[place.flatten()].unflatten(0, place.shape)  # [queries, windows, C]
        score = torch.bmm(window, queries[at, :, None])[..., 0] / settings.temperature
        score = score.masked_fill(~inside, float("-inf"))
        if settings.top_k:
            score, order = score.topk(min(settings.top_k, score.shape[1]), 1)
            place = place.gather(1, order)
        copied[at] = (score.softmax(1)[..., None] * all_values[place]).sum(1)
    return copied.T.reshape(N, H, W)


def torch_encoder(artifact: Artifact) -> Callable[[Tensor], Tensor]:
    """Interpret encode.onnx in PyTorch: frame [1, H, W, 3] uint8, BGR -> features [1, C, h, w].

    Supports the operators of our floating-point encoders; other operators raise KeyError.
    """
    graph = onnx.load_model_from_string(artifact.with_float_encoder().files[ENCODE]).graph
    weights = {tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    nodes = [
        (
            node.op_type,
            list(node.input),
            node.output[0],
            {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute},
        )
        for node in graph.node
    ]

    def run(frame: Tensor) -> Tensor:
        tensors = {**weights, graph.input[0].name: frame}
        for operator, inputs, output, attributes in nodes:
            tensors[output] = _OPERATORS[operator]([tensors[name] for name in inputs if name], attributes)
        return tensors[graph.output[0].name]

    return run


def _convolution(inputs: list[Tensor], attributes: dict) -> Tensor:
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    assert (top, left) == (bottom, right)
    image, weight, *bias = inputs
    image = image.contiguous(memory_format=torch.channels_last)
    return F.conv2d(image, weight, bias[0] if bias else None, attributes.get("strides", [1, 1]), (top, left))


def _pad(inputs: list[Tensor], attributes: dict) -> Tensor:
    image, pads = inputs[0], inputs[1].tolist()
    top, left, bottom, right = pads[2], pads[3], pads[6], pads[7]
    return F.pad(image, (left, right, top, bottom), mode="replicate")


def _slice(inputs: list[Tensor], attributes: dict) -> Tensor:
    image, starts, ends, axes = inputs[:4]
    assert len(axes) == 1
    return image.narrow(int(axes), int(starts), int(ends) - int(starts))


def _resize(inputs: list[Tensor], attributes: dict) -> Tensor:
    image, scales = inputs
    assert attributes["mode"] == b"linear" and scales[:2].tolist() == [1, 1]
    return F.interpolate(image, scale_factor=scales[2:].tolist(), mode="bilinear", align_corners=False)


_OPERATORS: dict[str, Callable[[list[Tensor], dict], Tensor]] = {
    "Transpose": lambda inputs, attributes: inputs[0].permute(*attributes["perm"]),
    "Cast": lambda inputs, attributes: inputs[0].float(),
    "Pad": _pad,
    "Conv": _convolution,
    "Relu": lambda inputs, attributes: inputs[0].relu(),
    "Add": lambda inputs, attributes: inputs[0] + inputs[1],
    "Pow": lambda inputs, attributes: inputs[0] ** inputs[1],
    "ReduceSum": lambda inputs, attributes: inputs[0].sum(inputs[1].tolist(), keepdim=True),
    "Sqrt": lambda inputs, attributes: inputs[0].sqrt(),
    # Sizes are integers, so their division rounds down.
    "Div": lambda inputs, attributes: torch.div(
        *inputs, rounding_mode=None if inputs[0].is_floating_point() else "floor"
    ),
    "Shape": lambda inputs, attributes: torch.tensor(inputs[0].shape)[attributes["start"] : attributes["end"]],
    "Squeeze": lambda inputs, attributes: inputs[0].squeeze(),
    "Reshape": lambda inputs, attributes: inputs[0].reshape(inputs[1].tolist()),
    "Slice": _slice,
    "Resize": _resize,
    "AveragePool": lambda inputs, attributes: F.avg_pool2d(inputs[0], attributes["kernel_shape"]),
    "Mul": lambda inputs, attributes: inputs[0] * inputs[1],
    "Concat": lambda inputs, attributes: torch.cat(inputs, attributes["axis"]),
}
