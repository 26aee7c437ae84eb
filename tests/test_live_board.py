"""What the mouse and the keys mean in the window of --show, without a window: events in, commands out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corrflow.runtime.live.board import Board, Command
from corrflow.runtime.live.board_picture import LINE, LINES, board_picture, display_scale, waiting_picture
from corrflow.runtime.live.keys import KEYS, key_name
from corrflow.runtime.live.object_editor import Frozen
from corrflow.runtime.live.strokes import LONGEST_NAME, parse_points, parse_strokes
from corrflow.runtime.types import ObjectResult, Tracks

SIZE = 40, 60


def frozen(number: int = 1, seen: int = 1) -> Frozen:
    """A frame with a square of object `seen`."""
    mask = np.zeros(SIZE, np.uint8)
    mask[10:20, 10:20] = seen
    tracks = Tracks(mask, (ObjectResult(seen, "cup", 0.9, True, (10, 10, 20, 20)),))
    return Frozen(number, np.full((*SIZE, 3), 90, np.uint8), tracks)


def board(*objects: int) -> Board:
    made = Board()
    made.see(SIZE, {number: f"name {number}" for number in objects}, {})
    return made


def keys(made: Board, *names: str) -> list[Command]:
    return [command for name in names for command in made.key(name)]


def drag(made: Board, *places: tuple[float, float], right: bool = False) -> list[Command]:
    commands = made.press(*places[0], right)
    for place in places[1:]:
        commands += made.move(*place)
    return commands + made.release(*places[-1])


def on_frozen(*objects: int, choose: str = "") -> Board:
    made = board(*objects)
    keys(made, *choose)
    (command,) = keys(made, " ")
    made.answered(command, frozen())
    return made


def test_a_box_on_the_running_picture_freezes_it_and_is_previewed_and_tracked() -> None:
    made = board()
    assert drag(made, (5, 6), (20, 21)) == [Command("freeze")]
    (preview,) = made.answered(Command("freeze"), frozen(7))
    box = {"kind": "box", "points": [[5, 6], [20, 21]], "width": 2.0}
    assert preview == Command("mask", {"frozen": 7, "strokes": [box]})
    mask = np.ones(SIZE, bool)
    made.answered(preview, mask)
    assert made.mask is mask
    (give,) = keys(made, "n", *"my cup", "enter", "enter")
    assert give.kind == "give" and give.values["object"] is None and give.values["name"] == "my cup"
    assert give.values["frozen"] == 7 and give.values["strokes"] == preview.values["strokes"]
    assert keys(made, "enter") == [], "once is enough"
    assert made.answered(give, 3) == [] and made.state == "running" and "Object 3" in made.message


def test_a_lasso_a_brush_and_a_rubber_follow_the_hand() -> None:
    made = on_frozen()
    keys(made, "l")
    drag(made, (1, 1), (9, 1), (9, 9))
    keys(made, "p", "+")
    drag(made, (3, 3), (4, 4))
    drag(made, (5, 5), (6, 5), right=True)
    assert [(stroke["kind"], stroke["points"]) for stroke in made.strokes] == [
        ("lasso", [[1, 1], [9, 1], [9, 9]]),
        ("paint", [[3, 3], [4, 4]]),
        ("erase", [[5, 5], [6, 5]]),
    ]
    assert made.strokes[1]["width"] > made.strokes[0]["width"]
    keys(made, "u")
    assert [stroke["kind"] for stroke in made.strokes] == ["lasso", "paint"]


def test_clicks_are_points_and_the_right_button_takes_the_nearest_back() -> None:
    made = on_frozen()
    keys(made, "k")
    for place in ((5.0, 5.0), (30.0, 20.0), (50.0, 30.0)):
        assert drag(made, place) == []
    drag(made, (31.0, 22.0), right=True)
    (give,) = keys(made, "enter")
    assert give.values["points"] == [[5.0, 5.0], [50.0, 30.0]] and "strokes" not in give.values


def test_a_correction_begins_with_what_is_seen_and_keeps_the_name() -> None:
    made = on_frozen(1, 2, choose="1")
    drag(made, (0, 0), (9, 9))  # a box: drawn anew
    assert [stroke["kind"] for stroke in made.strokes] == ["box"]
    keys(made, "u", "p")
    drag(made, (3, 3), (4, 4))
    (give,) = keys(made, "enter")
    assert [stroke["kind"] for stroke in give.values["strokes"]] == ["object", "paint"]
    assert (give.values["object"], give.values["name"]) == (1, "name 1")


def test_tab_goes_through_the_objects_and_numbers_choose_them() -> None:
    made = board(2, 5)
    chosen = []
    for _ in range(4):
        keys(made, "tab")
        chosen.append(made.chosen)
    assert chosen == [2, 5, None, 2]
    keys(made, "5")
    assert made.chosen == 5
    keys(made, "7")
    assert made.chosen == 5 and made.wrong
    keys(made, "0")
    assert made.chosen is None
    keys(made, "2")
    made.see(SIZE, {5: ""}, {})
    assert made.chosen is None, "somebody else removed it"


def test_the_only_object_needs_no_choosing_to_be_named_and_removed() -> None:
    made = board(4)
    assert keys(made, "n", "backspace", "9", "enter") == [Command("rename", {"object": 4, "name": "name 9"})]
    assert keys(board(4), "delete") == [Command("remove", {"object": 4})]
    made = board(4, 5)
    assert keys(made, "n", "x") == [] and made.wrong and made.typing is None
    made = on_frozen(4)
    assert keys(made, "x") == [], "a new one is being drawn"


def test_letters_are_a_name_while_one_is_typed() -> None:
    made = on_frozen()
    assert keys(made, "n", *"qxr 1", "backspace", "escape") == []
    assert made.typing is None and made.name == ""
    keys(made, "n", *(2 * LONGEST_NAME * "a"), "enter")
    assert made.name == LONGEST_NAME * "a"
    assert keys(made, "q") == [Command("quit")]


def test_escape_cancels_one_thing_after_another() -> None:
    made = on_frozen()
    made.press(1, 1)
    keys(made, "h")
    keys(made, "escape")
    assert not made.help and made.stroke is not None
    assert keys(made, "escape") == [] and made.stroke is None and made.state == "frozen"
    assert keys(made, "escape") == [Command("release", {"frozen": 1})] and made.state == "running"


def test_a_frame_that_comes_after_the_drawing_was_cancelled_is_let_go() -> None:
    made = board()
    (freeze,) = keys(made, " ")
    assert keys(made, "escape") == []
    assert made.answered(freeze, frozen(9)) == [Command("release", {"frozen": 9})] and made.still is None


def test_what_is_refused_is_said_and_the_drawing_stays() -> None:
    made = on_frozen()
    (preview,) = drag(made, (0, 0), (20, 20))
    (give,) = keys(made, "enter")
    made.failed(give, "no room")
    assert (made.state, made.message, made.wrong) == ("frozen", "no room", True) and made.strokes
    drag(made, (0, 0), (30, 30))
    made.answered(preview, np.ones(SIZE, bool))
    assert made.mask is None, "an answer to an older question"
    made.failed(preview, "late")
    assert made.message != "late"
    assert keys(on_frozen(), "enter") == []


def test_a_reference_is_kept_and_what_is_left_out_is_said() -> None:
    made = board()
    (command,) = keys(made, "r")
    made.answered(command, {"path": "cat.npz", "objects": 2, "hidden": ["dog"]})
    assert "cat.npz" in made.message and "dog" in made.message


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (-1, ""), (-36, ""), (ord("b"), "b"), (ord("B"), "B"), (32, " "), (13, "enter"), (10, "enter"), (27, "escape"),
        (8, "backspace"), (127, "backspace"), (9, "tab"), (0xFFFF, "delete"), (0x2E0000, "delete"), (0xFFE1, ""),
        (0xFF51, ""), (0x100000 | ord("x"), "x"), (0x10FF0D, "enter"), (0xFFB1, "1"), (0xFF8D, "enter"),
    ],
)  # fmt: skip
def test_keys_have_names_on_every_toolkit(code: int, name: str) -> None:
    assert key_name(code) == name


places = st.tuples(st.floats(-30, 90), st.floats(-30, 90))
inside = st.tuples(st.floats(0, 59), st.floats(0, 39))
answers = st.sampled_from(["answer", "answer", "answer", "fail", "gone"]).map(lambda word: (word, None))
events = st.one_of(
    answers,
    st.sampled_from("blpk"),
    st.sampled_from(["enter", " ", "escape", *"+-uxnrh0123q", "tab", "backspace", "delete"]),
    st.tuples(st.sampled_from(["press", "right", "move", "release"]), places),
    st.tuples(st.just("drag"), st.tuples(inside, places)),
    st.tuples(st.just("drag"), st.tuples(inside, inside)),
    st.tuples(st.just("type"), st.text("abq x", min_size=1, max_size=2 * LONGEST_NAME)),
    # What a user does, in order, with what comes back at once or later.
    st.just([" ", ("answer", None), ("drag", ((5.0, 5.0), (30.0, 30.0))), ("answer", None), "enter"]),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(events, min_size=20, max_size=60))
def test_whatever_is_pressed_frames_are_let_go_once_and_commands_are_whole(script: list) -> None:
    """Against a session that answers late, refuses, and loses objects; every state can be drawn."""
    made = board(1, 2)
    waiting: list[Command] = []
    held: set[int] = set()
    frozen_so_far = 0

    def send(commands: list[Command]) -> None:
        for command in commands:
            values = command.values
            if command.kind in ("mask", "give"):
                assert values["frozen"] in held
                if "points" in values:
                    parse_points(values["points"], 64)
                    assert all(0 <= x < SIZE[1] and 0 <= y < SIZE[0] for x, y in values["points"])
                else:
                    parse_strokes(values["strokes"])
            if command.kind == "release":
                held.remove(values["frozen"])  # a KeyError where it was let go before
            if command.kind == "rename":
                assert 0 < len(values["name"]) <= LONGEST_NAME and values["name"].isprintable()
            if command.kind == "quit":
                assert made.typing is None
            elif command.kind != "release":
                waiting.append(command)

    def answer() -> None:
        nonlocal frozen_so_far
        if not waiting:
            return
        command = waiting.pop(0)
        answers = {"mask": np.ones(SIZE, bool), "give": 3, "reference": {"path": "a", "objects": 1, "hidden": []}}
        if command.kind == "freeze":
            frozen_so_far += 1
            held.add(frozen_so_far)
            answers["freeze"] = frozen(frozen_so_far)
        if command.kind == "give":
            held.remove(command.values["frozen"])
        send(made.answered(command, answers.get(command.kind)))

    for event in itertools.chain.from_iterable(one if isinstance(one, list) else [one] for one in script):
        if isinstance(event, str):
            send(made.key(event))
            continue
        word, place = event
        if word == "answer":
            answer()
        elif word == "fail":
            send(made.failed(waiting.pop(0), "no") if waiting else [])
        elif word == "gone":
            send(made.see(SIZE, {2: "x"}, {2: "lost"}))
        elif word == "drag":
            send(drag(made, *place))
        elif word == "type":
            send(keys(made, "n", *place, "enter"))
        elif word in ("press", "right"):
            send(made.press(*place, right=word == "right"))
        else:
            send(getattr(made, word)(*place))
        assert not (made.clicks and made.drawn) and len(made.name) <= LONGEST_NAME
        assert all(0 <= x < SIZE[1] and 0 <= y < SIZE[0] for x, y in made.clicks)
    picture = board_picture(made, frozen().image, frozen().tracks, "9 frames/s")
    scale = display_scale(SIZE)
    assert picture.shape == (SIZE[0] * scale + LINES * LINE + 4, SIZE[1] * scale, 3)
    while waiting:
        answer()
    for _ in range(4):
        send(made.key("escape"))
    assert made.state == "running" and not held


@settings(max_examples=50, deadline=None)
@given(st.integers(8, 5000), st.integers(8, 5000))
def test_pictures_of_any_size_are_shown_at_one_that_fits(height: int, width: int) -> None:
    scale = display_scale((height, width))
    if min(height, width) >= 480:
        assert scale <= 1 and width * scale <= 1281 and height * scale <= 801
    else:
        assert min(height, width) * scale >= 480


def test_the_mask_and_the_strokes_are_seen() -> None:
    made = on_frozen()
    plain = board_picture(made, frozen().image, frozen().tracks, "")
    made.press(2, 2)
    made.move(30, 30)
    dragged = board_picture(made, frozen().image, frozen().tracks, "")
    assert not np.array_equal(plain, dragged)
    (preview,) = made.release(30, 30)
    mask = np.zeros(SIZE, bool)
    mask[30:, 50:] = True
    made.answered(preview, mask)
    masked = board_picture(made, frozen().image, frozen().tracks, "")
    scale = round(display_scale(SIZE))
    changed = (masked != plain).any(2)[: SIZE[0] * scale]
    assert changed[31 * scale, 51 * scale] and not changed[: 29 * scale].any()
    made.key("h")
    assert not np.array_equal(masked, board_picture(made, frozen().image, frozen().tracks, ""))
    assert waiting_picture("the stream ended", "waiting").shape == (360 + LINES * LINE + 4, 640, 3)


def test_the_keys_are_in_the_help(capsys: pytest.CaptureFixture) -> None:
    from corrflow.runtime.commands.track_cli import app

    with pytest.raises(SystemExit):
        app(["--help"])
    said = capsys.readouterr().out
    for name, _ in KEYS:
        assert f"  {name} " in said
