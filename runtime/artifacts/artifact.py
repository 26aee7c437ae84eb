"""The artifact: what export writes and the runtime reads. This module owns the contract.

A folder, or a zip of it: encode.onnx, propagate.onnx and artifact.json with the tracking settings, where the weights
come from, and the SHA-256 of every file. Nothing in it is trusted before it is checked.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from corrflow.atomic_files import write_file
from corrflow.errors import InputError
from corrflow.runtime.artifacts.onnx_check import check_onnx
from corrflow.runtime.settings import STRIDE, TrackingSettings, settings_from_json

FORMAT_VERSION = 4
DESCRIPTION, ENCODE, PROPAGATE = "artifact.json", "encode.onnx", "propagate.onnx"
# What an artifact may have besides: a step as one graph, and encoders that only TensorRT reads.
STEP, ENCODE_FP32, ENCODE_FP16, ENCODE_INT8 = "step.onnx", "encode-fp32.onnx", "encode-fp16.onnx", "encode-int8.onnx"
REFERENCES = "references"  # the input of propagate.onnx that says what is searched where; only what follows has it
LARGEST_FILE = 512 * 2**20
_REMEDY = "export it again with corrflow-export onnx"


@dataclass(frozen=True)
class Artifact:
    """A checked artifact.

    files:      content of each file by name
    channels:   feature channels
    provenance: data, minutes and settings of the training
    folder:     where it was read from, with its engines beside it; None for a zip
    """

    name: str
    files: dict[str, bytes]
    channels: int
    settings: TrackingSettings
    provenance: dict[str, Any]
    folder: Path | None = field(default=None, compare=False)

    @property
    def has_integer_encoder(self) -> bool:
        """Whether encode.onnx computes in 8 bits; the exact one is then kept beside it for other back ends."""
        return ENCODE_FP32 in self.files

    @property
    def sha256(self) -> str:
        """One hash of all files."""
        digest = hashlib.sha256()
        for name in sorted(self.files):
            digest.update(f"{name}:{hashlib.sha256(self.files[name]).hexdigest()}\n".encode())
        return digest.hexdigest()

    @property
    def description(self) -> dict[str, Any]:
        """For reports: what this artifact is, JSON-ready."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "channels": self.channels,
            "tracking": asdict(self.settings),
            "provenance": self.provenance,
        }


def save_artifact(
    folder: Path, files: dict[str, bytes], channels: int, settings: TrackingSettings, provenance: dict[str, Any]
) -> None:
    """Write an artifact folder; each file appears by rename, artifact.json last, so that a half-written one is seen.

    files: encode.onnx, propagate.onnx and whatever else belongs to it.
    """
    for name, content in files.items():
        write_file(folder / name, content)
    description = {
        "format": FORMAT_VERSION,
        "stride": STRIDE,
        "channels": channels,
        "tracking": asdict(settings),
        "provenance": provenance,
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            for name, content in files.items()
        },
    }
    write_file(folder / DESCRIPTION, json.dumps(description, indent=2) + "\n")


def load_artifact(path: Path | str) -> Artifact:
    """Read and check an artifact folder or zip.

    Raises InputError where a part is missing, damaged, of another version, or not something we would have written.
    """
    path = Path(path)
    try:
        description = json.loads(_read(path, DESCRIPTION))
        version = description["format"]
        if version != FORMAT_VERSION:
            raise InputError(f"{path}: expected artifact format {FORMAT_VERSION}, got {version}; {_REMEDY}")
        if description["stride"] != STRIDE or not 1 <= description["channels"] <= 4096:
            raise InputError(
                f"{path}: expected stride {STRIDE} and 1 to 4096 channels, got {description['stride']} and"
                f" {description['channels']}; {_REMEDY}"
            )
        settings = settings_from_json(description["tracking"])
        entries = {str(name): str(entry["sha256"]) for name, entry in description["files"].items()}
        channels, provenance = int(description["channels"]), dict(description["provenance"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: {DESCRIPTION} is damaged ({type(error).__name__}: {error}); {_REMEDY}") from error

    files = {}
    for name in {ENCODE, PROPAGATE} | set(entries):
        if name not in entries or Path(name).name != name:
            raise InputError(f"{path}: expected {name} among the files of {DESCRIPTION}; {_REMEDY}")
        files[name] = _read(path, name)
        found = hashlib.sha256(files[name]).hexdigest()
        if found != entries[name]:
            raise InputError(
                f"{path}: {name} is damaged: expected SHA-256 {entries[name][:12]}..., got {found[:12]}...; {_REMEDY}"
            )
        if name.endswith(".onnx"):
            check_onnx(f"{path}: {name}", files[name])
    name = path.stem if path.suffix == ".zip" else path.name
    return Artifact(name, files, channels, settings, provenance, path if path.is_dir() else None)


def _read(path: Path, name: str) -> bytes:
    """One file of an artifact folder or zip, never more than LARGEST_FILE bytes of it."""
    try:
        if path.is_dir():
            if (path / name).stat().st_size > LARGEST_FILE:
                raise InputError(f"{path}: {name} is larger than {LARGEST_FILE} bytes; refused")
            return (path / name).read_bytes()
        if not path.exists():
            raise InputError(f"expected an artifact folder or zip at {path}, found nothing; {_REMEDY}")
        with zipfile.ZipFile(path) as archive:
            inside = [entry for entry in archive.namelist() if entry == name or entry.endswith(f"/{name}")]
            if not inside:
                raise FileNotFoundError(name)
            with archive.open(min(inside, key=len)) as file:
                content = file.read(LARGEST_FILE + 1)
            if len(content) > LARGEST_FILE:
                raise InputError(f"{path}: {name} is larger than {LARGEST_FILE} bytes; refused")
            return content
    except FileNotFoundError as error:
        raise InputError(f"{path}: expected {name} in the artifact, found none; {_REMEDY}") from error
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, ValueError) as error:
        # A damaged archive shows itself in as many ways as there are bytes to damage.
        raise InputError(f"{path} is damaged: expected an artifact folder or zip ({error}); {_REMEDY}") from error
    except Exception as error:
        if type(error).__module__ in ("zlib", "lzma"):
            raise InputError(f"{path} is damaged: {error}; {_REMEDY}") from error
        raise
