"""The page of --serve over HTTP: drawing, changing, watching and refusing, on a session that runs meanwhile."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from helpers.live_page import LivePage
from helpers.page_client import wait_for

from corrflow.errors import InputError
from corrflow.runtime.commands.track_cli import app, with_default_address
from corrflow.runtime.live.prompt import load_prompt
from corrflow.runtime.live.web.auth import Access, parse_access

for library in ("starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(library)

BOX = {"kind": "box", "points": [[16, 10], [46, 40]]}


@pytest.fixture
def serve(tmp_path: Path, small_artifact: Path, moving_square) -> Iterator[Callable[..., LivePage]]:
    pages: list[LivePage] = []

    def start(access: Access | None = None) -> LivePage:
        pages.append(LivePage(tmp_path, small_artifact, moving_square[0], access))
        return pages[-1]

    yield start
    for page in pages:
        page.close()


def overlap(page: LivePage, number: int) -> float:
    """Intersection over union of an object's mask with the red square of the same frame."""
    result = page.session.latest.result
    assert result is not None
    image = result.frame.image.astype(int)
    true, found = image[..., 2] - image[..., 1] > 60, result.mask == number
    return float((true & found).sum() / max(1, (true | found).sum()))


def test_a_box_on_the_running_stream_becomes_a_mask_that_follows(serve) -> None:
    page = serve()
    number = page.draw(strokes=[BOX], name="square")
    begin = page.session.processed
    overlaps = []
    for step in range(20):
        wait_for(lambda goal=begin + step: page.session.processed > goal)
        overlaps.append(overlap(page, number))
    assert np.mean(overlaps) > 0.6
    answer = page.ask("GET", "/api/state")[1]
    assert [(one["name"], one["state"]) for one in answer["objects"]] == [("square", "tracked")]
    assert answer["tracked"] <= answer["captured"] and answer["frames_per_second"] > 1 and answer["size"] == [98, 66]


def test_an_object_drawn_on_an_old_frame_joins_where_it_is_now(serve) -> None:
    """The square is somewhere else by then; the frames between lead there."""
    page = serve()
    frozen = page.freeze()
    wait_for(lambda goal=page.session.processed + 25: page.session.processed > goal)
    status, answer = page.ask("POST", "/api/objects", {"frozen": frozen, "strokes": [BOX]})
    assert status == 201
    wait_for(lambda: page.state(answer["id"]) == "tracked")
    assert overlap(page, answer["id"]) > 0.5


def test_objects_are_corrected_renamed_and_removed_while_the_stream_runs(serve) -> None:
    page = serve()
    number = page.draw(strokes=[BOX], name="square")
    cut = {"kind": "lasso", "points": [[0, 0], [97, 0], [97, 65], [0, 65]]}
    assert page.draw(strokes=[cut], object=number, name="all") == number
    wait_for(lambda: (page.session.latest.result.mask == number).mean() > 0.9)
    second = page.draw(points=[[30, 20]])
    assert second == number + 1
    assert page.ask("PATCH", f"/api/objects/{second}", {"name": "corner"})[0] == 200
    wait_for(lambda: "corner" in [one["name"] for one in page.ask("GET", "/api/state")[1]["objects"]])
    assert page.ask("DELETE", f"/api/objects/{number}")[0] == 200
    wait_for(lambda: page.state(number) is None)
    assert page.state(second) == "tracked"
    assert page.ask("DELETE", f"/api/objects/{number}")[0] == 400


def test_objects_given_live_go_on_when_the_stream_changes_its_size(serve) -> None:
    page = serve()
    number = page.draw(strokes=[BOX])
    page.scale[0] = 2
    wait_for(lambda: page.session.latest.result.mask.shape == (132, 196))
    wait_for(lambda: overlap(page, number) > 0.5)
    assert page.state(number) == "tracked"


def test_the_preview_is_the_mask_that_will_be_tracked(serve) -> None:
    page = serve()
    strokes = [{"kind": "paint", "points": [[30, 30], [60, 30]], "width": 9}]
    strokes.append({"kind": "erase", "points": [[60, 30]], "width": 20})
    frozen = page.freeze()
    status, png = page.ask("POST", "/api/mask", {"frozen": frozen, "strokes": strokes})
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert status == 200 and image is not None and image.shape == (66, 98, 4)
    assert np.array_equal(image[..., 3] > 0, page.control.mask({"frozen": frozen, "strokes": strokes}))
    assert image[30, 40, 3] > 0 and image[30, 60, 3] == 0


