"""Data sets of points: JHMDB (joints of people), BADJA (joints of animals) and TAP-Vid (arbitrary points).

JHMDB    ROOT/joint_positions/<action>/<clip>/joint_positions.mat and ROOT/Rename_Images/<action>/<clip>/*.png; or
         one clip: ROOT/joint_positions.mat and ROOT/images/*.png
BADJA    one JSON file per video, as published: a list of {image_path, segmentation_path, joints [row, column],
         visibility}; or {frames_dir, keypoint_names, frames {name: [[x, y, visible]]}} with masks in DAVIS's layout
TAP-Vid  one pickle of {name: {video, points, occluded}}, or of a list of such videos, read without executing it
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from corrflow.errors import InputError
from corrflow.evaluate.datasets.masks import IMAGE_SUFFIXES, read_image, read_lines
from corrflow.evaluate.datasets.safe_pickle import read_pickle
from corrflow.file_budget import FileBudget, read_json, regular_size
from corrflow.runtime.formats.mask_image import MAX_PIXELS, image_size
from corrflow.runtime.formats.mask_png import read_indexed_png

JHMDB_JOINTS = (
    "neck", "belly", "face", "right shoulder", "left shoulder", "right hip", "left hip", "right elbow", "left elbow",
    "right knee", "left knee", "right wrist", "left wrist", "right ankle", "left ankle",
)  # fmt: skip
TAPVID_SIDE = 256
"""Side in pixels of the square frames of TAP-Vid's protocol."""

