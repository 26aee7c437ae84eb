"""Masks as users draw them: soft edges, JPEG, transparency, palettes, large ids; photographs are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from corrflow.errors import InputError
from corrflow.runtime.formats.annotations import ReadContext
from corrflow.runtime.formats.image_folders import BinaryMaskSink
from corrflow.runtime.formats.mask_image import MAX_PIXELS, read_mask_image
from corrflow.runtime.formats.mask_png import MaskFolderSink, read_mask, read_mask_objects, read_object_mask
from corrflow.runtime.formats.prompts import prompts_from_files
from corrflow.runtime.types import Frame, FrameResult, ObjectResult

SQUARE = np.zeros((120, 160), np.uint8)
SQUARE[40:72, 20:52] = 255


def picture() -> Image.Image:
    return Image.fromarray(SQUARE)


def drawn(mode: str, *fills: Any) -> Image.Image:
    """Draw two ellipses four times as large as a mask, and scale them down with soft edges."""
    large = Image.new(mode, (640, 480))
    pencil = ImageDraw.Draw(large)
    for place, fill in zip(((80, 160, 208, 288), (300, 160, 508, 288)), fills, strict=False):
        pencil.ellipse(place, fill=fill)
    return large.resize((160, 120), Image.Resampling.BILINEAR)


def layer(inside: Any, outside: Any) -> Image.Image:
    """Draw the square on a transparent layer."""
    pixels = np.empty((*SQUARE.shape, 4), np.uint8)
    pixels[:], pixels[SQUARE > 0] = outside, inside
    return Image.fromarray(pixels)


def grey_alpha() -> Image.Image:
    return Image.fromarray(np.dstack([np.full_like(SQUARE, 255), SQUARE]))


def photograph() -> Image.Image:
    coarse = np.random.default_rng(0).integers(40, 200, (15, 20, 3), np.uint8)
    return Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("blurred.png", lambda: picture().filter(ImageFilter.GaussianBlur(1))),
        ("very blurred.png", lambda: picture().filter(ImageFilter.GaussianBlur(5))),
        ("scaled.png", lambda: picture().resize((80, 60)).resize((160, 120))),
        ("grey.jpg", picture),
        ("coarse.jpg", lambda: picture().filter(ImageFilter.GaussianBlur(0.7))),
        ("colour.jpg", lambda: drawn("RGB", "red")),
        ("drawn.png", lambda: drawn("L", 255)),
        ("drawn in red.png", lambda: drawn("RGB", "red")),
        ("shades.png", lambda: drawn("L", 255).convert("P")),
        ("thin.png", lambda: picture().resize((8, 6)).resize((160, 120))),
        ("soft 16 bits.png", lambda: Image.fromarray(np.asarray(drawn("L", 255)).astype(np.uint16) * 257)),
        ("probability.tif", lambda: Image.fromarray(np.asarray(drawn("L", 255)).astype(np.float32) / 255)),
        ("white on clear white.png", lambda: layer((255,) * 4, (255, 255, 255, 0))),
        ("red on clear white.png", lambda: layer((255, 0, 0, 255), (255, 255, 255, 0))),
        ("red on clear black.png", lambda: layer((255, 0, 0, 255), (0, 0, 0, 0))),
        ("black on clear.png", lambda: layer((0, 0, 0, 255), (0, 0, 0, 0))),
        ("half opaque.png", lambda: layer((255, 0, 0, 128), (0, 0, 0, 0))),
        ("all opaque.png", lambda: layer((255, 0, 0, 255), (0, 0, 0, 255))),
        ("soft layer.png", lambda: drawn("RGBA", (255, 255, 255, 255))),
        ("grey with alpha.png", grey_alpha),
        ("zeros and ones.png", lambda: Image.fromarray(SQUARE // 255)),
        ("one bit.png", lambda: picture().convert("1")),
        ("16 bits.png", lambda: Image.fromarray(SQUARE.astype(np.uint16) * 257)),
    ],
)
def test_one_object_however_it_is_drawn(tmp_path: Path, name: str, make: Callable[[], Image.Image]) -> None:
    make().save(tmp_path / name)
    (one,) = read_mask_image(tmp_path / name)
    assert one.track_id == 1
    middle = one.mask[50:62, 30:42]
    assert (middle.all() and 700 < np.count_nonzero(one.mask) < 1300) or name == "thin.png"


@pytest.mark.parametrize("name", ["two.png", "two.jpg"])
def test_soft_edges_between_several_objects_get_the_nearest(tmp_path: Path, name: str) -> None:
    drawn("L", 255, 120).save(tmp_path / name)
    image = read_mask_image(tmp_path / name)
    assert len(image) == 2 and "grey levels are 2 objects" in image.remark
    assert image.identities == ((120, 255) if name == "two.png" else (None, None))
    sizes = sorted(int(np.count_nonzero(one.mask)) for one in image)
    assert sizes == pytest.approx([815, 1315], abs=20)


def test_colours_are_identities_and_opaque_black_is_one(tmp_path: Path) -> None:
    drawn("RGBA", (255, 0, 0, 255), (0, 0, 0, 255)).save(tmp_path / "layer.png")
    assert read_mask_image(tmp_path / "layer.png").identities == ("#000000", "#ff0000")
    coloured = np.zeros((*SQUARE.shape, 3), np.uint8)
    coloured[:20], coloured[20:40] = (0, 128, 255), (255, 128, 0)
    Image.fromarray(coloured).save(tmp_path / "hard.png")
    assert read_mask_image(tmp_path / "hard.png").identities == ("#0080ff", "#ff8000")
    # A converter gives the largest area index 0, and black another index.
    Image.fromarray(coloured[:50]).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    assert read_mask_image(tmp_path / "palette.png").identities == ("#0080ff", "#ff8000")


@pytest.mark.parametrize(
    ("name", "kind", "values", "ids"),
    [
        ("a.png", np.uint8, (1, 2, 255), [1, 2, 255]),
        ("b.png", np.uint16, (1, 70, 300), [1, 70, 71]),
        ("c.tif", np.int32, (300, 21000, 90000), [1, 2, 3]),
        ("d.tif", np.float32, (1, 70, 300), [1, 70, 71]),
    ],
)
def test_values_are_identities(tmp_path: Path, name: str, kind: type, values: tuple[int, ...], ids: list[int]) -> None:
    pixels = np.zeros(SQUARE.shape, kind)
    pixels[5:20, 5:20], pixels[5:20, 20:40], pixels[40:42, 3:5] = values
    Image.fromarray(pixels).save(tmp_path / name)
    image = read_mask_image(tmp_path / name)
    assert image.identities == values and [int(one.mask.sum()) for one in image] == [225, 300, 4]
    assert [one.id for one in read_mask_objects([tmp_path / name])] == ids


def test_transparent_palette_entries_are_background(tmp_path: Path) -> None:
    image = Image.fromarray(SQUARE // 255 + np.roll(SQUARE, 50, 1) // 255 * 2)
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "clear.png", transparency=2)
    assert len(read_mask_image(tmp_path / "clear.png")) == 2, "the opaque red of index 0 is an object, as green is"
    image.save(tmp_path / "usual.png", transparency=0)
    assert read_mask_image(tmp_path / "usual.png").identities == (1, 2)


@pytest.mark.parametrize("name", ["photo.png", "photo.jpg", "grey.png", "palette.png"])
def test_a_photograph_is_refused_with_what_was_seen(tmp_path: Path, name: str) -> None:
    mode = {"grey.png": "L", "palette.png": "P"}.get(name, "RGB")
    photograph().convert(mode).save(tmp_path / name)
    with pytest.raises(InputError, match=r"[0-9]+ (colours|grey levels|values).*photograph"):
        read_mask_image(tmp_path / name)


def test_what_is_no_mask_is_one_sentence(tmp_path: Path) -> None:
    side = int(MAX_PIXELS**0.5) + 1
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    Image.fromarray(np.full((9, 9), 0.3, np.float32) * np.arange(9, dtype=np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((9, 9), -3, np.int32)).save(tmp_path / "negative.tif")
    picture().save(tmp_path / "stack.tif", save_all=True, append_images=[picture()])
    layer((0,) * 4, (0,) * 4).save(tmp_path / "clear.png")
    ids = np.random.default_rng(0).permutation(300).astype(np.uint16).reshape(15, 20)
    Image.fromarray(ids.repeat(5, 0).repeat(5, 1)).save(tmp_path / "many.png")
    (tmp_path / "text.png").write_text("no image")
    messages = []
    for name in ("bomb.png", "float.tif", "negative.tif", "stack.tif", "clear.png", "many.png", "text.png", "none.png"):
        with pytest.raises(InputError, match=name) as found:
            read_mask_image(tmp_path / name)
        messages.append(str(found.value))
    words = ["at most 33 million", "fractions", "got -3", "several images", "transparent", "299", "decoded", "no file"]
    assert all(word in message for word, message in zip(words, messages, strict=True)), messages


def test_damaged_images_are_one_sentence(tmp_path: Path) -> None:
    dice, path = np.random.default_rng(3), tmp_path / "mask.png"
    for name in ("mask.png", "mask.tif", "mask.jpg", "mask.webp", "mask.bmp"):
        path = tmp_path / name
        drawn("L", 255, 120).save(path)
        whole = bytearray(path.read_bytes())
        for _ in range(12):
            damaged = whole.copy()
            for place in dice.integers(0, len(whole), 5):
                damaged[place] = dice.integers(0, 256)
            path.write_bytes(bytes(damaged[: dice.integers(1, len(whole) + 1)]))
            try:
                read_mask_image(path)
            except InputError as error:
                assert "\n" not in str(error)


def test_remarks_are_notes_and_a_black_mask_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    drawn("L", 255).save(tmp_path / "7" / "a.png")
    Image.new("L", (160, 120)).save(tmp_path / "7" / "b.png")
    for read in (read_mask, lambda path, _, context: read_object_mask(path, context)):
        context = ReadContext("clip", "a", lambda: (120, 160))
        (one,) = read(tmp_path / "7" / "a.png", None, context).frames["a"]
        assert one.track_id == (1 if read is read_mask else 7) and "soft edges" in context.notes.sentences()[0]
        context = ReadContext("clip", "b", lambda: (120, 160))
        assert not read(tmp_path / "7" / "b.png", None, context).frames["b"]
        assert "only background" in context.notes.sentences()[0]


def result_of(*identities: int | str | None) -> FrameResult:
    """Return a result with an object of 3 columns for each identity."""
    mask = np.repeat(np.arange(1, len(identities) + 1, dtype=np.uint8), 3)[None].repeat(5, 0)
    objects = tuple(
        ObjectResult(k, "", 0.9, True, (3 * k - 3, 0, 3 * k, 5), track_id=identity, category="car")
        for k, identity in enumerate(identities, 1)
    )
    return FrameResult(mask, objects, Frame(np.zeros((*mask.shape, 3), np.uint8), 0, 0.0, "00000"))


@pytest.mark.parametrize(
    ("given", "mode", "back"),
    [
        ((None, None), "P", (1, 2)),
        ((2, "a"), "P", (1, 2)),
        ((1, 300, 70), "I;16", (1, 300, 3)),  # 70 has the id 3 in this result
        ((1, 70000), "P", (1, 2)),
        ((300, 300), "P", (1, 2)),
    ],
)
def test_identities_over_255_are_written_with_16_bits(
    tmp_path: Path, given: tuple[int | str | None, ...], mode: str, back: tuple[int, ...]
) -> None:
    with MaskFolderSink(tmp_path) as sink:
        sink.write(result_of(*given))
    with Image.open(tmp_path / "00000.png") as image:
        assert image.mode == mode
    assert read_mask_image(tmp_path / "00000.png").identities == tuple(sorted(back))


def test_folders_of_objects_have_their_identity(tmp_path: Path) -> None:
    with BinaryMaskSink(tmp_path) as sink:
        sink.write(result_of(300, "mouse a", "../x", None, 7, 7, "a."))
    names = sorted(path.parent.name for path in tmp_path.rglob("*.png"))
    assert names == ["300", "4", "id 3", "id 5", "id 6", "id 7", "mouse a"]


def test_a_prompt_of_another_size_is_named_with_both_sizes(tmp_path: Path) -> None:
    picture().save(tmp_path / "00005.png")
    frame = Frame(np.zeros((120, 161, 3), np.uint8), 0, 0.0, "00000")
    prompts = prompts_from_files([tmp_path / "00005.png"], None)
    with pytest.raises(InputError, match=r"size 161x120, got 160x120 in .*00005\.png; draw it at the") as error:
        prompts(frame)
    assert "first frame" not in str(error.value)


def test_objects_of_several_prompts_are_numbered_on(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture().save(tmp_path / name)
    found = read_mask_objects([tmp_path / "a.png", tmp_path / "b.png"])
    assert [(one.id, one.track_id) for one in found] == [(1, None), (2, None)]
