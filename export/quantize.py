"""Static quantisation: encode.onnx with 8-bit convolutions, calibrated on real frames, and what that costs and gains.

Activations are unsigned 8-bit integers and weights signed ones, one scale for each output channel, as standard
QuantizeLinear and DequantizeLinear pairs that onnxruntime fuses into integer convolutions when it loads them. The first
convolution stays in floating point: its three input channels are too few for the integer kernels, which take eight
times as long for it, and it is where rounding would cost most.

TensorRT wants other 8 bits than a processor: signed activations and no zero points. So the same frames make two graphs.
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
from corrflow.runtime.video.open_source import PICTURE_SUFFIXES, open_source

CALIBRATION_FRAMES = 48
FRAMES_APART = 10  # of one clip, since neighbouring frames say the same
LEAST_SIMILARITY = 0.98
_ROUNDS = 7


@dataclass(frozen=True)
class Quantised:
    """An 8-bit encoder and what it is worth.

    content:    encode.onnx
    engine:     the encoder for TensorRT; its features are float16, as what it is followed by works in 16 bits
    frames:     how many both were calibrated on
    similarity, engine_similarity: mean cosine between features of 8 bits and the floating-point encoder's, on other
                frames where there are any
    seconds, seconds_float: of encoding a frame of the working size here, medians in turn
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


def quantise(encode: bytes, folder: Path, size: tuple[int, int]) -> Quantised:
    """Quantise encode.onnx on the frames in a folder and measure it against the original.

    size: (height, width) worked at. Raises InputError where the folder holds no frames, CorrflowError where features of
    8 bits are too far from the original's.
    """
    frames = calibration_frames(folder, min(size))
    fitted, asked = _kept_back(frames)
    engine, engine_similarity = quantise_for_tensorrt(encode, frames)
    content = _quantised(encode, fitted)
    original, integer = _session(encode), _session(content)
    similarity = _similar_enough(original, integer, asked)
    frame = cv2.resize(asked[0], size[::-1], interpolation=cv2.INTER_LINEAR)
    seconds_float, seconds = _seconds_in_turn([original, integer], frame)
    return Quantised(content, engine, len(fitted), similarity, engine_similarity, seconds, seconds_float)


def quantise_for_tensorrt(encode: bytes, frames: Sequence[np.ndarray]) -> tuple[bytes, float]:
    """TensorRT's encoder of 8 bits, made of encode.onnx and frames [H, W, 3] uint8, BGR, and its `engine_similarity`.

    Raises CorrflowError where its features are too far from the original's.
    """
    fitted, asked = _kept_back(frames)
    engine = _half_features(_quantised(encode, fitted, for_tensorrt=True))
    return engine, _similar_enough(_session(encode), _session(engine), asked)