def test_the_stream_is_mjpeg_of_the_overlay(serve) -> None:
    page = serve()
    page.draw(strokes=[BOX])
    with av.open(page.url + "/stream", format="mpjpeg", timeout=10) as container:
        frames = [frame.to_ndarray(format="bgr24") for frame in islice(container.decode(video=0), 5)]
    assert frames[0].shape == (66, 98, 3)
    assert any(not np.array_equal(frames[0], image) for image in frames[1:])


def test_viewers_beyond_the_limit_are_refused_and_those_who_left_make_room(serve) -> None:
    from corrflow.runtime.live.web.live_routes import MAX_VIEWERS

    page = serve()
    viewers = [urllib.request.urlopen(page.url + "/stream", timeout=10) for _ in range(MAX_VIEWERS)]
    for viewer in viewers:
        assert viewer.read(7) == b"--frame"
    assert page.ask("GET", "/stream")[0] == 503
    for viewer in viewers:
        viewer.close()

    def free() -> bool:
        try:
            with urllib.request.urlopen(page.url + "/stream", timeout=10) as viewer:
                return viewer.read(7) == b"--frame"
        except urllib.error.HTTPError as error:
            error.close()
            return False

    wait_for(free)


def test_the_record_button_makes_a_file_that_plays_and_the_prompt_loads(serve, tmp_path: Path) -> None:
    page = serve()
    assert page.ask("POST", "/api/prompt", {})[0] == 400  # nothing is seen yet
    page.draw(strokes=[BOX], name="square")
    assert page.ask("POST", "/api/recording", {"on": True})[1] == {"recording": True}
    wait_for(lambda: page.session.outputs and page.session.outputs[0].written > 5)
    assert page.ask("POST", "/api/recording", {"on": False})[1] == {"recording": False}
    with av.open(str(tmp_path / "recorded.mkv")) as container:
        assert sum(1 for _ in container.decode(video=0)) > 5
    status, answer = page.ask("POST", "/api/prompt", {})
    assert (status, answer["objects"], answer["hidden"]) == (200, 1, [])
    kept = load_prompt(tmp_path / "kept.npz")
    assert kept.objects[0].name == "square"


def test_metrics_are_in_prometheus_format_and_agree_with_the_session(serve) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    page = serve()
    page.draw(strokes=[BOX], name='a "name"')
    wait_for(lambda: page.session.processed > 10)
    status, text = page.ask("GET", "/metrics")
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }
    assert status == 200
    assert values["corrflow_up",] == 1 and values["corrflow_frames_tracked_total",] > 10
    assert values["corrflow_object_visible", "1", 'a "name"'] == 1
    assert 0 < values["corrflow_latency_seconds", "0.99"] < 10
    assert page.ask("GET", "/healthz") == (200, b"ok")


def test_healthz_says_when_no_frames_come(serve) -> None:
    page = serve()
    result = page.session.latest.result
    page.session.stop.set()
    page.thread.join(10)
    assert result is not None and page.ask("GET", "/healthz") == (503, b"the session has ended")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"strokes": [BOX]}, "frozen frame"),
        ({"frozen": 99, "strokes": [BOX]}, "is gone"),
        ({"frozen": True, "strokes": [BOX]}, "frozen frame"),
        ({"frozen": 1}, "strokes"),
        ({"frozen": 1, "strokes": []}, "strokes"),
        ({"frozen": 1, "strokes": [{"kind": "star"}]}, "kind among"),
        ({"frozen": 1, "strokes": [{"kind": "box", "points": [[1, 2]]}]}, "two corners"),
        ({"frozen": 1, "strokes": [{"kind": "lasso", "points": [[1e300, 2]]}]}, "in pixels"),
        ({"frozen": 1, "strokes": [{"kind": "lasso", "points": [[1, 2], [3]]}]}, "in pixels"),
        ({"frozen": 1, "strokes": [{"kind": "lasso", "points": [[float("nan"), 2]]}]}, "in pixels"),
        ({"frozen": 1, "strokes": [{"kind": "paint", "points": [[1, 2]], "width": 1e9}]}, "pixels wide"),
        ({"frozen": 1, "strokes": [{"kind": "paint", "points": [[-900, -900]]}]}, "draw on the object"),
        ({"frozen": 1, "strokes": [{"kind": "object", "object": 3}]}, "draw on the object"),
        ({"frozen": 1, "strokes": [{"kind": "object", "object": 300}]}, "1 to 255"),
        ({"frozen": 1, "points": [[900, 900]]}, "inside the frame"),
        ({"frozen": 1, "points": [[1, 1]], "object": 999}, "1 to 255"),
        ({"frozen": 1, "points": [[1, 1]], "name": "x" * 61}, "a name"),
        ({"frozen": 1, "points": [[1, 1]], "name": "a\nb"}, "a name"),
        ([1], "JSON object"),
        ("x" * 2**21, "at most"),
    ],
)
def test_wrong_requests_are_one_sentence_and_change_nothing(serve, values: object, words: str) -> None:
    page = serve()
    assert page.freeze() == 1
    status, answer = page.ask("POST", "/api/objects", values)
    assert status == 400 and words in answer["error"], answer
    assert page.ask("GET", "/api/state")[1]["objects"] == []
    assert page.thread.is_alive()


