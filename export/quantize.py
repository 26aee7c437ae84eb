"""Static quantisation of the encoder: calibration on real frames, and measurement of accuracy and speed.

Activations are unsigned 8-bit integers; weights are signed, with one scale per output channel. Graphs use standard
QuantizeLinear and DequantizeLinear pairs, which onnxruntime fuses into integer convolutions. The first convolution
stays in floating point: with three input channels it is eight times slower in integer kernels, and rounding costs most
there.

TensorRT needs signed activations without zero points, so the same frames are used for a second graph.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.tracking.geometry import Geometry
from corrflow.runtime.video.open_source import IMAGE_SUFFIXES, open_source

CALIBRATION_FRAMES = 48
FRAME_INTERVAL = 10  # within a clip, because neighbouring frames are alike
MIN_SIMILARITY = 0.98
_ROUNDS = 7


@dataclass(frozen=True)
class QuantisedEncoder:
    """8-bit encoder with its accuracy and speed.

    content:    encode.onnx
    engine:     encoder for TensorRT; its features are float16, because the propagation engine works in 16 bits
    frames:     number of calibration frames
    similarity, engine_similarity: mean cosine similarity with features of the floating-point encoder, on frames that
                were not used for calibration, if there are any
    seconds, seconds_float: median time to encode a frame of the working size on this machine
    """

    content: bytes
    engine: bytes
    frames: int
    similarity: float
    engine_similarity: float
    seconds: float
    seconds_float: float

    @property
    def is_faster(self) -> bool:
        return self.seconds < self.seconds_float


def quantise(encode: bytes, folder: Path, size: tuple[int, int]) -> QuantisedEncoder:
    """Quantise encode.onnx on the frames in a folder, and measure accuracy and speed.

    size: working size (height, width). Raises InputError for a folder without frames, CorrflowError if the 8-bit
    features differ too much from those of the original encoder.
    """
    frames = calibration_frames(folder, min(size))
    calibration, test = _split(frames)
    engine, engine_similarity = quantise_for_tensorrt(encode, frames)
    content = _quantised(encode, calibration)
    original, integer = _session(encode), _session(content)
    similarity = _similar_enough(original, integer, test)
    frame = cv2.resize(test[0], size[::-1], interpolation=cv2.INTER_LINEAR)
    seconds_float, seconds = _seconds_in_turn([original, integer], frame)
    return QuantisedEncoder(content, engine, len(calibration), similarity, engine_similarity, seconds, seconds_float)


def quantise_for_tensorrt(encode: bytes, frames: Sequence[np.ndarray]) -> tuple[bytes, float]:
    """Quantise encode.onnx for TensorRT on frames [H, W, 3] uint8, BGR; return the graph and its `engine_similarity`.

    Raises CorrflowError if its features differ too much from those of the original encoder.
    """
    calibration, test = _split(frames)
    engine = _half_features(_quantised(encode, calibration, for_tensorrt=True))
    return engine, _similar_enough(_session(encode), _session(engine), test)


def _split(frames: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Split frames into calibration frames and every third frame as a test frame; all are test frames if too few."""
    return [frame for index, frame in enumerate(frames) if index % 3 != 2], list(frames[2::3] or frames)


def _similar_enough(
    original: onnxruntime.InferenceSession, integer: onnxruntime.InferenceSession, frames: Sequence[np.ndarray]
) -> float:
    """Return the mean cosine similarity of both encoders. Raises CorrflowError below MIN_SIMILARITY."""
    similarity = _similarity(original, integer, frames)
    if not similarity >= MIN_SIMILARITY:
        raise CorrflowError(
            f"expected features of 8 bits that resemble the encoder's own (mean cosine of at least {MIN_SIMILARITY}),"
            f" got {similarity:.3f}; calibrate on more frames of the kind to be tracked, or stay without int8"
        )
    return similarity


def calibration_frames(folder: Path, short_side: int) -> list[np.ndarray]:
    """Read up to CALIBRATION_FRAMES frames [H, W, 3] uint8, BGR, spread over the clips of a folder, at `short_side`.

    The folder holds videos, folders of images, or images. Raises InputError if no frame can be read.
    """
    if not folder.is_dir():
        raise InputError(f"expected --calibration-data to name a folder of videos or images, got {folder}")
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    images = [path for path in entries if path.suffix.lower() in IMAGE_SUFFIXES]
    clips = [path for path in entries if path not in images]
    frames = []
    each = -(-CALIBRATION_FRAMES // max(1, len(clips) + len(images)))
    for source in _spread(images, CALIBRATION_FRAMES) + _spread(clips, CALIBRATION_FRAMES):
        try:
            frames += [Geometry.of(image.shape[:2], short_side).resize(image) for image in _some_frames(source, each)]
        except CorrflowError:
            continue  # a text file beside the clips, or a damaged one
    if not frames:
        raise InputError(f"expected videos or images in {folder}, got none that can be read; name another folder")
    return _spread(frames, CALIBRATION_FRAMES)


def _some_frames(path: Path, count: int) -> Iterator[np.ndarray]:
    """Yield up to `count` frames of a source, FRAME_INTERVAL apart."""
    with open_source(str(path)) as source:
        for frame in source:
            if frame.index % FRAME_INTERVAL == 0:
                yield frame.image
            if frame.index >= (count - 1) * FRAME_INTERVAL:
                return


def _spread(items: Sequence, count: int) -> list:
    """Select at most `count` items, evenly spread."""
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]


