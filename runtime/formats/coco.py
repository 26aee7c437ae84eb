"""Writer of COCO JSON; masks are coded by pycocotools, the format's own library.

Categories are the classes of the labels. The writer adds fields to COCO: `track_id` of an annotation is the identity of
its object in all frames. `frame_index` and `time`, in seconds, belong to an image.

Where the labels were polygons, masks become polygons, because many tools of polygons pass over run lengths. A polygon
that was given by hand stays as it was. Other masks become run lengths, which lose nothing.

Coordinates are pixels, with (0, 0) at the corner of the top-left pixel for contours and boxes, and at its centre for
keypoints.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from corrflow.atomic_files import AtomicFile, check_writable, write_errors
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.formats.label_schema import EMPTY_SCHEMA, LabelSchema
from corrflow.runtime.formats.polygons import simplified_polygons
from corrflow.runtime.types import MIN_POINT_CONFIDENCE, FrameResult, ObjectResult


class CocoSink(Sink):
    """Writer of one JSON file for all frames. Only the categories stay in memory."""

    def __init__(self, path: str | Path, schema: LabelSchema = EMPTY_SCHEMA) -> None:
        """Create the file. Raises InputError where the path cannot be written to."""
        self._path, self._schema = Path(path), schema
        check_writable(self._path)
        self._output = AtomicFile(self._path)
        # Annotations and images alternate, but the file has all annotations first.
        self._images_output = AtomicFile(f"{self._path}.images")
        # Text that UTF-8 does not have stays an escape of JSON.
        errors = "backslashreplace"
        self._annotations = open(self._output.part, "w", encoding="utf-8", errors=errors)  # noqa: SIM115, until close()
        self._images = open(self._images_output.part, "w+", encoding="utf-8", errors=errors)  # noqa: SIM115
        self._categories = _Categories(schema)
        self._frames = self._count = 0

    def write(self, result: FrameResult) -> None:
        height, width = result.mask.shape
        image = {
            "id": result.frame.index + 1,
            "file_name": self._schema.image_name(result.frame),
            "height": height,
            "width": width,
            "frame_index": result.frame.index,
            "time": round(result.frame.time, 6),
        }
        self._categories.add(result.objects)
        with write_errors(self._path):
            self._images.write((",\n" if self._frames else "") + json.dumps(image, ensure_ascii=False))
            for mask, points in _instances(result.objects):
                fields = self._fields(result, mask, points)
                if fields is None:
                    continue
                annotation = {"id": self._count + 1, "image_id": image["id"], **fields}
                self._annotations.write(",\n" if self._count else '{"annotations": [\n')
                self._annotations.write(json.dumps(annotation, ensure_ascii=False, allow_nan=False))
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
                    categories = json.dumps(self._categories.listed(), ensure_ascii=False)
                    file.write(f'\n],\n"categories": {categories}}}\n')
                self._output.finish(keep=self._frames > 0)
        finally:
            self._output.finish(keep=False)
            self._images_output.finish(keep=False)

    def _fields(
        self, result: FrameResult, mask: ObjectResult | None, points: ObjectResult | None
    ) -> dict[str, Any] | None:
        """Return the fields of an instance with a mask, points or both; None for one that is not in the picture."""
        obj = mask or points
        assert obj is not None, "an instance has at least one"
        outlined = self._schema.has_outlines or self._schema.has_only_boxes
        drawn = _mask_fields(result, mask, outlined) if mask is not None and mask.visible else {}
        track_id = obj.id if obj.track_id is None else obj.track_id
        fields: dict[str, Any] = {
            "category_id": self._categories.id_of(obj),
            "track_id": track_id,
            "attributes": {"track_id": track_id},  # where CVAT and Datumaro have it
            "iscrowd": 0,
            "score": round(max(one.confidence for one in (mask, points) if one is not None), 4),
        }
        if points is not None:
            placed = _point_fields(points, self._categories.points_of(points), result.mask.shape)
            # Without a visible point, the box is a region for training and evaluation to pass over.
            if not drawn and not placed["num_keypoints"]:
                fields["iscrowd"] = 1
            return {**fields, **placed, **drawn}
        return {**fields, **drawn} if drawn else None


class _Categories:
    """Categories of the file: those of the labels with their ids, then one for each class or unnamed object."""

    def __init__(self, schema: LabelSchema) -> None:
        self._entries: dict[str, dict[str, Any]] = {}
        self._ids = {one.id for one in schema.categories if one.id is not None}
        for one in schema.categories:
            skeleton = [[start + 1, end + 1] for start, end in one.edges]
            points = {"keypoints": list(one.point_names), "skeleton": skeleton} if one.point_names else {}
            number = self._free_id(1) if one.id is None else one.id
            supercategory = one.supercategory or "object"
            self._entries[one.name] = {"id": number, "name": one.name, "supercategory": supercategory, **points}

    def add(self, objects: Sequence[ObjectResult]) -> None:
        """Add the classes and points of a frame's objects that are new."""
        for obj in objects:
            name = _class_of(obj)
            if name not in self._entries:
                self._entries[name] = {"id": self._free_id(obj.id), "name": name, "supercategory": "object"}
            if obj.points is not None:
                entry = self._entries[name]
                names = entry.setdefault("keypoints", [])
                entry.setdefault("skeleton", [])
                names += [point for point in obj.point_names if point not in names]

    def id_of(self, obj: ObjectResult) -> int:
        """Return the id of an object's category."""
        return self._entries[_class_of(obj)]["id"]

    def points_of(self, obj: ObjectResult) -> Sequence[str]:
        """Return the keypoints of an object's category."""
        return self._entries[_class_of(obj)]["keypoints"]

    def listed(self) -> list[dict[str, Any]]:
        """Return the categories as the file has them."""
        return list(self._entries.values())

    def _free_id(self, wanted: int) -> int:
        number = wanted if wanted not in self._ids else max(self._ids) + 1
        self._ids.add(number)
        return number


