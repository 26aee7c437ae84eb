"""Any encoder in ONNX format: description of its input, safety check, and features on a grid of cells."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from corrflow.errors import CorrflowError, InputError
from corrflow.file_budget import read_bytes
from corrflow.runtime.artifacts.artifact import MAX_FILE_BYTES
from corrflow.runtime.artifacts.onnx_check import check_onnx
from corrflow.runtime.backends.bounded_session import open_session
from corrflow.runtime.backends.resize import linear_weights

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Statistics of pixels 0..1 in RGB order, which most public encoders were trained with."""

MAX_BATCH = 16
"""Largest number of images that a graph of any batch size gets at once, which bounds its memory."""


@dataclass(frozen=True)
class OnnxEncoder:
    """Encoder in ONNX format, from an image to a feature map, and the format of its input.

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
            content = read_bytes(self.path, MAX_FILE_BYTES)
        except OSError as error:
            raise InputError(f"expected an encoder as ONNX at {self.path}, found no file ({error.strerror})") from error
        check_onnx(str(self.path), content)
        return content

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


def three_numbers(option: str, text: str) -> tuple[float, ...]:
    """Parse numbers with commas, one for each channel; raise InputError that names the option."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"expected {option} as three numbers with commas, got {text!r}") from error


@dataclass(frozen=True)
class FeatureMaps:
    """Feature maps of images, at the encoder's own stride.

    maps:   [B, C, h, w] float32, of any length
    size:   height and width of the encoder's input, to which the images were resized
    stride: pixels of that input between features
    """

    maps: np.ndarray
    size: tuple[int, int]
    stride: float

    def on_cells(self, image: tuple[int, int], cell: int) -> np.ndarray:
        """Interpolate to cells of `cell` pixels of the images of size (height, width): [B, C, rows, columns] float32.

        The last cells of an image whose side is no multiple of `cell` are complete.
        """
        rows, columns = (
            interpolation_weights(-(-side // cell), cell, side, resized, features, self.stride)
            for side, resized, features in zip(image, self.size, self.maps.shape[2:], strict=True)
        )
        return np.matmul(np.matmul(rows, self.maps), columns.T)


class OnnxEncoderSession:
    """Session of ONNX Runtime with an `OnnxEncoder`.

    content: bytes of a checked graph, for an encoder that is no file

    Raises InputError for a graph that is no encoder of images.
    """

    def __init__(self, encoder: OnnxEncoder, threads: int, content: bytes | None = None) -> None:
        import onnxruntime

        try:
            self._session = open_session(content or encoder.content, threads)
        except Exception as error:  # the exceptions of ONNX Runtime share no base class
            raise InputError(
                f"{encoder.path}: onnxruntime {onnxruntime.__version__} refuses it ({str(error).splitlines()[0]})"
            ) from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in ("tensor(float)", "tensor(uint8)"):
            got = ", ".join(f"{item.name} {item.type} {item.shape}" for item in inputs)
            raise InputError(f"{encoder.path}: expected one input, an image of float or uint8 with 4 axes, got {got}")
        if len(outputs) != 1:
            got = ", ".join(item.name for item in outputs)
            raise InputError(
                f"{encoder.path}: expected one output, a feature map, got {len(outputs)} ({got}); keep one of them"
            )
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

    def maps(self, images: np.ndarray) -> FeatureMaps:
        """Compute the feature maps of images [B, H, W, 3] uint8, BGR. Raises CorrflowError where there are none."""
        encoder, shape = self._encoder, self._input.shape
        height, width = shape[2:] if self._first else shape[1:3]
        size = (
            height if isinstance(height, int) else images.shape[1],
            width if isinstance(width, int) else images.shape[2],
        )
        if size != images.shape[1:3]:
            images = np.stack([cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA) for image in images])
        if encoder.colours == "rgb":
            images = images[..., ::-1]
        if self._input.type == "tensor(float)":
            mean, std = (np.array(values, np.float32) for values in (encoder.mean, encoder.std))
            images = (images.astype(np.float32) / 255 - mean) / std
        images = images.transpose(0, 3, 1, 2) if self._first else images
        fixed = isinstance(shape[0], int)
        batch = shape[0] if fixed else MAX_BATCH
        parts = [
            self._run(images[start : start + batch], size, batch if fixed else None)
            for start in range(0, len(images), batch)
        ]
        channels_first = np.concatenate(parts).astype(np.float32)
        # Height and width are the two axes whose sizes are the image's divided by one stride.
        for maps in (channels_first, channels_first.transpose(0, 3, 1, 2)):
            stride = _stride(size, maps.shape[2:])
            if stride is not None:
                return FeatureMaps(maps, size, stride)
        raise CorrflowError(
            f"{encoder.path}: expected a feature map of one stride for {size[1]}x{size[0]} pixels,"
            f" got {[1, *channels_first.shape[1:]]}"
        )

    def _run(self, images: np.ndarray, size: tuple[int, int], batch: int | None) -> np.ndarray:
        """Run the graph on images in its own format; a graph of a fixed batch gets zeros for missing images."""
        count = len(images)
        if batch is not None and count < batch:
            images = np.concatenate([images, np.zeros((batch - count, *images.shape[1:]), images.dtype)])
        try:
            output = self._session.run(None, {self._input.name: np.ascontiguousarray(images)})[0]
        except Exception as error:
            raise CorrflowError(
                f"{self._encoder.path} cannot encode an image of {size[1]}x{size[0]} ({str(error).splitlines()[0]});"
                " another size of the images may fit it"
            ) from error
        output = np.asarray(output)
        if output.ndim != 4 or len(output) != len(images):
            raise CorrflowError(
                f"{self._encoder.path}: expected a feature map with 4 axes, got {list(output.shape)} for"
                f" {len(images)} {'image' if len(images) == 1 else 'images'}"
            )
        return output[:count]


def unit_length(features: np.ndarray) -> np.ndarray:
    """Scale every cell's vector of [C, h, w] float32 to length one; a zero vector stays zero."""
    return features / np.sqrt(np.square(features).sum(0, keepdims=True) + np.float32(1e-12))


def _stride(image: tuple[int, int], features: tuple[int, ...]) -> float | None:
    """Return the stride in pixels of a feature map for the (height, width) of its image; None where the axes differ."""
    for stride in range(1, 65):
        if all(-(-side // stride) == count for side, count in zip(image, features, strict=True)):
            return stride
    if 0 in features:
        return None
    down, across = (side / count for side, count in zip(image, features, strict=True))
    # A convolution without padding shortens each axis by a feature or two.
    return (down + across) / 2 if abs(down - across) <= 0.1 * max(down, across) and down >= 1 else None


def interpolation_weights(cells: int, cell: int, working: int, image: int, features: int, stride: float) -> np.ndarray:
    """Return the linear interpolation from features to cells along one axis: [cells, features] float32.

    Cell i has its centre at cell * i + (cell - 1) / 2 pixels of the working frame. Feature i is assumed to lie in the
    middle of its stride, at stride * i + (stride - 1) / 2 pixels of the encoder's input.

    working, image: sides in pixels of the working frame and of the encoder's input, which may differ
    """
    centre = (cell * np.arange(cells) + (cell - 1) / 2 + 0.5) * image / working - 0.5
    return linear_weights((centre - (stride - 1) / 2) / stride, features)[1]
