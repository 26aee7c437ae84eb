"""The artifact: what export writes and the runtime reads. This module owns the contract.

A folder, or a zip of it: encode.onnx, propagate.onnx and artifact.json with the tracking settings, where the weights
come from, and the SHA-256 of every file. Nothing in it is trusted before it is checked.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from corrflow.plugins.errors import InputError
from corrflow.plugins.local_soft_copy.spec import Attributes
from corrflow.plugins.whole_file import write_whole
from corrflow.runtime.onnx_guard import check_onnx

# 1 knew the first frame and the last few only ("first_frame", "recent_frames"); it is still read.
FORMAT_VERSION, OLDEST_VERSION = 3, 1
STRIDE = 4
DESCRIPTION, ENCODE, PROPAGATE = "artifact.json", "encode.onnx", "propagate.onnx"
# What an artifact may have besides: a step as one graph, and encoders that only TensorRT reads.
STEP, ENCODE_FP32, ENCODE_FP16, ENCODE_INT8 = "step.onnx", "encode-fp32.onnx", "encode-fp16.onnx", "encode-int8.onnx"
REFERENCES = "references"  # the input of propagate.onnx that says what is searched where; only what follows has it
LARGEST_FILE = 512 * 2**20
OLDEST_AGE, LATEST_ANCHOR, MOST_ANCHORS, LARGEST_DILATION, LARGEST_EDGE_RADIUS = 64, 1000, 16, 4, 64
_REMEDY = "export it again with corrflow-export onnx"


@dataclass(frozen=True)
class TrackingSettings:
    """How a tracker searches and remembers.

    rows:          short side in pixels that frames are shrunk to before encoding; 0 keeps every frame as it is
    anchors:       frames that stay references for ever, counted from the one that an object was given on, which is 0
    ages:          references that move along: 1 is the frame before, 2 the one before that
    radius, dilation, top_k, temperature: attributes of LocalSoftCopy, built into propagate.onnx. Where two radii or
                   dilations are given, the first is that of the one anchor and the second that of the other references
    dilate_after:  0, or the age past which a reference is searched more widely: `dilation` times
                   min(4, 1 + age // dilate_after), as in MAST (Lai et al., 2020); needs a back end that takes any
                   attributes
    hard_labels:   remember each mask as 0 and 1 (label above one half) and not as soft labels
    follow:        move windows along with the objects (runtime/follow.py); with a propagate.onnx from before it had an
                   input for that, windows stay
    edge_radius:   0, or the radius, in pixels of the shrunk frame, of the filter that brings outlines to the edges of
                   the picture (runtime/outlines.py)

    A frame that is both an anchor and of a listed age is one reference. References that do not exist yet are left out.
    """

    rows: int = 480
    anchors: tuple[int, ...] = (0,)
    ages: tuple[int, ...] = (1, 2, 3, 4, 5)
    radius: tuple[int, ...] = (8,)
    dilation: tuple[int, ...] = (1,)
    top_k: int = 10
    temperature: float = 0.07
    dilate_after: int = 0
    hard_labels: bool = False
    follow: bool = False
    edge_radius: int = 0

    def __post_init__(self) -> None:
        if not (self.rows == 0 or 16 <= self.rows <= 8192):
            raise InputError(f"expected rows between 16 and 8192, or 0 for the frame's own, got {self.rows}")
        for name, given, lowest, highest in (
            ("anchors", self.anchors, 0, LATEST_ANCHOR),
            ("ages", self.ages, 1, OLDEST_AGE),
        ):
            if list(given) != sorted(set(given)) or not all(lowest <= frame <= highest for frame in given):
                raise InputError(f"expected {name} from {lowest} to {highest}, ascending, got {list(given)}")
        if len(self.anchors) > MOST_ANCHORS:
            raise InputError(f"expected at most {MOST_ANCHORS} anchors, got {len(self.anchors)}")
        if 0 not in self.anchors and 1 not in self.ages:
            raise InputError(
                f"expected the first frame (anchor 0) or the one before (age 1) among the references, got anchors"
                f" {list(self.anchors)} and ages {list(self.ages)}; add one of them"
            )
        most = max(len(self.radius), len(self.dilation))
        if most > 2 or (most == 2 and self.anchors != (0,)):
            raise InputError(
                "expected one radius and one dilation for all references, or one for the first frame (anchor 0, alone)"
                f" and one for the others, got radius {list(self.radius)} and dilation {list(self.dilation)} with"
                f" anchors {list(self.anchors)}"
            )
        if not 0 <= self.edge_radius <= LARGEST_EDGE_RADIUS:
            raise InputError(f"expected edge_radius from 0 to {LARGEST_EDGE_RADIUS}, got {self.edge_radius}")
        if not 0 <= self.dilate_after <= LATEST_ANCHOR:
            raise InputError(f"expected dilate_after from 0 to {LATEST_ANCHOR}, got {self.dilate_after}")
        _ = self.attributes  # which checks the rest

    @property
    def references(self) -> int:
        """Reference frames once the memory is full."""
        return len(self.anchors) + len(self.ages)

    @property
    def attributes(self) -> Attributes:
        """What propagate.onnx has built in."""
        return Attributes(self.radius, self.dilation, self.top_k, self.temperature)

    def attributes_for(self, ages: Sequence[int]) -> Attributes:
        """How to search references of these ages."""
        if not self.dilate_after or max(ages) <= self.dilate_after:
            return self.attributes
        radii, dilations = zip(*self.attributes.windows(len(ages)), strict=True)
        widened = tuple(
            dilation * (min(LARGEST_DILATION, 1 + age // self.dilate_after) if age > self.dilate_after else 1)
            for age, dilation in zip(ages, dilations, strict=True)
        )
        return Attributes(radii, widened, self.top_k, self.temperature)


def last_frames(count: int) -> tuple[int, ...]:
    """Ages of the last `count` frames; raises InputError for more than a memory holds."""
    if not 0 <= count <= OLDEST_AGE:
        raise InputError(f"expected 0 to {OLDEST_AGE} recent frames, got {count}")
    return tuple(range(1, count + 1))


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


BUNDLED = Path(__file__).parent / "models"


def bundled_models() -> list[str]:
    """Names of the artifacts that come with the package."""
    return sorted(folder.name for folder in BUNDLED.iterdir() if (folder / DESCRIPTION).is_file())


def bundled_artifact_path() -> Path:
    """The artifact that is used where none is named."""
    return BUNDLED / "quarter"


def artifact_path(named: Path | None) -> Path:
    """What a user named as artifact: a path, bundled:NAME for one that comes with the package, or nothing or "bundled".

    Raises InputError for a name that does not come with it.
    """
    if named is None or str(named) == "bundled":
        return bundled_artifact_path()
    family, _, name = str(named).partition(":")
    if family != "bundled":
        return named
    if name not in bundled_models():
        known = ", ".join(f"bundled:{each}" for each in bundled_models())
        raise InputError(f"expected an artifact among {known}, got {named}; choose one of those or give a path")
    return BUNDLED / name


def settings_from_json(tracking: dict[str, Any]) -> TrackingSettings:
    """Settings as they stand in artifact.json, of this format or those before.

    Raises InputError for values out of range, and KeyError, TypeError or ValueError for what makes no settings.
    """
    fields = dict(tracking)
    if "recent_frames" in fields:  # format 1
        fields["anchors"] = (0,) if fields.pop("first_frame") else ()
        fields["ages"] = last_frames(int(fields.pop("recent_frames")))
    for name in ("anchors", "ages", "radius", "dilation"):
        fields[name] = tuple(int(value) for value in fields[name])
    return TrackingSettings(**fields)


def save_artifact(
    folder: Path, files: dict[str, bytes], channels: int, settings: TrackingSettings, provenance: dict[str, Any]
) -> None:
    """Write an artifact folder; each file appears by rename, artifact.json last, so that a half-written one is seen.

    files: encode.onnx, propagate.onnx and whatever else belongs to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_whole(folder / name, content)
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
    write_whole(folder / DESCRIPTION, (json.dumps(description, indent=2) + "\n").encode())


def load_artifact(path: Path | str) -> Artifact:
    """Read and check an artifact folder or zip.

    Raises InputError where a part is missing, damaged, of another version, or not something we would have written.
    """
    path = Path(path)
    try:
        description = json.loads(_read(path, DESCRIPTION))
        version = description["format"]
        if version not in range(OLDEST_VERSION, FORMAT_VERSION + 1):
            raise InputError(
                f"{path}: expected artifact format {OLDEST_VERSION} to {FORMAT_VERSION}, got {version}; {_REMEDY}"
            )
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
