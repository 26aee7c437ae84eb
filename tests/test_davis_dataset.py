"""The DAVIS layout reader, and scoring a split with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from corrflow.evaluate import cli, davis
from corrflow.evaluate.datasets import VOID, DavisSequence, open_davis
from corrflow.evaluate.report import davis_table
from corrflow.plugins.errors import CorrflowError, InputError
from corrflow.runtime.artifact import Artifact, TrackingSettings
from corrflow.runtime.tracks import MaskObject, Tracks

DEV = Path(__file__).parents[2] / "shared" / "data" / "davis-dev"

HEIGHT, WIDTH = 24, 40
PALETTE = [value for index in range(256) for value in (index, 255 - index, (7 * index) % 256)]


def square(top: int, left: int, value: int = 255, size: int = 8) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top : top + size, left : left + size] = value
    return mask


def save_indexed(mask: np.ndarray, path: Path) -> None:
    picture = Image.fromarray(mask).convert("P")
    picture.putdata(mask.ravel().tolist())
    picture.putpalette(PALETTE)
    picture.save(path)


def save_grey(mask: np.ndarray, path: Path) -> None:
    Image.fromarray(mask).save(path)


def save_grey_alpha(mask: np.ndarray, path: Path) -> None:
    Image.merge("LA", [Image.fromarray(mask), Image.new("L", (WIDTH, HEIGHT), 255)]).save(path)


def save_colour(mask: np.ndarray, path: Path) -> None:
    Image.merge("RGB", [Image.fromarray(mask)] * 3).save(path)


Saver = Callable[[np.ndarray, Path], None]


def add_sequence(root: Path, name: str, masks: list[np.ndarray], save: Saver = save_grey) -> None:
    """A sequence of pictures that brighten from frame to frame, listed in ImageSets/2017/val.txt."""
    images, annotations = (root / kind / "480p" / name for kind in ("JPEGImages", "Annotations"))
    for folder in (images, annotations, root / "ImageSets" / "2017"):
        folder.mkdir(parents=True, exist_ok=True)
    for index, mask in enumerate(masks):
        save(mask, annotations / f"{index:05d}.png")
        picture = np.full((HEIGHT, WIDTH, 3), (10 * index, 60, 200), np.uint8)
        cv2.imwrite(str(images / f"{index:05d}.jpg"), picture)
    with (root / "ImageSets" / "2017" / "val.txt").open("a") as file:
        file.write(f"{name}\n")


def sequence_of(root: Path, masks: list[np.ndarray], save: Saver = save_grey) -> DavisSequence:
    add_sequence(root, "only", masks, save)
    return open_davis(root, "val")[0]


# --- reading ---------------------------------------------------------------------------------------------------


def test_sequences_come_in_the_order_of_the_list(tmp_path: Path) -> None:
    for name in ("walk", "bear"):
        add_sequence(tmp_path, name, [square(2, 3)] * 3)
    sequences = open_davis(tmp_path, "val", year="2017")
    assert [sequence.name for sequence in sequences] == ["walk", "bear"]
    assert [len(sequence) for sequence in sequences] == [3, 3]
    assert [path.name for path in sequences[0].annotation_paths] == ["00000.png", "00001.png", "00002.png"]


def test_frames_are_blue_green_red_with_stem_and_time(tmp_path: Path) -> None:
    frames = list(sequence_of(tmp_path, [square(2, 3)] * 3).frames())
    assert [(frame.index, frame.name, frame.time) for frame in frames] == [
        (0, "00000", 0.0),
        (1, "00001", 1 / 24),
        (2, "00002", 2 / 24),
    ]
    for index, frame in enumerate(frames):
        assert frame.image.shape == (HEIGHT, WIDTH, 3)
        assert frame.image.dtype == np.uint8
        # JPEG moves the values of a flat picture by rounding only.
        assert np.abs(frame.image.reshape(-1, 3).mean(0) - (10 * index, 60, 200)).max() <= 3


@pytest.mark.parametrize("save", [save_grey, save_grey_alpha, save_colour, save_indexed])
def test_masks_of_0_and_255_hold_object_one(tmp_path: Path, save: Saver) -> None:
    masks = [square(2, 3), square(4, 5), np.zeros((HEIGHT, WIDTH), np.uint8)]
    sequence = sequence_of(tmp_path, masks, save)
    assert sequence.object_ids == (1,)
    for index, mask in enumerate(masks):
        annotation = sequence.annotation(index)
        assert annotation.dtype == np.uint8
        np.testing.assert_array_equal(annotation, mask == 255)


def test_indexed_masks_hold_the_object_ids_and_void(tmp_path: Path) -> None:
    first = np.maximum(square(2, 3, 7), square(12, 20, 2))
    first[-1] = VOID
    only_void = square(0, 0, VOID)
    sequence = sequence_of(tmp_path, [first, only_void], save_indexed)
    assert sequence.object_ids == (2, 7)
    np.testing.assert_array_equal(sequence.annotation(0), first)
    # The first frame tells the kind of mask: in a mask of ids, 255 alone is still void and not object 1.
    np.testing.assert_array_equal(sequence.annotation(1), only_void)
    given = sequence.objects()
    assert [item.id for item in given] == [2, 7]
    assert all(item.mask.dtype == np.bool_ and item.mask.sum() == 64 for item in given)


def test_objects_that_appear_later_are_not_tracked(tmp_path: Path) -> None:
    later = np.maximum(square(2, 3, 1), square(12, 20, 2))
    assert sequence_of(tmp_path, [square(2, 3, 1), later, later], save_indexed).object_ids == (1,)


def test_lists_of_file_pairs_name_their_sequences(tmp_path: Path) -> None:
    add_sequence(tmp_path, "bear", [square(2, 3)] * 3)
    for resolution in ("480p", "1080p"):
        pairs = tmp_path / "ImageSets" / resolution / "train.txt"
        pairs.parent.mkdir()
        pairs.write_text(
            "".join(
                f"/JPEGImages/{resolution}/bear/{i:05d}.jpg /Annotations/{resolution}/bear/{i:05d}.png \n"
                for i in range(3)
            )
        )
    assert [(item.name, len(item)) for item in open_davis(tmp_path, "train")] == [("bear", 3)]


@pytest.mark.skipif(not DEV.exists(), reason=f"no DAVIS sequences at {DEV}")
def test_masks_of_the_development_split_are_read() -> None:
    sequences = open_davis(DEV, "dev")
    assert sum(len(sequence) for sequence in sequences) == 565
    for sequence in sequences:
        assert sequence.object_ids == (1,)
        for index in range(0, len(sequence), 7):
            assert set(np.unique(sequence.annotation(index))) <= {0, 1}


# --- layout errors ---------------------------------------------------------------------------------------------


LIST, IMAGES, MASKS = "ImageSets/2017/val.txt", "JPEGImages/480p/only", "Annotations/480p/only"


def add_list_of_another_year(root: Path) -> None:
    (root / "ImageSets" / "2016").mkdir()
    (root / "ImageSets" / "2016" / "val.txt").write_text("only\n")


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        pytest.param(lambda root: (root / LIST).unlink(), "no list", id="no list"),
        pytest.param(lambda root: (root / LIST).write_text("\n \n"), "names of sequences", id="empty list"),
        pytest.param(lambda root: (root / LIST).write_text("only\nghost\n"), "ghost", id="listed but absent"),
        pytest.param(add_list_of_another_year, "2016, 2017; name the year", id="two years"),
        pytest.param(lambda root: (root / IMAGES).rename(root / "images"), "a folder of frames", id="no frames"),
        pytest.param(lambda root: (root / MASKS).rename(root / "masks"), "a folder of masks", id="no masks"),
        pytest.param(
            lambda root: [path.rename(path.with_suffix(".gif")) for path in (root / MASKS).glob("*")],
            "expected masks (.png), found none",
            id="other format",
        ),
        pytest.param(
            lambda root: (root / MASKS / "00001.png").unlink(),
            "3 frames and 2 masks (unpaired 00001)",
            id="missing mask",
        ),
        pytest.param(
            lambda root: (root / MASKS / "00001.png").rename(root / MASKS / "00009.png"),
            "3 frames and 3 masks (unpaired 00001, 00009)",
            id="renamed mask",
        ),
        pytest.param(
            lambda root: (root / IMAGES / "00001.jpeg").write_bytes(b""), "two frames of one name", id="frame twice"
        ),
    ],
)
def test_other_layouts_are_refused_with_what_was_found(
    tmp_path: Path, spoil: Callable[[Path], None], found: str
) -> None:
    add_sequence(tmp_path, "only", [square(2, 3)] * 3)
    spoil(tmp_path)
    with pytest.raises(InputError) as refusal:
        open_davis(tmp_path, "val")
    message = str(refusal.value)
    assert "expected" in message
    assert found in message
    assert "\n" not in message


def test_absent_roots_resolutions_and_splits_are_refused(tmp_path: Path) -> None:
    add_sequence(tmp_path, "only", [square(2, 3)] * 3)
    with pytest.raises(InputError, match="found no folder"):
        open_davis(tmp_path / "elsewhere", "val")
    with pytest.raises(InputError, match="check root and resolution"):
        open_davis(tmp_path, "val", resolution="1080p")
    with pytest.raises(InputError, match=r"train\.txt, found ImageSets/2017/val\.txt"):
        open_davis(tmp_path, "train")


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        pytest.param(lambda path: path.write_text("no picture"), "cannot be decoded", id="text"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-30]), "cannot be decoded", id="cut off"),
        pytest.param(lambda path: Image.new("RGB", (WIDTH, HEIGHT), "red").save(path), "colours", id="colours"),
        pytest.param(lambda path: save_grey(np.full((HEIGHT, WIDTH), 300, np.uint16), path), "8 bits", id="16 bits"),
        pytest.param(lambda path: save_grey(square(2, 3)[::2, ::2], path), "40x24, found 20x12", id="size"),
        pytest.param(lambda path: save_grey(square(2, 3, 128), path), r"values \[0, 128\]", id="grey"),
    ],
)
def test_files_that_are_no_masks_are_refused(tmp_path: Path, spoil: Callable[[Path], None], found: str) -> None:
    sequence = sequence_of(tmp_path, [square(2, 3)] * 3)
    spoil(sequence.annotation_paths[1])
    with pytest.raises(InputError, match=found) as refusal:
        sequence.annotation(1)
    assert str(sequence.annotation_paths[1]) in str(refusal.value)


def test_files_that_are_no_pictures_are_refused(tmp_path: Path) -> None:
    sequence = sequence_of(tmp_path, [square(2, 3)] * 3)
    sequence.image_paths[1].write_text("no picture")
    with pytest.raises(InputError, match="cannot be decoded"):
        list(sequence.frames())


def test_first_frames_without_objects_are_refused(tmp_path: Path) -> None:
    sequence = sequence_of(tmp_path, [square(2, 3, 0), square(2, 3), square(2, 3)])
    with pytest.raises(InputError, match="an object in the first frame"):
        sequence.objects()


# --- scoring ---------------------------------------------------------------------------------------------------


class FakeTracker:
    """Moves every mask two pixels to the right a frame, whatever the frame shows."""

    def __init__(self, backend: object, settings: TrackingSettings) -> None:
        self.mask = np.zeros((0, 0), np.uint8)

    def start(self, frame: np.ndarray, objects: tuple[MaskObject, ...]) -> Tracks:
        self.mask = np.zeros(frame.shape[:2], np.uint8)
        for item in objects:
            self.mask[item.mask] = item.id
        return Tracks(self.mask)

    def step(self, frame: np.ndarray) -> Tracks:
        self.mask = np.roll(self.mask, 2, axis=1)
        return Tracks(self.mask)


@pytest.fixture
def fake_runtime(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Stands in for artifacts, back end and tracker; records each back end that is closed."""
    closed: list[bool] = []

    def load_artifact(path: Path | str) -> Artifact:
        return Artifact(Path(path).name, {}, 8, TrackingSettings(), {"data": "none"})

    def open_backend(name: str, artifact: Artifact, threads: int = 0) -> SimpleNamespace:
        return SimpleNamespace(close=lambda: closed.append(True))

    monkeypatch.setattr("corrflow.runtime.artifact.load_artifact", load_artifact)
    monkeypatch.setattr("corrflow.runtime.backend.open_backend", open_backend)
    monkeypatch.setattr("corrflow.runtime.tracker.Tracker", FakeTracker)
    return closed