def _class_of(obj: ObjectResult) -> str:
    return obj.category or obj.name or f"object {obj.id if obj.track_id is None else obj.track_id}"


def _instances(objects: Sequence[ObjectResult]) -> list[tuple[ObjectResult | None, ObjectResult | None]]:
    """Return the mask and the points of each instance; a mask and points of one class and identity are one instance."""
    masks = [one for one in objects if one.points is None]
    pairs: list[tuple[ObjectResult | None, ObjectResult | None]] = []
    left = list(masks)
    for points in objects:
        if points.points is None:
            continue
        own = [one for one in left if one.category and one.category == points.category]
        if points.track_id is not None:
            own = [one for one in own if one.track_id == points.track_id]
        elif len(own) > 1 or any(one is not points and _is_like(one, points) for one in objects):
            own = []  # which mask belongs to which points is not known
        pairs.append((own[0] if own else None, points))
        left = [one for one in left if not own or one is not own[0]]
    pairs += [(mask, None) for mask in left]
    return sorted(pairs, key=lambda pair: min(one.id for one in pair if one is not None))


def _is_like(one: ObjectResult, points: ObjectResult) -> bool:
    return one.points is not None and one.category == points.category


def _mask_fields(result: FrameResult, obj: ObjectResult, has_outlines: bool) -> dict[str, Any]:
    """Return the segmentation, area and box of a visible mask."""
    from pycocotools import mask as rle

    mask = result.mask == obj.id
    encoded: Any = rle.encode(np.asfortranarray(mask, np.uint8))
    box = [float(side) for side in rle.toBbox(encoded).tolist()]
    segmentation: Any = {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode()}
    contours = list(obj.polygons)
    if not contours and has_outlines and not obj.is_annotation:
        contours = simplified_polygons(mask, along_edges=True)
    if contours:
        corners = np.concatenate(contours) + 0.5
        low, high = corners.min(0), corners.max(0)
        box = np.round([*low, *(high - low)], 3).tolist()
        segmentation = [np.round(outline + 0.5, 4).ravel().tolist() for outline in contours]
    return {"segmentation": segmentation, "area": int(mask.sum()), "bbox": box}


def _point_fields(obj: ObjectResult, names: Sequence[str], shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the keypoints of an object in the order of its category, with zeros for those that are not visible."""
    assert obj.points is not None
    points = np.nan_to_num(obj.points.astype(np.float64))
    confidence = np.ones(len(points)) if obj.point_confidence is None else obj.point_confidence
    rows = np.zeros((len(names), 3))
    seen = [
        k
        for k, name in enumerate(obj.point_names)
        if name in obj.annotated_points or confidence[k] > MIN_POINT_CONFIDENCE
    ]
    for k in seen:
        rows[names.index(obj.point_names[k])] = [*points[k], 2]
    places = points[seen] if seen else points
    low, high = places.min(0), places.max(0)
    if not seen:
        low, high = (side.clip(0, [shape[1] - 1, shape[0] - 1]) for side in (low, high))
    width, height = np.maximum(high - low, 1).tolist()
    flat = [
        int(value) if position % 3 == 2 else round(value, 3) for position, value in enumerate(rows.ravel().tolist())
    ]
    box = [round(side, 3) for side in (*low.tolist(), width, height)]
    return {"keypoints": flat, "num_keypoints": len(seen), "bbox": box, "area": round(width * height, 3)}
