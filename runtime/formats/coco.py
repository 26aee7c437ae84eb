"""COCO JSON with run-length masks and keypoints, by pycocotools, the format's own library.

Written with two fields more than COCO has: `track_id` of an annotation, the same for an object in all frames, and
`frame_index` with `time` in seconds of a picture. Pixels are COCO's: (0, 0) is the centre of the top-left one, as here.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np

from corrflow.atomic_files import finish, part_of, prepare_place, write_failed
from corrflow.errors import InputError
from corrflow.runtime.formats.base import LARGEST_SIDE, Sink
from corrflow.runtime.types import FrameResult, KeypointsObject, MaskObject, ObjectResult, TrackedObject


class CocoSink(Sink):
    """One JSON file for all frames, written as they come: nothing grows in memory but the objects' names."""

    def __init__(self, path: str | Path) -> None:
        """Raises InputError where the path cannot be written to."""
        self._path = Path(path)
        prepare_place(self._path)
        # Annotations and pictures come by turns and are stored one after the other.
        self._pictures_path = part_of(self._path.with_name(f"{self._path.name}.images"))
        self._annotations = part_of(self._path).open("w", encoding="utf-8")
        self._pictures = self._pictures_path.open("w+", encoding="utf-8")
        self._categories: dict[int, dict[str, Any]] = {}
        self._frames = self._count = 0

    def write(self, result: FrameResult) -> None:
        height, width = result.mask.shape
        picture = {
            "id": result.frame.index + 1,
            "file_name": f"{result.frame.name}.jpg",
            "height": height,
            "width": width,
            "frame_index": result.frame.index,
            "time": round(result.frame.time, 6),
        }
        try:
            self._pictures.write((",\n" if self._frames else "") + json.dumps(picture, ensure_ascii=False))
            for track in result.objects:
                annotation = self._annotation(result, track)
                self._annotations.write(",\n" if self._count else '{"annotations": [\n')
                self._annotations.write(json.dumps(annotation, allow_nan=False))
                self._count += 1
        except OSError as error:
            raise write_failed(self._path, error) from None
        self._frames += 1

    def close(self) -> None:
        if self._annotations.closed:
            return
        try:
            with self._annotations as file, self._pictures as pictures:
                file.write('\n],\n"images": [\n' if self._count else '{"annotations": [],\n"images": [\n')
                pictures.seek(0)
                shutil.copyfileobj(pictures, file)
                categories = json.dumps(list(self._categories.values()), ensure_ascii=False)
                file.write(f'\n],\n"categories": {categories}}}\n')
            finish(self._path, keep=self._frames > 0)
        except OSError as error:
            raise write_failed(self._path, error) from None
        finally:
            self._pictures_path.unlink(missing_ok=True)

    def _annotation(self, result: FrameResult, track: ObjectResult) -> dict[str, Any]:
        category = {"id": track.id, "name": track.name or f"object {track.id}", "supercategory": "object"}
        annotation: dict[str, Any] = {
            "id": self._count + 1,
            "image_id": result.frame.index + 1,
            "category_id": track.id,
            "track_id": track.id,
            "iscrowd": 0,
            "score": round(track.confidence, 4),
        }
        if track.points is None:
            annotation |= _mask_fields(result.mask == track.id)
        else:
            points = np.round(track.points.astype(np.float64), 3)
            flat = [number for x, y in points.tolist() for number in (x, y, 2)]
            (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
            box = [left, top, right - left, bottom - top]
            annotation |= {"keypoints": flat, "num_keypoints": len(points), "bbox": box, "area": box[2] * box[3]}
            category |= {"keypoints": list(track.point_names), "skeleton": []}
        self._categories.setdefault(track.id, category)
        return annotation


def read_coco(content: Any, path: Path) -> dict[int | str, list[TrackedObject]]:
    """The objects of each labelled frame of the JSON that lies at `path`, by `frame_index` or else the picture's name.

    Raises InputError for what is no COCO JSON, and for one without annotations.
    """
    try:
        annotations = [entry for entry in content["annotations"] if not entry.get("iscrowd")]
        if not annotations:
            raise InputError(f"expected annotations in {path}, got none; label at least one picture")
        pictures = {entry["id"]: entry for entry in content["images"]}
        categories = {entry["id"]: entry for entry in content.get("categories", [])}
        found: dict[int | str, list[TrackedObject]] = {}
        for entry in annotations:
            picture = pictures[entry["image_id"]]
            size = int(picture["height"]), int(picture["width"])
            if not all(1 <= side <= LARGEST_SIDE for side in size):
                raise ValueError(f"a picture of {size[1]}x{size[0]}")
            index = picture.get("frame_index")
            frame = index if isinstance(index, int) else Path(picture["file_name"]).stem
            objects = _objects(entry, categories.get(entry.get("category_id"), {}), size)
            found.setdefault(frame, []).extend(objects)
        return found
    except InputError:
        raise
    # pycocotools reports what it cannot decode with plain exceptions; so do wrong types on the way there.
    except Exception as error:
        raise InputError(
            f"expected COCO JSON with images and annotations in {path}, got one that cannot be read "
            f"({type(error).__name__}: {error}); export it again"
        ) from error


def _objects(entry: dict[str, Any], category: dict[str, Any], size: tuple[int, int]) -> list[TrackedObject]:
    number = entry.get("track_id")
    identity = number if isinstance(number, int) and 0 < number < 256 else 0
    name = str(category.get("name", ""))
    name = "" if name == f"object {identity}" else name  # what the sink calls an object without a name
    if entry.get("segmentation"):
        return [MaskObject(identity, _decode(entry["segmentation"], size), name)]
    if not entry.get("keypoints"):
        return []
    places = np.array(entry["keypoints"], np.float64).reshape(-1, 3)
    names = category.get("keypoints") or [f"point{index + 1}" for index in range(len(places))]
    seen = [index for index in range(len(places)) if places[index, 2] > 0]
    if not seen:
        return []
    return [KeypointsObject(identity, places[seen, :2].astype(np.float32), tuple(names[i] for i in seen), name)]


def _decode(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """[H, W] bool of polygons, or of run lengths, compressed or not."""
    from pycocotools import mask as rle

    height, width = size
    if isinstance(segmentation, list):
        encoded = rle.merge(rle.frPyObjects(segmentation, height, width))
    elif [int(side) for side in segmentation["size"]] != [height, width]:
        raise ValueError(f"a mask of {segmentation['size']} on a picture of {[height, width]}")
    elif isinstance(segmentation["counts"], list):
        # Checked here rather than left to the library, which decodes in C.
        runs = [int(run) for run in segmentation["counts"]]
        if min(runs, default=-1) < 0 or sum(runs) != height * width:
            raise ValueError("run lengths that do not fill the picture")
        encoded = rle.frPyObjects(segmentation, height, width)
    else:
        encoded = {"size": [height, width], "counts": segmentation["counts"]}
    return rle.decode(cast(Any, encoded)).astype(bool)


def _mask_fields(own: np.ndarray) -> dict[str, Any]:
    from pycocotools import mask as rle

    encoded: Any = rle.encode(np.asfortranarray(own, np.uint8))
    return {
        "segmentation": {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode()},
        "area": int(own.sum()),
        "bbox": [float(side) for side in rle.toBbox(encoded).tolist()],
    }