def moving_data_set(root: Path) -> None:
    """ "two" has two objects, moving and still; "one" has one that moves."""
    moving = [square(1, 2 + 2 * index, 1) for index in range(6)]
    add_sequence(root, "two", [np.maximum(mask, square(13, 2, 5)) for mask in moving], save_indexed)
    add_sequence(root, "one", [mask * 255 for mask in moving])


def test_means_are_over_objects_and_not_over_sequences(tmp_path: Path, fake_runtime: list[bool]) -> None:
    moving_data_set(tmp_path)
    report = davis.evaluate_davis(tmp_path, "val", [Path("models/fake")], identity=True)
    tracked, identity = report.methods
    assert (tracked.label, identity.label) == ("fake", "identity")
    assert list(tracked.sequences) == list(identity.sequences) == ["two", "one"]
    assert len(fake_runtime) == 2

    moved, still = tracked.sequences["two"].objects[1], tracked.sequences["two"].objects[5]
    assert moved.region.mean == moved.contour.mean == 1.0
    # Frames 1 to 4, moved by 2, 4, 6 and 8 of 8 pixels.
    still_mean = np.mean([6 / 10, 4 / 12, 2 / 14, 0])
    assert still.region.mean == pytest.approx(still_mean, abs=1e-12)
    assert identity.sequences["two"].objects[5].region.mean == 1.0
    assert identity.sequences["one"].objects[1].region.mean == pytest.approx(still_mean, abs=1e-12)

    table = davis_table(report)
    cells = list(table.columns[1].cells)
    assert cells == [f"{100 * (1 + still_mean) / 2:.1f}", "100.0", f"{100 * (2 + still_mean) / 3:.1f}"]
    assert str(list(table.columns[0].cells)[-1]) == "mean of 3 objects"
    assert list(table.columns[-1].cells) == ["", "", ""]


