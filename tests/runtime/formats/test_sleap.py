"""SLEAP's files: instances of one video are read with their tracks; written files keep skeletons and user labels."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st

from corrflow.errors import InputError
from corrflow.runtime.formats.annotations import AnnotationFile, Annotations, ReadContext
from corrflow.runtime.formats.label_schema import Category, LabelSchema
from corrflow.runtime.formats.registry import open_sink, read_annotations
from corrflow.runtime.formats.sleap import SleapSink
from corrflow.runtime.tracking.results import frame_result, keypoints_result
from corrflow.runtime.types import Frame, FrameResult, KeypointsObject

SHAPE = (37, 53)
FLY = np.array([[10.5, 20.25], [30, 40], [5, 6]])


def sleap() -> Any:
    return pytest.importorskip("sleap_io")


def opened(path: Path) -> Any:
    return pytest.importorskip("h5py").File(path, "r+")


def skeleton(name: str = "fly") -> Any:
    return sleap().Skeleton(
        ["tail", "head", "wing"], edges=[("head", "tail"), ("head", "wing")], symmetries=[("tail", "wing")], name=name
    )


def video(path: str | list[str]) -> Any:
    return sleap().Video(path, open_backend=False)


def save(path: Path, frames: Sequence[tuple[Any, int, Sequence[Any]]], **others: Any) -> Path:
    """Save labelled frames: video, index, instances."""
    sio = sleap()
    labels = sio.Labels([sio.LabeledFrame(video=v, frame_idx=k, instances=list(i)) for v, k, i in frames], **others)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sio.save_slp(labels, str(path), embed=False)
    return path


def user(points: np.ndarray, body: Any, track: Any = None, source: Any = None) -> Any:
    return sleap().Instance.from_numpy(points, skeleton=body, track=track, from_predicted=source)


def predicted(points: np.ndarray, body: Any, track: Any = None, score: float = 0.9) -> Any:
    scores = np.array([0.95, 0.4, 0.9])
    return sleap().PredictedInstance.from_numpy(points, skeleton=body, track=track, score=score, point_scores=scores)


def read(path: Path, name: str = "clip", **context: Any) -> AnnotationFile:
    return read_annotations(path, ReadContext(name, 0, lambda: SHAPE, **context))


def objects(file: AnnotationFile, key: int | str) -> list[KeypointsObject]:
    found = file.content.frames[key]
    assert all(isinstance(obj, KeypointsObject) for obj in found)
    return [obj for obj in found if isinstance(obj, KeypointsObject)]


def results(prompts: Sequence[KeypointsObject], peaks: Sequence[float], frames: int = 3) -> list[FrameResult]:
    """Return results that move by a pixel a frame; frame 0 has the user's own labels."""
    found = []
    for index in range(frames):
        frame = Frame(np.zeros((*SHAPE, 3), np.uint8), index, index / 25, f"{index:05d}")
        tracked = [
            keypoints_result(
                one, one.points + index, np.full(len(one.points), peak, np.float32),
                one.point_names if not index else (),
            )
            for one, peak in zip(prompts, peaks, strict=True)
        ]  # fmt: skip
        found.append(frame_result(frame, SHAPE, [], [], tracked))
    return found


def written(path: Path, schema: LabelSchema, frames: Sequence[FrameResult]) -> Any:
    with SleapSink(path, "clip.mp4", schema) as sink:
        for result in frames:
            sink.write(result)
    return sleap().load_slp(str(path), open_videos=False)


def test_tracks_are_identities_and_instances_without_one_have_none(tmp_path: Path) -> None:
    body, film = skeleton(), video("films/clip.mp4")
    tracks = [sleap().Track(name) for name in ("male", "7", "01")]
    hidden = FLY.copy()
    hidden[1] = np.nan
    instances = [user(hidden, body, track) for track in (*tracks, None)]
    file = read(save(tmp_path / "clip.slp", [(film, 9, instances)]))
    found = objects(file, 9)
    assert [(one.track_id, one.name) for one in found] == [("male", "male"), (7, ""), ("01", "01"), (None, "")]
    assert found[0].point_names == ("tail", "wing") and found[0].points.tolist() == [[10.5, 20.25], [5, 6]]
    assert {one.category for one in found} == {"fly"} and not found[0].is_prediction
    (category,) = file.content.schema.categories
    assert category.point_names == ("tail", "head", "wing") and category.edges == ((1, 0), (1, 2))
    assert {frozenset(pair) for pair in category.symmetries} == {frozenset((0, 2))}


def test_flies_without_tracks_that_stand_still_keep_their_ids_whatever_their_order(tmp_path: Path) -> None:
    body, film = skeleton(), video("clip.mp4")
    here, there = user(FLY, body), user(FLY + 100, body)
    file = read(save(tmp_path / "clip.slp", [(film, 0, [here, there]), (film, 40, [there, here])]))
    by_frame = Annotations.of([file]).objects
    first, last = ({one.prompt.id: float(one.prompt.points[0][0]) for one in by_frame[k]} for k in (0, 40))  # type: ignore[union-attr]
    assert first == last


