"""Export of a checkpoint to an artifact: build the graphs, compare them with PyTorch, write them."""

from __future__ import annotations

import logging
import re
import tempfile
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from corrflow.errors import InputError
from corrflow.export.encoder_graph import EncoderPair, encode_model
from corrflow.export.parity import Difference, differences, enforce
from corrflow.export.quantize import QuantisedEncoder, quantise
from corrflow.export.step_graph import graphs_of_settings
from corrflow.runtime.artifacts.artifact import ENCODE, ENCODE_FP16, ENCODE_FP32, ENCODE_INT8, save_artifact
from corrflow.runtime.settings import TrackingSettings
from corrflow.train.checkpoint import Checkpoint, load_checkpoint
from corrflow.train.config import ModelConfig, preset, train_config
from corrflow.train.model import Encoder, new_encoder

RANDOM_INIT = "random-init:"
ODD_SIZE = (117, 203)  # not divisible by stride or tile size


@dataclass(frozen=True)
class ExportReport:
    """Measurements of an export.

    differences: difference of each graph from PyTorch
    quantised:   8-bit encoder, if requested; the artifact contains it if it is faster
    scores:      mean J&F of the floating-point and the 8-bit artifact, 0..1, if a data set was given
    """

    differences: list[Difference]
    quantised: QuantisedEncoder | None = None
    scores: tuple[float, float] | None = None


def read_encoder(
    source: str, colour_share: float | None = None, coarse_share: float | None = None
) -> tuple[Encoder, dict[str, Any]]:
    """Load the encoder of a run folder or checkpoint file, or initialise one; return it with its provenance.

    source: path, "random-init:PRESET" (seed 0) or "random-init:PRESET:SEED"
    colour_share, coarse_share: None for the values of training; they have no weights, so all values are possible
    Raises InputError if there is no encoder.
    """

    def shape(model: ModelConfig) -> ModelConfig:
        shares = {"colour_share": colour_share, "coarse_share": coarse_share}
        return replace(model, **{name: share for name, share in shares.items() if share is not None})

    if source.startswith(RANDOM_INIT):
        name, seed = _parse_random_init(source)
        model = shape(preset(name))
        return new_encoder(model, seed), {"model": asdict(model), "random_init": True, "seed": seed}
    checkpoint: Checkpoint = load_checkpoint(Path(source))
    _check_finite(source, checkpoint)
    checkpoint = replace(checkpoint, model=shape(checkpoint.model))
    provenance = {
        "model": asdict(checkpoint.model),
        "train": asdict(checkpoint.train),
        "steps": checkpoint.step,
        **checkpoint.provenance,
    }
    return checkpoint.encoder(), provenance


def _check_finite(source: str, checkpoint: Checkpoint) -> None:
    """Raise InputError for the weights of a run that diverged, whose features are undefined everywhere."""
    for name, weights in checkpoint.encoder().state_dict().items():
        if weights.is_floating_point() and not weights.isfinite().all():
            raise InputError(
                f"expected finite weights in {source}, got NaN or infinity in {name} at step {checkpoint.step}, "
                "because training diverged; export an earlier checkpoint, or train with a smaller --lr"
            )


def _parse_random_init(source: str) -> tuple[str, int]:
    """Parse "random-init:PRESET" (seed 0) or "random-init:PRESET:SEED" to preset and seed."""
    name, _, seed = source.removeprefix(RANDOM_INIT).partition(":")
    if seed and not re.fullmatch("[0-9]{1,9}", seed):
        raise InputError(f"expected random-init:PRESET or random-init:PRESET:SEED, got {source}; give a seed from 0 on")
    return name, int(seed or 0)


def trained_temperature(source: str) -> float:
    """Return the softmax temperature of training, or the default of the preset for a randomly initialised encoder."""
    if source.startswith(RANDOM_INIT):
        name, _ = _parse_random_init(source)
        preset(name)
        return train_config(name, {}, []).temperature
    return load_checkpoint(Path(source)).train.temperature


def export_artifact(
    source: str,
    artifact: Path,
    settings: TrackingSettings,
    size: tuple[int, int],
    calibration_data: Path | None = None,
    davis: tuple[Path, str] | None = None,
    colour_share: float | None = None,
    coarse_share: float | None = None,
    beside: tuple[str, float] | None = None,
) -> ExportReport:
    """Write the artifact of a run, and return its measurements.

    size: (height, width) of the comparison, besides ODD_SIZE
    calibration_data: folder of clips for quantisation; the 8-bit encoder replaces encode.onnx if it is faster, and
               TensorRT's 8-bit encoder is always written
    davis: root and split of a data set to score both encoders on
    colour_share, coarse_share: see ModelConfig; None for the values of the run
    beside: source of a second encoder, and the weight of its features among the learned ones, see EncoderPair

    Raises CorrflowError if graphs differ from PyTorch, and InputError for a wrong run or settings; both write nothing.
    """
    encoder, provenance = read_encoder(source, colour_share, coarse_share)
    if beside is not None:
        second, share = beside
        other, other_provenance = read_encoder(second, colour_share=0.0)
        encoder = EncoderPair(encoder, other, share)
        provenance = {**provenance, "beside": {"share": share, **other_provenance}}
    if artifact.exists() and not artifact.is_dir():
        raise InputError(f"expected a folder to write the artifact to, got the file {artifact}; name another")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's internals
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        logging.getLogger("onnxscript").setLevel(logging.ERROR)
        encode, half = (encode_model(encoder, half).SerializeToString() for half in (False, True))
    channels = encoder.channels
    files = {ENCODE: encode, ENCODE_FP16: half} | graphs_of_settings(encode, settings, channels)
    results = differences(encoder, files, settings, [size, ODD_SIZE])
    enforce(results)
    if calibration_data is None:
        save_artifact(artifact, files, channels, settings, provenance)
        return ExportReport(results)

    quantised = quantise(files[ENCODE], calibration_data, size)
    files[ENCODE_INT8] = quantised.engine
    integer_files = files | {ENCODE: quantised.content, ENCODE_FP32: encode}
    integer_files |= graphs_of_settings(quantised.content, settings, channels)
    scores = None
    if davis is not None:
        with tempfile.TemporaryDirectory() as scratch:
            folders = Path(scratch) / "fp32", Path(scratch) / "int8"
            for folder, content in zip(folders, (files, integer_files), strict=True):
                save_artifact(folder, content, channels, settings, provenance)
            scores = _scores(folders, *davis)
    if quantised.is_faster:
        files = integer_files
        provenance = {
            **provenance,
            "quantised": {"encode": "int8", "frames": quantised.frames, "similarity": round(quantised.similarity, 4)},
        }
    save_artifact(artifact, files, channels, settings, provenance)
    return ExportReport(results, quantised, scores)


def _scores(folders: tuple[Path, Path], root: Path, split: str) -> tuple[float, float]:
    """Compute the mean J&F of both artifacts, 0..1."""
    from corrflow.evaluate.data_sets import davis_data
    from corrflow.evaluate.masks import Method, evaluate_masks
    from corrflow.evaluate.methods.methods import ArtifactEncoder, TrackerMethod
    from corrflow.evaluate.reports.report import mean_scores
    from corrflow.runtime.artifacts.artifact import load_artifact

    methods = [
        Method(path.name, TrackerMethod(ArtifactEncoder(path), load_artifact(path).settings)) for path in folders
    ]
    report = evaluate_masks(davis_data(root, split), methods, show_progress=True)
    first, second = (mean_scores(method.sequences.values())["J&F"] for method in report.methods)
    return first, second