def test_void_pixels_count_for_no_object(tmp_path: Path) -> None:
    first, wrong = square(2, 3, 1), square(2, 20, 1)
    later = np.maximum(first, square(2, 20, VOID))
    sequence = sequence_of(tmp_path, [first, later, later, first], save_indexed)
    score = davis.score_sequence(sequence, [np.maximum(first, wrong)] * 4)[1]
    assert score.region_similarity.tolist() == [0.5, 1, 1, 0.5]
    assert score.contour_accuracy[1] == 1.0


def test_written_report_holds_scores_settings_and_hash(tmp_path: Path, fake_runtime: list[bool]) -> None:
    moving_data_set(tmp_path)
    output = tmp_path / "scores.json"
    output.write_text("old")
    davis.evaluate_davis(tmp_path, "val", [Path("fake")], rows=96, sequence_names=["one"], output=output)
    assert [path.name for path in tmp_path.glob("*scores*")] == ["scores.json"]
    written = json.loads(output.read_text())
    (method,) = written["methods"]
    assert method["settings"]["rows"] == 96
    assert len(method["artifact"]["sha256"]) == 64
    assert method["artifact"]["provenance"] == {"data": "none"}
    assert list(method["sequences"]) == ["one"]
    assert method["sequences"]["one"]["objects"] == {
        "1": {"J": {"mean": 1, "recall": 1, "decay": 0}, "F": {"mean": 1, "recall": 1, "decay": 0}}
    }
    assert method["mean_over_objects"] == {"J": 1, "F": 1, "J&F": 1}
    assert method["seconds_per_frame"] == method["sequences"]["one"]["seconds_per_frame"] > 0


