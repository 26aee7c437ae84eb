"""The labels of one video, found by its name in the folder of labels: on one frame, or on several.

NAME.png             masks of the first frame
NAME.csv             points: name,x,y of the first frame, or with a column `frame` (index from 0) of that frame;
                     boxes: x0,y0,x1,y1, likewise; or DeepLabCut's
NAME.json            COCO: masks (RLE or polygons) and keypoints of pictures, whose file names name the frames;
                     or LabelMe's of the first frame
NAME.xml             CVAT 1.1, of pictures or of a video
NAME.slp             SLEAP
NAME.h5              DeepLabCut's table
NAME/FRAME.json      LabelMe, of the frame of that name
NAME/FRAME.txt       YOLO, for segmentation or, where NAME/data.yaml has kpt_shape, for pose
NAME/FRAME.png       masks of the frame of that name: its index in a video, the picture's name in a folder
NAME/OBJECT/FRAME.png  one black and white mask for each object of that frame, in a folder of its id or its name
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from corrflow.errors import InputError
from corrflow.runtime.formats.annotations import AnnotationFile, Annotations, ReadContext
from corrflow.runtime.formats.registry import read_annotations, read_object_mask
from corrflow.runtime.formats.yolo import DATA_YAML


def label_files(folder: Path, name: str) -> list[Path]:
    """Return the annotation files of a video in a fixed order. Raises InputError where there are none."""
    suffixes = (".png", ".csv", ".json", ".xml", ".slp", ".h5")
    files = [path for suffix in suffixes if (path := folder / f"{name}{suffix}").is_file()]
    inner = folder / name
    if inner.is_dir():
        patterns = ("*.png", "*.json", "*.txt", "*/*.png", DATA_YAML)
        files += sorted(path for pattern in patterns for path in inner.glob(pattern) if path.is_file())
    if not files:
        raise InputError(
            f"expected labels for {name!r} in {str(folder)!r}, got none; add {name}.png, .csv, .json, .xml, .slp or "
            f".h5, or {name}/FRAME.png, .json or .txt"
        )
    return files


def read_labels(folder: Path, name: str, frame_size: Callable[[], tuple[int, int]]) -> Annotations:
    """Read every annotation file of a video.

    frame_size: returns (height, width) of the video's frames; called only for files that do not state it

    Raises InputError for files that cannot be read or that hold no object.
    """

    def read(path: Path) -> AnnotationFile:
        if path.parent.parent == folder / name and path.suffix == ".png":
            return read_object_mask(path, path.stem)
        return read_annotations(path, ReadContext(name, 0 if path.parent == folder else path.stem, frame_size))

    files = [path for path in label_files(folder, name) if path.name not in (DATA_YAML, "classes.txt")]
    annotations = Annotations.of(map(read, files))
    if not annotations.objects:
        raise InputError(f"expected objects in the labels for {name!r} in {str(folder)!r}, got none; label one")
    return annotations
