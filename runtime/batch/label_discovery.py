"""Discovery of the annotations of a video by its name. FRAME is the index in a video, or an image's name.

NAME.png:               masks of the first frame
NAME.csv:               points (name,x,y) or boxes (x0,y0,x1,y1) of the first frame or by a column `frame`; DeepLabCut
NAME.json:              COCO masks and keypoints, whose file names are the frames; or LabelMe of the first frame
NAME.xml:               CVAT 1.1, of images or of a video
NAME.slp:               SLEAP
NAME.h5:                DeepLabCut's table
NAME/FRAME.json:        LabelMe
NAME/FRAME.txt:         YOLO for segmentation, or for pose if NAME/data.yaml has kpt_shape
NAME/FRAME.png:         masks
NAME/OBJECT/FRAME.png:  black and white mask of one object; the folder is its id or its name
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from corrflow.errors import InputError
from corrflow.runtime.formats.annotations import AnnotationFile, Annotations, ReadContext
from corrflow.runtime.formats.registry import read_annotations, read_object_mask
from corrflow.runtime.formats.yolo import DATA_YAML


def annotation_files(folder: Path, name: str) -> list[Path]:
    """Return the annotation files of a video in a fixed order. Raises InputError without any."""
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


def find_annotations(folder: Path, name: str, frame_size: Callable[[], tuple[int, int]]) -> Annotations:
    """Read every annotation file of a video.

    frame_size: returns (height, width) of the video's frames; called only for files that do not state it

    Raises InputError for files that cannot be read, and for files without an object.
    """

    def read(path: Path) -> AnnotationFile:
        if path.parent.parent == folder / name and path.suffix == ".png":
            return read_object_mask(path, path.stem)
        return read_annotations(path, ReadContext(name, 0 if path.parent == folder else path.stem, frame_size))

    files = [path for path in annotation_files(folder, name) if path.name not in (DATA_YAML, "classes.txt")]
    annotations = Annotations.of(map(read, files))
    if not annotations.objects:
        raise InputError(f"expected objects in the labels for {name!r} in {str(folder)!r}, got none; label one")
    return annotations