def test_the_users_instances_count_in_place_of_predicted_ones(tmp_path: Path) -> None:
    body, film, track = skeleton(), video("clip.mp4"), sleap().Track("a")
    guess = predicted(FLY + 3, body, track)
    path = save(tmp_path / "clip.slp", [(film, 0, [user(FLY, body, track, guess), guess]), (film, 1, [guess])])
    file = read(path)
    assert list(file.content.frames) == [0] and len(objects(file, 0)) == 1
    assert "predicted instance of 'a'" in file.notes.sentences()[0] and "1 more" in file.notes.sentences()[0]


def test_predictions_alone_are_read_above_a_score_and_are_no_labels_of_the_user(tmp_path: Path) -> None:
    body, film = skeleton(), video("clip.mp4")
    tracks = [sleap().Track(name) for name in "ab"]
    guesses = [predicted(FLY, body, tracks[0]), predicted(FLY, body, tracks[1], 0.2)]
    path = save(tmp_path / "clip.slp", [(film, 0, guesses)])
    assert [one.is_prediction for one in objects(read(path), 0)] == [True, True]
    (kept,) = objects(read(path, min_score=0.5), 0)
    assert kept.track_id == "a" and kept.point_names == ("tail", "wing")


def test_one_file_of_several_videos_gives_each_its_own_labels(tmp_path: Path) -> None:
    body = skeleton()
    films = [video("day1/clip.mp4"), video("day2/clip.mp4"), video("day2/other.avi")]
    path = save(tmp_path / "all.slp", [(film, k, [user(FLY + k, body)]) for k, film in enumerate(films)])
    assert list(read(path, "other", is_shared=True).content.frames) == [2]
    first = read(path, is_shared=True, source=Path("/data/day1/clip.mp4"))
    second = read(path, is_shared=True, source=Path("/data/day2/clip.mp4"))
    assert list(first.content.frames) == [0] and list(second.content.frames) == [1]
    assert "another video" in first.notes.sentences()[0]
    assert json.loads(second.content.schema.video)["filename"] == "day2/clip.mp4"
    assert not read(path, "film", is_shared=True).content.frames


def test_images_of_a_folder_are_named_frames(tmp_path: Path) -> None:
    names = [f"photos/img{k}.png" for k in (3, 10)]
    path = save(tmp_path / "photos.slp", [(video(names), 1, [user(FLY, skeleton())])])
    content = read(path, "photos", frame_names=["img3", "img10"]).content
    assert content.schema.image_names == {"img10": "photos/img10.png"} and list(content.frames) == ["img10"]


@pytest.mark.parametrize(("version", "shift"), [(1.0, 0.5), (1.2, 0.0), (2.8, 0.0)])
def test_points_of_older_files_are_shifted_by_half_a_pixel(tmp_path: Path, version: float, shift: float) -> None:
    path = save(tmp_path / "clip.slp", [(video("clip.mp4"), 0, [user(FLY, skeleton())])])
    with opened(path) as file:
        file["metadata"].attrs["format_id"] = version
    assert objects(read(path), 0)[0].points.tolist() == (FLY - shift).tolist()


def test_embedded_frames_are_of_the_film_that_they_were_taken_from(tmp_path: Path) -> None:
    path = save(tmp_path / "labels.pkg.slp", [(video("x.mp4"), 4, [user(FLY, skeleton())])])
    source = {"filename": "films/clip.mp4", "backend": {"filename": "films/clip.mp4"}}
    entry = {"filename": ".", "backend": {"filename": ".", "dataset": "video3/video"}}
    with opened(path) as file:
        file["videos_json"][0] = json.dumps(entry)
        file.create_group("video3/source_video").attrs["json"] = json.dumps(source)
        frames = file["frames"][()]
        frames["video"] = 3
        file["frames"][...] = frames
    file = read(path, is_shared=True)
    assert list(file.content.frames) == [4] and json.loads(file.content.schema.video) == source
    assert not read(path, "x", is_shared=True).content.frames


def test_an_instance_that_does_not_fit_is_left_out_and_other_labels_are_named(tmp_path: Path) -> None:
    path = save(tmp_path / "clip.slp", [(video("clip.mp4"), 0, [user(FLY, skeleton()), user(FLY + 1, skeleton())])])
    with opened(path) as file:
        instances = file["instances"][()]
        instances["point_id_end"][0] -= 1
        file["instances"][...] = instances
        file["negative_frames"] = np.array([(0, 7)], [("video_id", "u4"), ("frame_idx", "u8")])
        file["masks"] = np.zeros(2)
    file = read(path)
    assert len(objects(file, 0)) == 1
    notes = " ".join(file.notes.sentences())
    assert "do not fit its skeleton" in notes and "negative" in notes and "masks" in notes
    with pytest.raises(InputError, match="strict"):
        read(path, is_strict=True)


def labelled(path: Path) -> tuple[LabelSchema, list[KeypointsObject]]:
    annotations = Annotations.of([read(path)])
    first = next(iter(annotations.objects.values()))
    return annotations.schema, [one.prompt for one in first if isinstance(one.prompt, KeypointsObject)]


