"""corrflow-eval points: labels of several formats, prompts on several frames, baselines and calibration."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from corrflow.errors import InputError
from corrflow.evaluate import cli
from corrflow.evaluate.datasets.labelled_videos import LabelledVideo, open_labelled_video
from corrflow.evaluate.keypoints import evaluate_keypoints, given_rows, scored_points
from corrflow.evaluate.masks import Method
from corrflow.evaluate.methods.methods import FlowWarp, Identity, LucasKanade

SIZE, FRAMES, STEP = (96, 128), 9, 2
NAMES = ("nose", "tail", "paw")
START = np.array([[30.0, 30.0], [60.0, 40.0], [40.0, 60.0]])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """Write a texture that moves two pixels to the right per frame, and return its folder and points [T, 1, 3, 2]."""
    folder = tmp_path_factory.mktemp("video") / "mouse"
    folder.mkdir()
    texture = np.random.default_rng(0).integers(0, 255, (SIZE[0], SIZE[1] + FRAMES * STEP, 3)).astype(np.uint8)
    texture = cv2.GaussianBlur(texture, (0, 0), 2)
    texture = cv2.normalize(texture, np.zeros_like(texture), 0, 255, cv2.NORM_MINMAX)
    xy = np.zeros((FRAMES, 1, 3, 2), np.float32)
    for t in range(FRAMES):
        left = (FRAMES - t) * STEP
        cv2.imwrite(str(folder / f"img{t:03d}.png"), texture[:, left : left + SIZE[1]])
        xy[t, 0] = START + np.array([t * STEP, 0])
    return folder, xy


def save_arrays(path: Path, xy: np.ndarray) -> Path:
    np.savez(path, xy=xy, nodes=np.array(NAMES))
    return path


def test_arrays_become_labelled_frames(clip, tmp_path: Path) -> None:
    folder, xy = clip
    xy = xy.copy()
    xy[2] = np.nan  # no label at all
    xy[3, 0, 1] = np.nan  # a hidden point
    xy[4, 0, 2] = (500, 10)  # a point outside of the frame is not visible
    video = open_labelled_video(str(folder), save_arrays(tmp_path / "points.npz", xy))
    assert video.name == "mouse" and video.names == tuple(("object 1", name) for name in NAMES)
    assert video.frames == (0, 1, 3, 4, 5, 6, 7, 8)
    assert video.is_labelled.all() and video.is_visible.sum() == 8 * 3 - 2
    np.testing.assert_array_equal(video.points[1], xy[1, 0])
    assert [one.point_names for one in video.prompts(2)] == [("nose", "paw")]


def test_arrays_of_tapvid_are_in_pixels(clip, tmp_path: Path) -> None:
    folder, xy = clip
    points = ((xy[:, 0] + 0.5) / SIZE[::-1]).transpose(1, 0, 2)
    hidden = np.zeros((3, FRAMES), bool)
    hidden[0, 5] = True
    names = np.array([f"mouse/{name}" for name in NAMES])
    np.savez(tmp_path / "tapvid.npz", points=points, occluded=hidden, names=names)
    video = open_labelled_video(str(folder), tmp_path / "tapvid.npz")
    assert video.names[0] == ("mouse", "nose") and not video.is_visible[5, 0]
    np.testing.assert_allclose(video.points[1], xy[1, 0], atol=1e-4)


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_labels_of_tools_are_read_as_the_runtime_reads_them(clip, tmp_path: Path, suffix: str) -> None:
    folder, xy = clip
    path = tmp_path / f"labels{suffix}"
    if suffix == ".csv":
        rows = [
            f"{t},mouse,{name},{x},{y}"
            for t in (1, 4)
            for name, (x, y) in zip(NAMES, xy[t, 0].tolist(), strict=True)
            if (t, name) != (4, "tail")
        ]
        path.write_text("\n".join(["frame,object,name,x,y", *rows]) + "\n")
    else:
        triples = {t: [value for x, y in xy[t, 0].tolist() for value in (x, y, 2)] for t in (1, 4)}
        triples[4][3:6] = [0, 0, 0]
        content = {
            "images": [{"id": t, "file_name": f"img{t:03d}.png", "width": SIZE[1], "height": SIZE[0]} for t in (1, 4)],
            "categories": [{"id": 1, "name": "mouse", "keypoints": list(NAMES)}],
            "annotations": [
                {"id": t, "image_id": t, "category_id": 1, "keypoints": triples[t], "num_keypoints": 3} for t in (1, 4)
            ],
        }
        path.write_text(json.dumps(content))
    video = open_labelled_video(str(folder), path)
    assert video.frames == (1, 4) and {name for name, _ in video.names} == {"mouse"}
    assert [point for _, point in video.names] == list(NAMES)
    np.testing.assert_allclose(video.points[0], xy[1, 0], atol=1e-3)
    assert not video.is_visible[1, 1] and video.is_labelled.all()


def test_an_object_without_a_label_on_a_frame_is_not_hidden(clip, tmp_path: Path) -> None:
    folder, _ = clip
    rows = ["0,a,nose,10,10", "0,b,nose,30,30", "3,a,nose,12,10"]
    (tmp_path / "points.csv").write_text("\n".join(["frame,object,name,x,y", *rows]) + "\n")
    video = open_labelled_video(str(folder), tmp_path / "points.csv")
    assert video.is_labelled.tolist() == [[True, True], [True, False]]
    assert scored_points(video, (0,)).tolist() == [[False, False], [True, False]]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"xy": np.zeros((2, 1, 3))}, "without them"),
        ({"xy": np.zeros((2, 1, 3, 2)), "nodes": np.array(["a", "b"])}, "other shapes"),
        ({"xy": np.zeros((2, 1, 2, 2)), "nodes": np.array(["a", "a"])}, "other shapes"),
        ({"xy": np.zeros((2, 1, 1, 2), object), "nodes": np.array(["a"])}, "without them"),
        ({"xy": np.full((2, 1, 1, 2), np.nan), "nodes": np.array(["a"])}, "got none"),
        ({"points": np.zeros((2, 3, 2)), "occluded": np.zeros((2, 4), bool)}, "without them|other shapes"),
        ({"other": np.zeros(3)}, "without them"),
    ],
    ids=["no-nodes", "nodes", "twice", "pickle", "hidden", "occluded", "other"],
)
def test_other_arrays_are_refused(clip, tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "points.npz", **arrays)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=message):
        open_labelled_video(str(clip[0]), tmp_path / "points.npz")


def test_a_small_file_of_large_arrays_is_refused(clip, tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "bomb.npz", xy=np.zeros((10_000_000, 1, 1, 2), np.float32), nodes=np.array(["a"]))
    with pytest.raises(InputError, match="memory"):
        open_labelled_video(str(clip[0]), tmp_path / "bomb.npz")


def test_given_frames_are_evenly_spread_with_the_first_among_them() -> None:
    assert given_rows(300, 5) == (0, 60, 120, 180, 240)
    assert given_rows(7, 1) == (0,) and given_rows(3, 2) == (0, 1)
    for count, labelled in ((3, 3), (1, 1), (5, 0)):
        with pytest.raises(InputError, match="--labelled"):
            given_rows(count, labelled)


METHODS = (
    Method("lk", LucasKanade()),
    Method("flow", FlowWarp()),
    Method("identity", Identity()),
)


def labelled(clip, tmp_path: Path) -> LabelledVideo:
    folder, xy = clip
    return open_labelled_video(str(folder), save_arrays(tmp_path / "points.npz", xy))


def test_flow_follows_a_moving_texture_and_no_motion_does_not(clip, tmp_path: Path) -> None:
    report = evaluate_keypoints(labelled(clip, tmp_path), METHODS)
    assert report.length == 30 and report.is_scored.sum() == 3 * (FRAMES - 1)
    lk, flow, identity = (result.score for result in report.results)
    assert lk.pck == (1, 1, 1, 1) and flow.pck_right == 1 and lk.median_error < 0.3
    # Two pixels per frame: three frames stay within six pixels.
    assert identity.pck_right == 3 / 8 and identity.pck_late == 0
    assert identity.calibration.expected_error == pytest.approx(5 / 8)
    assert report.by_point(report.results[2]) == dict.fromkeys(NAMES, 3 / 8)
    assert report.by_object(report.results[0]) == {"object 1": 1}


def test_baselines_start_at_the_nearest_labelled_frame_forward_and_backward(clip, tmp_path: Path) -> None:
    report = evaluate_keypoints(labelled(clip, tmp_path), METHODS, labelled=2)
    assert report.given == (0, 4) and report.is_scored.any(1).tolist() == [t not in (0, 4) for t in range(FRAMES)]
    lk, _, identity = report.results
    assert lk.score.pck_right == 1
    distance = [0, 1, 2, 1, 0, 1, 2, 3, 4]  # frame 2 is nearest to the earlier of two
    np.testing.assert_allclose(identity.errors, STEP * np.repeat(distance, 3).reshape(FRAMES, 3), atol=1e-5)


def test_lucas_kanade_reports_a_covered_point_as_hidden(tmp_path: Path, clip) -> None:
    folder, xy = clip
    covered = tmp_path / "covered"
    covered.mkdir()
    for t, path in enumerate(sorted(folder.iterdir())):
        image = cv2.imread(str(path))
        assert image is not None
        if t >= 4:
            image[10:50, 15:75] = np.random.default_rng(t).integers(0, 255, (40, 60, 3))
        cv2.imwrite(str(covered / path.name), image)
    xy = xy.copy()
    xy[4:, 0, 0] = np.nan
    video = open_labelled_video(str(covered), save_arrays(tmp_path / "points.npz", xy))
    [lk] = evaluate_keypoints(video, METHODS[:1]).results
    assert lk.score.hidden_found == 1 and lk.score.hidden_count == 5


def test_the_command_tracks_and_prints_every_method(clip, tmp_path: Path) -> None:
    folder, xy = clip
    path = save_arrays(tmp_path / "points.npz", xy)
    done = CliRunner().invoke(cli.app, ["points", str(folder), str(path), "--labelled", "2", "--model", "quarter"])
    assert done.exit_code == 0, done.output
    rows = {line.split("│")[1].strip(): line for line in done.output.splitlines() if line.startswith("│")}
    assert set(rows) == {"quarter", "lk", "flow", "identity"} and "100.0" in rows["lk"]
    assert "7 scored frames, 21 visible points, 0 hidden; body length 30.0 pixels" in " ".join(done.output.split())


def test_the_tracker_gets_one_labelled_frame_or_several(clip, tmp_path: Path) -> None:
    video = labelled(clip, tmp_path)
    from corrflow.evaluate.method_selection import select_methods
    from corrflow.evaluate.options import MethodOptions

    methods = select_methods(MethodOptions(model=["quarter"]))
    for count in (1, 2):
        [result] = evaluate_keypoints(video, methods, labelled=count).results
        assert np.isfinite(result.tracked.positions).all()
        assert result.score.pck[-1] > 0.9 and result.tracked.seconds[0] > 0


def test_labels_past_the_end_of_the_video_are_refused(clip, tmp_path: Path) -> None:
    folder, xy = clip
    longer = np.concatenate([xy, xy[-1:]])
    video = open_labelled_video(str(folder), save_arrays(tmp_path / "points.npz", longer))
    for count in (1, 2):
        with pytest.raises(InputError, match="labelled frame 9"):
            evaluate_keypoints(video, METHODS[:1], labelled=count)


def test_baselines_of_points_are_no_baselines_of_masks(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.app, ["davis", str(tmp_path), "--baseline", "lk"])
    assert done.exit_code == 2