_MAX_BYTES = 64 * 2**20  # of a file of joints
_NUMBERS = ("double", "single", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


@dataclass(frozen=True)
class JointSequence:
    """Video of joints; the joints of the first frame prompt the tracker.

    image_paths: T frames, from the prompted frame on
    joints:      [T, P, 2] float64, (x, y) in pixels, (0, 0) the centre of the top-left pixel; NaN where not annotated
    visible:     [T, P] bool
    areas:       [T] float64, pixels of the true mask, NaN for a frame without a mask; None for JHMDB
    """

    name: str
    image_paths: tuple[Path, ...]
    joint_names: tuple[str, ...]
    joints: np.ndarray
    visible: np.ndarray
    areas: np.ndarray | None = None

    def images(self) -> Iterator[np.ndarray]:
        """Read the frames in order: [H, W, 3] uint8, BGR."""
        for path in self.image_paths:
            yield read_image(path)


@dataclass(frozen=True)
class PointVideo:
    """Video of TAP-Vid.

    video:    [T, H, W, 3] uint8, RGB, or T encoded images
    points:   [N, T, 2] float64, (x, y), 0..1 over the frame's width and height
    occluded: [N, T] bool
    """

    name: str
    video: np.ndarray | Sequence[bytes]
    points: np.ndarray
    occluded: np.ndarray

    def images(self, side: int | None = TAPVID_SIDE) -> list[np.ndarray]:
        """Decode all frames, [H, W, 3] uint8, BGR, resized to a square of `side` pixels; None: as stored.

        Raises InputError for bytes that are no image.
        """
        images = []
        # One image of the file may be any number of frames.
        encoded = {id(item): len(item) for item in self.video if isinstance(item, bytes)}
        budget = FileBudget(self.name, sum(encoded.values()))
        for index, item in enumerate(self.video):
            if isinstance(item, bytes):
                image = _decoded(item, f"frame {index} of {self.name}")
                budget.take(image.nbytes if side is None else 3 * side * side, "frames")
            else:
                image = np.ascontiguousarray(np.asarray(item)[..., ::-1])
            if side is not None and image.shape[:2] != (side, side):
                image = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
            images.append(image)
        return images


def _decoded(content: bytes, what: str) -> np.ndarray:
    """Decode an image, [H, W, 3] uint8, BGR. Raises InputError for other bytes, and for a very large image."""
    size, image = image_size(content), None
    if size is not None and size[0] * size[1] <= MAX_PIXELS:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise InputError(f"expected an image of at most {MAX_PIXELS // 10**6} million pixels as {what}, found none")
    return image


def open_jhmdb(root: Path, split: int | None = None) -> list[JointSequence]:
    """List the clips of JHMDB by name.

    split: 1 to 3 for the test clips of that split; None for all clips

    Raises InputError for a folder in another layout, or a file of joints that cannot be read.
    """
    single = root / "joint_positions.mat"
    if single.is_file():
        return [_jhmdb_clip(root.name, root / "images", single)]
    joints = root / "joint_positions"
    if not joints.is_dir():
        raise InputError(
            f"expected JHMDB's joint_positions/<action>/<clip> and Rename_Images, or one clip's joint_positions.mat, in"
            f" {root}; found neither"
        )
    files = sorted(joints.glob("*/*/joint_positions.mat"))
    if split is not None:
        test_clips = _jhmdb_test_clips(root, split)
        files = [path for path in files if path.parent.name in test_clips]
    if not files:
        raise InputError(f"expected <action>/<clip>/joint_positions.mat in {joints}, found none; unpack the data set")
    return [
        _jhmdb_clip(path.parent.name, root / "Rename_Images" / path.parents[1].name / path.parent.name, path)
        for path in files
    ]


def _jhmdb_test_clips(root: Path, split: int) -> set[str]:
    """Read the names of the test clips: lines "<clip>.avi 2" of splits/<action>_test_split<n>.txt."""
    lists = sorted((root / "splits").glob(f"*_test_split{split}.txt"))
    if not lists:
        raise InputError(f"expected lists <action>_test_split{split}.txt in {root / 'splits'}, found none")
    lines = [line.split() for path in lists for line in read_lines(path) if line.strip()]
    return {Path(line[0]).stem for line in lines if line[-1] == "2"}


def _jhmdb_clip(name: str, images: Path, joints: Path) -> JointSequence:
    try:
        import scipy.io
    except ImportError as error:
        raise InputError(
            f"expected SciPy for the MATLAB file {joints}, found none; pip install 'corrflow[eval]'"
        ) from error
    frames = _image_paths(images, f"frames of clip {name}")
    expected = f"expected joints pos_img [2, {len(JHMDB_JOINTS)}, frames] in the MATLAB file {joints}"
    if (size := regular_size(joints)) > _MAX_BYTES:
        raise InputError(f"{expected}, found one of {size} bytes; refused")
    try:
        # The header of a variable says its shape; compressed ones may unpack to a thousand times the file.
        [(_, shape, kind)] = [one for one in scipy.io.whosmat(joints) if one[0] == "pos_img"]
        FileBudget(joints, size).take(24 * math.prod(shape), "positions")
        if len(shape) != 3 or kind not in _NUMBERS:
            raise InputError(f"{expected}, found {list(shape)} of {kind}")
        positions = np.asarray(scipy.io.loadmat(joints, variable_names=["pos_img"])["pos_img"], np.float64)
    except InputError:
        raise
    except Exception as error:  # SciPy's reader raises many types of exceptions for damaged files
        raise InputError(f"{expected}, found a file that cannot be read ({type(error).__name__})") from error
    if positions.ndim != 3 or positions.shape[:2] != (2, len(JHMDB_JOINTS)) or not positions.shape[2]:
        raise InputError(f"{expected}, found {list(positions.shape)}")
    if len(frames) < positions.shape[2] or not np.isfinite(positions).all():
        raise InputError(
            f"expected a frame for each of {positions.shape[2]} poses, all of numbers, found {len(frames)} in {images}"
        )
    # MATLAB counts from 1.
    points = positions.transpose(2, 1, 0) - 1
    return JointSequence(name, frames[: len(points)], JHMDB_JOINTS, points, np.ones(points.shape[:2], bool))


def open_badja(annotations: Path, root: Path) -> list[JointSequence]:
    """List the videos of one JSON file, or of every JSON file in a folder.

    Each video begins with its first annotated frame, whose visible joints prompt the tracker.

    root: folder that the paths in the files are relative to

    Raises InputError for other content, and names the frame or mask that is missing.
    """
    files = sorted(annotations.glob("*.json")) if annotations.is_dir() else [annotations]
    if not files:
        raise InputError(f"expected BADJA's joint_annotations, JSON files, in {annotations}, found none")
    return [_badja_video(path, root) for path in files]


def _badja_video(path: Path, root: Path) -> JointSequence:
    expected = f"expected the joints of a BADJA video as JSON in {path}"
    try:
        budget = FileBudget.of(path)
        content = read_json(path, budget, _MAX_BYTES)
        entries, names = _badja_entries(content, root)
    except OSError as error:
        raise InputError(f"{expected}, found no such file ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise InputError(f"{expected}, found something else ({type(error).__name__}: {error})") from error
    if not entries:
        raise InputError(f"{expected}, found no annotated frame")
    entries.sort(key=lambda entry: entry[0].name)
    folder = entries[0][0].parent
    frames = [item for item in _image_paths(folder, f"frames of {path.stem}") if item.name >= entries[0][0].name]
    index_of = {item.name: index for index, item in enumerate(frames)}
    count = len(names)
    budget.take(24 * count * len(frames), "joints of all frames")
    joints, visible = np.full((len(frames), count, 2), np.nan), np.zeros((len(frames), count), bool)
    areas = np.full(len(frames), np.nan)
    for image, mask, points, seen in entries:
        if image.name not in index_of:
            raise InputError(f"expected the annotated frame {image}, found none; complete the frames")
        index = index_of[image.name]
        joints[index], visible[index] = points, seen
        areas[index] = np.count_nonzero(read_indexed_png(mask))
    last = max(index_of[image.name] for image, *_ in entries) + 1
    return JointSequence(path.stem, tuple(frames[:last]), names, joints[:last], visible[:last], areas[:last])


def _badja_entries(content: Any, root: Path) -> tuple[list[tuple[Path, Path, np.ndarray, np.ndarray]], tuple[str, ...]]:
    """Return (frame, mask, joints [P, 2] as (x, y), visible [P]) of each annotated frame, and the joints' names."""
    entries = []
    if isinstance(content, dict):
        names = tuple(str(name) for name in content["keypoint_names"])
        folder = root / _relative_path(content["frames_dir"])
        masks = Path(*("Annotations" if part == "JPEGImages" else part for part in folder.parts))
        for stem, values in content["frames"].items():
            table = np.array(values, np.float64).reshape(len(names), 3)
            entries.append(
                (folder / f"{_relative_path(stem)}.jpg", masks / f"{stem}.png", table[:, :2], table[:, 2] > 0)
            )
        return entries, names
    for entry in content:
        table = np.array(entry["joints"], np.float64).reshape(-1, 2)
        seen = np.array(entry["visibility"]).reshape(len(table)) > 0
        # The published files hold (row, column).
        image, mask = (root / _relative_path(entry[name]) for name in ("image_path", "segmentation_path"))
        entries.append((image, mask, table[:, ::-1], seen))
    count = len(entries[0][2]) if entries else 0
    if any(len(points) != count for _, _, points, _ in entries):
        raise ValueError("frames with different numbers of joints")
    return entries, tuple(f"joint {index}" for index in range(count))


def _relative_path(text: Any) -> Path:
    """Parse a relative path. Raises ValueError for a path that leads out of its folder."""
    path = Path(str(text).replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"a path that leads out of the data set: {text}")
    return path


def open_tapvid(path: Path) -> list[PointVideo]:
    """Read the videos of a TAP-Vid pickle. Raises InputError for any other content, and names the video."""
    content = read_pickle(path)
    if isinstance(content, dict):
        named = [(str(name), item) for name, item in content.items()]
    elif isinstance(content, list):
        named = [(f"video {index}", item) for index, item in enumerate(content)]
    else:
        named = []
    if not named:
        raise InputError(f"expected videos by name, or a list of them, in {path}, found {type(content).__name__}")
    budget = FileBudget.of(path)
    return [_point_video(path, name, item, budget) for name, item in named]


def _point_video(path: Path, name: str, item: Any, budget: FileBudget) -> PointVideo:
    expected = f"expected video, points [N, T, 2] and occluded [N, T] for {name} in {path}"
    if not isinstance(item, dict) or not {"video", "points", "occluded"} <= set(item):
        raise InputError(
            f"{expected}, found {sorted(map(str, item)) if isinstance(item, dict) else type(item).__name__}"
        )
    video, points, occluded = item["video"], item["points"], item["occluded"]
    if isinstance(video, np.ndarray) and video.dtype == object:
        video = video.tolist()
    decodable = (
        isinstance(video, np.ndarray) and video.dtype == np.uint8 and video.ndim == 4 and video.shape[3] == 3
    ) or (isinstance(video, list) and all(isinstance(frame, bytes) for frame in video))
    arrays = isinstance(points, np.ndarray) and isinstance(occluded, np.ndarray)
    if not decodable or not arrays or not len(video):
        raise InputError(f"{expected}, the video as RGB [T, H, W, 3] uint8 or as encoded images; found something else")
    shape = (points.shape[0] if points.ndim else 0, len(video))
    if points.shape != (*shape, 2) or occluded.shape != shape or points.dtype.kind not in "fiu":
        raise InputError(f"{expected} with T = {len(video)}, found {list(points.shape)} and {list(occluded.shape)}")
    # One array of the file may be that of any number of videos.
    budget.take(9 * points.size + 1000, "points")
    return PointVideo(name, video, points.astype(np.float64), occluded.astype(bool))


def _image_paths(folder: Path, content: str) -> tuple[Path, ...]:
    """List the images of a folder by name. Raises InputError, which names the content, for a folder without images."""
    if not folder.is_dir():
        raise InputError(f"expected the {content} in {folder}, found no folder; complete the data set")
    paths = tuple(sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES))
    if not paths:
        raise InputError(f"expected the {content} in {folder}, found no images; complete the data set")
    return paths