def _kept_back(frames: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Frames to fit scales to, and every third, to be asked about features that no scale was fitted to."""
    return [frame for index, frame in enumerate(frames) if index % 3 != 2], list(frames[2::3] or frames)


def _similar_enough(
    original: onnxruntime.InferenceSession, integer: onnxruntime.InferenceSession, frames: Sequence[np.ndarray]
) -> float:
    """Mean cosine between the features of both; raises CorrflowError where it is too small."""
    similarity = _similarity(original, integer, frames)
    if not similarity >= LEAST_SIMILARITY:
        raise CorrflowError(
            f"expected features of 8 bits that resemble the encoder's own (mean cosine of at least {LEAST_SIMILARITY}),"
            f" got {similarity:.3f}; calibrate on more frames of the kind to be tracked, or stay without int8"
        )
    return similarity


def calibration_frames(folder: Path, rows: int) -> list[np.ndarray]:
    """Up to CALIBRATION_FRAMES frames [H, W, 3] uint8, BGR, spread over a folder's clips, at most `rows` high or wide.

    The folder holds videos, folders of pictures, or pictures. Raises InputError where no frame can be read from it.
    """
    if not folder.is_dir():
        raise InputError(f"expected --calibration-data to name a folder of videos or pictures, got {folder}")
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    pictures = [path for path in entries if path.suffix.lower() in PICTURE_SUFFIXES]
    clips = [path for path in entries if path not in pictures]
    frames = []
    each = -(-CALIBRATION_FRAMES // max(1, len(clips) + len(pictures)))
    for source in _spread(pictures, CALIBRATION_FRAMES) + _spread(clips, CALIBRATION_FRAMES):
        try:
            frames += [Geometry.of(image.shape[:2], rows).shrink(image) for image in _some_frames(source, each)]
        except CorrflowError:
            continue  # a text file beside the clips, or a damaged one
    if not frames:
        raise InputError(f"expected videos or pictures in {folder}, got none that can be read; name another folder")
    return _spread(frames, CALIBRATION_FRAMES)


def _some_frames(path: Path, count: int) -> Iterator[np.ndarray]:
    with open_source(str(path)) as source:
        for frame in source:
            if frame.index % FRAMES_APART == 0:
                yield frame.image
            if frame.index >= (count - 1) * FRAMES_APART:
                return


def _spread(items: Sequence, count: int) -> list:
    """At most `count` items, evenly spread."""
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]


class _Frames(CalibrationDataReader):
    def __init__(self, frames: Sequence[np.ndarray]) -> None:
        self._frames = iter(frames)

    def get_next(self) -> dict[str, np.ndarray]:
        """The next frame as the graph takes it; None, as the base class has it, at the end."""
        frame = next(self._frames, None)
        return None if frame is None else {"frame": frame[None]}  # type: ignore[return-value]


def _quantised(encode: bytes, frames: Sequence[np.ndarray], for_tensorrt: bool = False) -> bytes:
    model = onnx.load_model_from_string(encode)
    logger, level = logging.getLogger(), logging.getLogger().level
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "encode.onnx"
        logger.setLevel(logging.ERROR)  # it recommends a preparation that has nothing to do in these graphs
        try:
            quantize_static(
                model,
                path,
                _Frames(frames),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "Relu", "Add"],
                nodes_to_exclude=_kept_in_floats(model),
                per_channel=True,
                activation_type=QuantType.QInt8 if for_tensorrt else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                # 7 bits of a weight: processors without VNNI would let sums of two products overflow.
                reduce_range=not for_tensorrt,
                # The mean of the frames' extremes: one frame's would take the resolution from all others.
                extra_options={
                    "CalibMovingAverage": True,
                    "ActivationSymmetric": for_tensorrt,
                    "WeightSymmetric": True,
                    # TensorRT adds a bias in floating point, after the integer sums.
                    "QuantizeBias": not for_tensorrt,
                    # It also rounds the weights itself.
                    "AddQDQPairToWeight": for_tensorrt,
                },
            )
        finally:
            logger.setLevel(level)
        quantised = onnx.load(path)
    used = {node.domain for node in quantised.graph.node}
    kept = [opset for opset in quantised.opset_import if opset.domain in used]
    del quantised.opset_import[:]
    quantised.opset_import.extend(kept)
    quantised.producer_name = "corrflow"
    onnx.checker.check_model(quantised, full_check=True)
    return quantised.SerializeToString()


def _kept_in_floats(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that stay as they are.

    These are convolutions of a picture, which are slower in 8 bits, and sums with a constant: the one that keeps a
    length of features from being zero would itself be rounded to zero.
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
    """The graph with its features [1, C, h, w] in float16."""
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
    """Mean cosine between the features of two encoders."""
    return float(np.mean([_cosine(_features(original, frame), _features(integer, frame)) for frame in frames]))


def _session(content: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _features(session: onnxruntime.InferenceSession, frame: np.ndarray) -> np.ndarray:
    return np.asarray(session.run(None, {"frame": frame[None]})[0], np.float32)


def _cosine(left: np.ndarray, right: np.ndarray) -> float:
    """Mean cosine between features [1, C, h, w] of the same cells."""
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(((left * right).sum(1) / np.maximum(lengths, 1e-12)).mean())


def _seconds_in_turn(sessions: Sequence[onnxruntime.InferenceSession], frame: np.ndarray) -> list[float]:
    """Median seconds of a frame for each session; they take turns, so that others' load meets all alike."""
    seconds: list[list[float]] = [[] for _ in sessions]
    for _ in range(_ROUNDS):
        for own, session in zip(seconds, sessions, strict=True):
            _features(session, frame)  # fills the caches again
            for _ in range(3):
                start = time.perf_counter()
                _features(session, frame)
                own.append(time.perf_counter() - start)
    return [float(np.median(own)) for own in seconds]
