"""The page of corrflow-label over HTTP: drawing, saving, tracking, and refusals."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from helpers.page_client import ask, wait_for
from PIL import Image

from corrflow.errors import InputError
from corrflow.runtime.formats.mask_png import read_mask_objects
from corrflow.runtime.formats.points_csv import read_keypoints
from corrflow.runtime.live.label_api import LabelApi
from corrflow.runtime.live.prompt import load_prompt
from corrflow.runtime.live.web.auth import Access
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import Frame
from corrflow.runtime.video.frame_reader import FrameReader

for library in ("starlette", "uvicorn"):
    pytest.importorskip(library)

TOKEN = "token-of-the-tests"
BOX = {"kind": "box", "points": [[16, 10], [46, 40]]}
CORNER = {"kind": "lasso", "points": [[60, 40], [90, 40], [90, 60], [60, 60]]}


class Label:
    """A served page on the clip of the moving square."""

    def __init__(self, folder: Path, artifact: Path, frame: int = 0) -> None:
        from corrflow.runtime.live.web.label_routes import label_routes
        from corrflow.runtime.live.web.server import Server

        def open_tracker() -> Tracker:
            return Tracker.from_model(artifact, threads=1)

        self.folder = folder
        self.api = LabelApi(str(folder / "clip"), frame, folder, folder / "kept.npz", open_tracker)
        self.server = Server(label_routes(self.api), Access("127.0.0.1", 0, TOKEN))
        self.url = f"http://127.0.0.1:{self.server.access.port}"

    def ask(self, method: str, path: str, values: object = None, **headers: str) -> tuple[int, Any]:
        return ask(self.url, method, path, values, **{"Authorization": f"Bearer {TOKEN}"} | headers)

    def post(self, path: str, **values: object) -> Any:
        status, answer = self.ask("POST", path, values)
        assert status in (200, 201), answer
        return answer

    def draw(self, **values: object) -> int:
        frozen = self.post("/api/freeze")["frozen"]
        return self.post("/api/objects", **{"frozen": frozen, **values})["id"]

    @property
    def state(self) -> dict[str, Any]:
        return self.ask("GET", "/api/state")[1]

    def close(self) -> None:
        self.server.close(5)
        self.api.close()


@pytest.fixture
def label(tmp_path: Path, small_artifact: Path, moving_square) -> Iterator[Callable[..., Label]]:
    (tmp_path / "clip").mkdir()
    for index, frame in enumerate(moving_square[0]):
        cv2.imwrite(str(tmp_path / "clip" / f"{index:05d}.png"), frame)
    opened: list[Label] = []

    def start(frame: int = 0) -> Label:
        opened.append(Label(tmp_path, small_artifact, frame))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_saved_masks_have_the_ids_and_pixels_of_the_page(label, moving_square) -> None:
    page = label()
    first, second = page.draw(strokes=[BOX], name="square"), page.draw(strokes=[CORNER])
    assert [one["name"] for one in page.state["objects"]] == ["square", f"object {second}"]
    page.post("/api/save")
    saved = {one.id: one.mask for one in read_mask_objects([page.folder / "clip_mask.png"])}
    assert set(saved) == {first, second} == {1, 2}
    overlap = (saved[first] & moving_square[1][0]).sum() / (saved[first] | moving_square[1][0]).sum()
    assert overlap > 0.8 and saved[second][50, 75] and not saved[second][20, 30]
    with Image.open(page.folder / "clip_mask.png") as image:
        assert image.mode == "P"
    prompt = load_prompt(page.folder / "kept.npz")
    assert [(one.id, one.name) for one in prompt.objects] == [(1, "square"), (2, "object 2")]
    source, mask = page.folder / "clip", page.folder / "clip_mask.png"
    assert page.state["next"] == f"corrflow-track {source} --init {mask}"


def test_saved_points_are_read_with_their_names_and_objects(label) -> None:
    page = label()
    page.draw(points=[[30, 20], [40.5, 30]], point_names=["nose", ""], name="cat")
    page.draw(points=[[50, 50]], name="cat")
    page.post("/api/save")
    cat, other = read_keypoints(page.folder / "clip_points.csv", 1)
    assert cat.point_names == ("nose", "2") and cat.points.tolist() == [[30, 20], [40.5, 30]]
    assert cat.name != other.name and other.points.tolist() == [[50, 50]]
    assert page.state["next"].endswith(f"--keypoints {page.folder / 'clip_points.csv'}")
    frozen = page.post("/api/freeze")
    assert frozen["keypoints"]["1"] == [[30, 20, "nose"], [40.5, 30, "2"]]


def test_labels_of_another_frame_are_found_by_corrflow_batch(label) -> None:
    from corrflow.runtime.batch.label_discovery import LabelSource, find_annotations

    page = label()
    page.post("/api/frame", frame=3)
    page.draw(strokes=[CORNER], name="corner")
    page.draw(points=[[30, 20]], name="dot")
    page.post("/api/save")
    labels = find_annotations(LabelSource(page.folder / "clip_labels", "clip", Path("clip.mp4")), lambda: (66, 98))
    third = Frame(np.zeros((66, 98, 3), np.uint8), 3, 0.1, "00003")
    names = [one.name for one in labels.on(third)]
    assert len(names) == 2 and "dot" in names
    assert page.state["next"].startswith("corrflow-batch ") and not (page.folder / "clip_mask.png").exists()


def test_existing_files_are_left_alone_and_own_files_are_replaced(label) -> None:
    page = label()
    (page.folder / "clip_mask.png").write_text("precious")
    page.draw(strokes=[CORNER])
    page.post("/api/save")
    page.draw(strokes=[BOX])
    page.post("/api/save")
    assert (page.folder / "clip_mask.png").read_text() == "precious"
    assert [one.id for one in read_mask_objects([page.folder / "clip_mask-2.png"])] == [1, 2]
    assert not (page.folder / "clip_mask-3.png").exists()


def test_objects_are_corrected_renamed_removed_and_every_change_is_undone(label) -> None:
    page = label()
    number = page.draw(strokes=[CORNER], name="corner")
    larger = [{"kind": "object", "object": number}, {"kind": "paint", "points": [[10, 60]], "width": 9}]
    assert page.draw(strokes=larger, object=number, name="corner") == number
    mask = page.api.freeze().result.mask
    assert mask[50, 75] == mask[60, 10] == number
    assert page.ask("PATCH", f"/api/objects/{number}", {"name": "edge"})[0] == 200
    assert page.ask("DELETE", f"/api/objects/{number}")[0] == 200
    names = [[]]
    while page.state["can_undo"]:
        page.post("/api/undo")
        names.append([one["name"] for one in page.state["objects"]])
    assert names == [[], ["edge"], ["corner"], ["corner"], []]
    assert page.ask("POST", "/api/undo", {})[0] == 400


def test_a_mask_covers_earlier_masks_but_never_all_of_one(label) -> None:
    page = label()
    first = page.draw(strokes=[CORNER])
    half = {"kind": "lasso", "points": [[75, 30], [97, 30], [97, 65], [75, 65]]}
    second = page.draw(strokes=[half])
    mask = page.api.freeze().result.mask
    assert mask[50, 65] == first and mask[50, 80] == second
    everything = {"kind": "lasso", "points": [[0, 0], [97, 0], [97, 65], [0, 65]]}
    status, answer = page.ask("POST", "/api/objects", {"frozen": 0, "strokes": [everything]})
    assert status == 400 and "pixels left" in answer["error"] and len(page.state["objects"]) == 2


def test_another_frame_has_objects_of_its_own_and_leads_back(label, moving_square) -> None:
    page = label()
    page.draw(strokes=[CORNER])
    page.post("/api/frame", frame=5)
    assert page.state["frame"] == 5 and page.state["objects"] == []
    assert np.array_equal(page.api.freeze().result.frame.image, moving_square[0][5])
    status, answer = page.ask("POST", "/api/objects", {"frozen": 0, "strokes": [BOX]})
    assert status == 400 and "another frame" in answer["error"]
    page.post("/api/frame", frame=0)
    assert len(page.state["objects"]) == 1
    status, answer = page.ask("POST", "/api/frame", {"frame": 999})
    assert status == 400 and f"0 to {len(moving_square[0]) - 1}" in answer["error"]
    assert page.state["frame"] == 0


@pytest.mark.parametrize("start", [0, 4])
def test_track_follows_from_the_displayed_frame_into_a_video(label, moving_square, start: int) -> None:
    page = label(start)
    assert page.ask("POST", "/api/track", {})[0] == 400  # nothing is drawn
    assert page.ask("GET", "/api/result")[0] == 400
    page.draw(strokes=[{"kind": "lasso", "points": square_outline(moving_square[1][start])}])
    page.post("/api/track")
    wait_for(lambda: not page.state["tracking"]["running"])
    run = page.state["tracking"]
    count = len(moving_square[0]) - start
    assert run["error"] == "" and run["frames"] == run["total"] == count
    assert run["path"] == str(page.folder / ("clip_00004_tracked.mp4" if start else "clip_tracked.mp4"))
    status, video = page.ask("GET", "/api/result")
    assert status == 200 and video == Path(run["path"]).read_bytes()
    with av.open(run["path"]) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert len(times) == count and times[0] == 0
    newest = page.api._run.newest
    assert newest.frame.index == len(moving_square[0]) - 1
    true, mask = moving_square[1][-1], newest.mask == 1
    assert (true & mask).sum() / (true | mask).sum() > 0.5


def test_a_model_that_fails_is_reported_and_leaves_no_video(label) -> None:
    page = label()

    def fail() -> Tracker:
        raise InputError("expected a model, got none; name one")

    page.api._open_tracker = fail
    page.draw(strokes=[CORNER])
    page.post("/api/track")
    wait_for(lambda: not page.state["tracking"]["running"])
    run = page.state["tracking"]
    assert run["error"] == "expected a model, got none; name one" and run["path"] is None
    assert not list(page.folder.glob("*.mp4"))


def test_done_saves_what_is_not_saved_and_ends(label) -> None:
    page = label()
    page.draw(strokes=[CORNER])
    page.post("/api/done")
    assert (page.folder / "clip_mask.png").exists()
    assert page.api.done.wait(5)


def test_only_the_token_opens_the_page_and_other_origins_are_refused(label) -> None:
    page = label()
    for path in ("/", "/page.js", "/api/state", "/api/image", "/?token=another-token"):
        assert ask(page.url, "GET", path)[0] == 401
    assert ask(page.url, "POST", "/api/save", {})[0] == 401
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    with opener.open(f"{page.url}/?token={TOKEN}", timeout=10) as response:
        assert b"page.js" in response.read()
    with opener.open(page.url + "/api/state", timeout=10) as response:
        assert response.status == 200
    assert page.ask("POST", "/api/done", {}, Origin="http://evil.example")[0] == 403
    assert page.ask("POST", "/api/done", {}, Content_Type="text/plain")[0] == 400
    assert page.ask("POST", "/api/freeze", {}, Origin=page.url)[0] == 200
    assert not page.api.done.is_set()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"strokes": [{"kind": "star", "points": [[1, 1]]}]}, "of a kind"),
        ({"strokes": [{"kind": "box", "points": [[1, 1]]}]}, "two corners"),
        ({"strokes": [{"kind": "paint", "points": [[-90, -90]], "width": 5}]}, "inside the frame"),
        ({"strokes": []}, "1 to 200 strokes"),
        ({}, "1 to 200 strokes"),
        ({"points": [[500, 1]]}, "inside the frame"),
        ({"points": [[1, 1], [2, 2]], "point_names": ["a", "a"]}, "different names"),
        ({"points": [[1, 1]], "point_names": ["a", "b"]}, "a name for each"),
        ({"points": [[1, 1]], "point_names": [7]}, "at most 60 letters"),
        ({"points": [[1, 1]], "object": True}, "id of an object"),
        ({"frozen": 8, "points": [[1, 1]]}, "another frame"),
    ],
)
def test_wrong_drawings_are_one_sentence_and_change_nothing(label, values: dict, words: str) -> None:
    page = label()
    status, answer = page.ask("POST", "/api/objects", {"frozen": 0, **values})
    assert status == 400 and words in answer["error"] and "\n" not in answer["error"], answer
    assert page.state["objects"] == [] and not page.state["can_undo"]


def test_frames_are_read_forward_and_backward_with_one_source_open(label, monkeypatch, moving_square) -> None:
    from corrflow.runtime.video import frame_reader

    page, opened = label(), []
    original = frame_reader.open_source
    monkeypatch.setattr(frame_reader, "open_source", lambda spec: opened.append(original(spec)) or opened[-1])
    reader = FrameReader(str(page.folder / "clip"))
    for index in (0, 3, 6, 2, 2, 7):
        assert np.array_equal(reader.read(index).image, moving_square[0][index])
    assert len(opened) == 3  # at first, back to 2, and back to 2 again
    with pytest.raises(InputError, match="choose one of those"):
        reader.read(10_000)
    assert reader.read(1).index == 1
    reader.close()


@pytest.mark.parametrize("end", ["saved, then Ctrl-C", "SIGHUP saves"])
def test_the_command_prints_its_address_and_the_next_command(
    tmp_path: Path, label, small_artifact: Path, end: str
) -> None:
    label()  # writes the clip
    command = [sys.executable, "-m", "corrflow.runtime.commands.label_cli", "clip", "--no-browser", "--out", "saved"]
    process = subprocess.Popen(
        [*command, "--model", str(small_artifact)], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        match = re.fullmatch(r"open (http://127\.0\.0\.1:\d+)/\?token=(\S+)\n", process.stderr.readline())
        assert match is not None
        url, headers = match[1], {"Authorization": f"Bearer {match[2]}"}
        assert ask(url, "GET", "/api/state")[0] == 401
        assert ask(url, "POST", "/api/objects", {"frozen": 0, "strokes": [CORNER]}, **headers)[0] == 201
        if end == "SIGHUP saves":  # a lost terminal loses no labels
            process.send_signal(signal.SIGHUP)
        elif os.name == "posix":
            assert ask(url, "POST", "/api/save", {}, **headers)[0] == 200
            process.send_signal(signal.SIGINT)
        else:
            ask(url, "POST", "/api/done", {}, **headers)
        error = process.communicate(timeout=30)[1]
    finally:
        process.kill()
        process.wait()
    mask = Path("saved", "clip_mask.png")
    assert process.returncode == 0
    assert error.splitlines() == [f"wrote {mask}", f"next: corrflow-track clip --init {mask}"]
    assert [one.id for one in read_mask_objects([tmp_path / mask])] == [1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.mp4"], "check the path"),
        (["clip", "--frame", "99"], "choose one of those"),
        (["clip", "--frame", "-1"], "frame"),
        (["clip", "--model", "nothing"], "expected a model"),
        (["clip", "--token", "short"], "8 to 200"),
    ],
)
def test_wrong_options_are_one_sentence(tmp_path, monkeypatch, capfd, label, arguments: list[str], words: str) -> None:
    from corrflow.runtime.commands.label_cli import app

    label()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        app([*arguments, "--no-browser"])
    error = capfd.readouterr().err
    assert stopped.value.code == 2 and words in error and error.count("\n") == 1, error


def square_outline(mask: np.ndarray) -> list[list[int]]:
    """The corners of a mask's box, in order."""
    (top, left), (bottom, right) = np.argwhere(mask).min(0).tolist(), np.argwhere(mask).max(0).tolist()
    return [[left, top], [right, top], [right, bottom], [left, bottom]]
