"""Reader of SLEAP's .slp: the instances of one video, with tracks as identities."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from corrflow.errors import InputError
from corrflow.runtime.formats.annotations import FileContent, ReadContext
from corrflow.runtime.formats.label_schema import FrameKey, LabelSchema
from corrflow.runtime.formats.sleap_file import PREDICTED, USER, SleapFile, SleapVideo, open_sleap
from corrflow.runtime.types import KeypointsObject


def read_sleap(path: Path, content: Any, context: ReadContext) -> FileContent:
    """Read the instances of one video by frame: those of the user, or the predicted ones of a video without them.

    Raises InputError.
    """
    try:
        file = open_sleap(path, context.budget)
        if not file.skeletons:
            raise ValueError("no skeleton")
        return _read(file, context)
    # h5py reports damage with many plain exceptions.
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, MemoryError) as error:
        raise InputError(
            f"expected SLEAP labels in {path}, got a file that cannot be read ({type(error).__name__}: {error}); "
            "save it again"
        ) from error


def _read(file: SleapFile, context: ReadContext) -> FileContent:
    instances = file.tables["instances"]
    selected = context.select_videos(video.path for video in file.videos)
    videos = {video.number: video for video in file.videos if video.path in selected}
    rows = file.tables["frames"]
    own = [row for row in rows if int(row["video"]) in videos]
    for row in rows:
        context.budget.check_time()
        if int(row["video"]) not in videos:
            context.ignore(f"frame {int(row['frame_idx'])} of video {int(row['video'])}", "labels of another video")
    chosen = [(row, instances[int(row["instance_id_start"]) : int(row["instance_id_end"])]) for row in own]
    has_user = any((part["instance_type"] == USER).any() for _, part in chosen)
    frames: dict[FrameKey, list[KeypointsObject]] = {}
    image_names: dict[FrameKey, str] = {}
    for row, part in chosen:
        context.budget.check_time()
        key, name = _key(videos[int(row["video"])], int(row["frame_idx"]), context)
        objects = []
        for entry in part:
            is_prediction = int(entry["instance_type"]) == PREDICTED
            if is_prediction and has_user:
                context.ignore(
                    f"frame {key!r}, predicted {_label(file, entry)}",
                    "the user's instances count in place of predicted",
                )
            elif (obj := _object(file, entry, is_prediction, key, context)) is not None:
                objects.append(obj)
        if objects:
            frames.setdefault(key, []).extend(objects)
            if name:
                image_names[key] = name
    _note_others(file, videos, context)
    if not frames and not context.notes.ignored and not context.notes.left_out:
        raise ValueError("no labelled points; label at least one frame")
    entry = next((video.entry for video in videos.values()), "")
    categories = {one.name: one for one in reversed(file.skeletons)}
    return FileContent(frames, LabelSchema(tuple(reversed(categories.values())), "", image_names, video=entry))


def _key(video: SleapVideo, index: int, context: ReadContext) -> tuple[FrameKey, str]:
    """Return the key of a frame, and the path of its image where both the file and the video have images."""
    if context.frame_names is not None and index < len(video.images):
        path = PurePosixPath(video.images[index].replace("\\", "/"))
        return path.stem, str(path)
    return index, ""


def _track(file: SleapFile, entry: Any) -> str | None:
    number = int(entry["track"])
    return file.tracks[number] if 0 <= number < len(file.tracks) else None


def _label(file: SleapFile, entry: Any) -> str:
    track = _track(file, entry)
    return "instance without a track" if track is None else f"instance of {track!r}"


def _object(
    file: SleapFile, entry: Any, is_prediction: bool, key: FrameKey, context: ReadContext
) -> KeypointsObject | None:
    """Return the visible points of an instance, or None without any."""
    label = f"frame {key!r}, {_label(file, entry)}"
    number = int(entry["skeleton"])
    if number >= len(file.skeletons):
        context.leave_out(label, "its skeleton is not in the file")
        return None
    skeleton = file.skeletons[number]
    table = file.tables["pred_points" if is_prediction else "points"]
    points = table[int(entry["point_id_start"]) : int(entry["point_id_end"])]
    if len(points) != len(skeleton.point_names):
        context.leave_out(label, "its points do not fit its skeleton")
        return None
    low = f"its score is under {context.min_score:g}"
    if is_prediction and float(entry["score"]) < context.min_score:
        context.ignore(label, low)
        return None
    is_finite = np.isfinite(points["x"]) & np.isfinite(points["y"])
    is_used = is_finite & points["visible"].astype(bool)
    _ignore_points(context, label, skeleton.point_names, is_finite & ~is_used, "it is marked as not visible")
    if is_prediction and context.min_score:
        is_low = is_used & (points["score"] < context.min_score)
        _ignore_points(context, label, skeleton.point_names, is_low, low)
        is_used &= ~is_low
    used = np.flatnonzero(is_used).tolist()
    if not used:
        return None
    coordinates = np.stack([points["x"][used], points["y"][used]], 1) - file.shift
    track = _track(file, entry)
    is_number = track is not None and track.isascii() and track.isdigit() and str(int(track)) == track
    return KeypointsObject(
        0,
        coordinates.astype(np.float32),
        tuple(skeleton.point_names[k] for k in used),
        "" if track is None or is_number else track,
        int(track or 0) if is_number else track,
        skeleton.name,
        is_prediction,
    )


def _ignore_points(context: ReadContext, label: str, names: tuple[str, ...], which: np.ndarray, why: str) -> None:
    for k in np.flatnonzero(which).tolist():
        context.ignore(f"{label}, point {names[k]!r}", why)


def _note_others(file: SleapFile, videos: Iterable[int], context: ReadContext) -> None:
    """Name what a file has beside the instances."""
    negative = sum(number in videos for number, _ in file.negative)
    if negative:
        context.ignore(f"{negative} negative frames", "they say that no animal is there, which starts no tracking")
    for name in file.others:
        context.ignore(name, "of SLEAP's labels only the instances of skeletons are read")
