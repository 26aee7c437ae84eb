"""DeepLabCut's tables: what its users have is read, and what is written has their columns."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st

from corrflow.errors import InputError
from corrflow.runtime.formats.annotations import AnnotationFile, Annotations, FileContent, ReadContext
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.formats.deeplabcut import DeepLabCutSink
from corrflow.runtime.formats.deeplabcut_h5 import DeepLabCutH5Sink
from corrflow.runtime.formats.label_schema import LabelSchema
from corrflow.runtime.formats.registry import read_annotations
from corrflow.runtime.tracking.results import frame_result, keypoints_result
from corrflow.runtime.types import Frame, FrameResult, KeypointsObject

SHAPE = (37, 53)
SINKS = pytest.mark.parametrize(
    ("sink", "name"), [(DeepLabCutSink, "clip.csv"), (DeepLabCutH5Sink, "clip.h5")], ids=["csv", "h5"]
)
ONE = """scorer,anna,anna,anna,anna
bodyparts,snout,snout,tail,tail
coords,x,y,x,y
labeled-data/clip/img0012.png,10.5,20.25,,
labeled-data/clip/img0003.png,1,2,3,4
"""
TWO = """scorer,,,anna,anna,anna,anna,anna,anna,anna,anna,anna,anna
individuals,,,mickey,mickey,mickey,mickey,minnie,minnie,minnie,minnie,single,single
bodyparts,,,snout,snout,tail,tail,snout,snout,tail,tail,corner,corner
coords,,,x,y,x,y,x,y,x,y,x,y
labeled-data,clip,img0003.png,1,2,,,30,20,,,0.5,0.5
labeled-data,other,img0003.png,9,9,9,9,9,9,9,9,9,9
labeled-data,clip,img0012.png,,,,,31,21,,,0.5,0.5
"""
PREDICTED = """scorer,net,net,net,net,net,net
bodyparts,snout,snout,snout,tail,tail,tail
coords,x,y,likelihood,x,y,likelihood
0,1,2,0.9,3,4,0.2
1,1.5,2.5,0.8,3.5,4.5,0.7
"""


def read(path: Path, video: str = "clip", **context: Any) -> AnnotationFile:
    return read_annotations(path, ReadContext(video, 0, lambda: SHAPE, **context))


def saved(folder: Path, text: str, name: str = "clip.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


def points_of(content: FileContent, key: int | str) -> dict[object, dict[str, list[float]]]:
    found = {}
    for obj in content.frames[key]:
        assert isinstance(obj, KeypointsObject)
        found[obj.track_id] = dict(zip(obj.point_names, obj.points.tolist(), strict=True))
    return found


def results(schema_objects: list[KeypointsObject], peaks: list[list[float]], frames: int = 3) -> list[FrameResult]:
    """Return results of frames on which the objects' points have these peaks; frame 0 has the user's own labels."""
    found = []
    for index in range(frames):
        frame = Frame(np.zeros((*SHAPE, 3), np.uint8), index, index / 25, f"{index:05d}")
        objects = [
            keypoints_result(one, one.points + index, np.array(row, np.float32), one.point_names if not index else ())
            for one, row in zip(schema_objects, peaks, strict=True)
        ]
        found.append(frame_result(frame, SHAPE, [], [], objects))
    return found


def labelled(path: Path) -> tuple[LabelSchema, list[KeypointsObject]]:
    """Return the schema of a file, and the objects of its first labelled frame, with ids."""
    annotations = Annotations.of([read(path)])
    first = next(iter(annotations.objects.values()))
    objects = [packed.prompt for packed in first]
    return annotations.schema, [one for one in objects if isinstance(one, KeypointsObject)]


def table(path: Path, lines: int) -> Any:
    pandas = pytest.importorskip("pandas")
    if path.suffix == ".csv":
        return pandas.read_csv(path, header=list(range(lines)), index_col=0)
    pytest.importorskip("tables", reason="pandas reads HDF5 with it")
    return pandas.read_hdf(path)


def written(sink: Callable[..., Sink], path: Path, schema: LabelSchema, frames: list[FrameResult]) -> Any:
    with sink(path, schema) as open_sink:
        for result in frames:
            open_sink.write(result)
    return table(path, 3 if tuple(schema.individuals) == ("",) else 4)


def test_rows_have_the_names_of_their_images_and_empty_points_are_none(tmp_path: Path) -> None:
    content = read(saved(tmp_path, ONE)).content
    assert points_of(content, "img0012") == {None: {"snout": [10.5, 20.25]}}
    assert points_of(content, "img0003") == {None: {"snout": [1, 2], "tail": [3, 4]}}
    assert content.schema.scorer == "anna" and content.schema.categories[0].point_names == ("snout", "tail")
    assert content.schema.image_names["img0012"] == "labeled-data/clip/img0012.png"


def test_a_folder_of_images_has_the_labels_on_the_image_of_the_name_and_a_video_on_the_frame_of_the_number(
    tmp_path: Path,
) -> None:
    file = read(saved(tmp_path, ONE.replace("img0003", "img10")))
    names = [f"img{number}" for number in range(10, 25)]
    with_names = Annotations.of([read(saved(tmp_path, ONE.replace("img0003", "img10")))], names)
    assert list(with_names.objects) == [0, 2]  # img0012 has the number of img12
    assert list(Annotations.of([file]).objects) == [10, 12]


def test_individuals_keep_their_names_and_order_and_the_unique_parts_are_an_object(tmp_path: Path) -> None:
    file = read(saved(tmp_path, TWO), is_shared=True)
    assert points_of(file.content, "img0003") == {
        "mickey": {"snout": [1, 2]}, "minnie": {"snout": [30, 20]}, "single": {"corner": [0.5, 0.5]},
    }  # fmt: skip
    assert file.content.schema.individuals == {"mickey": "animal", "minnie": "animal", "single": "single"}
    assert file.content.schema.category("animal").point_names == ("snout", "tail")  # type: ignore[union-attr]


def test_labels_of_another_folder_never_reach_this_video(tmp_path: Path) -> None:
    file = read(saved(tmp_path, TWO))
    assert set(file.content.frames) == {"img0003", "img0012"} and "another video" in file.notes.sentences()[0]
    assert not read(saved(tmp_path, TWO), "film", is_shared=True).content.frames
    assert not read(saved(tmp_path, PREDICTED), "film", is_shared=True).content.frames


def test_likelihood_has_a_threshold_and_predictions_are_no_labels_of_the_user(tmp_path: Path) -> None:
    file = read(saved(tmp_path, PREDICTED), min_score=0.5)
    assert points_of(file.content, 0) == {None: {"snout": [1, 2]}}
    assert file.notes.sentences() == ["left out frame '0', point 'tail': its likelihood is under 0.5"]
    (obj,) = read(saved(tmp_path, PREDICTED)).content.frames[0]
    assert isinstance(obj, KeypointsObject) and obj.is_prediction and len(obj.points) == 2


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (("10.5,20.25", "10.5,"), "its place is not two numbers"),
        (("10.5,20.25", "ten,20.25"), "its place is not two numbers"),
        (("1,2,3,4", "1,2,3,4,5,6"), "the table has fewer columns"),
        (("img0012", "img0003"), "its image has a row already"),
    ],
)
def test_one_bad_label_is_left_out_and_the_rest_is_read(tmp_path: Path, change: tuple[str, str], note: str) -> None:
    path = saved(tmp_path, ONE.replace(*change))
    file = read(path)
    assert "img0003" in file.content.frames and note in file.notes.sentences()[0]
    with pytest.raises(InputError, match="strict"):
        read(path, is_strict=True)


@SINKS
def test_a_single_animal_comes_back_in_its_own_columns(tmp_path: Path, sink: Callable[..., Sink], name: str) -> None:
    schema, objects = labelled(saved(tmp_path, ONE.replace("3,4", ",").replace("10.5,20.25", "11,21")))
    found = written(sink, tmp_path / "out" / name, schema, results(objects, [[0.8]]))
    assert found.columns.names == ["scorer", "bodyparts", "coords"]
    assert list(dict.fromkeys(column[:2] for column in found.columns)) == [("anna", "snout"), ("anna", "tail")]
    snout = found["anna"]["snout"]
    assert snout["likelihood"].tolist() == pytest.approx([1, 0.8, 0.8], abs=1e-4)
    assert snout["x"].tolist() == pytest.approx([objects[0].points[0][0] + k for k in range(3)])
    assert found["anna"]["tail"].isna().all().all() and found.index.tolist() == [0, 1, 2]


@SINKS
def test_individuals_come_back_in_order_with_parts_that_were_never_labelled(
    tmp_path: Path, sink: Callable[..., Sink], name: str
) -> None:
    schema, objects = labelled(saved(tmp_path, TWO))
    minnie = next(one for one in objects if one.name == "minnie")
    found = written(sink, tmp_path / "out" / name, schema, results([minnie], [[0.01]]))
    columns = list(dict.fromkeys(column[1:3] for column in found.columns))
    parts = [(one, part) for one in ("mickey", "minnie") for part in ("snout", "tail")]
    assert columns == [*parts, ("single", "corner")]
    snout = found["anna"]["minnie"]["snout"]
    assert snout["x"].isna().tolist() == [False, True, True]  # a label of the user, then a point that is not visible
    assert snout["likelihood"].tolist() == pytest.approx([1, 0.01, 0.01])


@SINKS
def test_an_object_that_joins_later_gets_columns_at_the_end(
    tmp_path: Path, sink: Callable[..., Sink], name: str
) -> None:
    first, second = (
        KeypointsObject(k, np.array([[3.0, 4]], np.float32), ("nose",), word) for k, word in ((1, "a"), (2, "b"))
    )
    frames = [*results([first], [[0.7]], 1), *results([first, second], [[0.7], [0.8]])[1:]]
    found = written(sink, tmp_path / name, LabelSchema(), frames)
    assert found["corrflow"]["b"]["nose"]["likelihood"].isna().tolist() == [True, False, False]
    assert found["corrflow"]["a"]["nose"]["x"].tolist() == [3, 4, 5]


@SINKS
def test_rows_of_a_folder_of_images_are_named_as_the_labels_name_them(
    tmp_path: Path, sink: Callable[..., Sink], name: str
) -> None:
    schema, objects = labelled(saved(tmp_path, TWO))
    frames = results(objects, [[0.9] * len(one.points) for one in objects], 2)
    named = [
        frame_result(
            Frame(one.frame.image, one.frame.index, 0, f"img{one.frame.index}", f"img{one.frame.index}.png"),
            SHAPE, [], [], one.objects,
        )
        for one in frames
    ]  # fmt: skip
    written(sink, tmp_path / "out" / name, schema, named)
    content = read(tmp_path / "out" / name).content
    assert list(content.frames) == ["img0", "img1"]
    assert content.schema.image_names["img1"] == "labeled-data/clip/img1.png"


def test_csv_of_the_writer_has_empty_cells_for_missing_points(tmp_path: Path) -> None:
    schema, objects = labelled(saved(tmp_path, ONE.replace("10.5,20.25", "11,21")))
    written(DeepLabCutSink, tmp_path / "out" / "clip.csv", schema, results(objects, [[0.0] * len(objects[0].points)]))
    rows = list(csv.reader((tmp_path / "out" / "clip.csv").read_text().splitlines()))
    assert rows[0][:2] == ["scorer", "anna"] and rows[4][:4] == ["1", "", "", "0.0000"]


def deeplabcut_table(rows: object, values: list[list[float]] | None = None) -> Any:
    """Return labels of one animal as DeepLabCut stores them; the tail of the first row is not labelled."""
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("tables", reason="pandas writes HDF5 with it")
    names = ["scorer", "bodyparts", "coords"]
    columns = pandas.MultiIndex.from_product([["anna"], ["snout", "tail"], ["x", "y"]], names=names)
    return pandas.DataFrame(values or [[10.5, 20.25, np.nan, np.nan], [1, 2, 3, 4]], index=rows, columns=columns)


@pytest.mark.filterwarnings(
    "ignore:object name is not a valid Python identifier", "ignore::DeprecationWarning", "ignore::FutureWarning"
)
@pytest.mark.parametrize(
    ("layout", "rows"),
    [("fixed", "folders"), ("fixed", "paths"), ("fixed", "numbers"), ("table", "paths"), ("table", "numbers")],
)
def test_labels_that_pandas_stored_for_deeplabcut_are_read(tmp_path: Path, layout: str, rows: str) -> None:
    pandas = pytest.importorskip("pandas")
    names = ["img0012.png", "img0003.png"]
    index = {
        "folders": lambda: pandas.MultiIndex.from_product([["labeled-data"], ["clip"], names]),
        "paths": lambda: [f"labeled-data/clip/{name}" for name in names],
        "numbers": lambda: [12, 3],
    }[rows]()
    keys = (12, 3) if rows == "numbers" else ("img0012", "img0003")
    deeplabcut_table(index).to_hdf(tmp_path / "clip.h5", key="df_with_missing", mode="w", format=layout)
    content = read(tmp_path / "clip.h5").content
    assert points_of(content, keys[0]) == {None: {"snout": [10.5, 20.25]}}
    assert points_of(content, keys[1]) == {None: {"snout": [1, 2], "tail": [3, 4]}}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("layout", ["fixed", "table"])
def test_columns_of_whole_numbers_are_read_beside_fractions(tmp_path: Path, layout: str) -> None:
    stored = deeplabcut_table([0, 1], [[10, 20, 30.5, 5], [1, 2, 3, 4]])
    stored[("anna", "snout", "x")] = stored[("anna", "snout", "x")].astype(int)
    stored.to_hdf(tmp_path / "clip.h5", key="df_with_missing", mode="w", format=layout)
    assert points_of(read(tmp_path / "clip.h5").content, 0) == {None: {"snout": [10, 20], "tail": [30.5, 5]}}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_table_that_would_run_code_when_unpickled_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    deeplabcut_table([0, 1]).to_hdf(tmp_path / "clip.h5", key="df_with_missing", mode="w", format="table")
    harm = f"cos\nsystem\n(S'touch {tmp_path}/ran'\ntR.".encode()
    with h5py.File(tmp_path / "clip.h5", "r+") as file:
        file["df_with_missing/table"].attrs["values_block_0_kind"] = np.bytes_(harm)
    with pytest.raises(InputError, match="GLOBAL"):
        read(tmp_path / "clip.h5")
    assert not (tmp_path / "ran").exists()


def test_a_small_file_that_states_a_huge_table_is_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with DeepLabCutH5Sink(tmp_path / "clip.h5") as sink:
        sink.write(results([KeypointsObject(1, np.ones((1, 2), np.float32), ("a",), "x")], [[1.0]], 1)[0])
    with h5py.File(tmp_path / "clip.h5", "r+") as file:
        file["df_with_missing/block0_values"].resize((1 << 30, 3))
    with pytest.raises(InputError, match="at most 768 MB of memory"):
        read(tmp_path / "clip.h5")


@pytest.mark.parametrize("content", [b"", b"half", b"scorer,a\n", b"scorer,a\nbodyparts,b\ncoords,x\n0,1\n"])
@pytest.mark.parametrize("name", ["clip.csv", "clip.h5"])
def test_what_is_no_table_is_refused_with_one_sentence(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as raised:
        read(tmp_path / name)
    assert "\n" not in str(raised.value) and name in str(raised.value)


def damaged(folder: Path, name: str, place: float, content: bytes) -> Path:
    path = folder / name
    one = KeypointsObject(1, np.ones((2, 2), np.float32), ("a", "b"), "x")
    with (DeepLabCutSink if path.suffix == ".csv" else DeepLabCutH5Sink)(path) as sink:
        for result in results([one], [[1.0, 0.5]]):
            sink.write(result)
    whole = path.read_bytes()
    start = int(place * len(whole))
    path.write_bytes(whole[:start] + content + whole[start + len(content) :])
    return path


@settings(max_examples=60, deadline=None)
@for_all(place=st.floats(0, 1), content=st.binary(min_size=1, max_size=12))
def test_a_damaged_csv_gives_objects_or_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, place: float, content: bytes
) -> None:
    try:
        read(damaged(tmp_path_factory.mktemp("damaged"), "clip.csv", place, content))
    except InputError as error:
        assert "\n" not in str(error)


@settings(max_examples=8, deadline=None, derandomize=True)  # each file is checked in a process of its own
@for_all(place=st.floats(0, 1), content=st.binary(min_size=1, max_size=12))
def test_a_damaged_h5_gives_objects_or_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, place: float, content: bytes
) -> None:
    try:
        read(damaged(tmp_path_factory.mktemp("damaged"), "clip.h5", place, content))
    except InputError as error:
        assert "\n" not in str(error)