def test_results_keep_skeleton_tracks_video_and_the_users_instances(tmp_path: Path) -> None:
    body, film = skeleton(), video("films/clip.mp4")
    tracks = [sleap().Track(name) for name in ("male", "female")]
    one, two = FLY.copy(), FLY + 7
    one[1], two[0] = np.nan, np.nan  # no animal has all nodes, and they differ
    path = save(tmp_path / "clip.slp", [(film, 0, [user(one, body, tracks[0]), user(two, body, tracks[1])])])
    schema, prompts = labelled(path)
    loaded = written(tmp_path / "out.slp", schema, results(prompts, [0.8, 0.03]))
    (result,) = loaded.skeletons
    assert result.name == "fly" and result.node_names == ["tail", "head", "wing"]
    assert result.edge_names == [("head", "tail"), ("head", "wing")] and len(result.symmetries) == 1
    assert loaded.videos[0].filename == "films/clip.mp4"
    assert [len(frame.user_instances) for frame in loaded] == [2, 0, 0]
    by_track = {item.track.name: item.numpy() for item in loaded[0]}
    assert np.array_equal(by_track["male"], one, equal_nan=True)
    assert np.array_equal(by_track["female"], two, equal_nan=True)
    assert [[item.track.name for item in frame] for frame in list(loaded)[1:]] == [["male"]] * 2  # the other is lost
    moved = loaded.numpy()[2, [track.name for track in loaded.tracks].index("male")]
    assert np.allclose(moved, one + 2, equal_nan=True)
    assert loaded[1].instances[0].score == pytest.approx(0.8)


def test_objects_of_other_tools_share_a_skeleton_for_each_category(tmp_path: Path) -> None:
    ant = KeypointsObject(1, np.ones((2, 2), np.float32), ("nose", "tail"), "ant", 300, "ant")
    other = replace(ant, id=2, point_names=("tail", "ear"), track_id="b")
    loose = KeypointsObject(3, np.ones((1, 2), np.float32), ("corner",), "box")
    schema = LabelSchema((Category("ant", 4, ("ear", "nose", "tail"), ((0, 1),)),))
    loaded = written(tmp_path / "out.slp", schema, results([ant, other, loose], [0.9] * 3))
    assert [(one.name, one.node_names) for one in loaded.skeletons] == [
        ("ant", ["ear", "nose", "tail"]), ("skeleton", ["corner"]),
    ]  # fmt: skip
    assert [track.name for track in loaded.tracks] == ["300", "b", "box"]
    plain = written(tmp_path / "plain.slp", LabelSchema(), results([ant, other], [0.9] * 2))
    assert plain.skeletons[0].node_names == ["nose", "tail", "ear"] and plain.numpy().shape == (3, 2, 3, 2)


def test_the_film_and_the_images_of_a_source_are_found_again(tmp_path: Path) -> None:
    prompt = KeypointsObject(1, np.ones((1, 2), np.float32), ("a",), "x")
    for paths in ([tmp_path / "clip.mp4"], [tmp_path / "0.png", tmp_path / "1.png"]):
        source: Any = SimpleNamespace(name="clip", frames_per_second=Fraction(25), notes=[], paths=paths)
        with open_sink("sleap", tmp_path / "out.slp", source) as sink:
            sink.write(results([prompt], [0.9], 1)[0])
        (film,) = sleap().load_slp(str(tmp_path / "out.slp"), open_videos=False).videos
        assert film.filename == ([str(one) for one in paths] if len(paths) > 1 else str(paths[0]))


def test_points_that_are_not_visible_are_nan(tmp_path: Path) -> None:
    prompt = KeypointsObject(1, np.ones((2, 2), np.float32), ("a", "b"), "x")
    frames = results([prompt], [0.9])
    hidden = replace(frames[1].objects[0], point_confidence=np.array([0.9, 0.01], np.float32))
    frames[1] = replace(frames[1], objects=(hidden,))
    loaded = written(tmp_path / "out.slp", LabelSchema(), frames)
    assert np.isnan(loaded[1].instances[0].numpy()).tolist() == [[False] * 2, [True] * 2]


@pytest.mark.parametrize("content", [b"", b"half"])
def test_what_is_no_file_of_sleap_is_refused_with_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "clip.slp").write_bytes(content)
    with pytest.raises(InputError, match=r"clip\.slp"):
        read(tmp_path / "clip.slp")


@settings(max_examples=8, deadline=None, derandomize=True)  # each file is checked in a process of its own
@for_all(place=st.floats(0, 1), content=st.binary(min_size=1, max_size=12))
def test_damaged_files_give_objects_or_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, place: float, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "clip.slp"
    with SleapSink(path, "clip.mp4") as sink:
        for result in results([KeypointsObject(1, np.ones((2, 2), np.float32), ("a", "b"), "x")], [0.9]):
            sink.write(result)
    whole = path.read_bytes()
    start = int(place * len(whole))
    path.write_bytes(whole[:start] + content + whole[start + len(content) :])
    try:
        read(path)
    except InputError as error:
        assert "\n" not in str(error)
