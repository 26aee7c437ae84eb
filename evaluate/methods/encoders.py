"""What a tracker may look at other than an artifact's features: raw Lab patches, or any encoder given as ONNX.

Both end on the tracker's own cells of 4x4 pixels, so that every encoder is compared under one protocol.
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
from corrflow.runtime.artifacts.artifact import LARGEST_FILE, Artifact
from corrflow.runtime.artifacts.onnx_check import check_onnx
from corrflow.runtime.backends.memory import MemoryRing
from corrflow.runtime.backends.resize import shrink
from corrflow.runtime.backends.search_plan import SearchPlan
from corrflow.runtime.settings import STRIDE, TrackingSettings

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of pixels 0..1 in RGB order, as most public encoders were trained with."""

LAB_PATCH = 3
"""Cells on a side of a raw patch."""


class FeatureBackend:
    """Fulfils `backend.Backend` for features [C, h, w] made by a function of the frame; labels by the fused kernel.

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
        """[H, W, 3] uint8, BGR, shrunk to (h, w) if given -> [C, ceil(h / 4), ceil(w / 4)] float32, of unit length."""
        frame = frame if working is None else shrink(frame, working)
        features = np.ascontiguousarray(self.features(frame), np.float32)
        self._channels = len(features)
        return features

    def features(self, frame: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def new_memory(self, settings: TrackingSettings, num_channels: int, cells: tuple[int, int]) -> MemoryRing:
        return MemoryRing(settings, num_channels, cells, self._channels)

    def propagate(self, query: np.ndarray, memory: MemoryRing, plan: SearchPlan) -> np.ndarray:
        """Features [C, h, w] -> soft masks [N, h, w] float32."""
        batch = query[None], memory.features[None], memory.soft_masks[None]
        return cpu.local_soft_copy(*batch, plan.params, self._threads, references=plan.windows)[0]

    def close(self) -> None: ...


class LabBackend(FeatureBackend):
    """Raw colours as features: the patch of 3x3 cells around each cell in Lab, one mean per 2x2 pixels, mid-grey zero.

    What a score is worth without any learning: 108 numbers a cell, of unit length.
    """

    def features(self, frame: np.ndarray) -> np.ndarray:
        rows, columns = (-(-side // STRIDE) for side in frame.shape[:2])
        below, right = rows * STRIDE - frame.shape[0], columns * STRIDE - frame.shape[1]
        whole = cv2.copyMakeBorder(frame, 0, below, 0, right, cv2.BORDER_REPLICATE)
        lab = cv2.cvtColor(whole.astype(np.float32) / 255, cv2.COLOR_BGR2LAB) - np.array([50, 0, 0], np.float32)
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
    """An encoder that a user names: picture in, feature map out, and what it expects of the picture.

    layout:    nchw or nhwc, or auto where the input's shape tells
    colours:   rgb or bgr, the order of the input's channels
    mean, std: of pixels 0..1 in that order; not used for an input of uint8, which gets the pixels as they are
    """

    path: Path
    layout: str = "auto"
    colours: str = "rgb"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        for name, given, known in (
            ("layout", self.layout, ("auto", "nchw", "nhwc")),
            ("colours", self.colours, ("rgb", "bgr")),
        ):
            if given not in known:
                raise InputError(f"expected encoder {name} among {', '.join(known)}, got {given!r}")
        for name, given in (("mean", self.mean), ("std", self.std)):
            if len(given) != 3 or not np.isfinite(given).all() or (name == "std" and min(given) <= 0):
                raise InputError(f"expected an encoder {name} of three numbers, positive for std, got {given}")

    @cached_property
    def content(self) -> bytes:
        """The checked file; raises InputError for what is no ONNX model that we would run."""
        try:
            if self.path.stat().st_size > LARGEST_FILE:
                raise InputError(f"{self.path} is larger than {LARGEST_FILE} bytes; refused")
            content = self.path.read_bytes()
        except OSError as error:
            raise InputError(f"expected an encoder as ONNX at {self.path}, found no file ({error.strerror})") from error
        check_onnx(str(self.path), content)
        return content

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


class OnnxEncoderBackend(FeatureBackend):
    """Features of an `OnnxEncoder` on ONNX Runtime (CPU), interpolated to the tracker's cells and of unit length."""

    def __init__(self, encoder: OnnxEncoder, settings: TrackingSettings, threads: int) -> None:
        super().__init__(encoder.path.stem, settings, {encoder.path.name: encoder.content}, threads)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(encoder.content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exceptions share no base class
            raise InputError(
                f"{encoder.path}: onnxruntime {onnxruntime.__version__} refuses it ({str(error).splitlines()[0]})"
            ) from error
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in ("tensor(float)", "tensor(uint8)"):
            got = ", ".join(f"{item.name} {item.type} {item.shape}" for item in inputs)
            raise InputError(f"{encoder.path}: expected one input, a picture of float or uint8 with 4 axes, got {got}")
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
        fixed = (
            height if isinstance(height, int) else frame.shape[0],
            width if isinstance(width, int) else frame.shape[1],
        )
        picture = frame
        if fixed != frame.shape[:2]:
            picture = cv2.resize(frame, fixed[::-1], interpolation=cv2.INTER_AREA)
        if encoder.colours == "rgb":
            picture = picture[..., ::-1]
        if self._input.type == "tensor(float)":
            mean, std = (np.array(values, np.float32) for values in (encoder.mean, encoder.std))
            picture = (picture.astype(np.float32) / 255 - mean) / std
        picture = picture.transpose(2, 0, 1) if self._first else picture
        try:
            found = self._session.run(None, {self._input.name: np.ascontiguousarray(picture[None])})[0]
        except Exception as error:
            raise CorrflowError(
                f"{encoder.path} cannot encode a picture of {fixed[1]}x{fixed[0]} ({str(error).splitlines()[0]});"
                " other --short-side may fit it"
            ) from error
        found = np.asarray(found)
        if found.ndim != 4 or len(found) != 1:
            raise CorrflowError(f"{encoder.path}: expected a feature map with 4 axes, got {list(found.shape)}")
        first = found[0].astype(np.float32)
        last = first.transpose(2, 0, 1)
        # The axes whose sizes are the picture's divided by one number are height and width.
        fits = [item for item in (first, last) if _stride(fixed, item.shape[1:]) is not None]
        if not fits:
            raise CorrflowError(
                f"{encoder.path}: expected a feature map of one stride for {fixed[1]}x{fixed[0]} pixels,"
                f" got {list(found.shape)}"
            )
        stride = _stride(fixed, fits[0].shape[1:])
        assert stride is not None
        rows, columns = (
            _cells_in_features(cell, side, size, count, stride)
            for cell, side, size, count in zip(cells, frame.shape[:2], fixed, fits[0].shape[1:], strict=True)
        )
        return unit_length(np.matmul(np.matmul(rows, fits[0]), columns.T))


def unit_length(features: np.ndarray) -> np.ndarray:
    """[C, h, w] float32 -> the same with every cell's vector of length one; a vector of zeros stays."""
    return features / np.sqrt(np.square(features).sum(0, keepdims=True) + np.float32(1e-12))


def _stride(picture: tuple[int, int], features: tuple[int, ...]) -> float | None:
    """Pixels from one feature to the next: the whole number that gives the map's size, or nearly one ratio; or None."""
    for stride in range(1, 65):
        if all(-(-side // stride) == count for side, count in zip(picture, features, strict=True)):
            return stride
    down, across = (side / count for side, count in zip(picture, features, strict=True))
    # Convolutions without padding lose a feature or two on each axis.
    return (down + across) / 2 if abs(down - across) <= 0.1 * max(down, across) and down >= 1 else None


def _cells_in_features(cells: int, working: int, picture: int, features: int, stride: float) -> np.ndarray:
    """[cells, features] float32: weights of the two features around each cell's centre, 4i + 1.5 working pixels.

    The working frame may have been resized to the picture. Feature i is taken to lie at stride * i + (stride - 1) / 2
    pixels of the picture, in the middle of the pixels it stands for.
    """
    centre = (STRIDE * np.arange(cells) + (STRIDE - 1) / 2 + 0.5) * picture / working - 0.5
    place = ((centre - (stride - 1) / 2) / stride).clip(0, features - 1)
    lower = np.minimum(place.astype(int), max(features - 2, 0))
    matrix = np.zeros((cells, features), np.float32)
    matrix[np.arange(cells), lower] = 1 - (place - lower)
    if features > 1:
        matrix[np.arange(cells), lower + 1] = place - lower
    return matrix
