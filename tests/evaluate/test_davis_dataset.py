"""Layouts of DAVIS and YouTube-VOS, and the errors for other folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.paths import SHARED_DATA
from PIL import Image

from corrflow.errors import InputError
from corrflow.evaluate.datasets.masks import VOID, MaskSequence, open_davis, open_youtube_vos

DEV = SHARED_DATA / "davis-dev"

HEIGHT, WIDTH = 24, 40
PALETTE = [value for index in range(256) for value in (index, 255 - index, (7 * index) % 256)]


def square(top: int, left: int, value: int = 255, size: int = 8) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top : top + size, left : left + size] = value
    return mask


def save_indexed(mask: np.ndarray, path: Path) -> None:
    image = Image.fromarray(mask).convert("P")
    image.putdata(mask.ravel().tolist())
    image.putpalette(PALETTE)
    image.save(path)


def save_grey(mask: np.ndarray, path: Path) -> None:
    Image.fromarray(mask).save(path)


def save_grey_alpha(mask: np.ndarray, path: Path) -> None:
    Image.merge("LA", [Image.fromarray(mask), Image.new("L", (WIDTH, HEIGHT), 255)]).save(path)


def save_colour(mask: np.ndarray, path: Path) -> None:
    Image.merge("RGB", [Image.fromarray(mask)] * 3).save(path)


Saver = Callable[[np.ndarray, Path], None]


def add_sequence(root: Path, name: str, masks: list[np.ndarray], save: Saver = save_grey) -> None:
    """Write a sequence that brightens from frame to frame, and list it in ImageSets/2017/val.txt."""
    images, annotations = (root / kind / "480p" / name for kind in ("JPEGImages", "Annotations"))
    for folder in (images, annotations, root / "ImageSets" / "2017"):
        folder.mkdir(parents=True, exist_ok=True)
    for index, mask in enumerate(masks):
        save(mask, annotations / f"{index:05d}.png")
        image = np.full((HEIGHT, WIDTH, 3), (10 * index, 60, 200), np.uint8)
        cv2.imwrite(str(images / f"{index:05d}.jpg"), image)
    with (root / "ImageSets" / "2017" / "val.txt").open("a") as file:
        file.write(f"{name}\n")


def sequence_of(root: Path, masks: list[np.ndarray], save: Saver = save_grey) -> MaskSequence:
    add_sequence(root, "only", masks, save)
    return open_davis(root, "val")[0]


# --- reading ---------------------------------------------------------------------------------------------------


def test_sequences_have_the_order_of_the_list(tmp_path: Path) -> None:
    for name in ("walk", "bear"):
        add_sequence(tmp_path, name, [square(2, 3)] * 3)
    sequences = open_davis(tmp_path, "val", year="2017")
    assert [sequence.name for sequence in sequences] == ["walk", "bear"]
    assert [len(sequence) for sequence in sequences] == [3, 3]
    assert [sequences[0].annotation_path(index).name for index in range(3)] == ["00000.png", "00001.png", "00002.png"]


def test_frames_are_bgr_with_stem_and_time(tmp_path: Path) -> None:
    frames = list(sequence_of(tmp_path, [square(2, 3)] * 3).frames())
    assert [(frame.index, frame.name, frame.time) for frame in frames] == [
        (0, "00000", 0.0),
        (1, "00001", 1 / 24),
        (2, "00002", 2 / 24),
    ]
    for index, frame in enumerate(frames):
        assert frame.image.shape == (HEIGHT, WIDTH, 3)
        assert frame.image.dtype == np.uint8
        # JPEG changes the values of a uniform image by rounding only.
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
    # The first mask has ids, so a mask with nothing but 255 is void and not object 1.
    np.testing.assert_array_equal(sequence.annotation(1), only_void)
    prompts = sequence.prompts()
    assert [prompt.id for prompt in prompts] == [2, 7]
    assert all(prompt.mask.dtype == np.bool_ and prompt.mask.sum() == 64 for prompt in prompts)


def test_objects_that_appear_later_are_not_tracked(tmp_path: Path) -> None:
    later = np.maximum(square(2, 3, 1), square(12, 20, 2))
    assert sequence_of(tmp_path, [square(2, 3, 1), later, later], save_indexed).object_ids == (1,)


def test_lists_of_file_pairs_are_read(tmp_path: Path) -> None:
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
    ("damage", "message"),
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
def test_errors_for_other_layouts_name_what_was_found(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    add_sequence(tmp_path, "only", [square(2, 3)] * 3)
    damage(tmp_path)
    with pytest.raises(InputError) as refusal:
        open_davis(tmp_path, "val")
    text = str(refusal.value)
    assert "expected" in text
    assert message in text
    assert "\n" not in text


def test_absent_roots_resolutions_and_splits_are_refused(tmp_path: Path) -> None:
    add_sequence(tmp_path, "only", [square(2, 3)] * 3)
    with pytest.raises(InputError, match="found no folder"):
        open_davis(tmp_path / "elsewhere", "val")
    with pytest.raises(InputError, match="check root and resolution"):
        open_davis(tmp_path, "val", resolution="1080p")
    with pytest.raises(InputError, match=r"train\.txt, found ImageSets/2017/val\.txt"):
        open_davis(tmp_path, "train")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(lambda path: path.write_text("no image"), "cannot be decoded", id="text"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-30]), "cannot be decoded", id="cut off"),
        pytest.param(lambda path: Image.new("RGB", (WIDTH, HEIGHT), "red").save(path), "colours", id="colours"),
        pytest.param(lambda path: save_grey(np.full((HEIGHT, WIDTH), 300, np.uint16), path), "8 bits", id="16 bits"),
        pytest.param(lambda path: save_grey(square(2, 3)[::2, ::2], path), "40x24, found 20x12", id="size"),
        pytest.param(lambda path: save_grey(square(2, 3, 128), path), r"values \[0, 128\]", id="grey"),
    ],
)
def test_invalid_masks_are_refused(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    sequence = sequence_of(tmp_path, [square(2, 3)] * 3)
    damage(sequence.annotation_path(1))
    with pytest.raises(InputError, match=message) as refusal:
        sequence.annotation(1)
    assert str(sequence.annotation_paths[1]) in str(refusal.value)


def test_invalid_frames_are_refused(tmp_path: Path) -> None:
    sequence = sequence_of(tmp_path, [square(2, 3)] * 3)
    sequence.image_paths[1].write_text("no image")
    with pytest.raises(InputError, match="cannot be decoded"):
        list(sequence.frames())


def test_first_frames_without_objects_are_refused(tmp_path: Path) -> None:
    sequence = sequence_of(tmp_path, [square(2, 3, 0), square(2, 3), square(2, 3)])
    with pytest.raises(InputError, match="an object in the first frame"):
        sequence.prompts()


# --- objects that appear later ---------------------------------------------------------------------------------


def youtube_vos(root: Path, masks: dict[int, np.ndarray], frames: int = 9) -> MaskSequence:
    """Write a sequence with masks of some frames."""
    images, annotations = root / "JPEGImages" / "clip", root / "Annotations" / "clip"
    for folder in (images, annotations):
        folder.mkdir(parents=True)
    for index in range(frames):
        cv2.imwrite(str(images / f"{5 * index:05d}.jpg"), np.full((HEIGHT, WIDTH, 3), 9 * index, np.uint8))
    for index, mask in masks.items():
        save_indexed(mask, annotations / f"{5 * index:05d}.png")
    return open_youtube_vos(root)[0]


def test_objects_of_youtube_vos_are_prompted_where_they_appear_and_scored_after(tmp_path: Path) -> None:
    both = np.maximum(square(2, 3, 1), square(12, 20, 4))
    sequence = youtube_vos(tmp_path, {1: square(2, 3, 1), 3: both, 5: square(12, 20, 4), 8: both})
    assert sequence.prompt_ids == {1: (1,), 3: (4,)}
    assert sequence.scored == {1: (3, 5, 8), 4: (5, 8)}
    assert sequence.object_ids == (1, 4)
    assert [prompt.id for prompt in sequence.prompts(3)] == [4]
    assert sequence.prompts(5) == ()
    with pytest.raises(InputError, match="a mask for frame 00010 of clip"):
        sequence.annotation(2)


def test_objects_without_scored_frames_are_refused(tmp_path: Path) -> None:
    sequence = youtube_vos(tmp_path, {0: square(2, 3, 1), 3: square(2, 3, 2)})
    with pytest.raises(InputError, match="object 2 of sequence clip"):
        _ = sequence.scored


def test_errors_for_incomplete_youtube_vos_folders_name_the_missing_part(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="JPEGImages of a data set in the YouTube-VOS layout"):
        open_youtube_vos(tmp_path)
    youtube_vos(tmp_path, {0: square(2, 3, 1), 3: square(2, 3, 1)})
    (tmp_path / "JPEGImages" / "clip" / "00015.jpg").unlink()
    with pytest.raises(InputError, match="found none for 00015"):
        open_youtube_vos(tmp_path)


def test_sequences_too_short_to_score_are_refused(tmp_path: Path) -> None:
    sequence = sequence_of(tmp_path, [square(2, 3)] * 2)
    with pytest.raises(InputError, match="at least 3 frames"):
        _ = sequence.scored
