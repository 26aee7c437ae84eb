"""Points: measures compared with their definitions, layouts of the data sets, and tracked scores."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from corrflow.errors import InputError
from corrflow.evaluate import cli
from corrflow.evaluate.datasets.points import JHMDB_JOINTS, open_badja, open_jhmdb, open_tapvid
from corrflow.evaluate.masks import Method
from corrflow.evaluate.methods.methods import ArtifactEncoder, FlowWarp, Identity, TrackerMethod
from corrflow.evaluate.metrics.points import (
    badja_share,
    box_sizes,
    correct_points,
    instance_sizes,
    mean_share,
    share_per_joint,
    tapvid_score,
)
from corrflow.evaluate.points import PointJob, evaluate_badja, evaluate_jhmdb, evaluate_tapvid, track_queries
from corrflow.runtime.artifacts.artifact import load_artifact
from corrflow.runtime.artifacts.bundled import resolve_model

IDENTITY = Method("identity", Identity())


# --- measures --------------------------------------------------------------------------------------------------


def test_sizes_of_an_instance_are_those_of_its_joints() -> None:
    joints = np.array([[[0.0, 0.0], [3.0, 1.0], [2.0, 4.0]]])
    assert instance_sizes(joints).tolist() == [0.6 * 5.0]
    assert box_sizes(joints).tolist() == [4.0]


def test_pck_is_the_mean_over_joints_of_their_shares_and_lost_joints_are_wrong() -> None:
    true = np.zeros((4, 2, 2))
    predicted = np.array([[[1, 0], [0, 0]], [[2, 0], [np.nan, 0]], [[0, 2.1], [0, 0]], [[0, 0], [9, 9]]], float)
    correct = correct_points(predicted, true, np.array([1.0, 2.0, 2.0, 2.0]))
    assert correct.tolist() == [[True, True], [True, False], [False, True], [True, False]]
    assert share_per_joint(correct, np.ones((4, 2), bool)).tolist() == [0.75, 0.5]
    counted = np.array([[True, True], [True, False], [True, True], [True, True]])
    assert share_per_joint(correct, counted)[1] == pytest.approx(2 / 3)
    shares = share_per_joint(correct, counted & [True, False])
    assert np.isnan(shares[1]) and mean_share(shares) == 0.75
    assert np.isnan(mean_share(np.array([np.nan])))


def test_badja_counts_visible_joints_within_a_share_of_the_masks_size() -> None:
    true = np.zeros((2, 3, 2))
    predicted = np.array([[[2, 0], [2.1, 0], [0, 0]], [[4, 0], [0, 4.1], [np.nan, 0]]], float)
    visible = np.array([[True, True, False], [True, True, True]])
    assert badja_share(predicted, true, visible, np.array([100.0, 400.0])) == pytest.approx(2 / 5)
    assert np.isnan(badja_share(predicted, true, np.zeros((2, 3), bool), np.array([1.0, 1.0])))


def direct_tapvid(
    query: np.ndarray,
    true_occluded: np.ndarray,
    true: np.ndarray,
    occluded: np.ndarray,
    predicted: np.ndarray,
    mode: str,
) -> tuple[float, float, float]:
    """Compute the definition point by point and frame by frame."""
    scored = [
        (q, t)
        for q in range(len(query))
        for t in range(true_occluded.shape[1])
        if (t > query[q] if mode == "first" else t != query[q])
    ]
    agreed = [true_occluded[point] == occluded[point] for point in scored]
    jaccards, shares = [], []
    for threshold in (1, 2, 4, 8, 16):
        near = {point: float(np.hypot(*(predicted[point] - true[point]))) < threshold for point in scored}
        visible = [point for point in scored if not true_occluded[point]]
        true_positives = sum(near[point] and not occluded[point] for point in visible)
        false_positives = sum(not occluded[point] and (true_occluded[point] or not near[point]) for point in scored)
        shares.append(sum(near[point] for point in visible) / len(visible))
        jaccards.append(true_positives / (len(visible) + false_positives))
    return float(np.mean(jaccards)), float(np.mean(shares)), float(np.mean(agreed))


@pytest.mark.parametrize("mode", ["first", "strided"])
def test_tapvid_matches_its_definition(mode: str) -> None:
    for seed in range(60):
        generator = np.random.default_rng(seed)
        queries, frames = int(generator.integers(1, 6)), int(generator.integers(3, 9))
        true = generator.uniform(0, 256, (queries, frames, 2))
        # Distances equal to a threshold are among these; such a point is outside the threshold.
        predicted = true + generator.choice([0, 1, 2, 3, 4, 7.9, 8, 16, 30], (queries, frames, 1)) * [1, 0]
        true_occluded, occluded = generator.random((2, queries, frames)) < 0.3
        true_occluded[:, -1] = False
        query = generator.integers(0, frames - 1, queries)
        arguments = query, true_occluded, true.round(), occluded, predicted.round(), mode
        score, expected = tapvid_score(*arguments), direct_tapvid(*arguments)
        values = score.average_jaccard, score.delta_average, score.occlusion_accuracy
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-12)


def test_tapvid_thresholds_are_strict_and_lost_points_are_wrong() -> None:
    zeros = np.zeros((1, 2), bool)
    true = np.zeros((1, 2, 2))
    at_one = tapvid_score(np.array([0]), zeros, true, zeros, true + np.array([1, 0]), "first")
    assert at_one.delta_average == 4 / 5 and at_one.average_jaccard == 4 / 5 and at_one.within_one_pixel == 0
    lost = tapvid_score(np.array([0]), zeros, true, ~zeros, np.full((1, 2, 2), np.nan), "first")
    assert (lost.average_jaccard, lost.delta_average, lost.occlusion_accuracy) == (0, 0, 0)
    with pytest.raises(ValueError, match="query mode"):
        tapvid_score(np.array([0]), zeros, true, zeros, true, "last")
    with pytest.raises(ValueError, match=r"\[Q, T, 2\]"):
        tapvid_score(np.array([0]), zeros, true, zeros, true[:, :1], "first")


# --- data sets -------------------------------------------------------------------------------------------------


def save_frames(folder: Path, frames: np.ndarray, first: int = 1, suffix: str = "png") -> None:
    folder.mkdir(parents=True)
    for index, frame in enumerate(frames, first):
        cv2.imwrite(str(folder / f"{index:05d}.{suffix}"), frame)


@pytest.fixture
def jhmdb(tmp_path: Path, moving_square) -> Path:
    """Write two clips in the published layout: joints on a grid inside the square, and one outside the frame."""
    frames, _ = moving_square
    root = tmp_path / "jhmdb"
    for clip in ("clip_a", "clip_b"):
        save_frames(root / "Rename_Images" / "run" / clip, frames)
        grid = np.stack(np.meshgrid(range(24, 39, 4), range(18, 33, 4)), -1).reshape(-1, 2)[:15].astype(float)
        joints = np.stack([grid + np.array([2 * t, t]) for t in range(len(frames))])
        joints[:, 14] = -30
        folder = root / "joint_positions" / "run" / clip
        folder.mkdir(parents=True)
        scipy.io.savemat(folder / "joint_positions.mat", {"pos_img": joints.transpose(2, 1, 0) + 1})
    (root / "splits").mkdir()
    (root / "splits" / "run_test_split1.txt").write_text("clip_a.avi 2\nclip_b.avi 1\n")
    return root


def test_jhmdb_coordinates_count_from_one_in_the_file_and_from_zero_here(jhmdb: Path) -> None:
    clips = open_jhmdb(jhmdb)
    assert [clip.name for clip in clips] == ["clip_a", "clip_b"]
    assert [clip.name for clip in open_jhmdb(jhmdb, 1)] == ["clip_a"]
    clip = clips[0]
    assert clip.joints.shape == (8, 15, 2) and clip.joint_names == JHMDB_JOINTS
    assert clip.joints[3, 0].tolist() == [24 + 6, 18 + 3]
    assert next(clip.images()).shape == (66, 98, 3)


def test_joints_outside_the_first_frame_are_lost_and_dropped_on_request(jhmdb: Path) -> None:
    clips = open_jhmdb(jhmdb)
    strict, dropped = (evaluate_jhmdb(clips, [IDENTITY], drop_lost=drop) for drop in (False, True))
    assert strict.measures == ("PCKinstance@0.1", "PCKinstance@0.2", "PCKmax@0.1", "PCKmax@0.2")
    for wrong, left in zip(strict.means["identity"], dropped.means["identity"], strict=True):
        assert wrong == pytest.approx(left * 14 / 15)
    assert "wrong" in strict.title and "left out" in dropped.title


def test_tracked_joints_beat_joints_that_stay(jhmdb: Path, small_artifact: Path) -> None:
    clips = open_jhmdb(jhmdb, 1)
    artifact = load_artifact(small_artifact)
    tracked = Method("small", TrackerMethod(ArtifactEncoder(small_artifact), artifact.settings))
    report = evaluate_jhmdb(clips, [tracked, IDENTITY, Method("flow", FlowWarp())])
    assert report.means["small"][0] > report.means["identity"][0]
    assert report.means["flow"][0] > report.means["identity"][0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "joint_positions").rename(root / "x"), "found neither"),
        (lambda root: (root / "Rename_Images").rename(root / "x"), "the frames of clip clip_a"),
        (
            lambda root: (root / "joint_positions/run/clip_a/joint_positions.mat").write_bytes(b"MATLAB 5.0 nothing"),
            "cannot be read",
        ),
        (
            lambda root: scipy.io.savemat(root / "joint_positions/run/clip_a/joint_positions.mat", {"pos_img": [[1]]}),
            "found [1, 1]",
        ),
        (
            lambda root: (root / "Rename_Images/run/clip_a/00008.png").unlink(),
            "each of 8 poses, all of numbers, found 7",
        ),
    ],
    ids=["no joints", "no images", "no matlab", "shape", "missing frame"],
)
def test_errors_for_incomplete_jhmdb_folders_name_the_missing_part(jhmdb: Path, damage: Any, message: str) -> None:
    damage(jhmdb)
    with pytest.raises(InputError) as refusal:
        open_jhmdb(jhmdb)
    assert message in str(refusal.value)


def test_the_error_without_scipy_names_the_extra_to_install(jhmdb: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(InputError, match=r"pip install 'corrflow\[eval\]'"):
        open_jhmdb(jhmdb)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1), value=st.integers(0, 255), cut=st.floats(0.02, 1))
def test_damaged_joints_are_read_or_refused_in_one_sentence(jhmdb: Path, place: float, value: int, cut: float) -> None:
    path = jhmdb / "joint_positions" / "run" / "clip_a" / "joint_positions.mat"
    original = path.with_name("original.mat")
    if not original.exists():
        original.write_bytes(path.read_bytes())
    content = bytearray(original.read_bytes())
    content[int(place * (len(content) - 1))] = value
    path.write_bytes(content[: int(cut * len(content))])
    try:
        open_jhmdb(jhmdb)
    except InputError as error:
        assert "\n" not in str(error)


@pytest.fixture
def badja(tmp_path: Path, moving_square) -> Path:
    """Write one video in the published form: (row, column), every third frame, paths with folders."""
    frames, masks = moving_square
    root = tmp_path / "badja"
    save_frames(root / "DAVIS" / "JPEGImages" / "square", frames, 0, "jpg")
    save_frames(root / "DAVIS" / "Annotations" / "square", masks.astype(np.uint8) * 255, 0)
    entries = [
        {
            "image_path": f"DAVIS/JPEGImages/square/{t:05d}.jpg",
            "segmentation_path": f"DAVIS/Annotations/square/{t:05d}.png",
            "joints": [[18 + t, 26 + 2 * t], [24 + t, 34 + 2 * t], [0, 0]],
            "visibility": [True, True, False],
        }
        for t in (1, 4, 7)
    ]
    (root / "joint_annotations").mkdir()
    (root / "joint_annotations" / "square.json").write_text(json.dumps(entries))
    return root


def test_badja_begins_with_its_first_annotated_frame(badja: Path) -> None:
    (video,) = open_badja(badja / "joint_annotations", badja)
    assert video.name == "square" and len(video.image_paths) == 7
    assert video.joints[0].tolist() == [[28, 19], [36, 25], [0, 0]]
    assert video.areas is not None
    assert np.flatnonzero(np.isfinite(video.areas)).tolist() == [0, 3, 6]
    assert video.areas[0] == 400
    report = evaluate_badja([video], [IDENTITY])
    # 0.2 * sqrt(400) = 4 pixels; the joints move by sqrt(5) a frame, three frames and six frames on.
    assert report.videos["identity"]["square"] == [0.0]
    moved = np.array([np.hypot(2, 1) * t for t in (3, 6)])
    assert (moved > 4).all()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "joint_annotations/square.json").write_text("{"), "something else"),
        (lambda root: (root / "joint_annotations/square.json").write_text("[]"), "no annotated frame"),
        (lambda root: (root / "joint_annotations/square.json").write_text('[{"joints": 3}]'), "something else"),
        (lambda root: (root / "DAVIS/JPEGImages/square/00004.jpg").unlink(), "00004.jpg, found none"),
        (lambda root: (root / "DAVIS/Annotations/square/00004.png").unlink(), "00004.png"),
        (
            lambda root: (root / "joint_annotations/square.json").write_text(
                (root / "joint_annotations/square.json").read_text().replace("DAVIS", "../..", 1)
            ),
            "leads out of the data set",
        ),
    ],
    ids=["cut off", "empty", "no joints", "no frame", "no mask", "outside"],
)
def test_other_files_than_badja_are_refused(badja: Path, damage: Any, message: str) -> None:
    damage(badja)
    with pytest.raises(InputError) as refusal:
        open_badja(badja / "joint_annotations", badja)
    assert message in str(refusal.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=6) | st.integers(-3, 3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["frames", "joints", "visibility", "image_path", "frames_dir"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(json_values, st.sampled_from(["whole", "list", "joints", "visibility", "image_path", "segmentation_path"]))
def test_any_json_is_a_video_or_one_sentence(badja: Path, value: Any, where: str) -> None:
    path = badja / "joint_annotations" / "square.json"
    original = path.with_suffix(".original")
    if not original.exists():
        original.write_text(path.read_text())
    entries = json.loads(original.read_text())
    if where in ("whole", "list"):
        entries = value if where == "whole" else [value]
    else:
        entries[1][where] = value
    path.write_text(json.dumps(entries))
    try:
        open_badja(path, badja)
    except InputError as error:
        assert "\n" not in str(error)


def tapvid_file(path: Path, frames: np.ndarray, **changes: Any) -> Path:
    """Write a pickle of two points on the moving square; the second point is occluded at first and last."""
    height, width = frames.shape[1:3]
    pixels = np.array([[[26.0 + 2 * t, 20 + t] for t in range(8)], [[36.0 + 2 * t, 28 + t] for t in range(8)]])
    occluded = np.zeros((2, 8), bool)
    occluded[1, [0, 1, 7]] = True
    video = {
        "video": np.ascontiguousarray(frames[..., ::-1]),
        "points": ((pixels + 0.5) / [width, height]).astype(np.float32),
        "occluded": occluded,
    } | changes
    path.write_bytes(pickle.dumps({"square": video}, 4))
    return path


def test_tapvid_queries_are_the_first_visible_frame_or_every_fifth(tmp_path: Path, moving_square) -> None:
    frames, _ = moving_square
    (video,) = open_tapvid(tapvid_file(tmp_path / "a.pkl", frames))
    np.testing.assert_array_equal(video.images(None)[3], frames[3])
    assert video.images()[0].shape == (256, 256, 3)
    query_frames, points, positions, confidences = track_queries(PointJob(IDENTITY, video, "first"))
    assert query_frames.tolist() == [0, 2] and points.tolist() == [0, 1]
    assert confidences.tolist() == [[1.0] * 8, [0.0] * 2 + [1.0] * 6]
    # The conversion to pixels and back must not shift the query by half a pixel.
    np.testing.assert_allclose(positions[1, 2], video.points[1, 2] * 256, atol=1e-3)
    query_frames, points, positions, confidences = track_queries(PointJob(IDENTITY, video, "strided"))
    assert list(zip(query_frames.tolist(), points.tolist(), strict=True)) == [(0, 0), (5, 0), (5, 1)]
    np.testing.assert_allclose(positions[2], np.broadcast_to(video.points[1, 5] * 256, (8, 2)), atol=1e-3)
    assert confidences.all()


@pytest.mark.parametrize("mode", ["first", "strided"])
@pytest.mark.parametrize("native", [False, True], ids=["256x256", "native"])
def test_tracked_points_beat_points_that_stay(tmp_path: Path, moving_square, mode: str, native: bool) -> None:
    frames, _ = moving_square
    videos = open_tapvid(tapvid_file(tmp_path / "a.pkl", frames))
    model = Path(resolve_model("fast-int8"))  # an untrained encoder is not sure enough to call a point visible
    tracked = Method("fast-int8", TrackerMethod(ArtifactEncoder(model), load_artifact(model).settings))
    report = evaluate_tapvid(videos, [tracked, IDENTITY], mode, native=native)
    assert report.means["fast-int8"][1] > report.means["identity"][1]
    assert report.means["fast-int8"][0] > report.means["identity"][0]


def test_encoded_frames_are_decoded(tmp_path: Path, moving_square) -> None:
    frames, _ = moving_square
    encoded = [cv2.imencode(".png", frame)[1].tobytes() for frame in frames]
    for content in (encoded, np.array(encoded, object)):
        (video,) = open_tapvid(tapvid_file(tmp_path / "a.pkl", frames, video=content))
        np.testing.assert_array_equal(video.images(None), frames)
    (broken,) = open_tapvid(tapvid_file(tmp_path / "b.pkl", frames, video=[*encoded[:-1], b"no image"]))
    with pytest.raises(InputError, match="frame 7 of square"):
        broken.images()


@pytest.mark.parametrize(
    "changes",
    [
        {"video": np.zeros((8, 4, 4), np.uint8)},
        {"video": np.zeros((8, 4, 4, 3), np.float32)},
        {"video": []},
        {"points": np.zeros((2, 7, 2))},
        {"points": np.zeros(())},
        {"occluded": np.zeros((3, 8), bool)},
        {"occluded": [1]},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_pickles_of_other_content_are_refused(tmp_path: Path, moving_square, changes: dict) -> None:
    frames, _ = moving_square
    with pytest.raises(InputError, match=r"occluded \[N, T\] for square"):
        open_tapvid(tapvid_file(tmp_path / "a.pkl", frames, **changes))
    (tmp_path / "b.pkl").write_bytes(pickle.dumps({"square": {"video": 1}}, 4))
    with pytest.raises(InputError, match="found"):
        open_tapvid(tmp_path / "b.pkl")


# --- commands --------------------------------------------------------------------------------------------------


def test_commands_print_tables_and_write_scores(
    jhmdb: Path, badja: Path, tmp_path: Path, moving_square, small_artifact: Path
) -> None:
    pickled = tapvid_file(tmp_path / "a.pkl", moving_square[0])
    common = ["--model", str(small_artifact), "--baseline", "identity", "--out", str(tmp_path / "scores.json")]
    for arguments, measure in (
        (["jhmdb", str(jhmdb)], "PCKmax@0.2"),
        (["badja", str(badja / "joint_annotations"), "--root", str(badja)], "PCK@0.2"),
        (["tapvid", str(pickled), "--queries", "strided"], "AJ"),
    ):
        done = CliRunner().invoke(cli.app, [*arguments, *common])
        assert done.exit_code == 0, done.output
        assert measure in done.stdout
        written = json.loads((tmp_path / "scores.json").read_text())
        assert [method["label"] for method in written["methods"]] == ["small", "identity"]
        assert set(written["methods"][0]["all"]) >= {measure}
    refused = CliRunner().invoke(cli.app, ["tapvid", str(pickled), "--queries", "last"])
    assert refused.exit_code == 2 and "first, strided, got 'last'" in refused.stderr


def test_real_joints_are_read(shared_data: Path) -> None:
    (clip,) = open_jhmdb(shared_data / "keypoints" / "jhmdb_goal_keeping")
    assert clip.joints.shape == (40, 15, 2)
    videos = open_badja(shared_data / "keypoints", shared_data)
    for video in videos:
        assert video.areas is not None
        annotated = np.isfinite(video.areas)
        assert annotated.sum() > 5
        points = video.joints[annotated][video.visible[annotated]]
        assert (points >= 0).all() and (points <= [854, 480]).all()