def test_only_the_token_opens_the_page_that_others_can_reach(serve) -> None:
    page = serve(Access("127.0.0.1", 0, "secret-token"))
    assert page.ask("GET", "/healthz")[0] == 200
    for path in ("/", "/stream", "/metrics", "/api/state", "/page.js", "/?token=secret-tokem"):
        status, answer = page.ask("GET", path)
        assert status == 401 and "secret" not in str(answer)
    assert page.ask("POST", "/api/freeze", {})[0] == 401
    assert page.ask("GET", "/api/state", Authorization="Bearer secret-token")[0] == 200
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    with opener.open(page.url + "/?token=secret-token", timeout=10) as response:
        assert b"page.js" in response.read()
    with opener.open(page.url + "/api/state", timeout=10) as response:
        assert response.status == 200


def test_pages_of_others_cannot_reach_through_the_users_browser(serve) -> None:
    page = serve()
    assert page.ask("GET", "/api/state", Host="evil.example")[0] == 403
    assert page.ask("POST", "/api/freeze", {}, Origin="http://evil.example")[0] == 403
    assert page.ask("POST", "/api/freeze", {}, Content_Type="text/plain")[0] == 400
    assert page.ask("POST", "/api/freeze", {}, Origin=page.url)[0] == 200
    status, _ = page.ask("GET", "/..%2f..%2fserver.py")
    assert status == 404


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080), ("9000", "127.0.0.1", 9000), (":9000", "127.0.0.1", 9000),
        ("0.0.0.0:80", "0.0.0.0", 80), ("camera.local", "camera.local", 8080), ("[::1]:81", "::1", 81),
        ("localhost", "localhost", 8080), ("[::]", "::", 8080),
    ],
)  # fmt: skip
def test_an_address_gets_a_token_unless_it_is_this_machines_own(text: str, host: str, port: int) -> None:
    access = parse_access(text)
    assert (access.host, access.port) == (host, port)
    assert bool(access.token) == (host not in ("127.0.0.1", "localhost", "::1"))
    assert parse_access(text, "a-token-given").token == "a-token-given"
    assert replace(access, token="t").admits("t") and not replace(access, token="t").admits("")


@pytest.mark.parametrize("text", ["a b:1", "host:x", "host:70000", "1.2.3.4:999999", "http://host:1", "::1:80"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="HOST:PORT"):
        parse_access(text)


def test_a_taken_port_is_one_sentence_before_anything_is_written(serve, tmp_path, monkeypatch, capfd) -> None:
    page = serve()
    monkeypatch.chdir(tmp_path)
    Path("clip").mkdir()
    cv2.imwrite("clip/0.png", np.zeros((66, 98, 3), np.uint8))
    with pytest.raises(SystemExit) as stopped:
        app(["--camera", "clip", "--serve", f"127.0.0.1:{page.server.access.port}", "--save", "out.mkv"])
    error = capfd.readouterr().err
    assert stopped.value.code == 2 and re.fullmatch(r"error: expected to listen on .*; choose another port.*\n", error)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip"]


def test_serve_needs_no_address() -> None:
    assert with_default_address(["--serve"]) == ["--serve", "127.0.0.1:8080"]
    assert with_default_address(["--serve", "--camera", "0"]) == ["--serve", "127.0.0.1:8080", "--camera", "0"]
    assert with_default_address(["--camera", "0", "--serve", ":80"]) == ["--camera", "0", "--serve", ":80"]