class _Frames(CalibrationDataReader):
    """Calibration frames as inputs of the graph."""

    def __init__(self, frames: Sequence[np.ndarray]) -> None:
        self._frames = iter(frames)

    def get_next(self) -> dict[str, np.ndarray]:
        """Return the next input; None at the end, as in the base class."""
        frame = next(self._frames, None)
        return None if frame is None else {"frame": frame[None]}  # type: ignore[return-value]


def _quantised(encode: bytes, frames: Sequence[np.ndarray], for_tensorrt: bool = False) -> bytes:
    """Quantise a graph, calibrated on frames."""
    model = onnx.load_model_from_string(encode)
    logger, level = logging.getLogger(), logging.getLogger().level
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "encode.onnx"
        logger.setLevel(logging.ERROR)  # onnxruntime recommends a preprocessing step that these graphs do not need
        try:
            quantize_static(
                model,
                path,
                _Frames(frames),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "Relu", "Add"],
                nodes_to_exclude=_float_nodes(model),
                per_channel=True,
                activation_type=QuantType.QInt8 if for_tensorrt else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                # 7-bit weights, because sums of two products overflow on processors without VNNI.
                reduce_range=not for_tensorrt,
                # Mean of the extremes: a single extreme frame would coarsen the scale for all.
                extra_options={
                    "CalibMovingAverage": True,
                    "ActivationSymmetric": for_tensorrt,
                    "WeightSymmetric": True,
                    # TensorRT adds biases in floating point.
                    "QuantizeBias": not for_tensorrt,
                    # TensorRT quantises weights itself.
                    "AddQDQPairToWeight": for_tensorrt,
                },
            )
        finally:
            logger.setLevel(level)
        quantised = onnx.load(path)
    used = {node.domain for node in quantised.graph.node}
    opsets = [opset for opset in quantised.opset_import if opset.domain in used]
    del quantised.opset_import[:]
    quantised.opset_import.extend(opsets)
    quantised.producer_name = "corrflow"
    onnx.checker.check_model(quantised, full_check=True)
    return quantised.SerializeToString()


def _float_nodes(model: onnx.ModelProto) -> list[str]:
    """Return the names of nodes that stay in floating point.

    These are convolutions of an image, which are slower in 8 bits, and sums with a constant. The epsilon of the feature
    length is such a constant, and would be rounded to zero.
    """
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    constants = {*shapes, *(name for node in model.graph.node if node.op_type == "Constant" for name in node.output)}
    return [
        node.name
        for node in model.graph.node
        if (node.op_type == "Conv" and shapes[node.input[1]][1] == 3)
        or (node.op_type == "Add" and constants & set(node.input))
    ]


def _half_features(encode: bytes) -> bytes:
    """Cast the output of a graph, features [1, C, h, w], to float16."""
    model = onnx.load_model_from_string(encode)
    (output,) = model.graph.output
    for node in model.graph.node:
        node.output[:] = ["float_features" if name == output.name else name for name in node.output]
        node.input[:] = ["float_features" if name == output.name else name for name in node.input]
    model.graph.node.append(helper.make_node("Cast", ["float_features"], [output.name], to=TensorProto.FLOAT16))
    output.type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _similarity(
    original: onnxruntime.InferenceSession, integer: onnxruntime.InferenceSession, frames: Sequence[np.ndarray]
) -> float:
    """Return the mean cosine similarity of the features of two encoders."""
    return float(np.mean([_cosine(_features(original, frame), _features(integer, frame)) for frame in frames]))


def _session(content: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _features(session: onnxruntime.InferenceSession, frame: np.ndarray) -> np.ndarray:
    return np.asarray(session.run(None, {"frame": frame[None]})[0], np.float32)


def _cosine(left: np.ndarray, right: np.ndarray) -> float:
    """Return the mean cosine similarity of features [1, C, h, w] of the same cells."""
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(((left * right).sum(1) / np.maximum(lengths, 1e-12)).mean())


def _seconds_in_turn(sessions: Sequence[onnxruntime.InferenceSession], frame: np.ndarray) -> list[float]:
    """Return the median seconds per frame of each session. Sessions alternate, so machine load affects all equally."""
    seconds: list[list[float]] = [[] for _ in sessions]
    for _ in range(_ROUNDS):
        for times, session in zip(seconds, sessions, strict=True):
            _features(session, frame)  # warm-up of the caches
            for _ in range(3):
                start = time.perf_counter()
                _features(session, frame)
                times.append(time.perf_counter() - start)
    return [float(np.median(times)) for times in seconds]
