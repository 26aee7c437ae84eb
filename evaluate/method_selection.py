"""Methods to compare, from the options of a command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import mkdtemp

from corrflow.errors import InputError
from corrflow.evaluate.masks import Method
from corrflow.evaluate.methods.methods import (
    ArtifactEncoder,
    FeatureExtractor,
    FlowWarp,
    Identity,
    LabPatches,
    LucasKanade,
    OnnxFeatures,
    TrackerMethod,
)
from corrflow.evaluate.methods.protocols import (
    PUBLISHED,
    apply_protocol,
    apply_search,
    published_with_raw_features,
)
from corrflow.evaluate.options import MethodOptions
from corrflow.evaluate.reports.files import file_name
from corrflow.runtime.artifacts.artifact import Artifact, load_artifact
from corrflow.runtime.artifacts.bundled import resolve_model
from corrflow.runtime.backends.onnx_encoder import OnnxEncoder, three_numbers
from corrflow.runtime.settings import TrackingSettings, with_settings

BASELINES = ("identity", "lab", "flow")
POINT_BASELINES = (*BASELINES, "lk")
RANDOM_INIT = "random-init:"
ALL_PUBLISHED = "published"
"""Name of all published protocols together."""
_RAW_NOTE = (
    "protocol {protocol} was published with raw dot products; these features have unit length and are compared at the"
    " model's own temperature of {temperature:g}"
)


def select_methods(
    options: MethodOptions, model_folder: Path | None = None, known: Sequence[str] = BASELINES
) -> list[Method]:
    """Build one method for each combination of the options, and read and check every file.

    Without models, encoders and baselines the method is the default model. Baselines and encoders have the settings of
    the first model, so that methods differ by their features alone.

    model_folder: folder for models of random-init:PRESET; None for a temporary folder
    known:        baselines of the command

    Raises InputError for invalid options and files.
    """
    baselines = options.baseline or ()
    unknown = sorted(set(baselines) - set(known))
    if unknown:
        raise InputError(f"expected baselines among {', '.join(known)}, got {', '.join(unknown)}")
    names = options.model or ([] if baselines or options.encoder else ["quarter"])
    first = next((name for name in names if not name.startswith(RANDOM_INIT)), "quarter")
    settings = load_artifact(resolve_model(first)).settings

    sources: list[tuple[str, FeatureExtractor, TrackingSettings, bool]] = []
    models = [(path, load_artifact(path)) for path in (_model_path(name, first, model_folder) for name in names)]
    model_names = [model.name for _, model in models]
    for path, model in models:
        label = model.name if model_names.count(model.name) == 1 else str(path.absolute())
        sources.append((label, ArtifactEncoder(path), model.settings, _has_unit_length(model)))
    for encoder in _encoders(options):
        sources.append((encoder.path.stem, OnnxFeatures(encoder), settings, True))
    if "lab" in baselines:
        sources.append(("lab", LabPatches(), settings, True))

    methods = [
        _tracker_method(label, source, with_settings(own, options.short_side), protocol, unit_length)
        for label, source, own, unit_length in sources
        for protocol in _protocols(options)
    ]
    if "lk" in baselines:
        methods.append(Method("lk", LucasKanade()))
    if "flow" in baselines:
        methods.append(Method("flow", FlowWarp()))
    if "identity" in baselines:
        methods.append(Method("identity", Identity()))
    labels = [method.label for method in methods]
    repeated = sorted({label for label in labels if labels.count(label) > 1})
    if repeated:
        raise InputError(f"expected every method once, got {', '.join(repeated)} twice; rename a file or leave one out")
    return methods


def model_method(name: str, protocol: str) -> tuple[TrackerMethod, Path]:
    """Return the tracker of a model, by name or path, under a protocol, and the model's path."""
    path = resolve_model(name)
    settings = apply_protocol(protocol, load_artifact(path).settings)
    features = apply_search(protocol, ArtifactEncoder(path))
    return TrackerMethod(features, settings, redetect=protocol == "default"), path


def _protocols(options: MethodOptions) -> list[str]:
    names = options.protocol or ("default",)
    return [protocol for name in names for protocol in (PUBLISHED if name == ALL_PUBLISHED else (name,))]


def _encoders(options: MethodOptions) -> list[OnnxEncoder]:
    mean = three_numbers("--encoder-mean", options.encoder_mean)
    std = three_numbers("--encoder-std", options.encoder_std)
    return [
        OnnxEncoder(path, options.encoder_layout, options.encoder_colours, mean, std) for path in options.encoder or ()
    ]


def _model_path(name: str, settings_from: str, folder: Path | None) -> Path:
    """Return the path of a model; export random-init:PRESET with the settings of the model `settings_from`."""
    if not name.startswith(RANDOM_INIT):
        return resolve_model(name)
    path = (folder or Path(mkdtemp(prefix="corrflow-"))) / file_name(name.replace(":", "-"))
    # The export needs PyTorch, which this package must not import.
    command = [sys.executable, "-m", "corrflow.export.cli", "onnx", name, str(path), "--settings-from", settings_from]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        message = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"cannot make {name}: {message.removeprefix('error: ')}")
    return path


def _tracker_method(
    label: str, features: FeatureExtractor, settings: TrackingSettings, protocol: str, unit_length: bool
) -> Method:
    settings, features = apply_protocol(protocol, settings), apply_search(protocol, features)
    notes = ()
    if unit_length and published_with_raw_features(protocol):
        notes = (_RAW_NOTE.format(protocol=protocol, temperature=settings.temperature),)
    if protocol == "default":  # the only protocol that handles occlusion
        return Method(label, TrackerMethod(features, settings), protocol, notes)
    return Method(f"{label} {protocol}", TrackerMethod(features, settings, redetect=False), protocol, notes)


def _has_unit_length(artifact: Artifact) -> bool:
    """Return False for a model whose provenance says that its features are not of unit length."""
    model = artifact.provenance.get("model")
    return bool(model.get("unit_norm", True)) if isinstance(model, dict) else True
