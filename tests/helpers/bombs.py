"""Hostile files, read in a process of limited memory: every reader gives objects or one sentence, soon and cheaply.

    python tests/helpers/bombs.py labels FOLDER    # one line of JSON for each file of a group

A case writes its file to a folder and reads it. Groups are processes, because a native crash ends one.
"""

from __future__ import annotations

import base64
import io
import json
import os
import resource
import subprocess
import sys
import time
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from corrflow.errors import CorrflowError

MOST_BYTES, MOST_SECONDS = 1 << 30, 30.0
GROUPS: dict[str, dict[str, Callable[[Path], object]]] = {}
_SIZE = (66, 98)


def case(group: str) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    """Add a function to a group, under its name."""

    def add(function: Callable[[Path], object]) -> Callable[[Path], object]:
        GROUPS.setdefault(group, {})[function.__name__] = function
        return function

    return add


def outcomes(group: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Run a group in a process of its own, and return the outcome of each case by its name."""
    command = [sys.executable, __file__, group, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    found = {one["name"]: one for one in map(json.loads, done.stdout.splitlines())}
    missing = [name for name in GROUPS[group] if name not in found]
    assert done.returncode == 0, f"signal {-done.returncode} in {missing[:1]}: {done.stderr[-800:]}"
    return found


def main(group: str, folder: Path) -> None:
    """Run the cases of a group, and print their outcomes."""
    warnings.simplefilter("ignore")
    _load_libraries(group)
    start_bytes = _peak()
    with open("/proc/self/statm") as file:
        room = int(file.read().split()[0]) * resource.getpagesize() + (3 << 29)
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    for name, function in GROUPS[group].items():
        place = folder / name
        place.mkdir()
        start = time.thread_time()
        try:
            outcome = f"ok: {function(place)!r:.200}"
        except CorrflowError as error:
            outcome = f"{type(error).__name__}: {error}"
        except BaseException:
            outcome = traceback.format_exc(limit=-4)
        seconds = time.thread_time() - start
        print(json.dumps({"name": name, "outcome": outcome, "seconds": seconds, "bytes": _peak() - start_bytes}))
        sys.stdout.flush()


def _load_libraries(group: str) -> None:
    """Import what the readers import at their first use, whose memory is not that of a file."""
    import cv2  # noqa: F401
    import h5py  # noqa: F401

    if group == "training":
        import corrflow.train.checkpoint  # noqa: F401
    if group == "artifacts":
        import onnxruntime  # noqa: F401
    if group == "data_sets":
        import scipy.io  # noqa: F401


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _labels(path: Path) -> str:
    """Read labels as a batch does, and return what was read and left out."""
    from corrflow.runtime.formats.annotations import Annotations, ReadContext
    from corrflow.runtime.formats.registry import read_annotations
    from corrflow.runtime.types import Frame

    annotations = Annotations.of([read_annotations(path, ReadContext("clip", 0, lambda: _SIZE))])
    frame = Frame(np.zeros((*_SIZE, 3), np.uint8), 0, 0.0, "00000")
    usable = [packed.unpacked() for packed in annotations.usable_on(frame)]
    return f"{len(usable)} objects; {'; '.join(annotations.notes)}"


def _text(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return _labels(folder / name)


def _coco(folder: Path, annotations: list[str]) -> str:
    """Read COCO JSON of a frame with these annotations, given as the text of their fields."""
    listed = ",".join(f'{{"id":{k},"image_id":1,"category_id":1,{one}}}' for k, one in enumerate(annotations, 1))
    images = '[{"id":1,"file_name":"00000.png","width":98,"height":66,"frame_index":0}]'
    return _text(
        folder, "clip.json", f'{{"images":{images},"categories":[{{"id":1,"name":"a"}}],"annotations":[{listed}]}}'
    )


def blank_png(side: int) -> bytes:
    """Return a PNG of one bit a pixel, all background, in a few kilobytes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    rows = zlib.compressobj(1)
    packed = b"".join(rows.compress(bytes(1 + (side + 7) // 8)) for _ in range(side)) + rows.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@case("labels")
def mask_of_13300_pixels_square(folder: Path) -> object:
    (folder / "00000.png").write_bytes(blank_png(13_300))
    return _labels(folder / "00000.png")


@case("labels")
def labelme_of_32768_pixels_square(folder: Path) -> object:
    shape = '{"label":"a","points":[[0,0],[30000,0],[30000,30000]],"shape_type":"polygon"}'
    return _text(folder, "0.json", f'{{"shapes":[{shape}],"imageHeight":32768,"imageWidth":32768}}')


@case("labels")
def labelme_mask_that_is_a_large_image(folder: Path) -> object:
    mask = base64.b64encode(blank_png(13_300)).decode()
    shape = f'{{"label":"a","points":[[0,0],[13299,13299]],"shape_type":"mask","mask":"{mask}"}}'
    return _text(folder, "0.json", f'{{"shapes":[{shape}],"imageHeight":66,"imageWidth":98}}')


@case("labels")
def labelme_of_numbers_that_are_none(folder: Path) -> object:
    numbers = ("1e308", "Infinity", "NaN", "1e8", "1" * 400, "-1e300")
    shapes = [
        f'{{"label":"a","points":[[1,1],[{number},5],[5,9]],"shape_type":"{kind}","group_id":{number}}}'
        for number in numbers
        for kind in ("polygon", "rectangle", "circle", "point")
    ]
    return _text(folder, "0.json", f'{{"shapes":[{",".join(shapes)}],"imageHeight":66,"imageWidth":98}}')


@case("labels")
def labelme_of_a_side_of_400_digits(folder: Path) -> object:
    return _text(folder, "0.json", f'{{"shapes":[],"imageHeight":{"1" * 400},"imageWidth":Infinity}}')


@case("labels")
def coco_of_numbers_that_are_none(folder: Path) -> object:
    numbers = ("1e300", "NaN", "1e8", "Infinity", "1" * 400, "1" * 4000, "1e400")
    return _coco(
        folder,
        [f'"segmentation":[[1,1,{number},5,5,9]]' for number in numbers]
        + [f'"bbox":[0,0,{number},9],"score":{number},"track_id":{number}' for number in numbers]
        + [f'"keypoints":[{number},1,2]' for number in numbers]
        + [f'"segmentation":{{"size":[66,98],"counts":[{number}]}}' for number in numbers]
        + [f'"segmentation":{{"size":[{number},98],"counts":[0,6468]}}' for number in numbers],
    )


@case("labels")
def coco_of_polygons_with_many_sides(folder: Path) -> object:
    polygon = ",".join(f"{k % 2},{-400000 + 800000 * (k % 2)}" for k in range(60_000))
    return _coco(folder, [f'"segmentation":[[{polygon}]]'] * 20)


@case("labels")
def coco_of_30000_objects(folder: Path) -> object:
    return _coco(folder, ['"bbox":[1,1,5,5]'] * 30_000)


@case("labels")
def coco_of_30000_names(folder: Path) -> object:
    return _coco(folder, [f'"bbox":[1,1,5,5],"track_id":{k}' for k in range(30_000)])


@case("labels")
def json_of_nothing_but_objects(folder: Path) -> object:
    return _text(folder, "clip.json", '{"annotations":[' + "{}," * 2_500_000 + "{}]}")


@case("labels")
def json_nested_deeply(folder: Path) -> object:
    return _text(folder, "clip.json", '{"annotations":' + "[" * 200_000)


@case("labels")
def json_of_a_number_of_5000_digits(folder: Path) -> object:
    return _text(folder, "clip.json", '{"annotations":[' + "1" * 5000 + "]}")


@case("labels")
def aliases_of_yaml(folder: Path) -> object:
    levels = [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 10)]
    (folder / "data.yaml").write_text("a0: &a0 [1, 2]\n" + "\n".join(levels) + "\nnames: *a9\n")
    return _text(folder, "00000.txt", "0 0.5 0.5 0.1 0.1\n")


@case("labels")
def yaml_nested_deeply(folder: Path) -> object:
    (folder / "data.yaml").write_text("names: " + "[" * 100_000)
    return _text(folder, "00000.txt", "0 0.5 0.5 0.1 0.1\n")


@case("labels")
def yolo_of_many_lines(folder: Path) -> object:
    return _text(folder, "00000.txt", "0 0.5 0.5 0.1 0.1\n" * 200_000)


@case("labels")
def yolo_of_a_long_line(folder: Path) -> object:
    return _text(folder, "00000.txt", "0 " + "0.5 " * 900_000)


@case("labels")
def csv_of_100000_points(folder: Path) -> object:
    return _text(folder, "clip.csv", "frame,point,x,y\n" + "".join(f"0,p{k},1,1\n" for k in range(100_000)))


@case("labels")
def csv_of_numbers_that_are_none(folder: Path) -> object:
    return _text(folder, "clip.csv", f"frame,object,x0,y0,x1,y1\n{'1' * 400},1,0,0,5,5\n0,1,inf,0,1e308,5\n")


@case("labels")
def csv_of_many_rows(folder: Path) -> object:
    return _text(folder, "clip.csv", "x,y\n" + "1,1\n" * 1_400_000)


@case("labels")
def deeplabcut_of_many_columns(folder: Path) -> object:
    titles = [f"{title}{f',{title}' * 30_000}\n" for title in ("scorer", "bodyparts", "coords")]
    return _text(folder, "clip.csv", "".join(titles).replace("coords,coords", "coords,x,y", 1) + "1\n" * 100_000)


@case("labels")
def cvat_of_numbers_that_are_none(folder: Path) -> object:
    shapes = "".join(
        f'<ellipse label="a" cx="{n}" cy="3" rx="{n}" ry="3"/><polygon label="a" points="1,1;{n},5;5,9"/>'
        f'<mask label="a" rle="{n}" left="0" top="0" width="{n}" height="1"/><box label="a" xtl="0" ytl="0" xbr="{n}"'
        f' ybr="3" rotation="{n}"/><points label="a" points="{n},1"/>'
        for n in ("1e300", "nan", "inf", "99999999", "1" * 400)
    )
    return _text(folder, "clip.xml", f'<annotations><image id="0" name="clip/00000.png">{shapes}</image></annotations>')


@case("labels")
def cvat_nested_deeply(folder: Path) -> object:
    return _text(folder, "clip.xml", "<annotations><track>" + "<track>" * 100_000)


@case("labels")
def cvat_of_one_group(folder: Path) -> object:
    shape = '<mask label="a" group_id="7" rle="0,6468" left="0" top="0" width="98" height="66"/>' * 20_000
    return _text(folder, "clip.xml", f'<annotations><image id="0" name="clip/00000.png">{shape}</image></annotations>')


@case("labels")
def hdf5_table_that_is_not_there(folder: Path) -> object:
    import h5py

    with h5py.File(folder / "clip.h5", "w") as file:
        group = file.create_group("df_with_missing")
        group.attrs["pandas_type"] = "frame"
        group.create_dataset("block0_values", (1 << 30, 60), "<f8", chunks=(1024, 60))
        for axis in ("axis0", "block0_items"):
            group[f"{axis}_level0"] = np.array([b"x"])
            group.create_dataset(f"{axis}_label0", (1 << 32,), "<i4", chunks=(1024,))
    return _labels(folder / "clip.h5")


@case("labels")
def hdf5_tables_in_other_files(folder: Path) -> object:
    import h5py

    with h5py.File(folder / "clip.h5", "w") as file:
        group = file.create_group("df_with_missing")
        group.attrs["pandas_type"] = "frame"
        zeros = [("/dev/zero", 0, h5py.h5f.UNLIMITED)]
        group.create_dataset("block0_values", (1 << 20, 1), "<f8", external=zeros)
    return _labels(folder / "clip.h5")


@case("labels")
def sleap_tables_that_are_not_there(folder: Path) -> object:
    import h5py

    from corrflow.runtime.formats.sleap_file import FRAME, INSTANCE, POINT, PREDICTED_POINT

    with h5py.File(folder / "clip.slp", "w") as file:
        file.create_group("metadata").attrs["json"] = '{"nodes":[],"skeletons":[]}'
        kinds = {"frames": FRAME, "instances": INSTANCE, "points": POINT, "pred_points": PREDICTED_POINT}
        for name, kind in kinds.items():
            file.create_dataset(name, (1 << 28,), kind, chunks=(1024,))
    return _labels(folder / "clip.slp")


def _no_files(suffix: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        found = []
        (folder / f"zero{suffix}").symlink_to("/dev/zero")
        os.mkfifo(folder / f"pipe{suffix}")
        (folder / f"folder{suffix}").mkdir()
        for path in sorted(folder.iterdir()):
            try:
                found.append(f"ok {_labels(path)}")
            except CorrflowError as error:
                found.append(str(error))
        assert len(found) == 3 and all("expected a regular file" in one for one in found), found
        return found

    return read


for _suffix in (".png", ".json", ".csv", ".txt", ".xml", ".h5", ".slp"):
    GROUPS["labels"][f"no_file{_suffix}"] = _no_files(_suffix)


@case("labels")
def points_of_a_prompt(folder: Path) -> object:
    from corrflow.runtime.formats.points_csv import read_keypoints

    (folder / "points.csv").write_text("x,y\n" + "1,1\n" * 100_000)
    return read_keypoints(folder / "points.csv", 1)


@case("labels")
def prompt_file_of_30_large_masks(folder: Path) -> object:
    from corrflow.runtime.live.prompt import load_prompt

    side = 5700
    objects = [{"id": k, "name": "", "kind": "mask"} for k in range(1, 31)]
    arrays = {"description": np.array(json.dumps({"format": 1, "size": [side, side], "objects": objects}))}
    with zipfile.ZipFile(folder / "prompt.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        arrays["frame"] = np.frombuffer(blank_png(side), np.uint8)
        for k in range(1, 31):
            arrays[f"mask_{k}"] = np.full(16, 255, np.uint8)
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array)
            archive.writestr(f"{name}.npy", content.getvalue())
    return load_prompt(folder / "prompt.npz")


def _artifact(folder: Path, **changes: str) -> object:
    """Load a bundled model whose artifact.json has other texts in place of some fields of `tracking`."""
    from corrflow.runtime.artifacts.artifact import DESCRIPTION, load_artifact
    from corrflow.runtime.artifacts.bundled import BUNDLED, DEFAULT_MODEL

    for path in (BUNDLED / DEFAULT_MODEL).iterdir():
        (folder / path.name).symlink_to(path)
    description = json.loads((folder / DESCRIPTION).read_text())
    (folder / DESCRIPTION).unlink()
    marks = {name: f"<{name}>" for name in changes}
    text = json.dumps(description | {"tracking": description["tracking"] | marks})
    for name, value in changes.items():
        text = text.replace(f'"<{name}>"', value)
    (folder / DESCRIPTION).write_text(text)
    return load_artifact(folder).name


for _name, _changes in {
    "dilation_of_2147483640": {"dilation": "[2147483640]"},
    "radius_of_2_to_31": {"radius": "[2147483648]"},
    "radius_of_400_digits": {"radius": f"[{'1' * 400}]"},
    "radius_of_5000_digits": {"radius": f"[{'1' * 5000}]"},
    "infinite_radius": {"radius": "[Infinity]"},
    "radius_of_1e400": {"radius": "[1e400]"},
    "temperature_of_no_number": {"temperature": "NaN"},
    "top_k_of_2_to_31": {"top_k": "2147483648"},
    "top_k_of_1e400": {"top_k": "1e400"},
    "short_side_of_a_fraction": {"short_side": "480.5"},
    "nested_deeply": {"radius": "[" * 100_000},
}.items():
    GROUPS.setdefault("artifacts", {})[_name] = lambda folder, changes=_changes: _artifact(folder, **changes)


@case("artifacts")
def kernel_with_a_dilation_of_2147483640(folder: Path) -> object:
    """Call the kernel as no artifact can: it checks its own numbers."""
    from corrflow.plugins.local_soft_copy import cpu

    if cpu.unavailable():
        raise CorrflowError("not built")
    features, values = np.ones((4, 64, 64), np.float32), np.ones((1, 1, 64, 64), np.float32)
    found = []
    for radius, dilation in ((0, 2147483640), (2147483640, 1), (2147483640, 2147483640)):
        try:
            cpu._fused.copy(  # pyright: ignore[reportOptionalMemberAccess]
                features, features[None], values, [(0, 0, 0)], [radius], [dilation], 10, [1.0], 0, 1, "auto"
            )
            found.append("ok")
        except ValueError as error:
            found.append(str(error))
    assert all("65536" in one for one in found), found
    return found


@case("artifacts")
def zip_that_unpacks_to_much_more(folder: Path) -> object:
    from corrflow.runtime.artifacts.artifact import DESCRIPTION, load_artifact
    from corrflow.runtime.artifacts.bundled import BUNDLED, DEFAULT_MODEL

    with zipfile.ZipFile(folder / "model.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.write(BUNDLED / DEFAULT_MODEL / DESCRIPTION, DESCRIPTION)
        for name in ("encode.onnx", "propagate.onnx"):
            with archive.open(name, "w") as file:
                for _ in range(80):
                    file.write(bytes(1 << 20))
    return load_artifact(folder / "model.zip")


@case("artifacts")
def description_that_never_ends(folder: Path) -> object:
    from corrflow.runtime.artifacts.artifact import load_artifact

    (folder / "artifact.json").symlink_to("/dev/zero")
    return load_artifact(folder)


@case("artifacts")
def model_that_is_a_pipe(folder: Path) -> object:
    from corrflow.runtime.artifacts.artifact import load_artifact

    os.mkfifo(folder / "model.zip")
    return load_artifact(folder / "model.zip")


@case("data_sets")
def pickle_of_20000_videos_of_one_array(folder: Path) -> object:
    import pickle

    from corrflow.evaluate.datasets.points import open_tapvid

    video = np.zeros((100, 1, 1, 3), np.uint8)
    item = {"video": video, "points": np.zeros((60, 100, 2), np.float32), "occluded": np.zeros((60, 100), bool)}
    (folder / "points.pkl").write_bytes(pickle.dumps([dict(item) for _ in range(20_000)]))
    return len(open_tapvid(folder / "points.pkl"))


@case("data_sets")
def pickle_of_20000_frames_of_one_image(folder: Path) -> object:
    import pickle

    from corrflow.evaluate.datasets.points import open_tapvid

    encoded = io.BytesIO()
    Image.new("L", (100, 100)).save(encoded, "PNG")
    count = 20_000
    points, occluded = np.zeros((1, count, 2), np.float32), np.zeros((1, count), bool)
    item = {"video": [encoded.getvalue()] * count, "points": points, "occluded": occluded}
    (folder / "points.pkl").write_bytes(pickle.dumps([item]))
    (video,) = open_tapvid(folder / "points.pkl")
    return len(video.images())


@case("data_sets")
def pickle_of_a_large_image(folder: Path) -> object:
    from corrflow.evaluate.datasets.points import PointVideo

    no_points = np.zeros((0, 1, 2)), np.zeros((0, 1), bool)
    return len(PointVideo("a", [blank_png(13_300)], *no_points).images())


@case("data_sets")
def pickle_of_lists_of_lists(folder: Path) -> object:
    import pickle

    from corrflow.evaluate.datasets.points import open_tapvid

    nested: list[Any] = []
    for _ in range(30):
        nested = [nested, nested]
    (folder / "points.pkl").write_bytes(pickle.dumps({"a": nested}))
    return open_tapvid(folder / "points.pkl")


@case("data_sets")
def matlab_array_that_unpacks_to_much_more(folder: Path) -> object:
    import scipy.io

    from corrflow.evaluate.datasets.points import open_jhmdb

    (folder / "images").mkdir()
    (folder / "images" / "1.png").write_bytes(blank_png(16))
    path = folder / "joint_positions.mat"
    scipy.io.savemat(path, {"pos_img": np.zeros((2, 15, 7))}, do_compression=True)
    content = path.read_bytes()  # a header of 128 bytes, then a type and a length before the packed variable
    variable = zlib.decompress(content[136:]).replace(np.int32(7).tobytes(), np.int32(10**7).tobytes(), 1)
    packed = zlib.compress(variable)
    path.write_bytes(content[:132] + len(packed).to_bytes(4, "little") + packed)
    return open_jhmdb(folder)


@case("data_sets")
def aliases_in_attributes(folder: Path) -> object:
    from corrflow.evaluate.datasets.attributes import read_attributes

    levels = [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 10)]
    (folder / "info.yaml").write_text("a0: &a0 [1, 2]\n" + "\n".join(levels))
    return read_attributes(folder / "info.yaml")


@case("data_sets")
def attributes_nested_deeply(folder: Path) -> object:
    from corrflow.evaluate.datasets.attributes import read_attributes

    (folder / "info.json").write_text("[" * 100_000)
    return read_attributes(folder / "info.json")


@case("data_sets")
def true_mask_of_13300_pixels_square(folder: Path) -> object:
    from corrflow.runtime.formats.mask_png import read_indexed_png

    (folder / "mask.png").write_bytes(blank_png(13_300))
    return read_indexed_png(folder / "mask.png").shape


@case("data_sets")
def frame_of_13300_pixels_square(folder: Path) -> object:
    from corrflow.evaluate.datasets.masks import read_image

    (folder / "frame.png").write_bytes(blank_png(13_300))
    return read_image(folder / "frame.png").shape


@case("data_sets")
def joints_of_numbers_that_are_none(folder: Path) -> object:
    from corrflow.evaluate.datasets.points import open_badja

    entry = f'{{"image_path":"a.jpg","segmentation_path":"a.png","joints":[[{"1" * 400},1]],"visibility":[1]}}'
    (folder / "joints.json").write_text(f"[{entry}]")
    return open_badja(folder / "joints.json", folder)


@case("training")
def checkpoint_of_widths_of_20000(folder: Path) -> object:
    return _checkpoint(folder, [20_000] * 4)


@case("training")
def checkpoint_of_widths_of_8000(folder: Path) -> object:
    return _checkpoint(folder, [8_000] * 4)


@case("training")
def checkpoint_of_widths_of_400_digits(folder: Path) -> object:
    return _checkpoint(folder, [int("1" * 400)] * 4)


def _checkpoint(folder: Path, widths: list[int]) -> object:
    import torch
    from safetensors.torch import save_file

    from corrflow.train.checkpoint import load_checkpoint

    description = {"format": 2, "model": {"widths": widths}, "train": {}, "step": 1, "provenance": {}}
    tensors = {"codebook": torch.zeros(2, 2), "model/a": torch.zeros(1)}
    save_file(tensors, folder / "checkpoint.safetensors", metadata={"corrflow": json.dumps(description)})
    return load_checkpoint(folder)


@case("training")
def checkpoint_that_never_ends(folder: Path) -> object:
    from corrflow.train.checkpoint import load_checkpoint

    (folder / "checkpoint.safetensors").symlink_to("/dev/zero")
    return load_checkpoint(folder)


@case("training")
def tar_with_a_negative_size(folder: Path) -> object:
    import tarfile

    from corrflow.train.data.shards import read_index

    entry = tarfile.TarInfo("a.jpg")
    header = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + (-1024 & 0xFFFF).to_bytes(2, "big")  # in base 256
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    (folder / "a.tar").write_bytes(bytes(1024) + bytes(header) + bytes(1024))
    (folder / "b.tar").write_bytes(bytes(header) * 4 + bytes(1024))
    return read_index(folder / "b.tar", "b.tar")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
