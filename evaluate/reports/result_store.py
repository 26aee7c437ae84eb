"""Cache of results on disk, one file per method and sequence; a changed key or mask invalidates a result.

    FOLDER/scores/<method>/<sequence>.json     scores of every frame, and the key
    FOLDER/masks/<method>/<sequence>/*.png     masks, in the format of `corrflow-eval score`

The key has the method's description, with settings and hashes of its files, and a hash of the sequence's files. The
key also has a hash of the code that computes masks and scores, and the versions of the libraries that compute.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import corrflow.evaluate
import corrflow.plugins
import corrflow.runtime
from corrflow.atomic_files import write_file
from corrflow.errors import InputError
from corrflow.evaluate.datasets.masks import MaskSequence
from corrflow.evaluate.metrics.continuity import areas_of_frames
from corrflow.evaluate.metrics.masks import object_score
from corrflow.evaluate.reports.files import file_name
from corrflow.evaluate.reports.report import SequenceScore

RESULT_VERSION = 2
"""Version of the figures in a stored score; results of another version are computed again."""

_LIBRARIES = ("numpy", "opencv-python", "onnxruntime")

# Commands, the window, formats of labels and reports change no score: an edit there must not void hours of results.
_COMPUTING = (
    (corrflow.plugins, ("",)),
    (
        corrflow.runtime,
        ("tracking", "backends", "artifacts", "video", "types.py", "settings.py", "formats/mask_png.py"),
    ),
    (
        corrflow.evaluate,
        ("datasets/masks.py", "datasets/points.py", "methods", "metrics", "masks.py", "measurements.py", "points.py"),
    ),
)


def computing_files() -> list[Path]:
    """List the files of the code that computes masks and scores, in a fixed order."""
    files: list[Path] = []
    for package, parts in _COMPUTING:
        for part in (Path(folder, part) for folder in package.__path__ for part in parts):
            found = sorted(part.rglob("*")) if part.is_dir() else [part]
            files += [path for path in found if path.suffix in (".py", ".so", ".pyd")]
    return files


@cache
def program() -> dict[str, str]:
    """Return a hash of the code that computes masks and scores, and the versions of the libraries that compute."""
    digest = hashlib.sha256()
    for path in computing_files():
        digest.update(path.read_bytes())
    return {"code": digest.hexdigest(), **{name: version(name) for name in _LIBRARIES}}


def sequence_hash(sequence: MaskSequence) -> str:
    """Compute the SHA-256 of names and contents of a sequence's files, and of the rule that scores the sequence."""
    digest = hashlib.sha256(f"{sequence.name} {sequence.late_prompts}".encode())
    for path in (*sequence.image_paths, *sequence.annotation_paths):
        if path is None:
            digest.update(b"none")
            continue
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"expected to read {path}, got {error.strerror}; complete the data set") from error
        digest.update(f"{path.name} {len(content)}".encode() + hashlib.sha256(content).digest())
    return digest.hexdigest()


def method_identity(description: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a method's description that its masks depend on."""
    # A model's hash identifies its weights; path and provenance change no score.
    return {name: value for name, value in description.items() if name not in ("path", "provenance", "tracking")}


def result_key(
    description: dict[str, Any], sequence: MaskSequence, data: str | None = None, **further: Any
) -> dict[str, Any]:
    """Return all that the score of a method on a sequence depends on, as JSON values.

    data: the sequence's hash, if it is known already
    """
    key = {
        "version": RESULT_VERSION,
        "method": method_identity(description),
        "data": data or sequence_hash(sequence),
        "program": program(),
        **further,
    }
    return json.loads(json.dumps(key))


class ResultStore:
    """Results in a folder; files are written atomically."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mask_folder(self, method: str, sequence: str = "") -> Path:
        """Return the folder of the masks of a method, or of one sequence of the method."""
        return self.folder / "masks" / file_name(method) / sequence

    def load(self, method: str, sequence: str, key: dict[str, Any]) -> tuple[SequenceScore | None, str]:
        """Return a valid score and "", or None and the reason why the score is invalid; "" where no score exists."""
        path = self._score_path(method, sequence)
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None, ""
        except (OSError, ValueError):
            return None, "its file is damaged"
        try:
            changed = [name for name in sorted({*key, *stored["key"]}) if key.get(name) != stored["key"].get(name)]
            if changed:
                return None, f"another {', '.join(changed)}"
            if stored["masks"] != _folder_hash(self.mask_folder(method, sequence)):
                return None, "its masks changed"
            return _score_from_json(stored["score"]), ""
        except (KeyError, TypeError, ValueError, AttributeError):
            return None, "its file is damaged"

    def save(self, method: str, sequence: str, key: dict[str, Any], score: SequenceScore) -> None:
        """Write a score with its key; the masks must be written already."""
        stored = {
            "key": key,
            "masks": _folder_hash(self.mask_folder(method, sequence)),
            "score": _score_to_json(score),
        }
        write_file(self._score_path(method, sequence), json.dumps(stored) + "\n")

    def _score_path(self, method: str, sequence: str) -> Path:
        return self.folder / "scores" / file_name(method) / f"{sequence}.json"


def _folder_hash(folder: Path) -> str:
    """Compute the SHA-256 of the names and contents of a folder's masks."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.png")):
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _score_to_json(score: SequenceScore) -> dict[str, Any]:
    return {
        "frames": score.frames,
        "cpu_seconds": score.cpu_seconds,
        "tracked": score.tracked,
        "objects": {
            str(object_id): {
                "frames": item.frames.tolist(),
                "J": item.region_similarity.tolist(),
                "F": item.contour_accuracy.tolist(),
                "areas": {name: values.tolist() for name, values in asdict(item.areas).items()},
            }
            for object_id, item in score.objects.items()
        },
    }


def _score_from_json(stored: dict[str, Any]) -> SequenceScore:
    objects = {
        int(object_id): object_score(
            item["frames"],
            item["J"],
            item["F"],
            areas_of_frames(**{name: np.array(values) for name, values in item["areas"].items()}),
        )
        for object_id, item in stored["objects"].items()
    }
    return SequenceScore(objects, int(stored["frames"]), stored["cpu_seconds"], int(stored["tracked"]), reused=True)
