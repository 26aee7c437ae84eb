"""From what a user names on the command line to the methods that are compared."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from corrflow.errors import InputError
from corrflow.evaluate.masks import Method
from corrflow.evaluate.methods.encoders import OnnxEncoder
from corrflow.evaluate.methods.methods import (
    ArtifactEncoder,
    FeatureExtractor,
    FlowWarp,
    Identity,
    LabPatches,
    NamedOnnx,
    TrackerMethod,
)
from corrflow.evaluate.methods.protocols import apply_protocol, published_with_raw_features
from corrflow.evaluate.reports.files import file_name
from corrflow.runtime.artifacts.artifact import Artifact, load_artifact
from corrflow.runtime.artifacts.bundled import resolve_model
from corrflow.runtime.settings import TrackingSettings, with_settings

BASELINES = ("identity", "lab", "flow")
UNTRAINED = "random-init:"
_RAW_NOTE = (
    "protocol {protocol} was published with raw dot products; this encoder's features are of unit length, and are"
    " compared at the artifact's own temperature of {temperature:g}"
)


@dataclass(frozen=True)
class Choice:
    """What to compare.

    artifacts: names or paths of models, or random-init:PRESET[:SEED] for an encoder that has learned nothing
    protocols: names; each artifact and encoder is tracked with under each
    baselines: of `BASELINES`
    encoders:  further encoders
    short_side:      short side that frames are shrunk to, 0 for the frame's own; None keeps each artifact's own
    results:   folder where an untrained artifact is kept; a temporary one without
    """

    artifacts: Sequence[str] = ()
    protocols: Sequence[str] = ()
    baselines: Sequence[str] = ()
    encoders: Sequence[OnnxEncoder] = ()
    short_side: int | None = None
    results: Path | None = None

    def methods(self) -> list[Method]:
        """One method for each combination; every file is read and checked here.

        The default model, where nothing is named. Baselines and encoders track with the first artifact's settings,
        so that they differ from it by their features alone. Raises InputError for what cannot be used.
        """
        unknown = sorted(set(self.baselines) - set(BASELINES))
        if unknown:
            raise InputError(f"expected baselines among {', '.join(BASELINES)}, got {', '.join(unknown)}")
        named = list(self.artifacts)
        if not named and not self.baselines and not self.encoders:
            named = ["quarter"]
        first = next((name for name in named if not name.startswith(UNTRAINED)), "quarter")
        settings = load_artifact(resolve_model(first)).settings

        tracked: list[tuple[str, FeatureExtractor, TrackingSettings, bool]] = []
        loaded = [(path, load_artifact(path)) for path in (self._path(name, first) for name in named)]
        names = [artifact.name for _, artifact in loaded]
        for path, artifact in loaded:
            label = artifact.name if names.count(artifact.name) == 1 else str(path.absolute())
            tracked.append((label, ArtifactEncoder(path), artifact.settings, _unit_length(artifact)))
        for encoder in self.encoders:
            tracked.append((encoder.path.stem, NamedOnnx(encoder), settings, True))
        if "lab" in self.baselines:
            tracked.append(("lab", LabPatches(), settings, True))

        methods = [
            _tracking(label, encoder, with_settings(own, self.short_side), protocol, unit)
            for label, encoder, own, unit in tracked
            for protocol in self.protocols or ("default",)
        ]
        if "flow" in self.baselines:
            methods.append(Method("flow", FlowWarp()))
        if "identity" in self.baselines:
            methods.append(Method("identity", Identity()))
        labels = [method.label for method in methods]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise InputError(
                f"expected every method once, got {', '.join(twice)} twice; rename a file or leave one out"
            )
        return methods

    def _path(self, name: str, like: str) -> Path:
        """The artifact that a user named; an untrained one is made, with the settings of `like`."""
        if not name.startswith(UNTRAINED):
            return resolve_model(name)
        folder = Path(mkdtemp(prefix="corrflow-")) if self.results is None else self.results / "artifacts"
        path = folder / file_name(name.replace(":", "-"))
        # Exporting needs PyTorch, which nothing here imports: it is the business of another command.
        command = [sys.executable, "-m", "corrflow.export.cli", "onnx", name, str(path), "--settings-from", like]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            message = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise InputError(f"cannot make {name}: {message.removeprefix('error: ')}")
        return path


def _tracking(label: str, encoder: FeatureExtractor, own: TrackingSettings, protocol: str, unit: bool) -> Method:
    settings = apply_protocol(protocol, own)
    notes = ()
    if unit and published_with_raw_features(protocol):
        notes = (_RAW_NOTE.format(protocol=protocol, temperature=settings.temperature),)
    if protocol == "default":  # the only one that is watched
        return Method(label, TrackerMethod(encoder, settings), protocol, notes)
    return Method(f"{label} {protocol}", TrackerMethod(encoder, settings, redetect=False), protocol, notes)


def _unit_length(artifact: Artifact) -> bool:
    """Whether an artifact says that its features are of unit length; True where it does not say."""
    model = artifact.provenance.get("model")
    return bool(model.get("unit_norm", True)) if isinstance(model, dict) else True


def settings_of(name: str, protocol: str) -> tuple[Path, TrackingSettings]:
    """Path of one artifact that a user named, and its settings under a protocol."""
    path = resolve_model(name)
    return path, apply_protocol(protocol, load_artifact(path).settings)