def test_artifacts_of_one_name_are_labelled_by_their_paths(tmp_path: Path, fake_runtime: list[bool]) -> None:
    moving_data_set(tmp_path)
    paths = [tmp_path / name for name in ("a/fake", "b/fake", "other", "identity")]
    report = davis.evaluate_davis(tmp_path, "val", paths, identity=True)
    assert [method.label for method in report.methods] == [
        str(paths[0]),
        str(paths[1]),
        "other",
        str(paths[3]),
        "identity",
    ]


def test_parallel_scores_are_those_of_one_process(tmp_path: Path) -> None:
    moving_data_set(tmp_path)
    jobs = [davis.Job("identity", None, sequence, None, 1) for sequence in open_davis(tmp_path, "val")]
    one, two = (
        {job.sequence.name: score.objects for job, score in davis.run_jobs(jobs, workers)} for workers in (1, 2)
    )
    assert sorted(one) == sorted(two) == ["one", "two"]
    for name, objects in one.items():
        for object_id, score in objects.items():
            assert score.region == two[name][object_id].region
            np.testing.assert_array_equal(score.contour_accuracy, two[name][object_id].contour_accuracy)


def test_errors_of_worker_processes_arrive_as_they_are(tmp_path: Path) -> None:
    sequence = sequence_of(tmp_path, [square(2, 3)] * 3)
    sequence.annotation_paths[1].write_text("no picture")
    with pytest.raises(InputError, match="cannot be decoded"):
        list(davis.run_jobs([davis.Job("identity", None, sequence, None, 1)], workers=2))


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"sequence_names": ["ghost"]}, r"\(two, one\), got ghost"),
        ({"workers": 0}, "at least 1 worker"),
        ({"rows": 3}, "rows between"),
        ({"output": Path("no/such/folder/scores.json")}, "make the folder first"),
    ],
    ids=["sequence", "workers", "rows", "output"],
)
def test_wrong_options_are_refused_before_tracking(
    tmp_path: Path, fake_runtime: list[bool], options: dict, found: str
) -> None:
    moving_data_set(tmp_path)
    with pytest.raises(InputError, match=found):
        davis.evaluate_davis(tmp_path, "val", [Path("fake")], **options)
    assert not fake_runtime


