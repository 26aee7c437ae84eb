"""Backends for features other than a model's own: raw Lab patches, and any encoder in ONNX format.

Both put their features on the tracker's cells of 4x4 pixels, so that all encoders are compared under one protocol.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from corrflow.errors import CorrflowError, InputError
from corrflow.plugins.local_soft_copy import cpu
from corrflow.runtime.artifacts.artifact import MAX_FILE_BYTES, Artifact
from corrflow.runtime.artifacts.onnx_check import check_onnx
from corrflow.runtime.backends.memory import MemoryRing
from corrflow.runtime.backends.resize import resize
from corrflow.runtime.backends.search_plan import SearchPlan
from corrflow.runtime.settings import STRIDE, TrackingSettings

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Statistics of pixels 0..1 in RGB order, which most public encoders were trained with."""

LAB_PATCH = 3
"""Side of a raw patch in cells."""


class FeatureBackend:
    """Backend whose features [C, h, w] a subclass computes, and whose masks the fused CPU kernel propagates.

    Raises InputError where the kernel was not built.
    """

    supports_runtime_search_params = supports_window_offsets = True
    device_frames = False

    def __init__(self, name: str, settings: TrackingSettings, files: dict[str, bytes], threads: int) -> None:
        if cpu.unavailable():
            raise InputError(cpu.unavailable())
        self.name = name
        self.artifact = Artifact(name, files, channels=0, settings=settings, provenance={})
        self._threads = threads
        self._channels = 0

    def encode(self, frame: np.ndarray, working: tuple[int, int] | None = None) -> np.ndarray:
        """Encode a frame [H, W, 3] uint8, BGR: [C, ceil(h / 4), ceil(w / 4)] float32 of unit length.

        working: size (h, w) to resize the frame to; None for the frame's own size
        """
        frame = frame if working is None else resize(frame, working)
        features = np.ascontiguousarray(self.features(frame), np.float32)
        self._channels = len(features)
        return features

    def features(self, frame: np.ndarray) -> np.ndarray:
        """Compute the features of a frame of working size."""
        raise NotImplementedError

    def new_memory(self, settings: TrackingSettings, num_channels: int, cells: tuple[int, int]) -> MemoryRing:
        return MemoryRing(settings, num_channels, cells, self._channels)

    def propagate(self, query: np.ndarray, memory: MemoryRing, plan: SearchPlan) -> np.ndarray:
        """Propagate soft masks [N, h, w] float32 to a frame with features [C, h, w]."""
        batch = query[None], memory.features[None], memory.soft_masks[None]
        return cpu.local_soft_copy(*batch, plan.params, self._threads, references=plan.windows)[0]

    def close(self) -> None: ...


