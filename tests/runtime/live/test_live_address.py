"""The grammar of live sources: what is one, what is a file, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corrflow.errors import InputError
from corrflow.runtime.video.source_uri import Address, csi_pipeline, live_address, redacted


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", Address("camera", "0")),
        ("/dev/video2", Address("camera", "/dev/video2")),
        ("v4l2:///dev/video0?size=1280x720&rate=30", Address("camera", "/dev/video0", (1280, 720), 30)),
        ("v4l2://video1", Address("camera", "/dev/video1")),
        ("csi://0", Address("pipeline", csi_pipeline(0, (1280, 720), 30))),
        ("csi://1?size=640x480&rate=60", Address("pipeline", csi_pipeline(1, (640, 480), 60))),
        ("rtsp://host:8554/stream", Address("network", "rtsp://host:8554/stream")),
        ("http://127.0.0.1:8080/video?a=b", Address("network", "http://127.0.0.1:8080/video?a=b")),
        ("udp://0.0.0.0:5000", Address("network", "udp://0.0.0.0:5000")),
        ("-", Address("input", "")),
        ("-?raw=bgr24&size=640x480", Address("input", "", (640, 480), 0, "bgr24")),
        ("screen?rate=10", Address("screen", "", None, 10)),
        ("videotestsrc ! appsink", Address("pipeline", "videotestsrc ! appsink")),
    ],
)
def test_a_live_source_is_recognised(text: str, expected: Address) -> None:
    assert live_address(text) == expected


@pytest.mark.parametrize("text", ["video.mp4", "frames/", "clip/*.jpg", "./0", "my screen.mp4", "a - b.mkv"])
def test_a_file_is_no_live_source(text: str) -> None:
    assert live_address(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "rtsp://",
        "csi://front",
        "v4l2://../../etc/passwd x",
        "0?size=1x1",
        "0?rate=0",
        "0?colour=red",
        "-?raw=bgr24",
        "-?size=640x480",
        "-?raw=jpeg&size=640x480",
        "ftp://host/video",
    ],
)
def test_what_is_nearly_a_live_source_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(InputError, match=r"expected .*, got ") as caught:
        live_address(text)
    assert "\n" not in str(caught.value)


@given(st.text() | st.text("0123456789:/?=&x-!.av[] ", max_size=30).map("rtsp://".__add__))
def test_any_text_is_an_address_a_file_or_refused(text: str) -> None:
    try:
        address = live_address(text)
    except InputError:
        return
    assert address is None or address.name


@pytest.mark.faults
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://user:secret@host/stream", "rtsp://host/stream"),
        ("rtsp://user:sec@secret/secret@host:554/stream", "rtsp://host:554/stream"),
        ("rtsp://user:sec ret@host/stream", "rtsp://host/stream"),
        ("rtsp://user:x?secret@host/stream", "rtsp://..."),
        ("http://host/video?user=secret&password=secret&channel=secret", "http://host/video?user=...&password=...&channel=..."),
        ("http://host/video?secret#secret", "http://host/video?..."),
        ("http://host/video#secret", "http://host/video#..."),
        ("rtspsrc location=rtsp://a:secret@host/x user-pw=secret ! appsink",
         "rtspsrc location=rtsp://host/x user-pw=... ! appsink"),
        ("http://host:8080/video", "http://host:8080/video"),
        ("/dev/video0", "/dev/video0"),
    ],
)  # fmt: skip
def test_a_password_is_not_shown(text: str, shown: str) -> None:
    address = live_address(text)
    assert address is not None
    assert address.shown == shown and "secret" not in address.name


@pytest.mark.faults
def test_no_message_about_a_wrong_address_tells_its_password() -> None:
    from corrflow.runtime.live.outputs.mqtt import parse_mqtt

    for call, text in (
        (live_address, "rtsp://user:secret@/x?password=secret"),
        (live_address, "rtsp:///x?password=secret"),
        (parse_mqtt, "mqtt://user:secret@host/topic?password=secret"),
        (parse_mqtt, "user:secret@host:0"),
    ):
        try:
            call(text)
        except InputError as error:
            assert "secret" not in str(error) and "expected" in str(error)


@pytest.mark.faults
@given(st.text(max_size=20), st.text(max_size=20))
def test_a_text_without_an_address_stays_and_redacting_twice_changes_nothing(before: str, after: str) -> None:
    text = redacted(f"{before} rtsp://user:secret@host/x?key=secret {after}")
    assert "secret" not in text.replace(before, "").replace(after, "") and redacted(text) == text