def test_sequences_too_short_to_score_are_refused(tmp_path: Path, fake_runtime: list[bool]) -> None:
    add_sequence(tmp_path, "short", [square(2, 3)] * 2)
    with pytest.raises(InputError, match="at least 3 frames"):
        davis.evaluate_davis(tmp_path, "val", [Path("fake")])


def test_failed_writes_leave_the_old_report(
    tmp_path: Path, fake_runtime: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    moving_data_set(tmp_path)
    output = tmp_path / "scores.json"
    output.write_text("old")

    def fail(source: object, target: object) -> None:
        raise CorrflowError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(CorrflowError, match="disk full"):
        davis.evaluate_davis(tmp_path, "val", [Path("fake")], output=output)
    assert output.read_text() == "old"
    assert [path.name for path in tmp_path.glob("*scores*")] == ["scores.json"]


def test_command_prints_the_table(tmp_path: Path, fake_runtime: list[bool]) -> None:
    moving_data_set(tmp_path)
    result = CliRunner().invoke(cli.app, ["davis", str(tmp_path), "--artifact", "fake", "--identity"])
    assert result.exit_code == 0, result.output
    for text in ("fake", "identity", "J&F", "s/frame", "mean of 3 objects"):
        assert text in result.stdout


def test_command_reports_wrong_input_in_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["davis", str(tmp_path / "elsewhere")])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: expected the folder of a data set")
    assert len(result.stderr.splitlines()) == 1