class LabBackend(FeatureBackend):
    """Raw colours as features: the baseline without any learning.

    The 108 numbers of a cell are the Lab patch of 3x3 cells around it, averaged over 2x2 pixels. Zero is mid-grey.
    """

    def features(self, frame: np.ndarray) -> np.ndarray:
        rows, columns = (-(-side // STRIDE) for side in frame.shape[:2])
        below, right = rows * STRIDE - frame.shape[0], columns * STRIDE - frame.shape[1]
        extended = cv2.copyMakeBorder(frame, 0, below, 0, right, cv2.BORDER_REPLICATE)
        lab = cv2.cvtColor(extended.astype(np.float32) / 255, cv2.COLOR_BGR2LAB) - np.array([50, 0, 0], np.float32)
        halves = cv2.resize(lab, (2 * columns, 2 * rows), interpolation=cv2.INTER_AREA)
        rim = LAB_PATCH - 1
        padded = cv2.copyMakeBorder(halves, rim, rim, rim, rim, cv2.BORDER_REPLICATE)
        shifted = [
            padded[y : y + 2 * rows : 2, x : x + 2 * columns : 2]
            for y in range(2 * LAB_PATCH)
            for x in range(2 * LAB_PATCH)
        ]
        return unit_length(np.concatenate(shifted, 2).transpose(2, 0, 1))


@dataclass(frozen=True)
class OnnxEncoder:
    """User's encoder in ONNX format, from an image to a feature map, and the format of its input.

    layout:    nchw, nhwc, or auto to infer the layout from the input's shape
    colours:   rgb or bgr, the order of the input's channels
    mean, std: statistics of pixels 0..1 in that order; unused for an input of uint8, which gets unchanged pixels
    """

    path: Path
    layout: str = "auto"
    colours: str = "rgb"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("layout", self.layout, ("auto", "nchw", "nhwc")),
            ("colours", self.colours, ("rgb", "bgr")),
        ):
            if value not in choices:
                raise InputError(f"expected encoder {name} among {', '.join(choices)}, got {value!r}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not np.isfinite(values).all() or (name == "std" and min(values) <= 0):
                raise InputError(f"expected an encoder {name} of three numbers, positive for std, got {values}")

    @cached_property
    def content(self) -> bytes:
        """Bytes of the checked file. Raises InputError for a file that is no ONNX model, or an unsafe model."""
        try:
            if self.path.stat().st_size > MAX_FILE_BYTES:
                raise InputError(f"{self.path} is larger than {MAX_FILE_BYTES} bytes; refused")
            content = self.path.read_bytes()
        except OSError as error:
            raise InputError(f"expected an encoder as ONNX at {self.path}, found no file ({error.strerror})") from error
        check_onnx(str(self.path), content)
        return content

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


class OnnxEncoderBackend(FeatureBackend):
    """Backend with the features of an `OnnxEncoder` on ONNX Runtime (CPU), interpolated to the tracker's cells."""

    def __init__(self, encoder: OnnxEncoder, settings: TrackingSettings, threads: int) -> None:
        super().__init__(encoder.path.stem, settings, {encoder.path.name: encoder.content}, threads)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(encoder.content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the exceptions of ONNX Runtime share no base class
            raise InputError(
                f"{encoder.path}: onnxruntime {onnxruntime.__version__} refuses it ({str(error).splitlines()[0]})"
            ) from error
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in ("tensor(float)", "tensor(uint8)"):
            got = ", ".join(f"{item.name} {item.type} {item.shape}" for item in inputs)
            raise InputError(f"{encoder.path}: expected one input, an image of float or uint8 with 4 axes, got {got}")
        self._encoder, self._input = encoder, inputs[0]
        self._first = self._channels_first(encoder.layout, inputs[0].shape)

    def _channels_first(self, layout: str, shape: list) -> bool:
        if layout != "auto":
            return layout == "nchw"
        if (shape[1] == 3) == (shape[3] == 3):
            raise InputError(
                f"{self._encoder.path}: expected an input with 3 channels in the second or the last axis, got {shape};"
                " name the layout"
            )
        return shape[1] == 3

    def features(self, frame: np.ndarray) -> np.ndarray:
        encoder, cells = self._encoder, [-(-side // STRIDE) for side in frame.shape[:2]]
        height, width = self._input.shape[2:] if self._first else self._input.shape[1:3]
        size = (
            height if isinstance(height, int) else frame.shape[0],
            width if isinstance(width, int) else frame.shape[1],
        )
        image = frame
        if size != frame.shape[:2]:
            image = cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA)
        if encoder.colours == "rgb":
            image = image[..., ::-1]
        if self._input.type == "tensor(float)":
            mean, std = (np.array(values, np.float32) for values in (encoder.mean, encoder.std))
            image = (image.astype(np.float32) / 255 - mean) / std
        image = image.transpose(2, 0, 1) if self._first else image
        try:
            output = self._session.run(None, {self._input.name: np.ascontiguousarray(image[None])})[0]
        except Exception as error:
            raise CorrflowError(
                f"{encoder.path} cannot encode an image of {size[1]}x{size[0]} ({str(error).splitlines()[0]});"
                " other --short-side may fit it"
            ) from error
        output = np.asarray(output)
        if output.ndim != 4 or len(output) != 1:
            raise CorrflowError(f"{encoder.path}: expected a feature map with 4 axes, got {list(output.shape)}")
        channels_first = output[0].astype(np.float32)
        channels_last = channels_first.transpose(2, 0, 1)
        # Height and width are the two axes whose sizes are the image's divided by one stride.
        maps = [item for item in (channels_first, channels_last) if _stride(size, item.shape[1:]) is not None]
        if not maps:
            raise CorrflowError(
                f"{encoder.path}: expected a feature map of one stride for {size[1]}x{size[0]} pixels,"
                f" got {list(output.shape)}"
            )
        stride = _stride(size, maps[0].shape[1:])
        assert stride is not None
        rows, columns = (
            _interpolation_weights(*sides, stride)
            for sides in zip(cells, frame.shape[:2], size, maps[0].shape[1:], strict=True)
        )
        return unit_length(np.matmul(np.matmul(rows, maps[0]), columns.T))


def unit_length(features: np.ndarray) -> np.ndarray:
    """Scale every cell's vector of [C, h, w] float32 to length one; a zero vector stays zero."""
    return features / np.sqrt(np.square(features).sum(0, keepdims=True) + np.float32(1e-12))


def _stride(image: tuple[int, int], features: tuple[int, ...]) -> float | None:
    """Return the stride in pixels of a feature map for the (height, width) of its image; None where the axes differ."""
    for stride in range(1, 65):
        if all(-(-side // stride) == count for side, count in zip(image, features, strict=True)):
            return stride
    down, across = (side / count for side, count in zip(image, features, strict=True))
    # A convolution without padding shortens each axis by a feature or two.
    return (down + across) / 2 if abs(down - across) <= 0.1 * max(down, across) and down >= 1 else None


def _interpolation_weights(cells: int, working: int, image: int, features: int, stride: float) -> np.ndarray:
    """Return the linear interpolation from features to cells along one axis: [cells, features] float32.

    Cell i has its centre at 4 * i + 1.5 pixels of the working frame. Feature i is assumed to lie in the middle of its
    stride, at stride * i + (stride - 1) / 2 pixels of the encoder's input.

    working, image: sides in pixels of the working frame and of the encoder's input, which may differ
    """
    centre = (STRIDE * np.arange(cells) + (STRIDE - 1) / 2 + 0.5) * image / working - 0.5
    position = ((centre - (stride - 1) / 2) / stride).clip(0, features - 1)
    lower = np.minimum(position.astype(int), max(features - 2, 0))
    weights = np.zeros((cells, features), np.float32)
    weights[np.arange(cells), lower] = 1 - (position - lower)
    if features > 1:
        weights[np.arange(cells), lower + 1] = position - lower
    return weights
