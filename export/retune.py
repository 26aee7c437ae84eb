"""Export of an artifact with other tracking settings: same encoder, new propagation graphs; needs no PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from corrflow.errors import CorrflowError, InputError
from corrflow.export.step_graph import graphs_of_settings
from corrflow.file_budget import read_json
from corrflow.plugins.local_soft_copy import cpu
from corrflow.plugins.local_soft_copy.spec import SearchWindow, used_references
from corrflow.runtime.artifacts.artifact import ENCODE, PROPAGATE, REFERENCES, STEP, Artifact, save_artifact
from corrflow.runtime.settings import TrackingSettings, settings_from_json

TOLERANCE = 1e-4
_CELLS = (30, 53)
_MAX_BYTES = 1 << 20


def read_settings(path: Path) -> TrackingSettings:
    """Read tracking settings from JSON, as corrflow-eval search writes them. Raises InputError for other content."""
    try:
        return settings_from_json(read_json(path, limit=_MAX_BYTES))
    except OSError as error:
        raise InputError(f"expected tracking settings in {path}, found no file ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f"expected tracking settings in {path}, found {type(error).__name__}: {error}") from error


def export_with_settings(artifact: Artifact, settings: TrackingSettings, target: Path) -> float:
    """Write `artifact` with other settings to a new folder, and return the difference from the fused kernel.

    Raises InputError if the target exists or the kernel was not built. Raises CorrflowError and writes nothing if the
    difference is larger than TOLERANCE.
    """
    if target.exists():
        raise InputError(f"expected a new folder for the artifact, got {target}, which exists; name another")
    if cpu.unavailable():
        raise InputError(f"the new graph is compared with another form of the op: {cpu.unavailable()}")
    files = {name: content for name, content in artifact.files.items() if name != STEP}
    files |= graphs_of_settings(files[ENCODE], settings, artifact.channels)
    difference = _difference(files[PROPAGATE], settings, artifact.channels)
    if not difference <= TOLERANCE:
        raise CorrflowError(
            f"{PROPAGATE} differs from the fused kernel: expected at most {TOLERANCE:g}, got {difference:g};"
            " nothing was written"
        )
    provenance = {**artifact.provenance, "settings_of": artifact.sha256}
    save_artifact(target, files, artifact.channels, settings, provenance)
    return difference


def _difference(graph: bytes, settings: TrackingSettings, channels: int) -> float:
    """Compute the largest difference between the graph and the fused kernel on random features.

    Cases: one and all reference frames, and search windows with and without offsets if the graph supports them.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    largest = 0.0
    for count in {1, settings.num_reference_frames}:
        query = generator.standard_normal((1, channels, *_CELLS), np.float32)
        keys = generator.standard_normal((1, count, channels, *_CELLS), np.float32)
        query /= np.linalg.norm(query, axis=1, keepdims=True)
        keys /= np.linalg.norm(keys, axis=2, keepdims=True)
        values = generator.random((1, count, 8, *_CELLS), np.float32)
        inputs = {"query": query, "keys": keys, "values": values}
        plain = used_references(None, count)
        shifted = [SearchWindow(0, 0, 3, -7), *plain, SearchWindow(count - 1, 1, -_CELLS[0], 2)]
        for references in (plain, shifted) if settings.move_windows else (None,):
            rows = {} if references is None else {REFERENCES: np.array(references, np.int32)}
            got = np.asarray(session.run(None, inputs | rows)[0])
            expected = cpu.local_soft_copy(query, keys, values, settings.attributes, references=references)
            largest = max(largest, float(np.abs(got - expected).max()))
    return largest
