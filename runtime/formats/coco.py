"""COCO JSON with run-length masks and keypoints; masks are coded by pycocotools, the format's own library.

The writer adds fields to COCO: `track_id` of an annotation is the object's id in all frames. `frame_index` and `time`,
in seconds, belong to an image. Coordinates are pixels, with (0, 0) at the centre of the top-left pixel.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np

from corrflow.atomic_files import AtomicFile, check_writable, write_errors
from corrflow.errors import InputError
from corrflow.runtime.formats.base import LARGEST_SIDE, Sink
from corrflow.runtime.types import FrameResult, KeypointsObject, MaskObject, ObjectResult, TrackedObject


class CocoSink(Sink):
    """Writer of one JSON file for all frames. Only the names of the objects stay in memory."""

    def __init__(self, path: str | Path) -> None:
        """Create the file. Raises InputError where the path cannot be written to."""
        self._path = Path(path)
        check_writable(self._path)
        self._output = AtomicFile(self._path, exclusive=True)
        # Annotations and images alternate, but the file has all annotations first.
        self._images_output = AtomicFile(f"{self._path}.images", exclusive=True)
        self._annotations = open(self._output.part, "w", encoding="utf-8")  # noqa: SIM115, open until close()
        self._images = open(self._images_output.part, "w+", encoding="utf-8")  # noqa: SIM115
        self._categories: dict[int, dict[str, Any]] = {}
        self._frames = self._count = 0

    def write(self, result: FrameResult) -> None:
        height, width = result.mask.shape
        image = {
            "id": result.frame.index + 1,
            "file_name": f"{result.frame.name}.jpg",
            "height": height,
            "width": width,
            "frame_index": result.frame.index,
            "time": round(result.frame.time, 6),
        }
        with write_errors(self._path):
            self._images.write((",\n" if self._frames else "") + json.dumps(image, ensure_ascii=False))
            for obj in result.objects:
                annotation = self._annotation(result, obj)
                self._annotations.write(",\n" if self._count else '{"annotations": [\n')
                self._annotations.write(json.dumps(annotation, allow_nan=False))
                self._count += 1
        self._frames += 1

    def close(self) -> None:
        if self._annotations.closed:
            return
        try:
            with write_errors(self._path):
                with self._annotations as file, self._images as images:
                    file.write('\n],\n"images": [\n' if self._count else '{"annotations": [],\n"images": [\n')
                    images.seek(0)
                    shutil.copyfileobj(images, file)
                    categories = json.dumps(list(self._categories.values()), ensure_ascii=False)
                    file.write(f'\n],\n"categories": {categories}}}\n')
                self._output.finish(keep=self._frames > 0)
        finally:
            self._images_output.finish(keep=False)

    def _annotation(self, result: FrameResult, obj: ObjectResult) -> dict[str, Any]:
        """Return the annotation of one object, and add its category."""
        category = {"id": obj.id, "name": obj.name or f"object {obj.id}", "supercategory": "object"}
        annotation: dict[str, Any] = {
            "id": self._count + 1,
            "image_id": result.frame.index + 1,
            "category_id": obj.id,
            "track_id": obj.id,
            "iscrowd": 0,
            "score": round(obj.confidence, 4),
        }
        if obj.points is None:
            annotation |= _mask_fields(result.mask == obj.id)
        else:
            points = np.round(obj.points.astype(np.float64), 3)
            flat = [number for x, y in points.tolist() for number in (x, y, 2)]
            (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
            box = [left, top, right - left, bottom - top]
            annotation |= {"keypoints": flat, "num_keypoints": len(points), "bbox": box, "area": box[2] * box[3]}
            category |= {"keypoints": list(obj.point_names), "skeleton": []}
        self._categories.setdefault(obj.id, category)
        return annotation


def read_coco(content: Any, path: Path) -> dict[int | str, list[TrackedObject]]:
    """Convert the COCO JSON of a file to objects, by `frame_index`, or else by the image's name without its suffix.

    content: parsed JSON
    path:    file name for error messages

    Raises InputError for any other JSON, and for JSON without annotations.
    """
    try:
        annotations = [entry for entry in content["annotations"] if not entry.get("iscrowd")]
        if not annotations:
            raise InputError(f"expected annotations in {path}, got none; label at least one image")
        images = {entry["id"]: entry for entry in content["images"]}
        categories = {entry["id"]: entry for entry in content.get("categories", [])}
        by_frame: dict[int | str, list[TrackedObject]] = {}
        for entry in annotations:
            image = images[entry["image_id"]]
            size = int(image["height"]), int(image["width"])
            if not all(1 <= side <= LARGEST_SIDE for side in size):
                raise ValueError(f"an image of {size[1]}x{size[0]}")
            index = image.get("frame_index")
            frame = index if isinstance(index, int) else Path(image["file_name"]).stem
            objects = _objects(entry, categories.get(entry.get("category_id"), {}), size)
            by_frame.setdefault(frame, []).extend(objects)
        return by_frame
    except InputError:
        raise
    # pycocotools reports damage, and Python wrong types, with exceptions of many kinds.
    except Exception as error:
        raise InputError(
            f"expected COCO JSON with images and annotations in {path}, got one that cannot be read "
            f"({type(error).__name__}: {error}); export it again"
        ) from error


def _objects(entry: dict[str, Any], category: dict[str, Any], size: tuple[int, int]) -> list[TrackedObject]:
    """Return the object of an annotation; none for an annotation without mask or visible keypoints."""
    number = entry.get("track_id")
    identity = number if isinstance(number, int) and 0 < number < 256 else 0
    name = str(category.get("name", ""))
    name = "" if name == f"object {identity}" else name  # CocoSink's name of an object without a name
    if entry.get("segmentation"):
        return [MaskObject(identity, _decode(entry["segmentation"], size), name)]
    if not entry.get("keypoints"):
        return []
    points = np.array(entry["keypoints"], np.float64).reshape(-1, 3)
    names = category.get("keypoints") or [f"point{index + 1}" for index in range(len(points))]
    labelled = [index for index in range(len(points)) if points[index, 2] > 0]
    if not labelled:
        return []
    return [KeypointsObject(identity, points[labelled, :2].astype(np.float32), tuple(names[i] for i in labelled), name)]


def _decode(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """Decode polygons or run lengths, compressed or not, to a mask [H, W] bool."""
    from pycocotools import mask as rle

    height, width = size
    if isinstance(segmentation, list):
        encoded = rle.merge(rle.frPyObjects(segmentation, height, width))
    elif [int(side) for side in segmentation["size"]] != [height, width]:
        raise ValueError(f"a mask of {segmentation['size']} on an image of {[height, width]}")
    elif isinstance(segmentation["counts"], list):
        # Checked first, because the library decodes in C.
        runs = [int(run) for run in segmentation["counts"]]
        if min(runs, default=-1) < 0 or sum(runs) != height * width:
            raise ValueError("run lengths that do not fill the image")
        encoded = rle.frPyObjects(segmentation, height, width)
    else:
        encoded = {"size": [height, width], "counts": segmentation["counts"]}
    return rle.decode(cast(Any, encoded)).astype(bool)


def _mask_fields(mask: np.ndarray) -> dict[str, Any]:
    """Return the fields of a mask [H, W] bool: segmentation, area and box."""
    from pycocotools import mask as rle

    encoded: Any = rle.encode(np.asfortranarray(mask, np.uint8))
    return {
        "segmentation": {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode()},
        "area": int(mask.sum()),
        "bbox": [float(side) for side in rle.toBbox(encoded).tolist()],
    }
